//! A stream of batches and what can be done to it without a key.

use std::sync::Arc;

use arrow_array::{BooleanArray, RecordBatch};
use arrow_schema::{Schema, SchemaRef};
use millstream_common::{Error, Result};

use super::keyed::KeyedStream;
use super::plan::{Body, Input, Node, SharedPlan, code, column_index, column_indices, place};
use super::stateless;
use crate::element::ROW_KIND_COLUMN;
use crate::graph::OperatorFactory;
use crate::operator::Operator;
use crate::operators::map::{Map, MapFn};
use crate::sink::Sink;

/// Batches on their way from one operator to the next. A handle: it may be used several times, each use gets all rows.
#[derive(Clone)]
pub struct Stream {
    pub(super) plan: SharedPlan,
    /// The node that makes it; `None` behind a call that failed.
    pub(super) node: Option<usize>,
    pub(super) schema: SchemaRef,
}

/// A column to keep, perhaps under another name: `"price"`, or `("price", "cents")`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    pub(super) name: String,
    pub(super) alias: String,
}

impl From<&str> for Selected {
    fn from(name: &str) -> Self {
        Self { name: name.into(), alias: name.into() }
    }
}

impl From<(&str, &str)> for Selected {
    fn from((name, alias): (&str, &str)) -> Self {
        Self { name: name.into(), alias: alias.into() }
    }
}

impl From<String> for Selected {
    fn from(name: String) -> Self {
        Self { alias: name.clone(), name }
    }
}

impl Stream {
    /// The columns of its batches; none behind a call that failed.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Whether its rows are changes of a table: the first column is the kind of change.
    #[must_use]
    pub fn is_changelog(&self) -> bool {
        self.schema.fields().first().is_some_and(|f| f.name() == ROW_KIND_COLUMN)
    }

    /// Sets the stable id of the operator that makes this stream. Its state is found again under this id, whatever the
    /// plan around it becomes. Without it the id is derived from the plan: see [`super::Dataflow`].
    #[must_use]
    pub fn uid(self, uid: impl Into<String>) -> Self {
        if let Some(node) = self.node {
            self.plan.borrow_mut().nodes[node].uid = Some(uid.into());
        }
        self
    }

    /// One batch from each batch: `f` is called per batch and answers with the columns of `schema`. A batch without rows
    /// goes no further.
    pub fn map<F>(&self, name: &str, schema: impl Into<SchemaRef>, f: F) -> Stream
    where
        F: Fn(&RecordBatch) -> Result<RecordBatch> + Send + Sync + 'static,
    {
        let schema = schema.into();
        self.map_as("map", name, String::new(), schema.clone(), stateless::checked(name, schema, f))
    }

    /// Keeps the rows for which `f`, called per batch, answers true (null counts as false).
    pub fn filter<F>(&self, name: &str, f: F) -> Stream
    where
        F: Fn(&RecordBatch) -> Result<BooleanArray> + Send + Sync + 'static,
    {
        self.map_as("filter", name, String::new(), self.schema.clone(), stateless::filter(name, f))
    }

    /// Keeps these columns, in this order. The kind of change of a changelog stays in front by itself.
    pub fn select<S: Into<Selected>>(&self, columns: impl IntoIterator<Item = S>) -> Stream {
        let columns: Vec<Selected> = columns.into_iter().map(Into::into).collect();
        let names: Vec<&str> = columns.iter().map(|c| c.alias.as_str()).collect();
        let name = names.join(",");
        self.select_as("select", &name, &columns)
    }

    /// As `select`, under a kind and name of its own: the projection before an exchange is one.
    pub(super) fn select_as(&self, kind: &'static str, name: &str, columns: &[Selected]) -> Stream {
        if self.node.is_none() {
            return self.broken();
        }
        let indices = columns.iter().map(|c| column_index(&self.schema, &c.name, &place(kind, name)));
        let mut indices = match indices.collect::<Result<Vec<_>>>() {
            Ok(indices) => indices,
            Err(e) => return self.fail(e),
        };
        let mut fields: Vec<_> = std::iter::zip(&indices, columns)
            .map(|(&i, c)| Arc::new(self.schema.field(i).clone().with_name(c.alias.clone())))
            .collect();
        if self.is_changelog() && indices.first() != Some(&0) {
            indices.insert(0, 0);
            fields.insert(0, self.schema.fields()[0].clone());
        }
        let detail = self.renames(&indices, &fields);
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        self.map_as(kind, name, detail, schema.clone(), stateless::select(schema, indices))
    }

    /// A function of batches under a kind of its own.
    pub(super) fn map_as(&self, kind: &'static str, name: &str, detail: String, schema: SchemaRef, f: MapFn) -> Stream {
        self.then(kind, name, detail, schema, Arc::new(move || Ok(Box::new(Map::new(f.clone())))))
    }

    fn renames(&self, indices: &[usize], fields: &[arrow_schema::FieldRef]) -> String {
        let column = |(&i, f): (&usize, &arrow_schema::FieldRef)| match self.schema.field(i).name() {
            old if old == f.name() => old.clone(),
            old => format!("{old} as {}", f.name()),
        };
        std::iter::zip(indices, fields).map(column).collect::<Vec<_>>().join(", ")
    }

    /// An operator of the user's own, without state: `make` is called once per subtask. It runs in the task of the
    /// operator before it. With state: [`Stream::key_by`] first.
    pub fn process<O, F>(&self, name: &str, schema: impl Into<SchemaRef>, make: F) -> Stream
    where
        O: Operator + 'static,
        F: Fn() -> O + Send + Sync + 'static,
    {
        self.then("process", name, String::new(), schema.into(), Arc::new(move || Ok(Box::new(make()))))
    }

    /// Rows with the same values in `columns` meet in one subtask. What follows has state by that key.
    pub fn key_by<S: Into<String>>(&self, columns: impl IntoIterator<Item = S>) -> KeyedStream {
        KeyedStream { stream: self.clone(), keys: columns.into_iter().map(Into::into).collect(), ttl: None }
    }

    /// Hands all rows to `sink`. Its committables are known by an id derived from the plan; [`Stream::sink_with_uid`]
    /// gives one.
    pub fn sink(&self, name: &str, sink: Arc<dyn Sink>) {
        self.add_sink(name, None, sink);
    }

    /// As [`Stream::sink`], with a stable id of its own.
    pub fn sink_with_uid(&self, name: &str, uid: &str, sink: Arc<dyn Sink>) {
        self.add_sink(name, Some(uid.into()), sink);
    }

    fn add_sink(&self, name: &str, uid: Option<String>, sink: Arc<dyn Sink>) {
        if let Some(node) = self.node {
            self.plan.borrow_mut().add(Node {
                kind: "sink",
                name: name.into(),
                uid,
                detail: String::new(),
                schema: self.schema.clone(),
                inputs: vec![Input { node, keys: None }],
                body: Body::Sink(sink),
            });
        }
    }

    /// Adds an operator to the chain.
    pub(super) fn then(
        &self,
        kind: &'static str,
        name: &str,
        detail: String,
        schema: SchemaRef,
        make: OperatorFactory,
    ) -> Stream {
        let Some(node) = self.node else { return self.broken() };
        let inputs = vec![Input { node, keys: None }];
        let node = Node { kind, name: name.into(), uid: None, detail, schema, inputs, body: Body::Operator(make) };
        self.push(node)
    }

    /// Adds a node; the stream that it makes.
    pub(super) fn push(&self, node: Node) -> Stream {
        let schema = node.schema.clone();
        let node = self.plan.borrow_mut().add(node);
        Stream { plan: self.plan.clone(), node: Some(node), schema }
    }

    /// Notes an error; the broken stream behind it.
    pub(super) fn fail(&self, error: Error) -> Stream {
        self.plan.borrow_mut().errors.push(error);
        self.broken()
    }

    /// The stream behind a call that failed: whatever is done to it adds nothing.
    pub(super) fn broken(&self) -> Stream {
        Stream { plan: self.plan.clone(), node: None, schema: Arc::new(Schema::empty()) }
    }

    /// The indices of `names`.
    pub(super) fn indices(&self, names: &[String], operator: &str) -> Result<Vec<usize>> {
        column_indices(&self.schema, names, operator)
    }

    /// Refuses a changelog where every row has to be a fact for itself.
    pub(super) fn need_append_only(&self, operator: &str) -> Result<()> {
        if !self.is_changelog() {
            return Ok(());
        }
        Err(Error::config("its input is a changelog, which takes rows back: not built yet for this operator")
            .code(code::CHANGELOG)
            .at(operator)
            .next("put it before the running aggregate, or aggregate in windows"))
    }
}
