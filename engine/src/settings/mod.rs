//! The settings: one list with key, default, unit, meaning, reader and check of each ([`list::SETTINGS`]), and the
//! typed form that the rest of the engine uses ([`Settings`]).
//!
//! Order of events: the defaults of the list, then what [`Settings::set`] is given, from the weakest layer to the
//! strongest (configuration file, `-D`, options), then [`Settings::validate`] once. A submitted job carries its part
//! ([`Reach::Job`]) as text ([`Settings::job_map`]); coordinator and workers read it back ([`Settings::from_job_map`]).
//!
//! Nothing here reads a file or the environment, and no setting is ever ignored: unknown keys are refused with the
//! nearest known one, values that no release understands yet are refused as "not built yet".

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use millstream_common::{Error, Result};
use millstream_state_store::StateStoreOptions;
use millstream_state_store::compaction::CompactionOptions;
use millstream_state_store::section::SectionOptions;

pub mod forms;
pub mod list;
#[cfg(test)]
mod tests;

pub use list::{SETTINGS, SettingDef};

/// No setting has this key.
pub const UNKNOWN_SETTING: u16 = 1400;
/// The value of a setting cannot be read.
pub const MALFORMED_SETTING: u16 = 1401;
/// Settings that contradict each other, or a value that cannot work.
pub const CONTRADICTION: u16 = 1402;
/// The setting belongs to a process, not to a submitted job.
pub const NOT_A_JOB_SETTING: u16 = 1404;
/// An option or value that has its place and its name but is not built yet.
pub const NOT_BUILT_YET: u16 = 1410;

/// Whom a setting is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// A job: `run` and `submit` take it; it travels with the job.
    Job,
    /// A process: `run`, `coordinator` and `worker` take it.
    Process,
}

/// All settings, checked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// `checkpoint.*`
    pub checkpoint: CheckpointSettings,
    /// `versions.*`
    pub versions: VersionsSettings,
    /// `restart.*`
    pub restart: RestartSettings,
    /// `watermark.*`
    pub watermark: WatermarkSettings,
    /// `state.*`
    pub state: StateSettings,
    /// `object-store.*`
    pub object_store: ObjectStoreSettings,
    /// `cache.*`
    pub cache: CacheSettings,
    /// `memory.*`
    pub memory: MemorySettings,
    /// `heartbeat.*`
    pub heartbeat: HeartbeatSettings,
    /// `worker.*`
    pub worker: WorkerSettings,
}

/// When and how state is committed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CheckpointSettings {
    /// From the start of one checkpoint to the next; zero: none but the final one.
    pub interval: Duration,
    /// From the end of one to the start of the next at least.
    pub min_pause: Duration,
    /// One that takes longer has failed.
    pub timeout: Duration,
    /// So many failures in a row are tolerated; one more restarts the job.
    pub tolerable_failures: u32,
    /// How many may be in flight.
    pub max_concurrent: u32,
    /// How many of the newest checkpoints are kept restorable.
    pub retained: u32,
    /// And all that are younger than the newest record by at most this; zero: none for their age.
    pub retained_for: Duration,
    /// Whether barriers align.
    pub mode: CheckpointMode,
    /// After so long a checkpoint turns unaligned; `None`: never.
    pub alignment_timeout: Option<Duration>,
}

/// When what no version needs any more is deleted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VersionsSettings {
    /// From one collection to the next at least; zero: none.
    pub collect_interval: Duration,
    /// And so many new records at least.
    pub collect_records: u32,
    /// From the start of a leader until it looks for objects that no version ever referred to.
    pub orphan_delay: Duration,
    /// From one such look to the next at least.
    pub orphan_interval: Duration,
}

/// What a checkpoint promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CheckpointMode {
    /// Barriers align: every row counts once.
    #[default]
    ExactlyOnce,
    /// Barriers do not align.
    AtLeastOnce,
}

/// What happens after a failure that a restart may mend.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RestartSettings {
    /// Whether and when to restart.
    pub strategy: RestartStrategy,
    /// The wait before the first restart.
    pub initial_delay: Duration,
    /// The longest wait.
    pub max_delay: Duration,
    /// The wait grows by this factor from one restart to the next.
    pub backoff_multiplier: f64,
    /// After so long without a failure the wait is the initial one again.
    pub reset_after: Duration,
    /// Each wait is longer or shorter by up to this share of it.
    pub jitter: f64,
}

/// Whether and when to restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestartStrategy {
    /// Waits that grow, without limit of their number.
    #[default]
    ExponentialDelay,
    /// The first failure is the job's.
    None,
    /// The same wait each time.
    FixedDelay,
    /// Until there are too many in a stretch of time.
    FailureRate,
}

/// Event time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WatermarkSettings {
    /// Of sources that set none themselves; `None`: a split without rows holds the watermark for ever.
    pub idle_timeout: Option<Duration>,
}

/// Keyed state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StateSettings {
    /// Where live state is kept.
    pub residency: Residency,
    /// Uncompressed bytes of a block of a state object.
    pub block_size_bytes: u64,
    /// GETs a second that reads should make in each worker.
    pub gets_per_second: u32,
    /// Runs of a key group are merged once there are so many.
    pub compaction_trigger_runs: u32,
    /// About so many bytes are written at once by a compaction.
    pub compaction_output_bytes: u64,
    /// Who runs compactions.
    pub compaction_where: CompactionPlace,
    /// When large merges into the oldest runs may begin; `None`: always.
    pub compaction_schedule: Option<DayWindow>,
    /// What the compactions of a process may read and write together in a second; `None`: as fast as it goes.
    pub compaction_bytes_per_second: Option<u64>,
}

/// Who runs compactions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompactionPlace {
    /// Compactors that have a free slot, else the worker that owns the key groups.
    #[default]
    Auto,
    /// The worker that owns the key groups.
    Workers,
    /// Compactors; workers only merge what has come to the bound of runs that a read is to see.
    Compactors,
}

/// A part of each day, in UTC; one that ends before it begins goes over midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DayWindow {
    /// Minutes after midnight.
    pub from_min: u16,
    /// Minutes after midnight, not included.
    pub to_min: u16,
}

impl DayWindow {
    /// Whether a moment, ms since 1970 (UTC), lies in it.
    #[must_use]
    pub fn holds(&self, wall_ms: i64) -> bool {
        let minute = (wall_ms.div_euclid(60_000).rem_euclid(24 * 60)) as u16;
        if self.from_min < self.to_min {
            (self.from_min..self.to_min).contains(&minute)
        } else {
            minute >= self.from_min || minute < self.to_min
        }
    }
}

/// Where live state is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Residency {
    /// In object storage, paged in through the caches.
    #[default]
    Remote,
    /// All of it on the worker's disk.
    Local,
    /// All of it in the worker's memory.
    Memory,
}

/// How object stores are talked to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObjectStoreSettings {
    /// A request is repeated for so long.
    pub retry_timeout: Duration,
    /// One attempt is given up after so long without progress.
    pub request_timeout: Duration,
    /// It may take so long to connect.
    pub connect_timeout: Duration,
    /// The wait before the first repetition; it doubles from one to the next.
    pub backoff_initial: Duration,
    /// The longest wait between two attempts.
    pub backoff_max: Duration,
    /// An object above this size is sent in parts.
    pub multipart_threshold_bytes: u64,
    /// The size of a part.
    pub multipart_part_bytes: u64,
    /// Every request is delayed by so much; for benches and tests.
    pub inject_latency: Duration,
}

/// Clean state near the subtasks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CacheSettings {
    /// Bound of all clean state in memory, rows and blocks together; `None`: a quarter of RAM, or what `memory.limit`
    /// leaves for it.
    pub memory_bytes: Option<u64>,
    /// Folder of the SSD tier; `None`: a temporary one.
    pub dir: Option<PathBuf>,
    /// Size of the SSD tier, 0 switches it off; `None`: 10 GB when the state is remote, else off.
    pub disk_bytes: Option<u64>,
}

/// What a process may hold in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MemorySettings {
    /// The process stays below it; `None`: budgets come from the size of the machine's RAM.
    pub limit_bytes: Option<u64>,
    /// Bound of state that is not in the store yet; `None`: a share of the limit.
    pub write_buffer_bytes: Option<u64>,
}

/// How coordinator and workers know of each other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeartbeatSettings {
    /// From one heart-beat of a worker to the next.
    pub interval: Duration,
    /// A worker or coordinator that is silent for so long is lost.
    pub timeout: Duration,
}

/// What a worker does when it is asked to end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkerSettings {
    /// So long it waits for slots on other workers, and for a coordinator.
    pub drain_timeout: Duration,
}

impl Settings {
    /// The defaults of the list.
    #[must_use]
    pub fn defaults() -> Self {
        let mut settings = Self::default();
        for def in SETTINGS {
            // A test reads every default.
            (def.set)(&mut settings, def.default).expect("the defaults of the list can be read");
        }
        settings
    }

    /// Sets one of them from text. Layers are applied by calling this from the weakest to the strongest.
    pub fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let def = definition(key)?;
        (def.set)(self, value).map_err(|e| {
            let what = format!("setting {key}: {}", e.what());
            let advice = if e.advice().is_empty() { format!("give {}", def.unit) } else { e.advice().to_owned() };
            Error::config(what).code(MALFORMED_SETTING).next(advice)
        })
    }

    /// The text of one of them, in the form that [`Settings::set`] reads.
    pub fn get(&self, key: &str) -> Result<String> {
        Ok((definition(key)?.get)(self))
    }

    /// Refuses values that cannot work and values that are not built yet.
    pub fn validate(&self) -> Result<()> {
        self.refuse_what_is_not_built()?;
        let (c, r, h, o) = (&self.checkpoint, &self.restart, &self.heartbeat, &self.object_store);
        need(!c.timeout.is_zero(), "checkpoint.timeout is 0", "set it above 0, for instance to 10min")?;
        need(c.max_concurrent > 0, "checkpoint.max-concurrent is 0", "1 checkpoint must be allowed")?;
        need(c.retained > 0, "checkpoint.retained is 0", "at least 1 checkpoint is kept")?;
        need(self.versions.collect_records > 0, "versions.collect-records is 0", "64 is the default")?;
        need(r.backoff_multiplier >= 1.0, "restart.backoff-multiplier is below 1", "waits must not shrink")?;
        need(
            (0.0..=1.0).contains(&r.jitter),
            "restart.jitter is not between 0 and 1",
            "give a share, for instance 0.1",
        )?;
        need(
            r.initial_delay <= r.max_delay,
            "restart.initial-delay is above restart.max-delay",
            "lower the one or raise the other",
        )?;
        need(!h.interval.is_zero(), "heartbeat.interval is 0", "set it above 0, for instance to 500ms")?;
        need(
            h.timeout >= h.interval * 2,
            "heartbeat.timeout is below twice heartbeat.interval",
            "a single late heart-beat must not look like a loss",
        )?;
        for (key, value) in [
            ("object-store.request-timeout", o.request_timeout),
            ("object-store.connect-timeout", o.connect_timeout),
            ("object-store.backoff-initial", o.backoff_initial),
            ("object-store.backoff-max", o.backoff_max),
        ] {
            need(!value.is_zero(), &format!("{key} is 0"), "set it above 0, for instance to 1s")?;
        }
        need(
            o.backoff_initial <= o.backoff_max,
            "object-store.backoff-initial is above object-store.backoff-max",
            "lower the one or raise the other",
        )?;
        need(
            o.multipart_part_bytes >= 5 << 20,
            "object-store.multipart-part-size is below 5MiB",
            "S3 takes no smaller parts; 16MiB is the default",
        )?;
        need(
            o.multipart_threshold_bytes >= o.multipart_part_bytes,
            "object-store.multipart-threshold is below object-store.multipart-part-size",
            "raise the one or lower the other",
        )?;
        need(
            (1 << 10..=1 << 20).contains(&self.state.block_size_bytes),
            "state.block-size is not between 1KiB and 1MiB",
            "4KiB to 64KiB are sensible",
        )?;
        need(
            (2..=64).contains(&self.state.compaction_trigger_runs),
            "state.compaction.trigger-runs is not between 2 and 64",
            "8 is the default",
        )?;
        need(
            self.state.compaction_output_bytes >= 1 << 10,
            "state.compaction.output-size is below 1KiB",
            "64MiB is the default",
        )?;
        need(
            self.state.compaction_bytes_per_second.is_none_or(|b| b >= 64 << 10),
            "state.compaction.bytes-per-second is below 64KiB: no compaction would end",
            "none is the default",
        )?;
        self.validate_memory()
    }

    fn validate_memory(&self) -> Result<()> {
        let Some(limit) = self.memory.limit_bytes else { return Ok(()) };
        need(
            limit >= crate::memory_plan::LEAST_LIMIT_BYTES,
            &format!("memory.limit is {}", forms::show_bytes(limit)),
            &format!("a process needs {}", forms::show_bytes(crate::memory_plan::LEAST_LIMIT_BYTES)),
        )?;
        let fixed = self.cache.memory_bytes.unwrap_or(0) + self.memory.write_buffer_bytes.unwrap_or(0);
        need(
            fixed <= limit / 2,
            &format!(
                "cache.memory and memory.write-buffer take {} of a memory.limit of {}",
                forms::show_bytes(fixed),
                forms::show_bytes(limit)
            ),
            "they may take half of it: the other half is for buffers of reads, uploads and exchanges and for the program",
        )
    }

    fn refuse_what_is_not_built(&self) -> Result<()> {
        let c = &self.checkpoint;
        if c.mode == CheckpointMode::AtLeastOnce {
            return Err(not_built_yet("checkpoint.mode=at-least-once", "use exactly-once, the default"));
        }
        if c.max_concurrent > 1 {
            let what = format!("checkpoint.max-concurrent={}", c.max_concurrent);
            return Err(not_built_yet(&what, "use 1, the default"));
        }
        if c.alignment_timeout.is_some() {
            return Err(not_built_yet("checkpoint.alignment-timeout", "use none, the default: barriers always align"));
        }
        if matches!(self.restart.strategy, RestartStrategy::FixedDelay | RestartStrategy::FailureRate) {
            let what = format!("restart.strategy={}", self.get("restart.strategy")?);
            return Err(not_built_yet(&what, "use exponential-delay or none"));
        }
        Ok(())
    }

    /// The settings `state.*` as the state store takes them.
    #[must_use]
    pub fn state_store_options(&self) -> StateStoreOptions {
        let defaults = StateStoreOptions::default();
        StateStoreOptions {
            section: SectionOptions { block_bytes: self.state.block_size_bytes as usize, ..defaults.section },
            compaction: CompactionOptions {
                trigger_runs: self.state.compaction_trigger_runs as usize,
                output_bytes: self.state.compaction_output_bytes,
            },
            gets_per_second: self.state.gets_per_second,
            ..defaults
        }
    }

    /// What travels with a submitted job: every setting with [`Reach::Job`], as text.
    #[must_use]
    pub fn job_map(&self) -> BTreeMap<String, String> {
        let of_jobs = SETTINGS.iter().filter(|d| d.reach == Reach::Job);
        of_jobs.map(|d| (d.key.to_owned(), (d.get)(self))).collect()
    }

    /// The settings of a job from what travelled with it; everything else has its default.
    pub fn from_job_map<'a>(map: impl IntoIterator<Item = (&'a String, &'a String)>) -> Result<Self> {
        let mut settings = Self::defaults();
        for (key, value) in map {
            refuse_for_job(key)?;
            settings.set(key, value)?;
        }
        settings.validate()?;
        Ok(settings)
    }
}

/// Refuses a setting that a submitted job cannot carry, since it belongs to the processes of the cluster.
pub fn refuse_for_job(key: &str) -> Result<()> {
    let def = definition(key)?;
    if def.reach == Reach::Job {
        return Ok(());
    }
    let what = format!("setting {key} is one of a process; for a single submitted job it is not built yet");
    let next = match def.option {
        Some(option) => format!("give {option} to `millstream worker`"),
        None => format!("give -D {key}=... to `millstream coordinator` and `millstream worker`"),
    };
    Err(Error::config(what).code(NOT_A_JOB_SETTING).next(next))
}

/// The refusal of something that has its name and place but is not built yet.
#[must_use]
pub fn not_built_yet(what: &str, next: &str) -> Error {
    Error::config(format!("{what} is not built yet")).code(NOT_BUILT_YET).next(next)
}

/// The definition of `key`, or an error that names the nearest known one.
pub fn definition(key: &str) -> Result<&'static SettingDef> {
    if let Some(def) = SETTINGS.iter().find(|d| d.key == key) {
        return Ok(def);
    }
    let nearest = SETTINGS.iter().min_by_key(|d| strsim::osa_distance(key, d.key)).map_or("", |d| d.key);
    Err(Error::config(format!("unknown setting '{key}'"))
        .code(UNKNOWN_SETTING)
        .next(format!("the nearest known one is {nearest}; `millstream settings` lists all")))
}

fn need(ok: bool, what: &str, next: &str) -> Result<()> {
    if ok { Ok(()) } else { Err(Error::config(what).code(CONTRADICTION).next(next)) }
}
