//! What is refused before anything starts, and what needs no cluster.

use crate::millstream;

#[test]
fn wrong_usage_ends_with_2() {
    millstream(&["run", "nexmark-q5", "-p", "0"]).refused(2, &["parallelism"]);
    millstream(&["run", "nexmark-q5", "--paralelism", "3"]).refused(2, &["MS1003", "--paralelism", "--parallelism"]);
    millstream(&["frobnicate"]).refused(2, &["frobnicate"]);
    millstream(&[]).refused(2, &["MS1003"]);
    millstream(&["run", "nexmark-q5", "--checkpoint-interval", "four"]).refused(2, &["checkpoint.interval", "four"]);
    millstream(&["run", "nexmark-q5", "--cache-memory", "lots"]).refused(2, &["cache.memory", "lots"]);
    millstream(&["run", "nexmark-q5", "-p", "2", "--", "--watermark-delay", "four"]).refused(2, &["four"]);
    millstream(&["run", "nexmark-q5", "--", "--no-such-argument", "1"]).refused(2, &["no-such-argument"]);
    millstream(&["rescale", "j1", "-p", "0"]).refused(2, &["parallelism"]);
}

#[test]
fn unknown_jobs_and_settings_are_named_with_the_nearest() {
    let done = millstream(&["run", "nexmark-q99"]);
    assert!(matches!(done.code, Some(1 | 2)) && done.err.contains("q99"), "{}", done.err);
    let words = ["run", "nexmark-q5", "-D", "checkpont.interval=1s", "--", "--events", "10"];
    millstream(&words).refused(2, &["MS1400", "checkpont.interval", "checkpoint.interval"]);
}

#[test]
fn what_is_not_built_yet_says_so() {
    let not_built = |words: &[&str], name: &str| {
        millstream(words).refused(1, &["MS1410", "not built yet", name]);
    };
    not_built(&["stop", "j1", "--drain"], "--drain");
    not_built(&["savepoint", "j1", "s3://b/x"], "savepoint");
    not_built(&["run", "query.sql"], "query.sql");
    not_built(&["run", "nexmark-q5", "--residency", "local"], "residency");
    not_built(&["run", "nexmark-q5", "-D", "checkpoint.mode=at-least-once"], "at-least-once");
    not_built(&["run", "nexmark-q5", "-D", "checkpoint.alignment-timeout=1s"], "alignment-timeout");
    not_built(&["run", "nexmark-q5", "-D", "checkpoint.max-concurrent=2"], "max-concurrent");
    not_built(&["run", "nexmark-q5", "-D", "restart.strategy=fixed-delay"], "fixed-delay");
    not_built(&["run", "nexmark-q5", "--", "--output", "files:s3://b/out"], "files:s3://");
    millstream(&["submit", "nexmark-q5", "--cache-memory", "1GB"]).refused(1, &["not built yet", "worker"]);
}

#[test]
fn addresses_that_others_reach_need_a_word() {
    let state = "file:///nowhere/at/all";
    millstream(&["coordinator", "--state", state, "--listen", "0.0.0.0:0"])
        .refused(1, &["MS1420", "0.0.0.0", "--insecure"]);
    millstream(&["worker", "--listen", "0.0.0.0:0"]).refused(1, &["MS1420", "--insecure"]);
    millstream(&["worker", "--metrics-listen", "0.0.0.0:0"]).refused(1, &["MS1420", "--metrics-listen"]);
    millstream(&["coordinator", "--state", "memory://"]).refused(1, &["MS1425", "memory"]);
}

#[test]
fn a_state_of_no_known_kind_is_refused() {
    let words = ["run", "nexmark-q5", "--state", "ftp://x/y", "--", "--events", "10", "--output", "blackhole"];
    millstream(&words).refused(1, &["ftp"]);
    let folder = tempfile::tempdir().unwrap();
    let state = format!("file://{}", folder.path().display());
    millstream(&["versions", "nexmark-q5", "--state", &state]).refused(1, &["MS1422", "nexmark-q5"]);
}

#[test]
fn nobody_answers() {
    for words in [&["list"][..], &["status", "j1"], &["rescale", "j1", "-p", "2"], &["cancel", "j1"]] {
        let words = [words, &["--coordinator", "127.0.0.1:1"]].concat();
        millstream(&words).refused(1, &["127.0.0.1:1"]);
    }
}

#[test]
fn help_and_version_go_to_stdout() {
    let help = millstream(&["--help"]).ok();
    for word in ["run", "coordinator", "worker", "submit", "rescale", "fsck", "versions"] {
        assert!(help.out.contains(word), "{}", help.out);
    }
    assert!(!help.out.contains("savepoint"), "what is not built is not advertised");
    assert!(millstream(&["--version"]).ok().out.starts_with("millstream "));
    assert!(millstream(&["run", "--help"]).ok().out.contains("--checkpoint-interval"));
}
