//! Slots in chunks: a slot keeps its place while it lives, growing copies nothing, empty chunks are given back.
//!
//! What only some states need stands beside the slots, in arrays that other states do not have: the time of an entry, and when
//! it expires. A slot is most of what a small value costs.

use std::collections::BTreeSet;

use millstream_common::KeyGroup;
use millstream_common::prefetch::prefetch_address;
use millstream_state_store::schema::NEVER_EXPIRES;
use smallvec::SmallVec;

use super::working_set::NO_TIME;

/// The bytes of a key; short ones stand in the slot itself.
pub(super) type SlotKey = SmallVec<[u8; 16]>;

/// The slot holds an entry (else it is free).
pub(super) const LIVE: u8 = 1;
/// The store has been asked, or will be: the value is not known yet.
pub(super) const PENDING: u8 = 2;
/// Written since it was last encoded.
pub(super) const UNENCODED: u8 = 4;
/// The store may hold a value for it: to delete it needs a tombstone.
pub(super) const STORED: u8 = 8;
/// On the list of slots that are dropped as soon as that is possible.
pub(super) const TRASHED: u8 = 32;
/// Its value is only what was added since the flush before: the store's is not known.
pub(super) const PARTIAL: u8 = 64;
/// More of a partial value may be aside.
pub(super) const ASIDE: u8 = 128;

/// Namings that count: one that was named more often since the eviction's hand last passed stays no longer for it.
pub(super) const USES_MAX: u8 = 3;

/// One entry of a working set.
#[derive(Debug)]
pub(super) struct Slot<V> {
    /// The stable hash of the key.
    pub(super) hash: u64,
    /// The stamp of the last naming; 0: never named.
    pub(super) named: u64,
    pub(super) key: SlotKey,
    /// The flush that the last write belongs to; 0: none.
    pub(super) written: u32,
    /// Position in the list of its time; in a free slot: the next free one.
    pub(super) position: u32,
    pub(super) flags: u8,
    /// Batches that named it, less one for each time that the eviction's hand has passed; at most [`USES_MAX`].
    pub(super) uses: u8,
    /// `None`: absent, deleted, or not known yet.
    pub(super) value: Option<V>,
}

impl<V> Slot<V> {
    fn free(next: u32) -> Self {
        Self { hash: 0, named: 0, key: SlotKey::new(), written: 0, position: next, flags: 0, uses: 0, value: None }
    }

    #[inline]
    pub(super) fn is(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Names it; whether this stamp has not before.
    #[inline]
    pub(super) fn name(&mut self, stamp: u64) -> bool {
        if self.named == stamp {
            return false;
        }
        self.named = stamp;
        self.use_once();
        true
    }

    /// It is named, or came because somebody will name it.
    #[inline]
    pub(super) fn use_once(&mut self) {
        self.uses = (self.uses + 1).min(USES_MAX);
    }

    pub(super) fn group(&self) -> KeyGroup {
        KeyGroup::of_hash(self.hash)
    }

    /// What its key holds outside the slot.
    pub(super) fn key_heap_bytes(&self) -> usize {
        if self.key.spilled() { self.key.capacity() } else { 0 }
    }
}

const CHUNK_BITS: u32 = 10;
const CHUNK: usize = 1 << CHUNK_BITS;
const NONE: u32 = u32::MAX;

struct Chunk<V> {
    /// `CHUNK` slots, or none while the chunk is given back.
    slots: Vec<Slot<V>>,
    /// As many times, or none: see [`Slab::keep_times`].
    times: Vec<i64>,
    /// As many stamps, or none: see [`Slab::keep_stamps`].
    stamps: Vec<i64>,
    free: u32,
    live: u32,
}

/// See the module.
pub(super) struct Slab<V> {
    chunks: Vec<Chunk<V>>,
    /// Chunks with free slots that are allocated.
    open: BTreeSet<u32>,
    /// Chunks that were given back.
    vacant: Vec<u32>,
    live: usize,
    has_times: bool,
    has_stamps: bool,
}

impl<V> Slab<V> {
    pub(super) fn new() -> Self {
        let (has_times, has_stamps) = (false, false);
        Self { chunks: Vec::new(), open: BTreeSet::new(), vacant: Vec::new(), live: 0, has_times, has_stamps }
    }

    /// From here on slots have times; before the first is taken.
    pub(super) fn keep_times(&mut self) {
        debug_assert!(self.chunks.is_empty(), "slots were taken without times");
        self.has_times = true;
    }

    /// From here on slots say when they expire; those that are there never do.
    pub(super) fn keep_stamps(&mut self) {
        self.has_stamps = true;
        self.chunks.iter_mut().for_each(|c| c.stamps = vec![NEVER_EXPIRES; c.slots.len()]);
    }

    /// What a slot takes beside itself.
    pub(super) fn beside_bytes(&self) -> usize {
        (usize::from(self.has_times) + usize::from(self.has_stamps)) * size_of::<i64>()
    }

    /// The time of slot `i`: [`NO_TIME`] in a state without times.
    #[inline]
    pub(super) fn time(&self, i: u32) -> i64 {
        let times = &self.chunks[(i >> CHUNK_BITS) as usize].times;
        times.get(i as usize & (CHUNK - 1)).copied().unwrap_or(NO_TIME)
    }

    pub(super) fn set_time(&mut self, i: u32, time: i64) {
        match self.chunks[(i >> CHUNK_BITS) as usize].times.get_mut(i as usize & (CHUNK - 1)) {
            Some(there) => *there = time,
            None => debug_assert_eq!(time, NO_TIME, "this state has no times"),
        }
    }

    /// When the value of slot `i` expires, by the clock of the state's TTL.
    #[inline]
    pub(super) fn stamp(&self, i: u32) -> i64 {
        let stamps = &self.chunks[(i >> CHUNK_BITS) as usize].stamps;
        stamps.get(i as usize & (CHUNK - 1)).copied().unwrap_or(NEVER_EXPIRES)
    }

    /// Nothing happens in a state whose values never expire.
    #[inline]
    pub(super) fn set_stamp(&mut self, i: u32, stamp: i64) {
        if let Some(there) = self.chunks[(i >> CHUNK_BITS) as usize].stamps.get_mut(i as usize & (CHUNK - 1)) {
            *there = stamp;
        }
    }

    /// Whether slot `i` is that of this key.
    #[inline]
    pub(super) fn is_of(&self, i: u32, hash: u64, time: i64, key: &[u8]) -> bool {
        let chunk = &self.chunks[(i >> CHUNK_BITS) as usize];
        let at = i as usize & (CHUNK - 1);
        let slot = &chunk.slots[at];
        slot.hash == hash && slot.key.as_slice() == key && chunk.times.get(at).is_none_or(|t| *t == time)
    }

    /// How many slots are live.
    pub(super) fn live(&self) -> usize {
        self.live
    }

    /// All slot numbers are below it.
    pub(super) fn end(&self) -> u32 {
        (self.chunks.len() * CHUNK) as u32
    }

    /// The slot at or after `i`, if it is live.
    pub(super) fn live_at(&self, i: u32) -> Option<&Slot<V>> {
        let chunk = self.chunks.get((i >> CHUNK_BITS) as usize)?;
        chunk.slots.get(i as usize & (CHUNK - 1)).filter(|s| s.is(LIVE))
    }

    /// Asks the processor for the memory of slot `i`.
    #[inline]
    pub(super) fn prefetch(&self, i: u32) {
        const LINE: usize = 64;
        let chunk = self.chunks.get((i >> CHUNK_BITS) as usize);
        if let Some(slot) = chunk.and_then(|c| c.slots.get(i as usize & (CHUNK - 1))) {
            let start: *const u8 = std::ptr::from_ref(slot).cast();
            for at in (0..size_of::<Slot<V>>().min(4 * LINE)).step_by(LINE) {
                prefetch_address(start.wrapping_add(at));
            }
        }
    }

    /// The first number behind `i` that may be live: skips chunks that were given back.
    pub(super) fn next(&self, i: u32) -> u32 {
        match self.chunks.get((i >> CHUNK_BITS) as usize) {
            Some(chunk) if chunk.live == 0 => ((i >> CHUNK_BITS) + 1) << CHUNK_BITS,
            _ => i + 1,
        }
    }

    /// Takes a free slot; its fields but for the flag `LIVE` are as a free slot's.
    pub(super) fn take(&mut self) -> u32 {
        let c = match self.open.first() {
            Some(&c) => c,
            None => self.add_chunk(),
        };
        let chunk = &mut self.chunks[c as usize];
        let at = chunk.free;
        let slot = &mut chunk.slots[at as usize];
        chunk.free = slot.position;
        slot.flags = LIVE;
        slot.position = 0;
        chunk.live += 1;
        self.live += 1;
        if chunk.free == NONE {
            self.open.remove(&c);
        }
        c << CHUNK_BITS | at
    }

    fn add_chunk(&mut self) -> u32 {
        let numbers = |kept: bool, with: i64| if kept { vec![with; CHUNK] } else { Vec::new() };
        let chunk = Chunk {
            slots: (0..CHUNK as u32).map(|i| Slot::free(if i + 1 < CHUNK as u32 { i + 1 } else { NONE })).collect(),
            times: numbers(self.has_times, NO_TIME),
            stamps: numbers(self.has_stamps, NEVER_EXPIRES),
            free: 0,
            live: 0,
        };
        let c = match self.vacant.pop() {
            Some(c) => {
                self.chunks[c as usize] = chunk;
                c
            }
            None => {
                self.chunks.push(chunk);
                (self.chunks.len() - 1) as u32
            }
        };
        self.open.insert(c);
        c
    }

    /// Gives a slot back, with all that it holds.
    pub(super) fn give_back(&mut self, i: u32) {
        let c = i >> CHUNK_BITS;
        let chunk = &mut self.chunks[c as usize];
        let at = i as usize & (CHUNK - 1);
        chunk.slots[at] = Slot::free(chunk.free);
        if let Some(stamp) = chunk.stamps.get_mut(at) {
            *stamp = NEVER_EXPIRES;
        }
        chunk.free = i & (CHUNK as u32 - 1);
        chunk.live -= 1;
        self.live -= 1;
        self.open.insert(c);
        // One empty chunk is kept, so that a single entry that comes and goes allocates nothing.
        if chunk.live == 0 && self.open.len() > 1 {
            (chunk.slots, chunk.times, chunk.stamps) = (Vec::new(), Vec::new(), Vec::new());
            self.open.remove(&c);
            self.vacant.push(c);
        }
    }
}

impl<V> std::ops::Index<u32> for Slab<V> {
    type Output = Slot<V>;
    #[inline]
    fn index(&self, i: u32) -> &Slot<V> {
        &self.chunks[(i >> CHUNK_BITS) as usize].slots[i as usize & (CHUNK - 1)]
    }
}

impl<V> std::ops::IndexMut<u32> for Slab<V> {
    #[inline]
    fn index_mut(&mut self, i: u32) -> &mut Slot<V> {
        &mut self.chunks[(i >> CHUNK_BITS) as usize].slots[i as usize & (CHUNK - 1)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_reused_and_empty_chunks_given_back() {
        let mut slab = Slab::<u64>::new();
        let all: Vec<u32> = (0..3 * CHUNK as u32).map(|_| slab.take()).collect();
        assert_eq!(all, (0..3 * CHUNK as u32).collect::<Vec<_>>());
        assert_eq!((slab.live(), slab.end()), (3 * CHUNK, 3 * CHUNK as u32));
        (0..2 * CHUNK as u32).for_each(|i| slab.give_back(i));
        assert_eq!(slab.live(), CHUNK);
        assert!(slab.live_at(0).is_none() && slab.live_at(2 * CHUNK as u32).is_some());
        assert_eq!(slab.next(CHUNK as u32), 2 * CHUNK as u32);
        let again: Vec<u32> = (0..2 * CHUNK).map(|_| slab.take()).collect();
        assert!(again.iter().all(|i| *i < 2 * CHUNK as u32));
        assert_eq!(slab.end(), 3 * CHUNK as u32);
        let distinct: std::collections::BTreeSet<_> = again.iter().collect();
        assert_eq!(distinct.len(), again.len());
    }

    #[test]
    fn a_slot_takes_little_beside_its_key_and_value() {
        // 16 bytes of key stand in it, and are counted here.
        assert_eq!(size_of::<Slot<[u8; 100]>>(), 152);
    }

    #[test]
    fn times_and_stamps_take_room_only_in_states_that_have_them() {
        let mut plain = Slab::<u64>::new();
        let i = plain.take();
        plain.set_time(i, NO_TIME);
        plain.set_stamp(i, 7);
        assert_eq!((plain.time(i), plain.stamp(i), plain.beside_bytes()), (NO_TIME, NEVER_EXPIRES, 0));
        plain.keep_stamps();
        assert_eq!((plain.stamp(i), plain.beside_bytes()), (NEVER_EXPIRES, 8));
        plain.set_stamp(i, 7);
        assert_eq!(plain.stamp(i), 7);
        // Whoever gets the place next does not get the stamp.
        plain.give_back(i);
        assert_eq!(plain.take(), i);
        assert_eq!(plain.stamp(i), NEVER_EXPIRES);
        let mut timed = Slab::<u64>::new();
        timed.keep_times();
        let i = timed.take();
        timed.set_time(i, 9);
        assert!(timed.is_of(i, 0, 9, b"") && !timed.is_of(i, 0, 8, b"") && timed.beside_bytes() == 8);
    }
}
