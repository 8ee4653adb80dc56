//! The form of a block on the SSD: CRC32C (u32), length (u32), bytes; little endian. A block that does not match when
//! it comes back is an error of the tier, so a miss.

use bytes::Bytes;
use foyer::{Code, Error, ErrorKind, Result};

use crate::{BlockKey, CacheBlock, ObjectId};

/// A block in the hybrid cache.
#[derive(Clone, Debug)]
pub(crate) struct DiskBlock<B>(pub(crate) B);

/// No block is larger; a longer length is a damaged one.
const MAX_BYTES: usize = 1 << 30;

impl<B: CacheBlock> Code for DiskBlock<B> {
    fn encode(&self, writer: &mut impl std::io::Write) -> Result<()> {
        let body = self.0.body();
        let head = [crc32c::crc32c(body).to_le_bytes(), (body.len() as u32).to_le_bytes()].concat();
        writer.write_all(&head).and_then(|()| writer.write_all(body)).map_err(Error::io_error)
    }

    fn decode(reader: &mut impl std::io::Read) -> Result<Self> {
        let mut head = [0; 8];
        reader.read_exact(&mut head).map_err(Error::io_error)?;
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let length = number(4) as usize;
        if length > MAX_BYTES {
            return Err(Error::new(ErrorKind::Parse, "a cached block has an impossible length"));
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).map_err(Error::io_error)?;
        if crc32c::crc32c(&body) != number(0) {
            return Err(Error::new(ErrorKind::Parse, "a cached block does not match its checksum"));
        }
        B::of_body(Bytes::from(body)).map(Self).map_err(|e| Error::new(ErrorKind::Parse, e.to_string()))
    }

    fn estimated_size(&self) -> usize {
        self.0.body().len() + 8
    }
}

impl Code for BlockKey {
    fn encode(&self, writer: &mut impl std::io::Write) -> Result<()> {
        self.object.0.encode(writer)?;
        self.offset.encode(writer)
    }

    fn decode(reader: &mut impl std::io::Read) -> Result<Self> {
        Ok(Self { object: ObjectId(u128::decode(reader)?), offset: u64::decode(reader)? })
    }

    fn estimated_size(&self) -> usize {
        24
    }
}
