//! Reading meta parts and data blocks of runs from the object store. Everything that comes back is checked against
//! what the version and the index say of it; a mismatch names the object and the offset.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use millstream_cache::{BlockKey, Flight, Lead, Wait};
use millstream_common::{Error, Result};
use millstream_objects::Purpose;

use crate::plan::{PlannedGet, Wanted, plan};
use crate::report::ReadReport;
use crate::run::Run;
use crate::section::{SectionMeta, decode_stored};
use crate::store::{StateStore, kib};

/// A block of a run that is wanted.
#[derive(Clone, Debug)]
pub(crate) struct BlockWish {
    /// Index of its run among those that the caller reads.
    pub(crate) run: usize,
    /// Its place in the run's index.
    pub(crate) block: usize,
}

/// By the index of the wish: what to fetch, and what others fetch.
type Flights = (Vec<(usize, Lead)>, Vec<(usize, Wait)>);

impl StateStore {
    /// Adds the object and the offset to an error.
    fn named(&self, run: &Run, offset: u64, error: Error) -> Error {
        error
            .at(format!("{} offset {offset}", self.store_of(run).url_of(&run.path())))
            .next("the object is damaged or is not the one that was written: `millstream fsck` shows what else is")
    }

    /// Bytes of a run's object, within the limits of GETs in flight.
    async fn get(&self, run: &Run, range: Range<u64>, purpose: Purpose) -> Result<Bytes> {
        let closed = |_| Error::internal("the limit of requests in flight is gone").code(9208);
        let _one = self.0.gets.acquire().await.map_err(closed)?;
        let limit = kib(self.0.options.bytes_in_flight).max(1);
        let permits = kib(range.end - range.start).min(limit) as u32;
        let _bytes = self.0.get_kib.acquire_many(permits).await.map_err(closed)?;
        self.store_of(run).get_range(&run.path(), range, purpose).await
    }

    /// The meta parts of `runs`, from the cache or fetched at once.
    pub(crate) async fn metas(
        &self,
        runs: &[&Arc<Run>],
        purpose: Purpose,
        report: &mut ReadReport,
    ) -> Result<Vec<Arc<SectionMeta>>> {
        let mut metas: Vec<Option<Arc<SectionMeta>>> =
            runs.iter().map(|run| self.0.caches.metadata(&meta_key(run))).collect();
        if metas.iter().any(Option::is_none) {
            let started = self.0.env.now();
            let missing = metas.iter().enumerate().filter(|(_, m)| m.is_none());
            let mut fetches: FuturesUnordered<_> =
                missing.map(|(i, _)| async move { (i, self.fetch_meta(runs[i], purpose).await) }).collect();
            let mut fetched = Vec::with_capacity(fetches.len());
            while let Some((i, meta)) = fetches.next().await {
                let (meta, bytes) = meta?;
                report.gets += u64::from(bytes > 0);
                report.bytes += bytes;
                fetched.push((i, meta));
            }
            drop(fetches);
            for (i, meta) in fetched {
                metas[i] = Some(meta);
            }
            report.waited += self.0.env.now().since(started);
        }
        Ok(metas.into_iter().flatten().collect())
    }

    /// A meta part and the bytes that were fetched for it (0: somebody else fetched it).
    async fn fetch_meta(&self, run: &Run, purpose: Purpose) -> Result<(Arc<SectionMeta>, u64)> {
        let key = meta_key(run);
        loop {
            let lead = match self.0.caches.begin(key) {
                Flight::Lead(lead) => lead,
                Flight::Ready(stored) => return Ok((self.decode_meta(run, &stored)?, 0)),
                Flight::Wait(wait) => match wait.result().await {
                    Some(stored) => return Ok((self.decode_meta(run, &stored)?, 0)),
                    None => continue,
                },
            };
            if let Some(meta) = self.0.caches.metadata(&key) {
                return Ok((meta, 0));
            }
            let range = run.meta_offset..run.meta_offset + u64::from(run.meta_length);
            let stored = self.get(run, range, purpose).await?;
            let meta = self.decode_meta(run, &stored)?;
            self.0.caches.insert_metadata(key, meta.clone(), meta.memory_bytes());
            let bytes = stored.len() as u64;
            lead.finish_uncached(stored);
            return Ok((meta, bytes));
        }
    }

    fn decode_meta(&self, run: &Run, stored: &Bytes) -> Result<Arc<SectionMeta>> {
        let meta = SectionMeta::decode(stored, run.checksum).map_err(|e| self.named(run, run.meta_offset, e))?;
        if meta.blocks_end() != run.meta_offset - run.offset {
            let error = Error::corrupt("a section's blocks do not end where its meta part begins").code(4003);
            return Err(self.named(run, run.meta_offset, error));
        }
        Ok(Arc::new(meta))
    }

    /// Brings all blocks of `wishes`: from the SSD, from others who fetch them already, and by planned GETs, all at
    /// once. Calls `take` with the index of each wish and the block's body, as they come. Memory was asked before.
    /// `keep`: put what is fetched into the caches.
    pub(crate) async fn blocks(
        &self,
        runs: &[&Arc<Run>],
        metas: &[Arc<SectionMeta>],
        wishes: &[BlockWish],
        (purpose, keep): (Purpose, bool),
        report: &mut ReadReport,
        mut take: impl FnMut(usize, Bytes) -> Result<()>,
    ) -> Result<()> {
        let started = self.0.env.now();
        let mut left: Vec<usize> = (0..wishes.len()).collect();
        while !left.is_empty() {
            let mut waits = Vec::new();
            let mut leads = Vec::new();
            for i in std::mem::take(&mut left) {
                match self.0.caches.begin(self.block_key(runs, metas, &wishes[i])) {
                    Flight::Ready(body) => take(i, body)?,
                    Flight::Wait(wait) => waits.push((i, wait)),
                    Flight::Lead(lead) => leads.push((i, lead)),
                }
            }
            if self.0.caches.has_disk() {
                let look = leads.into_iter().map(|(i, lead)| async move {
                    let key = self.block_key(runs, metas, &wishes[i]);
                    (i, lead, self.0.caches.disk_block(&key).await)
                });
                let mut looks = futures::stream::iter(look).buffer_unordered(self.0.options.gets_in_flight.max(1));
                leads = Vec::new();
                while let Some((i, lead, body)) = looks.next().await {
                    match body {
                        Some(body) => {
                            report.disk_hits += 1;
                            lead.finish_uncached(body.clone());
                            take(i, body)?;
                        }
                        None => leads.push((i, lead)),
                    }
                }
            }
            self.lead_gets(runs, metas, wishes, (leads, waits), (purpose, keep), report, &mut left, &mut take).await?;
        }
        report.waited += self.0.env.now().since(started);
        Ok(())
    }

    /// Our own GETs, and beside them what others fetch for us. Each block is taken when it comes: one that were kept until
    /// all are there would be memory that no budget knows of. Nobody waits in a circle, since our GETs go on while we
    /// wait. `again`: what others gave up.
    #[allow(clippy::too_many_arguments)] // one call, of `blocks`
    async fn lead_gets(
        &self,
        runs: &[&Arc<Run>],
        metas: &[Arc<SectionMeta>],
        wishes: &[BlockWish],
        (leads, waits): Flights,
        (purpose, keep): (Purpose, bool),
        report: &mut ReadReport,
        again: &mut Vec<usize>,
        take: &mut impl FnMut(usize, Bytes) -> Result<()>,
    ) -> Result<()> {
        let wanted: Vec<Wanted> = leads
            .iter()
            .map(|(i, _)| Wanted { object: wishes[*i].run, range: block_range(runs, metas, &wishes[*i]) })
            .collect();
        let mut leads: Vec<_> = leads.into_iter().map(Some).collect();
        let get = |get: PlannedGet| async move {
            let bytes = self.get(runs[get.object], get.range.clone(), purpose).await;
            (get, bytes)
        };
        let mut gets: FuturesUnordered<_> = plan(&wanted, self.plan_limits()).into_iter().map(get).collect();
        let mut waits: FuturesUnordered<_> =
            waits.into_iter().map(|(i, wait)| async move { (i, wait.result().await) }).collect();
        while !(gets.is_empty() && waits.is_empty()) {
            let (get, bytes) = millstream_common::select! {
                Some((i, body)) = waits.next(), if !waits.is_empty() => {
                    match body {
                        Some(body) => {
                            report.shared += 1;
                            take(i, body)?;
                        }
                        None => again.push(i),
                    }
                    continue;
                }
                Some(got) = gets.next(), if !gets.is_empty() => got,
            };
            let bytes = bytes?;
            report.gets += 1;
            report.bytes += bytes.len() as u64;
            for member in get.members {
                let Some((i, lead)) = leads[member].take() else { continue };
                report.misses += 1;
                let body = self.decode_block(runs, metas, &wishes[i], &get.range, &bytes)?;
                if keep {
                    lead.finish(body.clone())
                } else {
                    lead.finish_uncached(body.clone())
                }
                take(i, body)?;
            }
            if keep {
                self.keep_neighbours(runs[get.object], &metas[get.object], &get.range, &bytes);
            }
        }
        Ok(())
    }

    /// What a GET brought besides the blocks that were wanted goes into the cache as long as that is not full: it was
    /// paid for. A damaged block is left to the read that wants it.
    fn keep_neighbours(&self, run: &Run, meta: &SectionMeta, range: &Range<u64>, bytes: &Bytes) {
        let (object, mut room) = (run.object_id(), self.0.caches.room_bytes());
        let first = meta.blocks().partition_point(|b| run.offset + b.offset < range.start);
        for info in &meta.blocks()[first..] {
            let start = run.offset + info.offset;
            let end = start + u64::from(info.length);
            if end > range.end || room < u64::from(info.body_length) {
                return;
            }
            let key = BlockKey { object, offset: start };
            if self.0.caches.holds_block(&key) {
                continue;
            }
            let stored = &bytes[(start - range.start) as usize..(end - range.start) as usize];
            if let Ok(body) = decode_stored(stored, info.checksum) {
                room -= u64::from(info.body_length);
                self.0.caches.insert_in_memory(key, body);
            }
        }
    }

    /// Cuts a block out of a GET's bytes, checks it and decompresses it. The body shares nothing with the bytes.
    fn decode_block(
        &self,
        runs: &[&Arc<Run>],
        metas: &[Arc<SectionMeta>],
        wish: &BlockWish,
        range: &Range<u64>,
        bytes: &Bytes,
    ) -> Result<Bytes> {
        let own = block_range(runs, metas, wish);
        let cut = (own.start - range.start) as usize..(own.end - range.start) as usize;
        let stored =
            bytes.get(cut).ok_or_else(|| Error::corrupt("an object is shorter than its index says").code(4003));
        stored
            .and_then(|stored| decode_stored(stored, metas[wish.run].blocks()[wish.block].checksum))
            .map_err(|e| self.named(runs[wish.run], own.start, e))
    }

    pub(crate) fn block_key(&self, runs: &[&Arc<Run>], metas: &[Arc<SectionMeta>], wish: &BlockWish) -> BlockKey {
        let offset = runs[wish.run].offset + metas[wish.run].blocks()[wish.block].offset;
        BlockKey { object: runs[wish.run].object_id(), offset }
    }
}

pub(crate) fn meta_key(run: &Run) -> BlockKey {
    BlockKey { object: run.object_id(), offset: run.meta_offset }
}

fn block_range(runs: &[&Arc<Run>], metas: &[Arc<SectionMeta>], wish: &BlockWish) -> Range<u64> {
    let info = &metas[wish.run].blocks()[wish.block];
    let start = runs[wish.run].offset + info.offset;
    start..start + u64::from(info.length)
}
