use std::time::Duration;

use clap::Parser;
use millstream_engine::settings::{NOT_A_JOB_SETTING, NOT_BUILT_YET};

use super::*;
use crate::args::{Cli, Command};

fn job(line: &str) -> JobOptions {
    match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
        Command::Run(run) => run.job,
        Command::Submit(submit) => submit.job,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_stronger_layer_wins() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f.toml");
    std::fs::write(&file, "[checkpoint]\ninterval = \"5s\"\nretained = 3\ntimeout = \"1min\"\n").unwrap();
    let line = format!(
        "millstream run j --config {} -D checkpoint.interval=4s -D checkpoint.retained=4 --checkpoint-interval 200ms",
        file.display()
    );
    let s = of_run(&job(&line)).unwrap();
    assert_eq!(s.checkpoint.interval, Duration::from_millis(200));
    assert_eq!(s.checkpoint.retained, 4);
    assert_eq!(s.checkpoint.timeout, Duration::from_secs(60));
    assert_eq!(s.checkpoint.tolerable_failures, 10);
}

#[test]
fn options_are_short_for_settings() {
    let s = of_run(&job(
        "millstream run j --cache-memory 64MiB --cache-dir /fast --cache-disk 0 --memory-limit 400MiB --residency remote",
    ))
    .unwrap();
    assert_eq!(s.cache.memory_bytes, Some(64 << 20));
    assert_eq!(s.cache.disk_bytes, Some(0));
    assert_eq!(s.cache.dir.as_deref(), Some(std::path::Path::new("/fast")));
    assert_eq!(s.memory.limit_bytes, Some(400 << 20));
}

#[test]
fn a_submitted_job_takes_no_settings_of_processes() {
    let s = of_submit(&job("millstream submit j --checkpoint-interval 1s -D checkpoint.retained=1000")).unwrap();
    assert_eq!(s.checkpoint.retained, 1000);
    for line in ["millstream submit j --cache-memory 1GB", "millstream submit j -D heartbeat.timeout=9s"] {
        let e = of_submit(&job(line)).unwrap_err();
        assert_eq!(e.number(), NOT_A_JOB_SETTING, "{e}");
        assert!(e.to_string().contains("not built yet"), "{e}");
    }
}

fn serving(line: &str) -> Result<Settings> {
    match Cli::try_parse_from(line.split_whitespace()).unwrap().command {
        Command::Worker(worker) => of_server(&worker.serve.process.settings, &of_memory(&worker.memory)),
        Command::Coordinator(coordinator) => of_server(&coordinator.serve.process.settings, &[]),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_process_of_a_cluster_takes_no_settings_of_jobs() {
    let s = serving("millstream worker --cache-memory 64MiB -D heartbeat.timeout=9s").unwrap();
    assert_eq!((s.cache.memory_bytes, s.heartbeat.timeout), (Some(64 << 20), Duration::from_secs(9)));
    for line in
        ["millstream worker -D checkpoint.interval=3s", "millstream coordinator --state file:///x -D restart.jitter=0"]
    {
        let e = serving(line).unwrap_err();
        assert!(e.number() == NOT_OF_PROCESSES && e.advice().contains("millstream submit"), "{e}");
    }
    assert!(
        serving("millstream worker -D checkpoint.interval=3s").unwrap_err().advice().contains("--checkpoint-interval")
    );
}

#[test]
fn only_a_near_setting_is_suggested() {
    let advice = |key: &str| of_run(&job(&format!("millstream run j -D {key}=1s"))).unwrap_err();
    assert!(advice("checkpont.interval").advice().contains("checkpoint.interval"));
    assert!(advice("checkpoint-interval").advice().contains("checkpoint.interval"));
    for far in ["foo", "interval", "execution.checkpointing.interval"] {
        let e = advice(far);
        assert!(e.number() == settings::UNKNOWN_SETTING && !e.advice().contains("nearest"), "{e}");
    }
}

#[test]
fn errors_of_a_file_name_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("f.toml");
    let run = format!("millstream run j --config {}", file.display());
    for text in ["checkpont.interval = \"1s\"", "checkpoint.interval = \"soon\"", "checkpoint.retained = true", "= 1"] {
        std::fs::write(&file, text).unwrap();
        let e = of_run(&job(&run)).unwrap_err();
        assert!(e.place().contains("f.toml"), "{text}: {e}");
        assert_eq!(crate::failure::exit_code(&e), crate::failure::WRONG_USAGE, "{text}: {e}");
    }
    std::fs::write(&file, "cache.memory = \"64MiB\"").unwrap();
    let e = of_submit(&job(&run.replace("run", "submit"))).unwrap_err();
    assert!(e.number() == NOT_A_JOB_SETTING && e.place().ends_with("f.toml"), "{e}");
}

#[test]
fn sizes_and_durations_that_nobody_means_are_refused() {
    for line in [
        "millstream run j --cache-memory 99999999999999GB",
        "millstream run j --memory-limit 99999999999999GB --cache-memory 99999999999999GB",
        "millstream run j --checkpoint-interval 99999999999999h",
        "millstream run j -D heartbeat.interval=99999999999999h -D heartbeat.timeout=99999999999999h",
        "millstream run j -D checkpoint.alignment-timeout=99999999999999h",
    ] {
        let e = of_run(&job(line)).unwrap_err();
        assert!(e.number() == settings::MALFORMED_SETTING && e.what().contains("is more than"), "{line}: {e}");
    }
    for size in ["0", "999999"] {
        let e = of_run(&job(&format!("millstream run j --cache-memory {size}"))).unwrap_err();
        assert!(e.number() == settings::CONTRADICTION && e.what().contains("--cache-memory"), "{e}");
    }
    of_run(&job("millstream run j --cache-memory 1MB --cache-disk 0")).unwrap();
}

#[test]
fn options_without_meaning_beside_each_other_are_refused() {
    for line in ["millstream run j --discard-state", "millstream submit j --discard-state --from 3"] {
        let e = refuse_contradictions(&job(line)).unwrap_err();
        assert!(e.number() == COMMAND_USAGE && e.to_string().contains("--from none"), "{e}");
    }
    refuse_contradictions(&job("millstream run j --from none --discard-state")).unwrap();
    let words = |output: &str| vec!["--events=1".to_owned(), format!("--output={output}")];
    assert_eq!(refuse_rows_beside_document(&words("print")).unwrap_err().number(), COMMAND_USAGE);
    refuse_rows_beside_document(&words("files:/print")).unwrap();
}

#[test]
fn what_is_not_built_yet_is_refused_by_name() {
    for (line, name) in [
        ("millstream run q.sql", "q.sql"),
        ("millstream run j -- --output files:s3://bucket/out", "files:s3://"),
        ("millstream run j -- --output=files:gs://bucket/out", "files:gs://"),
    ] {
        let e = refuse_what_is_not_built(&job(line)).unwrap_err();
        assert!(e.number() == NOT_BUILT_YET && e.to_string().contains(name), "{e}");
    }
    refuse_what_is_not_built(&job("millstream run j --state s3://b/x -- --output files:out")).unwrap();
}

#[test]
fn open_addresses_need_a_word() {
    for address in ["127.0.0.1:6123", "[::1]:0", "localhost:80", "127.8.8.8:1"] {
        refuse_open_address("--listen", address, false).unwrap();
    }
    for address in ["0.0.0.0:6123", "10.0.0.1:1", "example.org:80", "[::]:1"] {
        let e = refuse_open_address("--listen", address, false).unwrap_err();
        assert!(e.to_string().contains("TLS") && e.to_string().contains("--insecure"), "{e}");
        refuse_open_address("--listen", address, true).unwrap();
    }
}
