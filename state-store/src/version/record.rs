//! The bytes of a version record: `MSVR`, format u16, CRC32C u32 of the payload, payload (protobuf). Little endian.

use millstream_common::hash::HASH_ID;
use millstream_common::{Error, Result, VersionNumber};
use millstream_proto::version::VersionRecord;
use prost::Message;

use crate::key::KEY_CODEC_ID;

const MAGIC: [u8; 4] = *b"MSVR";
const FORMAT: u16 = 1;
const HEAD_BYTES: usize = 10;

/// The bytes of a record's object.
#[must_use]
pub fn encode_record(record: &VersionRecord) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + record.encoded_len());
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&FORMAT.to_le_bytes());
    out.extend_from_slice(&[0; 4]);
    record.encode_raw(&mut out);
    let checksum = crc32c::crc32c(&out[HEAD_BYTES..]);
    out[6..HEAD_BYTES].copy_from_slice(&checksum.to_le_bytes());
    out
}

/// The record in an object's bytes. The caller adds which object.
pub fn decode_record(bytes: &[u8]) -> Result<VersionRecord> {
    let damaged = |why: &str| {
        Error::corrupt(format!("a version record cannot be read: {why}"))
            .code(4006)
            .next("the object is damaged or is not the one that was written: `millstream fsck` shows what else is")
    };
    let (head, payload) = bytes.split_first_chunk::<HEAD_BYTES>().ok_or_else(|| damaged("it is too short"))?;
    if head[..4] != MAGIC {
        return Err(damaged("it does not begin with MSVR"));
    }
    let format = u16::from_le_bytes([head[4], head[5]]);
    if format != FORMAT {
        return Err(damaged(&format!("its format is {format}, this program reads {FORMAT}")));
    }
    if crc32c::crc32c(payload) != u32::from_le_bytes([head[6], head[7], head[8], head[9]]) {
        return Err(damaged("it does not match its checksum"));
    }
    VersionRecord::decode(payload).map_err(|e| damaged("it is no version record").source(e))
}

/// As [`decode_record`], for the object of this number.
pub(super) fn decode_numbered(bytes: &[u8], number: VersionNumber) -> Result<VersionRecord> {
    let record = decode_record(bytes)?;
    if record.number == number.0 {
        return Ok(record);
    }
    let found = record.number;
    let what = format!(
        "the object of version {number} holds the record of version {found}: its checksum is right, its place is not"
    );
    Err(Error::corrupt(what).code(4006))
}

/// Refuses a record whose keys were hashed or encoded in another way than this program does: it would look for every
/// key in the wrong place.
pub fn check_compatible(record: &VersionRecord) -> Result<()> {
    if (record.hash_id, record.key_codec_id) == (HASH_ID, KEY_CODEC_ID) {
        return Ok(());
    }
    Err(Error::config(format!(
        "the state was written with hash {} and key codec {}, this program has hash {HASH_ID} and key codec {KEY_CODEC_ID}",
        record.hash_id, record.key_codec_id
    ))
    .code(1207)
    .next("run the job with the release that wrote its state"))
}
