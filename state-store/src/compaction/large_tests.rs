//! Picks over a state of many objects, second by second: how many runs reads see, and what is rewritten.

use std::fmt;
use std::sync::Arc;

use millstream_common::{KeyGroupRange, KeyGroupRanges};

use super::tests::{ranges, run};
use super::*;
use crate::section::Interval;
use crate::testing::{TASK, tree};
use crate::tree::{live_in_segments, runs_per_key_group_max};
use crate::{Run, Tree};

const MB: u64 = 1_000_000;
/// An output of a compaction.
const OBJECT: u64 = 10 * MB;
/// Merged in a second, by all merges that run then.
const RATE: f64 = 10.0 * MB as f64;
/// What a merge costs beside its bytes (its requests, and its record), in bytes.
const A_MERGE: f64 = 0.3 * MB as f64;
/// Written in a second, over all key groups.
const FLUSH: u64 = 350_000;

const OPTIONS: CompactionOptions = CompactionOptions { trigger_runs: 8, output_bytes: OBJECT };

/// A task's runs as time goes on.
struct Large {
    tree: Tree,
    second: u64,
    /// What is left to do of each merge, in bytes.
    running: Vec<(f64, Pick)>,
    written: u64,
    rewritten: u64,
    merges: u64,
}

/// What a time has shown.
#[derive(Debug)]
struct Seen {
    /// The most runs of a key group, and the mean of that over the seconds.
    most: usize,
    mean: f64,
    /// Bytes rewritten for each byte written.
    rewritten: f64,
    merges: u64,
    objects: usize,
    /// Into how many parts the key groups fall by what is live in them: pieces of the oldest run count once.
    segments: usize,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} runs at most, {:.1} in the mean; {:.1} bytes rewritten for each written, in {} merges; {} objects in {} parts",
            self.most, self.mean, self.rewritten, self.merges, self.objects, self.segments
        )
    }
}

impl Large {
    fn new() -> Self {
        Self { tree: tree(), second: 0, running: Vec::new(), written: 0, rewritten: 0, merges: 0 }
    }

    /// Runs of one interval side by side, each an object at most.
    fn cut(name: &str, epochs: (u64, u64), ranges: &KeyGroupRanges, bytes: u64) -> Vec<Run> {
        let groups: Vec<u32> = ranges.iter().flat_map(|r| r.start..r.end).collect();
        let each = groups.len().div_ceil(bytes.div_ceil(OBJECT).max(1) as usize);
        let piece = |(i, some): (usize, &[u32])| {
            let clip: Vec<(u32, u32)> = some.chunk_by(|a, b| a + 1 == *b).map(|c| (c[0], c[c.len() - 1] + 1)).collect();
            let length = bytes * some.len() as u64 / groups.len() as u64;
            Run::clone(&run(&format!("{name}-{i}"), epochs, length, &clip))
        };
        groups.chunks(each).enumerate().map(piece).collect()
    }

    /// One more flush, or one more merge of long ago.
    fn adds(&mut self, ranges: &KeyGroupRanges, bytes: u64) {
        let epoch = self.second;
        let runs = Self::cut(&format!("r{epoch}"), (epoch, epoch), ranges, bytes);
        self.tree.add_runs(runs.into_iter().map(Arc::new));
        self.second += 1;
    }

    fn most(&self) -> usize {
        runs_per_key_group_max(self.tree.runs(), &KeyGroupRanges::all())
    }

    /// Parts of the key groups with runs of the same intervals.
    fn segments(&self) -> usize {
        let stacks = live_in_segments(self.tree.runs().iter().map(|r| &r.clip));
        let intervals = |live: &[usize]| -> Vec<Interval> {
            let mut of: Vec<Interval> = live.iter().map(|&i| self.tree.runs()[i].interval).collect();
            of.sort_unstable();
            of
        };
        let mut stacks: Vec<Vec<Interval>> = stacks.iter().map(|(_, live)| intervals(live)).collect();
        stacks.dedup();
        stacks.len()
    }

    /// How many times the bytes of the oldest run lie above it, at most, in any key group.
    fn above_the_oldest(&self) -> f64 {
        let runs = self.tree.runs();
        let of = |live: &[usize], groups: u64| -> f64 {
            let mut stack: Vec<(Interval, f64)> = live
                .iter()
                .map(|&i| (runs[i].interval, runs[i].length as f64 * groups as f64 / f64::from(runs[i].clip.len())))
                .collect();
            stack.sort_by_key(|(interval, _)| *interval);
            let above: f64 = stack[1..].iter().map(|(_, bytes)| bytes).sum();
            above / stack[0].1
        };
        let segments = live_in_segments(runs.iter().map(|r| &r.clip));
        segments.iter().map(|(segment, live)| of(live, u64::from(segment.len()))).fold(0.0, f64::max)
    }

    /// A second: a flush, and as much of merges as it allows.
    fn step(&mut self) {
        self.adds(&KeyGroupRanges::all(), FLUSH);
        self.written += FLUSH;
        let mut left = RATE;
        while left > 0.0 {
            self.begin();
            let Some(next) = (0..self.running.len()).min_by(|a, b| self.running[*a].0.total_cmp(&self.running[*b].0))
            else {
                return;
            };
            // They share the rate.
            let sharing = self.running.len() as f64;
            let each = self.running[next].0.min(left / sharing);
            left -= each * sharing;
            self.running.iter_mut().for_each(|(bytes, _)| *bytes -= each);
            if self.running[next].0 <= 0.0 {
                let (_, pick) = self.running.remove(next);
                self.ends(pick);
            }
        }
    }

    fn begin(&mut self) {
        while self.running.len() < 2 {
            let busy: Vec<Arc<Run>> = self.running.iter().flat_map(|(_, p)| p.inputs.clone()).collect();
            let limits = Limits { busy: &busy, put_off_bytes: None };
            let Some(pick) = pick_within(self.tree.runs(), &KeyGroupRanges::all(), &OPTIONS, &limits) else { return };
            let bytes: u64 = pick.inputs.iter().map(|i| bytes_of(i, &pick.ranges)).sum();
            self.running.push((bytes as f64 + A_MERGE, pick));
        }
    }

    fn ends(&mut self, pick: Pick) {
        let hull = pick.inputs.iter().map(|i| i.interval).reduce(Interval::hull).unwrap();
        // The oldest run holds every key.
        let of_bottom = pick.inputs.iter().filter(|i| i.interval.min == hull.min);
        let of_all: u64 = pick.inputs.iter().map(|i| bytes_of(i, &pick.ranges)).sum();
        let bytes = if pick.bottom { of_bottom.map(|i| bytes_of(i, &pick.ranges)).sum() } else { of_all };
        self.rewritten += bytes;
        self.merges += 1;
        let outputs =
            Self::cut(&format!("m{}", self.merges), (hull.min.epoch.0, hull.max.epoch.0), &pick.ranges, bytes);
        let Pick { inputs, ranges, bottom } = pick;
        let done = CompactionDone { task: TASK, inputs, ranges, bottom, outputs };
        let CompactionOutcome::Applied(after) = apply(&self.tree, &done) else { panic!("it fits") };
        self.tree = after;
    }

    fn run(&mut self, seconds: u64) -> Seen {
        let (mut most, mut sum) = (0, 0);
        let (written, rewritten, merges) = (self.written, self.rewritten, self.merges);
        for _ in 0..seconds {
            self.step();
            let now = self.most();
            most = most.max(now);
            sum += now;
        }
        Seen {
            most,
            mean: sum as f64 / seconds as f64,
            rewritten: (self.rewritten - rewritten) as f64 / (self.written - written) as f64,
            merges: self.merges - merges,
            objects: self.tree.runs().len(),
            segments: self.segments(),
        }
    }
}

/// Bytes of a run in some of its key groups.
fn bytes_of(run: &Run, ranges: &KeyGroupRanges) -> u64 {
    (u128::from(run.length) * u128::from(run.clip.intersect(ranges).len()) / u128::from(run.clip.len())) as u64
}

/// 2.5 GB in 250 objects, and above it what filling it has left: an hour of updates. Reads see few runs all the time, and the key
/// groups do not fall apart.
#[test]
fn a_large_state_sees_few_runs_and_is_seldom_rewritten() {
    let all = KeyGroupRanges::all();
    let mut large = Large::new();
    large.adds(&all, 2500 * MB);
    (0..12).for_each(|_| large.adds(&all, 100 * MB));
    println!("2.5 GB, 350 KB/s, 10 MB/s to merge with");
    let at_first = large.run(600);
    println!("the first 10 minutes: {at_first}");
    for minutes in ["10 to 25", "25 to 40", "40 to 55", "55 to 70"] {
        let seen = large.run(900);
        println!("minutes {minutes}: {seen}");
        assert!(seen.most <= 24 && seen.mean < 9.0 && seen.segments <= 4, "{seen:?}");
        assert!(seen.rewritten < 20.0, "{seen:?}");
    }
    let all = large.rewritten as f64 / large.written as f64;
    println!("in all: {all:.1} bytes rewritten for each byte written");
    assert!(all < 14.0, "{all}");
}

/// A rescale has put the key groups of several subtasks together, each with runs of its own.
#[test]
fn key_groups_that_a_rescale_has_put_together_grow_together() {
    let quarter = |q: u32| KeyGroupRanges::from(KeyGroupRange::new(q * 16_384, (q + 1) * 16_384));
    let mut large = Large::new();
    for of_level in [600, 50, 20, 5, 1] {
        // No two of them are equal.
        (0..4).for_each(|q| large.adds(&quarter(q), of_level * MB * u64::from(8 + q) / 10));
    }
    let halves = [ranges(&[(0, 30_000)]), ranges(&[(30_000, 65_536)])];
    (0..6).for_each(|n| large.adds(&halves[n % 2], 2 * MB));
    println!("four quarters of 2.4 GB in all, with runs of their own");
    for minutes in ["0 to 20", "20 to 40", "40 to 60"] {
        let seen = large.run(1200);
        println!("minutes {minutes}: {seen}");
        assert!(seen.most <= 26 && seen.mean < 11.0 && seen.rewritten < 20.0, "{seen:?}");
    }
    // Nothing is left of before but what is oldest.
    assert!(large.above_the_oldest() < 1.0, "{}", large.above_the_oldest());
}

/// Whatever a rescale has put together: what comes goes into the oldest runs in the end.
#[test]
fn the_oldest_runs_are_merged_again_however_little_lies_next_to_them() {
    let half = |h: u32| KeyGroupRanges::from(KeyGroupRange::new(h * 32_768, (h + 1) * 32_768));
    for (oldest, next) in [(300, 20), (10, 0)] {
        let mut large = Large::new();
        for h in 0..2 {
            large.adds(&half(h), oldest * MB);
            large.adds(&half(h), (next * MB).max(1));
        }
        let seen = large.run(3000);
        println!("twice {oldest} MB and {next} MB next to it: {seen}");
        assert!(seen.most <= 24, "{seen:?}");
        assert!(large.above_the_oldest() < 1.0, "{}", large.above_the_oldest());
    }
}

/// A merge that takes half an hour, of the oldest run or of the youngest ones: what comes is merged around it.
#[test]
fn runs_stay_few_beside_a_merge_that_takes_long() {
    let all = KeyGroupRanges::all();
    for (before, what) in [(1, "the oldest run"), (8, "eight young runs")] {
        let mut large = Large::new();
        large.adds(&all, 1200 * MB);
        (1..before).for_each(|_| large.adds(&all, MB));
        let youngest = large.tree.runs().iter().filter(|r| before == 1 || r.interval.min.epoch.0 > 0).cloned();
        let never = Pick { inputs: youngest.collect(), ranges: all.clone(), bottom: before == 1 };
        large.running.push((f64::INFINITY, never));
        let seen = large.run(2000);
        println!("{what} being merged all the time: {seen}");
        assert!(seen.most <= 36 && seen.mean < 19.0, "{seen:?}");
    }
}
