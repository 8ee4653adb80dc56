//! The best that a cache of rows can do: exact LFU over a trace. It remembers how often every key came, also of keys that it
//! does not hold, and always holds those that came most often.

use std::collections::BTreeSet;

use millstream_common::collections::HashMap;

/// A simulated cache of rows.
pub struct Lfu {
    rows: usize,
    counts: HashMap<u64, u32>,
    held: BTreeSet<(u32, u64)>,
}

impl Lfu {
    /// One that holds so many rows.
    #[must_use]
    pub fn new(rows: u64) -> Self {
        Self { rows: rows as usize, counts: HashMap::default(), held: BTreeSet::new() }
    }

    /// A key comes; whether it was held.
    pub fn access(&mut self, id: u64) -> bool {
        let count = self.counts.entry(id).or_insert(0);
        let before = *count;
        *count += 1;
        let now = (*count, id);
        if before > 0 && self.held.remove(&(before, id)) {
            self.held.insert(now);
            return true;
        }
        if self.held.len() < self.rows {
            self.held.insert(now);
        } else if self.held.first().is_some_and(|least| least.0 < now.0) {
            self.held.pop_first();
            self.held.insert(now);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::super::keys::{Popularity, Random, Zipf};
    use super::*;

    #[test]
    fn what_came_most_often_stays() {
        let mut lfu = Lfu::new(2);
        let hits: Vec<bool> = [1, 2, 1, 3, 3, 3, 2, 1].iter().map(|id| lfu.access(*id)).collect();
        // 3 pushes 2 out when it comes the second time; 2 comes back no more.
        assert_eq!(hits, [false, false, true, false, false, true, false, true]);
    }

    #[test]
    fn in_the_long_run_it_hits_what_the_most_popular_keys_make() {
        let zipf = Popularity::Zipf(Zipf::new(1_000, 0.99));
        let (mut lfu, mut random) = (Lfu::new(100), Random::new(2));
        for _ in 0..100_000 {
            lfu.access(zipf.draw(&mut random));
        }
        let hits = (0..100_000).filter(|_| lfu.access(zipf.draw(&mut random))).count();
        let ideal = zipf.share_of_top(100);
        assert!((hits as f64 / 1e5 - ideal).abs() < 0.02, "{hits} {ideal}");
    }
}
