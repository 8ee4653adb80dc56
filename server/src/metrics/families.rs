//! Samples by metric, and the text that they make.

use std::collections::BTreeMap;

use millstream_common::latency::{BOUNDS_MS, Latencies};
use prometheus::TextEncoder;
use prometheus::proto::{Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType};
use serde_json::Value;

use super::list::{Kind, METRICS, MetricDef};

/// A value by the values of its labels.
#[derive(Clone, Debug)]
enum Sample {
    Number(f64),
    Durations(Latencies),
    Buckets(Buckets),
}

/// Durations by buckets of their own, as a document has them: upper bounds, how many lay in each and above, and their sum.
#[derive(Clone, Debug, PartialEq)]
struct Buckets {
    le_ms: Vec<u64>,
    counts: Vec<u64>,
    sum_ms: f64,
}

impl Buckets {
    fn of(doc: &Value) -> Option<Self> {
        let numbers = |field: &str| -> Option<Vec<u64>> { doc[field].as_array()?.iter().map(Value::as_u64).collect() };
        Some(Self { le_ms: numbers("le_ms")?, counts: numbers("counts")?, sum_ms: doc["sum_ms"].as_f64()? })
    }
}

/// Samples by metric. A metric that is not in the list is not served.
#[derive(Default)]
pub(super) struct Families(BTreeMap<&'static str, (&'static MetricDef, BTreeMap<Vec<String>, Sample>)>);

impl Families {
    /// Adds a sample. A second one of a counter with the same labels is added to the first: parts of this process may count
    /// for the same thing.
    pub(super) fn add(&mut self, name: &str, labels: &[&str], value: f64) {
        let Some((kind, samples)) = self.of(name, labels) else { return };
        match samples.entry(labels.iter().map(|l| (*l).to_owned()).collect()).or_insert(Sample::Number(0.0)) {
            Sample::Number(there) if kind == Kind::Counter => *there += value,
            there => *there = Sample::Number(value),
        }
    }

    /// Adds a count; above 2^53 it is rounded, as Prometheus does.
    pub(super) fn count(&mut self, name: &str, labels: &[&str], value: u64) {
        self.add(name, labels, value as f64);
    }

    /// Adds what a document says; null and text count as unknown and are left out.
    pub(super) fn json(&mut self, name: &str, labels: &[&str], value: &Value) {
        if let Some(number) = value.as_f64().or_else(|| value.as_bool().map(f64::from)) {
            self.add(name, labels, number);
        }
    }

    /// Adds durations.
    pub(super) fn durations(&mut self, name: &str, labels: &[&str], value: &Latencies) {
        let Some((_, samples)) = self.of(name, labels) else { return };
        let entry = samples.entry(labels.iter().map(|l| (*l).to_owned()).collect());
        match entry.or_insert(Sample::Durations(Latencies::default())) {
            Sample::Durations(there) => *there += value,
            there => *there = Sample::Durations(*value),
        }
    }

    /// Adds durations as a document has them; null is left out.
    pub(super) fn buckets(&mut self, name: &str, labels: &[&str], doc: &Value) {
        let Some(buckets) = Buckets::of(doc) else { return };
        let Some((_, samples)) = self.of(name, labels) else { return };
        samples.insert(labels.iter().map(|l| (*l).to_owned()).collect(), Sample::Buckets(buckets));
    }

    fn of(&mut self, name: &str, labels: &[&str]) -> Option<(Kind, &mut BTreeMap<Vec<String>, Sample>)> {
        let def = METRICS.iter().find(|d| d.name == name);
        debug_assert!(def.is_some_and(|d| d.labels.len() == labels.len()), "{name} {labels:?} is not in the list");
        let def = def.filter(|d| d.labels.len() == labels.len())?;
        Some((def.kind, &mut self.0.entry(def.name).or_insert_with(|| (def, BTreeMap::new())).1))
    }

    /// The text.
    pub(super) fn render(self) -> String {
        let families: Vec<MetricFamily> = self.0.into_values().map(|(def, samples)| family(def, samples)).collect();
        TextEncoder::new().encode_to_string(&families).unwrap_or_else(|e| {
            tracing::warn!("metrics cannot be written: {e}");
            String::new()
        })
    }
}

fn family(def: &MetricDef, samples: BTreeMap<Vec<String>, Sample>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(def.name.to_owned());
    family.set_help(def.help.to_owned());
    family.set_field_type(match def.kind {
        Kind::Counter => MetricType::COUNTER,
        Kind::Gauge => MetricType::GAUGE,
        Kind::Histogram => MetricType::HISTOGRAM,
    });
    family.set_metric(samples.into_iter().map(|(labels, sample)| metric(def, labels, &sample)).collect());
    family
}

fn metric(def: &MetricDef, labels: Vec<String>, sample: &Sample) -> Metric {
    let pair = |(name, value): (&&str, String)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value(value);
        pair
    };
    let mut metric = Metric::from_label(std::iter::zip(def.labels, labels).map(pair).collect());
    match (sample, def.kind) {
        (Sample::Durations(l), _) => {
            metric.set_histogram(histogram(&BOUNDS_MS, l.counts(), l.sum_us() as f64 / 1e6));
        }
        (Sample::Buckets(b), _) => metric.set_histogram(histogram(&b.le_ms, &b.counts, b.sum_ms / 1e3)),
        (Sample::Number(value), Kind::Counter) => {
            let mut counter = Counter::default();
            counter.set_value(*value);
            metric.set_counter(counter);
        }
        (Sample::Number(value), _) => {
            let mut gauge = Gauge::default();
            gauge.set_value(*value);
            metric.set_gauge(gauge);
        }
    }
    metric
}

/// `counts`: one for each bound, and one above.
fn histogram(bounds_ms: &[u64], counts: &[u64], sum_s: f64) -> Histogram {
    let mut out = Histogram::default();
    let mut below = 0;
    let bucket = |(bound_ms, count): (&u64, &u64)| {
        below += count;
        let mut bucket = Bucket::default();
        bucket.set_upper_bound(*bound_ms as f64 / 1e3);
        bucket.set_cumulative_count(below);
        bucket
    };
    out.set_bucket(std::iter::zip(bounds_ms, counts).map(bucket).collect());
    out.set_sample_count(counts.iter().sum());
    out.set_sample_sum(sum_s);
    out
}
