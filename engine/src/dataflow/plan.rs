//! The logical plan: what the user's calls leave behind, before it is cut into tasks.
//!
//! Nodes stand in the order in which they were made, so every node comes after those that feed it. A call that cannot
//! be (an unknown column, say) leaves its error here and a broken stream behind it; `Dataflow::build` answers with the
//! first error. Nothing here knows of parallelism.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use arrow_schema::{DataType, Schema, SchemaRef};
use millstream_common::{Error, Result};

use crate::graph::OperatorFactory;
use crate::sink::Sink;
use crate::source::{Source, WatermarkStrategy};

/// Error numbers of this module (`MSnnnn`).
pub(super) mod code {
    pub(crate) const UNKNOWN_COLUMN: u16 = 1010;
    pub(crate) const WRONG_TYPE: u16 = 1011;
    pub(crate) const DUPLICATE_UID: u16 = 1012;
    pub(crate) const LOOSE_END: u16 = 1013;
    pub(crate) const BAD_WINDOW: u16 = 1014;
    pub(crate) const MIXED_FLOWS: u16 = 1015;
    pub(crate) const BAD_SETTING: u16 = 1016;
    pub(crate) const CHANGELOG: u16 = 1017;
}

/// A plan that streams and their dataflow share.
pub(super) type SharedPlan = Rc<RefCell<Plan>>;

/// All nodes, and what went wrong so far.
#[derive(Default)]
pub(super) struct Plan {
    pub(super) nodes: Vec<Node>,
    pub(super) errors: Vec<Error>,
}

/// A source, an operator or a sink.
pub(super) struct Node {
    pub(super) kind: &'static str,
    pub(super) name: String,
    pub(super) uid: Option<String>,
    /// Its parameters in words: a part of the plan's identity.
    pub(super) detail: String,
    pub(super) schema: SchemaRef,
    pub(super) inputs: Vec<Input>,
    pub(super) body: Body,
}

/// Where rows of a node come from.
#[derive(Clone)]
pub(super) struct Input {
    pub(super) node: usize,
    /// The key columns of an exchange; `None`: handed on within the task.
    pub(super) keys: Option<Vec<usize>>,
}

/// What a node does.
pub(super) enum Body {
    Source(SourceBody),
    Operator(OperatorFactory),
    Sink(Arc<dyn Sink>),
}

/// A source with its settings.
pub(super) struct SourceBody {
    pub(super) source: Arc<dyn Source>,
    pub(super) watermarks: Option<WatermarkStrategy>,
    pub(super) rate: Option<f64>,
    pub(super) batch_rows: usize,
}

impl Plan {
    /// Adds a node; its index.
    pub(super) fn add(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }
}

/// The index of column `name`, or an error that names the operator and the columns there are.
pub(super) fn column_index(schema: &Schema, name: &str, operator: &str) -> Result<usize> {
    schema.index_of(name).map_err(|_| {
        let there: Vec<&str> = schema.fields().iter().map(|f| f.name().as_str()).collect();
        Error::config(format!("there is no column {name:?}"))
            .code(code::UNKNOWN_COLUMN)
            .at(operator)
            .next(format!("use one of the columns there are: {}", there.join(", ")))
    })
}

/// The indices of several columns.
pub(super) fn column_indices(schema: &Schema, names: &[String], operator: &str) -> Result<Vec<usize>> {
    names.iter().map(|n| column_index(schema, n, operator)).collect()
}

/// An error about a column whose type does not fit.
pub(super) fn wrong_type(name: &str, is: &DataType, wanted: &str, operator: &str) -> Error {
    Error::config(format!("column {name:?} is {is}, but {wanted} is needed"))
        .code(code::WRONG_TYPE)
        .at(operator)
        .next("convert it with a map before")
}

/// How an operator is called in messages.
pub(super) fn place(kind: &str, name: &str) -> String {
    format!("{kind} {name:?}")
}
