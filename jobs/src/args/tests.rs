use std::path::Path;

use millstream_common::{Env, ErrorKind};
use millstream_engine::dataflow::{JOB_USAGE, JobContext};
use millstream_engine::settings::NOT_BUILT_YET;

use super::HELP_ASKED;
use crate::registry;

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn identity(job: &str, args: &str) -> Vec<(String, String)> {
    registry().build(job, &words(args), &JobContext::new(Env::test(1), "test")).unwrap().identity_args
}

fn refused(job: &str, args: &str, names: &str) {
    let error = registry().build(job, &words(args), &JobContext::new(Env::test(1), "test")).err();
    let error = error.unwrap_or_else(|| panic!("{job} {args} is accepted"));
    assert_eq!((error.kind(), error.number()), (ErrorKind::Config, JOB_USAGE), "{error:?}");
    assert!(error.to_string().contains(names), "{error}");
}

#[test]
fn the_normal_form_has_the_defaults_and_no_rate() {
    let plain = identity("nexmark-q5", "");
    let text: Vec<String> = plain.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(
        text,
        [
            "events=1000000",
            "event-rate=10000",
            "output=print",
            "base-time=2026-01-01T00:00:00.000Z",
            "watermark-delay=4s",
            "idle-timeout=none"
        ]
    );
    let same = "--rate 0.001 --events=1000000 --watermark-delay 4000ms --base-time 2026-01-01 --idle-timeout none";
    assert_eq!(identity("nexmark-q5", same), plain);
    for other in ["--events 5", "--event-rate 7", "--watermark-delay 1500ms", "--idle-timeout 1m", "--output blackhole"]
    {
        assert_ne!(identity("nexmark-q5", other), plain, "{other}");
    }
    assert_eq!(identity("keyed-count", "--keys 10 --passes 3"), identity("keyed-count", "--keys 10 --events 30"));
    assert_ne!(
        identity("keyed-count", "--distribution zipf"),
        identity("keyed-count", "--distribution zipf --skew 0.5")
    );
}

#[test]
fn what_makes_no_sense_is_wrong_usage() {
    refused("nexmark-q5", "--watermark-delay four", "four");
    refused("nexmark-q5", "--evnts 5", "--evnts");
    refused("nexmark-q5", "--events -5", "-5");
    refused("nexmark-q5", "--event-rate 0", "0");
    refused("nexmark-q5", "--rate fast", "fast");
    refused("nexmark-q5", "--rate=-1", "-1");
    refused("nexmark-q5", "--output table", "table");
    refused("nexmark-q5", "--output files:", "files:DIR");
    refused("nexmark-q5", "--output files:s3://bucket/out", "not built yet");
    refused("nexmark-q5", "--base-time yesterday", "yesterday");
    refused("nexmark-q5", "stray", "stray");
    refused("nexmark-q5", "--input", "--input");
    refused("keyed-count", "--keys 0", "0");
    refused("keyed-count", "--distribution normal", "normal");
    refused("keyed-count", "--keys 9223372036854775807 --passes 9", "too many");
    refused("nexmark-q5", "--watermark-delay 99999999999999h", "100 years");
    refused("nexmark-q5", "--output kafka://topic", "kafka://topic is not built yet");
}

#[test]
fn what_would_be_passed_over_is_refused_with_both_names() {
    for (args, other) in [
        ("--input a.ndjson --events 5", "--events"),
        ("--event-rate 5 --input a.ndjson", "--event-rate"),
        ("--input a.ndjson --base-time 2026-01-02", "--base-time"),
    ] {
        refused("nexmark-q5", args, "--input");
        refused("nexmark-q5", args, other);
    }
    refused("keyed-count", "--skew 1", "--distribution zipf");
    refused("keyed-count", "--skew 1 --distribution uniform", "--skew");
    let files = identity("nexmark-q5", "--input a.ndjson --rate 7");
    let names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["input", "output", "watermark-delay", "idle-timeout"]);
}

#[test]
fn an_input_that_is_no_file_is_named() {
    let error = |args: &str| registry().absolutise("nexmark-q0", &words(args), Path::new("/home/ada")).unwrap_err();
    let kafka = error("--input a.ndjson kafka://broker/topic");
    assert!(kafka.number() == NOT_BUILT_YET && kafka.what().contains("kafka://broker/topic"), "{kafka}");
    let url = error("--input file:///data/a.ndjson");
    assert!(url.number() == JOB_USAGE && url.advice().contains("leave file:// away"), "{url}");
}

#[test]
fn help_and_refusals_of_arguments_are_told_apart() {
    let error = |args: &str| registry().absolutise("nexmark-q0", &words(args), Path::new("/")).unwrap_err();
    let help = error("--help");
    assert!(help.number() == HELP_ASKED && help.what().contains("\n"), "{help}");
    assert!(help.what().contains("--watermark-delay"), "{help}");
    let refused = error("--evnts 5");
    assert_eq!(refused.what(), "unexpected argument '--evnts' found");
    let tip = refused.advice();
    assert!(tip.contains("--events") && tip.contains("run JOB -- --help") && !tip.contains("Usage"), "{tip}");
}

#[test]
fn paths_are_meant_from_where_the_command_was_typed() {
    let folder = Path::new("/home/ada");
    let absolute = |job: &str, args: &str| registry().absolutise(job, &words(args), folder).unwrap();
    let args = absolute("nexmark-q0", "--input a.ndjson /data/b.gz in/*.gz --output files:./out --rate 5");
    for want in [
        "--input=/home/ada/a.ndjson",
        "--input=/data/b.gz",
        "--input=/home/ada/in/*.gz",
        "--output=files:/home/ada/out",
        "--rate=5",
    ] {
        assert!(args.iter().any(|a| a == want), "{want} in {args:?}");
    }
    // What comes out goes in again and means the same.
    assert_eq!(registry().absolutise("nexmark-q0", &args, Path::new("/elsewhere")).unwrap(), args);
    let counted = absolute("keyed-count", "--output files:out --keys 7 --passes 2 --distribution zipf --skew 1 --fill");
    assert!(counted.contains(&"--fill=true".to_owned()), "{counted:?}");
    assert!(counted.contains(&"--output=files:/home/ada/out".to_owned()));
    assert_eq!(registry().absolutise("keyed-count", &counted, Path::new("/elsewhere")).unwrap(), counted);
}

#[test]
fn an_unknown_job_names_the_nearest() {
    let error = registry().build("nexmark-q99", &[], &JobContext::new(Env::test(1), "test")).err().unwrap();
    assert!(error.to_string().contains("nexmark-q99") && error.to_string().contains("did you mean"), "{error}");
    assert_eq!(registry().iter().count(), 9);
}
