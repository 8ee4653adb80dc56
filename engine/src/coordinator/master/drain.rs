//! How a job leaves workers: its subtasks move to other workers by a live rescale that changes no key group ([`moves`]
//! says which go where), and a worker stays until the job needs it no more.
//!
//! Order of events for a worker that leaves: when there are slots elsewhere its subtasks move at once, else as soon as some
//! come; when none have come for as long as the worker waits, a last checkpoint, then the job goes to `restarting` and
//! waits there, while some worker commits what that checkpoint lists ([`super::commits`]). The parallelism never changes by itself, and a worker that comes draws nothing to it: for that there is
//! [`JobMaster::want_rebalance`].

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millstream_common::planted::bug_is_planted;
use millstream_common::{Error, KeyGroupRanges};
use millstream_proto::control::{StopJob, inject_barrier::Kind, to_worker};

use super::rescale::{Purpose, Stage};
use super::{Action, JobMaster, Phase, Turn, WorkerFacts, place_near};

/// So long the last checkpoint of a job that gives its slots up is waited for.
const LAST_CHECKPOINT: Duration = Duration::from_secs(2);

/// What a worker that has no subtask of the job any more may still owe.
#[derive(Debug)]
pub(super) struct Departed {
    /// Commits of epochs up to this one,
    pub(super) epoch: u64,
    /// of these subtasks.
    pub(super) subtasks: BTreeSet<u32>,
}

impl JobMaster {
    /// Workers have come, want to leave, or have slots again.
    pub(crate) fn tend(&mut self, t: &mut Turn<'_>) {
        self.try_deploy(t);
        self.hand_over(t);
        // Those that came in amid a rescale have waited for its end.
        if !self.compactions.is_empty() {
            self.pump(t);
        }
        self.give_compactions(t);
    }

    /// Whether a worker has to stay for the job: it runs subtasks or will, or merges runs, or it owes commits or makes some.
    pub(crate) fn needs(&self, worker: &str) -> bool {
        // Planted bug 31: a worker without subtasks may go, whatever it has not committed.
        let owes = self.departed.contains_key(worker) && !bug_is_planted(31);
        let commits = self.commits_at.as_deref() == Some(worker);
        !self.has_ended() && (owes || commits || self.uses(worker) || self.book.running_at(worker) > 0)
    }

    /// Whether what a worker counts is of the present deployment.
    pub(crate) fn reckons_with(&self, worker: &str) -> bool {
        self.departed.contains_key(worker) || self.uses(worker) || self.book.knows(worker)
    }

    /// Whether a worker has to do with the present deployment.
    pub(super) fn uses(&self, worker: &str) -> bool {
        let next = self.rescale.iter().filter_map(|r| r.next.as_ref()).flat_map(|n| &n.1);
        self.placement.iter().chain(next).any(|w| w == worker)
    }

    /// Moves subtasks off workers that leave as soon as that is possible; gives up what nobody takes over in time.
    pub(super) fn hand_over(&mut self, t: &mut Turn<'_>) {
        let until = |w: &String| t.workers.get(w).and_then(|f| f.leaving);
        let Some(first) = self.placement.iter().filter_map(until).min() else {
            self.giving_up = None;
            return;
        };
        let stops = self.rescale.is_none() && !self.stop_tokens.is_empty();
        if self.phase != Phase::Running || self.ending.is_some() || self.input_ended || stops {
            return;
        }
        if self.rescale.is_none() && !drained(&self.placement, t.workers).is_empty() {
            self.giving_up = None;
            tracing::info!("job {}: its subtasks on workers that leave move to others", self.spec.name);
            return self.start_rescale(Purpose::Drain, None, t);
        }
        if first > t.now || self.rescale_is_near() {
            return;
        }
        if self.rescale.as_ref().is_some_and(|r| r.purpose == Purpose::Drain) {
            // There are slots: what is waited for no longer is that compactions end.
            return self.when_quiet(t);
        }
        match self.giving_up {
            None => {
                // What comes in behind it is all that will be read again.
                self.giving_up = Some(t.now);
                if self.checkpoint.is_none() {
                    self.trigger(Kind::Checkpoint, t);
                }
            }
            Some(since) if t.now.since(since) >= LAST_CHECKPOINT => self.give_up(t),
            Some(_) => {}
        }
    }

    /// The job waits for slots instead of the worker for the job.
    pub(super) fn give_up(&mut self, t: &mut Turn<'_>) {
        let on_leaving = |w: &&String| t.workers.get(*w).is_some_and(|f| f.leaving.is_some());
        let subtasks = self.placement.iter().filter(on_leaving).count();
        let workers: BTreeSet<&str> = self.placement.iter().filter(on_leaving).map(String::as_str).collect();
        let names = workers.into_iter().collect::<Vec<_>>().join(", ");
        let free: u32 = t.workers.values().map(|f| f.free).sum();
        let what = format!("worker {names} leaves with {subtasks} subtasks, and {free} slots are free elsewhere");
        let e = Error::unavailable(what).code(7133).next("start more workers: the job waits for them");
        self.take_down(&e, t);
        // Nothing is broken: it goes on as soon as there are slots.
        self.phase = Phase::Restarting { delayed: false };
        self.try_deploy(t);
    }

    /// Spreads the subtasks of the job over the workers so that these have equally many free slots.
    pub(crate) fn want_rebalance(&mut self, token: u64, t: &mut Turn<'_>) {
        if let Some(e) = self.refuses_rescale() {
            return t.out.push(Action::Reply(token, Err(e)));
        }
        if balanced(&self.placement, t.workers).is_empty() {
            return t.out.push(Action::Reply(token, Ok(())));
        }
        self.start_rescale(Purpose::Rebalance, Some(token), t);
    }

    /// The worker of each subtask that moves; none when slots are too few, or nothing is to be done.
    pub(super) fn moves(&self, purpose: Purpose, t: &Turn<'_>) -> BTreeMap<u32, String> {
        match purpose {
            Purpose::Parallelism(_) => BTreeMap::new(),
            Purpose::Rebalance => balanced(&self.placement, t.workers),
            Purpose::Drain => {
                let subtasks = drained(&self.placement, t.workers);
                let ranges = subtasks.iter().map(|&i| self.assignment.ranges.get(i as usize));
                let near = ranges.map(|r| self.workers_of(r.unwrap_or(&KeyGroupRanges::empty()))).collect();
                let to = place_near(near, t.workers).unwrap_or_default();
                subtasks.into_iter().zip(to).collect()
            }
        }
    }

    pub(super) fn owes(&self, departed: &Departed) -> bool {
        self.record.committables.iter().any(|c| {
            let its = c.epoch <= departed.epoch && departed.subtasks.contains(&c.subtask);
            its && !self.confirmed.contains(&super::committable_key(c))
        })
    }

    /// Ends the job on workers that have no subtask of it any more, and have nothing left to do for it.
    pub(super) fn release_departed(&mut self, t: &mut Turn<'_>) {
        let unheard = match self.rescale.as_ref().map(|r| &r.stage) {
            Some(Stage::Serving(missing)) => missing.clone(),
            _ => BTreeSet::new(),
        };
        // One that has come back, or is about to, keeps what it runs.
        let used = self.workers_in_use();
        let done = |(w, d): &(&String, &Departed)| !used.contains(*w) && !unheard.contains(*w) && !self.owes(d);
        let released: Vec<String> = self.departed.iter().filter(done).map(|(w, _)| w.clone()).collect();
        for w in released {
            self.departed.remove(&w);
            self.statistics.fold_worker(&w);
            let stop = to_worker::Message::StopJob(StopJob { job: Some(self.job_ref()) });
            t.out.push(Action::Send(w, Box::new(stop)));
        }
    }
}

/// The subtasks on leaving workers that find slots elsewhere: of one worker all of them or none.
fn drained(placement: &[String], workers: &BTreeMap<String, WorkerFacts>) -> Vec<u32> {
    let mut free: u32 = workers.values().map(|f| f.free).sum();
    let mut subtasks = Vec::new();
    for worker in workers.iter().filter(|(_, f)| f.leaving.is_some()).map(|(w, _)| w) {
        let its: Vec<u32> = (0u32..).zip(placement).filter(|(_, p)| *p == worker).map(|(i, _)| i).collect();
        if its.len() as u32 <= free {
            free -= its.len() as u32;
            subtasks.extend(its);
        }
    }
    subtasks.sort_unstable();
    subtasks
}

/// Moves that leave equally many free slots on the workers, as far as the job's subtasks can do that. Workers that leave
/// have none, and those that run none of its subtasks give nothing away.
fn balanced(placement: &[String], workers: &BTreeMap<String, WorkerFacts>) -> BTreeMap<u32, String> {
    let mut free: BTreeMap<&String, u32> =
        workers.iter().filter(|(_, f)| f.leaving.is_none()).map(|(w, f)| (w, f.free)).collect();
    let mut moves = BTreeMap::new();
    for _ in 0..placement.len() {
        let to = free.iter().max_by_key(|(w, slots)| (**slots, std::cmp::Reverse(*w))).map(|(w, slots)| (*w, *slots));
        let stays = |(i, _): &(u32, &String)| !moves.contains_key(i);
        let from = (0u32..)
            .zip(placement)
            .filter(stays)
            .filter_map(|(i, w)| Some((i, w, *free.get(w)?)))
            .min_by_key(|&(i, _, slots)| (slots, std::cmp::Reverse(i)));
        let (Some((to, most)), Some((subtask, from, least))) = (to, from) else { break };
        if most < least + 2 {
            break;
        }
        moves.insert(subtask, to.clone());
        free.insert(to, most - 1);
        free.insert(from, least + 1);
    }
    moves
}

#[cfg(test)]
mod tests {
    use millstream_common::env::Moment;

    use super::*;

    fn workers(all: &[(&str, u32, bool)]) -> BTreeMap<String, WorkerFacts> {
        let fact = |&(name, free, leaves): &(&str, u32, bool)| {
            let leaving = leaves.then(Moment::default);
            (name.to_owned(), WorkerFacts { data_address: name.to_owned(), free, leaving })
        };
        all.iter().map(fact).collect()
    }

    fn placed(names: &str) -> Vec<String> {
        names.chars().map(String::from).collect()
    }

    #[test]
    fn all_subtasks_of_a_leaving_worker_move_or_none() {
        let w = workers(&[("a", 0, true), ("b", 0, true), ("c", 2, false)]);
        assert_eq!(drained(&placed("aabc"), &w), vec![0, 1], "those of the first fit, then nothing is left");
        assert_eq!(drained(&placed("aaabc"), &w), vec![3], "three do not fit, one does");
        assert_eq!(drained(&placed("cc"), &w), Vec::<u32>::new());
        assert_eq!(drained(&placed("ab"), &workers(&[("a", 0, true), ("b", 0, false)])), Vec::<u32>::new());
    }

    #[test]
    fn subtasks_spread_until_free_slots_are_equal() {
        let to = |moves: &BTreeMap<u32, String>| moves.values().map(String::as_str).collect::<String>();
        let moves = balanced(&placed("aaaa"), &workers(&[("a", 0, false), ("b", 4, false)]));
        assert_eq!((moves.keys().copied().collect::<Vec<_>>(), to(&moves)), (vec![2, 3], "bb".to_owned()));
        assert!(balanced(&placed("ab"), &workers(&[("a", 1, false), ("b", 1, false)])).is_empty());
        assert!(balanced(&placed("a"), &workers(&[("a", 0, false), ("b", 1, false)])).is_empty(), "nothing is gained");
        let leaving = workers(&[("a", 0, true), ("b", 4, false)]);
        assert!(balanced(&placed("aa"), &leaving).is_empty(), "that is for the drain");
        // Another job fills b: this one's subtasks are on a alone.
        let three = balanced(&placed("aaa"), &workers(&[("a", 1, false), ("b", 0, false), ("c", 3, false)]));
        assert_eq!(to(&three), "c");
    }
}
