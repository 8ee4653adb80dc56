//! A query from Kafka to Kafka while processes are killed at random: the coordinator, workers, the broker, and between the kills
//! the job is rescaled. A consumer that is not ours says what came out.
//!
//! Rounds of one job each, until there were so many kills. The job reads the golden events at a rate, and ends behind them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use millstream_common::{Error, Result};
use serde_json::Value;

use super::broker::{Broker, Printed};
use crate::Bench;
use crate::args::KillsArgs;
use crate::binary::{Running, words};
use crate::note;
use crate::outside::{free_ports, now, sleep, wait_for};
use crate::place::StateKind;
use crate::table::Table;

const EVENTS: &str = "nexmark-events";
/// Partitions of both topics.
const PARTITIONS: u32 = 4;
const WORKERS: usize = 2;
const SLOTS: u32 = 3;
/// So soon a failure is seen and a job starts again.
const QUICK: &str = "-D heartbeat.interval=100ms -D heartbeat.timeout=2s";
const JOB: &str = "-D checkpoint.interval=500ms -D checkpoint.timeout=30s -D restart.initial-delay=50ms \
                   -D restart.max-delay=200ms -D restart.jitter=0";
/// A job that has not ended after so long will not.
const ROUND: Duration = Duration::from_secs(900);

/// Numbers that are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: u64) -> u64 {
        // splitmix64.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n.max(1)
    }
}

/// What was done to a job.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    workers: u32,
    coordinators: u32,
    brokers: u32,
    rescales: u32,
}

impl Done {
    fn kills(&self) -> u32 {
        self.workers + self.coordinators + self.brokers
    }
}

/// Runs the bench and prints a table; an error says what came out wrong.
pub fn run(bench: &Bench, args: &KillsArgs) -> Result<()> {
    let place = bench.places.fresh(StateKind::File)?;
    let golden = golden(&args.golden, &args.query)?;
    let broker = Broker::start(&args.kafka, place.folder())?;
    broker.create_topic(EVENTS, PARTITIONS)?;
    let fill = format!(
        "run events --state memory:// -p 1 -- --brokers {} --events {EVENTS} --input {}",
        broker.address,
        args.golden.join("events.ndjson.gz").display()
    );
    bench.binary.call(&words(&fill))?;
    println!("\n### {} from Kafka to Kafka, exactly once, with kills\n", args.query);
    println!(
        "{WORKERS} workers of {SLOTS} slots, {PARTITIONS} partitions, {} events/s, seed {}.\n",
        args.rate, args.seed
    );
    let mut table =
        Table::new(&["round", "workers killed", "coordinator", "broker", "rescales", "rows", "golden", "verdict"]);
    let (mut kills, mut wrong) = (0, Vec::new());
    let mut round = 0;
    while kills < args.kills {
        round += 1;
        let folder = place.folder().join(format!("round-{round}"));
        let topic = format!("results-{round}");
        broker.create_topic(&topic, PARTITIONS)?;
        let mut dice = Dice(args.seed.wrapping_mul(1_000).wrapping_add(round));
        let left = args.kills - kills;
        let done = Round { bench, args, broker: &broker, folder: &folder, topic: &topic }.run(&mut dice, left)?;
        kills += done.kills();
        sleep(Duration::from_secs(args.settle));
        let found = broker.consume(&topic)?;
        let verdict = judge(&args.query, &found, &golden);
        let text = verdict.as_ref().map_or_else(|| "exact".to_owned(), Clone::clone);
        note(&format!("round {round}: {kills} of {} kills, {text}", args.kills));
        wrong.extend(verdict.map(|v| format!("round {round}: {v}")));
        table.row(vec![
            round.to_string(),
            done.workers.to_string(),
            done.coordinators.to_string(),
            done.brokers.to_string(),
            done.rescales.to_string(),
            found.len().to_string(),
            golden.len().to_string(),
            text,
        ]);
    }
    println!("{table}");
    println!("{kills} kills.");
    if wrong.is_empty() {
        let order = if args.query == "q17" { ", in order by key" } else { "" };
        println!("All rows are there once{order}.\n");
        return Ok(());
    }
    Err(Error::data(wrong.join("; ")))
}

struct Round<'a> {
    bench: &'a Bench,
    args: &'a KillsArgs,
    broker: &'a Broker,
    folder: &'a Path,
    topic: &'a str,
}

impl Round<'_> {
    fn run(&self, dice: &mut Dice, kills: u32) -> Result<Done> {
        let ports = free_ports(1)?;
        let address = format!("127.0.0.1:{}", ports[0]);
        let state = self.folder.join("state");
        std::fs::create_dir_all(&state).map_err(|e| Error::unavailable("cannot make a folder").source(e))?;
        let start = |line: &str, log: &str| self.bench.binary.start(&words(line), &self.folder.join(log));
        let coordinate = format!("coordinator --state file://{} --listen {address} {QUICK}", state.display());
        let work = |i: usize| {
            let cache = self.folder.join(format!("cache-{i}"));
            format!("worker --coordinator {address} --slots {SLOTS} {QUICK} --cache-dir {}", cache.display())
        };
        let mut coordinator = start(&coordinate, "coordinator.log")?;
        let mut workers: Vec<Running> =
            (0..WORKERS).map(|i| start(&work(i), &format!("worker-{i}.log"))).collect::<Result<_>>()?;
        let ask = |line: &str| self.bench.binary.call(&words(&format!("{line} --coordinator {address}")));
        let submit = format!(
            "submit {} --name {} -p 2 {JOB} --coordinator {address} -- --brokers {} --events {EVENTS} --results {} \
             --stop latest --rate {} --transaction-timeout {}s",
            self.args.query, self.topic, self.broker.address, self.topic, self.args.rate, self.args.transaction_timeout
        );
        let submitted = wait_for(Duration::from_secs(60), Duration::from_millis(200), || {
            Ok(self.bench.binary.call(&words(&submit)).ok())
        })?;
        if submitted.is_none() {
            self.bench.binary.call(&words(&submit))?;
        }
        let mut done = Done::default();
        let began = now();
        loop {
            sleep(Duration::from_millis(300 + dice.below(self.args.pause_ms.max(1))));
            let state = ask(&format!("status {} --json", self.topic)).ok();
            let state = state.and_then(|text| serde_json::from_str::<Value>(&text).ok());
            match state.as_ref().and_then(|s| s["state"].as_str()) {
                Some("finished") => return Ok(done),
                Some("failed" | "canceled") => {
                    return Err(Error::data(format!("the job has ended: {}", state.unwrap_or_default())));
                }
                _ => {}
            }
            if began.elapsed() > ROUND {
                return Err(Error::unavailable(format!("the job has not ended within {ROUND:?}"))
                    .at(self.folder.display().to_string()));
            }
            if done.kills() >= kills {
                continue;
            }
            match dice.below(100) {
                0..40 => {
                    let i = dice.below(WORKERS as u64) as usize;
                    // A process is killed when its value goes.
                    workers.remove(i);
                    sleep(Duration::from_millis(dice.below(500)));
                    workers.insert(i, start(&work(i), &format!("worker-{i}.log"))?);
                    done.workers += 1;
                }
                40..60 => {
                    drop(coordinator);
                    sleep(Duration::from_millis(dice.below(500)));
                    coordinator = start(&coordinate, "coordinator.log")?;
                    done.coordinators += 1;
                }
                60..80 => {
                    let starting = self.broker.kill_and_restart()?;
                    // Others may be killed while it is away.
                    if dice.below(2) == 0 {
                        let i = dice.below(WORKERS as u64) as usize;
                        workers.remove(i);
                        workers.insert(i, start(&work(i), &format!("worker-{i}.log"))?);
                        done.workers += 1;
                    }
                    self.broker.wait(starting)?;
                    done.brokers += 1;
                }
                _ => {
                    let parallelism = 1 + dice.below(4);
                    // It may be restarting just now.
                    if ask(&format!("rescale {} -p {parallelism} --no-wait", self.topic)).is_ok() {
                        done.rescales += 1;
                    }
                }
            }
        }
    }
}

/// The golden rows.
fn golden(folder: &Path, query: &str) -> Result<Vec<Value>> {
    let path: PathBuf = folder.join(format!("{query}.ndjson.gz"));
    let gunzip = crate::binary::Binary::find(Some(Path::new("/bin/bash")))?;
    let text = gunzip.call(&["-c".to_owned(), format!("gzip -dc '{}'", path.display())])?;
    let row = |line: &str| {
        serde_json::from_str(line).map_err(|e| Error::data("a golden row is no JSON").at(line.to_owned()).source(e))
    };
    text.lines().map(row).collect()
}

/// What is wrong with the rows that were found; `None`: nothing.
fn judge(query: &str, found: &[Printed], golden: &[Value]) -> Option<String> {
    let mut rows = Vec::new();
    for record in found {
        match serde_json::from_str::<Value>(&record.value) {
            Ok(row) => rows.push((record.partition, record.key.clone(), row)),
            Err(_) => return Some(format!("a record is no JSON: {:.100}", record.value)),
        }
    }
    match query {
        "q17" => judge_upserts(&rows, golden),
        _ => judge_rows(&rows, golden),
    }
}

/// Each golden row once.
fn judge_rows(rows: &[(u32, String, Value)], golden: &[Value]) -> Option<String> {
    let mut due: BTreeMap<String, i64> = BTreeMap::new();
    golden.iter().for_each(|row| *due.entry(row.to_string()).or_default() += 1);
    rows.iter().for_each(|(_, _, row)| *due.entry(row.to_string()).or_default() -= 1);
    let missing: i64 = due.values().filter(|n| **n > 0).sum();
    let more: i64 = -due.values().filter(|n| **n < 0).sum::<i64>();
    (missing > 0 || more > 0).then(|| format!("{missing} rows are missing and {more} too many"))
}

/// By key: in one partition, the count of bids rises from record to record, and the last one is the golden row.
fn judge_upserts(rows: &[(u32, String, Value)], golden: &[Value]) -> Option<String> {
    let mut last: BTreeMap<&str, (u32, &Value)> = BTreeMap::new();
    let bids = |row: &Value| row["total_bids"].as_i64().unwrap_or(-1);
    for (partition, key, row) in rows {
        if let Some((at, before)) = last.insert(key, (*partition, row))
            && (at != *partition || bids(before) >= bids(row))
        {
            return Some(format!("{key}: {row} in partition {partition} behind {before} in {at}"));
        }
    }
    let found: BTreeSet<String> = last.values().map(|(_, row)| row.to_string()).collect();
    let due: BTreeSet<String> = golden.iter().map(Value::to_string).collect();
    let (missing, more) = (due.difference(&found).count(), found.difference(&due).count());
    (missing > 0 || more > 0)
        .then(|| format!("the last rows: {missing} are missing, {more} are none of the golden ones"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn record(partition: u32, key: &str, value: &Value) -> Printed {
        Printed { partition, key: key.to_owned(), value: value.to_string() }
    }

    #[test]
    fn rows_twice_or_missing_are_found() {
        let (a, b) = (json!({"auction": 1, "num": 2}), json!({"auction": 2, "num": 2}));
        let golden = [a.clone(), b.clone()];
        let seen = |rows: &[&Value]| judge("q5", &rows.iter().map(|r| record(0, "k", r)).collect::<Vec<_>>(), &golden);
        assert_eq!(seen(&[&b, &a]), None);
        assert_eq!(seen(&[&a]).unwrap(), "1 rows are missing and 0 too many");
        assert_eq!(seen(&[&a, &b, &b]).unwrap(), "0 rows are missing and 1 too many");
    }

    #[test]
    fn upserts_out_of_order_are_found() {
        let row = |n: i64| json!({"auction": 1, "total_bids": n});
        let golden = [row(3)];
        let seen = |counts: &[(u32, i64)]| {
            judge("q17", &counts.iter().map(|(p, n)| record(*p, "k", &row(*n))).collect::<Vec<_>>(), &golden)
        };
        assert_eq!(seen(&[(0, 1), (0, 3)]), None);
        for wrong in [&[(0, 3), (0, 1)][..], &[(0, 1), (0, 3), (0, 3)], &[(0, 1), (1, 3)], &[(0, 1), (0, 2)], &[]] {
            assert!(seen(wrong).is_some(), "{wrong:?}");
        }
    }
}
