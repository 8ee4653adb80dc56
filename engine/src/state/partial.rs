//! Partial values: what is added to a key whose stored value is not known, without reading it.
//!
//! In a state with a merge function a key that is not resident gets a **partial** slot. Its value is what was added in the
//! flush of its last write alone, and leaves for the store as a merge operand, which the store adds to what it has. So
//! nothing is read to add. What is due is scanned in whole before it fires; a scan makes the partial slots of its stretch
//! of time **whole**:
//!
//! whole = what the scan brought + what is in flushes that its view does not hold, oldest first
//!
//! A view holds the flushes that were in the store when it was taken. A partial value that is written again while a view
//! to come may lack its flush is put aside, by its flush, until every view has it; one that all have is forgotten, and the
//! slot begins anew. From when it is whole a slot is like any other: it is written as a put, which ends the chain of
//! operands.
//!
//! A partial slot is never read, and that it is there says nothing about what the store holds: `known_until` does not move
//! when it goes.

use millstream_common::collections::HashMap;

use super::StateValue;
use super::slab::{ASIDE, PARTIAL};
use super::working_set::WorkingSet;

/// Adds the second value to the first one: associative, the first is the older.
pub type MergeFn<V> = Box<dyn Fn(&mut V, &V) + Send>;

/// What was added in a flush that some view to come may lack, by slot.
pub(super) struct Aside<V> {
    flush: u32,
    values: HashMap<u32, V>,
    heap_bytes: usize,
}

impl<V: StateValue> Aside<V> {
    fn remove(&mut self, i: u32) -> Option<V> {
        let value = self.values.remove(&i)?;
        self.heap_bytes -= value.heap_bytes();
        Some(value)
    }

    fn memory_bytes(&self) -> usize {
        self.values.capacity() * (size_of::<(u32, V)>() + 1) + self.heap_bytes
    }
}

impl<V: StateValue> WorkingSet<V> {
    /// Every view that is on its way or to come holds the flushes up to this one.
    fn seen_until(&self) -> u32 {
        if self.scanning.is_some() { self.scan_view } else { self.flushed }
    }

    /// Makes a partial slot ready for its first write in the open flush; the last one was in flush `written`.
    pub(super) fn begin_anew(&mut self, i: u32, written: u32) {
        let slot = &self.slots[i];
        if slot.value.is_none() && !slot.is(ASIDE) {
            if self.knows(self.slots.time(i), self.slots[i].group()) {
                // It was named before a scan that brought nothing for it.
                self.slots[i].flags &= !PARTIAL;
            }
            return;
        }
        let Some(value) = self.take_value(i) else { return };
        if written <= self.seen_until() {
            return;
        }
        // In the order of flushes; a scan that ends may have left none.
        let at = match self.asides.binary_search_by_key(&written, |a| a.flush) {
            Ok(at) => at,
            Err(at) => {
                self.asides.insert(at, Aside { flush: written, values: HashMap::default(), heap_bytes: 0 });
                at
            }
        };
        let aside = &mut self.asides[at];
        aside.heap_bytes += value.heap_bytes();
        aside.values.insert(i, value);
        self.slots[i].flags |= ASIDE;
    }

    /// Makes a partial slot whole: `stored` is what the scan on its way has for it.
    pub(super) fn complete(&mut self, i: u32, stored: Option<V>) {
        let Some(merge) = self.merge.take() else { return };
        let before = self.slot_bytes(i);
        let mut whole = stored;
        let mut add = |value: V| match &mut whole {
            Some(whole) => merge(whole, &value),
            None => whole = Some(value),
        };
        if self.slots[i].is(ASIDE) {
            for aside in &mut self.asides {
                if let Some(value) = aside.remove(i).filter(|_| aside.flush > self.scan_view) {
                    add(value);
                }
            }
        }
        let written = self.slots[i].written;
        if let Some(value) = self.take_value(i).filter(|_| written > self.scan_view) {
            add(value);
        }
        self.merge = Some(merge);
        if let Some(value) = whole {
            self.set_value(i, value);
        }
        let slot = &mut self.slots[i];
        slot.flags &= !(PARTIAL | ASIDE);
        slot.use_once();
        let after = self.slot_bytes(i);
        if written > self.flushed
            && let Some(generation) = self.generations.get_mut((written - self.flushed - 1) as usize)
        {
            generation.bytes = generation.bytes + after - before;
        }
    }

    /// Makes those partial slots whole that have times in (`after`, `until`] and of which the scan brought nothing.
    pub(super) fn complete_between(&mut self, after: i64, until: i64) {
        if self.merge.is_none() || after >= until {
            return;
        }
        let slots = self.times.range((std::ops::Bound::Excluded(after), std::ops::Bound::Included(until)));
        let is_partial = |i: &u32| self.slots[*i].is(PARTIAL) && self.in_slice(*i);
        let partial: Vec<u32> = slots.flat_map(|(_, slots)| slots.iter().copied()).filter(is_partial).collect();
        for i in partial {
            self.complete(i, None);
        }
    }

    /// The slot is overwritten or goes: what was added before does not matter any more.
    pub(super) fn forget_partial(&mut self, i: u32) {
        if self.slots[i].is(ASIDE) {
            self.asides.iter_mut().for_each(|a| drop(a.remove(i)));
        }
        self.slots[i].flags &= !(PARTIAL | ASIDE);
    }

    /// Drops what every view holds.
    pub(super) fn drop_asides(&mut self) {
        while self.asides.front().is_some_and(|a| a.flush <= self.seen_until()) {
            self.asides.pop_front();
        }
    }

    pub(super) fn aside_bytes(&self) -> usize {
        self.asides.iter().map(Aside::memory_bytes).sum()
    }
}
