//! `scan` and `scan_many`: entries in key order, piece by piece.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use millstream_common::{Error, KeyGroupRanges, Result, StateId};
use millstream_objects::Purpose;

use crate::Layout;
use crate::cursor::{Ahead, Chain, Cursors, KeyRange, ReadMode, Step};
use crate::entry::ReadTime;
use crate::fetch::PartOf;
use crate::fold::{Resolved, resolve};
use crate::key;
use crate::report::ReadReport;
use crate::run::Run;
use crate::section::PartInfo;
use crate::view::View;

/// A piece of a scan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScanPiece {
    /// Store keys and values, in key order.
    pub entries: Vec<(Bytes, Bytes)>,
    /// Where the next piece begins; `None` when this was the last.
    pub next: Option<Bytes>,
    /// What it cost.
    pub report: ReadReport,
}

/// The least that is read at once.
const LEAST_AHEAD_BYTES: u64 = 64 << 10;

impl View {
    /// Entries in key order from `from` (inclusive) to `to` (exclusive), clipped to the view's key groups: the value
    /// of each key at `time`, deleted and expired ones left out. A piece ends once it holds `max_bytes` of keys and
    /// values; go on at `next`.
    pub async fn scan(&self, from: &[u8], to: &[u8], max_bytes: usize, time: &ReadTime) -> Result<ScanPiece> {
        if from >= to {
            return Ok(ScanPiece::default());
        }
        let range = KeyRange::new(Bytes::copy_from_slice(from), Bytes::copy_from_slice(to), self.layouts());
        self.scan_ranges(&[range], max_bytes, time).await
    }

    /// The same for thousands of ranges at once, in one forward pass with one plan: its cost is the smaller of entries and
    /// ranges. `ranges` are sorted and disjoint, else it is an error. A piece ends once it holds `max_bytes`; go on at `next`:
    /// what lies below it is done.
    ///
    /// A range within one key of a map state ([`key::map_prefix`]) is asked of the filters first: a part of a run whose filter
    /// denies the prefix reads no block for it, and the report counts it as filtered.
    pub async fn scan_many(&self, ranges: &[Range<Bytes>], max_bytes: usize, time: &ReadTime) -> Result<ScanPiece> {
        if !ranges.is_sorted_by(|a, b| a.end <= b.start) || ranges.iter().any(|r| r.start > r.end) {
            return Err(Error::internal("the ranges of a scan are not sorted or not disjoint").code(9212));
        }
        let ranges: Vec<KeyRange> = ranges
            .iter()
            .filter(|r| r.start < r.end)
            .map(|r| KeyRange::new(r.start.clone(), r.end.clone(), self.layouts()))
            .collect();
        self.scan_ranges(&ranges, max_bytes, time).await
    }

    async fn scan_ranges(&self, ranges: &[KeyRange], max_bytes: usize, time: &ReadTime) -> Result<ScanPiece> {
        let mut piece = ScanPiece::default();
        let result = self.scan_piece(ranges, max_bytes, time, &mut piece).await;
        self.store.add_to_totals(&piece.report);
        result.map(|()| piece)
    }

    /// The parts that a walk through ranges (sorted, disjoint) looks into, newest run first, and the clip of each run.
    pub(crate) async fn parts_in(
        &self,
        ranges: &[KeyRange],
        report: &mut ReadReport,
    ) -> Result<(Vec<PartOf<'_>>, Vec<KeyGroupRanges>)> {
        let (Some(first), Some(last)) = (ranges.first(), ranges.last().and_then(|r| r.to.as_ref())) else {
            return Ok((Vec::new(), Vec::new()));
        };
        let relevant: Vec<usize> =
            (0..self.runs().len()).filter(|&r| self.run_in(&self.runs()[r], &first.from, last)).collect();
        let runs: Vec<&Arc<Run>> = relevant.iter().map(|&r| &self.runs()[r]).collect();
        let clips: Vec<KeyGroupRanges> = relevant.iter().map(|&r| self.clip(r).clone()).collect();
        let meets = |part: &PartInfo| {
            let first = ranges.partition_point(|r| r.to.as_ref().is_some_and(|to| *to <= part.first_key));
            ranges.get(first).is_some_and(|r| r.meets(part))
        };
        let wanted = |r: usize, part: &PartInfo| part.overlaps(&clips[r]) && meets(part);
        let parts = self.store.parts(&runs, |_| false, wanted, Purpose::State, report).await?;
        Ok((parts, clips))
    }

    async fn scan_piece(
        &self,
        ranges: &[KeyRange],
        max_bytes: usize,
        time: &ReadTime,
        piece: &mut ScanPiece,
    ) -> Result<()> {
        let (parts, clips) = self.parts_in(ranges, &mut piece.report).await?;
        let ahead_bytes = (max_bytes as u64).max(LEAST_AHEAD_BYTES).min(self.store.options().read_ahead_bytes);
        let mode = ReadMode { purpose: Purpose::State, ahead: Ahead::Each(ahead_bytes) };
        let mut cursors = Cursors::new(&self.store, self.layouts(), clips, &parts, ranges, mode);
        piece.report.filtered += cursors.filtered();
        let mut chain = Chain::default();
        // Keys and values, one after the other, and where each ends: one allocation for the whole piece.
        let mut arena = Vec::new();
        let mut ends: Vec<(usize, usize)> = Vec::new();
        loop {
            match cursors.next_chain(&mut chain)? {
                Step::End => break,
                Step::Dry => cursors.fill(&mut piece.report).await?,
                Step::Chain => {
                    self.append(&chain, time, &mut arena, &mut ends)?;
                    if arena.len() >= max_bytes {
                        // The key right behind this one.
                        chain.key.push(0);
                        piece.next = Some(Bytes::copy_from_slice(&chain.key));
                        cursors.keep_rest();
                        break;
                    }
                }
            }
        }
        piece.report.scanned += ends.len() as u64;
        let arena = Bytes::from(arena);
        let mut start = 0;
        piece.entries.extend(ends.into_iter().map(|(middle, end)| {
            let entry = (arena.slice(start..middle), arena.slice(middle..end));
            start = end;
            entry
        }));
        Ok(())
    }

    /// Appends the key and its value, if it has one.
    fn append(
        &self,
        chain: &Chain,
        time: &ReadTime,
        arena: &mut Vec<u8>,
        ends: &mut Vec<(usize, usize)>,
    ) -> Result<()> {
        let operator = || self.layouts().operator_of(&chain.key, &self.store.0.merge);
        let merged;
        let value = match resolve(chain.entries(), time, operator)? {
            Resolved::Absent => return Ok(()),
            Resolved::Value(value) => value,
            Resolved::Merged(value) => {
                merged = value;
                &merged
            }
        };
        arena.extend_from_slice(&chain.key);
        let middle = arena.len();
        arena.extend_from_slice(value);
        ends.push((middle, arena.len()));
        Ok(())
    }

    /// Whether a run may hold keys from `from` to `to`, from its statistics.
    fn run_in(&self, run: &Run, from: &[u8], to: &[u8]) -> bool {
        let first = key::state_of(from).unwrap_or(StateId(0));
        let last = key::state_of(to).unwrap_or(StateId(u16::MAX));
        if first == last && self.layouts().get(first).is_some_and(|l| l.layout == Layout::TimeOrdered) {
            let time = |bound: &[u8], otherwise| key::time_of(bound).unwrap_or(otherwise);
            return run.may_hold(first, Some((time(from, i64::MIN), time(to, i64::MAX))));
        }
        run.states.iter().any(|s| first <= s.state && s.state <= last)
    }
}
