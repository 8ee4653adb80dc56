//! The seam for everything that could differ between two runs of one seed: time, randomness and spawning.
//!
//! Production code gets an [`Env`] and uses nothing else; clippy bans the other ways. [`Runtimes`] run it on
//! tokio runtimes, compute apart from I/O. A simulation builds its own by [`Env::new`] from a [`Spawn`] that runs all
//! nodes in one thread under tokio's paused clock.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use rand::{RngCore, SeedableRng, rngs::SmallRng};

use crate::{Error, Result};

/// A boxed future that can move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Which threads a future runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// Connections, object I/O, timers, heart-beats, barriers: never blocks for long.
    Io,
    /// The subtasks: synchronous work on batches between awaits.
    Compute,
    /// Long CPU work that nobody waits for at once: encoding sections, compaction.
    Background,
}

/// What runs futures.
pub trait Spawn: Send + Sync {
    /// Starts `future` on the threads of `lane`. `name` is for traces.
    fn spawn(&self, lane: Lane, name: &'static str, future: BoxFuture<'static, ()>) -> TaskHandle;
}

/// A running future. Dropping the handle lets it run on.
pub struct TaskHandle {
    abort: Box<dyn Fn() + Send + Sync>,
}

impl TaskHandle {
    /// A handle that ends its future by calling `abort`.
    #[must_use]
    pub fn new(abort: impl Fn() + Send + Sync + 'static) -> Self {
        Self { abort: Box::new(abort) }
    }

    /// Drops the future at its next await.
    pub fn abort(&self) {
        (self.abort)();
    }
}

/// Ends its future when dropped.
pub struct AbortOnDrop(pub TaskHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A moment on the monotonic clock, as time since the process (or the simulation) started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(pub Duration);

impl Moment {
    /// The time from `earlier` to this moment; zero when `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Moment) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl std::ops::Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, d: Duration) -> Moment {
        Moment(self.0 + d)
    }
}

/// Time, randomness and spawning for one process. Cheap to clone.
#[derive(Clone)]
pub struct Env(Arc<EnvInner>);

struct EnvInner {
    origin: tokio::time::Instant,
    origin_wall_ms: i64,
    rng: Mutex<SmallRng>,
    spawn: Arc<dyn Spawn>,
    ticks: Ticks,
}

/// Time that passes because somebody looks at the clock; see [`Env::ticking`].
struct Ticks {
    each_ns: u64,
    passed_ns: AtomicU64,
}

impl Ticks {
    fn passed(&self) -> Duration {
        if self.each_ns == 0 {
            return Duration::ZERO;
        }
        Duration::from_nanos(self.passed_ns.fetch_add(self.each_ns, Ordering::Relaxed))
    }
}

impl Env {
    /// An environment whose clock starts now, at `wall_ms` milliseconds since 1970 (UTC), and whose randomness comes
    /// from `seed`. Must be called inside a tokio runtime; under a paused one, time is virtual.
    #[must_use]
    pub fn new(spawn: Arc<dyn Spawn>, seed: u64, wall_ms: i64) -> Self {
        Self::ticking(spawn, seed, wall_ms, Duration::ZERO)
    }

    /// The same with a clock that goes on by `tick` each time that it is read. A clock that stands still while code runs
    /// hides what happens when a moment passes between two looks at it; this one shows it, and is the same in each run.
    #[allow(clippy::disallowed_methods)] // this is the seam
    #[must_use]
    pub fn ticking(spawn: Arc<dyn Spawn>, seed: u64, wall_ms: i64, tick: Duration) -> Self {
        Self(Arc::new(EnvInner {
            ticks: Ticks { each_ns: tick.as_nanos() as u64, passed_ns: AtomicU64::new(0) },
            origin: tokio::time::Instant::now(),
            origin_wall_ms: wall_ms,
            rng: Mutex::new(SmallRng::seed_from_u64(seed)),
            spawn,
        }))
    }

    /// Time since this environment was made. Monotonic.
    #[allow(clippy::disallowed_methods)] // this is the seam
    #[must_use]
    pub fn now(&self) -> Moment {
        Moment(tokio::time::Instant::now() - self.0.origin + self.0.ticks.passed())
    }

    /// Wall-clock time in milliseconds since 1970 (UTC). For people and for processing-time semantics, never for
    /// a decision who is right.
    #[must_use]
    pub fn wall_ms(&self) -> i64 {
        self.0.origin_wall_ms + self.now().0.as_millis() as i64
    }

    /// Waits for `duration`.
    #[allow(clippy::disallowed_methods)] // this is the seam
    pub fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }

    /// The result of `future`, or an `Unavailable` error when `duration` ends first (the future is dropped then).
    #[allow(clippy::disallowed_methods)] // this is the seam
    pub async fn timeout<T>(&self, duration: Duration, what: &str, future: impl Future<Output = T>) -> Result<T> {
        tokio::time::timeout(duration, future)
            .await
            .map_err(|_| Error::unavailable(format!("{what} took longer than {duration:?}")).code(2001))
    }

    /// 64 random bits.
    #[must_use]
    pub fn random(&self) -> u64 {
        self.0.rng.lock().next_u64()
    }

    /// A random number below `n`; 0 when `n` is 0.
    #[must_use]
    pub fn random_below(&self, n: u64) -> u64 {
        if n == 0 { 0 } else { self.random() % n }
    }

    /// 128 random bits in hexadecimal, for names that are never used again.
    #[must_use]
    pub fn unique_id(&self) -> String {
        format!("{:016x}{:016x}", self.random(), self.random())
    }

    /// Starts `future` on the threads of `lane`.
    pub fn spawn(
        &self,
        lane: Lane,
        name: &'static str,
        future: impl Future<Output = ()> + Send + 'static,
    ) -> TaskHandle {
        self.0.spawn.spawn(lane, name, Box::pin(future))
    }

    /// Starts `future` on the threads of `lane`; awaiting what this returns gives its result, or `Canceled` when it
    /// was aborted or panicked. Dropping it aborts the future.
    pub fn run<T: Send + 'static>(
        &self,
        lane: Lane,
        name: &'static str,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Running<T> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let task = self.spawn(lane, name, async move {
            // A receiver that is gone wants no result.
            let _ = tx.send(future.await);
        });
        Running { rx, _task: AbortOnDrop(task), name }
    }

    /// Lets other futures of this thread run.
    pub async fn yield_now(&self) {
        tokio::task::yield_now().await;
    }
}

/// A future that runs elsewhere; see [`Env::run`].
pub struct Running<T> {
    rx: tokio::sync::oneshot::Receiver<T>,
    _task: AbortOnDrop,
    name: &'static str,
}

impl<T> Future for Running<T> {
    type Output = Result<T>;
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.rx)
            .poll(cx)
            .map(|r| r.map_err(|_| Error::canceled(format!("'{}' ended without a result", self.name))))
    }
}

/// Runs everything on the current tokio runtime, whatever the lane. For tests and small tools; under
/// `#[tokio::test(start_paused = true)]` time is virtual.
pub struct CurrentRuntime;

impl Spawn for CurrentRuntime {
    #[allow(clippy::disallowed_methods)] // this is the seam
    fn spawn(&self, _: Lane, _: &'static str, future: BoxFuture<'static, ()>) -> TaskHandle {
        let handle = tokio::spawn(future).abort_handle();
        TaskHandle::new(move || handle.abort())
    }
}

impl Env {
    /// [`CurrentRuntime`] with a fixed wall clock (2026-01-01T00:00:00Z). For tests.
    #[must_use]
    pub fn test(seed: u64) -> Self {
        Self::new(Arc::new(CurrentRuntime), seed, 1_767_225_600_000)
    }
}

/// Threads of a runtime for calls that block.
const BLOCKING_THREADS: usize = 8;

/// The runtimes of a production process: one per lane. Dropping it ends all of them without waiting.
pub struct Runtimes {
    io: Option<tokio::runtime::Runtime>,
    compute: Option<tokio::runtime::Runtime>,
    background: Option<tokio::runtime::Runtime>,
}

struct OnRuntimes {
    io: tokio::runtime::Handle,
    compute: tokio::runtime::Handle,
    background: tokio::runtime::Handle,
}

impl Spawn for OnRuntimes {
    fn spawn(&self, lane: Lane, _: &'static str, future: BoxFuture<'static, ()>) -> TaskHandle {
        let runtime = match lane {
            Lane::Io => &self.io,
            Lane::Compute => &self.compute,
            Lane::Background => &self.background,
        };
        let handle = runtime.spawn(future).abort_handle();
        TaskHandle::new(move || handle.abort())
    }
}

impl Runtimes {
    /// Starts the threads: `compute_threads` for subtasks, as many for background work, two for I/O.
    pub fn start(compute_threads: usize) -> Result<Self> {
        let build = |name: &'static str, threads: usize| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(threads.max(1))
                // Files of a local store and of the cache are read on these. tokio's own limit of 512 would let a burst
                // of reads start as many, each with buffers and an allocator's heap of its own.
                .max_blocking_threads(BLOCKING_THREADS)
                .thread_name(name)
                .enable_all()
                .build()
                .map_err(|e| Error::internal(format!("cannot start the {name} threads")).source(e))
        };
        Ok(Self {
            io: Some(build("ms-io", 2)?),
            compute: Some(build("ms-compute", compute_threads)?),
            background: Some(build("ms-background", compute_threads)?),
        })
    }

    /// The environment on these threads, with wall-clock time from the system and a seed from its entropy.
    #[allow(clippy::disallowed_methods)] // this is the seam
    #[must_use]
    pub fn env(&self) -> Env {
        let io = self.handle(&self.io);
        let spawn = OnRuntimes {
            io: io.clone(),
            compute: self.handle(&self.compute),
            background: self.handle(&self.background),
        };
        let wall = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let stack_address = std::ptr::from_ref(&spawn) as u64;
        let seed = crate::hash::stable_hash(
            &[wall.as_nanos() as u64, u64::from(std::process::id()), stack_address].map(u64::to_le_bytes).concat(),
        );
        let _inside = io.enter();
        Env::new(Arc::new(spawn), seed, wall.as_millis() as i64)
    }

    /// Runs `future` to its end on the I/O threads; the caller's thread waits.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.handle(&self.io).block_on(future)
    }

    fn handle(&self, runtime: &Option<tokio::runtime::Runtime>) -> tokio::runtime::Handle {
        // Taken only by drop.
        runtime.as_ref().expect("the runtime lives as long as this").handle().clone()
    }
}

impl Drop for Runtimes {
    fn drop(&mut self) {
        for r in [self.compute.take(), self.background.take(), self.io.take()].into_iter().flatten() {
            r.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_is_virtual_under_a_paused_clock() {
        let env = Env::test(7);
        let start = env.now();
        env.sleep(Duration::from_secs(3600)).await;
        assert_eq!(env.now().since(start), Duration::from_secs(3600));
        let slow = env.timeout(Duration::from_secs(1), "the test", std::future::pending::<()>()).await;
        assert!(slow.unwrap_err().to_string().contains("the test took longer than 1s"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticking_clock_goes_on_while_code_runs() {
        let tick = Duration::from_micros(3);
        let env = Env::ticking(Arc::new(CurrentRuntime), 7, 0, tick);
        let start = env.now();
        assert_eq!(env.now().since(start), tick);
        env.sleep(Duration::from_secs(1)).await;
        assert_eq!(env.now().since(start), Duration::from_secs(1) + 2 * tick);
    }

    #[tokio::test]
    async fn the_same_seed_gives_the_same_numbers() {
        let (a, b) = (Env::test(7), Env::test(7));
        assert_eq!(a.unique_id(), b.unique_id());
        assert_ne!(a.random(), Env::test(8).random());
    }

    #[tokio::test]
    async fn a_spawned_result_comes_back() {
        let env = Env::test(1);
        assert_eq!(env.run(Lane::Io, "seven", async { 7 }).await.unwrap(), 7);
    }
}
