//! A view: an immutable snapshot of the runs that a subtask reads, clipped to the key groups that it owns.

use std::sync::Arc;

use millstream_common::{KeyGroupRanges, StateId};

use crate::Layouts;
use crate::run::Run;
use crate::store::StateStore;
use crate::tree::sort_newest_first;

/// A snapshot of the runs that overlap some key groups. Cheap to clone.
#[derive(Clone)]
pub struct View {
    pub(crate) store: StateStore,
    inner: Arc<Inner>,
}

struct Inner {
    /// Newest first.
    runs: Vec<Arc<Run>>,
    /// What of each run this view sees: its clip within `ranges`.
    clips: Vec<KeyGroupRanges>,
    ranges: KeyGroupRanges,
    layouts: Layouts,
}

impl View {
    pub(crate) fn new(store: StateStore, mut runs: Vec<Arc<Run>>, ranges: KeyGroupRanges, layouts: Layouts) -> Self {
        runs.retain(|r| r.clip.overlaps(&ranges));
        sort_newest_first(&mut runs);
        let clips = runs.iter().map(|r| r.clip.intersect(&ranges)).collect();
        Self { store, inner: Arc::new(Inner { runs, clips, ranges, layouts }) }
    }

    /// The same for a part of its key groups.
    #[must_use]
    pub fn within(&self, ranges: &KeyGroupRanges) -> Self {
        let ranges = self.ranges().intersect(ranges);
        if ranges == *self.ranges() {
            return self.clone();
        }
        Self::new(self.store.clone(), self.runs().to_vec(), ranges, self.layouts().clone())
    }

    /// The runs, newest first.
    #[must_use]
    pub fn runs(&self) -> &[Arc<Run>] {
        &self.inner.runs
    }

    /// The key groups that it shows.
    #[must_use]
    pub fn ranges(&self) -> &KeyGroupRanges {
        &self.inner.ranges
    }

    /// The layouts of the states.
    #[must_use]
    pub fn layouts(&self) -> &Layouts {
        &self.inner.layouts
    }

    pub(crate) fn clip(&self, run: usize) -> &KeyGroupRanges {
        &self.inner.clips[run]
    }

    /// Whether a quarter or more of what is live of a run is seen here: then its whole index will be wanted.
    pub(crate) fn shows_much_of(&self, run: usize) -> bool {
        self.inner.clips[run].len() * 4 >= self.inner.runs[run].clip.len()
    }

    /// Whether any run may hold entries of `state`; with a time in (after, until] for time-ordered ones. From
    /// statistics alone: no I/O.
    #[must_use]
    pub fn may_hold(&self, state: StateId, time: Option<(i64, i64)>) -> bool {
        let times = match time {
            None => None,
            Some((after, until)) => match after.checked_add(1) {
                None => return false,
                Some(from) => Some((from, until)),
            },
        };
        self.inner.runs.iter().any(|r| r.may_hold(state, times))
    }
}
