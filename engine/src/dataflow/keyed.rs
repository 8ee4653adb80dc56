//! Streams by key, their windows and joins: what begins a task of its own behind an exchange.

use std::sync::Arc;
use std::time::Duration;

use arrow_schema::SchemaRef;
use millstream_common::{Error, Result};
use millstream_state_store::schema::{Ttl, TtlClock};

use super::aggregate::Aggregate;
use super::plan::{Body, Input, Node, code, column_index, place};
use super::stream::{Selected, Stream};
use super::window::{Window, WindowKind, bad, millis};
use crate::graph::OperatorFactory;
use crate::operator::Operator;
use crate::operators::join::{JoinSide, WindowJoin};
use crate::operators::running::RunningAggregate;
use crate::operators::session::SessionAggregate;
use crate::operators::top::{WindowTop, local_top};
use crate::operators::window::WindowAggregate;

/// A stream with a key: rows with equal keys meet in one subtask.
#[derive(Clone)]
pub struct KeyedStream {
    pub(super) stream: Stream,
    pub(super) keys: Vec<String>,
    /// How long the state of a key counts, and by which clock.
    pub(super) ttl: Option<(Duration, TtlClock)>,
}

/// An operator that was made from the plan: the columns that it emits, and how to make it again.
struct Made {
    schema: SchemaRef,
    make: OperatorFactory,
}

impl KeyedStream {
    /// Lets the state of a key expire when the key has had no row for `ttl` (whole milliseconds): by the watermark, or by
    /// the clock of the machine. For [`KeyedStream::aggregate`]: the next row of the key begins anew, as an insert, and no
    /// delete is sent before. Windows and joins keep nothing longer than their windows are open, so they take none.
    ///
    /// By event time, what is written before the first watermark expires only after it was written again.
    #[must_use]
    pub fn state_ttl(&self, ttl: Duration, clock: TtlClock) -> KeyedStream {
        KeyedStream { ttl: Some((ttl, clock)), ..self.clone() }
    }

    /// Puts the rows of each key into windows of event time.
    #[must_use]
    pub fn window(&self, window: Window) -> WindowedStream {
        WindowedStream { keyed: self.clone(), window }
    }

    /// Aggregates over all rows of a key so far. The result is a changelog: each batch brings the changes of its keys.
    /// Its columns are the key and the aggregates.
    pub fn aggregate(&self, name: &str, aggregates: impl IntoIterator<Item = Aggregate>) -> Stream {
        let aggregates: Vec<Aggregate> = aggregates.into_iter().collect();
        let place = place("aggregate", name);
        let ttl = match self.ttl(&place) {
            Ok(ttl) => ttl,
            Err(e) => return self.stream.fail(e),
        };
        let expires = ttl.map(|t| format!(", expires after {t}")).unwrap_or_default();
        let detail = format!("{}{expires}", describe_all(&aggregates));
        self.keyed("aggregate", name, detail, &place, reads(&aggregates), |input| {
            let (schema, keys) = (input.stream.schema.clone(), input.key_indices(&place)?);
            let calls = aggregates.iter().map(|a| a.call(&schema, &place)).collect::<Result<Vec<_>>>()?;
            let make = move || Ok(RunningAggregate::new(&schema, &keys, calls.clone())?.with_ttl(ttl));
            made(make, RunningAggregate::schema)
        })
    }

    /// An operator of the user's own, with state by key: `make` is called once per subtask. It answers with the columns
    /// of `schema`.
    pub fn process<O, F>(&self, name: &str, schema: impl Into<SchemaRef>, make: F) -> Stream
    where
        O: Operator + 'static,
        F: Fn() -> O + Send + Sync + 'static,
    {
        let made = Made { schema: schema.into(), make: Arc::new(move || Ok(Box::new(make()))) };
        self.add("process", name, String::new(), &[self], made)
    }

    /// Brings another stream with a key of the same types beside this one: an operator with two inputs, or a join.
    #[must_use]
    pub fn connect(&self, other: &KeyedStream) -> ConnectedStreams {
        ConnectedStreams { left: self.clone(), right: other.clone() }
    }

    /// Joins rows of both streams with equal keys that lie in the same window.
    #[must_use]
    pub fn join(&self, other: &KeyedStream) -> JoinedStreams {
        JoinedStreams { left: self.clone(), right: other.clone() }
    }

    /// The TTL as states want it.
    fn ttl(&self, operator: &str) -> Result<Option<Ttl>> {
        let Some((duration, clock)) = self.ttl else { return Ok(None) };
        match i64::try_from(duration.as_millis()) {
            Ok(ms) if ms > 0 && Duration::from_millis(ms.unsigned_abs()) == duration => {
                Ok(Some(Ttl { duration_ms: ms, clock }))
            }
            _ => Err(Error::config(format!("the TTL of its state is {duration:?}"))
                .code(code::BAD_SETTING)
                .at(operator)
                .next("it has to be a whole number of milliseconds above 0")),
        }
    }

    fn key_indices(&self, operator: &str) -> Result<Vec<usize>> {
        if self.keys.is_empty() {
            return Err(Error::config("the key has no column").code(code::BAD_SETTING).at(operator));
        }
        self.stream.indices(&self.keys, operator)
    }

    /// Only the key and the columns of `needed`, in the order of the stream: what an exchange has to carry.
    fn project(&self, name: &str, needed: &[String]) -> KeyedStream {
        let used = |n: &String| self.keys.contains(n) || needed.contains(n);
        let columns = self.stream.schema.fields().iter().map(|f| f.name()).filter(|n| used(n));
        let columns: Vec<Selected> = columns.cloned().map(Selected::from).collect();
        if columns.len() == self.stream.schema.fields().len() {
            return self.clone();
        }
        KeyedStream { stream: self.stream.select_as("project", name, &columns), keys: self.keys.clone(), ttl: self.ttl }
    }

    /// A keyed operator with one input: checks the columns that it reads, projects, builds.
    fn keyed(
        &self,
        kind: &'static str,
        name: &str,
        detail: String,
        place: &str,
        reads: Vec<String>,
        build: impl FnOnce(&KeyedStream) -> Result<Made>,
    ) -> Stream {
        let stream = &self.stream;
        if stream.node.is_none() {
            return stream.broken();
        }
        let checked = stream.need_append_only(place);
        let checked = checked.and_then(|()| self.key_indices(place)).and_then(|_| stream.indices(&reads, place));
        if let Err(e) = checked {
            return stream.fail(e);
        }
        let input = self.project(name, &reads);
        match build(&input) {
            Ok(made) => input.add(kind, name, detail, &[&input], made),
            Err(e) => stream.fail(located(e, place)),
        }
    }

    fn add(&self, kind: &'static str, name: &str, detail: String, inputs: &[&KeyedStream], made: Made) -> Stream {
        let operator = place(kind, name);
        let mut nodes = Vec::new();
        if kind != "aggregate" && inputs.iter().any(|i| i.ttl.is_some()) {
            let what = "a TTL of state is for aggregates without windows";
            return self.stream.fail(Error::config(what).code(code::BAD_SETTING).at(operator).next(
                "leave `.state_ttl` away: windows bound their state; in an operator of your own, set it on the state",
            ));
        }
        for input in inputs {
            let Some(node) = input.stream.node else { return self.stream.broken() };
            if !std::rc::Rc::ptr_eq(&input.stream.plan, &self.stream.plan) {
                let what = "its inputs belong to different dataflows";
                return self.stream.fail(Error::config(what).code(code::MIXED_FLOWS).at(operator));
            }
            match input.key_indices(&operator) {
                Ok(keys) => nodes.push(Input { node, keys: Some(keys) }),
                Err(e) => return self.stream.fail(e),
            }
        }
        let Made { schema, make } = made;
        let body = Body::Operator(make);
        self.stream.push(Node { kind, name: name.into(), uid: None, detail, schema, inputs: nodes, body })
    }
}

/// A keyed stream whose rows lie in windows.
#[derive(Clone)]
pub struct WindowedStream {
    keyed: KeyedStream,
    window: Window,
}

impl WindowedStream {
    /// Aggregates over the rows of a key and window. A result comes once, when the watermark passes the window's end.
    /// Its columns are the key, the aggregates and the window's own (`start_as`, `end_as`).
    pub fn aggregate(&self, name: &str, aggregates: impl IntoIterator<Item = Aggregate>) -> Stream {
        let aggregates: Vec<Aggregate> = aggregates.into_iter().collect();
        let (window, stream) = (&self.window, &self.keyed.stream);
        let session = matches!(window.kind, WindowKind::Session { .. });
        let kind = if session { "session-aggregate" } else { "window-aggregate" };
        let place = place(kind, name);
        let time = match self.time_column(&place) {
            Ok(time) => time,
            Err(e) => return stream.fail(e),
        };
        let mut needed = reads(&aggregates);
        needed.push(time.clone());
        let detail = format!("{}: {}", window.describe(), describe_all(&aggregates));
        self.keyed.keyed(kind, name, detail, &place, needed, |input| {
            let (schema, keys) = (input.stream.schema.clone(), input.key_indices(&place)?);
            let calls = aggregates.iter().map(|a| a.call(&schema, &place)).collect::<Result<Vec<_>>>()?;
            let (time, columns) = (column_index(&schema, &time, &place)?, window.columns());
            if let WindowKind::Session { gap } = window.kind {
                let gap = millis(gap, "the gap", &place)?;
                return made(
                    move || SessionAggregate::new(&schema, &keys, time, gap, calls.clone(), columns.clone()),
                    SessionAggregate::schema,
                );
            }
            let spec = window.spec(&place)?;
            made(
                move || WindowAggregate::new(&schema, &keys, time, spec, calls.clone(), columns.clone()),
                WindowAggregate::schema,
            )
        })
    }

    /// The rows of a key and window with the greatest value of a column, all of them when several share it: whole rows,
    /// then the window's columns. For tumbling windows of event time, and for windows that an earlier operator assigned
    /// (the key is the column of their end then, and rows that are not even the greatest of their batch stay behind
    /// before the exchange).
    pub fn top(&self, name: &str, column: &str) -> Stream {
        let place = place("window-top", name);
        let stream = &self.keyed.stream;
        let (time, detail) = match self.time_column(&place) {
            Ok(time) => (time, format!("{}: greatest {column}", self.window.describe())),
            Err(e) => return stream.fail(e),
        };
        if self.window.kind == WindowKind::Assigned {
            return self.top_assigned(name, column, &time, detail, &place);
        }
        let all: Vec<String> = stream.schema.fields().iter().map(|f| f.name().clone()).collect();
        let checked = column_index(&stream.schema, column, &place);
        if let Err(e) = checked {
            return stream.fail(e);
        }
        self.keyed.keyed("window-top", name, detail, &place, all, |input| {
            let schema = input.stream.schema.clone();
            let (time, value) = (column_index(&schema, &time, &place)?, column_index(&schema, column, &place)?);
            let WindowKind::Tumbling { size } = self.window.kind else {
                return Err(bad("the greatest rows of sliding and session windows are not built yet", &place));
            };
            let (size, columns) = (millis(size, "the size", &place)?, self.window.columns());
            made(move || WindowTop::by_time(&schema, time, size, value, columns.clone()), WindowTop::schema)
        })
    }

    fn top_assigned(&self, name: &str, column: &str, end: &str, detail: String, place: &str) -> Stream {
        let stream = &self.keyed.stream;
        if stream.node.is_none() {
            return stream.broken();
        }
        if self.keyed.keys != [end] {
            let what = format!("the greatest rows of assigned windows are those of the key {end:?} alone");
            return stream.fail(bad(&what, place).next(format!("use `.key_by([{end:?}])`")));
        }
        let local = column_index(&stream.schema, end, place).and_then(|end| {
            let value = column_index(&stream.schema, column, place)?;
            local_top(&stream.schema, end, value).map_err(|e| located(e, place))
        });
        let local = match local {
            Ok(f) => stream.map_as("local-top", name, format!("greatest {column} by {end}"), stream.schema.clone(), f),
            Err(e) => return stream.fail(e),
        };
        let input = KeyedStream { stream: local, keys: self.keyed.keys.clone(), ttl: self.keyed.ttl };
        input.keyed("window-top", name, detail, place, self.all_columns(), |input| {
            let schema = input.stream.schema.clone();
            let (end, value) = (column_index(&schema, end, place)?, column_index(&schema, column, place)?);
            made(move || WindowTop::by_window_end(&schema, end, value), WindowTop::schema)
        })
    }

    fn all_columns(&self) -> Vec<String> {
        self.keyed.stream.schema.fields().iter().map(|f| f.name().clone()).collect()
    }

    fn time_column(&self, place: &str) -> Result<String> {
        let stream = &self.keyed.stream;
        if stream.node.is_none() {
            return Ok(String::new());
        }
        self.window.time_column(stream, place)
    }
}

/// Two streams with keys of the same types.
#[derive(Clone)]
pub struct ConnectedStreams {
    left: KeyedStream,
    right: KeyedStream,
}

impl ConnectedStreams {
    /// An operator of the user's own with state by key: input 0 is the first stream, input 1 the second.
    pub fn process<O, F>(&self, name: &str, schema: impl Into<SchemaRef>, make: F) -> Stream
    where
        O: Operator + 'static,
        F: Fn() -> O + Send + Sync + 'static,
    {
        if let Err(e) = same_keys(&self.left, &self.right, &place("process", name)) {
            return self.left.stream.fail(e);
        }
        let made = Made { schema: schema.into(), make: Arc::new(move || Ok(Box::new(make()))) };
        self.left.add("process", name, String::new(), &[&self.left, &self.right], made)
    }
}

/// Two streams that meet by key; [`JoinedStreams::window`] says when.
#[derive(Clone)]
pub struct JoinedStreams {
    left: KeyedStream,
    right: KeyedStream,
}

impl JoinedStreams {
    /// Rows meet when they lie in the same window. The column of event time has the same name on both sides.
    #[must_use]
    pub fn window(&self, window: Window) -> WindowedJoin {
        WindowedJoin { left: self.left.clone(), right: self.right.clone(), window }
    }
}

/// What one side of a join gives to its results.
#[derive(Clone, Debug, Default)]
pub struct JoinColumns {
    columns: Vec<String>,
    distinct: bool,
}

impl JoinColumns {
    /// These columns of each row.
    pub fn of<S: Into<String>>(columns: impl IntoIterator<Item = S>) -> Self {
        Self { columns: columns.into_iter().map(Into::into).collect(), distinct: false }
    }

    /// No column: the side only decides whether there is a result.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Rows of a key and window with the same columns count once.
    #[must_use]
    pub fn distinct(mut self) -> Self {
        self.distinct = true;
        self
    }

    fn describe(&self) -> String {
        format!("{}({})", if self.distinct { "distinct " } else { "" }, self.columns.join(", "))
    }
}

/// A join that knows its windows.
#[derive(Clone)]
pub struct WindowedJoin {
    left: KeyedStream,
    right: KeyedStream,
    window: Window,
}

impl WindowedJoin {
    /// Each pair of rows of a key and window: the columns of the left row, of the right row, then the window's. It comes
    /// when the watermark passes the window's end.
    pub fn select(&self, name: &str, left: JoinColumns, right: JoinColumns) -> Stream {
        match self.try_select(name, &left, &right) {
            Ok(stream) => stream,
            Err(e) => self.left.stream.fail(e),
        }
    }

    fn try_select(&self, name: &str, left: &JoinColumns, right: &JoinColumns) -> Result<Stream> {
        if self.left.stream.node.is_none() || self.right.stream.node.is_none() {
            return Ok(self.left.stream.broken());
        }
        let place = place("window-join", name);
        let WindowKind::Tumbling { size } = self.window.kind else {
            return Err(bad("joins in other than tumbling windows are not built yet", &place));
        };
        let size = millis(size, "the size", &place)?;
        same_keys(&self.left, &self.right, &place)?;
        let (left_in, left_side) = self.side(&self.left, left, &format!("{name}.left"), &place)?;
        let (right_in, right_side) = self.side(&self.right, right, &format!("{name}.right"), &place)?;
        let columns = self.window.columns();
        let made = made(
            move || WindowJoin::new(left_side.clone(), right_side.clone(), size, columns.clone()),
            WindowJoin::schema,
        );
        let made = made.map_err(|e| located(e, &place))?;
        let detail = format!("{}: {} with {}", self.window.describe(), left.describe(), right.describe());
        Ok(left_in.add("window-join", name, detail, &[&left_in, &right_in], made))
    }

    /// One side: projected to what it needs, and as the operator wants it.
    fn side(
        &self,
        input: &KeyedStream,
        columns: &JoinColumns,
        name: &str,
        place: &str,
    ) -> Result<(KeyedStream, JoinSide)> {
        input.stream.need_append_only(place)?;
        input.key_indices(place)?;
        input.stream.indices(&columns.columns, place)?;
        let time = self.window.time_column(&input.stream, place)?;
        let mut needed = columns.columns.clone();
        needed.push(time.clone());
        let input = input.project(name, &needed);
        let side = JoinSide {
            schema: input.stream.schema.clone(),
            time_column: column_index(&input.stream.schema, &time, place)?,
            columns: input.stream.indices(&columns.columns, place)?,
            distinct: columns.distinct,
        };
        Ok((input, side))
    }
}

/// Makes the operator once, for its columns, and keeps how.
fn made<O: Operator + 'static>(
    make: impl Fn() -> Result<O> + Send + Sync + 'static,
    schema: impl Fn(&O) -> SchemaRef,
) -> Result<Made> {
    let schema = schema(&make()?);
    Ok(Made { schema, make: Arc::new(move || Ok(Box::new(make()?))) })
}

fn same_keys(left: &KeyedStream, right: &KeyedStream, place: &str) -> Result<()> {
    if left.stream.node.is_none() || right.stream.node.is_none() {
        return Ok(());
    }
    let types = |side: &KeyedStream| -> Result<Vec<_>> {
        let indices = side.key_indices(place)?;
        Ok(indices.into_iter().map(|i| side.stream.schema.field(i).data_type().clone()).collect())
    };
    let (l, r) = (types(left)?, types(right)?);
    if l == r {
        return Ok(());
    }
    let words = |types: &[arrow_schema::DataType]| types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let what = format!("the keys of its inputs have different types: ({}) and ({})", words(&l), words(&r));
    Err(Error::config(what).code(code::WRONG_TYPE).at(place).next("convert one of them with a map before"))
}

fn reads(aggregates: &[Aggregate]) -> Vec<String> {
    aggregates.iter().flat_map(Aggregate::reads).cloned().collect()
}

fn describe_all(aggregates: &[Aggregate]) -> String {
    aggregates.iter().map(Aggregate::describe).collect::<Vec<_>>().join(", ")
}

/// An operator's own complaint, with the place in the plan when it names none.
fn located(error: Error, place: &str) -> Error {
    if error.place().is_empty() { error.at(place) } else { error }
}
