//! A budget of bytes that holders take from and give back to. The sum of all parts stays under what the user gave.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// A named share of the process's memory. Cheap to clone; clones share the account.
#[derive(Clone, Debug)]
pub struct MemoryBudget(Arc<Account>);

#[derive(Debug)]
struct Account {
    name: &'static str,
    limit_bytes: u64,
    used_bytes: AtomicU64,
    peak_bytes: AtomicU64,
    freed: Notify,
}

impl MemoryBudget {
    /// A budget of `limit_bytes`.
    #[must_use]
    pub fn new(name: &'static str, limit_bytes: u64) -> Self {
        Self(Arc::new(Account {
            name,
            limit_bytes,
            used_bytes: AtomicU64::new(0),
            peak_bytes: AtomicU64::new(0),
            freed: Notify::new(),
        }))
    }

    /// What it is for.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.0.name
    }

    /// What may be held at most, in bytes.
    #[must_use]
    pub fn limit_bytes(&self) -> u64 {
        self.0.limit_bytes
    }

    /// What is held now, in bytes.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        self.0.used_bytes.load(Ordering::Relaxed)
    }

    /// The most that was ever held, in bytes.
    #[must_use]
    pub fn peak_bytes(&self) -> u64 {
        self.0.peak_bytes.load(Ordering::Relaxed)
    }

    /// Whether more is held than may be: the holder must push back.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.used_bytes() > self.0.limit_bytes
    }

    /// Takes `bytes`, waiting until they fit. A single request above the whole limit is granted once nothing else is
    /// held, so that nothing can wait for ever.
    pub async fn take(&self, bytes: u64) -> Held {
        loop {
            let freed = self.0.freed.notified();
            if let Some(held) = self.try_take(bytes) {
                return held;
            }
            freed.await;
        }
    }

    /// Takes `bytes` if they fit now.
    #[must_use]
    pub fn try_take(&self, bytes: u64) -> Option<Held> {
        let mut used = self.0.used_bytes.load(Ordering::Relaxed);
        loop {
            if used != 0 && used + bytes > self.0.limit_bytes {
                return None;
            }
            match self.0.used_bytes.compare_exchange_weak(used, used + bytes, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    self.0.peak_bytes.fetch_max(used + bytes, Ordering::Relaxed);
                    return Some(Held { budget: self.clone(), bytes });
                }
                Err(now) => used = now,
            }
        }
    }

    /// Takes `bytes` whether they fit or not; for what exists already and must be accounted.
    #[must_use]
    pub fn force(&self, bytes: u64) -> Held {
        let used = self.0.used_bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.0.peak_bytes.fetch_max(used, Ordering::Relaxed);
        Held { budget: self.clone(), bytes }
    }

    fn give_back(&self, bytes: u64) {
        self.0.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.0.freed.notify_waiters();
    }
}

/// Bytes taken from a budget; given back when dropped.
#[derive(Debug)]
pub struct Held {
    budget: MemoryBudget,
    bytes: u64,
}

impl Held {
    /// How many bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Sets the amount to what is held in truth, whether it fits or not.
    pub fn set(&mut self, bytes: u64) {
        if bytes > self.bytes {
            let more = self.budget.force(bytes - self.bytes);
            self.bytes += more.bytes;
            // The bytes of `more` are ours now: its drop must not give them back.
            let mut more = more;
            more.bytes = 0;
        } else {
            self.budget.give_back(self.bytes - bytes);
            self.bytes = bytes;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.bytes > 0 {
            self.budget.give_back(self.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_counted_and_given_back() {
        let b = MemoryBudget::new("test", 100);
        let mut a = b.try_take(60).unwrap();
        assert!(b.try_take(50).is_none());
        a.set(30);
        assert_eq!(b.used_bytes(), 30);
        let c = b.try_take(70).unwrap();
        a.set(40);
        assert!(b.is_over());
        drop((a, c));
        assert_eq!((b.used_bytes(), b.peak_bytes()), (0, 110));
        assert!(b.try_take(1000).is_some());
    }
}
