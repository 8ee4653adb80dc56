//! A look into the state of a job, as it was at one of its versions: `millstream state`.
//!
//! This reads the object store alone: the record of a version says which runs are live, and what stands in their keys
//! and values is told by the schemas in it. So no program of the job is needed, and no process of it is disturbed.
//!
//! - [`version`]: opening a version for reading, and finding a state in it.
//! - [`reader`]: entries of one state, page by page, so that a state may be larger than memory.
//! - [`diff`]: what became of a state between two versions.
//! - [`text`]: keys and values as JSON; [`key`]: keys from JSON.
//!
//! Nothing here writes.

pub mod diff;
pub mod key;
pub mod reader;
#[cfg(test)]
mod reader_tests;
pub mod text;
pub mod version;
