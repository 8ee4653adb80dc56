//! The keys of a map state: what is known of all entries of a key together.
//!
//! Each entry of a map is a slot of the working set as any other; the map of a key has a **head** here. A slot's time is the
//! number of its head, its hash has the key group of the head's key and for the rest the map key's hash, and its key is the
//! map key. So naming, writing, flushing, eviction and TTL are those of all slots.
//!
//! A map is **whole** when all entries of it that the store holds are resident: an entry that is not there is then absent,
//! and nothing is asked for it. It becomes whole by a scan of its key's prefix, which is asked for when the map is named, or
//! is from its beginning in a state that is complete; it is whole no longer when an entry is evicted. While a scan is on its
//! way no slot of the map is dropped, or the scan would bring back what is no more. Whoever named a map has its entries
//! pinned, those that come later, too.
//!
//! A head lives as long as it has slots, is pinned, or waits for a scan; one that was found empty stays until memory is
//! wanted. Nothing here reads or writes the store.

use bytes::Bytes;
use millstream_common::hash::stable_hash;
use millstream_common::{Error, KeyGroup, KeyGroupRanges, Result};
use millstream_state_store::key::{KeyBuffer, map_key, map_prefix, split_map_key};

use super::slab::{PENDING, STORED, SlotKey};
use super::table::SlotTable;
use super::working_set::{NO_TIME, WorkingSet, tag_of};
use super::{MapId, MapRows, SlotId, StateValue};

/// The bits of a hash that say the key group.
const GROUP_BITS: u64 = 0xffff << 48;
/// What a head takes beside itself: its place in the table, when that is half taken.
const BESIDE_HEAD: usize = 16;

/// A key, and what is resident of its entries.
#[derive(Debug, Default)]
struct Head {
    /// The stable hash of the key.
    hash: u64,
    key: SlotKey,
    /// Slots with a value.
    entries: Vec<u32>,
    /// Slots, with a value or without.
    slots: usize,
    /// The stamp of the last naming of it or of one of its entries.
    named: u64,
    /// The stamp of the last naming of all of it.
    named_whole: u64,
    whole: bool,
    /// A scan of it is asked for, or will be.
    loading: bool,
    live: bool,
}

impl Head {
    fn heap_bytes(&self) -> usize {
        let key = if self.key.spilled() { self.key.capacity() } else { 0 };
        key + self.entries.capacity() * size_of::<u32>()
    }

    fn group(&self) -> KeyGroup {
        KeyGroup::of_hash(self.hash)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Maps {
    heads: Vec<Head>,
    free: Vec<u32>,
    table: SlotTable,
    live: usize,
    heap_bytes: usize,
    /// Heads whose scan is to be asked for.
    wanted: Vec<u32>,
    /// Where the next sweep goes on.
    hand: usize,
}

impl Maps {
    fn find(&self, hash: u64, key: &[u8]) -> Option<u32> {
        self.table.find(tag_of(hash, NO_TIME), |h| {
            let head = &self.heads[h as usize];
            head.hash == hash && head.key.as_slice() == key
        })
    }

    fn add(&mut self, hash: u64, key: &[u8], whole: bool) -> u32 {
        let head = Head { hash, key: SlotKey::from_slice(key), whole, live: true, ..Head::default() };
        self.heap_bytes += head.heap_bytes();
        self.live += 1;
        let h = match self.free.pop() {
            Some(h) => {
                self.heads[h as usize] = head;
                h
            }
            None => {
                self.heads.push(head);
                (self.heads.len() - 1) as u32
            }
        };
        self.table.insert(tag_of(hash, NO_TIME), h);
        h
    }

    fn drop_head(&mut self, h: u32) {
        let head = std::mem::take(&mut self.heads[h as usize]);
        self.heap_bytes -= head.heap_bytes();
        self.live -= 1;
        self.table.remove(tag_of(head.hash, NO_TIME), h);
        self.free.push(h);
    }

    /// Takes a slot that has got a value; its place among those of its map, and the stamp up to which all of these are pinned.
    pub(super) fn attach(&mut self, h: i64, i: u32) -> (u32, u64) {
        let head = &mut self.heads[h as usize];
        self.heap_bytes -= head.heap_bytes();
        head.entries.push(i);
        self.heap_bytes += head.heap_bytes();
        ((head.entries.len() - 1) as u32, head.named_whole)
    }

    /// Lets go of a slot that loses its value; the slot that has its place now, if another one has.
    pub(super) fn detach(&mut self, h: i64, position: u32) -> Option<u32> {
        let entries = &mut self.heads[h as usize].entries;
        entries.swap_remove(position as usize);
        entries.get(position as usize).copied()
    }

    /// A slot with a value is evicted: the store knows more than is resident, from now on.
    pub(super) fn lose(&mut self, h: i64) {
        self.heads[h as usize].whole = false;
    }

    /// A slot is gone; its head goes with the last one.
    pub(super) fn drop_slot(&mut self, h: i64, released: u64) {
        let head = &mut self.heads[h as usize];
        head.slots -= 1;
        if head.slots == 0 && head.named <= released && !head.loading {
            self.drop_head(h as u32);
        }
    }

    pub(super) fn is_loading(&self, h: i64) -> bool {
        self.heads.get(h as usize).is_some_and(|head| head.loading)
    }

    /// Drops heads without slots that nobody has named, some at a time.
    pub(super) fn sweep(&mut self, released: u64, most: usize) {
        for _ in 0..self.heads.len().min(most) {
            if self.hand >= self.heads.len() {
                self.hand = 0;
            }
            let head = &self.heads[self.hand];
            if head.live && head.slots == 0 && head.named <= released && !head.loading {
                self.drop_head(self.hand as u32);
            }
            self.hand += 1;
        }
    }

    /// Forgets the maps outside `ranges`; their slots are gone.
    pub(super) fn retain(&mut self, ranges: &KeyGroupRanges) {
        for h in 0..self.heads.len() {
            if self.heads[h].live && !ranges.contains(self.heads[h].group()) {
                self.drop_head(h as u32);
            }
        }
        let heads = &self.heads;
        self.wanted.retain(|&h| heads[h as usize].live);
    }

    /// Free heads are not counted: they were once taken, within the budget, and are taken again first.
    pub(super) fn memory_bytes(&self) -> usize {
        self.live * (size_of::<Head>() + BESIDE_HEAD) + self.heap_bytes
    }

    /// How many heads are live; of these, the sums over their slots and their values, for checks.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize, usize) {
        let live = || self.heads.iter().filter(|h| h.live);
        let heap: usize = live().map(Head::heap_bytes).sum();
        assert_eq!((live().count(), heap, self.table.len()), (self.live, self.heap_bytes, self.live));
        (self.live, live().map(|h| h.slots).sum(), live().map(|h| h.entries.len()).sum())
    }
}

/// The hash of an entry's slot: the group of its key, and else the map key's.
#[inline]
fn entry_hash(key_hash: u64, map_key_hash: u64) -> u64 {
    key_hash & GROUP_BITS | map_key_hash >> 16
}

fn not_named() -> Error {
    Error::internal("entries of a map are used that were not named").code(9115)
}

impl<V: StateValue> WorkingSet<V> {
    /// A working set of a map state.
    pub(super) fn mapped() -> Self {
        let mut set = Self::new(false);
        set.mapped = true;
        set.slots.keep_times();
        set
    }

    // ---- naming

    fn head_of(&mut self, hash: u64, key: &[u8]) -> u32 {
        // All or nothing is known of a state by key.
        let complete = self.known_until == i64::MAX;
        self.maps.find(hash, key).unwrap_or_else(|| self.maps.add(hash, key, complete))
    }

    /// Names all entries of a key; they are pinned until the group is released.
    pub(super) fn name_map(&mut self, hash: u64, key: &[u8]) -> MapId {
        let h = self.head_of(hash, key);
        let head = &mut self.maps.heads[h as usize];
        head.named = self.stamp;
        if head.named_whole != self.stamp {
            head.named_whole = self.stamp;
            for &i in &head.entries {
                self.slots[i].name(self.stamp);
            }
        }
        if !head.whole && !head.loading {
            head.loading = true;
            self.maps.wanted.push(h);
        }
        MapId(h)
    }

    /// Names the map of each row.
    pub(super) fn name_maps(&mut self, keys: &KeyBuffer) -> MapRows {
        self.stamp += 1;
        let mut rows = MapRows::default();
        for (row, &hash) in keys.hashes().iter().enumerate() {
            let known = self.maps.find(hash, keys.key(row)).map(|h| self.maps.heads[h as usize].named_whole);
            let map = self.name_map(hash, keys.key(row));
            if known != Some(self.stamp) {
                rows.distinct.push(map);
            }
            rows.maps.push(map);
        }
        self.named += rows.distinct.len() as u64;
        rows
    }

    /// Names an entry, pinned until the group is released.
    pub(super) fn name_entry(&mut self, (hash, key): (u64, &[u8]), (map_hash, map_key): (u64, &[u8])) -> SlotId {
        let h = self.head_of(hash, key);
        self.maps.heads[h as usize].named = self.stamp;
        let entry = entry_hash(hash, map_hash);
        let i = self.find(entry, h.into(), map_key).unwrap_or_else(|| {
            let i = self.add_entry(h, entry, map_key);
            if self.slots[i].is(PENDING) {
                self.missing.push(i);
            }
            i
        });
        self.slots[i].name(self.stamp);
        SlotId(i)
    }

    /// Names an entry for each row; the slots wait for [`WorkingSet::take_rows`].
    pub(super) fn name_entries(&mut self, keys: &KeyBuffer, map_keys: &KeyBuffer) -> Result<()> {
        if keys.len() != map_keys.len() {
            return Err(Error::internal("a batch has another number of keys than of map keys").code(9115));
        }
        self.stamp += 1;
        let mut rows = self.spare.pop().unwrap_or_default();
        for row in 0..keys.len() {
            let (key, map_key) = ((keys.hash(row), keys.key(row)), (map_keys.hash(row), map_keys.key(row)));
            let known = self.find_entry(key, map_key).map(|i| self.slots[i].named);
            let slot = self.name_entry(key, map_key);
            if known != Some(self.stamp) {
                rows.distinct.push(slot);
            }
            rows.slots.push(slot);
        }
        self.named += rows.distinct.len() as u64;
        self.rows.push_back(rows);
        Ok(())
    }

    fn find_entry(&self, (hash, key): (u64, &[u8]), (map_hash, map_key): (u64, &[u8])) -> Option<u32> {
        self.find(entry_hash(hash, map_hash), self.maps.find(hash, key)?.into(), map_key)
    }

    /// Makes a slot for an entry that has none. Unless the map is whole, what it has is not known.
    fn add_entry(&mut self, h: u32, entry: u64, map_key: &[u8]) -> u32 {
        let i = self.add(entry, h.into(), map_key);
        let head = &mut self.maps.heads[h as usize];
        head.slots += 1;
        if !head.whole {
            self.slots[i].flags |= STORED | PENDING;
            self.pending += 1;
        }
        i
    }

    // ---- reads

    /// The prefixes of the maps that are to be scanned.
    pub(super) fn take_maps(&mut self, into: &mut Vec<Bytes>) {
        for h in std::mem::take(&mut self.maps.wanted) {
            let head = &self.maps.heads[h as usize];
            if head.live && head.loading {
                let mut prefix = Vec::new();
                map_prefix(self.id, head.group(), &head.key, &mut prefix);
                into.push(prefix.into());
            }
        }
    }

    /// All entries that the store holds under a prefix: the map is whole from now on.
    pub(super) fn install_map(&mut self, prefix: &[u8], entries: &[(Bytes, Bytes)]) -> Result<()> {
        let mut key = std::mem::take(&mut self.key_buffer);
        let head = self.split_entry(prefix, &mut key).map(|_| self.maps.find(stable_hash(&key), &key));
        self.key_buffer = key;
        let Some(h) = head?.filter(|h| self.maps.is_loading((*h).into())) else { return Ok(()) };
        let hash = self.maps.heads[h as usize].hash;
        for (store_key, value) in entries {
            let map_key = store_key.strip_prefix(prefix).ok_or_else(|| self.not_own())?;
            let entry = entry_hash(hash, stable_hash(map_key));
            match self.find(entry, h.into(), map_key) {
                Some(i) if self.slots[i].is(PENDING) => self.resolve(i, Some(value))?,
                // It was written since.
                Some(_) => {}
                None => {
                    let i = self.add_entry(h, entry, map_key);
                    self.slots[i].use_once();
                    self.resolve(i, Some(value))?;
                }
            }
        }
        let head = &mut self.maps.heads[h as usize];
        (head.loading, head.whole) = (false, true);
        Ok(())
    }

    /// What the store answered for one entry.
    pub(super) fn install_entry(&mut self, store_key: &[u8], value: Option<&[u8]>) -> Result<()> {
        let mut key = std::mem::take(&mut self.key_buffer);
        let found = self
            .split_entry(store_key, &mut key)
            .map(|map_key| self.find_entry((stable_hash(&key), &key), (stable_hash(map_key), map_key)));
        self.key_buffer = key;
        match found? {
            Some(i) if self.slots[i].is(PENDING) => self.resolve(i, value),
            _ => Ok(()),
        }
    }

    /// The map key of a store key; the key goes into `key`.
    fn split_entry<'k>(&self, store_key: &'k [u8], key: &mut Vec<u8>) -> Result<&'k [u8]> {
        match split_map_key(store_key, key) {
            Some((id, _, map_key)) if id == self.id => Ok(map_key),
            _ => Err(self.not_own()),
        }
    }

    pub(super) fn entry_store_key(&self, i: u32, into: &mut Vec<u8>) {
        let head = &self.maps.heads[self.slots.time(i) as usize];
        map_key(self.id, head.group(), &head.key, &self.slots[i].key, into);
    }

    // ---- entries of a map that was named

    /// Whether all entries are resident.
    pub(super) fn is_whole(&self, map: MapId) -> bool {
        self.maps.heads[map.0 as usize].whole
    }

    pub(super) fn map_place(&self, map: MapId) -> (u64, &[u8]) {
        let head = &self.maps.heads[map.0 as usize];
        (head.hash, &head.key)
    }

    fn entry_of(&self, map: MapId, map_key: &[u8]) -> (u64, Option<u32>) {
        let entry = entry_hash(self.maps.heads[map.0 as usize].hash, stable_hash(map_key));
        (entry, self.find(entry, map.0.into(), map_key))
    }

    /// The slot of an entry, if it has one; an error when it is not known what it has.
    pub(super) fn known_entry(&self, map: MapId, map_key: &[u8]) -> Result<Option<u32>> {
        let found = self.entry_of(map, map_key).1;
        match found.filter(|i| !self.slots[*i].is(PENDING)) {
            Some(i) => Ok(Some(i)),
            // Of a whole map, what is asked of the store by itself is not there.
            None if self.is_whole(map) => Ok(None),
            None => Err(not_named()),
        }
    }

    /// The slot of an entry that is going to be changed by what it is; an error when that is not known.
    pub(super) fn entry_to_change(&mut self, map: MapId, map_key: &[u8]) -> Result<u32> {
        self.known_entry(map, map_key)?;
        let i = self.entry_to_write(map, map_key);
        if self.slots[i].is(PENDING) {
            self.resolve(i, None)?;
        }
        Ok(i)
    }

    /// The slot of an entry that is going to be written, whatever it is.
    pub(super) fn entry_to_write(&mut self, map: MapId, map_key: &[u8]) -> u32 {
        let (entry, found) = self.entry_of(map, map_key);
        found.unwrap_or_else(|| self.add_entry(map.0, entry, map_key))
    }

    /// Deletes an entry, without reading it. What there was, if that is known.
    pub(super) fn remove_entry(&mut self, map: MapId, map_key: &[u8]) -> Option<V> {
        let (entry, found) = self.entry_of(map, map_key);
        match found {
            None if self.is_whole(map) => None,
            found => {
                let i = found.unwrap_or_else(|| self.add_entry(map.0, entry, map_key));
                self.delete(i)
            }
        }
    }

    /// The slots of all entries that count, by map key; an error when the map is not whole.
    pub(super) fn entries_of(&self, map: MapId) -> Result<Vec<u32>> {
        if !self.is_whole(map) {
            return Err(not_named());
        }
        let entries = self.maps.heads[map.0 as usize].entries.iter().copied();
        let mut entries: Vec<u32> = entries.filter(|&i| self.get(i).is_some()).collect();
        entries.sort_unstable_by(|a, b| self.slots[*a].key.cmp(&self.slots[*b].key));
        Ok(entries)
    }

    /// Deletes all entries; an error when the map is not whole.
    pub(super) fn clear_map(&mut self, map: MapId) -> Result<()> {
        if !self.is_whole(map) {
            return Err(not_named());
        }
        // From the end of the list, so that nothing moves.
        while let Some(&i) = self.maps.heads[map.0 as usize].entries.last() {
            self.delete(i);
        }
        Ok(())
    }

    pub(super) fn map_of(&self, i: u32) -> MapId {
        MapId(self.slots.time(i) as u32)
    }

    /// Whether a map has an entry that counts; an error when it is not whole.
    pub(super) fn has_entries(&self, map: MapId) -> Result<bool> {
        if !self.is_whole(map) {
            return Err(not_named());
        }
        Ok(self.maps.heads[map.0 as usize].entries.iter().any(|&i| self.get(i).is_some()))
    }
}
