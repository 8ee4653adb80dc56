//! Makes subtasks from a deployment: their channels, operators, sinks, states. Also what a rescale prepares.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use millstream_common::env::AbortOnDrop;
use millstream_common::{AssignmentId, Epoch, Error, KeyGroupRanges, Lane, Result, StateId, TaskId};
use millstream_proto::control::{Deploy, Placement, PrepareRescale, SplitOwner};
use millstream_proto::version::{JobIdentity, VersionRecord};
use millstream_state_store::schema::{Schema, Upgrade};
use millstream_state_store::tree::Tree;
use tokio::sync::mpsc;

use super::job::{CONTROL, JobContext, TaskRun};
use crate::convert::{assignment_from_proto, committable_from_proto};
use crate::element::{Assignment, StreamElement};
use crate::graph::{Head, JobGraph, TaskPlan};
use crate::operator::{Collector, SubtaskTime};
use crate::sink::SinkContext;
use crate::source::Split;
use crate::task::chain::{Chain, Node, SinkOutput};
use crate::task::gate::{InputChannel, Origin};
use crate::task::keyed::{self, KeyedTaskParts, Start};
use crate::task::output::EdgeOutput;
use crate::task::source::{self, SourceTaskParts};
use crate::task::{NewInput, OwnedSplit, Preparation, SubtaskId, TaskControl, TaskMetrics, VersionView};
use crate::transport::ChannelKey;

/// What the subtasks of one `Deploy` message need.
pub(crate) struct Deployment {
    pub(crate) assignment: Assignment,
    subtasks: Vec<u32>,
    addresses: Vec<String>,
    splits: Vec<SplitOwner>,
    live_splits: u64,
    attempt: u64,
    epoch: Epoch,
    join: bool,
    tree: Option<Tree>,
    version: Option<Arc<VersionView>>,
}

impl Deployment {
    pub(crate) fn new(deploy: &Deploy, assignment: Assignment, version: Option<Arc<VersionView>>) -> Result<Self> {
        let tree = deploy.version.as_ref().and_then(|r| r.tree.as_ref()).map(Tree::from_proto).transpose()?;
        Ok(Self {
            assignment,
            subtasks: deploy.subtasks.clone(),
            addresses: addresses(&deploy.placement),
            splits: deploy.splits.clone(),
            live_splits: deploy.live_splits,
            attempt: deploy.attempt,
            epoch: Epoch(deploy.epoch),
            join: deploy.join,
            tree,
            version,
        })
    }

    fn start(&self) -> Result<Start> {
        match &self.version {
            Some(v) => Ok(Start::From(v.clone())),
            None if self.join => Ok(Start::When(self.assignment.id)),
            None => Err(Error::internal("a deployment without a version")),
        }
    }
}

fn addresses(placement: &Option<Placement>) -> Vec<String> {
    placement.as_ref().map(|p| p.data_address.clone()).unwrap_or_default()
}

/// What subtasks need of a record.
pub(crate) fn version_view(graph: &JobGraph, record: &VersionRecord) -> Result<VersionView> {
    let tree = Tree::from_proto(record.tree.as_ref().unwrap_or(&Default::default()))?;
    let mut runs = Vec::with_capacity(graph.tasks.len());
    let mut fired = Vec::with_capacity(graph.tasks.len());
    let mut task_ids = Vec::with_capacity(graph.tasks.len());
    for task in &graph.tasks {
        let id = tree.task_id(&task.uid);
        task_ids.push(id);
        runs.push(id.map(|id| tree.runs_of(id, &KeyGroupRanges::all())).unwrap_or_default());
        let mut of_task = Vec::new();
        for p in record.progress.iter().filter(|p| id.is_some_and(|id| u32::from(id.0) == p.task_id)) {
            let range = crate::convert::range_from_proto(p.range.as_ref().unwrap_or(&Default::default()))?;
            of_task.push((range, p.fired_ms));
        }
        fired.push(of_task);
    }
    let mut committables: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for c in &record.committables {
        committables.entry(c.sink_uid.clone()).or_default().push(committable_from_proto(c));
    }
    let splits = record.splits.iter().map(|s| ((s.source_uid.clone(), s.split_id.clone()), s.clone())).collect();
    Ok(VersionView {
        epoch: Epoch(record.epoch),
        committed_ms: record.committed_ms,
        assignment: assignment_from_proto(record.assignment.as_ref().unwrap_or(&Default::default()))?,
        runs,
        layouts: tree.layouts(),
        fired,
        splits,
        task_ids,
        committables,
    })
}

/// The id of a task in the job's tree; `None` when it keeps no state.
pub(crate) fn task_id(graph: &JobGraph, version: &VersionView, task: usize) -> Option<u16> {
    matches!(graph.tasks[task].head, Head::Exchange).then(|| version.task_ids[task].map(|t| t.0)).flatten()
}

/// Makes and starts the subtasks: first everything that receives, then everything that sends.
pub(crate) async fn start_subtasks(context: &Arc<JobContext>, d: &Deployment) -> Result<BTreeMap<SubtaskId, TaskRun>> {
    let all: Vec<SubtaskId> = (0..context.graph.tasks.len())
        .flat_map(|task| d.subtasks.iter().map(move |&index| SubtaskId { task, index }))
        .collect();
    let parallelism = d.assignment.parallelism();
    let mut inputs: BTreeMap<SubtaskId, Vec<InputChannel>> = BTreeMap::new();
    for &id in &all {
        let channels = new_inputs(context, id, d.assignment.id, &(0..parallelism).collect());
        inputs.insert(
            id,
            channels.into_iter().map(|c| InputChannel::new(c.input, c.edge, c.from, c.origin, c.end)).collect(),
        );
    }
    let mut runs = BTreeMap::new();
    for id in all {
        let mut edges = Vec::new();
        for (e, plan) in context.graph.edges.iter().enumerate().filter(|(_, e)| e.from == id.task) {
            let to = (0..parallelism).collect();
            let channels = connect(context, e, id.index, d.assignment.id, &to, &d.addresses).await?;
            let channels = channels.into_iter().map(|c| c.1).collect();
            edges.push(EdgeOutput::new(e, plan.key_columns.clone(), plan.schema.clone(), &d.assignment, channels));
        }
        let channels = inputs.remove(&id).unwrap_or_default();
        runs.insert(id, start_subtask(context, d, id, channels, edges)?);
    }
    Ok(runs)
}

fn new_inputs(context: &JobContext, id: SubtaskId, assignment: AssignmentId, from: &BTreeSet<u32>) -> Vec<NewInput> {
    let mut inputs = Vec::new();
    for (e, plan) in context.graph.edges.iter().enumerate().filter(|(_, e)| e.to == id.task) {
        let origin = match context.graph.tasks[plan.from].head {
            Head::Source(_) => Origin::Source(plan.from),
            Head::Exchange => Origin::Keyed(Arc::new(context.graph.sources_of(plan.from))),
        };
        for &sender in from {
            let end = context.worker.channels.expect(channel_key(context, e, sender, id.index, assignment));
            inputs.push(NewInput { input: plan.input, edge: e, from: sender, origin: origin.clone(), end });
        }
    }
    inputs
}

async fn connect(
    context: &JobContext,
    edge: usize,
    from: u32,
    assignment: AssignmentId,
    to: &BTreeSet<u32>,
    addresses: &[String],
) -> Result<Vec<(u32, mpsc::Sender<StreamElement>)>> {
    let worker = &context.worker;
    let mut channels = Vec::new();
    for &to in to {
        let Some(address) = addresses.get(to as usize) else {
            return Err(Error::internal(format!("subtask {to} has no place")));
        };
        let key = channel_key(context, edge, from, to, assignment);
        channels
            .push((to, worker.channels.connect(worker.transport.as_ref(), &worker.data_address, address, key).await?));
    }
    Ok(channels)
}

fn channel_key(context: &JobContext, edge: usize, from: u32, to: u32, assignment: AssignmentId) -> ChannelKey {
    let (generation, execution) = context.execution();
    ChannelKey { job: context.job.id.clone(), generation, execution, assignment, edge: edge as u32, from, to }
}

fn start_subtask(
    context: &Arc<JobContext>,
    d: &Deployment,
    id: SubtaskId,
    channels: Vec<InputChannel>,
    edges: Vec<EdgeOutput>,
) -> Result<TaskRun> {
    let plan = &context.graph.tasks[id.task];
    let metrics = Arc::new(TaskMetrics::default());
    let (control_tx, control) = mpsc::channel::<TaskControl>(CONTROL);
    let mut chain = make_chain(context, plan, id, edges)?;
    let events = context.events.clone();
    let env = context.env.clone();
    let start = d.start()?;
    let handle = match &plan.head {
        Head::Source(source) => {
            let splits = owned_splits(&d.splits, id.index);
            let live_splits = d.live_splits;
            let plan = source.clone();
            let parts = SourceTaskParts {
                env,
                id,
                plan,
                chain,
                splits,
                live_splits,
                control,
                events,
                metrics: metrics.clone(),
                start,
            };
            context.env.spawn(Lane::Compute, "source subtask", source::run(parts))
        }
        Head::Exchange => {
            let (task, state_ids) = ids_of(d, &context.graph, id.task, &mut chain)?;
            let mut inputs: Vec<_> = context.graph.edges.iter().filter(|e| e.to == id.task).collect();
            inputs.sort_by_key(|e| e.input);
            let key_columns = inputs.into_iter().map(|e| e.key_columns.clone()).collect();
            let memory = context.worker.stores.task_memory(&context.settings, keyed_subtasks(context, d));
            let store = context.state.clone();
            let epoch = d.epoch;
            let parts = KeyedTaskParts {
                env,
                id,
                task,
                state_ids,
                key_columns,
                chain,
                channels,
                store,
                memory,
                control,
                events,
                metrics: metrics.clone(),
                epoch,
                start,
            };
            context.env.spawn(Lane::Compute, "keyed subtask", keyed::run(parts))
        }
    };
    context.gauges.add(id, d.attempt, metrics);
    let joined = d.join.then_some(d.assignment.id);
    Ok(TaskRun { control: control_tx, joined, leaves: false, _task: AbortOnDrop(handle) })
}

fn keyed_subtasks(context: &JobContext, d: &Deployment) -> usize {
    let keyed = context.graph.tasks.iter().filter(|t| matches!(t.head, Head::Exchange)).count();
    // Slots may be added by a later rescale: budgets are cut for all the worker's slots.
    keyed * d.subtasks.len().max(context.worker.slots as usize)
}

/// The ids that the version allotted to the task and to the states of its head.
fn ids_of(d: &Deployment, graph: &JobGraph, task: usize, chain: &mut Chain) -> Result<(TaskId, Vec<StateId>)> {
    let (plan, key) = (&graph.tasks[task], graph.key_of(task));
    let absent = |what: &str| Error::internal(format!("the version has no id for {what}"));
    let tree = d.tree.as_ref().ok_or_else(|| absent("anything"))?;
    let id = tree.task_id(&plan.uid).ok_or_else(|| absent(&plan.uid))?;
    let mut ids = Vec::new();
    for state in chain.head().operator.states() {
        let name = &state.descriptor().name;
        let known =
            |s: &&millstream_state_store::tree::StateEntry| s.operator_uid == plan.nodes[0].uid && s.name == *name;
        let entry = tree.states().iter().find(known).ok_or_else(|| absent(name))?;
        if let Some(newest) = entry.schemas.last() {
            check_values(newest, &state.descriptor().schema(key.clone()))
                .map_err(|e| e.at(format!("state '{name}' of operator '{}'", entry.operator_uid)))?;
        }
        state.set_history(&entry.schemas)?;
        ids.push(entry.id);
    }
    Ok((id, ids))
}

/// Refuses a deployment of a job of which this process would make another one: each builds the job from its own binary.
pub(crate) fn check_program(record: &VersionRecord, graph: &JobGraph) -> Result<()> {
    let none = JobIdentity::default();
    let there = record.job.as_ref().unwrap_or(&none);
    let parameters = graph.parameters()?;
    if there.plan == graph.describe() && there.parameters.iter().map(|p| (&p.name, &p.value)).eq(&parameters) {
        return Ok(());
    }
    Err(other_program("this worker's program has another plan of the job than the coordinator's".to_owned()))
}

/// The same for the values of a state, which a plan does not tell in whole: they would be written under the number of a
/// schema that they do not have.
fn check_values(there: &Schema, here: &Schema) -> Result<()> {
    if Upgrade::new(there, here).is_ok_and(|upgrade| upgrade.is_same()) {
        return Ok(());
    }
    Err(other_program(format!("this worker's program has other values than the coordinator's: {here}, not {there}")))
}

fn other_program(what: String) -> Error {
    Error::unavailable(what).code(7026).next("start workers and coordinator from the same release of the program")
}

fn make_chain(context: &JobContext, plan: &TaskPlan, id: SubtaskId, edges: Vec<EdgeOutput>) -> Result<Chain> {
    let mut nodes = Vec::new();
    for node in &plan.nodes {
        let collector = Collector::new(SubtaskTime::default());
        nodes.push(Node { operator: (node.make)()?, collector, targets: node.targets.clone() });
    }
    let (generation, execution) = context.execution();
    let mut sinks = Vec::new();
    for sink in &plan.sinks {
        let unique = context.env.random();
        let to = SinkContext {
            subtask: millstream_common::SubtaskIndex(id.index),
            generation,
            execution,
            unique,
            checkpoint_interval: context.settings.checkpoint.interval,
            checkpoint_timeout: context.settings.checkpoint.timeout,
            objects: Some(context.sink_objects()),
        };
        let writer = sink.sink.writer(sink.schema.clone(), to)?;
        sinks.push(SinkOutput { uid: sink.uid.clone(), writer, rows: 0 });
    }
    Ok(Chain::new(context.env.clone(), id.index, nodes, sinks, edges))
}

pub(super) fn owned_splits(owners: &[SplitOwner], subtask: u32) -> Vec<OwnedSplit> {
    owners
        .iter()
        .filter(|o| o.subtask == subtask)
        .map(|o| OwnedSplit {
            source_uid: o.source_uid.clone(),
            split: Split { id: o.split_id.clone(), payload: o.payload.clone() },
            index: o.index,
        })
        .collect()
}

/// Opens the channels that the new assignment adds to the subtasks that stay, and says what changes for each subtask.
pub(crate) async fn prepare_subtasks(
    context: &Arc<JobContext>,
    old: &Assignment,
    new: &Assignment,
    prepare: &PrepareRescale,
    tasks: &BTreeMap<SubtaskId, TaskRun>,
) -> Result<Vec<(SubtaskId, Preparation)>> {
    let (before, after) = (old.parallelism(), new.parallelism());
    let addresses = addresses(&prepare.placement);
    let moved: BTreeSet<u32> = prepare.moved.iter().copied().collect();
    // Everybody whose instance under the new assignment is another one than before.
    let joining: BTreeSet<u32> = moved.iter().copied().chain(before..after).collect();
    let mut out = Vec::new();
    // Subtasks that this very assignment adds have all their channels already.
    for (&id, _) in tasks.iter().filter(|(_, t)| t.joined != Some(new.id)) {
        let leaves = id.index >= after || moved.contains(&id.index);
        // One that leaves with the barrier gets no new channel, although its route changes all the same.
        let added = if leaves { BTreeSet::new() } else { joining.clone() };
        let inputs = new_inputs(context, id, new.id, &added);
        let mut outputs = Vec::new();
        for (e, _) in context.graph.edges.iter().enumerate().filter(|(_, e)| e.from == id.task) {
            outputs.push((e, connect(context, e, id.index, new.id, &added, &addresses).await?));
        }
        let splits = owned_splits(&prepare.splits, id.index);
        let moved = moved.clone();
        out.push((id, Preparation { assignment: new.id, leaves, moved, inputs, outputs, splits }));
    }
    Ok(out)
}
