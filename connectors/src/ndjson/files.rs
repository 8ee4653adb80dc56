//! Files that are open only while there is room: a source may have more files than a process may have open.
//!
//! A subtask reads its files in turn, so none of them is near its end while the others wait. Each is a [`RestingFile`]:
//! closed between two reads when too many are open, opened again where it was.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Files of one source that stay open between two reads. Beside them a process has connections and files of caches
/// open, and 1,024 descriptors are a common limit for all.
const OPEN_AT_MOST: usize = 256;

/// Counts the open files of one source.
#[derive(Debug)]
pub(super) struct OpenFiles {
    open: AtomicUsize,
    most: usize,
}

impl OpenFiles {
    pub(super) fn new() -> Arc<Self> {
        Self::at_most(OPEN_AT_MOST)
    }

    pub(super) fn at_most(most: usize) -> Arc<Self> {
        Arc::new(Self { open: AtomicUsize::new(0), most })
    }

    /// Whether a file should close that has been read for now.
    pub(super) fn crowded(&self) -> bool {
        self.open.load(Ordering::Relaxed) > self.most
    }

    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }
}

/// An open file, counted.
struct Counted {
    file: File,
    files: Arc<OpenFiles>,
}

impl Counted {
    fn open(path: &str, files: &Arc<OpenFiles>) -> io::Result<Self> {
        let file = File::open(path)?;
        files.open.fetch_add(1, Ordering::Relaxed);
        Ok(Self { file, files: files.clone() })
    }

    /// What tells the file from every other one, whatever its name.
    fn identity(&self) -> io::Result<(u64, u64)> {
        let meta = self.file.metadata()?;
        Ok((meta.dev(), meta.ino()))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.files.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A file that is read in order and may be closed in between.
pub(super) struct RestingFile {
    path: String,
    files: Arc<OpenFiles>,
    open: Option<Counted>,
    identity: (u64, u64),
    /// Where the next byte stands.
    at: u64,
}

impl RestingFile {
    /// Opens the file at byte `at`.
    pub(super) fn open(path: &str, at: u64, files: &Arc<OpenFiles>) -> io::Result<Self> {
        let mut open = Counted::open(path, files)?;
        if at > 0 {
            open.file.seek(SeekFrom::Start(at))?;
        }
        let identity = open.identity()?;
        Ok(Self { path: path.to_owned(), files: files.clone(), open: Some(open), identity, at })
    }

    /// Closes the file; `wake` opens it again.
    pub(super) fn rest(&mut self) {
        self.open = None;
    }

    /// Opens the file again if it rested; false when another one has its name by now.
    pub(super) fn wake(&mut self) -> io::Result<bool> {
        if self.open.is_none() {
            let mut open = Counted::open(&self.path, &self.files)?;
            if open.identity()? != self.identity {
                return Ok(false);
            }
            open.file.seek(SeekFrom::Start(self.at))?;
            self.open = Some(open);
        }
        Ok(true)
    }
}

impl Read for RestingFile {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let Some(open) = &mut self.open else { return Err(io::Error::other("the file rests")) };
        let read = open.file.read(into)?;
        self.at += read as u64;
        Ok(read)
    }
}
