//! State of gigabytes, built in bulk once and kept: a folder for each store and size, named by what it holds.
//!
//! A folder is built under another name and renamed when it is whole, so what has its name can be used. Millstream's has the
//! objects and, in `tree`, the live runs (protobuf). Nothing here is changed later: who writes gets a folder of hard links.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millstream_common::env::Runtimes;
use millstream_common::{Epoch, Error, KEY_GROUPS, KeyGroupRange, KeyGroupRanges, Result};
use millstream_objects::object_store::local::LocalFileSystem;
use millstream_state_store::Caches;
use millstream_state_store::section::SECTION_FORMAT;
use millstream_state_store::{
    Expiry, Interval, MergeOperators, Run, SectionWriter, StateStore, StateStoreOptions, Tree,
};
use tempfile::TempDir;

use super::StoreBench;
use super::contender::Contender;
use super::keys::{ENTRY_BYTES, Entries, Values, group_of, key_of, mix, store_key};
use super::observed::Observed;
use super::ours::{TASK, WRITER, empty_tree, store_on};
use super::peers::{self, RocksOptions, SlateOptions};
use crate::note;
use crate::outside::variable;

/// All folders together never have more.
const MOST_BYTES: u64 = 25_000_000_000;
/// What an entry takes on a disk at most, in any store, about.
const STORED_ENTRY_BYTES: u64 = 150;
/// An object has about so many bytes of entries, as the output of a compaction has.
const PART_BYTES: u64 = 64 << 20;

/// The version of every entry of such a state.
pub const BASE_VERSION: u64 = 0;

/// The folder of all of them.
#[derive(Debug)]
pub struct DataFolder(PathBuf);

/// A state of Millstream in a folder.
#[derive(Clone, Debug)]
pub struct Shard {
    /// Its objects.
    pub folder: PathBuf,
    /// What is live.
    pub tree: Tree,
}

fn disk(at: &Path, e: std::io::Error) -> Error {
    Error::unavailable("a file of the bench's data cannot be read or written")
        .at(at.display().to_string())
        .next("name another folder by --data")
        .source(e)
}

/// So many entries have about so many bytes.
#[must_use]
pub fn entries_of(bytes: f64) -> u64 {
    ((bytes / ENTRY_BYTES as f64) as u64).max(1)
}

/// A backend on a folder. Without fsync: what is built is not precious.
pub fn backend(folder: &Path) -> Result<Arc<LocalFileSystem>> {
    let folder_store = LocalFileSystem::new_with_prefix(folder);
    folder_store.map(Arc::new).map_err(|e| Error::unavailable(format!("{}: {e}", folder.display())))
}

impl DataFolder {
    /// `named`, or a folder of the cache that MILLSTREAM_CACHE names, or one for temporary files.
    pub fn open(named: Option<&Path>) -> Result<Self> {
        let usual = || variable("MILLSTREAM_CACHE").map_or_else(std::env::temp_dir, PathBuf::from);
        let folder = named.map_or_else(|| usual().join("millstream-store-bench"), Path::to_owned);
        fs::create_dir_all(&folder).map_err(|e| disk(&folder, e))?;
        Ok(Self(folder))
    }

    /// A fresh folder on the same disk, which goes away.
    pub fn fresh(&self) -> Result<TempDir> {
        tempfile::Builder::new().prefix("fresh-").tempdir_in(&self.0).map_err(|e| disk(&self.0, e))
    }

    /// The folder `name`, made by `build` when it is not there. `entries`: how many it will hold.
    pub fn kept(&self, name: &str, entries: u64, build: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let folder = self.0.join(name);
        if folder.is_dir() {
            return Ok(folder);
        }
        let (there, more) = (bytes_below(&self.0)?, entries * STORED_ENTRY_BYTES);
        if there + more > MOST_BYTES {
            return Err(Error::config(format!(
                "{name} would take {more} bytes, and {there} are taken of {MOST_BYTES}"
            ))
            .at(self.0.display().to_string())
            .next("delete folders in it that are not needed, or ask for less by --gigabytes or --sizes"));
        }
        note(&format!("building {}", folder.display()));
        let unfinished = self.0.join(format!("unfinished-{}-{name}", std::process::id()));
        fs::create_dir_all(&unfinished).map_err(|e| disk(&unfinished, e))?;
        let built = build(&unfinished);
        if built.is_err() {
            // The error of the build says more than one of this would.
            let _ = fs::remove_dir_all(&unfinished);
        }
        built?;
        fs::rename(&unfinished, &folder).map_err(|e| disk(&folder, e))?;
        Ok(folder)
    }

    /// Millstream's state with so many entries.
    pub fn shard(&self, runtimes: &Arc<Runtimes>, entries: u64, values: Values) -> Result<Shard> {
        let name = format!("millstream-{}-format{SECTION_FORMAT}", named(entries, values));
        let folder = self.kept(&name, entries, |folder| {
            let env = runtimes.env();
            let store = store_on(backend(folder)?, &env);
            let caches = Caches::in_memory(0, 0);
            let states = StateStore::new(store, caches, StateStoreOptions::default(), env, MergeOperators::default());
            let mut tree = empty_tree()?;
            tree.add_runs(bulk(runtimes, &states, &tree, entries, values)?);
            let at = folder.join("tree");
            fs::write(&at, encode_tree(&tree)).map_err(|e| disk(&at, e))
        })?;
        let at = folder.join("tree");
        let tree = decode_tree(&fs::read(&at).map_err(|e| disk(&at, e))?)?;
        Ok(Shard { folder, tree })
    }

    /// The same entries in SlateDB, in key order, so that its SSTs share no keys; `None` when it is not measured.
    pub fn slatedb(&self, bench: &StoreBench, entries: u64, how: SlateOptions) -> Result<Option<PathBuf>> {
        if !cfg!(feature = "slatedb") || !bench.wants("slatedb") {
            return Ok(None);
        }
        let folder = self.kept(&format!("slatedb-{}", named(entries, bench.values)), entries, |folder| {
            let slate = peers::slatedb(bench, Observed::new(backend(folder)?), how)?;
            slate.map_or(Ok(()), |mut slate| load_in_order(slate.as_mut(), entries, bench.values))
        })?;
        Ok(Some(folder))
    }

    /// The same entries in RocksDB, merged; `None` when it is not measured.
    pub fn rocksdb(&self, bench: &StoreBench, entries: u64) -> Result<Option<PathBuf>> {
        if !cfg!(feature = "rocksdb") || !bench.wants("rocksdb") {
            return Ok(None);
        }
        let folder = self.kept(&format!("rocksdb-{}", named(entries, bench.values)), entries, |folder| {
            let Some(mut rocks) = peers::rocksdb(bench, folder, RocksOptions { cache_bytes: 64 << 20, manual: false })?
            else {
                return Ok(());
            };
            load_in_order(rocks.as_mut(), entries, bench.values)?;
            rocks.settle()
        })?;
        Ok(Some(folder))
    }

    /// The same objects under other names: what is written beside them is not kept.
    pub fn linked(&self, shard: &Shard) -> Result<(TempDir, Tree)> {
        let fresh = self.fresh()?;
        link(&shard.folder, fresh.path())?;
        Ok((fresh, shard.tree.clone()))
    }
}

fn load_in_order(store: &mut dyn Contender, entries: u64, values: Values) -> Result<()> {
    let mut ids: Vec<(u64, u32)> = (0..entries).map(|id| (mix(id), id as u32)).collect();
    // A key begins with the mixed id.
    ids.sort_unstable();
    for some in ids.chunks(1 << 16) {
        let ids = some.iter().map(|(_, id)| u64::from(*id));
        store.write(&Entries::of(ids, BASE_VERSION, values))?;
    }
    store.flush()
}

/// What stands in the name of a folder for what it holds.
#[must_use]
pub fn named(entries: u64, values: Values) -> String {
    format!("{entries}-{}", if values.compressible { "compressible" } else { "random" })
}

fn link(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).map_err(|e| disk(from, e))? {
        let entry = entry.map_err(|e| disk(from, e))?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if source.is_dir() {
            fs::create_dir_all(&target).map_err(|e| disk(&target, e))?;
            link(&source, &target)?;
        } else {
            fs::hard_link(&source, &target).map_err(|e| disk(&target, e))?;
        }
    }
    Ok(())
}

fn bytes_below(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder).map_err(|e| disk(folder, e))? {
        let entry = entry.map_err(|e| disk(folder, e))?;
        let meta = entry.metadata().map_err(|e| disk(folder, e))?;
        bytes += if meta.is_dir() { bytes_below(&entry.path())? } else { meta.len() };
    }
    Ok(bytes)
}

fn encode_tree(tree: &Tree) -> Vec<u8> {
    prost::Message::encode_to_vec(&tree.to_proto())
}

fn decode_tree(bytes: &[u8]) -> Result<Tree> {
    let tree = prost::Message::decode(bytes)
        .map_err(|e| Error::corrupt(format!("the bench's list of live runs cannot be read ({e})")))?;
    Tree::from_proto(&tree)
}

/// Writes the ids below `entries` as runs that share no key group, each as large as an output of a compaction.
pub fn bulk(
    runtimes: &Arc<Runtimes>,
    states: &StateStore,
    tree: &Tree,
    entries: u64,
    values: Values,
) -> Result<Vec<Arc<Run>>> {
    let parts = (entries * ENTRY_BYTES).div_ceil(PART_BYTES).max(1);
    let part_of = |group: u64| group * parts / u64::from(KEY_GROUPS);
    let mut ids: Vec<Vec<u32>> = vec![Vec::new(); parts as usize];
    for id in 0..entries {
        ids[part_of(u64::from(group_of(&key_of(id)).0)) as usize].push(id as u32);
    }
    let mut runs = Vec::new();
    for (part, ids) in ids.into_iter().enumerate() {
        // The first group whose part this is.
        let start = |part: u64| (part * u64::from(KEY_GROUPS)).div_ceil(parts) as u32;
        let ranges = KeyGroupRanges::new([KeyGroupRange::new(start(part as u64), start(part as u64 + 1))]);
        let mut writer = SectionWriter::new(TASK);
        for id in ids {
            let id = u64::from(id);
            writer.put(&store_key(&key_of(id)), &values.of(id, BASE_VERSION), Expiry::Never);
        }
        let options = states.section_options(0);
        let section = writer.encode(&options, &tree.layouts(), ranges, Interval::of(Epoch(1), 0))?;
        let written = runtimes.block_on(states.write_bundle(WRITER, vec![section]))?;
        runs.extend(written.into_iter().map(Arc::new));
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use super::super::keys::Batch;
    use super::super::ours::{Millstream, Pace};
    use super::*;

    #[test]
    fn a_shard_is_built_once_and_a_linked_one_leaves_it_alone() {
        let folder = tempfile::tempdir().unwrap();
        let data = DataFolder::open(Some(folder.path())).unwrap();
        let runtimes = Arc::new(Runtimes::start(1).unwrap());
        let values = Values { compressible: false };
        let shard = data.shard(&runtimes, 2_000, values).unwrap();
        let again = data.shard(&runtimes, 2_000, values).unwrap();
        assert_eq!(shard.tree, again.tree);
        let before = bytes_below(&shard.folder).unwrap();
        let (linked, tree) = data.linked(&shard).unwrap();
        let caches = Caches::in_memory(8 << 20, 8 << 20);
        let backend = backend(linked.path()).unwrap();
        let mut ours = Millstream::new(&runtimes, backend, caches, StateStoreOptions::default(), tree, Pace::Never);
        let batch = Batch::of((0..2_100).collect(), |id| (id < 2_000).then_some(BASE_VERSION));
        batch.check("ours", ours.multi_get(&batch).unwrap()).unwrap();
        ours.settle().unwrap();
        batch.check("ours", ours.multi_get(&batch).unwrap()).unwrap();
        assert_eq!(bytes_below(&shard.folder).unwrap(), before);
        assert!(data.kept("too much", 1 << 40, |_| Ok(())).unwrap_err().to_string().contains("--gigabytes"));
    }
}
