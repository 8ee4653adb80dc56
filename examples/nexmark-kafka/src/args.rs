//! The arguments of the jobs.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use millstream_common::{Env, Result};
use millstream_connectors::ndjson::{NdjsonSource, NexmarkLines};
use millstream_connectors::nexmark::NexmarkSource;
use millstream_engine::dataflow::{JobArg, JobArgs, JobContext};
use millstream_engine::sink::Sink;
use millstream_engine::source::Source;
use millstream_formats::json::JsonEncoding;
use millstream_jobs::args::{absolute, duration_text, parse_args, parse_duration, parse_rate};
use millstream_kafka::sink::{DeliveryGuarantee, KafkaSink, KafkaSinkOptions, Key, LostTransactions, ToTopic};
use millstream_kafka::source::{BadRecords, KafkaSource, KafkaSourceOptions, StopAt, Topics};

use crate::properties::KafkaProperties;

/// What an output promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promise(pub DeliveryGuarantee);

impl FromStr for Promise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "exactly-once" => Ok(Self(DeliveryGuarantee::ExactlyOnce)),
            "at-least-once" => Ok(Self(DeliveryGuarantee::AtLeastOnce)),
            _ => Err("write exactly-once or at-least-once".into()),
        }
    }
}

impl fmt::Display for Promise {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            DeliveryGuarantee::ExactlyOnce => "exactly-once",
            DeliveryGuarantee::AtLeastOnce => "at-least-once",
        })
    }
}

/// What becomes of results whose transaction the brokers have given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnLoss(pub LostTransactions);

const LOSSES: [(&str, LostTransactions); 3] =
    [("fail", LostTransactions::Fail), ("skip", LostTransactions::Skip), ("write-again", LostTransactions::WriteAgain)];

impl FromStr for OnLoss {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = LOSSES.iter().find(|(name, _)| *name == text);
        named.map(|(_, what)| Self(*what)).ok_or_else(|| "write fail, skip or write-again".into())
    }
}

impl fmt::Display for OnLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        LOSSES.iter().filter(|(_, what)| *what == self.0).try_for_each(|(name, _)| f.write_str(name))
    }
}

/// What becomes of events that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnBad(pub BadRecords);

impl FromStr for OnBad {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(Self(match text {
            "fail" => BadRecords::Fail,
            "drop" => BadRecords::Drop,
            topic => BadRecords::DeadLetter { topic: topic.to_owned() },
        }))
    }
}

impl fmt::Display for OnBad {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.0 {
            BadRecords::Fail => "fail",
            BadRecords::Drop => "drop",
            BadRecords::DeadLetter { topic } => topic,
        })
    }
}

/// What all jobs have in common: where they write.
#[derive(Clone, Debug, clap::Args)]
pub struct ToKafka {
    /// Brokers to ask first
    #[arg(long, value_name = "HOST:PORT,...", value_delimiter = ',', default_value = "127.0.0.1:9092")]
    pub brokers: Vec<String>,
    /// exactly-once or at-least-once
    #[arg(long, value_name = "WHAT", default_value = "exactly-once")]
    pub guarantee: Promise,
    /// The broker gives up a transaction that is older than this
    #[arg(long, value_name = "D", default_value = "15m", value_parser = parse_duration)]
    pub transaction_timeout: Duration,
    /// What becomes of results whose transaction the broker has given up: fail; skip: they are missing; write-again: a copy is kept
    /// in the job's store until they are committed
    #[arg(long, value_name = "WHAT", default_value = "fail")]
    pub lost_transactions: OnLoss,
    /// TLS and SASL by name (docs/kafka.md), or a property of librdkafka; once for each. Secrets are env:NAME or file:PATH
    #[arg(long, value_name = "NAME=VALUE")]
    pub kafka_property: Vec<String>,
}

impl ToKafka {
    /// A sink of JSON records with these columns as keys, if any. Transactional ids begin with the name of the job.
    pub fn sink(&self, topic: &str, key: &[&str], context: &JobContext) -> Result<Arc<dyn Sink>> {
        let to = ToTopic::Named(topic.to_owned());
        let prefix = format!("millstream-{}", context.name);
        let mut options = KafkaSinkOptions::new(self.brokers.clone(), to, Arc::new(JsonEncoding), prefix);
        let kafka = self.properties()?;
        (options.security, options.properties) = (kafka.security, kafka.others);
        if !key.is_empty() {
            let columns = key.iter().map(|c| (*c).to_owned()).collect();
            options.key = Some(Key { columns, format: Arc::new(JsonEncoding) });
        }
        options.guarantee = self.guarantee.0;
        options.transaction_timeout = self.transaction_timeout;
        options.lost_transactions = self.lost_transactions.0;
        Ok(Arc::new(KafkaSink::new(context.env.clone(), options)?))
    }

    fn properties(&self) -> Result<KafkaProperties> {
        KafkaProperties::parse(&self.kafka_property)
    }

    fn normalised(&self) -> Vec<JobArg> {
        let mut args = vec![
            JobArg::free("brokers", self.brokers.join(",")),
            JobArg::free("guarantee", self.guarantee),
            JobArg::free("transaction-timeout", duration_text(self.transaction_timeout)),
            JobArg::free("lost-transactions", self.lost_transactions),
        ];
        let mut properties = self.kafka_property.clone();
        properties.sort();
        args.extend(properties.into_iter().map(|property| JobArg::free("kafka-property", property)));
        args
    }

    fn absolutise(&mut self, folder: &Path) {
        self.kafka_property = KafkaProperties::absolutised(&self.kafka_property, folder);
    }
}

/// Arguments of a job; properties of Kafka are looked at before anything is kept or sent.
fn parse<A: Parser>(args: &[String], to: impl Fn(&A) -> &ToKafka) -> Result<A> {
    let parsed = parse_args(args)?;
    to(&parsed).properties()?;
    Ok(parsed)
}

/// The arguments of the queries.
#[derive(Clone, Debug, Parser)]
#[command(name = "nexmark-kafka", no_binary_name = true, disable_version_flag = true)]
pub struct QueryArgs {
    #[command(flatten)]
    pub to: ToKafka,
    /// The topic with the events
    #[arg(long, value_name = "TOPIC", default_value = "nexmark-events")]
    pub events: String,
    /// The topic of the results; it must be there
    #[arg(long, value_name = "TOPIC", default_value = "nexmark-results")]
    pub results: String,
    /// Where it ends: never, or latest: behind the events that are there when the job starts for the first time
    #[arg(long, value_name = "WHERE", default_value = "never", value_parser = ["never", "latest"])]
    pub stop: String,
    /// How often is looked for new partitions; 0: never. With an end none are looked for
    #[arg(long, value_name = "D", default_value = "5m", value_parser = parse_duration)]
    pub discovery_interval: Duration,
    /// Events per second of real time, shared by the partitions; 0: as fast as possible
    #[arg(long, value_name = "N", default_value = "0", value_parser = parse_rate)]
    pub rate: f64,
    /// The watermark stays so far behind the greatest event time of a partition
    #[arg(long, value_name = "D", default_value = "4s", value_parser = parse_duration)]
    pub watermark_delay: Duration,
    /// A partition without events for so long no longer holds the watermark; 0: it always does
    #[arg(long, value_name = "D", default_value = "0", value_parser = parse_duration)]
    pub idle_timeout: Duration,
    /// A partition whose watermark is ahead of the slowest by more than this waits for it; 0: none waits
    #[arg(long, value_name = "D", default_value = "0", value_parser = parse_duration)]
    pub max_drift: Duration,
    /// What becomes of events that cannot be read: fail, drop, or the topic that they go to; it must be there
    #[arg(long, value_name = "fail|drop|TOPIC", default_value = "fail")]
    pub bad_records: OnBad,
}

impl QueryArgs {
    /// The events.
    pub fn source(&self, env: &Env) -> Result<Arc<dyn Source>> {
        let mut options = KafkaSourceOptions::new(self.to.brokers.clone(), Topics::Named(vec![self.events.clone()]));
        let kafka = self.to.properties()?;
        (options.security, options.properties) = (kafka.security, kafka.others);
        options.bad_records = self.bad_records.0.clone();
        options.stop = (self.stop == "latest").then_some(StopAt::Latest);
        options.discovery_interval = Some(self.discovery_interval).filter(|d| !d.is_zero());
        Ok(Arc::new(KafkaSource::new(env.clone(), options, Arc::new(NexmarkLines))?))
    }
}

impl JobArgs for QueryArgs {
    fn parse(args: &[String]) -> Result<Self> {
        parse(args, |args: &Self| &args.to)
    }

    fn normalised(&self) -> Vec<JobArg> {
        let mut args = self.to.normalised();
        args.push(JobArg::identity("events", &self.events));
        args.push(JobArg::identity("results", &self.results));
        args.push(JobArg::identity("stop", &self.stop));
        args.push(JobArg::free("discovery-interval", duration_text(self.discovery_interval)));
        args.push(JobArg::free("rate", self.rate));
        args.push(JobArg::identity("watermark-delay", duration_text(self.watermark_delay)));
        args.push(JobArg::identity("idle-timeout", duration_text(self.idle_timeout)));
        args.push(JobArg::free("max-drift", duration_text(self.max_drift)));
        args.push(JobArg::free("bad-records", &self.bad_records));
        args
    }

    fn absolutise(&mut self, folder: &Path) {
        self.to.absolutise(folder);
    }
}

/// The arguments of the job that fills the topic of events.
#[derive(Clone, Debug, Parser)]
#[command(name = "nexmark-kafka-events", no_binary_name = true, disable_version_flag = true)]
pub struct FillArgs {
    #[command(flatten)]
    pub to: ToKafka,
    /// The topic that gets the events; it must be there
    #[arg(long, value_name = "TOPIC", default_value = "nexmark-events")]
    pub events: String,
    /// How many are generated; 0: without end
    #[arg(long, value_name = "N", default_value_t = 100_000, conflicts_with = "input")]
    pub count: u64,
    /// Events per second of event time
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub event_rate: u64,
    /// Events per second of real time; 0: as fast as possible
    #[arg(long, value_name = "N", default_value = "0", value_parser = parse_rate)]
    pub rate: f64,
    /// Reads the events from these NDJSON files (.gz too) instead
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub input: Vec<String>,
}

/// Event time of the first generated event: 2026-01-01T00:00:00Z.
const BASE_TIME_MS: i64 = 1_767_225_600_000;

impl FillArgs {
    /// Files, or the generator. One split, so that events of a partition are in the order of their times.
    #[must_use]
    pub fn source(&self) -> Arc<dyn Source> {
        if !self.input.is_empty() {
            return Arc::new(NdjsonSource::new(self.input.clone(), Arc::new(NexmarkLines)));
        }
        Arc::new(NexmarkSource {
            events: self.count,
            event_rate: self.event_rate,
            base_time_ms: BASE_TIME_MS,
            splits: 1,
        })
    }
}

impl JobArgs for FillArgs {
    fn parse(args: &[String]) -> Result<Self> {
        parse(args, |args: &Self| &args.to)
    }

    fn normalised(&self) -> Vec<JobArg> {
        let mut args = self.to.normalised();
        args.push(JobArg::identity("events", &self.events));
        args.push(JobArg::free("rate", self.rate));
        args.push(JobArg::identity("event-rate", self.event_rate));
        if self.input.is_empty() {
            args.push(JobArg::identity("count", self.count));
        }
        args.extend(self.input.iter().map(|file| JobArg::identity("input", file)));
        args
    }

    fn absolutise(&mut self, folder: &Path) {
        self.to.absolutise(folder);
        for file in &mut self.input {
            *file = absolute(file, folder);
        }
    }
}
