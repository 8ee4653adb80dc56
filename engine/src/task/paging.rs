//! The reads of a keyed subtask: what batches named is asked of the store in few large requests, while earlier batches
//! are processed.
//!
//! Missing keys, and keys whose maps are missing, gather while as many reads as allowed are on their way; each read has a number, and a batch is ready
//! when the read that asked for its last key has come back. A read carries its view: everything this subtask had
//! flushed when the keys were named. Keys stay pinned from then on, so nothing younger can be lost (see
//! [`crate::state::StateSet`]).

use std::collections::VecDeque;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::TryStreamExt;
use futures::future::poll_fn;
use futures::stream::FuturesOrdered;
use millstream_common::env::Running;
use millstream_common::{Env, KeyGroup, KeyGroupRanges, Lane, Result, StateId};
use millstream_state_store::key::{map_prefix_end, split_timed_key, state_of, timed_key};
use millstream_state_store::{ReadReport, ReadTime, Run, StateStore, Values, View};

use super::TaskMetrics;
use crate::element::TimestampMs;
use crate::operator::{Operator, SubtaskTime};
use crate::state::{StateSet, TimeScan};

#[cfg(test)]
#[path = "paging_tests.rs"]
mod tests;

/// Reads on their way at a time.
const READS_IN_FLIGHT: usize = 4;
/// Keys of one read at most.
const KEYS_PER_READ: usize = 65_536;
/// Reads on their way while memory bounds what may be asked for: a large read finds blocks that lie side by side, many
/// small ones pay a GET for nearly every key.
const READS_IN_FLIGHT_TIGHT: usize = 2;
/// Keys of one read at least, however large their values are: fewer would be a GET for each.
const KEYS_PER_READ_MIN: usize = 512;
/// What a key that is on its way takes beside its value, about: its slot, its store key, its places in the read.
const ENTRY_OVERHEAD_BYTES: u64 = 256;
/// Entries of a map, about, before any was read.
const MAP_ENTRIES_FIRST: usize = 8;
/// Maps that one scan goes through, and such scans of a read at once.
const MAPS_PER_SCAN: usize = 512;
const SCANS_AT_ONCE: usize = 4;
/// Bytes of one piece of a scan, at most.
const SCAN_PIECE_BYTES: usize = 4 << 20;
/// A scan that may bring so many bytes goes in at least so many pieces: it looks behind each whether that is enough. (More would
/// plan the same blocks more often.)
const SCAN_PIECES: u64 = 4;

/// What one read asks for.
#[derive(Default)]
struct Wanted {
    keys: Vec<Bytes>,
    /// Prefixes of which all entries are wanted.
    maps: Vec<Bytes>,
}

impl Wanted {
    /// How many keys that is, when a map is worth so many.
    fn keys(&self, a_map: usize) -> usize {
        self.keys.len() + self.maps.len() * a_map
    }
}

enum Answer {
    /// What was wanted, its values, and the entries of its maps in order.
    Keys(Wanted, Values, Vec<(Bytes, Bytes)>),
    Scan {
        state: usize,
        scan: TimeScan,
        found: Found,
    },
}

/// What a scan for what is due brought: all entries up to a time.
pub(crate) struct Found {
    pub(crate) entries: Vec<(Bytes, Bytes)>,
    pub(crate) until: TimestampMs,
    /// The next time alone has more than the scan might bring. Then the entries are that time's, of all key groups before
    /// the one that stands here.
    pub(crate) cut: Option<(TimestampMs, KeyGroup)>,
    /// What was read, as it stands in memory, about.
    bytes: u64,
    report: ReadReport,
}

/// A scan that was cut, and is not installed.
pub(crate) struct Overflow {
    pub(crate) state: usize,
    pub(crate) time: TimestampMs,
    pub(crate) before: KeyGroup,
    pub(crate) entries: Vec<(Bytes, Bytes)>,
}

struct Reading {
    number: u64,
    keys: usize,
    running: Running<Result<(Answer, ReadReport)>>,
}

/// What a keyed subtask reads from; see the module.
pub(crate) struct Paging {
    env: Env,
    store: StateStore,
    ids: Vec<StateId>,
    view: View,
    /// Keys that wait for their turn, by the number of the read that will carry them.
    gathered: VecDeque<(u64, Wanted)>,
    missing: Vec<Bytes>,
    missing_maps: Vec<Bytes>,
    /// Entries of a map, about: as the last read that brought maps had them.
    map_entries: usize,
    reading: VecDeque<Reading>,
    next_number: u64,
    /// What may be on its way, bytes.
    reads_bytes: u64,
    /// Bytes of an entry of the view, about.
    entry_bytes: u64,
    /// Processing time is at least this: see [`Paging::processing_ms`].
    committed_ms: i64,
    overflows: Vec<Overflow>,
    /// What scans have brought since somebody asked, bytes.
    scanned_bytes: u64,
    /// Where it is counted what reads cost.
    metrics: Arc<TaskMetrics>,
}

impl Paging {
    pub(crate) fn new(
        env: Env,
        store: StateStore,
        ids: Vec<StateId>,
        view: View,
        reads_bytes: u64,
        metrics: Arc<TaskMetrics>,
    ) -> Self {
        let (gathered, reading) = (VecDeque::new(), VecDeque::new());
        let entry_bytes = entry_bytes(&view);
        let (missing, missing_maps) = (Vec::new(), Vec::new());
        Self {
            env,
            store,
            ids,
            view,
            gathered,
            missing,
            missing_maps,
            map_entries: MAP_ENTRIES_FIRST,
            reading,
            next_number: 1,
            reads_bytes,
            entry_bytes,
            committed_ms: i64::MIN,
            overflows: Vec::new(),
            scanned_bytes: 0,
            metrics,
        }
    }

    pub(crate) fn set_view(&mut self, view: View) {
        self.entry_bytes = entry_bytes(&view);
        self.view = view;
    }

    /// A version that was committed at this time, by the coordinator's clock, is read from now on.
    pub(crate) fn set_committed(&mut self, committed_ms: i64) {
        self.committed_ms = self.committed_ms.max(committed_ms);
    }

    /// Processing time, milliseconds since 1970: the machine's clock, but never before the coordinator's when it committed
    /// what is read. Compactions went by that, so what they dropped has expired here, too.
    pub(crate) fn processing_ms(&self) -> i64 {
        self.env.wall_ms().max(self.committed_ms)
    }

    /// Whether as much was asked for as may be on its way.
    pub(crate) fn is_over_memory(&self) -> bool {
        let gathered: usize = self.gathered.iter().map(|g| g.1.keys(self.map_entries)).sum();
        let reading: usize = self.reading.iter().map(|r| r.keys).sum();
        (gathered + reading) as u64 * self.entry_bytes > self.reads_bytes
    }

    /// How many reads may be on their way, and how many keys one may have.
    fn limits(&self) -> (usize, usize) {
        let keys = (self.reads_bytes / self.entry_bytes.max(1)) as usize;
        if keys >= KEYS_PER_READ * READS_IN_FLIGHT {
            (READS_IN_FLIGHT, KEYS_PER_READ)
        } else {
            (READS_IN_FLIGHT_TIGHT, (keys / READS_IN_FLIGHT_TIGHT).clamp(KEYS_PER_READ_MIN, KEYS_PER_READ))
        }
    }

    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    /// Takes what the operator's states miss; the number of the read that a batch must wait for, `None` when all of
    /// it is resident.
    pub(crate) fn gather(&mut self, operator: &mut dyn Operator, time: &SubtaskTime) -> Option<u64> {
        let mut named = 0;
        for state in operator.states() {
            named += state.take_named();
            state.take_missing(&mut self.missing);
            state.take_missing_maps(&mut self.missing_maps);
        }
        TaskMetrics::add(&self.metrics.keys_named, named);
        TaskMetrics::add(&self.metrics.keys_asked, (self.missing.len() + self.missing_maps.len()) as u64);
        if self.missing.is_empty() && self.missing_maps.is_empty() {
            return None;
        }
        let (mut keys, mut maps) = (std::mem::take(&mut self.missing), std::mem::take(&mut self.missing_maps));
        keys.drain(..).for_each(|key| self.room().keys.push(key));
        maps.drain(..).for_each(|prefix| self.room().maps.push(prefix));
        (self.missing, self.missing_maps) = (keys, maps);
        let number = self.gathered.back().map(|g| g.0);
        self.launch(time);
        number
    }

    /// The youngest read that has room for one more.
    fn room(&mut self) -> &mut Wanted {
        let (_, most) = self.limits();
        if self.gathered.back().is_none_or(|(_, wanted)| wanted.keys(self.map_entries) >= most) {
            self.gathered.push_back((self.next_number, Wanted::default()));
            self.next_number += 1;
        }
        let last = self.gathered.len() - 1;
        &mut self.gathered[last].1
    }

    /// Whether the read with this number has come back.
    pub(crate) fn is_done(&self, number: u64) -> bool {
        !self.gathered.iter().any(|g| g.0 == number) && !self.reading.iter().any(|r| r.number == number)
    }

    /// The number of the last read that has not come back.
    pub(crate) fn last(&self) -> Option<u64> {
        let gathered = self.gathered.back().map(|g| g.0);
        gathered.or_else(|| self.reading.back().map(|r| r.number))
    }

    /// Whether a read is on its way.
    pub(crate) fn is_reading(&self) -> bool {
        !self.reading.is_empty()
    }

    /// Starts reads of what has gathered, as many as are allowed.
    pub(crate) fn launch(&mut self, time: &SubtaskTime) {
        while self.reading.len() < self.limits().0 {
            let Some((number, wanted)) = self.gathered.pop_front() else { return };
            let (view, time, keys) = (self.view.clone(), self.read_time(time), wanted.keys(self.map_entries));
            let running = self.env.run(Lane::Background, "read", async move {
                // Both at once: their blocks may lie side by side, and the slower one counts.
                let keys = view.multi_get(&wanted.keys, &time);
                let ((values, mut report), (entries, of_maps)) =
                    futures::try_join!(keys, scan_maps(&view, &wanted.maps, &time))?;
                report += of_maps;
                Ok((Answer::Keys(wanted, values, entries), report))
            });
            self.reading.push_back(Reading { number, keys, running });
        }
    }

    /// Starts the scans that the operator's states ask for, of these key groups and for about so many bytes each; the number
    /// of the last one.
    pub(crate) fn scan(
        &mut self,
        operator: &mut dyn Operator,
        time: &SubtaskTime,
        groups: &KeyGroupRanges,
        max_bytes: u64,
    ) -> Option<u64> {
        let mut last = None;
        for (i, state) in operator.states().into_iter().enumerate() {
            let Some(scan) = state.take_scan() else { continue };
            let (view, read_time, id) = (self.view.within(groups), self.read_time(time), self.ids[i]);
            let running = self.env.run(Lane::Background, "scan", async move {
                let found = scan_due(&view, id, &scan, max_bytes, &read_time).await?;
                let report = found.report;
                Ok((Answer::Scan { state: i, scan, found }, report))
            });
            self.reading.push_back(Reading { number: self.next_number, keys: 0, running });
            last = Some(self.next_number);
            self.next_number += 1;
        }
        last
    }

    /// The scans that brought too much and wait for what is to become of them.
    pub(crate) fn take_overflows(&mut self) -> Vec<Overflow> {
        std::mem::take(&mut self.overflows)
    }

    /// Bytes that scans have brought since this was last asked, about.
    pub(crate) fn take_scanned_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.scanned_bytes)
    }

    fn read_time(&self, time: &SubtaskTime) -> ReadTime {
        ReadTime { event_time_ms: time.min(), processing_time_ms: self.processing_ms() }
    }

    /// Waits for the oldest read and installs what it brought. Pending for ever when nothing is on its way. Cancel-safe.
    pub(crate) async fn next(&mut self, operator: &mut dyn Operator, time: &SubtaskTime) -> Result<()> {
        let (answer, report) = poll_fn(|cx| self.poll_oldest(cx)).await?;
        *self.metrics.reads.lock() += report;
        self.install(operator, answer)?;
        self.launch(time);
        Ok(())
    }

    fn poll_oldest(&mut self, cx: &mut Context<'_>) -> Poll<Result<(Answer, ReadReport)>> {
        let Some(oldest) = self.reading.front_mut() else { return Poll::Pending };
        let answer = match std::pin::Pin::new(&mut oldest.running).poll(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(answer) => answer,
        };
        self.reading.pop_front();
        Poll::Ready(answer.and_then(|a| a))
    }

    fn install(&mut self, operator: &mut dyn Operator, answer: Answer) -> Result<()> {
        let mut states = operator.states();
        match answer {
            Answer::Keys(Wanted { keys, maps }, values, entries) => {
                let place = |key: &[u8]| state_of(key).and_then(|id| self.ids.iter().position(|s| *s == id));
                for (key, value) in keys.iter().zip(values.iter()) {
                    if let Some(i) = place(key) {
                        states[i].install(key, value)?;
                    }
                }
                if !maps.is_empty() {
                    self.map_entries = (entries.len() / maps.len()).max(1);
                }
                for prefix in &maps {
                    if let Some(i) = place(prefix) {
                        states[i].install_map(prefix, of_prefix(&entries, prefix))?;
                    }
                }
            }
            Answer::Scan { state, scan, found } => {
                self.scanned_bytes += found.bytes;
                self.overflows.extend(found.install(state, &scan, &mut states)?);
            }
        }
        Ok(())
    }

    /// A view over `runs` for `ranges`.
    pub(crate) fn make_view(
        &self,
        runs: Vec<Arc<Run>>,
        ranges: &KeyGroupRanges,
        layouts: millstream_state_store::Layouts,
    ) -> View {
        self.store.view(runs, ranges.clone(), layouts)
    }
}

/// Bytes of an entry in memory, about: as the runs hold them, compressed, with something for each.
fn entry_bytes(view: &View) -> u64 {
    let (bytes, entries) = view.runs().iter().fold((0, 0), |(b, e), r| (b + r.length, e + r.entries));
    // It stands in the read's answer and, when that is installed, in its row; few are in both at a time.
    let value = bytes.checked_div(entries).unwrap_or_default();
    value + value / 2 + ENTRY_OVERHEAD_BYTES
}

/// Those of some sorted entries that stand under a prefix.
pub(crate) fn of_prefix<'a>(entries: &'a [(Bytes, Bytes)], prefix: &Bytes) -> &'a [(Bytes, Bytes)] {
    let start = entries.partition_point(|(key, _)| key < prefix);
    let count = entries[start..].partition_point(|(key, _)| key.starts_with(prefix));
    &entries[start..start + count]
}

/// All entries under some prefixes, in order. A scan reads its blocks some way ahead, and no farther: of many maps, which
/// lie anywhere, several stretches are scanned at once.
pub(crate) async fn scan_maps(
    view: &View,
    prefixes: &[Bytes],
    time: &ReadTime,
) -> Result<(Vec<(Bytes, Bytes)>, ReadReport)> {
    let mut ranges: Vec<Range<Bytes>> = prefixes.iter().map(|p| p.clone()..Bytes::from(map_prefix_end(p))).collect();
    ranges.sort_unstable_by(|a, b| a.start.cmp(&b.start));
    ranges.dedup();
    let (mut entries, mut report) = (Vec::new(), ReadReport::default());
    let (mut waiting, mut scans) = (ranges.chunks(MAPS_PER_SCAN), FuturesOrdered::new());
    loop {
        while scans.len() < SCANS_AT_ONCE
            && let Some(some) = waiting.next()
        {
            scans.push_back(scan_ranges(view, some.to_vec(), time));
        }
        let Some((found, cost)) = scans.try_next().await? else { return Ok((entries, report)) };
        entries.extend(found);
        report += cost;
    }
}

/// All entries in some ranges, which are sorted and disjoint.
async fn scan_ranges(
    view: &View,
    mut left: Vec<Range<Bytes>>,
    time: &ReadTime,
) -> Result<(Vec<(Bytes, Bytes)>, ReadReport)> {
    let (mut entries, mut report) = (Vec::new(), ReadReport::default());
    while !left.is_empty() {
        let piece = view.scan_many(&left, SCAN_PIECE_BYTES, time).await?;
        report += piece.report;
        entries.extend(piece.entries);
        let Some(next) = piece.next else { break };
        left.drain(..left.partition_point(|r| r.end <= next));
        if let Some(first) = left.first_mut() {
            first.start = first.start.clone().max(next);
        }
    }
    Ok((entries, report))
}

impl Found {
    /// Hands it to the state, unless it was cut.
    pub(crate) fn install(
        self,
        state: usize,
        scan: &TimeScan,
        states: &mut [&mut dyn StateSet],
    ) -> Result<Option<Overflow>> {
        if let Some((time, before)) = self.cut {
            return Ok(Some(Overflow { state, time, before, entries: self.entries }));
        }
        if self.until < scan.until {
            states[state].shorten_scan(self.until);
        }
        states[state].install_scan(&self.entries, true)?;
        Ok(None)
    }
}

/// All entries of a stretch of time. When they have more than about `max_bytes`, counted as they stand in memory: those up to
/// an earlier time, as long as that lies within the stretch; when the first time of the stretch has more: its entries in the
/// key groups before the last one that was seen, at least one.
pub(crate) async fn scan_due(
    view: &View,
    id: StateId,
    scan: &TimeScan,
    max_bytes: u64,
    time: &ReadTime,
) -> Result<Found> {
    let mut found =
        Found { entries: Vec::new(), until: scan.until, cut: None, bytes: 0, report: ReadReport::default() };
    if scan.after >= scan.until {
        return Ok(found);
    }
    let (mut from, mut to) = (Vec::new(), Vec::new());
    timed_key(id, scan.after + 1, KeyGroup(0), &[], &mut from);
    match scan.until.checked_add(1) {
        Some(end) => timed_key(id, end, KeyGroup(0), &[], &mut to),
        None => to.extend_from_slice(&(u32::from(id.0) + 1).to_be_bytes()[2..]),
    }
    let place = |(key, _): &(Bytes, Bytes)| split_timed_key(key).map(|(_, time, group, _)| (time, group));
    let piece_bytes = usize::try_from(max_bytes / SCAN_PIECES).unwrap_or(usize::MAX).clamp(1, SCAN_PIECE_BYTES);
    let mut from = Bytes::from(from);
    loop {
        let piece = view.scan(&from, &to, piece_bytes, time).await?;
        found.report += piece.report;
        found.bytes +=
            piece.entries.iter().map(|(k, v)| (k.len() + v.len()) as u64 + ENTRY_OVERHEAD_BYTES).sum::<u64>();
        found.entries.extend(piece.entries.into_iter().filter(|e| place(e).is_some()));
        let Some(next) = piece.next else { return Ok(found) };
        from = next;
        if found.bytes <= max_bytes {
            continue;
        }
        let (Some(first), Some(last)) = (found.entries.first().and_then(place), found.entries.last().and_then(place))
        else {
            continue;
        };
        // There may be more of the last time and key group.
        found.until = last.0 - 1;
        if first.0 < last.0 || found.until > scan.after {
            found.entries.truncate(found.entries.partition_point(|e| place(e).map(|p| p.0) < Some(last.0)));
            return Ok(found);
        }
        if first.1 < last.1 {
            found.cut = Some(last);
            found.entries.truncate(found.entries.partition_point(|e| place(e) < Some(last)));
            return Ok(found);
        }
        found.until = scan.until;
    }
}
