//! The words and seams that every part of Millstream shares.
//!
//! - [`ids`]: epoch, generation, attempt, version number and the like; each a type of its own.
//! - [`key_group`]: key groups and sets of key-group ranges.
//! - [`mod@env`]: the seam for time, randomness and spawning; all else is banned by clippy.
//! - [`error`]: the one error type; its kind says what the caller must do next.
//! - [`kill_points`]: places at which a test has a process kill itself.
//! - [`latency`]: durations in fixed buckets.
//! - [`memory`]: budgets with accounting and back-pressure.
//! - [`mod@prefetch`]: asking for memory before it is read.
//! - [`planted`]: bugs that the simulation must find.
//! - [`collections`]: hash maps with a stable hasher.
//!
//! This crate depends on no sibling.

pub mod collections;
pub mod env;
pub mod error;
pub mod hash;
pub mod ids;
pub mod key_group;
pub mod kill_points;
pub mod latency;
pub mod memory;
pub mod planted;
pub mod prefetch;
pub mod size;

pub use env::{Env, Lane, TaskHandle};
pub use error::{Applied, Error, ErrorKind, Result};
pub use ids::{AssignmentId, Attempt, Epoch, Execution, Generation, StateId, SubtaskIndex, TaskId, VersionNumber};
pub use key_group::{KEY_GROUPS, KeyGroup, KeyGroupRange, KeyGroupRanges};

/// `tokio::select!` that polls its branches in the order in which they are written, so that a run can be repeated.
#[macro_export]
macro_rules! select {
    ($($branches:tt)*) => {{
        #[allow(clippy::disallowed_macros)]
        { $crate::__tokio::select! { biased; $($branches)* } }
    }};
}

#[doc(hidden)]
pub use tokio as __tokio;
