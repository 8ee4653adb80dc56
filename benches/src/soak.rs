//! `bench soak`: hours of a job whose state is far larger than the memory and the SSD tier of its worker.
//!
//! keyed-count with zipf keys, each of which came once before, checkpoints every second, compaction and collection as they
//! are by default. Minute by minute: events, what the kernel says of the worker's resident set, and what the store lists.
//! At the end the job is stopped and `fsck` reads all of it. Whatever does not hold is said, and makes the bench fail.

use std::time::{Duration, Instant};

use millstream_common::size::parse_bytes;
use millstream_common::{Error, Result};
use serde_json::Value;

use crate::args::SoakArgs;
use crate::cluster::{Cluster, Plan};
use crate::filled::{Load, PARALLELISM};
use crate::outside::{CpuTicks, now, sleep};
use crate::place::Place;
use crate::stats::{Spread, hundredths, tenths, whole};
use crate::table::Table;
use crate::{Bench, note};

/// From one look at the resident sets to the next.
const LOOK: Duration = Duration::from_millis(500);
/// A minute may differ so much from the median of all.
const FLAT_WITHIN: f64 = 0.2;
/// Fewer minutes behind the warm-up say nothing about growth: the collector comes once in a while.
const TO_SEE_GROWTH: usize = 9;
/// The bucket may hold so much more in the last third than it did in the first one.
const BOUNDED_WITHIN: f64 = 1.2;

/// A minute.
#[derive(Clone, Copy, Debug, Default)]
struct Minute {
    events_per_s: f64,
    gets: f64,
    checkpoints: f64,
    /// Of the machine's CPUs, in %: other machines on its host had it.
    stolen: f64,
    /// Greatest resident sets that were seen.
    worker_bytes: u64,
    coordinator_bytes: u64,
    objects: u64,
    bytes: u64,
}

/// Runs it.
pub fn run(bench: &Bench, args: &SoakArgs) -> Result<()> {
    bench.places.kinds(Some(&[args.state]), &[args.state])?;
    let limit = parse_bytes(&args.memory_limit)?;
    let place = bench.places.fresh(args.state)?;
    let ssd = (args.gigabytes * f64::from(args.ssd_share) * 1e7) as u64;
    let options = format!("--memory-limit {} --cache-disk {ssd}", args.memory_limit);
    let mut cluster = Plan::new(&bench.binary, &place, 1)?.with_worker_options(&options).start()?;
    cluster.wait_for_workers()?;
    let load = Load::of_size(args.gigabytes, args.rate);
    let filling = Load { rate: 0, ..load }.submit_zipf(&cluster)?;
    note(&format!("soak: {} keys come once each", load.keys));
    cluster.wait_for_job(&filling, "all keys have come", |c| c.events_in >= load.filled_at())?;
    note(&format!("soak: they have after {:.0} s", cluster.started.elapsed().as_secs_f64()));
    // The same job goes on, at its rate.
    let job = if args.rate == 0 {
        filling
    } else {
        cluster.ask(&format!("stop {filling}"))?;
        load.submit_zipf(&cluster)?
    };
    cluster.wait_for_job(&job, "it runs", |c| c.checkpoints > 0.0)?;
    let minutes = watch(&mut cluster, &place, &job, args)?;
    let status = cluster.document(&format!("status {job} --json"))?;
    cluster.ask(&format!("stop {job}"))?;
    let (_, most) = cluster.worker(0).resident_bytes()?;
    drop(cluster);
    let fsck = bench.binary.call(&crate::binary::words(&format!("fsck --state {}", place.url())));
    print(args, &minutes, &status, most);
    let mut findings = findings(args, &minutes, &status, (most, limit));
    match fsck {
        Ok(said) => println!("fsck: {}\n", said.trim().replace('\n', "; ")),
        Err(e) => findings.push(format!("fsck: {e}")),
    }
    if findings.is_empty() {
        println!("All of it holds.\n");
        return Ok(());
    }
    Err(Error::unavailable(findings.join("; ")).at("bench soak").next("see the table above"))
}

fn watch(cluster: &mut Cluster<'_>, place: &Place, job: &str, args: &SoakArgs) -> Result<Vec<Minute>> {
    let mut minutes = Vec::new();
    let lost = || Error::unavailable("the coordinator does not answer any more").at("bench soak");
    let mut before = (now(), cluster.counters(job).ok_or_else(lost)?);
    for n in 1..=args.minutes {
        let end = before.0 + Duration::from_secs(args.minute.into());
        let mut minute = Minute::default();
        let ticks = CpuTicks::now();
        resident(cluster, end, &mut minute)?;
        let after = (now(), cluster.wait_for_job(job, "it runs", |_| true)?);
        minute.events_per_s = (after.1.events_in - before.1.events_in) / (after.0 - before.0).as_secs_f64();
        minute.gets = after.1.gets - before.1.gets;
        minute.checkpoints = after.1.checkpoints - before.1.checkpoints;
        minute.stolen = match (ticks, CpuTicks::now()) {
            (Some(before), Some(after)) => after.stolen_percent_since(before),
            _ => f64::NAN,
        };
        (minute.objects, minute.bytes) = place.objects("")?;
        note(&format!(
            "soak: minute {n}: {:.0} events/s, {} checkpoints, {} MB resident, {} objects of {:.2} GB, {:.0} % of the CPUs stolen",
            minute.events_per_s,
            minute.checkpoints,
            minute.worker_bytes / 1_000_000,
            minute.objects,
            minute.bytes as f64 / 1e9,
            minute.stolen
        ));
        minutes.push(minute);
        before = after;
    }
    Ok(minutes)
}

/// Looks at the resident sets until `end`.
fn resident(cluster: &Cluster<'_>, end: Instant, minute: &mut Minute) -> Result<()> {
    while now() < end {
        let (worker, coordinator) = (cluster.worker(0).resident_bytes()?.0, cluster.coordinator().resident_bytes()?.0);
        minute.worker_bytes = minute.worker_bytes.max(worker);
        minute.coordinator_bytes = minute.coordinator_bytes.max(coordinator);
        sleep(LOOK.min(end.saturating_duration_since(now())));
    }
    Ok(())
}

fn warm<'m>(args: &SoakArgs, minutes: &'m [Minute]) -> &'m [Minute] {
    minutes.get(args.warm_up as usize..).unwrap_or_default()
}

fn print(args: &SoakArgs, minutes: &[Minute], status: &Value, most: u64) {
    println!("## Soak\n");
    println!(
        "keyed-count, {} GB of keys of 1,000 bytes on {}, zipf 0.99, {PARALLELISM} subtasks in one worker below {} with an SSD tier",
        args.gigabytes,
        args.state.name(),
        args.memory_limit
    );
    println!("of {} % of the state, checkpoints every second. {} s a row.\n", args.ssd_share, args.minute);
    let mut table = Table::new(&[
        "minute",
        "events/s",
        "GETs",
        "checkpoints",
        "worker MB",
        "coordinator MB",
        "objects",
        "GB stored",
        "CPU stolen %",
    ]);
    for (n, m) in (1..).zip(minutes) {
        table.row(vec![
            format!("{n}{}", if n <= args.warm_up { " (warm-up)" } else { "" }),
            whole(m.events_per_s),
            whole(m.gets),
            whole(m.checkpoints),
            whole(m.worker_bytes as f64 / 1e6),
            whole(m.coordinator_bytes as f64 / 1e6),
            m.objects.to_string(),
            hundredths(m.bytes as f64 / 1e9),
            whole(m.stolen),
        ]);
    }
    println!("{table}");
    if let Some(speed) = Spread::of(warm(args, minutes).iter().map(|m| m.events_per_s)) {
        println!("Events/s behind the warm-up: {}.", speed.text(whole));
    }
    println!("Resident set of the worker at most: {} MB.", whole(most as f64 / 1e6));
    let number = |pointer: &str| status.pointer(pointer).and_then(Value::as_f64).unwrap_or(f64::NAN);
    println!(
        "Written over flushed: {}; restarts {}, state {} GB.\n",
        tenths(number("/writes/write_amplification")),
        number("/restarts"),
        hundredths(number("/state_bytes") / 1e9)
    );
}

/// What does not hold.
fn findings(args: &SoakArgs, minutes: &[Minute], status: &Value, (most, limit): (u64, u64)) -> Vec<String> {
    let mut found = Vec::new();
    if status["restarts"] != 0 {
        found.push(format!("the job has restarted {} times", status["restarts"]));
    }
    let warm = warm(args, minutes);
    if let Some(speed) = Spread::of(warm.iter().map(|m| m.events_per_s)) {
        let off = |value: f64| (value / speed.median - 1.0).abs();
        if !args.any_speed && (off(speed.min) > FLAT_WITHIN || off(speed.max) > FLAT_WITHIN) {
            found.push(format!("the throughput is not flat: {}", speed.text(whole)));
        }
    }
    if warm.iter().any(|m| m.checkpoints == 0.0) {
        found.push("there is a minute without a checkpoint".to_owned());
    }
    let third = warm.len() / 3;
    let most_of = |part: &[Minute], of: fn(&Minute) -> u64| part.iter().map(of).max().unwrap_or_default() as f64;
    for (what, of) in [("objects", (|m| m.objects) as fn(&Minute) -> u64), ("bytes", |m| m.bytes)] {
        let (first, last) = (most_of(&warm[..third], of), most_of(&warm[warm.len() - third..], of));
        if warm.len() >= TO_SEE_GROWTH && last > first * BOUNDED_WITHIN {
            found.push(format!("the {what} in the store grow: from {first} to {last}"));
        }
    }
    if most > limit {
        found.push(format!("the resident set came to {most}, above {limit}"));
    }
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::args::default_of;

    #[test]
    fn what_does_not_hold_is_found() {
        let args = SoakArgs { warm_up: 1, ..default_of() };
        let minute =
            |events_per_s| Minute { events_per_s, checkpoints: 60.0, objects: 100, bytes: 1_000, ..Minute::default() };
        let status = json!({"restarts": 0});
        let good = [[minute(1.0)].as_slice(), &[90.0, 100.0, 110.0].map(minute).repeat(3)].concat();
        assert_eq!(findings(&args, &good, &status, (1 << 30, 1 << 30)), [""; 0]);
        let mut bad = good.clone();
        bad[2].events_per_s = 70.0;
        bad[3].checkpoints = 0.0;
        bad[9].objects = 130;
        bad[9].bytes = 3_000;
        let found = findings(&args, &bad, &json!({"restarts": 2}), ((1 << 30) + 1, 1 << 30));
        let expected = ["restarted 2", "not flat", "without a checkpoint", "objects", "bytes", "resident set"];
        assert!(found.len() == 6 && found.iter().zip(expected).all(|(f, e)| f.contains(e)), "{found:?}");
        assert_eq!(findings(&args, &bad[..9], &status, (0, 1)).len(), 2, "too short for growth");
        let slow = SoakArgs { any_speed: true, ..args };
        assert!(!findings(&slow, &bad, &status, (0, 1)).iter().any(|f| f.contains("flat")));
    }
}
