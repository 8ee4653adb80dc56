//! The fixed header of a frame, and the bodies of the elements that are no batch (docs/wire.md).
//!
//! Nothing here waits or allocates by what a peer says: lengths are checked first.

use std::sync::Arc;

use millstream_common::{Epoch, Error, Execution, Result};
use millstream_proto::version;
use prost::Message;

use crate::convert::{assignment_from_proto, assignment_to_proto};
use crate::element::{Barrier, BarrierKind, StreamElement};

/// Bytes of a header.
pub(super) const HEADER_BYTES: usize = 20;
/// Bytes of the header that its checksum covers (all before the checksum itself).
const CHECKED_BYTES: usize = 16;
/// The longest payload that is sent or taken, bytes.
pub(super) const PAYLOAD_BYTES_MAX: usize = 256 << 20;
/// On a batch: its payload begins with the schema, which holds until the next one.
pub(super) const FLAG_SCHEMA: u8 = 1;

/// What a frame carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum FrameKind {
    Batch = 1,
    Watermark = 2,
    Idle = 3,
    Barrier = 4,
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Bytes of the payload.
    pub(super) length: u32,
    pub(super) kind: FrameKind,
    pub(super) flags: u8,
    pub(super) execution: Execution,
    /// CRC32C of the header's first 16 bytes and the payload.
    checksum: u32,
}

/// The checksum of a frame from its header's bytes and the pieces of its payload.
pub(super) fn checksum<'a>(header: &[u8], payload: impl IntoIterator<Item = &'a [u8]>) -> u32 {
    let checked = header.get(..CHECKED_BYTES).unwrap_or(header);
    payload.into_iter().fold(crc32c::crc32c(checked), crc32c::crc32c_append)
}

/// The bytes of a header whose checksum is still 0; see [`seal`].
pub(super) fn open_header(length: u32, kind: FrameKind, flags: u8, execution: Execution) -> [u8; HEADER_BYTES] {
    let mut bytes = [0; HEADER_BYTES];
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    bytes[4] = kind as u8;
    bytes[5] = flags;
    bytes[8..16].copy_from_slice(&execution.0.to_le_bytes());
    bytes
}

/// Writes the checksum of the whole frame into its header.
pub(super) fn seal<'a>(header: &mut [u8; HEADER_BYTES], payload: impl IntoIterator<Item = &'a [u8]>) {
    let sum = checksum(header, payload);
    header[CHECKED_BYTES..].copy_from_slice(&sum.to_le_bytes());
}

impl Header {
    /// Reads a header. Corrupt when no frame begins so, fenced when it is of another execution than `expected`.
    pub(super) fn parse(bytes: &[u8; HEADER_BYTES], expected: Execution) -> Result<Self> {
        let [l0, l1, l2, l3, kind, flags, r0, r1, execution @ .., s0, s1, s2, s3] = *bytes;
        let length = u32::from_le_bytes([l0, l1, l2, l3]);
        let kind = match kind {
            1 => FrameKind::Batch,
            2 => FrameKind::Watermark,
            3 => FrameKind::Idle,
            4 => FrameKind::Barrier,
            other => return Err(bad(format!("a frame of unknown kind {other}"))),
        };
        let flags_known = if kind == FrameKind::Batch { FLAG_SCHEMA } else { 0 };
        if flags & !flags_known != 0 || r0 | r1 != 0 {
            return Err(bad(format!("a frame of kind {kind:?} with unknown flags {flags:#x}, {r0:#x}, {r1:#x}")));
        }
        if length as usize > PAYLOAD_BYTES_MAX {
            return Err(bad(format!("a frame of {length} bytes, {PAYLOAD_BYTES_MAX} is the most")));
        }
        let execution = Execution(u64::from_le_bytes(execution));
        if execution != expected {
            let what = format!("a frame of execution {execution} on a connection of execution {expected}");
            return Err(Error::fenced(what).code(5120));
        }
        Ok(Self { length, kind, flags, execution, checksum: u32::from_le_bytes([s0, s1, s2, s3]) })
    }

    /// Whether `payload` came as it was sent. `bytes` is this header.
    pub(super) fn check(&self, bytes: &[u8; HEADER_BYTES], payload: &[u8]) -> Result<()> {
        let sum = checksum(bytes, [payload]);
        if sum == self.checksum {
            return Ok(());
        }
        let what = format!("a frame's checksum is {sum:#010x}, its header says {:#010x}", self.checksum);
        Err(Error::corrupt(what).code(4123))
    }
}

/// A frame that cannot be.
pub(super) fn bad(what: impl Into<String>) -> Error {
    Error::corrupt(what).code(4122)
}

const CHECKPOINT: u8 = 1;
const LAST: u8 = 2;
const RESCALE: u8 = 3;

/// The payload of a barrier: epoch, kind, and an assignment behind the kind that has one.
pub(super) fn encode_barrier(barrier: &Barrier) -> Vec<u8> {
    let mut out = barrier.epoch.0.to_le_bytes().to_vec();
    match &barrier.kind {
        BarrierKind::Checkpoint => out.push(CHECKPOINT),
        BarrierKind::Last => out.push(LAST),
        BarrierKind::Rescale(assignment) => {
            out.push(RESCALE);
            out.extend_from_slice(&assignment_to_proto(assignment).encode_to_vec());
        }
    }
    out
}

/// Reads the payload of an element that is no batch.
pub(super) fn decode_small(kind: FrameKind, payload: &[u8]) -> Result<StreamElement> {
    match kind {
        FrameKind::Watermark => {
            let time = payload.try_into().map_err(|_| bad("a watermark that has not 8 bytes"))?;
            Ok(StreamElement::Watermark(i64::from_le_bytes(time)))
        }
        FrameKind::Idle if payload.is_empty() => Ok(StreamElement::Idle),
        FrameKind::Idle => Err(bad("an idle mark with a payload")),
        FrameKind::Barrier => decode_barrier(payload).map(StreamElement::Barrier),
        FrameKind::Batch => Err(Error::internal("a batch is decoded elsewhere").code(9120)),
    }
}

fn decode_barrier(payload: &[u8]) -> Result<Barrier> {
    let Some((epoch, [kind, rest @ ..])) = payload.split_first_chunk::<8>() else {
        return Err(bad("a barrier of less than 9 bytes"));
    };
    let kind = match (*kind, rest) {
        (CHECKPOINT, []) => BarrierKind::Checkpoint,
        (LAST, []) => BarrierKind::Last,
        (RESCALE, message) => {
            let message = version::Assignment::decode(message)
                .map_err(|e| bad("a barrier whose assignment cannot be read").source(e))?;
            BarrierKind::Rescale(Arc::new(assignment_from_proto(&message)?))
        }
        (other, _) => return Err(bad(format!("a barrier of kind {other} with {} bytes more", rest.len()))),
    };
    Ok(Barrier { epoch: Epoch(u64::from_le_bytes(*epoch)), kind })
}
