use std::sync::Arc;

use millstream_common::{Epoch, KeyGroupRange, KeyGroupRanges};

use super::*;
use crate::section::Interval;
use crate::testing::{TASK, tree};
use crate::{Run, Tree};

fn ranges(pairs: &[(u32, u32)]) -> KeyGroupRanges {
    pairs.iter().map(|&(a, b)| KeyGroupRange::new(a, b)).collect()
}

fn run(name: &str, epochs: (u64, u64), length: u64, clip: &[(u32, u32)]) -> Arc<Run> {
    let interval = Interval::of(Epoch(epochs.0), 0).hull(Interval::of(Epoch(epochs.1), 0));
    Arc::new(Run {
        task: TASK,
        object: name.to_owned(),
        offset: 8,
        length,
        meta_offset: 8 + length,
        meta_length: 0,
        directory_length: 0,
        checksum: 0,
        clip: ranges(clip),
        interval,
        entries: 1,
        states: Vec::new(),
        object_bytes: 8 + length,
        origin: String::new(),
        heat: None,
    })
}

const ALL: &[(u32, u32)] = &[(0, 65_536)];

fn options(trigger_runs: usize) -> CompactionOptions {
    CompactionOptions { trigger_runs, ..CompactionOptions::default() }
}

fn names(runs: &[Arc<Run>]) -> Vec<&str> {
    runs.iter().map(|r| r.object.as_str()).collect()
}

#[test]
fn few_runs_are_left_alone_and_many_small_ones_merged() {
    let mut runs: Vec<_> = (1..=4).map(|e| run(&format!("r{e}"), (e, e), 100, ALL)).collect();
    runs.push(run("big", (0, 0), 100_000_000, ALL));
    assert_eq!(pick(&runs, &KeyGroupRanges::all(), &options(6)), None);
    runs.push(run("r5", (5, 5), 100, ALL));
    let picked = pick(&runs, &KeyGroupRanges::all(), &options(6)).unwrap();
    assert_eq!(names(&picked.inputs), ["r5", "r4", "r3", "r2", "r1"]);
    assert!(!picked.bottom);
    assert_eq!(picked.ranges, KeyGroupRanges::all());
    // Without the big one below, they are the bottom.
    runs.retain(|r| r.object != "big");
    assert!(pick(&runs, &KeyGroupRanges::all(), &options(5)).unwrap().bottom);
}

#[test]
fn a_pick_keeps_to_the_key_groups_where_its_runs_are_neighbours() {
    let runs =
        [run("c", (3, 3), 10_000, ALL), run("b", (2, 2), 10_000, &[(0, 100)]), run("a", (1, 1), 10_000, &[(50, 1000)])];
    let picked = pick(&runs, &KeyGroupRanges::all(), &options(3)).unwrap();
    assert_eq!(names(&picked.inputs), ["c", "b", "a"]);
    assert_eq!(picked.ranges, ranges(&[(50, 100)]));
    // Only in the ranges of the one who asks.
    assert_eq!(pick(&runs, &ranges(&[(100, 2000)]), &options(3)), None);
    let two = pick(&runs, &ranges(&[(0, 50), (100, 2000)]), &options(2)).unwrap();
    assert_eq!((names(&two.inputs), two.ranges), (vec!["c", "b"], ranges(&[(0, 50)])));
}

fn done(inputs: &[&Arc<Run>], groups: &[(u32, u32)], bottom: bool) -> CompactionDone {
    let hull = inputs.iter().map(|i| i.interval).reduce(Interval::hull).unwrap();
    let output = run("out", (hull.min.epoch.0, hull.max.epoch.0), 10, groups);
    CompactionDone {
        task: TASK,
        inputs: inputs.iter().map(|i| Arc::clone(i)).collect(),
        ranges: ranges(groups),
        bottom,
        outputs: vec![Run::clone(&output)],
    }
}

fn stale(tree: &Tree, done: &CompactionDone) -> String {
    match apply(tree, done) {
        CompactionOutcome::Stale(why) => why,
        CompactionOutcome::Applied(_) => panic!("it was applied"),
    }
}

#[test]
fn outputs_stand_in_the_place_of_inputs_within_their_key_groups() {
    let (a, b, c) = (run("a", (1, 1), 10, ALL), run("b", (2, 2), 10, ALL), run("c", (3, 3), 10, ALL));
    let old = tree().with_runs(vec![a.clone(), b.clone(), c.clone()]);
    let half = done(&[&a, &b], &[(0, 30_000)], true);
    let CompactionOutcome::Applied(new) = apply(&old, &half) else { panic!() };
    crate::tree::check_successor(&old, &new, (Epoch(3), Epoch(3))).unwrap();
    assert_eq!(names(&new.runs_of(TASK, &ranges(&[(0, 1)]))), ["c", "out"]);
    assert_eq!(names(&new.runs_of(TASK, &ranges(&[(40_000, 40_001)]))), ["c", "b", "a"]);
    // A second time it is stale: its inputs are no longer live there.
    assert!(stale(&new, &half).contains("other key groups"));
    assert!(stale(&old.with_runs(vec![b.clone(), c.clone()]), &half).contains("no longer live"));
}

#[test]
fn what_does_not_fit_the_tree_is_stale() {
    let (a, b, c) = (run("a", (1, 1), 10, ALL), run("b", (2, 2), 10, ALL), run("c", (3, 3), 10, ALL));
    let old = tree().with_runs(vec![a.clone(), b.clone(), c.clone()]);
    assert!(stale(&old, &done(&[&a, &c], ALL, true)).contains("between"));
    assert!(stale(&old, &done(&[&b, &c], ALL, true)).contains("below"));
    assert!(matches!(apply(&old, &done(&[&b, &c], ALL, false)), CompactionOutcome::Applied(_)));
    let missing = CompactionDone { outputs: Vec::new(), ..done(&[&a, &b], ALL, true) };
    assert!(stale(&old, &missing).contains("instead of"));
    let mut twice = done(&[&a, &b], ALL, true);
    twice.outputs.push(twice.outputs[0].clone());
    assert!(stale(&old, &twice).contains("share key groups"));
    let mut odd = done(&[&a, &b], ALL, true);
    odd.outputs[0].interval = c.interval;
    assert!(stale(&old, &odd).contains("not of its task"));
}

#[test]
fn the_check_of_successors_finds_what_is_lost_and_what_comes_from_nowhere() {
    let check = |old: &[Arc<Run>], new: &[Arc<Run>]| {
        let (old, new) = (tree().with_runs(old.to_vec()), tree().with_runs(new.to_vec()));
        crate::tree::check_successor(&old, &new, (Epoch(3), Epoch(5))).map_err(|e| e.to_string())
    };
    let (a, b) = (run("a", (1, 1), 10, ALL), run("b", (2, 3), 10, ALL));
    let old = [a.clone(), b.clone()];
    assert_eq!(check(&old, &old), Ok(()));
    assert_eq!(check(&old, &[a.clone(), b.clone(), run("c", (5, 5), 10, ALL)]), Ok(()));
    assert_eq!(check(&old, &[run("ab", (1, 3), 10, ALL)]), Ok(()));
    assert!(check(&old, std::slice::from_ref(&b)).unwrap_err().contains("lost"));
    assert!(check(&old, &[a.clone(), run("b", (2, 3), 10, &[(0, 65_535)])]).unwrap_err().contains("lost"));
    for new in [(6, 6), (3, 4)] {
        let new = [a.clone(), b.clone(), run("c", new, 10, ALL)];
        assert!(check(&old, &new).is_err(), "{new:?}");
    }
    // Wider than the runs that it stands for.
    assert!(check(&old, &[a.clone(), run("b", (2, 4), 10, ALL)]).unwrap_err().contains("nowhere"));
    assert!(check(&[], &[run("old", (3, 3), 10, ALL)]).unwrap_err().contains("nowhere"));
    assert!(
        check(&old, &[a.clone(), b.clone(), run("c", (5, 5), 10, &[(0, 9)]), run("c", (5, 5), 10, &[(20, 30)])])
            .unwrap_err()
            .contains("twice")
    );
}

/// A flush of 100 KB each step, compactions that take two steps: most runs ever seen, and bytes rewritten for each
/// byte flushed. `universe`: the state's size when every key has been written.
fn steady(flushes: u64, universe: u64) -> (usize, f64) {
    const FLUSH: u64 = 100_000;
    let merged = |inputs: &[Arc<Run>]| {
        // Keys are written at random: what is missing in all inputs is missing in the output.
        let missing: f64 = inputs.iter().map(|r| 1.0 - r.length as f64 / universe as f64).product();
        ((1.0 - missing) * universe as f64) as u64
    };
    let mut tree = tree();
    let mut running: Option<(u64, CompactionDone)> = None;
    let (mut most, mut rewritten) = (0, 0);
    for step in 1..=flushes {
        tree.add_runs([run(&format!("f{step}"), (step, step), FLUSH, ALL)]);
        most = most.max(tree.runs().len());
        if let Some((due, done)) = &running
            && *due <= step
        {
            let CompactionOutcome::Applied(next) = apply(&tree, done) else { panic!() };
            tree = next;
            running = None;
        }
        if running.is_none()
            && let Some(picked) = pick(tree.runs(), &KeyGroupRanges::all(), &CompactionOptions::default())
        {
            let inputs: Vec<&Arc<Run>> = picked.inputs.iter().collect();
            let mut done = done(&inputs, ALL, picked.bottom);
            done.outputs[0].length = merged(&picked.inputs);
            done.outputs[0].object = format!("c{step}");
            rewritten += done.outputs[0].length;
            running = Some((step + 2, done));
        }
    }
    (most, rewritten as f64 / (flushes * FLUSH) as f64)
}

#[test]
fn runs_stay_few_and_bytes_are_rewritten_seldom() {
    for (flushes, universe, at_most) in
        [(600, u64::MAX / 2, 5.0), (10_000, u64::MAX / 2, 11.0), (10_000, 100_000_000, 9.0), (10_000, 1_000_000, 3.5)]
    {
        let (most, rewritten) = steady(flushes, universe);
        assert!(most <= 10 && rewritten < at_most, "{flushes} flushes: {most} runs, rewritten {rewritten:.1} times");
    }
}
