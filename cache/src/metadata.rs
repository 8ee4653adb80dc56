//! The metadata cache: decoded meta parts by where they stand, within a budget of bytes.

use std::any::Any;
use std::sync::Arc;

use millstream_common::collections::StableBuildHasher;
use moka::sync::Cache;

use crate::BlockKey;

#[derive(Clone)]
struct Kept {
    value: Arc<dyn Any + Send + Sync>,
    bytes: u32,
}

pub(crate) struct Metadata(Cache<BlockKey, Kept, StableBuildHasher>);

impl Metadata {
    pub(crate) fn new(bytes: u64) -> Self {
        let cache = Cache::builder()
            .max_capacity(bytes)
            .weigher(|_, kept: &Kept| kept.bytes)
            .build_with_hasher(StableBuildHasher::default());
        Self(cache)
    }

    pub(crate) fn get<T: Send + Sync + 'static>(&self, key: &BlockKey) -> Option<Arc<T>> {
        self.0.get(key)?.value.downcast().ok()
    }

    pub(crate) fn insert<T: Send + Sync + 'static>(&self, key: BlockKey, value: Arc<T>, bytes: usize) {
        // An entry of the cache itself costs about this much more.
        let bytes = u32::try_from(bytes + 160).unwrap_or(u32::MAX);
        self.0.insert(key, Kept { value, bytes });
    }

    pub(crate) fn forget(&self, key: &BlockKey) {
        self.0.invalidate(key);
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.0.weighted_size()
    }

    pub(crate) fn entries(&self) -> u64 {
        self.0.entry_count()
    }

    pub(crate) fn capacity_bytes(&self) -> u64 {
        self.0.policy().max_capacity().unwrap_or_default()
    }
}
