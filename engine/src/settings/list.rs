//! The one list. docs/settings.md is made from it by `millstream settings --markdown`.

use std::fmt::Write;

use millstream_common::Result;

use super::forms::{Auto, Count, Folder, Form, Mode, Number, Perhaps, Place, Runner, Schedule, Size, Strategy, Time};
use super::{Reach, Settings};

/// One setting.
pub struct SettingDef {
    /// What users write.
    pub key: &'static str,
    /// Its default, as users would write it.
    pub default: &'static str,
    /// How its values are written.
    pub unit: &'static str,
    /// What it does, in a sentence.
    pub meaning: &'static str,
    /// Whom it is for.
    pub reach: Reach,
    /// The option of the command line that is short for it.
    pub option: Option<&'static str>,
    /// Reads a value into the typed settings.
    pub set: fn(&mut Settings, &str) -> Result<()>,
    /// Writes the value in the form that `set` reads.
    pub get: fn(&Settings) -> String,
}

const DURATION: &str = "duration: 250us, 500ms, 10s, 2min, 1h, 3d or 0";
const SIZE: &str = "size: 512MiB, 20GB or a number of bytes";
const COUNT: &str = "whole number";

macro_rules! setting {
    ($key:literal = $default:literal, $form:ty, $unit:expr, $($field:ident).+, $reach:ident, $option:expr, $meaning:literal) => {
        SettingDef {
            key: $key,
            default: $default,
            unit: $unit,
            meaning: $meaning,
            reach: Reach::$reach,
            option: $option,
            set: |settings, text| {
                settings.$($field).+ = <$form as Form>::read(text)?;
                Ok(())
            },
            get: |settings| <$form as Form>::show(&settings.$($field).+),
        }
    };
}

/// All settings, in the order in which they are documented.
pub static SETTINGS: &[SettingDef] = &[
    setting!(
        "checkpoint.interval" = "1s",
        Time,
        DURATION,
        checkpoint.interval,
        Job,
        Some("--checkpoint-interval"),
        "From the start of one checkpoint to the start of the next; 0: none but the final one."
    ),
    setting!(
        "checkpoint.min-pause" = "0",
        Time,
        DURATION,
        checkpoint.min_pause,
        Job,
        None,
        "From the end of one checkpoint to the start of the next at least."
    ),
    setting!(
        "checkpoint.timeout" = "10min",
        Time,
        DURATION,
        checkpoint.timeout,
        Job,
        None,
        "A checkpoint that takes longer has failed; its state goes with the next one."
    ),
    setting!(
        "checkpoint.tolerable-failures" = "10",
        Count,
        COUNT,
        checkpoint.tolerable_failures,
        Job,
        None,
        "So many checkpoints in a row may fail; one more restarts the job."
    ),
    setting!(
        "checkpoint.max-concurrent" = "1",
        Count,
        COUNT,
        checkpoint.max_concurrent,
        Job,
        None,
        "How many checkpoints may be in flight. More than 1 is not built yet."
    ),
    setting!(
        "checkpoint.retained" = "10",
        Count,
        COUNT,
        checkpoint.retained,
        Job,
        None,
        "How many of the newest checkpoints are kept and shown by `versions` as restorable."
    ),
    setting!(
        "checkpoint.retained-for" = "0",
        Time,
        DURATION,
        checkpoint.retained_for,
        Job,
        None,
        "Checkpoints that are younger than the newest version by at most this are kept besides; 0: none for their age."
    ),
    setting!(
        "checkpoint.mode" = "exactly-once",
        Mode,
        "exactly-once, at-least-once",
        checkpoint.mode,
        Job,
        None,
        "Whether barriers align. at-least-once is not built yet."
    ),
    setting!(
        "checkpoint.alignment-timeout" = "none",
        Perhaps<Time>,
        "none, or a duration",
        checkpoint.alignment_timeout,
        Job,
        None,
        "An alignment that takes longer turns the checkpoint unaligned. Not built yet: barriers always align."
    ),
    setting!(
        "versions.collect-interval" = "30s",
        Time,
        DURATION,
        versions.collect_interval,
        Job,
        None,
        "From one collection of what no kept version needs to the next at least; 0: nothing is ever deleted."
    ),
    setting!(
        "versions.collect-records" = "64",
        Count,
        COUNT,
        versions.collect_records,
        Job,
        None,
        "A collection waits for so many new version records, too."
    ),
    setting!(
        "versions.orphan-delay" = "5min",
        Time,
        DURATION,
        versions.orphan_delay,
        Job,
        None,
        "So long after its start a job looks for state objects of earlier deployments that no version ever listed."
    ),
    setting!(
        "versions.orphan-interval" = "1h",
        Time,
        DURATION,
        versions.orphan_interval,
        Job,
        None,
        "From one such look to the next at least; a job that writes nothing does not look again."
    ),
    setting!(
        "restart.strategy" = "exponential-delay",
        Strategy,
        "exponential-delay, none, fixed-delay, failure-rate",
        restart.strategy,
        Job,
        None,
        "What follows a failure that a restart may mend. exponential-delay: waits that grow, without limit of their number; none: the job fails. fixed-delay and failure-rate are not built yet."
    ),
    setting!(
        "restart.initial-delay" = "1s",
        Time,
        DURATION,
        restart.initial_delay,
        Job,
        None,
        "The wait before the first restart."
    ),
    setting!(
        "restart.max-delay" = "1min",
        Time,
        DURATION,
        restart.max_delay,
        Job,
        None,
        "The longest wait before a restart."
    ),
    setting!(
        "restart.backoff-multiplier" = "1.5",
        Number,
        "number from 1",
        restart.backoff_multiplier,
        Job,
        None,
        "The wait grows by this factor from one restart to the next."
    ),
    setting!(
        "restart.reset-after" = "1h",
        Time,
        DURATION,
        restart.reset_after,
        Job,
        None,
        "After so long without a failure the wait is the initial one again."
    ),
    setting!(
        "restart.jitter" = "0.1",
        Number,
        "number from 0 to 1",
        restart.jitter,
        Job,
        None,
        "Each wait is longer or shorter by up to this share of it."
    ),
    setting!(
        "watermark.idle-timeout" = "none",
        Perhaps<Time>,
        "none, or a duration",
        watermark.idle_timeout,
        Job,
        None,
        "A split without rows for so long no longer holds the watermark. For sources that set none themselves (the jobs' --idle-timeout does)."
    ),
    setting!(
        "state.residency" = "remote",
        Place,
        "remote, local, memory",
        state.residency,
        Job,
        Some("--residency"),
        "Where live state is kept. remote: in the object store, paged in through the caches. local: in files below cache.dir, too, as far as cache.disk goes. memory: in memory, too. Checkpoints are the same; it may change from one start to the next."
    ),
    setting!(
        "state.block-size" = "15KiB",
        Size,
        SIZE,
        state.block_size_bytes,
        Job,
        None,
        "Uncompressed bytes of a block, the unit of reads and caches. Below a power of two, since the SSD tier adds a header and rounds up to 4 KiB."
    ),
    setting!(
        "state.gets-per-second" = "300",
        Count,
        COUNT,
        state.gets_per_second,
        Job,
        None,
        "GETs a second that a job's reads should make in each worker; what is not used gathers for 10 s. Nothing waits beyond it: blocks that lie near each other are then fetched together, by fewer and larger GETs."
    ),
    setting!(
        "state.compaction.trigger-runs" = "8",
        Count,
        COUNT,
        state.compaction_trigger_runs,
        Job,
        None,
        "Sorted runs of a key group are merged once there are so many; a read looks into each of them. What is young is merged beside a long merge, from half as many again on by the subtask's worker; the subtask slows itself down the more, the more there are."
    ),
    setting!(
        "state.compaction.output-size" = "64MiB",
        Size,
        SIZE,
        state.compaction_output_bytes,
        Job,
        None,
        "A compaction writes objects of about this size; its memory follows from it, so a memory.limit makes them smaller."
    ),
    setting!(
        "state.compaction.where" = "auto",
        Runner,
        "auto, workers, compactors",
        state.compaction_where,
        Job,
        None,
        "Who runs compactions. auto: a compactor that has a free slot, else the worker that owns the key groups. compactors: workers only merge what has half as many runs again as trigger-runs."
    ),
    setting!(
        "state.compaction.schedule" = "always",
        Schedule,
        "always, or a part of each day in UTC: 22:00-06:00",
        state.compaction_schedule,
        Job,
        None,
        "When merges into the oldest run of more than output-size may begin. Younger runs are merged at any time, and so are old ones that are overdue: twice as many bytes lie above the oldest run as in it, or it has at most eight times output-size and there are half as many runs again as trigger-runs."
    ),
    setting!(
        "state.compaction.bytes-per-second" = "none",
        Perhaps<Size>,
        "none, or a size",
        state.compaction_bytes_per_second,
        Process,
        None,
        "What all compactions of the process may read from and write to the object store in a second. One that is too low for what comes in makes subtasks wait."
    ),
    setting!(
        "object-store.retry-timeout" = "3min",
        Time,
        DURATION,
        object_store.retry_timeout,
        Process,
        None,
        "For how long a request to the object store is repeated before it has failed."
    ),
    setting!(
        "object-store.request-timeout" = "30s",
        Time,
        DURATION,
        object_store.request_timeout,
        Process,
        None,
        "After how long without progress one attempt is given up."
    ),
    setting!(
        "object-store.connect-timeout" = "5s",
        Time,
        DURATION,
        object_store.connect_timeout,
        Process,
        None,
        "How long it may take to connect."
    ),
    setting!(
        "object-store.backoff-initial" = "50ms",
        Time,
        DURATION,
        object_store.backoff_initial,
        Process,
        None,
        "The wait before the first repetition; it doubles from one to the next."
    ),
    setting!(
        "object-store.backoff-max" = "10s",
        Time,
        DURATION,
        object_store.backoff_max,
        Process,
        None,
        "The longest wait between two attempts."
    ),
    setting!(
        "object-store.multipart-threshold" = "32MiB",
        Size,
        SIZE,
        object_store.multipart_threshold_bytes,
        Process,
        None,
        "An object above this size is sent in parts, where the store has that."
    ),
    setting!(
        "object-store.multipart-part-size" = "16MiB",
        Size,
        SIZE,
        object_store.multipart_part_bytes,
        Process,
        None,
        "The size of a part; four are on their way at once, and each is a PUT. S3 takes none below 5MiB."
    ),
    setting!(
        "object-store.inject-latency" = "0",
        Time,
        DURATION,
        object_store.inject_latency,
        Process,
        None,
        "Delays every request by so much. For benches and tests; a warning says that it is on."
    ),
    setting!(
        "cache.memory" = "auto",
        Auto<Size>,
        "auto, or a size",
        cache.memory_bytes,
        Process,
        Some("--cache-memory"),
        "Bound of all clean state in memory, rows and blocks together. auto: a quarter of RAM, or what memory.limit leaves for it."
    ),
    setting!(
        "cache.dir" = "auto",
        Auto<Folder>,
        "auto, or a folder",
        cache.dir,
        Process,
        Some("--cache-dir"),
        "Folder of the SSD tier and of local state (state.residency=local); what is lost in it is read from the object store. auto: a temporary one."
    ),
    setting!(
        "cache.disk" = "auto",
        Auto<Size>,
        "auto, or a size",
        cache.disk_bytes,
        Process,
        Some("--cache-disk"),
        "Size of the SSD tier, and bound of the local state of all jobs of the process, each by itself; 0 switches both off. auto: the SSD tier has 10GB when the state is remote (s3, gs, az), else is off; local state has no bound."
    ),
    setting!(
        "memory.limit" = "none",
        Perhaps<Size>,
        "none, or a size",
        memory.limit_bytes,
        Process,
        Some("--memory-limit"),
        "The process stays below it: all budgets are divided from it. none: they come from the size of RAM."
    ),
    setting!(
        "memory.write-buffer" = "auto",
        Auto<Size>,
        "auto, or a size",
        memory.write_buffer_bytes,
        Process,
        None,
        "Bound of state that is not in the object store yet; a process that reaches it flushes early and pushes back. auto: a share of memory.limit."
    ),
    setting!(
        "heartbeat.interval" = "500ms",
        Time,
        DURATION,
        heartbeat.interval,
        Process,
        None,
        "From one heart-beat of a worker to the next; counters of `status` are as old at most."
    ),
    setting!(
        "heartbeat.timeout" = "5s",
        Time,
        DURATION,
        heartbeat.timeout,
        Process,
        None,
        "A worker that is silent for so long is lost: its jobs restart."
    ),
    setting!(
        "worker.drain-timeout" = "25s",
        Time,
        DURATION,
        worker.drain_timeout,
        Process,
        None,
        "So long a worker that is asked to end (SIGTERM, SIGINT) waits for slots on other workers; its jobs then restart from a last checkpoint once there are some. It ends 4 s later at most: keep that below what your platform allows (Kubernetes: 30 s)."
    ),
];

/// The page docs/settings.md.
#[must_use]
pub fn markdown() -> String {
    let mut page = String::from(
        "# Settings\n\n\
         <!-- Made by `millstream settings --markdown` from the list in engine/src/settings/list.rs; a test compares. -->\n\n\
         Given by `-D key=value`, by `--config FILE.toml` (tables or dotted keys), or by the option that is short for one.\n\
         Options win over `-D`, `-D` wins over the file, the file over the defaults. An unknown key is refused.\n\n\
         *job*: for `run` and `submit`; travels with the job and may differ when it goes on. *process*: for `run`, `coordinator`, `worker` and `compactor`.\n\n\
         Where a process serves its metrics is an option of `run`, `coordinator`, `worker` and `compactor` (`--metrics-listen`): [metrics.md](metrics.md).\n\n\
         | setting | default | unit | for | meaning |\n|---|---|---|---|---|\n",
    );
    for def in SETTINGS {
        let reach = match def.reach {
            Reach::Job => "job",
            Reach::Process => "process",
        };
        let option = def.option.map_or_else(String::new, |o| format!(" (`{o}`)"));
        // Writing to a string cannot fail.
        let _ =
            writeln!(page, "| `{}`{option} | `{}` | {} | {reach} | {} |", def.key, def.default, def.unit, def.meaning);
    }
    page
}
