//! Files of JSON lines as a source.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use arrow_schema::SchemaRef;
use millstream_common::{Error, ErrorKind, Result};
use millstream_engine::source::{
    Position, Read, Source, Split, SplitEnumerator, SplitFigures, SplitGauges, SplitReader,
};
use millstream_formats::{Decoder, DecodingFormat};

use super::files::OpenFiles;
use super::lines::{Lines, Peek};
use super::splits::FileEnumerator;

/// Bytes that one call of `poll_next` reads at most, give or take a chunk.
const BYTES_A_POLL: usize = 1 << 20;
/// Some programs begin a UTF-8 file with it.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// A source that reads files of JSON lines, one split a file. The position of a split is the byte offset of its next
/// line (in a `.gz` file: of what it holds), its detail the number of lines before. A file is opened when its rows are
/// asked for first; there may be more files than a process may have open.
pub struct NdjsonSource {
    patterns: Vec<String>,
    format: Arc<dyn DecodingFormat>,
    files: Arc<OpenFiles>,
}

impl NdjsonSource {
    /// Reads the files that `patterns` name: paths, or patterns with `*`, `?` and `[...]`. Relative ones are meant
    /// from the process's working directory.
    #[must_use]
    pub fn new(patterns: Vec<String>, format: Arc<dyn DecodingFormat>) -> Self {
        Self { patterns, format, files: OpenFiles::new() }
    }
}

impl Source for NdjsonSource {
    fn schema(&self) -> SchemaRef {
        self.format.schema()
    }

    fn enumerator(&self) -> Result<Box<dyn SplitEnumerator>> {
        Ok(Box::new(FileEnumerator { patterns: self.patterns.clone() }))
    }

    fn reader(&self, split: &Split, position: Option<&Position>) -> Result<Box<dyn SplitReader>> {
        let damaged = |what: &str| Error::new(ErrorKind::Corrupt, 4302, what).at(split.id.clone());
        let path = std::str::from_utf8(&split.payload).map_err(|_| damaged("the path of a split is not UTF-8"))?;
        let (offset, line) = match position {
            None => (0, 0),
            Some(p) => {
                let line = <[u8; 8]>::try_from(p.detail.as_slice());
                (p.offset, u64::from_le_bytes(line.map_err(|_| damaged("the position of a split has no line number"))?))
            }
        };
        Ok(Box::new(FileReader {
            path: path.to_owned(),
            start: (offset, line),
            lines: None,
            decoder: self.format.decoder()?,
            files: self.files.clone(),
            gauges: Arc::default(),
        }))
    }
}

struct FileReader {
    path: String,
    /// Bytes and lines before the first line to be read.
    start: (u64, u64),
    /// `None` before the first rows are asked for.
    lines: Option<Lines>,
    decoder: Box<dyn Decoder>,
    files: Arc<OpenFiles>,
    gauges: Arc<FileGauges>,
}

/// Bytes of the lines that were read, as the file holds them uncompressed.
#[derive(Default)]
struct FileGauges(AtomicU64);

impl SplitGauges for FileGauges {
    fn figures(&self) -> SplitFigures {
        SplitFigures { bytes: Some(self.0.load(Ordering::Relaxed)), ..SplitFigures::default() }
    }
}

impl FileReader {
    fn next(&mut self, max_rows: usize) -> Result<Read> {
        let lines = match &mut self.lines {
            Some(lines) => lines,
            unopened => unopened.insert(Lines::open(&self.path, self.start.0, self.start.1, &self.files)?),
        };
        let mut read = 0;
        while self.decoder.rows() < max_rows {
            match lines.peek() {
                Peek::Line(line) => {
                    let mut text = &lines.bytes()[line.clone()];
                    if lines.offset() == 0 {
                        text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
                    }
                    if !text.is_empty()
                        && text != b"\r"
                        && let Err(e) = self.decoder.push(text)
                    {
                        // Rows before a bad line are handed out first, so that the batch size changes nothing.
                        if self.decoder.rows() > 0 {
                            break;
                        }
                        return Err(e.at(lines.place(lines.line() + 1)));
                    }
                    lines.advance(line);
                }
                Peek::More if read >= BYTES_A_POLL && self.decoder.rows() > 0 => break,
                Peek::More => read += lines.fill()?,
                Peek::End if self.decoder.rows() == 0 => return Ok(Read::End),
                Peek::End => break,
            }
        }
        self.decoder.take().map(Read::Batch)
    }
}

impl SplitReader for FileReader {
    fn poll_next(&mut self, _: &mut Context<'_>, max_rows: usize) -> Poll<Result<Read>> {
        let read = self.next(max_rows.max(1));
        if let Some(lines) = &self.lines {
            self.gauges.0.store(lines.offset() - self.start.0, Ordering::Relaxed);
        }
        if self.files.crowded()
            && let Some(lines) = &mut self.lines
        {
            lines.rest();
        }
        Poll::Ready(read)
    }

    fn position(&self) -> Position {
        let (offset, line) = self.lines.as_ref().map_or(self.start, |l| (l.offset(), l.line()));
        Position { offset, detail: line.to_le_bytes().to_vec() }
    }

    fn gauges(&self) -> Option<Arc<dyn SplitGauges>> {
        Some(self.gauges.clone())
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
