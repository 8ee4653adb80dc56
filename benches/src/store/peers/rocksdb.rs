//! RocksDB: level style with its defaults, LZ4 in all levels, a Bloom filter of 10 bits a key, no WAL.

use std::path::Path;
use std::time::Duration;

use millstream_common::Result;
use rocksdb::{BlockBasedOptions, Cache, DB, DBCompressionType, FlushOptions, Options, WriteBatch, WriteOptions};

use super::{RocksOptions, failed};
use crate::outside::wait_for;
use crate::store::contender::{Contender, Counters};
use crate::store::keys::{Batch, Entries, Sum};

const FAMILY: &str = "default";
/// What is not 0 while it flushes or compacts, or is about to.
const BUSY: [&str; 4] = [
    "rocksdb.num-running-flushes",
    "rocksdb.num-running-compactions",
    "rocksdb.mem-table-flush-pending",
    "rocksdb.compaction-pending",
];

/// A database in a folder.
pub struct RocksDb {
    db: DB,
    options: Options,
    name: &'static str,
}

impl RocksDb {
    /// Opens the folder, which may be empty.
    pub fn open(folder: &Path, how: RocksOptions) -> Result<Self> {
        let mut blocks = BlockBasedOptions::default();
        blocks.set_bloom_filter(10.0, false);
        if how.cache_bytes == 0 {
            blocks.disable_cache();
        } else {
            blocks.set_block_cache(&Cache::new_lru_cache(how.cache_bytes as usize));
        }
        let mut options = Options::default();
        options.create_if_missing(true);
        options.set_compression_type(DBCompressionType::Lz4);
        options.set_block_based_table_factory(&blocks);
        options.enable_statistics();
        if how.manual {
            options.set_disable_auto_compactions(true);
            options.set_write_buffer_size(4 << 30);
            options.set_level_zero_slowdown_writes_trigger(1_000);
            options.set_level_zero_stop_writes_trigger(1_000);
        }
        let db = DB::open_cf_with_opts(&options, folder, [(FAMILY, options.clone())]);
        let db = db.map_err(|e| failed("RocksDB", e))?;
        let name = if how.cache_bytes == 0 { "RocksDB, no block cache" } else { "RocksDB" };
        Ok(Self { db, options, name })
    }

    /// Waits for its flushes and compactions: for a moment without any.
    fn wait(&self) -> Result<()> {
        let idle = || {
            let busy = BUSY.iter().map(|name| self.db.property_int_value(*name).map_err(|e| failed(self.name, e)));
            let busy: u64 = busy.collect::<Result<Vec<_>>>()?.into_iter().flatten().sum();
            Ok((busy == 0).then_some(()))
        };
        match wait_for(Duration::from_secs(3_600), Duration::from_millis(20), idle)? {
            Some(()) => Ok(()),
            None => Err(failed(self.name, "its compactions did not end within an hour")),
        }
    }

    /// A counter of its statistics, by name: their numbers differ from one release to the next.
    fn ticker(statistics: &str, name: &str) -> u64 {
        let line = statistics.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(" COUNT : "));
        line.and_then(|n| n.trim().parse().ok()).unwrap_or(0)
    }
}

impl Contender for RocksDb {
    fn name(&self) -> String {
        self.name.to_owned()
    }

    fn write(&mut self, entries: &Entries) -> Result<()> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        for (keys, values) in entries.keys.chunks(4_096).zip(entries.values.chunks(4_096)) {
            let mut batch = WriteBatch::default();
            keys.iter().zip(values).for_each(|(key, value)| batch.put(key, value));
            self.db.write_opt(batch, &options).map_err(|e| failed(self.name, e))?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.db.flush_opt(&FlushOptions::default()).map_err(|e| failed(self.name, e))
    }

    fn flush_epoch(&mut self) -> Result<()> {
        Ok(())
    }

    fn settle(&mut self) -> Result<()> {
        self.flush()?;
        self.db.compact_range(None::<&[u8]>, None::<&[u8]>);
        self.wait()
    }

    fn multi_get(&mut self, batch: &Batch) -> Result<Sum> {
        let family = self.db.cf_handle(FAMILY).ok_or_else(|| failed(self.name, "its column family is gone"))?;
        let mut sum = Sum::default();
        for value in self.db.batched_multi_get_cf(family, &batch.keys, false) {
            if let Some(value) = value.map_err(|e| failed(self.name, e))? {
                sum.add(&value);
            }
        }
        Ok(sum)
    }

    fn counters(&self) -> Result<Counters> {
        self.wait()?;
        let statistics = self.options.get_statistics().unwrap_or_default();
        let count = |name| Self::ticker(&statistics, name);
        let flushed = count("rocksdb.flush.write.bytes");
        Ok(Counters {
            written: flushed + count("rocksdb.compact.write.bytes"),
            flushed,
            block_misses: count("rocksdb.block.cache.data.miss"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_by_name() {
        let statistics = "rocksdb.flush.write.bytes COUNT : 17\nrocksdb.flush.write.bytes.x COUNT : 3\n";
        assert_eq!(RocksDb::ticker(statistics, "rocksdb.flush.write.bytes"), 17);
        assert_eq!(RocksDb::ticker(statistics, "rocksdb.compact.write.bytes"), 0);
    }
}
