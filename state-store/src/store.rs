//! The state store of one job in one process: writes bundles, opens views, runs compactions.
//!
//! It holds no list of what is live: runs come from the version (or from this process's own flushes) and are handed
//! in. It never deletes and never overwrites: each object has a name that was never used before.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use millstream_cache::{BlockKey, CacheBlock};
use millstream_common::hash::stable_hash;
use millstream_common::planted::bug_is_planted;
use millstream_common::{Env, Error, Execution, Generation, KeyGroupRanges, Result};
use millstream_objects::{Purpose, Store};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::accounts::{Accounts, StoreUse, TaskWrites};
use crate::admit::Admissions;
use crate::compaction::{CompactionOptions, Unlisted};
use crate::entry::MergeOperators;
use crate::fetch::{directory_key, part_key};
use crate::heat::HotSpans;
use crate::plan::PlanLimits;
use crate::report::ReadReport;
use crate::requests::{Hedging, RequestBudget};
use crate::resident::{Residency, Residents};
use crate::run::{HeatPart, Run, object_path};
use crate::section::{Directory, EncodedSection, Part, PartInfo, SectionOptions, SharedBlock};
use crate::view::View;
use crate::{Caches, Layouts};

/// The sections of a bundle keep at most this part of the room in the caches: others want room, too, until it is written.
const ROOM_PER_BUNDLE: u64 = 4;

/// Begins every bundle object: magic and format.
const BUNDLE_HEAD: [u8; 8] = *b"MSBD\x01\0\0\0";

/// Where the first section of a bundle begins.
pub(crate) const FIRST_SECTION: u64 = BUNDLE_HEAD.len() as u64;

/// Settings of the state store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateStoreOptions {
    /// How sections are cut.
    pub section: SectionOptions,
    /// Blocks with at most this many unwanted bytes between them come in one GET.
    pub gap_bytes: u64,
    /// The same while a read has more GETs than go at once: fewer, larger ones bring more than queued ones do.
    pub widest_gap_bytes: u64,
    /// A GET is at most this large.
    pub request_bytes: u64,
    /// GETs in flight at most.
    pub gets_in_flight: usize,
    /// Bytes of GETs in flight at most.
    pub bytes_in_flight: u64,
    /// GETs a second that a process makes in the long run: a read that would need more makes larger ones.
    pub gets_per_second: u32,
    /// A scan reads this far ahead in each run; a compaction, in all of its inputs together, this times the runs that
    /// trigger it.
    pub read_ahead_bytes: u64,
    /// Bytes of objects that were written and wait for the SSD, at most; what is beyond is not put onto it. Of state that
    /// is kept on the local disk: bytes of sections that wait to become files; what is beyond is not kept.
    pub admission_bytes: u64,
    /// When and how runs are merged.
    pub compaction: CompactionOptions,
}

impl Default for StateStoreOptions {
    fn default() -> Self {
        Self {
            section: SectionOptions::default(),
            gap_bytes: 128 << 10,
            widest_gap_bytes: 1 << 20,
            request_bytes: 8 << 20,
            gets_in_flight: 512,
            bytes_in_flight: 128 << 20,
            gets_per_second: 300,
            read_ahead_bytes: 1 << 20,
            admission_bytes: 64 << 20,
            compaction: CompactionOptions::default(),
        }
    }
}

impl StateStoreOptions {
    /// Refuses what cannot be.
    pub fn validate(&self) -> Result<()> {
        let positive = [
            ("section.block_bytes", self.section.block_bytes as u64),
            ("section.part_bytes", self.section.part_bytes),
            ("gets_per_second", self.gets_per_second.into()),
            ("request_bytes", self.request_bytes),
            ("gets_in_flight", self.gets_in_flight as u64),
            ("bytes_in_flight", self.bytes_in_flight),
            ("read_ahead_bytes", self.read_ahead_bytes),
        ];
        match positive.iter().find(|(_, value)| *value == 0) {
            Some((name, _)) => Err(Error::config(format!("the state store's {name} must not be 0")).code(1205)),
            None => self.compaction.validate(),
        }
    }
}

/// Who writes an object: part of its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriterName {
    /// The generation of the leader that the writer obeys.
    pub generation: Generation,
    /// The execution that the writer belongs to.
    pub execution: Execution,
}

impl WriterName {
    /// The name of an object below the job's `data/`: `{2 characters of a hash}/{generation}-{execution}-{kind}{unique}`. The
    /// hash spreads requests over S3's prefixes.
    #[must_use]
    pub fn object(&self, kind: &str, unique: &str) -> String {
        let spread = stable_hash(unique.as_bytes()) & 0xff;
        format!("{spread:02x}/{}-{}-{kind}{unique}", self.generation, self.execution)
    }
}

/// Which blocks of what is written go onto the SSD.
pub(crate) enum Keep<'a> {
    /// All: a flush, which is read again before long.
    All,
    /// Those that hold what was hot in the inputs of a compaction.
    Hot(&'a HotSpans),
}

/// The state store of one job in one process. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct StateStore(pub(crate) Arc<Inner>);

pub(crate) struct Inner {
    pub(crate) accounts: Accounts,
    pub(crate) caches: Caches,
    pub(crate) options: StateStoreOptions,
    pub(crate) env: Env,
    pub(crate) merge: MergeOperators,
    /// Permits for GETs in flight, and for their KiB.
    pub(crate) gets: Semaphore,
    pub(crate) get_kib: Semaphore,
    /// Bytes of GETs whose neighbours wait to be decoded.
    pub(crate) undecoded_bytes: AtomicU64,
    pub(crate) requests: RequestBudget,
    pub(crate) hedge: Hedging,
    pub(crate) admissions: Admissions,
    pub(crate) residency: Residency,
    pub(crate) residents: Residents,
    totals: Mutex<ReadReport>,
}

impl StateStore {
    /// The state below `store` (a job's prefix). The caches may be shared with other jobs of the process.
    #[must_use]
    pub fn new(store: Store, caches: Caches, options: StateStoreOptions, env: Env, merge: MergeOperators) -> Self {
        Self::resident(store, caches, options, env, merge, Residency::Remote)
    }

    /// The same with live state kept where `residency` says.
    #[must_use]
    pub fn resident(
        store: Store,
        caches: Caches,
        options: StateStoreOptions,
        env: Env,
        merge: MergeOperators,
        residency: Residency,
    ) -> Self {
        let gets = Semaphore::new(options.gets_in_flight.max(1));
        let get_kib = Semaphore::new(kib(options.bytes_in_flight).max(1));
        let requests = RequestBudget::new(options.gets_per_second, env.now());
        let (hedge, admissions, totals) = (Hedging::default(), Admissions::default(), Mutex::default());
        let (accounts, residents) = (Accounts::new(store), Residents::new(&caches));
        Self(Arc::new(Inner {
            undecoded_bytes: AtomicU64::new(0),
            accounts,
            caches,
            options,
            env,
            merge,
            gets,
            get_kib,
            requests,
            hedge,
            admissions,
            residency,
            residents,
            totals,
        }))
    }

    /// The settings.
    #[must_use]
    pub fn options(&self) -> &StateStoreOptions {
        &self.0.options
    }

    /// The caches.
    #[must_use]
    pub fn caches(&self) -> &Caches {
        &self.0.caches
    }

    /// How the next section of a bundle is encoded that keeps `kept` bytes of blocks already. Small sections keep their
    /// blocks, and others what the caches have much room for: what has just been written is read again before long.
    #[must_use]
    pub fn section_options(&self, kept: u64) -> SectionOptions {
        let options = &self.0.options.section;
        if self.is_in_memory() {
            // They are pinned once they are written, from what was written.
            return SectionOptions { keep_blocks_bytes: 0, ..options.clone() };
        }
        let room = (self.0.caches.room_bytes() / ROOM_PER_BUNDLE).saturating_sub(kept);
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        SectionOptions { keep_blocks_bytes: options.keep_blocks_bytes.max(room), ..options.clone() }
    }

    /// Writes sections as one object with one PUT; nothing when there are none. The runs come back in the order of
    /// `sections`; they are not live before a version lists them. Metadata, and the blocks that
    /// [`StateStore::section_options`] had kept, go into the caches, and all blocks onto the SSD.
    pub async fn write_bundle(&self, writer: WriterName, sections: Vec<EncodedSection>) -> Result<Vec<Run>> {
        self.write(self.object_name(writer), sections, Purpose::State, &Keep::All).await
    }

    /// Writes the object of a fresh name.
    pub(crate) async fn write(
        &self,
        object: String,
        sections: Vec<EncodedSection>,
        purpose: Purpose,
        keep: &Keep<'_>,
    ) -> Result<Vec<Run>> {
        if sections.is_empty() {
            return Ok(Vec::new());
        }
        let mut body = vec![Bytes::from_static(&BUNDLE_HEAD)];
        let mut offset = FIRST_SECTION;
        let heat_bytes = sections.iter().filter_map(|s| s.heat.as_ref()).map(|h| h.len() as u64).sum::<u64>();
        let mut heat_offset = offset + sections.iter().map(|s| s.length).sum::<u64>();
        let object_bytes = heat_offset + heat_bytes;
        let mut runs = Vec::with_capacity(sections.len());
        for section in &sections {
            body.extend_from_slice(&section.pieces);
            let heat = section.heat.as_ref().map(|list| HeatPart {
                offset: heat_offset,
                length: list.len() as u32,
                checksum: crc32c::crc32c(list),
            });
            heat_offset += heat.map_or(0, |h| u64::from(h.length));
            runs.push(Run {
                task: section.task,
                object: object.clone(),
                offset,
                length: section.length,
                meta_offset: offset + section.meta_offset,
                meta_length: (section.length - section.meta_offset) as u32,
                directory_length: section.directory_length,
                checksum: section.checksum,
                clip: section.ranges.clone(),
                interval: section.interval,
                entries: section.directory.entries(),
                states: section.directory.states().to_vec(),
                object_bytes,
                origin: String::new(),
                heat,
            });
            offset += section.length;
        }
        body.extend(sections.iter().filter_map(|s| s.heat.clone()));
        self.store_to_write(&sections, purpose).put(&self.place(object_path(&object)), body, purpose).await?;
        self.count_written(&sections, purpose);
        let mut unlisted = Unlisted { store: self, runs };
        for (run, section) in unlisted.runs.iter().zip(sections) {
            self.keep_resident(run, &section, keep).await;
            self.keep_written(run, section, keep);
        }
        Ok(std::mem::take(&mut unlisted.runs))
    }

    /// A compaction works for one task, a bundle for all.
    fn store_to_write(&self, sections: &[EncodedSection], purpose: Purpose) -> Store {
        match sections {
            [section] if purpose == Purpose::Compaction => self.0.accounts.of(section.task),
            _ => self.0.accounts.shared().clone(),
        }
    }

    fn count_written(&self, sections: &[EncodedSection], purpose: Purpose) {
        let accounts = &self.0.accounts;
        for section in sections {
            let bytes = section.length;
            let written = if purpose == Purpose::Compaction {
                TaskWrites { compaction_bytes_out: bytes, ..TaskWrites::default() }
            } else {
                let flushed_entries = section.directory.entries();
                TaskWrites { flushed_bytes: bytes, flushed_entries, ..TaskWrites::default() }
            };
            accounts.wrote(section.task, written);
        }
        if purpose != Purpose::Compaction {
            accounts.bundle();
        }
    }

    /// A planted bug: where an object lies depends on a setting.
    pub(crate) fn place(&self, path: String) -> String {
        if bug_is_planted(7) { format!("{path}-{}", self.0.options.section.block_bytes) } else { path }
    }

    /// Puts what is known of a section that was written into the caches: its index; its blocks onto the SSD, all or the
    /// hot ones; and into memory those that it kept, as far as there is room. Without an SSD those of a small section
    /// push others out, since a GET brings them else, and with one if they are scanned: rows that were read by key are
    /// in the working sets.
    fn keep_written(&self, run: &Run, section: EncodedSection, keep: &Keep<'_>) {
        let caches = &self.0.caches;
        let object = run.object_id();
        let blocks: usize = section.parts.iter().map(|p| p.blocks().len()).sum();
        let small = section.kept_blocks.len() == blocks
            && section.kept_bytes() <= self.0.options.section.keep_blocks_bytes as u64;
        let scanned = run.states.iter().any(|s| s.times.is_some());
        let first = small && (scanned || !self.uses_ssd());
        let bytes = section.directory.memory_bytes();
        self.admit_written(run, section.parts.clone(), section.pieces, keep);
        for (info, part) in section.directory.parts().iter().zip(section.parts) {
            let bytes = part.memory_bytes();
            caches.insert_metadata(part_key(run, info), part, bytes);
        }
        caches.insert_metadata(directory_key(run), section.directory, bytes);
        for (at, body) in section.kept_blocks {
            let key = BlockKey { object, offset: run.offset + at };
            if !first && caches.room_bytes() < body.len() as u64 {
                continue;
            }
            // It was made here: what cannot be read was never kept.
            let Ok(block) = SharedBlock::of_body(body) else { continue };
            caches.insert_in_memory(key, block);
        }
    }

    /// Whether the index of a run is in memory: it was written or read here not long ago.
    #[must_use]
    pub fn knows(&self, run: &Run) -> bool {
        self.0.caches.peek_metadata::<Directory>(&directory_key(run)).is_some()
    }

    /// The job's place; what is asked of it is counted for the job as a whole.
    #[must_use]
    pub fn shared_store(&self) -> Store {
        self.0.accounts.shared().clone()
    }

    /// Whether blocks of this job's state go onto the SSD tier: not those of state that is kept elsewhere.
    pub(crate) fn uses_ssd(&self) -> bool {
        !self.keeps_state() && self.0.caches.has_disk()
    }

    /// The name of a bundle.
    pub(crate) fn object_name(&self, writer: WriterName) -> String {
        self.output_name(writer, None)
    }

    /// The same for an output of a compaction, whose number stands before the unique part:
    /// `.../{generation}-{execution}-c{number}-{unique}`. So it can be told whether anybody may still report it.
    pub(crate) fn output_name(&self, writer: WriterName, number: Option<u64>) -> String {
        let number = number.map(|n| format!("c{n}-")).unwrap_or_default();
        writer.object(&number, &self.0.env.unique_id())
    }

    /// The place below which a run's object lies: the job's own, or that of the job which a fork shares it with. All
    /// jobs of a state place lie beside each other. Counted for the run's task.
    pub(crate) fn store_of(&self, run: &Run) -> Store {
        let own = self.0.accounts.of(run.task);
        if run.origin.is_empty() { own } else { own.sibling(&run.origin) }
    }

    /// Drops the blocks and the index of a run that is no longer live from memory: they make room for those of its
    /// successors.
    pub fn forget(&self, run: &Run) {
        let caches = &self.0.caches;
        self.known_blocks(run).iter().for_each(|(key, _)| caches.forget_block(key));
        if let Some(directory) = caches.peek_metadata::<Directory>(&directory_key(run)) {
            directory.parts().iter().for_each(|info| caches.forget_metadata(&part_key(run, info)));
            caches.forget_metadata(&directory_key(run));
        }
    }

    /// The same for what is left of a run when it is live in `left` alone.
    pub fn forget_outside(&self, run: &Run, left: &KeyGroupRanges) {
        if left.is_empty() {
            return self.forget(run);
        }
        let object = run.object_id();
        for (_, part) in self.known_index(run) {
            let gone = part.blocks().iter().filter(|info| !info.overlaps(left));
            gone.for_each(|info| self.0.caches.forget_block(&BlockKey { object, offset: run.offset + info.offset }));
        }
    }

    /// The parts of a run with what the directory says of them, as far as they are in memory, in order.
    pub(crate) fn known_index(&self, run: &Run) -> Vec<(PartInfo, Arc<Part>)> {
        let caches = &self.0.caches;
        let Some(directory) = caches.peek_metadata::<Directory>(&directory_key(run)) else { return Vec::new() };
        let known = directory.parts().iter();
        known.filter_map(|info| Some((info.clone(), caches.peek_metadata::<Part>(&part_key(run, info))?))).collect()
    }

    /// The blocks of a run, as far as its index is in memory: their names in the caches and their bytes in the object.
    #[must_use]
    pub fn known_blocks(&self, run: &Run) -> Vec<(BlockKey, Range<u64>)> {
        let object = run.object_id();
        let mut known = Vec::new();
        for (_, part) in self.known_index(run) {
            known.extend(part.blocks().iter().map(|block| {
                let offset = run.offset + block.offset;
                (BlockKey { object, offset }, offset..offset + u64::from(block.length))
            }));
        }
        known
    }

    /// An immutable view of the runs that overlap `ranges`.
    #[must_use]
    pub fn view(&self, runs: Vec<Arc<Run>>, ranges: KeyGroupRanges, layouts: Layouts) -> View {
        View::new(self.clone(), runs, ranges, layouts)
    }

    /// What all reads cost so far, compactions not included.
    #[must_use]
    pub fn totals(&self) -> ReadReport {
        *self.0.totals.lock()
    }

    /// What was done so far, by task, and how requests went.
    #[must_use]
    pub fn used(&self) -> StoreUse {
        self.0.accounts.snapshot(self.0.hedge.twice())
    }

    pub(crate) fn add_to_totals(&self, report: &ReadReport) {
        *self.0.totals.lock() += *report;
    }

    pub(crate) fn plan_limits(&self) -> PlanLimits {
        let o = &self.0.options;
        PlanLimits {
            gap_bytes: o.gap_bytes,
            widest_gap_bytes: o.widest_gap_bytes,
            gets: o.gets_in_flight.min(self.0.requests.available(self.0.env.now())),
            room_bytes: self.0.caches.room_bytes(),
            request_bytes: o.request_bytes,
        }
    }
}

/// Semaphore permits for so many bytes.
pub(crate) fn kib(bytes: u64) -> usize {
    // A semaphore counts to usize::MAX >> 3; a GET never has 2 TiB.
    (bytes.div_ceil(1024) as usize).min(u32::MAX as usize >> 1)
}
