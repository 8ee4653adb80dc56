//! A blocked Bloom filter over the stable hashes of whole store keys: all probes of a key fall into one cache line.

use bytes::Bytes;
use millstream_common::Result;

use super::meta::bad_meta;

const LINE_BYTES: usize = 64;
const LINE_BITS_SHIFT: u32 = 32 - 9; // 512 bits
const PROBES: usize = 7;
/// Odd multipliers, one a probe: part of the format.
const MULTIPLIERS: [u32; PROBES] =
    [0x9e37_79b1, 0x85eb_ca6b, 0xc2b2_ae35, 0x27d4_eb2f, 0x1656_67b1, 0xd3a2_646d, 0xfd70_46c5];

#[derive(Clone, Debug)]
pub(crate) struct Filter {
    bits: Bytes,
}

impl Filter {
    /// The filter of `hashes`.
    pub(crate) fn build(hashes: &[u64], bits_per_key: usize) -> Self {
        let lines = (hashes.len() * bits_per_key).div_ceil(LINE_BYTES * 8);
        let mut bits = vec![0; lines * LINE_BYTES];
        for &hash in hashes {
            let line = line_of(hash, lines);
            for m in MULTIPLIERS {
                let bit = probe(hash, m);
                bits[line * LINE_BYTES + bit / 8] |= 1 << (bit % 8);
            }
        }
        Self { bits: Bytes::from(bits) }
    }

    pub(crate) fn from_bytes(bits: Bytes) -> Result<Self> {
        if bits.len().is_multiple_of(LINE_BYTES) {
            Ok(Self { bits })
        } else {
            Err(bad_meta("its filter has an odd length"))
        }
    }

    pub(crate) fn bits(&self) -> &[u8] {
        &self.bits
    }

    pub(crate) fn len(&self) -> usize {
        self.bits.len()
    }

    /// False only when no key of the section has this hash.
    #[inline]
    pub(crate) fn may_hold(&self, hash: u64) -> bool {
        let lines = self.bits.len() / LINE_BYTES;
        if lines == 0 {
            return false;
        }
        let line = &self.bits[line_of(hash, lines) * LINE_BYTES..][..LINE_BYTES];
        MULTIPLIERS.iter().all(|&m| {
            let bit = probe(hash, m);
            line[bit / 8] >> (bit % 8) & 1 == 1
        })
    }
}

#[inline]
fn line_of(hash: u64, lines: usize) -> usize {
    (((hash >> 32) * lines as u64) >> 32) as usize
}

#[inline]
fn probe(hash: u64, multiplier: u32) -> usize {
    ((hash as u32).wrapping_mul(multiplier) >> LINE_BITS_SHIFT) as usize
}
