//! The tree of a job: its tasks, its states, and the runs that are live. Plain data; every change makes a successor
//! that is checked before it is committed.

use std::collections::BTreeSet;
use std::sync::Arc;

use millstream_common::{Epoch, Error, KeyGroupRange, KeyGroupRanges, Result, StateId, TaskId};
use millstream_proto::version as proto;

use crate::layout::{Layout, Layouts, StateLayout};
use crate::run::{Run, bad_record, small};
use crate::schema::{Schema, schema_from_proto, schema_to_proto};
use crate::section::Interval;

/// A task of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskEntry {
    /// Its id, never used again.
    pub id: TaskId,
    /// Its stable name in the plan.
    pub uid: String,
}

/// A state of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateEntry {
    /// Its id, never used again.
    pub id: StateId,
    /// The task that owns it.
    pub task: TaskId,
    /// The stable name of the operator that owns it.
    pub operator_uid: String,
    /// Its name in the operator.
    pub name: String,
    /// How its keys are ordered.
    pub layout: Layout,
    /// Empty when it has no merge operands.
    pub merge_operator: String,
    /// How its values are encoded, in words.
    pub value_schema: String,
    /// The schemas that its entries have had, oldest first; the last one is the present one. Empty where no program that
    /// knows of them has opened the state.
    pub schemas: Vec<Schema>,
}

/// The tasks, states and live runs of a job. Cheap to clone but for the lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    tasks: Vec<TaskEntry>,
    states: Vec<StateEntry>,
    runs: Vec<Arc<Run>>,
    next_task_id: u16,
    next_state_id: u16,
}

impl Tree {
    /// The tasks, by id.
    #[must_use]
    pub fn tasks(&self) -> &[TaskEntry] {
        &self.tasks
    }

    /// The states, by id.
    #[must_use]
    pub fn states(&self) -> &[StateEntry] {
        &self.states
    }

    /// The live runs, in no particular order.
    #[must_use]
    pub fn runs(&self) -> &[Arc<Run>] {
        &self.runs
    }

    /// The id of a task.
    #[must_use]
    pub fn task_id(&self, uid: &str) -> Option<TaskId> {
        self.tasks.iter().find(|t| t.uid == uid).map(|t| t.id)
    }

    /// The id of a task, allotted when it is new.
    pub fn add_task(&mut self, uid: &str) -> Result<TaskId> {
        if let Some(id) = self.task_id(uid) {
            return Ok(id);
        }
        let id = TaskId(allot(&mut self.next_task_id, "tasks")?);
        self.tasks.push(TaskEntry { id, uid: uid.to_owned() });
        Ok(id)
    }

    /// The id of a state without a described schema, allotted when it is new. See [`Tree::add_described_state`].
    pub fn add_state(
        &mut self,
        task: TaskId,
        operator_uid: &str,
        name: &str,
        layout: StateLayout,
        value_schema: &str,
    ) -> Result<StateId> {
        self.add_described_state(task, operator_uid, name, layout, (value_schema, None))
    }

    /// The id of a state, allotted when it is new. A known state with another task, layout or operator is refused with
    /// both shown, and so is one whose values cannot become those of the program's schema; if they can, the schema joins
    /// the history. `values` say how values are encoded, in words and as a schema.
    pub fn add_described_state(
        &mut self,
        task: TaskId,
        operator_uid: &str,
        name: &str,
        layout: StateLayout,
        values: (&str, Option<Schema>),
    ) -> Result<StateId> {
        let StateLayout { layout, merge_operator } = layout;
        let (value_schema, schema) = values;
        if let Some(schema) = &schema {
            let place = || format!("state '{name}' of operator '{operator_uid}'");
            schema.check().map_err(|e| e.at(place()))?;
        }
        let mut wanted = StateEntry {
            id: StateId(0),
            task,
            operator_uid: operator_uid.to_owned(),
            name: name.to_owned(),
            layout,
            merge_operator,
            value_schema: value_schema.to_owned(),
            schemas: schema.into_iter().collect(),
        };
        if let Some(known) = self.states.iter_mut().find(|s| s.operator_uid == operator_uid && s.name == name) {
            wanted.id = known.id;
            known.evolve(&wanted)?;
            known.check_merge()?;
            return Ok(known.id);
        }
        wanted.check_merge()?;
        wanted.id = StateId(allot(&mut self.next_state_id, "states")?);
        let id = wanted.id;
        self.states.push(wanted);
        Ok(id)
    }

    /// The layouts of all states.
    #[must_use]
    pub fn layouts(&self) -> Layouts {
        let layout = |s: &StateEntry| StateLayout { layout: s.layout, merge_operator: s.merge_operator.clone() };
        Layouts::described(self.states.iter().map(|s| (s.id, layout(s), &s.schemas[..])))
    }

    /// Adds runs that a checkpoint commits.
    pub fn add_runs(&mut self, runs: impl IntoIterator<Item = Arc<Run>>) {
        self.runs.extend(runs);
    }

    /// Puts `runs` in the place of all runs.
    #[must_use]
    pub fn with_runs(&self, runs: Vec<Arc<Run>>) -> Self {
        Self { runs, ..self.clone() }
    }

    /// The runs of a task that are live somewhere in `ranges`, newest first.
    #[must_use]
    pub fn runs_of(&self, task: TaskId, ranges: &KeyGroupRanges) -> Vec<Arc<Run>> {
        let mut runs: Vec<_> =
            self.runs.iter().filter(|r| r.task == task && r.clip.overlaps(ranges)).cloned().collect();
        sort_newest_first(&mut runs);
        runs
    }

    /// From the version record's form; checks what [`Tree::check`] checks.
    pub fn from_proto(tree: &proto::Tree) -> Result<Self> {
        let tasks = tree
            .tasks
            .iter()
            .map(|t| Ok(TaskEntry { id: TaskId(small(t.task_id)?), uid: t.uid.clone() }))
            .collect::<Result<Vec<_>>>()?;
        let states = tree.states.iter().map(state_from_proto).collect::<Result<Vec<_>>>()?;
        let runs = tree.runs.iter().map(|r| Run::from_proto(r).map(Arc::new)).collect::<Result<Vec<_>>>()?;
        let tree = Self {
            tasks,
            states,
            runs,
            next_task_id: small(tree.next_task_id)?,
            next_state_id: small(tree.next_state_id)?,
        };
        tree.check().map_err(|e| bad_record(e.what()))?;
        Ok(tree)
    }

    /// In the version record's form.
    #[must_use]
    pub fn to_proto(&self) -> proto::Tree {
        let layout = |l| match l {
            Layout::Point => proto::state_entry::Layout::Point,
            Layout::TimeOrdered => proto::state_entry::Layout::TimeOrdered,
            Layout::Map => proto::state_entry::Layout::Map,
        };
        let state = |s: &StateEntry| proto::StateEntry {
            state_id: s.id.0.into(),
            task_id: s.task.0.into(),
            operator_uid: s.operator_uid.clone(),
            name: s.name.clone(),
            layout: layout(s.layout).into(),
            merge_operator: s.merge_operator.clone(),
            value_schema: s.value_schema.clone(),
            schemas: s.schemas.iter().map(schema_to_proto).collect(),
        };
        proto::Tree {
            tasks: self.tasks.iter().map(|t| proto::TaskEntry { task_id: t.id.0.into(), uid: t.uid.clone() }).collect(),
            states: self.states.iter().map(state).collect(),
            runs: self.runs.iter().map(|r| r.to_proto()).collect(),
            next_task_id: self.next_task_id.into(),
            next_state_id: self.next_state_id.into(),
        }
    }

    /// Checks the tree by itself: ids are in order and known, no run stands twice, and per task and key group the
    /// runs' intervals are disjoint.
    pub fn check(&self) -> Result<()> {
        let ids_in_order = self.tasks.is_sorted_by(|a, b| a.id < b.id)
            && self.states.is_sorted_by(|a, b| a.id < b.id)
            && self.tasks.last().is_none_or(|t| t.id.0 < self.next_task_id)
            && self.states.last().is_none_or(|s| s.id.0 < self.next_state_id);
        if !ids_in_order {
            return Err(broken("its ids are not in order"));
        }
        let mut seen = BTreeSet::new();
        for run in &self.runs {
            if !seen.insert(run.identity()) {
                return Err(broken(&format!("the run in {} at {} stands in it twice", run.object, run.offset)));
            }
            if run.clip.is_empty() || self.tasks.binary_search_by_key(&run.task, |t| t.id).is_err() {
                return Err(broken(&format!("the run in {} at {} belongs nowhere", run.object, run.offset)));
            }
            if run.states.iter().any(|s| self.states.binary_search_by_key(&s.state, |e| e.id).is_err()) {
                return Err(broken(&format!("the run in {} at {} has unknown states", run.object, run.offset)));
            }
        }
        for task in &self.tasks {
            let mut runs: Vec<_> = self.runs.iter().filter(|r| r.task == task.id).collect();
            runs.sort_unstable_by_key(|r| r.interval);
            for (segment, live) in live_in_segments(runs.iter().map(|r| &r.clip)) {
                let mut neighbours = live.windows(2).map(|w| (runs[w[0]].interval, runs[w[1]].interval));
                if let Some((a, b)) = neighbours.find(|(a, b)| a.max >= b.min) {
                    return Err(broken(&format!(
                        "in key groups {segment} of task '{}', the runs {a} and {b} share flushes",
                        task.uid
                    )));
                }
            }
        }
        Ok(())
    }
}

/// Checks that `new` may follow `old`: nothing that was live is lost, every interval is as before, or the hull of
/// some that were, or was committed in between: of an epoch above `committed.0`, up to `committed.1`.
pub fn check_successor(old: &Tree, new: &Tree, committed: (Epoch, Epoch)) -> Result<()> {
    new.check()?;
    let kept = old.tasks.iter().all(|t| new.tasks.contains(t))
        && old.states.iter().all(|s| new.states.iter().any(|n| n.may_follow(s)));
    if !kept || new.next_task_id < old.next_task_id || new.next_state_id < old.next_state_id {
        return Err(broken("a task or state of its predecessor is gone or has changed"));
    }
    for task in &new.tasks {
        let of_task = |r: &&Arc<Run>| r.task == task.id;
        let before = old.runs.iter().filter(of_task).count();
        let runs: Vec<_> = old.runs.iter().filter(of_task).chain(new.runs.iter().filter(of_task)).collect();
        for (segment, live) in live_in_segments(runs.iter().map(|r| &r.clip)) {
            let (was, is) = live.split_at(live.partition_point(|&i| i < before));
            let intervals = |of: &[usize]| of.iter().map(|&i| runs[i].interval).collect::<Vec<_>>();
            check_segment(&intervals(was), &intervals(is), committed)
                .map_err(|why| broken(&format!("in key groups {segment} of task '{}', {why}", task.uid)))?;
        }
    }
    Ok(())
}

fn check_segment(old: &[Interval], new: &[Interval], committed: (Epoch, Epoch)) -> Result<(), String> {
    if let Some(lost) = old.iter().find(|o| !new.iter().any(|n| n.contains(o))) {
        return Err(format!("the flushes {lost} are lost"));
    }
    for n in new {
        let inside = old.iter().filter(|o| n.contains(o)).copied();
        let right = match inside.reduce(|a, b| a.hull(b)) {
            Some(hull) => hull == *n,
            None => n.min.epoch > committed.0 && n.max.epoch <= committed.1,
        };
        if !right {
            return Err(format!("the flushes {n} come from nowhere"));
        }
    }
    Ok(())
}

/// Cuts the key groups at every bound of `clips`, so that each clip holds all of a segment or none: the segments in order, each
/// with the places of the clips that hold it, in order; segments that no clip holds are left out.
pub(crate) fn live_in_segments<'a>(
    clips: impl Iterator<Item = &'a KeyGroupRanges>,
) -> Vec<(KeyGroupRange, Vec<usize>)> {
    // Where one ends and another begins, the order does not matter: nothing lies in between.
    let ends = |i: usize, r: &KeyGroupRange| [(r.start, i, true), (r.end, i, false)];
    let mut bounds: Vec<(u32, usize, bool)> =
        clips.enumerate().flat_map(|(i, clip)| clip.iter().flat_map(move |r| ends(i, r))).collect();
    bounds.sort_unstable();
    let (mut segments, mut live, mut start) = (Vec::new(), BTreeSet::new(), 0);
    for (bound, i, begins) in bounds {
        if bound > start && !live.is_empty() {
            segments.push((KeyGroupRange::new(start, bound), live.iter().copied().collect()));
        }
        start = bound;
        if begins {
            live.insert(i);
        } else {
            live.remove(&i);
        }
    }
    segments
}

/// How many of `runs` (those of one task) a read of a key in `ranges` looks into at most: the most that show one of these
/// key groups.
#[must_use]
pub fn runs_per_key_group_max<'a>(runs: impl IntoIterator<Item = &'a Arc<Run>>, ranges: &KeyGroupRanges) -> usize {
    let clips = runs.into_iter().flat_map(|run| run.clip.intersect(ranges).as_slice().to_vec());
    ranges_at_once_max(clips)
}

/// How many of `ranges` hold one and the same key group, at most.
#[must_use]
pub fn ranges_at_once_max(ranges: impl IntoIterator<Item = KeyGroupRange>) -> usize {
    let mut changes: Vec<(u32, i64)> = ranges.into_iter().flat_map(|c| [(c.start, 1), (c.end, -1)]).collect();
    // Where one ends and another begins, the end comes first.
    changes.sort_unstable();
    let (mut now, mut most) = (0_i64, 0);
    for (_, change) in changes {
        now += change;
        most = now.max(most);
    }
    most as usize
}

/// Newest first; runs that share no key group may be in any order.
pub(crate) fn sort_newest_first(runs: &mut [Arc<Run>]) {
    runs.sort_by(|a, b| b.interval.cmp(&a.interval).then_with(|| a.identity().cmp(&b.identity())));
}

fn allot(next: &mut u16, what: &str) -> Result<u16> {
    let id = *next;
    // The greatest number stays free: it bounds scans.
    *next = id
        .checked_add(1)
        .filter(|n| *n < u16::MAX)
        .ok_or_else(|| Error::config(format!("a job has more than 65,533 {what} over its life")).code(1204))?;
    Ok(id)
}

fn state_from_proto(s: &proto::StateEntry) -> Result<StateEntry> {
    let layout = match s.layout() {
        proto::state_entry::Layout::Point => Layout::Point,
        proto::state_entry::Layout::TimeOrdered => Layout::TimeOrdered,
        proto::state_entry::Layout::Map => Layout::Map,
        proto::state_entry::Layout::Unknown => return Err(bad_record("the layout of a state is unknown")),
    };
    Ok(StateEntry {
        id: StateId(small(s.state_id)?),
        task: TaskId(small(s.task_id)?),
        operator_uid: s.operator_uid.clone(),
        name: s.name.clone(),
        layout,
        merge_operator: s.merge_operator.clone(),
        value_schema: s.value_schema.clone(),
        schemas: s.schemas.iter().map(schema_from_proto).collect::<Result<_>>()?,
    })
}

fn broken(why: &str) -> Error {
    Error::internal(format!("the tree of the job is broken: {why}"))
        .code(9207)
        .next("do not commit it; keep the objects and report it")
}
