//! What becomes of records that the format cannot read, and how many there were.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::dead_letters::DeadLetters;

/// What a reader does with them.
#[derive(Clone)]
pub(super) enum OnBad {
    /// It fails.
    Fail,
    /// It passes over them.
    Drop(Arc<Counts>),
    /// It has them written.
    Write(Arc<DeadLetters>),
}

/// How many there were, of a source, since this process has it.
#[derive(Default)]
pub(super) struct Counts {
    dropped: AtomicU64,
    dead_lettered: AtomicU64,
}

impl Counts {
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn dead_lettered(&self) -> u64 {
        self.dead_lettered.load(Ordering::Relaxed)
    }

    /// One was dropped. Said of the first, the tenth, the hundredth: all may be bad.
    pub(super) fn drop_one(&self, why: impl FnOnce() -> String) {
        if let Some(total) = add(&self.dropped, 1) {
            tracing::warn!("{total} records of a source were dropped, the last of them: {}", why());
        }
    }

    /// So many are in `topic`.
    pub(super) fn dead_letters(&self, count: u64, topic: &str, why: impl FnOnce() -> String) {
        if let Some(total) = add(&self.dead_lettered, count) {
            tracing::warn!("{total} records of a source are in topic '{topic}' instead, the last of them: {}", why());
        }
    }
}

/// Adds; the new sum when it has more digits than the old one.
fn add(counter: &AtomicU64, count: u64) -> Option<u64> {
    let before = counter.fetch_add(count, Ordering::Relaxed);
    let after = before + count;
    (after.checked_ilog10() > before.checked_ilog10()).then_some(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_the_tenth_and_the_hundredth_are_said() {
        let counter = AtomicU64::new(0);
        let said: Vec<_> = (0..1_000).filter_map(|_| add(&counter, 1)).collect();
        assert_eq!(said, [1, 10, 100, 1_000]);
        assert_eq!((add(&counter, 8_999), add(&counter, 5), add(&counter, 0)), (None, Some(10_004), None));
    }
}
