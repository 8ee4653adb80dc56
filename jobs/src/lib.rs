//! The jobs that the `millstream` binary brings along: the Nexmark queries and keyed-count.
//!
//! - [`args`]: what stands behind `--` on the command line.
//! - [`nexmark`]: the plans of the Nexmark queries.
//! - [`keyed_count`]: a job that reads and writes state for each event, to measure and to test paging.
//!
//! A user's own program adds its jobs to [`registry`], or begins with an empty one.

pub mod args;
pub mod keyed_count;
pub mod nexmark;

use millstream_engine::dataflow::JobRegistry;

/// All jobs of this crate.
#[must_use]
pub fn registry() -> JobRegistry {
    let mut registry = JobRegistry::new().with(keyed_count::definition());
    for job in nexmark::definitions() {
        registry.add(job);
    }
    registry
}
