use std::sync::Arc;

use millstream_common::{Epoch, KeyGroupRange, KeyGroupRanges};

use super::*;
use crate::section::Interval;
use crate::testing::{TASK, tree};
use crate::{Run, Tree};

pub(super) fn ranges(pairs: &[(u32, u32)]) -> KeyGroupRanges {
    pairs.iter().map(|&(a, b)| KeyGroupRange::new(a, b)).collect()
}

pub(super) fn run(name: &str, epochs: (u64, u64), length: u64, clip: &[(u32, u32)]) -> Arc<Run> {
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
    let mut runs = vec![
        run("c", (3, 3), 10_000, ALL),
        run("b", (2, 2), 10_000, &[(0, 100)]),
        run("a", (1, 1), 10_000, &[(50, 1000)]),
    ];
    let picked = pick(&runs, &KeyGroupRanges::all(), &options(3)).unwrap();
    assert_eq!((names(&picked.inputs), &picked.ranges), (vec!["c", "b", "a"], &ranges(&[(50, 100)])));
    // Below the trigger what does not cover all goes into what is older.
    let picked = pick(&runs, &KeyGroupRanges::all(), &options(8)).unwrap();
    assert_eq!((names(&picked.inputs), &picked.ranges, picked.bottom), (vec!["b", "a"], &ranges(&[(50, 100)]), true));
    // What covers the same key groups is merged first, where there is such.
    let more: Vec<_> = (4..=5).map(|e| run(&format!("d{e}"), (e, e), 10, ALL)).collect();
    let picked = pick(&[&runs[..], &more[..]].concat(), &KeyGroupRanges::all(), &options(3)).unwrap();
    assert_eq!((names(&picked.inputs), &picked.ranges), (vec!["d5", "d4", "c"], &ranges(&[(0, 1000)])));
    runs[1] = run("b", (2, 2), 10_000, &[(0, 65_535)]);
    let picked = pick(&runs, &KeyGroupRanges::all(), &options(2)).unwrap();
    assert_eq!((names(&picked.inputs), &picked.ranges), (vec!["c", "b", "a"], &ranges(&[(50, 1000)])));
    runs[1] = run("b", (2, 2), 10_000, &[(0, 100)]);
    // Only in the ranges of the one who asks.
    assert_eq!(pick(&runs, &ranges(&[(100, 2000)]), &options(3)), None);
    let two = pick(&runs, &ranges(&[(0, 50), (100, 2000)]), &options(2)).unwrap();
    assert_eq!((names(&two.inputs), two.ranges), (vec!["c", "b"], ranges(&[(0, 50)])));
}

#[test]
fn what_is_being_merged_is_left_alone_and_younger_runs_are_merged_meanwhile() {
    let mut runs: Vec<_> = (1..=8).map(|e| run(&format!("r{e}"), (e, e), 100, ALL)).collect();
    let busy = pick(&runs, &KeyGroupRanges::all(), &options(8)).unwrap().inputs;
    assert_eq!(busy.len(), 8);
    let limits = Limits { busy: &busy, put_off_bytes: None };
    assert_eq!(pick_within(&runs, &KeyGroupRanges::all(), &options(8), &limits), None, "nothing else is there");
    runs.extend((9..=12).map(|e| run(&format!("r{e}"), (e, e), 100, ALL)));
    assert_eq!(pick_within(&runs, &KeyGroupRanges::all(), &options(8), &limits), None, "too few to be worth it");
    runs.push(run("r13", (13, 13), 100, ALL));
    let around = pick_within(&runs, &KeyGroupRanges::all(), &options(8), &limits).unwrap();
    assert_eq!(names(&around.inputs), ["r13", "r12", "r11", "r10", "r9"]);
    assert!(!around.bottom);
    // One that lies in between parts its neighbours.
    let busy = [runs[10].clone()];
    let limits = Limits { busy: &busy, put_off_bytes: None };
    let older = pick_within(&runs, &KeyGroupRanges::all(), &options(8), &limits).unwrap();
    assert_eq!((names(&older.inputs).len(), names(&older.inputs)[0], older.bottom), (10, "r10", true));
}

#[test]
fn a_large_merge_into_the_oldest_run_waits_until_it_is_overdue() {
    const MIB: u64 = 1 << 20;
    let limits = Limits { busy: &[], put_off_bytes: Some(64 * MIB) };
    let all = KeyGroupRanges::all();
    let under = |runs: &[Arc<Run>], trigger| pick_within(runs, &all, &options(trigger), &limits);
    // Equal runs above a large one: by weight all would go into one.
    let mut runs: Vec<_> = (1..=7).map(|e| run(&format!("r{e}"), (e, e), 10 * MIB, ALL)).collect();
    runs.push(run("big", (0, 0), 55 * MIB, ALL));
    assert!(pick(&runs, &all, &options(8)).unwrap().bottom);
    let picked = under(&runs, 8).unwrap();
    assert_eq!((names(&picked.inputs), picked.bottom), (vec!["r7", "r6", "r5", "r4", "r3", "r2", "r1"], false));
    // Once twice as much lies above it as in it, it waits no longer.
    runs.push(run("r8", (8, 8), 40 * MIB, ALL));
    assert!(under(&runs, 8).unwrap().bottom);
    // With two runs there is nothing else to merge: it waits, but not beyond the bound.
    let runs = [run("new", (2, 2), MIB, ALL), run("big", (0, 0), 75 * MIB, ALL)];
    assert_eq!(under(&runs, 2), None);
    let runs = [run("newer", (3, 3), MIB, ALL), runs[0].clone(), runs[1].clone()];
    assert_eq!(options(2).runs_max(), 3);
    assert!(under(&runs, 2).unwrap().bottom);
    // A small one never waits.
    let small = [run("new", (2, 2), MIB, ALL), run("old", (0, 0), 5 * MIB, ALL)];
    assert!(under(&small, 2).unwrap().bottom);
}

#[test]
fn a_large_oldest_run_is_merged_piece_by_piece_once_a_quarter_lies_above_it() {
    const MIB: u64 = 1 << 20;
    let options = CompactionOptions { trigger_runs: 8, output_bytes: 10 * MIB };
    let all = KeyGroupRanges::all();
    let under =
        |runs: &[Arc<Run>], put_off_bytes| pick_within(runs, &all, &options, &Limits { busy: &[], put_off_bytes });
    let step = 65_536 / 32;
    // 320 MiB in 32 pieces.
    let base: Vec<_> =
        (0..32).map(|i| run(&format!("b{i}"), (0, 0), 10 * MIB, &[(i * step, (i + 1) * step)])).collect();
    let with = |above: &[Arc<Run>]| [above, &base].concat();
    assert_eq!(under(&with(&[run("u", (1, 1), 79 * MIB, ALL)]), None), None);
    // Two runs become one first.
    let two = with(&[run("v", (2, 2), 40 * MIB, ALL), run("u", (1, 1), 41 * MIB, ALL)]);
    let picked = under(&two, None).unwrap();
    assert_eq!((names(&picked.inputs), picked.bottom), (vec!["v", "u"], false));
    // Then it goes into as many pieces as a merge takes: 80 MiB.
    let one = with(&[run("uv", (1, 2), 81 * MIB, ALL)]);
    let picked = under(&one, None).unwrap();
    assert_eq!(names(&picked.inputs), ["uv", "b0", "b1", "b2", "b3", "b4", "b5"]);
    assert_eq!((picked.ranges, picked.bottom), (ranges(&[(0, 6 * step)]), true));
    assert_eq!(under(&one, Some(64 * MIB)), None, "it waits for its hours");
    // It goes on with the rest, whatever came meanwhile; not while another one runs.
    let mut rest = with(&[run("w", (3, 3), MIB, ALL), run("uv", (1, 2), 66 * MIB, &[(6 * step, 65_536)])]);
    rest.retain(|r| !["b0", "b1", "b2", "b3", "b4", "b5"].contains(&r.object.as_str()));
    rest.push(run("b", (0, 2), 60 * MIB, &[(0, 6 * step)]));
    assert_eq!(names(&under(&rest, None).unwrap().inputs)[..2], ["uv", "b6"]);
    let busy = [rest[2].clone()];
    assert_eq!(pick_within(&rest, &all, &options, &Limits { busy: &busy, put_off_bytes: None }), None);
}

#[test]
fn debt_is_what_lies_in_key_groups_with_many_runs() {
    assert_eq!(debt_bytes(&[], &options(3)), 0);
    let mut runs = vec![run("a", (1, 1), 1_000, &[(0, 100)]), run("b", (2, 2), 1_000, &[(0, 100)])];
    assert_eq!(debt_bytes(&runs, &options(3)), 0);
    runs.push(run("c", (3, 3), 1_000, &[(50, 150)]));
    assert_eq!(debt_bytes(&runs, &options(3)), 1_500);
}

/// However long a merge of the oldest runs takes, and whenever the schedule allows it, reads see few runs.
#[test]
fn runs_stay_within_the_bound_while_large_merges_wait() {
    let (all, options) = (KeyGroupRanges::all(), options(4));
    let mut tree = tree();
    tree.add_runs([run("big", (0, 0), 1 << 30, ALL)]);
    let limits = Limits { busy: &[], put_off_bytes: Some(1 << 20) };
    for epoch in 1..=500 {
        tree.add_runs([run(&format!("r{epoch}"), (epoch, epoch), 100 << 10, ALL)]);
        while let Some(pick) = pick_within(tree.runs(), &all, &options, &limits) {
            assert!(!pick.bottom, "the schedule forbids it");
            let hull = pick.inputs.iter().map(|i| i.interval).reduce(Interval::hull).unwrap();
            let bytes = pick.inputs.iter().map(|i| i.length).sum();
            let of = (hull.min.epoch.0, hull.max.epoch.0);
            let output = Run::clone(&run(&format!("m{}-{}", of.0, of.1), of, bytes, ALL));
            let Pick { inputs, ranges, bottom } = pick;
            let done = CompactionDone { task: TASK, inputs, ranges, bottom, outputs: vec![output] };
            let CompactionOutcome::Applied(after) = apply(&tree, &done) else { panic!("it fits") };
            tree = after;
        }
        assert!(tree.runs().len() < options.trigger_runs, "{} runs", tree.runs().len());
    }
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

/// What many flushes have led to.
#[derive(Debug)]
struct Steady {
    /// Most runs ever seen, and how many were behind a flush in the mean.
    most: usize,
    mean: f64,
    /// Bytes rewritten for each byte flushed.
    rewritten: f64,
    /// Compactions for each flush: each is a PUT at least.
    merges: f64,
    /// The share of them that took runs of the last 16 flushes only, and the share of rewritten bytes in those.
    young: (f64, f64),
}

/// A flush of 100 KB each step, over nothing or over a large run, and compactions that take `takes` steps. `universe`: the
/// state's size when every key has been written.
fn steady(flushes: u64, (base, universe): (u64, u64), trigger_runs: usize, takes: u64) -> Steady {
    const FLUSH: u64 = 100_000;
    const YOUNG: u64 = 16;
    let merged = |inputs: &[Arc<Run>]| {
        // Keys are written at random: what is missing in all inputs is missing in the output.
        let missing: f64 = inputs.iter().map(|r| 1.0 - r.length as f64 / universe as f64).product();
        ((1.0 - missing) * universe as f64) as u64
    };
    let mut tree = tree();
    if base > 0 {
        tree.add_runs([run("base", (0, 0), base, ALL)]);
    }
    let mut running: Option<(u64, CompactionDone)> = None;
    let (mut most, mut seen, mut rewritten, mut merges, mut young) = (0, 0, 0, 0, (0, 0));
    for step in 1..=flushes {
        tree.add_runs([run(&format!("f{step}"), (step, step), FLUSH, ALL)]);
        most = most.max(tree.runs().len());
        seen += tree.runs().len();
        if let Some((due, done)) = &running
            && *due <= step
        {
            let CompactionOutcome::Applied(next) = apply(&tree, done) else { panic!() };
            tree = next;
            running = None;
        }
        if running.is_none()
            && let Some(picked) = pick(tree.runs(), &KeyGroupRanges::all(), &options(trigger_runs))
        {
            let inputs: Vec<&Arc<Run>> = picked.inputs.iter().collect();
            let mut done = done(&inputs, ALL, picked.bottom);
            done.outputs[0].length = merged(&picked.inputs);
            done.outputs[0].object = format!("c{step}");
            rewritten += done.outputs[0].length;
            merges += 1;
            if done.outputs[0].interval.min.epoch.0 + YOUNG > step {
                young = (young.0 + 1, young.1 + done.outputs[0].length);
            }
            running = Some((step + takes, done));
        }
    }
    let share = |part: u64, of: u64| part as f64 / of as f64;
    Steady {
        most,
        mean: share(seen as u64, flushes),
        rewritten: share(rewritten, flushes * FLUSH),
        merges: share(merges, flushes),
        young: (share(young.0, merges), share(young.1, rewritten)),
    }
}

#[test]
fn runs_stay_few_and_bytes_are_rewritten_seldom() {
    for (flushes, universe, at_most) in
        [(600, u64::MAX / 2, 5.0), (10_000, u64::MAX / 2, 11.0), (10_000, 100_000_000, 9.0), (10_000, 1_000_000, 3.5)]
    {
        let s = steady(flushes, (0, universe), 8, 2);
        assert!(s.most <= 10 && s.rewritten < at_most, "{flushes} flushes: {s:?}");
    }
}

/// What it costs to let a read see fewer runs, and what a writer that folds its own last sections into its next bundle
/// could take over: the merges of young runs, by the same picks, without their PUTs.
#[test]
fn a_lower_trigger_means_fewer_runs_and_more_bytes() {
    println!(
        "state, trigger, flushes that a merge takes: most runs, mean; rewritten; merges a flush; young merges, bytes"
    );
    for (name, flushes, state, at_most) in [
        ("600 flushes over 1 GB", 600, (1_000_000_000, 1_000_000_000), 9.0),
        ("10,000 flushes, 100 MB", 10_000, (0, 100_000_000), 11.0),
        ("10,000 flushes, no end", 10_000, (0, u64::MAX / 2), 20.0),
    ] {
        for (trigger, takes) in [(6, 1), (6, 2), (8, 1), (8, 2)] {
            let s = steady(flushes, state, trigger, takes);
            println!(
                "{name}, {trigger}, {takes}: {}, {:.1}; {:.1}; {:.2}; {:.2}, {:.2}",
                s.most, s.mean, s.rewritten, s.merges, s.young.0, s.young.1
            );
            // Its owner sees a flush a little before the record in which a merge takes others away.
            let runs = trigger + takes as usize;
            assert!(s.most <= runs && s.rewritten < at_most, "{name}, {trigger}, {takes}: {s:?}");
        }
    }
}
