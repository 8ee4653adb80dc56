//! Producers of librdkafka.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millstream_common::env::{BoxFuture, Lane, Moment};
use millstream_common::{Env, Error, Result};
use parking_lot::Mutex;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, Message as _, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};
use rdkafka::statistics::Statistics;

use super::options::{DeliveryGuarantee, KafkaSinkOptions};
use super::produce::{Identity, Outgoing, Producer, Producers};
use super::refused::{follows, not_begun, not_written, passes_for_new_producer};
use super::threads::block;
use crate::client::{Brokers, Told};
use crate::security::{Security, Tokens};

/// What librdkafka is told when the user says nothing else.
const DEFAULTS: [(&str, &str); 4] = [
    // Records that wait to be sent or for their answers, a producer.
    ("queue.buffering.max.messages", "100000"),
    ("queue.buffering.max.kbytes", "32768"),
    ("linger.ms", "5"),
    ("client.id", "millstream"),
];

/// The longest that librdkafka takes for it.
const TOPIC_KNOWN_MS_MAX: u128 = 3_600_000;

/// Longest single call that makes a producer ready: how soon it is seen that nobody waits for that any more.
const STEP: Duration = Duration::from_secs(1);
/// Between two of them.
const PAUSE: Duration = Duration::from_millis(50);
/// Before another producer of an id is made because one met yet another.
const AGAIN: Duration = Duration::from_millis(500);

/// How often librdkafka tells what it knows of its producer, where brokers do not.
const STATISTICS_MS: &str = "100";
/// So many looks are taken for it.
const STATISTICS_POLLS: usize = 100;

/// librdkafka asks for its first token as soon as it runs; so many polls of 10 ms are made for it.
const FIRST_TOKEN_POLLS: usize = 500;

/// Makes producers with a sink's settings.
pub struct Librdkafka {
    env: Env,
    brokers: Brokers,
    config: ClientConfig,
    security: Security,
    transaction_timeout: Duration,
    retry_timeout: Duration,
    /// Brokers older than Apache Kafka 3.0 were met: they do not tell of producers.
    untold: Arc<AtomicBool>,
}

impl Librdkafka {
    /// `brokers`: the same cluster, to ask what librdkafka does not tell.
    #[must_use]
    pub fn new(env: Env, brokers: Brokers, options: &KafkaSinkOptions) -> Self {
        let mut config = ClientConfig::new();
        for (name, value) in DEFAULTS {
            config.set(name, value);
        }
        // A topic may be new and not known everywhere. What is not there is to be said before records are given up for their age.
        let known_ms = (options.retry_timeout / 2).as_millis().min(TOPIC_KNOWN_MS_MAX);
        config.set("topic.metadata.propagation.max.ms", known_ms.to_string());
        if options.guarantee == DeliveryGuarantee::AtLeastOnce {
            // One that does not come through ends the job, which writes it again.
            config.set("message.timeout.ms", options.retry_timeout.as_millis().max(1).to_string());
        }
        for (name, value) in &options.properties {
            config.set(name, value);
        }
        config
            .set("bootstrap.servers", options.bootstrap.join(","))
            .set("enable.idempotence", "true")
            .set("delivery.report.only.error", "true");
        let (transaction_timeout, retry_timeout) = (options.transaction_timeout, options.retry_timeout);
        let (security, untold) = (options.security.clone(), Arc::default());
        Self { env, brokers, config, security, transaction_timeout, retry_timeout, untold }
    }

    /// With what connections need now: secrets are read when a producer is made.
    fn secured(&self) -> Result<(ClientConfig, Tokens)> {
        let mut config = self.config.clone();
        self.security.to_librdkafka(&mut config)?;
        Ok((config, Tokens::new(&self.env, &self.security)))
    }
}

impl Producers for Librdkafka {
    fn plain(&self) -> BoxFuture<'static, Result<Box<dyn Producer>>> {
        let (env, secured) = (self.env.clone(), self.secured());
        Box::pin(async move {
            let (config, tokens) = secured?;
            let opened = block(move || open(&config, tokens)).await??;
            Ok(Box::new(LibrdkafkaProducer { env, opened: Some(opened), identity: None }) as Box<dyn Producer>)
        })
    }

    fn transactional(&self, id: String) -> BoxFuture<'static, Result<Box<dyn Producer>>> {
        let secured = self.secured();
        let (env, brokers, untold) = (self.env.clone(), self.brokers.clone(), self.untold.clone());
        let (timeout, limit) = (self.transaction_timeout, self.retry_timeout);
        Box::pin(async move {
            let (mut config, tokens) = secured?;
            config.set("transactional.id", &id).set("transaction.timeout.ms", timeout.as_millis().max(1).to_string());
            let deadline = env.now() + limit;
            loop {
                let is_untold = untold.load(Ordering::Acquire);
                if is_untold {
                    config.set("statistics.interval.ms", STATISTICS_MS);
                }
                let mut producer = match initialized(&env, &config, &tokens, deadline).await? {
                    Ok(producer) => producer,
                    Err(e) if passes_for_new_producer(&e) && env.now() < deadline => {
                        tracing::debug!("making a producer of {id} again: {e}");
                        env.sleep(AGAIN).await;
                        continue;
                    }
                    Err(e) => return Err(not_begun(e, &id, timeout)),
                };
                // Should another writer have taken the id by now, the broker names that one, and nothing that is sent comes through.
                producer.identity = match brokers.describe_transaction(&id).await? {
                    Told::Newest(d) => Some(Identity { producer_id: d.producer_id, producer_epoch: d.producer_epoch }),
                    Told::NoSuchId => None,
                    Told::Nothing if is_untold => producer.counted(&env).await,
                    Told::Nothing => {
                        // librdkafka tells, when it was told to before. Nothing was written by this one.
                        untold.store(true, Ordering::Release);
                        continue;
                    }
                };
                if producer.identity.is_some() {
                    return Ok(Box::new(producer) as Box<dyn Producer>);
                }
                let what = "nobody knows a producer that the broker has just made";
                return Err(Error::unavailable(what).code(2442).at(id));
            }
        })
    }
}

/// A producer whose transactions librdkafka has initialized, or why it has not. In steps, each of which goes on where the last one
/// ended: when this future is dropped, nothing goes on for longer than a step.
async fn initialized(
    env: &Env,
    config: &ClientConfig,
    tokens: &Tokens,
    deadline: Moment,
) -> Result<Result<LibrdkafkaProducer, KafkaError>> {
    let (config, tokens) = (config.clone(), tokens.clone());
    let opened = block(move || open(&config, tokens)).await??;
    // Wherever this is dropped from now on, it ends elsewhere.
    let mut producer = LibrdkafkaProducer { env: env.clone(), opened: Some(opened), identity: None };
    loop {
        let step = deadline.since(env.now()).min(STEP);
        let (still, done) = block(move || {
            let done = producer.opened().base.init_transactions(step);
            (producer, done)
        })
        .await?;
        producer = still;
        match done {
            Ok(()) => return Ok(Ok(producer)),
            Err(KafkaError::Transaction(e)) if e.is_retriable() && env.now() < deadline => env.sleep(PAUSE).await,
            Err(e) => return Ok(Err(e)),
        }
    }
}

/// What became of records.
#[derive(Default)]
struct Deliveries {
    failed: AtomicBool,
    /// With the topic of the record.
    first: Mutex<Option<(KafkaError, String)>>,
}

struct Context {
    deliveries: Arc<Deliveries>,
    tokens: Tokens,
    /// librdkafka has asked for its first token.
    asked: AtomicBool,
    /// What the broker calls this producer, as its statistics tell.
    counted: Mutex<Option<Identity>>,
}

impl ClientContext for Context {
    const ENABLE_REFRESH_OAUTH_TOKEN: bool = true;

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        self.asked.store(true, Ordering::Release);
        Ok(self.tokens.token()?)
    }

    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        crate::log::say(level, facility, message);
    }

    fn stats(&self, statistics: Statistics) {
        let Some(eos) = statistics.eos.filter(|eos| eos.producer_id >= 0) else { return };
        let identity = |epoch| Identity { producer_id: eos.producer_id, producer_epoch: epoch };
        *self.counted.lock() = i16::try_from(eos.producer_epoch).ok().map(identity);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!("librdkafka: {error}: {reason}");
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((e, record)) = result {
            self.deliveries.first.lock().get_or_insert_with(|| (e.clone(), record.topic().to_owned()));
            self.deliveries.failed.store(true, Ordering::Release);
        }
    }
}

struct Opened {
    base: BaseProducer<Context>,
    deliveries: Arc<Deliveries>,
}

/// Where tokens are needed, the first is there when this returns: librdkafka asks for it in its poll, and nobody polls while
/// it waits for the brokers.
fn open(config: &ClientConfig, tokens: Tokens) -> Result<Opened> {
    let deliveries = Arc::<Deliveries>::default();
    let needs_token = tokens.are_needed();
    let context =
        Context { deliveries: deliveries.clone(), tokens, asked: AtomicBool::new(false), counted: Mutex::default() };
    let base: BaseProducer<Context> = config
        .create_with_context(context)
        .map_err(|e| Error::config("librdkafka does not take these settings of a producer").code(1361).source(e))?;
    let asked = || base.context().asked.load(Ordering::Acquire);
    for _ in 0..FIRST_TOKEN_POLLS {
        if !needs_token || asked() {
            break;
        }
        base.poll(Duration::from_millis(10));
    }
    Ok(Opened { base, deliveries })
}

struct LibrdkafkaProducer {
    env: Env,
    /// There until it ends.
    opened: Option<Opened>,
    identity: Option<Identity>,
}

impl LibrdkafkaProducer {
    /// What the broker calls it, by librdkafka's statistics; `None` when they do not come.
    async fn counted(&self, env: &Env) -> Option<Identity> {
        for _ in 0..STATISTICS_POLLS {
            self.opened().base.poll(Duration::ZERO);
            let counted = *self.opened().base.context().counted.lock();
            if counted.is_some() {
                return counted;
            }
            env.sleep(PAUSE).await;
        }
        None
    }

    fn opened(&self) -> &Opened {
        self.opened.as_ref().expect("only the end takes it")
    }

    /// The first record that did not come through, if any.
    fn check(&self) -> Result<()> {
        let deliveries = &self.opened().deliveries;
        if !deliveries.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let first = deliveries.first.lock().take();
        Err(match first {
            Some((e, topic)) => not_written(self.cause(e), Some(&topic)),
            None => Error::unavailable("a record was not written").code(2443),
        })
    }

    /// When a record was given up only because something had gone wrong before: what that was, if librdkafka tells.
    fn cause(&self, error: KafkaError) -> KafkaError {
        if !follows(&error) {
            return error;
        }
        let base = &self.opened().base;
        let cause = match self.identity {
            // Nothing begins while a transaction is there, and the refusal says what has become of that one.
            Some(_) => base.begin_transaction().err(),
            None => base.client().fatal_error().map(|(code, _)| KafkaError::MessageProduction(code)),
        };
        cause.filter(|cause| !follows(cause)).unwrap_or(error)
    }
}

impl Producer for LibrdkafkaProducer {
    fn identity(&self) -> Option<Identity> {
        self.identity
    }

    fn begin(&mut self) -> Result<()> {
        self.opened().base.begin_transaction().map_err(|e| not_written(e, None))
    }

    fn send(&mut self, record: &Outgoing<'_>) -> Result<bool> {
        let mut message = BaseRecord::<[u8], [u8]>::to(record.topic);
        message.payload = record.value;
        message.key = record.key;
        message.partition = record.partition;
        message.timestamp = record.timestamp;
        if !record.headers.is_empty() {
            let headers =
                record.headers.iter().fold(OwnedHeaders::new_with_capacity(record.headers.len()), |all, h| {
                    all.insert(Header { key: h.0, value: h.1 })
                });
            message = message.headers(headers);
        }
        match self.opened().base.send(message) {
            Ok(()) => Ok(true),
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Ok(false),
            Err((e, _)) => {
                // It takes nothing more behind a record that did not come through: of that one we are about to hear.
                for _ in 0..10 {
                    self.opened().base.poll(Duration::from_millis(10));
                    self.check()?;
                }
                Err(not_written(self.cause(e), Some(record.topic)))
            }
        }
    }

    fn poll(&mut self) -> Result<()> {
        self.opened().base.poll(Duration::ZERO);
        self.check()
    }

    fn in_flight(&self) -> usize {
        self.opened().base.in_flight_count().max(0) as usize
    }

    fn hurry(&mut self) {
        // Whether all have come through is looked at otherwise: this waits in steps of 100 ms.
        let _ = self.opened().base.flush(Duration::ZERO);
    }
}

impl Drop for LibrdkafkaProducer {
    fn drop(&mut self) {
        // librdkafka waits for its threads: not on the thread of a subtask.
        if let Some(opened) = self.opened.take() {
            self.env.spawn(Lane::Background, "a producer of librdkafka ends", async move {
                let _ = block(move || drop(opened)).await;
            });
        }
    }
}
