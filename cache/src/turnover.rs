//! How far the blocks in memory have been replaced since the process started.

use std::sync::atomic::{AtomicU64, Ordering};

/// Steps of [`crate::Caches::turnover`] until as much has come into memory as it holds.
pub const TURNOVER_STEPS: u32 = 16;

pub(crate) struct Turnover {
    bytes: AtomicU64,
    step_bytes: u64,
}

impl Turnover {
    pub(crate) fn new(memory_bytes: u64) -> Self {
        Self { bytes: AtomicU64::new(0), step_bytes: (memory_bytes / u64::from(TURNOVER_STEPS)).max(1) }
    }

    pub(crate) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn now(&self) -> u32 {
        (self.bytes.load(Ordering::Relaxed) / self.step_bytes) as u32
    }
}
