//! Between the engine's own types and the messages of [`millstream_proto`], where more than one module needs it.
//!
//! What comes from a message is checked: a range that ends behind the last key group or holds none is refused as
//! corrupt, so that no part behind this border has to doubt it.

use millstream_common::{
    AssignmentId, Epoch, Error, ErrorKind, KEY_GROUPS, KeyGroupRange, KeyGroupRanges, Result, SubtaskIndex,
};
use millstream_proto::{control, version};

use crate::element::Assignment;
use crate::sink::{Committable, KeptObject};

/// As a message.
#[must_use]
pub fn range_to_proto(range: &KeyGroupRange) -> version::KeyGroupRange {
    version::KeyGroupRange { start: range.start, end: range.end }
}

/// From a message. Corrupt when it holds no key group or one that does not exist.
pub fn range_from_proto(range: &version::KeyGroupRange) -> Result<KeyGroupRange> {
    if range.start >= range.end || range.end > KEY_GROUPS {
        let what = format!("[{}, {}) is no range of key groups", range.start, range.end);
        return Err(Error::corrupt(what).code(4120));
    }
    Ok(KeyGroupRange::new(range.start, range.end))
}

/// As messages, sorted.
#[must_use]
pub fn ranges_to_proto(ranges: &KeyGroupRanges) -> Vec<version::KeyGroupRange> {
    ranges.iter().map(range_to_proto).collect()
}

/// From messages, which may stand in any order and overlap.
pub fn ranges_from_proto(ranges: &[version::KeyGroupRange]) -> Result<KeyGroupRanges> {
    ranges.iter().map(range_from_proto).collect()
}

/// As a message.
#[must_use]
pub fn assignment_to_proto(assignment: &Assignment) -> version::Assignment {
    let subtasks =
        assignment.ranges.iter().map(|r| version::SubtaskRanges { ranges: ranges_to_proto(r) }).collect::<Vec<_>>();
    version::Assignment { id: assignment.id.0, subtasks }
}

/// From a message. Corrupt when two subtasks own the same key group.
pub fn assignment_from_proto(assignment: &version::Assignment) -> Result<Assignment> {
    let ranges = assignment.subtasks.iter().map(|s| ranges_from_proto(&s.ranges)).collect::<Result<Vec<_>>>()?;
    let mut all: Vec<KeyGroupRange> = ranges.iter().flat_map(|r| r.iter().copied()).collect();
    all.sort_unstable();
    if let Some(pair) = all.windows(2).find(|pair| pair[1].start < pair[0].end) {
        let what = format!("assignment {} gives key group {} to two subtasks", assignment.id, pair[1].start);
        return Err(Error::corrupt(what).code(4121));
    }
    Ok(Assignment { id: AssignmentId(assignment.id), ranges })
}

/// As a message.
#[must_use]
pub fn committable_to_proto(c: &Committable) -> version::Committable {
    version::Committable {
        sink_uid: c.sink_uid.clone(),
        epoch: c.epoch.0,
        subtask: c.subtask.0,
        sequence: c.sequence,
        payload: c.payload.clone(),
        rows: c.rows,
        kept: c.kept.iter().map(|k| version::KeptObject { object: k.object.clone(), bytes: k.bytes }).collect(),
    }
}

/// From a message.
#[must_use]
pub fn committable_from_proto(c: &version::Committable) -> Committable {
    Committable {
        sink_uid: c.sink_uid.clone(),
        epoch: Epoch(c.epoch),
        subtask: SubtaskIndex(c.subtask),
        sequence: c.sequence,
        payload: c.payload.clone(),
        rows: c.rows,
        kept: c.kept.iter().map(|k| KeptObject { object: k.object.clone(), bytes: k.bytes }).collect(),
    }
}

/// As a message.
#[must_use]
pub fn failure_to_proto(e: &Error) -> control::Failure {
    // The causes are in the text already.
    let mut what = e.to_string();
    let tail = [e.place(), e.advice()].iter().filter(|t| !t.is_empty()).map(|t| t.len()).sum::<usize>();
    if tail > 0 {
        let at = if e.place().is_empty() { String::new() } else { format!("; at {}", e.place()) };
        let next = if e.advice().is_empty() { String::new() } else { format!("; {}", e.advice()) };
        what.truncate(what.len() - at.len() - next.len());
    }
    control::Failure {
        kind: e.kind_number(),
        code: u32::from(e.number()),
        what,
        place: e.place().to_owned(),
        next: e.advice().to_owned(),
    }
}

/// From a message.
#[must_use]
pub fn failure_from_proto(f: &control::Failure) -> Error {
    Error::new(ErrorKind::from_number(f.kind), f.code as u16, f.what.clone()).at(f.place.clone()).next(f.next.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(ranges: &[&[(u32, u32)]]) -> version::Assignment {
        let range = |&(start, end): &(u32, u32)| version::KeyGroupRange { start, end };
        let subtasks =
            ranges.iter().map(|r| version::SubtaskRanges { ranges: r.iter().map(range).collect() }).collect();
        version::Assignment { id: 7, subtasks }
    }

    #[test]
    fn an_assignment_goes_there_and_back() {
        let there = message(&[&[(0, 100), (200, 65_536)], &[(100, 200)], &[]]);
        let here = assignment_from_proto(&there).unwrap();
        assert_eq!((here.id, here.parallelism()), (AssignmentId(7), 3));
        assert_eq!(here.ranges[0].len(), 100 + 65_336);
        assert_eq!(assignment_to_proto(&here), there);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for bad in [&[(5, 5)][..], &[(6, 5)], &[(0, 65_537)], &[(u32::MAX, u32::MAX)]] {
            assert_eq!(assignment_from_proto(&message(&[bad])).unwrap_err().number(), 4120);
        }
        let twice = assignment_from_proto(&message(&[&[(0, 10)], &[(20, 30)], &[(9, 12)]])).unwrap_err();
        assert!(twice.to_string().contains("key group 9 to two subtasks"), "{twice}");
    }
}
