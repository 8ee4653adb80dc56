//! How a worker leaves: it is asked to, tells the coordinator, and is let go once others have taken over what it ran.
//!
//! Order of events: [`LeaveRequest::ask`]; a `Leave` on the session, or in the `Hello` of a later one; subtasks go on
//! elsewhere by a live rescale, or their jobs wait for slots; `LetGo`; the worker ends. The coordinator decides all of it
//! (`coordinator/master/drain.rs`); the worker only knows how long it may take. It never ends a subtask by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millstream_common::env::Moment;
use millstream_common::{Env, Error};
use millstream_proto::control::Leave;
use tokio::sync::Notify;

/// What follows the end of the wait for slots (a last checkpoint, and being let go) may take so long.
pub(super) const GRACE: Duration = Duration::from_secs(4);

/// Asks a worker to leave. Clones ask the same worker.
#[derive(Clone, Debug, Default)]
pub struct LeaveRequest(Arc<Asked>);

#[derive(Debug, Default)]
struct Asked {
    asked: AtomicBool,
    changed: Notify,
}

impl LeaveRequest {
    /// Asks; to ask again changes nothing.
    pub fn ask(&self) {
        self.0.asked.store(true, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }

    /// Whether it was asked.
    #[must_use]
    pub fn is_asked(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst)
    }

    /// Waits until it is asked.
    pub async fn asked(&self) {
        loop {
            let changed = self.0.changed.notified();
            if self.is_asked() {
                return;
            }
            changed.await;
        }
    }
}

/// How a worker left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Departure {
    /// Names of jobs that wait for slots: nobody could take over, or they waited already.
    pub waiting: Vec<String>,
}

/// Since when a worker is leaving.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Leaving {
    since: Option<Moment>,
}

impl Leaving {
    pub(super) fn begin(&mut self, env: &Env) {
        self.since.get_or_insert_with(|| env.now());
    }

    /// What a coordinator is told; `None` when the worker stays.
    pub(super) fn message(&self, env: &Env, timeout: Duration) -> Option<Leave> {
        let since = self.since?;
        let left = timeout.saturating_sub(env.now().since(since));
        Some(Leave { wait_ms: u64::try_from(left.as_millis()).unwrap_or(u64::MAX) })
    }
}

/// No coordinator was there to hand over to.
pub(super) fn unreachable(timeout: Duration) -> Error {
    Error::unavailable(format!("no coordinator could be reached for {timeout:?} to take over what this worker runs"))
        .code(7024)
        .next("its jobs restart from their newest version as soon as a coordinator leads and has slots for them")
}

/// A coordinator was there, and has not let the worker go.
pub(super) fn held(timeout: Duration) -> Error {
    Error::unavailable(format!("the coordinator has not let this worker go within {:?}", timeout + GRACE))
        .code(7025)
        .next("its jobs restart from their newest version; raise worker.drain-timeout to give them more time")
}
