//! What happened, as a running hash, and what must not have happened.
//!
//! Every delivery of a message, every request to the object store and every fault goes through [`Trace::event`]. Two
//! runs of one seed are the same run when their hashes are.

use std::sync::Arc;

use millstream_common::Env;
use millstream_common::hash::stable_hash;
use parking_lot::Mutex;

/// The record of one run. Clones share it.
#[derive(Clone)]
pub struct Trace(Arc<Inner>);

struct Inner {
    env: Env,
    print: bool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    hash: u64,
    events: u64,
    violations: Vec<String>,
}

impl Trace {
    /// An empty record; with `print`, every event goes to stdout as well.
    #[must_use]
    pub fn new(env: Env, print: bool) -> Self {
        Self(Arc::new(Inner { env, print, state: Mutex::default() }))
    }

    /// Something happened at `node`.
    pub fn event(&self, kind: &str, node: &str, detail: &str) {
        let micros = self.0.env.now().0.as_micros() as u64;
        let line = format!("{:>12.3} {node:<8} {kind:<9} {detail}", micros as f64 / 1000.0);
        if self.0.print {
            println!("{line}");
        }
        let mut state = self.0.state.lock();
        state.events += 1;
        state.hash = (state.hash.rotate_left(5) ^ stable_hash(line.as_bytes())).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    /// Something happened that must not. The run has failed.
    pub fn violation(&self, what: String) {
        self.event("VIOLATION", "", &what);
        self.0.state.lock().violations.push(what);
    }

    /// What must not have happened, in order.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.0.state.lock().violations.clone()
    }

    /// The hash over all events so far, and their number.
    #[must_use]
    pub fn hash(&self) -> (u64, u64) {
        let state = self.0.state.lock();
        (state.hash, state.events)
    }
}
