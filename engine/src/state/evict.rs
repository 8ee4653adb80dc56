//! Memory of a working set: what it holds, what may go, and what a rescale takes away.
//!
//! Eviction is a clock that counts (Smith 1978 calls it generalized): a hand goes round the slots, takes one from the uses of
//! each that it passes, and drops those that have at most one, the naming that brought them, if they are clean and not
//! pinned. So what was named once goes at the hand's next turn, and what is named often outlives turns without. Slots
//! without a value go at once.

use millstream_common::KeyGroupRanges;

use super::StateValue;
use super::slab::{PARTIAL, Slot, TRASHED, USES_MAX};
use super::working_set::WorkingSet;

/// What a slot takes beside itself: its place in the table (when that is half taken, about) and in the dirty list.
const BESIDE_SLOT: usize = 24;
/// What a slot takes in the index by time.
const IN_TIME_INDEX: usize = 16;
/// Entries that are dropped at a time, so that a large flush that has become clean does not keep the subtask from its rows.
const EVICT_SLICE: usize = 16_384;
/// Absent slots that are dropped at a time.
const TRASH_SLICE: usize = 4_096;
/// Groups released before an eviction that found nothing is tried again.
const PATIENCE: u64 = 64;

impl<V: StateValue> WorkingSet<V> {
    fn fixed_bytes(&self) -> usize {
        size_of::<Slot<V>>() + self.slots.beside_bytes() + BESIDE_SLOT + if self.timed { IN_TIME_INDEX } else { 0 }
    }

    /// What a slot takes with all that it holds.
    pub(super) fn slot_bytes(&self, i: u32) -> usize {
        let slot = &self.slots[i];
        self.fixed_bytes() + slot.key_heap_bytes() + slot.value.as_ref().map_or(0, V::heap_bytes)
    }

    /// Free slots are not counted: they were once taken, within the budget, and are taken again first.
    pub(super) fn memory_bytes(&self) -> u64 {
        let slots = self.slots.live() * self.fixed_bytes() + self.heap_bytes;
        (slots + self.side_bytes() + self.maps.memory_bytes()) as u64
    }

    pub(super) fn evict(&mut self, target_bytes: u64) {
        if self.memory_bytes() <= target_bytes {
            return;
        }
        self.maps.sweep(self.released, EVICT_SLICE);
        if self.slots.end() == 0 {
            return;
        }
        if self.stuck.is_some_and(|(flushed, released)| flushed == self.flushed && self.released < released + PATIENCE)
        {
            return;
        }
        self.stuck = None;
        let dirty: usize = self.generations.iter().map(|g| g.slots).sum();
        let mut clean = self.slots.live() - (dirty + self.pending).min(self.slots.live());
        // As often round as may be needed to come to the last use of all.
        let mut left = u64::from(USES_MAX) * u64::from(self.slots.end());
        let mut dropped = 0;
        while clean > 0 && left > 0 && dropped < EVICT_SLICE && self.memory_bytes() > target_bytes {
            if self.hand >= self.slots.end() {
                self.hand = 0;
            }
            let i = self.hand;
            self.hand = self.slots.next(i);
            left = left.saturating_sub(u64::from(self.hand - i));
            if !self.may_go(i) {
                continue;
            }
            let slot = &mut self.slots[i];
            if slot.uses > 1 && slot.value.is_some() {
                slot.uses -= 1;
                continue;
            }
            if slot.value.is_some() && !slot.is(PARTIAL) {
                let time = self.slots.time(i);
                self.forget(time, self.slots[i].group());
                if self.mapped {
                    self.maps.lose(time);
                }
            }
            self.drop_slot(i);
            clean -= 1;
            dropped += 1;
        }
        if dropped == 0 {
            self.stuck = Some((self.flushed, self.released));
        }
    }

    /// Drops absent slots that nobody needs any more, some at a time.
    pub(super) fn empty_trash(&mut self) {
        let mut left = TRASH_SLICE;
        while left > 0
            && let Some(&(flush, stamp, i)) = self.trash.front()
        {
            if flush > self.flushed || stamp > self.released {
                return;
            }
            self.trash.pop_front();
            left -= 1;
            if !self.slots.live_at(i).is_some_and(|s| s.is(TRASHED)) {
                continue;
            }
            if self.slots[i].value.is_some() {
                self.slots[i].flags &= !TRASHED;
            } else if self.may_go(i) {
                self.drop_slot(i);
            } else {
                let slot = &self.slots[i];
                let again = (slot.written.max(flush), slot.named.max(stamp + 1), i);
                self.trash.push_back(again);
                return;
            }
        }
    }

    pub(super) fn retain(&mut self, ranges: &KeyGroupRanges, gained: bool) {
        self.ranges = ranges.clone();
        let mut i = 0;
        while i < self.slots.end() {
            if self.slots.live_at(i).is_some_and(|s| !ranges.contains(s.group())) {
                self.encode_aside_if_frozen(i);
                self.drop_slot(i);
            }
            i = self.slots.next(i);
        }
        self.maps.retain(ranges);
        self.retain_missing();
        if gained {
            self.known_until = i64::MIN;
        }
        self.stuck = None;
    }
}
