//! The records of an epoch, kept with the version until their commit is confirmed: a transaction that the broker gave up is
//! written again from them.
//!
//! A copy is a list of parts, each an object: 8 bytes head (`MSKC`, the form 1, three zeros), 4 bytes CRC-32C of what follows, 4
//! bytes length before compression (both little-endian), and records one after the other, compressed as one block of LZ4.
//!
//! A record: 1 byte that says what is there (1 partition, 2 time stamp, 4 key, 8 value), the topic, partition (4 bytes), time
//! stamp (8), key, value, number of headers (2), and for each its name, 1 byte whether it has a value, and that. Names have
//! their length before them in 2 bytes, keys and values in 4; numbers are little-endian.

use bytes::Bytes;
use lz4_flex::block::{compress, decompress};
use millstream_common::{Error, Result};
use millstream_engine::sink::{KeptObject, SinkObjects};

use super::produce::Outgoing;
use super::records::Made;

/// A part ends behind the batch that makes it so large, before compression.
const PART_BYTES: usize = 4 << 20;

const HEAD: [u8; 8] = *b"MSKC\x01\0\0\0";

const PARTITION: u8 = 1;
const TIMESTAMP: u8 = 2;
const KEY: u8 = 4;
const VALUE: u8 = 8;

/// A copy that is being made.
pub(super) struct Copy {
    objects: SinkObjects,
    records: Vec<u8>,
    parts: Vec<KeptObject>,
}

impl Copy {
    pub(super) fn new(objects: SinkObjects) -> Self {
        Self { objects, records: Vec::new(), parts: Vec::new() }
    }

    /// Takes the records of a batch.
    pub(super) fn add(&mut self, made: &Made<'_>) -> Result<()> {
        made.send_from(0, |record| encode(record, &mut self.records).map(|()| true))?;
        Ok(())
    }

    /// Writes what there is when it is enough for a part.
    pub(super) async fn write_full(&mut self) -> Result<()> {
        if self.records.len() >= PART_BYTES { self.write().await } else { Ok(()) }
    }

    /// Writes the rest, and says where all of it is.
    pub(super) async fn finish(mut self) -> Result<Vec<KeptObject>> {
        if !self.records.is_empty() {
            self.write().await?;
        }
        Ok(self.parts)
    }

    async fn write(&mut self) -> Result<()> {
        let body = part(&self.records)?;
        self.records.clear();
        self.parts.push(self.objects.put(body).await?);
        Ok(())
    }
}

fn part(records: &[u8]) -> Result<Bytes> {
    let length = u32::try_from(records.len()).map_err(|_| too_long("a batch of records"))?;
    let block = compress(records);
    let mut out = Vec::with_capacity(HEAD.len() + 8 + block.len());
    out.extend_from_slice(&HEAD);
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(&block);
    let checksum = crc32c::crc32c(&out[HEAD.len() + 4..]);
    out[HEAD.len()..HEAD.len() + 4].copy_from_slice(&checksum.to_le_bytes());
    Ok(out.into())
}

/// The records of a part, to be read by [`Reader`].
pub(super) fn records(part: &[u8]) -> Result<Vec<u8>> {
    let rest = part.strip_prefix(&HEAD).ok_or_else(|| damaged("it begins otherwise"))?;
    let (checksum, rest) = rest.split_first_chunk().ok_or_else(|| damaged("it is too short"))?;
    if crc32c::crc32c(rest) != u32::from_le_bytes(*checksum) {
        return Err(damaged("its checksum is another one"));
    }
    let (length, block) = rest.split_first_chunk().ok_or_else(|| damaged("it is too short"))?;
    decompress(block, u32::from_le_bytes(*length) as usize).map_err(|e| damaged("it cannot be decompressed").source(e))
}

fn damaged(how: &str) -> Error {
    Error::corrupt(format!("a copy of records that wait for their commit cannot be read: {how}")).code(4332)
}

fn too_long(what: &str) -> Error {
    Error::data(format!("{what} is too long for a copy")).code(3334)
}

fn encode(record: &Outgoing<'_>, out: &mut Vec<u8>) -> Result<()> {
    let bit = |there: bool, bit: u8| if there { bit } else { 0 };
    out.push(
        bit(record.partition.is_some(), PARTITION)
            | bit(record.timestamp.is_some(), TIMESTAMP)
            | bit(record.key.is_some(), KEY)
            | bit(record.value.is_some(), VALUE),
    );
    name(record.topic, out)?;
    record.partition.iter().for_each(|p| out.extend_from_slice(&p.to_le_bytes()));
    record.timestamp.iter().for_each(|t| out.extend_from_slice(&t.to_le_bytes()));
    for field in [record.key, record.value].into_iter().flatten() {
        bytes(field, out)?;
    }
    let headers = u16::try_from(record.headers.len()).map_err(|_| too_long("the list of a record's headers"))?;
    out.extend_from_slice(&headers.to_le_bytes());
    for (header, value) in record.headers {
        name(header, out)?;
        out.push(value.is_some().into());
        if let Some(value) = value {
            bytes(value, out)?;
        }
    }
    Ok(())
}

fn name(text: &str, out: &mut Vec<u8>) -> Result<()> {
    let length = u16::try_from(text.len()).map_err(|_| too_long("the name of a topic or header"))?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

fn bytes(field: &[u8], out: &mut Vec<u8>) -> Result<()> {
    let length = u32::try_from(field.len()).map_err(|_| too_long("a key or value"))?;
    out.extend_from_slice(&length.to_le_bytes());
    out.extend_from_slice(field);
    Ok(())
}

/// A record of a copy.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Copied<'a> {
    topic: &'a str,
    partition: Option<i32>,
    key: Option<&'a [u8]>,
    value: Option<&'a [u8]>,
    timestamp: Option<i64>,
    headers: Vec<(&'a str, Option<&'a [u8]>)>,
}

impl Copied<'_> {
    /// As it was first sent.
    pub(super) fn outgoing(&self) -> Outgoing<'_> {
        Outgoing {
            topic: self.topic,
            partition: self.partition,
            key: self.key,
            value: self.value,
            timestamp: self.timestamp,
            headers: &self.headers,
        }
    }
}

/// Reads records one after the other.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// `records`: of one part.
    pub(super) fn new(records: &'a [u8]) -> Self {
        Self(records)
    }

    /// The next record; `None` behind the last.
    pub(super) fn next(&mut self) -> Result<Option<Copied<'a>>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        self.record().map(Some).ok_or_else(|| damaged("a record ends too soon"))
    }

    fn record(&mut self) -> Option<Copied<'a>> {
        let there = self.number(|[b]| b)?;
        let topic = self.name()?;
        let has = |bit: u8| there & bit != 0;
        let partition = if has(PARTITION) { Some(self.number(i32::from_le_bytes)?) } else { None };
        let timestamp = if has(TIMESTAMP) { Some(self.number(i64::from_le_bytes)?) } else { None };
        let key = if has(KEY) { Some(self.bytes()?) } else { None };
        let value = if has(VALUE) { Some(self.bytes()?) } else { None };
        let mut headers = Vec::new();
        for _ in 0..self.number(u16::from_le_bytes)? {
            let name = self.name()?;
            headers.push((name, if self.number(|[b]| b)? != 0 { Some(self.bytes()?) } else { None }));
        }
        Some(Copied { topic, partition, key, value, timestamp, headers })
    }

    fn number<const N: usize, T>(&mut self, of: impl FnOnce([u8; N]) -> T) -> Option<T> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(of(*number))
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn name(&mut self) -> Option<&'a str> {
        let length = self.number(u16::from_le_bytes)?;
        std::str::from_utf8(self.take(length.into())?).ok()
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.number(u32::from_le_bytes)?;
        self.take(length as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_record_comes_back_as_it_was() {
        let headers = [("cause", Some(&b"x"[..])), ("", None)];
        let all = [
            Outgoing { topic: "t", value: Some(b""), ..Outgoing::default() },
            Outgoing { topic: "t", key: Some(b"k"), partition: Some(-3), ..Outgoing::default() },
            Outgoing {
                topic: "u",
                key: Some(b""),
                timestamp: Some(i64::MIN),
                headers: &headers,
                ..Outgoing::default()
            },
        ];
        let (mut bytes, mut ends) = (Vec::new(), vec![0]);
        for record in &all {
            encode(record, &mut bytes).unwrap();
            ends.push(bytes.len());
        }
        let part = part(&bytes).unwrap();
        let read = records(&part).unwrap();
        let mut reader = Reader::new(&read);
        for record in &all {
            assert_eq!(reader.next().unwrap().unwrap().outgoing(), *record);
        }
        assert_eq!(reader.next().unwrap(), None);

        // Whatever is cut off or changed is seen.
        for end in 0..part.len() {
            assert_eq!(records(&part[..end]).unwrap_err().number(), 4332, "{end}");
        }
        for at in 0..part.len() {
            let mut other = part.to_vec();
            other[at] ^= 0x40;
            assert_eq!(records(&other).unwrap_err().number(), 4332, "{at}");
        }
        for end in 0..bytes.len() {
            let mut reader = Reader::new(&bytes[..end]);
            let all = std::iter::from_fn(|| reader.next().transpose()).take(all.len()).collect::<Result<Vec<_>>>();
            assert_eq!(all.is_ok(), ends.contains(&end), "{end}");
        }
    }
}
