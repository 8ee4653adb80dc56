//! Warming up: what a subtask will ask for comes into memory in large reads before, not block by block when it is asked.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use millstream_common::env::Running;
use millstream_common::{KeyGroupRanges, Lane};
use millstream_proto::control::to_coordinator::Message;
use millstream_state_store::{Run, View};
use parking_lot::Mutex;

use super::job::JobContext;
use crate::task::VersionView;

/// So long a rescale waits, at most, for what it moves to be brought into memory.
const BEFORE_RESCALE: Duration = Duration::from_secs(10);
/// So long a subtask that starts has the store for itself.
const FIRST_ROWS: Duration = Duration::from_secs(1);

/// What a job reads ahead on this worker.
#[derive(Default)]
pub(super) struct Warming {
    before_rescale: Vec<Running<()>>,
    behind: Option<Running<()>>,
    /// The runs of the newest version, by object and offset.
    live: Arc<Mutex<BTreeSet<(String, u64)>>>,
}

impl Warming {
    /// Reads what of `version` lies in `ranges`, as far as the cache has room, before the rescale goes on: what comes
    /// now is not waited for behind its barrier. Then, or when it takes too long, the coordinator gets `message`.
    pub(super) fn before_rescale(
        &mut self,
        context: &JobContext,
        version: &VersionView,
        ranges: &KeyGroupRanges,
        message: Message,
    ) {
        let (env, worker) = (context.env.clone(), context.worker.clone());
        let views = views(context, version, ranges);
        let limit = BEFORE_RESCALE.min(context.settings.checkpoint.timeout / 2);
        self.before_rescale.push(context.env.run(Lane::Background, "warm-up", async move {
            let all = async {
                for view in views {
                    view.warm(|_| true).await?;
                }
                Ok(())
            };
            if let Err(e) = env.timeout(limit, "the warm-up for a rescale", all).await.and_then(|r| r) {
                tracing::debug!("{e}");
            }
            worker.tell(message);
        }));
    }

    /// Reads what of `version` lies in `ranges`, as far as the cache has room, beside the job that has begun to use it.
    /// The one before is given up.
    pub(super) fn behind(&mut self, context: &JobContext, version: &VersionView, ranges: &KeyGroupRanges) {
        self.before_rescale.clear();
        self.on_version(version);
        let (env, live) = (context.env.clone(), self.live.clone());
        let views = views(context, version, ranges);
        self.behind = (!views.is_empty()).then(|| {
            context.env.run(Lane::Background, "warm-up", async move {
                env.sleep(FIRST_ROWS).await;
                for view in views {
                    let lives = |run: &Run| live.lock().contains(&name(run));
                    if let Err(e) = view.warm(lives).await {
                        // Nobody waits for it: a read that needs the same will say what is wrong.
                        return tracing::debug!("{e}");
                    }
                }
            })
        });
    }

    /// Runs that `version` no longer lists are not read ahead.
    pub(super) fn on_version(&mut self, version: &VersionView) {
        *self.live.lock() = version.runs.iter().flatten().map(|run| name(run)).collect();
    }
}

fn name(run: &Run) -> (String, u64) {
    let (object, offset) = run.identity();
    (object.to_owned(), offset)
}

fn views(context: &JobContext, version: &VersionView, ranges: &KeyGroupRanges) -> Vec<View> {
    let tasks = version.runs.iter().filter(|runs| !runs.is_empty() && !ranges.is_empty());
    tasks.map(|runs| context.state.view(runs.clone(), ranges.clone(), version.layouts.clone())).collect()
}
