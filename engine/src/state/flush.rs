//! What leaves a working set for the store: flushes are frozen, encoded in slices and, once they are there, clean.
//!
//! Flushes are numbered from 1. Writes go to the open one. `freeze` closes it in O(1): its list of slots is put aside.
//! A slot tells by the number of its last write and by its flag `UNENCODED` whether a frozen flush still needs its
//! present value; if it is about to change, that value is encoded first, into the flush's side buffer. So a slot is owed
//! to one frozen flush at most, and any number of flushes may wait to be encoded. Nothing here encodes more than a slice
//! at a time, of entries and of bytes.

use millstream_state_store::entry::Expiry;
use millstream_state_store::section::SectionWriter;

use super::StateValue;
use super::slab::{PARTIAL, STORED, UNENCODED};
use super::working_set::WorkingSet;

/// Takes encoded entries.
pub(crate) trait EntrySink {
    fn put(&mut self, key: &[u8], value: &[u8], expiry: Expiry);
    fn delete(&mut self, key: &[u8]);
    /// What is added to whatever the store holds.
    fn merge(&mut self, key: &[u8], operand: &[u8], written_ms: i64, expiry: Expiry);
}

impl EntrySink for SectionWriter {
    fn put(&mut self, key: &[u8], value: &[u8], expiry: Expiry) {
        SectionWriter::put(self, key, value, expiry);
    }
    fn delete(&mut self, key: &[u8]) {
        SectionWriter::delete(self, key);
    }
    fn merge(&mut self, key: &[u8], operand: &[u8], written_ms: i64, expiry: Expiry) {
        SectionWriter::merge(self, key, operand, written_ms, expiry);
    }
}

/// Bytes that are encoded at a time, about: the entries of a slice may be long.
const SLICE_BYTES: usize = 1 << 20;

/// So many slots before it is encoded, a slot's memory is asked for.
const SLOTS_AHEAD: usize = 8;

/// When an operand of a time-ordered state was written, as far as the store asks: all entries of its key expire at the
/// time in the key, so none can have expired before another one was written.
const WRITTEN_IN_LIFE: i64 = i64::MIN;

/// How much is dirty in one flush.
#[derive(Debug, Default)]
pub(super) struct Generation {
    pub(super) bytes: usize,
    pub(super) slots: usize,
}

impl Generation {
    pub(super) fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
        self.slots += 1;
    }

    pub(super) fn remove(&mut self, bytes: usize) {
        self.bytes -= bytes;
        self.slots -= 1;
    }
}

/// A frozen flush that is not encoded in whole.
#[derive(Debug)]
pub(super) struct Frozen {
    flush: u32,
    slots: Vec<u32>,
    /// Slots before it are done.
    done: usize,
    pub(super) side: SideBuffer,
}

/// Entries that had to be encoded early.
#[derive(Debug, Default)]
pub(super) struct SideBuffer {
    data: Vec<u8>,
    entries: Vec<SideEntry>,
    drained: usize,
    drained_bytes: usize,
}

#[derive(Debug)]
struct SideEntry {
    key_bytes: usize,
    /// `None`: a delete.
    value_bytes: Option<usize>,
    expiry: Expiry,
    /// Of a merge operand: when it was written.
    operand: Option<i64>,
}

impl EntrySink for SideBuffer {
    fn put(&mut self, key: &[u8], value: &[u8], expiry: Expiry) {
        self.push(key, Some(value), expiry, None);
    }
    fn delete(&mut self, key: &[u8]) {
        self.push(key, None, Expiry::Never, None);
    }
    fn merge(&mut self, key: &[u8], operand: &[u8], written_ms: i64, expiry: Expiry) {
        self.push(key, Some(operand), expiry, Some(written_ms));
    }
}

impl SideBuffer {
    fn push(&mut self, key: &[u8], value: Option<&[u8]>, expiry: Expiry, operand: Option<i64>) {
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(value.unwrap_or_default());
        self.entries.push(SideEntry { key_bytes: key.len(), value_bytes: value.map(<[u8]>::len), expiry, operand });
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.data.capacity() + self.entries.capacity() * size_of::<SideEntry>()
    }

    /// Hands over up to `max` entries, or what fills a slice; how many, and their bytes.
    fn drain(&mut self, max: usize, sink: &mut impl EntrySink) -> (usize, usize) {
        let (mut count, start) = (0, self.drained_bytes);
        while count < max && self.drained < self.entries.len() && self.drained_bytes - start < SLICE_BYTES {
            let entry = &self.entries[self.drained];
            let (key, rest) = self.data[self.drained_bytes..].split_at(entry.key_bytes);
            match (entry.value_bytes, entry.operand) {
                (Some(n), None) => sink.put(key, &rest[..n], entry.expiry),
                (Some(n), Some(written_ms)) => sink.merge(key, &rest[..n], written_ms, entry.expiry),
                (None, _) => sink.delete(key),
            }
            self.drained_bytes += entry.key_bytes + entry.value_bytes.unwrap_or(0);
            self.drained += 1;
            count += 1;
        }
        let bytes = self.drained_bytes - start;
        if self.drained == self.entries.len() {
            *self = Self::default();
        }
        (count, bytes)
    }
}

impl<V: StateValue> WorkingSet<V> {
    pub(super) fn freeze(&mut self) -> usize {
        let slots = std::mem::take(&mut self.dirty);
        // Some on the list have been dropped since.
        let entries = self.generations.back().map_or(0, |open| open.slots);
        self.frozen.push_back(Frozen { flush: self.open_flush, slots, done: 0, side: SideBuffer::default() });
        self.open_flush += 1;
        self.generations.push_back(Generation::default());
        entries
    }

    pub(super) fn encode_frozen(&mut self, max_entries: usize, sink: &mut impl EntrySink) -> bool {
        let Some(mut oldest) = self.frozen.pop_front() else { return true };
        let (drained, mut bytes) = oldest.side.drain(max_entries, sink);
        let mut left = max_entries - drained;
        while left > 0 && bytes < SLICE_BYTES && oldest.done < oldest.slots.len() {
            let i = oldest.slots[oldest.done];
            oldest.done += 1;
            if let Some(&soon) = oldest.slots.get(oldest.done + SLOTS_AHEAD) {
                self.slots.prefetch(soon);
            }
            left -= 1;
            bytes += self.encode_slot(i, oldest.flush, sink);
        }
        if oldest.done == oldest.slots.len() && oldest.side.entries.is_empty() {
            return true;
        }
        self.frozen.push_front(oldest);
        false
    }

    /// Encodes a slot if `flush` still needs it; how many bytes.
    fn encode_slot(&mut self, i: u32, flush: u32, sink: &mut impl EntrySink) -> usize {
        // A slot on the list may have been written again, dropped, or taken by another key.
        if !self.slots.live_at(i).is_some_and(|s| s.is(UNENCODED) && s.written == flush) {
            return 0;
        }
        let mut key = std::mem::take(&mut self.key_buffer);
        self.store_key(i, &mut key);
        let (time, stamp) = (self.slots.time(i), self.slots.stamp(i));
        let slot = &mut self.slots[i];
        slot.flags &= !UNENCODED;
        self.buffer.clear();
        match &slot.value {
            Some(value) => {
                slot.flags |= STORED;
                self.stored.encode(value, stamp, &mut self.buffer);
                let expiry = if self.timed { Expiry::EventTime(time) } else { self.stored.expiry(stamp) };
                if slot.is(PARTIAL) {
                    sink.merge(&key, &self.buffer, WRITTEN_IN_LIFE, expiry);
                } else {
                    sink.put(&key, &self.buffer, expiry);
                }
            }
            None if slot.is(STORED) => {
                slot.flags &= !STORED;
                sink.delete(&key);
            }
            // It came and went between two flushes: the store never hears of it.
            None => {}
        }
        let bytes = key.len() + self.buffer.len();
        self.key_buffer = key;
        bytes
    }

    /// Before a slot changes: encodes what a frozen flush still needs of it.
    #[inline]
    pub(super) fn encode_aside_if_frozen(&mut self, i: u32) {
        let slot = &self.slots[i];
        if slot.is(UNENCODED) && slot.written != self.open_flush {
            self.encode_aside(i);
        }
    }

    fn encode_aside(&mut self, i: u32) {
        let flush = self.slots[i].written;
        // Flushes are frozen one after the other, and the oldest is done first.
        let at = self.frozen.front().map_or(0, |oldest| flush.wrapping_sub(oldest.flush) as usize);
        let Some(frozen) = self.frozen.get_mut(at) else {
            debug_assert!(false, "a slot is not encoded, but its flush is");
            return;
        };
        debug_assert_eq!(frozen.flush, flush);
        let mut side = std::mem::take(&mut frozen.side);
        self.encode_slot(i, flush, &mut side);
        self.frozen[at].side = side;
    }

    pub(super) fn flushed(&mut self) {
        let not_encoded = self.frozen.front().map_or(self.open_flush, |f| f.flush);
        if self.flushed + 1 >= not_encoded {
            // What is not encoded cannot be in the store: its entries stay dirty, which is safe.
            debug_assert!(false, "a flush is said to be in the store that was not encoded");
            return;
        }
        self.flushed += 1;
        self.generations.pop_front();
        self.drop_asides();
        self.empty_trash();
    }

    pub(super) fn dirty_bytes(&self) -> u64 {
        let slots: usize = self.generations.iter().map(|g| g.bytes).sum();
        (slots + self.side_bytes()) as u64
    }

    /// What is held beside slots.
    pub(super) fn side_bytes(&self) -> usize {
        self.frozen.iter().map(|f| f.side.memory_bytes()).sum::<usize>() + self.aside_bytes()
    }
}
