//! Plain clients of librdkafka, with nothing of ours in between: what fills topics and looks at them.

use std::time::Duration;

use millstream_common::{Error, Result};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};

/// So long a producer may take until the broker has all it was given.
const FLUSH_LIMIT: Duration = Duration::from_secs(120);

/// Settings by name, as librdkafka calls them.
pub type Settings<'a> = &'a [(&'a str, &'a str)];

/// An error of librdkafka's.
pub fn failed(what: &str, e: KafkaError) -> Error {
    Error::unavailable(format!("{what} failed")).next("see the log of the broker").source(e)
}

fn config(broker: &str, settings: Settings<'_>) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", broker);
    for (name, value) in settings {
        config.set(*name, *value);
    }
    config
}

/// A consumer of all partitions from their beginning, in no group.
pub fn consumer(broker: &str, topic: &str, partitions: u32, settings: Settings<'_>) -> Result<BaseConsumer> {
    let mut config = config(broker, settings);
    config.set("group.id", "bench").set("enable.auto.commit", "false");
    let consumer: BaseConsumer = config.create().map_err(|e| failed("making a consumer", e))?;
    let mut all = TopicPartitionList::new();
    for partition in 0..partitions {
        all.add_partition_offset(topic, partition.cast_signed(), Offset::Beginning)
            .map_err(|e| failed("naming partitions", e))?;
    }
    consumer.assign(&all).map_err(|e| failed("assigning partitions", e))?;
    Ok(consumer)
}

/// Writes values without keys, to the partitions in turn.
pub struct Writer<'a> {
    producer: BaseProducer,
    topic: &'a str,
    partitions: u64,
    written: u64,
}

impl<'a> Writer<'a> {
    /// One that waits `linger_ms` milliseconds for a batch to fill.
    pub fn new(broker: &str, topic: &'a str, partitions: u32, linger_ms: u32) -> Result<Self> {
        let linger = linger_ms.to_string();
        let settings = [("linger.ms", linger.as_str()), ("queue.buffering.max.messages", "500000")];
        let producer = config(broker, &settings).create().map_err(|e| failed("making a producer", e))?;
        Ok(Self { producer, topic, partitions: u64::from(partitions), written: 0 })
    }

    /// Writes a record; waits while too many are on their way.
    pub fn write(&mut self, value: &str) -> Result<()> {
        let partition = (self.written % self.partitions) as i32;
        let mut record = BaseRecord::<(), _>::to(self.topic).partition(partition).payload(value);
        while let Err((e, again)) = self.producer.send(record) {
            if e.rdkafka_error_code() != Some(rdkafka::error::RDKafkaErrorCode::QueueFull) {
                return Err(failed("writing a record", e));
            }
            record = again;
            self.producer.poll(Duration::from_millis(1));
        }
        self.written += 1;
        Ok(())
    }

    /// Takes note of what has arrived, so that there is room again.
    pub fn poll(&self) {
        self.producer.poll(Duration::ZERO);
    }

    /// Waits until the broker has everything.
    pub fn finish(self) -> Result<()> {
        self.producer.flush(FLUSH_LIMIT).map_err(|e| failed("writing the last records", e))
    }
}
