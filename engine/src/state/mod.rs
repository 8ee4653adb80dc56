//! Keyed state of operators: working sets of decoded values, paged in by batch.
//!
//! [`StateSet`] is what the runtime sees of a state: it collects what operators named, hands over what was read,
//! freezes and encodes what changed, evicts what is clean. The typed states that operators use implement it.

use bytes::Bytes;
use millstream_common::{Error, KeyGroupRanges, Result, StateId};
use millstream_state_store::schema::{Form, KeyColumn, Schema, Ttl};
use millstream_state_store::section::SectionWriter;

use crate::element::TimestampMs;
use crate::operator::SubtaskTime;

/// The part of [`StateSet`] that is alike for every state with a descriptor and a working set.
macro_rules! by_working_set {
    () => {
        fn descriptor(&self) -> &$crate::state::StateDescriptor {
            &self.descriptor
        }

        fn set_history(&mut self, history: &[millstream_state_store::schema::Schema]) -> millstream_common::Result<()> {
            self.set.stored.set_history(history)
        }

        fn set_clock(&mut self, time: &$crate::operator::SubtaskTime, processing_ms: i64) {
            self.set.stored.set_clock(time, processing_ms);
        }

        fn open(&mut self, id: millstream_common::StateId, ranges: millstream_common::KeyGroupRanges, complete: bool) {
            self.set.open(id, ranges, complete, !self.opened);
            self.opened = true;
        }

        fn end_group(&mut self) {
            self.set.end_group();
        }

        fn release_group(&mut self) {
            self.set.release_group();
        }

        fn take_named(&mut self) -> u64 {
            self.set.take_named()
        }

        fn take_missing(&mut self, into: &mut Vec<bytes::Bytes>) {
            self.set.take_missing(into);
        }

        fn install(&mut self, key: &[u8], value: Option<&[u8]>) -> millstream_common::Result<()> {
            self.set.install(key, value)
        }

        fn freeze(&mut self) -> usize {
            self.set.freeze()
        }

        fn encode_frozen(
            &mut self,
            max_entries: usize,
            section: &mut millstream_state_store::section::SectionWriter,
        ) -> millstream_common::Result<bool> {
            Ok(self.set.encode_frozen(max_entries, section))
        }

        fn flushed(&mut self) {
            self.set.flushed();
        }

        fn dirty_bytes(&self) -> u64 {
            self.set.dirty_bytes()
        }

        fn memory_bytes(&self) -> u64 {
            self.set.memory_bytes()
        }

        fn evict(&mut self, target_bytes: u64) {
            self.set.evict(target_bytes);
        }
    };
}

mod evict;
#[cfg(test)]
mod evict_tests;
mod flush;
mod keyed;
mod map;
#[cfg(test)]
mod map_tests;
mod maps;
#[cfg(test)]
mod model_tests;
mod partial;
mod slab;
mod stored;
mod table;
mod timed;
#[cfg(test)]
mod ttl_tests;
pub mod value;
mod working_set;

pub use keyed::KeyedState;
pub use map::{MapId, MapRows, MapState};
pub use partial::MergeFn;
pub use timed::TimedState;
pub use value::StateValue;

/// Where an entry stands in a state. Valid while the entry is pinned: from naming until the group is released, or until
/// the entry is expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(u32);

/// The slots of a batch that was named.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// A slot a row.
    pub slots: Vec<SlotId>,
    /// Each slot once, in the order of its first row.
    pub distinct: Vec<SlotId>,
}

/// What a state is, before it has an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDescriptor {
    /// Unique in its operator and stable over releases of the job.
    pub name: String,
    /// How its entries are ordered.
    pub layout: StateLayout,
    /// How values are encoded, in words, for example `i64 count, i64 sum`.
    pub value_schema: String,
    /// Of a map state: the columns of its map keys; empty when nobody says.
    pub map_key: Vec<KeyColumn>,
    /// What values are made of. [`Form::Opaque`] when only the words tell: then other words are refused.
    pub form: Form,
    /// How long values count after they were last written; `None`: for ever, or as long as their time says.
    pub ttl: Option<Ttl>,
    /// The store's merge operator, by its name; empty: all values are written whole.
    pub merge_operator: String,
}

impl StateDescriptor {
    /// A state of which only words tell. Without words there are no values.
    #[must_use]
    pub fn new(name: &str, layout: StateLayout, value_schema: &str) -> Self {
        let form = if value_schema.is_empty() { Form::Nothing } else { Form::Opaque(value_schema.to_owned()) };
        Self {
            name: name.to_owned(),
            layout,
            value_schema: value_schema.to_owned(),
            map_key: Vec::new(),
            form,
            ttl: None,
            merge_operator: String::new(),
        }
    }

    /// The schema of its entries under a key of these columns.
    #[must_use]
    pub fn schema(&self, key: Vec<KeyColumn>) -> Schema {
        Schema { key, map_key: self.map_key.clone(), value: self.form.clone(), ttl: self.ttl }
    }
}

/// How the entries of a state are ordered in the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateLayout {
    /// `[state][key group][key]`: read by key.
    Point,
    /// `[state][time][key group][key]`: read by key and time, and scanned by time ("everything due").
    TimeOrdered,
    /// `[state][key group][key, ended][map key]`: read by key and map key, or all entries of a key.
    Map,
}

/// A state that the runtime drives. All keys are whole store keys (`millstream_state_store::key`), state id included.
///
/// Pins: what a batch names stays resident, with everything written to it since, from [`StateSet::end_group`] until
/// [`StateSet::release_group`]; groups are released in the order in which they were ended.
pub trait StateSet: Send {
    /// What it is.
    fn descriptor(&self) -> &StateDescriptor;

    /// The schemas that the stored entries may have, oldest first; the last one is that of the descriptor. Called before
    /// [`StateSet::open`], or never when there was only that one.
    fn set_history(&mut self, history: &[Schema]) -> Result<()>;

    /// What time it is: up to where the key groups have fired, and the clock of the machine in milliseconds since 1970.
    /// Called before every batch and every `advance`, so that nothing expires amid one. Only states with a TTL listen.
    fn set_clock(&mut self, time: &SubtaskTime, processing_ms: i64);

    /// Called once before anything else, and again when a rescale changes the ranges (`retain` follows then).
    /// `complete`: the store holds nothing of this state that is not resident, so an absent key is absent.
    fn open(&mut self, id: StateId, ranges: KeyGroupRanges, complete: bool);

    // ---- reads

    /// Ends the names of one batch (or of one step of `advance`): what was named since the last call is one group.
    fn end_group(&mut self);
    /// Releases the oldest group: its batch was processed.
    fn release_group(&mut self);
    /// How many keys were named since the last call: the distinct ones of each batch.
    fn take_named(&mut self) -> u64;
    /// Moves out the keys that were named, are not resident and were not asked for before.
    fn take_missing(&mut self, into: &mut Vec<Bytes>);
    /// What the store answered for a key of `take_missing`. Ignored when the key was written meanwhile.
    fn install(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<()>;
    /// Moves out the prefixes of keys all of whose entries were named, are not all resident and were not asked for before.
    /// Only of map states.
    fn take_missing_maps(&mut self, _into: &mut Vec<Bytes>) {}
    /// What the store holds under a prefix of `take_missing_maps`: whole store keys and values, all of them. Entries that
    /// are resident, or were written meanwhile, are ignored.
    fn install_map(&mut self, _prefix: &[u8], _entries: &[(Bytes, Bytes)]) -> Result<()> {
        Err(Error::internal("a state that has no maps was handed one").code(9112))
    }
    /// A time range that `advance` needs in whole; `None` when it needs none. Only for time-ordered states.
    fn take_scan(&mut self) -> Option<TimeScan>;
    /// What the store holds in that range, piece by piece; `last` with the final piece. Entries that are resident are
    /// ignored.
    fn install_scan(&mut self, entries: &[(Bytes, Bytes)], last: bool) -> Result<()>;
    /// The scan on its way reaches no farther than this, which lies within what was asked for: the rest would have been too much at
    /// once. Called before it is installed.
    fn shorten_scan(&mut self, _until: TimestampMs) {}
    /// The scan that was asked for, or is on its way, brings nothing; it is asked for again if it is still needed.
    fn abandon_scan(&mut self) {}

    // ---- slices of key groups

    /// From here on `advance` is about these key groups alone, and each key group has fired up to the time that it has in
    /// `fired`; until it is told of others or, with `None`, of all again. No scan is on its way.
    fn set_slice(&mut self, _slice: Option<(&KeyGroupRanges, &SubtaskTime)>) {}
    /// The slice has these key groups only, all of them its own; a scan on its way brings no others.
    fn narrow_slice(&mut self, _groups: &KeyGroupRanges) {}
    /// Up to where an operator can fire with what is resident.
    fn fires_until(&self) -> TimestampMs {
        TimestampMs::MAX
    }
    /// Whether firing up to a time needs entries of later times.
    fn looks_beyond(&self) -> bool {
        false
    }
    /// Bytes of what is resident and due, while a scan for more of it is asked for; it looks at each of them.
    fn due_bytes(&self) -> u64 {
        0
    }

    // ---- writes

    /// Closes the current flush: all that is dirty now belongs to it; how many entries that are at most. O(1), whatever an
    /// earlier flush has left to be encoded. Every `freeze` makes a flush, also when nothing is dirty, and is followed by
    /// its own `encode_frozen` and `flushed`.
    fn freeze(&mut self) -> usize;
    /// Encodes up to `max_entries` frozen entries, and about 1 MiB, into `section`; true when none is left of the oldest flush that is not
    /// encoded in whole (the next call begins with the one after it). An entry that is written while frozen is encoded
    /// first (into a buffer that this call drains).
    fn encode_frozen(&mut self, max_entries: usize, section: &mut SectionWriter) -> Result<bool>;
    /// The section of the oldest encoded flush can be read from the store: its entries are clean.
    fn flushed(&mut self);

    // ---- memory

    /// Bytes that cannot be evicted before a flush.
    fn dirty_bytes(&self) -> u64;
    /// All bytes held.
    fn memory_bytes(&self) -> u64;
    /// Evicts clean, unpinned entries until at most `target_bytes` are held or none is left, but some thousand at a time.
    fn evict(&mut self, target_bytes: u64);

    // ---- rescale

    /// Forgets every entry outside `ranges` (they were encoded before). Keys of gained ranges are in the store: the
    /// state is no longer complete when `gained`.
    fn retain(&mut self, ranges: &KeyGroupRanges, gained: bool);
}

/// A piece of event time to scan: entries with `after < time <= until`, of the key groups in `ranges`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimeScan {
    /// Exclusive.
    pub after: TimestampMs,
    /// Inclusive.
    pub until: TimestampMs,
}
