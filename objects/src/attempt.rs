//! One attempt at a request, and the loop that repeats it.
//!
//! Order of events of an attempt: wait while the store asks for quiet, wait the injected latency, count the request,
//! send it, give it up after the request time-out. A repetition waits first: exponential back-off with jitter, four
//! times as long when the store throttles. All time and randomness come from [`Env`], so that a simulation repeats
//! what production does.
//!
//! It never repeats what a person must repair, nor a conditional write: that loop belongs to its caller, who knows what
//! an ambiguous result means.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use millstream_common::env::{BoxFuture, Moment};
use millstream_common::{Env, Error, Lane, Result};
use object_store::{GetResult, GetResultPayload, ObjectStore};
use parking_lot::Mutex;

use crate::failure::{Failure, Scheme, Trouble, classify};
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
    quiet_until: Mutex<Moment>,
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
        Self { store, url, scheme, options, env, quiet_until: Mutex::new(Moment::default()) }
    }

    /// Makes one attempt.
    pub(crate) async fn once<T: Send + 'static>(
        &self,
        request: Request<'_>,
        attempt: Attempt<T>,
    ) -> Result<T, Failure> {
        self.wait_for_quiet().await;
        self.wait_injected().await;
        request.meter.count_requests(request.operation, request.purpose, 1);
        if request.operation == Operation::Put {
            request.meter.count_bytes(request.operation, request.purpose, request.bytes);
        }
        let result = match self.scheme {
            // No network: nothing to gain from another thread.
            Scheme::Memory | Scheme::File | Scheme::Other => attempt.await,
            // Connections live where their requests are first polled: never on a thread that computes.
            _ => self.env.run(Lane::Io, "object request", attempt).await.unwrap_or_else(|e| Err(AttemptError::Gone(e))),
        };
        result.map_err(|e| {
            let failure = self.judge(e);
            if matches!(&failure, Failure::Again(t) if t.throttled) {
                self.ask_for_quiet();
            }
            failure
        })
    }

    /// Makes attempts until one succeeds, a person must repair something, or the retry time-out ends.
    pub(crate) async fn repeat<T: Send + 'static>(
        &self,
        request: Request<'_>,
        attempt: impl Fn() -> Attempt<T>,
    ) -> Result<Reply<T>> {
        let start = self.env.now();
        let (mut attempts, mut maybe, mut warn_after) = (0_u32, false, WARN_AFTER);
        loop {
            attempts += 1;
            let trouble = match self.once(request, attempt()).await {
                Ok(done) => return Ok(Reply::Done(done)),
                Err(Failure::Absent) => return Ok(Reply::Absent),
                Err(Failure::BeyondEnd(text)) => return Ok(Reply::BeyondEnd(text)),
                Err(Failure::Final(e)) if maybe => return Err(e.at(request.at).maybe_applied()),
                Err(Failure::Final(e)) => return Err(e.at(request.at)),
                Err(Failure::Exists) => Trouble::sent("the store says that it exists, which was not asked"),
                Err(Failure::Again(trouble)) => trouble,
            };
            maybe |= trouble.sent;
            let waited = self.env.now().since(start);
            if waited >= self.options.retry_timeout {
                return Err(self.gave_up(request, attempts, waited, &trouble, maybe));
            }
            // The last attempt is made when the time is over.
            let wait = self.backoff(attempts, trouble.throttled).min(self.options.retry_timeout - waited);
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

    fn gave_up(&self, request: Request<'_>, attempts: u32, waited: Duration, trouble: &Trouble, maybe: bool) -> Error {
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

    /// The store throttles: nobody sends anything for a moment.
    fn ask_for_quiet(&self) {
        let until = self.env.now() + self.options.backoff_initial.saturating_mul(2).min(self.options.backoff_max);
        let mut quiet_until = self.quiet_until.lock();
        *quiet_until = until.max(*quiet_until);
    }

    async fn wait_for_quiet(&self) {
        let now = self.env.now();
        let left = self.quiet_until.lock().since(now);
        if !left.is_zero() {
            self.env.sleep(self.jitter(left, left)).await;
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
