//! What a process keeps of state objects: data blocks in memory and on the local SSD, and decoded metadata.
//!
//! Blocks are the unit, not objects. A look-up goes to memory first ([`Caches::block`], synchronous), then to the SSD
//! ([`Caches::disk_block`]), then to whoever fetches the block already ([`Caches::begin`]: single flight), and only
//! then to the object store, which this crate knows nothing of. The SSD tier may lose or damage anything at any time:
//! what comes back from it is checked, and a failure there is a miss that is counted, never an error.
//!
//! Without an SSD tier nothing here spawns or waits.

mod blocks;
mod disk;
mod flight;
mod metadata;
mod options;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use millstream_common::{Env, Result};

pub use flight::{Flight, Lead, Wait};
pub use options::{CacheOptions, DiskOptions};

/// An object's name in the caches: 128 bits of a hash of its name. Object names are unique for ever and random in
/// part, so two of them do not meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId(u128);

impl ObjectId {
    /// The id of the object of this name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self(xxhash_rust::xxh3::xxh3_128(name.as_bytes()))
    }
}

/// Names a block (or a meta part): where it begins in which object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockKey {
    /// The object.
    pub object: ObjectId,
    /// The offset in the object.
    pub offset: u64,
}

/// What the caches did, since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Blocks found in memory.
    pub memory_hits: u64,
    /// Blocks found on the SSD.
    pub disk_hits: u64,
    /// Blocks found in neither.
    pub misses: u64,
    /// Look-ups on the SSD that failed or gave damaged bytes; each counts as a miss besides.
    pub disk_errors: u64,
    /// Bytes of blocks in memory now.
    pub memory_bytes: u64,
    /// Bytes of metadata in memory now.
    pub metadata_bytes: u64,
}

#[derive(Default)]
struct Counters {
    memory_hits: AtomicU64,
    disk_hits: AtomicU64,
    misses: AtomicU64,
    disk_errors: AtomicU64,
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// The caches of a process. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct Caches(Arc<Inner>);

struct Inner {
    blocks: blocks::Blocks,
    metadata: metadata::Metadata,
    flights: flight::Flights,
    counters: Counters,
}

impl Caches {
    /// Caches as `options` say. Opens the SSD tier when there is one.
    pub async fn new(options: &CacheOptions, env: &Env) -> Result<Self> {
        options.validate()?;
        let blocks = blocks::Blocks::open(options, env).await?;
        Ok(Self::of(blocks, options.metadata_bytes))
    }

    /// Caches in memory alone.
    #[must_use]
    pub fn in_memory(memory_bytes: u64, metadata_bytes: u64) -> Self {
        Self::of(blocks::Blocks::in_memory(memory_bytes), metadata_bytes)
    }

    fn of(blocks: blocks::Blocks, metadata_bytes: u64) -> Self {
        Self(Arc::new(Inner {
            blocks,
            metadata: metadata::Metadata::new(metadata_bytes),
            flights: flight::Flights::default(),
            counters: Counters::default(),
        }))
    }

    /// A block from memory. Counts a hit, not a miss.
    #[inline]
    #[must_use]
    pub fn block(&self, key: &BlockKey) -> Option<Bytes> {
        let found = self.0.blocks.memory(key);
        if found.is_some() {
            count(&self.0.counters.memory_hits);
        }
        found
    }

    /// Whether [`Caches::disk_block`] can find anything.
    #[must_use]
    pub fn has_disk(&self) -> bool {
        self.0.blocks.has_disk()
    }

    /// A block from the SSD, if it is there and whole. Counts a hit or a miss.
    pub async fn disk_block(&self, key: &BlockKey) -> Option<Bytes> {
        match self.0.blocks.disk(key).await {
            Ok(Some(body)) => {
                count(&self.0.counters.disk_hits);
                return Some(body);
            }
            Ok(None) => {}
            Err(reason) => {
                count(&self.0.counters.disk_errors);
                tracing::debug!(reason, "a block could not be read from the cache on disk");
            }
        }
        count(&self.0.counters.misses);
        None
    }

    /// Whether a block is in memory; counts nothing and does not make it hotter.
    #[must_use]
    pub fn holds_block(&self, key: &BlockKey) -> bool {
        self.0.blocks.contains(key)
    }

    /// A block from memory for work that must not change what is hot; counts nothing.
    #[must_use]
    pub fn peek_block(&self, key: &BlockKey) -> Option<Bytes> {
        self.0.blocks.memory(key)
    }

    /// Bytes of blocks that would push none out of memory, about.
    #[must_use]
    pub fn room_bytes(&self) -> u64 {
        self.0.blocks.room_bytes()
    }

    /// Puts a block into memory and, when there is one, onto the SSD.
    pub fn insert_block(&self, key: BlockKey, body: Bytes) {
        self.0.blocks.insert(key, body);
    }

    /// Puts a block into memory alone: nobody has asked for it yet.
    pub fn insert_in_memory(&self, key: BlockKey, body: Bytes) {
        self.0.blocks.insert_in_memory(key, body);
    }

    /// Drops a block from memory.
    pub fn forget_block(&self, key: &BlockKey) {
        self.0.blocks.forget(key);
    }

    /// Fetch the block yourself, or wait for somebody who does.
    #[must_use]
    pub fn begin(&self, key: BlockKey) -> Flight {
        flight::begin(self, key)
    }

    /// A decoded meta part.
    #[must_use]
    pub fn metadata<T: Send + Sync + 'static>(&self, key: &BlockKey) -> Option<Arc<T>> {
        self.0.metadata.get(key)
    }

    /// Keeps a decoded meta part of `bytes` bytes.
    pub fn insert_metadata<T: Send + Sync + 'static>(&self, key: BlockKey, value: Arc<T>, bytes: usize) {
        self.0.metadata.insert(key, value, bytes);
    }

    /// What the caches did so far.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let c = &self.0.counters;
        CacheStats {
            memory_hits: c.memory_hits.load(Ordering::Relaxed),
            disk_hits: c.disk_hits.load(Ordering::Relaxed),
            misses: c.misses.load(Ordering::Relaxed),
            disk_errors: c.disk_errors.load(Ordering::Relaxed),
            memory_bytes: self.0.blocks.memory_bytes(),
            metadata_bytes: self.0.metadata.bytes(),
        }
    }

    /// Ends the SSD tier in order: what was inserted is on it afterwards. Without one, nothing happens.
    pub async fn close(&self) {
        self.0.blocks.close().await;
    }
}

#[cfg(test)]
mod tests;
