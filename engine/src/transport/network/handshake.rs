//! What both ends say before the first frame of a data connection (docs/wire.md).
//!
//! The connecting end sends its [`ChannelKey`]; the other takes it, and answers once the connection stands in its
//! queue of arrivals. Behind the answer, only grants go from the taking end to the connecting one.

use millstream_common::{AssignmentId, Error, Execution, Generation, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::transport::ChannelKey;

/// First bytes of a data connection, both ways.
const MAGIC: [u8; 4] = *b"MSDX";
/// Rises when frames or handshake change.
const PROTOCOL: u16 = 2;
/// Magic, protocol, body length, checksum of the body.
const HEAD_BYTES: usize = 12;
/// Numbers of the body, before the job's id.
const NUMBERS_BYTES: usize = 36;
/// The longest id of a job, bytes.
const JOB_BYTES_MAX: usize = 1024;
/// Bytes of the answer.
const ANSWER_BYTES: usize = 8;

/// What the taking end answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Answer {
    /// Frames may come.
    Taken = 0,
    /// It speaks another protocol.
    OtherProtocol = 1,
    /// The worker takes no more connections.
    Closed = 2,
}

/// What went wrong with a handshake that was read.
pub(super) enum Refusal {
    /// The peer is one of ours with another protocol, and deserves an answer.
    OtherProtocol(Error),
    /// Anybody else.
    Bad(Error),
}

fn bad(what: impl Into<String>) -> Error {
    Error::corrupt(what).code(4124)
}

/// The bytes that open a connection.
pub(super) fn encode(key: &ChannelKey) -> Result<Vec<u8>> {
    if key.job.len() > JOB_BYTES_MAX {
        let what = format!("a job's id has {} bytes, {JOB_BYTES_MAX} is the most", key.job.len());
        return Err(Error::config(what).code(1123));
    }
    let mut body = Vec::with_capacity(NUMBERS_BYTES + key.job.len());
    for n in [key.generation.0, key.execution.0, key.assignment.0] {
        body.extend_from_slice(&n.to_le_bytes());
    }
    for n in [key.edge, key.from, key.to] {
        body.extend_from_slice(&n.to_le_bytes());
    }
    body.extend_from_slice(key.job.as_bytes());
    let mut out = Vec::with_capacity(HEAD_BYTES + body.len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&PROTOCOL.to_le_bytes());
    out.extend_from_slice(&(body.len() as u16).to_le_bytes());
    out.extend_from_slice(&crc32c::crc32c(&body).to_le_bytes());
    out.extend_from_slice(&body);
    Ok(out)
}

/// Reads what opens a connection. Reads nothing behind it.
pub(super) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<ChannelKey, Refusal> {
    let io = |e| Refusal::Bad(bad("the peer broke off its handshake").source(e));
    let mut head = [0; HEAD_BYTES];
    stream.read_exact(&mut head).await.map_err(io)?;
    let [m0, m1, m2, m3, p0, p1, l0, l1, s0, s1, s2, s3] = head;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(Refusal::Bad(bad("the peer is no Millstream worker: its first bytes are others")));
    }
    let protocol = u16::from_le_bytes([p0, p1]);
    if protocol != PROTOCOL {
        let what = format!("the peer speaks version {protocol} of the data protocol, this worker {PROTOCOL}");
        return Err(Refusal::OtherProtocol(bad(what)));
    }
    let length = usize::from(u16::from_le_bytes([l0, l1]));
    if !(NUMBERS_BYTES..=NUMBERS_BYTES + JOB_BYTES_MAX).contains(&length) {
        return Err(Refusal::Bad(bad(format!("a handshake of {length} bytes"))));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.map_err(io)?;
    if crc32c::crc32c(&body) != u32::from_le_bytes([s0, s1, s2, s3]) {
        return Err(Refusal::Bad(bad("the checksum of the handshake differs")));
    }
    decode_body(&body).map_err(Refusal::Bad)
}

fn decode_body(mut body: &[u8]) -> Result<ChannelKey> {
    let mut take = |bytes: usize| {
        let (number, rest) = body.split_at_checked(bytes).ok_or_else(|| bad("a handshake that is too short"))?;
        body = rest;
        Ok::<u64, Error>(number.iter().rev().fold(0, |n, &byte| n << 8 | u64::from(byte)))
    };
    let generation = Generation(take(8)?);
    let execution = Execution(take(8)?);
    let assignment = AssignmentId(take(8)?);
    let (edge, from, to) = (take(4)? as u32, take(4)? as u32, take(4)? as u32);
    let job = std::str::from_utf8(body).map_err(|e| bad("a job's id that is no text").source(e))?.to_owned();
    Ok(ChannelKey { job, generation, execution, assignment, edge, from, to })
}

/// Answers a handshake.
pub(super) async fn answer(stream: &mut (impl AsyncWrite + Unpin), answer: Answer) -> std::io::Result<()> {
    let mut bytes = [0; ANSWER_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4..6].copy_from_slice(&PROTOCOL.to_le_bytes());
    bytes[6..].copy_from_slice(&(answer as u16).to_le_bytes());
    stream.write_all(&bytes).await
}

/// Waits for the answer; an error says why the peer takes no frames.
pub(super) async fn read_answer(stream: &mut (impl AsyncRead + Unpin)) -> Result<()> {
    let mut bytes = [0; ANSWER_BYTES];
    let closed =
        |e| Error::unavailable("the worker closed the data connection before it answered").code(2122).source(e);
    stream.read_exact(&mut bytes).await.map_err(closed)?;
    let [m0, m1, m2, m3, p0, p1, a0, a1] = bytes;
    let protocol = u16::from_le_bytes([p0, p1]);
    match u16::from_le_bytes([a0, a1]) {
        _ if [m0, m1, m2, m3] != MAGIC => Err(Error::unavailable("what answers is no Millstream worker")
            .code(2122)
            .next("check --advertise of the workers")),
        0 if protocol == PROTOCOL => Ok(()),
        0 | 1 => {
            let what = format!("the worker speaks version {protocol} of the data protocol, this one {PROTOCOL}");
            Err(Error::unavailable(what).code(2123).next("run the same binary on all workers"))
        }
        _ => Err(Error::unavailable("the worker takes no more data connections").code(2122)),
    }
}
