//! How output that the newest record lists becomes visible.
//!
//! A deployment commits what its versions list by itself. Before one begins, its first worker commits what the record
//! lists, whoever wrote it, and clears away what older deployments left. While a job waits for slots, a worker without
//! any commits: a place that holds what is to be committed may give it up after a while.

use millstream_common::kill_points::kill_point;
use millstream_proto::control::{CommitNow, Confirmed, StopJob, to_worker};
use millstream_proto::version::Committable;

use super::record::{committable_id_key, committable_key};
use super::{Action, JobMaster, Phase, Timer, Turn};
use crate::convert::failure_from_proto;

impl JobMaster {
    fn unconfirmed(&self) -> Vec<Committable> {
        let all = self.record.committables.iter();
        all.filter(|c| !self.confirmed.contains(&committable_key(c))).cloned().collect()
    }

    /// Whether all output that the newest record lists is visible.
    pub(super) fn confirmed_all(&self) -> bool {
        self.record.committables.iter().all(|c| self.confirmed.contains(&committable_key(c)))
    }

    /// Has a worker commit what the record lists. `begins`: a deployment, which is told when that is done.
    pub(super) fn commit_listed(&self, worker: &str, begins: bool, t: &mut Turn<'_>) {
        let (job, spec) = (Some(self.job_ref()), Some(self.spec.clone()));
        let order = CommitNow { job, spec, committables: self.unconfirmed(), clean_up: begins };
        t.out.push(Action::Send(worker.to_owned(), Box::new(to_worker::Message::CommitNow(order))));
    }

    fn waits_for_slots(&self) -> bool {
        matches!(self.phase, Phase::Created | Phase::Restarting { delayed: false }) && self.committing.is_none()
    }

    /// Nothing can be deployed yet: some worker commits meanwhile, rather one that stays.
    pub(super) fn commit_without_slots(&mut self, t: &mut Turn<'_>) {
        if !self.waits_for_slots() || self.commits_at.is_some() || self.confirmed_all() {
            return;
        }
        let Some((worker, _)) = t.workers.iter().min_by_key(|(_, f)| f.leaving.is_some()) else { return };
        let worker = worker.clone();
        tracing::info!("job {}: while it waits for slots, worker {worker} commits its output", self.spec.name);
        self.commit_listed(&worker, false, t);
        self.commits_at = Some(worker);
    }

    /// The worker that commits without slots has nothing more to do for the job.
    pub(super) fn release_committer(&mut self, t: &mut Turn<'_>) {
        if let Some(worker) = self.commits_at.take() {
            let stop = to_worker::Message::StopJob(StopJob { job: Some(self.job_ref()) });
            t.out.push(Action::Send(worker, Box::new(stop)));
        }
    }

    pub(super) fn on_confirmed(&mut self, worker: &str, c: Confirmed, t: &mut Turn<'_>) {
        for id in &c.committables {
            let key = committable_id_key(id);
            if let Some(listed) = self.record.committables.iter().find(|c| committable_key(c) == key)
                && self.confirmed.insert(key)
            {
                self.statistics.rows_out += listed.rows;
                self.statistics.committed(id);
                kill_point("coordinator-confirmed");
            }
        }
        let without_slots = self.commits_at.as_deref() == Some(worker);
        if without_slots && (c.failure.is_some() || self.confirmed_all()) {
            self.release_committer(t);
        }
        if let Some(f) = c.failure {
            if without_slots {
                t.out.push(Action::Timer(Timer::CommitAgain, self.delay));
            }
            return self.on_failure(failure_from_proto(&f), t);
        }
        if self.phase == Phase::Recovering {
            self.deploy(t);
        }
        self.release_departed(t);
        self.pump(t);
    }
}
