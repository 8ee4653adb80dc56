//! Which compactions of a job run, and who runs them.
//!
//! Order of events: the newest record shows that some key groups of a subtask have many runs; [`pick_within`] chooses
//! what to merge there, or that a large oldest run is due for a round; [`runner`] chooses a compactor or the worker that owns the key groups, which gets a `Compact`;
//! it reports; the outputs go into the next record, where they are checked against the newest one and dropped when they no
//! longer fit (`record.rs`). One whose runner goes away or gives up is picked anew for somebody else.
//!
//! Nothing ever waits for a compaction. From [`CompactionOptions::runs_max`] runs on a subtask slows itself down
//! (`task/pace.rs`), what was merged gets a record of its own instead of waiting for the next checkpoint's, and it is the
//! owner who merges, around what a compactor is merging. The young runs that come while a long merge runs are merged beside
//! it. Nobody but who was given a number of this book may report it; what others report is
//! dropped, and deleted.
//!
//! As long as a compaction is in the book, the collector keeps the version that it was picked from.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use millstream_common::env::Moment;
use millstream_common::{Error, ErrorKind, KeyGroupRange, KeyGroupRanges, Result, TaskId};
use millstream_proto::control::{Compact, CompactionDone, CompactionFailed, to_worker};
use millstream_proto::version as proto;
use millstream_state_store::compaction::{self, CompactionOptions, Limits, Pick, debt_bytes, pick_within};
use millstream_state_store::tree::runs_per_key_group_max;
use millstream_state_store::version::garbage::OpenCompactions;
use millstream_state_store::{ReadTime, Run, Tree};

use super::{Action, JobMaster, Phase, Turn};
use crate::convert::{failure_from_proto, ranges_to_proto};
use crate::element::{WATERMARK_MAX, WATERMARK_MIN};
use crate::settings::{CompactionPlace, StateSettings};
use crate::worker::Role;

/// From a compaction that failed to the next one of the same key groups.
const PAUSE: Duration = Duration::from_secs(1);

/// Compactions of one subtask at a time: a long one, and one of what came meanwhile. At the bound of runs its worker runs so many,
/// whatever compactors do.
const AT_ONCE: usize = 2;

/// The key groups of a subtask: its task's id in the tree, and its index.
type Unit = (u16, u32);

/// A compaction that was given to somebody.
pub(super) struct Given {
    unit: Unit,
    runner: String,
    /// The worker that owns the key groups runs it.
    is_owners: bool,
    /// The version that it was picked from.
    version: u64,
    pick: Pick,
}

impl Given {
    fn role(&self) -> Role {
        if self.is_owners { Role::Worker } else { Role::Compactor }
    }
}

#[cfg(test)]
impl Given {
    pub(super) fn of(unit: Unit, runner: &str, is_owners: bool, version: u64, pick: Pick) -> Self {
        Self { unit, runner: runner.to_owned(), is_owners, version, pick }
    }
}

/// What the answer to "what is to be merged for a subtask?" depends on, beside its key groups and the settings.
#[derive(PartialEq, Eq)]
struct Looked {
    version: u64,
    running: Vec<u64>,
    put_off_bytes: Option<u64>,
}

/// What the newest record says of runs.
struct Shape {
    version: u64,
    /// The live runs of each task that has some.
    runs: BTreeMap<u16, Vec<Arc<Run>>>,
    /// Tasks and states, for those who have not the record.
    states: proto::Tree,
    debt_bytes: u64,
    /// The most runs that a read of a key looks into.
    runs_per_key_group_max: usize,
}

/// The compactions of the present deployment.
#[derive(Default)]
pub(crate) struct Book {
    /// The number that was given out last.
    last: u64,
    given: BTreeMap<u64, Given>,
    /// After a failure.
    not_before: BTreeMap<Unit, Moment>,
    /// What failed at somebody who does not own the key groups, or took that process along: its owner merges it next.
    for_owner: BTreeSet<Unit>,
    /// Compactors at which the last compactions failed, how many, and until when they are given none.
    shunned: BTreeMap<String, (u32, Moment)>,
    shape: Option<Shape>,
    /// What was looked at when there was nothing to be merged for a subtask.
    nothing: BTreeMap<Unit, Looked>,
    /// Compactors that have worked for this deployment.
    compactors: BTreeSet<String>,
}

impl Book {
    /// Whether a compaction of this number is under way at `runner`.
    pub(crate) fn has_given(&self, runner: &str, number: u64) -> bool {
        self.given.get(&number).is_some_and(|g| g.runner == runner)
    }

    /// The oldest version that a running compaction was picked from.
    pub(crate) fn oldest_version(&self) -> Option<u64> {
        self.given.values().map(|g| g.version).min()
    }

    /// How many compactions run at `runner`.
    pub(crate) fn running_at(&self, runner: &str) -> u32 {
        self.given.values().filter(|g| g.runner == runner).count() as u32
    }

    /// By runner: what it is, and how many compactions run there.
    pub(crate) fn running(&self) -> BTreeMap<&str, (Role, u64)> {
        let mut running = BTreeMap::new();
        for given in self.given.values() {
            running.entry(given.runner.as_str()).or_insert((given.role(), 0)).1 += 1;
        }
        running
    }

    /// Takes out what was given to `runner` under this number.
    fn take(&mut self, runner: &str, number: u64) -> Option<Given> {
        self.has_given(runner, number).then(|| self.given.remove(&number)).flatten()
    }

    /// Whether a compactor has worked for the present deployment.
    pub(crate) fn knows(&self, compactor: &str) -> bool {
        self.compactors.contains(compactor)
    }

    /// How far behind they are at the newest version that was looked at: bytes to be merged, and the most runs that a read
    /// of a key looks into.
    pub(crate) fn debt(&self) -> Option<(u64, usize)> {
        self.shape.as_ref().map(|s| (s.debt_bytes, s.runs_per_key_group_max))
    }

    /// Whether a read sees as many runs as it may, or more: what was merged must not wait for a checkpoint then.
    pub(super) fn is_at_bound(&self, options: &CompactionOptions) -> bool {
        self.debt().is_some_and(|(_, most)| most >= options.runs_max())
    }

    /// The deployment is over: nothing of it is reported any more. Who ran compactions for it.
    pub(super) fn clear(&mut self) -> BTreeSet<String> {
        self.given.clear();
        self.nothing.clear();
        self.not_before.clear();
        self.for_owner.clear();
        self.shunned.clear();
        std::mem::take(&mut self.compactors)
    }

    fn forget_runner(&mut self, runner: &str) {
        for (_, lost) in self.given.extract_if(.., |_, g| g.runner == runner) {
            // It may be what ended the process: no other compactor is put at risk.
            if !lost.is_owners {
                self.for_owner.insert(lost.unit);
            }
        }
        self.compactors.remove(runner);
        self.shunned.remove(runner);
    }

    /// A compaction failed at a compactor. Its owner merges it, and the compactor gets others only after a while, the
    /// longer the more have failed there one after the other.
    fn failed_elsewhere(&mut self, given: &Given, now: Moment) {
        self.for_owner.insert(given.unit);
        let failures = self.shunned.get(&given.runner).map_or(0, |s| s.0) + 1;
        self.shunned.insert(given.runner.clone(), (failures, now + PAUSE * (1 << failures.min(8))));
    }

    fn is_shunned(&self, compactor: &str, now: Moment) -> bool {
        self.shunned.get(compactor).is_some_and(|(_, until)| now < *until)
    }

    /// Learns of the newest record.
    fn look(&mut self, record: &proto::VersionRecord, options: &CompactionOptions) -> Result<()> {
        if self.shape.as_ref().is_some_and(|s| s.version == record.number) {
            return Ok(());
        }
        let tree = Tree::from_proto(record.tree.as_ref().unwrap_or(&Default::default()))?;
        let mut runs: BTreeMap<u16, Vec<Arc<Run>>> = BTreeMap::new();
        for run in tree.runs() {
            runs.entry(run.task.0).or_default().push(run.clone());
        }
        let debt_bytes = runs.values().map(|of_task| debt_bytes(of_task, options)).sum();
        let most = |of_task| runs_per_key_group_max(of_task, &KeyGroupRanges::all());
        let runs_per_key_group_max = runs.values().map(most).max().unwrap_or_default();
        let (version, states) = (record.number, tree.with_runs(Vec::new()).to_proto());
        self.shape = Some(Shape { version, runs, states, debt_bytes, runs_per_key_group_max });
        Ok(())
    }
}

/// Who runs a compaction. Pure.
///
/// `compactors`: free slots. `at_bound`: a read sees as many runs as it may; then the owner waits for it.
pub(super) fn runner<'a>(
    place: CompactionPlace,
    owner: Option<&'a String>,
    compactors: &'a BTreeMap<String, u32>,
    at_bound: bool,
) -> Option<(&'a String, bool)> {
    let compactor = || {
        let free = compactors.iter().filter(|(_, free)| **free > 0);
        free.max_by_key(|(name, free)| (**free, Reverse(*name))).map(|(name, _)| (name, false))
    };
    let owner = owner.map(|name| (name, true));
    match place {
        _ if at_bound => owner,
        CompactionPlace::Workers => owner,
        CompactionPlace::Compactors => compactor(),
        CompactionPlace::Auto => compactor().or(owner),
    }
}

/// What is to be merged for a subtask, if anything, and whether a read sees as many runs as it may. `running`: compactions
/// in its key groups. Pure.
pub(super) fn next_pick(
    runs: &[Arc<Run>],
    ranges: &KeyGroupRanges,
    options: &CompactionOptions,
    put_off_bytes: Option<u64>,
    running: &[&Given],
) -> Option<(Pick, bool)> {
    let at_bound = runs_per_key_group_max(runs, ranges) >= options.runs_max();
    // What takes long must not let runs pile up: those that came since are merged beside it.
    let by_owner = running.iter().filter(|g| g.is_owners).count();
    if running.len() >= AT_ONCE && (!at_bound || by_owner >= AT_ONCE) {
        return None;
    }
    let busy: Vec<Arc<Run>> = running.iter().flat_map(|g| &g.pick.inputs).cloned().collect();
    Some((pick_within(runs, ranges, options, &Limits { busy: &busy, put_off_bytes })?, at_bound))
}

/// The clocks by which a compaction may drop what has expired in these key groups of a task: the coordinator's when the
/// record was committed, which never goes back, and the watermark up to which all of them have fired. Every later read
/// is at or beyond both. Pure.
pub(super) fn expired_by(record: &proto::VersionRecord, task: u16, ranges: &KeyGroupRanges) -> ReadTime {
    let (mut unknown, mut least) = (ranges.clone(), WATERMARK_MAX);
    for progress in record.progress.iter().filter(|p| p.task_id == u32::from(task)) {
        let Some(range) = &progress.range else { continue };
        let range = KeyGroupRanges::from(KeyGroupRange { start: range.start, end: range.end });
        if range.overlaps(ranges) {
            unknown = unknown.subtract(&range);
            least = least.min(progress.fired_ms);
        }
    }
    let event_time_ms = if unknown.is_empty() { least } else { WATERMARK_MIN };
    ReadTime { event_time_ms, processing_time_ms: record.committed_ms }
}

/// The settings as the state store knows them.
pub(super) fn options_of(state: &StateSettings) -> CompactionOptions {
    CompactionOptions {
        trigger_runs: state.compaction_trigger_runs as usize,
        output_bytes: state.compaction_output_bytes,
    }
}

impl JobMaster {
    /// Gives out what is to be merged, as far as there is somebody to do it.
    pub(super) fn give_compactions(&mut self, t: &mut Turn<'_>) {
        let idle = self.phase != Phase::Running || self.committing.is_some() || self.ending.is_some();
        if idle || self.rescale.is_some() {
            return;
        }
        let options = options_of(&self.settings.state);
        if let Err(e) = self.book.look(&self.record, &options) {
            return self.on_failure(e, t);
        }
        let now = t.now;
        t.compactors.retain(|name, _| !self.book.is_shunned(name, now));
        let in_window = self.settings.state.compaction_schedule.is_none_or(|window| window.holds(t.wall_ms));
        let put_off_bytes = (!in_window).then_some(options.output_bytes);
        for task in self.stateful_tasks() {
            for index in 0..self.assignment.parallelism() {
                let Some((pick, at_bound)) = self.due_merge((task, index), &options, put_off_bytes, t.now) else {
                    continue;
                };
                let place = self.settings.state.compaction_where;
                let owner = self.placement.get(index as usize);
                let failed = place == CompactionPlace::Auto && self.book.for_owner.contains(&(task, index));
                let chosen = runner(place, owner, &t.compactors, at_bound || failed);
                let Some((name, is_owners)) = chosen.map(|(name, is_owners)| (name.clone(), is_owners)) else {
                    continue;
                };
                if !is_owners && let Some(slots) = t.compactors.get_mut(&name) {
                    *slots -= 1;
                }
                self.give((task, index), pick, (name, is_owners), t);
            }
        }
    }

    fn stateful_tasks(&self) -> Vec<u16> {
        self.book.shape.iter().flat_map(|s| s.runs.keys().copied()).collect()
    }

    fn due_merge(
        &mut self,
        unit: Unit,
        options: &CompactionOptions,
        put_off_bytes: Option<u64>,
        now: Moment,
    ) -> Option<(Pick, bool)> {
        let shape = self.book.shape.as_ref()?;
        let (runs, ranges) = (shape.runs.get(&unit.0)?, self.assignment.ranges.get(unit.1 as usize)?);
        // One that was reported has not been applied yet.
        let reported = |(_, c): &(u64, compaction::CompactionDone)| c.task.0 == unit.0 && c.ranges.overlaps(ranges);
        let too_early = self.book.not_before.get(&unit).is_some_and(|until| now < *until);
        if too_early || self.compactions.iter().any(reported) {
            return None;
        }
        // Whoever it was picked for: a rescale may have come since.
        let meets = |g: &&Given| g.unit.0 == unit.0 && g.pick.ranges.overlaps(ranges);
        let (numbers, running): (Vec<u64>, Vec<&Given>) = self.book.given.iter().filter(|(_, g)| meets(g)).unzip();
        let looked = Looked { version: shape.version, running: numbers, put_off_bytes };
        if self.book.nothing.get(&unit) == Some(&looked) {
            return None;
        }
        let picked = next_pick(runs, ranges, options, put_off_bytes, &running);
        if picked.is_none() {
            self.book.nothing.insert(unit, looked);
        }
        picked
    }

    fn give(&mut self, unit: Unit, pick: Pick, (runner, is_owners): (String, bool), t: &mut Turn<'_>) {
        self.book.last += 1;
        let number = self.book.last;
        let Some(shape) = &self.book.shape else { return };
        let time = expired_by(&self.record, unit.0, &pick.ranges);
        let compact = Compact {
            job: Some(self.job_ref()),
            number,
            spec: (!is_owners).then(|| self.spec.clone()),
            task_id: unit.0.into(),
            subtask: unit.1,
            ranges: ranges_to_proto(&pick.ranges),
            inputs: pick.inputs.iter().map(|r| r.to_proto()).collect(),
            bottom: pick.bottom,
            tree: Some(shape.states.clone()),
            event_time_ms: time.event_time_ms,
            processing_time_ms: time.processing_time_ms,
        };
        t.out.push(Action::Send(runner.clone(), Box::new(to_worker::Message::Compact(compact))));
        if !is_owners {
            self.book.compactors.insert(runner.clone());
        }
        let version = self.record.number;
        self.book.given.insert(number, Given { unit, runner, is_owners, version, pick });
    }

    /// A runner has come to the end of a compaction.
    pub(super) fn on_compacted(&mut self, runner: &str, done: CompactionDone, t: &mut Turn<'_>) {
        let Some(given) = self.book.take(runner, done.number) else {
            // It was given to somebody else meanwhile, or is of no use any more.
            let objects: BTreeSet<String> = done.outputs.into_iter().map(|r| r.object).collect();
            if !objects.is_empty() {
                t.out.push(Action::Stale(objects.into_iter().collect()));
            }
            return;
        };
        let outputs: Vec<Run> = match done.outputs.iter().map(Run::from_proto).collect() {
            Ok(outputs) => outputs,
            Err(e) => return self.compaction_failed(given, e, t),
        };
        self.book.for_owner.remove(&given.unit);
        self.book.shunned.remove(runner);
        self.statistics.compacted(runner, given.role(), done.bytes_read, &outputs);
        let Pick { inputs, ranges, bottom } = given.pick;
        let task = TaskId(given.unit.0);
        self.compactions.push((done.number, compaction::CompactionDone { task, inputs, ranges, bottom, outputs }));
        self.pump(t);
        self.give_compactions(t);
    }

    /// A runner has given a compaction up.
    pub(super) fn on_compaction_failed(&mut self, runner: &str, failed: CompactionFailed, t: &mut Turn<'_>) {
        if let Some(given) = self.book.take(runner, failed.number) {
            self.compaction_failed(given, failure_from_proto(&failed.failure.unwrap_or_default()), t);
        }
    }

    fn compaction_failed(&mut self, given: Given, error: Error, t: &mut Turn<'_>) {
        // Only who works with the state says that it is damaged: what a compactor found may be its own disk or memory.
        if error.kind() == ErrorKind::Corrupt && given.is_owners {
            return self.on_failure(error, t);
        }
        if error.kind() != ErrorKind::Canceled {
            let (name, runner) = (&self.spec.name, &given.runner);
            tracing::warn!("job {name}: a compaction on {runner} failed and will be picked again: {error}");
            if !given.is_owners {
                self.book.failed_elsewhere(&given, t.now);
            }
        }
        self.book.not_before.insert(given.unit, t.now + PAUSE);
    }

    /// Workers end the merges of subtasks that a rescale takes from them.
    pub(super) fn forget_moved_compactions(&mut self) {
        let placement = &self.placement;
        self.book.given.retain(|_, g| !g.is_owners || placement.get(g.unit.1 as usize) == Some(&g.runner));
    }

    /// A worker or compactor is gone: what it was merging is for others.
    pub(super) fn on_runner_lost(&mut self, runner: &str) {
        self.book.forget_runner(runner);
    }

    /// Ends what compactors do for the present deployment.
    pub(super) fn stop_compactors(&mut self) -> BTreeSet<String> {
        self.compactions.clear();
        self.book.clear()
    }

    /// The compactions whose outputs may still come into a record.
    pub(crate) fn open_compactions(&self) -> OpenCompactions {
        let reported = self.compactions.iter().map(|(number, _)| *number);
        let open = self.book.given.keys().copied().chain(reported).collect();
        OpenCompactions { open, next: self.book.last + 1 }
    }
}
