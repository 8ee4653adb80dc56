//! Which versions a deployment on this worker may still read from.
//!
//! Views, compactions and warm-ups hold the runs of the version that they were made from. So a version is in use as long
//! as any of its runs is held by anybody; the newest always is. Nobody goes back to an older version than the one
//! that he reads from, so the oldest in use only rises.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use millstream_state_store::Run;

/// The versions that were installed and may be in use, oldest first.
#[derive(Default)]
pub(crate) struct InUse {
    versions: VecDeque<(u64, Vec<Weak<Run>>)>,
}

impl InUse {
    /// A version is installed; `runs`: what a reader of it holds. Versions come in rising order.
    pub(crate) fn add<'a>(&mut self, number: u64, runs: impl Iterator<Item = &'a Arc<Run>>) {
        self.versions.push_back((number, runs.map(Arc::downgrade).collect()));
        self.oldest();
    }

    /// The oldest version in use; `None` before the first.
    pub(crate) fn oldest(&mut self) -> Option<u64> {
        while self.versions.len() > 1
            && let Some((_, runs)) = self.versions.front()
            && runs.iter().all(|r| r.strong_count() == 0)
        {
            self.versions.pop_front();
        }
        self.versions.front().map(|(number, _)| *number)
    }
}

#[cfg(test)]
mod tests {
    use millstream_common::{Epoch, KeyGroupRanges, TaskId};
    use millstream_state_store::{Interval, Sequence};

    use super::*;

    fn run() -> Arc<Run> {
        let at = Sequence { epoch: Epoch(1), flush: 0 };
        Arc::new(Run {
            task: TaskId(1),
            object: "o".to_owned(),
            offset: 0,
            length: 1,
            meta_offset: 0,
            meta_length: 1,
            directory_length: 1,
            checksum: 0,
            clip: KeyGroupRanges::all(),
            interval: Interval { min: at, max: at },
            entries: 1,
            states: Vec::new(),
            object_bytes: 1,
            origin: String::new(),
            heat: None,
        })
    }

    #[test]
    fn a_version_is_in_use_as_long_as_a_run_of_it_is_held() {
        let mut in_use = InUse::default();
        assert_eq!(in_use.oldest(), None);
        let (three, four, own) = (run(), run(), run());
        in_use.add(3, [&three].into_iter());
        assert_eq!(in_use.oldest(), Some(3));
        in_use.add(4, [&four, &own].into_iter());
        in_use.add(5, [].into_iter());
        assert_eq!(in_use.oldest(), Some(3));
        // An old one that is held holds those after it, too.
        drop(four);
        assert_eq!(in_use.oldest(), Some(3));
        drop(three);
        assert_eq!(in_use.oldest(), Some(4));
        drop(own);
        // The newest always is.
        assert_eq!(in_use.oldest(), Some(5));
    }
}
