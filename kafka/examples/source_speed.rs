//! How fast a source reads a topic, beside a consumer of librdkafka that does nothing with what it reads.
//!
//!     scripts/kafka.sh run cargo run --release -p millstream-kafka --example source_speed -- 2000000
//!
//! Fills a topic of two partitions with so many records of about 200 bytes, then reads it in turn: by a bare consumer, as raw bytes, as
//! JSON. Records a second of wall-clock time, and the share of the CPU that this process and the broker had of it.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // a program to measure with

use std::future::poll_fn;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow_schema::{DataType, Field, Schema};
use millstream_common::env::Runtimes;
use millstream_common::{Env, Result};
use millstream_engine::source::{Read, Source};
use millstream_formats::DecodingFormat;
use millstream_formats::json::JsonDecoding;
use millstream_formats::raw::RawFormat;
use millstream_kafka::source::{KafkaSource, KafkaSourceOptions, StopAt, Topics};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

const PARTITIONS: i32 = 2;

fn config() -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", std::env::var("KAFKA_BOOTSTRAP").expect("KAFKA_BOOTSTRAP names the broker"));
    config
}

fn record(n: u64) -> String {
    format!(
        "{{\"auction\":{n},\"bidder\":{},\"price\":{}.25,\"channel\":\"channel-{}\",\"url\":\"https://www.nexmark.com/item.htm?query=1&channel_id={}\",\"dateTime\":\"2026-01-01 00:00:04.330\",\"extra\":\"abcdefghij\"}}",
        n * 7 % 10_007,
        n * 31 % 100_000,
        n % 4,
        n * 131_071 % 99_999_989,
    )
}

fn fill(topic: &str, records: u64) {
    let producer: BaseProducer =
        config().set("linger.ms", "50").set("queue.buffering.max.messages", "500000").create().unwrap();
    for n in 0..records {
        let text = record(n);
        let mut record = BaseRecord::<(), _>::to(topic).partition((n % PARTITIONS as u64) as i32).payload(&text);
        while let Err((_, again)) = producer.send(record) {
            record = again;
            producer.poll(Duration::from_millis(10));
        }
    }
    producer.flush(Duration::from_secs(60)).unwrap();
}

fn bare(topic: &str, records: u64) {
    let consumer: BaseConsumer = config().set("group.id", "bare").set("enable.auto.commit", "false").create().unwrap();
    let mut list = TopicPartitionList::new();
    for p in 0..PARTITIONS {
        list.add_partition_offset(topic, p, Offset::Beginning).unwrap();
    }
    consumer.assign(&list).unwrap();
    let mut read = 0;
    while read < records {
        if let Some(message) = consumer.poll(Duration::from_millis(100)) {
            message.unwrap();
            read += 1;
        }
    }
}

async fn through(env: &Env, topic: &str, format: Arc<dyn DecodingFormat>) -> Result<u64> {
    let at = config().get("bootstrap.servers").unwrap().to_owned();
    let mut options = KafkaSourceOptions::new(vec![at], Topics::Named(vec![topic.to_owned()]));
    options.stop = Some(StopAt::Latest);
    let source = KafkaSource::new(env.clone(), options, format)?;
    let splits = source.enumerator()?.discover(&[]).await?.new;
    let mut readers = splits.iter().map(|s| source.reader(s, None)).collect::<Result<Vec<_>>>()?;
    let mut rows = 0;
    // One after the other as they have something, as a source subtask reads its splits.
    while !readers.is_empty() {
        let (i, read) = poll_fn(|cx| {
            for (i, reader) in readers.iter_mut().enumerate() {
                if let std::task::Poll::Ready(read) = reader.poll_next(cx, 8_192) {
                    return std::task::Poll::Ready((i, read));
                }
            }
            std::task::Poll::Pending
        })
        .await;
        match read? {
            Read::Batch(batch) => rows += batch.num_rows() as u64,
            Read::End => drop(readers.remove(i)),
        }
    }
    Ok(rows)
}

/// CPU seconds of a process: (user, system) ticks of a hundredth.
fn cpu(pid: &str) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |i: usize| fields.get(i).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn broker_pid() -> String {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let text = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if text.windows(11).any(|w| w == b"kafka.Kafka") {
            return entry.file_name().to_string_lossy().into_owned();
        }
    }
    String::new()
}

fn main() {
    let records: u64 = std::env::args().nth(1).map_or(1_000_000, |n| n.parse().unwrap());
    let runtimes = Runtimes::start(2).unwrap();
    let env = runtimes.env();
    let topic = format!("speed-{:x}", std::process::id());
    runtimes.block_on(async {
        let admin: AdminClient<DefaultClientContext> = config().create().unwrap();
        let new = NewTopic::new(&topic, PARTITIONS, TopicReplication::Fixed(1));
        admin.create_topics(&[new], &AdminOptions::new()).await.unwrap();
    });
    fill(&topic, records);
    let bytes: usize = (0..1_000).map(|n| record(n * 997).len()).sum();
    println!("{records} records of {} bytes on the average", bytes / 1_000);
    let schema = |fields: Vec<Field>| Arc::new(Schema::new(fields));
    let raw: Arc<dyn DecodingFormat> =
        Arc::new(RawFormat::new(schema(vec![Field::new("v", DataType::Binary, true)])).unwrap());
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let json: Arc<dyn DecodingFormat> = Arc::new(
        JsonDecoding::new(schema(vec![
            Field::new("auction", DataType::Int64, false),
            Field::new("bidder", DataType::Int64, false),
            Field::new("price", DataType::Decimal128(18, 2), true),
            text("channel"),
            text("url"),
            Field::new("dateTime", DataType::Timestamp(arrow_schema::TimeUnit::Millisecond, None), true),
            text("extra"),
        ]))
        .unwrap(),
    );
    let broker = broker_pid();
    for round in 0..3 {
        for what in ["bare consumer", "raw", "json"] {
            let (start, own, its) = (Instant::now(), cpu("self"), cpu(&broker));
            let rows = match what {
                "raw" => runtimes.block_on(through(&env, &topic, raw.clone())).unwrap(),
                "json" => runtimes.block_on(through(&env, &topic, json.clone())).unwrap(),
                _ => {
                    bare(&topic, records);
                    records
                }
            };
            assert_eq!(rows, records);
            let took = start.elapsed().as_secs_f64();
            println!(
                "{round} {what:>14}: {:>9.0} records/s, {:.2} s; cpu {:.2} s here, {:.2} s in the broker",
                records as f64 / took,
                took,
                cpu("self") - own,
                cpu(&broker) - its
            );
        }
    }
}
