//! Key groups: the top 16 bits of the stable hash of an encoded key. There are always 65,536; nobody chooses a
//! maximum parallelism. A subtask owns a set of half-open ranges of them.

use std::fmt;

/// How many key groups there are.
pub const KEY_GROUPS: u32 = 65_536;

/// One key group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyGroup(pub u16);

impl KeyGroup {
    /// The key group of a key with this stable hash.
    #[inline]
    #[must_use]
    pub fn of_hash(hash: u64) -> Self {
        Self((hash >> 48) as u16)
    }
}

/// A half-open range of key groups: `start <= g < end`, with `end <= 65,536`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyGroupRange {
    /// The first key group.
    pub start: u32,
    /// One past the last.
    pub end: u32,
}

impl KeyGroupRange {
    /// All of them.
    pub const ALL: Self = Self { start: 0, end: KEY_GROUPS };

    /// `start <= g < end`. Empty when `start >= end`.
    #[must_use]
    pub fn new(start: u32, end: u32) -> Self {
        debug_assert!(end <= KEY_GROUPS);
        Self { start, end }
    }

    /// How many key groups it holds.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.end.saturating_sub(self.start)
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// Whether `group` lies in it.
    #[inline]
    #[must_use]
    pub fn contains(&self, group: KeyGroup) -> bool {
        let g = u32::from(group.0);
        self.start <= g && g < self.end
    }

    /// What both hold; empty when they do not meet.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        let start = self.start.max(other.start);
        Self { start, end: self.end.min(other.end).max(start) }
    }
}

impl fmt::Display for KeyGroupRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}, {})", self.start, self.end)
    }
}

/// A set of key groups as sorted, disjoint, non-adjacent, non-empty ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyGroupRanges(Vec<KeyGroupRange>);

impl KeyGroupRanges {
    /// The empty set.
    #[must_use]
    pub fn empty() -> Self {
        Self(Vec::new())
    }

    /// All key groups.
    #[must_use]
    pub fn all() -> Self {
        Self(vec![KeyGroupRange::ALL])
    }

    /// The union of `ranges`, which may overlap and stand in any order.
    #[must_use]
    pub fn new(ranges: impl IntoIterator<Item = KeyGroupRange>) -> Self {
        let mut sorted: Vec<_> = ranges.into_iter().filter(|r| !r.is_empty()).collect();
        sorted.sort_unstable();
        let mut out: Vec<KeyGroupRange> = Vec::with_capacity(sorted.len());
        for r in sorted {
            match out.last_mut() {
                Some(last) if r.start <= last.end => last.end = last.end.max(r.end),
                _ => out.push(r),
            }
        }
        Self(out)
    }

    /// The ranges, sorted.
    #[must_use]
    pub fn as_slice(&self) -> &[KeyGroupRange] {
        &self.0
    }

    /// The ranges, sorted.
    pub fn iter(&self) -> std::slice::Iter<'_, KeyGroupRange> {
        self.0.iter()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many key groups it holds.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.0.iter().map(KeyGroupRange::len).sum()
    }

    /// Whether `group` is one of it.
    #[inline]
    #[must_use]
    pub fn contains(&self, group: KeyGroup) -> bool {
        match self.0.as_slice() {
            [] => false,
            [one] => one.contains(group),
            many => {
                let i = many.partition_point(|r| r.end <= u32::from(group.0));
                many.get(i).is_some_and(|r| r.contains(group))
            }
        }
    }

    /// Those of it that come before `end`.
    #[must_use]
    pub fn before(&self, end: KeyGroup) -> Self {
        let end = u32::from(end.0);
        let ranges = self.0.iter().take_while(|r| r.start < end);
        Self(ranges.map(|r| KeyGroupRange { start: r.start, end: r.end.min(end) }).collect())
    }

    /// The first `count` of it; all when there are no more.
    #[must_use]
    pub fn first(&self, count: u32) -> Self {
        let mut left = count;
        let ranges = self.0.iter().map_while(|range| {
            let taken = range.len().min(left);
            left -= taken;
            (taken > 0).then_some(KeyGroupRange { start: range.start, end: range.start + taken })
        });
        Self(ranges.collect())
    }

    /// Whether it holds all that `other` holds.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.subtract(self).is_empty()
    }

    /// Whether they share a key group.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.meetings(other).next().is_some()
    }

    /// What both hold.
    #[must_use]
    pub fn intersect(&self, other: &Self) -> Self {
        // Pieces of disjoint ranges that do not touch neither meet nor touch each other.
        Self(self.meetings(other).collect())
    }

    /// The pieces that both hold, in order, in one walk through both.
    fn meetings<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = KeyGroupRange> + 'a {
        let (mut mine, mut theirs) = (self.0.as_slice(), other.0.as_slice());
        std::iter::from_fn(move || {
            while let ([a, ..], [b, ..]) = (mine, theirs) {
                let both = a.intersect(b);
                if a.end <= b.end {
                    mine = &mine[1..];
                } else {
                    theirs = &theirs[1..];
                }
                if !both.is_empty() {
                    return Some(both);
                }
            }
            None
        })
    }

    /// What either holds.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        Self::new(self.0.iter().chain(&other.0).copied())
    }

    /// What it holds and `other` does not.
    #[must_use]
    pub fn subtract(&self, other: &Self) -> Self {
        let mut left = Vec::with_capacity(self.0.len());
        for r in &self.0 {
            let mut start = r.start;
            let from = other.0.partition_point(|cut| cut.end <= r.start);
            for cut in other.0[from..].iter().take_while(|cut| cut.start < r.end) {
                if start < cut.start {
                    left.push(KeyGroupRange { start, end: cut.start });
                }
                start = cut.end;
            }
            if start < r.end {
                left.push(KeyGroupRange { start, end: r.end });
            }
        }
        Self(left)
    }
}

impl FromIterator<KeyGroupRange> for KeyGroupRanges {
    fn from_iter<T: IntoIterator<Item = KeyGroupRange>>(iter: T) -> Self {
        Self::new(iter)
    }
}

impl From<KeyGroupRange> for KeyGroupRanges {
    fn from(range: KeyGroupRange) -> Self {
        Self::new([range])
    }
}

impl fmt::Display for KeyGroupRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, r) in self.0.iter().enumerate() {
            write!(f, "{}{r}", if i == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(pairs: &[(u32, u32)]) -> KeyGroupRanges {
        pairs.iter().map(|&(a, b)| KeyGroupRange::new(a, b)).collect()
    }

    #[test]
    fn sets_behave_as_sets() {
        let a = ranges(&[(0, 10), (20, 30)]);
        let b = ranges(&[(5, 25)]);
        assert_eq!(a.intersect(&b), ranges(&[(5, 10), (20, 25)]));
        assert_eq!(a.union(&b), ranges(&[(0, 30)]));
        assert_eq!(a.subtract(&b), ranges(&[(0, 5), (25, 30)]));
        assert_eq!(b.subtract(&a), ranges(&[(10, 20)]));
        assert!(KeyGroupRanges::all().covers(&a) && !a.covers(&b));
        assert!(a.contains(KeyGroup(29)) && !a.contains(KeyGroup(30)) && !a.contains(KeyGroup(15)));
        assert_eq!(ranges(&[(3, 4), (4, 9), (1, 2)]), ranges(&[(1, 2), (3, 9)]));
        assert_eq!(KeyGroupRanges::all().len(), KEY_GROUPS);
    }

    #[test]
    fn the_first_groups_are_a_part() {
        let set = ranges(&[(0, 3), (10, 17), (30, 31)]);
        let groups: Vec<u16> = (0..40).filter(|g| set.contains(KeyGroup(*g))).collect();
        for count in 0..15 {
            let first = set.first(count);
            let expected = groups.iter().take(count as usize).copied();
            assert!((0..40).filter(|g| first.contains(KeyGroup(*g))).eq(expected), "{count}: {first:?}");
            assert_eq!(first.len(), count.min(11));
        }
        assert!(KeyGroupRanges::empty().first(3).is_empty());
    }

    #[test]
    fn what_comes_before_a_group_is_a_part() {
        let set = ranges(&[(0, 3), (10, 17)]);
        for end in 0..20 {
            let expected = set.intersect(&ranges(&[(0, u32::from(end))]));
            assert_eq!(set.before(KeyGroup(end)), expected, "{end}");
        }
    }

    #[test]
    fn sets_are_what_their_groups_say() {
        const GROUPS: u32 = 12;
        // The bits of a number say which of the first groups are in a set.
        let set =
            |bits: u32| (0..GROUPS).filter(|g| bits >> g & 1 == 1).map(|g| KeyGroupRange::new(g, g + 1)).collect();
        let sets: Vec<(u32, KeyGroupRanges)> = (0..1 << GROUPS).step_by(7).map(|bits| (bits, set(bits))).collect();
        for (a, of_a) in &sets {
            for (b, of_b) in sets.iter().step_by(3) {
                assert_eq!(of_a.intersect(of_b), set(a & b), "{of_a} and {of_b}");
                assert_eq!(of_a.subtract(of_b), set(a & !b), "{of_a} without {of_b}");
                assert_eq!((of_a.overlaps(of_b), of_a.covers(of_b)), (a & b != 0, b & !a == 0), "{of_a}, {of_b}");
            }
        }
    }
}
