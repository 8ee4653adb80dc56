//! Warming up: what a subtask will ask for comes into memory in large reads before, not block by block when it is asked.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use millstream_common::env::Running;
use millstream_common::{KeyGroupRanges, Lane};
use millstream_proto::control::to_coordinator::Message;
use millstream_state_store::{HotKeys, Run, View, WarmUp};
use parking_lot::Mutex;

use super::job::JobContext;
use crate::task::VersionView;

/// So long a rescale waits, at most, for what it moves to be brought into memory.
const BEFORE_RESCALE: Duration = Duration::from_secs(10);
/// So long a subtask that starts has the store for itself.
const FIRST_ROWS: Duration = Duration::from_secs(1);

/// Views that wait for their turn, at most: a store that cannot keep up is not read ahead of.
const WAITING: usize = 64;

/// What a job reads ahead on this worker.
#[derive(Default)]
pub(super) struct Warming {
    before_rescale: Vec<Running<()>>,
    behind: Option<Running<()>>,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    /// Runs that it does not list are not read ahead.
    newest: Option<Arc<VersionView>>,
    /// To be read behind what is being read; with hot keys, only what holds those.
    waiting: VecDeque<(View, Option<Arc<HotKeys>>)>,
    /// Somebody works it off.
    busy: bool,
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
        let views = views(context, version, ranges, |_| true);
        let limit = BEFORE_RESCALE.min(context.settings.checkpoint.timeout / 2);
        self.before_rescale.push(context.env.run(Lane::Background, "warm-up", async move {
            let all = async {
                for view in views {
                    view.warm(WarmUp::AWAITED, |_| true).await?;
                }
                Ok(())
            };
            if let Err(e) = env.timeout(limit, "the warm-up for a rescale", all).await.and_then(|r| r) {
                tracing::debug!("{e}");
            }
            worker.tell(message);
        }));
    }

    /// Reads what of `version` lies in `ranges`, as far as the cache has room, beside the subtasks that have begun to use
    /// it. What was to be read before is given up.
    pub(super) fn behind(&mut self, context: &JobContext, version: &Arc<VersionView>, ranges: &KeyGroupRanges) {
        self.stop();
        self.newest(version);
        let all = views(context, version, ranges, |_| true);
        self.add(context, all.into_iter().map(|view| (view, None)).collect(), FIRST_ROWS);
    }

    /// Reads nothing ahead any more: a rescale is under way, or other key groups are here.
    pub(super) fn stop(&mut self) {
        self.before_rescale.clear();
        self.behind = None;
        self.shared = Arc::default();
    }

    /// Some runs of `version` have taken the place of others of `old`, whoever merged them: where those were there is room
    /// now. What holds their `hot` keys comes first.
    pub(super) fn after_compaction(
        &mut self,
        context: &JobContext,
        (old, version): (&VersionView, &VersionView),
        ranges: &KeyGroupRanges,
        hot: HotKeys,
    ) {
        let known: BTreeSet<_> = old.runs.iter().flatten().map(|run| run.identity()).collect();
        let new = || views(context, version, ranges, |run| !known.contains(&run.identity()));
        let hot = Arc::new(hot);
        let first = new().into_iter().filter(|_| !hot.is_empty()).map(|view| (view, Some(hot.clone())));
        self.add(context, first.chain(new().into_iter().map(|view| (view, None))).collect(), Duration::ZERO);
    }

    /// Runs that `version` does not list are no longer read ahead.
    pub(super) fn newest(&self, version: &Arc<VersionView>) {
        self.shared.lock().newest = Some(version.clone());
    }

    fn add(&mut self, context: &JobContext, views: Vec<(View, Option<Arc<HotKeys>>)>, after: Duration) {
        {
            let mut shared = self.shared.lock();
            let room = WAITING.saturating_sub(shared.waiting.len());
            shared.waiting.extend(views.into_iter().take(room));
            if shared.busy || shared.waiting.is_empty() {
                return;
            }
            shared.busy = true;
        }
        let (env, shared) = (context.env.clone(), self.shared.clone());
        self.behind = Some(context.env.run(Lane::Background, "warm-up", async move {
            env.sleep(after).await;
            while let Some((view, hot)) = next(&shared) {
                let lives = |run: &Run| shared.lock().newest.as_ref().is_some_and(|version| lists(version, run));
                let warmed = match hot {
                    Some(hot) => view.warm_hot(WarmUp::BEHIND, &hot, lives).await,
                    None => view.warm(WarmUp::BEHIND, lives).await,
                };
                if let Err(e) = warmed {
                    // Nobody waits for it: a read that needs the same will say what is wrong.
                    tracing::debug!("{e}");
                }
            }
        }));
    }
}

fn next(shared: &Mutex<Shared>) -> Option<(View, Option<Arc<HotKeys>>)> {
    let mut shared = shared.lock();
    let view = shared.waiting.pop_front();
    shared.busy = view.is_some();
    view
}

fn lists(version: &VersionView, run: &Run) -> bool {
    version.runs.iter().flatten().any(|r| r.identity() == run.identity())
}

/// A view for each task of those of its runs that are wanted.
fn views(
    context: &JobContext,
    version: &VersionView,
    ranges: &KeyGroupRanges,
    wanted: impl Fn(&Run) -> bool,
) -> Vec<View> {
    let of_task = |runs: &Vec<Arc<Run>>| runs.iter().filter(|run| wanted(run)).cloned().collect::<Vec<_>>();
    let tasks = version.runs.iter().map(of_task).filter(|runs| !runs.is_empty() && !ranges.is_empty());
    tasks.map(|runs| context.state.view(runs, ranges.clone(), version.layouts.clone())).collect()
}
