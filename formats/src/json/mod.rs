//! JSON objects as rows, and rows as JSON objects.

mod read;
mod write;

pub use read::JsonDecoding;
pub(crate) use read::read;
pub use write::{JsonEncoding, JsonRows, push_string, push_value};
