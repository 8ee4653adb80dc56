//! What a worker needs from the process around it: object stores, caches, limits.

use millstream_common::{Error, Result};
use millstream_objects::Store;
use millstream_state_store::compaction::Throttle;
use millstream_state_store::{Caches, Residency, StateStoreOptions};

use crate::settings::{self, Settings};
pub use crate::task::keyed::TaskMemory;

/// Opens what jobs need; implemented by the binary, the simulation and tests.
pub trait Stores: Send + Sync {
    /// The place STATE/NAME of a job, with a meter of its own.
    fn job_store(&self, name: &str, settings: &Settings) -> Result<Store>;
    /// The caches of this process. All jobs of a worker share them.
    fn caches(&self) -> Caches;
    /// What a keyed subtask may hold, when `subtasks` of them share the worker.
    fn task_memory(&self, settings: &Settings, subtasks: usize) -> TaskMemory;
    /// What a job may pin that has subtasks in so many of the worker's slots, bytes.
    fn pin_share_bytes(&self, _subtasks: usize, _slots: usize) -> u64 {
        u64::MAX
    }
    /// How fast the compactions of this process may read and write, those of all jobs together.
    fn throttle(&self) -> Throttle {
        Throttle::default()
    }
    /// How a job's state is written, read and merged: its settings, within the memory of this process.
    fn state_options(&self, settings: &Settings) -> StateStoreOptions {
        settings.state_store_options()
    }
    /// Where the live state of the job of this name is kept.
    ///
    /// # Errors
    /// 7022: not where its settings say, in this process.
    fn residency(&self, _name: &str, settings: &Settings) -> Result<Residency> {
        match settings.state.residency {
            settings::Residency::Remote => Ok(Residency::Remote),
            settings::Residency::Memory => Ok(Residency::Memory),
            settings::Residency::Local => Err(Error::config("this process has no disk for state.residency=local")
                .code(7022)
                .next("use remote or memory")),
        }
    }
}
