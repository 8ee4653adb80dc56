//! What each job must come to, computed over the whole input at once, without any of the engine.

use std::collections::BTreeMap;

use super::data::{Dataset, Event};
use super::jobs::{GAP_MS, SLIDE_MS, SLIDING_MS, TUMBLING_MS};
use super::reminders;
use super::sink::Row;

/// The rows of `sink` at the end, sorted. For `running`: the last value of each key.
#[must_use]
pub fn rows(data: &Dataset, sink: &str) -> Vec<Row> {
    let mut rows: Vec<Row> = match sink {
        "running" => running(data),
        "sliding" => sliding(data).map(|(end, key, e)| row(&[key, e.len() as i64, total(&e), end])).collect(),
        "tumbling" => tumbling(data),
        "counted" => counted(data).into_iter().map(|((start, key), n)| row(&[key, n, start])).collect(),
        "sessions" => sessions(data),
        "join" => join(data),
        "busiest" => busiest(data),
        "reminders" => {
            let mut due: BTreeMap<_, i64> = BTreeMap::new();
            data.events().for_each(|e| *due.entry((e.key, reminders::due(e.time))).or_default() += 1);
            due.into_iter().map(|((key, due), rows)| row(&[key, due, rows])).collect()
        }
        _ => Vec::new(),
    };
    rows.sort();
    rows
}

/// Rows by key.
#[must_use]
pub fn counts(data: &Dataset) -> BTreeMap<i64, i64> {
    by_key(data).into_iter().map(|(key, e)| (key, e.len() as i64)).collect()
}

fn row(numbers: &[i64]) -> Row {
    numbers.iter().map(|&n| Some(n)).collect()
}

fn total(events: &[&Event]) -> i64 {
    events.iter().map(|e| e.value).sum()
}

fn extremes(events: &[&Event]) -> (i64, i64) {
    let values = || events.iter().map(|e| e.value);
    (values().min().unwrap_or_default(), values().max().unwrap_or_default())
}

fn by_key(data: &Dataset) -> BTreeMap<i64, Vec<&Event>> {
    let mut groups: BTreeMap<i64, Vec<&Event>> = BTreeMap::new();
    for e in data.events() {
        groups.entry(e.key).or_default().push(e);
    }
    groups
}

fn running(data: &Dataset) -> Vec<Row> {
    by_key(data).into_iter().map(|(key, e)| row(&[key, e.len() as i64, total(&e), extremes(&e).1])).collect()
}

/// Window end, key, rows.
fn sliding(data: &Dataset) -> impl Iterator<Item = (i64, i64, Vec<&Event>)> {
    let mut windows: BTreeMap<(i64, i64), Vec<&Event>> = BTreeMap::new();
    for e in data.events() {
        let mut end = (e.time.div_euclid(SLIDE_MS) + 1) * SLIDE_MS;
        while end - SLIDING_MS <= e.time {
            windows.entry((end, e.key)).or_default().push(e);
            end += SLIDE_MS;
        }
    }
    windows.into_iter().map(|((end, key), e)| (end, key, e))
}

fn tumbling(data: &Dataset) -> Vec<Row> {
    let mut windows: BTreeMap<(i64, i64), Vec<&Event>> = BTreeMap::new();
    for e in data.events() {
        windows.entry((e.time.div_euclid(TUMBLING_MS) * TUMBLING_MS, e.key)).or_default().push(e);
    }
    let of_window = |((start, key), e): ((i64, i64), Vec<&Event>)| {
        let (least, greatest) = extremes(&e);
        row(&[key, least, greatest, start])
    };
    windows.into_iter().map(of_window).collect()
}

/// Rows by window and key, the late ones too.
fn counted(data: &Dataset) -> BTreeMap<(i64, i64), i64> {
    let mut windows = BTreeMap::new();
    for e in data.events() {
        *windows.entry((e.time.div_euclid(TUMBLING_MS) * TUMBLING_MS, e.key)).or_default() += 1;
    }
    windows
}

fn sessions(data: &Dataset) -> Vec<Row> {
    let mut rows = Vec::new();
    for (key, mut events) in by_key(data) {
        events.sort_by_key(|e| e.time);
        let mut rest = &events[..];
        while let Some(first) = rest.first() {
            // Sessions that touch are one.
            let breaks = rest.windows(2).position(|w| w[1].time - w[0].time > GAP_MS);
            let (session, others) = rest.split_at(breaks.map_or(rest.len(), |b| b + 1));
            let end = session[session.len() - 1].time + GAP_MS;
            rows.push(row(&[key, session.len() as i64, total(session), first.time, end]));
            rest = others;
        }
    }
    rows
}

fn join(data: &Dataset) -> Vec<Row> {
    let mut rows = Vec::new();
    let window = |e: &Event| e.time.div_euclid(TUMBLING_MS);
    for events in by_key(data).values() {
        for left in events.iter().filter(|e| e.side == 0) {
            let meets = |right: &&&Event| right.side == 1 && window(right) == window(left);
            rows.extend(events.iter().filter(meets).map(|right| row(&[left.id, left.key, right.id])));
        }
    }
    rows
}

fn busiest(data: &Dataset) -> Vec<Row> {
    let mut best: BTreeMap<i64, Vec<(i64, i64)>> = BTreeMap::new();
    for (end, key, events) in sliding(data) {
        let count = events.len() as i64;
        let there = best.entry(end).or_default();
        let greatest = there.first().map_or(0, |b| b.1);
        if count > greatest {
            there.clear();
        }
        if count >= greatest {
            there.push((key, count));
        }
    }
    best.into_iter().flat_map(|(end, keys)| keys.into_iter().map(move |(key, count)| row(&[end, key, count]))).collect()
}
