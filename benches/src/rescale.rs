//! `bench rescale`: a job under load goes from 2 to 4 subtasks and back.
//!
//! The pause is told twice: by the engine (`pause_ms` of `status`), and from outside, as the longest time for which the
//! rows of the job, or of a subtask that is there before and after, stood still. The same from a stretch without a
//! rescale says how fine that measure is.

use std::time::{Duration, Instant};

use millstream_common::{Error, Result};
use serde_json::Value;

use crate::args::StateArgs;
use crate::cluster::{Cluster, Counters, LOOK, Plan};
use crate::filled::{Load, OPERATOR, PARALLELISM};
use crate::outside::{now, sleep};
use crate::peers::{PAUSE_BAR_MS, PAUSE_RATIO_BAR, RESCALE_NOTE};
use crate::place::{Place, StateKind};
use crate::stats::{Spread, hundredths, spread_text, tenths, whole};
use crate::table::Table;
use crate::{Bench, note};

/// The parallelism in between.
const WIDE: u32 = 4;
/// Under load before the first measurement.
const WARM: Duration = Duration::from_secs(5);
/// Looked at before a rescale.
const QUIET: Duration = Duration::from_secs(5);
/// So many checkpoints come to their end in it, of one a second: what sources have read may stand in queues, but no barrier
/// passes those rows.
const KEEPS_UP_CHECKPOINTS: f64 = 3.0;
/// A job keeps up when it has stood still no longer than this for [`QUIET`] and taken nearly all rows of its rate.
const KEEPS_UP_GAP: Duration = Duration::from_millis(500);
/// The share of its rate that is nearly all.
const KEEPS_UP_SHARE: f64 = 0.95;
/// How long it may take to keep up: caches are empty, and there may be ten times as much state as they hold.
const KEEPS_UP_WITHIN: Duration = Duration::from_secs(900);
/// Rescales there and back for each start of fresh processes.
const ROUNDS: usize = 2;
/// Looked at behind a rescale.
const AFTER: Duration = Duration::from_secs(1);

/// One rescale.
#[derive(Debug)]
struct Step {
    said_ms: f64,
    gap_ms: f64,
    usual_ms: f64,
    /// Until it kept up with its load, [`QUIET`] included.
    warm_s: f64,
    command_s: f64,
    objects_copied: f64,
    bytes_written: f64,
}

/// All rescales of a size in one direction.
#[derive(Debug)]
struct Row {
    state: StateKind,
    gigabytes: f64,
    from: u32,
    to: u32,
    state_bytes: f64,
    steps: Vec<Step>,
}

/// Measures and prints.
pub fn run(bench: &Bench, args: &StateArgs) -> Result<()> {
    let mut rows = Vec::new();
    for state in bench.places.kinds(args.state.as_deref(), &[StateKind::File, StateKind::S3])? {
        for &gigabytes in &args.sizes {
            rows.extend(of_size(bench, args, state, gigabytes)?);
        }
    }
    print(args, &rows);
    Ok(())
}

fn of_size(bench: &Bench, args: &StateArgs, state: StateKind, gigabytes: f64) -> Result<[Row; 2]> {
    let place = bench.places.fresh(state)?;
    let mut plan = Plan::new(&bench.binary, &place, args.workers)?.with_worker_options(&args.worker_options());
    let load = Load::of_size(gigabytes, args.rate);
    load.fill(&mut plan)?;
    let row = |from, to| Row { state, gigabytes, from, to, state_bytes: 0.0, steps: Vec::new() };
    let mut rows = [row(PARALLELISM, WIDE), row(WIDE, PARALLELISM)];
    for _ in 0..args.runs {
        let mut cluster = plan.start()?;
        cluster.wait_for_workers()?;
        let job = load.submit(&cluster)?;
        let warm = args.rate as f64 * WARM.as_secs_f64();
        cluster.wait_for_job(&job, "it runs under load", |c| c.events_in >= warm)?;
        for row in [0, 1].repeat(ROUNDS) {
            let row: &mut Row = &mut rows[row];
            let step = rescale(&mut cluster, &place, (&job, args.rate), row)?;
            note(&format!(
                "{} {gigabytes} GB {} -> {}: {} ms said, {:.0} ms from outside ({:.0} usual), warm after {:.0} s",
                state.name(),
                row.from,
                row.to,
                step.said_ms,
                step.gap_ms,
                step.usual_ms,
                step.warm_s
            ));
            row.steps.push(step);
        }
        cluster.ask(&format!("stop {job}"))?;
    }
    Ok(rows)
}

fn rescale(cluster: &mut Cluster<'_>, place: &Place, (job, rate): (&str, u64), row: &mut Row) -> Result<Step> {
    let began = now();
    let usual = keeps_up(cluster, job, rate)?;
    let warm_s = began.elapsed().as_secs_f64();
    let mut seen = usual.last().cloned().into_iter().collect::<Vec<_>>();
    let start = now();
    let mut command = cluster.begin(&format!("rescale {job} -p {}", row.to), place)?;
    while !command.has_ended()? {
        seen.push(look(cluster, job)?);
        sleep(LOOK);
    }
    let command_s = start.elapsed().as_secs_f64();
    command.finish(Duration::ZERO)?;
    seen.extend(looks(cluster, job, AFTER)?);
    let status = cluster.document(&format!("status {job} --json"))?;
    let said = rescaled(&status, row)?;
    row.state_bytes = status["state_bytes"].as_f64().unwrap_or_default();
    let number = |field: &str| said[field].as_f64().unwrap_or(f64::NAN);
    Ok(Step {
        said_ms: number("pause_ms"),
        gap_ms: longest_gap(&seen).as_secs_f64() * 1e3,
        usual_ms: longest_gap(&usual).as_secs_f64() * 1e3,
        warm_s,
        command_s,
        objects_copied: number("objects_copied"),
        bytes_written: number("bytes_written"),
    })
}

/// Looks at the job until it keeps up with its load for [`QUIET`]: a rescale of one that does not would be measured by
/// its backlog.
fn keeps_up(cluster: &mut Cluster<'_>, job: &str, rate: u64) -> Result<Vec<Look>> {
    let start = now();
    loop {
        let seen = looks(cluster, job, QUIET)?;
        let (Some(first), Some(last)) = (seen.first(), seen.last()) else { continue };
        let due = rate as f64 * last.start.duration_since(first.end).as_secs_f64();
        let rows = last.counters.events_in - first.counters.events_in;
        let checkpoints = last.counters.checkpoints - first.counters.checkpoints;
        let takes_all = rows >= due * KEEPS_UP_SHARE && checkpoints >= KEEPS_UP_CHECKPOINTS;
        if takes_all && longest_gap(&seen) <= KEEPS_UP_GAP {
            return Ok(seen);
        }
        if start.elapsed() > KEEPS_UP_WITHIN {
            return Err(Error::unavailable(format!(
                "the job does not keep up with {rate} events/s: {rows:.0} of {due:.0}, {checkpoints:.0} checkpoints in the last {QUIET:?}"
            ))
            .next("give a lower --rate"));
        }
    }
}

/// What the status says of the rescale that has just been done.
fn rescaled<'a>(status: &'a Value, row: &Row) -> Result<&'a Value> {
    let last = status["rescales"].as_array().and_then(|r| r.last());
    let right = |r: &&Value| r["from"] == row.from && r["to"] == row.to && status["restarts"] == 0;
    last.filter(right).ok_or_else(|| {
        Error::internal(format!(
            "the status tells of no live rescale from {} to {}: rescales {}, restarts {}",
            row.from, row.to, status["rescales"], status["restarts"]
        ))
        .next("the job was restarted meanwhile: see the logs of the workers (bench with a smaller size first)")
    })
}

/// Counters at some moment between two times.
#[derive(Clone, Debug)]
struct Look {
    start: Instant,
    end: Instant,
    counters: Counters,
}

fn look(cluster: &mut Cluster<'_>, job: &str) -> Result<Look> {
    let mut start = now();
    let counters = cluster.wait("a status", |c| {
        start = now();
        Ok(c.counters(job))
    })?;
    Ok(Look { start, end: now(), counters })
}

fn looks(cluster: &mut Cluster<'_>, job: &str, length: Duration) -> Result<Vec<Look>> {
    let start = now();
    let mut looks = Vec::new();
    while start.elapsed() < length {
        looks.push(look(cluster, job)?);
        sleep(LOOK);
    }
    Ok(looks)
}

/// The longest gap of the job, and of each subtask that is there at the first and at the last look.
fn longest_gap(looks: &[Look]) -> Duration {
    let (Some(first), Some(last)) = (looks.first(), looks.last()) else { return Duration::ZERO };
    let stay = first.counters.rows_in.keys().filter(|k| k.0 == OPERATOR && last.counters.rows_in.contains_key(*k));
    let of_subtasks = stay.map(|key| stood_still(looks, |c| c.rows_in.get(key).copied()));
    of_subtasks.chain([stood_still(looks, |c| Some(c.events_in))]).max().unwrap_or_default()
}

/// How long a counter surely did not move: from the end of the first look that showed a value to the start of the last
/// one that showed it still.
fn stood_still(looks: &[Look], counter: impl Fn(&Counters) -> Option<f64>) -> Duration {
    let mut longest = Duration::ZERO;
    let mut shown: Option<(f64, Instant)> = None;
    for look in looks {
        let value = counter(&look.counters);
        match (shown, value) {
            (Some((old, since)), Some(value)) if old == value => {
                longest = longest.max(look.start.saturating_duration_since(since));
            }
            _ => shown = value.map(|v| (v, look.end)),
        }
    }
    longest
}

fn print(args: &StateArgs, rows: &[Row]) {
    println!("## Rescale under load\n");
    println!(
        "keyed-count, keys of 1,000 bytes, {} events/s, checkpoints every 1s, {} workers, fresh processes with empty",
        args.rate, args.workers
    );
    println!(
        "caches for each of {} runs, {ROUNDS} rescales each way once the job keeps up; median (least-greatest). Bar: a pause of at most {PAUSE_BAR_MS} ms.\n",
        args.runs
    );
    let mut table = Table::new(&[
        "state",
        "GB",
        "rescale",
        "pause ms (said)",
        "pause ms (outside)",
        "without a rescale",
        "warm s",
        "command s",
        "objects copied",
        "MB written",
        "state MB said",
    ]);
    for row in rows {
        let spread = |value: fn(&Step) -> f64, show: fn(f64) -> String| spread_text(row.steps.iter().map(value), show);
        table.row(vec![
            row.state.name().to_owned(),
            row.gigabytes.to_string(),
            format!("{} -> {}", row.from, row.to),
            spread(|s| s.said_ms, whole),
            spread(|s| s.gap_ms, whole),
            spread(|s| s.usual_ms, whole),
            spread(|s| s.warm_s, whole),
            spread(|s| s.command_s, hundredths),
            spread(|s| s.objects_copied, whole),
            spread(|s| s.bytes_written / 1e6, tenths),
            whole(row.state_bytes / 1e6),
        ]);
    }
    println!("{table}");
    ratios(rows).iter().for_each(|line| println!("{line}"));
    println!("\n{RESCALE_NOTE}\n");
}

/// The pause of the largest size over that of the smallest, for each store and direction.
fn ratios(rows: &[Row]) -> Vec<String> {
    let mut lines = Vec::new();
    for state in [StateKind::File, StateKind::S3] {
        for to in [WIDE, PARALLELISM] {
            let same = || rows.iter().filter(|r| r.state == state && r.to == to);
            let size = |a: &&Row, b: &&Row| a.gigabytes.total_cmp(&b.gigabytes);
            let (Some(small), Some(large)) = (same().min_by(size), same().max_by(size)) else { continue };
            let ratio = |value: fn(&Step) -> f64| {
                let median = |row: &Row| Spread::of(row.steps.iter().map(value)).map(|s| s.median);
                median(large).zip(median(small)).map_or("-".to_owned(), |(l, s)| format!("{:.2}", l / s.max(1.0)))
            };
            if small.gigabytes < large.gigabytes {
                lines.push(format!(
                    "{}, {} -> {to}: pause at {} GB / at {} GB = {} (said), {} (outside); bar < {PAUSE_RATIO_BAR}.",
                    state.name(),
                    large.from,
                    large.gigabytes,
                    small.gigabytes,
                    ratio(|s| s.said_ms),
                    ratio(|s| s.gap_ms)
                ));
            }
        }
    }
    lines
}

#[cfg(test)]
#[path = "rescale_tests.rs"]
mod tests;
