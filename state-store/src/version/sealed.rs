//! The envelope of small objects: magic, format u16, CRC32C u32 of the payload, payload (protobuf). Little endian.

use millstream_common::{Error, Result};
use prost::Message;

const HEAD_BYTES: usize = 10;

/// What an envelope holds, for its bytes and for messages.
pub(super) struct Seal {
    pub(super) magic: [u8; 4],
    pub(super) format: u16,
    /// As in "a version record".
    pub(super) what: &'static str,
    /// The number of the error that says that it cannot be read.
    pub(super) code: u16,
}

impl Seal {
    /// The bytes of a message's object.
    pub(super) fn close(&self, message: &impl Message) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD_BYTES + message.encoded_len());
        out.extend_from_slice(&self.magic);
        out.extend_from_slice(&self.format.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        message.encode_raw(&mut out);
        let checksum = crc32c::crc32c(&out[HEAD_BYTES..]);
        out[6..HEAD_BYTES].copy_from_slice(&checksum.to_le_bytes());
        out
    }

    /// The message in an object's bytes. The caller adds which object.
    pub(super) fn open<M: Message + Default>(&self, bytes: &[u8]) -> Result<M> {
        let damaged = |why: &str| self.damaged(why);
        let (head, payload) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or_else(|| damaged("it is too short"))?;
        if head[..4] != self.magic {
            return Err(damaged(&format!("it does not begin with {}", String::from_utf8_lossy(&self.magic))));
        }
        let format = u16::from_le_bytes([head[4], head[5]]);
        if format != self.format {
            return Err(damaged(&format!("its format is {format}, this program reads {}", self.format)));
        }
        if crc32c::crc32c(payload) != u32::from_le_bytes([head[6], head[7], head[8], head[9]]) {
            return Err(damaged("it does not match its checksum"));
        }
        M::decode(payload).map_err(|e| damaged(&format!("it is no {}", self.what)).source(e))
    }

    pub(super) fn damaged(&self, why: &str) -> Error {
        Error::corrupt(format!("a {} cannot be read: {why}", self.what))
            .code(self.code)
            .next("the object is damaged or is not the one that was written: `millstream fsck` shows what else is")
    }
}
