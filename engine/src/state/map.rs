//! State by key and map key: many entries a key, read one by one or all together.
//!
//! What an operation means is what Flink's `MapState` means by it. A batch names what it reads: all entries of its keys
//! ([`MapState::name_maps`]), which come by one scan of the keys' prefixes, or single ones ([`MapState::name_entries`]). To write
//! an entry nothing need be read. Entries come, go, expire and are written to the store each by itself, so a change of one
//! writes that one, however many the key has.

use std::collections::VecDeque;

use bytes::Bytes;
use millstream_common::{Error, KeyGroup, KeyGroupRanges, Result};
use millstream_state_store::key::KeyBuffer;
use millstream_state_store::schema::{Form, KeyColumn, Ttl};

use super::working_set::WorkingSet;
use super::{Rows, SlotId, StateDescriptor, StateLayout, StateSet, StateValue, TimeScan};

/// Where the map of a key stands in a state. Valid while it, or an entry of it, is pinned: from naming until the group is
/// released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MapId(pub(super) u32);

/// The maps of a batch that was named.
#[derive(Clone, Debug, Default)]
pub struct MapRows {
    /// A map a row.
    pub maps: Vec<MapId>,
    /// Each map once, in the order of its first row.
    pub distinct: Vec<MapId>,
}

/// Many values per key, each under a map key, paged in by batch.
///
/// ```
/// use millstream_common::Result;
/// use millstream_engine::operator::{Collector, KeyedBatch, Operator};
/// use millstream_engine::state::{MapState, StateSet};
///
/// /// Counts the rows of each key by the first byte of the key of the row.
/// struct Letters {
///     counts: MapState<i64>,
/// }
///
/// impl Operator for Letters {
///     fn name_reads(&mut self, _input: usize, batch: &KeyedBatch) -> Result<()> {
///         self.counts.name_maps(&batch.keys);
///         Ok(())
///     }
///
///     fn process(&mut self, _input: usize, batch: &KeyedBatch, _out: &mut Collector) -> Result<()> {
///         let rows = self.counts.take_maps()?; // a map a row, in the order in which batches were named
///         for (row, &map) in rows.maps.iter().enumerate() {
///             self.counts.update(map, &batch.keys.key(row)[..1], || 0, |count| *count += 1)?;
///         }
///         for &map in &rows.distinct {
///             let total: i64 = self.counts.iter(map)?.map(|(_letter, count)| count).sum();
///             if total > 1_000 {
///                 self.counts.clear(map)?;
///             }
///         }
///         Ok(())
///     }
///
///     fn states(&mut self) -> Vec<&mut dyn StateSet> {
///         vec![&mut self.counts]
///     }
/// }
///
/// let mut letters = Letters { counts: MapState::new("letters", "i64 count") };
/// assert_eq!(letters.states().len(), 1);
/// ```
pub struct MapState<V> {
    descriptor: StateDescriptor,
    pub(super) set: WorkingSet<V>,
    opened: bool,
    /// The maps of the batches that were named and not taken.
    rows: VecDeque<MapRows>,
}

impl<V: StateValue> MapState<V> {
    /// A state without entries. `name` is unique in its operator; `value_schema` says how values are encoded.
    #[must_use]
    pub fn new(name: &str, value_schema: &str) -> Self {
        let descriptor = StateDescriptor::new(name, StateLayout::Map, value_schema);
        Self { descriptor, set: WorkingSet::mapped(), opened: false, rows: VecDeque::new() }
    }

    /// Says what values are made of: then they can be shown, and may change from one release of the program to the next
    /// as [`millstream_state_store::schema::Upgrade`] allows. The values must encode exactly that.
    #[must_use]
    pub fn described(mut self, form: Form) -> Self {
        self.descriptor.form = form;
        self
    }

    /// Says which columns map keys are made of, so that they can be shown. They are encoded as keys are
    /// ([`millstream_state_store::key::encode_keys`]).
    #[must_use]
    pub fn with_map_key(mut self, columns: Vec<KeyColumn>) -> Self {
        self.descriptor.map_key = columns;
        self
    }

    /// Lets entries expire, each some time after it was last written; `None`: never. From then on they are absent.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Option<Ttl>) -> Self {
        self.descriptor.ttl = ttl;
        self.set.set_ttl(ttl);
        self
    }

    // ---- naming

    /// Names all entries of the key of each row of a batch. The maps come from [`MapState::take_maps`]. It costs a step for
    /// each entry that is resident, and all of them stay until the batch was processed: who wants few of many entries names
    /// them with [`MapState::name_entries`].
    pub fn name_maps(&mut self, keys: &KeyBuffer) {
        let rows = self.set.name_maps(keys);
        self.rows.push_back(rows);
    }

    /// The maps of the oldest batch that was named by [`MapState::name_maps`] and not taken; an error when they are not
    /// resident.
    pub fn take_maps(&mut self) -> Result<MapRows> {
        let rows = self
            .rows
            .pop_front()
            .ok_or_else(|| Error::internal("a batch is processed whose keys were not named").code(9110))?;
        if rows.distinct.iter().any(|m| !self.set.is_whole(*m)) {
            return Err(Error::internal("a batch is processed before its keys are resident").code(9111));
        }
        Ok(rows)
    }

    /// Names one entry for each row of a batch: that of the row's key under its map key. The slots come from
    /// [`MapState::take_rows`]. There must be as many map keys as keys.
    pub fn name_entries(&mut self, keys: &KeyBuffer, map_keys: &KeyBuffer) -> Result<()> {
        self.set.name_entries(keys, map_keys)
    }

    /// The slots of the oldest batch that was named by [`MapState::name_entries`] and not taken; an error when they are not
    /// resident.
    pub fn take_rows(&mut self) -> Result<Rows> {
        self.set.take_rows()
    }

    /// Gives the lists of a batch back, to be used again.
    pub fn give_back(&mut self, rows: Rows) {
        self.set.give_back(rows);
    }

    /// Names all entries of one key, by its stable hash and encoding.
    pub fn name_map(&mut self, hash: u64, key: &[u8]) -> MapId {
        self.set.count_named(1);
        self.set.name_map(hash, key)
    }

    /// Names one entry: `key` and `map_key` are each a stable hash and an encoding.
    pub fn name_entry(&mut self, key: (u64, &[u8]), map_key: (u64, &[u8])) -> SlotId {
        self.set.count_named(1);
        self.set.name_entry(key, map_key)
    }

    /// Whether all entries of a map are known.
    #[must_use]
    pub fn is_whole(&self, map: MapId) -> bool {
        self.set.is_whole(map)
    }

    /// Whether the value of a slot is known.
    #[must_use]
    pub fn is_resident(&self, slot: SlotId) -> bool {
        self.set.is_resident(slot.0)
    }

    // ---- a map

    /// The value under a map key; `None` when there is none. An error when neither the map nor this entry was named.
    pub fn get(&self, map: MapId, map_key: &[u8]) -> Result<Option<&V>> {
        Ok(self.set.known_entry(map, map_key)?.and_then(|i| self.set.get(i)))
    }

    /// Whether there is a value under a map key. Errors as [`MapState::get`].
    pub fn contains(&self, map: MapId, map_key: &[u8]) -> Result<bool> {
        Ok(self.get(map, map_key)?.is_some())
    }

    /// Sets the value under a map key, whatever was there: nothing need have been read.
    pub fn put(&mut self, map: MapId, map_key: &[u8], value: V) {
        let i = self.set.entry_to_write(map, map_key);
        self.set.put(i, value);
    }

    /// Changes the value under a map key, or first makes it by `init`. Errors as [`MapState::get`].
    pub fn update<R>(
        &mut self,
        map: MapId,
        map_key: &[u8],
        init: impl FnOnce() -> V,
        change: impl FnOnce(&mut V) -> R,
    ) -> Result<R> {
        let i = self.set.entry_to_change(map, map_key)?;
        Ok(self.set.update(i, init, change))
    }

    /// Removes what is under a map key: nothing need have been read. What there was, as far as that is known.
    pub fn remove(&mut self, map: MapId, map_key: &[u8]) -> Option<V> {
        self.set.remove_entry(map, map_key)
    }

    /// Map keys and values, in the order of the map keys' bytes. An error when the map was not named.
    pub fn iter(&self, map: MapId) -> Result<impl ExactSizeIterator<Item = (&[u8], &V)>> {
        let entries = self.set.entries_of(map)?;
        // Each of them has a value, or it would not be there.
        let values: Vec<(&[u8], &V)> =
            entries.into_iter().filter_map(|i| Some((&self.set.slots[i].key[..], self.set.get(i)?))).collect();
        Ok(values.into_iter())
    }

    /// Whether the map has no entry. An error when it was not named.
    pub fn is_empty(&self, map: MapId) -> Result<bool> {
        Ok(!self.set.has_entries(map)?)
    }

    /// Removes all entries. An error when the map was not named.
    pub fn clear(&mut self, map: MapId) -> Result<()> {
        self.set.clear_map(map)
    }

    /// The encoded key of a map.
    #[must_use]
    pub fn key(&self, map: MapId) -> &[u8] {
        self.set.map_place(map).1
    }

    /// The stable hash of the key of a map.
    #[must_use]
    pub fn hash(&self, map: MapId) -> u64 {
        self.set.map_place(map).0
    }

    /// The key group of a map.
    #[must_use]
    pub fn group(&self, map: MapId) -> KeyGroup {
        KeyGroup::of_hash(self.hash(map))
    }

    // ---- an entry that was named

    /// The value of an entry; `None` when there is none.
    #[inline]
    #[must_use]
    pub fn get_entry(&self, slot: SlotId) -> Option<&V> {
        self.set.get(slot.0)
    }

    /// Changes the value of an entry, or first makes it by `init`.
    #[inline]
    pub fn update_entry<R>(&mut self, slot: SlotId, init: impl FnOnce() -> V, change: impl FnOnce(&mut V) -> R) -> R {
        self.set.update(slot.0, init, change)
    }

    /// Sets the value of an entry.
    pub fn put_entry(&mut self, slot: SlotId, value: V) {
        self.set.put(slot.0, value);
    }

    /// Removes an entry.
    pub fn remove_entry(&mut self, slot: SlotId) -> Option<V> {
        self.set.delete(slot.0)
    }

    /// The map that an entry belongs to.
    #[must_use]
    pub fn map_of(&self, slot: SlotId) -> MapId {
        self.set.map_of(slot.0)
    }

    /// The encoded map key of an entry.
    #[must_use]
    pub fn map_key(&self, slot: SlotId) -> &[u8] {
        &self.set.slots[slot.0].key
    }
}

impl<V: StateValue> StateSet for MapState<V> {
    by_working_set!();

    fn take_missing_maps(&mut self, into: &mut Vec<Bytes>) {
        self.set.take_maps(into);
    }

    fn install_map(&mut self, prefix: &[u8], entries: &[(Bytes, Bytes)]) -> Result<()> {
        self.set.install_map(prefix, entries)
    }

    fn take_scan(&mut self) -> Option<TimeScan> {
        None
    }

    fn install_scan(&mut self, _entries: &[(Bytes, Bytes)], _last: bool) -> Result<()> {
        Err(Error::internal("a map state was handed a stretch of time").code(9112))
    }

    fn retain(&mut self, ranges: &KeyGroupRanges, gained: bool) {
        self.set.retain(ranges, gained);
    }
}
