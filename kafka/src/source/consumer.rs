//! The consumer that the readers of a process share.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::task::AtomicWaker;
use millstream_common::env::{BoxFuture, Lane, Moment};
use millstream_common::{Env, Error, ErrorKind, Result};
use parking_lot::{Mutex, MutexGuard};
use rdkafka::bindings::rd_kafka_get_watermark_offsets;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer as _, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset, TopicPartitionList};

use super::options::KafkaSourceOptions;
use super::queue::{Queue, Records};
use crate::client::{Brokers, BrokersOptions, Isolation, TcpDial};
use crate::security::Tokens;

/// What librdkafka is told when the user says nothing else.
pub const DEFAULTS: [(&str, &str); 5] = [
    // Records of a partition that wait here for their reader, which holds about as many again at most; both bounds hold.
    ("queued.min.messages", "20000"),
    ("queued.max.messages.kbytes", "8192"),
    // How soon it is looked whether a full queue has room again; 1 s by default, which would starve a fast reader.
    ("fetch.queue.backoff.ms", "10"),
    ("fetch.error.backoff.ms", "100"),
    ("client.id", "millstream"),
];

/// So many events are looked for when there is one.
const EVENTS: usize = 1_024;

/// How often one who waits for brokers looks whether they refuse us.
const LOOK: Duration = Duration::from_secs(1);

/// As what librdkafka logs an error that nobody is given: one about a partition, where records are taken in batches.
const UNHEARD: &str = "ERROR";

/// Hands what librdkafka says to our log, and tokens to it.
pub(super) struct Context {
    tokens: Tokens,
    /// What it said of a partition that it no longer fetches, until a reader hears of it.
    given_up: Mutex<Option<String>>,
    /// What it said when TLS or SASL failed, until somebody has found out why.
    refused: Mutex<Option<String>>,
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        Ok(self.tokens.token()?)
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        crate::log::say(level, facility, message);
        if facility == UNHEARD {
            *self.given_up.lock() = Some(message.to_owned());
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!("librdkafka: {error}: {reason}");
        let fails =
            matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::Authentication | RDKafkaErrorCode::SSL));
        // In TLS 1.3 the broker judges our certificate when for librdkafka the connection is there.
        if fails || reason.contains("SSL alert number") {
            *self.refused.lock() = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Context {}

/// The waker of whoever reads a partition now.
type SharedWaker = Arc<Mutex<Arc<AtomicWaker>>>;

pub(super) struct Consumer {
    env: Env,
    /// There until it ends.
    base: Option<Arc<BaseConsumer<Context>>>,
    /// To ask whether they answer.
    brokers: Brokers,
    /// By partition, for good: two of one partition would take the callback away from each other.
    queues: Mutex<BTreeMap<(String, i32), Entry>>,
    /// Of all that were opened. Apart from the queues, which hold the consumer that calls this.
    wakers: Arc<Mutex<Vec<SharedWaker>>>,
    /// So many readers there have been.
    opened: AtomicU64,
    /// Held while partitions are assigned. librdkafka's threads, which answer, never take it.
    assigning: Mutex<()>,
    /// There may be something that concerns all partitions.
    events: Arc<AtomicBool>,
    /// Since when a broker may not answer.
    down_since: Mutex<Option<Moment>>,
    retry_timeout: Duration,
    /// The group that hears of what is durable.
    group: Option<String>,
    durable: Arc<Mutex<Durable>>,
}

/// Offsets that a group is to hear of.
#[derive(Default)]
struct Durable {
    due: BTreeMap<(String, i32), i64>,
    /// Somebody tells it.
    telling: bool,
}

struct Entry {
    queue: Arc<Queue>,
    waker: SharedWaker,
    current: Arc<Mutex<u64>>,
}

/// What a reader has of its partition.
pub(super) struct Opened {
    queue: Arc<Queue>,
    number: u64,
    /// Which reader may take records; 0: none. Held by whoever takes some: a reader of an attempt that is over must not take
    /// those of its successor.
    current: Arc<Mutex<u64>>,
}

impl Opened {
    /// The right to take records as long as this is held; `None` when another reader has taken over.
    pub(super) fn turn(&self) -> Option<MutexGuard<'_, u64>> {
        Some(self.current.lock()).filter(|current| **current == self.number)
    }

    /// What the reader takes its records from.
    pub(super) fn records(&self) -> Records {
        Records::new(self.queue.clone())
    }
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
            // Also what is read without end: whoever has come to the end is behind by nothing.
            .set("enable.partition.eof", "true")
            .set(
                "isolation.level",
                match options.isolation {
                    Isolation::ReadCommitted => "read_committed",
                    Isolation::ReadUncommitted => "read_uncommitted",
                },
            );
        options.security.to_librdkafka(&mut config)?;
        let tokens = Tokens::new(&env, &options.security);
        let context = Context { tokens, given_up: Mutex::default(), refused: Mutex::default() };
        let mut base: BaseConsumer<Context> = config
            .create_with_context(context)
            .map_err(|e| Error::config("librdkafka does not take these settings of a consumer").code(1346).source(e))?;
        let wakers: Arc<Mutex<Vec<SharedWaker>>> = Arc::default();
        let all = wakers.clone();
        let events = Arc::new(AtomicBool::new(true));
        let there = events.clone();
        base.set_nonempty_callback(move || {
            there.store(true, Ordering::Release);
            all.lock().iter().for_each(|waker| waker.lock().wake());
        });
        let asking = BrokersOptions::new(&options.bootstrap, &options.security, Duration::from_secs(1));
        Ok(Self {
            brokers: Brokers::new(env.clone(), Arc::new(TcpDial), asking),
            env,
            base: Some(Arc::new(base)),
            queues: Mutex::default(),
            wakers,
            opened: AtomicU64::new(0),
            assigning: Mutex::default(),
            events,
            down_since: Mutex::default(),
            retry_timeout: options.retry_timeout,
            group: options.group.clone(),
            durable: Arc::default(),
        })
    }

    /// Begins to fetch a partition at an offset; its queue wakes `waker` when it is no longer empty. Whoever has read it until
    /// now no longer does.
    pub(super) fn open(&self, topic: &str, partition: i32, offset: i64, waker: Arc<AtomicWaker>) -> Result<Opened> {
        let place = format!("{topic}/{partition}");
        let failed = |e| Error::unavailable("the partition cannot be opened").code(2410).at(place.clone()).source(e);
        let _alone = self.assigning.lock();
        let number = self.opened.fetch_add(1, Ordering::Relaxed) + 1;
        let mut queues = self.queues.lock();
        let (queue, current) = match queues.get(&(topic.to_owned(), partition)) {
            Some(entry) => {
                let before = std::mem::replace(&mut *entry.current.lock(), number);
                // It is to see that it no longer reads.
                std::mem::replace(&mut *entry.waker.lock(), waker).wake();
                if before > 0 {
                    self.unassign(topic, partition);
                }
                (entry.queue.clone(), entry.current.clone())
            }
            None => {
                // Before anything is fetched: it must not go to the queue that all partitions share.
                let mut queue = Queue::new(self.base(), topic, partition)
                    .ok_or_else(|| Error::unavailable("the partition has no queue").code(2410).at(place.clone()))?;
                let waker = Arc::new(Mutex::new(waker));
                let of_reader = waker.clone();
                queue.on_nonempty(move || of_reader.lock().wake());
                self.wakers.lock().push(waker.clone());
                let (queue, current) = (Arc::new(queue), Arc::new(Mutex::new(number)));
                let entry = Entry { queue: queue.clone(), waker, current: current.clone() };
                queues.insert((topic.to_owned(), partition), entry);
                (queue, current)
            }
        };
        drop(queues);
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(topic, partition, Offset::Offset(offset)).map_err(failed)?;
        self.base().incremental_assign(&list).map_err(failed)?;
        Ok(Opened { queue, number, current })
    }

    /// Ends what `open` began, unless another reader has taken over.
    pub(super) fn close(&self, topic: &str, partition: i32, opened: &Opened) {
        let _alone = self.assigning.lock();
        {
            let Some(mut current) = opened.turn() else { return };
            *current = 0;
        }
        self.unassign(topic, partition);
        // What was fetched ahead goes: the queue passes over it and ends.
        opened.queue.clear();
    }

    fn base(&self) -> &Arc<BaseConsumer<Context>> {
        self.base.as_ref().expect("only the end takes it")
    }

    pub(super) fn env(&self) -> &Env {
        &self.env
    }

    /// Where a partition that is fetched ends, by what came with its last records: nobody is asked. `None`: none came yet.
    pub(super) fn end(&self, topic: &CStr, partition: i32) -> Option<i64> {
        let (mut first, mut end) = (0, 0);
        // SAFETY: the client lives as long as `base`, which this borrows; the name ends with a zero byte; both numbers are there
        // until this returns. librdkafka locks what it looks at by itself.
        let answer = unsafe {
            let client = self.base().client().native_ptr();
            rd_kafka_get_watermark_offsets(client, topic.as_ptr(), partition, &raw mut first, &raw mut end)
        };
        (answer == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR && end >= 0).then_some(end)
    }

    fn unassign(&self, topic: &str, partition: i32) {
        let mut list = TopicPartitionList::new();
        list.add_partition(topic, partition);
        if let Err(e) = self.base().incremental_unassign(&list) {
            tracing::debug!("{topic}/{partition} was not given up: {e}");
        }
    }

    /// Looks at what concerns all partitions: brokers that do not answer, credentials that are refused; and at one that is gone.
    /// When brokers may not answer: how long that may last.
    pub(super) fn serve(&self) -> Result<Option<Duration>> {
        if self.events.swap(false, Ordering::AcqRel) {
            // An event that librdkafka's binding deals with by itself gives nothing, as an empty queue does. One that is left in
            // the queue would be the last that anybody is told of.
            for round in 0..EVENTS {
                let event = self.base().poll(Duration::ZERO);
                if event.is_some() && round == EVENTS - 1 {
                    self.events.store(true, Ordering::Release);
                }
                let judged = match event {
                    None => Ok(()),
                    Some(Ok(record)) => {
                        let (topic, partition) = (record.topic().to_owned(), record.partition());
                        let lost = "a record came to a queue that its reader does not look into";
                        Err(Error::unavailable(lost).code(2413).at(format!("{topic}/{partition}")))
                    }
                    Some(Err(e)) => self.judge(e),
                };
                if judged.is_err() {
                    self.events.store(true, Ordering::Release);
                    judged?;
                }
            }
            if let Some(why) = self.base().context().given_up.lock().take() {
                // Also where a broker does not know of it yet; whoever discovers partitions says it for good.
                return Err(Error::unavailable("a partition is gone, or must not be read").code(2414).source(why));
            }
        }
        if self.base().context().refused.lock().is_some() {
            return Ok(Some(Duration::ZERO));
        }
        let Some(since) = *self.down_since.lock() else { return Ok(None) };
        Ok(Some(self.retry_timeout.saturating_sub(self.env.now().since(since))))
    }

    /// Waits so long, or until a broker refuses librdkafka, and then asks whether a broker answers. librdkafka tells of each
    /// broker and address that it cannot reach, and not of one that it reaches; nor whether a refusal is for good.
    pub(super) fn look_again(self: &Arc<Self>, left: Duration) -> BoxFuture<'static, Result<()>> {
        let this = self.clone();
        Box::pin(async move {
            let deadline = this.env.now() + left;
            let refused = loop {
                let refused = this.base().context().refused.lock().take();
                let left = deadline.since(this.env.now());
                if refused.is_some() || left.is_zero() {
                    break refused;
                }
                this.env.sleep(left.min(LOOK)).await;
            };
            let is_up = || refused.is_none() && this.down_since.lock().is_none();
            if is_up() {
                return Ok(());
            }
            match (this.brokers.cluster(Some(&[])).await, &refused) {
                (Ok(_), None) => {
                    this.is_up();
                    Ok(())
                }
                (Ok(_), Some(reason)) => Err(Error::unavailable("a broker refuses librdkafka and no other connection")
                    .code(2411)
                    .next("if a secret or certificate was changed, the restart uses the new one")
                    .source(reason.clone())),
                (Err(_), None) if is_up() => Ok(()),
                (Err(e), _) if e.kind() == ErrorKind::Config => Err(e),
                // The time is not up yet.
                (Err(_), Some(_)) => Ok(()),
                (Err(e), None) => {
                    let what = format!("no broker has answered for {:?}", this.retry_timeout);
                    Err(Error::unavailable(what).code(2412).source(e))
                }
            }
        })
    }

    /// Commits an offset to the group, soon: for those who watch its lag. What cannot be committed is said in the log.
    pub(super) fn is_durable(&self, topic: &str, partition: i32, offset: i64) {
        let Some(group) = self.group.clone() else { return };
        let mut durable = self.durable.lock();
        durable.due.insert((topic.to_owned(), partition), offset);
        if std::mem::replace(&mut durable.telling, true) {
            return;
        }
        let (shared, brokers) = (self.durable.clone(), self.brokers.clone());
        self.env.spawn(Lane::Io, "offsets of a group", async move {
            loop {
                let due = {
                    let mut durable = shared.lock();
                    durable.telling = !durable.due.is_empty();
                    std::mem::take(&mut durable.due)
                };
                if due.is_empty() {
                    return;
                }
                if let Err(e) = brokers.commit(&group, &due).await {
                    tracing::warn!(
                        "offsets of group '{group}' were not committed; those of the next checkpoint will be: {e}"
                    );
                }
            }
        });
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
                    // The context keeps these two; `look_again` finds out more.
                    | RDKafkaErrorCode::Authentication
                    | RDKafkaErrorCode::SSL
            )
        );
        // Nobody joins the group, and nothing is asked of it.
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed) {
            return Ok(());
        }
        if !passes {
            return Err(Error::unavailable("the brokers refuse to be read").code(2411).source(error));
        }
        self.down_since.lock().get_or_insert(self.env.now());
        Ok(())
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        // The last handle of a consumer waits until librdkafka has closed it: not on the thread of a subtask.
        let all = (std::mem::take(&mut *self.queues.lock()), self.base.take());
        self.env.spawn(Lane::Background, "a consumer of librdkafka ends", Box::pin(async move { drop(all) }));
    }
}
