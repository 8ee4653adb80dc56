//! Queries from a filled topic to another one, exactly once, beside the same queries from the generator to a black hole.

use std::path::Path;
use std::time::Duration;

use millstream_common::{Error, Result};
use serde_json::Value;

use super::broker::Broker;
use crate::args::KafkaThroughputArgs;
use crate::binary::{Binary, must_say, words};
use crate::outside::{cores, now};
use crate::place::StateKind;
use crate::stats::{Spread, hundredths, millions, spread_text, tenths, whole};
use crate::table::Table;
use crate::{Bench, note, yardstick};

const EVENTS: &str = "events";
/// Of both topics.
const PARTITIONS: u32 = 4;
/// A run that takes longer hangs.
const LIMIT: Duration = Duration::from_secs(1_800);

/// Where events come from and rows go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Between {
    /// The generator, and a topic: what fills it.
    GeneratorAndKafka,
    /// A topic, and another one.
    KafkaAndKafka,
    /// The generator, and nothing.
    GeneratorAndNothing,
}

impl Between {
    fn name(self) -> &'static str {
        match self {
            Self::GeneratorAndKafka => "generator to Kafka",
            Self::KafkaAndKafka => "Kafka to Kafka",
            Self::GeneratorAndNothing => "generator to black hole",
        }
    }
}

/// One process.
#[derive(Debug)]
struct Run {
    wall_s: f64,
    /// CPU seconds of the broker.
    broker: f64,
    summary: Value,
}

#[derive(Debug)]
struct Case {
    job: String,
    between: Between,
    runs: Vec<Run>,
}

/// Measures and prints.
pub fn run(bench: &Bench, args: &KafkaThroughputArgs) -> Result<()> {
    let other = args.millstream.as_deref().map(|path| Binary::find(Some(path))).transpose()?;
    let place = bench.places.fresh(StateKind::File)?;
    let broker = Broker::start(&args.kafka, place.folder())?;
    let session = Session { bench, args, broker: &broker, folder: place.folder(), generator: other.as_ref() };
    let case = |job: &str, between| Case { job: job.to_owned(), between, runs: Vec::new() };
    let mut yardsticks = vec![yardstick::measure(args.yardstick_events)];
    let mut cases = vec![case("events", Between::GeneratorAndKafka)];
    broker.create_topic(EVENTS, PARTITIONS)?;
    let filled = session.measure(&cases[0], 0)?;
    cases[0].runs.push(filled);
    for query in &args.queries {
        cases.push(case(query, Between::KafkaAndKafka));
        // The binary has no q20.
        if other.is_some() && query != "q20" {
            cases.push(case(query, Between::GeneratorAndNothing));
        }
    }
    for round in 1..=args.runs {
        for case in &mut cases[1..] {
            let y = yardstick::measure(args.yardstick_events);
            let run = session.measure(case, round)?;
            let speed = args.events as f64 / run.wall_s;
            note(&format!(
                "{round}/{} {} {}: {}/s, {:.2} of Y {}/s",
                args.runs,
                case.job,
                case.between.name(),
                millions(speed),
                speed / y,
                millions(y)
            ));
            yardsticks.push(y);
            case.runs.push(run);
        }
    }
    print(args, &cases, &yardsticks);
    Ok(())
}

struct Session<'a> {
    bench: &'a Bench,
    args: &'a KafkaThroughputArgs,
    broker: &'a Broker,
    folder: &'a Path,
    generator: Option<&'a Binary>,
}

impl Session<'_> {
    fn measure(&self, case: &Case, round: u32) -> Result<Run> {
        let name = format!(
            "{}-{}-{round}",
            case.job,
            if case.between == Between::KafkaAndKafka { "kafka" } else { "generator" }
        );
        let state = self.folder.join(&name);
        let summary = self.folder.join(format!("{name}.json"));
        let (events, rate, brokers) = (self.args.events, self.args.event_rate, &self.broker.address);
        let options = |p: u32| {
            format!(
                "-p {p} --state file://{} --checkpoint-interval {} --summary {}",
                state.display(),
                self.args.checkpoint_interval,
                summary.display()
            )
        };
        let p = self.args.parallelism;
        let (binary, line) = match case.between {
            // One split, or the events of a partition would not be in the order of their times.
            Between::GeneratorAndKafka => (
                &self.bench.binary,
                format!(
                    "run events {} -- --brokers {brokers} --events {EVENTS} --count {events} --event-rate {rate}",
                    options(1)
                ),
            ),
            Between::KafkaAndKafka => {
                self.broker.create_topic(&name, PARTITIONS)?;
                let topics = format!("--events {EVENTS} --results {name} --stop latest");
                (
                    &self.bench.binary,
                    format!("run {} --name {name} {} -- --brokers {brokers} {topics}", case.job, options(p)),
                )
            }
            Between::GeneratorAndNothing => (
                self.generator.unwrap_or(&self.bench.binary),
                format!(
                    "run nexmark-{} {} -- --events {events} --event-rate {rate} --output blackhole",
                    case.job,
                    options(p)
                ),
            ),
        };
        let (start, broker) = (now(), self.broker.cpu_seconds()?);
        binary.start(&words(&line), &self.folder.join(format!("{name}.log")))?.finish(LIMIT)?;
        let wall_s = start.elapsed().as_secs_f64();
        let broker = self.broker.cpu_seconds()? - broker;
        let summary = read(&summary)?;
        check(&summary, events, &line)?;
        // Gigabytes of old state may be in the way of what comes.
        let _ = std::fs::remove_dir_all(&state);
        Ok(Run { wall_s, broker, summary })
    }
}

fn read(file: &Path) -> Result<Value> {
    let wrong = |e: Box<dyn std::error::Error + Send + Sync>| {
        Error::internal("the summary of the run cannot be read").at(file.display().to_string()).source(e)
    };
    let text = std::fs::read_to_string(file).map_err(|e| wrong(e.into()))?;
    serde_json::from_str(&text).map_err(|e| wrong(e.into()))
}

/// A run that did something else is no measurement.
fn check(summary: &Value, events: u64, line: &str) -> Result<()> {
    let mut wanted = vec![("state", Value::from("finished")), ("events_in", events.into()), ("restarts", 0.into())];
    // A job without windows says nothing of late rows.
    if !summary["late_rows"].is_null() {
        wanted.push(("late_rows", 0.into()));
    }
    must_say(summary, &wanted, line)
}

fn print(args: &KafkaThroughputArgs, cases: &[Case], yardsticks: &[f64]) {
    let Some(y) = Spread::of(yardsticks.iter().copied()) else { return };
    println!("## Kafka: throughput\n");
    println!(
        "{} events, {} a second of event time; parallelism {} ({} fills the topic with 1), checkpoints every {}, {PARTITIONS} partitions, exactly once, JSON;\n\
         time of the whole process; {} runs (least-greatest). Broker and job share {} cores.\n",
        args.events,
        args.event_rate,
        args.parallelism,
        cases[0].job,
        args.checkpoint_interval,
        args.runs,
        cores()
    );
    println!(
        "Y = {} events/s (crate nexmark 0.2, one core, {} times in between).\n",
        y.text(millions),
        yardsticks.len()
    );
    let mut table = Table::new(&[
        "job",
        "from and to",
        "events/s",
        "in Y",
        "rows out",
        "wall s",
        "cpu s job",
        "cpu s broker",
        "broker's share of the CPU %",
    ]);
    for case in cases {
        table.row(row(args.events, case, y.median));
    }
    println!("{table}");
}

fn row(events: u64, case: &Case, y: f64) -> Vec<String> {
    let speeds = || case.runs.iter().map(|r| events as f64 / r.wall_s);
    let number = |run: &Run, field: &str| run.summary[field].as_f64();
    let cpu = |run: &Run| number(run, "cpu_s").unwrap_or_default();
    let to_kafka = case.between != Between::GeneratorAndNothing;
    let broker = |of: fn(&Run, f64) -> f64, show: fn(f64) -> String| {
        spread_text(case.runs.iter().filter(|_| to_kafka).map(|r| of(r, cpu(r))), show)
    };
    vec![
        case.job.clone(),
        case.between.name().to_owned(),
        spread_text(speeds(), millions),
        spread_text(speeds().map(|s| s / y), hundredths),
        spread_text(case.runs.iter().filter_map(|r| number(r, "rows_out")), whole),
        spread_text(case.runs.iter().map(|r| r.wall_s), hundredths),
        spread_text(case.runs.iter().map(cpu), tenths),
        broker(|r, _| r.broker, tenths),
        broker(|r, cpu| 100.0 * r.broker / (r.broker + cpu).max(f64::MIN_POSITIVE), whole),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn case(between: Between) -> Case {
        let run = |wall_s| Run { wall_s, broker: 1.0, summary: json!({"cpu_s": 3.0, "rows_out": 12}) };
        Case { job: "q5".to_owned(), between, runs: vec![run(2.0), run(1.0), run(4.0)] }
    }

    #[test]
    fn a_row_has_medians_and_the_broker_where_there_is_one() {
        let cells = row(1_000_000, &case(Between::KafkaAndKafka), 1e6);
        assert_eq!(cells[..4], ["q5", "Kafka to Kafka", "0.50 M (0.25 M-1.00 M)", "0.50 (0.25-1.00)"]);
        assert_eq!(cells[4..], ["12", "2.00 (1.00-4.00)", "3.0", "1.0", "25"]);
        assert_eq!(row(1_000_000, &case(Between::GeneratorAndNothing), 1e6)[7..], ["-", "-"]);
    }

    #[test]
    fn a_run_that_did_something_else_is_none() {
        let right = json!({"state": "finished", "events_in": 7, "late_rows": null, "restarts": 0});
        check(&right, 7, "run").unwrap();
        assert!(check(&right, 8, "run").unwrap_err().to_string().contains("events_in 7, not 8"));
        let mut late = right.clone();
        late["late_rows"] = 3.into();
        assert!(check(&late, 7, "run").is_err());
    }
}
