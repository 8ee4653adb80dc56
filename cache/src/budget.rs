//! Bytes of the local disk that the files of all jobs of a process share.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What all files together may have. Cheap to clone; clones share it.
#[derive(Clone, Debug)]
pub struct DiskBudget(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    limit_bytes: u64,
    held_bytes: AtomicU64,
}

/// So many bytes of a budget, given back when it is dropped.
pub(crate) struct Room {
    budget: DiskBudget,
    bytes: u64,
}

impl DiskBudget {
    /// A budget of so many bytes.
    #[must_use]
    pub fn new(limit_bytes: u64) -> Self {
        Self(Arc::new(Budget { limit_bytes, held_bytes: AtomicU64::new(0) }))
    }

    pub(crate) fn limit_bytes(&self) -> u64 {
        self.0.limit_bytes
    }

    /// Room for `bytes`, if there is so much.
    pub(crate) fn take(&self, bytes: u64) -> Option<Room> {
        let within = |held: u64| held.checked_add(bytes).filter(|sum| *sum <= self.0.limit_bytes);
        let taken = self.0.held_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within);
        taken.is_ok().then(|| Room { budget: self.clone(), bytes })
    }

    /// Room for what is there already.
    pub(crate) fn charge(&self, bytes: u64) -> Room {
        self.0.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        Room { budget: self.clone(), bytes }
    }
}

impl Room {
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        self.budget.0.held_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
