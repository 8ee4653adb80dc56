//! SlateDB: LZ4, no WAL, blocks of 4 KiB (its default). It has no multi-get: keys are asked for one by one.

use std::sync::Arc;

use futures::StreamExt;
use millstream_common::Result;
use millstream_common::env::Runtimes;
use millstream_objects::object_store::ObjectStore;
use slatedb::config::{CompressionCodec, FlushOptions, FlushType, Settings};
use slatedb::db_cache::foyer::{FoyerCache, FoyerCacheOptions};
use slatedb::{Db, WriteBatch};

use super::{SlateOptions, failed};
use crate::store::contender::{Contender, Counters};
use crate::store::keys::{Batch, Entries, Sum};
use crate::store::observed::Observed;

const NAME: &str = "SlateDB";

/// A database on an object store.
pub struct SlateDb {
    runtimes: Arc<Runtimes>,
    observed: Observed,
    db: Db,
    gets_at_once: usize,
    flushed: u64,
}

impl SlateDb {
    /// Opens the database at `db` in the store, which may be empty.
    pub fn open(runtimes: &Arc<Runtimes>, observed: Observed, how: SlateOptions) -> Result<Self> {
        let mut settings = Settings {
            wal_enabled: false,
            l0_sst_size_bytes: how.sst_bytes as usize,
            max_unflushed_bytes: (how.sst_bytes as usize).saturating_mul(2).max(1 << 30),
            compression_codec: Some(CompressionCodec::Lz4),
            garbage_collector_options: None,
            flush_interval: None,
            ..Settings::default()
        };
        if !how.compacts {
            settings.compactor_options = None;
            settings.l0_max_ssts = 10_000;
            settings.l0_max_ssts_per_key = 10_000;
        }
        let mut builder = Db::builder("db", Arc::new(observed.clone()) as Arc<dyn ObjectStore>).with_settings(settings);
        builder = if how.cache_bytes == 0 {
            builder.with_db_cache_disabled()
        } else {
            let options = FoyerCacheOptions { max_capacity: how.cache_bytes, ..FoyerCacheOptions::default() };
            builder.with_db_cache(Arc::new(FoyerCache::new_with_opts(options)), 1)
        };
        let db = runtimes.block_on(builder.build()).map_err(|e| failed(NAME, e))?;
        Ok(Self { runtimes: runtimes.clone(), observed, db, gets_at_once: how.gets_at_once.max(1), flushed: 0 })
    }
}

impl Drop for SlateDb {
    fn drop(&mut self) {
        if let Err(e) = self.runtimes.block_on(self.db.close()) {
            crate::note(&format!("{NAME} did not end in order: {e}"));
        }
    }
}

impl Contender for SlateDb {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn write(&mut self, entries: &Entries) -> Result<()> {
        for (keys, values) in entries.keys.chunks(4_096).zip(entries.values.chunks(4_096)) {
            let mut batch = WriteBatch::new();
            keys.iter().zip(values).for_each(|(key, value)| batch.put(key, value));
            self.runtimes.block_on(self.db.write(batch)).map_err(|e| failed(NAME, e))?;
        }
        self.flushed += entries.keys.len() as u64 * crate::store::keys::ENTRY_BYTES;
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let options = FlushOptions { flush_type: FlushType::MemTable };
        self.runtimes.block_on(self.db.flush_with_options(options)).map_err(|e| failed(NAME, e))
    }

    /// Its compactor has no call that ends when all is merged: a flush is all that can be asked for.
    fn settle(&mut self) -> Result<()> {
        self.flush()
    }

    fn multi_get(&mut self, batch: &Batch) -> Result<Sum> {
        let db = &self.db;
        self.runtimes.block_on(async {
            let mut sum = Sum::default();
            if self.gets_at_once == 1 {
                for key in &batch.keys {
                    if let Some(value) = db.get(key).await.map_err(|e| failed(NAME, e))? {
                        sum.add(&value);
                    }
                }
                return Ok(sum);
            }
            let gets = futures::stream::iter(&batch.keys).map(|key| db.get(key)).buffer_unordered(self.gets_at_once);
            futures::pin_mut!(gets);
            while let Some(value) = gets.next().await {
                if let Some(value) = value.map_err(|e| failed(NAME, e))? {
                    sum.add(&value);
                }
            }
            Ok(sum)
        })
    }

    fn counters(&self) -> Result<Counters> {
        let written = self.observed.requests().put_bytes;
        Ok(Counters { written, flushed: self.flushed, ..Counters::default() })
    }
}
