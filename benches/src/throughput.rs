//! `bench throughput`: Nexmark queries as fast as they go.
//!
//! Each measurement is one fresh process, in a fresh place, timed from outside: start, all events, the final
//! checkpoint, end. Cases are taken in turn, so that a slow minute of the machine meets all of them, and before each
//! the yardstick is measured.

use std::time::Duration;

use millstream_common::{Error, Result};
use serde_json::Value;

use crate::args::ThroughputArgs;
use crate::binary::{must_say, words};
use crate::outside::now;
use crate::peers::{self, BAR_EVENT_RATE, THROUGHPUT_NOTE};
use crate::place::{Place, StateKind};
use crate::stats::{Spread, hundredths, millions, spread_text, tenths, whole};
use crate::table::Table;
use crate::{Bench, note, yardstick};

/// A run that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(1_800);

/// What is measured, and what came out.
#[derive(Debug)]
struct Case {
    query: String,
    state: StateKind,
    event_rate: u64,
    runs: Vec<Run>,
    failed: u32,
}

/// One process.
#[derive(Debug)]
struct Run {
    /// From its start to its end, as seen from here.
    wall_s: f64,
    /// Its summary.
    summary: Value,
}

impl Run {
    fn number(&self, pointer: &str) -> Option<f64> {
        self.summary.pointer(pointer).and_then(Value::as_f64)
    }
}

/// Measures and prints.
pub fn run(bench: &Bench, args: &ThroughputArgs) -> Result<()> {
    let usual = [StateKind::Memory, StateKind::File, StateKind::S3];
    let states = bench.places.kinds(args.state.as_deref(), &usual)?;
    let mut cases = Vec::new();
    for event_rate in &args.event_rate {
        for state in &states {
            let case = |q: &String| Case {
                query: q.trim_start_matches("nexmark-").to_owned(),
                state: *state,
                event_rate: *event_rate,
                runs: Vec::new(),
                failed: 0,
            };
            cases.extend(args.queries.iter().map(case));
        }
    }
    let mut yardsticks = Vec::new();
    let total = cases.len() * args.runs as usize;
    let mut done = 0;
    for _ in 0..args.runs {
        for case in &mut cases {
            let y = yardstick::measure(args.yardstick_events);
            yardsticks.push(y);
            done += 1;
            let name = format!("{} {} {}", case.query, case.state.name(), case.event_rate);
            match measure(bench, args, case) {
                Ok(run) => {
                    let speed = args.events as f64 / run.wall_s;
                    note(&format!(
                        "{done}/{total} {name}: {}/s, {:.2} of Y {}/s",
                        millions(speed),
                        speed / y,
                        millions(y)
                    ));
                    case.runs.push(run);
                }
                Err(e) => {
                    note(&format!("{done}/{total} {name} FAILED: {e}"));
                    case.failed += 1;
                }
            }
        }
    }
    print(args, &cases, &yardsticks);
    outcome(&cases)
}

fn outcome(cases: &[Case]) -> Result<()> {
    match cases.iter().map(|c| c.failed).sum::<u32>() {
        0 => Ok(()),
        n => Err(Error::unavailable(format!("{n} runs failed")).next("see above what they said")),
    }
}

fn measure(bench: &Bench, args: &ThroughputArgs, case: &Case) -> Result<Run> {
    let place = bench.places.fresh(case.state)?;
    let summary = place.folder().join("summary.json");
    let text = format!(
        "run nexmark-{} -p {} --state {} --checkpoint-interval {} --summary {} -- --events {} --event-rate {} --output blackhole",
        case.query,
        args.parallelism,
        place.url(),
        args.checkpoint_interval,
        summary.display(),
        args.events,
        case.event_rate
    );
    let start = now();
    bench.binary.start(&words(&text), &place.folder().join("log"))?.finish(LIMIT)?;
    let wall_s = start.elapsed().as_secs_f64();
    let run = Run { wall_s, summary: read_summary(&place, &summary)? };
    check(args, &run.summary, &text)?;
    Ok(run)
}

fn read_summary(place: &Place, file: &std::path::Path) -> Result<Value> {
    let wrong = |e: Box<dyn std::error::Error + Send + Sync>| {
        Error::internal("the summary of the run cannot be read")
            .at(place.folder().display().to_string())
            .next("run the command by hand")
            .source(e)
    };
    let text = std::fs::read_to_string(file).map_err(|e| wrong(e.into()))?;
    serde_json::from_str(&text).map_err(|e| wrong(e.into()))
}

/// A run that did something else is no measurement.
fn check(args: &ThroughputArgs, summary: &Value, command: &str) -> Result<()> {
    let wanted = [
        ("state", Value::from("finished")),
        ("events_in", args.events.into()),
        ("late_rows", 0.into()),
        ("restarts", 0.into()),
    ];
    must_say(summary, &wanted, command)
}

fn print(args: &ThroughputArgs, cases: &[Case], yardsticks: &[f64]) {
    let Some(y) = Spread::of(yardsticks.iter().copied()) else { return };
    println!("## Throughput\n");
    println!(
        "{} events, parallelism {}, checkpoints every {}, all fields of every event built, output to a black hole,",
        args.events, args.parallelism, args.checkpoint_interval
    );
    println!("time of the whole process; median of {} runs (least-greatest).\n", args.runs);
    println!(
        "Y = {} events/s (crate nexmark 0.2, one core, {} times in between).\n",
        y.text(millions),
        yardsticks.len()
    );
    let mut table = Table::new(&[
        "query",
        "state",
        "event rate",
        "events/s",
        "in Y",
        "bar",
        "Flink hash map",
        "Flink RocksDB",
        "DBSP",
        "wall s",
        "wall s said",
        "cpu s",
        "peak rss MB",
        "PUTs",
    ]);
    for case in cases {
        table.row(row(args, case, y.median));
    }
    println!("{table}\n{THROUGHPUT_NOTE}\n");
}

fn row(args: &ThroughputArgs, case: &Case, y: f64) -> Vec<String> {
    let speeds: Vec<f64> = case.runs.iter().map(|r| args.events as f64 / r.wall_s).collect();
    let said = |pointer: &str, scale: f64, show: fn(f64) -> String| {
        let values = case.runs.iter().filter_map(|r| r.number(pointer)).map(|v| v / scale);
        Spread::of(values).map_or("-".to_owned(), |s| show(s.median))
    };
    let peers = peers::of(&case.query);
    let bar = peers.filter(|_| case.state == StateKind::File && case.event_rate == BAR_EVENT_RATE).map(|p| p.bar);
    let known = |value: Option<f64>| value.map_or("-".to_owned(), |v| v.to_string());
    let dbsp = peers.and_then(|p| Some((p.dbsp?, p.dbsp_one_time)));
    let in_y = Spread::of(speeds.iter().map(|s| s / y));
    let verdict = bar.zip(in_y).map(|(bar, s)| if s.median >= bar { " ok" } else { " MISSED" });
    let failed = if case.failed > 0 { format!(" {} FAILED", case.failed) } else { String::new() };
    vec![
        case.query.clone(),
        case.state.name().to_owned(),
        case.event_rate.to_string(),
        spread_text(speeds.iter().copied(), millions) + &failed,
        spread_text(speeds.iter().map(|s| s / y), hundredths),
        known(bar) + verdict.unwrap_or_default(),
        known(peers.map(|p| p.flink_hash_map)),
        known(peers.map(|p| p.flink_rocksdb)),
        dbsp.map_or("-".to_owned(), |(at_100, one)| one.map_or(at_100.to_string(), |one| format!("{at_100} / {one}"))),
        spread_text(case.runs.iter().map(|r| r.wall_s), hundredths),
        said("/wall_s", 1.0, hundredths),
        said("/cpu_s", 1.0, tenths),
        said("/peak_rss_bytes", 1e6, whole),
        said("/object_store/put", 1.0, whole),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::args::default_of;

    fn case(event_rate: u64, walls: &[f64]) -> Case {
        let run = |wall_s: &f64| Run {
            wall_s: *wall_s,
            summary: json!({"wall_s": 1.9, "cpu_s": 3.5, "peak_rss_bytes": 125_000_000, "object_store": {"put": 14}}),
        };
        Case {
            query: "q5".into(),
            state: StateKind::File,
            event_rate,
            runs: walls.iter().map(run).collect(),
            failed: 0,
        }
    }

    #[test]
    fn a_row_has_medians_and_the_bar_where_it_holds() {
        let args: ThroughputArgs = default_of();
        let cells = row(&args, &case(BAR_EVENT_RATE, &[2.0, 1.0, 4.0]), 2e6);
        assert_eq!(cells[3..6], ["2.00 M (1.00 M-4.00 M)", "1.00 (0.50-2.00)", "0.6 ok"]);
        assert_eq!(cells[6..9], ["0.08", "0.065", "0.48 / 0.36"]);
        assert_eq!(cells[10..], ["1.90", "3.5", "125", "14"]);
        assert_eq!(row(&args, &case(BAR_EVENT_RATE, &[4.0]), 2e6)[5], "0.6 MISSED");
        assert_eq!(row(&args, &case(100, &[4.0]), 2e6)[5], "-");
        assert_eq!(row(&args, &case(BAR_EVENT_RATE, &[]), 2e6)[3..6], ["-", "-", "0.6"]);
    }

    #[test]
    fn a_run_that_did_something_else_is_none() {
        let args: ThroughputArgs = default_of();
        let right = json!({"state": "finished", "events_in": args.events, "late_rows": 0, "restarts": 0});
        check(&args, &right, "run").unwrap();
        let mut late = right.clone();
        late["late_rows"] = 3.into();
        assert!(check(&args, &late, "run").unwrap_err().to_string().contains("late_rows 3, not 0"));
    }
}
