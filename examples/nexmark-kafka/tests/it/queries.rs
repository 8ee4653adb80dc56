//! Queries from Kafka to Kafka.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use flate2::read::GzDecoder;
use serde_json::Value;

use super::program::{Program, call, pause, refused, wait};
use super::support::{Record, Seen, add_partitions, bootstrap, create_topic, read, run, unique, variable, write};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/data/nexmark-10k");
const EVENTS: usize = 10_000;
const PARTITIONS: i32 = 8;

pub(crate) fn golden(name: &str) -> Vec<String> {
    let mut text = String::new();
    let file = std::fs::File::open(format!("{GOLDEN}/{name}.ndjson.gz")).unwrap();
    GzDecoder::new(file).read_to_string(&mut text).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn topics(name: &str) -> (String, String) {
    let (events, results) = (unique(name), unique(name));
    run(|_| async {
        create_topic(&events, PARTITIONS).await;
        create_topic(&results, 2).await;
    });
    (events, results)
}

/// The golden events, in turn to the first partitions.
fn fill(topic: &str, partitions: i32) {
    put(topic, golden("events"), |i| i as i32 % partitions);
}

/// A topic with the golden events, which all tests that only read it share.
pub(crate) fn golden_events() -> &'static str {
    static EVENTS: OnceLock<String> = OnceLock::new();
    EVENTS.get_or_init(|| {
        let events = unique("golden");
        run(|_| async { create_topic(&events, 4).await });
        fill(&events, 4);
        events
    })
}

/// A topic has each golden row of a query once, and nothing else.
pub(crate) fn exactly(topic: &str, query: &str) {
    let (found, mut due) = (rows(&read(topic, 2)), golden(query));
    due.sort();
    let missing = due.iter().filter(|row| found.binary_search(row).is_err()).count();
    let twice = found.windows(2).filter(|two| two[0] == two[1]).count();
    assert!(found == due, "{} rows, due are {}: {missing} are missing, {twice} there twice", found.len(), due.len());
}

/// Writes events, each into a partition by its place.
fn put(topic: &str, events: Vec<String>, partition: impl Fn(usize) -> i32) {
    let record = |(i, line): (usize, String)| Record {
        partition: partition(i),
        value: Some(line),
        timestamp: 1_000_000,
        ..Record::default()
    };
    let records: Vec<_> = events.into_iter().enumerate().map(record).collect();
    records.chunks(2_000).for_each(|some| write(topic, some, None));
}

pub(crate) fn rows(seen: &[Seen]) -> Vec<String> {
    let mut rows: Vec<String> = seen.iter().map(|s| s.value.clone().unwrap()).collect();
    rows.sort();
    rows
}

#[test]
fn queries_give_the_golden_rows() {
    let (events, results) = topics("golden");
    let brokers = bootstrap();
    let files = format!("{GOLDEN}/events.ndjson.gz");
    call(&["run", "events", "-p", "1", "--", "--brokers", &brokers, "--events", &events, "--input", &files]);
    for (query, guarantee) in [("q5", "exactly-once"), ("q7", "at-least-once")] {
        let to = format!("{results}-{query}");
        run(|_| async { create_topic(&to, 2).await });
        let common = ["--brokers", &brokers, "--events", &events, "--results", &to];
        let more = ["--stop", "latest", "--guarantee", guarantee];
        let settings = ["-D", "checkpoint.timeout=60s"];
        call(&[&["run", query][..], &settings, &["--"], &common, &more].concat());
        let mut due = golden(query);
        due.sort();
        assert_eq!(rows(&read(&to, 2)), due, "{query}");
    }
}

/// All files below a folder.
fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

/// By settings alone: TLS, and SCRAM with a password that is in the environment and nowhere else.
#[test]
fn a_cluster_is_reached_by_tls_and_scram() {
    let (events, results) = topics("secured");
    let (brokers, password) = (variable("KAFKA_BOOTSTRAP_SASL_TLS"), variable("KAFKA_PASSWORD"));
    let (ca, user) = (format!("ssl.ca.location={}", variable("KAFKA_CA")), variable("KAFKA_USER"));
    let user = format!("sasl.username={user}");
    let protocol = ["security.protocol=SASL_SSL", "sasl.mechanism=SCRAM-SHA-512", "client.id=secured"];
    let properties: Vec<&str> = [&protocol[..], &[&ca, &user, "sasl.password=env:KAFKA_PASSWORD"]]
        .concat()
        .into_iter()
        .flat_map(|property| ["--kafka-property", property])
        .collect();
    let common = [&["--brokers", brokers.as_str(), "--events", &events][..], &properties].concat();
    let files = format!("{GOLDEN}/events.ndjson.gz");
    call(&[&["run", "events", "-p", "1", "--"][..], &common, &["--input", &files]].concat());
    let folder = tempfile::tempdir().unwrap();
    let state = format!("file://{}", folder.path().display());
    let settings = ["run", "q5", "--state", &state, "-D", "checkpoint.timeout=60s", "--"];
    call(&[&settings[..], &common, &["--results", &results, "--stop", "latest"]].concat());
    let mut due = golden("q5");
    due.sort();
    assert_eq!(rows(&read(&results, 2)), due);
    let kept = files_below(folder.path());
    assert!(!kept.is_empty(), "a version is kept");
    let holds_password = |path: &PathBuf| {
        std::fs::read(path).unwrap().windows(password.len()).any(|window| window == password.as_bytes())
    };
    assert!(!kept.iter().any(holds_password), "{kept:?}");

    let written_out = format!("sasl.password={password}");
    let wrong = [&common[..common.len() - 1], &[&written_out]].concat();
    let text = refused(&[&settings[..], &wrong].concat());
    assert!(text.contains("MS1411") && text.contains("env:NAME") && !text.contains(&password), "{text}");
}

/// It is killed wherever it is, and goes on from its last version. What it left open a broker before Apache Kafka 3.0 gives up
/// only after the time-out, and readers of committed records wait until then.
#[test]
fn a_program_that_is_killed_again_and_again_writes_each_row_once() {
    let (events, results) = topics("killed");
    fill(&events, PARTITIONS);
    let (brokers, folder) = (bootstrap(), tempfile::tempdir().unwrap());
    let options = ["-p", "2", "--checkpoint-interval", "100ms", "-D", "checkpoint.timeout=10s"];
    let common = ["--brokers", &brokers, "--events", &events, "--results", &results, "--stop", "latest"];
    let args = [&common[..], &["--rate", "2000", "--transaction-timeout", "20s"]].concat();
    let mut before = 0;
    for round in 0..6 {
        let mut job = Program::run("q20", folder.path(), &options, &args);
        job.wait_for("millstream_checkpoints_completed_total", |n| n >= 1.0);
        // Rows that are not committed yet are there, as a rule.
        pause(Duration::from_millis(40 * round));
        drop(job);
        let now = read(&results, 2).len();
        assert!(now >= before, "what was visible stays");
        before = now;
    }
    let state = format!("file://{}", folder.path().display());
    call(&[&["run", "q20", "--state", &state][..], &options, &["--"], &args].concat());
    let mut due = golden("q20");
    due.sort();
    wait("all results", || read(&results, 2).len() >= due.len());
    assert_eq!(rows(&read(&results, 2)), due);
}

/// The second half of the events comes in a partition that is made while the job runs. What was read of it is in the
/// versions: a job that goes on reads none of it again.
#[test]
fn a_partition_that_is_made_while_a_job_runs_is_read_from_its_start() {
    let (events, results) = (unique("grows"), unique("grows"));
    run(|_| async {
        create_topic(&events, 2).await;
        create_topic(&results, 2).await;
    });
    let (brokers, folder) = (bootstrap(), tempfile::tempdir().unwrap());
    let mut first = golden("events");
    let second = first.split_off(EVENTS / 2);
    put(&events, first, |i| i as i32 % 2);
    let options = ["-p", "2", "--checkpoint-interval", "200ms", "-D", "checkpoint.timeout=60s"];
    let args = ["--brokers", &brokers, "--events", &events, "--results", &results, "--discovery-interval", "500ms"];
    let mut due = golden("q20");
    due.sort();
    {
        let mut job = Program::run("q20", folder.path(), &options, &args);
        job.wait_for("millstream_events_in_total", |n| n as usize == EVENTS / 2);
        run(|_| async { add_partitions(&events, 3).await });
        put(&events, second, |_| 2);
        job.wait_for("millstream_events_in_total", |n| n as usize == EVENTS);
        wait("all results", || read(&results, 2).len() >= due.len());
        assert_eq!(rows(&read(&results, 2)), due);
    }
    let mut again = Program::run("q20", folder.path(), &options, &args);
    put(&events, vec![golden("events").remove(0)], |_| 2);
    again.wait_for("millstream_events_in_total", |n| n >= 1.0);
    pause(Duration::from_secs(1));
    assert_eq!(again.counter("millstream_events_in_total"), Some(1.0), "nothing is read twice");
    assert_eq!(rows(&read(&results, 2)), due);
}

/// All events are in seven of eight partitions. The watermark of the job is that of the slowest partition, and the
/// eighth has none: nothing may fire. With an idle time-out it holds nobody back.
#[test]
fn a_silent_partition_holds_time_until_it_is_idle() {
    let (events, results) = topics("silent");
    fill(&events, PARTITIONS - 1);
    let (brokers, folder) = (bootstrap(), tempfile::tempdir().unwrap());
    let options = ["-p", "2", "--checkpoint-interval", "200ms", "-D", "checkpoint.timeout=60s"];
    let common = ["--brokers", &brokers, "--events", &events, "--results", &results];
    {
        let mut waits = Program::run("q5", &folder.path().join("waits"), &options, &common);
        waits.wait_for("millstream_events_in_total", |n| n as usize == EVENTS);
        // Ten checkpoints later there is still nothing.
        let now = waits.counter("millstream_checkpoints_completed_total").unwrap_or(0.0);
        pause(Duration::from_secs(2));
        assert_eq!(waits.counter("millstream_events_in_total"), Some(EVENTS as f64), "since {now} checkpoints");
        assert_eq!(read(&results, 2), [], "it stands still");
    }
    let idle = [&common[..], &["--idle-timeout", "300ms"]].concat();
    let mut goes_on = Program::run("q5", &folder.path().join("goes-on"), &options, &idle);
    goes_on.wait_for("millstream_events_in_total", |n| n as usize == EVENTS);
    // All windows that end 4 s (the delay of the watermark) before the last event, or earlier.
    wait("results", || !read(&results, 2).is_empty());
    pause(Duration::from_secs(1));
    let due = golden("q5");
    let found = rows(&read(&results, 2));
    assert!(found.iter().all(|row| due.contains(row)), "{found:?}");
    let all: Vec<Value> = due.iter().map(|r| serde_json::from_str(r).unwrap()).collect();
    assert!(found.len() < all.len(), "the last windows wait for events behind them");
}
