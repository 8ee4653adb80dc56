//! Windows: which rows of a key are looked at together.

use std::time::Duration;

use arrow_schema::DataType;
use millstream_common::{Error, Result};

use super::plan::{code, column_index, wrong_type};
use super::stream::Stream;
use crate::operators::window::{WindowColumns, WindowSpec};

/// How rows are put into windows. Made from [`Tumbling`], [`Sliding`], [`Session`] or [`Assigned`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    pub(super) kind: WindowKind,
    /// The column with the event time of a row; of an assigned window, the one with its end.
    pub(super) column: Option<String>,
    pub(super) start: Option<String>,
    pub(super) end: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WindowKind {
    Tumbling { size: Duration },
    Sliding { size: Duration, slide: Duration },
    Session { gap: Duration },
    Assigned,
}

/// Windows of one size, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Tumbling;

impl Tumbling {
    /// Windows of `size`, aligned to 1970-01-01 00:00 UTC.
    #[must_use]
    pub fn of(size: Duration) -> Window {
        Window::new(WindowKind::Tumbling { size })
    }
}

/// Windows of one size that begin every `slide`.
#[derive(Clone, Copy, Debug)]
pub struct Sliding;

impl Sliding {
    /// Windows of `size`, one beginning every `slide`, aligned to 1970-01-01 00:00 UTC.
    #[must_use]
    pub fn of(size: Duration, slide: Duration) -> Window {
        Window::new(WindowKind::Sliding { size, slide })
    }
}

/// Windows that last as long as rows of a key keep coming.
#[derive(Clone, Copy, Debug)]
pub struct Session;

impl Session {
    /// A session ends when a key has no row for `gap`.
    #[must_use]
    pub fn gap(gap: Duration) -> Window {
        Window::new(WindowKind::Session { gap })
    }
}

/// The window that an earlier operator put a row into.
#[derive(Clone, Copy, Debug)]
pub struct Assigned;

impl Assigned {
    /// The column holds the (exclusive) end of the row's window.
    #[must_use]
    pub fn ending_at(column: &str) -> Window {
        Window { column: Some(column.into()), ..Window::new(WindowKind::Assigned) }
    }
}

impl Window {
    fn new(kind: WindowKind) -> Self {
        Self { kind, column: None, start: None, end: None }
    }

    /// The column with the event time of a row: a time stamp in milliseconds.
    #[must_use]
    pub fn on(mut self, column: &str) -> Self {
        self.column = Some(column.into());
        self
    }

    /// Adds the start of the window to its results, as a column of this name.
    #[must_use]
    pub fn start_as(mut self, name: &str) -> Self {
        self.start = Some(name.into());
        self
    }

    /// Adds the (exclusive) end of the window to its results, as a column of this name.
    #[must_use]
    pub fn end_as(mut self, name: &str) -> Self {
        self.end = Some(name.into());
        self
    }

    pub(super) fn columns(&self) -> WindowColumns {
        WindowColumns { start: self.start.clone(), end: self.end.clone() }
    }

    /// In words, for the plan.
    pub(super) fn describe(&self) -> String {
        let kind = match self.kind {
            WindowKind::Tumbling { size } => format!("tumbling {size:?}"),
            WindowKind::Sliding { size, slide } => format!("sliding {size:?} every {slide:?}"),
            WindowKind::Session { gap } => format!("session gap {gap:?}"),
            WindowKind::Assigned => "assigned".into(),
        };
        format!("{kind} on {}", self.column.as_deref().unwrap_or("?"))
    }

    /// The name of its time column, which must be a time stamp of `stream` in milliseconds.
    pub(super) fn time_column(&self, stream: &Stream, operator: &str) -> Result<String> {
        let Some(name) = &self.column else {
            return Err(bad("the window does not say which column holds the event time", operator)
                .next("add `.on(\"column\")` to it"));
        };
        let field = stream.schema.field(column_index(&stream.schema, name, operator)?);
        match field.data_type() {
            DataType::Timestamp(arrow_schema::TimeUnit::Millisecond, _) => Ok(name.clone()),
            other => Err(wrong_type(name, other, "a time stamp in milliseconds", operator)),
        }
    }

    /// Tumbling and sliding windows as the operators want them.
    pub(super) fn spec(&self, operator: &str) -> Result<WindowSpec> {
        match self.kind {
            WindowKind::Tumbling { size } => Ok(WindowSpec::tumbling(millis(size, "the size", operator)?)),
            WindowKind::Sliding { size, slide } => {
                let (size_ms, slide_ms) = (millis(size, "the size", operator)?, millis(slide, "the slide", operator)?);
                if slide_ms > size_ms {
                    return Err(bad("the slide is greater than the size: rows between would be lost", operator));
                }
                Ok(WindowSpec::sliding(size_ms, slide_ms))
            }
            WindowKind::Session { .. } | WindowKind::Assigned => Err(bad(
                "an operator over this kind of window is not built yet, only over tumbling and sliding ones",
                operator,
            )),
        }
    }
}

/// A length of time in whole milliseconds, above 0.
pub(super) fn millis(duration: Duration, what: &str, operator: &str) -> Result<i64> {
    match i64::try_from(duration.as_millis()) {
        Ok(ms) if ms > 0 && Duration::from_millis(ms.unsigned_abs()) == duration => Ok(ms),
        _ => Err(bad(&format!("{what} of the window is {duration:?}"), operator)
            .next("it has to be a whole number of milliseconds above 0")),
    }
}

pub(super) fn bad(what: &str, operator: &str) -> Error {
    Error::config(what).code(code::BAD_WINDOW).at(operator)
}
