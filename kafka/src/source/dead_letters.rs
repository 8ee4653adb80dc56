//! The topic for records that cannot be read.
//!
//! A reader hands over the bad ones of what it has taken, and hands out nothing of it before the brokers have acknowledged all of
//! them: its position stays in front of them until then, so that none is lost, and after a restart some come twice. All readers of a
//! process share one producer, which the first bad record makes and which ends when none has come for a while. One reader
//! writes at a time.

use std::sync::Arc;
use std::time::Duration;

use millstream_common::env::{AbortOnDrop, Lane, Running};
use millstream_common::{Env, Error, ErrorKind, Result};
use millstream_formats::json::JsonEncoding;
use tokio::sync::Mutex;

use super::bad::Counts;
use super::options::KafkaSourceOptions;
use super::queue::Record;
use super::splits::PartitionSplit;
use crate::client::{Brokers, BrokersOptions, TcpDial};
use crate::sink::{
    DeliveryGuarantee, KafkaSinkOptions, Librdkafka, Outgoing, PAUSE, Producer, Producers, ToTopic, flush,
};

/// Headers that are added behind those of the record. Numbers are decimal, time stamps in milliseconds since 1970.
const TOPIC: &str = "millstream.error.topic";
const PARTITION: &str = "millstream.error.partition";
const OFFSET: &str = "millstream.error.offset";
const TIMESTAMP: &str = "millstream.error.timestamp";
const FORMAT: &str = "millstream.error.format";
const NUMBER: &str = "millstream.error.number";
const MESSAGE: &str = "millstream.error.message";

/// What librdkafka is told when the user says nothing else: what one consumer was given another one is to be given, too. Below
/// what its queue holds.
const MESSAGE_BYTES_MAX: (&str, &str) = ("message.max.bytes", "30000000");

/// The longest text of an error, bytes.
const TEXT_MAX: usize = 1_024;

/// A producer that nobody needs for so long ends: nobody polls it then, and what proves us may grow too old.
const IDLE: Duration = Duration::from_secs(30);

/// A record that cannot be read, as it came, and why.
#[derive(Debug)]
pub(super) struct Letter {
    offset: i64,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
    timestamp: Option<i64>,
    number: u16,
    text: String,
}

impl Letter {
    pub(super) fn new(record: Record<'_>, error: &Error) -> Self {
        // Where they cannot be read, that is the cause.
        let headers = record.headers().unwrap_or_default().into_iter();
        Self {
            offset: record.offset(),
            key: record.key().map(<[u8]>::to_vec),
            value: record.value().map(<[u8]>::to_vec),
            headers: headers.map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec))).collect(),
            timestamp: record.timestamp_ms(),
            number: error.number(),
            text: text(error),
        }
    }

    /// What it takes of memory, about.
    pub(super) fn bytes(&self) -> usize {
        let bytes = |b: &Option<Vec<u8>>| b.as_ref().map_or(0, Vec::len);
        let headers = self.headers.iter().map(|(name, value)| size_of_val(name) + name.len() + bytes(value));
        size_of::<Self>() + bytes(&self.key) + bytes(&self.value) + self.text.len() + headers.sum::<usize>()
    }

    /// Hands the record to `producer`; waits while that has no room.
    async fn send(&self, env: &Env, producer: &mut dyn Producer, of: &Origin<'_>) -> Result<()> {
        let split = of.split;
        let (partition, offset) = (split.partition.to_string(), self.offset.to_string());
        let (timestamp, number) = (self.timestamp.map(|ms| ms.to_string()), format!("MS{:04}", self.number));
        let cause = [
            (TOPIC, Some(split.topic.as_str())),
            (PARTITION, Some(&partition)),
            (OFFSET, Some(&offset)),
            (TIMESTAMP, timestamp.as_deref()),
            (FORMAT, Some(of.format)),
            (NUMBER, Some(&number)),
            (MESSAGE, Some(&self.text)),
        ];
        let own = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
        let headers: Vec<_> =
            own.chain(cause.into_iter().filter_map(|(name, v)| Some((name, Some(v?.as_bytes()))))).collect();
        let record = Outgoing {
            topic: of.to,
            partition: None,
            key: self.key.as_deref(),
            value: self.value.as_deref(),
            timestamp: self.timestamp,
            headers: &headers,
        };
        loop {
            let is_empty = producer.in_flight() == 0;
            if producer.send(&record)? {
                return Ok(());
            }
            if is_empty {
                return Err(Error::data("a record is larger than a producer holds"));
            }
            producer.poll()?;
            env.sleep(PAUSE).await;
        }
    }
}

/// What an error says, as a header has it.
fn text(error: &Error) -> String {
    let mut text = error.to_string();
    text.truncate((0..=TEXT_MAX.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0));
    text
}

/// What the letters of a reader have in common.
struct Origin<'a> {
    split: &'a PartitionSplit,
    format: &'static str,
    to: &'a str,
}

/// The one topic of a source, for all its readers in this process.
pub(super) struct DeadLetters {
    env: Env,
    topic: String,
    /// What users call the source's format.
    format: &'static str,
    counts: Arc<Counts>,
    /// To ask whether the topic is there.
    brokers: Brokers,
    producers: Box<dyn Producers>,
    /// Held by whoever writes.
    producer: Mutex<Option<Kept>>,
}

/// A producer that has nothing to do, and what ends it in time.
struct Kept {
    producer: Box<dyn Producer>,
    _end: AbortOnDrop,
}

impl DeadLetters {
    /// Connects to nothing yet.
    pub(super) fn new(
        env: Env,
        options: &KafkaSourceOptions,
        topic: &str,
        format: &'static str,
        counts: Arc<Counts>,
    ) -> Self {
        let to = ToTopic::Named(topic.to_owned());
        // Records go out as they came: there are no rows that its format would write.
        let mut sink = KafkaSinkOptions::new(options.bootstrap.clone(), to, Arc::new(JsonEncoding), "");
        sink.security = options.security.clone();
        sink.guarantee = DeliveryGuarantee::AtLeastOnce;
        sink.retry_timeout = options.retry_timeout;
        sink.properties = options.properties.clone();
        let (name, bytes) = MESSAGE_BYTES_MAX;
        sink.properties.entry(name.to_owned()).or_insert_with(|| bytes.to_owned());
        let asking = BrokersOptions::new(&options.bootstrap, &options.security, Duration::from_secs(1));
        let brokers = Brokers::new(env.clone(), Arc::new(TcpDial), asking);
        let producers = Box::new(Librdkafka::new(env.clone(), brokers.clone(), &sink));
        Self { env, topic: topic.to_owned(), format, counts, brokers, producers, producer: Mutex::default() }
    }

    /// Writes `letters`, of which there is one at least; done when the brokers have all of them for good. An error: some of them may
    /// be there, and all are to be written again.
    pub(super) fn deliver(self: &Arc<Self>, split: &PartitionSplit, letters: Vec<Letter>) -> Running<Result<()>> {
        let (this, split) = (self.clone(), split.clone());
        self.env.run(Lane::Io, "bad records to their topic", async move {
            let of = Origin { split: &split, format: this.format, to: &this.topic };
            if let Err(e) = this.write(&of, &letters).await {
                return Err(this.not_written(e, &split, &letters).await);
            }
            if let Some(last) = letters.last() {
                let why = || format!("{}; at {}", last.text, split.place(last.offset));
                this.counts.dead_letters(letters.len() as u64, &this.topic, why);
            }
            Ok(())
        })
    }

    async fn write(self: &Arc<Self>, of: &Origin<'_>, letters: &[Letter]) -> Result<()> {
        let mut kept = self.producer.lock().await;
        // Nobody has it any more when this comes to no end: the next one must not hear what became of these records.
        let mut producer = match kept.take() {
            Some(Kept { producer, .. }) => producer,
            None => self.producers.plain().await?,
        };
        for letter in letters {
            letter.send(&self.env, &mut *producer, of).await?;
        }
        flush(&self.env, &mut *producer).await?;
        let (this, env) = (Arc::downgrade(self), self.env.clone());
        let end = AbortOnDrop(self.env.spawn(Lane::Io, "a producer that is idle ends", async move {
            env.sleep(IDLE).await;
            if let Some(this) = this.upgrade() {
                this.producer.lock().await.take();
            }
        }));
        *kept = Some(Kept { producer, _end: end });
        Ok(())
    }

    async fn not_written(&self, error: Error, split: &PartitionSplit, letters: &[Letter]) -> Error {
        let mut error = error;
        // librdkafka only says that it took too long.
        if error.kind() == ErrorKind::Unavailable
            && let Err(e) = self.brokers.cluster(Some(std::slice::from_ref(&self.topic))).await
            && matches!(e.number(), 1348 | 2405)
        {
            error = Error::config(e.what().to_owned());
        }
        let what = format!("a record that cannot be read cannot be written to topic '{}' either", self.topic);
        let made = match error.kind() {
            ErrorKind::Config => Error::config(what).code(1349),
            ErrorKind::Data => Error::data(what).code(3312),
            ErrorKind::Unavailable => Error::unavailable(what).code(2415),
            _ => return error,
        };
        let offset = |letter: Option<&Letter>| letter.map_or(0, |l| l.offset);
        let (first, last) = (offset(letters.first()), offset(letters.last()));
        let mut place = split.place(first);
        if last > first {
            place += &format!(", or another bad one up to {last}");
        }
        made.at(place)
            .next("see that this topic is there and takes whatever the source reads, or have bad records dropped")
            .source(error)
    }
}

#[cfg(test)]
#[path = "dead_letters_tests.rs"]
mod tests;
