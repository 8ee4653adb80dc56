//! The heat lists that go along in bundles: what is hot in the caches of this worker, told to whoever reads the state next.
//!
//! A list is made anew now and then, beside the checkpoints, since it takes a walk over all blocks that are known. It
//! goes along with the next section of its subtask, once: a checkpoint takes what is there and waits for nothing. Who
//! reads lists takes the newest that any run has. No bundle is ever written for a list alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use millstream_common::env::{Moment, Running};
use millstream_common::{Env, KeyGroupRanges, Lane};
use millstream_state_store::StateStore;

use crate::task::{SubtaskId, VersionView};

/// From one list of a subtask to the next that is made anew.
const EVERY: Duration = Duration::from_secs(10);
/// The same while nothing was hot yet.
const EVERY_AT_FIRST: Duration = Duration::from_secs(1);

/// The lists as they were made last.
#[derive(Default)]
pub(super) struct HeatLists(BTreeMap<SubtaskId, Made>);

struct Made {
    /// The key groups that it is about.
    ranges: KeyGroupRanges,
    /// One that no section has taken yet.
    list: Option<Bytes>,
    /// There has been one.
    known: bool,
    /// When the last one was begun, and that one until it is done.
    begun: Option<Moment>,
    making: Option<Running<Option<Bytes>>>,
}

impl HeatLists {
    /// What was hot of late for a subtask that owns `ranges`, for its next section; `None` when nothing was, or nothing
    /// new is known since the last one was taken. The next list will be about its runs of `version`.
    pub(super) fn list(
        &mut self,
        env: &Env,
        store: &StateStore,
        id: SubtaskId,
        version: &Arc<VersionView>,
        ranges: &KeyGroupRanges,
    ) -> Option<Bytes> {
        let fresh = || Made { ranges: ranges.clone(), list: None, known: false, begun: None, making: None };
        let made = self.0.entry(id).or_insert_with(fresh);
        if made.ranges != *ranges {
            *made = fresh();
        }
        if let Some(done) = made.making.as_mut().and_then(FutureExt::now_or_never) {
            made.making = None;
            // One that was not made leaves the one before.
            made.list = done.ok().flatten().or(made.list.take());
            made.known |= made.list.is_some();
        }
        let (now, every) = (env.now(), if made.known { EVERY } else { EVERY_AT_FIRST });
        if made.making.is_none() && made.begun.is_none_or(|begun| now.since(begun) >= every) {
            made.begun = Some(now);
            let (store, version, ranges) = (store.clone(), version.clone(), ranges.clone());
            made.making = Some(env.run(Lane::Background, "heat list", async move {
                store.heat_list(version.runs[id.task].iter().map(AsRef::as_ref), &ranges)
            }));
        }
        made.list.take()
    }
}
