//! How fast the source reads a topic, beside consumers of librdkafka that do nothing with what they read.
//!
//! A topic of two partitions is filled once and read in turn, in each round by every way of reading. Consumer and broker share the
//! cores: the CPU time of both is told.

use std::sync::Arc;
use std::time::Duration;

use arrow_schema::{DataType, Field, Schema, TimeUnit};
use millstream_common::env::Runtimes;
use millstream_common::{Error, Result};
use millstream_formats::DecodingFormat;
use millstream_formats::json::JsonDecoding;
use millstream_formats::raw::RawFormat;
use millstream_kafka::source::DEFAULTS;
use rdkafka::consumer::BaseConsumer;
use rdkafka::message::Message;

use super::batches::Batches;
use super::broker::Broker;
use super::clients::{Settings, Writer, consumer, failed};
use super::through::through;
use crate::args::SourceArgs;
use crate::outside::{cores, now, own_cpu_seconds};
use crate::place::{Places, StateKind};
use crate::stats::{Spread, hundredths, millions, spread_text};
use crate::table::Table;
use crate::{note, yardstick};

const TOPIC: &str = "records";
const PARTITIONS: u32 = 2;
/// Short: who asks for a batch waits for all of it, also behind the last record.
const POLL: Duration = Duration::from_millis(5);
/// A consumer that gets nothing in so many polls has lost something.
const SILENT_POLLS: u32 = 6_000;

/// A way of reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// librdkafka, a record at a time.
    Bare { as_the_source: bool },
    /// librdkafka, many at a time.
    Batches { as_the_source: bool },
    /// The source, in so many tasks.
    Source { json: bool, tasks: usize },
}

const WAYS: [Way; 8] = [
    Way::Bare { as_the_source: false },
    Way::Bare { as_the_source: true },
    Way::Batches { as_the_source: false },
    Way::Batches { as_the_source: true },
    Way::Source { json: false, tasks: 1 },
    Way::Source { json: false, tasks: 2 },
    Way::Source { json: true, tasks: 1 },
    Way::Source { json: true, tasks: 2 },
];

impl Way {
    fn name(self) -> String {
        let settings = |same| if same { "settings of the source" } else { "default settings" };
        match self {
            Self::Bare { as_the_source } => format!("bare consumer, {}", settings(as_the_source)),
            Self::Batches { as_the_source } => format!("bare consumer in batches, {}", settings(as_the_source)),
            Self::Source { json, tasks } => {
                let format = if json { "JSON, 7 columns" } else { "raw" };
                format!("source, {format}, {tasks} {}", if tasks == 1 { "task" } else { "tasks" })
            }
        }
    }

    /// What it is to reach, in Y.
    fn bar(self) -> Option<f64> {
        match self {
            Self::Source { json: true, .. } => Some(0.3),
            Self::Source { json: false, .. } => Some(0.8),
            _ => None,
        }
    }
}

/// One reading of all records.
#[derive(Clone, Copy, Debug)]
struct Reading {
    seconds: f64,
    /// CPU seconds of this process.
    here: f64,
    /// CPU seconds of the broker.
    broker: f64,
}

/// Measures and prints.
pub fn run(places: &Places, args: &SourceArgs) -> Result<()> {
    let place = places.fresh(StateKind::File)?;
    let broker = Broker::start(&args.kafka, place.folder())?;
    broker.create_topic(TOPIC, PARTITIONS)?;
    note(&format!("filling a topic with {} records", args.records));
    let mut writer = Writer::new(&broker.address, TOPIC, PARTITIONS, 50)?;
    let mut bytes = 0;
    for n in 0..args.records {
        let text = record(n);
        bytes += text.len() as u64;
        writer.write(&text)?;
    }
    writer.finish()?;
    let (runtimes, formats) = (Runtimes::start(2)?, Formats::new()?);
    let read = |way| read(way, &broker.address, args.records, &runtimes, &formats);
    // The first one to read would pay for a broker that has not run yet.
    read(Way::Bare { as_the_source: true })?;
    let mut found: Vec<Vec<Reading>> = vec![Vec::new(); WAYS.len()];
    let mut yardsticks = Vec::new();
    for round in 1..=args.rounds {
        for (way, readings) in WAYS.into_iter().zip(&mut found) {
            let y = yardstick::measure(args.yardstick_events);
            let (here, there) = (own_cpu_seconds(), broker.cpu_seconds()?);
            let reading = Reading {
                seconds: read(way)?.as_secs_f64(),
                here: own_cpu_seconds() - here,
                broker: broker.cpu_seconds()? - there,
            };
            let speed = args.records as f64 / reading.seconds;
            note(&format!(
                "{round}/{} {}: {}/s, {:.2} of Y {}/s; cpu {:.2} s here, {:.2} s in the broker",
                args.rounds,
                way.name(),
                millions(speed),
                speed / y,
                millions(y),
                reading.here,
                reading.broker
            ));
            yardsticks.push(y);
            readings.push(reading);
        }
    }
    print(args, bytes, &found, &yardsticks);
    Ok(())
}

fn print(args: &SourceArgs, bytes: u64, found: &[Vec<Reading>], yardsticks: &[f64]) {
    let Some(y) = Spread::of(yardsticks.iter().copied()) else { return };
    println!("## Kafka: how fast topics are read\n");
    println!(
        "{} records of {} bytes on the average in {PARTITIONS} partitions; broker and consumer share {} cores; median of {} rounds (least-greatest).\n",
        args.records,
        bytes / args.records.max(1),
        cores(),
        args.rounds
    );
    println!(
        "Y = {} events/s (crate nexmark 0.2, one core, {} times in between).\n",
        y.text(millions),
        yardsticks.len()
    );
    let mut table =
        Table::new(&["how", "records/s", "in Y", "bar", "cpu s here", "cpu s broker", "broker's share of the CPU %"]);
    for (way, readings) in WAYS.into_iter().zip(found) {
        table.row(row(way, args.records, readings, y.median));
    }
    println!("{table}");
}

fn row(way: Way, records: u64, readings: &[Reading], y: f64) -> Vec<String> {
    let speeds = || readings.iter().map(|r| records as f64 / r.seconds);
    let reached = Spread::of(speeds().map(|s| s / y)).map_or(0.0, |s| s.median);
    let bar = way.bar().map_or("-".to_owned(), |bar| format!("{bar} {}", if reached >= bar { "ok" } else { "MISSED" }));
    let share = |r: &Reading| 100.0 * r.broker / (r.broker + r.here).max(f64::MIN_POSITIVE);
    vec![
        way.name(),
        spread_text(speeds(), millions),
        spread_text(speeds().map(|s| s / y), hundredths),
        bar,
        spread_text(readings.iter().map(|r| r.here), hundredths),
        spread_text(readings.iter().map(|r| r.broker), hundredths),
        spread_text(readings.iter().map(share), crate::stats::whole),
    ]
}

/// What a record says: about 200 bytes.
fn record(n: u64) -> String {
    format!(
        "{{\"auction\":{n},\"bidder\":{},\"price\":{}.25,\"channel\":\"channel-{}\",\
         \"url\":\"https://www.nexmark.com/item.htm?query=1&channel_id={}\",\
         \"dateTime\":\"2026-01-01 00:00:04.330\",\"extra\":\"abcdefghij\"}}",
        n * 7 % 10_007,
        n * 31 % 100_000,
        n % 4,
        n * 131_071 % 99_999_989,
    )
}

/// What the source reads values by.
struct Formats {
    raw: Arc<dyn DecodingFormat>,
    json: Arc<dyn DecodingFormat>,
}

impl Formats {
    fn new() -> Result<Self> {
        let text = |name: &str| Field::new(name, DataType::Utf8, true);
        let columns = vec![
            Field::new("auction", DataType::Int64, false),
            Field::new("bidder", DataType::Int64, false),
            Field::new("price", DataType::Decimal128(18, 2), true),
            text("channel"),
            text("url"),
            Field::new("dateTime", DataType::Timestamp(TimeUnit::Millisecond, None), true),
            text("extra"),
        ];
        let bytes = vec![Field::new("value", DataType::Binary, true)];
        Ok(Self {
            raw: Arc::new(RawFormat::new(Arc::new(Schema::new(bytes)))?),
            json: Arc::new(JsonDecoding::new(Arc::new(Schema::new(columns)))?),
        })
    }
}

/// Reads all records, and says how long that took from the first connection to the last record, without the end of the consumer,
/// which the source leaves to the background. An error when it is another number of records.
fn read(way: Way, broker: &str, records: u64, runtimes: &Runtimes, formats: &Formats) -> Result<Duration> {
    let start = now();
    let (rows, took) = match way {
        Way::Bare { as_the_source } => {
            let consumer = consumer(broker, TOPIC, PARTITIONS, settings(as_the_source))?;
            (one_by_one(&consumer, records)?, start.elapsed())
        }
        Way::Batches { as_the_source } => {
            let consumer = consumer(broker, TOPIC, PARTITIONS, settings(as_the_source))?;
            (in_batches(&consumer, records)?, start.elapsed())
        }
        Way::Source { json, tasks } => {
            let format = if json { &formats.json } else { &formats.raw };
            let rows = runtimes.block_on(through(&runtimes.env(), broker, TOPIC, format.clone(), tasks))?;
            (rows, start.elapsed())
        }
    };
    if rows == records {
        return Ok(took);
    }
    Err(Error::data(format!("{}: {rows} records came, and there are {records}", way.name())))
}

fn settings(as_the_source: bool) -> Settings<'static> {
    if as_the_source { &DEFAULTS } else { &[] }
}

fn one_by_one(consumer: &BaseConsumer, records: u64) -> Result<u64> {
    let (mut rows, mut bytes, mut silent) = (0, 0, 0);
    while rows < records && silent < SILENT_POLLS {
        match consumer.poll(POLL) {
            Some(record) => {
                bytes += record.map_err(|e| failed("reading a record", e))?.payload().map_or(0, <[u8]>::len);
                rows += 1;
                silent = 0;
            }
            None => silent += 1,
        }
    }
    std::hint::black_box(bytes);
    Ok(rows)
}

fn in_batches(consumer: &BaseConsumer, records: u64) -> Result<u64> {
    let mut batches = Batches::new(consumer)?;
    let (mut rows, mut bytes, mut silent) = (0, 0, 0);
    while rows < records && silent < SILENT_POLLS {
        let (some, of_bytes) = batches.take(POLL)?;
        silent = if some == 0 { silent + 1 } else { 0 };
        rows += some;
        bytes += of_bytes;
    }
    std::hint::black_box(bytes);
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_what_the_format_reads() {
        let mut decoder = Formats::new().unwrap().json.decoder().unwrap();
        (0..1_000).for_each(|n| decoder.push(record(n * 997).as_bytes()).unwrap());
        assert_eq!(decoder.rows(), 1_000);
        let length = record(500_000).len();
        assert!((190..=210).contains(&length), "{length}");
    }

    #[test]
    fn a_row_has_medians_and_the_bar() {
        let reading = |seconds| Reading { seconds, here: 3.0, broker: 1.0 };
        let readings = [reading(2.0), reading(1.0), reading(4.0)];
        let cells = row(Way::Source { json: true, tasks: 1 }, 1_000_000, &readings, 1e6);
        assert_eq!(
            cells[..4],
            ["source, JSON, 7 columns, 1 task", "0.50 M (0.25 M-1.00 M)", "0.50 (0.25-1.00)", "0.3 ok"]
        );
        assert_eq!(cells[4..], ["3.00", "1.00", "25"]);
        let cells = row(Way::Source { json: false, tasks: 2 }, 1_000_000, &readings, 1e6);
        assert_eq!(cells[3], "0.8 MISSED");
        assert_eq!(row(Way::Bare { as_the_source: true }, 1_000_000, &readings, 1e6)[3], "-");
    }
}
