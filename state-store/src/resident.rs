//! Where the live state of a job is kept in this process: paged in through the caches, all of it in memory, or all of
//! it on the local disk.
//!
//! It is one store in all three cases: the same objects, the same views, the same reads. What differs is where a block
//! is found before the object store is asked ([`crate::fetch`]), and that what is live is brought there beforehand:
//!
//! 1. What this process writes is kept as it is written, whole ([`StateStore::keep_resident`]): in memory at once, on the
//!    local disk behind it ([`crate::behind`]).
//! 2. What it has inherited, or others have merged, is fetched in large GETs ([`View::make_resident`]), beside the
//!    reads that page it in meanwhile.
//! 3. What no version in use refers to is let go by whoever knows that ([`StateStore::release`]).
//!
//! The store remembers all that it keeps, by run; when its deployment ends ([`StateStore::release_all`]), all of it goes,
//! and what tasks that have not ended yet would keep is refused.
//!
//! When there is no room, in memory or on the disk, the rest is paged in like remote state, and that is reported.
//! Nothing here changes what a read returns.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use millstream_cache::{BlockKey, FileRange, Lead, LocalFiles};
use millstream_common::{KeyGroupRanges, Lane, Result};
use millstream_objects::Purpose;
use parking_lot::{Mutex, MutexGuard};

use crate::Caches;
use crate::admit::Written;
use crate::behind::{Behind, Pieces};
use crate::fetch::{Asked, BlockMode, BlockWish, Leads, directory_key, part_key, split_batch};
use crate::report::ReadReport;
use crate::run::Run;
use crate::section::{BlockForm, Directory, EncodedSection, Part, PartInfo, SharedBlock};
use crate::store::{Keep, StateStore};
use crate::view::View;
use crate::warm::WarmUp;

/// Where live state is kept.
#[derive(Clone, Default)]
pub enum Residency {
    /// In the object store: paged in through the caches.
    #[default]
    Remote,
    /// All of it in memory, beyond the bound of the cache.
    Memory,
    /// All of it in files on the local disk.
    Local(LocalFiles),
}

/// What is kept here.
pub(crate) struct Residents {
    /// Of what is pinned: another deployment of the job may pin the same.
    owner: u64,
    held: Mutex<Held>,
    /// On its way to the local disk.
    behind: Behind,
}

#[derive(Default)]
struct Held {
    /// Runs of which anything is pinned, or will be before long.
    pinned: BTreeMap<BlockKey, Pinned>,
    /// Sections that are not what the version says: they are not fetched once more.
    damaged: BTreeSet<BlockKey>,
    /// Bytes of blocks that were pinned here, and how many it may be; `None`: as many as there is room for.
    bytes: u64,
    share_bytes: Option<u64>,
    /// What was pinned when there was no room for more: until much of it has gone, nothing is fetched in vain.
    full_at_bytes: Option<u64>,
    /// The deployment has ended.
    over: bool,
}

struct Pinned {
    /// Where the section ends in its object.
    end: u64,
    /// Of these everything is pinned.
    groups: KeyGroupRanges,
    /// Of blocks that were pinned here, not by a deployment before.
    bytes: u64,
}

impl Held {
    /// So much of a run was let go.
    fn freed(&mut self, section: &BlockKey, freed: u64) {
        if let Some(pinned) = self.pinned.get_mut(section) {
            let freed = freed.min(pinned.bytes);
            pinned.bytes -= freed;
            self.bytes -= freed;
        }
    }
}

impl Residents {
    pub(crate) fn new(caches: &Caches) -> Self {
        let (held, behind) = Default::default();
        Self { owner: caches.pin_owner(), held, behind }
    }
}

/// The name of a run's section among local files.
fn section_key(run: &Run) -> BlockKey {
    BlockKey { object: run.object_id(), offset: run.offset }
}

/// What is to be done about the file that an earlier process left of a run.
enum Found {
    /// There is none, or none that is right any more.
    Not,
    /// It is taken over.
    Taken,
    /// The disk does not say now.
    Unknown,
}

impl StateStore {
    /// Whether live state is kept here, so that [`View::make_resident`] has something to do.
    #[must_use]
    pub fn keeps_state(&self) -> bool {
        !matches!(self.0.residency, Residency::Remote)
    }

    pub(crate) fn local(&self) -> Option<&LocalFiles> {
        match &self.0.residency {
            Residency::Local(files) => Some(files),
            _ => None,
        }
    }

    pub(crate) fn is_in_memory(&self) -> bool {
        matches!(self.0.residency, Residency::Memory)
    }

    /// Whether what a reader of `ranges` needs of a run is kept here. Always, for remote state.
    pub(crate) fn is_resident(&self, run: &Run, ranges: &KeyGroupRanges) -> bool {
        match &self.0.residency {
            Residency::Remote => true,
            Residency::Local(files) => files.has(&section_key(run)) || self.behind().has(&section_key(run)),
            Residency::Memory => {
                let wanted = run.clip.intersect(ranges);
                let held = self.0.residents.held.lock();
                held.pinned.get(&section_key(run)).is_some_and(|here| here.groups.covers(&wanted))
            }
        }
    }

    /// Whether [`View::make_resident`] has something to bring of a run for a reader of `ranges`.
    #[must_use]
    pub fn lacks(&self, run: &Run, ranges: &KeyGroupRanges) -> bool {
        !self.is_resident(run, ranges) && !self.0.residents.held.lock().damaged.contains(&section_key(run))
    }

    pub(crate) fn behind(&self) -> &Behind {
        &self.0.residents.behind
    }

    /// Keeps a section that was just written. What does not fit is read from the object store. Nobody waits for a
    /// compaction, which holds what it has written until the disk has it.
    pub(crate) async fn keep_resident(&self, run: &Run, section: &EncodedSection, keep: &Keep<'_>) {
        match (&self.0.residency, keep) {
            (Residency::Remote, _) => {}
            (Residency::Local(_), _) if self.0.residents.held.lock().over => {}
            (Residency::Local(files), Keep::All) => self.keep_behind(files, section_key(run), section.pieces.clone()),
            (Residency::Local(files), Keep::Hot(_)) => {
                files.write(section_key(run), section.pieces.clone()).await;
            }
            (Residency::Memory, _) => {
                let (store, of, directory) = (self.clone(), run.clone(), section.directory.clone());
                let (parts, pieces) = (section.parts.clone(), Pieces::new(section.pieces.clone()));
                let written = Written { object: run.object_id(), offset: run.offset, parts, pieces, wanted: None };
                let pinning = self.0.env.run(Lane::Background, "pin section", async move {
                    let parts: Vec<_> = directory.parts().iter().cloned().zip(written.parts.iter().cloned()).collect();
                    if store.pin_index(&of, &directory, &parts)
                        && written.blocks().all(|(key, block)| store.pin(&of, key, block.indexed()))
                    {
                        store.note_pinned(&of, &of.clip);
                    }
                });
                // It ends early only with the process.
                pinning.await.unwrap_or_default();
            }
        }
    }

    /// All of these key groups is pinned, unless the run was let go meanwhile.
    fn note_pinned(&self, run: &Run, groups: &KeyGroupRanges) {
        if let Some(pinned) = self.0.residents.held.lock().pinned.get_mut(&section_key(run)) {
            pinned.groups = pinned.groups.union(groups);
        }
    }

    /// Whether it is pinned: there was room, and the run was not let go meanwhile.
    fn pin(&self, run: &Run, key: BlockKey, block: SharedBlock) -> bool {
        let mut held = self.0.residents.held.lock();
        let Held { pinned, bytes, share_bytes, .. } = &mut *held;
        let Some(of) = pinned.get_mut(&section_key(run)) else { return false };
        let more = if self.0.caches.is_pinned(&key) { 0 } else { Caches::pin_bytes(&block) };
        let fits = share_bytes.is_none_or(|share| *bytes + more <= share);
        let pinned = fits && self.0.caches.pin_block(key, block);
        if pinned {
            of.bytes += more;
            *bytes += more;
        }
        self.told_unless(pinned, held)
    }

    /// From now on the store remembers the run, unless its deployment is over.
    fn pin_index(&self, run: &Run, directory: &Arc<Directory>, parts: &[(PartInfo, Arc<Part>)]) -> bool {
        let (caches, section) = (&self.0.caches, section_key(run));
        let mut held = self.0.residents.held.lock();
        if held.over {
            return false;
        }
        let fresh = || Pinned { end: run.offset + run.length, groups: KeyGroupRanges::empty(), bytes: 0 };
        held.pinned.entry(section).or_insert_with(fresh);
        caches.claim_pins(section, self.0.residents.owner);
        let mut pinned = caches.pin_metadata(directory_key(run), directory.clone(), directory.memory_bytes());
        for (info, part) in parts {
            pinned &= caches.pin_metadata(part_key(run, info), part.clone(), part.memory_bytes());
        }
        self.told_unless(pinned, held)
    }

    /// Whether there may be room for more, as far as is known.
    fn has_room_to_pin(&self) -> bool {
        let mut held = self.0.residents.held.lock();
        held.full_at_bytes = held.full_at_bytes.filter(|at| self.0.caches.stats().pinned_bytes > at / 10 * 9);
        held.full_at_bytes.is_none()
    }

    /// Says that there is no room, unless there is: once, until there has been room again.
    fn told_unless(&self, pinned: bool, mut held: MutexGuard<'_, Held>) -> bool {
        if pinned {
            return true;
        }
        let bytes = self.0.caches.stats().pinned_bytes;
        let is_news = held.full_at_bytes.replace(bytes).is_none();
        drop(held);
        if is_news {
            tracing::warn!(
                "the state does not fit into the memory for it: {bytes} bytes of it are kept there, the rest is read from the object store as \
                 it is needed; give more memory (--cache-memory, --memory-limit), spread the job over more workers, or use --residency \
                 local or remote"
            );
        }
        false
    }

    /// Nothing reads this run here any more: what was kept of it goes.
    pub fn release(&self, run: &Run) {
        let section = section_key(run);
        let mut held = self.0.residents.held.lock();
        held.damaged.remove(&section);
        match &self.0.residency {
            Residency::Remote => {}
            Residency::Local(files) => {
                self.behind().remove(&section);
                files.remove(&section);
            }
            Residency::Memory => {
                if let Some(pinned) = held.pinned.remove(&section) {
                    held.bytes -= pinned.bytes;
                    self.unpin(section, &pinned);
                }
            }
        }
    }

    /// Unless another deployment has claimed it. Nobody pins meanwhile.
    fn unpin(&self, section: BlockKey, pinned: &Pinned) {
        if self.0.caches.disclaim_pins(&section, self.0.residents.owner) {
            self.0.caches.unpin(section.object, section.offset..pinned.end, |_| true);
        }
    }

    /// A reader of `ranges` is all that is left of those of a run: blocks in memory without a key group of theirs go,
    /// also of a run that is not all there; and a file when no key group is left.
    pub fn release_outside(&self, run: &Run, ranges: &KeyGroupRanges) {
        let left = run.clip.intersect(ranges);
        if left.is_empty() {
            return self.release(run);
        }
        {
            let mut held = self.0.residents.held.lock();
            let Some(pinned) = held.pinned.get_mut(&section_key(run)) else { return };
            pinned.groups = pinned.groups.intersect(&left);
        }
        // In order: parts are, and the blocks of each.
        let mut gone: Vec<u64> = Vec::new();
        for (_, part) in self.known_index(run) {
            let outside = part.blocks().iter().filter(|info| !info.overlaps(&left));
            gone.extend(outside.map(|info| run.offset + info.offset));
        }
        let goes = |key: &BlockKey| gone.binary_search(&key.offset).is_ok();
        let freed = self.0.caches.unpin(run.object_id(), run.offset..run.meta_offset, goes);
        self.0.residents.held.lock().freed(&section_key(run), freed);
    }

    /// Blocks of this job may take so many bytes of what is pinned in this process: its share, beside jobs that keep
    /// rows instead. What is there stays; what found no room in a smaller share is tried again.
    pub fn share_pins(&self, bytes: u64) {
        let mut held = self.0.residents.held.lock();
        if held.share_bytes.replace(bytes).is_some_and(|before| before < bytes) {
            held.full_at_bytes = None;
        }
    }

    /// The deployment ends: all that it keeps in memory goes to others, whether a version lists it or not, and nothing
    /// is kept from now on. Files stay for the next deployment, which checks them ([`StateStore::release_others`]).
    pub fn release_all(&self) {
        let mut held = self.0.residents.held.lock();
        (held.over, held.bytes) = (true, 0);
        self.behind().clear();
        std::mem::take(&mut held.pinned).iter().for_each(|(section, pinned)| self.unpin(*section, pinned));
    }

    /// Deletes files that none of `runs` is in: those of an earlier process, and of earlier deployments in this one.
    /// For a deployment that begins, before it writes anything.
    pub fn release_others<'a>(&self, runs: impl IntoIterator<Item = &'a Run>) {
        if let Some(files) = self.local() {
            let live: BTreeSet<BlockKey> = runs.into_iter().map(section_key).collect();
            files.retain(|section| live.contains(section));
        }
    }

    /// Bytes of a run from the local disk, if it is there.
    pub(crate) async fn local_bytes(&self, run: &Run, range: &std::ops::Range<u64>) -> Option<Bytes> {
        let files = self.local()?;
        let section = section_key(run);
        if range.start < run.offset {
            return None;
        }
        let waiting = self.behind().range(&section, &(range.start - run.offset..range.end - run.offset));
        if waiting.is_some() || !files.holds(&section) {
            return waiting;
        }
        let wanted = FileRange { section, start: range.start - run.offset, length: range.end - range.start };
        files.read(std::slice::from_ref(&wanted)).await.pop().flatten()
    }

    /// What came of a run from the local disk is not what was written: its file goes. Whether there was one.
    pub(crate) fn discard_local(&self, run: &Run) -> bool {
        self.local().is_some_and(|files| files.discard(&section_key(run)))
    }

    /// Takes what the local disk has, or will have; what it has not is given back. Few blocks are in memory at once
    /// beside those that were taken.
    pub(crate) async fn look_in_files(
        &self,
        asked: Asked<'_>,
        leads: Leads,
        report: &mut ReadReport,
        take: &mut impl FnMut(usize, SharedBlock) -> Result<()>,
    ) -> Result<Leads> {
        let Some(files) = self.local() else { return Ok(leads) };
        let mut usable: BTreeMap<BlockKey, bool> = BTreeMap::new();
        let (mut missing, mut in_files, mut ranges) = (Vec::new(), Vec::new(), Vec::new());
        let mut came = |i: usize, lead: Lead<SharedBlock>, bytes: Option<Bytes>| {
            let (of, block) = asked.block(i);
            match bytes.map(|bytes| self.decode_block(of, block, &of.range(block), &bytes, asked.mode.form)) {
                None => missing.push((i, lead)),
                Some(Err(_)) => {
                    self.discard_local(of.run);
                    missing.push((i, lead));
                }
                Some(Ok(decoded)) => {
                    report.disk_hits += 1;
                    let decoded = self.keep_fetched(of, block, decoded, asked.mode);
                    lead.finish(decoded.clone());
                    take(i, decoded)?;
                }
            }
            Ok(())
        };
        for (i, lead) in leads {
            let (of, block) = asked.block(i);
            let info = &of.part.blocks()[block];
            let (section, start, length) = (section_key(of.run), info.offset, u64::from(info.length));
            if let Some(bytes) = self.behind().range(&section, &(start..start + length)) {
                came(i, lead, Some(bytes))?;
            } else if *usable.entry(section).or_insert_with(|| files.holds(&section)) {
                in_files.push(Some((i, lead)));
                ranges.push(FileRange { section, start, length });
            } else {
                came(i, lead, None)?;
            }
        }
        let mut take_each = |w: usize, bytes| in_files[w].take().map_or(Ok(()), |(i, lead)| came(i, lead, bytes));
        files.read_each(&ranges, &mut take_each).await?;
        Ok(missing)
    }
}

impl View {
    /// Brings what this view shows to where the job keeps its state, as far as there is room: in large GETs, those of
    /// the newest runs first. What is there already costs nothing. `wanted` is asked again as it goes on.
    pub async fn make_resident(&self, pace: WarmUp, wanted: impl Fn(&Run) -> bool + Send) -> Result<ReadReport> {
        let report = &mut ReadReport::default();
        for (i, run) in self.runs().iter().enumerate() {
            if !wanted(run) || !self.store.lacks(run, self.ranges()) {
                continue;
            }
            let goes_on = match &self.store.0.residency {
                Residency::Remote => Ok(true),
                Residency::Memory => self.pin_run(i, pace, report).await,
                Residency::Local(files) => match self.store.adopt(files, run).await {
                    // The file may be good: another time.
                    Found::Taken | Found::Unknown => Ok(true),
                    Found::Not => self.store.download(files, run, report).await,
                },
            };
            // Whoever let it go amid this may have done so before any of it was there.
            if !wanted(run) {
                self.store.release(run);
            }
            if !goes_on? {
                break;
            }
        }
        Ok(*report)
    }

    /// Pins what the view shows of a run; whether there was room.
    async fn pin_run(&self, i: usize, pace: WarmUp, report: &mut ReadReport) -> Result<bool> {
        let (store, run, clip) = (&self.store, &self.runs()[i], self.clip(i));
        if !store.has_room_to_pin() {
            return Ok(false);
        }
        let mine = |_: usize, part: &PartInfo| part.overlaps(clip);
        let parts = store.parts(&[run], |_| self.shows_much_of(i), mine, Purpose::State, report).await?;
        let Some(directory) = store.0.caches.peek_metadata::<Directory>(&directory_key(run)) else { return Ok(true) };
        let infos: Vec<_> = directory.parts().iter().filter(|info| info.overlaps(clip)).cloned().collect();
        let index: Vec<_> = infos.into_iter().zip(parts.iter().map(|of| of.part.clone())).collect();
        if !store.pin_index(run, &directory, &index) {
            return Ok(false);
        }
        let mut wishes = Vec::new();
        for (part, of) in parts.iter().enumerate() {
            let blocks = of.part.blocks().iter().enumerate().filter(|(_, info)| info.overlaps(clip));
            wishes.extend(blocks.map(|(block, _)| BlockWish { part, block }));
        }
        wishes.retain(|wish| !store.0.caches.is_pinned(&parts[wish.part].key(wish.block)));
        let (mut all, mut left) = (true, &wishes[..]);
        while !left.is_empty() && all {
            let (some, rest) = split_batch(&parts, left, pace.bytes);
            left = rest;
            let mode = BlockMode { purpose: Purpose::State, keep: false, form: BlockForm::Searched };
            let take = |i: usize, block: SharedBlock| {
                all = all && store.pin(run, parts[some[i].part].key(some[i].block), block.indexed());
                Ok(())
            };
            store.blocks(&parts, some, mode, report, take).await?;
        }
        if all {
            store.note_pinned(run, clip);
        }
        Ok(all)
    }
}

/// GETs of a section that are under way at once.
const DOWNLOADS: usize = 4;

impl StateStore {
    /// Takes over the file that an earlier process left of a run, if there is one and its index is that of the version:
    /// its blocks are checked one by one when they are read.
    async fn adopt(&self, files: &LocalFiles, run: &Run) -> Found {
        let section = section_key(run);
        let Some(bytes) = files.found(&section) else { return Found::Not };
        let start = run.meta_offset - run.offset;
        let wanted = FileRange { section, start, length: run.meta_length.into() };
        let meta = match bytes == run.length {
            true => files.read(std::slice::from_ref(&wanted)).await.pop().flatten(),
            false => None,
        };
        if bytes == run.length && meta.is_none() {
            return if files.found(&section).is_some() { Found::Unknown } else { Found::Not };
        }
        let sound = meta.is_some_and(|meta| {
            let at = meta.len() - run.directory_length as usize;
            let Ok(directory) = Directory::decode(&meta[at..], run.checksum) else { return false };
            directory.parts_bytes() == at as u64
                && directory.parts().iter().all(|info| {
                    let stored = meta.get(info.at as usize..info.at as usize + info.length as usize);
                    stored.is_some_and(|stored| crc32c::crc32c(stored) == info.checksum)
                })
        });
        if sound {
            files.adopt(&section);
            return Found::Taken;
        }
        tracing::info!("a file of local state is not what the version says: it is fetched again");
        files.remove(&section);
        Found::Not
    }

    /// Fetches a whole section in large GETs; whether the disk took it.
    async fn download(&self, files: &LocalFiles, run: &Run, report: &mut ReadReport) -> Result<bool> {
        let Some(filling) = files.begin(section_key(run), run.length).await else { return Ok(false) };
        let size = self.0.options.request_bytes.max(1);
        let starts: Vec<u64> = (0..run.length.div_ceil(size)).map(|i| run.offset + i * size).collect();
        let mut checksum = 0;
        for some in starts.chunks(DOWNLOADS) {
            let gets = some.iter().map(|start| {
                let end = (start + size).min(run.offset + run.length);
                self.get(run, *start..end, Purpose::State)
            });
            for (start, bytes) in some.iter().zip(futures::future::try_join_all(gets).await?) {
                report.gets += 1;
                report.bytes += bytes.len() as u64;
                checksum = crc32c::crc32c_append(checksum, &bytes);
                if !filling.put(start - run.offset, bytes).await {
                    return Ok(false);
                }
            }
        }
        if checksum != run.checksum {
            // Whoever reads it from the store says what is wrong and where.
            tracing::warn!(
                "{} at {} does not match its checksum: it is not kept on the local disk",
                run.object,
                run.offset
            );
            self.0.residents.held.lock().damaged.insert(section_key(run));
            return Ok(true);
        }
        Ok(filling.finish().await)
    }
}
