//! From stream elements to frames.
//!
//! [`Pending`] gathers the frames of one write: small pieces are copied together, the great buffers of a batch go to
//! the socket from where they are. [`Encoder`] knows what the connection has said already (its schema).

use std::io::IoSlice;
use std::ops::Range;

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_ipc::writer::StreamEncoder;
use arrow_schema::SchemaRef;
use millstream_common::{Error, Execution, Result};

use super::frame::{FLAG_SCHEMA, FrameKind, HEADER_BYTES, encode_barrier, open_header, seal};
use super::ipc_schema::check_sendable;
use crate::element::StreamElement;

/// Buffers up to this size are copied: one more entry in the system call costs as much.
const COPY_BYTES_MAX: usize = 4 << 10;

/// Turns the elements of one connection into frames, in order.
pub(super) struct Encoder {
    execution: Execution,
    payload_bytes_max: usize,
    /// The schema that the peer has, and what encodes batches of it.
    ipc: Option<(SchemaRef, StreamEncoder)>,
}

impl Encoder {
    /// Batches whose payload would be longer than `payload_bytes_max` go as several.
    pub(super) fn new(execution: Execution, payload_bytes_max: usize) -> Self {
        Self { execution, payload_bytes_max, ipc: None }
    }

    /// Appends the frames of `element`.
    pub(super) fn encode(&mut self, element: &StreamElement, out: &mut Pending) -> Result<()> {
        match element {
            StreamElement::Batch(batch) => self.encode_batch(batch, out),
            StreamElement::Watermark(time) => {
                out.push_frame(self.execution, FrameKind::Watermark, &time.to_le_bytes());
                Ok(())
            }
            StreamElement::Idle => {
                out.push_frame(self.execution, FrameKind::Idle, &[]);
                Ok(())
            }
            StreamElement::Barrier(barrier) => {
                let payload = encode_barrier(barrier);
                if payload.len() > self.payload_bytes_max {
                    return Err(too_long(payload.len()));
                }
                out.push_frame(self.execution, FrameKind::Barrier, &payload);
                Ok(())
            }
        }
    }

    fn encode_batch(&mut self, batch: &RecordBatch, out: &mut Pending) -> Result<()> {
        // Most batches of a channel share one schema by pointer.
        let known = self.ipc.as_ref().is_some_and(|(schema, _)| {
            std::sync::Arc::ptr_eq(schema, batch.schema_ref()) || schema == batch.schema_ref()
        });
        let encoding = |e| Error::internal("a batch cannot be encoded").code(9121).source(e);
        if !known {
            check_sendable(batch.schema_ref())?;
            let encoder = StreamEncoder::try_new(batch.schema_ref()).map_err(encoding)?;
            self.ipc = Some((batch.schema(), encoder));
        }
        let Some((_, encoder)) = &mut self.ipc else { return Ok(()) };
        let pieces = encoder.encode(batch).map_err(encoding)?;
        let length: usize = pieces.iter().map(Buffer::len).sum();
        if length > self.payload_bytes_max {
            // What was encoded is dropped; the halves bring the schema again.
            self.ipc = None;
            return self.encode_halves(batch, length, out);
        }
        let flags = if known { 0 } else { FLAG_SCHEMA };
        let mut header = open_header(length as u32, FrameKind::Batch, flags, self.execution);
        seal(&mut header, pieces.iter().map(Buffer::as_slice));
        out.frames += 1;
        out.copy(&header);
        pieces.into_iter().for_each(|piece| out.push(piece));
        Ok(())
    }

    fn encode_halves(&mut self, batch: &RecordBatch, length: usize, out: &mut Pending) -> Result<()> {
        let rows = batch.num_rows();
        if rows < 2 {
            return Err(too_long(length));
        }
        self.encode_batch(&batch.slice(0, rows / 2), out)?;
        self.encode_batch(&batch.slice(rows / 2, rows - rows / 2), out)
    }
}

fn too_long(length: usize) -> Error {
    Error::data(format!("one row or barrier takes {length} bytes, too many for a frame")).code(3120)
}

/// Frames that wait to be written.
#[derive(Default)]
pub(super) struct Pending {
    /// Pieces that were copied, one behind the other.
    copied: Vec<u8>,
    parts: Vec<Part>,
    bytes: usize,
    frames: usize,
    /// How much of the first unwritten part is written, and which one that is.
    first_part: usize,
    first_bytes: usize,
}

enum Part {
    Copied(Range<usize>),
    Whole(Buffer),
}

impl Pending {
    /// Bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Frames that were put in since all had been written.
    pub(super) fn frames(&self) -> usize {
        self.frames
    }

    fn push_frame(&mut self, execution: Execution, kind: FrameKind, payload: &[u8]) {
        let mut header = open_header(payload.len() as u32, kind, 0, execution);
        seal(&mut header, [payload]);
        debug_assert_eq!(header.len(), HEADER_BYTES);
        self.frames += 1;
        self.copy(&header);
        self.copy(payload);
    }

    fn push(&mut self, piece: Buffer) {
        if piece.len() <= COPY_BYTES_MAX {
            self.copy(&piece);
        } else {
            self.bytes += piece.len();
            self.parts.push(Part::Whole(piece));
        }
    }

    fn copy(&mut self, piece: &[u8]) {
        let start = self.copied.len();
        self.copied.extend_from_slice(piece);
        self.bytes += piece.len();
        match self.parts.last_mut() {
            Some(Part::Copied(range)) => range.end = self.copied.len(),
            _ => self.parts.push(Part::Copied(start..self.copied.len())),
        }
    }

    fn part(&self, index: usize) -> &[u8] {
        match &self.parts[index] {
            Part::Copied(range) => &self.copied[range.clone()],
            Part::Whole(buffer) => buffer,
        }
    }

    /// Fills `slices` from the front with what waits; says how many it filled.
    pub(super) fn fill<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let parts = (self.first_part..self.parts.len()).zip(slices.iter_mut());
        let mut filled = 0;
        for (index, slice) in parts {
            let skipped = if index == self.first_part { self.first_bytes } else { 0 };
            *slice = IoSlice::new(&self.part(index)[skipped..]);
            filled += 1;
        }
        filled
    }

    /// `written` more bytes are written. Everything is free again once none waits.
    pub(super) fn advance(&mut self, mut written: usize) {
        self.bytes = self.bytes.saturating_sub(written);
        if self.bytes == 0 {
            self.clear();
            return;
        }
        while written > 0 && self.first_part < self.parts.len() {
            let left = self.part(self.first_part).len() - self.first_bytes;
            if written < left {
                self.first_bytes += written;
                return;
            }
            written -= left;
            self.first_part += 1;
            self.first_bytes = 0;
        }
    }

    fn clear(&mut self) {
        self.copied.clear();
        self.parts.clear();
        (self.bytes, self.frames, self.first_part, self.first_bytes) = (0, 0, 0, 0);
    }
}
