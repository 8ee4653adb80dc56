//! A column of byte strings inside a block's body: their bytes one after the other, and where each ends, if they differ
//! in length.

use std::ops::Range;

/// Ends are left away when all strings have one length, else they have two bytes when that is enough, else four.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Width {
    Same = 0,
    Two = 2,
    Four = 4,
}

impl Width {
    pub(super) fn of(ends: &[u32]) -> Self {
        let length = ends.first().copied().unwrap_or_default();
        if (1u32..).zip(ends).all(|(n, end)| u64::from(*end) == u64::from(n) * u64::from(length)) {
            Self::Same
        } else if ends.last().is_none_or(|end| u16::try_from(*end).is_ok()) {
            Self::Two
        } else {
            Self::Four
        }
    }

    pub(super) fn from_number(n: u8) -> Option<Self> {
        [Self::Same, Self::Two, Self::Four].into_iter().find(|w| *w as u8 == n)
    }

    pub(super) fn put(self, ends: impl Iterator<Item = u32>, out: &mut Vec<u8>) {
        match self {
            Self::Same => {}
            Self::Two => ends.for_each(|end| out.extend_from_slice(&(end as u16).to_le_bytes())),
            Self::Four => ends.for_each(|end| out.extend_from_slice(&end.to_le_bytes())),
        }
    }
}

/// Where a column stands in a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    width: Width,
    /// The length of each, when they have one.
    same: u32,
    ends_at: u32,
    /// Where the first string begins.
    at: u32,
}

impl Column {
    /// A column of `count` strings of together `bytes` bytes, whose ends stand at `ends_at` and they themselves at `at`.
    /// `None` when that cannot be.
    pub(super) fn new(width: Width, count: usize, bytes: usize, ends_at: usize, at: usize) -> Option<Self> {
        let same = match (width, count) {
            (Width::Same, 0) if bytes == 0 => 0,
            (Width::Same, 0) => return None,
            (Width::Same, n) if bytes.is_multiple_of(n) => bytes / n,
            (Width::Same, _) => return None,
            _ => 0,
        };
        let fits = |n: usize| u32::try_from(n).ok();
        Some(Self { width, same: fits(same)?, ends_at: fits(ends_at)?, at: fits(at)? })
    }

    /// Bytes of the ends of `count` strings.
    pub(super) fn ends_bytes(width: Width, count: usize) -> usize {
        count * width as usize
    }

    /// Where string `i` ends, from the beginning of the first.
    #[inline]
    pub(super) fn end(&self, body: &[u8], i: usize) -> usize {
        let at = self.ends_at as usize + i * self.width as usize;
        match self.width {
            Width::Same => (i + 1) * self.same as usize,
            Width::Two => body.get(at..at + 2).and_then(|b| b.try_into().ok()).map_or(0, u16::from_le_bytes).into(),
            Width::Four => body.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_le_bytes) as usize,
        }
    }

    /// Where string `i` stands in the body.
    #[inline]
    pub(super) fn range(&self, body: &[u8], i: usize) -> Range<usize> {
        let start = if i == 0 { 0 } else { self.end(body, i - 1) };
        let at = self.at as usize;
        at + start..at + self.end(body, i)
    }

    /// What of the body to ask for before string `i` is looked at: the string itself, or where it ends if that must be known
    /// first.
    #[inline]
    pub(super) fn hint(&self, i: usize) -> Range<usize> {
        let (at, length) = match self.width {
            Width::Same => (self.at, self.same as usize),
            _ => (self.ends_at, self.width as usize),
        };
        let start = at as usize + i * length;
        start..start + length
    }

    /// Whether all ends rise and the last is `bytes`.
    pub(super) fn is_sound(&self, body: &[u8], count: usize, bytes: usize) -> bool {
        let mut before = 0;
        for i in 0..count {
            let end = self.end(body, i);
            if end < before {
                return false;
            }
            before = end;
        }
        before == bytes
    }
}
