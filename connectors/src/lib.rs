//! Where rows come from and where they go.
//!
//! - [`nexmark`]: the events of the Nexmark benchmark: their schema, and a generator of them.
//! - [`keyed_count`]: the generator of the keyed-count job.
//! - [`ndjson`]: files of JSON lines, read as splits and written exactly once.
//! - [`mod@print`], [`blackhole`]: sinks that commit nothing.
//! - [`conformance`]: the exams that every source and every sink here passes, and that others may use for theirs.
//!
//! Everything here is deterministic: what a source hands out depends on its settings and the position alone.

pub mod blackhole;
pub mod conformance;
pub mod keyed_count;
pub mod ndjson;
pub mod nexmark;
mod numbered;
pub mod print;
pub mod random;
