//! Files of JSON lines as a sink: `DIR/part-EPOCH-SUBTASK-N.ndjson`, exactly once.
//!
//! A writer fills a dot-file; at the barrier it makes the file and its name durable, and the committable tells where it
//! is. It becomes visible under its final name once the version that lists the committable is durable (see
//! `commit.rs`). A committable stays valid when the checkpoint of its epoch fails: a later version takes it along.
//! An epoch without rows leaves no file. The files of an epoch appear one by one.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::PathBuf;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use millstream_common::env::BoxFuture;
use millstream_common::{Epoch, Error, Execution, Generation, Result};
use millstream_engine::sink::{Committable, Committer, PreCommit, Sink, SinkContext, SinkWriter, WriterFigures};
use millstream_formats::json::JsonRows;

use super::commit::{Pending, deployment_of, epoch_of, final_name, io_failed, is_final, name_in_progress, sync_folder};

/// Text that is collected before it goes to the file.
const BUFFER_BYTES: usize = 256 << 10;

/// A sink that writes JSON lines into files of one folder.
#[derive(Clone, Debug)]
pub struct FilesSink {
    dir: PathBuf,
}

impl FilesSink {
    /// Writes into `dir`, which is made when it is not there. A relative one is meant from the process's working
    /// directory. The folder belongs to the job alone.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    fn make_folder(&self) -> Result<()> {
        fs::create_dir_all(&self.dir).map_err(|e| {
            Error::config("cannot make the output folder")
                .code(1320)
                .at(self.dir.display().to_string())
                .source(e)
                .next("name a folder that can be written to")
        })
    }

    /// The names of all files in the folder.
    fn names(&self) -> Result<Vec<String>> {
        let failed = |e| io_failed("cannot list the output folder", &self.dir, e);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(failed)? {
            // Names that are not UTF-8 are none of ours.
            names.extend(entry.map_err(failed)?.file_name().to_str().map(str::to_owned));
        }
        names.sort();
        Ok(names)
    }
}

impl Sink for FilesSink {
    fn check_fresh(&self) -> Result<()> {
        self.make_folder()?;
        match self.names()?.into_iter().find(|n| is_final(n)) {
            None => Ok(()),
            Some(name) => {
                Err(Error::config(format!("the output folder already has '{name}', and the job has no version"))
                    .code(1321)
                    .at(self.dir.display().to_string())
                    .next("name an empty folder, or remove the part files of the earlier job"))
            }
        }
    }

    fn is_a_place(&self) -> bool {
        true
    }

    fn check_goes_back(&self, epoch: Epoch) -> Result<()> {
        self.make_folder()?;
        let mut later: Vec<String> =
            self.names()?.into_iter().filter(|n| epoch_of(n).is_some_and(|e| e > epoch)).collect();
        later.sort_unstable();
        let (Some(first), Some(last)) = (later.first(), later.last()) else { return Ok(()) };
        Err(Error::config(format!(
            "the output folder has part files of epochs above {epoch}, where the job is to start from: {} from '{first}' to '{last}'",
            later.len()
        ))
        .code(1323)
        .at(self.dir.display().to_string())
        .next("move those files away: their rows will be written again"))
    }

    fn writer(&self, schema: SchemaRef, context: SinkContext) -> Result<Box<dyn SinkWriter>> {
        self.make_folder()?;
        Ok(Box::new(FilesWriter {
            dir: self.dir.clone(),
            context,
            rows: JsonRows::new(&schema)?,
            text: Vec::new(),
            current: None,
            files: 0,
            bytes: 0,
        }))
    }

    fn committer(&self) -> Result<Box<dyn Committer>> {
        self.make_folder()?;
        Ok(Box::new(FilesCommitter { sink: self.clone() }))
    }
}

struct FilesWriter {
    dir: PathBuf,
    context: SinkContext,
    rows: JsonRows,
    /// Lines that are not in the file yet.
    text: Vec<u8>,
    current: Option<InProgress>,
    /// Files begun so far.
    files: u64,
    /// What was written to all of them.
    bytes: u64,
}

/// The file of the present epoch.
struct InProgress {
    file: File,
    name: String,
    rows: u64,
    bytes: u64,
    checksum: u32,
}

impl FilesWriter {
    fn push(&mut self, batch: &RecordBatch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        if self.current.is_none() {
            self.current = Some(self.begin()?);
        }
        self.rows.push(batch, &mut self.text)?;
        if let Some(current) = &mut self.current {
            current.rows += batch.num_rows() as u64;
        }
        if self.text.len() >= BUFFER_BYTES { self.flush() } else { Ok(()) }
    }

    fn begin(&mut self) -> Result<InProgress> {
        let c = &self.context;
        let name = name_in_progress(c.generation, c.execution, c.subtask, c.unique, self.files);
        self.files += 1;
        let path = self.dir.join(&name);
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = file.map_err(|e| io_failed("cannot begin a file", &path, e))?;
        Ok(InProgress { file, name, rows: 0, bytes: 0, checksum: 0 })
    }

    fn flush(&mut self) -> Result<()> {
        if let Some(current) = &mut self.current {
            let written = current.file.write_all(&self.text);
            written.map_err(|e| io_failed("cannot write a file", &self.dir.join(&current.name), e))?;
            current.bytes += self.text.len() as u64;
            self.bytes += self.text.len() as u64;
            current.checksum = crc32c::crc32c_append(current.checksum, &self.text);
            self.text.clear();
        }
        Ok(())
    }

    fn close(&mut self, epoch: Epoch) -> Result<PreCommit> {
        self.flush()?;
        let Some(current) = &self.current else {
            return Ok(PreCommit::default());
        };
        let path = self.dir.join(&current.name);
        current.file.sync_all().map_err(|e| io_failed("cannot make a file durable", &path, e))?;
        sync_folder(&self.dir)?;
        let pending = Pending {
            in_progress: current.name.clone(),
            committed: final_name(epoch, self.context.subtask, 0),
            bytes: current.bytes,
            checksum: current.checksum,
        };
        let rows = current.rows;
        // From here on the file is the committable's: dropping the writer leaves it.
        self.current = None;
        Ok(PreCommit { rows, committable: Some(pending.encode()), ..PreCommit::default() })
    }
}

impl Drop for FilesWriter {
    /// Takes the unfinished file away, which nobody can commit. After a crash `clean_up` does that.
    fn drop(&mut self) {
        if let Some(current) = &self.current {
            let _ = fs::remove_file(self.dir.join(&current.name));
        }
    }
}

impl SinkWriter for FilesWriter {
    fn write<'a>(&'a mut self, batch: &'a RecordBatch) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { self.push(batch) })
    }

    fn pre_commit(&mut self, epoch: Epoch) -> BoxFuture<'_, Result<PreCommit>> {
        Box::pin(async move { self.close(epoch) })
    }

    fn figures(&self) -> WriterFigures {
        WriterFigures { bytes: Some(self.bytes + self.text.len() as u64), open_transactions: None }
    }
}

struct FilesCommitter {
    sink: FilesSink,
}

impl Committer for FilesCommitter {
    fn commit<'a>(&'a mut self, committable: &'a Committable) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move { Pending::decode(&committable.payload)?.publish(&self.sink.dir) })
    }

    fn clean_up(&mut self, generation: Generation, execution: Execution) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            for name in self.sink.names()? {
                if deployment_of(&name).is_some_and(|of| of < (generation, execution)) {
                    let path = self.sink.dir.join(&name);
                    match fs::remove_file(&path) {
                        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                            return Err(io_failed("cannot remove a file that was left behind", &path, e));
                        }
                        _ => {}
                    }
                }
            }
            Ok(())
        })
    }
}

#[cfg(test)]
#[path = "sink_tests.rs"]
mod tests;
