//! Sorting keys by their heads: the first 16 bytes behind what all of them begin with. (A key group and a number, or most of
//! a name: 8 bytes would leave most keys of a key group alike.)
//!
//! A comparison of two numbers alone lets the sort go without branches; what differs later is sorted behind that, where there is any.
//! A batch of keys is dealt into buckets before, by where their heads lie between the least and the greatest.

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

/// The most keys that are dealt into buckets: they are copied for it. More, as a flush has, would double its memory.
const DEALT_MAX: usize = 1 << 16;
/// Fewer are sorted as fast at once.
const DEALT_MIN: usize = 128;

/// Deals keys into about half as many buckets as there are keys. Hashed keys spread evenly; of those that do not, many share a
/// bucket, and the sort of that takes most of the time then, as it would without buckets.
fn sort_by_head(keys: &mut Vec<Headed>) {
    let bounds = keys.iter().fold((u64::MAX, 0), |(min, max), k| (k.head[0].min(min), k.head[0].max(max)));
    let (min, range) = (bounds.0, bounds.1.saturating_sub(bounds.0));
    if range == 0 || !(DEALT_MIN..=DEALT_MAX).contains(&keys.len()) {
        keys.sort_unstable_by_key(Headed::head);
        return;
    }
    let buckets = keys.len().next_power_of_two() / 2;
    let (up, down) = (range.leading_zeros(), 64 - buckets.trailing_zeros());
    let bucket_of = |k: &Headed| (((k.head[0] - min) << up) >> down) as usize;
    // Where each bucket begins; behind the dealing, where it ends.
    let mut places = vec![0u32; buckets + 1];
    keys.iter().for_each(|k| places[bucket_of(k) + 1] += 1);
    (1..=buckets).for_each(|b| places[b] += places[b - 1]);
    let mut dealt = vec![Headed { head: [0; 2], number: 0 }; keys.len()];
    for k in keys.iter() {
        let place = &mut places[bucket_of(k)];
        dealt[*place as usize] = *k;
        *place += 1;
    }
    let mut start = 0;
    for &end in &places[..buckets] {
        let end = end as usize;
        if end - start > 1 {
            dealt[start..end].sort_unstable_by_key(Headed::head);
        }
        start = end;
    }
    *keys = dealt;
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
    sort_by_head(&mut keys);
    for same in keys.chunk_by_mut(|a, b| a.head == b.head).filter(|same| same.len() > 1) {
        same.sort_unstable_by(|a, b| key(a.number).cmp(key(b.number)).then_with(|| alike(a.number, b.number)));
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_keys_come_in_their_order() {
        let spread = |i: u64| i.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        // Even; all in one bucket but for two; alike but for what no head has; few that differ.
        let even = |i: u64| spread(i).to_be_bytes().repeat(3);
        let narrow = |i: u64| if i < 2 { vec![0xff * i as u8; 8] } else { [[1; 8], spread(i).to_be_bytes()].concat() };
        let deep = |i: u64| [&[7; 20][..], &spread(i).to_be_bytes()].concat();
        let few = |i: u64| (i % 5).to_be_bytes().to_vec();
        let shapes: [&dyn Fn(u64) -> Vec<u8>; 4] = [&even, &narrow, &deep, &few];
        for (shape, count) in shapes.iter().flat_map(|s| [2, 127, 128, 1000, 4096, 70_000].map(|n| (s, n))) {
            let keys: Vec<Vec<u8>> = (0..count).map(shape).collect();
            let mut expected: Vec<u32> = (0..count as u32).collect();
            expected.sort_by(|a, b| keys[*a as usize].cmp(&keys[*b as usize]).then(a.cmp(b)));
            let found = sorted(count as u32, |i| &keys[i as usize], |a, b| a.cmp(&b));
            assert!(found.iter().map(|k| k.number).eq(expected), "{count} keys");
        }
    }

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
