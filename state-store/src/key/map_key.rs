//! Where an entry of a map state stands: behind the key that it belongs to, which is written so that its end can be seen
//! without its columns. So all entries of a key are one stretch of the tree, the **prefix** of the key begins each of
//! them and nothing else, and a filter can hold it.
//!
//! A key is written as it is but for its zeros, which end it, too. A stretch of `n` zeros becomes pieces of two bytes, `00`
//! and then:
//!
//! | byte | zeros | then |
//! |---|---|---|
//! | 0 to 126 | so many | the key ends |
//! | 128 | 127 | more of the stretch, a byte that is no zero, or the end |
//! | 129 to 254 | 255 less it | a byte that is no zero |
//!
//! 127 and 255 do not occur. A key that does not end in a zero ends in `00 00`. Of two stretches the longer one is the
//! lesser key, unless the shorter one ends its key: so the bytes compare as the keys do, and no key's begin another's. Numbers
//! are mostly zeros and become shorter; a text, which ends in two zeros, keeps its length.

use millstream_common::{KeyGroup, StateId};

use super::store_key::{point_key, split_point_key};

/// The greatest second byte of a piece that ends the key: this many zeros.
const LAST_END: u8 = 126;
/// So many zeros, and it does not end the stretch.
const WHOLE: u8 = 128;
/// Zeros of such a piece.
const WHOLE_ZEROS: usize = 127;

/// `[state: u16 BE][key group: u16 BE][key, ended][map key]`; replaces what `into` holds.
#[inline]
pub fn map_key(state: StateId, group: KeyGroup, key: &[u8], map_key: &[u8], into: &mut Vec<u8>) {
    map_prefix(state, group, key, into);
    into.extend_from_slice(map_key);
}

/// What all entries of a key begin with, and no others: `[state][key group][key, ended]`. Replaces what `into` holds.
pub fn map_prefix(state: StateId, group: KeyGroup, key: &[u8], into: &mut Vec<u8>) {
    point_key(state, group, &[], into);
    into.reserve(key.len() + 2);
    let mut rest = key;
    loop {
        let plain = rest.iter().position(|b| *b == 0).unwrap_or(rest.len());
        into.extend_from_slice(&rest[..plain]);
        let zeros = rest[plain..].iter().position(|b| *b != 0).unwrap_or(rest.len() - plain);
        rest = &rest[plain + zeros..];
        (0..zeros / WHOLE_ZEROS).for_each(|_| into.extend_from_slice(&[0, WHOLE]));
        // Less than a whole piece is left.
        let left = (zeros % WHOLE_ZEROS) as u8;
        if rest.is_empty() {
            into.extend_from_slice(&[0, left]);
            return;
        }
        if left > 0 {
            into.extend_from_slice(&[0, u8::MAX - left]);
        }
    }
}

/// The exclusive upper bound of the entries of a prefix.
#[must_use]
pub fn map_prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    // It ends in 126 at most.
    if let Some(last) = end.last_mut() {
        *last = last.saturating_add(1);
    }
    end
}

/// Whether `bound` is [`map_prefix_end`] of `prefix`.
pub(crate) fn is_map_prefix_end(bound: &[u8], prefix: &[u8]) -> bool {
    match (bound.split_last(), prefix.split_last()) {
        (Some((end, bound)), Some((last, prefix))) => *end == last.saturating_add(1) && bound == prefix,
        _ => false,
    }
}

/// How many bytes at the start of a store key of a map state are its prefix; `None` when it has none, as the bound of a
/// scan may have.
#[inline]
#[must_use]
pub fn map_prefix_len(store_key: &[u8]) -> Option<usize> {
    let mut at = super::POINT_KEY_AT;
    loop {
        at += store_key.get(at..)?.iter().position(|b| *b == 0)? + 2;
        if *store_key.get(at - 1)? <= LAST_END {
            return Some(at);
        }
    }
}

/// The parts of a store key of a map state: state, key group and map key; the key goes into `key`, in the place of what that
/// holds. `None` when it is none.
pub fn split_map_key<'k>(store_key: &'k [u8], key: &mut Vec<u8>) -> Option<(StateId, KeyGroup, &'k [u8])> {
    let (state, group, mut rest) = split_point_key(store_key)?;
    key.clear();
    loop {
        let plain = rest.iter().position(|b| *b == 0)?;
        key.extend_from_slice(&rest[..plain]);
        let second = *rest.get(plain + 1)?;
        rest = &rest[plain + 2..];
        match second {
            0..=LAST_END => {
                key.resize(key.len() + usize::from(second), 0);
                return Some((state, group, rest));
            }
            WHOLE => key.resize(key.len() + WHOLE_ZEROS, 0),
            // The rest of a stretch is one piece, so that a key has one form.
            129..=254 if rest.first().is_some_and(|b| *b != 0) => {
                key.resize(key.len() + usize::from(u8::MAX - second), 0);
            }
            _ => return None,
        }
    }
}
