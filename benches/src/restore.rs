//! `bench restore`: how soon fresh processes with empty caches go on with a job that has much state.
//!
//! The clock starts before the first process does. It is read when the coordinator answers, when the operator that
//! holds the state has taken its first row, when each of its subtasks has, and when the first checkpoint is durable:
//! that is when output of files would be visible. Two beginnings: of a job that was stopped and is submitted again, and
//! of one whose processes were all killed, which comes back by itself.

use std::time::Duration;

use millstream_common::{Error, Result};

use crate::args::StateArgs;
use crate::cluster::{Cluster, Counters, Plan};
use crate::filled::{Load, OPERATOR, PARALLELISM};
use crate::outside::sleep;
use crate::peers::RESTORE_NOTE;
use crate::place::StateKind;
use crate::stats::{Spread, hundredths, spread_text, tenths, whole};
use crate::table::Table;
use crate::{Bench, note};

/// How long a job runs under load before its processes are killed.
const LOADED: Duration = Duration::from_secs(4);

/// One beginning; seconds since the first process was started.
#[derive(Debug)]
struct Beginning {
    serves_s: f64,
    first_row_s: f64,
    all_subtasks_s: f64,
    first_checkpoint_s: f64,
    gets: f64,
    bytes_read: f64,
}

/// All beginnings of a size.
#[derive(Debug)]
struct Row {
    state: StateKind,
    gigabytes: f64,
    after: &'static str,
    beginnings: Vec<Beginning>,
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
    let row = |after| Row { state, gigabytes, after, beginnings: Vec::new() };
    let mut rows = [row("stop"), row("kill -9")];
    for _ in 0..args.runs {
        let mut cluster = plan.start()?;
        cluster.wait_until_it_serves()?;
        let serves_s = elapsed(&cluster);
        let job = load.submit(&cluster)?;
        rows[0].add(begin(&mut cluster, &job, serves_s)?);
        sleep(LOADED);
        drop(cluster);
        let mut cluster = plan.start()?;
        cluster.wait_until_it_serves()?;
        let serves_s = elapsed(&cluster);
        rows[1].add(begin(&mut cluster, &job, serves_s)?);
        cluster.ask(&format!("stop {job}"))?;
    }
    Ok(rows)
}

impl Row {
    fn add(&mut self, b: Beginning) {
        note(&format!(
            "{} {} GB after {}: first row {:.2} s, all subtasks {:.2} s, first checkpoint {:.2} s",
            self.state.name(),
            self.gigabytes,
            self.after,
            b.first_row_s,
            b.all_subtasks_s,
            b.first_checkpoint_s
        ));
        self.beginnings.push(b);
    }
}

fn elapsed(cluster: &Cluster<'_>) -> f64 {
    cluster.started.elapsed().as_secs_f64()
}

fn begin(cluster: &mut Cluster<'_>, job: &str, serves_s: f64) -> Result<Beginning> {
    let working = |c: &Counters| c.subtasks_of(OPERATOR).filter(|rows| *rows > 0.0).count();
    let first = cluster.wait_for_job(job, "a row is processed", |c| working(c) > 0)?;
    let first_row_s = elapsed(cluster);
    let all = PARALLELISM as usize;
    cluster.wait_for_job(job, "every subtask has processed a row", |c| working(c) == all)?;
    let all_subtasks_s = elapsed(cluster);
    cluster.wait_for_job(job, "a checkpoint is durable", |c| c.checkpoints > 0.0)?;
    let first_checkpoint_s = elapsed(cluster);
    let status = cluster.document(&format!("status {job} --json"))?;
    if status["restored_from_version"].is_null() || status["restarts"] != 0 {
        return Err(Error::internal(format!(
            "the job {job} was not restored in one go: restored_from_version {}, restarts {}",
            status["restored_from_version"], status["restarts"]
        ))
        .next("see what a run by hand says (docs/benches.md has the commands)"));
    }
    Ok(Beginning {
        serves_s,
        first_row_s,
        all_subtasks_s,
        first_checkpoint_s,
        gets: first.gets,
        bytes_read: first.bytes_read,
    })
}

fn print(args: &StateArgs, rows: &[Row]) {
    println!("## Restore\n");
    println!(
        "keyed-count, keys of 1,000 bytes, {} events/s, a coordinator and {} workers started at once with empty caches;",
        args.rate, args.workers
    );
    println!("seconds since the start of the processes, median of {} runs (least-greatest).\n", args.runs);
    let mut table = Table::new(&[
        "state",
        "GB",
        "after",
        "coordinator serves",
        "first row",
        "all subtasks",
        "first checkpoint durable",
        "GETs to first row",
        "MB read to first row",
    ]);
    for row in rows {
        let spread =
            |value: fn(&Beginning) -> f64, show: fn(f64) -> String| spread_text(row.beginnings.iter().map(value), show);
        table.row(vec![
            row.state.name().to_owned(),
            row.gigabytes.to_string(),
            row.after.to_owned(),
            spread(|b| b.serves_s, hundredths),
            spread(|b| b.first_row_s, hundredths),
            spread(|b| b.all_subtasks_s, hundredths),
            spread(|b| b.first_checkpoint_s, hundredths),
            spread(|b| b.gets, whole),
            spread(|b| b.bytes_read / 1e6, tenths),
        ]);
    }
    println!("{table}");
    ratios(rows).iter().for_each(|line| println!("{line}"));
    println!("\n{RESTORE_NOTE}\n");
}

/// The time to the first row at the largest size over that at the smallest, for each store and beginning.
fn ratios(rows: &[Row]) -> Vec<String> {
    let mut lines = Vec::new();
    for small in rows {
        let larger = rows.iter().filter(|r| (r.state, r.after) == (small.state, small.after));
        let by_size = |a: &&Row, b: &&Row| a.gigabytes.total_cmp(&b.gigabytes);
        let (Some(least), Some(large)) = (larger.clone().min_by(by_size), larger.max_by(by_size)) else { continue };
        if !std::ptr::eq(least, small) || least.gigabytes >= large.gigabytes {
            continue;
        }
        let median = |row: &Row| Spread::of(row.beginnings.iter().map(|b| b.first_row_s)).map(|s| s.median);
        if let Some((l, s)) = median(large).zip(median(small)) {
            lines.push(format!(
                "{}, after {}: first row at {} GB / at {} GB = {:.2}.",
                small.state.name(),
                small.after,
                large.gigabytes,
                small.gigabytes,
                l / s
            ));
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_the_largest_and_the_smallest() {
        let row = |gigabytes, after, first_row_s| Row {
            state: StateKind::File,
            gigabytes,
            after,
            beginnings: vec![Beginning {
                serves_s: 0.1,
                first_row_s,
                all_subtasks_s: 1.0,
                first_checkpoint_s: 2.0,
                gets: 3.0,
                bytes_read: 4e6,
            }],
        };
        let rows = [row(0.1, "stop", 0.4), row(0.5, "stop", 9.0), row(1.0, "stop", 0.5), row(0.1, "kill -9", 0.4)];
        assert_eq!(ratios(&rows), ["file, after stop: first row at 1 GB / at 0.1 GB = 1.25."]);
    }
}
