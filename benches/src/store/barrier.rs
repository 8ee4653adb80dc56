//! The barrier of a subtask: how long it stands when so many entries are dirty.
//!
//! At the barrier the subtask freezes its states and goes on; the frozen entries are encoded in slices between batches, or
//! at once when one is written again. So beside the freeze there are a batch before it, the first batch behind it (all of
//! whose keys are frozen) and the longest slice. And the freeze of a barrier that comes before anything of the last one is
//! encoded: both flushes wait then.

use millstream_common::{KeyGroupRanges, Result};
use millstream_engine::state::{KeyedState, StateSet};
use millstream_engine::task::ENCODE_SLICE;
use millstream_state_store::SectionWriter;
use millstream_state_store::key::KeyBuffer;

use super::args::BarrierArgs;
use super::keys::{BATCH, Random, STATE, VALUE_BYTES, key_of};
use super::measure::measured;
use super::ours::TASK;
use super::row::{Row, key_buffer};
use super::{StoreBench, median};
use crate::stats::{hundredths, spread_text};
use crate::table::Table;

fn change(state: &mut KeyedState<Row>, keys: &KeyBuffer) -> Result<()> {
    state.name_batch(keys);
    state.end_group();
    let rows = state.take_rows()?;
    for &slot in &rows.slots {
        state.update(slot, || Row([0; VALUE_BYTES]), Row::count);
    }
    state.give_back(rows);
    state.release_group();
    Ok(())
}

fn batch_of(ids: impl Iterator<Item = u64>) -> Result<KeyBuffer> {
    key_buffer(&ids.map(key_of).collect::<Vec<_>>())
}

/// Runs it.
pub fn run(bench: &StoreBench, args: &BarrierArgs) -> Result<()> {
    let mut state: KeyedState<Row> = KeyedState::new("values", "100 bytes");
    state.open(STATE, KeyGroupRanges::all(), true);
    let mut random = Random::new(3);
    let (mut freeze, mut before, mut frozen) = (Vec::new(), Vec::new(), Vec::new());
    let (mut slice, mut usual_slice) = (Vec::new(), Vec::new());
    let mut freeze_again = Vec::new();
    // The first round makes the entries.
    for round in 0..=bench.runs {
        for from in (0..args.entries).step_by(BATCH) {
            change(&mut state, &batch_of(from..(from + BATCH as u64).min(args.entries))?)?;
        }
        let batches = (0..16)
            .map(|_| batch_of((0..BATCH).map(|_| random.below(args.entries)).collect::<Vec<_>>().into_iter()))
            .collect::<Result<Vec<_>>>()?;
        let (_, dirty) = measured(|| change(&mut state, &batches[0]))?;
        let (_, stall) = measured(|| {
            state.freeze();
            Ok(())
        })?;
        let (_, again) = measured(|| change(&mut state, &batches[1]))?;
        let (_, second) = measured(|| {
            state.freeze();
            Ok(())
        })?;
        let mut section = SectionWriter::with_capacity(TASK, args.entries as usize);
        let mut slices = Vec::new();
        // Two flushes: that of each freeze.
        let mut left = 2;
        while left > 0 {
            let (done, cost) = measured(|| state.encode_frozen(ENCODE_SLICE, &mut section))?;
            slices.push(cost.wall.as_secs_f64() * 1e3);
            if done {
                left -= 1;
            }
        }
        state.flushed();
        state.flushed();
        if round > 0 {
            freeze.push(stall.wall.as_secs_f64() * 1e3);
            before.push(dirty.wall.as_secs_f64() * 1e3);
            frozen.push(again.wall.as_secs_f64() * 1e3);
            slice.push(slices.iter().copied().fold(0.0, f64::max));
            usual_slice.push(median(&slices));
            freeze_again.push(second.wall.as_secs_f64() * 1e3);
        }
    }
    let mut table = Table::new(&["what", "ms", "bar ms"]);
    let text = |values: Vec<f64>, digits: fn(f64) -> String| spread_text(values, digits);
    let thousandths = |ms: f64| format!("{ms:.4}");
    table.row(vec!["freeze: the stall at the barrier".to_owned(), text(freeze, thousandths), "2".to_owned()]);
    table.row(vec![format!("a batch of {BATCH} before it"), text(before, hundredths), "-".to_owned()]);
    table.row(vec![
        "the first batch behind it, all its keys frozen".to_owned(),
        text(frozen, hundredths),
        "-".to_owned(),
    ]);
    let usual = format!("a slice of {ENCODE_SLICE} entries encoded, the median");
    table.row(vec![usual, text(usual_slice, hundredths), "2".to_owned()]);
    table.row(vec![
        format!("the longest slice of {ENCODE_SLICE} entries encoded"),
        text(slice, hundredths),
        "2".to_owned(),
    ]);
    let second = "freeze again while nothing of the first is encoded".to_owned();
    table.row(vec![second, text(freeze_again, thousandths), "2".to_owned()]);
    bench.print(&format!("barrier: {} dirty entries", args.entries), &table);
    Ok(())
}
