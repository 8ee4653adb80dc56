//! Who owns which key groups and splits. Pure functions: the same facts give the same answer in every process.

use std::collections::BTreeMap;

use millstream_common::{AssignmentId, KEY_GROUPS, KeyGroupRange, KeyGroupRanges};

use crate::element::Assignment;

/// The first assignment of a job: equal shares in order.
#[must_use]
pub fn even(id: AssignmentId, parallelism: u32) -> Assignment {
    let bound = |i: u32| (u64::from(i) * u64::from(KEY_GROUPS) / u64::from(parallelism)) as u32;
    let ranges = (0..parallelism).map(|i| KeyGroupRange::new(bound(i), bound(i + 1)).into()).collect();
    Assignment { id, ranges }
}

/// The assignment for another parallelism that moves the fewest key groups: a subtask that stays gives up what it has
/// above its new share, one that is short takes from what was given up. 4 -> 5 moves a fifth of the key groups.
#[must_use]
pub fn rescale(old: &Assignment, id: AssignmentId, parallelism: u32) -> Assignment {
    let share = |i: u32| {
        let bound = |i: u32| u64::from(i) * u64::from(KEY_GROUPS) / u64::from(parallelism);
        (bound(i + 1) - bound(i)) as u32
    };
    let mut ranges: Vec<KeyGroupRanges> = Vec::with_capacity(parallelism as usize);
    let mut free = KeyGroupRanges::all();
    for i in 0..parallelism {
        let had = old.ranges.get(i as usize).cloned().unwrap_or_default();
        let kept = first_groups(&had, share(i));
        free = free.subtract(&kept);
        ranges.push(kept);
    }
    for i in 0..parallelism {
        let short = share(i).saturating_sub(ranges[i as usize].len());
        if short > 0 {
            let taken = first_groups(&free, short);
            free = free.subtract(&taken);
            ranges[i as usize] = ranges[i as usize].union(&taken);
        }
    }
    Assignment { id, ranges }
}

/// The first `count` key groups of a set.
fn first_groups(set: &KeyGroupRanges, count: u32) -> KeyGroupRanges {
    let mut left = count;
    let mut out = Vec::new();
    for r in set.iter() {
        let n = r.len().min(left);
        out.push(KeyGroupRange::new(r.start, r.start + n));
        left -= n;
    }
    KeyGroupRanges::new(out)
}

/// Which subtask reads each split (in the order of `splits`): owners that stay keep theirs up to an even share; the
/// rest go to those with the fewest. `live` splits count for the share, ended ones go anywhere.
#[must_use]
pub fn split_owners(splits: &[(String, bool)], old: &BTreeMap<String, u32>, parallelism: u32) -> BTreeMap<String, u32> {
    let live = splits.iter().filter(|s| s.1).count() as u32;
    let (share, rest) = (live / parallelism, live % parallelism);
    let mut held = vec![0u32; parallelism as usize];
    let mut owners = BTreeMap::new();
    // How many subtasks may hold one more than the share.
    let mut extra = rest;
    for (split, alive) in splits.iter().filter(|s| s.1) {
        let Some(&owner) = old.get(split).filter(|&&o| o < parallelism) else { continue };
        let h = &mut held[owner as usize];
        if *h < share || (*h == share && extra > 0) {
            if *h == share {
                extra -= 1;
            }
            *h += 1;
            owners.insert(split.clone(), owner);
        }
        debug_assert!(alive);
    }
    for (split, alive) in splits {
        if owners.contains_key(split) {
            continue;
        }
        let fewest = (0..parallelism).min_by_key(|&i| (held[i as usize], i)).unwrap_or(0);
        if *alive {
            held[fewest as usize] += 1;
        }
        owners.insert(split.clone(), fewest);
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_partition(a: &Assignment) {
        let all = a.ranges.iter().fold(KeyGroupRanges::empty(), |x, r| x.union(r));
        assert_eq!(all, KeyGroupRanges::all());
        assert_eq!(a.ranges.iter().map(KeyGroupRanges::len).sum::<u32>(), KEY_GROUPS);
        let (least, most) =
            (a.ranges.iter().map(KeyGroupRanges::len).min(), a.ranges.iter().map(KeyGroupRanges::len).max());
        assert!(most.unwrap() - least.unwrap() <= 1, "{least:?} to {most:?}");
    }

    #[test]
    fn any_chain_of_rescales_is_even_and_moves_little() {
        let mut a = even(AssignmentId(1), 2);
        is_partition(&a);
        for p in [4, 3, 1, 2, 7, 5, 6, 64, 3] {
            let b = rescale(&a, a.id.next(), p);
            is_partition(&b);
            let moved: u32 = (0..b.ranges.len())
                .map(|i| b.ranges[i].subtract(a.ranges.get(i).unwrap_or(&KeyGroupRanges::empty())).len())
                .sum();
            let (old, new) = (a.parallelism().min(p), a.parallelism().max(p));
            let least = KEY_GROUPS - KEY_GROUPS / new * old;
            assert!(moved <= least + new, "{} -> {p} moved {moved}, {least} would do", a.parallelism());
            a = b;
        }
    }

    #[test]
    fn splits_stay_where_they_can() {
        let splits: Vec<_> = (0..16).map(|i| (format!("s{i:02}"), true)).collect();
        let two = split_owners(&splits, &BTreeMap::new(), 2);
        assert_eq!(two.values().filter(|&&o| o == 0).count(), 8);
        let four = split_owners(&splits, &two, 4);
        for i in 0..4 {
            assert_eq!(four.values().filter(|&&o| o == i).count(), 4);
        }
        assert_eq!(splits.iter().filter(|s| two[&s.0] == four[&s.0]).count(), 8);
        let one = split_owners(&splits, &four, 1);
        assert!(one.values().all(|&o| o == 0));
        let few = split_owners(&splits[..1], &BTreeMap::new(), 3);
        assert_eq!(few.len(), 1);
    }
}
