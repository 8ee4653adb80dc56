//! `multi_get`: the values of thousands of keys in two dependent stages of I/O at most, as a rule: index parts, then
//! blocks.
//!
//! 1. Keys are sorted and distinct, and copied one behind the other.
//! 2. Run by run, newest first: clip, filter and index leave for each key the block that may hold it; blocks in memory are
//!    searched at once. A key whose newest put or delete was found needs nothing older and is not looked for there.
//! 3. All other blocks are fetched together, by planned GETs; when that would fetch far more than the newest
//!    candidates of all keys, those come first and the rest in a further round, if still needed.
//! 4. Each block is searched for its keys as it comes and let go: what is held is the entries that were found.
//!
//! Nearly everything that a look-up touches lies somewhere in gigabytes: a line of the filter, the slot of the block, its
//! table, the key, the entry. So keys go through these steps in groups, and each step asks the processor for the memory of
//! the next one before it is taken.

use std::cmp::Ordering;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use millstream_common::hash::stable_hash;
use millstream_common::{Error, KeyGroup, KeyGroupRanges, Result, StateId};
use millstream_objects::Purpose;

use crate::Layout;
use crate::entry::{ReadTime, ends_chain, is_plain_put};
use crate::fetch::{BlockMode, BlockWish, PartOf};
use crate::fold::{Resolved, resolve};
use crate::heads::{Headed, sorted};
use crate::key;
use crate::report::ReadReport;
use crate::run::Run;
use crate::section::{Block, BlockForm, PartInfo, SharedBlock, is_same};
use crate::view::View;

/// Keys that go through the steps together: what the steps ask for fits into the nearest cache.
const GROUP: usize = 64;

/// The values that a [`View::multi_get`] found, in the order of its keys. They share one allocation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Values {
    arena: Bytes,
    /// By distinct key: where its value stands; [`ABSENT`].
    spans: Vec<(u32, u32)>,
    /// By key of the call: its place in `spans`.
    places: Vec<u32>,
}

/// No value.
const ABSENT: (u32, u32) = (u32::MAX, 0);

impl Values {
    /// How many keys were asked for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether none was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The value of key `i` of the call; `None` when it is absent, deleted or expired, or when there is no such key.
    #[inline]
    #[must_use]
    pub fn get(&self, i: usize) -> Option<&[u8]> {
        let (start, end) = *self.spans.get(*self.places.get(i)? as usize)?;
        self.arena.get(start as usize..end as usize).filter(|_| start != ABSENT.0)
    }

    /// The values, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Option<&[u8]>> {
        (0..self.len()).map(|i| self.get(i))
    }
}

/// The distinct keys of a call, sorted.
#[derive(Default)]
struct Batch {
    keys: Vec<u8>,
    ends: Vec<u32>,
    hashes: Vec<u64>,
    groups: Vec<KeyGroup>,
    /// The states of the keys with the least and greatest time of their keys.
    states: Vec<(StateId, Option<(i64, i64)>)>,
    /// For each key of the call, its place in `keys`.
    places: Vec<u32>,
}

impl Batch {
    fn len(&self) -> usize {
        self.ends.len()
    }

    #[inline]
    fn key(&self, k: usize) -> &[u8] {
        let start = if k == 0 { 0 } else { self.ends[k - 1] as usize };
        &self.keys[start..self.ends[k] as usize]
    }

    /// The keys from the first that is not below `first` to the last that is not above `last`.
    fn between(&self, first: &[u8], last: &[u8]) -> Range<usize> {
        let below = |bound: &[u8], included: bool| {
            let (mut low, mut high) = (0, self.len());
            while low < high {
                let mid = low.midpoint(high);
                let key = self.key(mid);
                if key < bound || (included && key == bound) { low = mid + 1 } else { high = mid }
            }
            low
        };
        let start = below(first, false);
        start..below(last, true).max(start)
    }
}

/// A block that was not in memory, and the keys (a range of `Search::candidate_keys`) that it may hold.
struct Candidate {
    wish: BlockWish,
    run: u32,
    keys: Range<usize>,
}

/// An entry that was found.
struct Found {
    key: u32,
    run: u32,
    /// Where the encoded entry stands in the arena.
    entry: Range<u32>,
}

/// A put that does not expire: its run (or [`OPEN`]), and where its value stands in the arena, right behind its head.
#[derive(Clone, Copy)]
struct Put {
    run: u32,
    span: (u32, u32),
}

/// Bytes of the head of such a put.
const PUT_HEAD: u32 = 1;

struct Search<'a> {
    batch: &'a Batch,
    /// The keys of each candidate, by place in the batch.
    candidate_keys: Vec<u32>,
    candidates: Vec<Candidate>,
    /// The newest run in which a put or delete was found, by key.
    settled: Vec<u32>,
    /// By key: the newest put that does not expire. Most keys need no more.
    puts: Vec<Put>,
    /// All other entries.
    found: Vec<Found>,
    arena: Vec<u8>,
}

const OPEN: u32 = u32::MAX;

/// Room is made beforehand for entries of at most so many bytes each.
const LARGEST_EXPECTED: u64 = 256;

impl View {
    /// The values of `keys` (whole store keys, in any order, duplicates allowed) at `time`, and what it cost. A key of
    /// a key group outside the view's ranges is an error: its owner is somebody else.
    pub async fn multi_get<K: AsRef<[u8]>>(&self, keys: &[K], time: &ReadTime) -> Result<(Values, ReadReport)> {
        let mut report = ReadReport::default();
        let batch = self.batch(keys);
        let result = match batch {
            Ok(batch) => self.get_all(batch, time, &mut report).await,
            Err(e) => Err(e),
        };
        self.store.add_to_totals(&report);
        result.map(|values| (values, report))
    }

    /// Brings the blocks that a later [`View::multi_get`] of these keys needs into memory, as far as the cache has room for
    /// them; values are not looked at. Costs what that read will then not cost.
    pub async fn prefetch<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<ReadReport> {
        let mut report = ReadReport::default();
        let batch = self.batch(keys)?;
        let result = self.prefetch_all(&batch, &mut report).await;
        self.store.add_to_totals(&report);
        result.map(|()| report)
    }

    async fn prefetch_all(&self, batch: &Batch, report: &mut ReadReport) -> Result<()> {
        let parts = self.parts_for(batch, report).await?;
        let mut search = Search::new(batch);
        self.search_memory(&parts, &mut search, report)?;
        let wishes: Vec<BlockWish> = search.candidates.iter().map(|c| c.wish).collect();
        let mode = BlockMode { purpose: Purpose::State, keep: true, form: BlockForm::Searched };
        self.store.blocks(&parts, &wishes, mode, report, |_, _| Ok(())).await
    }

    async fn get_all(&self, mut batch: Batch, time: &ReadTime, report: &mut ReadReport) -> Result<Values> {
        let places = std::mem::take(&mut batch.places);
        report.keys += batch.len() as u64;
        let parts = self.parts_for(&batch, report).await?;
        let mut search = Search::new(&batch);
        search.arena.reserve(self.expected_bytes(batch.len()));
        self.search_memory(&parts, &mut search, report)?;
        let mut pending = std::mem::take(&mut search.candidates);
        while !pending.is_empty() {
            pending.retain(|c| search.wants(c));
            let now = search.choose(&mut pending);
            let wishes: Vec<BlockWish> = now.iter().map(|c| c.wish).collect();
            let mode = BlockMode { purpose: Purpose::State, keep: true, form: BlockForm::Searched };
            self.store.blocks(&parts, &wishes, mode, report, |i, block| search.take(&now[i], &block.0)).await?;
        }
        self.resolve_all(&mut search, time)?;
        let Search { puts, mut arena, .. } = search;
        // Of many absent keys little is left of the room that was made.
        if arena.capacity() / 2 > arena.len() {
            arena.shrink_to_fit();
        }
        Ok(Values { arena: Bytes::from(arena), spans: puts.into_iter().map(|p| p.span).collect(), places })
    }

    /// About how many bytes so many entries have: as those of the largest run do.
    fn expected_bytes(&self, entries: usize) -> usize {
        let of = |run: &Run| run.length.checked_div(run.entries).unwrap_or_default().min(LARGEST_EXPECTED);
        let bytes = self.runs().iter().max_by_key(|r| r.entries).map_or(0, |run| of(run));
        entries * bytes as usize
    }

    fn batch<K: AsRef<[u8]>>(&self, keys: &[K]) -> Result<Batch> {
        if keys.len() >= OPEN as usize {
            return Err(Error::internal("a read has more than 4 G keys").code(9211));
        }
        let mut batch = Batch { places: vec![0; keys.len()], ..Batch::default() };
        let bytes = keys.iter().map(|k| k.as_ref().len()).sum::<usize>();
        if u32::try_from(bytes).is_err() {
            return Err(Error::internal("the keys of a read are larger than 4 GiB").code(9211));
        }
        batch.keys.reserve(bytes);
        let mut state: Option<(StateId, Layout)> = None;
        let mut before: &[u8] = &[];
        // Which of those that are alike comes first does not matter.
        let order = sorted(keys.len() as u32, |i| keys[i as usize].as_ref(), |_, _| Ordering::Equal);
        for Headed { number: i, .. } in order {
            let key = keys[i as usize].as_ref();
            if batch.ends.is_empty() || !is_same(before, key) {
                let id = key::state_of(key).ok_or_else(|| crate::layout::bad_key(key))?;
                let layout = match state {
                    Some((known, layout)) if known == id => layout,
                    _ => self.layouts().get(id).ok_or_else(|| crate::layout::unknown_state(id))?.layout,
                };
                state = Some((id, layout));
                let (group, time) = key::key_group(key, layout).ok_or_else(|| crate::layout::bad_key(key))?;
                if !self.ranges().contains(group) {
                    return Err(outside(group, self));
                }
                batch.add(key, id, group, time);
                before = key;
            }
            batch.places[i as usize] = (batch.len() - 1) as u32;
        }
        Ok(batch)
    }

    /// The parts that may hold keys of the batch, newest run first.
    async fn parts_for(&self, batch: &Batch, report: &mut ReadReport) -> Result<Vec<PartOf<'_>>> {
        let may = |run: &Run| batch.states.iter().any(|&(state, times)| run.may_hold(state, times));
        let relevant: Vec<usize> = (0..self.runs().len()).filter(|&r| may(&self.runs()[r])).collect();
        let runs: Vec<&Arc<Run>> = relevant.iter().map(|&r| &self.runs()[r]).collect();
        let wide = |r: usize| self.shows_much_of(relevant[r]);
        let wanted = |r: usize, part: &PartInfo| {
            part.overlaps(self.clip(relevant[r])) && !batch.between(&part.first_key, &part.last_key).is_empty()
        };
        let mut parts = self.store.parts(&runs, wide, wanted, Purpose::State, report).await?;
        // By their place in the view.
        parts.iter_mut().for_each(|p| p.run_index = relevant[p.run_index]);
        Ok(parts)
    }

    /// Looks into all blocks that are in memory; what is not becomes a candidate.
    fn search_memory(&self, parts: &[PartOf<'_>], search: &mut Search<'_>, report: &mut ReadReport) -> Result<()> {
        let mut work = Work::default();
        for (p, part) in parts.iter().enumerate() {
            let run = part.run_index;
            let keys = search.batch.between(part.part.first_key(), part.part.last_key());
            let mut block = 0;
            for first in keys.clone().step_by(GROUP) {
                let group = first..(first + GROUP).min(keys.end);
                work.select(group, self.clip(run), part, search, report);
                block = work.find_blocks(part, search.batch, block);
                work.take_from_memory(self, p, part, search, report)?;
            }
        }
        Ok(())
    }

    fn resolve_all(&self, search: &mut Search<'_>, time: &ReadTime) -> Result<()> {
        // Entries of one key in one run were found newest first, so they stand in that order in the arena.
        search.found.sort_unstable_by_key(|f| (f.key, f.run, f.entry.start));
        let found = std::mem::take(&mut search.found);
        for chain in found.chunk_by(|a, b| a.key == b.key) {
            let k = chain[0].key as usize;
            let put = search.puts[k];
            // What is older than a put does not matter.
            let younger = chain.iter().filter(|f| f.run < put.run).map(|f| f.entry.clone());
            let base = (put.run != OPEN).then_some(put.span.0 - PUT_HEAD..put.span.1);
            let entries = younger.chain(base).map(|e| &search.arena[e.start as usize..e.end as usize]);
            let operator = || self.layouts().operator_of(search.batch.key(k), &self.store.0.merge);
            search.puts[k].span = match resolve(entries, time, operator)? {
                Resolved::Absent => ABSENT,
                Resolved::Value(value) => {
                    let start = value.as_ptr() as usize - search.arena.as_ptr() as usize;
                    (start as u32, (start + value.len()) as u32)
                }
                Resolved::Merged(value) => search.keep(&value)?,
            };
        }
        Ok(())
    }
}

impl Batch {
    #[inline]
    fn add(&mut self, key: &[u8], state: StateId, group: KeyGroup, time: Option<i64>) {
        self.keys.extend_from_slice(key);
        self.ends.push(self.keys.len() as u32);
        self.hashes.push(stable_hash(key));
        self.groups.push(group);
        match self.states.last_mut() {
            // Sorted keys: the times of a state rise.
            Some((known, times)) if *known == state => {
                *times = times.zip(time).map(|((min, _), t)| (min, t));
            }
            _ => self.states.push((state, time.map(|t| (t, t)))),
        }
    }
}

/// What the keys of a group have come to; kept from group to group for its memory.
#[derive(Default)]
struct Work {
    asked: Vec<u32>,
    selected: Vec<u32>,
    /// The distinct blocks that may hold selected keys, in their order.
    blocks: Vec<usize>,
    /// By selected key: which of `blocks`.
    places: Vec<usize>,
    /// By block: itself, if it is in memory.
    found: Vec<Option<SharedBlock>>,
    /// By selected key: where its block has it, by the table alone.
    guesses: Vec<Option<usize>>,
}

impl Work {
    /// The keys of `keys` that are open, inside the clip, and may be in the part by its filter.
    fn select(
        &mut self,
        keys: Range<usize>,
        clip: &KeyGroupRanges,
        part: &PartOf<'_>,
        search: &Search<'_>,
        report: &mut ReadReport,
    ) {
        let run = part.run_index as u32;
        self.asked.clear();
        self.selected.clear();
        let open = |k: &usize| search.settled[*k] > run && clip.contains(search.batch.groups[*k]);
        self.asked.extend(keys.filter(open).map(|k| k as u32));
        part.part.filter().select(&search.batch.hashes, &self.asked, &mut self.selected);
        report.filtered += (self.asked.len() - self.selected.len()) as u64;
    }

    /// The blocks of the selected keys, from `from` on; the last one.
    fn find_blocks(&mut self, part: &PartOf<'_>, batch: &Batch, from: usize) -> usize {
        self.blocks.clear();
        self.places.clear();
        let mut block = from;
        for &k in &self.selected {
            block = part.part.seek(block, batch.key(k as usize));
            if self.blocks.last() != Some(&block) {
                self.blocks.push(block);
            }
            self.places.push(self.blocks.len() - 1);
        }
        block
    }

    /// Searches the blocks that are in memory for their keys; the others become candidates.
    fn take_from_memory(
        &mut self,
        view: &View,
        p: usize,
        part: &PartOf<'_>,
        search: &mut Search<'_>,
        report: &mut ReadReport,
    ) -> Result<()> {
        report.memory_hits += part.blocks_in_memory(&view.store, &self.blocks, &mut self.found);
        let hash = |k: u32| search.batch.hashes[k as usize];
        for (&k, &place) in self.selected.iter().zip(&self.places) {
            if let Some(block) = &self.found[place] {
                block.0.prefetch_place(hash(k));
            }
        }
        self.guesses.clear();
        let guesses = self.selected.iter().zip(&self.places);
        self.guesses.extend(guesses.map(|(&k, &place)| self.found[place].as_ref()?.0.guess(hash(k))));
        for ((&k, &place), guess) in self.selected.iter().zip(&self.places).zip(&self.guesses) {
            match &self.found[place] {
                Some(block) => search.look(&block.0, k, part.run_index as u32, *guess)?,
                None => search.miss(BlockWish { part: p, block: self.blocks[place] }, part.run_index as u32, k),
            }
        }
        self.found.clear();
        Ok(())
    }
}

impl<'a> Search<'a> {
    fn new(batch: &'a Batch) -> Self {
        Self {
            batch,
            candidate_keys: Vec::new(),
            candidates: Vec::new(),
            settled: vec![OPEN; batch.len()],
            puts: vec![Put { run: OPEN, span: ABSENT }; batch.len()],
            found: Vec::new(),
            arena: Vec::new(),
        }
    }

    /// Key `k` may be in a block that is not in memory. Those of one block come one after the other.
    fn miss(&mut self, wish: BlockWish, run: u32, k: u32) {
        let at = self.candidate_keys.len();
        self.candidate_keys.push(k);
        match self.candidates.last_mut() {
            Some(last) if last.wish == wish => last.keys.end = at + 1,
            _ => self.candidates.push(Candidate { wish, run, keys: at..at + 1 }),
        }
    }

    /// Whether any key of a candidate is still open at its run.
    fn wants(&self, candidate: &Candidate) -> bool {
        self.candidate_keys[candidate.keys.clone()].iter().any(|&k| self.settled[k as usize] > candidate.run)
    }

    /// Looks for the keys of a candidate in its block.
    fn take(&mut self, candidate: &Candidate, block: &Block) -> Result<()> {
        for at in candidate.keys.clone() {
            let k = self.candidate_keys[at];
            if self.settled[k as usize] > candidate.run {
                self.look(block, k, candidate.run, None)?;
            }
        }
        Ok(())
    }

    /// Takes the entries of key `k` from a block of `run`. `guess`: where they may be.
    #[inline]
    fn look(&mut self, block: &Block, k: u32, run: u32, guess: Option<usize>) -> Result<()> {
        let key = self.batch.key(k as usize);
        let guessed = guess.filter(|i| block.is_key(*i, key));
        let Some(mut at) = guessed.or_else(|| block.find(self.batch.hashes[k as usize], key)) else { return Ok(()) };
        let entry = block.entry(at);
        if is_plain_put(entry) {
            let (start, end) = self.keep(entry)?;
            self.settled[k as usize] = run;
            self.puts[k as usize] = Put { run, span: (start + PUT_HEAD, end) };
            return Ok(());
        }
        while block.is_key(at, key) {
            let entry = block.entry(at);
            let (start, end) = self.keep(entry)?;
            self.found.push(Found { key: k, run, entry: start..end });
            if ends_chain(entry) {
                self.settled[k as usize] = run;
            }
            at += 1;
        }
        Ok(())
    }

    /// Takes out of `pending` what to fetch now: all of it, unless the newest candidates of all keys are less than
    /// half of that; then those.
    fn choose(&self, pending: &mut Vec<Candidate>) -> Vec<Candidate> {
        let mut newest = vec![OPEN; self.batch.len()];
        let mut is_newest = Vec::with_capacity(pending.len());
        // Newest runs come first.
        for c in pending.iter() {
            let mut any = false;
            for &k in &self.candidate_keys[c.keys.clone()] {
                if self.settled[k as usize] > c.run && newest[k as usize] >= c.run {
                    newest[k as usize] = c.run;
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

    #[inline]
    fn keep(&mut self, bytes: &[u8]) -> Result<(u32, u32)> {
        let start = self.arena.len();
        self.arena.extend_from_slice(bytes);
        if self.arena.len() >= u32::MAX as usize {
            return Err(Error::data("the values of one read are larger than 4 GiB")
                .code(3204)
                .next("ask for fewer keys at once"));
        }
        Ok((start as u32, self.arena.len() as u32))
    }
}

fn outside(group: KeyGroup, view: &View) -> Error {
    Error::internal(format!("a key of key group {} was asked for in a view of {}", group.0, view.ranges())).code(9209)
}
