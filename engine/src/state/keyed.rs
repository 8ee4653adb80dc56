//! State by key: one value a key.

use bytes::Bytes;
use millstream_common::{KeyGroup, KeyGroupRanges, Result};
use millstream_state_store::key::KeyBuffer;
use millstream_state_store::schema::{Form, Ttl};

use super::working_set::{NO_TIME, WorkingSet};
use super::{Rows, SlotId, StateDescriptor, StateLayout, StateSet, StateValue, TimeScan};

/// One value per key, paged in by batch.
///
/// ```
/// use millstream_common::Result;
/// use millstream_engine::operator::{Collector, KeyedBatch, Operator};
/// use millstream_engine::state::{KeyedState, StateSet};
///
/// /// Counts rows by key.
/// struct Counter {
///     counts: KeyedState<i64>,
/// }
///
/// impl Operator for Counter {
///     fn name_reads(&mut self, _input: usize, batch: &KeyedBatch) -> Result<()> {
///         self.counts.name_batch(&batch.keys);
///         Ok(())
///     }
///
///     fn process(&mut self, _input: usize, _batch: &KeyedBatch, _out: &mut Collector) -> Result<()> {
///         let rows = self.counts.take_rows()?; // a slot a row, in the order in which batches were named
///         for &slot in &rows.slots {
///             self.counts.update(slot, || 0, |count| *count += 1);
///         }
///         self.counts.give_back(rows);
///         Ok(())
///     }
///
///     fn states(&mut self) -> Vec<&mut dyn StateSet> {
///         vec![&mut self.counts]
///     }
/// }
///
/// let mut counter = Counter { counts: KeyedState::new("counts", "i64 count") };
/// assert_eq!(counter.states().len(), 1);
/// ```
pub struct KeyedState<V> {
    descriptor: StateDescriptor,
    set: WorkingSet<V>,
    opened: bool,
}

impl<V: StateValue> KeyedState<V> {
    /// A state without entries. `name` is unique in its operator; `value_schema` says how values are encoded.
    #[must_use]
    pub fn new(name: &str, value_schema: &str) -> Self {
        let descriptor = StateDescriptor::new(name, StateLayout::Point, value_schema);
        Self { descriptor, set: WorkingSet::new(false), opened: false }
    }

    /// Says what values are made of: then they can be shown, and may change from one release of the program to the next
    /// as [`millstream_state_store::schema::Upgrade`] allows. The values must encode exactly that.
    #[must_use]
    pub fn described(mut self, form: Form) -> Self {
        self.descriptor.form = form;
        self
    }

    /// Lets values expire some time after they were last written; `None`: never. From then on they read as absent.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Option<Ttl>) -> Self {
        self.descriptor.ttl = ttl;
        self.set.set_ttl(ttl);
        self
    }

    /// Names what a batch will read: the key of each row. Its slots come from [`KeyedState::take_rows`].
    pub fn name_batch(&mut self, keys: &KeyBuffer) {
        self.set.name_batch(keys, |_| NO_TIME);
    }

    /// The slots of the oldest batch that was named and not taken; an error when they are not resident.
    pub fn take_rows(&mut self) -> Result<Rows> {
        self.set.take_rows()
    }

    /// Gives the lists of a batch back, to be used again.
    pub fn give_back(&mut self, rows: Rows) {
        self.set.give_back(rows);
    }

    /// Names one key, by its stable hash and encoding.
    pub fn name(&mut self, hash: u64, key: &[u8]) -> SlotId {
        self.set.count_named(1);
        self.set.name(hash, NO_TIME, key)
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

    /// Deletes the value.
    pub fn remove(&mut self, slot: SlotId) -> Option<V> {
        self.set.delete(slot.0)
    }

    /// The encoded key of a slot.
    #[must_use]
    pub fn key(&self, slot: SlotId) -> &[u8] {
        &self.set.slots[slot.0].key
    }

    /// The stable hash of a slot's key.
    #[must_use]
    pub fn hash(&self, slot: SlotId) -> u64 {
        self.set.slots[slot.0].hash
    }

    /// The key group of a slot.
    #[must_use]
    pub fn group(&self, slot: SlotId) -> KeyGroup {
        self.set.slots[slot.0].group()
    }
}

impl<V: StateValue> StateSet for KeyedState<V> {
    by_working_set!();

    fn take_scan(&mut self) -> Option<TimeScan> {
        None
    }

    fn install_scan(&mut self, entries: &[(Bytes, Bytes)], _last: bool) -> Result<()> {
        entries.iter().try_for_each(|(key, value)| self.set.install_scanned(key, value))
    }

    fn retain(&mut self, ranges: &KeyGroupRanges, gained: bool) {
        self.set.retain(ranges, gained);
    }
}
