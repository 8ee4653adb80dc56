//! A node: everything that one process of the cluster has spawned. It can be killed at any moment (all its futures are
//! dropped, none runs again) and paused (none is polled, wakes are remembered), as by SIGKILL and SIGSTOP.
//!
//! Replaces: the threads of a process ([`Spawn`]).

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use millstream_common::env::{BoxFuture, Moment, Spawn};
use millstream_common::{Env, Lane, TaskHandle};
use parking_lot::Mutex;

/// One life of a process.
#[derive(Clone)]
pub struct Node(Arc<State>);

struct State {
    name: String,
    env: Env,
    dead: AtomicBool,
    paused: AtomicBool,
    next: AtomicU64,
    tasks: Mutex<BTreeMap<u64, Task>>,
    parked: Mutex<Vec<Waker>>,
}

struct Task {
    slot: Arc<Slot>,
    name: &'static str,
    born: Moment,
}

struct Slot(Mutex<Option<BoxFuture<'static, ()>>>);

impl Slot {
    /// Drops the future, outside of the lock: what it holds may end other futures.
    fn clear(&self) {
        let future = self.0.lock().take();
        drop(future);
    }
}

impl Node {
    /// A process without futures; `env` is the time of the run.
    #[must_use]
    pub fn new(name: &str, env: Env) -> Self {
        Self(Arc::new(State {
            name: name.into(),
            env,
            dead: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            next: AtomicU64::new(0),
            tasks: Mutex::default(),
            parked: Mutex::default(),
        }))
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Drops all its futures. Nothing of it runs again.
    pub fn kill(&self) {
        self.0.dead.store(true, Ordering::Relaxed);
        let tasks = std::mem::take(&mut *self.0.tasks.lock());
        for task in tasks.into_values() {
            task.slot.clear();
        }
        self.resume();
    }

    /// Whether it was killed.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.0.dead.load(Ordering::Relaxed)
    }

    /// Whether a subtask lives that was started before `moment`.
    #[must_use]
    pub fn has_subtask_from_before(&self, moment: Moment) -> bool {
        self.0.tasks.lock().values().any(|t| t.name.ends_with("subtask") && t.born < moment)
    }

    /// None of its futures is polled until [`Node::resume`].
    pub fn pause(&self) {
        self.0.paused.store(true, Ordering::Relaxed);
    }

    /// Whether it stands still.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.0.paused.load(Ordering::Relaxed)
    }

    /// Its futures go on, those that were woken meanwhile in the order of their wakes.
    pub fn resume(&self) {
        self.0.paused.store(false, Ordering::Relaxed);
        let parked = std::mem::take(&mut *self.0.parked.lock());
        for waker in parked {
            waker.wake();
        }
    }
}

impl Spawn for Node {
    #[allow(clippy::disallowed_methods)] // this is the seam
    fn spawn(&self, _: Lane, name: &'static str, future: BoxFuture<'static, ()>) -> TaskHandle {
        if self.is_dead() {
            return TaskHandle::new(|| {});
        }
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let slot = Arc::new(Slot(Mutex::new(Some(future))));
        let born = self.0.env.now();
        self.0.tasks.lock().insert(id, Task { slot: slot.clone(), name, born });
        let task = tokio::spawn(Runner { node: self.0.clone(), id, slot }).abort_handle();
        TaskHandle::new(move || task.abort())
    }
}

/// What tokio polls for a future of the node.
struct Runner {
    node: Arc<State>,
    id: u64,
    slot: Arc<Slot>,
}

impl Future for Runner {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.node.paused.load(Ordering::Relaxed) {
            self.node.parked.lock().push(cx.waker().clone());
            return Poll::Pending;
        }
        let mut guard = self.slot.0.lock();
        let done = match guard.as_mut() {
            None => return Poll::Ready(()),
            Some(future) => future.as_mut().poll(cx),
        };
        drop(guard);
        if done.is_ready() {
            self.slot.clear();
        }
        done
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.node.tasks.lock().remove(&self.id);
        self.slot.clear();
    }
}
