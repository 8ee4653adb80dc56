//! `store-bench`: the state store measured in this process, beside other stores that do the same work.
//!
//! Everything goes through the public interface of the crates: sections, bundles, views, compactions, caches, working
//! sets. Each bench prints one table with what is to be reached, our figures and, when built with the feature `peers`,
//! those of RocksDB, SlateDB and fjall ([`peers`]) in the same run. Stores take their turns in each repetition, so that a
//! slow minute meets all of them; what they answer is checked by sums.
//!
//! - [`point_read`], [`rmw`], [`mod@write`], [`barrier`]: CPU work in memory.
//! - [`after_checkpoints`], [`write_amp`]: many checkpoints, with compactions as a worker picks them.
//! - [`cold`], [`zipf`], [`checkpoint_size`]: gigabytes, kept in [`data`].
//!
//! Below them: [`keys`] (entries and popularity), [`contender`] (what is asked of a store), [`ours`], [`observed`] (an object
//! store that counts), [`measure`] (clocks), [`ideal`] (the best that a cache of rows can do), [`plot`].

pub mod after_checkpoints;
pub mod args;
pub mod barrier;
pub mod checkpoint_size;
pub mod cold;
pub mod contender;
pub mod data;
pub mod ideal;
pub mod keys;
pub mod measure;
pub mod observed;
pub mod ours;
pub mod peers;
pub mod plot;
pub mod point_read;
pub mod rmw;
pub mod row;
pub mod write;
pub mod write_amp;
pub mod zipf;

use std::path::PathBuf;
use std::sync::Arc;

use millstream_common::env::Runtimes;
use millstream_common::{Error, Result};
use tempfile::TempDir;

use self::args::{StoreCli, StoreCommand, StoreCommon};
use self::contender::Contender;
use self::data::DataFolder;
use self::keys::Values;
use crate::stats::{Spread, whole};
use crate::table::Table;

/// What every bench needs.
pub struct StoreBench {
    /// The threads of everything that is asynchronous.
    pub runtimes: Arc<Runtimes>,
    /// States of gigabytes.
    pub data: DataFolder,
    /// How values are filled.
    pub values: Values,
    /// Runs of each case.
    pub runs: u32,
    without: Vec<String>,
}

impl StoreBench {
    fn new(common: &StoreCommon) -> Result<Self> {
        Ok(Self {
            runtimes: Arc::new(Runtimes::start(2)?),
            data: DataFolder::open(common.data.as_deref())?,
            values: Values { compressible: common.compressible },
            runs: common.runs,
            without: common.without.iter().map(|w| w.to_lowercase()).collect(),
        })
    }

    /// Whether a peer is to be measured.
    #[must_use]
    pub fn wants(&self, peer: &str) -> bool {
        !self.without.iter().any(|w| peer.starts_with(w.as_str()))
    }

    /// Prints a table under a title.
    pub fn print(&self, title: &str, table: &Table) {
        println!("{title}\n\n{table}");
        if !(cfg!(feature = "rocksdb") || cfg!(feature = "slatedb") || cfg!(feature = "fjall")) {
            println!("{}\n", peers::HOW_TO_GET_THEM);
        }
    }
}

/// A folder in memory where the system has one (tmpfs), else among the temporary files: for peers that only know files,
/// beside an object store in memory. It goes away.
pub fn memory_folder() -> Result<TempDir> {
    let shared = PathBuf::from("/dev/shm");
    let parent = if shared.is_dir() { shared } else { std::env::temp_dir() };
    tempfile::tempdir_in(&parent)
        .map_err(|e| Error::unavailable("a fresh folder cannot be made").at(parent.display().to_string()).source(e))
}

/// A store, and the folder that it lives in.
pub struct Held {
    /// The store; it goes first.
    pub store: Box<dyn Contender>,
    _folder: Option<TempDir>,
}

impl Held {
    /// One that lives in memory.
    #[must_use]
    pub fn new(store: Box<dyn Contender>) -> Self {
        Self { store, _folder: None }
    }

    /// One that lives in a folder.
    #[must_use]
    pub fn in_folder(store: Box<dyn Contender>, folder: TempDir) -> Self {
        Self { store, _folder: Some(folder) }
    }
}

/// Median and range of nanoseconds.
#[must_use]
pub fn nanoseconds(values: &[f64]) -> String {
    Spread::of(values.iter().copied()).map_or_else(|| "-".to_owned(), |s| s.text(whole))
}

/// The median; 0 of nothing.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    Spread::of(values.iter().copied()).map_or(0.0, |s| s.median)
}

/// How many times `ours` another figure is.
#[must_use]
pub fn times(other: &[f64], ours: &[f64]) -> String {
    let ours = median(ours);
    if ours == 0.0 { "-".to_owned() } else { format!("{:.1} x", median(other) / ours) }
}

/// Runs the command.
pub fn run(cli: &StoreCli) -> Result<()> {
    let bench = StoreBench::new(&cli.common)?;
    if let Some(load) = crate::outside::load_average().filter(|l| *l > crate::BUSY) {
        crate::note(&format!("other processes load this machine (load average {load:.1}): the figures will be off"));
    }
    match &cli.command {
        StoreCommand::PointRead(args) => point_read::run(&bench, args),
        StoreCommand::Rmw(args) => rmw::run(&bench, args),
        StoreCommand::Write(args) => write::run(&bench, args),
        StoreCommand::AfterCheckpoints(args) => after_checkpoints::run(&bench, args),
        StoreCommand::Cold(args) => cold::run(&bench, args),
        StoreCommand::Zipf(args) => zipf::run(&bench, args),
        StoreCommand::CheckpointSize(args) => checkpoint_size::run(&bench, args),
        StoreCommand::WriteAmp(args) => write_amp::run(&bench, args),
        StoreCommand::Barrier(args) => barrier::run(&bench, args),
    }
}
