//! Constellations that independent dice seldom make: each is a plan in which a few things happen in the right order, at
//! moments that the seed draws. They are what rare mistakes need to show: a leader that sleeps through a take-over and a
//! collection, a pin between a listing and a delete, a worker that leaves while its output is on its way.

use std::time::Duration;

use millstream_objects::Faults;

use super::dice::Dice;
use super::net::Delays;
use super::plan::{COORDINATORS, Fault, Joins, Leave, Plan, Request};

/// Puts a scene in the place of what `plan` has drawn for clients and faults.
pub fn set(plan: &mut Plan, dice: &mut Dice) {
    match dice.within(0..6) {
        0 => rivals(plan, dice),
        1 => blind(plan, dice),
        2 => crowd(plan, dice),
        3 => farewell(plan, dice),
        4 => doorstep(plan, dice),
        _ => stumble(plan, dice),
    }
}

/// Nothing else happens, commits and collections come thick and fast, and there is input for a while.
fn quiet(plan: &mut Plan, dice: &mut Dice, lasts: Duration) {
    plan.requests.clear();
    plan.readers.clear();
    plan.forks.clear();
    plan.leaves.clear();
    // Places of compactors stand behind those of leaving workers.
    plan.compactor_leaves.clear();
    plan.faults.clear();
    plan.paced_ms = lasts.as_millis() as u64;
    plan.healed = lasts;
    plan.latency =
        Faults { latency_p50: Duration::from_millis(28), latency_p99: Duration::from_millis(80), ..Faults::none() };
    plan.delays = Delays { least_us: 50, most_us: 2_000, tail_us: 0 };
    plan.store.retry_timeout = Duration::from_secs(30);
    plan.store.request_timeout = Duration::from_secs(3);
    let pairs = [
        ("checkpoint.interval", "50ms"),
        ("checkpoint.timeout", "20s"),
        ("checkpoint.retained", *dice.pick(&["1", "1", "5"])),
        ("checkpoint.retained-for", "0"),
        ("versions.collect-interval", "20ms"),
        ("versions.collect-records", "1"),
    ];
    plan.settings.extend(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())));
}

/// A leader stands still, another one comes, perhaps stands still while it takes over, and one of them dies when both are
/// awake: what the other one believes then counts.
fn rivals(plan: &mut Plan, dice: &mut Dice) {
    quiet(plan, dice, Duration::from_secs(25));
    plan.heartbeat_timeout = Duration::from_millis(*dice.pick(&[1_500, 4_000]));
    let first = dice.millis(800..4_000);
    // A coordinator that finds no answer for 2 s takes over.
    let short = dice.chance(65);
    let sleeps = if short { dice.millis(1_900..2_900) } else { dice.millis(4_000..9_000) };
    let comes = first + dice.millis(0..60);
    plan.faults.push((first, Fault::Pause { place: 0, lasts: sleeps }));
    plan.faults.push((comes, Fault::SecondCoordinator));
    let mut awake = first + sleeps;
    if dice.chance(60) {
        let (stops, lasts) = (comes + dice.millis(1_950..2_500), dice.millis(1_500..5_000));
        plan.faults.push((stops, Fault::Pause { place: 1, lasts }));
        awake = awake.max(stops + lasts);
    }
    if dice.chance(80) {
        let (place, back_after) = (dice.within(0..2) as usize, dice.millis(6_000..12_000));
        plan.faults.push((awake + dice.millis(50..1_500), Fault::Kill { place, silently: false, back_after }));
    }
    plan.faults.sort_by_key(|f| f.0);
    plan.healed = plan.healed.max(awake + Duration::from_secs(14));
}

/// A leader that stood still goes on for a while, since it cannot see that another one leads, who stands still amid taking
/// its job over: what the first commits and collects meanwhile, the other must not believe to be free.
fn blind(plan: &mut Plan, dice: &mut Dice) {
    quiet(plan, dice, Duration::from_secs(22));
    plan.heartbeat_timeout = Duration::from_secs(4);
    plan.parallelism = 1;
    let first = dice.millis(800..4_000);
    let comes = first + dice.millis(0..30);
    // It wakes up when nobody can see any more who leads.
    plan.faults.push((first, Fault::Pause { place: 0, lasts: dice.millis(2_550..2_700) }));
    plan.faults.push((comes, Fault::SecondCoordinator));
    // It has written that it leads, and has looked once more whether it still does.
    let leads = comes + dice.millis(2_400..2_520);
    // Long enough for the other to fill a group of records, since only whole groups are collected.
    let (stops, lasts) = (leads + dice.millis(50..350), dice.millis(4_000..8_000));
    let unseen = Faults { error_before: 1.0, only_paths_with: "_cluster/leader".into(), ..plan.latency.clone() };
    let seen_again = stops + lasts + dice.millis(100..1_200);
    plan.faults.push((leads, Fault::Store { faults: Box::new(unseen), lasts: seen_again - leads }));
    plan.faults.push((stops, Fault::Pause { place: 1, lasts }));
    if dice.chance(50) {
        let back_after = dice.millis(6_000..12_000);
        let when = seen_again + dice.millis(0..800);
        plan.faults.push((when, Fault::Kill { place: 0, silently: false, back_after }));
    }
    plan.faults.sort_by_key(|f| f.0);
}

/// Many brisk readers under few ids, and releases that are carried out late.
fn crowd(plan: &mut Plan, dice: &mut Dice) {
    quiet(plan, dice, Duration::from_secs(12));
    plan.brisk_readers = true;
    for _ in 0..60 {
        plan.readers.push(dice.millis(300..11_000));
    }
    plan.readers.sort();
    if dice.chance(50) {
        let faults = Faults {
            late_write: 0.4,
            late_by: dice.millis(200..3_000),
            only_paths_with: "/pins/".into(),
            ..plan.latency.clone()
        };
        plan.faults.push((Duration::from_millis(200), Fault::Store { faults: Box::new(faults), lasts: plan.healed }));
    }
}

/// Workers leave one after the other, each replaced in time, while the place that output goes to is out of order, and
/// sometimes the network is slow: what they owe must not be forgotten.
fn farewell(plan: &mut Plan, dice: &mut Dice) {
    quiet(plan, dice, Duration::from_secs(20));
    plan.drain_timeout = Duration::from_secs(25);
    if dice.chance(50) {
        plan.delays = Delays { least_us: 100, most_us: 40_000, tail_us: 300_000 };
    }
    for i in 0..u64::from(plan.workers) {
        let when = Duration::from_secs(2 + 3 * i) + dice.millis(0..1_500);
        let place = COORDINATORS + i as usize;
        let spare = COORDINATORS + (u64::from(plan.workers) + i) as usize;
        plan.leaves.push((when, Leave { place, spare, joins: Joins::Before(Duration::from_millis(1_500)) }));
        if dice.chance(70) {
            let (percent, lasts) = (dice.within(50..100), dice.millis(500..3_000));
            plan.faults.push((when.saturating_sub(dice.millis(0..300)), Fault::Outside { percent, lasts }));
        }
        if dice.chance(30) {
            plan.requests.push((when + dice.millis(0..800), Request::Rescale(dice.within(1..5) as u32)));
        }
    }
    plan.requests.sort_by_key(|r| r.0);
    plan.faults.sort_by_key(|f| f.0);
}

/// A leader dies; the next one stands still between becoming it and taking the job over. Meanwhile the first is back, finds nobody
/// who answers, and takes the job over: the other must not take it away again when it wakes.
fn doorstep(plan: &mut Plan, dice: &mut Dice) {
    quiet(plan, dice, Duration::from_secs(20));
    plan.heartbeat_timeout = Duration::from_secs(4);
    let dies = dice.millis(800..4_000);
    let comes = dies + dice.millis(0..30);
    // It has found no answer for 2 s, has written that it leads, and has not read the job's newest record yet.
    let stops = comes + dice.millis(2_150..2_600);
    let back = stops + dice.millis(20..400);
    plan.faults.push((dies, Fault::Kill { place: 0, silently: false, back_after: back - dies }));
    plan.faults.push((comes, Fault::SecondCoordinator));
    plan.faults.push((stops, Fault::Pause { place: 1, lasts: dice.millis(4_000..8_000) }));
}

/// Barriers of rescales pass some subtasks and not others before their time is over, while checkpoints may fail.
fn stumble(plan: &mut Plan, dice: &mut Dice) {
    quiet(plan, dice, Duration::from_secs(18));
    plan.heartbeat_timeout = Duration::from_secs(4);
    plan.store.multipart_part_bytes = 16 << 20;
    let pairs = [("checkpoint.timeout", "1s"), ("checkpoint.tolerable-failures", "10")];
    plan.settings.extend(pairs.map(|(k, v)| (k.to_owned(), v.to_owned())));
    for i in 0..4 {
        let when = Duration::from_secs(2 + 4 * i) + dice.millis(0..1_500);
        plan.requests.push((when, Request::Rescale(dice.within(1..5) as u32)));
        let lasts = dice.millis(1_100..2_500);
        let fault = if dice.chance(50) {
            Fault::Pause { place: COORDINATORS + dice.within(0..u64::from(plan.workers)) as usize, lasts }
        } else {
            let faults = Faults { error_before: 1.0, only_paths_with: "/data/".into(), ..plan.latency.clone() };
            Fault::Store { faults: Box::new(faults), lasts }
        };
        plan.faults.push((when + dice.millis(0..300), fault));
    }
}
