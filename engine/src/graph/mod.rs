//! The job graph: tasks (chains of operators) and the exchanges between them. Built once, by the dataflow API; each
//! process of a cluster builds the same graph from the job's name and arguments.

mod describe;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_schema::SchemaRef;
use millstream_common::Result;
use millstream_state_store::schema::KeyColumn;

use crate::operator::Operator;
use crate::sink::Sink;
use crate::source::{Source, WatermarkStrategy};

/// A job as the runtime executes it.
#[derive(Clone)]
pub struct JobGraph {
    /// In an order in which every task comes after those that feed it.
    pub tasks: Vec<TaskPlan>,
    /// The exchanges.
    pub edges: Vec<EdgePlan>,
}

impl JobGraph {
    /// The key columns of a task behind an exchange, as its states are described by them; empty for others.
    #[must_use]
    pub fn key_of(&self, task: usize) -> Vec<KeyColumn> {
        let edge = self.edges.iter().find(|e| e.to == task && e.input == 0);
        let column = |e: &EdgePlan, i: usize| KeyColumn::of(e.schema.field(i));
        edge.map(|e| e.key_columns.iter().map(|&i| column(e, i)).collect()).unwrap_or_default()
    }

    /// The tasks with splits from which rows reach this task: itself, or all those before it.
    #[must_use]
    pub fn sources_of(&self, task: usize) -> BTreeSet<usize> {
        if matches!(self.tasks[task].head, Head::Source(_)) {
            return BTreeSet::from([task]);
        }
        let before = self.edges.iter().filter(|e| e.to == task);
        before.flat_map(|e| self.sources_of(e.from)).collect()
    }

    /// By group of splits that keep together: their sources.
    #[must_use]
    pub fn alignment(&self) -> BTreeMap<String, BTreeSet<String>> {
        let mut groups = BTreeMap::<_, BTreeSet<_>>::new();
        for task in &self.tasks {
            if let Head::Source(source) = &task.head
                && let Some(alignment) = &source.watermarks.alignment
            {
                groups.entry(alignment.group.clone()).or_default().insert(source.uid.clone());
            }
        }
        groups
    }

    /// Sets the idle time-out of sources that have none of their own.
    pub fn default_idle_timeout(&mut self, timeout: Option<std::time::Duration>) {
        for task in &mut self.tasks {
            if let Head::Source(source) = &mut task.head {
                source.watermarks.idle_timeout = source.watermarks.idle_timeout.or(timeout);
            }
        }
    }
}

/// A chain of operators that runs as one subtask per slot; the unit of rescale.
#[derive(Clone)]
pub struct TaskPlan {
    /// Stable over releases and parallelism.
    pub uid: String,
    /// What people see.
    pub name: String,
    /// Where its rows come from.
    pub head: Head,
    /// Its operators, in an order in which every node comes after the one that feeds it.
    pub nodes: Vec<NodePlan>,
    /// Its sinks.
    pub sinks: Vec<SinkPlan>,
}

/// Where the rows of a task come from.
#[derive(Clone)]
pub enum Head {
    /// From a source; its batches go to `targets`.
    Source(SourcePlan),
    /// From the edges of the graph that lead to this task; their batches go to node 0.
    Exchange,
}

/// A source with what the runtime does around it.
#[derive(Clone)]
pub struct SourcePlan {
    /// Stable id of the source's positions.
    pub uid: String,
    /// What people see.
    pub name: String,
    /// The source.
    pub source: Arc<dyn Source>,
    /// Its watermarks.
    pub watermarks: WatermarkStrategy,
    /// Rows a second of real time over all splits that have not ended; `None`: as fast as possible.
    pub rate: Option<f64>,
    /// Rows of a batch at most.
    pub batch_rows: usize,
    /// Where its batches go.
    pub targets: Vec<Target>,
}

/// Makes an operator for one subtask.
pub type OperatorFactory = Arc<dyn Fn() -> Result<Box<dyn Operator>> + Send + Sync>;

/// An operator in a chain.
#[derive(Clone)]
pub struct NodePlan {
    /// Stable id of its states.
    pub uid: String,
    /// What people see.
    pub name: String,
    /// What it does, in words: kind and parameters. A part of the plan's identity.
    pub detail: String,
    /// Makes it.
    pub make: OperatorFactory,
    /// The columns that it emits.
    pub schema: SchemaRef,
    /// Where its batches go.
    pub targets: Vec<Target>,
}

/// Where batches go: by index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A node of the same task.
    Node(usize),
    /// An edge of the graph.
    Edge(usize),
    /// A sink of the same task.
    Sink(usize),
}

/// A sink at the end of a chain.
#[derive(Clone)]
pub struct SinkPlan {
    /// Stable id of its committables.
    pub uid: String,
    /// What people see.
    pub name: String,
    /// The sink.
    pub sink: Arc<dyn Sink>,
    /// The columns of its batches.
    pub schema: SchemaRef,
}

/// A hash exchange: rows go to the subtask that owns the key group of their key.
#[derive(Clone)]
pub struct EdgePlan {
    /// Index of the sending task.
    pub from: usize,
    /// Index of the receiving task.
    pub to: usize,
    /// Which input of the receiving task's head it feeds.
    pub input: usize,
    /// The columns of its batches.
    pub schema: SchemaRef,
    /// The key columns, by index.
    pub key_columns: Vec<usize>,
}
