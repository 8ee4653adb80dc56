//! Counters as Prometheus text. Two kinds, told apart by their names ([`list`]): what this process did and holds
//! (`millstream_process_...`), and what jobs did over all their processes, as `status` says it.
//!
//! Nothing is counted here: figures are asked for when somebody scrapes.

use millstream_common::env::BoxFuture;
use serde_json::Value;

use crate::usage::Usage;
use families::Families;
pub use process::{ProcessFigures, ProcessParts};

mod families;
mod job;
pub mod list;
mod process;
#[cfg(test)]
mod tests;

/// Who knows the counters of a process.
pub trait MetricsSource: Send + Sync {
    /// `status` documents of the jobs that this process leads; empty when it leads none, or when nobody can tell now.
    fn documents(&self) -> BoxFuture<'_, Vec<Value>>;
    /// What the process says of itself.
    fn figures(&self) -> ProcessFigures;
}

/// The text for what this process used, did and holds, and for the jobs that it leads (`documents`).
#[must_use]
pub fn render(usage: &Usage, figures: &ProcessFigures, documents: &[Value]) -> String {
    let mut families = Families::default();
    process::add(&mut families, usage, figures);
    for doc in documents {
        job::add(&mut families, doc);
        job::add_of_coordinator(&mut families, doc);
    }
    families.render()
}

/// The label for what served several operators at once, or the job as a whole.
fn shown_operator(operator: &str) -> &str {
    if operator.is_empty() { "shared" } else { operator }
}
