//! What must hold when a job has finished: output and final state as in the reference, every version sound.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use millstream_common::{Error, KEY_GROUPS, KeyGroupRanges, Result, StateId, TaskId, VersionNumber};
use millstream_engine::element::{RowKind, WATERMARK_MAX};
use millstream_objects::object_store::memory::InMemory;
use millstream_objects::{Purpose, Store, StoreOptions};
use millstream_proto::version::VersionRecord;
use millstream_proto::version::version_record::Status;
use millstream_state_store::Caches;
use millstream_state_store::entry::MergeOperators;
use millstream_state_store::key::{split_point_key, state_end, state_start};
use millstream_state_store::tree::Tree;
use millstream_state_store::version::garbage::objects_of;
use millstream_state_store::version::pins::Pinned;
use millstream_state_store::version::{VersionLog, encode_record};
use millstream_state_store::{ReadTime, StateStore, StateStoreOptions, fsck};
use serde_json::Value;

use super::cluster::Cluster;
use super::data::Dataset;
use super::plan::{Plan, Request};
use super::reference;
use super::reminders::key_number;
use super::run::{NAME, fork_name};
use super::sink::Row;
use super::visits;

/// Checks everything; what is wrong goes into the trace.
pub async fn all(cluster: &Cluster, plan: &Plan, data: &Dataset, status: &Value) {
    for sink in plan.sinks.iter().filter(|_| data.late) {
        if let Err(why) = with_late_rows(&cluster.outside.rows(sink), &reference::rows(data, sink), plan, status) {
            cluster.trace.violation(format!("output {sink}: {why}"));
        }
    }
    for sink in plan.sinks.iter().filter(|_| !data.late) {
        if let Err(why) = output(&cluster.outside.rows(sink), data, sink) {
            cluster.trace.violation(format!("output {sink}: {why}"));
        }
    }
    counters(cluster, plan, data, status);
    other_release(cluster).await;
    job(cluster, plan, data, NAME).await;
    for name in (0..plan.forks.len()).map(fork_name) {
        // One that came to be when nobody waited for it any more may stand at any version.
        if cluster.ledger.newest(&name).is_some_and(|r| r.status() == Status::Finished) {
            fork(cluster, plan, data, &name);
            job(cluster, plan, data, &name).await;
        }
    }
    let log = VersionLog::new(cluster.inspector().child(NAME), cluster.env.clone());
    let pins = match log.pins().list().await {
        Ok(pins) => pins,
        Err(e) => return cluster.trace.violation(format!("the pins cannot be read: {e}")),
    };
    match fsck::check(&cluster.inspector(), &cluster.env).await {
        Ok(mut report) => {
            report.problems.retain(|p| !only_reborn_pins_want(cluster, &pins, &p.object));
            if !report.problems.is_empty() {
                return cluster.trace.violation(format!("fsck: {:?}", report.problems));
            }
            if let Err(e) = leaks(cluster).await {
                cluster.trace.violation(format!("leaks: {e}"));
            }
        }
        Err(e) => cluster.trace.violation(format!("fsck: {e}")),
    }
}

/// Whether what is wrong with `object` is that it is gone, and all pins on it were released and came back by writes that
/// landed late.
fn only_reborn_pins_want(cluster: &Cluster, pins: &[Pinned], object: &str) -> bool {
    let version = object.strip_prefix(&format!("{NAME}/version/")).and_then(|n| n.parse().ok());
    let mut wanting = pins.iter().filter(|p| Some(p.pin.version) == version).peekable();
    wanting.peek().is_some() && wanting.all(|p| cluster.ledger.was_deleted(&format!("{NAME}/{}", p.path)))
}

/// A release that hashes keys in another way refuses the state: it would look for every key in the wrong place.
async fn other_release(cluster: &Cluster) {
    let Some(mut record) = cluster.ledger.newest(NAME) else { return };
    record.hash_id += 1;
    record.delta = None;
    let number = VersionNumber(record.number);
    let store = Store::from_backend(Arc::new(InMemory::new()), "memory://", &StoreOptions::default(), &cluster.env);
    let body = vec![Bytes::from(encode_record(&record))];
    let read = async {
        store.put(&VersionLog::path(number), body, Purpose::Version).await?;
        VersionLog::new(store.clone(), cluster.env.clone()).newest().await
    };
    match read.await {
        Err(e) if e.number() == 1207 => {}
        other => {
            cluster.trace.violation(format!("state that was hashed in another way is read: {:?}", other.map(drop)))
        }
    }
}

/// The versions and the final state of a job.
async fn job(cluster: &Cluster, plan: &Plan, data: &Dataset, name: &str) {
    match versions(cluster, name).await {
        Ok(Some(last)) => {
            ends(cluster, data, &last);
            if let Err(e) = state(cluster, name, plan, data, &last).await {
                cluster.trace.violation(format!("the final state of {name} cannot be read: {e}"));
            }
        }
        Ok(None) => cluster.trace.violation(format!("there is no version of {name}")),
        Err(e) => cluster.trace.violation(format!("a version of {name} cannot be read: {e}")),
    }
}

/// What a fork has written, behind what its parent had written up to the version that the fork began with, is what a
/// run without a fork writes.
fn fork(cluster: &Cluster, plan: &Plan, data: &Dataset, name: &str) {
    // Which rows are late may differ from the parent's.
    for sink in plan.sinks.iter().filter(|_| !data.late) {
        let checked = rows_of(cluster, name, sink).and_then(|rows| output(&rows, data, sink));
        if let Err(why) = checked {
            cluster.trace.violation(format!("output {sink} of {name}, behind what its parent wrote: {why}"));
        }
    }
}

/// What a job's sink has written; of a fork, behind what its parent had written up to the version that it began with.
fn rows_of(cluster: &Cluster, name: &str, sink: &str) -> Result<Vec<Row>, String> {
    if name == NAME {
        return Ok(cluster.outside.rows(sink));
    }
    let origin = cluster.ledger.newest(name).and_then(|r| r.fork).ok_or("it does not know where it is from")?;
    let epoch = cluster.ledger.epoch_of(&origin.job, origin.version);
    let epoch = epoch.ok_or_else(|| format!("it is from version {} that never was", origin.version))?;
    let mut rows = cluster.outside.rows_until(sink, epoch);
    rows.extend(cluster.outside.at(name).rows(sink));
    Ok(rows)
}

fn output(got: &[Row], data: &Dataset, sink: &str) -> Result<(), String> {
    if sink == "visits" {
        return visits::check(got, data);
    }
    let wanted = reference::rows(data, sink);
    let mut rows = if sink == "running" { fold(got)? } else { got.to_vec() };
    rows.sort();
    if rows == wanted {
        return Ok(());
    }
    let count = |rows: &[Row]| {
        let mut counts: BTreeMap<Row, i64> = BTreeMap::new();
        rows.iter().for_each(|r| *counts.entry(r.clone()).or_default() += 1);
        counts
    };
    let (there, due) = (count(&rows), count(&wanted));
    let surplus = |a: &BTreeMap<Row, i64>, b: &BTreeMap<Row, i64>| -> Vec<Row> {
        a.iter().filter(|(r, n)| b.get(*r).copied().unwrap_or(0) < **n).map(|(r, _)| r.clone()).collect()
    };
    let (extra, missing) = (surplus(&there, &due), surplus(&due, &there));
    Err(format!(
        "{} rows, {} are due; {} too many, as {:?}; {} missing, as {:?}",
        rows.len(),
        wanted.len(),
        extra.len(),
        &extra[..extra.len().min(3)],
        missing.len(),
        &missing[..missing.len().min(3)],
    ))
}

/// Rows are (key, count, window). Which rows are late depends on the schedule: each window once at most, no row in it
/// that is not due, and each row that is in none was reported as late.
fn with_late_rows(got: &[Row], wanted: &[Row], plan: &Plan, status: &Value) -> Result<(), String> {
    let numbers = |r: &Row| ((r[0], r[2]), r[1].unwrap_or_default());
    let due: BTreeMap<_, i64> = wanted.iter().map(numbers).collect();
    let mut seen = BTreeMap::new();
    for (window, count) in got.iter().map(numbers) {
        if let Some(before) = seen.insert(window, count) {
            return Err(format!("window {window:?} has fired twice, with {before} rows and with {count}"));
        }
        if due.get(&window).is_none_or(|most| count > *most) {
            return Err(format!("window {window:?} has {count} rows, {:?} are due", due.get(&window)));
        }
    }
    let (inside, all) = (seen.values().sum::<i64>(), due.values().sum::<i64>());
    let late = status["late_rows"].as_i64().unwrap_or_default();
    // A replay reports late rows again, and a coordinator knows of those that came while it led.
    let undisturbed = undisturbed(plan, status);
    // One that found the job finished knows of none: its record is of the earlier generation.
    let led_all = status["generation"] == 1 && status["already_finished"] == false;
    if (undisturbed && inside + late != all) || (led_all && inside + late < all) {
        return Err(format!("{all} rows came, {inside} are in windows, {late} were reported late"));
    }
    Ok(())
}

/// Nothing went wrong: no fault, no stop, no restart.
fn undisturbed(plan: &Plan, status: &Value) -> bool {
    // A slow network alone can make checkpoints fail, and the job restart.
    let stopped = plan.requests.iter().any(|r| r.1 == Request::Stop);
    plan.faults.is_empty() && !stopped && status["restarts"].as_u64() == Some(0)
}

/// The table that a changelog makes.
fn fold(changes: &[Row]) -> Result<Vec<Row>, String> {
    let mut table: BTreeMap<Option<i64>, Row> = BTreeMap::new();
    for change in changes {
        let kind = change[0].and_then(|k| RowKind::from_number(k as u8)).ok_or("a change without a kind")?;
        let row = change[1..].to_vec();
        match kind {
            RowKind::Insert | RowKind::UpdateAfter => {
                if let Some(there) = table.insert(row[0], row.clone()) {
                    return Err(format!("{} {row:?} comes upon {there:?}", kind.symbol()));
                }
            }
            RowKind::UpdateBefore | RowKind::Delete => match table.remove(&row[0]) {
                Some(there) if there == row => {}
                other => return Err(format!("{} {row:?} takes back {other:?}", kind.symbol())),
            },
        }
    }
    Ok(table.into_values().collect())
}

/// The figures that cannot be otherwise.
fn counters(cluster: &Cluster, plan: &Plan, data: &Dataset, status: &Value) {
    let wrong = |what: String| cluster.trace.violation(format!("status: {what}"));
    if !data.late && status["late_rows"].as_u64() != Some(0) {
        wrong(format!("{} late rows", status["late_rows"]));
    }
    // A slow store can make checkpoints fail or a rescale take too long; handing over never costs a restart.
    let slow = ["MS7111", "MS7113"];
    let code = status["last_failure"]["code"].as_str();
    if plan.faults.is_empty() && plan.leaves_at_leisure() && code.is_some_and(|c| !slow.contains(&c)) {
        wrong(format!("nothing was wrong, and the job restarted: {}", status["last_failure"]));
    }
    if !undisturbed(plan, status) {
        return;
    }
    let rows = data.events().count() as u64;
    if status["events_in"].as_u64() != Some(rows) {
        wrong(format!("{} of {rows} events came in", status["events_in"]));
    }
    let out: usize = plan.sinks.iter().map(|s| cluster.outside.rows(s).len()).sum();
    if status["rows_out"].as_u64() != Some(out as u64) {
        wrong(format!("{} rows out, {out} are visible", status["rows_out"]));
    }
}

/// All versions from the boundary on can be read and follow each other; the last one.
async fn versions(cluster: &Cluster, name: &str) -> Result<Option<VersionRecord>> {
    let log = VersionLog::new(cluster.inspector().child(name), cluster.env.clone());
    let bound = log.boundaries().find().await?.bound.max(1);
    let mut numbers = log.list().await?;
    numbers.retain(|n| n.0 >= bound);
    let mut last: Option<VersionRecord> = None;
    for (i, number) in (bound..).zip(&numbers) {
        if number.0 != i {
            cluster.trace.violation(format!("version {number} stands in place {i}"));
        }
        let Some(record) = log.read(VersionNumber(number.0)).await? else { continue };
        Tree::from_proto(record.tree.as_ref().unwrap_or(&Default::default()))?.check()?;
        last = Some(record);
    }
    if let Some(record) = &last
        && (record.status() != Status::Finished || !record.committables.is_empty())
    {
        let (status, open) = (record.status(), record.committables.len());
        cluster.trace.violation(format!("the last version is {status:?} with {open} committables"));
    }
    Ok(last)
}

/// What a version once listed is listed by a record that still stands, or gone: else nobody would ever delete it.
async fn leaks(cluster: &Cluster) -> Result<()> {
    let store = cluster.inspector().child(NAME);
    let log = VersionLog::new(store.clone(), cluster.env.clone());
    let mut listed = BTreeSet::new();
    log.read_each(&log.list().await?, |_, record| {
        if let Ok(Some(record)) = record {
            listed.extend(objects_of(&record));
        }
        Ok(())
    })
    .await?;
    for found in store.list("data", Purpose::Check).await? {
        let object = found.path.trim_start_matches("data/");
        if cluster.ledger.must_be_known(NAME, object) && !listed.contains(object) {
            cluster.trace.violation(format!("{object} has leaked: no record says any more that it may go"));
        }
    }
    Ok(())
}

/// Every split was read to its end, and every key group has fired to the end of time.
fn ends(cluster: &Cluster, data: &Dataset, record: &VersionRecord) {
    for split in &record.splits {
        let rows = split.split_id.parse().ok().and_then(|i: usize| data.splits.get(i)).map_or(0, Vec::len);
        if !split.finished || split.offset != rows as u64 {
            let what = format!("split {} of {rows} rows stands at {}", split.split_id, split.offset);
            cluster.trace.violation(what);
        }
    }
    let mut fired: BTreeMap<u32, u32> = BTreeMap::new();
    for p in record.progress.iter().filter(|p| p.fired_ms == WATERMARK_MAX) {
        *fired.entry(p.task_id).or_default() += p.range.as_ref().map_or(0, |r| r.end - r.start);
    }
    let tasks = record.tree.as_ref().map_or(0, |t| t.tasks.len());
    if record.splits.len() != data.splits.len() || fired.len() != tasks || fired.values().any(|n| *n != KEY_GROUPS) {
        cluster
            .trace
            .violation(format!("{} splits; key groups that have fired to the end: {fired:?}", record.splits.len()));
    }
}

/// The point states of the last version hold what the reference says, all others hold nothing.
async fn state(cluster: &Cluster, name: &str, plan: &Plan, data: &Dataset, record: &VersionRecord) -> Result<()> {
    let counts = reference::counts(data);
    let kept = [("reminders", "reminders", "counts"), ("running", "totals", "aggregates")];
    let tree = Tree::from_proto(record.tree.as_ref().unwrap_or(&Default::default()))?;
    for state in tree.states() {
        if kept.iter().any(|k| k.1 == state.operator_uid && k.2 == state.name) {
            continue;
        }
        let mut left = scan(cluster, name, &tree, state.task, state.id).await?;
        if state.operator_uid == "visits" {
            let rows = rows_of(cluster, name, "visits").map_err(Error::internal)?;
            let kept = visits::never_expire(&rows);
            let of_entry = |key: &[u8]| key_number(split_point_key(key).map_or(key, |(_, _, key)| key));
            let got: BTreeSet<i64> = left.iter().map(|(key, _)| of_entry(key)).collect::<Result<_>>()?;
            if got != kept {
                let wrong: Vec<_> = got.symmetric_difference(&kept).take(3).collect();
                let what = format!("state visits: {} keys, {} are due; wrong: {wrong:?}", got.len(), kept.len());
                cluster.trace.violation(what);
            }
            left.clear();
        }
        if let Some((key, _)) = left.first() {
            let what = format!("{} entries are left in state {} of {}", left.len(), state.name, state.operator_uid);
            cluster.trace.violation(format!("{what}, the first under {key:?}"));
        }
    }
    for (sink, task, state) in kept {
        if !plan.sinks.contains(&sink) {
            continue;
        }
        let there = entries(cluster, name, record, task, state).await?;
        let mut got = BTreeMap::new();
        for (key, value) in there {
            let count =
                if sink == "reminders" { <[u8; 8]>::try_from(&value[..]).ok().map(i64::from_le_bytes) } else { None };
            got.insert(key, count);
        }
        let wanted: BTreeMap<_, _> =
            counts.iter().map(|(key, count)| (*key, (sink == "reminders").then_some(*count))).collect();
        if got != wanted {
            let wrong: Vec<_> = wanted.iter().filter(|(k, v)| got.get(*k) != Some(*v)).take(3).collect();
            let what = format!("state {state}: {} keys, {} are due; wrong: {wrong:?}", got.len(), wanted.len());
            cluster.trace.violation(what);
        }
    }
    Ok(())
}

/// All entries of a point state in a version: key and value.
async fn entries(
    cluster: &Cluster,
    name: &str,
    record: &VersionRecord,
    task: &str,
    state: &str,
) -> Result<Vec<(i64, Vec<u8>)>> {
    let tree = Tree::from_proto(record.tree.as_ref().unwrap_or(&Default::default()))?;
    let missing = || Error::corrupt(format!("the version knows no state {state} of {task}"));
    let task_id = tree.task_id(task).ok_or_else(missing)?;
    let named = tree.states().iter().find(|s| s.task == task_id && s.operator_uid == task && s.name == state);
    let id = named.ok_or_else(missing)?.id;
    let of_entry = |(key, value): (Bytes, Bytes)| {
        let (_, _, key) = split_point_key(&key).ok_or_else(missing)?;
        Ok((key_number(key)?, value.to_vec()))
    };
    scan(cluster, name, &tree, task_id, id).await?.into_iter().map(of_entry).collect()
}

/// What is left of a state at the end of time.
async fn scan(cluster: &Cluster, name: &str, tree: &Tree, task: TaskId, state: StateId) -> Result<Vec<(Bytes, Bytes)>> {
    let store = StateStore::new(
        cluster.inspector().child(name),
        Caches::in_memory(1 << 20, 1 << 20),
        StateStoreOptions::default(),
        cluster.env.clone(),
        MergeOperators::default(),
    );
    let runs = tree.runs_of(task, &KeyGroupRanges::all());
    let view = store.view(runs, KeyGroupRanges::all(), tree.layouts());
    let time = ReadTime { event_time_ms: i64::MAX, processing_time_ms: 0 };
    let (mut from, to) = (Bytes::from(state_start(state)), state_end(state));
    let mut out = Vec::new();
    loop {
        let piece = view.scan(&from, &to, 1 << 20, &time).await?;
        out.extend(piece.entries);
        match piece.next {
            Some(next) => from = next,
            None => return Ok(out),
        }
    }
}
