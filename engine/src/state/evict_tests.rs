//! What stays when a state is larger than its memory.

use bytes::Bytes;
use millstream_common::{KeyGroupRanges, StateId};
use millstream_state_store::key::KeyBuffer;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::{KeyedState, StateSet};

const KEYS: usize = 20_000;
const BATCH: usize = 512;

/// The share of rows whose key was resident, of batches whose keys follow a law of the ranks, with room for so many rows.
fn hits(share_of_rank: impl Fn(usize) -> f64, room: usize) -> (f64, f64) {
    let mut sum = 0.0;
    let up_to: Vec<f64> = (1..=KEYS)
        .map(|rank| {
            sum += share_of_rank(rank);
            sum
        })
        .collect();
    let mut rng = SmallRng::seed_from_u64(7);
    let mut state = KeyedState::<u64>::new("n", "");
    state.open(StateId(1), KeyGroupRanges::all(), false);
    let (mut row_bytes, mut missing, mut asked, mut rows) = (0, Vec::new(), 0, 0);
    for batch in 0..1_000 {
        let mut keys = KeyBuffer::default();
        for _ in 0..BATCH {
            let rank = up_to.partition_point(|s| *s < rng.random::<f64>() * sum);
            keys.push(&(rank as u64).to_be_bytes()).unwrap();
        }
        state.name_batch(&keys);
        state.end_group();
        state.take_missing(&mut missing);
        if batch >= 500 {
            (asked, rows) = (asked + missing.len(), rows + BATCH);
        }
        let value = 1u64.to_le_bytes();
        missing.drain(..).for_each(|key: Bytes| state.install(&key, Some(&value)).unwrap());
        let taken = state.take_rows().unwrap();
        state.give_back(taken);
        state.release_group();
        if batch == 0 {
            row_bytes = state.memory_bytes() / state.take_named();
        }
        state.evict(row_bytes * room as u64);
    }
    (1.0 - asked as f64 / rows as f64, up_to[room - 1] / sum)
}

#[test]
fn what_is_named_often_stays() {
    let (zipf, ideal) = hits(|rank| (rank as f64).powf(-0.99), KEYS / 10);
    assert!(zipf > 0.93 * ideal, "{zipf} of {ideal}");
    // A quarter of the keys gets nine tenths of the rows, and there is room for a third.
    let (hot, ideal) = hits(|rank| if rank <= KEYS / 4 { 27.0 } else { 1.0 }, KEYS / 3);
    assert!(hot > 0.93 * ideal, "{hot} of {ideal}");
}
