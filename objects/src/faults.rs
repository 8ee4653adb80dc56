//! A backend with faults from a seed, around any other backend.
//!
//! What happens to a request is drawn when it comes in, from [`Faults`] and the [`Env`]'s randomness, so a seed repeats
//! it. A write that was sent goes on without its sender: it runs in a task of its own, lands although the sender was
//! killed or saw an error, and may land long after. Hand over an environment that lives as long as the store, not that
//! of one node, or a killed node would take its writes along.
//!
//! It never damages content, never loses a confirmed write and never applies a write twice.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use millstream_common::env::Moment;
use millstream_common::{Env, Lane};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, GetResultPayload, ListResult, MultipartId, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;

use crate::failure::Injected;

mod uploads;

/// Which faults happen, and how often. The default has none. Probabilities run from 0 to 1 and are tried in the order
/// in which they stand here; the first that hits decides.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Faults {
    /// Half of the requests take up to this long.
    pub latency_p50: Duration,
    /// 99 in 100 requests take up to this long, the others up to twice as long.
    pub latency_p99: Duration,
    /// Every request fails at once: the store cannot be reached.
    pub unreachable: bool,
    /// Any request: 503 SlowDown, without effect.
    pub throttle: f64,
    /// Any request: an error, without effect.
    pub error_before: f64,
    /// A write: an error although it took effect.
    pub error_after: f64,
    /// A write: an error, and it takes effect later, up to [`Faults::late_by`] after it was sent.
    pub late_write: f64,
    /// See [`Faults::late_write`].
    pub late_by: Duration,
    /// A create-if-absent: 409, without effect, whether or not there is an object.
    pub conflict: f64,
    /// Any request: never an answer. Every other such write takes effect.
    pub hang: f64,
    /// A read: the body comes in eight parts, with [`Faults::stream_pause`] before each.
    pub slow_stream: f64,
    /// See [`Faults::slow_stream`].
    pub stream_pause: Duration,
    /// A read or a listing: breaks off half-way.
    pub cut_stream: f64,
    /// An upload in parts: after up to three parts the store has forgotten it.
    pub torn_upload: f64,
    /// The end of an upload in parts: an error although the object is there. What hits any write hits it as well.
    pub lost_completion: f64,
    /// The end of an upload in parts: an error, and the object appears later, up to [`Faults::late_by`] after it.
    pub late_completion: f64,
    /// The store serves so many requests a second and refuses the others (503 SlowDown); 0 for any number. A fifth of a
    /// second's worth may come at once.
    pub requests_per_s: f64,
    /// Only requests whose path contains this; empty for all. Latency, [`Faults::unreachable`] and
    /// [`Faults::requests_per_s`] hit all the same.
    pub only_paths_with: String,
}

impl Faults {
    /// No faults.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The latency of S3 Standard for small objects: 28 ms at the median, 80 ms at the 99th percentile.
    #[must_use]
    pub fn s3_latency() -> Self {
        Self { latency_p50: Duration::from_millis(28), latency_p99: Duration::from_millis(80), ..Self::none() }
    }

    /// A bad day: everything that can happen happens to about `rate` of the requests.
    #[must_use]
    pub fn bad_day(rate: f64) -> Self {
        Self {
            throttle: rate,
            error_before: rate,
            error_after: rate,
            late_write: rate,
            late_by: Duration::from_secs(60),
            conflict: rate,
            hang: rate / 4.0,
            slow_stream: rate,
            stream_pause: Duration::from_millis(500),
            cut_stream: rate,
            torn_upload: rate,
            lost_completion: rate,
            late_completion: rate,
            ..Self::s3_latency()
        }
    }
}

/// How often each fault has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InjectedFaults {
    /// Requests that were throttled.
    pub throttled: u64,
    /// Requests that failed without effect, unreachable ones included.
    pub errors_before: u64,
    /// Writes that took effect and failed.
    pub errors_after: u64,
    /// Writes that failed and took effect later.
    pub late_writes: u64,
    /// Conditional writes that were refused with 409.
    pub conflicts: u64,
    /// Requests without an answer.
    pub hangs: u64,
    /// Reads with a slow body.
    pub slow_streams: u64,
    /// Bodies and listings that broke off.
    pub cut_streams: u64,
    /// Uploads in parts that were forgotten.
    pub torn_uploads: u64,
}

/// Where torn uploads are counted: they are no fate of a single request.
const TORN: usize = 8;

/// A backend around another one, with faults. Cheap to clone; clones are the same store.
#[derive(Clone)]
pub struct FaultyStore(Arc<Inner>);

struct Inner {
    store: Arc<dyn ObjectStore>,
    uploads: Option<Arc<dyn MultipartStore>>,
    /// How many more parts each torn upload takes.
    torn: Mutex<BTreeMap<MultipartId, u64>>,
    room: Mutex<Room>,
    env: Env,
    faults: Mutex<Faults>,
    counts: [AtomicU64; Fate::KINDS],
}

/// Requests that may come before the store is full: a token bucket.
#[derive(Debug, Default)]
struct Room {
    requests: f64,
    at: Moment,
}

impl Room {
    /// Whether a request finds room at `now`.
    fn take(&mut self, per_s: f64, now: Moment) -> bool {
        let filled = self.requests + now.since(self.at).as_secs_f64() * per_s;
        self.requests = filled.min((per_s / 5.0).max(1.0));
        self.at = now;
        let free = self.requests >= 1.0;
        if free {
            self.requests -= 1.0;
        }
        free
    }
}

/// What happens to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Fine,
    Throttled,
    ErrorBefore,
    ErrorAfter,
    Late(Duration),
    Conflict,
    Hang { applied: bool },
    SlowStream(Duration),
    CutStream,
    Unreachable,
}

impl Fate {
    const KINDS: usize = 9;

    fn counter(self) -> Option<usize> {
        match self {
            Self::Fine => None,
            Self::Throttled => Some(0),
            Self::ErrorBefore | Self::Unreachable => Some(1),
            Self::ErrorAfter => Some(2),
            Self::Late(_) => Some(3),
            Self::Conflict => Some(4),
            Self::Hang { .. } => Some(5),
            Self::SlowStream(_) => Some(6),
            Self::CutStream => Some(7),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// No body comes back.
    Other,
    Read,
    List,
    Write,
    Create,
    /// The end of an upload in parts.
    Complete,
}

/// What happens to a request, and how long it takes on its way there and back.
struct Plan {
    fate: Fate,
    there: Duration,
    back: Duration,
}

impl FaultyStore {
    /// A store that hands everything to `store`, with `faults`.
    #[must_use]
    pub fn new(store: Arc<dyn ObjectStore>, env: &Env, faults: Faults) -> Self {
        Self::around(store, None, env, faults)
    }

    /// As [`FaultyStore::new`], with uploads in parts.
    #[must_use]
    pub fn with_uploads<B: ObjectStore + MultipartStore>(store: Arc<B>, env: &Env, faults: Faults) -> Self {
        Self::around(store.clone(), Some(store), env, faults)
    }

    fn around(
        store: Arc<dyn ObjectStore>,
        uploads: Option<Arc<dyn MultipartStore>>,
        env: &Env,
        faults: Faults,
    ) -> Self {
        Self(Arc::new(Inner {
            store,
            uploads,
            torn: Mutex::default(),
            room: Mutex::default(),
            env: env.clone(),
            faults: Mutex::new(faults),
            counts: Default::default(),
        }))
    }

    /// Changes the faults for the requests that come from now on.
    pub fn set(&self, faults: Faults) {
        *self.0.faults.lock() = faults;
    }

    /// The faults as they are now.
    #[must_use]
    pub fn faults(&self) -> Faults {
        self.0.faults.lock().clone()
    }

    /// How often each fault has happened.
    #[must_use]
    pub fn injected(&self) -> InjectedFaults {
        let n = |i: usize| self.0.counts[i].load(Ordering::Relaxed);
        InjectedFaults {
            throttled: n(0),
            errors_before: n(1),
            errors_after: n(2),
            late_writes: n(3),
            conflicts: n(4),
            hangs: n(5),
            slow_streams: n(6),
            cut_streams: n(7),
            torn_uploads: n(TORN),
        }
    }

    fn plan(&self, kind: Kind, path: &str) -> Plan {
        let env = &self.0.env;
        let faults = self.0.faults.lock();
        let full = faults.requests_per_s > 0.0 && !self.0.room.lock().take(faults.requests_per_s, env.now());
        let fate = match (faults.unreachable, full) {
            (true, _) => Fate::Unreachable,
            (_, true) => Fate::Throttled,
            _ => draw(env, &faults, kind, path),
        };
        if let Some(i) = fate.counter() {
            self.0.counts[i].fetch_add(1, Ordering::Relaxed);
        }
        let latency = latency(env, &faults);
        Plan { fate, there: latency / 2, back: latency / 2 }
    }

    async fn wait(&self, duration: Duration) {
        if !duration.is_zero() {
            self.0.env.sleep(duration).await;
        }
    }

    /// Waits out `plan`; `Ok` when the request may go to the store behind.
    async fn before_read(&self, plan: &Plan) -> Result<()> {
        if plan.fate != Fate::Unreachable {
            self.wait(plan.there + plan.back).await;
        }
        match plan.fate {
            Fate::Fine | Fate::SlowStream(_) | Fate::CutStream => Ok(()),
            Fate::Hang { .. } => std::future::pending().await,
            Fate::Throttled => Err(error(Injected::SlowDown)),
            Fate::Conflict => Err(conflict("")),
            Fate::Unreachable => Err(error(Injected::Unreachable)),
            Fate::ErrorBefore | Fate::ErrorAfter | Fate::Late(_) => Err(error(Injected::Reset)),
        }
    }

    /// Runs `write` as `plan` says, in a task that outlives the caller.
    async fn write<T: Send + 'static>(
        &self,
        plan: Plan,
        path: &Path,
        write: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        match plan.fate {
            Fate::Fine if plan.there.is_zero() => write.await,
            Fate::Fine => {
                let done = self.detach(plan.there, write);
                let result = done.await.map_err(|_| error(Injected::Reset))?;
                self.wait(plan.back).await;
                result
            }
            Fate::ErrorAfter => {
                // Whatever it came to: the answer is lost.
                let _ = self.detach(plan.there, write).await;
                self.wait(plan.back).await;
                Err(error(Injected::Reset))
            }
            Fate::Late(by) => {
                drop(self.detach(plan.there + by, write));
                self.wait(plan.there + plan.back).await;
                Err(error(Injected::Reset))
            }
            Fate::Hang { applied } => {
                if applied {
                    drop(self.detach(plan.there, write));
                }
                std::future::pending().await
            }
            Fate::Conflict => {
                self.wait(plan.there + plan.back).await;
                Err(conflict(path.as_ref()))
            }
            Fate::Throttled | Fate::ErrorBefore | Fate::Unreachable | Fate::SlowStream(_) | Fate::CutStream => {
                self.before_read(&plan).await?;
                Err(error(Injected::Reset))
            }
        }
    }

    fn detach<T: Send + 'static>(
        &self,
        after: Duration,
        write: impl Future<Output = Result<T>> + Send + 'static,
    ) -> tokio::sync::oneshot::Receiver<Result<T>> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let wait = self.0.env.sleep(after);
        self.0.env.spawn(Lane::Io, "write on its way", async move {
            wait.await;
            // A sender that is gone wants no result.
            let _ = tx.send(write.await);
        });
        rx
    }
}

fn draw(env: &Env, faults: &Faults, kind: Kind, path: &str) -> Fate {
    if !path.contains(&faults.only_paths_with) {
        return Fate::Fine;
    }
    let hit = |probability| hits(env, probability);
    let writes = matches!(kind, Kind::Write | Kind::Create | Kind::Complete);
    if hit(faults.throttle) {
        Fate::Throttled
    } else if hit(faults.error_before) {
        Fate::ErrorBefore
    } else if writes && hit(faults.error_after) {
        Fate::ErrorAfter
    } else if writes && hit(faults.late_write) {
        Fate::Late(up_to(env, faults.late_by))
    } else if kind == Kind::Create && hit(faults.conflict) {
        Fate::Conflict
    } else if kind == Kind::Complete && hit(faults.lost_completion) {
        Fate::ErrorAfter
    } else if kind == Kind::Complete && hit(faults.late_completion) {
        Fate::Late(up_to(env, faults.late_by))
    } else if hit(faults.hang) {
        Fate::Hang { applied: env.random_below(2) == 0 }
    } else if kind == Kind::Read && hit(faults.slow_stream) {
        Fate::SlowStream(faults.stream_pause)
    } else if matches!(kind, Kind::Read | Kind::List) && hit(faults.cut_stream) {
        Fate::CutStream
    } else {
        Fate::Fine
    }
}

/// No randomness is used up for what never happens.
fn hits(env: &Env, probability: f64) -> bool {
    probability > 0.0 && ((env.random() >> 11) as f64) < probability * (1_u64 << 53) as f64
}

fn up_to(env: &Env, limit: Duration) -> Duration {
    Duration::from_nanos(env.random_below(limit.as_nanos() as u64 + 1))
}

/// Half of the requests between half the median and the median, then up to the 99th percentile with a falling density,
/// the rest up to twice that.
fn latency(env: &Env, faults: &Faults) -> Duration {
    let (p50, p99) = (faults.latency_p50, faults.latency_p99.max(faults.latency_p50));
    if p99.is_zero() {
        return Duration::ZERO;
    }
    match env.random_below(100) {
        0..50 => p50 / 2 + up_to(env, p50 / 2),
        // The smaller of two draws: more near the median than near the tail.
        50..99 => p50 + up_to(env, p99 - p50).min(up_to(env, p99 - p50)),
        _ => p99 + up_to(env, p99),
    }
}

fn error(injected: Injected) -> object_store::Error {
    object_store::Error::Generic { store: "faults", source: Box::new(injected) }
}

fn conflict(path: &str) -> object_store::Error {
    object_store::Error::AlreadyExists { path: path.to_owned(), source: Box::new(Injected::Conflict) }
}

impl fmt::Debug for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyStore").field("store", &self.0.store).field("faults", &self.faults()).finish()
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} with faults", self.0.store)
    }
}

#[async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let kind = if options.mode == PutMode::Create { Kind::Create } else { Kind::Write };
        let plan = self.plan(kind, location.as_ref());
        let (store, to) = (self.0.store.clone(), location.clone());
        self.write(plan, location, async move { store.put_opts(&to, payload, options).await }).await
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        let plan = self.plan(Kind::Other, location.as_ref());
        self.before_read(&plan).await?;
        self.0.store.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let plan = self.plan(if options.head { Kind::Other } else { Kind::Read }, location.as_ref());
        self.before_read(&plan).await?;
        let result = self.0.store.get_opts(location, options).await?;
        let (parts, pause, cut) = match plan.fate {
            Fate::SlowStream(pause) => (8, pause, false),
            Fate::CutStream => (2, Duration::ZERO, true),
            _ => return Ok(result),
        };
        let (meta, range, attributes) = (result.meta.clone(), result.range.clone(), result.attributes.clone());
        let extensions = result.extensions.clone();
        let body = in_parts(self.0.env.clone(), result.bytes().await?, parts, pause, cut);
        Ok(GetResult { payload: GetResultPayload::Stream(body), meta, range, attributes, extensions })
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        let plan = self.plan(Kind::Other, location.as_ref());
        self.before_read(&plan).await?;
        self.0.store.get_ranges(location, ranges).await
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let this = self.clone();
        locations
            .and_then(move |location| {
                let this = this.clone();
                async move {
                    let plan = this.plan(Kind::Write, location.as_ref());
                    let (store, gone) = (this.0.store.clone(), location.clone());
                    this.write(plan, &location, async move { store.delete(&gone).await }).await?;
                    Ok(location)
                }
            })
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.cloned().unwrap_or_default();
        let all = { self.0.store.list(Some(&prefix)) };
        self.listing(&prefix, all)
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.cloned().unwrap_or_default();
        let all = self.0.store.list_with_offset(Some(&prefix), offset);
        self.listing(&prefix, all)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let plan = self.plan(Kind::Other, prefix.map_or("", AsRef::as_ref));
        self.before_read(&plan).await?;
        self.0.store.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let plan = self.plan(Kind::Write, to.as_ref());
        let (store, source, target) = (self.0.store.clone(), from.clone(), to.clone());
        self.write(plan, to, async move { store.copy_opts(&source, &target, options).await }).await
    }
}

impl FaultyStore {
    /// `all`, once the plan lets it through; half of it and an error when it is cut.
    fn listing(
        &self,
        prefix: &Path,
        all: BoxStream<'static, Result<ObjectMeta>>,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let (this, plan) = (self.clone(), self.plan(Kind::List, prefix.as_ref()));
        stream::once(async move {
            this.before_read(&plan).await?;
            let mut found: Vec<Result<ObjectMeta>> = all.collect().await;
            if plan.fate == Fate::CutStream {
                found.truncate(found.len() / 2);
                found.push(Err(error(Injected::Reset)));
            }
            Ok::<_, object_store::Error>(stream::iter(found))
        })
        .try_flatten()
        .boxed()
    }
}

/// `body` in `parts`, with a pause before each; an error after half of them when `cut`.
fn in_parts(env: Env, body: Bytes, parts: usize, pause: Duration, cut: bool) -> BoxStream<'static, Result<Bytes>> {
    let size = body.len().div_ceil(parts).max(1);
    let mut chunks: Vec<Result<Bytes>> =
        (0..body.len()).step_by(size).map(|at| Ok(body.slice(at..(at + size).min(body.len())))).collect();
    if cut {
        chunks.truncate(chunks.len() / 2);
        chunks.push(Err(error(Injected::Reset)));
    }
    stream::iter(chunks)
        .then(move |chunk| {
            let wait = (!pause.is_zero()).then(|| env.sleep(pause));
            async move {
                if let Some(wait) = wait {
                    wait.await;
                }
                chunk
            }
        })
        .boxed()
}
