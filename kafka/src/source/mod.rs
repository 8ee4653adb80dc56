//! Partitions of topics as splits.
//!
//! All readers of a process share one consumer of librdkafka, which fetches for all of them, and each has the queue of its
//! partition to itself. Nobody joins a consumer group: which subtask reads a partition, and from where, is in the
//! version. What nobody takes out of a queue keeps librdkafka from fetching more for it.

mod bad;
mod consumer;
mod dead_letters;
mod gauges;
mod headers;
mod metadata;
mod options;
mod queue;
mod reader;
mod splits;

use std::sync::{Arc, Weak};
use std::time::Duration;

use arrow_schema::{Schema, SchemaRef};
use millstream_common::{Env, Error, Result};
use millstream_engine::source::{Position, Source, Split, SplitEnumerator, SplitReader};
use millstream_formats::DecodingFormat;
use parking_lot::Mutex;

use crate::client::{Brokers, BrokersOptions, TcpDial};
use bad::{Counts, OnBad};
use consumer::Consumer;
pub use consumer::DEFAULTS;
use dead_letters::DeadLetters;
pub use options::{BadRecords, KafkaSourceOptions, Metadata, StartAt, StopAt, Topics};
use reader::PartitionReader;
use splits::{PartitionEnumerator, PartitionSplit};

/// Reads topics: a split for each partition, whose position is the offset of its next record.
pub struct KafkaSource {
    env: Env,
    options: Arc<KafkaSourceOptions>,
    format: Arc<dyn DecodingFormat>,
    schema: SchemaRef,
    /// Of the readers of this process, as long as there is one.
    consumer: Mutex<Weak<Consumer>>,
    /// The same of the topic for bad records.
    dead_letters: Mutex<Weak<DeadLetters>>,
    bad: Arc<Counts>,
}

impl KafkaSource {
    /// Reads the values of records by `format`. An error says which option cannot be.
    pub fn new(env: Env, options: KafkaSourceOptions, format: Arc<dyn DecodingFormat>) -> Result<Self> {
        options.check()?;
        let mut fields: Vec<_> = format.schema().fields().iter().cloned().collect();
        for (name, what) in &options.metadata {
            if fields.iter().any(|f| f.name() == name) {
                return Err(Error::config(format!("two columns of the source are called '{name}'")).code(1344));
            }
            fields.push(metadata::field(name, *what));
        }
        Ok(Self {
            env,
            options: Arc::new(options),
            format,
            schema: Arc::new(Schema::new(fields)),
            consumer: Mutex::new(Weak::new()),
            dead_letters: Mutex::new(Weak::new()),
            bad: Arc::default(),
        })
    }

    /// How many bad records were passed over ([`BadRecords::Drop`]) since this process has the source; one that is read again after a
    /// restart counts again.
    #[must_use]
    pub fn dropped_records(&self) -> u64 {
        self.bad.dropped()
    }

    /// How many bad records have come to their topic ([`BadRecords::DeadLetter`]), counted likewise.
    #[must_use]
    pub fn dead_letter_records(&self) -> u64 {
        self.bad.dead_lettered()
    }

    /// That of the other readers, or a new one.
    fn consumer(&self) -> Result<Arc<Consumer>> {
        let mut shared = self.consumer.lock();
        if let Some(consumer) = shared.upgrade() {
            return Ok(consumer);
        }
        let consumer = Arc::new(Consumer::new(self.env.clone(), &self.options)?);
        *shared = Arc::downgrade(&consumer);
        Ok(consumer)
    }

    fn on_bad(&self) -> OnBad {
        let topic = match &self.options.bad_records {
            BadRecords::Fail => return OnBad::Fail,
            BadRecords::Drop => return OnBad::Drop(self.bad.clone()),
            BadRecords::DeadLetter { topic } => topic,
        };
        let mut shared = self.dead_letters.lock();
        if let Some(letters) = shared.upgrade() {
            return OnBad::Write(letters);
        }
        let (env, format, counts) = (self.env.clone(), self.format.name(), self.bad.clone());
        let letters = Arc::new(DeadLetters::new(env, &self.options, topic, format, counts));
        *shared = Arc::downgrade(&letters);
        OnBad::Write(letters)
    }
}

impl Source for KafkaSource {
    fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    fn enumerator(&self) -> Result<Box<dyn SplitEnumerator>> {
        let o = &self.options;
        let asking = BrokersOptions::new(&o.bootstrap, &o.security, o.retry_timeout);
        let brokers = Brokers::new(self.env.clone(), Arc::new(TcpDial), asking);
        Ok(Box::new(PartitionEnumerator { brokers, options: (*self.options).clone(), asked: false }))
    }

    fn discovery_interval(&self) -> Option<Duration> {
        // What is read to an end has the partitions that it began with.
        self.options.discovery_interval.filter(|_| self.options.stop.is_none())
    }

    fn reader(&self, split: &Split, position: Option<&Position>) -> Result<Box<dyn SplitReader>> {
        let split = PartitionSplit::from_payload(&split.payload)?;
        let decoder = self.format.decoder()?;
        let columns = metadata::Columns::new(&self.options.metadata);
        let reader = PartitionReader::new(
            self.consumer()?,
            split,
            position,
            self.schema.clone(),
            decoder,
            columns,
            self.on_bad(),
        )?;
        Ok(Box::new(reader))
    }
}
