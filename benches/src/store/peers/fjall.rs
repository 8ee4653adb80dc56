//! fjall: LZ4, its default filters and block size. Its journal cannot be switched off; it is not synced.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions};
use millstream_common::Result;

use super::failed;
use crate::store::contender::{Contender, Counters};
use crate::store::keys::{Batch, Entries, Sum};

const NAME: &str = "fjall";

/// A database in a folder.
pub struct Fjall {
    db: Database,
    space: Keyspace,
}

impl Fjall {
    /// Opens the folder, which may be empty, with a block cache of so many bytes. A memtable is flushed by itself once it
    /// has `memtable_bytes`.
    pub fn open(folder: &Path, cache_bytes: u64, memtable_bytes: u64) -> Result<Self> {
        let builder = Database::builder(folder).cache_size(cache_bytes).manual_journal_persist(true);
        let builder = builder.max_journaling_size(memtable_bytes.saturating_mul(4).max(512 << 20));
        let db = builder.open().map_err(|e| failed(NAME, e))?;
        let options = || KeyspaceCreateOptions::default().max_memtable_size(memtable_bytes);
        let space = db.keyspace("state", options).map_err(|e| failed(NAME, e))?;
        Ok(Self { db, space })
    }
}

impl Contender for Fjall {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn write(&mut self, entries: &Entries) -> Result<()> {
        for (keys, values) in entries.keys.chunks(4_096).zip(entries.values.chunks(4_096)) {
            let mut batch = self.db.batch();
            keys.iter().zip(values).for_each(|(key, value)| batch.insert(&self.space, *key, *value));
            batch.commit().map_err(|e| failed(NAME, e))?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.space.rotate_memtable_and_wait().map_err(|e| failed(NAME, e))
    }

    fn settle(&mut self) -> Result<()> {
        self.flush()?;
        self.space.major_compact().map_err(|e| failed(NAME, e))
    }

    fn multi_get(&mut self, batch: &Batch) -> Result<Sum> {
        let mut sum = Sum::default();
        for key in &batch.keys {
            if let Some(value) = self.space.get(key).map_err(|e| failed(NAME, e))? {
                sum.add(&value);
            }
        }
        Ok(sum)
    }

    /// It does not say what it has written.
    fn counters(&self) -> Result<Counters> {
        Ok(Counters::default())
    }
}
