//! The operators of one subtask behind its head: batches run through them in order and end in edges and sinks.

use arrow_array::RecordBatch;
use millstream_common::{Env, Epoch, Result};
use millstream_state_store::key::KeyBuffer;
use parking_lot::Mutex;

use super::output::{EdgeOutput, TimeSignal};
use super::{SinkMetrics, VersionView};
use crate::element::Barrier;
use crate::graph::Target;
use crate::operator::{Collector, KeyedBatch, Operator, SubtaskTime};
use crate::sink::{Committable, DurableVersion, SinkWriter};

/// An operator with what it needs around it.
pub(crate) struct Node {
    pub(crate) operator: Box<dyn Operator>,
    pub(crate) collector: Collector,
    pub(crate) targets: Vec<Target>,
}

/// A sink's writer with its identity.
pub(crate) struct SinkOutput {
    pub(crate) uid: String,
    pub(crate) writer: Box<dyn SinkWriter>,
    pub(crate) rows: u64,
}

/// What the sinks left at a barrier.
#[derive(Debug, Default)]
pub struct PreCommitted {
    /// To be listed in the version.
    pub committables: Vec<Committable>,
    /// Rows of sinks that commit nothing.
    pub rows_out: u64,
}

/// Nodes, sinks and edges of one subtask.
pub(crate) struct Chain {
    pub(crate) env: Env,
    pub(crate) subtask: u32,
    pub(crate) nodes: Vec<Node>,
    pub(crate) sinks: Vec<SinkOutput>,
    /// By position; [`Target::Edge`] holds indexes into the graph, resolved by `edge_index`.
    pub(crate) edges: Vec<EdgeOutput>,
    pub(crate) rows_out: u64,
    /// Time spent waiting for receivers, in nanoseconds.
    pub(crate) back_pressured_ns: u64,
    stack: Vec<(Target, RecordBatch)>,
}

impl Chain {
    pub(crate) fn new(
        env: Env,
        subtask: u32,
        nodes: Vec<Node>,
        sinks: Vec<SinkOutput>,
        edges: Vec<EdgeOutput>,
    ) -> Self {
        Self { env, subtask, nodes, sinks, edges, rows_out: 0, back_pressured_ns: 0, stack: Vec::new() }
    }

    /// The head operator of a keyed task.
    pub(crate) fn head(&mut self) -> &mut Node {
        &mut self.nodes[0]
    }

    /// Runs a batch through everything behind `targets`.
    pub(crate) async fn push(&mut self, targets: &[Target], batch: RecordBatch) -> Result<()> {
        self.stack.extend(targets.iter().rev().map(|&t| (t, batch.clone())));
        drop(batch);
        while let Some((target, batch)) = self.stack.pop() {
            match target {
                Target::Node(i) => {
                    let node = &mut self.nodes[i];
                    let keyed = KeyedBatch { records: batch, keys: KeyBuffer::default() };
                    node.operator.process(0, &keyed, &mut node.collector)?;
                    self.take_emitted(i);
                }
                Target::Edge(e) => self.push_edge(e, batch).await?,
                Target::Sink(s) => {
                    let sink = &mut self.sinks[s];
                    sink.rows += batch.num_rows() as u64;
                    self.rows_out += batch.num_rows() as u64;
                    sink.writer.write(&batch).await?;
                }
            }
        }
        Ok(())
    }

    async fn push_edge(&mut self, edge: usize, batch: RecordBatch) -> Result<()> {
        self.rows_out += batch.num_rows() as u64;
        let start = self.env.now();
        let mut end = start;
        for e in self.edges.iter_mut().filter(|e| e.edge() == edge) {
            let begin = end;
            e.push(batch.clone(), begin).await?;
            end = self.env.now();
            e.learn(batch.num_rows(), begin, end);
        }
        self.back_pressured_ns += end.since(start).as_nanos() as u64;
        Ok(())
    }

    fn take_emitted(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        let batches = node.collector.take();
        for batch in batches.into_iter().rev() {
            self.stack.extend(node.targets.iter().rev().map(|&t| (t, batch.clone())));
        }
    }

    /// Delivers what the head operator has emitted.
    pub(crate) async fn deliver_head(&mut self) -> Result<()> {
        if self.nodes[0].collector.is_empty() {
            return Ok(());
        }
        self.take_emitted(0);
        // An empty target list: the stack holds the work already.
        self.drain().await
    }

    async fn drain(&mut self) -> Result<()> {
        if let Some((target, batch)) = self.stack.pop() {
            self.push(&[target], batch).await?;
        }
        Ok(())
    }

    /// Says what holds for all rows from here on.
    pub(crate) fn set_time(&mut self, time: TimeSignal) {
        let now = self.env.now();
        for e in &mut self.edges {
            e.set_time(time, now);
        }
    }

    /// Sends what waits.
    pub(crate) async fn flush(&mut self) -> Result<()> {
        let start = self.env.now();
        for e in &mut self.edges {
            e.flush().await?;
        }
        self.back_pressured_ns += self.env.now().since(start).as_nanos() as u64;
        Ok(())
    }

    /// Sends what has waited for too long.
    pub(crate) async fn flush_due(&mut self) -> Result<()> {
        if self.edges.iter().any(EdgeOutput::waits) {
            let now = self.env.now();
            if self.edges.iter().any(|e| e.is_due(now)) {
                return self.flush().await;
            }
        }
        Ok(())
    }

    /// Tells the sinks of a version that is durable.
    pub(crate) async fn on_version(&mut self, version: &VersionView) -> Result<()> {
        for sink in &mut self.sinks {
            let committables = version.committables.get(&sink.uid).map_or(&[][..], Vec::as_slice);
            sink.writer.on_version(DurableVersion { epoch: version.epoch, committables }).await?;
        }
        Ok(())
    }

    /// Ends the epoch in the sinks.
    pub(crate) async fn pre_commit(&mut self, epoch: Epoch) -> Result<PreCommitted> {
        let mut out = PreCommitted::default();
        for sink in &mut self.sinks {
            let done = sink.writer.pre_commit(epoch).await?;
            match done.committable {
                Some(payload) => out.committables.push(Committable {
                    sink_uid: sink.uid.clone(),
                    epoch,
                    subtask: millstream_common::SubtaskIndex(self.subtask),
                    sequence: 0,
                    payload,
                    rows: done.rows,
                    kept: done.kept,
                }),
                None => out.rows_out += done.rows,
            }
        }
        Ok(out)
    }

    /// Sends the barrier on every edge.
    pub(crate) async fn barrier(&mut self, barrier: &Barrier) -> Result<()> {
        let start = self.env.now();
        for e in &mut self.edges {
            e.barrier(barrier).await?;
        }
        self.back_pressured_ns += self.env.now().since(start).as_nanos() as u64;
        Ok(())
    }

    /// Tells every operator up to where the key groups have fired.
    pub(crate) fn set_subtask_time(&mut self, time: &SubtaskTime) {
        for node in &mut self.nodes {
            node.collector.set_time(time.clone());
        }
    }

    /// Shows what was written.
    pub(crate) fn publish_sinks(&self, to: &Mutex<Vec<SinkMetrics>>) {
        if self.sinks.is_empty() {
            return;
        }
        let mut shown = to.lock();
        if shown.len() != self.sinks.len() {
            let metrics =
                |s: &SinkOutput| SinkMetrics { sink_uid: s.uid.clone(), rows: 0, figures: Default::default() };
            *shown = self.sinks.iter().map(metrics).collect();
        }
        for (shown, sink) in shown.iter_mut().zip(&self.sinks) {
            (shown.rows, shown.figures) = (sink.rows, sink.writer.figures());
        }
    }

    /// Late rows of all operators.
    pub(crate) fn late_rows(&self) -> u64 {
        self.nodes.iter().map(|n| n.collector.late_rows()).sum()
    }
}
