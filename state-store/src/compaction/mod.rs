//! Compaction: merging neighbouring runs of a task within some key groups.
//!
//! 1. [`pick`] (pure) chooses runs that follow one another and the key groups in which to merge them; [`pick_within`]
//!    leaves alone what is being merged already, and what is to wait for a quieter hour.
//! 2. [`StateStore::merge`](crate::StateStore::merge) merges them by streaming, for as many disjoint parts of the
//!    key groups as keep each output small, and writes an object a part, no faster than its [`Throttle`] allows. Nothing
//!    is live yet.
//! 3. [`apply`] (pure) gives the tree in which the outputs stand in the place of the inputs, within those key groups;
//!    or says that the tree has moved on. The caller commits that tree as a version record.
//!
//! Runs that are not neighbours are never merged, an input is never changed (only its clip is cut), and nothing is
//! deleted.

mod apply;
#[cfg(test)]
mod large_tests;
mod pick;
mod run;
#[cfg(test)]
mod tests;
mod throttle;

use millstream_common::{Error, Result};

pub use apply::{CompactionDone, CompactionOutcome, apply};
pub use pick::{Limits, Pick, debt_bytes, pick, pick_within};
pub(crate) use run::Unlisted;
pub use run::{Merge, Merged};
pub use throttle::Throttle;

/// When and how runs are merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactionOptions {
    /// Merge once a key group has this many runs.
    pub trigger_runs: usize,
    /// An output has about this many bytes at most (before LZ4 of what the merge changed); the peak of memory of a
    /// compaction follows from it.
    pub output_bytes: u64,
}

impl Default for CompactionOptions {
    fn default() -> Self {
        Self { trigger_runs: 8, output_bytes: 64 << 20 }
    }
}

impl CompactionOptions {
    /// A read is to see no more runs than this: half as many again as start a compaction.
    #[must_use]
    pub fn runs_max(&self) -> usize {
        let trigger = self.trigger_runs.max(2);
        trigger + trigger / 2
    }

    /// Refuses what cannot be.
    pub fn validate(&self) -> Result<()> {
        if self.trigger_runs < 2 || self.output_bytes == 0 {
            return Err(Error::config("compaction needs at least 2 runs and room for its output").code(1206));
        }
        Ok(())
    }
}
