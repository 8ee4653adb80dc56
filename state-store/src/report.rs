//! What a read cost.

use std::ops::AddAssign;
use std::time::Duration;

/// What one read, or many, cost. Addable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReadReport {
    /// Distinct keys that were looked up.
    pub keys: u64,
    /// Look-ups of a key in a run, and of a range of a scan in a part of one, that a filter spared.
    pub filtered: u64,
    /// Blocks found in memory.
    pub memory_hits: u64,
    /// Blocks found on the SSD.
    pub disk_hits: u64,
    /// Blocks that somebody else was fetching already.
    pub shared: u64,
    /// Blocks that had to be fetched from the object store.
    pub misses: u64,
    /// Requests to the object store: meta parts and blocks.
    pub gets: u64,
    /// Those of them that were for meta parts.
    pub meta_gets: u64,
    /// Blocks that were wanted and came in the request of another one.
    pub merged: u64,
    /// Bytes that these requests brought.
    pub bytes: u64,
    /// Entries that a scan returned.
    pub scanned: u64,
    /// Time spent waiting for tiers below memory.
    pub waited: Duration,
}

impl AddAssign for ReadReport {
    fn add_assign(&mut self, other: Self) {
        self.keys += other.keys;
        self.filtered += other.filtered;
        self.memory_hits += other.memory_hits;
        self.disk_hits += other.disk_hits;
        self.shared += other.shared;
        self.misses += other.misses;
        self.gets += other.gets;
        self.meta_gets += other.meta_gets;
        self.merged += other.merged;
        self.bytes += other.bytes;
        self.scanned += other.scanned;
        self.waited += other.waited;
    }
}
