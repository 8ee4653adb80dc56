//! What a worker gets of its process: the place of state, caches, and shares of the memory.

use std::path::PathBuf;

use millstream_cache::{CacheOptions, DiskOptions};
use millstream_common::{Env, Error, Result};
use millstream_engine::memory_plan::MemoryPlan;
use millstream_engine::settings::Settings;
use millstream_engine::worker::Stores;
use millstream_engine::worker::stores::TaskMemory;
use millstream_objects::{Meter, Store};
use millstream_state_store::Caches;

use millstream_state_store::StateStoreOptions;
use millstream_state_store::compaction::CompactionOptions;

use crate::process::is_remote;

/// Size of the SSD tier when state is remote and nothing else was said.
const DISK_BYTES: u64 = 10_000_000_000;

/// However small the memory is, requests and objects have this size at least.
const LEAST_BYTES: u64 = 1 << 20;

/// The same for what is read ahead in a run.
const LEAST_AHEAD_BYTES: u64 = 64 << 10;

/// The stores of one process.
pub struct ProcessStores {
    state: Store,
    caches: Caches,
    plan: MemoryPlan,
    /// A folder that lives as long as this, when none was named.
    _folder: Option<tempfile::TempDir>,
}

impl ProcessStores {
    /// Opens the caches. `state` is the place that `state_url` names.
    pub async fn open(state: Store, state_url: &str, settings: &Settings, plan: MemoryPlan, env: &Env) -> Result<Self> {
        let (disk, folder) = disk_tier(state_url, settings)?;
        let options = CacheOptions { memory_bytes: plan.blocks_bytes, metadata_bytes: plan.metadata_bytes, pinned_bytes: 0, disk };
        let caches = Caches::new(&options, env).await?;
        Ok(Self { state, caches, plan, _folder: folder })
    }

    /// For a process that runs no subtask.
    #[must_use]
    pub fn without_caches(state: Store) -> Self {
        let plan = MemoryPlan::new(&Settings::defaults(), 0);
        Self { state, caches: Caches::in_memory(1 << 20, 1 << 20), plan, _folder: None }
    }
}

/// The SSD tier that the settings ask for, and its folder when that is a temporary one.
fn disk_tier(state_url: &str, settings: &Settings) -> Result<(Option<DiskOptions>, Option<tempfile::TempDir>)> {
    let auto = if is_remote(state_url) { DISK_BYTES } else { 0 };
    let bytes = settings.cache.disk_bytes.unwrap_or(auto);
    if bytes == 0 {
        return Ok((None, None));
    }
    if let Some(dir) = &settings.cache.dir {
        return Ok((Some(DiskOptions { dir: dir.clone(), bytes }), None));
    }
    let folder = tempfile::Builder::new().prefix("millstream-cache-").tempdir().map_err(|e| {
        Error::config("no temporary folder can be made for the SSD tier")
            .code(1423)
            .next("name one by --cache-dir, or give --cache-disk 0")
            .source(e)
    })?;
    let dir: PathBuf = folder.path().to_owned();
    Ok((Some(DiskOptions { dir, bytes }), Some(folder)))
}

impl Stores for ProcessStores {
    fn job_store(&self, name: &str, _: &Settings) -> Result<Store> {
        Ok(self.state.child(name).with_meter(Meter::new()))
    }

    fn caches(&self) -> Caches {
        self.caches.clone()
    }

    fn state_options(&self, settings: &Settings) -> StateStoreOptions {
        let options = settings.state_store_options();
        // A compaction holds its output as entries and as the object that is made from them, and reads ahead in each of
        // its inputs; two may run.
        let output = self.plan.compaction_bytes / 4;
        let ahead = self.plan.compaction_bytes / 4 / options.compaction.trigger_runs.max(1) as u64;
        StateStoreOptions {
            bytes_in_flight: within(options.bytes_in_flight, self.plan.reads_bytes / 3, LEAST_BYTES),
            request_bytes: within(options.request_bytes, self.plan.reads_bytes / 12, LEAST_BYTES),
            read_ahead_bytes: within(options.read_ahead_bytes, ahead, LEAST_AHEAD_BYTES),
            compaction: CompactionOptions {
                output_bytes: within(options.compaction.output_bytes, output, LEAST_BYTES),
                ..options.compaction
            },
            ..options
        }
    }

    fn task_memory(&self, _: &Settings, subtasks: usize) -> TaskMemory {
        let share = |bytes: u64| bytes / subtasks.max(1) as u64;
        TaskMemory {
            rows_bytes: share(self.plan.rows_bytes),
            write_buffer_bytes: share(self.plan.write_buffer_bytes),
            // The rest is for the GETs that bring them.
            reads_bytes: share(self.plan.reads_bytes / 3 * 2),
        }
    }
}

/// What is left of a section option when the memory for it is `budget`.
fn within(wanted: u64, budget: u64, least: u64) -> u64 {
    wanted.min(budget.max(least))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let mut s = Settings::defaults();
        for (key, value) in pairs {
            s.set(key, value).unwrap();
        }
        s
    }

    #[tokio::test]
    async fn a_small_memory_makes_requests_and_outputs_smaller() {
        let small = settings(&[("memory.limit", "400MiB"), ("cache.memory", "64MiB")]);
        let env = Env::test(1);
        let open = || Store::open("memory://", &Default::default(), &Default::default(), &env).unwrap();
        let stores = |s: &Settings| ProcessStores {
            state: open(),
            caches: Caches::in_memory(1, 1),
            plan: MemoryPlan::new(s, 64 << 30),
            _folder: None,
        };
        let tight = stores(&small).state_options(&small);
        let plan = MemoryPlan::new(&small, 0);
        assert!(
            tight.compaction.output_bytes * 4 <= plan.compaction_bytes && tight.bytes_in_flight * 2 <= plan.reads_bytes
        );
        let wide = settings(&[]);
        assert_eq!(stores(&wide).state_options(&wide).compaction.output_bytes, 64 << 20);
        assert_eq!(stores(&small).task_memory(&small, 2).write_buffer_bytes, plan.write_buffer_bytes / 2);
    }

    #[test]
    fn the_ssd_tier_is_for_remote_state_unless_told_otherwise() {
        let (disk, folder) = disk_tier("s3://b/x", &settings(&[])).unwrap();
        assert_eq!(disk.unwrap().bytes, DISK_BYTES);
        assert!(folder.unwrap().path().is_dir());
        assert!(disk_tier("file:///x", &settings(&[])).unwrap().0.is_none());
        assert!(disk_tier("s3://b/x", &settings(&[("cache.disk", "0")])).unwrap().0.is_none());
        let (disk, folder) =
            disk_tier("file:///x", &settings(&[("cache.disk", "1GB"), ("cache.dir", "/fast")])).unwrap();
        assert_eq!(disk.unwrap(), DiskOptions { dir: "/fast".into(), bytes: 1_000_000_000 });
        assert!(folder.is_none());
    }
}
