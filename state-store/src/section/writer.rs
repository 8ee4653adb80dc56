//! Collects the entries of a flush in an arena and sorts them when it is encoded.

use millstream_common::prefetch::prefetch;
use millstream_common::{Error, KeyGroupRanges, Result, TaskId};

use super::{EncodedSection, Interval, SectionBuilder, SectionOptions};
use crate::Layouts;
use crate::entry::{EntryRef, Expiry, ends_chain};
use crate::heads::{Headed, sorted};

const CHUNK_BYTES: usize = 1 << 20;
const FIRST_CHUNK_BYTES: usize = 16 << 10;
/// Memory is asked for so many entries ahead.
const AHEAD: usize = 8;

/// Collects the entries of one task for one (epoch, flush), unsorted, in an arena. A later write to a key comes after
/// the earlier ones.
#[derive(Clone)]
pub struct SectionWriter {
    task: TaskId,
    chunks: Vec<Vec<u8>>,
    slots: Vec<Slot>,
    chunk_bytes: u64,
    operands: usize,
}

/// Where a key and, right behind it, its encoded entry stand.
#[derive(Clone, Copy)]
struct Slot {
    chunk: u32,
    at: u32,
    key_len: u32,
    entry_len: u32,
}

impl SectionWriter {
    /// An empty section of `task`.
    #[must_use]
    pub fn new(task: TaskId) -> Self {
        Self { task, chunks: Vec::new(), slots: Vec::new(), chunk_bytes: 0, operands: 0 }
    }

    /// An empty section of `task` with room for the places of so many entries: the list of places does not move while it
    /// grows.
    #[must_use]
    pub fn with_capacity(task: TaskId, entries: usize) -> Self {
        Self { slots: Vec::with_capacity(entries), ..Self::new(task) }
    }

    /// The key has this value until `expiry`.
    pub fn put(&mut self, key: &[u8], value: &[u8], expiry: Expiry) {
        self.add(key, &EntryRef::Put { value, expiry });
    }

    /// The key has no value.
    pub fn delete(&mut self, key: &[u8]) {
        self.add(key, &EntryRef::Delete);
    }

    /// The key's value changes by `operand`, written at `written_ms` of the clock that the state expires by.
    pub fn merge(&mut self, key: &[u8], operand: &[u8], written_ms: i64, expiry: Expiry) {
        self.operands += 1;
        self.add(key, &EntryRef::Merge { operand, written_ms, expiry });
    }

    /// Appends an entry.
    pub fn add(&mut self, key: &[u8], entry: &EntryRef<'_>) {
        // Head, expiry and time of the write have at most 17 bytes.
        let payload = match entry {
            EntryRef::Put { value, .. } => value.len(),
            EntryRef::Delete => 0,
            EntryRef::Merge { operand, .. } => operand.len(),
        };
        let chunk = self.chunk_with_room(key.len() + payload + 17);
        let chunk_index = chunk as u32;
        let chunk = &mut self.chunks[chunk];
        let at = chunk.len();
        chunk.extend_from_slice(key);
        let entry_at = chunk.len();
        entry.encode(chunk);
        self.slots.push(Slot {
            chunk: chunk_index,
            at: at as u32,
            key_len: (entry_at - at) as u32,
            entry_len: (chunk.len() - entry_at) as u32,
        });
    }

    fn chunk_with_room(&mut self, bytes: usize) -> usize {
        if self.chunks.last().is_none_or(|c| c.capacity() - c.len() < bytes) {
            let usual = if self.chunks.is_empty() { FIRST_CHUNK_BYTES } else { CHUNK_BYTES };
            let capacity = usual.max(bytes);
            self.chunk_bytes += capacity as u64;
            self.chunks.push(Vec::with_capacity(capacity));
        }
        self.chunks.len() - 1
    }

    /// Whether nothing was added.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// How many entries were added.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.slots.len()
    }

    /// How many of them are merge operands.
    #[must_use]
    pub fn operands(&self) -> usize {
        self.operands
    }

    /// The task whose entries it holds.
    #[must_use]
    pub fn task(&self) -> TaskId {
        self.task
    }

    /// Bytes of memory that it holds. `encode` takes up to 24 bytes an entry more while it sorts, and the output.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.chunk_bytes + (self.slots.capacity() * size_of::<Slot>()) as u64
    }

    /// Sorts, cuts blocks, compresses, filters, checksums. CPU work of some hundred nanoseconds an entry: for
    /// `Lane::Background`. The section is live for `ranges` and holds the flush `interval`.
    pub fn encode(
        self,
        options: &SectionOptions,
        layouts: &Layouts,
        ranges: KeyGroupRanges,
        interval: Interval,
    ) -> Result<EncodedSection> {
        if self.slots.len() > u32::MAX as usize {
            return Err(Error::internal("a section has more than 4 G entries").code(9206));
        }
        let mut builder = SectionBuilder::new(self.task, options, layouts);
        let order = self.sorted();
        let mut done: Option<&[u8]> = None;
        for (i, item) in order.iter().enumerate() {
            // In the order of keys every slot and every entry lies somewhere else.
            if let Some(later) = order.get(i + 2 * AHEAD) {
                prefetch(&self.slots, later.number as usize);
            }
            if let Some(later) = order.get(i + AHEAD) {
                self.prefetch(&self.slots[later.number as usize]);
            }
            let slot = &self.slots[item.number as usize];
            let key = self.key(slot);
            if done == Some(key) {
                continue; // something newer hides it
            }
            let entry = self.entry(slot);
            builder.add(key, entry)?;
            done = ends_chain(entry).then_some(key);
        }
        Ok(builder.finish(ranges, interval))
    }

    fn prefetch(&self, slot: &Slot) {
        let (chunk, at) = (&self.chunks[slot.chunk as usize], slot.at as usize);
        prefetch(chunk, at);
        prefetch(chunk, at + 64);
        prefetch(chunk, at + (slot.key_len + slot.entry_len) as usize);
    }

    fn key(&self, slot: &Slot) -> &[u8] {
        &self.chunks[slot.chunk as usize][slot.at as usize..][..slot.key_len as usize]
    }

    fn entry(&self, slot: &Slot) -> &[u8] {
        let at = (slot.at + slot.key_len) as usize;
        &self.chunks[slot.chunk as usize][at..][..slot.entry_len as usize]
    }

    /// All slots by key, those of one key newest first.
    fn sorted(&self) -> Vec<Headed> {
        sorted(self.slots.len() as u32, |i| self.key(&self.slots[i as usize]), |a, b| b.cmp(&a))
    }
}
