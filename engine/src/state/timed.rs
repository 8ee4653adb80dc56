//! State by time and key: windows and timers. The store keeps it in time order, so what is due is one forward scan.
//!
//! **Time is life.** An entry of time `t` counts until its key group has fired up to `t`: then it is due, and dead once
//! it has fired. Entries carry `t` as their event-time expiry, so a fired one is dropped here without a tombstone, and
//! the store's copy is gone by itself as soon as the watermark that fired it is committed. Only an entry that goes
//! before its time ([`TimedState::remove`]) leaves a tombstone.
//!
//! **What is due must be resident.** All entries up to `loaded_until` that the store holds are resident. A complete state
//! has everything loaded; evicting an entry of time `t` moves the mark below `t`; [`TimedState::load_until`] moves it up
//! again by a scan.
//!
//! **What adds up need not be read.** In a state with a merge function ([`TimedState::merged`]) a batch asks the store for
//! nothing: what it adds to keys that are not resident goes out as merge operands, and the scan for what is due brings the
//! sums.

use std::cell::Cell;
use std::ops::Bound;

use bytes::Bytes;
use millstream_common::{KeyGroup, KeyGroupRanges, Result};
use millstream_state_store::key::KeyBuffer;
use millstream_state_store::schema::Form;

use super::partial::MergeFn;
use super::slab::{PENDING, STORED};
use super::working_set::{Slice, WorkingSet};
use super::{Rows, SlotId, StateDescriptor, StateLayout, StateSet, StateValue, TimeScan};
use crate::element::TimestampMs;
use crate::operator::SubtaskTime;

/// How far a scan goes when the one before it brought nothing: this much farther each time.
const STEP_GROWTH: i64 = 4;

/// One value per time and key, paged in by batch and by time. With `V = ()`: timers.
///
/// ```
/// use millstream_common::Result;
/// use millstream_engine::element::TimestampMs;
/// use millstream_engine::operator::{Collector, KeyedBatch, Operator, Progress};
/// use millstream_engine::state::{StateSet, TimedState};
///
/// /// Does something for each key 10 s after the end of its minute.
/// struct Reminder {
///     timers: TimedState<()>,
/// }
///
/// impl Operator for Reminder {
///     fn process(&mut self, _input: usize, batch: &KeyedBatch, _out: &mut Collector) -> Result<()> {
///         for i in 0..batch.keys.len() {
///             // A timer is set without being read.
///             self.timers.set(batch.keys.hash(i), 70_000, batch.keys.key(i), ());
///         }
///         Ok(())
///     }
///
///     fn advance(&mut self, watermark: TimestampMs, out: &mut Collector) -> Result<Progress> {
///         let loaded = self.timers.load_until(watermark, out.fired_min());
///         let until = watermark.min(self.timers.loaded_until());
///         while let Some(time) = self.timers.first_time().filter(|t| *t <= until) {
///             for slot in self.timers.sorted_at(time) {
///                 if time > out.fired(self.timers.group(slot)) {
///                     // It is due: decode `self.timers.key(slot)` and act.
///                 }
///                 self.timers.expire(slot);
///             }
///         }
///         if !loaded {
///             return Ok(Progress::NeedsState);
///         }
///         self.timers.end_advance();
///         Ok(Progress::Done)
///     }
///
///     fn states(&mut self) -> Vec<&mut dyn StateSet> {
///         vec![&mut self.timers]
///     }
/// }
///
/// let mut reminder = Reminder { timers: TimedState::new("timers", "", 1_000) };
/// assert_eq!(reminder.states().len(), 1);
/// ```
pub struct TimedState<V> {
    descriptor: StateDescriptor,
    pub(super) set: WorkingSet<V>,
    opened: bool,
    /// How far beyond what is due a scan looks.
    ahead_ms: i64,
    /// What fires at a time needs entries of times up to so much later.
    beyond_ms: i64,
    /// How far the next scan goes.
    step_ms: i64,
    wanted: Option<TimeScan>,
    /// What is due reaches to here.
    due_until: TimestampMs,
    /// Entries that the scan on its way has brought.
    brought: usize,
}

impl<V: StateValue> TimedState<V> {
    /// A state without entries. `name` is unique in its operator; `value_schema` says how values are encoded. A scan for
    /// what is due looks `ahead_ms` (at least 1) beyond it, so that not every step of the watermark needs one.
    #[must_use]
    pub fn new(name: &str, value_schema: &str, ahead_ms: i64) -> Self {
        let descriptor = StateDescriptor::new(name, StateLayout::TimeOrdered, value_schema);
        let ahead_ms = ahead_ms.max(1);
        Self {
            descriptor,
            set: WorkingSet::new(true),
            opened: false,
            ahead_ms,
            beyond_ms: 0,
            step_ms: ahead_ms,
            wanted: None,
            due_until: TimestampMs::MIN,
            brought: 0,
        }
    }

    /// What fires at a time needs entries of times up to `beyond_ms` later, as a sliding window needs its panes: `advance` to
    /// a watermark never asks [`TimedState::load_until`] for more than that beyond it. Entries count for themselves
    /// without it.
    #[must_use]
    pub fn looking_beyond(mut self, beyond_ms: i64) -> Self {
        self.beyond_ms = beyond_ms;
        self
    }

    /// Says what values are made of: then they can be shown, and may change from one release of the program to the next
    /// as [`millstream_state_store::schema::Upgrade`] allows. The values must encode exactly that.
    #[must_use]
    pub fn described(mut self, form: Form) -> Self {
        self.descriptor.form = form;
        self
    }

    /// Lets values be added to without being read. `merge` adds a newer value to an older one, as the store's `operator`
    /// does with the encoded ones. Then what is not resident when it is named may only be changed by adding to it
    /// ([`TimedState::update`] from the value of nothing), set or removed; [`TimedState::get`] is for what
    /// [`TimedState::load_until`] has made resident.
    #[must_use]
    pub fn merged(mut self, operator: &str, merge: MergeFn<V>) -> Self {
        operator.clone_into(&mut self.descriptor.merge_operator);
        self.set.merge = Some(merge);
        self
    }

    /// Names what a batch will read, or, in a merged state, add to: for each row its key, at the row's time. Its slots come
    /// from [`TimedState::take_rows`].
    pub fn name_batch(&mut self, keys: &KeyBuffer, times: &[TimestampMs]) {
        self.set.name_batch(keys, |row| times[row]);
    }

    /// The slots of the oldest batch that was named and not taken; an error when they are not resident.
    pub fn take_rows(&mut self) -> Result<Rows> {
        self.set.take_rows()
    }

    /// Gives the lists of a batch back, to be used again.
    pub fn give_back(&mut self, rows: Rows) {
        self.set.give_back(rows);
    }

    /// Names one entry, by the stable hash of its key, its time and its encoded key.
    pub fn name(&mut self, hash: u64, time: TimestampMs, key: &[u8]) -> SlotId {
        self.set.count_named(1);
        self.set.name(hash, time, key)
    }

    /// Sets an entry without reading it. It is not pinned.
    pub fn set(&mut self, hash: u64, time: TimestampMs, key: &[u8], value: V) -> SlotId {
        let i = self.set.find_or_add_blind(hash, time, key);
        self.set.put(i, value);
        SlotId(i)
    }

    /// Removes an entry before its time, without reading it.
    pub fn unset(&mut self, hash: u64, time: TimestampMs, key: &[u8]) {
        if self.set.find(hash, time, key).is_none() && self.set.knows(time, KeyGroup::of_hash(hash)) {
            return;
        }
        let i = self.set.find_or_add_blind(hash, time, key);
        self.set.delete(i);
    }

    /// Whether the value of a slot is known.
    #[must_use]
    pub fn is_resident(&self, slot: SlotId) -> bool {
        self.set.is_resident(slot.0)
    }

    /// The value; `None` when there is none.
    #[inline]
    #[must_use]
    pub fn get(&self, slot: SlotId) -> Option<&V> {
        self.set.get(slot.0)
    }

    /// Changes the value, or first makes it by `init`.
    #[inline]
    pub fn update<R>(&mut self, slot: SlotId, init: impl FnOnce() -> V, change: impl FnOnce(&mut V) -> R) -> R {
        self.set.update(slot.0, init, change)
    }

    /// Sets the value.
    pub fn put(&mut self, slot: SlotId, value: V) {
        self.set.put(slot.0, value);
    }

    /// Removes an entry before its time: a tombstone goes to the store, if the store may hold it. What there was, if that
    /// is known.
    pub fn remove(&mut self, slot: SlotId) -> Option<V> {
        self.set.delete(slot.0)
    }

    /// Drops an entry that has fired: the watermark of its key group is about to pass its time. Its slot may not be used
    /// any more.
    pub fn expire(&mut self, slot: SlotId) -> Option<V> {
        self.set.expire(slot.0)
    }

    /// The encoded key of a slot.
    #[inline]
    #[must_use]
    pub fn key(&self, slot: SlotId) -> &[u8] {
        &self.set.slots[slot.0].key
    }

    /// The stable hash of a slot's key.
    #[inline]
    #[must_use]
    pub fn hash(&self, slot: SlotId) -> u64 {
        self.set.slots[slot.0].hash
    }

    /// The key group of a slot.
    #[inline]
    #[must_use]
    pub fn group(&self, slot: SlotId) -> KeyGroup {
        self.set.slots[slot.0].group()
    }

    /// The time of a slot.
    #[inline]
    #[must_use]
    pub fn time(&self, slot: SlotId) -> TimestampMs {
        self.set.slots.time(slot.0)
    }

    // ---- what is due

    /// Makes all entries up to `until` resident. True: they are, and stay until [`TimedState::end_advance`]. False: a
    /// scan is asked for (in steps, so that memory stays bounded: what [`TimedState::loaded_until`] has reached can be
    /// fired first), and `advance` says [`crate::operator::Progress::NeedsState`]. Nothing at or below `fired_min` counts
    /// any more. An operator with several states by time fires nothing beyond what all of them have reached.
    pub fn load_until(&mut self, until: TimestampMs, fired_min: TimestampMs) -> bool {
        self.set.known_until = self.set.known_until.max(fired_min);
        self.due_until = until;
        let loaded = self.loaded_until();
        if loaded >= until {
            self.set.hold_until = self.set.hold_until.max(until);
            self.step_ms = self.ahead_ms;
            return true;
        }
        if self.set.scanning.is_none() && self.wanted.is_none() {
            // A slice is there for what is due now.
            let ahead_ms = if self.set.slice.is_some() { 0 } else { self.ahead_ms };
            let farthest = until.saturating_add(ahead_ms);
            // Where nothing is known of the time before, there is nothing to count steps from.
            let step = if loaded == i64::MIN { farthest } else { loaded.saturating_add(self.step_ms) };
            let scan = TimeScan { after: loaded, until: farthest.min(step) };
            self.set.hold_until = self.set.hold_until.max(scan.until);
            self.wanted = Some(scan);
        }
        false
    }

    /// Everything that the store holds up to this time is resident.
    #[must_use]
    pub fn loaded_until(&self) -> TimestampMs {
        self.set.slice.as_ref().map_or(self.set.known_until, |s| s.known_until.max(self.set.known_until))
    }

    /// What is due has fired: entries need not stay any more.
    pub fn end_advance(&mut self) {
        self.set.hold_until = i64::MIN;
    }

    /// The least time of a resident entry.
    #[must_use]
    pub fn first_time(&self) -> Option<TimestampMs> {
        self.first_from(Bound::Unbounded)
    }

    /// The least time of a resident entry behind `time`.
    #[must_use]
    pub fn next_time(&self, time: TimestampMs) -> Option<TimestampMs> {
        self.first_from(Bound::Excluded(time))
    }

    fn first_from(&self, from: Bound<TimestampMs>) -> Option<TimestampMs> {
        let Some(slice) = &self.set.slice else {
            return self.set.times.range((from, Bound::Unbounded)).next().map(|(t, _)| *t);
        };
        // What other slices have at times that this one has passed is walked over once.
        let first = slice.first_time.get();
        let is_first = from == Bound::Unbounded;
        let from = match from {
            Bound::Excluded(time) if time >= first => from,
            _ => Bound::Included(first),
        };
        let mut times = self.set.times.range((from, Bound::Unbounded));
        let found = times.find(|(_, slots)| slots.iter().any(|&i| self.set.in_slice(i))).map(|(t, _)| *t);
        if is_first {
            slice.first_time.set(found.unwrap_or(TimestampMs::MAX));
        }
        found
    }

    /// The resident entries with `after < time <= until`, by time, in no order within a time.
    pub fn between(&self, after: TimestampMs, until: TimestampMs) -> impl Iterator<Item = SlotId> {
        let range = (Bound::Excluded(after), Bound::Included(until));
        let times = (after < until).then(|| self.set.times.range(range));
        let slots = times.into_iter().flatten().flat_map(|(_, slots)| slots.iter().copied());
        slots.filter(|&i| self.set.in_slice(i)).map(SlotId)
    }

    /// The resident entries of one time, ordered by key.
    #[must_use]
    pub fn sorted_at(&self, time: TimestampMs) -> Vec<SlotId> {
        let slots = self.set.times.get(&time).into_iter().flatten().copied();
        let mut slots: Vec<SlotId> = slots.filter(|&i| self.set.in_slice(i)).map(SlotId).collect();
        slots.sort_unstable_by(|a, b| self.key(*a).cmp(self.key(*b)));
        slots
    }

    /// Drops all resident entries at or below `time`: they have fired.
    pub fn expire_until(&mut self, time: TimestampMs) {
        let mut next = self.first_time();
        while let Some(first) = next.filter(|first| *first <= time) {
            // From the end of the list, so that nothing moves.
            let slots = self.set.times.get(&first).cloned().unwrap_or_default();
            for i in slots.into_iter().rev() {
                if self.set.in_slice(i) {
                    self.set.expire(i);
                }
            }
            next = self.next_time(first);
        }
    }
}

impl<V: StateValue> WorkingSet<V> {
    /// The slot of a key that is going to be written without being read.
    fn find_or_add_blind(&mut self, hash: u64, time: i64, key: &[u8]) -> u32 {
        self.find(hash, time, key).unwrap_or_else(|| {
            let i = self.add(hash, time, key);
            if !self.knows(time, KeyGroup::of_hash(hash)) {
                // Pending until the write: whether there is an older one is not known.
                self.slots[i].flags |= STORED | PENDING;
                self.pending += 1;
            }
            i
        })
    }
}

impl<V: StateValue> StateSet for TimedState<V> {
    by_working_set!();

    fn take_scan(&mut self) -> Option<TimeScan> {
        let scan = self.wanted.take()?;
        self.set.scanning = Some((scan.after, scan.until));
        self.set.scan_view = self.set.flushed;
        self.brought = 0;
        Some(scan)
    }

    fn install_scan(&mut self, entries: &[(Bytes, Bytes)], last: bool) -> Result<()> {
        self.brought += entries.len();
        entries.iter().try_for_each(|(key, value)| self.set.install_scanned(key, value))?;
        if last && let Some((after, until)) = self.set.scanning {
            self.set.complete_between(after, until);
            self.set.scanning = None;
            self.set.drop_asides();
            // What was lost meanwhile (a range was gained) has put the mark back: then this scan says nothing.
            let known_until = match &mut self.set.slice {
                Some(slice) => &mut slice.known_until,
                None => &mut self.set.known_until,
            };
            if *known_until >= after {
                *known_until = until.max(*known_until);
            }
            self.step_ms = if self.brought == 0 { self.step_ms.saturating_mul(STEP_GROWTH) } else { self.ahead_ms };
        }
        Ok(())
    }

    fn shorten_scan(&mut self, until: TimestampMs) {
        if let Some((_, end)) = &mut self.set.scanning {
            *end = until;
        }
    }

    fn abandon_scan(&mut self) {
        self.wanted = None;
        self.set.scanning = None;
        self.set.drop_asides();
    }

    fn set_slice(&mut self, slice: Option<(&KeyGroupRanges, &SubtaskTime)>) {
        self.abandon_scan();
        self.end_advance();
        self.set.stuck = None;
        self.set.slice = slice.map(|(groups, fired)| Slice {
            groups: groups.clone(),
            known_until: self.set.known_until.max(fired.min_of(groups)),
            fired: fired.clone(),
            first_time: Cell::new(TimestampMs::MIN),
        });
    }

    fn narrow_slice(&mut self, groups: &KeyGroupRanges) {
        if let Some(slice) = &mut self.set.slice {
            slice.groups = groups.clone();
        }
        self.set.stuck = None;
    }

    fn fires_until(&self) -> TimestampMs {
        self.loaded_until().saturating_sub(self.beyond_ms)
    }

    fn looks_beyond(&self) -> bool {
        self.beyond_ms > 0
    }

    fn due_bytes(&self) -> u64 {
        if self.wanted.is_none() {
            return 0;
        }
        let due = self.set.times.range(..=self.due_until).flat_map(|(_, slots)| slots.iter().copied());
        due.filter(|&i| self.set.in_slice(i)).map(|i| self.set.slot_bytes(i) as u64).sum()
    }

    fn retain(&mut self, ranges: &KeyGroupRanges, gained: bool) {
        self.set.retain(ranges, gained);
        if gained {
            // A scan that is on its way read too little.
            self.abandon_scan();
        }
    }
}
