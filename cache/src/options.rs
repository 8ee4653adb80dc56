//! Settings of the caches, as data.

use std::io;
use std::path::{Path, PathBuf};

use millstream_common::{Error, Result};

/// How much the caches may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// Bytes of data blocks in memory.
    pub memory_bytes: u64,
    /// Bytes of decoded metadata (filters, indexes) in memory.
    pub metadata_bytes: u64,
    /// Bytes of blocks and metadata that may be pinned beside those: see [`crate::Caches::pin_block`].
    pub pinned_bytes: u64,
    /// The SSD tier; none: memory alone.
    pub disk: Option<DiskOptions>,
}

/// The SSD tier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskOptions {
    /// Its folder. What it holds may be deleted at any time.
    pub dir: PathBuf,
    /// Bytes on disk.
    pub bytes: u64,
}

impl DiskOptions {
    /// The error for a folder of the SSD tier that cannot be made or written to (1211).
    #[must_use]
    pub fn unusable(dir: &Path, e: io::Error) -> Error {
        Error::config("the folder of the cache on disk cannot be made")
            .code(1211)
            .at(dir.display().to_string())
            .next("give another folder by --cache-dir, or --cache-disk 0 to go without")
            .source(e)
    }
}

/// The SSD tier writes in units of this size; it holds at least four.
pub(crate) const DISK_UNIT_BYTES: u64 = 16 << 20;

impl Default for CacheOptions {
    fn default() -> Self {
        Self { memory_bytes: 256 << 20, metadata_bytes: 64 << 20, pinned_bytes: 0, disk: None }
    }
}

impl CacheOptions {
    /// Refuses what cannot be.
    pub fn validate(&self) -> Result<()> {
        match &self.disk {
            Some(disk) if disk.bytes < 4 * DISK_UNIT_BYTES => {
                Err(Error::config(format!("a cache of {} bytes on disk is too small", disk.bytes))
                    .code(1210)
                    .next(format!("give it at least {} bytes", 4 * DISK_UNIT_BYTES)))
            }
            _ => Ok(()),
        }
    }
}
