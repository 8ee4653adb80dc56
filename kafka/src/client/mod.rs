//! Requests of our own to brokers: what librdkafka does not offer, or offers only by blocking a thread.
//!
//! Metadata, offsets, and the transactions of producers that are gone. [`Brokers`] keeps a connection to each broker that was
//! asked, speaks the newest version of each request that both know, and asks again while an error says that this may
//! help. What any broker can answer, the one that answered last is asked first; coordinators are remembered until
//! one says that it is none, or does not answer. How frames travel is behind [`Dial`], so that a simulation can be the broker.
//!
//! Source of formats and codes: the protocol guide of Apache Kafka; the codec is the crate kafka-protocol.

mod known;
mod link;
mod offsets;
mod refusal;
mod sasl;
mod scram;
#[cfg(test)]
mod tests;
mod tls;
mod topics;
mod transactions;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, FindCoordinatorRequest, RequestHeader, ResponseHeader,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Message, Request, StrBytes};
use millstream_common::env::Moment;
use millstream_common::{Env, Error, ErrorKind, Result};
use parking_lot::Mutex;

use crate::security::Security;
use known::{Coordinates, Known};
use refusal::{passes, refused};

pub use link::{Dial, Link, TcpDial};
pub use offsets::{At, Isolation};
pub(crate) use refusal::NO_RIGHT;
#[cfg(feature = "librdkafka")]
pub(crate) use refusal::to_grant;
pub(crate) use tls::tls_config;
pub use topics::{Cluster, Partition, Topic};
pub use transactions::{Answer, Described, Ongoing, Told, TransactionState};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// The error of a broker that does not know a request.
const NO_SUCH_REQUEST: u16 = 1340;

/// How to reach a cluster.
#[derive(Clone)]
pub struct BrokersOptions {
    /// Brokers to ask first, `HOST:PORT` each.
    pub bootstrap: Vec<String>,
    /// TLS and SASL.
    pub security: Security,
    /// How long one answer may take.
    pub request_timeout: Duration,
    /// How long is tried before an error is one.
    pub retry_timeout: Duration,
}

impl BrokersOptions {
    /// An answer may take 10 s.
    #[must_use]
    pub fn new(bootstrap: &[String], security: &Security, retry_timeout: Duration) -> Self {
        let (bootstrap, security) = (bootstrap.to_vec(), security.clone());
        Self { bootstrap, security, request_timeout: Duration::from_secs(10), retry_timeout }
    }
}

/// Refuses what no connection can be made with. `properties`: of librdkafka, none of which may be one of `ours`, which follow from
/// the settings of `what`; that error has this number.
pub(crate) fn check_connection(
    bootstrap: &[String],
    security: &Security,
    properties: &BTreeMap<String, String>,
    ours: &[&str],
    (what, number): (&str, u16),
) -> Result<()> {
    if bootstrap.is_empty() {
        return Err(Error::config("no broker is named").code(1342).next("name one as HOST:PORT"));
    }
    security.check()?;
    Security::check_properties(properties.keys())?;
    match properties.keys().find(|name| ours.contains(&name.as_str())) {
        None => Ok(()),
        Some(name) => {
            let text = format!("the property {name} of librdkafka follows from the settings of the {what}");
            Err(Error::config(text).code(number))
        }
    }
}

/// A cluster of brokers. Cheap to clone.
#[derive(Clone)]
pub struct Brokers(Arc<Inner>);

struct Inner {
    env: Env,
    dial: Arc<dyn Dial>,
    options: BrokersOptions,
    /// Connections that nobody uses now, by broker.
    idle: Mutex<BTreeMap<String, Vec<Open>>>,
    known: Mutex<Known>,
}

struct Open {
    link: Box<dyn Link>,
    /// By request: the versions that the broker knows.
    versions: BTreeMap<i16, RangeInclusive<i16>>,
    /// Of the last request.
    id: i32,
    /// When another connection is to be opened instead.
    ends: Option<Moment>,
}

impl Brokers {
    /// Opens no connection yet.
    #[must_use]
    pub fn new(env: Env, dial: Arc<dyn Dial>, options: BrokersOptions) -> Self {
        let known = Mutex::new(Known::new(&options.bootstrap));
        Self(Arc::new(Inner { env, dial, options, idle: Mutex::default(), known }))
    }

    /// One request to `broker`, without another try. `versions`: those that this code understands.
    async fn call<R: Request>(&self, broker: &str, request: &R, versions: RangeInclusive<i16>) -> Result<R::Response> {
        let response = self.call_once(broker, request, versions).await;
        let mut known = self.0.known.lock();
        match &response {
            Ok(_) => known.has_answered(broker),
            // It is there, and as it is it stays.
            Err(e) if e.number() == NO_SUCH_REQUEST => {}
            Err(_) => known.has_failed(broker),
        }
        response
    }

    /// Asks the brokers one after the other until one answers; which one did.
    async fn call_any<R: Request>(&self, request: &R, versions: RangeInclusive<i16>) -> Result<(String, R::Response)> {
        let deadline = self.0.env.now() + self.0.options.retry_timeout;
        let order = self.0.known.lock().order();
        let mut last = None;
        for broker in order {
            match self.call(&broker, request, versions.clone()).await {
                Ok(response) => return Ok((broker, response)),
                Err(e) => last = Some(e),
            }
            // There may be many, and each may take its time.
            if self.0.env.now() >= deadline {
                break;
            }
        }
        Err(last.unwrap_or_else(|| Error::config("no broker is named").code(1342)))
    }

    /// One request to the coordinator of `key`; which broker that is. `code`: the error in the answer, 0 for none.
    async fn call_coordinator<R: Request>(
        &self,
        (of, key): (Coordinates, &str),
        request: &R,
        versions: RangeInclusive<i16>,
        code: impl Fn(&R::Response) -> i16,
    ) -> Result<(String, R::Response)> {
        let broker = self.coordinator(of, key).await?;
        let response = self.call(&broker, request, versions).await?;
        let moved = [ResponseError::NotCoordinator, ResponseError::CoordinatorNotAvailable];
        if moved.iter().any(|e| e.code() == code(&response)) {
            self.0.known.lock().has_moved(of, key);
        }
        Ok((broker, response))
    }

    /// The broker that looks after a group or a transactional id.
    async fn coordinator(&self, of: Coordinates, key: &str) -> Result<String> {
        let known = self.0.known.lock().coordinator(of, key);
        if let Some(broker) = known {
            return Ok(broker);
        }
        let (what, key_type) = match of {
            Coordinates::Group => ("group", 0),
            Coordinates::Transaction => ("transactional id", 1),
        };
        let request =
            FindCoordinatorRequest::default().with_key(StrBytes::from_string(key.to_owned())).with_key_type(key_type);
        let (broker, response) = self.call_any(&request, 1..=3).await?;
        if let Some(error) = ResponseError::try_from_code(response.error_code) {
            return Err(refused(&broker, &format!("to name the coordinator of {what} '{key}'"), error));
        }
        let found = format!("{}:{}", response.host.as_str(), response.port);
        self.0.known.lock().coordinates(&found, of, key);
        Ok(found)
    }

    async fn call_once<R: Request>(
        &self,
        broker: &str,
        request: &R,
        versions: RangeInclusive<i16>,
    ) -> Result<R::Response> {
        let inner = &self.0;
        let what = format!("a request to broker {broker}");
        inner
            .env
            .timeout(inner.options.request_timeout, &what, async {
                let now = inner.env.now();
                let idle = inner.idle.lock().get_mut(broker).and_then(|idle| {
                    idle.retain(|open| open.ends.is_none_or(|ends| now < ends));
                    idle.pop()
                });
                let mut open = match idle {
                    Some(open) => open,
                    None => {
                        inner.known.lock().is_asked(broker);
                        self.open(broker).await?
                    }
                };
                let response = open.ask(broker, request, versions).await?;
                inner.idle.lock().entry(broker.to_owned()).or_default().push(open);
                Ok(response)
            })
            .await?
    }

    /// A connection, with what the broker understands.
    async fn open(&self, broker: &str) -> Result<Open> {
        let security = &self.0.options.security;
        let link = self.0.dial.dial(broker, security.tls.as_ref()).await?;
        let mut open = Open { link, versions: BTreeMap::new(), id: 0, ends: None };
        if let Some(sasl) = &security.sasl {
            open.ends = sasl::authenticate(&self.0.env, &mut open, broker, sasl).await?;
        }
        let request = ApiVersionsRequest::default()
            .with_client_software_name(StrBytes::from_static_str("millstream"))
            .with_client_software_version(StrBytes::from_static_str(env!("CARGO_PKG_VERSION")));
        // Version 3 came with Apache Kafka 2.4; a broker that knows none of it answers in version 0 all the same.
        let response: ApiVersionsResponse = open.send(broker, &request, 3).await?;
        if let Some(error) = ResponseError::try_from_code(response.error_code) {
            return Err(refused(broker, "to say which requests it knows", error)
                .next("Apache Kafka 2.8 and later are supported, and what speaks the same protocol"));
        }
        open.versions = response.api_keys.iter().map(|k| (k.api_key, k.min_version..=k.max_version)).collect();
        Ok(open)
    }

    /// Tries until it is done, an error is no passing one, or the time is up; then the last error.
    async fn insist<T, F: Future<Output = Result<T>>>(&self, mut attempt: impl FnMut() -> F) -> Result<T> {
        let deadline: Moment = self.0.env.now() + self.0.options.retry_timeout;
        loop {
            match attempt().await {
                Err(e) if e.kind() == ErrorKind::Unavailable && self.0.env.now() < deadline => {
                    tracing::debug!("asking brokers again: {e}");
                    self.0.env.sleep(PAUSE).await;
                }
                done => return done,
            }
        }
    }
}

impl Open {
    async fn ask<R: Request>(
        &mut self,
        broker: &str,
        request: &R,
        versions: RangeInclusive<i16>,
    ) -> Result<R::Response> {
        let theirs = self.versions.get(&R::KEY);
        let version = theirs.map(|theirs| *versions.end().min(theirs.end()));
        let Some(version) = version.filter(|v| versions.contains(v) && theirs.is_some_and(|t| t.contains(v))) else {
            let name = ApiKey::try_from(R::KEY).map_or_else(|()| R::KEY.to_string(), |key| format!("{key:?}"));
            return Err(Error::config(format!(
                "the broker has no request {name} that is understood here: versions {theirs:?}, wanted {versions:?}"
            ))
            .code(NO_SUCH_REQUEST)
            .at(broker)
            .next("Apache Kafka 2.8 and later are supported, and what speaks the same protocol"));
        };
        self.send(broker, request, version).await
    }

    async fn send<R: Request>(&mut self, broker: &str, request: &R, version: i16) -> Result<R::Response> {
        self.id = self.id.wrapping_add(1);
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.id)
            .with_client_id(Some(StrBytes::from_static_str("millstream")));
        let mut out = BytesMut::new();
        header
            .encode(&mut out, R::header_version(version))
            .and_then(|()| request.encode(&mut out, version))
            .map_err(|e| Error::internal(format!("a request that cannot be encoded: {e}")).code(9140))?;
        let answer = self.link.exchange(out.freeze()).await?;
        self.decode::<R>(answer, version)
            .map_err(|e| Error::unavailable(format!("an answer that is none: {e}")).code(2403).at(broker))
    }

    fn decode<R: Request>(&self, mut answer: Bytes, version: i16) -> Result<R::Response, String> {
        let header_version = <R::Response as HeaderVersion>::header_version(version);
        let header = ResponseHeader::decode(&mut answer, header_version).map_err(|e| e.to_string())?;
        if header.correlation_id != self.id {
            return Err(format!("it belongs to request {}, not {}", header.correlation_id, self.id));
        }
        debug_assert!(R::Response::VERSIONS.max >= version);
        R::Response::decode(&mut answer, version).map_err(|e| e.to_string())
    }
}
