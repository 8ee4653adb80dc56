//! Where a key stands in the tree: state first, so that a scan of one state is contiguous; time before the key group
//! for time-ordered states, so that "everything due" is one forward scan.

use millstream_common::{KeyGroup, StateId};

use crate::Layout;

/// Where the key begins in a point key.
pub const POINT_KEY_AT: usize = 4;
/// Where the key begins in a timed key.
pub const TIMED_KEY_AT: usize = 12;

const SIGN: u64 = 1 << 63;

/// `[state: u16 BE][key group: u16 BE][key]`; replaces what `into` holds.
#[inline]
pub fn point_key(state: StateId, group: KeyGroup, key: &[u8], into: &mut Vec<u8>) {
    into.clear();
    into.reserve(POINT_KEY_AT + key.len());
    into.extend_from_slice(&state.0.to_be_bytes());
    into.extend_from_slice(&group.0.to_be_bytes());
    into.extend_from_slice(key);
}

/// `[state: u16 BE][time: i64 BE, sign bit flipped][key group: u16 BE][key]`; replaces what `into` holds.
#[inline]
pub fn timed_key(state: StateId, time_ms: i64, group: KeyGroup, key: &[u8], into: &mut Vec<u8>) {
    timed_start(state, time_ms, into);
    into.reserve(2 + key.len());
    into.extend_from_slice(&group.0.to_be_bytes());
    into.extend_from_slice(key);
}

/// The least possible timed key of a state at `time_ms`: the bound of a scan. Replaces what `into` holds.
pub fn timed_start(state: StateId, time_ms: i64, into: &mut Vec<u8>) {
    into.clear();
    into.extend_from_slice(&state.0.to_be_bytes());
    into.extend_from_slice(&(time_ms as u64 ^ SIGN).to_be_bytes());
}

/// The least possible key of a state: the inclusive lower bound of a scan of all of it.
#[must_use]
pub fn state_start(state: StateId) -> Vec<u8> {
    state.0.to_be_bytes().to_vec()
}

/// The exclusive upper bound of a scan of all of a state.
#[must_use]
pub fn state_end(state: StateId) -> Vec<u8> {
    // The tree never allots the greatest number.
    state.0.saturating_add(1).to_be_bytes().to_vec()
}

/// The state that a store key belongs to; `None` when it is too short to be one.
#[inline]
#[must_use]
pub fn state_of(store_key: &[u8]) -> Option<StateId> {
    Some(StateId(u16::from_be_bytes(store_key.first_chunk::<2>().copied()?)))
}

/// The time that a timed key, or the bound of a scan, begins with; `None` when it is too short.
#[must_use]
pub fn time_of(timed_key: &[u8]) -> Option<i64> {
    let time = timed_key.get(2..)?.first_chunk::<8>()?;
    Some((u64::from_be_bytes(*time) ^ SIGN) as i64)
}

/// The parts of a point key; `None` when it is too short.
#[inline]
#[must_use]
pub fn split_point_key(store_key: &[u8]) -> Option<(StateId, KeyGroup, &[u8])> {
    let (state, rest) = store_key.split_first_chunk::<2>()?;
    let (group, key) = rest.split_first_chunk::<2>()?;
    Some((StateId(u16::from_be_bytes(*state)), KeyGroup(u16::from_be_bytes(*group)), key))
}

/// The parts of a timed key; `None` when it is too short.
#[inline]
#[must_use]
pub fn split_timed_key(store_key: &[u8]) -> Option<(StateId, i64, KeyGroup, &[u8])> {
    let (state, rest) = store_key.split_first_chunk::<2>()?;
    let (time, rest) = rest.split_first_chunk::<8>()?;
    let (group, key) = rest.split_first_chunk::<2>()?;
    let time_ms = (u64::from_be_bytes(*time) ^ SIGN) as i64;
    Some((StateId(u16::from_be_bytes(*state)), time_ms, KeyGroup(u16::from_be_bytes(*group)), key))
}

/// The key group (and the time, if it has one) that a store key of this layout names; `None` when it is too short.
#[inline]
#[must_use]
pub fn key_group(store_key: &[u8], layout: Layout) -> Option<(KeyGroup, Option<i64>)> {
    match layout {
        Layout::Point | Layout::Map => split_point_key(store_key).map(|(_, group, _)| (group, None)),
        Layout::TimeOrdered => split_timed_key(store_key).map(|(_, time, group, _)| (group, Some(time))),
    }
}
