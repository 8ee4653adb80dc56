//! Filters over the stable hashes of whole store keys.
//!
//! Young runs have a blocked Bloom filter: all probes of a key fall into one cache line, so that looking into six runs
//! costs six lines. They have 16 bits a key: a read asks all of them, most know nothing of the key, and each false positive is
//! a block that is read for nothing; of all keys they hold few. The bottom level has a binary-fuse filter (Graf and Lemire,
//! 2022; crate `xorf`): 9 bits a key for 0.4 % of false positives, at three lines a key.

use bytes::Bytes;
use millstream_common::prefetch::prefetch;
use millstream_common::{Error, Result};
use xorf::{BinaryFuse8, BinaryFuse8Ref, DmaSerializable, Filter as _, FilterRef};

use super::index::bad_meta;

const LINE_BYTES: usize = 64;
const LINE_BITS_SHIFT: u32 = 32 - 9; // 512 bits
const PROBES: usize = 7;
/// Lines are asked for so many keys ahead while a filter is built.
const AHEAD: usize = 16;
/// Odd multipliers, one a probe: part of the format.
const MULTIPLIERS: [u32; PROBES] =
    [0x9e37_79b1, 0x85eb_ca6b, 0xc2b2_ae35, 0x27d4_eb2f, 0x1656_67b1, 0xd3a2_646d, 0xfd70_46c5];

/// Seed u64, segment length u32, its mask u32, length of all segments but two u32.
const FUSE_HEAD: usize = BinaryFuse8::DESCRIPTOR_LEN;

/// Which filter a section gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterKind {
    /// A blocked Bloom filter with so many bits a key. 10 give less than 1.5 % of false positives, 16 less than
    /// 0.25 % (tested below).
    Bloom {
        /// Bits a key.
        bits_per_key: usize,
    },
    /// A binary-fuse filter with 8-bit fingerprints.
    Fuse,
}

/// The filter of a part.
#[derive(Clone, Debug)]
pub(crate) enum Filter {
    Bloom(Bytes),
    Fuse { head: [u8; FUSE_HEAD], fingerprints: Bytes },
}

/// Its number in the format.
const BLOOM: u8 = 1;
const FUSE: u8 = 2;

impl Filter {
    /// The filter of these distinct hashes.
    pub(crate) fn build(hashes: &[u64], kind: FilterKind) -> Self {
        match kind {
            FilterKind::Bloom { bits_per_key } => Self::Bloom(bloom(hashes, bits_per_key)),
            FilterKind::Fuse => fuse(hashes).unwrap_or_else(|| Self::Bloom(bloom(hashes, 10))),
        }
    }

    /// Its number and bytes in the format.
    pub(crate) fn stored(&self) -> (u8, [&[u8]; 2]) {
        match self {
            Self::Bloom(bits) => (BLOOM, [bits, &[]]),
            Self::Fuse { head, fingerprints } => (FUSE, [head, fingerprints]),
        }
    }

    /// The filter with this number and these bytes. After that no probe can go wrong.
    pub(crate) fn from_stored(kind: u8, bytes: Bytes) -> Result<Self> {
        match kind {
            BLOOM if bytes.len().is_multiple_of(LINE_BYTES) => Ok(Self::Bloom(bytes)),
            FUSE => {
                let head: [u8; FUSE_HEAD] =
                    bytes.first_chunk().copied().ok_or_else(|| bad_meta("its filter is too short"))?;
                let fingerprints = bytes.slice(FUSE_HEAD..);
                check_fuse(&head, fingerprints.len())?;
                Ok(Self::Fuse { head, fingerprints })
            }
            _ => Err(bad_meta("its filter is of no known kind or of an odd length")),
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        match self {
            Self::Bloom(bits) => bits.len(),
            Self::Fuse { fingerprints, .. } => fingerprints.len() + FUSE_HEAD,
        }
    }

    /// False only when no key of the part has this hash.
    #[cfg(test)]
    pub(crate) fn may_hold(&self, hash: u64) -> bool {
        match self {
            Self::Bloom(bits) => bloom_holds(bits, hash),
            Self::Fuse { head, fingerprints } => BinaryFuse8Ref::from_dma(head, fingerprints).contains(&hash),
        }
    }

    /// Appends those of `keys` whose hash (in `hashes`, by key) may be here to `out`. The lines of all are asked for before
    /// the first is looked at.
    pub(crate) fn select(&self, hashes: &[u64], keys: &[u32], out: &mut Vec<u32>) {
        match self {
            Self::Bloom(bits) => {
                let lines = bits.len() / LINE_BYTES;
                keys.iter().for_each(|&k| prefetch(bits, line_of(hashes[k as usize], lines) * LINE_BYTES));
                out.extend(keys.iter().copied().filter(|&k| bloom_holds(bits, hashes[k as usize])));
            }
            Self::Fuse { head, fingerprints } => {
                let filter = BinaryFuse8Ref::from_dma(head, fingerprints);
                let places = FusePlaces::of(head);
                for &k in keys {
                    places.of_key(hashes[k as usize]).into_iter().for_each(|at| prefetch(fingerprints, at));
                }
                out.extend(keys.iter().copied().filter(|&k| filter.contains(&hashes[k as usize])));
            }
        }
    }
}

fn bloom(hashes: &[u64], bits_per_key: usize) -> Bytes {
    let lines = (hashes.len() * bits_per_key).div_ceil(LINE_BYTES * 8);
    let mut bits = vec![0; lines * LINE_BYTES];
    for (i, &hash) in hashes.iter().enumerate() {
        if let Some(later) = hashes.get(i + AHEAD) {
            prefetch(&bits, line_of(*later, lines) * LINE_BYTES);
        }
        let line = line_of(hash, lines);
        for m in MULTIPLIERS {
            let bit = probe(hash, m);
            bits[line * LINE_BYTES + bit / 8] |= 1 << (bit % 8);
        }
    }
    Bytes::from(bits)
}

#[inline]
fn bloom_holds(bits: &[u8], hash: u64) -> bool {
    let lines = bits.len() / LINE_BYTES;
    if lines == 0 {
        return false;
    }
    let line = &bits[line_of(hash, lines) * LINE_BYTES..][..LINE_BYTES];
    // Without a branch a probe: one of them is wrong nearly always, but nobody knows which.
    MULTIPLIERS.iter().fold(1, |all, &m| {
        let bit = probe(hash, m);
        all & (line[bit / 8] >> (bit % 8))
    }) & 1
        == 1
}

#[inline]
fn line_of(hash: u64, lines: usize) -> usize {
    (((hash >> 32) * lines as u64) >> 32) as usize
}

#[inline]
fn probe(hash: u64, multiplier: u32) -> usize {
    ((hash as u32).wrapping_mul(multiplier) >> LINE_BITS_SHIFT) as usize
}

/// `None` when it cannot be built: its construction is randomised and may fail, in theory.
fn fuse(hashes: &[u64]) -> Option<Filter> {
    let mut distinct = hashes.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let built = BinaryFuse8::try_from(distinct.as_slice()).ok()?;
    let mut head = [0; FUSE_HEAD];
    built.dma_copy_descriptor_to(&mut head);
    let fingerprints = Bytes::from(built.fingerprints.into_vec());
    check_fuse(&head, fingerprints.len()).ok().map(|()| Filter::Fuse { head, fingerprints })
}

/// Where a probe of a binary-fuse filter looks; `xorf` keeps that to itself, and the format names it.
struct FusePlaces {
    seed: u64,
    segment: u32,
    count: u32,
}

impl FusePlaces {
    fn of(head: &[u8; FUSE_HEAD]) -> Self {
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let seed = u64::from(number(0)) | u64::from(number(4)) << 32;
        Self { seed, segment: number(8), count: number(16) }
    }

    /// A place in each of three segments that follow one another.
    #[inline]
    fn of_key(&self, hash: u64) -> [usize; 3] {
        // The finaliser of MurmurHash3.
        let mut h = hash.wrapping_add(self.seed);
        h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        h ^= h >> 33;
        let mask = self.segment.wrapping_sub(1);
        let first = ((u128::from(h) * u128::from(self.count)) >> 64) as u32;
        let second = first.wrapping_add(self.segment) ^ ((h >> 18) as u32 & mask);
        let third = first.wrapping_add(self.segment.wrapping_mul(2)) ^ (h as u32 & mask);
        [first, second, third].map(|n| n as usize)
    }
}

/// All that a probe looks at must lie inside.
fn check_fuse(head: &[u8; FUSE_HEAD], fingerprints: usize) -> Result<()> {
    let number = |at: usize| u64::from(u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]));
    let (segment, mask, count) = (number(8), number(12), number(16));
    let sound = segment.is_power_of_two()
        && mask == segment - 1
        && count >= segment
        && count.is_multiple_of(segment)
        && count + 2 * segment <= fingerprints as u64;
    if sound { Ok(()) } else { Err::<(), Error>(bad_meta("its filter makes no sense")) }
}

#[cfg(test)]
mod tests {
    use millstream_common::hash::stable_hash;

    use super::*;

    fn hashes(from: u64, to: u64) -> Vec<u64> {
        (from..to).map(|n| stable_hash(&n.to_le_bytes())).collect()
    }

    #[test]
    fn no_key_is_missed_and_few_are_found_that_are_not_there() {
        let bloom = |bits_per_key| FilterKind::Bloom { bits_per_key };
        for (kind, at_most) in [(bloom(10), 1_500), (bloom(16), 250), (FilterKind::Fuse, 500)] {
            for count in [0, 1, 2, 3, 5, 10, 100, 5_000] {
                let here = hashes(0, count);
                let built = Filter::build(&here, kind);
                let (number, parts) = built.stored();
                let filter = Filter::from_stored(number, Bytes::from(parts.concat())).unwrap();
                assert!(here.iter().all(|h| filter.may_hold(*h)), "{kind:?} {count}");
                let others = hashes(1 << 40, (1 << 40) + 100_000);
                let indices: Vec<u32> = (0..others.len() as u32).collect();
                let mut found = Vec::new();
                filter.select(&others, &indices, &mut found);
                assert!(found.iter().all(|k| filter.may_hold(others[*k as usize])));
                assert!(count < 10 || found.len() < at_most, "{kind:?} {count}: {}", found.len());
            }
        }
    }

    #[test]
    fn probes_look_where_memory_is_asked_for() {
        let Filter::Fuse { head, fingerprints } = Filter::build(&hashes(0, 1000), FilterKind::Fuse) else { panic!() };
        let places = FusePlaces::of(&head);
        for hash in hashes(0, 1000) {
            let before = BinaryFuse8Ref::from_dma(&head, &fingerprints).contains(&hash);
            // Another fingerprint in one of its places, and the key is there no more.
            for at in places.of_key(hash) {
                let mut other = fingerprints.to_vec();
                other[at] ^= 1;
                assert!(before && !BinaryFuse8Ref::from_dma(&head, &other).contains(&hash));
            }
        }
    }

    #[test]
    fn filters_that_make_no_sense_are_refused() {
        let whole = Filter::build(&hashes(0, 100), FilterKind::Fuse);
        let (number, parts) = whole.stored();
        let bytes = parts.concat();
        for at in 8..20 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x81;
            assert!(Filter::from_stored(number, damaged.into()).is_err(), "{at}");
        }
        assert!(Filter::from_stored(number, Bytes::from(bytes[..15].to_vec())).is_err());
        assert!(Filter::from_stored(BLOOM, Bytes::from(vec![0; 63])).is_err());
        assert!(Filter::from_stored(7, Bytes::new()).is_err());
    }
}
