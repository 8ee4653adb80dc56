//! The generator of the keyed-count job: keys 0 to N-1 in a pseudo-random order, and values that do not compress.
//!
//! Event number `n` has a key that is a pure function of `n` and the settings; its event time is `n` milliseconds.

mod permutation;
mod source;
mod zipf;

pub use source::{Distribution, KeyedCountSource, event_times, keyed_count_schema};

use crate::random::{Draws, mix};

/// Seeds values apart from everything else.
const VALUE_SEED: u64 = 0x7661_6c75;

/// Replaces `out` by `len` pseudo-random bytes that depend on `key` and `count`. They do not compress.
pub fn value_bytes(key: i64, count: u64, len: usize, out: &mut Vec<u8>) {
    out.clear();
    Draws::of(mix(VALUE_SEED ^ mix(key as u64)), count).bytes(len, out);
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn values_differ_by_key_and_count_and_do_not_compress() {
        let mut all = Vec::new();
        let mut value = Vec::new();
        for key in 0..100 {
            for count in 1..=10 {
                value_bytes(key, count, 100, &mut value);
                assert_eq!(value.len(), 100);
                assert!(!all.ends_with(&value[..8]));
                all.extend_from_slice(&value);
            }
        }
        let mut packed = flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::best());
        packed.write_all(&all).unwrap();
        assert!(packed.finish().unwrap().len() >= all.len());
        let mut again = vec![1, 2, 3];
        value_bytes(99, 10, 100, &mut again);
        assert_eq!(again, value);
    }
}
