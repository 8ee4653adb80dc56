//! The consumer that the readers of a process share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::task::AtomicWaker;
use millstream_common::env::{BoxFuture, Moment};
use millstream_common::{Env, Error, Result};
use parking_lot::Mutex;
use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::{Offset, TopicPartitionList};

use super::options::KafkaSourceOptions;
use crate::client::Isolation;

/// What librdkafka is told when the user says nothing else.
const DEFAULTS: [(&str, &str); 5] = [
    // Records that wait for their reader, a partition; both bounds hold.
    ("queued.min.messages", "20000"),
    ("queued.max.messages.kbytes", "8192"),
    // How soon it is looked whether a full queue has room again; 1 s by default, which would starve a fast reader.
    ("fetch.queue.backoff.ms", "10"),
    ("fetch.error.backoff.ms", "100"),
    ("client.id", "millstream"),
];

/// So many events are looked for when there is one.
const EVENTS: usize = 1_024;

/// Hands what librdkafka says to our log.
pub(super) struct Context;

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::warn!("librdkafka: {facility} {message}");
            }
            RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice => tracing::info!("librdkafka: {facility} {message}"),
            RDKafkaLogLevel::Info | RDKafkaLogLevel::Debug => tracing::debug!("librdkafka: {facility} {message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!("librdkafka: {error}: {reason}");
    }
}

impl ConsumerContext for Context {}

/// The queue of one partition.
pub(super) type Queue = PartitionQueue<Context>;

pub(super) struct Consumer {
    env: Env,
    base: Arc<BaseConsumer<Context>>,
    readers: Arc<Mutex<Readers>>,
    /// Held while partitions are assigned. Not `readers`: librdkafka's threads, which answer, take that to wake somebody.
    assigning: Mutex<()>,
    /// There may be something that concerns all partitions.
    events: Arc<AtomicBool>,
    /// Since when no broker answers.
    down_since: Mutex<Option<Moment>>,
    retry_timeout: Duration,
    /// For messages.
    bootstrap: String,
}

#[derive(Default)]
struct Readers {
    /// By partition, for good: two handles of one queue would take the callback away from each other.
    queues: BTreeMap<(String, i32), Entry>,
    /// So many readers there have been.
    opened: u64,
}

struct Entry {
    queue: Arc<Queue>,
    /// Of who reads the partition now. A reader of an attempt that is over must not take records from its successor.
    waker: Arc<Mutex<Arc<AtomicWaker>>>,
    /// The reader; 0: none.
    number: u64,
}

impl Consumer {
    pub(super) fn new(env: Env, options: &KafkaSourceOptions) -> Result<Self> {
        let mut config = ClientConfig::new();
        for (name, value) in DEFAULTS {
            config.set(name, value);
        }
        for (name, value) in &options.properties {
            config.set(name, value);
        }
        config
            .set("bootstrap.servers", options.bootstrap.join(","))
            // librdkafka reads partitions only under the name of a group, joined or not.
            .set("group.id", options.group.as_deref().unwrap_or("millstream"))
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("enable.partition.eof", if options.stop.is_some() { "true" } else { "false" })
            .set(
                "isolation.level",
                match options.isolation {
                    Isolation::ReadCommitted => "read_committed",
                    Isolation::ReadUncommitted => "read_uncommitted",
                },
            );
        let mut base: BaseConsumer<Context> = config
            .create_with_context(Context)
            .map_err(|e| Error::config("librdkafka does not take these settings of a consumer").code(1346).source(e))?;
        let readers: Arc<Mutex<Readers>> = Arc::default();
        let all = readers.clone();
        let events = Arc::new(AtomicBool::new(true));
        let there = events.clone();
        base.set_nonempty_callback(move || {
            there.store(true, Ordering::Release);
            all.lock().queues.values().for_each(|entry| entry.waker.lock().wake());
        });
        let base = Arc::new(base);
        let bootstrap = options.bootstrap.join(", ");
        Ok(Self {
            env,
            base,
            readers,
            assigning: Mutex::default(),
            events,
            down_since: Mutex::default(),
            retry_timeout: options.retry_timeout,
            bootstrap,
        })
    }

    /// Begins to fetch a partition at an offset: its queue, which wakes `waker` when it is no longer empty, and the number of
    /// the reader. Whoever has read it until now no longer does.
    pub(super) fn open(
        &self,
        topic: &str,
        partition: i32,
        offset: i64,
        waker: Arc<AtomicWaker>,
    ) -> Result<(Arc<Queue>, u64)> {
        let place = format!("{topic}/{partition}");
        let failed = |e| Error::unavailable("the partition cannot be opened").code(2410).at(place.clone()).source(e);
        let _alone = self.assigning.lock();
        let key = (topic.to_owned(), partition);
        let (number, taken_over) = {
            let mut readers = self.readers.lock();
            readers.opened += 1;
            let number = readers.opened;
            let taken_over = readers.queues.get_mut(&key).map(|entry| {
                let before = std::mem::replace(&mut entry.number, number);
                // It is to see that it no longer reads.
                std::mem::replace(&mut *entry.waker.lock(), waker.clone()).wake();
                (before > 0, entry.queue.clone())
            });
            (number, taken_over)
        };
        let queue = match taken_over {
            Some((is_read, queue)) => {
                if is_read {
                    self.unassign(topic, partition);
                }
                queue
            }
            None => {
                // Before anything is fetched: it must not go to the queue that all partitions share.
                let mut queue = self
                    .base
                    .split_partition_queue(topic, partition)
                    .ok_or_else(|| Error::unavailable("the partition has no queue").code(2410).at(place.clone()))?;
                let waker = Arc::new(Mutex::new(waker));
                let of_reader = waker.clone();
                queue.set_nonempty_callback(move || of_reader.lock().wake());
                let queue = Arc::new(queue);
                let entry = Entry { queue: queue.clone(), waker, number };
                self.readers.lock().queues.insert(key, entry);
                queue
            }
        };
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset)).map_err(failed)?;
        self.base.incremental_assign(&list).map_err(failed)?;
        Ok((queue, number))
    }

    /// Ends what `open` began, unless another reader has taken over.
    pub(super) fn close(&self, topic: &str, partition: i32, number: u64) {
        let _alone = self.assigning.lock();
        let was_current = {
            let mut readers = self.readers.lock();
            let entry = readers.queues.get_mut(&(topic.to_owned(), partition)).filter(|entry| entry.number == number);
            entry.map(|entry| entry.number = 0).is_some()
        };
        if was_current {
            self.unassign(topic, partition);
        }
    }

    pub(super) fn is_current(&self, topic: &str, partition: i32, number: u64) -> bool {
        self.readers.lock().queues.get(&(topic.to_owned(), partition)).is_some_and(|entry| entry.number == number)
    }

    fn unassign(&self, topic: &str, partition: i32) {
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, partition);
        if let Err(e) = self.base.incremental_unassign(&list) {
            tracing::debug!("{topic}/{partition} was not given up: {e}");
        }
    }

    /// Looks at what concerns all partitions: brokers that do not answer, credentials that are refused. While no broker
    /// answers: when to look again.
    pub(super) fn serve(&self) -> Result<Option<Duration>> {
        if self.events.swap(false, Ordering::AcqRel) {
            // An event that librdkafka's binding deals with by itself gives nothing, as an empty queue does. One that is left in
            // the queue would be the last that anybody is told of.
            let mut more = false;
            for _ in 0..EVENTS {
                let event = self.base.poll(Duration::ZERO);
                more = event.is_some();
                match event {
                    // A record of a partition that was closed a moment ago.
                    None | Some(Ok(_)) => {}
                    Some(Err(e)) => self.judge(e)?,
                }
            }
            self.events.fetch_or(more, Ordering::AcqRel);
        }
        let Some(since) = *self.down_since.lock() else { return Ok(None) };
        let silent = self.env.now().since(since);
        if silent < self.retry_timeout {
            return Ok(Some(self.retry_timeout - silent));
        }
        Err(Error::unavailable(format!("no broker has answered for {silent:?}")).code(2412).at(self.bootstrap.clone()))
    }

    pub(super) fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        self.env.sleep(duration)
    }

    /// Something was read: brokers answer.
    pub(super) fn is_up(&self) {
        *self.down_since.lock() = None;
    }

    fn judge(&self, error: KafkaError) -> Result<()> {
        let passes = matches!(
            error.rdkafka_error_code(),
            Some(
                RDKafkaErrorCode::AllBrokersDown
                    | RDKafkaErrorCode::BrokerTransportFailure
                    | RDKafkaErrorCode::Resolve
                    | RDKafkaErrorCode::OperationTimedOut
            )
        );
        if !passes {
            return Err(Error::unavailable("the brokers refuse to be read").code(2411).source(error));
        }
        self.down_since.lock().get_or_insert(self.env.now());
        Ok(())
    }
}
