//! Where the slots of keys are, and the heads of maps: an index from 32 bits of a key's hash to their numbers.
//!
//! The table knows no keys: whoever asks says which of the slots with the same 32 bits is meant. It exists because the
//! working set looks up whole batches: a place is one word, so that one line of memory, which can be asked for beforehand,
//! answers a look-up as a rule.
//!
//! Open addressing with linear probing (Knuth, The Art of Computer Programming, volume 3, section 6.4); an entry that goes
//! pulls those behind it forward, so that there are no marks of deleted ones.

use millstream_common::prefetch::prefetch;

/// A free place. An entry is never that: its slot number stands plus one in the low half.
const FREE: u64 = 0;
const LEAST_PLACES: usize = 16;

/// See the module.
#[derive(Debug)]
pub(super) struct SlotTable {
    /// The 32 bits above the slot number plus one. A power of two of them, at most three quarters taken.
    places: Vec<u64>,
    entries: usize,
}

#[inline]
fn entry(tag: u32, slot: u32) -> u64 {
    u64::from(tag) << 32 | (u64::from(slot) + 1)
}

#[inline]
fn tag_of(entry: u64) -> u32 {
    (entry >> 32) as u32
}

#[inline]
fn slot_of(entry: u64) -> u32 {
    (entry as u32).wrapping_sub(1)
}

impl Default for SlotTable {
    fn default() -> Self {
        Self { places: vec![FREE; LEAST_PLACES], entries: 0 }
    }
}

impl SlotTable {
    /// How many entries it has.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries
    }

    /// Where the search for a tag begins: the upper bits of a product, since tags may share their lower ones.
    #[inline]
    fn home(&self, tag: u32) -> usize {
        let bits = self.places.len().trailing_zeros();
        (u64::from(tag.wrapping_mul(0x9e37_79b9)) << bits >> 32) as usize
    }

    /// Asks the processor for the place where the search for a tag begins.
    #[inline]
    pub(super) fn prefetch(&self, tag: u32) {
        prefetch(&self.places, self.home(tag));
    }

    /// The first slot with this tag that `right` takes.
    #[inline]
    pub(super) fn find(&self, tag: u32, mut right: impl FnMut(u32) -> bool) -> Option<u32> {
        let mask = self.places.len() - 1;
        let mut at = self.home(tag);
        loop {
            let there = self.places[at & mask];
            if there == FREE {
                return None;
            }
            if tag_of(there) == tag && right(slot_of(there)) {
                return Some(slot_of(there));
            }
            at += 1;
        }
    }

    /// Adds a slot that is not there. Slots with the same tag are found in the order in which they came, as a rule.
    pub(super) fn insert(&mut self, tag: u32, slot: u32) {
        if (self.entries + 1) * 4 > self.places.len() * 3 {
            self.resize(self.places.len() * 2);
        }
        self.place(entry(tag, slot));
        self.entries += 1;
    }

    fn place(&mut self, entry: u64) {
        let mask = self.places.len() - 1;
        let mut at = self.home(tag_of(entry));
        while self.places[at & mask] != FREE {
            at += 1;
        }
        self.places[at & mask] = entry;
    }

    fn resize(&mut self, places: usize) {
        let old = std::mem::replace(&mut self.places, vec![FREE; places]);
        old.into_iter().filter(|e| *e != FREE).for_each(|e| self.place(e));
    }

    /// Takes a slot out; nothing happens when it is not there.
    pub(super) fn remove(&mut self, tag: u32, slot: u32) {
        let (mask, wanted) = (self.places.len() - 1, entry(tag, slot));
        let mut hole = self.home(tag);
        while self.places[hole & mask] != wanted {
            if self.places[hole & mask] == FREE {
                return;
            }
            hole += 1;
        }
        // What stands behind the hole moves into it, unless its own search begins behind the hole.
        let mut at = hole + 1;
        loop {
            let there = self.places[at & mask];
            if there == FREE {
                break;
            }
            let from_home = at.wrapping_sub(self.home(tag_of(there))) & mask;
            if from_home >= at - hole {
                self.places[hole & mask] = there;
                hole = at;
            }
            at += 1;
        }
        self.places[hole & mask] = FREE;
        self.entries -= 1;
        // An eighth is taken: half of the places go.
        if self.places.len() > LEAST_PLACES && self.entries * 8 < self.places.len() {
            self.resize(self.places.len() / 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    #[test]
    fn it_holds_what_a_set_does() {
        for seed in 0..300 {
            let mut rng = SmallRng::seed_from_u64(seed);
            // Few tags, so that many entries share one and runs of them wrap round the end.
            let (spread, tags) = (rng.random::<u32>() | 1, rng.random_range(1..40u32));
            let tag = |n: u32| n.wrapping_mul(spread);
            let (mut table, mut model) = (SlotTable::default(), BTreeSet::new());
            for _ in 0..rng.random_range(0..800) {
                let (n, slot) = (rng.random_range(0..tags), rng.random_range(0..30));
                if rng.random_bool(0.5) {
                    table.remove(tag(n), slot);
                    model.remove(&(n, slot));
                } else if model.insert((n, slot)) {
                    table.insert(tag(n), slot);
                }
                assert_eq!(table.entries, model.len());
                assert!(table.entries * 4 <= table.places.len() * 3);
            }
            for n in 0..tags {
                let mut found = BTreeSet::new();
                assert_eq!(table.find(tag(n), |slot| !found.insert((n, slot))), None, "seed {seed}");
                let expected: BTreeSet<_> = model.iter().copied().filter(|(m, _)| *m == n).collect();
                assert_eq!(found, expected, "seed {seed}");
            }
        }
    }

    #[test]
    fn it_shrinks() {
        let mut table = SlotTable::default();
        (0..10_000).for_each(|i| table.insert(i, i));
        assert!(table.places.len() > 10_000);
        (0..10_000).for_each(|i| table.remove(i, i));
        assert_eq!((table.entries, table.places.len()), (0, LEAST_PLACES));
        assert_eq!(table.find(7, |_| true), None);
    }
}
