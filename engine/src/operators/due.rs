//! Firing of states whose entries are due at their own time: which comes next, and its entries in order.

use crate::element::TimestampMs;
use crate::operator::Collector;
use crate::state::{SlotId, StateValue, TimedState};

/// What comes next when the watermark advances.
pub(super) enum Next {
    /// The entries of this time.
    Fire(TimestampMs),
    /// A scan that was asked for.
    State,
    /// Nothing: all has fired.
    Nothing,
}

/// What is next due in `state`, up to `watermark`.
pub(super) fn next_due<V: StateValue>(state: &mut TimedState<V>, watermark: TimestampMs, out: &Collector) -> Next {
    let loaded = state.load_until(watermark, out.fired_min());
    match state.first_time() {
        Some(time) if time <= watermark.min(state.loaded_until()) => Next::Fire(time),
        _ if loaded => {
            state.end_advance();
            Next::Nothing
        }
        _ => Next::State,
    }
}

/// Entries that are being fired, piece by piece.
#[derive(Debug, Default)]
pub(super) struct Firing {
    pub(super) time: TimestampMs,
    slots: Vec<SlotId>,
    next: usize,
}

impl Firing {
    /// The entries of `time`, by key. Those whose key group has fired that far before are dropped.
    pub(super) fn start<V: StateValue>(state: &mut TimedState<V>, time: TimestampMs, out: &Collector) -> Self {
        let mut slots = state.sorted_at(time);
        if out.fired_max() >= time {
            slots.retain(|&slot| {
                let due = out.fired(state.group(slot)) < time;
                if !due {
                    state.expire(slot);
                }
                due
            });
        }
        Self { time, slots, next: 0 }
    }

    /// The next entry; each is given once.
    pub(super) fn next(&mut self) -> Option<SlotId> {
        let slot = self.slots.get(self.next).copied();
        self.next += 1;
        slot
    }
}
