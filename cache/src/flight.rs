//! Single flight: a block is fetched by one caller at a time; the others wait for what it brings.
//!
//! A caller that awaits a [`Wait`] goes on with its own fetches meanwhile, or has finished (or dropped) every [`Lead`] it
//! holds: so nobody can wait in a circle.

use std::sync::Arc;

use bytes::Bytes;
use millstream_common::collections::HashMap;
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{BlockKey, Caches};

#[derive(Default)]
pub(crate) struct Flights(Mutex<HashMap<BlockKey, Arc<Fetch>>>);

/// A fetch and those who wait for it. They are woken in the order in which they came; tokio's `watch` would wake them in
/// a random one, and a run could not be repeated.
struct Fetch {
    outcome: Mutex<Outcome>,
    ended: Notify,
}

enum Outcome {
    UnderWay,
    Brought(Bytes),
    GivenUp,
}

impl Fetch {
    fn end(&self, outcome: Outcome) {
        *self.outcome.lock() = outcome;
        self.ended.notify_waiters();
    }
}

/// What to do for a block that was not found.
pub enum Flight {
    /// It came in the meantime.
    Ready(Bytes),
    /// Fetch it.
    Lead(Lead),
    /// Somebody fetches it.
    Wait(Wait),
}

pub(crate) fn begin(caches: &Caches, key: BlockKey) -> Flight {
    let mut flights = caches.0.flights.0.lock();
    if let Some(fetch) = flights.get(&key) {
        return Flight::Wait(Wait { fetch: fetch.clone() });
    }
    // Whoever led before may have finished between the caller's look-up and now.
    if let Some(body) = caches.peek_block(&key) {
        return Flight::Ready(body);
    }
    let fetch = Arc::new(Fetch { outcome: Mutex::new(Outcome::UnderWay), ended: Notify::new() });
    flights.insert(key, fetch.clone());
    Flight::Lead(Lead { key, fetch, caches: caches.clone() })
}

/// The duty to fetch a block. Dropped without a result, those who wait look after it themselves.
pub struct Lead {
    key: BlockKey,
    fetch: Arc<Fetch>,
    caches: Caches,
}

impl Lead {
    /// Puts the block into the caches and hands it to those who wait.
    pub fn finish(self, body: Bytes) {
        self.caches.insert_block(self.key, body.clone());
        self.finish_uncached(body);
    }

    /// Hands the block to those who wait, and to no cache (it is there already).
    pub fn finish_uncached(self, body: Bytes) {
        self.fetch.end(Outcome::Brought(body));
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.caches.0.flights.0.lock().remove(&self.key);
        let given_up = matches!(*self.fetch.outcome.lock(), Outcome::UnderWay);
        if given_up {
            self.fetch.end(Outcome::GivenUp);
        }
    }
}

/// Somebody else's fetch.
pub struct Wait {
    fetch: Arc<Fetch>,
}

impl Wait {
    /// The block; `None` when the other one failed or gave up: try again.
    pub async fn result(self) -> Option<Bytes> {
        loop {
            let ended = self.fetch.ended.notified();
            match &*self.fetch.outcome.lock() {
                Outcome::UnderWay => {}
                Outcome::Brought(body) => return Some(body.clone()),
                Outcome::GivenUp => return None,
            }
            ended.await;
        }
    }
}
