//! A run: what the version says of one section, and which of its key groups are live.

use millstream_cache::ObjectId;
use millstream_common::{Epoch, Error, KEY_GROUPS, KeyGroupRange, KeyGroupRanges, Result, StateId, TaskId};
use millstream_proto::version as proto;

use crate::section::{Interval, Sequence, StateStats};

/// A section of an object, as the version lists it. Its identity is ([`Run::object`], [`Run::offset`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The task whose entries it holds.
    pub task: TaskId,
    /// The object's name below `data/`.
    pub object: String,
    /// Where the section begins in the object.
    pub offset: u64,
    /// Bytes of the section.
    pub length: u64,
    /// Where its meta part begins in the object.
    pub meta_offset: u64,
    /// Bytes of the meta part.
    pub meta_length: u32,
    /// Bytes of the directory at its end.
    pub directory_length: u32,
    /// CRC32C of the section.
    pub checksum: u32,
    /// The key groups of it that are live.
    pub clip: KeyGroupRanges,
    /// The flushes that it holds.
    pub interval: Interval,
    /// How many entries.
    pub entries: u64,
    /// The states in it, by id.
    pub states: Vec<StateStats>,
    /// Bytes of the whole object.
    pub object_bytes: u64,
    /// The job below whose prefix the object lies; empty: the job's own.
    pub origin: String,
    /// The heat list that was written with it.
    pub heat: Option<HeatPart>,
}

/// Where a heat list stands in the object of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeatPart {
    /// In the object.
    pub offset: u64,
    /// Bytes.
    pub length: u32,
    /// CRC32C of them.
    pub checksum: u32,
}

impl Run {
    /// What tells it from every other run.
    #[must_use]
    pub fn identity(&self) -> (&str, u64) {
        (&self.object, self.offset)
    }

    /// The object's name in the caches.
    #[must_use]
    pub fn object_id(&self) -> ObjectId {
        ObjectId::of(&self.object)
    }

    /// The same section with other live key groups.
    #[must_use]
    pub fn with_clip(&self, clip: KeyGroupRanges) -> Self {
        Self { clip, ..self.clone() }
    }

    /// The object's path below the prefix of the job that it belongs to.
    #[must_use]
    pub fn path(&self) -> String {
        object_path(&self.object)
    }

    /// Whether it may hold entries of `state`; with a time in [from, until], both included, for time-ordered ones.
    #[must_use]
    pub fn may_hold(&self, state: StateId, times: Option<(i64, i64)>) -> bool {
        self.states.binary_search_by_key(&state, |s| s.state).is_ok_and(|i| match (self.states[i].times, times) {
            (Some((min, max)), Some((from, until))) => min <= until && max >= from,
            _ => true,
        })
    }

    /// From the version record's form.
    pub fn from_proto(run: &proto::Run) -> Result<Self> {
        let bad = |why: &str| bad_run(&run.object, run.offset, why);
        let times = |s: &proto::RunState| (s.time_min <= s.time_max).then_some((s.time_min, s.time_max));
        let states = run
            .states
            .iter()
            .map(|s| Ok(StateStats { state: StateId(small(s.state_id)?), times: times(s), entries: s.entries }))
            .collect::<Result<Vec<_>>>()?;
        if !states.is_sorted_by(|a, b| a.state < b.state) {
            return Err(bad("its states are not sorted"));
        }
        let sequence = |epoch, flush| Sequence { epoch: Epoch(epoch), flush };
        let interval =
            Interval { min: sequence(run.epoch_min, run.flush_min), max: sequence(run.epoch_max, run.flush_max) };
        if interval.min > interval.max {
            return Err(bad("its interval is empty"));
        }
        let end = run.offset.checked_add(run.length).filter(|end| *end <= run.object_bytes);
        let meta_end = run.meta_offset.checked_add(run.meta_length.into());
        let directory = run.directory_length > 0 && run.directory_length <= run.meta_length;
        if end.is_none() || meta_end != end || run.meta_offset < run.offset || !directory {
            return Err(bad("its parts do not lie in its object"));
        }
        let heat = run.heat.map(|h| HeatPart { offset: h.offset, length: h.length, checksum: h.checksum });
        let inside = |h: &HeatPart| h.offset.checked_add(h.length.into()).is_some_and(|end| end <= run.object_bytes);
        if heat.is_some_and(|h| !inside(&h)) {
            return Err(bad("its heat list does not lie in its object"));
        }
        Ok(Self {
            task: TaskId(small(run.task_id)?),
            object: run.object.clone(),
            offset: run.offset,
            length: run.length,
            meta_offset: run.meta_offset,
            meta_length: run.meta_length,
            directory_length: run.directory_length,
            checksum: run.checksum,
            clip: ranges_from_proto(&run.clip)?,
            interval,
            entries: run.entries,
            states,
            object_bytes: run.object_bytes,
            origin: run.origin.clone(),
            heat,
        })
    }

    /// In the version record's form.
    #[must_use]
    pub fn to_proto(&self) -> proto::Run {
        let state = |s: &StateStats| {
            // No times: a least one above the greatest.
            let (time_min, time_max) = s.times.unwrap_or((1, 0));
            proto::RunState { state_id: s.state.0.into(), time_min, time_max, entries: s.entries }
        };
        proto::Run {
            task_id: self.task.0.into(),
            object: self.object.clone(),
            offset: self.offset,
            length: self.length,
            meta_offset: self.meta_offset,
            meta_length: self.meta_length,
            directory_length: self.directory_length,
            checksum: self.checksum,
            clip: ranges_to_proto(&self.clip),
            epoch_min: self.interval.min.epoch.0,
            flush_min: self.interval.min.flush,
            epoch_max: self.interval.max.epoch.0,
            flush_max: self.interval.max.flush,
            entries: self.entries,
            states: self.states.iter().map(state).collect(),
            object_bytes: self.object_bytes,
            origin: self.origin.clone(),
            heat: self.heat.map(|h| proto::HeatPart { offset: h.offset, length: h.length, checksum: h.checksum }),
        }
    }
}

/// The path of a state object below the job's prefix.
#[must_use]
pub fn object_path(object: &str) -> String {
    format!("data/{object}")
}

/// Key-group ranges from the version record's form.
pub fn ranges_from_proto(ranges: &[proto::KeyGroupRange]) -> Result<KeyGroupRanges> {
    let ranges = ranges.iter().map(|r| {
        if r.start < r.end && r.end <= KEY_GROUPS {
            Ok(KeyGroupRange::new(r.start, r.end))
        } else {
            Err(bad_record(&format!("[{}, {}) is not a range of key groups", r.start, r.end)))
        }
    });
    ranges.collect()
}

/// Key-group ranges in the version record's form.
#[must_use]
pub fn ranges_to_proto(ranges: &KeyGroupRanges) -> Vec<proto::KeyGroupRange> {
    ranges.iter().map(|r| proto::KeyGroupRange { start: r.start, end: r.end }).collect()
}

pub(crate) fn small(id: u32) -> Result<u16> {
    u16::try_from(id).map_err(|_| bad_record(&format!("{id} is too large for an id")))
}

pub(crate) fn bad_record(why: &str) -> Error {
    Error::corrupt(format!("a version record makes no sense: {why}")).code(4005)
}

fn bad_run(object: &str, offset: u64, why: &str) -> Error {
    bad_record(&format!("the run in {object} at {offset}: {why}"))
}
