//! A job with as much keyed state as one likes: keyed-count, filled once, then under a steady load.

use std::time::Duration;

use millstream_common::Result;

use crate::cluster::{Cluster, Plan};
use crate::note;

/// The operator that holds the state, in statuses and metrics.
pub const OPERATOR: &str = "events/process:count";

/// Bytes of each key's state besides its key and count.
const VALUE_BYTES: u64 = 1_000;

/// The parallelism that jobs start with.
pub const PARALLELISM: u32 = 2;

/// Events come pass by pass, but splits do not go in step: so many passes touch nearly every key. The rest come
/// in the time in which the state settles, or later.
const PASSES_TO_FILL: f64 = 1.05;

/// At its rate behind the filling.
const SETTLE: Duration = Duration::from_secs(40);

/// How much state, and what comes in meanwhile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    /// Keys that there are.
    pub keys: u64,
    /// Events a second, uniform over the keys.
    pub rate: u64,
}

impl Load {
    /// State of about `gigabytes`.
    #[must_use]
    pub fn of_size(gigabytes: f64, rate: u64) -> Self {
        Self { keys: ((gigabytes * 1e9) as u64 / VALUE_BYTES).max(1), rate }
    }

    /// Events by which every key has come, when each comes once first.
    #[must_use]
    pub fn filled_at(&self) -> f64 {
        self.keys as f64 * PASSES_TO_FILL
    }

    /// Fills the state of a place: starts a cluster, lets every key come once as fast as it goes, then so much at its rate
    /// that compactions have given the state its usual shape, and stops the job. No process is left.
    pub fn fill(&self, plan: &mut Plan<'_>) -> Result<()> {
        let mut cluster = plan.start()?;
        cluster.wait_for_workers()?;
        let job = Self { rate: 0, ..*self }.submit(&cluster)?;
        let enough = self.filled_at();
        cluster.wait_for_job(&job, "all keys have come", |c| c.events_in >= enough)?;
        cluster.ask(&format!("stop {job}"))?;
        let job = self.submit(&cluster)?;
        let filled = cluster.wait_for_job(&job, "it goes on", |c| c.events_in > 0.0)?.events_in;
        let settled = filled + self.rate as f64 * SETTLE.as_secs_f64();
        cluster.wait_for_job(&job, "its state has settled", |c| c.events_in >= settled)?;
        cluster.ask(&format!("stop {job}"))?;
        note(&format!("filled: {} keys in {:.0} s", self.keys, cluster.started.elapsed().as_secs_f64()));
        Ok(())
    }

    /// Starts the job, or lets it go on where it was stopped; gives its id.
    pub fn submit(&self, cluster: &Cluster<'_>) -> Result<String> {
        self.submit_with(cluster, "")
    }

    /// Starts the job with keys by zipf's law, each of which comes once before.
    pub fn submit_zipf(&self, cluster: &Cluster<'_>) -> Result<String> {
        self.submit_with(cluster, "--distribution zipf --fill")
    }

    fn submit_with(&self, cluster: &Cluster<'_>, order: &str) -> Result<String> {
        let Self { keys, rate } = self;
        cluster.ask(&format!(
            "submit keyed-count -p {PARALLELISM} --checkpoint-interval 1s -- \
             --keys {keys} --value-bytes {VALUE_BYTES} --events 0 --rate {rate} --output blackhole {order}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gigabyte_is_a_million_keys() {
        assert_eq!(Load::of_size(1.0, 5), Load { keys: 1_000_000, rate: 5 });
        assert_eq!(Load::of_size(0.01, 5).keys, 10_000);
        assert_eq!(Load::of_size(0.0, 5).keys, 1);
    }
}
