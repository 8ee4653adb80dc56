//! One attempt at a request, and the loop that repeats it.
//!
//! Order of events of an attempt: wait for a turn of the limiter when the store throttles, wait the injected latency,
//! count the request, send it, give it up after the request time-out, tell the limiter what the answer says. A
//! repetition waits first: exponential back-off with jitter, four times as long when the store throttles. Time spent
//! waiting for turns does not count against the retry time-out: it is ours, not the store's. All time and randomness
//! come from [`Env`], so that a simulation repeats what production does.
//!
//! It never repeats what a person must repair, nor a conditional write: that loop belongs to its caller, who knows what
//! an ambiguous result means.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use millstream_common::env::BoxFuture;
use millstream_common::{Env, Error, Lane, Result};
use object_store::multipart::MultipartStore;
use object_store::{GetResult, GetResultPayload, ObjectStore};

use crate::failure::{Failure, Scheme, Trouble, classify};
use crate::limiter::{Changed, Limiter, Pressure, RequestClass};
use crate::meter::{Meter, Operation, Purpose};
use crate::options::StoreOptions;

/// A body is sent at least this fast, else its attempt is given up.
const BYTES_PER_SECOND_MIN: u64 = 1 << 20;
/// Warn about a request in trouble when it has waited this long, and again after each doubling.
const WARN_AFTER: Duration = Duration::from_secs(5);

/// What all handles of one opened store share.
pub(crate) struct Backend {
    pub(crate) store: Arc<dyn ObjectStore>,
    /// The URL without a trailing slash.
    pub(crate) url: String,
    pub(crate) scheme: Scheme,
    pub(crate) options: StoreOptions,
    pub(crate) env: Env,
    /// Uploads in parts, where the store has them apart from whole writes.
    pub(crate) uploads: Option<Arc<dyn MultipartStore>>,
    /// Whether the store says that it honours create-if-absent.
    pub(crate) creates_if_absent: bool,
    limiter: Limiter,
}

/// What a request is, for its account and for messages.
#[derive(Clone, Copy)]
pub(crate) struct Request<'a> {
    pub(crate) operation: Operation,
    pub(crate) purpose: Purpose,
    pub(crate) meter: &'a Meter,
    /// The whole URL of the object.
    pub(crate) at: &'a str,
    /// The body to be sent.
    pub(crate) bytes: u64,
}

/// What a repeated request came to.
pub(crate) enum Reply<T> {
    Done(T),
    Absent,
    BeyondEnd(String),
}

/// Why an attempt failed, before it is classified.
pub(crate) enum AttemptError {
    Store(object_store::Error),
    /// It made no progress for this long.
    Slow(Duration),
    /// The body ended early.
    Short {
        wanted: u64,
        got: u64,
    },
    /// The task that ran it is gone.
    Gone(Error),
}

impl From<object_store::Error> for AttemptError {
    fn from(e: object_store::Error) -> Self {
        Self::Store(e)
    }
}

/// A future that makes one attempt.
pub(crate) type Attempt<T> = BoxFuture<'static, Result<T, AttemptError>>;

impl Backend {
    pub(crate) fn new(
        store: Arc<dyn ObjectStore>,
        url: String,
        scheme: Scheme,
        options: StoreOptions,
        env: Env,
    ) -> Self {
        let limiter = Limiter::default();
        Self { store, url, scheme, options, env, uploads: None, creates_if_absent: true, limiter }
    }

    /// The present limit of the store, requests a second; `None`: it does not throttle.
    pub(crate) fn limit(&self, class: RequestClass) -> Option<f64> {
        self.limiter.limit(class)
    }

    /// Makes one attempt.
    pub(crate) async fn once<T: Send + 'static>(
        &self,
        request: Request<'_>,
        attempt: Attempt<T>,
    ) -> Result<T, Failure> {
        self.wait_for_turn(request).await;
        self.send(request, attempt).await
    }

    /// Sends an attempt whose turn it is.
    async fn send<T: Send + 'static>(&self, request: Request<'_>, attempt: Attempt<T>) -> Result<T, Failure> {
        self.wait_injected().await;
        let class = RequestClass::of(request.operation);
        request.meter.count_requests(request.operation, request.purpose, 1);
        if request.operation == Operation::Put {
            request.meter.count_bytes(request.operation, request.purpose, request.bytes);
        }
        let sent_at = self.env.now();
        self.limiter.sent(class, sent_at);
        let result = match self.scheme {
            // No network: nothing to gain from another thread.
            Scheme::Memory | Scheme::File | Scheme::Other => attempt.await,
            // Connections live where their requests are first polled: never on a thread that computes.
            _ => self.env.run(Lane::Io, "object request", attempt).await.unwrap_or_else(|e| Err(AttemptError::Gone(e))),
        };
        let now = self.env.now();
        let result = result.map_err(|e| self.judge(e));
        let pressure = match &result {
            Err(Failure::Again(trouble)) => trouble.pressure,
            _ => Pressure::None,
        };
        if pressure == Pressure::Throttled {
            request.meter.count_throttled();
        }
        let changed = match (&result, pressure) {
            (Err(Failure::Again(_)), Pressure::None) => None,
            (_, Pressure::None) => self.limiter.served(class, now),
            _ => self.limiter.refused(class, sent_at, now, self.quiet()),
        };
        if let Some(changed) = changed {
            self.tell(class, changed, request.meter);
        }
        result
    }

    /// Makes attempts until one succeeds, a person must repair something, or the retry time-out ends.
    pub(crate) async fn repeat<T: Send + 'static>(
        &self,
        request: Request<'_>,
        attempt: impl Fn() -> Attempt<T>,
    ) -> Result<Reply<T>> {
        let start = self.env.now();
        let (mut attempts, mut maybe, mut warn_after) = (0_u32, false, WARN_AFTER);
        let mut in_row = Duration::ZERO;
        loop {
            attempts += 1;
            in_row += self.wait_for_turn(request).await;
            let trouble = match self.send(request, attempt()).await {
                Ok(done) => return Ok(Reply::Done(done)),
                Err(Failure::Absent) => return Ok(Reply::Absent),
                Err(Failure::BeyondEnd(text)) => return Ok(Reply::BeyondEnd(text)),
                Err(Failure::Final(e)) if maybe => return Err(e.at(request.at).maybe_applied()),
                Err(Failure::Final(e)) => return Err(e.at(request.at)),
                Err(Failure::Exists) => Trouble::sent("the store says that it exists, which was not asked"),
                Err(Failure::Again(trouble)) => trouble,
            };
            maybe |= trouble.sent;
            let waited = self.env.now().since(start).saturating_sub(in_row);
            if waited >= self.options.retry_timeout {
                return Err(self.gave_up(request, attempts, waited, &trouble, maybe));
            }
            // The last attempt is made when the time is over.
            let wait = self
                .backoff(attempts, trouble.pressure == Pressure::Throttled)
                .min(self.options.retry_timeout - waited);
            if waited >= warn_after {
                warn_after = waited * 2;
                tracing::warn!(at = request.at, attempts, cause = %trouble.cause, "the object store is in trouble, trying again");
            }
            request.meter.count_retry();
            self.env.sleep(wait).await;
        }
    }

    /// The error for an attempt that is not repeated here, as of a conditional write.
    pub(crate) fn unrepeated(&self, request: Request<'_>, trouble: &Trouble) -> Error {
        let e = Error::unavailable(format!("the object store did not confirm the write ({})", trouble.cause))
            .code(2301)
            .at(request.at)
            .next("it is tried again while the retry time-out lasts");
        if trouble.sent { e.maybe_applied() } else { e }
    }

    /// `future`, given up after the request time-out and a second for each MiB of `bytes`.
    pub(crate) async fn in_time<T>(
        env: &Env,
        request_timeout: Duration,
        bytes: u64,
        future: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, AttemptError> {
        let limit = request_timeout + Duration::from_secs(bytes / BYTES_PER_SECOND_MIN);
        match env.timeout(limit, "the request", future).await {
            Ok(result) => result.map_err(AttemptError::Store),
            Err(_) => Err(AttemptError::Slow(limit)),
        }
    }

    fn judge(&self, e: AttemptError) -> Failure {
        match e {
            AttemptError::Store(e) => classify(&e, self.scheme, &self.url),
            AttemptError::Slow(limit) => Failure::Again(Trouble::sent(format!("no answer within {limit:?}"))),
            AttemptError::Short { wanted, got } => {
                Failure::Again(Trouble::sent(format!("the body ended after {got} of {wanted} bytes")))
            }
            AttemptError::Gone(e) => Failure::Again(Trouble::sent(e.to_string())),
        }
    }

    pub(crate) fn gave_up(
        &self,
        request: Request<'_>,
        attempts: u32,
        waited: Duration,
        trouble: &Trouble,
        maybe: bool,
    ) -> Error {
        let e = Error::unavailable(format!(
            "the object store did not serve a {} request in {attempts} attempts over {:.1} s; the last one: {}",
            request.operation.name(),
            waited.as_secs_f64(),
            trouble.cause
        ))
        .code(2300)
        .at(request.at)
        .next("check that the store can be reached; object-store.retry-timeout sets how long to try");
        if maybe { e.maybe_applied() } else { e }
    }

    /// Waits before the repetition number `attempts` of something that is more than one request.
    pub(crate) async fn pause(&self, attempts: u32) {
        self.env.sleep(self.backoff(attempts, false)).await;
    }

    /// Doubles from one attempt to the next; the upper half is random, so that clients do not come back together.
    fn backoff(&self, attempts: u32, throttled: bool) -> Duration {
        let factor = if throttled { 4 } else { 1 };
        let full = self
            .options
            .backoff_initial
            .saturating_mul(factor)
            .saturating_mul(1 << (attempts - 1).min(16))
            .min(self.options.backoff_max);
        self.jitter(full / 2, full / 2)
    }

    fn jitter(&self, least: Duration, spread: Duration) -> Duration {
        least + Duration::from_nanos(self.env.random_below(spread.as_nanos() as u64 + 1))
    }

    /// For how long nobody sends anything when a limit has fallen.
    fn quiet(&self) -> Duration {
        self.options.backoff_initial.saturating_mul(2).min(self.options.backoff_max)
    }

    /// Waits until the limiter lets the request go; says for how long.
    async fn wait_for_turn(&self, request: Request<'_>) -> Duration {
        // Deletes come by the thousand, and nobody waits for them.
        if request.purpose.is_urgent() && request.operation != Operation::Delete {
            return Duration::ZERO;
        }
        let class = RequestClass::of(request.operation);
        let mut waited = Duration::ZERO;
        loop {
            let turn = self.limiter.turn(class, self.env.now());
            request.meter.show_limit(class, turn.limit);
            if turn.wait.is_zero() {
                break;
            }
            waited += turn.wait;
            self.env.sleep(turn.wait).await;
            if self.limiter.holds(class, turn) {
                break;
            }
        }
        if !waited.is_zero() {
            request.meter.count_wait(waited);
        }
        waited
    }

    /// Shows a changed limit. A first one is a warning, the steps between are for those who look closely.
    fn tell(&self, class: RequestClass, changed: Changed, meter: &Meter) {
        meter.show_limit(class, changed.per_s);
        let (at, what) = (self.url.as_str(), class.name());
        match changed.per_s {
            Some(per_s) if changed.first => {
                tracing::warn!(at, "the object store throttles: {what} are limited to {per_s:.0} a second for now");
            }
            Some(per_s) => tracing::debug!(at, "{what} are limited to {per_s:.0} a second"),
            None => tracing::info!(at, "the object store no longer throttles: {what} go without a limit"),
        }
    }

    async fn wait_injected(&self) {
        let latency = self.options.inject_latency;
        if !latency.is_zero() {
            let slow = self.env.random_below(100) == 0;
            self.env.sleep(if slow { latency * 3 } else { self.jitter(latency, latency / 10) }).await;
        }
    }
}

/// The body of `result`; an attempt is given up when nothing comes for `request_timeout`.
pub(crate) async fn read_body(env: &Env, request_timeout: Duration, result: GetResult) -> Result<Bytes, AttemptError> {
    let wanted = result.range.end - result.range.start;
    let body = match result.payload {
        GetResultPayload::Stream(mut stream) => {
            let (mut first, mut rest) = (Bytes::new(), BytesMut::new());
            loop {
                let next = env.timeout(request_timeout, "the next part of the body", stream.next()).await;
                match next.map_err(|_| AttemptError::Slow(request_timeout))? {
                    None => break,
                    Some(chunk) if first.is_empty() => first = chunk?,
                    Some(chunk) => {
                        if rest.is_empty() {
                            rest.reserve(wanted as usize);
                            rest.extend_from_slice(&first);
                        }
                        rest.extend_from_slice(&chunk?);
                    }
                }
            }
            if rest.is_empty() { first } else { rest.freeze() }
        }
        GetResultPayload::File(..) => Backend::in_time(env, request_timeout, wanted, result.bytes()).await?,
    };
    if body.len() as u64 == wanted { Ok(body) } else { Err(AttemptError::Short { wanted, got: body.len() as u64 }) }
}
