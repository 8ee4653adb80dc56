//! Stretches of keys that were hot in some runs, and which blocks of their successors hold them. Pure.

use super::Temperature;
use crate::section::Part;

/// Spans that are kept at most: the hottest. Neighbours of one temperature are one span.
const SPANS_MAX: usize = 32 << 10;

/// A block whose keys lie in more blocks of a successor than this says nothing of them: it is one of a small run, which
/// spreads over all keys.
const WIDE: usize = 8;

/// Stretches of keys of one task that were hot, by their first key. They may overlap: several runs hold a key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HotSpans {
    spans: Vec<Span>,
}

/// Keys from `from` (inclusive) to `to` (exclusive).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    from: Vec<u8>,
    to: Vec<u8>,
    /// The blocks that they stood in.
    blocks: usize,
    temperature: Temperature,
}

impl HotSpans {
    /// Whether nothing was hot.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// Whether any of the keys from `first` to `last`, both included, may be hot.
    pub(crate) fn meets(&self, first: &[u8], last: &[u8]) -> bool {
        let before = self.spans.partition_point(|s| s.from.as_slice() <= last);
        self.spans[..before].iter().any(|s| s.to.as_slice() > first)
    }

    /// Adds hot blocks (by place, in order) of a part.
    pub(super) fn add(&mut self, part: &Part, hot: &[(usize, Temperature)]) {
        for stretch in hot.chunk_by(|a, b| a.0 + 1 == b.0 && a.1 == b.1) {
            let (first, last) = (stretch[0].0, stretch[stretch.len() - 1].0);
            let to = match last + 1 < part.blocks().len() {
                true => part.first_key_of(last + 1),
                false => [part.last_key(), &[0]].concat(),
            };
            let temperature = stretch[0].1;
            self.spans.push(Span { from: part.first_key_of(first), to, blocks: stretch.len(), temperature });
        }
    }

    /// In the order of keys, the hottest if there are too many.
    pub(super) fn sorted(mut self) -> Self {
        if self.spans.len() > SPANS_MAX {
            self.spans.sort_by_key(|s| std::cmp::Reverse(s.temperature));
            self.spans.truncate(SPANS_MAX);
        }
        self.spans.sort_by(|a, b| a.from.cmp(&b.from).then_with(|| a.to.cmp(&b.to)));
        self
    }

    /// The blocks (by place, in order) of a part of a successor that hold hot keys, each as hot as the hottest of them.
    pub(crate) fn blocks_of(&self, part: &Part) -> Vec<(usize, Temperature)> {
        let mut hot: Vec<Option<Temperature>> = vec![None; part.blocks().len()];
        for span in &self.spans {
            if span.from.as_slice() > part.last_key() {
                break;
            }
            if span.to.as_slice() <= part.first_key() {
                continue;
            }
            let first = part.seek(0, &span.from);
            let meets = |i: &usize| *i == first || part.compare_first(*i, &span.to).is_lt();
            let count = (first..hot.len()).take_while(meets).take(WIDE * span.blocks + 1).count();
            if count > WIDE * span.blocks {
                continue;
            }
            for block in &mut hot[first..first + count] {
                *block = (*block).max(Some(span.temperature));
            }
        }
        hot.into_iter().enumerate().filter_map(|(i, t)| Some((i, t?))).collect()
    }
}
