//! Metrics of this process: what it did since it started, and what it holds.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use millstream_cache::{CacheStats, FileStats};
use millstream_engine::figures::{JobFigures, OperatorFigures, ReadFigures, StoreFigures};
use millstream_engine::memory_plan::MemoryPlan;
use millstream_engine::worker::WorkerLedger;
use millstream_objects::Metered;

use super::families::Families;
use super::shown_operator;
use crate::stores::ProcessStores;
use crate::usage::Usage;

/// The parts of a process that can be asked; they come up one after the other.
#[derive(Clone, Default)]
pub struct ProcessParts(Arc<Parts>);

#[derive(Default)]
struct Parts {
    stores: OnceLock<Arc<ProcessStores>>,
    ledger: WorkerLedger,
}

impl ProcessParts {
    /// The stores are open. Only the first ones count.
    pub fn opened(&self, stores: Arc<ProcessStores>) {
        drop(self.0.stores.set(stores));
    }

    /// Where the worker of this process counts what it does.
    #[must_use]
    pub fn ledger(&self) -> WorkerLedger {
        self.0.ledger.clone()
    }

    /// What they say now.
    #[must_use]
    pub fn figures(&self) -> ProcessFigures {
        let stores = self.0.stores.get();
        ProcessFigures {
            jobs: self.0.ledger.figures(),
            caches: stores.and_then(|s| s.cache_stats()),
            local: stores.map(|s| s.local_stats()).unwrap_or_default(),
            plan: stores.and_then(|s| s.memory_plan()),
            cluster_requests: stores.map(|s| s.cluster_requests()).unwrap_or_default(),
            limits_per_s: stores.map(|s| s.limits_per_s()).unwrap_or_default(),
        }
    }
}

/// What a process says of itself.
#[derive(Clone, Debug, Default)]
pub struct ProcessFigures {
    /// What its worker did, by job.
    pub jobs: Vec<JobFigures>,
    /// What its caches did; none in a coordinator.
    pub caches: Option<CacheStats>,
    /// What became of state on its local disk, by the name of the job.
    pub local: BTreeMap<String, FileStats>,
    /// How its memory is divided; none in a coordinator.
    pub plan: Option<MemoryPlan>,
    /// Requests for no job.
    pub cluster_requests: Metered,
    /// The present limits of reads and writes while the store throttles.
    pub limits_per_s: (Option<u64>, Option<u64>),
}

pub(super) fn add(families: &mut Families, usage: &Usage, figures: &ProcessFigures) {
    if let Some(cpu) = usage.cpu_s {
        families.add("process_cpu_seconds_total", &[], cpu);
    }
    for (name, bytes) in [
        ("process_resident_memory_bytes", usage.rss_bytes),
        ("millstream_process_peak_rss_bytes", usage.peak_rss_bytes),
    ] {
        if let Some(bytes) = bytes {
            families.count(name, &[], bytes);
        }
    }
    for (class, limit) in [("read", figures.limits_per_s.0), ("write", figures.limits_per_s.1)] {
        if let Some(limit) = limit {
            families.count("millstream_process_object_store_limit_per_second", &[class], limit);
        }
    }
    add_requests(families, "", "", &StoreFigures::of_shared(figures.cluster_requests.clone()));
    for job in &figures.jobs {
        add_job(families, job);
    }
    add_memory(families, figures);
    if let Some(caches) = &figures.caches {
        add_caches(families, caches);
    }
    for (job, files) in &figures.local {
        add_local(families, job, files);
    }
}

fn add_requests(families: &mut Families, job: &str, id: &str, store: &StoreFigures) {
    for (operator, used) in &store.operators {
        let operator = shown_operator(operator);
        let requests = &used.requests;
        for (&(operation, purpose), tally) in &requests.table {
            let labels = [job, id, operator, purpose.name(), operation.name()];
            families.count("millstream_process_object_store_requests_total", &labels, tally.requests);
            families.count("millstream_process_object_store_bytes_total", &labels, tally.bytes);
            let usd = tally.requests as f64 * operation.usd_per_million() / 1e6;
            families.add("millstream_process_object_store_usd_total", &labels[..4], usd);
        }
        let labels = [job, id, operator];
        families.count("millstream_process_object_store_retries_total", &labels, requests.retries);
        families.count("millstream_process_object_store_throttled_total", &labels, requests.throttled);
        let waited = requests.limiter_wait_us as f64 / 1e6;
        families.add("millstream_process_object_store_limiter_wait_seconds_total", &labels, waited);
    }
}

fn add_job(families: &mut Families, figures: &JobFigures) {
    let (job, id) = (figures.job.as_str(), figures.id.as_str());
    add_requests(families, job, id, &figures.store);
    let r = &figures.store.requests;
    families.count("millstream_process_hedged_gets_total", &[job, id], r.hedged);
    families.count("millstream_process_plans_over_budget_total", &[job, id], r.over_budget);
    families.count("millstream_process_warmed_blocks_total", &[job, id], r.warmed_blocks);
    families.add("millstream_process_get_queue_seconds_total", &[job, id], r.queued.as_secs_f64());
    families.count("millstream_process_bundles_total", &[job, id], r.bundles);
    families.durations("millstream_process_get_duration_seconds", &[job, id, "state"], &r.gets);
    families.durations("millstream_process_get_duration_seconds", &[job, id, "compaction"], &r.compaction_gets);
    for (operator, used) in figures.store.operators.iter().filter(|(operator, _)| !operator.is_empty()) {
        let (labels, w) = ([job, id, operator.as_str()], &used.written);
        families.count("millstream_process_flushed_bytes_total", &labels, w.flushed_bytes);
        families.count("millstream_process_flushed_entries_total", &labels, w.flushed_entries);
        families.count("millstream_process_compactions_total", &labels, w.compactions);
        families.count("millstream_process_compaction_in_bytes_total", &labels, w.compaction_bytes_in);
        families.count("millstream_process_compaction_out_bytes_total", &labels, w.compaction_bytes_out);
    }
    for (operator, figures) in &figures.operators {
        add_operator(families, [job, id, operator], figures);
    }
}

fn add_operator(families: &mut Families, labels: [&str; 3], f: &OperatorFigures) {
    let seconds = |d: Duration| d.as_secs_f64();
    families.count("millstream_process_subtasks", &labels, f.subtasks);
    families.count("millstream_process_rows_in_total", &labels, f.rows_in);
    families.count("millstream_process_rows_out_total", &labels, f.rows_out);
    families.count("millstream_process_late_rows_total", &labels, f.late_rows);
    families.add("millstream_process_busy_seconds_total", &labels, seconds(f.busy));
    families.add("millstream_process_back_pressured_seconds_total", &labels, seconds(f.back_pressured));
    families.add("millstream_process_state_wait_seconds_total", &labels, seconds(f.state_wait));
    families.add("millstream_process_merge_wait_seconds_total", &labels, seconds(f.merge_wait));
    families.count("millstream_process_state_memory_bytes", &labels, f.memory_bytes);
    families.count("millstream_process_state_dirty_bytes", &labels, f.dirty_bytes);
    add_reads(families, labels, &f.reads);
}

fn add_reads(families: &mut Families, labels: [&str; 3], f: &ReadFigures) {
    let [job, id, operator] = labels;
    let r = &f.report;
    families.count("millstream_process_keys_named_total", &labels, f.named);
    families.count("millstream_process_keys_asked_total", &labels, f.asked);
    families.count("millstream_process_filtered_total", &labels, r.filtered);
    for (source, blocks) in
        [("memory", r.memory_hits), ("ssd", r.disk_hits), ("shared", r.shared), ("object-store", r.misses)]
    {
        families.count("millstream_process_blocks_total", &[job, id, operator, source], blocks);
    }
    for (what, gets) in [("meta", r.meta_gets), ("blocks", r.gets.saturating_sub(r.meta_gets))] {
        families.count("millstream_process_read_gets_total", &[job, id, operator, what], gets);
    }
    families.count("millstream_process_merged_blocks_total", &labels, r.merged);
    families.count("millstream_process_read_bytes_total", &labels, r.bytes);
    families.count("millstream_process_scanned_entries_total", &labels, r.scanned);
    families.add("millstream_process_read_wait_seconds_total", &labels, r.waited.as_secs_f64());
}

fn add_memory(families: &mut Families, figures: &ProcessFigures) {
    let Some(plan) = &figures.plan else { return };
    for (part, bytes) in [
        ("baseline", plan.baseline_bytes),
        ("rows", plan.rows_bytes),
        ("pinned", plan.pinned_bytes),
        ("blocks", plan.blocks_bytes),
        ("metadata", plan.metadata_bytes),
        ("write-buffer", plan.write_buffer_bytes),
        ("encode", plan.encode_bytes),
        ("reads", plan.reads_bytes),
        ("exchange", plan.exchange_bytes),
        ("compaction", plan.compaction_bytes),
    ] {
        families.count("millstream_process_memory_budget_bytes", &[part], bytes);
    }
    let operators = || figures.jobs.iter().flat_map(|j| j.operators.values());
    let dirty: u64 = operators().map(|o| o.dirty_bytes).sum();
    let held: u64 = operators().map(|o| o.memory_bytes).sum();
    families.count("millstream_process_memory_used_bytes", &["rows"], held.saturating_sub(dirty));
    families.count("millstream_process_memory_used_bytes", &["write-buffer"], dirty);
    if let Some(caches) = &figures.caches {
        families.count("millstream_process_memory_used_bytes", &["blocks"], caches.memory_bytes);
        families.count("millstream_process_memory_used_bytes", &["metadata"], caches.metadata_bytes);
        families.count("millstream_process_memory_used_bytes", &["pinned"], caches.pinned_bytes);
    }
}

fn add_caches(families: &mut Families, c: &CacheStats) {
    let hits = "millstream_process_cache_hits_total";
    families.count(hits, &["memory"], c.memory_hits);
    families.count(hits, &["metadata"], c.metadata_hits);
    let misses = "millstream_process_cache_misses_total";
    families.count(misses, &["ssd"], c.misses);
    families.count(misses, &["metadata"], c.metadata_misses);
    for (tier, bytes, capacity, entries) in [
        ("memory", c.memory_bytes, c.memory_capacity_bytes, c.memory_entries),
        ("metadata", c.metadata_bytes, c.metadata_capacity_bytes, c.metadata_entries),
    ] {
        families.count("millstream_process_cache_bytes", &[tier], bytes);
        families.count("millstream_process_cache_capacity_bytes", &[tier], capacity);
        families.count("millstream_process_cache_entries", &[tier], entries);
    }
    families.count("millstream_process_pins_refused_total", &[], c.pins_refused);
    if c.disk_capacity_bytes == 0 {
        return;
    }
    families.count(hits, &["ssd"], c.disk_hits);
    families.count("millstream_process_cache_capacity_bytes", &["ssd"], c.disk_capacity_bytes);
    families.count("millstream_process_ssd_read_bytes_total", &[], c.disk_read_bytes);
    families.count("millstream_process_ssd_written_bytes_total", &[], c.disk_write_bytes);
    families.count("millstream_process_ssd_errors_total", &[], c.disk_errors);
    families.count("millstream_process_ssd_slow_total", &[], c.disk_slow);
    families.count("millstream_process_ssd_dropped_total", &[], c.disk_dropped);
    families.add("millstream_process_ssd_rests", &[], f64::from(c.disk_rests));
    families.durations("millstream_process_ssd_duration_seconds", &[], &c.disk_look_ups);
}

fn add_local(families: &mut Families, job: &str, files: &FileStats) {
    for (name, n) in [
        ("millstream_process_local_files", files.files),
        ("millstream_process_local_bytes", files.bytes),
        ("millstream_process_local_deleting_files", files.deleting),
        ("millstream_process_local_reads_total", files.reads),
        ("millstream_process_local_adopted_total", files.adopted),
        ("millstream_process_local_refused_total", files.refused),
        ("millstream_process_local_failed_total", files.failed),
    ] {
        families.count(name, &[job], n);
    }
}
