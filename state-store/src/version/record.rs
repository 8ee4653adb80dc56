//! The bytes of a version record: `MSVR`, format u16, CRC32C u32 of the payload, payload (protobuf). Little endian.

use millstream_common::hash::HASH_ID;
use millstream_common::planted::bug_is_planted;
use millstream_common::{Error, Result, VersionNumber};
use millstream_proto::version::VersionRecord;

use super::sealed::Seal;
use crate::key::KEY_CODEC_ID;

const SEAL: Seal = Seal { magic: *b"MSVR", format: 1, what: "version record", code: 4006 };

/// The bytes of a record's object.
#[must_use]
pub fn encode_record(record: &VersionRecord) -> Vec<u8> {
    SEAL.close(record)
}

/// The record in an object's bytes, as it is stored: perhaps a delta. The caller adds which object.
pub fn decode_record(bytes: &[u8]) -> Result<VersionRecord> {
    SEAL.open(bytes)
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
    // A planted bug: state is read whatever it was hashed with.
    if (record.hash_id, record.key_codec_id) == (HASH_ID, KEY_CODEC_ID) || bug_is_planted(22) {
        return Ok(());
    }
    Err(Error::config(format!(
        "the state was written with hash {} and key codec {}, this program has hash {HASH_ID} and key codec {KEY_CODEC_ID}",
        record.hash_id, record.key_codec_id
    ))
    .code(1207)
    .next("run the job with the release that wrote its state"))
}
