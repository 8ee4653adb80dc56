//! The operators that come with the engine. Each implements [`crate::operator::Operator`] over whole Arrow batches, is
//! built from plain settings and the schema of its input, and tells by `schema()` what it emits.
//!
//! - [`map::Map`]: a function of a batch, without state.
//! - [`running::RunningAggregate`]: aggregates over all rows of a key so far; emits a changelog.
//! - [`window::WindowAggregate`]: aggregates over tumbling and sliding windows of event time.
//! - [`top::WindowTop`]: the rows of a window with the greatest value of a column, ties included.
//! - [`session::SessionAggregate`]: aggregates over sessions: windows that end when a key is silent for a while.
//! - [`join::WindowJoin`]: pairs of rows with the same key in the same tumbling window.
//!
//! Order of events for all with event time: a row is late when its window has fired already for its key group (a window
//! with the exclusive end `e` has fired when [`crate::operator::Collector::fired`] is at or above `e - 1`); late rows are
//! counted and change nothing. What `advance` fires goes out in batches of at most [`EMIT_ROWS`] rows, one batch a call
//! while there is more.
//!
//! No operator here reads a clock, and none knows of epochs: what it keeps stands in its states alone.

pub mod aggregate;
mod due;
#[cfg(test)]
mod evolution_tests;
pub mod join;
mod keys;
pub mod map;
#[cfg(test)]
mod map_state_tests;
mod pane;
mod row;
pub mod running;
pub mod session;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod top;
pub mod window;

/// Rows of an emitted batch at most. Few in tests, which then see what fires in several pieces.
pub const EMIT_ROWS: usize = if cfg!(test) { 7 } else { 8_192 };
