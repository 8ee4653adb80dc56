//! What a bench asks of a store, ours or a peer.

use millstream_common::Result;

use super::keys::{Batch, Entries, Sum};

/// What a store says of itself; what it does not say is 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes that it wrote, those of compactions included.
    pub written: u64,
    /// Bytes of its flushes, as they were written.
    pub flushed: u64,
    /// Data blocks that were not found in its cache.
    pub block_misses: u64,
}

/// A store under test.
pub trait Contender {
    /// Its name in tables.
    fn name(&self) -> String;
    /// Writes entries into its buffer.
    fn write(&mut self, entries: &Entries) -> Result<()>;
    /// Flushes the buffer: one more run. A store that compacts by itself may do so then or later.
    fn flush(&mut self) -> Result<()>;
    /// The end of an epoch: a flush, but for a store that only flushes when its buffer is full.
    fn flush_epoch(&mut self) -> Result<()> {
        self.flush()
    }
    /// Merges everything into one run, and ends when that is done.
    fn settle(&mut self) -> Result<()>;
    /// Looks keys up.
    fn multi_get(&mut self, batch: &Batch) -> Result<Sum>;
    /// What it counted so far.
    fn counters(&self) -> Result<Counters>;
}
