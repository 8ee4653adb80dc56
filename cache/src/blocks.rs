//! The block cache: memory alone, or memory over the SSD.

use foyer::{
    BlockEngineConfig, Cache, CacheBuilder, DeviceBuilder, FsDeviceBuilder, HybridCache, HybridCacheBuilder,
    HybridCachePolicy, HybridCacheProperties, Load, Location, RecoverMode, S3FifoConfig,
};
use millstream_common::Result;
use millstream_common::collections::StableBuildHasher;

use crate::disk::DiskBlock;
use crate::drops::Drops;
use crate::options::DISK_UNIT_BYTES;
use crate::{BlockKey, CacheBlock, CacheOptions, DiskOptions};

/// What an entry costs beside its bytes, about.
const ENTRY_BYTES: usize = 160;
/// Below this a shard would hold too few blocks to tell hot from cold.
const SHARD_BYTES: u64 = 8 << 20;
/// Files of the SSD tier at most, about: each stays open.
const DISK_UNITS_MAX: u64 = 256;

pub(crate) enum Blocks<B: CacheBlock> {
    Memory(Cache<BlockKey, B, StableBuildHasher>),
    Hybrid(HybridCache<BlockKey, DiskBlock<B>>, Drops),
}

fn shards(bytes: u64) -> usize {
    (bytes / SHARD_BYTES).clamp(1, 16) as usize
}

impl<B: CacheBlock> Blocks<B> {
    pub(crate) fn in_memory(bytes: u64) -> Self {
        let cache = CacheBuilder::new(bytes as usize)
            .with_name("millstream-blocks")
            .with_shards(shards(bytes))
            .with_eviction_config(S3FifoConfig::default())
            .with_hash_builder(StableBuildHasher::default())
            .with_weighter(|_: &BlockKey, block: &B| block.memory_bytes() + ENTRY_BYTES)
            .build();
        Self::Memory(cache)
    }

    pub(crate) async fn open(options: &CacheOptions) -> Result<Self> {
        let Some(disk) = &options.disk else { return Ok(Self::in_memory(options.memory_bytes)) };
        std::fs::create_dir_all(&disk.dir).map_err(|e| DiskOptions::unusable(&disk.dir, e))?;
        let drops = Drops::default();
        match hybrid(options.memory_bytes, disk, &drops).await {
            Ok(cache) => Ok(Self::Hybrid(cache, drops)),
            Err(reason) => {
                // A cache only makes things faster: a disk that fails must not stop the job.
                tracing::warn!(%reason, dir = %disk.dir.display(), "the cache on disk cannot be used; going on without it");
                Ok(Self::in_memory(options.memory_bytes))
            }
        }
    }

    #[inline]
    pub(crate) fn memory(&self, key: &BlockKey) -> Option<B> {
        match self {
            Self::Memory(cache) => cache.get(key).map(|e| e.value().clone()),
            Self::Hybrid(cache, _) => cache.memory().get(key).map(|e| e.value().0.clone()),
        }
    }

    pub(crate) fn contains(&self, key: &BlockKey) -> bool {
        match self {
            Self::Memory(cache) => cache.contains(key),
            Self::Hybrid(cache, _) => cache.memory().contains(key),
        }
    }

    pub(crate) fn has_disk(&self) -> bool {
        matches!(self, Self::Hybrid(..))
    }

    pub(crate) async fn disk(&self, key: &BlockKey) -> Result<Option<B>, String> {
        match self {
            Self::Memory(_) => Ok(None),
            Self::Hybrid(cache, _) => match cache.get(key).await {
                Ok(entry) => Ok(entry.map(|e| e.value().0.clone())),
                Err(e) => Err(e.to_string()),
            },
        }
    }

    /// The same without a place in memory for what is found.
    pub(crate) async fn disk_aside(&self, key: &BlockKey) -> Result<Option<B>, String> {
        let Self::Hybrid(cache, _) = self else { return Ok(None) };
        match cache.storage().load(key).await {
            Ok(Load::Entry { value, .. }) => Ok(Some(value.0)),
            Ok(Load::Piece { piece, .. }) => Ok(Some(piece.value().0.clone())),
            Ok(Load::Throttled | Load::Miss) => Ok(None),
            Err(e) => Err(e.to_string()),
        }
    }

    /// Ends when the SSD has taken all that it was given.
    pub(crate) async fn written(&self) {
        if let Self::Hybrid(cache, _) = self {
            cache.storage().wait().await;
        }
    }

    pub(crate) fn insert(&self, key: BlockKey, block: B) {
        match self {
            Self::Memory(cache) => drop(cache.insert(key, block)),
            Self::Hybrid(cache, _) => drop(cache.insert(key, DiskBlock(block))),
        }
    }

    pub(crate) fn insert_in_memory(&self, key: BlockKey, block: B) {
        match self {
            Self::Memory(cache) => drop(cache.insert(key, block)),
            Self::Hybrid(cache, _) => {
                let here = HybridCacheProperties::default().with_location(Location::InMem);
                drop(cache.insert_with_properties(key, DiskBlock(block), here));
            }
        }
    }

    pub(crate) fn insert_on_disk(&self, key: BlockKey, block: B) {
        if let Self::Hybrid(cache, _) = self {
            drop(cache.storage_writer(key).force().insert(DiskBlock(block)));
        }
    }

    pub(crate) fn may_be_on_disk(&self, key: &BlockKey) -> bool {
        matches!(self, Self::Hybrid(cache, _) if cache.storage().may_contains(key))
    }

    pub(crate) fn drops(&self) -> Option<&Drops> {
        match self {
            Self::Memory(_) => None,
            Self::Hybrid(_, drops) => Some(drops),
        }
    }

    pub(crate) fn forget(&self, key: &BlockKey) {
        match self {
            Self::Memory(cache) => drop(cache.remove(key)),
            Self::Hybrid(cache, _) => drop(cache.memory().remove(key)),
        }
    }

    /// Shards fill unevenly: the last tenth is nobody's room.
    pub(crate) fn room_bytes(&self) -> u64 {
        let (held, most) = match self {
            Self::Memory(cache) => (cache.usage(), cache.capacity()),
            Self::Hybrid(cache, _) => (cache.memory().usage(), cache.memory().capacity()),
        };
        (most as u64 / 10 * 9).saturating_sub(held as u64)
    }

    pub(crate) fn memory_bytes(&self) -> u64 {
        match self {
            Self::Memory(cache) => cache.usage() as u64,
            Self::Hybrid(cache, _) => cache.memory().usage() as u64,
        }
    }

    pub(crate) fn memory_entries(&self) -> u64 {
        match self {
            Self::Memory(cache) => cache.entries() as u64,
            Self::Hybrid(cache, _) => cache.memory().entries() as u64,
        }
    }

    pub(crate) fn memory_capacity_bytes(&self) -> u64 {
        match self {
            Self::Memory(cache) => cache.capacity() as u64,
            Self::Hybrid(cache, _) => cache.memory().capacity() as u64,
        }
    }

    /// Bytes read from the SSD, and written onto it.
    pub(crate) fn disk_bytes(&self) -> (u64, u64) {
        match self {
            Self::Memory(_) => (0, 0),
            Self::Hybrid(cache, _) => {
                let seen = cache.statistics();
                (seen.disk_read_bytes() as u64, seen.disk_write_bytes() as u64)
            }
        }
    }

    pub(crate) async fn close(&self) {
        if let Self::Hybrid(cache, _) = self
            && let Err(reason) = cache.close().await
        {
            tracing::warn!(%reason, "the cache on disk did not end in order");
        }
    }
}

async fn hybrid<B: CacheBlock>(
    memory_bytes: u64,
    disk: &DiskOptions,
    drops: &Drops,
) -> foyer::Result<HybridCache<BlockKey, DiskBlock<B>>> {
    // A file for each unit: their number is bounded by the units' size. (The device in one file writes to stdout.)
    let unit = (disk.bytes / DISK_UNITS_MAX).next_multiple_of(1 << 20).max(DISK_UNIT_BYTES);
    let device = FsDeviceBuilder::new(&disk.dir).with_capacity((disk.bytes / unit * unit) as usize).build()?;
    let engine = BlockEngineConfig::new(device)
        .with_block_size(unit as usize)
        // What is inserted faster than the disk takes it is dropped, within this much memory.
        .with_buffer_pool_size(16 << 20)
        .with_submit_queue_size_threshold(16 << 20);
    HybridCacheBuilder::new()
        .with_name("millstream-blocks")
        .with_metrics_registry(drops.registry())
        .with_policy(HybridCachePolicy::WriteOnInsertion)
        .memory(memory_bytes as usize)
        .with_shards(shards(memory_bytes))
        .with_eviction_config(S3FifoConfig::default())
        .with_weighter(|_: &BlockKey, block: &DiskBlock<B>| block.0.memory_bytes() + ENTRY_BYTES)
        .storage()
        .with_engine_config(engine)
        .with_recover_mode(RecoverMode::Quiet)
        .build()
        .await
}
