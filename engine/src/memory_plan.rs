//! How the memory of a process is divided: one pure function from what the user gave to the budgets of the parts.
//!
//! | part | with a limit L | without | what it bounds |
//! |---|---|---|---|
//! | baseline | max(60 MiB, 8 MiB + 3/10 L) | - | program, stacks, connections, what the allocator holds and nobody uses |
//! | cache | `cache.memory`, else L / 4 | `cache.memory`, else RAM / 4 | all clean state: rows of working sets and blocks together |
//! | metadata | L / 8 | RAM / 32, at most 1 GiB | filters and indexes of state objects |
//! | write buffer | `memory.write-buffer`, else a quarter of the rest | half the cache, 64 MiB to RAM / 64 | dirty and frozen entries of working sets |
//! | encode | as the write buffer | as the write buffer | sections being encoded, bundles being uploaded |
//! | reads | a quarter of the rest | RAM / 32 | prefetched batches and the blocks of their GETs |
//! | exchange | three of 32 parts of the rest | RAM / 64 | batches in channels |
//! | compaction | five of 32 parts of the rest | RAM / 32 | blocks being merged and written |
//!
//! "The rest" is L without baseline, cache and metadata. With a limit the sum of all parts is at most L.
//! Without one it is two fifths of RAM, more below 4 GiB: two workers of a machine, started as they come, find room. The
//! cache is split between rows and blocks, see [`MemoryPlan::rows_bytes`]; jobs that keep their state in memory pin it in the
//! place of rows ([`MemoryPlan::pinned_bytes`]). This owns numbers, not memory: each part takes its budget and accounts
//! what it holds.

use crate::settings::Settings;

const MIB: u64 = 1 << 20;

/// The least `memory.limit`, bytes.
pub const LEAST_LIMIT_BYTES: u64 = 128 * MIB;

/// The budgets of one process, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// What is set aside for everything that no budget accounts; 0 without a limit.
    pub baseline_bytes: u64,
    /// Clean rows in working sets.
    pub rows_bytes: u64,
    /// Blocks of state objects.
    pub blocks_bytes: u64,
    /// Pinned blocks and indexes of jobs with `state.residency=memory`. With a limit it is a part of `rows_bytes`,
    /// which such jobs do not use; without one it is half of RAM.
    pub pinned_bytes: u64,
    /// Filters and indexes of state objects.
    pub metadata_bytes: u64,
    /// Dirty and frozen entries in working sets.
    pub write_buffer_bytes: u64,
    /// Sections being encoded and bundles being uploaded.
    pub encode_bytes: u64,
    /// Prefetched batches and the blocks of their GETs.
    pub reads_bytes: u64,
    /// Batches in channels.
    pub exchange_bytes: u64,
    /// Blocks being merged and written.
    pub compaction_bytes: u64,
}

impl MemoryPlan {
    /// The budgets for `settings` on a machine with `ram_bytes` of RAM.
    #[must_use]
    pub fn new(settings: &Settings, ram_bytes: u64) -> Self {
        match settings.memory.limit_bytes {
            Some(limit) => Self::within(limit, settings),
            None => Self::of_machine(ram_bytes.max(512 * MIB), settings),
        }
    }

    /// The budgets of a process that runs compactions alone: a quarter of what is left is for the GETs that bring the
    /// inputs, the rest for what is merged and written. Without a limit, half of the machine is divided.
    #[must_use]
    pub fn of_compactor(settings: &Settings, ram_bytes: u64) -> Self {
        let limit = settings.memory.limit_bytes.unwrap_or(ram_bytes.max(512 * MIB) / 2);
        let baseline_bytes = (8 * MIB + limit / 10 * 3).max(60 * MIB).min(limit);
        let metadata_bytes = (limit / 16).max(4 * MIB);
        let left = limit.saturating_sub(baseline_bytes + metadata_bytes);
        let blocks_bytes = settings.cache.memory_bytes.unwrap_or(16 * MIB).min(left / 4);
        let rest = left - blocks_bytes;
        let reads_bytes = rest / 4;
        let compaction_bytes = rest - reads_bytes;
        Self { baseline_bytes, blocks_bytes, metadata_bytes, reads_bytes, compaction_bytes, ..Self::cache(0) }
    }

    fn within(limit: u64, settings: &Settings) -> Self {
        let baseline_bytes = (8 * MIB + limit / 10 * 3).max(60 * MIB).min(limit);
        // Of a state ten times as large with values of 1,000 bytes, this holds all of it. Without it every read costs a
        // request more.
        let metadata_bytes = limit / 8;
        let left = limit.saturating_sub(baseline_bytes + metadata_bytes);
        let cache = settings.cache.memory_bytes.unwrap_or(limit / 4).min(left / 2);
        let rest = left - cache;
        // Twice, since a closed epoch is encoded while the next one fills the buffer.
        let write_buffer_bytes = settings.memory.write_buffer_bytes.unwrap_or(rest / 4).min(rest / 3);
        let after = rest - 2 * write_buffer_bytes;
        Self {
            baseline_bytes,
            metadata_bytes,
            write_buffer_bytes,
            encode_bytes: write_buffer_bytes,
            reads_bytes: after / 2,
            exchange_bytes: after / 16 * 3,
            compaction_bytes: after / 16 * 5,
            ..Self::cache(cache)
        }
    }

    fn of_machine(ram: u64, settings: &Settings) -> Self {
        let cache = settings.cache.memory_bytes.unwrap_or(ram / 4);
        // Whoever gives the cache little does not want much elsewhere.
        let write_buffer_bytes = settings.memory.write_buffer_bytes.unwrap_or((cache / 2).min(ram / 64).max(64 * MIB));
        Self {
            baseline_bytes: 0,
            metadata_bytes: (ram / 32).min(1024 * MIB),
            write_buffer_bytes,
            encode_bytes: write_buffer_bytes,
            reads_bytes: ram / 32,
            exchange_bytes: ram / 64,
            compaction_bytes: ram / 32,
            pinned_bytes: ram / 2,
            ..Self::cache(cache)
        }
    }

    /// Rows first, blocks second: a row holds just what was asked for, a block holds its neighbours too.
    fn cache(bytes: u64) -> Self {
        let blocks_bytes = bytes / 8;
        Self {
            baseline_bytes: 0,
            rows_bytes: bytes - blocks_bytes,
            blocks_bytes,
            pinned_bytes: bytes / 2,
            metadata_bytes: 0,
            write_buffer_bytes: 0,
            encode_bytes: 0,
            reads_bytes: 0,
            exchange_bytes: 0,
            compaction_bytes: 0,
        }
    }

    /// All parts together.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.baseline_bytes
            + self.rows_bytes
            + self.blocks_bytes
            + self.metadata_bytes
            + self.write_buffer_bytes
            + self.encode_bytes
            + self.reads_bytes
            + self.exchange_bytes
            + self.compaction_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        let mut s = Settings::defaults();
        for (key, value) in pairs {
            s.set(key, value).unwrap();
        }
        s.validate().unwrap();
        s
    }

    #[test]
    fn the_parts_stay_within_the_limit_and_none_is_starved() {
        for limit in [LEAST_LIMIT_BYTES, 200 * MIB, 400 * MIB, 2 << 30, 64 << 30] {
            for cache in ["auto", "1MiB", "64MiB"] {
                let s = settings(&[("memory.limit", &limit.to_string()), ("cache.memory", cache)]);
                let plan = MemoryPlan::new(&s, 8 << 30);
                assert!(plan.total_bytes() <= limit, "{limit} {cache}: {plan:?}");
                assert!(plan.total_bytes() >= limit - 64, "nothing is left unused: {plan:?}");
                for part in [plan.write_buffer_bytes, plan.encode_bytes, plan.reads_bytes, plan.exchange_bytes] {
                    assert!(part >= 2 * MIB, "{limit} {cache}: {plan:?}");
                }
            }
        }
    }

    #[test]
    fn a_compactor_has_its_memory_for_compactions() {
        for limit in [LEAST_LIMIT_BYTES, 400 * MIB, 8 << 30] {
            let plan = MemoryPlan::of_compactor(&settings(&[("memory.limit", &limit.to_string())]), 1 << 40);
            assert!(plan.total_bytes() <= limit && plan.total_bytes() > limit - 64, "{plan:?}");
            assert!(plan.compaction_bytes > limit / 5 && plan.write_buffer_bytes + plan.rows_bytes == 0, "{plan:?}");
        }
        assert!(MemoryPlan::of_compactor(&settings(&[]), 8 << 30).total_bytes() <= 4 << 30);
    }

    #[test]
    fn what_the_user_gave_is_kept() {
        let s = settings(&[("memory.limit", "400MiB"), ("cache.memory", "64MiB"), ("memory.write-buffer", "32MiB")]);
        let plan = MemoryPlan::new(&s, 8 << 30);
        assert_eq!(plan.rows_bytes + plan.blocks_bytes, 64 * MIB);
        assert_eq!(plan.write_buffer_bytes, 32 * MIB);
    }

    #[test]
    fn without_a_limit_the_cache_is_a_quarter_of_the_machine() {
        let plan = MemoryPlan::new(&settings(&[]), 8 << 30);
        assert_eq!(plan.rows_bytes + plan.blocks_bytes, 2 << 30);
        assert!(plan.total_bytes() <= (8 << 30) / 5 * 2, "two find room");
        assert_eq!(plan.write_buffer_bytes, 128 * MIB);
        let plan = MemoryPlan::new(&settings(&[("cache.memory", "30MB")]), 8 << 30);
        assert_eq!(plan.rows_bytes + plan.blocks_bytes, 30_000_000);
    }
}
