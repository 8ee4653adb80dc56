//! The heat list: hot blocks by name, as they stand in a bundle. Pure; the format is `docs/formats.md`, version 1.

use std::collections::BTreeMap;

use bytes::Bytes;
use millstream_common::KeyGroupRanges;
use millstream_common::{Error, Result};

use super::Temperature;
use crate::run::Run;

/// A list has so many bytes at most.
pub const HEAT_LIST_BYTES: usize = 64 << 10;

/// The format that this release writes.
const FORMAT: u16 = 1;
const MAGIC: &[u8; 4] = b"MSHT";

/// Blocks that are looked at for a list: the hottest.
const BLOCKS_MAX: usize = 64 << 10;

/// The hot blocks of some runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeatList {
    runs: Vec<HotRun>,
}

/// The hot blocks of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct HotRun {
    /// The run's identity.
    object: String,
    offset: u64,
    /// By where a part's first block begins in the section.
    parts: BTreeMap<u64, Vec<Stretch>>,
}

/// Neighbouring blocks of a part that are equally hot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    first: u32,
    blocks: u32,
    temperature: Temperature,
}

/// A list, and the run that it was written with.
pub(crate) struct Listed<'a> {
    pub(crate) run: &'a Run,
    pub(crate) list: HeatList,
}

impl HotRun {
    pub(crate) fn of(run: &Run) -> Self {
        Self::named(run.object.clone(), run.offset)
    }

    pub(crate) fn named(object: String, offset: u64) -> Self {
        Self { object, offset, parts: BTreeMap::new() }
    }

    /// Adds hot blocks (by place, in order) of the part whose first block begins at `at`.
    pub(crate) fn add(&mut self, at: u64, hot: impl Iterator<Item = (usize, Temperature)>) {
        let stretches = stretches(hot.map(|(i, t)| (i as u32, t)));
        if !stretches.is_empty() {
            self.parts.insert(at, stretches);
        }
    }

    /// How hot the blocks of the part at `at` are, by place, in order.
    pub(crate) fn blocks_of(&self, at: u64) -> impl Iterator<Item = (usize, Temperature)> {
        let stretches = self.parts.get(&at).into_iter().flatten();
        stretches.flat_map(|s| (s.first..s.first.saturating_add(s.blocks)).map(|i| (i as usize, s.temperature)))
    }

    /// Whether any block of that part is hot.
    pub(crate) fn has(&self, at: u64) -> bool {
        self.parts.contains_key(&at)
    }

    fn identity(&self) -> (&str, u64) {
        (&self.object, self.offset)
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&(self.object.len() as u16).to_le_bytes());
        out.extend_from_slice(self.object.as_bytes());
        out.extend_from_slice(&self.offset.to_le_bytes());
        out.extend_from_slice(&(self.parts.len() as u32).to_le_bytes());
        for (at, stretches) in &self.parts {
            out.extend_from_slice(&at.to_le_bytes());
            out.extend_from_slice(&(stretches.len() as u32).to_le_bytes());
            let mut next = 0;
            for s in stretches {
                number(s.first - next, out);
                number(s.blocks, out);
                out.push(s.temperature);
                next = s.first + s.blocks;
            }
        }
    }
}

fn stretches(hot: impl Iterator<Item = (u32, Temperature)>) -> Vec<Stretch> {
    let mut out: Vec<Stretch> = Vec::new();
    for (first, temperature) in hot {
        match out.last_mut() {
            Some(s) if s.first + s.blocks == first && s.temperature == temperature => s.blocks += 1,
            _ => out.push(Stretch { first, blocks: 1, temperature }),
        }
    }
    out
}

impl HeatList {
    pub(crate) fn add(&mut self, run: HotRun) {
        if !run.parts.is_empty() {
            self.runs.push(run);
        }
    }

    /// Whether it names no block.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Its bytes; the coldest blocks are left out as far as they would be more than `most_bytes`.
    #[must_use]
    pub fn encode(&self, most_bytes: usize) -> Bytes {
        let whole = self.bytes();
        if whole.len() <= most_bytes {
            return whole.into();
        }
        // Hottest first, each by run, part and place.
        let mut blocks: Vec<(Temperature, usize, u64, u32)> = Vec::new();
        for (r, run) in self.runs.iter().enumerate() {
            for at in run.parts.keys() {
                blocks.extend(run.blocks_of(*at).map(|(i, t)| (t, r, *at, i as u32)));
            }
        }
        blocks.sort_by_key(|&(t, r, at, i)| (std::cmp::Reverse(t), r, at, i));
        blocks.truncate(BLOCKS_MAX);
        let (mut fits, mut too_many) = (0, blocks.len() + 1);
        let mut best = Self::default().bytes();
        while fits + 1 < too_many {
            let some = fits.midpoint(too_many);
            let bytes = self.of(&blocks[..some]).bytes();
            if bytes.len() <= most_bytes {
                (fits, best) = (some, bytes);
            } else {
                too_many = some;
            }
        }
        best.into()
    }

    /// The list of these blocks alone.
    fn of(&self, blocks: &[(Temperature, usize, u64, u32)]) -> Self {
        let mut by_part: BTreeMap<(usize, u64), Vec<(u32, Temperature)>> = BTreeMap::new();
        for &(t, r, at, i) in blocks {
            by_part.entry((r, at)).or_default().push((i, t));
        }
        let mut runs: BTreeMap<usize, HotRun> = BTreeMap::new();
        for ((r, at), mut hot) in by_part {
            hot.sort_unstable();
            let run = &self.runs[r];
            let kept = runs.entry(r).or_insert_with(|| HotRun::named(run.object.clone(), run.offset));
            kept.parts.insert(at, stretches(hot.into_iter()));
        }
        Self { runs: runs.into_values().collect() }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(4096);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&FORMAT.to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&(self.runs.len() as u32).to_le_bytes());
        self.runs.iter().for_each(|run| run.encode(&mut out));
        out
    }

    /// Reads a list. `checksum` is what the version says of it.
    pub fn decode(stored: &[u8], checksum: u32) -> Result<Self> {
        if crc32c::crc32c(stored) != checksum {
            return Err(bad("it does not match its checksum"));
        }
        let mut reader = Reader { rest: stored };
        if reader.take::<4>()? != *MAGIC {
            return Err(bad("it does not begin with MSHT"));
        }
        let format = u16::from_le_bytes(reader.take()?);
        if format != FORMAT {
            return Err(bad(&format!("its format is {format}, this program reads {FORMAT}")));
        }
        reader.take::<2>()?;
        let runs = u32::from_le_bytes(reader.take()?);
        let runs = (0..runs).map(|_| reader.run()).collect::<Result<Vec<_>>>()?;
        if !reader.rest.is_empty() {
            return Err(bad("something stands behind its end"));
        }
        Ok(Self { runs })
    }
}

/// What the lists of a view's runs say together, by run. `lists`: newest first. Where key groups have several lists the
/// newest one holds; a list that a compaction wrote names its own output alone, and holds where no other names that.
pub(crate) fn merge(lists: &[Listed<'_>], ranges: &KeyGroupRanges) -> Vec<HotRun> {
    let mut left = ranges.clone();
    let mut merged: BTreeMap<(String, u64), HotRun> = BTreeMap::new();
    let of_itself = |l: &Listed<'_>| l.list.runs.iter().all(|r| r.identity() == l.run.identity());
    for listed in lists.iter().filter(|l| !of_itself(l)) {
        if !listed.run.clip.overlaps(&left) {
            continue;
        }
        left = left.subtract(&listed.run.clip);
        for run in &listed.list.runs {
            let key = (run.object.clone(), run.offset);
            match merged.get_mut(&key) {
                None => drop(merged.insert(key, run.clone())),
                Some(known) => known.unite(run),
            }
        }
    }
    for listed in lists.iter().filter(|l| of_itself(l)) {
        for run in &listed.list.runs {
            merged.entry((run.object.clone(), run.offset)).or_insert_with(|| run.clone());
        }
    }
    merged.into_values().collect()
}

impl HotRun {
    /// What two owners of the key groups of a run said of it.
    fn unite(&mut self, other: &Self) {
        for at in other.parts.keys() {
            let mut blocks: BTreeMap<u32, Temperature> = BTreeMap::new();
            for (i, t) in self.blocks_of(*at).chain(other.blocks_of(*at)) {
                let known = blocks.entry(i as u32).or_default();
                *known = t.max(*known);
            }
            self.parts.insert(*at, stretches(blocks.into_iter()));
        }
    }

    pub(crate) fn is(&self, run: &Run) -> bool {
        self.identity() == run.identity()
    }
}

/// Seven bits a byte, lowest first.
fn number(mut n: u32, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn bad(why: &str) -> Error {
    Error::corrupt(format!("a heat list cannot be read: {why}")).code(4011)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (value, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| bad("it is too short"))?;
        self.rest = rest;
        Ok(*value)
    }

    fn number(&mut self) -> Result<u32> {
        let mut n: u64 = 0;
        for shift in (0..35).step_by(7) {
            let [byte] = self.take()?;
            n |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return u32::try_from(n).map_err(|_| bad("a number is too large"));
            }
        }
        Err(bad("a number does not end"))
    }

    fn run(&mut self) -> Result<HotRun> {
        let length = usize::from(u16::from_le_bytes(self.take()?));
        let (name, rest) = self.rest.split_at_checked(length).ok_or_else(|| bad("it is too short"))?;
        self.rest = rest;
        let object = std::str::from_utf8(name).map_err(|_| bad("a name is no text"))?.to_owned();
        let mut run = HotRun::named(object, u64::from_le_bytes(self.take()?));
        for _ in 0..u32::from_le_bytes(self.take()?) {
            let at = u64::from_le_bytes(self.take()?);
            let mut next: u32 = 0;
            let mut stretches = Vec::new();
            for _ in 0..u32::from_le_bytes(self.take()?) {
                let (gap, blocks) = (self.number()?, self.number()?);
                let [temperature] = self.take()?;
                let first = next.checked_add(gap).ok_or_else(|| bad("a number is too large"))?;
                next = first.checked_add(blocks).ok_or_else(|| bad("a number is too large"))?;
                stretches.push(Stretch { first, blocks, temperature });
            }
            run.parts.insert(at, stretches);
        }
        Ok(run)
    }
}
