//! The exams that every implementation of a source or a sink passes. They panic at the first thing that is wrong, and
//! say what; they are called from tests.

mod sink;
mod source;

pub use sink::{SinkPlace, check_sink, check_uncommitted_sink};
pub use source::{check_source, check_source_up_to};

use millstream_common::Result;

/// The value, or a panic that says what could not be done.
#[track_caller]
fn must<T>(what: &str, result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(e) => panic!("{what}: {e:?}"),
    }
}
