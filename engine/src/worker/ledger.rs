//! What a worker's process has done since it started, by job: what runs now, and what is over.
//!
//! A deployment counts from nought and goes with its job's handle; what it had counted is added up here, so that no figure
//! of a process ever falls. It holds figures of so many jobs, the oldest go first.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;

use super::gauges::JobGauges;
use crate::figures::JobFigures;

/// Jobs whose figures are kept once nothing of them runs here.
const KEPT: usize = 64;

/// The figures of a worker. Cheap to clone; clones share them.
#[derive(Clone, Default)]
pub struct WorkerLedger(Arc<Mutex<Books>>);

#[derive(Default)]
struct Books {
    running: Vec<Arc<JobGauges>>,
    /// By job id.
    over: BTreeMap<String, JobFigures>,
    /// Ids in `over`, the one that ended last at the end.
    order: VecDeque<String>,
}

impl WorkerLedger {
    /// A deployment begins.
    pub(crate) fn begin(&self, gauges: &Arc<JobGauges>) {
        self.0.lock().running.push(gauges.clone());
    }

    /// It is over: what it has counted stays.
    pub(crate) fn end(&self, gauges: &Arc<JobGauges>) {
        self.0.lock().end(gauges);
    }

    /// By job: what was done so far. Jobs are sorted by id.
    #[must_use]
    pub fn figures(&self) -> Vec<JobFigures> {
        let books = self.0.lock();
        let mut all = books.over.clone();
        for gauges in &books.running {
            add(&mut all, &gauges.figures());
        }
        all.into_values().collect()
    }
}

impl Books {
    fn end(&mut self, gauges: &Arc<JobGauges>) {
        let before = self.running.len();
        self.running.retain(|g| !Arc::ptr_eq(g, gauges));
        if self.running.len() == before {
            return;
        }
        let figures = gauges.figures().over();
        add(&mut self.over, &figures);
        self.order.retain(|id| *id != figures.id);
        self.order.push_back(figures.id);
        while self.order.len() > KEPT {
            if let Some(id) = self.order.pop_front() {
                self.over.remove(&id);
            }
        }
    }
}

fn add(all: &mut BTreeMap<String, JobFigures>, figures: &JobFigures) {
    let of = all.entry(figures.id.clone()).or_insert_with(|| JobFigures {
        job: figures.job.clone(),
        id: figures.id.clone(),
        ..JobFigures::default()
    });
    *of += figures;
}
