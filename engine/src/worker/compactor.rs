//! A compactor: merges runs of any job of the cluster, and does nothing else.
//!
//! It is a process with a session like a worker's that offers slots for compactions instead of subtasks. Order of events: a
//! `Compact` comes with all that is needed; the runs are read and merged, the outputs written, the coordinator told. A new
//! deployment of a job ends what runs for an older one. When the process is asked to leave, the coordinator gives it nothing
//! more and lets it go once it has reported what it runs; what takes too long ends with the session, and goes to others.
//!
//! It decides nothing and holds nothing that matters: what it wrote and could not report is referred to by no version, and
//! deleted by the collector.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use millstream_common::env::AbortOnDrop;
use millstream_common::{Error, Lane, Result};
use millstream_proto::control::{Compact, JobCounters, JobRef, StopJob};
use millstream_state_store::entry::MergeOperators;
use millstream_state_store::{StateStore, Tree};

use super::gauges::JobGauges;
use super::{WorkerContext, WorkerLedger, merging};
use crate::settings::Settings;

/// The compactions of a process.
pub(super) struct Compactor {
    context: Arc<WorkerContext>,
    /// How many run at a time.
    slots: u32,
    jobs: BTreeMap<String, CompactedJob>,
}

/// A deployment of a job that compactions run for.
struct CompactedJob {
    job: JobRef,
    state: StateStore,
    gauges: Arc<JobGauges>,
    ledger: WorkerLedger,
    running: BTreeMap<u64, Merging>,
}

impl Drop for CompactedJob {
    fn drop(&mut self) {
        self.ledger.end(&self.gauges);
    }
}

struct Merging {
    ended: Arc<AtomicBool>,
    _task: AbortOnDrop,
}

impl Compactor {
    pub(super) fn new(context: Arc<WorkerContext>, slots: u32) -> Self {
        Self { context, slots, jobs: BTreeMap::new() }
    }

    /// Begins a compaction, unless it is of a deployment that is over.
    pub(super) fn compact(&mut self, order: Compact) {
        let (job, number) = (order.job.clone(), order.number);
        if let Err(e) = self.begin(order) {
            self.context.tell(merging::given_up(job, number, &e));
        }
    }

    fn begin(&mut self, order: Compact) -> Result<()> {
        self.forget_ended();
        let of = order.job.clone().unwrap_or_default();
        let running: usize = self.jobs.values().map(|j| j.running.len()).sum();
        if running >= self.slots as usize {
            return Err(Error::canceled(format!("all {} slots of this compactor are taken", self.slots)));
        }
        let known = self.jobs.get(&of.id).map(|j| &j.job);
        if known.is_some_and(|known| is_older(&of, known)) {
            return Err(Error::canceled("a newer deployment of the job is known here"));
        }
        if known != Some(&of) {
            let opened = self.open(of.clone(), &order)?;
            self.jobs.insert(of.id.clone(), opened);
        }
        let Some(job) = self.jobs.get_mut(&of.id) else { return Ok(()) };
        job.gauges.learn(&Tree::from_proto(order.tree.as_ref().unwrap_or(&Default::default()))?);
        let (inputs, number) = (merging::inputs(&order)?, order.number);
        let (context, state, throttle) = (self.context.clone(), job.state.clone(), self.context.stores.throttle());
        let ended = Arc::new(AtomicBool::new(false));
        let has_ended = ended.clone();
        let running = self.context.env.spawn(Lane::Background, "compaction", async move {
            let outcome = merging::merge(&state, &order, &inputs, &throttle).await;
            // Nobody reads them here again.
            inputs.iter().for_each(|run| state.forget(run));
            // Its slot is free before anybody hears of it.
            has_ended.store(true, Ordering::Relaxed);
            context.tell(merging::report(order, outcome));
        });
        job.running.insert(number, Merging { ended, _task: AbortOnDrop(running) });
        Ok(())
    }

    fn open(&self, job: JobRef, order: &Compact) -> Result<CompactedJob> {
        let spec = order.spec.clone().unwrap_or_default();
        let (context, stores) = (&self.context, &self.context.stores);
        let settings = Settings::from_job_map(&spec.settings)?;
        let store = stores.job_store(&spec.name, &settings)?;
        let (caches, options) = (stores.caches(), stores.state_options(&settings));
        let env = context.env.clone();
        let state = StateStore::new(store.clone(), caches, options, env.clone(), MergeOperators::default());
        let gauges = JobGauges::new(env, job.clone(), &spec.job, Vec::new(), store, state.clone());
        let (gauges, ledger) = (Arc::new(gauges), context.ledger.clone());
        ledger.begin(&gauges);
        Ok(CompactedJob { job, state, gauges, ledger, running: BTreeMap::new() })
    }

    fn forget_ended(&mut self) {
        for job in self.jobs.values_mut() {
            job.running.retain(|_, m| !m.ended.load(Ordering::Relaxed));
        }
    }

    /// A deployment is over; one for an older deployment must not touch what runs for a newer one.
    pub(super) fn stop(&mut self, stop: &StopJob) {
        let of = stop.job.clone().unwrap_or_default();
        if self.jobs.get(&of.id).is_some_and(|j| !is_older(&of, &j.job)) {
            self.jobs.remove(&of.id);
        }
    }

    /// Another session: what ran is for others by now.
    pub(super) fn stop_all(&mut self) {
        self.jobs.clear();
    }

    /// What compactions have asked of the object store, by deployment.
    pub(super) fn counters(&mut self) -> Vec<JobCounters> {
        self.forget_ended();
        self.jobs.values().map(|j| j.gauges.counters()).collect()
    }
}

fn is_older(job: &JobRef, than: &JobRef) -> bool {
    (job.generation, job.execution) < (than.generation, than.execution)
}
