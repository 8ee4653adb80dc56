//! Producers of librdkafka.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millstream_common::env::{BoxFuture, Lane};
use millstream_common::{Env, Error, Result};
use parking_lot::Mutex;
use rdkafka::client::{ClientContext, OAuthToken};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _, ProducerContext};

use super::options::{DeliveryGuarantee, KafkaSinkOptions};
use super::produce::{Identity, Outgoing, Producer, Producers};
use crate::client::Brokers;
use crate::security::{Security, Tokens};

/// What librdkafka is told when the user says nothing else.
const DEFAULTS: [(&str, &str); 4] = [
    // Records that wait to be sent or for their answers, a producer.
    ("queue.buffering.max.messages", "100000"),
    ("queue.buffering.max.kbytes", "32768"),
    ("linger.ms", "5"),
    ("client.id", "millstream"),
];

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
}

impl Librdkafka {
    /// `brokers`: the same cluster, to ask what librdkafka does not tell.
    #[must_use]
    pub fn new(env: Env, brokers: Brokers, options: &KafkaSinkOptions) -> Self {
        let mut config = ClientConfig::new();
        for (name, value) in DEFAULTS {
            config.set(name, value);
        }
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
        Self { env, brokers, config, security: options.security.clone(), transaction_timeout, retry_timeout }
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
            let opened = block(move || open(&config, tokens)).await?;
            Ok(Box::new(LibrdkafkaProducer { env, opened: Some(opened), identity: None }) as Box<dyn Producer>)
        })
    }

    fn transactional(&self, id: String) -> BoxFuture<'static, Result<Box<dyn Producer>>> {
        let secured = self.secured();
        let (env, brokers) = (self.env.clone(), self.brokers.clone());
        let (timeout, limit) = (self.transaction_timeout, self.retry_timeout);
        Box::pin(async move {
            let (mut config, tokens) = secured?;
            config.set("transactional.id", &id).set("transaction.timeout.ms", timeout.as_millis().max(1).to_string());
            let of = id.clone();
            let opened = block(move || {
                let opened = open(&config, tokens)?;
                opened.base.init_transactions(limit).map_err(|e| not_begun(e, &of, timeout))?;
                Ok(opened)
            })
            .await?;
            // librdkafka does not tell. Should another writer have taken the id by now, this names that one, and nothing that
            // is sent comes through.
            let described = brokers.describe_transaction(&id).await?;
            let identity = described
                .map(|d| Identity { producer_id: d.producer_id, producer_epoch: d.producer_epoch })
                .ok_or_else(|| {
                    Error::unavailable("the broker does not know a producer that it has just made").code(2442).at(id)
                })?;
            Ok(Box::new(LibrdkafkaProducer { env, opened: Some(opened), identity: Some(identity) })
                as Box<dyn Producer>)
        })
    }
}

/// What became of records.
#[derive(Default)]
struct Deliveries {
    failed: AtomicBool,
    first: Mutex<Option<Error>>,
}

struct Context {
    deliveries: Arc<Deliveries>,
    tokens: Tokens,
    /// librdkafka has asked for its first token.
    asked: AtomicBool,
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

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!("librdkafka: {error}: {reason}");
    }
}

impl ProducerContext for Context {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((e, _)) = result {
            self.deliveries.first.lock().get_or_insert_with(|| not_written(e));
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
    let context = Context { deliveries: deliveries.clone(), tokens, asked: AtomicBool::new(false) };
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
    fn opened(&self) -> &Opened {
        self.opened.as_ref().expect("only the end takes it")
    }

    /// The first record that did not come through, if any.
    fn check(&self) -> Result<()> {
        let deliveries = &self.opened().deliveries;
        if !deliveries.failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let error = deliveries.first.lock().take();
        Err(error.unwrap_or_else(|| Error::unavailable("a record was not written").code(2443)))
    }
}

impl Producer for LibrdkafkaProducer {
    fn identity(&self) -> Option<Identity> {
        self.identity
    }

    fn begin(&mut self) -> Result<()> {
        self.opened().base.begin_transaction().map_err(|e| not_written(&e))
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
                Err(not_written(&e))
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
                let _ = block(move || {
                    drop(opened);
                    Ok(())
                })
                .await;
            });
        }
    }
}

/// Calls what blocks on a thread for that. librdkafka is no part of a simulation.
#[allow(clippy::disallowed_methods)]
async fn block<T: Send + 'static>(call: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(call).await.map_err(|e| Error::canceled("a call of librdkafka has no end").source(e))?
}

fn not_begun(error: KafkaError, id: &str, timeout: Duration) -> Error {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::InvalidTransactionTimeout) => Error::config(format!(
            "the brokers refuse transactions of {timeout:?}, the sink's transaction time-out: it is above their \
             transaction.max.timeout.ms"
        ))
        .code(1362)
        .at(id)
        .next("set a shorter time-out that still exceeds checkpoint interval and duration, or raise the brokers' limit")
        .source(error),
        Some(RDKafkaErrorCode::TransactionalIdAuthorizationFailed | RDKafkaErrorCode::ClusterAuthorizationFailed) => {
            Error::config("the brokers do not allow transactions under this id").code(1363).at(id).source(error)
        }
        _ => Error::unavailable("a transactional producer cannot be made").code(2442).at(id).source(error),
    }
}

fn not_written(error: &KafkaError) -> Error {
    let made = match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::MessageSizeTooLarge) => Error::data("a record is larger than brokers or producer take")
            .code(3330)
            .next("raise max.message.bytes of the topic and message.max.bytes of the producer, or write less"),
        Some(
            RDKafkaErrorCode::UnknownPartition | RDKafkaErrorCode::InvalidRecord | RDKafkaErrorCode::InvalidTimestamp,
        ) => Error::data("the brokers do not take a record").code(3331),
        Some(
            RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
            | RDKafkaErrorCode::InvalidTopic,
        ) => Error::config("the brokers do not allow to write there").code(1363),
        Some(
            RDKafkaErrorCode::Fenced
            | RDKafkaErrorCode::ProducerFenced
            | RDKafkaErrorCode::InvalidProducerEpoch
            | RDKafkaErrorCode::InvalidTransactionalState
            | RDKafkaErrorCode::InvalidProducerIdMapping,
        ) => Error::unavailable(
            "the broker has given the transaction up: it took longer than its time-out, or another writer uses the same \
             transactional id",
        )
        .code(2444)
        .next("if this comes again: raise the transaction time-out, and see that no two sinks have one prefix"),
        _ => Error::unavailable("a record was not written").code(2443),
    };
    made.source(error.clone())
}
