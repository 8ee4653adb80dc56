//! Warming up: what a subtask will ask for comes into memory in large reads before, not block by block when it is asked.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use millstream_common::env::{Moment, Running};
use millstream_common::{Env, KeyGroupRanges, Lane, Result};
use millstream_proto::control::to_coordinator::Message;
use millstream_state_store::heat::HotSpans;
use millstream_state_store::{Run, View, WarmUp};
use parking_lot::Mutex;

use super::job::JobContext;
use super::shrunk::is_new;
use crate::task::VersionView;

/// So long a rescale waits, at most, for what it moves to be brought into memory.
const BEFORE_RESCALE: Duration = Duration::from_secs(10);
/// So long a subtask that starts has the store for itself, but for what was hot.
const FIRST_ROWS: Duration = Duration::from_secs(1);

/// What waits for its turn, at most: a store that cannot keep up is not read ahead of.
const WAITING: usize = 128;

/// What a job reads ahead on this worker.
#[derive(Default)]
pub(super) struct Warming {
    before_rescale: Vec<Running<()>>,
    behind: Option<Running<()>>,
    shared: Arc<Mutex<Shared>>,
}

/// Something to be read ahead.
enum Ahead {
    /// State that is to be kept here and is not: one run, so that no other is held while it comes.
    Resident(View),
    /// What was hot for those who had it before.
    Hottest(View),
    /// What was hot in the runs whose place these have taken.
    Successors { view: View, hot: Arc<HotSpans>, merged_here: bool },
    /// All of it, as far as there is room; not before.
    All(View, Moment),
}

impl Ahead {
    async fn read(&self, env: &Env, lives: impl Fn(&Run) -> bool + Send) -> Result<()> {
        match self {
            Self::Resident(view) => view.make_resident(WarmUp::BEHIND, lives).await,
            Self::Hottest(view) => view.warm_hottest(WarmUp::BEHIND, lives).await,
            // What was merged here is on its way to the SSD already.
            Self::Successors { view, hot, merged_here } => view.refill(hot, !merged_here, WarmUp::BEHIND, lives).await,
            Self::All(view, not_before) => {
                env.sleep(not_before.since(env.now())).await;
                view.warm(WarmUp::BEHIND, lives).await
            }
        }
        .map(drop)
    }
}

#[derive(Default)]
struct Shared {
    /// Runs that it does not list are not read ahead.
    newest: Option<Arc<VersionView>>,
    /// To be read behind what is being read.
    waiting: VecDeque<Ahead>,
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
                // Should it take too long, or should there not be room for all, the hottest are there.
                for view in &views {
                    view.make_resident(WarmUp::AWAITED, |_| true).await?;
                }
                for view in &views {
                    view.warm_hottest(WarmUp::AWAITED, |_| true).await?;
                }
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
        let (views, not_before) = (views(context, version, ranges, |_| true), context.env.now() + FIRST_ROWS);
        let resident = missing(context, version, ranges).map(Ahead::Resident).take(WAITING / 2);
        let first = resident.chain(views.iter().cloned().map(Ahead::Hottest)).collect::<Vec<_>>();
        self.add(context, first.into_iter().chain(views.into_iter().map(|view| Ahead::All(view, not_before))));
    }

    /// Reads nothing ahead any more: a rescale is under way, or other key groups are here.
    pub(super) fn stop(&mut self) {
        self.before_rescale.clear();
        self.behind = None;
        self.shared = Arc::default();
    }

    /// Some runs of `version` have taken the place of others of `old`, which had `hot` stretches of keys: where
    /// compactions had no room for what they wrote beside what they read, there is room now.
    pub(super) fn after_compaction(
        &mut self,
        context: &JobContext,
        old: &VersionView,
        version: &VersionView,
        ranges: &KeyGroupRanges,
        hot: &Arc<HotSpans>,
    ) {
        let new = is_new(&old.runs);
        let now = context.env.now();
        let mut ahead = Vec::new();
        for merged_here in [true, false] {
            let those =
                views(context, version, ranges, |run: &Run| new(run) && context.state.knows(run) == merged_here);
            ahead.extend(those.into_iter().map(|view| Ahead::Successors { view, hot: hot.clone(), merged_here }));
        }
        ahead.extend(views(context, version, ranges, &new).into_iter().map(|view| Ahead::All(view, now)));
        self.add(context, ahead.into_iter());
    }

    /// Brings what of `version` is to be kept here and is not. What an older version lacked and has not come yet is not
    /// waited for: who waits holds that version in use.
    pub(super) fn settle(&mut self, context: &JobContext, version: &VersionView, ranges: &KeyGroupRanges) {
        self.shared.lock().waiting.retain(|ahead| !matches!(ahead, Ahead::Resident(_)));
        self.add(context, missing(context, version, ranges).map(Ahead::Resident));
    }

    /// Runs that `version` does not list are no longer read ahead.
    pub(super) fn newest(&self, version: &Arc<VersionView>) {
        self.shared.lock().newest = Some(version.clone());
    }

    fn add(&mut self, context: &JobContext, ahead: impl Iterator<Item = Ahead>) {
        {
            let mut shared = self.shared.lock();
            let room = WAITING.saturating_sub(shared.waiting.len());
            shared.waiting.extend(ahead.take(room));
            if shared.busy || shared.waiting.is_empty() {
                return;
            }
            shared.busy = true;
        }
        let (env, shared) = (context.env.clone(), self.shared.clone());
        self.behind = Some(context.env.run(Lane::Background, "warm-up", async move {
            while let Some(ahead) = next(&shared) {
                let lives = |run: &Run| shared.lock().newest.as_ref().is_some_and(|version| lists(version, run));
                if let Err(e) = ahead.read(&env, lives).await {
                    // Nobody waits for it: a read that needs the same will say what is wrong.
                    tracing::debug!("{e}");
                }
            }
        }));
    }
}

fn next(shared: &Mutex<Shared>) -> Option<Ahead> {
    let mut shared = shared.lock();
    let next = shared.waiting.pop_front();
    shared.busy = next.is_some();
    next
}

fn lists(version: &VersionView, run: &Run) -> bool {
    version.runs.iter().flatten().any(|r| r.identity() == run.identity())
}

/// A view for each run that is to be kept here and is not.
fn missing<'a>(
    context: &'a JobContext,
    version: &'a VersionView,
    ranges: &'a KeyGroupRanges,
) -> impl Iterator<Item = View> + 'a {
    let runs =
        version.runs.iter().flatten().filter(|run| run.clip.overlaps(ranges) && context.state.lacks(run, ranges));
    runs.map(|run| context.state.view(vec![run.clone()], ranges.clone(), version.layouts.clone()))
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
