//! Files of JSON lines (`.gz` too): read as one split each, written exactly once. Lines end with a line feed only.

mod commit;
mod events;
mod files;
mod lines;
mod sink;
mod source;
mod splits;

pub use events::NexmarkLines;
pub use sink::FilesSink;
pub use source::NdjsonSource;
