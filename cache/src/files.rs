//! Sections of state objects as files on the local disk, each whole: the state of jobs that keep all of it there.
//!
//! The folder of a job has a file for each section, under a name that is made of the object's, the section's offset and
//! a number that no other file of the folder has had; object names are never used again, so a file is right or it is
//! damaged. It is written aside and renamed. What an earlier process left is *found*; it counts only once its reader has
//! checked it ([`LocalFiles::adopt`]). Nothing is ever dropped for room: a disk that is full, or at its bound, takes no
//! more for a while, longer each time, and what it did not take is read from the object store. A disk that fails or is
//! slow is left alone likewise. Files are not synced: what a crash of the machine damages is found by its checksums.
//!
//! Nobody waits for a disk that hangs: reads and writes are given up after a while, counted from when a thread takes
//! them, and files are deleted behind whoever lets them go. A thread that hangs in a call stays there; when many do, the
//! folder is left alone until they return.
//!
//! This does real file I/O on threads for calls that block. The simulation does not have it.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use millstream_common::{Env, Error, Lane, Result};
use parking_lot::Mutex;
use tokio::sync::{Semaphore, oneshot};

use crate::budget::{DiskBudget, Room};
use crate::health::{Change, Health, Outcome};
use crate::{BlockKey, ObjectId};

/// A batch of reads that takes longer is given up: the object store is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// A step of a write that takes longer counts as one that failed.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// From a write that failed to the next one, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Ranges that lie back to back are read together up to this size.
const READ_BYTES: u64 = 1 << 20;
/// Ranges that one thread reads, one after the other, and about so many bytes of them.
const READS_A_THREAD: usize = 128;
const BYTES_A_THREAD: u64 = 2 << 20;
/// Batches of one call that are read or have been read and were not taken yet; and batches of all calls that are read.
const BATCHES_A_CALL: usize = 4;
const BATCHES: usize = 16;
/// So many threads are in a call to the disk only when most of them hang.
const THREADS_MAX: usize = 48;

const SUFFIX: &str = "section";
const UNFINISHED: &str = "part";

/// What became of a folder of sections, since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileStats {
    /// Files that are read.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Ranges that were read.
    pub reads: u64,
    /// Files that were taken over from an earlier process.
    pub adopted: u64,
    /// Sections that the disk did not take: it is full, at its bound, or failed.
    pub refused: u64,
    /// Reads that failed or took too long, and files that turned out to be damaged.
    pub failed: u64,
    /// Files that nobody wants and that are still to be deleted.
    pub deleting: u64,
}

/// The sections of a job on the local disk. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct LocalFiles(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    env: Env,
    /// What the files of all jobs may have.
    budget: DiskBudget,
    state: Mutex<State>,
    /// One for each batch of reads that goes on.
    reading: Semaphore,
    /// Threads that are in a call to the disk, also those that nobody waits for any more.
    threads: Arc<AtomicUsize>,
    /// The number of the next file.
    next: AtomicU64,
    /// No other process has the folder as long as this is open.
    _lock: File,
}

/// A file and the room that it takes.
struct Kept {
    room: Room,
    number: u64,
}

#[derive(Default)]
struct State {
    files: BTreeMap<BlockKey, Kept>,
    /// Left by an earlier process.
    found: BTreeMap<BlockKey, Kept>,
    /// To be deleted, in this order; the first is being deleted.
    deleting: VecDeque<PathBuf>,
    reads: Health,
    /// No write before this moment, and the pause behind the next one that fails.
    paused_until: Option<millstream_common::env::Moment>,
    pause: Option<Duration>,
    stats: FileStats,
}

/// A range of a section that is wanted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileRange {
    /// The object, and where the section begins in it.
    pub section: BlockKey,
    /// From the beginning of the section.
    pub start: u64,
    /// Bytes.
    pub length: u64,
}

/// A file that is being written; gone when it is dropped before it is finished.
pub struct Filling {
    files: LocalFiles,
    section: BlockKey,
    number: u64,
    file: Arc<File>,
    /// None: it is finished.
    room: Option<Room>,
}

/// Begins at once, on a thread.
#[allow(clippy::disallowed_methods)] // real file I/O: the simulation has none of it
fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> impl Future<Output = io::Result<T>> + Send {
    let running = tokio::task::spawn_blocking(work);
    async move { running.await.unwrap_or_else(|e| Err(io::Error::other(e))) }
}

/// Counts a thread as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn begin(threads: Arc<AtomicUsize>) -> Self {
        threads.fetch_add(1, Ordering::Relaxed);
        Self(threads)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn file_name(section: &BlockKey, number: u64, suffix: &str) -> String {
    format!("{:032x}-{}.{number}.{suffix}", section.object.0, section.offset)
}

/// The section and the number of a file of this name.
fn section_of(file_name: &str) -> Option<(BlockKey, u64)> {
    let (object, rest) = file_name.strip_suffix(SUFFIX)?.strip_suffix('.')?.split_once('-')?;
    let (offset, number) = rest.split_once('.')?;
    let section = BlockKey { object: ObjectId(u128::from_str_radix(object, 16).ok()?), offset: offset.parse().ok()? };
    Some((section, number.parse().ok()?))
}

/// The indices of `wanted`, sorted, in batches of one section each that one thread reads.
pub(crate) fn batches(wanted: &[FileRange]) -> VecDeque<Vec<usize>> {
    let mut order: Vec<usize> = (0..wanted.len()).collect();
    order.sort_by(|&a, &b| wanted[a].cmp(&wanted[b]));
    let (mut batches, mut bytes) = (VecDeque::<Vec<usize>>::new(), 0);
    for i in order {
        match batches.back_mut() {
            Some(batch)
                if wanted[batch[0]].section == wanted[i].section
                    && batch.len() < READS_A_THREAD
                    && bytes + wanted[i].length <= BYTES_A_THREAD =>
            {
                bytes += wanted[i].length;
                batch.push(i);
            }
            _ => {
                bytes = wanted[i].length;
                batches.push_back(vec![i]);
            }
        }
    }
    batches
}

impl LocalFiles {
    /// The folder of a job, made if it is not there. What it holds counts in `budget`.
    ///
    /// # Errors
    /// 1212: it cannot be made or read; 1213: another process has it.
    pub fn open(dir: &Path, budget: &DiskBudget, env: &Env) -> Result<Self> {
        let unusable = |e| Self::unusable(dir, e);
        std::fs::create_dir_all(dir).map_err(unusable)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(unusable)?;
        if lock.try_lock().is_err() {
            return Err(Error::unavailable("another process keeps state of this job in the same folder")
                .code(1213)
                .at(dir.display().to_string())
                .next("give each process a --cache-dir of its own"));
        }
        let (mut state, mut next) = (State::default(), 0);
        for entry in std::fs::read_dir(dir).map_err(unusable)? {
            let entry = entry.map_err(unusable)?;
            let name = entry.file_name();
            let name = name.to_str().unwrap_or_default();
            if let Some((section, number)) = section_of(name) {
                let room = budget.charge(entry.metadata().map_err(unusable)?.len());
                next = next.max(number + 1);
                if let Some(other) = state.found.insert(section, Kept { room, number }) {
                    // Either is right or damaged; it was written twice.
                    std::fs::remove_file(dir.join(file_name(&section, other.number, SUFFIX))).map_err(unusable)?;
                }
            } else if name.ends_with(UNFINISHED) {
                // What was being written when the process ended.
                std::fs::remove_file(entry.path()).map_err(unusable)?;
            }
        }
        Ok(Self(Arc::new(Inner {
            dir: dir.to_owned(),
            env: env.clone(),
            budget: budget.clone(),
            state: Mutex::new(state),
            reading: Semaphore::new(BATCHES),
            threads: Arc::default(),
            next: AtomicU64::new(next),
            _lock: lock,
        })))
    }

    /// The error for a folder of local state that cannot be made or read (1212).
    #[must_use]
    pub fn unusable(dir: &Path, e: io::Error) -> Error {
        Error::config("the folder for local state cannot be used")
            .code(1212)
            .at(dir.display().to_string())
            .next("give another folder by --cache-dir, or use --residency remote")
            .source(e)
    }

    fn path(&self, section: &BlockKey, number: u64, suffix: &str) -> PathBuf {
        self.0.dir.join(file_name(section, number, suffix))
    }

    /// Most threads hang in a call to the disk: no more are sent there.
    fn hangs(&self) -> bool {
        self.0.threads.load(Ordering::Relaxed) >= THREADS_MAX
    }

    /// What comes of `work` on a thread. It may take so long from when a thread has begun it: that all are busy is not
    /// the disk's fault.
    async fn patiently<T: Send + 'static>(
        &self,
        patience: Duration,
        what: &str,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (threads, (begins, begun)) = (self.0.threads.clone(), oneshot::channel());
        let running = blocking(move || {
            let _counted = Counted::begin(threads);
            // Nobody listens any more: it was given up.
            begins.send(()).map_err(|()| io::Error::from(io::ErrorKind::Interrupted))?;
            work()
        });
        // It fails only when the work does.
        let _ = begun.await;
        let late = |e: Error| io::Error::new(io::ErrorKind::TimedOut, e.to_string());
        self.0.env.timeout(patience, what, running).await.unwrap_or_else(|e| Err(late(e)))
    }

    /// Whether a section is here and is read from here now.
    #[must_use]
    pub fn holds(&self, section: &BlockKey) -> bool {
        let state = self.0.state.lock();
        state.files.contains_key(section) && state.reads.is_usable(self.0.env.now()) && !self.hangs()
    }

    /// Whether a section is here, whatever the disk does at the moment.
    #[must_use]
    pub fn has(&self, section: &BlockKey) -> bool {
        self.0.state.lock().files.contains_key(section)
    }

    /// The size of a file that an earlier process left and nobody has checked yet.
    #[must_use]
    pub fn found(&self, section: &BlockKey) -> Option<u64> {
        self.0.state.lock().found.get(section).map(|kept| kept.room.bytes())
    }

    /// A file that was found is as it should be.
    pub fn adopt(&self, section: &BlockKey) {
        let mut state = self.0.state.lock();
        if let Some(kept) = state.found.remove(section) {
            state.files.insert(*section, kept);
            state.stats.adopted += 1;
        }
    }

    /// Lets go of the file of a section that is not needed any more; it is deleted behind this. It may be read yet by
    /// whoever has opened it.
    pub fn remove(&self, section: &BlockKey) {
        let known = {
            let mut state = self.0.state.lock();
            state.files.remove(section).or_else(|| state.found.remove(section))
        };
        if let Some(kept) = known {
            self.delete(self.path(section, kept.number, SUFFIX));
        }
    }

    /// Deletes all files but those of sections that `live` names, also what was found.
    pub fn retain(&self, live: impl Fn(&BlockKey) -> bool) {
        let dead: Vec<BlockKey> = {
            let state = self.0.state.lock();
            state.files.keys().chain(state.found.keys()).copied().filter(|section| !live(section)).collect()
        };
        dead.iter().for_each(|section| self.remove(section));
    }

    /// One after the other, by one task: it ends by itself, with what waits. Paths have numbers, so none is that of a
    /// file which was written since.
    fn delete(&self, path: PathBuf) {
        {
            let mut state = self.0.state.lock();
            state.deleting.push_back(path);
            if state.deleting.len() > 1 {
                return;
            }
        }
        let files = Arc::downgrade(&self.0);
        drop(self.0.env.spawn(Lane::Background, "deletion of local state", delete_all(files)));
    }

    /// Deletes a file that is damaged. Whether it was there: then the object store has what is right.
    pub fn discard(&self, section: &BlockKey) -> bool {
        let there = {
            let state = self.0.state.lock();
            state.files.contains_key(section) || state.found.contains_key(section)
        };
        if there {
            tracing::warn!(
                "a file of local state is damaged and is read from the object store: {:032x} at {} in {}",
                section.object.0,
                section.offset,
                self.0.dir.display()
            );
            self.0.state.lock().stats.failed += 1;
            self.remove(section);
        }
        there
    }

    /// Begins a file of `bytes` bytes; `None` when the disk takes nothing now: it was full or failed lately, or is at
    /// its bound.
    pub async fn begin(&self, section: BlockKey, bytes: u64) -> Option<Filling> {
        let now = self.0.env.now();
        {
            let mut state = self.0.state.lock();
            if self.hangs() || state.paused_until.is_some_and(|until| now < until) {
                state.stats.refused += 1;
                return None;
            }
        }
        let Some(room) = self.0.budget.take(bytes) else {
            let limit = self.0.budget.limit_bytes();
            self.refuse(&io::Error::new(
                io::ErrorKind::StorageFull,
                format!("the bound of all local state here is {limit} bytes (--cache-disk)"),
            ));
            return None;
        };
        let number = self.0.next.fetch_add(1, Ordering::Relaxed);
        let files = self.clone();
        let begun = self.patiently(WRITE_PATIENCE, "making a file of local state", move || {
            let file = Arc::new(File::create(files.path(&section, number, UNFINISHED))?);
            Ok(Filling { files, section, number, file, room: Some(room) })
        });
        begun.await.inspect_err(|e| self.refuse(e)).ok()
    }

    /// Writes a whole section; whether the disk took it.
    pub async fn write(&self, section: BlockKey, pieces: Vec<Bytes>) -> bool {
        if self.has(&section) {
            return true;
        }
        let bytes = pieces.iter().map(|p| p.len() as u64).sum();
        let Some(filling) = self.begin(section, bytes).await else { return false };
        let mut at = 0;
        for piece in pieces {
            let length = piece.len() as u64;
            if !filling.put(at, piece).await {
                return false;
            }
            at += length;
        }
        filling.finish().await
    }

    /// Nothing is written for a while.
    fn refuse(&self, why: &io::Error) {
        let pause = {
            let mut state = self.0.state.lock();
            let pause = state.pause.unwrap_or(FIRST_PAUSE);
            state.paused_until = Some(self.0.env.now() + pause);
            state.pause = Some((pause * 2).min(LONGEST_PAUSE));
            state.stats.refused += 1;
            pause
        };
        tracing::warn!(
            "the disk takes no more local state, which is read from the object store instead: {}: {why}; nothing is written there for \
             {pause:?}; make room, give a larger --cache-disk, or use --residency remote",
            self.0.dir.display()
        );
    }

    /// Reads ranges, in any order; `None` for what is not here or could not be read.
    pub async fn read(&self, wanted: &[FileRange]) -> Vec<Option<Bytes>> {
        let mut out: Vec<Option<Bytes>> = vec![None; wanted.len()];
        let keep = |i: usize, bytes| {
            out[i] = bytes;
            Ok::<(), std::convert::Infallible>(())
        };
        let Ok(()) = self.read_each(wanted, keep).await;
        out
    }

    /// The same for whoever wants few of them in memory at once: `take` gets each range by its index as it comes, in no
    /// order, each once. What `take` fails with ends it.
    pub async fn read_each<E>(
        &self,
        wanted: &[FileRange],
        mut take: impl FnMut(usize, Option<Bytes>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut waiting = batches(wanted);
        let mut reading = FuturesUnordered::new();
        loop {
            while reading.len() < BATCHES_A_CALL
                && let Some(batch) = waiting.pop_front()
            {
                let section = wanted[batch[0]].section;
                let ranges = batch.iter().map(|&i| wanted[i].start..wanted[i].start + wanted[i].length).collect();
                let files = self.clone();
                reading.push(async move { (batch, files.read_file(&section, ranges).await) });
            }
            let Some((batch, read)) = reading.next().await else { return Ok(()) };
            let mut read = read.unwrap_or_default().into_iter();
            batch.into_iter().try_for_each(|i| take(i, read.next()))?;
        }
    }

    async fn read_file(&self, section: &BlockKey, ranges: Vec<Range<u64>>) -> Option<Vec<Bytes>> {
        // Nobody closes it.
        let _permit = self.0.reading.acquire().await.ok()?;
        let number = {
            let state = self.0.state.lock();
            state.files.get(section).or_else(|| state.found.get(section))?.number
        };
        if self.hangs() {
            return None;
        }
        let (path, count) = (self.path(section, number, SUFFIX), ranges.len() as u64);
        let started = self.0.env.now();
        let look = self.patiently(PATIENCE, "a read of local state", move || read_ranges(&path, &ranges));
        let (outcome, read) = match look.await {
            Ok(read) => (Outcome::Good, Some(read)),
            Err(e) => {
                tracing::debug!("local state could not be read: {:032x} at {}: {e}", section.object.0, section.offset);
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) {
                    // Somebody else has deleted or cut it: it will not be whole again.
                    self.discard(section);
                }
                (if e.kind() == io::ErrorKind::TimedOut { Outcome::Slow } else { Outcome::Failed }, None)
            }
        };
        let change = {
            let mut state = self.0.state.lock();
            state.stats.failed += u64::from(read.is_none());
            state.stats.reads += if read.is_some() { count } else { 0 };
            state.reads.note(outcome, started, self.0.env.now())
        };
        match change {
            Change::None => {}
            Change::Rests(rest) => {
                tracing::warn!("the disk with local state fails or is too slow: it is left alone for {rest:?}")
            }
            Change::Recovered => tracing::info!("the disk with local state is well again"),
        }
        read
    }

    /// What became of it so far.
    #[must_use]
    pub fn stats(&self) -> FileStats {
        let state = self.0.state.lock();
        FileStats {
            files: state.files.len() as u64,
            bytes: state.files.values().map(|kept| kept.room.bytes()).sum(),
            deleting: state.deleting.len() as u64,
            ..state.stats
        }
    }
}

/// Reads sorted ranges of a file; those that lie back to back at once.
fn read_ranges(path: &Path, ranges: &[Range<u64>]) -> io::Result<Vec<Bytes>> {
    let file = File::open(path)?;
    let mut out = Vec::with_capacity(ranges.len());
    let mut i = 0;
    while i < ranges.len() {
        let (start, mut end, mut next) = (ranges[i].start, ranges[i].end, i + 1);
        while next < ranges.len() && ranges[next].start == end && ranges[next].end - start <= READ_BYTES {
            end = ranges[next].end;
            next += 1;
        }
        let mut buffer = vec![0; (end - start) as usize];
        file.read_exact_at(&mut buffer, start)?;
        let bytes = Bytes::from(buffer);
        out.extend(ranges[i..next].iter().map(|r| bytes.slice((r.start - start) as usize..(r.end - start) as usize)));
        i = next;
    }
    Ok(out)
}

/// Deletes what waits for it; the folder may be closed meanwhile.
async fn delete_all(files: Weak<Inner>) {
    loop {
        let Some(path) = files.upgrade().and_then(|files| files.state.lock().deleting.front().cloned()) else { return };
        let there = path.clone();
        if let Err(e) = blocking(move || std::fs::remove_file(there)).await
            && e.kind() != io::ErrorKind::NotFound
        {
            // The next process that opens the folder finds it.
            tracing::warn!("a file of local state could not be deleted: {}: {e}", path.display());
        }
        let Some(files) = files.upgrade() else { return };
        let mut state = files.state.lock();
        state.deleting.pop_front();
        if state.deleting.is_empty() {
            return;
        }
    }
}

impl Filling {
    /// Writes a piece of the section; whether the disk took it.
    pub async fn put(&self, at: u64, piece: Bytes) -> bool {
        let file = self.file.clone();
        let written =
            self.files.patiently(WRITE_PATIENCE, "a write of local state", move || file.write_all_at(&piece, at));
        written.await.inspect_err(|e| self.files.refuse(e)).is_ok()
    }

    /// All of it is there: from now on it is read.
    pub async fn finish(self) -> bool {
        let files = self.files.clone();
        let finished = files.patiently(WRITE_PATIENCE, "naming a file of local state", move || self.name());
        finished.await.inspect_err(|e| files.refuse(e)).is_ok()
    }

    /// Goes through even when nobody waits for it any more: then the file is known, too.
    fn name(mut self) -> io::Result<()> {
        let of = |suffix| self.files.path(&self.section, self.number, suffix);
        std::fs::rename(of(UNFINISHED), of(SUFFIX))?;
        let Some(room) = self.room.take() else { return Ok(()) };
        let before = {
            let mut state = self.files.0.state.lock();
            // The disk takes again what it is given.
            (state.paused_until, state.pause) = (None, None);
            let kept = Kept { room, number: self.number };
            let before = state.files.insert(self.section, kept);
            before.or(state.found.remove(&self.section))
        };
        if let Some(before) = before {
            self.files.delete(self.files.path(&self.section, before.number, SUFFIX));
        }
        Ok(())
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        if self.room.is_some() {
            self.files.delete(self.files.path(&self.section, self.number, UNFINISHED));
        }
    }
}
