//! keyed-count counts what its source hands out.

use std::collections::BTreeMap;

use arrow_array::{cast::AsArray, types::Int64Type};

use crate::executor::execute;
use crate::typed;

fn counts(args: &str, parallelism: u32, batch_rows: usize) -> BTreeMap<i64, i64> {
    let outcome = execute(&typed("keyed-count", args).graph, parallelism, batch_rows);
    let mut counts = BTreeMap::new();
    for batch in &outcome.rows {
        let (keys, values) = (batch.column(0).as_primitive::<Int64Type>(), batch.column(1).as_primitive::<Int64Type>());
        for (k, n) in std::iter::zip(keys.values(), values.values()) {
            assert_eq!(counts.insert(*k, *n), None, "key {k} came twice");
        }
    }
    counts
}

#[test]
fn each_key_occurs_once_per_pass() {
    for (p, batch_rows) in [(1, 8_192), (3, 100)] {
        let want: BTreeMap<i64, i64> = (0..5).map(|k| (k * 1_000, 2)).chain([(-1, 10_000)]).collect();
        assert_eq!(counts("--keys 5000 --passes 2 --value-bytes 10", p, batch_rows), want);
    }
}

#[test]
fn results_beyond_one_step_all_come() {
    let got = counts("--keys 1500000 --value-bytes 0", 1, 8_192);
    assert_eq!(got.len(), 1_501);
    assert_eq!(got[&-1], 1_500_000);
}

#[test]
fn a_skewed_distribution_counts_every_event() {
    let got = counts("--keys 100 --events 3000 --distribution zipf --value-bytes 1", 2, 64);
    assert_eq!(got[&-1], 3_000);
    assert!(got.keys().all(|k| [-1, 0].contains(k)));
}
