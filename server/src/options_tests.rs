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
    let e = of_run(&job("millstream run j --residency local")).unwrap_err();
    assert!(e.number() == NOT_BUILT_YET && e.to_string().contains("residency"), "{e}");
}

#[test]
fn open_addresses_need_a_word() {
    for address in ["127.0.0.1:6123", "[::1]:0", "localhost:80", "127.8.8.8:1"] {
        refuse_open_address("--listen", address, false).unwrap();
    }
    for address in ["0.0.0.0:6123", "10.0.0.1:1", "example.org:80", "[::]:1", "nonsense"] {
        let e = refuse_open_address("--listen", address, false).unwrap_err();
        assert!(e.to_string().contains("TLS") && e.to_string().contains("--insecure"), "{e}");
        refuse_open_address("--listen", address, true).unwrap();
    }
}
