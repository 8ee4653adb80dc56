//! The lines of one file, in order, in bounded memory.
//!
//! Owns the file and a buffer. `peek` shows the next line as long as the buffer holds all of it; `fill` reads more;
//! `advance` goes past the line. The position is that of the next line: a byte offset in what the file holds
//! uncompressed, and how many lines came before. The file is closed as soon as its end was read, and may be closed
//! between two calls of `fill` by `rest`.

use std::io::{self, BufReader, ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;

use flate2::bufread::MultiGzDecoder;
use millstream_common::{Error, Result};

use super::files::{OpenFiles, RestingFile};

/// Bytes read at a time.
const CHUNK: usize = 256 << 10;
/// Bytes of a compressed file read at a time.
const COMPRESSED_CHUNK: usize = 64 << 10;
/// A line beyond this is taken for a file that has no lines.
const LONGEST_LINE: usize = 64 << 20;

pub(super) struct Lines {
    path: String,
    /// `None` once the file has ended.
    input: Option<Input>,
    buffer: Vec<u8>,
    /// Where the next line begins in the buffer.
    start: usize,
    /// Up to where the buffer was searched for the end of the next line.
    searched: usize,
    at_end: bool,
    offset: u64,
    line: u64,
}

enum Input {
    Plain(RestingFile),
    /// Far larger than the other, since it has a window of what came before.
    Gzip(Box<MultiGzDecoder<BufReader<RestingFile>>>),
}

impl Input {
    fn file(&mut self) -> &mut RestingFile {
        match self {
            Self::Plain(file) => file,
            Self::Gzip(decoder) => decoder.get_mut().get_mut(),
        }
    }
}

impl Read for Input {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(file) => file.read(into),
            Self::Gzip(decoder) => decoder.read(into),
        }
    }
}

/// What `peek` sees.
pub(super) enum Peek {
    /// A line without its line feed: this part of [`Lines::bytes`].
    Line(std::ops::Range<usize>),
    /// The buffer holds no whole line.
    More,
    /// The file has ended.
    End,
}

impl Lines {
    /// Opens `path` where `line` lines and `offset` bytes came before; `files` counts it as long as it is open.
    pub(super) fn open(path: &str, offset: u64, line: u64, files: &Arc<OpenFiles>) -> Result<Self> {
        let cannot_open = |e| failed(path, "cannot open the file", e);
        let (mut input, before) = if compressed(path) {
            let file = RestingFile::open(path, 0, files).map_err(cannot_open)?;
            let decoder = MultiGzDecoder::new(BufReader::with_capacity(COMPRESSED_CHUNK, file));
            (Input::Gzip(Box::new(decoder)), offset)
        } else {
            // The byte before a line is a line feed: read it too, and see whether this is still the same file.
            let start = offset.saturating_sub(1);
            (Input::Plain(RestingFile::open(path, start, files).map_err(cannot_open)?), offset - start)
        };
        let last = skip(&mut input, before).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => changed(path, offset),
            _ => failed(path, "cannot read the file", e),
        })?;
        let mut lines = Self {
            path: path.to_owned(),
            input: Some(input),
            buffer: Vec::new(),
            start: 0,
            searched: 0,
            at_end: false,
            offset,
            line,
        };
        // A last line may lack its line feed: then nothing may follow.
        if offset > 0 && last != Some(b'\n') {
            lines.fill()?;
            if !lines.at_end {
                return Err(changed(path, offset));
            }
        }
        Ok(lines)
    }

    /// Closes the file until it is read again.
    pub(super) fn rest(&mut self) {
        if let Some(input) = &mut self.input {
            input.file().rest();
        }
    }

    pub(super) fn offset(&self) -> u64 {
        self.offset
    }

    /// Lines before the next one.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer
    }

    pub(super) fn peek(&mut self) -> Peek {
        match memchr::memchr(b'\n', &self.buffer[self.searched..]) {
            Some(at) => {
                let end = self.searched + at;
                // Found again at once when the line is not taken.
                self.searched = end;
                Peek::Line(self.start..end)
            }
            None => {
                self.searched = self.buffer.len();
                match (self.at_end, self.start < self.buffer.len()) {
                    (false, _) => Peek::More,
                    (true, true) => Peek::Line(self.start..self.buffer.len()),
                    (true, false) => Peek::End,
                }
            }
        }
    }

    /// Goes past the line that `peek` showed.
    pub(super) fn advance(&mut self, line: std::ops::Range<usize>) {
        let next = (line.end + 1).min(self.buffer.len());
        self.offset += (next - self.start) as u64;
        self.line += 1;
        self.start = next;
        self.searched = next;
    }

    /// Reads more; says how many bytes.
    pub(super) fn fill(&mut self) -> Result<usize> {
        if self.buffer.len() - self.start > LONGEST_LINE {
            return Err(Error::data(format!("a line of more than {} MiB", LONGEST_LINE >> 20))
                .code(3002)
                .at(self.place(self.line + 1))
                .next("give a file with one JSON object a line"));
        }
        self.buffer.drain(..self.start);
        self.searched -= self.start;
        self.start = 0;
        let read = self.read_chunk()?;
        if read == 0 {
            // Many files may have been read to their end before their last rows are handed out.
            self.at_end = true;
            self.input = None;
            self.buffer.shrink_to_fit();
        }
        Ok(read)
    }

    fn read_chunk(&mut self) -> Result<usize> {
        let Some(input) = &mut self.input else { return Ok(0) };
        if !input.file().wake().map_err(|e| failed(&self.path, "cannot open the file", e))? {
            return Err(replaced(&self.path));
        }
        let len = self.buffer.len();
        self.buffer.resize(len + CHUNK, 0);
        let read = loop {
            match input.read(&mut self.buffer[len..]) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.buffer.truncate(len + *read.as_ref().unwrap_or(&0));
        read.map_err(|e| failed(&self.path, "cannot read the file", e).at(self.place(self.line + 1)))
    }

    /// How errors name line `line`, counted from 1.
    pub(super) fn place(&self, line: u64) -> String {
        format!("{} line {line}", self.path)
    }
}

fn compressed(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|e| e.eq_ignore_ascii_case("gz"))
}

/// Reads `count` bytes and gives the last of them.
fn skip(input: &mut dyn Read, count: u64) -> io::Result<Option<u8>> {
    let mut rest = count;
    let mut last = None;
    let mut chunk = vec![0; rest.min(CHUNK as u64) as usize];
    while rest > 0 {
        let part = rest.min(chunk.len() as u64) as usize;
        input.read_exact(&mut chunk[..part])?;
        last = Some(chunk[part - 1]);
        rest -= part as u64;
    }
    Ok(last)
}

fn changed(path: &str, offset: u64) -> Error {
    Error::data(format!("the file is not the one that was read before: no line begins at byte {offset}"))
        .code(3003)
        .at(path)
        .next("put the file back as it was; lines may only be appended")
}

fn replaced(path: &str) -> Error {
    Error::data("another file was put at the place of the one that is being read")
        .code(3003)
        .at(path)
        .next("put the file back as it was; lines may only be appended")
}

/// What is wrong with the bytes is an error of data; what is wrong with getting at them may pass.
fn failed(path: &str, what: &str, error: io::Error) -> Error {
    let base = match error.kind() {
        ErrorKind::NotFound | ErrorKind::PermissionDenied | ErrorKind::IsADirectory => Error::config(what).code(1304),
        ErrorKind::InvalidInput | ErrorKind::InvalidData | ErrorKind::UnexpectedEof if compressed(path) => {
            Error::data("the file is damaged or is not compressed by gzip").code(3004)
        }
        _ => Error::unavailable(what).code(2401),
    };
    base.at(path).source(error)
}
