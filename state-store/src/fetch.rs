//! Reading index parts and data blocks of runs from the object store. Everything that comes back is checked against
//! what the version, the directory and the index say of it; a mismatch names the object and the offset.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::try_join_all;
use futures::stream::FuturesUnordered;
use millstream_cache::{BlockKey, Flight, Lead, ObjectId, Wait};
use millstream_common::collections::HashMap;
use millstream_common::prefetch::prefetch_address;
use millstream_common::{Error, ErrorKind, Result};
use millstream_objects::Purpose;
use tokio::sync::SemaphorePermit;

use crate::neighbours::{Brought, Later};
use crate::plan::{PlannedGet, Wanted, plan};
use crate::report::ReadReport;
use crate::run::Run;
use crate::section::{Block, BlockForm, BlockInfo, Directory, Part, PartInfo, SharedBlock, decode_stored};
use crate::store::{StateStore, kib};

/// A meta part up to this size is read whole: one GET less is worth more than the bytes.
const WHOLE_BYTES: u64 = 2 << 20;

/// A part of a run's index that a read looks into.
pub(crate) struct PartOf<'a> {
    pub(crate) run: &'a Arc<Run>,
    /// Index of the run among those that the caller reads.
    pub(crate) run_index: usize,
    pub(crate) part: Arc<Part>,
    object: ObjectId,
}

impl PartOf<'_> {
    pub(crate) fn key(&self, block: usize) -> BlockKey {
        BlockKey { object: self.object, offset: self.run.offset + self.part.blocks()[block].offset }
    }

    pub(crate) fn range(&self, block: usize) -> Range<u64> {
        let info = &self.part.blocks()[block];
        let start = self.run.offset + info.offset;
        start..start + u64::from(info.length)
    }

    /// Tells later reads of the part where a block is.
    fn remember(&self, block: usize, shared: &SharedBlock) {
        // Who comes by the cache next makes it.
        if shared.0.lacks_table() {
            return;
        }
        let weak = Arc::downgrade(&shared.0);
        self.part.slots().write().fill(block, weak);
    }

    /// Those of `blocks` that are in memory, in their order; how many. The cache is told what was read, or asked, only where it must
    /// be: see [`millstream_cache::Caches::turnover`].
    pub(crate) fn blocks_in_memory(
        &self,
        store: &StateStore,
        blocks: &[usize],
        out: &mut Vec<Option<SharedBlock>>,
    ) -> u64 {
        let caches = &store.0.caches;
        let turnover = caches.turnover();
        out.clear();
        {
            let slots = self.part.slots().read();
            let slots = slots.blocks();
            for &b in blocks {
                let start: *const u8 = slots[b].as_ptr().cast();
                (0..size_of::<Block>()).step_by(64).for_each(|at| prefetch_address(start.wrapping_add(at)));
            }
            out.extend(blocks.iter().map(|&b| slots[b].upgrade().map(SharedBlock)));
        }
        let (mut known, mut found) = (0, 0);
        for (there, &b) in out.iter_mut().zip(blocks) {
            match there {
                Some(block) => {
                    known += 1;
                    if block.0.touch(turnover) {
                        caches.touch(&self.key(b));
                    }
                }
                None => {
                    *there = caches.block(&self.key(b));
                    if let Some(block) = there {
                        found += 1;
                        if block.0.lacks_table() {
                            *block = block.clone().indexed();
                            caches.replace_in_memory(self.key(b), block.clone());
                        }
                        block.0.touch(turnover);
                        self.remember(b, block);
                    }
                }
            }
        }
        caches.count_memory_hits(known);
        known + found
    }
}

/// A block that is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockWish {
    /// Index of its part among those that the caller reads.
    pub(crate) part: usize,
    /// Its place in the part's index.
    pub(crate) block: usize,
}

/// The first of `wishes`, as many as have `bytes` bytes in memory together, but one at least; and the rest.
pub(crate) fn split_batch<'w>(
    parts: &[PartOf<'_>],
    wishes: &'w [BlockWish],
    bytes: u64,
) -> (&'w [BlockWish], &'w [BlockWish]) {
    let mut taken = 0;
    let is_beyond = |wish: &BlockWish| {
        taken += u64::from(parts[wish.part].part.blocks()[wish.block].body_length);
        taken > bytes
    };
    let count = wishes.iter().position(is_beyond).unwrap_or(wishes.len());
    wishes.split_at(count.max(1).min(wishes.len()))
}

/// How a read of blocks goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BlockMode {
    pub(crate) purpose: Purpose,
    /// Put what is fetched into the caches.
    pub(crate) keep: bool,
    /// How what is fetched is decoded.
    pub(crate) form: BlockForm,
}

/// What a read of blocks asks for.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) parts: &'a [PartOf<'a>],
    pub(crate) wishes: &'a [BlockWish],
    pub(crate) mode: BlockMode,
}

impl<'a> Asked<'a> {
    /// The part of a wish and the block's place in it, by the index of the wish.
    pub(crate) fn block(&self, i: usize) -> (&'a PartOf<'a>, usize) {
        (&self.parts[self.wishes[i].part], self.wishes[i].block)
    }

    fn key(&self, i: usize) -> BlockKey {
        let (of, block) = self.block(i);
        of.key(block)
    }
}

/// What to fetch, by the index of the wish.
pub(crate) type Leads = Vec<(usize, Lead<SharedBlock>)>;

/// What others fetch.
type Waits = Vec<(usize, Wait<SharedBlock>)>;

/// What a fetch of metadata took.
#[derive(Default)]
struct Cost {
    gets: u64,
    bytes: u64,
}

/// The parts of one run that were asked for, by their place in the directory.
type Found = Vec<(usize, Arc<Part>)>;

impl StateStore {
    /// Adds the object and the offset to an error.
    fn named(&self, run: &Run, offset: u64, error: Error) -> Error {
        error
            .at(format!("{} offset {offset}", self.store_of(run).url_of(&run.path())))
            .next("the object is damaged or is not the one that was written: `millstream fsck` shows what else is")
    }

    /// Bytes of a run's object, within the limits of GETs in flight.
    pub(crate) async fn get(&self, run: &Run, range: Range<u64>, purpose: Purpose) -> Result<Bytes> {
        self.get_held(run, range, purpose).await.map(|(bytes, _)| bytes)
    }

    /// The same for whoever does not use the bytes up at once: they count as in flight as long as the permit is held.
    async fn get_held(&self, run: &Run, range: Range<u64>, purpose: Purpose) -> Result<(Bytes, SemaphorePermit<'_>)> {
        let closed = |_| Error::internal("the limit of requests in flight is gone").code(9208);
        let asked = self.0.env.now();
        let _one = self.0.gets.acquire().await.map_err(closed)?;
        let limit = kib(self.0.options.bytes_in_flight).max(1);
        let permits = kib(range.end - range.start).min(limit) as u32;
        let held = self.0.get_kib.acquire_many(permits).await.map_err(closed)?;
        let (store, path) = (self.store_of(run), self.place(run.path()));
        let request = || {
            self.0.requests.spend(1, self.0.env.now());
            store.get_range(&path, range.clone(), purpose)
        };
        let sent = self.0.env.now();
        let answer = self.0.hedge.get(&self.0.env, range.end - range.start, request).await;
        self.0.accounts.got(purpose, sent.since(asked), self.0.env.now().since(sent));
        Ok((answer?, held))
    }

    /// The parts of `runs` that `wanted` says (by the index of the run), in the order of runs and keys: from the cache, or
    /// fetched at once. `wide`: nearly all parts of a run will be wanted, so its meta part is read in one go.
    pub(crate) async fn parts<'a>(
        &self,
        runs: &[&'a Arc<Run>],
        wide: impl Fn(usize) -> bool,
        wanted: impl Fn(usize, &PartInfo) -> bool,
        purpose: Purpose,
        report: &mut ReadReport,
    ) -> Result<Vec<PartOf<'a>>> {
        let mut found: Vec<Option<Found>> =
            runs.iter().enumerate().map(|(r, run)| self.cached_parts(run, &|p: &PartInfo| wanted(r, p))).collect();
        if found.iter().any(Option::is_none) {
            let started = self.0.env.now();
            let (wide, wanted) = (&wide, &wanted);
            let missing = found.iter().enumerate().filter(|(_, f)| f.is_none());
            let fetch = |r: usize| async move {
                (r, self.fetch_parts(runs[r], wide(r), |p: &PartInfo| wanted(r, p), purpose).await)
            };
            let mut fetches: FuturesUnordered<_> = missing.map(|(r, _)| fetch(r)).collect();
            let mut fetched = Vec::with_capacity(fetches.len());
            while let Some((r, parts)) = fetches.next().await {
                let (parts, cost) = parts?;
                report.gets += cost.gets;
                report.meta_gets += cost.gets;
                report.bytes += cost.bytes;
                fetched.push((r, parts));
            }
            drop(fetches);
            fetched.into_iter().for_each(|(r, parts)| found[r] = Some(parts));
            report.waited += self.0.env.now().since(started);
        }
        let of_run = |(run_index, found): (usize, Option<Found>)| {
            let (run, object) = (runs[run_index], runs[run_index].object_id());
            found.into_iter().flatten().map(move |(_, part)| PartOf { run, run_index, part, object })
        };
        Ok(found.into_iter().enumerate().flat_map(of_run).collect())
    }

    /// The wanted parts of a run, when the cache has all of them.
    fn cached_parts(&self, run: &Run, wanted: &impl Fn(&PartInfo) -> bool) -> Option<Found> {
        let directory = self.0.caches.metadata::<Directory>(&directory_key(run))?;
        let wanted = directory.parts().iter().enumerate().filter(|(_, info)| wanted(info));
        wanted.map(|(i, info)| Some((i, self.0.caches.metadata(&part_key(run, info))?))).collect()
    }

    /// One caller fetches metadata of a run at a time; the others look again when it is done.
    async fn fetch_parts(
        &self,
        run: &Run,
        wide: bool,
        wanted: impl Fn(&PartInfo) -> bool,
        purpose: Purpose,
    ) -> Result<(Found, Cost)> {
        loop {
            let lead = match self.0.caches.begin_metadata(directory_key(run)) {
                Flight::Ready(()) => None,
                Flight::Lead(lead) => Some(lead),
                Flight::Wait(wait) => {
                    wait.result().await;
                    None
                }
            };
            if let Some(found) = self.cached_parts(run, &wanted) {
                return Ok((found, Cost::default()));
            }
            let Some(lead) = lead else { continue };
            let mut cost = Cost::default();
            match self.lead_parts(run, wide, &wanted, purpose, &mut cost).await {
                Ok(found) => {
                    lead.finish(());
                    return Ok((found, cost));
                }
                // A file on the local disk is damaged: the object store has what was written.
                Err(e) if e.kind() == ErrorKind::Corrupt && self.discard_local(run) => {}
                Err(e) => return Err(e),
            }
        }
    }

    async fn lead_parts(
        &self,
        run: &Run,
        wide: bool,
        wanted: &impl Fn(&PartInfo) -> bool,
        purpose: Purpose,
        cost: &mut Cost,
    ) -> Result<Found> {
        let end = run.meta_offset + u64::from(run.meta_length);
        let known = self.0.caches.metadata::<Directory>(&directory_key(run));
        // The bytes from here to the end of the section are in `tail`.
        let mut tail_at = end;
        let mut tail = Bytes::new();
        let directory = match known {
            Some(directory) => directory,
            None => {
                let whole = wide || u64::from(run.meta_length) <= WHOLE_BYTES;
                tail_at = if whole { run.meta_offset } else { end - u64::from(run.directory_length) };
                tail = self.get_pieces(run, tail_at..end, purpose, cost).await?;
                let at = tail.len() - run.directory_length as usize;
                let directory = self.decode_directory(run, &tail[at..])?;
                self.0.caches.insert_metadata(directory_key(run), directory.clone(), directory.memory_bytes());
                directory
            }
        };
        let mut found = Vec::new();
        let mut missing = Vec::new();
        for (i, info) in directory.parts().iter().enumerate() {
            let start = run.meta_offset + info.at;
            if start >= tail_at {
                let at = (start - tail_at) as usize;
                // What has come along is kept, wanted or not.
                let part = self.decode_part(run, info, &tail.slice(at..at + info.length as usize))?;
                if wanted(info) {
                    found.push((i, part));
                }
            } else if wanted(info) {
                match self.0.caches.metadata(&part_key(run, info)) {
                    Some(part) => found.push((i, part)),
                    None => missing.push(i),
                }
            }
        }
        let stretches = missing.chunk_by(|a, b| a + 1 == *b).map(|some| {
            let parts = &directory.parts()[some[0]..=some[some.len() - 1]];
            (some[0], parts, parts.iter().map(|p| u64::from(p.length)).sum::<u64>())
        });
        let fetch = |(first, parts, bytes): (usize, &'_ [PartInfo], u64)| {
            let start = run.meta_offset + parts[0].at;
            let parts = parts.to_vec();
            async move {
                let mut cost = Cost::default();
                let stored = self.get_pieces(run, start..start + bytes, purpose, &mut cost).await?;
                let decoded = parts.iter().enumerate().map(|(i, info)| {
                    let at = (info.at - parts[0].at) as usize;
                    Ok((first + i, self.decode_part(run, info, &stored.slice(at..at + info.length as usize))?))
                });
                Ok::<_, Error>((decoded.collect::<Result<Vec<_>>>()?, cost))
            }
        };
        for (parts, took) in try_join_all(stretches.map(fetch)).await? {
            found.extend(parts);
            cost.gets += took.gets;
            cost.bytes += took.bytes;
        }
        found.sort_unstable_by_key(|(i, _)| *i);
        Ok(found)
    }

    /// A range in as many GETs at once as its size is worth.
    async fn get_pieces(&self, run: &Run, range: Range<u64>, purpose: Purpose, cost: &mut Cost) -> Result<Bytes> {
        if let Some(bytes) = self.local_bytes(run, &range).await {
            return Ok(bytes);
        }
        let pieces = (range.end - range.start).div_ceil(WHOLE_BYTES).max(1);
        cost.gets += pieces;
        cost.bytes += range.end - range.start;
        if pieces == 1 {
            return self.get(run, range, purpose).await;
        }
        let piece = |i: u64| {
            let start = range.start + i * WHOLE_BYTES;
            self.get(run, start..(start + WHOLE_BYTES).min(range.end), purpose)
        };
        Ok(Bytes::from(try_join_all((0..pieces).map(piece)).await?.concat()))
    }

    fn decode_directory(&self, run: &Run, stored: &[u8]) -> Result<Arc<Directory>> {
        let at = run.meta_offset + u64::from(run.meta_length - run.directory_length);
        let directory = Directory::decode(stored, run.checksum).map_err(|e| self.named(run, at, e))?;
        let parts = u64::from(run.meta_length - run.directory_length);
        if directory.parts_bytes() != parts {
            let error =
                Error::corrupt("the parts of a section's index have another size than the version says").code(4003);
            return Err(self.named(run, at, error));
        }
        Ok(Arc::new(directory))
    }

    /// Decodes a part and puts it into the cache.
    fn decode_part(&self, run: &Run, info: &PartInfo, stored: &Bytes) -> Result<Arc<Part>> {
        if let Some(part) = self.0.caches.metadata(&part_key(run, info)) {
            return Ok(part);
        }
        let part = Part::decode(stored, info).map_err(|e| self.named(run, run.meta_offset + info.at, e))?;
        let end = part.blocks().last().map_or(0, |b| b.offset + u64::from(b.length));
        if end > run.meta_offset - run.offset {
            let error = Error::corrupt("a section's blocks do not end where its meta part begins").code(4003);
            return Err(self.named(run, run.meta_offset + info.at, error));
        }
        let part = Arc::new(part);
        self.0.caches.insert_metadata(part_key(run, info), part.clone(), part.memory_bytes());
        Ok(part)
    }

    /// Brings all blocks of `wishes`: from the SSD, from others who fetch them already, and by planned GETs, all at
    /// once. Calls `take` with the index of each wish and the block, as they come. Memory was asked before.
    pub(crate) async fn blocks(
        &self,
        parts: &[PartOf<'_>],
        wishes: &[BlockWish],
        mode: BlockMode,
        report: &mut ReadReport,
        mut take: impl FnMut(usize, SharedBlock) -> Result<()>,
    ) -> Result<()> {
        let started = self.0.env.now();
        let asked = Asked { parts, wishes, mode };
        let mut left: Vec<usize> = (0..wishes.len()).collect();
        while !left.is_empty() {
            let mut waits = Vec::new();
            let mut leads = Vec::new();
            for i in std::mem::take(&mut left) {
                match self.0.caches.begin(asked.key(i)) {
                    Flight::Ready(block) => take(i, block)?,
                    Flight::Wait(wait) => waits.push((i, wait)),
                    Flight::Lead(lead) => leads.push((i, lead)),
                }
            }
            leads = self.look_in_files(asked, leads, report, &mut take).await?;
            if self.uses_ssd() {
                leads = self.look_on_disk(asked, leads, report, &mut take).await?;
            }
            self.lead_gets(asked, (leads, waits), report, &mut left, &mut take).await?;
        }
        report.waited += self.0.env.now().since(started);
        Ok(())
    }

    /// Takes what the SSD has; what it has not is given back.
    async fn look_on_disk(
        &self,
        asked: Asked<'_>,
        leads: Leads,
        report: &mut ReadReport,
        take: &mut impl FnMut(usize, SharedBlock) -> Result<()>,
    ) -> Result<Leads> {
        let otherwise = self.0.hedge.usual();
        let look = leads.into_iter().map(|(i, lead)| async move {
            let key = asked.key(i);
            // Who walks or warms up says himself what of it gets a place in memory.
            let caches = &self.0.caches;
            let found = match asked.mode.keep {
                true => caches.disk_block(&key, otherwise).await,
                false => caches.disk_block_aside(&key, otherwise).await,
            };
            (i, lead, found)
        });
        let mut looks = futures::stream::iter(look).buffer_unordered(self.0.options.gets_in_flight.max(1));
        let mut missing = Vec::new();
        while let Some((i, lead, block)) = looks.next().await {
            match block {
                Some(block) => {
                    report.disk_hits += 1;
                    if asked.mode.keep {
                        let (of, at) = asked.block(i);
                        of.remember(at, &block);
                    }
                    lead.finish(block.clone());
                    take(i, block)?;
                }
                None => missing.push((i, lead)),
            }
        }
        Ok(missing)
    }

    /// Our own GETs, and beside them what others fetch for us. Each block is taken when it comes: one that were kept until
    /// all are there would be memory that no budget knows of. Nobody waits in a circle, since our GETs go on while we
    /// wait. `again`: what others gave up.
    async fn lead_gets(
        &self,
        asked: Asked<'_>,
        (leads, waits): (Leads, Waits),
        report: &mut ReadReport,
        again: &mut Vec<usize>,
        take: &mut impl FnMut(usize, SharedBlock) -> Result<()>,
    ) -> Result<()> {
        let Asked { parts, mode, .. } = asked;
        let firsts = first_of_object(parts);
        let wanted: Vec<Wanted> = leads
            .iter()
            .map(|(i, _)| {
                let wish = asked.wishes[*i];
                Wanted { object: firsts[wish.part], range: parts[wish.part].range(wish.block) }
            })
            .collect();
        let mut limits = self.plan_limits();
        if limits.gets < wanted.len().min(self.0.options.gets_in_flight) {
            self.0.accounts.over_budget();
        }
        if !mode.keep {
            // What comes along has no place.
            limits.room_bytes = 0;
        }
        let mut leads: Vec<_> = leads.into_iter().map(Some).collect();
        let get = |get: PlannedGet| async move {
            let got = self.get_held(parts[get.object].run, get.range.clone(), mode.purpose).await;
            (get, got)
        };
        let mut gets: FuturesUnordered<_> = plan(&wanted, limits).into_iter().map(get).collect();
        let mut waits: FuturesUnordered<_> =
            waits.into_iter().map(|(i, wait)| async move { (i, wait.result().await) }).collect();
        let mut later = Later::of(self);
        while !(gets.is_empty() && waits.is_empty() && later.is_empty()) {
            let (get, got) = millstream_common::select! {
                Some((i, block)) = waits.next(), if !waits.is_empty() => {
                    match block {
                        Some(block) => {
                            report.shared += 1;
                            take(i, block)?;
                        }
                        None => again.push(i),
                    }
                    continue;
                }
                Some(got) = gets.next(), if !gets.is_empty() => got,
                () = std::future::ready(()), if !later.is_empty() => {
                    later.keep_one(parts, &firsts);
                    // Whoever brings bytes runs in between.
                    self.0.env.yield_now().await;
                    continue;
                }
            };
            let (bytes, permit) = got?;
            report.gets += 1;
            report.merged += get.members.len().saturating_sub(1) as u64;
            report.bytes += bytes.len() as u64;
            for member in &get.members {
                let Some((i, lead)) = leads[*member].take() else { continue };
                report.misses += 1;
                if mode.keep {
                    self.0.caches.count_misses(1);
                }
                let (of, at) = asked.block(i);
                let block = self.decode_block(of, at, &get.range, &bytes, mode.form)?;
                let block = self.keep_fetched(of, at, block, mode);
                lead.finish(block.clone());
                take(i, block)?;
            }
            if limits.room_bytes > 0 && brings_more(&get, &wanted) {
                later.push(Brought { object: get.object, range: get.range, bytes, permit });
                while later.has_too_much() {
                    later.keep_one(parts, &firsts);
                }
            }
        }
        Ok(())
    }

    /// A block that was fetched, in the caches if it is to be kept.
    pub(crate) fn keep_fetched(&self, of: &PartOf<'_>, block: usize, fetched: Block, mode: BlockMode) -> SharedBlock {
        let shared = SharedBlock::from(fetched);
        if !mode.keep {
            return shared;
        }
        of.remember(block, &shared);
        if self.keeps_state() {
            self.0.caches.insert_in_memory(of.key(block), shared.clone());
        } else {
            self.0.caches.insert_block(of.key(block), shared.clone());
        }
        shared
    }

    /// Cuts a block out of a GET's bytes, checks it and decompresses it. The body shares nothing with the bytes.
    pub(crate) fn decode_block(
        &self,
        of: &PartOf<'_>,
        block: usize,
        range: &Range<u64>,
        bytes: &Bytes,
        form: BlockForm,
    ) -> Result<Block> {
        let own = of.range(block);
        let info: &BlockInfo = &of.part.blocks()[block];
        let cut = (own.start - range.start) as usize..(own.end - range.start) as usize;
        let stored =
            bytes.get(cut).ok_or_else(|| Error::corrupt("an object is shorter than its index says").code(4003));
        stored
            .and_then(|stored| decode_stored(stored, info.checksum, form))
            .map_err(|e| self.named(of.run, own.start, e))
    }
}

/// Whether a GET brings bytes that nobody wanted.
fn brings_more(get: &PlannedGet, wanted: &[Wanted]) -> bool {
    let asked: u64 = get.members.iter().map(|&m| wanted[m].range.end - wanted[m].range.start).sum();
    asked < get.range.end - get.range.start
}

/// For each part the first one that lies in the same object: parts of several runs of one object may share a GET.
fn first_of_object(parts: &[PartOf<'_>]) -> Vec<usize> {
    let mut firsts: HashMap<ObjectId, usize> = HashMap::default();
    parts.iter().enumerate().map(|(i, part)| *firsts.entry(part.object).or_insert(i)).collect()
}

/// The directory's name in the caches.
pub(crate) fn directory_key(run: &Run) -> BlockKey {
    let offset = run.meta_offset + u64::from(run.meta_length - run.directory_length);
    BlockKey { object: run.object_id(), offset }
}

/// A part's name in the caches.
pub(crate) fn part_key(run: &Run, info: &PartInfo) -> BlockKey {
    BlockKey { object: run.object_id(), offset: run.meta_offset + info.at }
}
