//! The list of all metrics: the one source of their names, types, labels and meanings. docs/metrics.md is made from it.
//!
//! Labels have few values: a job, an operator of its plan, a fixed word. Nothing here grows with keys, objects or time.

use std::fmt::Write;

/// What a metric's values mean to whoever reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only rises while the process lives.
    Counter,
    /// As it is now.
    Gauge,
    /// How many lay below which bounds.
    Histogram,
}

/// Who serves a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    /// Every process: what it did and holds itself.
    Process,
    /// The coordinator, and `run`: a job over all its processes.
    Job,
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct MetricDef {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Who serves it.
    pub of: Of,
    /// Its labels, in order.
    pub labels: &'static [&'static str],
    /// What it says, with its unit.
    pub help: &'static str,
}

const fn def(of: Of, kind: Kind, name: &'static str, labels: &'static [&'static str], help: &'static str) -> MetricDef {
    MetricDef { name, kind, of, labels, help }
}

const NONE: &[&str] = &[];
const JOB: &[&str] = &["job", "id"];
/// Local state has one folder for all deployments of a name.
const FOLDER: &[&str] = &["job"];
const OPERATOR: &[&str] = &["job", "id", "operator"];
const SOURCE: &[&str] = &["job", "id", "operator", "source"];
const TIER: &[&str] = &["tier"];
const PART: &[&str] = &["part"];
const SPLIT: &[&str] = &["job", "id", "split"];
const SINK: &[&str] = &["job", "id", "sink"];
const REQUEST: &[&str] = &["job", "id", "operator", "purpose", "operation"];
const PURPOSE: &[&str] = &["job", "id", "operator", "purpose"];

use Kind::{Counter, Gauge, Histogram};
use Of::{Job, Process};

/// All metrics, in the order in which the page shows them.
#[rustfmt::skip] // a line each
pub const METRICS: &[MetricDef] = &[
    def(Process, Counter, "process_cpu_seconds_total", NONE, "User and system time of all threads, seconds."),
    def(Process, Gauge, "process_resident_memory_bytes", NONE, "Resident set, bytes."),
    def(Process, Gauge, "millstream_process_peak_rss_bytes", NONE, "High-water mark of the resident set, bytes."),
    def(Process, Gauge, "millstream_process_memory_budget_bytes", PART, "What a part may hold, bytes: rows, pinned (residency memory; with a memory.limit a part of rows), blocks, metadata, write-buffer, encode, reads, exchange, compaction, baseline (what no part accounts for)."),
    def(Process, Gauge, "millstream_process_memory_used_bytes", PART, "What a part holds, bytes; parts that nobody measures are absent. rows: clean entries of working sets; write-buffer: changed entries that the object store does not hold yet."),

    def(Process, Counter, "millstream_process_object_store_requests_total", REQUEST, "Requests that this process sent, repetitions and second ones included. operator `shared`: for several operators at once, or the job as a whole. Without a job: of the cluster (leader records, definitions)."),
    def(Process, Counter, "millstream_process_object_store_bytes_total", REQUEST, "Bytes of bodies: received by get, sent by put."),
    def(Process, Counter, "millstream_process_object_store_usd_total", PURPOSE, "What those requests cost at S3 Standard's prices, US dollars; storage and traffic are not in it."),
    def(Process, Counter, "millstream_process_object_store_retries_total", OPERATOR, "Requests that repeated one that had failed."),
    def(Process, Counter, "millstream_process_object_store_throttled_total", OPERATOR, "Answers that asked for fewer requests (503 SlowDown, 429)."),
    def(Process, Counter, "millstream_process_object_store_limiter_wait_seconds_total", OPERATOR, "How long requests waited for their turn while the store throttled, seconds, summed."),
    def(Process, Gauge, "millstream_process_object_store_limit_per_second", &["class"], "Present limit of reads (get, head, list) or writes (put, delete, copy) a second; absent while the store does not throttle."),
    def(Process, Counter, "millstream_process_hedged_gets_total", JOB, "GETs that were sent a second time because the first one was slow."),
    def(Process, Counter, "millstream_process_plans_over_budget_total", JOB, "Plans that had to make do with fewer, larger GETs since the budget of GETs a second was used up. Nobody waits for that budget."),
    def(Process, Counter, "millstream_process_warmed_blocks_total", JOB, "Blocks that warm-ups brought before anybody asked for them: at a start or rescale, what heat lists name; behind a compaction, what was hot in its inputs."),
    def(Process, Counter, "millstream_process_get_queue_seconds_total", JOB, "How long GETs waited for a place among those in flight, seconds, summed."),
    def(Process, Histogram, "millstream_process_get_duration_seconds", &["job", "id", "purpose"], "How long GETs of state took, with repetitions and waits for the limiter, seconds. purpose state: reads and warm-ups; compaction."),

    def(Process, Gauge, "millstream_process_subtasks", OPERATOR, "Subtasks that run here."),
    def(Process, Counter, "millstream_process_rows_in_total", OPERATOR, "Rows that came in."),
    def(Process, Counter, "millstream_process_rows_out_total", OPERATOR, "Rows that went out."),
    def(Process, Counter, "millstream_process_late_rows_total", OPERATOR, "Rows that came too late."),
    def(Process, Counter, "millstream_process_busy_seconds_total", OPERATOR, "Time of processing, seconds, summed over subtasks."),
    def(Process, Counter, "millstream_process_back_pressured_seconds_total", OPERATOR, "Time of waiting for receivers, seconds, summed over subtasks."),
    def(Process, Counter, "millstream_process_state_wait_seconds_total", OPERATOR, "Time of waiting for state, seconds, summed over subtasks."),
    def(Process, Counter, "millstream_process_merge_wait_seconds_total", OPERATOR, "Time in which subtasks held back because reads look into half as many runs again as state.compaction.trigger-runs, or more, seconds, summed over subtasks."),
    def(Process, Gauge, "millstream_process_state_memory_bytes", OPERATOR, "Bytes of working sets."),
    def(Process, Gauge, "millstream_process_state_dirty_bytes", OPERATOR, "Bytes of them that the object store does not hold yet."),

    def(Process, Counter, "millstream_process_keys_named_total", OPERATOR, "Distinct keys that batches named, each batch by itself."),
    def(Process, Counter, "millstream_process_keys_asked_total", OPERATOR, "Those of them that were asked of the state store. The others are hits of the working set: there, on their way, or known to be absent."),
    def(Process, Counter, "millstream_process_filtered_total", OPERATOR, "Look-ups of a key in a run that its filter spared."),
    def(Process, Counter, "millstream_process_blocks_total", SOURCE, "Blocks that reads looked into, by where they were: memory, ssd, shared (somebody fetched it already), object-store."),
    def(Process, Counter, "millstream_process_read_gets_total", &["job", "id", "operator", "what"], "GETs that reads of batches planned, by what for: index parts (meta) or blocks. Second ones, repetitions, warm-ups and compactions are not in it."),
    def(Process, Counter, "millstream_process_merged_blocks_total", OPERATOR, "Wanted blocks that came in the GET of another one."),
    def(Process, Counter, "millstream_process_read_bytes_total", OPERATOR, "Bytes that those GETs brought."),
    def(Process, Counter, "millstream_process_scanned_entries_total", OPERATOR, "Entries that scans returned."),
    def(Process, Counter, "millstream_process_read_wait_seconds_total", OPERATOR, "How long reads waited for tiers below memory, seconds, summed."),

    def(Process, Counter, "millstream_process_bundles_total", JOB, "Bundles that were written: one for the sections of all subtasks of a worker."),
    def(Process, Counter, "millstream_process_flushed_bytes_total", OPERATOR, "Bytes of sections in bundles."),
    def(Process, Counter, "millstream_process_flushed_entries_total", OPERATOR, "Entries of those sections."),
    def(Process, Counter, "millstream_process_compactions_total", OPERATOR, "Compactions that ended well."),
    def(Process, Counter, "millstream_process_compaction_in_bytes_total", OPERATOR, "Stored bytes of the blocks that compactions merged."),
    def(Process, Counter, "millstream_process_compaction_out_bytes_total", OPERATOR, "Bytes that compactions wrote. Write amplification: (flushed + this) / flushed."),

    def(Process, Counter, "millstream_process_cache_hits_total", TIER, "Look-ups that a tier answered: blocks in memory, blocks on the ssd, meta parts (metadata)."),
    def(Process, Counter, "millstream_process_cache_misses_total", TIER, "Blocks that were in neither tier (tier ssd), meta parts that were not in memory (metadata)."),
    def(Process, Gauge, "millstream_process_cache_bytes", TIER, "Bytes that a tier holds: memory, metadata."),
    def(Process, Gauge, "millstream_process_cache_capacity_bytes", TIER, "Bytes that a tier holds at most: memory, metadata, ssd."),
    def(Process, Gauge, "millstream_process_cache_entries", TIER, "Blocks (memory) and meta parts (metadata) that a tier holds."),
    def(Process, Counter, "millstream_process_ssd_read_bytes_total", NONE, "Bytes read from the SSD tier."),
    def(Process, Counter, "millstream_process_ssd_written_bytes_total", NONE, "Bytes written onto the SSD tier."),
    def(Process, Counter, "millstream_process_ssd_errors_total", NONE, "Look-ups on the SSD that failed or gave damaged bytes, and writes that failed."),
    def(Process, Counter, "millstream_process_ssd_slow_total", NONE, "Look-ups on the SSD that were given up because they took longer than the object store would have."),
    def(Process, Counter, "millstream_process_ssd_dropped_total", NONE, "Blocks that were not written onto the SSD because they came faster than it took them, or while it rested."),
    def(Process, Counter, "millstream_process_pins_refused_total", NONE, "Blocks and index parts that residency memory had no room for."),
    def(Process, Gauge, "millstream_process_ssd_rests", NONE, "1 while the SSD is left alone because it failed or was slow too often."),
    def(Process, Histogram, "millstream_process_ssd_duration_seconds", NONE, "How long look-ups on the SSD took that came to an end, seconds."),

    def(Process, Gauge, "millstream_process_local_files", FOLDER, "Sections of state in files on the local disk (state.residency=local)."),
    def(Process, Gauge, "millstream_process_local_bytes", FOLDER, "Bytes of those files."),
    def(Process, Gauge, "millstream_process_local_deleting_files", FOLDER, "Files that nobody wants and that are still to be deleted."),
    def(Process, Counter, "millstream_process_local_reads_total", FOLDER, "Ranges that were read from them."),
    def(Process, Counter, "millstream_process_local_adopted_total", FOLDER, "Files that were taken over from an earlier process."),
    def(Process, Counter, "millstream_process_local_refused_total", FOLDER, "Sections that the disk did not take: it is full, at its bound, or failed. They are read from the object store."),
    def(Process, Counter, "millstream_process_local_failed_total", FOLDER, "Reads that failed or took too long, and files that turned out to be damaged. The object store was asked instead."),

    def(Job, Gauge, "millstream_job_state", &["job", "id", "state"], "1 for the state that the job is in, 0 for the others."),
    def(Job, Gauge, "millstream_parallelism", JOB, "Parallelism."),
    def(Job, Gauge, "millstream_version", JOB, "Number of the newest version."),
    def(Job, Gauge, "millstream_epoch", JOB, "Epoch of the newest version."),
    def(Job, Gauge, "millstream_generation", JOB, "Generation of the leader that wrote it."),
    def(Job, Counter, "millstream_restarts_total", JOB, "Restarts."),
    def(Job, Counter, "millstream_events_in_total", JOB, "Rows read from sources, replays included."),
    def(Job, Counter, "millstream_rows_out_total", JOB, "Rows that were committed."),
    def(Job, Counter, "millstream_late_rows_total", JOB, "Rows that came too late."),
    def(Job, Counter, "millstream_job_cpu_seconds_total", JOB, "CPU time of the processes of the job, seconds."),
    def(Job, Gauge, "millstream_job_peak_rss_bytes", JOB, "High-water marks of the resident sets of its processes, bytes, summed."),
    def(Job, Gauge, "millstream_watermark_ms", JOB, "Least watermark, milliseconds since 1970."),
    def(Job, Gauge, "millstream_state_bytes", JOB, "Bytes of the objects that the newest version refers to."),
    def(Job, Gauge, "millstream_state_objects", JOB, "How many these are."),
    def(Job, Counter, "millstream_rescales_total", JOB, "Live rescales and moves."),
    def(Job, Gauge, "millstream_compaction_debt_bytes", JOB, "Bytes in key groups that have enough runs to be merged."),
    def(Job, Gauge, "millstream_compactions_running", JOB, "Compactions that run now."),

    def(Job, Counter, "millstream_checkpoints_completed_total", JOB, "Checkpoints that were committed."),
    def(Job, Counter, "millstream_checkpoints_failed_total", JOB, "Checkpoints that failed."),
    def(Job, Histogram, "millstream_checkpoint_duration_seconds", JOB, "From the start of a checkpoint to its commit, seconds."),
    def(Job, Gauge, "millstream_checkpoint_duration_ms_p50", JOB, "Median over the last 1,000 checkpoints, milliseconds."),
    def(Job, Gauge, "millstream_checkpoint_duration_ms_max", JOB, "Longest of the last 1,000 checkpoints, milliseconds."),
    def(Job, Counter, "millstream_checkpoint_bytes_total", JOB, "Bytes of bundles of all checkpoints."),
    def(Job, Counter, "millstream_checkpoint_puts_total", JOB, "PUTs of all checkpoints: bundles and version records."),
    def(Job, Gauge, "millstream_checkpoint_last_bytes", JOB, "Bytes of the last one."),
    def(Job, Gauge, "millstream_checkpoint_last_puts", JOB, "PUTs of the last one."),

    def(Job, Counter, "millstream_object_store_requests_total", REQUEST, "Requests of all processes of the job. operator `shared`: for several operators at once, or the job as a whole."),
    def(Job, Counter, "millstream_object_store_usd_total", PURPOSE, "What those cost at S3 Standard's prices, US dollars."),
    def(Job, Counter, "millstream_object_store_read_bytes_total", JOB, "Bytes of bodies received by get."),
    def(Job, Counter, "millstream_object_store_written_bytes_total", JOB, "Bytes of bodies sent by put."),
    def(Job, Counter, "millstream_object_store_retries_total", JOB, "Requests that repeated one that had failed."),
    def(Job, Counter, "millstream_object_store_throttled_total", JOB, "Answers that asked for fewer requests."),
    def(Job, Counter, "millstream_object_store_limiter_wait_seconds_total", JOB, "How long requests waited for their turn while the store throttled, seconds, summed."),
    def(Job, Gauge, "millstream_object_store_limit_per_second", &["job", "id", "class"], "Least of the present limits of its workers: reads, writes; absent while no worker is throttled."),
    def(Job, Counter, "millstream_cache_hits_total", &["job", "id", "tier"], "Blocks that its reads found in memory, or on the SSD (disk)."),
    def(Job, Counter, "millstream_cache_misses_total", JOB, "Blocks that its reads had to fetch."),

    def(Job, Gauge, "millstream_versions_checkpoints", JOB, "Checkpoints that stand."),
    def(Job, Gauge, "millstream_versions_records", JOB, "Version records that stand."),
    def(Job, Gauge, "millstream_versions_objects", JOB, "State objects of the job's own that those refer to, the ones included that the next collection deletes."),
    def(Job, Gauge, "millstream_versions_bytes", JOB, "Bytes of those objects."),
    def(Job, Counter, "millstream_collections_total", JOB, "Collections of what no kept version needs."),
    def(Job, Counter, "millstream_collections_failed_total", JOB, "Collections that failed."),
    def(Job, Counter, "millstream_collected_objects_total", &["job", "id", "what"], "Objects that the collector deleted: state (no kept version needs it), record (a version record), orphan (no version ever listed it)."),
    def(Job, Counter, "millstream_collected_bytes_total", &["job", "id", "what"], "Bytes of those: state, orphan."),

    def(Job, Counter, "millstream_operator_rows_in_total", OPERATOR, "Rows that came into the operator."),
    def(Job, Counter, "millstream_operator_rows_out_total", OPERATOR, "Rows that left it."),
    def(Job, Gauge, "millstream_operator_busy_ratio", OPERATOR, "Share of the time of its subtasks spent processing, since they were deployed, 0 to 1."),
    def(Job, Gauge, "millstream_operator_back_pressured_ratio", OPERATOR, "The same, spent waiting for receivers."),
    def(Job, Gauge, "millstream_operator_state_wait_ratio", OPERATOR, "The same, spent waiting for state."),
    def(Job, Gauge, "millstream_operator_merge_wait_ratio", OPERATOR, "The same, spent holding back so that compactions catch up."),
    def(Job, Counter, "millstream_operator_keys_named_total", OPERATOR, "As millstream_process_keys_named_total, over all processes."),
    def(Job, Counter, "millstream_operator_keys_asked_total", OPERATOR, "As millstream_process_keys_asked_total, over all processes."),
    def(Job, Counter, "millstream_operator_blocks_total", SOURCE, "As millstream_process_blocks_total, over all processes."),
    def(Job, Counter, "millstream_operator_read_gets_total", OPERATOR, "As millstream_process_read_gets_total, over all processes."),
    def(Job, Counter, "millstream_operator_flushed_bytes_total", OPERATOR, "As millstream_process_flushed_bytes_total, over all processes."),
    def(Job, Counter, "millstream_operator_compactions_total", OPERATOR, "As millstream_process_compactions_total, over all processes."),
    def(Job, Counter, "millstream_operator_compaction_in_bytes_total", OPERATOR, "As millstream_process_compaction_in_bytes_total, over all processes."),
    def(Job, Counter, "millstream_operator_compaction_out_bytes_total", OPERATOR, "As millstream_process_compaction_out_bytes_total, over all processes."),
    def(Job, Gauge, "millstream_operator_runs_per_key_group_max", OPERATOR, "How many runs a read of a key looks into at most, as the newest version has them."),
    def(Job, Counter, "millstream_subtask_rows_in_total", &["job", "id", "operator", "subtask"], "Rows that came into a subtask, since it was deployed."),

    def(Job, Gauge, "millstream_split_position", SPLIT, "Where the reader of a split stands."),
    def(Job, Gauge, "millstream_split_watermark_ms", SPLIT, "Watermark of a split, milliseconds since 1970."),
    def(Job, Gauge, "millstream_split_idle", SPLIT, "1 while a split does not hold the watermark."),
    def(Job, Counter, "millstream_split_rows_total", SPLIT, "Rows read from a split, since its subtask took it up; so are all counters of splits."),
    def(Job, Counter, "millstream_split_bytes_total", SPLIT, "Bytes read from a split. Kafka: of keys and values, uncompressed; files: of lines."),
    def(Job, Gauge, "millstream_split_lag_records", SPLIT, "Records between the position of a split and its end, as the source has heard of it last. Kafka: up to the high watermark, as kafka-consumer-groups counts; 0 for whoever has read all that he may."),
    def(Job, Gauge, "millstream_split_lag_seconds", SPLIT, "How long ago, by its time stamp and the worker's clock, the last record was written that was read, seconds; 0 when there is no other one."),
    def(Job, Counter, "millstream_split_decode_seconds_total", SPLIT, "Time of taking records out of the client's queue and making rows of them, seconds."),
    def(Job, Counter, "millstream_split_dropped_total", SPLIT, "Records that could not be read and were passed over."),
    def(Job, Counter, "millstream_split_dead_letters_total", SPLIT, "Records that could not be read and are in the topic for them."),
    def(Job, Histogram, "millstream_split_lateness_seconds", SPLIT, "How far rows lay behind the greatest event time that their split had shown before them, seconds; 0: in order. Rows without an event time are not in it."),
    def(Job, Counter, "millstream_split_behind_watermark_total", SPLIT, "Rows that lay behind it by the delay of the watermark, or more. Operators that have fired past them count them as late rows."),
    def(Job, Gauge, "millstream_split_delay_ms_p99", SPLIT, "The watermark delay that would have held 99 % of the rows, milliseconds: an upper bound, less than an eighth too large. Absent above 24 days."),
    def(Job, Gauge, "millstream_split_delay_ms_p999", SPLIT, "The same for 99.9 %."),

    def(Job, Counter, "millstream_sink_rows_total", SINK, "Rows given to the writers of a sink, those of failed epochs included. What was committed: millstream_rows_out_total."),
    def(Job, Counter, "millstream_sink_bytes_total", SINK, "Bytes that they wrote. Kafka: keys and values, uncompressed; files and print: text."),
    def(Job, Gauge, "millstream_sink_open_transactions", SINK, "Transactions that were begun, or wait until a version says that they were committed."),
    def(Job, Histogram, "millstream_sink_commit_duration_seconds", SINK, "From the moment when a worker heard that a version is durable until what the sink had left in it was committed, each subtask and epoch by itself, seconds. Commits of a recovery are not in it."),
];

/// The page docs/metrics.md.
#[must_use]
pub fn markdown() -> String {
    let mut page = String::from(INTRODUCTION);
    for (of, title) in [(Process, "Of a process"), (Job, "Of a job")] {
        let _ = write!(page, "\n## {title}\n| metric | type | labels | meaning |\n|---|---|---|---|\n");
        for d in METRICS.iter().filter(|d| d.of == of) {
            let kind = format!("{:?}", d.kind).to_lowercase();
            let labels = d.labels.join(", ");
            let _ = writeln!(page, "| `{}` | {kind} | {labels} | {} |", d.name, d.help);
        }
    }
    page
}

const INTRODUCTION: &str = "\
# Metrics

<!-- Made by `millstream metrics --markdown` from the list in server/src/metrics/list.rs; a test compares. -->

`coordinator`, `worker`, `compactor` and `run` serve their metrics as Prometheus text at `http://ADDR/metrics`; ADDR is the
option `--metrics-listen`. All but `run` take a free port of 127.0.0.1 unless told otherwise, and say which in their log; `none` switches it off. `run` serves nothing unless asked. An address that is not loopback needs `--insecure`: there is
no TLS and no login.

    millstream worker --coordinator 127.0.0.1:6123 --metrics-listen 127.0.0.1:9102 &
    curl http://127.0.0.1:9102/metrics

**Who says what.** A name that begins with `process_` or `millstream_process_` says what *this process* did since it started,
or holds now: add those of all processes up. All other names speak of a *job* over all its processes, as `status` does, and
only the coordinator (and `run`) serves them. So nothing is counted twice when all processes are scraped. Of a process
that died, its own counters go with it; those of the job keep what it had told with its last heart-beat.

**Labels.** `job` is the job that the binary contains, `id` its id, `operator` the uid of a task as `status` shows it,
`split` a split as `status` shows it, `sink` the uid of a sink, `purpose` what a request was for (state, compaction, version, leader, job, check, output), `operation` get, put, list, head,
delete or copy. What is not known is absent, never 0.

**By operator.** Every run of sorted entries belongs to one operator, so each GET of its index or blocks, and every request of
its compactions, counts for that operator: these are counts, not estimates. A bundle is one PUT for the sections of all
subtasks of a worker, and a version record is one for the job: their operator is `shared`, even when one operator alone had
something to write. The bytes that each operator has in the bundles are in `millstream_process_flushed_bytes_total`.
Warm-ups read one operator's runs at a time and count as its `state` GETs.

**Dollars** are requests times S3 Standard's prices (PUT, LIST and COPY 5 $ a million, GET and HEAD 0.40 $, DELETE 0), whatever
the store really asks.

**Splits and sinks.** A job with many partitions has many series: 33 for a partition of Kafka. What a source or sink cannot tell is absent:
generators have no bytes and no lag, files no lag. All of it is in `status --json`, too (`splits`, `sinks`).

**What a request is.** An attempt counts when it is sent. So a second GET that is called off before it has left counts,
too, though the store may never see it (`tests/tests/it/s3.rs` compares with a proxy before the store). The probe at the start of a coordinator (one or two PUTs, docs/object-stores.md) is in no account.

**Cost of measuring.** Counters move once for a batch, a request, a bundle or a compaction, never for a row, but for how late it is. `millstream
metrics` lists all metrics.

    # how many dollars a day each operator's reads cost
    sum by (operator) (rate(millstream_object_store_usd_total{purpose=\"state\"}[5m])) * 86400
    # share of named keys that the working set had
    1 - sum(rate(millstream_process_keys_asked_total[5m])) / sum(rate(millstream_process_keys_named_total[5m]))
    # write amplification
    1 + sum(rate(millstream_process_compaction_out_bytes_total[1h])) / sum(rate(millstream_process_flushed_bytes_total[1h]))
    # rows and bytes a second, and lag, of each source
    sum by (id) (rate(millstream_split_rows_total[1m])), sum by (id) (rate(millstream_split_bytes_total[1m]))
    max by (id) (millstream_split_lag_records), max by (id) (millstream_split_lag_seconds)
    # p99 of commits of each sink
    histogram_quantile(0.99, sum by (id, sink, le) (rate(millstream_sink_commit_duration_seconds_bucket[5m])))
    # p95 of GETs that somebody may wait for
    histogram_quantile(0.95, sum by (le) (rate(millstream_process_get_duration_seconds_bucket{purpose=\"state\"}[5m])))
";
