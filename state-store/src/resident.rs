//! Where the live state of a job is kept in this process: paged in through the caches, all of it in memory, or all of
//! it on the local disk.
//!
//! It is one store in all three cases: the same objects, the same views, the same reads. What differs is where a block
//! is found before the object store is asked ([`crate::fetch`]), and that what is live is brought there beforehand:
//!
//! 1. What this process writes is kept as it is written, whole ([`StateStore::keep_resident`]).
//! 2. What it has inherited, or others have merged, is fetched in large GETs ([`View::make_resident`]), beside the
//!    reads that page it in meanwhile.
//! 3. What no version in use refers to is let go by whoever knows that ([`StateStore::release`]).
//!
//! When there is no room, in memory or on the disk, the rest is paged in like remote state, and that is reported.
//! Nothing here changes what a read returns.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use millstream_cache::{BlockKey, FileRange, Lead, LocalFiles};
use millstream_common::{KeyGroupRanges, Lane, Result};
use millstream_objects::Purpose;
use parking_lot::Mutex;

use crate::admit::Written;
use crate::fetch::{BlockMode, BlockWish, PartOf, directory_key, part_key};
use crate::report::ReadReport;
use crate::run::Run;
use crate::section::{Directory, EncodedSection, Part, PartInfo, SharedBlock};
use crate::store::StateStore;
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

/// Which runs are in memory, and in which key groups.
pub(crate) struct Residents {
    /// Of what is pinned: another deployment of the job may pin the same.
    owner: u64,
    pinned: Mutex<BTreeMap<(String, u64), KeyGroupRanges>>,
    /// What was pinned when there was no room for more: until much of it has gone, nothing is fetched in vain.
    full_at_bytes: Mutex<Option<u64>>,
}

impl Residents {
    pub(crate) fn new(caches: &crate::Caches) -> Self {
        Self { owner: caches.pin_owner(), pinned: Mutex::default(), full_at_bytes: Mutex::default() }
    }
}

/// The name of a run's section among local files.
fn section_key(run: &Run) -> BlockKey {
    BlockKey { object: run.object_id(), offset: run.offset }
}

fn key_of(run: &Run) -> (String, u64) {
    (run.object.clone(), run.offset)
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
    #[must_use]
    pub fn is_resident(&self, run: &Run, ranges: &KeyGroupRanges) -> bool {
        match &self.0.residency {
            Residency::Remote => true,
            Residency::Local(files) => files.has(&section_key(run)),
            Residency::Memory => {
                let wanted = run.clip.intersect(ranges);
                self.0.residents.pinned.lock().get(&key_of(run)).is_some_and(|here| here.covers(&wanted))
            }
        }
    }

    /// Keeps a section that was just written. What does not fit is read from the object store.
    pub(crate) async fn keep_resident(&self, run: &Run, section: &EncodedSection) {
        match &self.0.residency {
            Residency::Remote => {}
            Residency::Local(files) => drop(files.write(section_key(run), section.pieces.clone()).await),
            Residency::Memory => {
                let (store, of, directory) = (self.clone(), run.clone(), section.directory.clone());
                let (parts, pieces) = (section.parts.clone(), section.pieces.clone());
                let written = Written { object: run.object_id(), offset: run.offset, parts, pieces, wanted: None };
                let pinning = self.0.env.run(Lane::Background, "pin section", async move {
                    let parts: Vec<_> = directory.parts().iter().cloned().zip(written.parts.iter().cloned()).collect();
                    if store.pin_index(&of, &directory, &parts) {
                        let all = written.blocks().all(|(key, block)| store.pin(key, block.indexed()));
                        store.note_pinned(&of, if all { of.clip.clone() } else { KeyGroupRanges::empty() });
                    }
                });
                // It ends early only with the process.
                pinning.await.unwrap_or_default();
            }
        }
    }

    fn note_pinned(&self, run: &Run, groups: KeyGroupRanges) {
        let mut pinned = self.0.residents.pinned.lock();
        let here = pinned.entry(key_of(run)).or_insert_with(KeyGroupRanges::empty);
        *here = here.union(&groups);
    }

    fn pin(&self, key: BlockKey, block: SharedBlock) -> bool {
        self.told_unless(self.0.caches.pin_block(key, block))
    }

    fn pin_index(&self, run: &Run, directory: &Arc<Directory>, parts: &[(PartInfo, Arc<Part>)]) -> bool {
        let caches = &self.0.caches;
        caches.claim_pins(section_key(run), self.0.residents.owner);
        let mut pinned = caches.pin_metadata(directory_key(run), directory.clone(), directory.memory_bytes());
        for (info, part) in parts {
            pinned &= caches.pin_metadata(part_key(run, info), part.clone(), part.memory_bytes());
        }
        self.told_unless(pinned)
    }

    /// Whether there may be room for more, as far as is known.
    fn has_room_to_pin(&self) -> bool {
        let mut full = self.0.residents.full_at_bytes.lock();
        *full = full.filter(|at| self.0.caches.stats().pinned_bytes > at / 10 * 9);
        full.is_none()
    }

    /// Says that there is no room, unless there is: once, until there has been room again.
    fn told_unless(&self, pinned: bool) -> bool {
        if pinned {
            return true;
        }
        let held = self.0.caches.stats().pinned_bytes;
        if self.0.residents.full_at_bytes.lock().replace(held).is_none() {
            tracing::warn!(
                "the state does not fit into the memory for it: {held} bytes of it are kept there, the rest is read from the object store as \
                 it is needed; give more memory (--cache-memory, --memory-limit), spread the job over more workers, or use --residency \
                 local or remote"
            );
        }
        false
    }

    /// Nothing reads these runs here any more: what was kept of them goes.
    pub fn release(&self, run: &Run) {
        match &self.0.residency {
            Residency::Remote => {}
            Residency::Local(files) => files.remove(&section_key(run)),
            Residency::Memory => {
                self.0.residents.pinned.lock().remove(&key_of(run));
                if self.0.caches.disclaim_pins(&section_key(run), self.0.residents.owner) {
                    self.0.caches.unpin(run.object_id(), run.offset..run.offset + run.length, |_| true);
                }
            }
        }
    }

    /// A reader of `ranges` is all that is left of those of a run: blocks in memory without a key group of theirs go,
    /// and a file when none is left.
    pub fn release_outside(&self, run: &Run, ranges: &KeyGroupRanges) {
        let left = run.clip.intersect(ranges);
        if left.is_empty() {
            return self.release(run);
        }
        if !self.is_in_memory() {
            return;
        }
        let mut pinned = self.0.residents.pinned.lock();
        let Some(here) = pinned.get_mut(&key_of(run)).filter(|here| !left.covers(here)) else { return };
        *here = here.intersect(&left);
        drop(pinned);
        for (_, part) in self.known_index(run) {
            for info in part.blocks().iter().filter(|info| !info.overlaps(&left)) {
                let at = run.offset + info.offset;
                self.0.caches.unpin(run.object_id(), at..at + 1, |_| true);
            }
        }
    }

    /// The deployment ends: memory goes to others. Files stay for the next one, which checks them.
    pub fn release_all<'a>(&self, runs: impl IntoIterator<Item = &'a Run>) {
        if self.is_in_memory() {
            runs.into_iter().for_each(|run| self.release(run));
        }
    }

    /// Deletes files of an earlier process that none of `runs` is in. Called once, before anything is written.
    pub fn release_found<'a>(&self, runs: impl IntoIterator<Item = &'a Run>) {
        if let Some(files) = self.local() {
            let live: std::collections::BTreeSet<BlockKey> = runs.into_iter().map(section_key).collect();
            files.remove_found(|section| live.contains(section));
        }
    }

    /// Bytes of a run from the local disk, if it is there.
    pub(crate) async fn local_bytes(&self, run: &Run, range: &std::ops::Range<u64>) -> Option<Bytes> {
        let files = self.local()?;
        let section = section_key(run);
        if !files.holds(&section) || range.start < run.offset {
            return None;
        }
        let wanted = FileRange { section, start: range.start - run.offset, length: range.end - range.start };
        files.read(std::slice::from_ref(&wanted)).await.pop().flatten()
    }

    /// What came of a run from the local disk is not what was written: its file goes. Whether there was one.
    pub(crate) fn discard_local(&self, run: &Run) -> bool {
        self.local().is_some_and(|files| files.discard(&section_key(run)))
    }

    /// Takes what the local disk has; what it has not is given back.
    pub(crate) async fn look_in_files(
        &self,
        parts: &[PartOf<'_>],
        wishes: &[BlockWish],
        leads: Vec<(usize, Lead<SharedBlock>)>,
        mode: BlockMode,
        report: &mut ReadReport,
        take: &mut impl FnMut(usize, SharedBlock) -> Result<()>,
    ) -> Result<Vec<(usize, Lead<SharedBlock>)>> {
        let Some(files) = self.local() else { return Ok(leads) };
        let wanted: Vec<FileRange> = leads
            .iter()
            .map(|(i, _)| {
                let (of, wish) = (&parts[wishes[*i].part], wishes[*i]);
                let info = &of.part.blocks()[wish.block];
                FileRange { section: section_key(of.run), start: info.offset, length: info.length.into() }
            })
            .collect();
        let mut usable: BTreeMap<BlockKey, bool> = BTreeMap::new();
        let asked: Vec<usize> = (0..wanted.len())
            .filter(|&w| *usable.entry(wanted[w].section).or_insert_with(|| files.holds(&wanted[w].section)))
            .collect();
        let ranges: Vec<FileRange> = asked.iter().map(|&w| wanted[w].clone()).collect();
        let mut read: Vec<Option<Bytes>> = vec![None; wanted.len()];
        for (w, bytes) in asked.into_iter().zip(files.read(&ranges).await) {
            read[w] = bytes;
        }
        let mut missing = Vec::new();
        for ((i, lead), bytes) in leads.into_iter().zip(read) {
            let of = &parts[wishes[i].part];
            let decoded = bytes.map(|bytes| self.decode_block(of, wishes[i].block, &of.range(wishes[i].block), &bytes));
            match decoded {
                None => missing.push((i, lead)),
                Some(Err(_)) => {
                    self.discard_local(of.run);
                    missing.push((i, lead));
                }
                Some(Ok(block)) => {
                    report.disk_hits += 1;
                    let block = self.keep_fetched(of, wishes[i].block, block, mode);
                    lead.finish(block.clone());
                    take(i, block)?;
                }
            }
        }
        Ok(missing)
    }
}

impl View {
    /// Brings what this view shows to where the job keeps its state, as far as there is room: in large GETs, those of
    /// the newest runs first. What is there already costs nothing. `wanted` is asked again as it goes on.
    pub async fn make_resident(&self, pace: WarmUp, wanted: impl Fn(&Run) -> bool + Send) -> Result<ReadReport> {
        let report = &mut ReadReport::default();
        for (i, run) in self.runs().iter().enumerate() {
            if !wanted(run) || self.store.is_resident(run, self.ranges()) {
                continue;
            }
            match &self.store.0.residency {
                Residency::Remote => {}
                Residency::Memory => {
                    if !self.pin_run(i, pace, report).await? {
                        break;
                    }
                    if !wanted(run) {
                        self.store.release(run);
                    }
                }
                Residency::Local(files) => {
                    if !self.store.adopt(files, run).await && !self.store.download(files, run, report).await? {
                        break;
                    }
                    if !wanted(run) {
                        self.store.release(run);
                    }
                }
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
        let Some(directory) = store.0.caches.metadata::<Directory>(&directory_key(run)) else { return Ok(true) };
        let infos: Vec<_> = directory.parts().iter().filter(|info| info.overlaps(clip)).cloned().collect();
        let index: Vec<_> = infos.into_iter().zip(parts.iter().map(|of| of.part.clone())).collect();
        if !store.pin_index(run, &directory, &index) {
            return Ok(false);
        }
        let mut wishes = Vec::new();
        for (part, of) in parts.iter().enumerate() {
            let blocks = of.part.blocks().iter().enumerate().filter(|(_, info)| info.overlaps(clip));
            wishes.extend(blocks.map(|(block, info)| (BlockWish { part, block }, u64::from(info.body_length))));
        }
        wishes.retain(|(wish, _)| !store.0.caches.is_pinned(&parts[wish.part].key(wish.block)));
        let mut all = true;
        while !wishes.is_empty() && all {
            let mut bytes = 0;
            let over = |(_, length): &(BlockWish, u64)| {
                bytes += length;
                bytes > pace.bytes
            };
            let count = wishes.iter().position(over).unwrap_or(wishes.len()).max(1);
            let some: Vec<BlockWish> = wishes.drain(..count).map(|(wish, _)| wish).collect();
            let mode = BlockMode { purpose: Purpose::State, keep: false };
            let take = |i: usize, block: SharedBlock| {
                all &= store.pin(parts[some[i].part].key(some[i].block), block.indexed());
                Ok(())
            };
            store.blocks(&parts, &some, mode, report, take).await?;
        }
        if all {
            store.note_pinned(run, clip.clone());
        }
        Ok(all)
    }
}

/// GETs of a section that are under way at once.
const DOWNLOADS: usize = 4;

impl StateStore {
    /// Takes over the file that an earlier process left of a run, if there is one and its index is that of the version:
    /// its blocks are checked one by one when they are read.
    async fn adopt(&self, files: &LocalFiles, run: &Run) -> bool {
        let section = section_key(run);
        let Some(bytes) = files.found(&section) else { return false };
        let start = run.meta_offset - run.offset;
        let wanted = FileRange { section, start, length: run.meta_length.into() };
        let meta = match bytes == run.length {
            true => files.read(std::slice::from_ref(&wanted)).await.pop().flatten(),
            false => None,
        };
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
        } else {
            tracing::info!("a file of local state is not what the version says: it is fetched again");
            files.remove(&section);
        }
        sound
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
            return Ok(true);
        }
        Ok(filling.finish().await)
    }
}
