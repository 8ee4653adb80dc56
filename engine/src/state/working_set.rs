//! A working set: the decoded values of recently used keys. It is row cache and write buffer at once: there is no second
//! copy of a dirty row elsewhere.
//!
//! This file owns naming, installing and writing; `flush.rs` what leaves for the store, `evict.rs` memory and rescales,
//! `partial.rs` what is added to keys that are not resident.
//!
//! The order of events for a key: it is named (a slot is made, or found, and pinned), asked of the store when its value
//! is not known, installed, written while its batch is processed, unpinned when the batch's group is released, frozen
//! with its flush, encoded, clean once that flush is in the store, and evicted at last.
//!
//! Pins cost nothing to drop: a slot remembers the stamp of its last naming, and is pinned while the group of that stamp
//! has not been released. So a batch is released by moving one number.
//!
//! A working set never reads or writes the store itself and never knows what time it is.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};

use millstream_common::hash::stable_hash;
use millstream_common::planted::bug_is_planted;
use millstream_common::{Error, KeyGroup, KeyGroupRanges, Result, StateId};
use millstream_state_store::key::{KeyBuffer, point_key, split_point_key, split_timed_key, timed_key};
use millstream_state_store::schema::Ttl;
use smallvec::SmallVec;

use super::flush::{Frozen, Generation};
use super::maps::Maps;
use super::partial::{Aside, MergeFn};
use super::slab::{PARTIAL, PENDING, STORED, Slab, SlotKey, TRASHED, UNENCODED};
use super::stored::Stored;
use super::table::SlotTable;
use super::{Rows, SlotId, StateValue};
use crate::operator::SubtaskTime;

/// The time of every entry of a point state.
pub(super) const NO_TIME: i64 = 0;

/// See the module.
pub(super) struct WorkingSet<V> {
    pub(super) slots: Slab<V>,
    pub(super) table: SlotTable,
    pub(super) id: StateId,
    pub(super) ranges: KeyGroupRanges,
    /// Entries of maps: then a slot's time is the number of its map.
    pub(super) mapped: bool,
    pub(super) maps: Maps,
    /// With an index by time: the slots that have a value.
    pub(super) timed: bool,
    pub(super) times: BTreeMap<i64, SmallVec<[u32; 4]>>,
    /// A key that is not resident and whose time is at or below it is not in the store. Point states, whose only time is
    /// 0, know all or nothing.
    pub(super) known_until: i64,
    /// Times `after < t <= until` that a scan on its way will bring: nothing there may be dropped meanwhile, or the scan
    /// would bring back what is no more.
    pub(super) scanning: Option<(i64, i64)>,
    /// The view of that scan holds the flushes up to this one.
    pub(super) scan_view: u32,
    /// How values add up, in a state that is written without being read.
    pub(super) merge: Option<MergeFn<V>>,
    /// What partial slots had in earlier flushes, oldest first.
    pub(super) asides: VecDeque<Aside<V>>,
    /// Entries at or below it stay until what is due has fired.
    pub(super) hold_until: i64,
    /// While the key groups fire one part after the other: the part that does.
    pub(super) slice: Option<Slice>,

    /// Stamp of what is being named.
    pub(super) stamp: u64,
    /// The last stamps of the groups that were ended and not released.
    groups: VecDeque<u64>,
    /// Slots with a greater stamp are pinned.
    pub(super) released: u64,
    /// Slots to be asked of the store.
    pub(super) missing: Vec<u32>,
    /// Distinct keys of batches that were named since somebody asked.
    pub(super) named: u64,
    /// Slots whose value is not known yet.
    pub(super) pending: usize,
    /// The slots of the batches that were named and not taken yet.
    pub(super) rows: VecDeque<Rows>,
    pub(super) spare: Vec<Rows>,

    /// The flush that writes go to.
    pub(super) open_flush: u32,
    /// Flushes up to it are in the store.
    pub(super) flushed: u32,
    /// Slots written since the last freeze (some may have been dropped since).
    pub(super) dirty: Vec<u32>,
    /// Flushes that are not encoded in whole, oldest first.
    pub(super) frozen: VecDeque<Frozen>,
    /// What is dirty, by flush: from `flushed + 1` to `open_flush`.
    pub(super) generations: VecDeque<Generation>,

    /// Bytes that live slots hold outside themselves.
    pub(super) heap_bytes: usize,
    /// Absent slots to be dropped: not before this flush is in the store and this stamp is released.
    pub(super) trash: VecDeque<(u32, u64, u32)>,
    /// Where the next eviction goes on.
    pub(super) hand: u32,
    /// An eviction found nothing when this flush was in the store and this stamp released.
    pub(super) stuck: Option<(u32, u64)>,
    pub(super) buffer: Vec<u8>,
    pub(super) key_buffer: Vec<u8>,
    /// How values stand in the store, and when they expire.
    pub(super) stored: Stored,
}

/// See [`super::StateSet::set_slice`].
pub(super) struct Slice {
    pub(super) groups: KeyGroupRanges,
    /// As [`WorkingSet::known_until`], for these groups.
    pub(super) known_until: i64,
    /// Up to where key groups have fired: what they had up to there is dead.
    pub(super) fired: SubtaskTime,
    /// These groups have no resident value before it.
    pub(super) first_time: Cell<i64>,
}

/// Keys that are looked up together when a batch is named: their slots fit into the nearest cache.
const GROUP: usize = 64;
/// No slot has this number: the slab ends before.
const NO_SLOT: u32 = u32::MAX;

/// What goes into the table for a key.
#[inline]
pub(super) fn tag_of(hash: u64, time: i64) -> u32 {
    // The top bits of a stable hash are alike in a subtask with few key groups: the product spreads the others.
    let mixed = hash.wrapping_add((time as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29));
    (mixed.wrapping_mul(0xd6e8_feb8_6659_fd93) >> 32) as u32
}

impl<V: StateValue> WorkingSet<V> {
    pub(super) fn new(timed: bool) -> Self {
        let mut slots = Slab::new();
        if timed {
            slots.keep_times();
        }
        Self {
            slots,
            table: SlotTable::default(),
            id: StateId(0),
            ranges: KeyGroupRanges::all(),
            mapped: false,
            maps: Maps::default(),
            timed,
            times: BTreeMap::new(),
            known_until: i64::MIN,
            scanning: None,
            scan_view: 0,
            merge: None,
            asides: VecDeque::new(),
            hold_until: i64::MIN,
            slice: None,
            stamp: 1,
            groups: VecDeque::new(),
            released: 0,
            missing: Vec::new(),
            named: 0,
            pending: 0,
            rows: VecDeque::new(),
            spare: Vec::new(),
            open_flush: 1,
            flushed: 0,
            dirty: Vec::new(),
            frozen: VecDeque::new(),
            generations: VecDeque::from([Generation::default()]),
            heap_bytes: 0,
            trash: VecDeque::new(),
            hand: 0,
            stuck: None,
            buffer: Vec::new(),
            key_buffer: Vec::new(),
            stored: Stored::new(),
        }
    }

    /// When values expire; before the first one is there.
    pub(super) fn set_ttl(&mut self, ttl: Option<Ttl>) {
        if ttl.is_some() {
            self.slots.keep_stamps();
        }
        self.stored.set_ttl(ttl);
    }

    /// See [`super::StateSet::open`].
    pub(super) fn open(&mut self, id: StateId, ranges: KeyGroupRanges, complete: bool, first: bool) {
        self.id = id;
        self.ranges = ranges;
        // Later, what was known stays known until `retain` says otherwise.
        if complete {
            self.known_until = i64::MAX;
        } else if first {
            self.known_until = i64::MIN;
        }
    }

    // ---- naming

    /// Whether the value of a slot is known.
    pub(super) fn is_resident(&self, i: u32) -> bool {
        self.slots.live_at(i).is_some_and(|s| s.flags & (PENDING | PARTIAL) == 0)
    }

    /// The slot of a key, resident or not.
    #[inline]
    pub(super) fn find(&self, hash: u64, time: i64, key: &[u8]) -> Option<u32> {
        self.table.find(tag_of(hash, time), |i| self.slots.is_of(i, hash, time, key))
    }

    /// Names a key: its slot, pinned until the group is released.
    #[inline]
    pub(super) fn name(&mut self, hash: u64, time: i64, key: &[u8]) -> SlotId {
        let i = match self.find(hash, time, key) {
            Some(i) => i,
            None => self.name_new(hash, time, key),
        };
        self.slots[i].name(self.stamp);
        SlotId(i)
    }

    #[cold]
    fn name_new(&mut self, hash: u64, time: i64, key: &[u8]) -> u32 {
        let i = self.add(hash, time, key);
        if self.knows(time, KeyGroup::of_hash(hash)) {
            return i;
        }
        if self.merge.is_some() {
            // Nothing is asked: what comes is added to whatever the store holds.
            self.slots[i].flags |= PARTIAL | STORED;
        } else {
            // What is not known may be in the store.
            self.slots[i].flags |= PENDING | STORED;
            self.pending += 1;
            self.missing.push(i);
        }
        i
    }

    /// Names a key for each row; the slots wait for [`WorkingSet::take_rows`]. Table and slots lie anywhere in gigabytes: keys
    /// go through the look-up in groups, and each step asks the processor for the memory of the next one.
    pub(super) fn name_batch(&mut self, keys: &KeyBuffer, time: impl Fn(usize) -> i64) {
        self.stamp += 1;
        let mut rows = self.spare.pop().unwrap_or_default();
        rows.slots.reserve(keys.len());
        let (mut tags, mut guesses) = ([0; GROUP], [NO_SLOT; GROUP]);
        for first in (0..keys.len()).step_by(GROUP) {
            let group = first..(first + GROUP).min(keys.len());
            for (row, tag) in group.clone().zip(&mut tags) {
                *tag = tag_of(keys.hashes()[row], time(row));
                self.table.prefetch(*tag);
            }
            for (&tag, guess) in tags[..group.len()].iter().zip(&mut guesses) {
                *guess = self.guess(tag);
            }
            for (row, &guess) in group.zip(&guesses) {
                let i = self.name_guessed(guess, keys.hashes()[row], time(row), keys.key(row));
                if self.slots[i].name(self.stamp) {
                    rows.distinct.push(SlotId(i));
                }
                rows.slots.push(SlotId(i));
            }
        }
        self.named += rows.distinct.len() as u64;
        self.rows.push_back(rows);
    }

    /// The slot that the table has for a tag first, or [`NO_SLOT`]; seldom it is another key's. Its memory is asked for.
    #[inline]
    fn guess(&self, tag: u32) -> u32 {
        let guess = self.table.find(tag, |_| true);
        guess.inspect(|&i| self.slots.prefetch(i)).unwrap_or(NO_SLOT)
    }

    /// The slot of a key, made if it has none.
    #[inline]
    fn name_guessed(&mut self, guess: u32, hash: u64, time: i64, key: &[u8]) -> u32 {
        if guess != NO_SLOT && self.slots.is_of(guess, hash, time, key) {
            return guess;
        }
        // Another key of the group may have been given its slot just now.
        match self.find(hash, time, key) {
            Some(i) => i,
            None => self.name_new(hash, time, key),
        }
    }

    /// Keys that were named one by one.
    pub(super) fn count_named(&mut self, keys: u64) {
        self.named += keys;
    }

    /// See [`super::StateSet::take_named`].
    pub(super) fn take_named(&mut self) -> u64 {
        std::mem::take(&mut self.named)
    }

    /// The slots of the oldest batch that was named and not taken.
    pub(super) fn take_rows(&mut self) -> Result<Rows> {
        let rows = self
            .rows
            .pop_front()
            .ok_or_else(|| Error::internal("a batch is processed whose keys were not named").code(9110))?;
        if self.pending > 0 && rows.distinct.iter().any(|s| self.slots[s.0].is(PENDING)) {
            return Err(Error::internal("a batch is processed before its keys are resident").code(9111));
        }
        Ok(rows)
    }

    pub(super) fn give_back(&mut self, mut rows: Rows) {
        rows.slots.clear();
        rows.distinct.clear();
        if self.spare.len() < 8 {
            self.spare.push(rows);
        }
    }

    pub(super) fn end_group(&mut self) {
        self.groups.push_back(self.stamp);
        self.stamp += 1;
    }

    pub(super) fn release_group(&mut self) {
        if let Some(stamp) = self.groups.pop_front() {
            self.released = stamp;
            self.empty_trash();
        }
    }

    /// Makes a slot without a value for a key that has none.
    pub(super) fn add(&mut self, hash: u64, time: i64, key: &[u8]) -> u32 {
        let i = self.slots.take();
        let slot = &mut self.slots[i];
        (slot.hash, slot.named) = (hash, 0);
        slot.key = SlotKey::from_slice(key);
        self.heap_bytes += slot.key_heap_bytes();
        self.slots.set_time(i, time);
        self.table.insert(tag_of(hash, time), i);
        i
    }

    /// Drops a slot with all that it holds.
    pub(super) fn drop_slot(&mut self, i: u32) {
        self.clean(i);
        self.take_value(i);
        self.forget_partial(i);
        let (slot, time) = (&self.slots[i], self.slots.time(i));
        let tag = tag_of(slot.hash, time);
        self.heap_bytes -= slot.key_heap_bytes();
        if slot.is(PENDING) {
            self.pending -= 1;
        }
        self.table.remove(tag, i);
        if self.mapped {
            self.maps.drop_slot(time, self.released);
        }
        self.slots.give_back(i);
    }

    // ---- reads

    pub(super) fn take_missing(&mut self, into: &mut Vec<bytes::Bytes>) {
        for i in std::mem::take(&mut self.missing) {
            if self.slots.live_at(i).is_some_and(|s| s.is(PENDING)) {
                let mut key = Vec::new();
                self.store_key(i, &mut key);
                into.push(key.into());
            }
        }
    }

    /// Forgets to ask for slots that were dropped.
    pub(super) fn retain_missing(&mut self) {
        let slots = &self.slots;
        self.missing.retain(|&i| slots.live_at(i).is_some_and(|s| s.is(PENDING)));
    }

    pub(super) fn store_key(&self, i: u32, into: &mut Vec<u8>) {
        let slot = &self.slots[i];
        if self.timed {
            // Planted: the key group of some other key of this subtask is recorded.
            let wrong = || self.ranges.as_slice().first().map_or(slot.group(), |r| KeyGroup(r.start as u16));
            let group = if bug_is_planted(12) { wrong() } else { slot.group() };
            timed_key(self.id, self.slots.time(i), group, &slot.key, into);
        } else if self.mapped {
            self.entry_store_key(i, into);
        } else {
            point_key(self.id, slot.group(), &slot.key, into);
        }
    }

    /// Time, key group and key of a store key of this state.
    pub(super) fn split<'k>(&self, key: &'k [u8]) -> Result<(i64, KeyGroup, &'k [u8])> {
        let parts = if self.timed {
            split_timed_key(key)
        } else {
            split_point_key(key).map(|(id, group, key)| (id, NO_TIME, group, key))
        };
        match parts {
            Some((id, time, group, key)) if id == self.id => Ok((time, group, key)),
            _ => Err(self.not_own()),
        }
    }

    pub(super) fn not_own(&self) -> Error {
        Error::internal(format!("state {} was handed an entry that is not its own", self.id)).code(9112)
    }

    pub(super) fn install(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<()> {
        if self.mapped {
            return self.install_entry(key, value);
        }
        let (time, _, key) = self.split(key)?;
        match self.find(stable_hash(key), time, key) {
            Some(i) if self.slots[i].is(PENDING) => self.resolve(i, value),
            _ => Ok(()),
        }
    }

    /// The store's answer for a slot that waits for it.
    pub(super) fn resolve(&mut self, i: u32, value: Option<&[u8]>) -> Result<()> {
        let value = value.map(|v| self.stored.decode(v)).transpose()?;
        self.pending -= 1;
        self.slots[i].flags &= !PENDING;
        match value {
            Some((v, stamp)) => {
                self.slots.set_stamp(i, stamp);
                self.set_value(i, v);
            }
            None => self.slots[i].flags &= !STORED,
        }
        Ok(())
    }

    /// An entry that a scan brought.
    pub(super) fn install_scanned(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let (time, group, key) = self.split(key)?;
        if !self.ranges.contains(group) {
            return Ok(());
        }
        let hash = stable_hash(key);
        match self.find(hash, time, key) {
            Some(i) if self.slots[i].is(PENDING) => self.resolve(i, Some(value)),
            Some(i) if self.slots[i].is(PARTIAL) && self.scanning.is_some() => {
                let (value, _) = self.stored.decode(value)?;
                self.complete(i, Some(value));
                Ok(())
            }
            Some(_) => Ok(()),
            None => {
                let (value, stamp) = self.stored.decode(value)?;
                let i = self.add(hash, time, key);
                self.slots[i].flags |= STORED;
                self.slots[i].use_once();
                self.slots.set_stamp(i, stamp);
                self.set_value(i, value);
                Ok(())
            }
        }
    }

    // ---- writes

    /// Whether the value of a slot has expired: it counts as absent. Its copy in the store, which has the same stamp or
    /// is older than what is about to be written, needs no tombstone.
    #[inline]
    fn has_lapsed(&self, i: u32) -> bool {
        self.stored.has_ttl() && self.stored.has_lapsed(self.slots.stamp(i), self.slots[i].group())
    }

    /// The value of a slot. `None` for absent ones and for those that have expired; asking for one that is not resident yet,
    /// or partial, is a mistake of the caller.
    #[inline]
    pub(super) fn get(&self, i: u32) -> Option<&V> {
        debug_assert!(self.slots[i].flags & (PENDING | PARTIAL) == 0, "read before it is resident");
        if self.has_lapsed(i) { None } else { self.slots[i].value.as_ref() }
    }

    /// Marks a slot as written in the open flush; what an earlier flush still needs is encoded first.
    #[inline]
    fn touch(&mut self, i: u32) {
        if self.slots[i].written != self.open_flush {
            self.touch_first(i);
        }
    }

    fn touch_first(&mut self, i: u32) {
        self.encode_aside_if_frozen(i);
        let written = self.slots[i].written;
        self.clean(i);
        if self.slots[i].is(PARTIAL) {
            self.begin_anew(i, written);
        }
        let bytes = self.slot_bytes(i);
        let slot = &mut self.slots[i];
        if slot.is(PENDING) {
            // Written without having been read: whatever the store answers is older.
            slot.flags &= !PENDING;
            self.pending -= 1;
        }
        slot.written = self.open_flush;
        slot.flags |= UNENCODED;
        self.open_generation().add(bytes);
        self.dirty.push(i);
    }

    /// Takes a slot off the account of the flush that it belongs to.
    fn clean(&mut self, i: u32) {
        let bytes = self.slot_bytes(i);
        let (slot, flushed) = (&mut self.slots[i], self.flushed);
        let written = std::mem::replace(&mut slot.written, 0);
        if written > flushed
            && let Some(generation) = self.generations.get_mut((written - flushed - 1) as usize)
        {
            generation.remove(bytes);
        }
    }

    pub(super) fn open_generation(&mut self) -> &mut Generation {
        let last = self.generations.len() - 1; // there is always one for the open flush
        &mut self.generations[last]
    }

    /// Drops the value of a slot that is about to be written, if it has expired, and stamps what is written.
    #[inline]
    fn renew(&mut self, i: u32) {
        if self.stored.has_ttl() {
            self.renew_stamp(i);
        }
    }

    fn renew_stamp(&mut self, i: u32) {
        if self.has_lapsed(i) {
            let old = self.take_value(i);
            self.open_generation().bytes -= old.as_ref().map_or(0, V::heap_bytes);
        }
        let stamp = self.stored.stamp(self.slots[i].group());
        self.slots.set_stamp(i, stamp);
    }

    /// Changes a value, after `init` when there is none.
    #[inline]
    pub(super) fn update<R>(&mut self, i: u32, init: impl FnOnce() -> V, change: impl FnOnce(&mut V) -> R) -> R {
        debug_assert!(!self.slots[i].is(PENDING), "changed before it is resident");
        self.touch(i);
        self.renew(i);
        if self.slots[i].value.is_none() {
            let value = init();
            let heap = value.heap_bytes();
            self.set_value(i, value);
            self.open_generation().bytes += heap;
        }
        let value = self.slots[i].value.as_mut().expect("was set above");
        if V::FIXED {
            return change(value);
        }
        let before = value.heap_bytes();
        let result = change(value);
        let after = value.heap_bytes();
        self.heap_bytes = self.heap_bytes + after - before;
        let generation = self.open_generation();
        generation.bytes = generation.bytes + after - before;
        result
    }

    /// Sets a value, whatever was there.
    pub(super) fn put(&mut self, i: u32, value: V) {
        self.touch(i);
        self.forget_partial(i);
        self.renew(i);
        let before = self.slots[i].value.as_ref().map_or(0, V::heap_bytes);
        let after = value.heap_bytes();
        if self.slots[i].value.is_some() {
            self.heap_bytes = self.heap_bytes + after - before;
            self.slots[i].value = Some(value);
        } else {
            self.set_value(i, value);
        }
        let generation = self.open_generation();
        generation.bytes = generation.bytes + after - before;
    }

    /// Deletes: a tombstone goes out with the next flush if the store may hold the entry. What there was, if that is known.
    pub(super) fn delete(&mut self, i: u32) -> Option<V> {
        let unknown = self.slots[i].flags & (PENDING | PARTIAL) != 0;
        if self.slots[i].value.is_none() && !unknown {
            return None;
        }
        let lapsed = self.has_lapsed(i) || unknown;
        self.touch(i);
        let old = self.take_value(i);
        let heap = old.as_ref().map_or(0, V::heap_bytes);
        self.open_generation().bytes -= heap;
        self.forget_partial(i);
        self.throw(i, self.open_flush);
        old.filter(|_| !lapsed)
    }

    /// Drops an entry that is dead by its time: nothing is written, the store's copy expires by itself.
    pub(super) fn expire(&mut self, i: u32) -> Option<V> {
        self.encode_aside_if_frozen(i);
        self.clean(i);
        let old = self.take_value(i);
        self.forget_partial(i);
        let slot = &mut self.slots[i];
        if slot.is(PENDING) {
            self.pending -= 1;
        }
        slot.flags &= !(UNENCODED | STORED | PENDING);
        if slot.named > self.released || self.is_scanning(self.slots.time(i)) {
            self.throw(i, 0);
        } else {
            self.drop_slot(i);
        }
        old
    }

    /// Puts an absent slot on the list of those to be dropped.
    fn throw(&mut self, i: u32, flush: u32) {
        let slot = &mut self.slots[i];
        if !slot.is(TRASHED) {
            slot.flags |= TRASHED;
            self.trash.push_back((flush, self.stamp, i));
        }
    }

    /// Gives a slot without a value one, without a mark that it was written.
    pub(super) fn set_value(&mut self, i: u32, value: V) {
        self.heap_bytes += value.heap_bytes();
        let time = self.slots.time(i);
        let slot = &mut self.slots[i];
        slot.value = Some(value);
        if self.timed {
            let list = self.times.entry(time).or_default();
            slot.position = list.len() as u32;
            list.push(i);
            if let Some(slice) = &self.slice {
                slice.first_time.set(time.min(slice.first_time.get()));
            }
        } else if self.mapped {
            let (position, pinned) = self.maps.attach(time, i);
            (slot.position, slot.named) = (position, slot.named.max(pinned));
        }
    }

    /// Takes the value out of a slot, without a mark that it was written.
    pub(super) fn take_value(&mut self, i: u32) -> Option<V> {
        let time = self.slots.time(i);
        let slot = &mut self.slots[i];
        let old = slot.value.take()?;
        self.heap_bytes -= old.heap_bytes();
        if self.timed {
            let position = slot.position as usize;
            if let Some(list) = self.times.get_mut(&time) {
                list.swap_remove(position);
                if let Some(&moved) = list.get(position) {
                    self.slots[moved].position = position as u32;
                } else if list.is_empty() {
                    self.times.remove(&time);
                }
            }
        } else if self.mapped {
            let position = slot.position;
            if let Some(moved) = self.maps.detach(time, position) {
                self.slots[moved].position = position;
            }
        }
        Some(old)
    }

    pub(super) fn is_scanning(&self, time: i64) -> bool {
        self.scanning.is_some_and(|(after, until)| after < time && time <= until)
            || (self.mapped && self.maps.is_loading(time))
    }

    /// Whether nothing of this time in this key group is in the store and not resident.
    #[inline]
    pub(super) fn knows(&self, time: i64, group: KeyGroup) -> bool {
        time <= self.known_until || self.slice.as_ref().is_some_and(|s| s.knows(time, group))
    }

    /// Whether a slot's key group is among those that fire.
    #[inline]
    pub(super) fn in_slice(&self, i: u32) -> bool {
        self.slice.as_ref().is_none_or(|s| s.groups.contains(self.slots[i].group()))
    }

    /// An entry of this time and key group goes: from now on the store knows more than is resident.
    pub(super) fn forget(&mut self, time: i64, group: KeyGroup) {
        let before = time.saturating_sub(1);
        self.known_until = self.known_until.min(before);
        if let Some(slice) = self.slice.as_mut().filter(|s| s.groups.contains(group)) {
            slice.known_until = slice.known_until.min(before);
        }
    }

    /// Whether a slot may go: live, resident, encoded, in the store, not pinned, not held.
    pub(super) fn may_go(&self, i: u32) -> bool {
        self.slots.live_at(i).is_some_and(|s| {
            s.flags & (PENDING | UNENCODED) == 0
                && s.written <= self.flushed
                && s.named <= self.released
                && (self.slots.time(i) > self.hold_until || !self.in_slice(i))
                && !self.is_scanning(self.slots.time(i))
        })
    }
}

impl Slice {
    fn knows(&self, time: i64, group: KeyGroup) -> bool {
        time <= self.fired.fired(group) || (time <= self.known_until && self.groups.contains(group))
    }
}
