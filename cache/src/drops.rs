//! Counts what the disk engine of foyer drops without a word: it tells nobody but its metrics, so this is a registry of
//! metrics that keeps a few counters and lets go of all else.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mixtrics::metrics::{BoxedCounter, BoxedCounterVec, BoxedGaugeVec, BoxedHistogramVec, CounterOps, CounterVecOps};
use mixtrics::metrics::{BoxedRegistry, RegistryOps};
use mixtrics::registry::noop::NoopMetricsRegistry;

/// What foyer's counters say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Drops {
    /// Blocks that were not written: they came faster than the disk took them.
    dropped: Arc<AtomicU64>,
    /// Requests to the disk that failed.
    failed: Arc<AtomicU64>,
}

/// Operations (the last label of a counter) of which each means that a block was dropped.
const DROPPED: [&str; 3] = ["buffer_overflow", "channel_overflow", "throttled"];
const FAILED: &str = "error";

impl Drops {
    pub(crate) fn registry(&self) -> BoxedRegistry {
        Box::new(self.clone())
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
struct Counter(Arc<AtomicU64>);

impl CounterOps for Counter {
    fn increase(&self, by: u64) {
        self.0.fetch_add(by, Ordering::Relaxed);
    }
}

impl CounterVecOps for Drops {
    fn counter(&self, labels: &[Cow<'static, str>]) -> BoxedCounter {
        match labels.last().map(AsRef::as_ref) {
            Some(op) if DROPPED.contains(&op) => Box::new(Counter(self.dropped.clone())),
            Some(FAILED) => Box::new(Counter(self.failed.clone())),
            _ => Box::new(NoopMetricsRegistry),
        }
    }
}

impl RegistryOps for Drops {
    fn register_counter_vec(
        &self,
        _: Cow<'static, str>,
        _: Cow<'static, str>,
        _: &'static [&'static str],
    ) -> BoxedCounterVec {
        Box::new(self.clone())
    }

    fn register_gauge_vec(
        &self,
        _: Cow<'static, str>,
        _: Cow<'static, str>,
        _: &'static [&'static str],
    ) -> BoxedGaugeVec {
        Box::new(NoopMetricsRegistry)
    }

    fn register_histogram_vec(
        &self,
        _: Cow<'static, str>,
        _: Cow<'static, str>,
        _: &'static [&'static str],
    ) -> BoxedHistogramVec {
        Box::new(NoopMetricsRegistry)
    }

    fn register_histogram_vec_with_buckets(
        &self,
        _: Cow<'static, str>,
        _: Cow<'static, str>,
        _: &'static [&'static str],
        _: Vec<f64>,
    ) -> BoxedHistogramVec {
        Box::new(NoopMetricsRegistry)
    }
}
