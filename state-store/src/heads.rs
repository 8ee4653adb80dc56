//! Sorting keys by their heads: the first 16 bytes behind what all of them begin with. (A key group and a number, or most of
//! a name: 8 bytes would leave most keys of a key group alike.)
//!
//! A comparison of two numbers alone lets the sort go without branches; what differs later is sorted behind that, where there is any.

use std::cmp::Ordering;

/// The first 8 bytes as a number that compares as they do, as far as they differ.
#[inline]
pub(crate) fn head_of(suffix: &[u8]) -> u64 {
    match suffix.first_chunk::<8>() {
        Some(head) => u64::from_be_bytes(*head),
        None => {
            let mut head = [0; 8];
            head[..suffix.len()].copy_from_slice(suffix);
            u64::from_be_bytes(head)
        }
    }
}

/// Bytes that both begin with.
#[inline]
pub(crate) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

/// A key to be sorted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Headed {
    /// High and low half: a `u128` would take 8 bytes more.
    head: [u64; 2],
    /// Which key it is.
    pub(crate) number: u32,
}

impl Headed {
    #[inline]
    fn of(number: u32, suffix: &[u8]) -> Self {
        let rest = suffix.get(8..).unwrap_or_default();
        Self { head: [head_of(suffix), head_of(rest)], number }
    }

    #[inline]
    fn head(&self) -> u128 {
        u128::from(self.head[0]) << 64 | u128::from(self.head[1])
    }
}

/// `count` keys in order, of which `key` gives the one with a number; those that are alike as `alike` says of their numbers.
pub(crate) fn sorted<'k>(
    count: u32,
    key: impl Fn(u32) -> &'k [u8],
    alike: impl Fn(u32, u32) -> Ordering,
) -> Vec<Headed> {
    if count == 0 {
        return Vec::new();
    }
    let first = key(0);
    let shared = (1..count).fold(first.len(), |n, i| common_prefix(&first[..n], key(i)));
    let mut keys: Vec<Headed> = (0..count).map(|i| Headed::of(i, &key(i)[shared..])).collect();
    keys.sort_unstable_by_key(Headed::head);
    for same in keys.chunk_by_mut(|a, b| a.head == b.head).filter(|same| same.len() > 1) {
        same.sort_unstable_by(|a, b| key(a.number).cmp(key(b.number)).then_with(|| alike(a.number, b.number)));
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_in_their_order() {
        let words =
            ["", "a", "ab", "abc", "a\0", "a\0\0", "abcdefgh", "abcdefghi", "abcdefghj", "abcdefgh\0", "b", "\u{ff}"];
        let long: Vec<String> = words.iter().map(|w| format!("what all of them begin with {w}")).collect();
        for set in [words.map(str::to_owned).to_vec(), long] {
            // Each three times, far apart.
            let keys: Vec<&[u8]> = (0..3 * set.len()).map(|i| set[i * 5 % set.len()].as_bytes()).collect();
            let mut expected: Vec<u32> = (0..keys.len() as u32).collect();
            expected.sort_by(|a, b| keys[*a as usize].cmp(keys[*b as usize]).then(b.cmp(a)));
            let found = sorted(keys.len() as u32, |i| keys[i as usize], |a, b| b.cmp(&a));
            assert_eq!(found.iter().map(|k| k.number).collect::<Vec<_>>(), expected);
        }
        assert!(sorted(0, |_| &[], |a, b| a.cmp(&b)).is_empty());
    }
}
