//! Other stores, each behind [`Contender`] and behind a cargo feature of its name; `peers` has all three. Without its feature a
//! peer is not there, and a table has one row less.

#[cfg(feature = "fjall")]
mod fjall;
#[cfg(feature = "rocksdb")]
mod rocksdb;
#[cfg(feature = "slatedb")]
mod slatedb;

use std::path::Path;

use millstream_common::Result;

use super::StoreBench;
use super::contender::Contender;
use super::observed::Observed;

/// Said below a table that has Millstream's rows alone.
pub const HOW_TO_GET_THEM: &str = "RocksDB, SlateDB and fjall stand beside it when the bench is built with `--features peers` \
                                   (RocksDB takes minutes, and libclang).";

/// A peer, if it was built in and is wanted.
pub type Peer = Option<Box<dyn Contender>>;

/// How RocksDB is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct RocksOptions {
    /// Bytes of its block cache; 0: none, each block is read from the file (the page cache) and decompressed.
    pub cache_bytes: u64,
    /// No compaction by itself, and no flush before it is told.
    pub manual: bool,
}

/// How SlateDB is opened.
#[derive(Clone, Copy, Debug)]
pub struct SlateOptions {
    /// Bytes of its block cache; 0: none.
    pub cache_bytes: u64,
    /// Bytes of an SST in its first level: a buffer as large is flushed by itself.
    pub sst_bytes: u64,
    /// Whether it compacts, and holds writes up when it does not get on.
    pub compacts: bool,
    /// Gets that are on their way at once: 1 in memory, many on a slow store.
    pub gets_at_once: usize,
}

/// RocksDB in a folder, which may be empty.
#[allow(unused_variables)] // without its feature
pub fn rocksdb(bench: &StoreBench, folder: &Path, how: RocksOptions) -> Result<Peer> {
    #[cfg(feature = "rocksdb")]
    if bench.wants("rocksdb") {
        return Ok(Some(Box::new(rocksdb::RocksDb::open(folder, how)?)));
    }
    Ok(None)
}

/// SlateDB in an object store, which may be empty. It is closed when it is dropped.
#[allow(unused_variables)] // without its feature
pub fn slatedb(bench: &StoreBench, store: Observed, how: SlateOptions) -> Result<Peer> {
    #[cfg(feature = "slatedb")]
    if bench.wants("slatedb") {
        return Ok(Some(Box::new(slatedb::SlateDb::open(&bench.runtimes, store, how)?)));
    }
    Ok(None)
}

/// fjall in a folder, which may be empty, with a block cache of so many bytes. A memtable is flushed by itself once it has
/// `memtable_bytes`.
#[allow(unused_variables)] // without its feature
pub fn fjall(bench: &StoreBench, folder: &Path, cache_bytes: u64, memtable_bytes: u64) -> Result<Peer> {
    #[cfg(feature = "fjall")]
    if bench.wants("fjall") {
        return Ok(Some(Box::new(fjall::Fjall::open(folder, cache_bytes, memtable_bytes)?)));
    }
    Ok(None)
}

#[cfg(any(feature = "fjall", feature = "rocksdb", feature = "slatedb"))]
fn failed(who: &str, error: impl std::fmt::Display) -> millstream_common::Error {
    millstream_common::Error::unavailable(format!("{who}: {error}"))
}
