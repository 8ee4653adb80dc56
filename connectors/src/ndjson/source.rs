//! Files of JSON lines as a source.

use std::sync::Arc;
use std::task::{Context, Poll};

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use millstream_common::{Error, ErrorKind, Result};
use millstream_engine::source::{Position, Read, Source, Split, SplitEnumerator, SplitReader};

use super::lines::{Lines, Peek};
use super::splits::FileEnumerator;

/// Bytes that one call of `poll_next` reads at most, give or take a chunk.
const BYTES_A_POLL: usize = 1 << 20;

/// What the lines of a file mean.
pub trait LineFormat: Send + Sync {
    /// The columns of every batch.
    fn schema(&self) -> SchemaRef;
    /// A parser with no rows.
    fn parser(&self) -> Box<dyn LineParser>;
}

/// Collects lines as rows of a batch.
pub trait LineParser: Send {
    /// Adds the row of a line (without its line feed). On an error, which says what is wrong with the line and not
    /// where it stands, no row was added.
    fn push(&mut self, line: &[u8]) -> Result<()>;
    /// Rows added since the last `take`.
    fn rows(&self) -> usize;
    /// The rows as a batch; the parser is empty again.
    fn take(&mut self) -> Result<RecordBatch>;
}

/// A source that reads files of JSON lines, one split a file. The position of a split is the byte offset of its next
/// line (in a `.gz` file: of what it holds), its detail the number of lines before.
pub struct NdjsonSource {
    patterns: Vec<String>,
    format: Arc<dyn LineFormat>,
}

impl NdjsonSource {
    /// Reads the files that `patterns` name: paths, or patterns with `*`, `?` and `[...]`. Relative ones are meant
    /// from the process's working directory.
    #[must_use]
    pub fn new(patterns: Vec<String>, format: Arc<dyn LineFormat>) -> Self {
        Self { patterns, format }
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
        Ok(Box::new(FileReader { lines: Lines::open(path, offset, line)?, parser: self.format.parser() }))
    }
}

struct FileReader {
    lines: Lines,
    parser: Box<dyn LineParser>,
}

impl FileReader {
    fn next(&mut self, max_rows: usize) -> Result<Read> {
        let mut read = 0;
        while self.parser.rows() < max_rows {
            match self.lines.peek() {
                Peek::Line(line) => {
                    let text = &self.lines.bytes()[line.clone()];
                    if !text.is_empty()
                        && text != b"\r"
                        && let Err(e) = self.parser.push(text)
                    {
                        // Rows before a bad line are handed out first, so that the batch size changes nothing.
                        if self.parser.rows() > 0 {
                            break;
                        }
                        return Err(e.at(self.lines.place(self.lines.line() + 1)));
                    }
                    self.lines.advance(line);
                }
                Peek::More if read >= BYTES_A_POLL && self.parser.rows() > 0 => break,
                Peek::More => read += self.lines.fill()?,
                Peek::End if self.parser.rows() == 0 => return Ok(Read::End),
                Peek::End => break,
            }
        }
        self.parser.take().map(Read::Batch)
    }
}

impl SplitReader for FileReader {
    fn poll_next(&mut self, _: &mut Context<'_>, max_rows: usize) -> Poll<Result<Read>> {
        Poll::Ready(self.next(max_rows.max(1)))
    }

    fn position(&self) -> Position {
        Position { offset: self.lines.offset(), detail: self.lines.line().to_le_bytes().to_vec() }
    }
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
