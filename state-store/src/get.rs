//! `multi_get`: the values of thousands of keys in two dependent stages of I/O at most, as a rule: meta parts, then
//! blocks.
//!
//! 1. Keys are sorted and distinct; per run (newest first) clip, filter and index leave for each key the blocks that
//!    may hold it.
//! 2. Blocks in memory are searched at once. A key whose newest put or delete is found there needs nothing older.
//! 3. All other blocks are fetched together, by planned GETs; when that would fetch far more than the newest
//!    candidates of all keys, those come first and the rest in a further round, if still needed.
//! 4. Each block is searched for its keys as it comes and let go: what is held is the entries that were found.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use millstream_common::hash::stable_hash;
use millstream_common::{Error, KeyGroup, Result, StateId};
use millstream_objects::Purpose;

use crate::entry::{ReadTime, ends_chain};
use crate::fetch::BlockWish;
use crate::fold::{Resolved, resolve};
use crate::report::ReadReport;
use crate::run::Run;
use crate::section::{Block, SectionMeta};
use crate::view::View;

/// The distinct keys of a call, sorted.
struct Batch<'a> {
    keys: Vec<&'a Bytes>,
    hashes: Vec<u64>,
    groups: Vec<KeyGroup>,
    /// The states of the keys with the least and greatest time of their keys.
    states: Vec<(StateId, Option<(i64, i64)>)>,
    /// For each key of the call, its place in `keys`.
    places: Vec<u32>,
}

/// A block and the keys (a range of `Candidates::keys`) that it may hold.
struct Candidate {
    wish: BlockWish,
    keys: Range<usize>,
}

/// Entries that were found.
struct Found {
    key: u32,
    run: u32,
    /// Where the encoded entry stands in the arena.
    entry: Range<usize>,
}

struct Search<'a> {
    batch: &'a Batch<'a>,
    /// The keys of each candidate, by place in the batch.
    candidate_keys: Vec<u32>,
    /// The newest run in which a put or delete was found, by key.
    settled: Vec<u32>,
    found: Vec<Found>,
    arena: Vec<u8>,
}

const OPEN: u32 = u32::MAX;

impl View {
    /// The values of `keys` (whole store keys, in any order, duplicates allowed) at `time`; result `i` belongs to key
    /// `i`, `None` when it is absent, deleted or expired. A key of a key group outside the view's ranges is an error:
    /// its owner is somebody else.
    pub async fn multi_get(&self, keys: &[Bytes], time: &ReadTime) -> Result<(Vec<Option<Bytes>>, ReadReport)> {
        let mut report = ReadReport::default();
        let result = self.get_all(keys, time, &mut report).await;
        self.store.add_to_totals(&report);
        result.map(|values| (values, report))
    }

    async fn get_all(&self, keys: &[Bytes], time: &ReadTime, report: &mut ReadReport) -> Result<Vec<Option<Bytes>>> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let batch = self.batch(keys)?;
        report.keys += batch.keys.len() as u64;
        let relevant: Vec<usize> = (0..self.runs().len())
            .filter(|&r| batch.states.iter().any(|&(state, times)| self.runs()[r].may_hold(state, times)))
            .collect();
        let runs: Vec<&Arc<Run>> = relevant.iter().map(|&r| &self.runs()[r]).collect();
        let metas = self.store.metas(&runs, Purpose::State, report).await?;
        let mut search = Search {
            batch: &batch,
            candidate_keys: Vec::new(),
            settled: vec![OPEN; batch.keys.len()],
            found: Vec::with_capacity(batch.keys.len()),
            arena: Vec::new(),
        };
        let candidates = self.candidates(&relevant, &metas, &mut search, report);
        let mut pending = Vec::new();
        for candidate in candidates {
            if !search.wants(&candidate) {
                continue;
            }
            match self.store.0.caches.block(&self.store.block_key(&runs, &metas, &candidate.wish)) {
                Some(body) => {
                    report.memory_hits += 1;
                    search.take(&candidate, body)?;
                }
                None => pending.push(candidate),
            }
        }
        while !pending.is_empty() {
            pending.retain(|c| search.wants(c));
            let now = search.choose(&mut pending);
            let wishes: Vec<BlockWish> = now.iter().map(|c| c.wish.clone()).collect();
            self.store
                .blocks(&runs, &metas, &wishes, (Purpose::State, true), report, |i, body| search.take(&now[i], body))
                .await?;
        }
        self.resolve_all(search, time)
    }

    fn batch<'a>(&self, keys: &'a [Bytes]) -> Result<Batch<'a>> {
        let mut order: Vec<u32> = (0..keys.len() as u32).collect();
        order.sort_unstable_by(|&a, &b| keys[a as usize].cmp(&keys[b as usize]));
        let mut batch = Batch {
            keys: Vec::with_capacity(keys.len()),
            hashes: Vec::with_capacity(keys.len()),
            groups: Vec::with_capacity(keys.len()),
            states: Vec::new(),
            places: vec![0; keys.len()],
        };
        for i in order {
            let key = &keys[i as usize];
            if batch.keys.last() != Some(&key) {
                let place = self.layouts().locate(key)?;
                if !self.ranges().contains(place.group) {
                    return Err(outside(place.group, self));
                }
                batch.keys.push(key);
                batch.hashes.push(stable_hash(key));
                batch.groups.push(place.group);
                let time = place.time_ms.map(|t| (t, t));
                match batch.states.last_mut() {
                    // Sorted keys: the times of a state rise.
                    Some((state, times)) if *state == place.state => {
                        *times = times.zip(time).map(|((min, _), (max, _))| (min, max));
                    }
                    _ => batch.states.push((place.state, time)),
                }
            }
            batch.places[i as usize] = (batch.keys.len() - 1) as u32;
        }
        Ok(batch)
    }

    /// The blocks that may hold keys, newest run first.
    fn candidates(
        &self,
        relevant: &[usize],
        metas: &[Arc<SectionMeta>],
        search: &mut Search<'_>,
        report: &mut ReadReport,
    ) -> Vec<Candidate> {
        let mut candidates: Vec<Candidate> = Vec::new();
        for (run, (&view_run, meta)) in relevant.iter().zip(metas).enumerate() {
            let clip = self.clip(view_run);
            let mut block = 0;
            let first = candidates.len();
            for (k, key) in search.batch.keys.iter().enumerate() {
                if !clip.contains(search.batch.groups[k]) {
                    continue;
                }
                if !meta.may_hold(search.batch.hashes[k]) {
                    report.filtered += 1;
                    continue;
                }
                block = meta.seek(block, key);
                if block == meta.blocks().len() {
                    break;
                }
                if meta.first_key(block) > key.as_ref() {
                    continue;
                }
                let at = search.candidate_keys.len();
                search.candidate_keys.push(k as u32);
                match candidates[first..].last_mut() {
                    Some(last) if last.wish.block == block => last.keys.end = at + 1,
                    _ => candidates.push(Candidate { wish: BlockWish { run, block }, keys: at..at + 1 }),
                }
            }
        }
        candidates
    }

    fn resolve_all(&self, mut search: Search<'_>, time: &ReadTime) -> Result<Vec<Option<Bytes>>> {
        // Entries of one key in one run were found newest first, so they stand in that order in the arena.
        search.found.sort_unstable_by_key(|f| (f.key, f.run, f.entry.start));
        let arena = Bytes::from(std::mem::take(&mut search.arena));
        let mut values: Vec<Option<Bytes>> = vec![None; search.batch.keys.len()];
        for chain in search.found.chunk_by(|a, b| a.key == b.key) {
            let k = chain[0].key as usize;
            let entries = chain.iter().map(|f| &arena[f.entry.clone()]);
            let operator = || {
                let state = self.layouts().locate(search.batch.keys[k])?.state;
                let name = self.layouts().get(state).map_or("", |l| l.merge_operator.as_str());
                self.store.0.merge.get(name)
            };
            values[k] = match resolve(entries, time, operator)? {
                Resolved::Absent => None,
                Resolved::Value(value) => Some(arena.slice_ref(value)),
                Resolved::Merged(value) => Some(Bytes::from(value)),
            };
        }
        Ok(search.batch.places.iter().map(|&p| values[p as usize].clone()).collect())
    }
}

impl Search<'_> {
    /// Whether any key of a candidate is still open at its run.
    fn wants(&self, candidate: &Candidate) -> bool {
        let run = candidate.wish.run as u32;
        self.candidate_keys[candidate.keys.clone()].iter().any(|&k| self.settled[k as usize] > run)
    }

    /// Looks for the keys of a candidate in its block.
    fn take(&mut self, candidate: &Candidate, body: Bytes) -> Result<()> {
        let block = Block::open(body)?;
        let run = candidate.wish.run as u32;
        let mut at = 0;
        for &k in &self.candidate_keys[candidate.keys.clone()] {
            if self.settled[k as usize] <= run {
                continue;
            }
            let key = self.batch.keys[k as usize];
            at = block.lower_bound(at, key);
            while block.is_key(at, key) {
                let entry = block.entry(at);
                let start = self.arena.len();
                self.arena.extend_from_slice(entry);
                self.found.push(Found { key: k, run, entry: start..self.arena.len() });
                if ends_chain(entry) {
                    self.settled[k as usize] = run;
                }
                at += 1;
            }
        }
        Ok(())
    }

    /// Takes out of `pending` what to fetch now: all of it, unless the newest candidates of all keys are less than
    /// half of that; then those.
    fn choose(&self, pending: &mut Vec<Candidate>) -> Vec<Candidate> {
        let mut newest = vec![OPEN; self.batch.keys.len()];
        let mut is_newest = Vec::with_capacity(pending.len());
        // Newest runs come first.
        for c in pending.iter() {
            let run = c.wish.run as u32;
            let mut any = false;
            for &k in &self.candidate_keys[c.keys.clone()] {
                if self.settled[k as usize] > run && newest[k as usize] >= run {
                    newest[k as usize] = run;
                    any = true;
                }
            }
            is_newest.push(any);
        }
        let count = is_newest.iter().filter(|n| **n).count();
        if count * 2 >= pending.len() {
            return std::mem::take(pending);
        }
        let mut flags = is_newest.into_iter();
        pending.extract_if(.., |_| flags.next().unwrap_or(false)).collect()
    }
}

fn outside(group: KeyGroup, view: &View) -> Error {
    Error::internal(format!("a key of key group {} was asked for in a view of {}", group.0, view.ranges())).code(9209)
}
