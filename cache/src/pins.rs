//! What stays in memory beyond the bound of the cache, until it is let go: the state of jobs that keep all of it in memory.
//!
//! Pins have a bound of their own. What finds no room is refused, and the refusal counted: whoever asked pages it then,
//! as any block. A stretch of an object has an owner, the last one that claimed it: an owner that goes lets go of
//! nothing that his successor has claimed.

use std::any::Any;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::RwLock;

use crate::{BlockKey, CacheBlock, ObjectId};

/// What an entry costs beside its bytes, about.
const ENTRY_BYTES: u64 = 96;

type Value = (Arc<dyn Any + Send + Sync>, u64);

pub(crate) struct Pins<B> {
    blocks: RwLock<BTreeMap<BlockKey, B>>,
    metadata: RwLock<BTreeMap<BlockKey, Value>>,
    /// By where a stretch begins.
    owners: RwLock<BTreeMap<BlockKey, u64>>,
    last_owner: AtomicU64,
    bytes: AtomicU64,
    refused: AtomicU64,
    limit_bytes: u64,
}

impl<B: CacheBlock> Pins<B> {
    pub(crate) fn new(limit_bytes: u64) -> Self {
        let (blocks, metadata, owners) = (RwLock::default(), RwLock::default(), RwLock::default());
        Self {
            blocks,
            metadata,
            owners,
            last_owner: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            limit_bytes,
        }
    }

    /// Whether nothing is pinned: then nobody need look.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) == 0
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    pub(crate) fn block(&self, key: &BlockKey) -> Option<B> {
        if self.is_empty() { None } else { self.blocks.read().get(key).cloned() }
    }

    pub(crate) fn holds(&self, key: &BlockKey) -> bool {
        !self.is_empty() && self.blocks.read().contains_key(key)
    }

    pub(crate) fn holds_metadata(&self, key: &BlockKey) -> bool {
        !self.is_empty() && self.metadata.read().contains_key(key)
    }

    pub(crate) fn metadata<T: Send + Sync + 'static>(&self, key: &BlockKey) -> Option<Arc<T>> {
        if self.is_empty() { None } else { self.metadata.read().get(key)?.0.clone().downcast().ok() }
    }

    /// A number that no other owner has.
    pub(crate) fn owner(&self) -> u64 {
        self.last_owner.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn claim(&self, stretch: BlockKey, owner: u64) {
        self.owners.write().insert(stretch, owner);
    }

    /// Whether it was his; then it is nobody's.
    pub(crate) fn disclaim(&self, stretch: &BlockKey, owner: u64) -> bool {
        let mut owners = self.owners.write();
        let his = owners.get(stretch) == Some(&owner);
        if his {
            owners.remove(stretch);
        }
        his
    }

    /// What a block takes here.
    pub(crate) fn cost_bytes(block: &B) -> u64 {
        block.memory_bytes() as u64 + ENTRY_BYTES
    }

    /// Whether there was room for it.
    pub(crate) fn pin_block(&self, key: BlockKey, block: B) -> bool {
        let bytes = Self::cost_bytes(&block);
        let mut blocks = self.blocks.write();
        if blocks.contains_key(&key) {
            return true;
        }
        if !self.take(bytes) {
            return false;
        }
        blocks.insert(key, block);
        true
    }

    pub(crate) fn pin_metadata(&self, key: BlockKey, value: Arc<dyn Any + Send + Sync>, bytes: u64) -> bool {
        let mut metadata = self.metadata.write();
        if metadata.contains_key(&key) {
            return true;
        }
        if !self.take(bytes + ENTRY_BYTES) {
            return false;
        }
        metadata.insert(key, (value, bytes));
        true
    }

    fn take(&self, bytes: u64) -> bool {
        // Both maps are changed under locks of their own.
        let taken = self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |held| {
            held.checked_add(bytes).filter(|sum| *sum <= self.limit_bytes)
        });
        if taken.is_err() {
            self.refused.fetch_add(1, Ordering::Relaxed);
        }
        taken.is_ok()
    }

    /// Lets go of what stands in this stretch of an object, as far as `goes` says so of a block or of metadata. How many
    /// bytes that frees.
    pub(crate) fn unpin(&self, object: ObjectId, stretch: &Range<u64>, goes: impl Fn(&BlockKey) -> bool) -> u64 {
        let keys = BlockKey { object, offset: stretch.start }..BlockKey { object, offset: stretch.end };
        let mut freed = 0;
        {
            let mut blocks = self.blocks.write();
            let gone: Vec<BlockKey> = blocks.range(keys.clone()).map(|(key, _)| *key).filter(|key| goes(key)).collect();
            for key in gone {
                freed += blocks.remove(&key).map_or(0, |block| Self::cost_bytes(&block));
            }
        }
        {
            let mut metadata = self.metadata.write();
            let gone: Vec<BlockKey> = metadata.range(keys).map(|(key, _)| *key).filter(|key| goes(key)).collect();
            for key in gone {
                freed += metadata.remove(&key).map_or(0, |(_, bytes)| bytes + ENTRY_BYTES);
            }
        }
        self.bytes.fetch_sub(freed, Ordering::Relaxed);
        freed
    }
}
