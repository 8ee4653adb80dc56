//! The dataflow: where streams begin, and where the plan becomes a job graph.

use std::cell::RefCell;
use std::fmt;
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;

use millstream_common::{Error, Result};

use super::build::build;
use super::plan::{Body, Node, Plan, SharedPlan, SourceBody, code, place};
use super::stream::Stream;
use crate::graph::JobGraph;
use crate::source::{Source, WatermarkStrategy};

/// Rows of a batch at most, unless a source is told otherwise.
pub const DEFAULT_BATCH_ROWS: usize = 8_192;

/// A job in the making.
///
/// # Ids
/// Everything that leaves something durable has a stable id: the positions of a source, the states of an operator, the
/// committables of a sink. It is what `.uid("...")` says, or else it follows from the plan. A source's is its name. A
/// keyed operator's is the id of the task that feeds it (its first input), `/`, its kind, `:`, its name; a sink's the
/// same with the task that it stands in. A task has the id of its source or keyed operator. So an id depends neither on
/// the parallelism, nor on branches beside it, nor on the maps and filters in front. Two with the same id are refused.
#[derive(Default)]
pub struct Dataflow {
    plan: SharedPlan,
}

impl Dataflow {
    /// Without any stream.
    #[must_use]
    pub fn new() -> Self {
        Self { plan: Rc::new(RefCell::new(Plan::default())) }
    }

    /// A stream of what `source` reads.
    pub fn source(&self, name: &str, source: Arc<dyn Source>) -> SourceStream {
        let schema = source.schema();
        let body = SourceBody { source, watermarks: None, rate: None, batch_rows: DEFAULT_BATCH_ROWS };
        let node = self.plan.borrow_mut().add(Node {
            kind: "source",
            name: name.into(),
            uid: None,
            detail: String::new(),
            schema: schema.clone(),
            inputs: Vec::new(),
            body: Body::Source(body),
        });
        SourceStream { stream: Stream { plan: self.plan.clone(), node: Some(node), schema } }
    }

    /// The job graph, or the first thing that is wrong with the plan. Every operator is made once, to find out whether it
    /// can be.
    pub fn build(&self) -> Result<JobGraph> {
        let mut plan = self.plan.borrow_mut();
        if !plan.errors.is_empty() {
            return Err(plan.errors.remove(0));
        }
        build(&plan)
    }
}

impl fmt::Debug for Dataflow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.plan.borrow();
        f.debug_list().entries(plan.nodes.iter().map(|n| place(n.kind, &n.name))).finish()
    }
}

/// The stream of a source, with the settings of the source. It is a [`Stream`] in all else.
#[derive(Clone)]
pub struct SourceStream {
    stream: Stream,
}

impl SourceStream {
    /// How watermarks come from its rows. A source needs this as soon as anything behind it asks for event time;
    /// without it, time stands still until the input ends.
    #[must_use]
    pub fn watermarks(self, strategy: WatermarkStrategy) -> Self {
        if strategy.delay_ms < 0 {
            self.refuse("the watermark's delay is negative");
        }
        self.set(|s| s.watermarks = Some(strategy))
    }

    /// Rows a second of real time, shared by the splits that have not ended. `None` or 0: as fast as possible.
    #[must_use]
    pub fn rate(self, rows_per_second: impl Into<Option<f64>>) -> Self {
        let rate = rows_per_second.into();
        if rate.is_some_and(|r| !r.is_finite() || r < 0.0) {
            self.refuse("a rate is a number of rows a second, 0 or above");
        }
        self.set(|s| s.rate = rate.filter(|r| *r > 0.0))
    }

    /// Rows of a batch at most.
    #[must_use]
    pub fn batch_rows(self, rows: usize) -> Self {
        if rows == 0 {
            self.refuse("a batch has at least one row");
        }
        self.set(|s| s.batch_rows = rows.max(1))
    }

    /// Sets the stable id of its positions.
    #[must_use]
    pub fn uid(self, uid: impl Into<String>) -> Self {
        Self { stream: self.stream.uid(uid) }
    }

    fn set(self, change: impl FnOnce(&mut SourceBody)) -> Self {
        if let Some(n) = self.node
            && let Body::Source(source) = &mut self.plan.borrow_mut().nodes[n].body
        {
            change(source);
        }
        self
    }

    fn refuse(&self, what: &str) {
        let mut plan = self.plan.borrow_mut();
        let at = self.node.map_or_else(String::new, |n| place("source", &plan.nodes[n].name));
        plan.errors.push(Error::config(what).code(code::BAD_SETTING).at(at));
    }
}

impl Deref for SourceStream {
    type Target = Stream;
    fn deref(&self) -> &Stream {
        &self.stream
    }
}
