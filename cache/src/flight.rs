//! Single flight: a block is fetched by one caller at a time; the others wait for what it brings.
//!
//! A caller that awaits a [`Wait`] goes on with its own fetches meanwhile, or has finished (or dropped) every [`Lead`] it
//! holds: so nobody can wait in a circle.

use std::sync::Arc;

use millstream_common::collections::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::BlockKey;

/// What is being fetched. Cheap to clone; clones share it.
#[derive(Clone)]
pub(crate) struct Flights<V>(Arc<Mutex<HashMap<BlockKey, Arc<Fetch<V>>>>>);

impl<V> Default for Flights<V> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

/// A fetch and those who wait for it. They are woken in the order in which they came; tokio's `watch` would wake them in
/// a random one, and a run could not be repeated.
struct Fetch<V> {
    outcome: Mutex<Outcome<V>>,
    ended: Notify,
}

enum Outcome<V> {
    UnderWay,
    Brought(V),
    GivenUp,
}

impl<V> Fetch<V> {
    fn end(&self, outcome: Outcome<V>) {
        *self.outcome.lock() = outcome;
        self.ended.notify_waiters();
    }
}

/// What to do for a block that was not found.
pub enum Flight<V> {
    /// It came in the meantime.
    Ready(V),
    /// Fetch it.
    Lead(Lead<V>),
    /// Somebody fetches it.
    Wait(Wait<V>),
}

impl<V: Clone> Flights<V> {
    /// Leads or joins the fetch under `key`. `here`: what came in the meantime.
    pub(crate) fn begin(&self, key: BlockKey, here: impl FnOnce() -> Option<V>) -> Flight<V> {
        let mut flights = self.0.lock();
        if let Some(fetch) = flights.get(&key) {
            return Flight::Wait(Wait { fetch: fetch.clone() });
        }
        // Whoever led before may have finished between the caller's look-up and now.
        if let Some(value) = here() {
            return Flight::Ready(value);
        }
        let fetch = Arc::new(Fetch { outcome: Mutex::new(Outcome::UnderWay), ended: Notify::new() });
        flights.insert(key, fetch.clone());
        Flight::Lead(Lead { key, fetch, flights: self.clone() })
    }
}

/// The duty to fetch something. Dropped without a result, those who wait look after it themselves.
pub struct Lead<V> {
    key: BlockKey,
    fetch: Arc<Fetch<V>>,
    flights: Flights<V>,
}

impl<V> Lead<V> {
    /// Hands it to those who wait. Whoever comes later looks into the caches: put it there before.
    pub fn finish(self, value: V) {
        self.fetch.end(Outcome::Brought(value));
    }
}

impl<V> Drop for Lead<V> {
    fn drop(&mut self) {
        self.flights.0.lock().remove(&self.key);
        let given_up = matches!(*self.fetch.outcome.lock(), Outcome::UnderWay);
        if given_up {
            self.fetch.end(Outcome::GivenUp);
        }
    }
}

/// Somebody else's fetch.
pub struct Wait<V> {
    fetch: Arc<Fetch<V>>,
}

impl<V: Clone> Wait<V> {
    /// What was fetched; `None` when the other one failed or gave up: try again.
    pub async fn result(self) -> Option<V> {
        loop {
            let ended = self.fetch.ended.notified();
            match &*self.fetch.outcome.lock() {
                Outcome::UnderWay => {}
                Outcome::Brought(value) => return Some(value.clone()),
                Outcome::GivenUp => return None,
            }
            ended.await;
        }
    }
}
