//! Sections of state objects as files on the local disk, each whole: the state of jobs that keep all of it there.
//!
//! The folder of a job has a file for each section, under a name that is made of the object's and the section's offset;
//! object names are never used again, so a file is right or it is damaged. It is written aside and renamed. What an
//! earlier process left is *found*; it counts only once its reader has checked it ([`LocalFiles::adopt`]). Nothing is
//! ever dropped for room: a disk that is full, or at its bound, takes no more for a while, longer each time, and what
//! it did not take is read from the object store. A disk that fails or is slow is left alone likewise. Files are not
//! synced: what a crash of the machine damages is found by its checksums.
//!
//! This does real file I/O on threads for calls that block. The simulation does not have it.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use millstream_common::{Env, Error, Result};
use parking_lot::Mutex;

use crate::health::{Change, Health, Outcome};
use crate::{BlockKey, ObjectId};

/// A batch of reads that takes longer is given up: the object store is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// From a write that failed to the next one, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_secs(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// Ranges that lie back to back are read together up to this size.
const READ_BYTES: u64 = 1 << 20;
/// Ranges that one thread reads, one after the other.
const READS_A_THREAD: usize = 128;

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
}

/// The sections of a job on the local disk. Cheap to clone; clones share everything.
#[derive(Clone)]
pub struct LocalFiles(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    env: Env,
    /// Bytes that the files may have.
    limit_bytes: u64,
    state: Mutex<State>,
    /// No other process has the folder as long as this is open.
    _lock: File,
}

#[derive(Default)]
struct State {
    /// With their sizes.
    files: BTreeMap<BlockKey, u64>,
    /// Left by an earlier process.
    found: BTreeMap<BlockKey, u64>,
    bytes: u64,
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
    file: Arc<File>,
    path: PathBuf,
    bytes: u64,
    finished: bool,
}

#[allow(clippy::disallowed_methods)] // real file I/O: the simulation has none of it
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|e| Err(io::Error::other(e)))
}

fn file_name(section: &BlockKey, suffix: &str) -> String {
    format!("{:032x}-{}.{suffix}", section.object.0, section.offset)
}

fn section_of(file_name: &str) -> Option<BlockKey> {
    let (object, offset) = file_name.strip_suffix(SUFFIX)?.strip_suffix('.')?.split_once('-')?;
    Some(BlockKey { object: ObjectId(u128::from_str_radix(object, 16).ok()?), offset: offset.parse().ok()? })
}

impl LocalFiles {
    /// The folder of a job, made if it is not there. It may hold `limit_bytes`.
    ///
    /// # Errors
    /// 1212: it cannot be made or read; 1213: another process has it.
    pub fn open(dir: &Path, limit_bytes: u64, env: &Env) -> Result<Self> {
        let unusable = |e: io::Error| {
            Error::config("the folder for local state cannot be used")
                .code(1212)
                .at(dir.display().to_string())
                .next("give another folder by --cache-dir, or use --residency remote")
                .source(e)
        };
        std::fs::create_dir_all(dir).map_err(unusable)?;
        let lock =
            OpenOptions::new().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(unusable)?;
        if lock.try_lock().is_err() {
            return Err(Error::unavailable("another process keeps state of this job in the same folder")
                .code(1213)
                .at(dir.display().to_string())
                .next("give each process a --cache-dir of its own"));
        }
        let mut state = State::default();
        for entry in std::fs::read_dir(dir).map_err(unusable)? {
            let entry = entry.map_err(unusable)?;
            let name = entry.file_name();
            match name.to_str().and_then(section_of) {
                Some(section) => drop(state.found.insert(section, entry.metadata().map_err(unusable)?.len())),
                // What was being written when the process ended.
                None if name.to_str().is_some_and(|n| n.ends_with(UNFINISHED)) => {
                    std::fs::remove_file(entry.path()).map_err(unusable)?;
                }
                None => {}
            }
        }
        state.bytes = state.found.values().sum();
        let (dir, env) = (dir.to_owned(), env.clone());
        Ok(Self(Arc::new(Inner { dir, env, limit_bytes, state: Mutex::new(state), _lock: lock })))
    }

    fn path(&self, section: &BlockKey) -> PathBuf {
        self.0.dir.join(file_name(section, SUFFIX))
    }

    /// Whether a section is here and is read from here now.
    #[must_use]
    pub fn holds(&self, section: &BlockKey) -> bool {
        let state = self.0.state.lock();
        state.files.contains_key(section) && state.reads.is_usable(self.0.env.now())
    }

    /// Whether a section is here, whatever the disk does at the moment.
    #[must_use]
    pub fn has(&self, section: &BlockKey) -> bool {
        self.0.state.lock().files.contains_key(section)
    }

    /// The size of a file that an earlier process left and nobody has checked yet.
    #[must_use]
    pub fn found(&self, section: &BlockKey) -> Option<u64> {
        self.0.state.lock().found.get(section).copied()
    }

    /// A file that was found is as it should be.
    pub fn adopt(&self, section: &BlockKey) {
        let mut state = self.0.state.lock();
        if let Some(bytes) = state.found.remove(section) {
            state.files.insert(*section, bytes);
            state.stats.adopted += 1;
        }
    }

    /// Deletes the file of a section that is not needed any more. It may be read yet by whoever has opened it.
    pub fn remove(&self, section: &BlockKey) {
        let known = {
            let mut state = self.0.state.lock();
            let known = state.files.remove(section).or_else(|| state.found.remove(section));
            state.bytes -= known.unwrap_or_default();
            known
        };
        if known.is_some()
            && let Err(e) = std::fs::remove_file(self.path(section))
        {
            tracing::warn!("a file of local state could not be deleted: {}: {e}", self.path(section).display());
        }
    }

    /// Deletes what was found and that nobody has taken over, but for `kept`.
    pub fn remove_found(&self, kept: impl Fn(&BlockKey) -> bool) {
        let left: Vec<BlockKey> = self.0.state.lock().found.keys().copied().filter(|section| !kept(section)).collect();
        left.iter().for_each(|section| self.remove(section));
    }

    /// Deletes a file that is damaged. Whether it was there: then the object store has what is right.
    pub fn discard(&self, section: &BlockKey) -> bool {
        let there = self.0.state.lock().files.contains_key(section);
        if there {
            tracing::warn!(
                "a file of local state is damaged and is read from the object store: {}",
                self.path(section).display()
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
        let full = {
            let mut state = self.0.state.lock();
            if state.paused_until.is_some_and(|until| now < until) {
                state.stats.refused += 1;
                return None;
            }
            state.bytes.saturating_add(bytes) > self.0.limit_bytes
        };
        if full {
            let limit = self.0.limit_bytes;
            self.refuse(&io::Error::new(
                io::ErrorKind::StorageFull,
                format!("its bound is {limit} bytes (--cache-disk)"),
            ));
            return None;
        }
        let path = self.0.dir.join(file_name(&section, UNFINISHED));
        let to = path.clone();
        match blocking(move || File::create(to)).await {
            Ok(file) => {
                self.0.state.lock().bytes += bytes;
                Some(Filling { files: self.clone(), section, file: Arc::new(file), path, bytes, finished: false })
            }
            Err(e) => {
                self.refuse(&e);
                None
            }
        }
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
        let mut order: Vec<usize> = (0..wanted.len()).collect();
        order.sort_by(|&a, &b| wanted[a].cmp(&wanted[b]));
        let mut out: Vec<Option<Bytes>> = vec![None; wanted.len()];
        let batches =
            order.chunk_by(|&a, &b| wanted[a].section == wanted[b].section).flat_map(|of| of.chunks(READS_A_THREAD));
        let read = batches.map(|batch| async move {
            let section = wanted[batch[0]].section;
            let ranges: Vec<Range<u64>> =
                batch.iter().map(|&i| wanted[i].start..wanted[i].start + wanted[i].length).collect();
            (batch, self.read_file(&section, ranges).await)
        });
        for (batch, read) in futures::future::join_all(read).await {
            for (&i, bytes) in batch.iter().zip(read.unwrap_or_default()) {
                out[i] = Some(bytes);
            }
        }
        out
    }

    async fn read_file(&self, section: &BlockKey, ranges: Vec<Range<u64>>) -> Option<Vec<Bytes>> {
        let known = {
            let state = self.0.state.lock();
            state.files.contains_key(section) || state.found.contains_key(section)
        };
        if !known {
            return None;
        }
        let (path, count) = (self.path(section), ranges.len() as u64);
        let look = blocking(move || read_ranges(&path, &ranges));
        let looked = self.0.env.timeout(PATIENCE, "a read of local state", look).await;
        let (outcome, read) = match looked {
            Ok(Ok(read)) => (Outcome::Good, Some(read)),
            Ok(Err(e)) => {
                tracing::debug!("local state could not be read: {}: {e}", self.path(section).display());
                if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) {
                    // Somebody else has deleted or cut it: it will not be whole again.
                    self.discard(section);
                }
                (Outcome::Failed, None)
            }
            Err(_) => (Outcome::Slow, None),
        };
        let change = {
            let mut state = self.0.state.lock();
            state.stats.failed += u64::from(read.is_none());
            state.stats.reads += if read.is_some() { count } else { 0 };
            state.reads.note(outcome, self.0.env.now())
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
        FileStats { files: state.files.len() as u64, bytes: state.files.values().sum(), ..state.stats }
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

impl Filling {
    /// Writes a piece of the section; whether the disk took it.
    pub async fn put(&self, at: u64, piece: Bytes) -> bool {
        let file = self.file.clone();
        match blocking(move || file.write_all_at(&piece, at)).await {
            Ok(()) => true,
            Err(e) => {
                self.files.refuse(&e);
                false
            }
        }
    }

    /// All of it is there: from now on it is read.
    pub async fn finish(mut self) -> bool {
        let (from, to) = (self.path.clone(), self.files.path(&self.section));
        match blocking(move || std::fs::rename(from, to)).await {
            Ok(()) => {
                self.finished = true;
                let mut state = self.files.0.state.lock();
                if let Some(before) = state.files.insert(self.section, self.bytes).or(state.found.remove(&self.section))
                {
                    state.bytes -= before;
                }
                // The disk takes again what it is given.
                (state.paused_until, state.pause) = (None, None);
                true
            }
            Err(e) => {
                self.files.refuse(&e);
                false
            }
        }
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        if !self.finished {
            self.files.0.state.lock().bytes -= self.bytes;
            // When it cannot be deleted, the next process that opens the folder does it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
