//! What a worker or compactor gets of its process: the place of state, caches, and shares of the memory.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use millstream_cache::{CacheOptions, CacheStats, DiskBudget, DiskOptions, FileStats, LocalFiles};
use millstream_common::{Env, ErrorKind, Result};
use millstream_engine::memory_plan::MemoryPlan;
use millstream_engine::settings::{self, Settings};
use millstream_engine::worker::Stores;
use millstream_engine::worker::stores::TaskMemory;
use millstream_objects::{Meter, Metered, Store};
use millstream_state_store::compaction::{CompactionOptions, Throttle};
use millstream_state_store::{Caches, Residency, StateStoreOptions};
use parking_lot::Mutex;

use crate::folders::Folder;
use crate::process::is_remote;

/// So many compactions run at a time on a worker, as a rule.
const MERGES: u64 = 2;

/// Size of the SSD tier when state is remote and nothing else was said.
const DISK_BYTES: u64 = 10_000_000_000;

/// However small the memory is, requests and objects have this size at least.
const LEAST_BYTES: u64 = 1 << 20;

/// The same for what is read ahead in a run.
const LEAST_AHEAD_BYTES: u64 = 64 << 10;

/// What is due may take so much in a subtask, however little memory there is: smaller scans would be a GET for a few rows.
const DUE_BYTES_MIN: u64 = 4 << 20;

/// A disk that stands still holds an end up no longer than this.
const CLOSING: Duration = Duration::from_secs(5);

/// Below the folder of the caches: a folder for each job that keeps its state on the local disk.
const LOCAL: &str = "local";

/// The stores of one process.
pub struct ProcessStores {
    state: Store,
    caches: Caches,
    plan: MemoryPlan,
    /// It reads state of jobs: caches and budgets are in use.
    has_caches: bool,
    /// Compactions that share the memory for them.
    merges: u64,
    throttle: Throttle,
    local: LocalState,
    /// That of the SSD tier.
    folder: Option<Folder>,
}

/// Where jobs keep their state on the local disk.
struct LocalState {
    env: Env,
    /// None: a temporary folder.
    dir: Option<PathBuf>,
    /// For all jobs.
    budget: DiskBudget,
    opened: Mutex<Opened>,
}

#[derive(Default)]
struct Opened {
    jobs: BTreeMap<String, LocalFiles>,
    temporary: Option<Folder>,
}

impl LocalState {
    fn new(settings: &Settings, env: &Env) -> Self {
        let budget = DiskBudget::new(settings.cache.disk_bytes.unwrap_or(u64::MAX));
        Self { env: env.clone(), dir: settings.cache.dir.clone(), budget, opened: Mutex::default() }
    }

    /// The folder of a job: one, however often the job is deployed here.
    fn of(&self, job: &str) -> Result<LocalFiles> {
        let mut opened = self.opened.lock();
        if let Some(files) = opened.jobs.get(job) {
            return Ok(files.clone());
        }
        let dir = match (&self.dir, &opened.temporary) {
            (Some(dir), _) => dir.join(LOCAL),
            (None, Some(temporary)) => temporary.path().to_owned(),
            (None, None) => opened.temporary.insert(Folder::temporary()?).path().to_owned(),
        };
        let files = LocalFiles::open(&dir.join(job), &self.budget, &self.env)?;
        opened.jobs.insert(job.to_owned(), files.clone());
        Ok(files)
    }
}

impl LocalState {
    /// A disk that fails makes a job slower and does not end it: everything is in the object store.
    fn residency(&self, job: &str) -> Result<Residency> {
        match self.of(job) {
            Ok(files) => Ok(Residency::Local(files)),
            // Not when another process has it: that passes.
            Err(e) if e.kind() == ErrorKind::Config => {
                tracing::warn!(
                    "state of job {job} is kept in the object store alone, as if residency were remote: {e}"
                );
                Ok(Residency::Remote)
            }
            Err(e) => Err(e),
        }
    }

    /// Refuses a folder that cannot be used before anything runs.
    fn check(&self) -> Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        std::fs::create_dir_all(dir.join(LOCAL)).map_err(|e| LocalFiles::unusable(dir, e))
    }
}

impl ProcessStores {
    /// Opens the caches. `state` is the place that `state_url` names.
    pub async fn open(state: Store, state_url: &str, settings: &Settings, plan: MemoryPlan, env: &Env) -> Result<Self> {
        let (disk, folder) = disk_tier(state_url, settings)?.unzip();
        let options = CacheOptions {
            memory_bytes: plan.blocks_bytes,
            metadata_bytes: plan.metadata_bytes,
            pinned_bytes: plan.pinned_bytes,
            disk,
        };
        let caches = Caches::new(&options, env).await?;
        let throttle = Throttle::new(settings.state.compaction_bytes_per_second.unwrap_or(0));
        let local = LocalState::new(settings, env);
        // Of `run`, whose one job is known here.
        if settings.state.residency == settings::Residency::Local {
            local.check()?;
        }
        Ok(Self { state, caches, plan, merges: MERGES, throttle, has_caches: true, local, folder })
    }

    /// For a process that runs so many compactions at a time.
    #[must_use]
    pub fn for_merges(self, merges: u32) -> Self {
        Self { merges: u64::from(merges).max(1), ..self }
    }

    /// For a process that reads no state of jobs: a coordinator.
    #[must_use]
    pub fn without_caches(state: Store, env: &Env) -> Self {
        let defaults = Settings::defaults();
        let (plan, local) = (MemoryPlan::new(&defaults, 0), LocalState::new(&defaults, env));
        let (caches, throttle) = (Caches::in_memory(1 << 20, 1 << 20), Throttle::default());
        Self { state, caches, plan, merges: MERGES, throttle, has_caches: false, local, folder: None }
    }

    /// Ends the SSD tier in order, so that a successor finds in it what was inserted. Waits no longer than `CLOSING`.
    pub async fn close(&self, env: &Env) {
        // One that goes with the process need not be complete.
        if self.folder.as_ref().is_some_and(|f| !f.is_temporary())
            && env.timeout(CLOSING, "the end of the cache on disk", self.caches.close()).await.is_err()
        {
            tracing::warn!("the cache on disk did not end within {CLOSING:?}: some of it may be lost");
        }
    }

    /// What the caches did; none in a coordinator.
    #[must_use]
    pub fn cache_stats(&self) -> Option<CacheStats> {
        self.has_caches.then(|| self.caches.stats())
    }

    /// What became of the state that jobs keep on the local disk, by the name of the job.
    #[must_use]
    pub fn local_stats(&self) -> BTreeMap<String, FileStats> {
        self.local.opened.lock().jobs.iter().map(|(job, files)| (job.clone(), files.stats())).collect()
    }

    /// How the memory is divided; none in a coordinator.
    #[must_use]
    pub fn memory_plan(&self) -> Option<MemoryPlan> {
        self.has_caches.then_some(self.plan)
    }

    /// Requests for no job: leader records, definitions of jobs.
    #[must_use]
    pub fn cluster_requests(&self) -> Metered {
        self.state.meter().snapshot()
    }

    /// The present limits of reads and writes a second while the store throttles.
    #[must_use]
    pub fn limits_per_s(&self) -> (Option<u64>, Option<u64>) {
        self.state.limits_per_s()
    }
}

/// The SSD tier that the settings ask for, and its folder.
fn disk_tier(state_url: &str, settings: &Settings) -> Result<Option<(DiskOptions, Folder)>> {
    let auto = if is_remote(state_url) { DISK_BYTES } else { 0 };
    let bytes = settings.cache.disk_bytes.unwrap_or(auto);
    // Of `run`, whose one job is known here. A worker's jobs say it themselves, and go round the SSD tier then.
    if bytes == 0 || settings.state.residency != settings::Residency::Remote {
        return Ok(None);
    }
    let folder = match &settings.cache.dir {
        Some(dir) => Folder::of_ssd_tier(dir)?,
        None => Folder::temporary()?,
    };
    let options = DiskOptions { dir: folder.path().to_owned(), bytes };
    Ok(Some((options, folder)))
}

impl Stores for ProcessStores {
    fn job_store(&self, name: &str, _: &Settings) -> Result<Store> {
        Ok(self.state.child(name).with_meter(Meter::new()))
    }

    fn caches(&self) -> Caches {
        self.caches.clone()
    }

    fn throttle(&self) -> Throttle {
        self.throttle.clone()
    }

    fn state_options(&self, settings: &Settings) -> StateStoreOptions {
        let options = settings.state_store_options();
        // A compaction holds its output as entries and as the object that is made from them, and reads ahead in each of
        // its inputs.
        let output = self.plan.compaction_bytes / (2 * self.merges);
        let ahead = output / options.compaction.trigger_runs.max(1) as u64;
        StateStoreOptions {
            bytes_in_flight: within(options.bytes_in_flight, self.plan.reads_bytes / 3, LEAST_BYTES),
            request_bytes: within(options.request_bytes, self.plan.reads_bytes / 12, LEAST_BYTES),
            admission_bytes: within(options.admission_bytes, self.plan.encode_bytes / 4, LEAST_BYTES),
            read_ahead_bytes: within(options.read_ahead_bytes, ahead, LEAST_AHEAD_BYTES),
            compaction: CompactionOptions {
                output_bytes: within(options.compaction.output_bytes, output, LEAST_BYTES),
                ..options.compaction
            },
            ..options
        }
    }

    fn residency(&self, name: &str, settings: &Settings) -> Result<Residency> {
        Ok(match settings.state.residency {
            settings::Residency::Remote => Residency::Remote,
            settings::Residency::Memory => Residency::Memory,
            settings::Residency::Local => self.local.residency(name)?,
        })
    }

    fn pin_share_bytes(&self, subtasks: usize, slots: usize) -> u64 {
        pin_share(self.plan.pinned_bytes, subtasks, slots)
    }

    fn task_memory(&self, settings: &Settings, subtasks: usize) -> TaskMemory {
        let share = |bytes: u64| bytes / subtasks.max(1) as u64;
        // Within a limit, what is pinned takes the place of rows: they would be there twice.
        let pins_rows = settings.state.residency == settings::Residency::Memory && self.plan.baseline_bytes > 0;
        let rows_bytes = if pins_rows { self.plan.rows_bytes - self.plan.pinned_bytes } else { self.plan.rows_bytes };
        TaskMemory {
            rows_bytes: share(rows_bytes),
            due_bytes: share(rows_bytes).max(DUE_BYTES_MIN),
            write_buffer_bytes: share(self.plan.write_buffer_bytes),
            // The rest is for the GETs that bring them.
            reads_bytes: share(self.plan.reads_bytes / 3 * 2),
        }
    }
}

/// What a job may pin whose subtasks take so many of the slots: the others' rows have the rest.
fn pin_share(pinned_bytes: u64, subtasks: usize, slots: usize) -> u64 {
    let slots = slots.max(subtasks).max(1) as u64;
    (u128::from(pinned_bytes) * subtasks as u128 / u128::from(slots)) as u64
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
            has_caches: true,
            merges: MERGES,
            throttle: Throttle::default(),
            local: LocalState::new(s, &env),
            folder: None,
        };
        let tight = stores(&small).state_options(&small);
        let plan = MemoryPlan::new(&small, 0);
        assert!(
            tight.compaction.output_bytes * 4 <= plan.compaction_bytes && tight.bytes_in_flight * 2 <= plan.reads_bytes
        );
        let (four, two) = (stores(&small).for_merges(4).state_options(&small), tight.compaction.output_bytes);
        assert!(four.compaction.output_bytes <= two / 2, "each of four has half of what each of two has");
        let wide = settings(&[]);
        assert_eq!(stores(&wide).state_options(&wide).compaction.output_bytes, 64 << 20);
        assert_eq!(stores(&small).task_memory(&small, 2).write_buffer_bytes, plan.write_buffer_bytes / 2);
        // What is pinned takes the place of rows.
        let pinned = settings(&[("state.residency", "memory"), ("memory.limit", "400MiB"), ("cache.memory", "64MiB")]);
        let rows = |s: &Settings| stores(s).task_memory(s, 1).rows_bytes;
        assert_eq!(rows(&pinned) + plan.pinned_bytes, rows(&small));
    }

    #[test]
    fn jobs_pin_no_more_than_their_slots_are_worth() {
        assert_eq!([1, 2, 3].map(|subtasks| pin_share(900, subtasks, 3)), [300, 600, 900]);
        assert_eq!((pin_share(900, 0, 0), pin_share(900, 5, 2), pin_share(u64::MAX, 1, 2)), (0, 900, u64::MAX / 2));
    }

    #[test]
    fn a_job_goes_on_without_a_folder_for_local_state() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("cache");
        let words = [("cache.dir", cache.to_str().unwrap()), ("state.residency", "local")];
        let local = LocalState::new(&settings(&words), &Env::test(1));
        local.check().unwrap();
        assert!(matches!(local.residency("a").unwrap(), Residency::Local(_)));
        // The folder is there no more, and cannot be made.
        std::fs::remove_dir_all(&cache).unwrap();
        std::fs::write(&cache, "a file").unwrap();
        assert!(matches!(local.residency("b").unwrap(), Residency::Remote));
        assert_eq!(local.check().unwrap_err().number(), 1212);
    }

    #[test]
    fn the_ssd_tier_is_for_remote_state_unless_told_otherwise() {
        let (disk, folder) = disk_tier("s3://b/x", &settings(&[])).unwrap().unwrap();
        assert_eq!(disk.bytes, DISK_BYTES);
        assert!(folder.path().is_dir() && folder.is_temporary());
        assert!(disk_tier("file:///x", &settings(&[])).unwrap().is_none());
        assert!(disk_tier("s3://b/x", &settings(&[("cache.disk", "0")])).unwrap().is_none());
        assert!(disk_tier("s3://b/x", &settings(&[("state.residency", "local")])).unwrap().is_none());
        let fast = tempfile::tempdir().unwrap();
        let named = settings(&[("cache.disk", "1GB"), ("cache.dir", fast.path().to_str().unwrap())]);
        let (disk, folder) = disk_tier("file:///x", &named).unwrap().unwrap();
        assert_eq!(disk, DiskOptions { dir: fast.path().join("ssd-0"), bytes: 1_000_000_000 });
        assert!(!folder.is_temporary());
    }
}
