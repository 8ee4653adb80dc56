//! What is refused before anything starts, and what needs no cluster.

use crate::{Done, command, millstream};

#[test]
fn wrong_usage_ends_with_2() {
    millstream(&["run", "nexmark-q5", "-p", "0"]).refused(2, &["parallelism"]);
    millstream(&["run", "nexmark-q5", "--paralelism", "3"]).refused(2, &["MS1003", "--paralelism", "--parallelism"]);
    millstream(&["frobnicate"]).refused(2, &["frobnicate"]);
    millstream(&["run", "nexmark-q5", "--checkpoint-interval", "four"]).refused(2, &["checkpoint.interval", "four"]);
    millstream(&["run", "nexmark-q5", "--cache-memory", "lots"]).refused(2, &["cache.memory", "lots"]);
    millstream(&["run", "nexmark-q5", "-p", "2", "--", "--watermark-delay", "four"]).refused(2, &["four"]);
    millstream(&["run", "nexmark-q5", "--", "--no-such-argument", "1"]).refused(2, &["no-such-argument"]);
    millstream(&["rescale", "j1", "-p", "0"]).refused(2, &["parallelism"]);
    millstream(&["worker", "--coordinator", "foo"]).refused(2, &["MS1003", "foo", "HOST:PORT"]);
    millstream(&["worker", "--coordinator", ""]).refused(2, &["MS1003", "HOST:PORT"]);
    millstream(&["worker", "--coordinator", "127.0.0.1:99999"]).refused(2, &["99999"]);
    millstream(&["worker", "-D", "checkpoint.interval=3s"]).refused(2, &["MS1405", "checkpoint.interval", "submit"]);
    let done = Done::of(command(&["list"]).env("MILLSTREAM_COORDINATOR", "foo").output().unwrap());
    done.refused(2, &["MILLSTREAM_COORDINATOR", "foo"]);
}

#[test]
fn options_that_have_no_meaning_together_are_refused() {
    for command in ["run", "submit"] {
        millstream(&[command, "nexmark-q5", "--discard-state"])
            .refused(2, &["MS1003", "--discard-state", "--from none"]);
        millstream(&[command, "nexmark-q5", "--from", "3", "--discard-state"]).refused(2, &["--from is 3"]);
    }
    millstream(&["run", "nexmark-q5", "--json", "--", "--events", "10"])
        .refused(2, &["--json", "--output", "--summary"]);
    millstream(&["run", "nexmark-q5", "--", "--input", "a", "--events", "10"]).refused(2, &["--input", "--events"]);
    millstream(&["run", "keyed-count", "--", "--skew", "1"]).refused(2, &["MS1002", "--skew", "--distribution zipf"]);
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
    not_built(&["run", "nexmark-q5", "-D", "checkpoint.mode=at-least-once"], "at-least-once");
    not_built(&["run", "nexmark-q5", "-D", "checkpoint.alignment-timeout=1s"], "alignment-timeout");
    not_built(&["run", "nexmark-q5", "-D", "checkpoint.max-concurrent=2"], "max-concurrent");
    not_built(&["run", "nexmark-q5", "-D", "restart.strategy=fixed-delay"], "fixed-delay");
    not_built(&["run", "nexmark-q5", "--", "--output", "files:s3://b/out"], "files:s3://");
    not_built(&["run", "nexmark-q5", "--", "--input", "kafka://b/topic"], "kafka://b/topic");
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
fn a_store_that_cannot_fence_holds_no_cluster() {
    // Known without a request: nobody listens there.
    for state in ["webdav://127.0.0.1:1/state", "webhdfs://127.0.0.1:1/state"] {
        millstream(&["coordinator", "--state", state, "--listen", "127.0.0.1:0"])
            .refused(1, &["MS1110", "create-if-absent", "millstream run", state]);
    }
    // A single process may use it, and is told what that means.
    let words = ["run", "nexmark-q0", "--state", "webdav://127.0.0.1:1/state", "-D", "object-store.retry-timeout=1s"];
    let rest = ["--", "--events", "10", "--output", "blackhole"];
    let done = millstream(&[&words[..], &rest[..]].concat()).refused(1, &["MS2300"]);
    assert!(done.err.contains("warning") && done.err.contains("create-if-absent"), "{}", done.err);
}

#[test]
fn a_state_of_no_known_kind_is_refused() {
    let words = ["run", "nexmark-q5", "--state", "ftp://x/y", "--", "--events", "10", "--output", "blackhole"];
    millstream(&words).refused(1, &["MS1100", "ftp", "s3://bucket/prefix", "oss://"]);
    let folder = tempfile::tempdir().unwrap();
    let state = format!("file://{}", folder.path().display());
    millstream(&["versions", "nexmark-q5", "--state", &state]).refused(1, &["MS1422", "nexmark-q5"]);
    let relative = ["run", "nexmark-q5", "--state", "file:rel", "--", "--events", "10", "--output", "blackhole"];
    millstream(&relative).refused(1, &["MS1100", "file:///folder"]);
}

#[test]
fn who_looks_at_a_place_of_state_creates_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let state = format!("file://{}/absent", folder.path().display());
    millstream(&["fsck", "--state", &state]).refused(1, &["MS1426", "nothing is there", &state]);
    millstream(&["versions", "nexmark-q5", "--state", &state]).refused(1, &["MS1422", &state]);
    millstream(&["list", "--state", &state]).ok();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    std::fs::create_dir_all(folder.path().join("absent/job/data/ab")).unwrap();
    std::fs::write(folder.path().join("absent/job/data/ab/1-1-x"), "state").unwrap();
    millstream(&["fsck", "--state", &state]).refused(1, &["MS4200", "job/version", "no version record"]);
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
    for command in ["run", "submit"] {
        let help = millstream(&[command, "nexmark-q5", "--", "--help"]).ok();
        assert!(help.out.contains("--watermark-delay") && help.out.lines().count() > 10, "{}", help.out);
    }
    let bare = millstream(&[]);
    assert!(bare.code == Some(2) && bare.err.lines().count() > 10 && !bare.err.contains("error["), "{}", bare.err);
}
