//! Makes committables visible, in the order of their epochs. A store that does not answer is asked again for ever;
//! the coordinator ends the wait by ending the job's deployment.

use std::collections::BTreeMap;
use std::time::Duration;

use millstream_common::env::Moment;
use millstream_common::{Env, Error, Result};
use tokio::sync::mpsc;

use crate::graph::JobGraph;
use crate::sink::{Committable, Committer, SinkObjects, is_only_by_recovery};

/// The committers of a job's sinks.
pub(crate) struct Committers {
    env: Env,
    /// The job has no subtasks.
    recovers: Option<SinkObjects>,
    by_sink: BTreeMap<String, Box<dyn Committer>>,
}

impl Committers {
    /// `recovers`: the job has no subtasks; where its sinks have kept what.
    pub(crate) fn new(env: Env, graph: &JobGraph, recovers: Option<SinkObjects>) -> Result<Self> {
        let mut by_sink = BTreeMap::new();
        for sink in graph.tasks.iter().flat_map(|t| &t.sinks) {
            by_sink.insert(sink.uid.clone(), sink.sink.committer()?);
        }
        Ok(Self { env, recovers, by_sink })
    }

    pub(crate) fn all(&mut self) -> impl Iterator<Item = &mut Box<dyn Committer>> {
        self.by_sink.values_mut()
    }

    /// Commits until it is done or can never be.
    pub(crate) async fn commit(&mut self, committable: &Committable) -> Result<()> {
        let Some(committer) = self.by_sink.get_mut(&committable.sink_uid) else {
            return Err(Error::config(format!(
                "the version holds output of a sink '{}' that the job has not",
                committable.sink_uid
            ))
            .code(7010)
            .next("start the job with the plan that made the version"));
        };
        let mut wait = Duration::from_millis(50);
        loop {
            let done = match &self.recovers {
                None => committer.commit(committable).await,
                Some(objects) => committer.recover(committable, objects).await,
            };
            match done {
                Ok(()) => return Ok(()),
                Err(e) if e.is_final() || is_only_by_recovery(&e) => return Err(e),
                Err(e) => tracing::warn!("a commit of {} failed and is repeated: {e}", committable.sink_uid),
            }
            self.env.sleep(wait).await;
            wait = (wait * 2).min(Duration::from_secs(5));
        }
    }
}

/// A committable that a version lists, and since when the worker knows that it is durable.
pub(crate) type Durable = (Committable, Moment);
/// One that was committed, and how long after that.
pub(crate) type Committed = (Committable, Duration);

/// Commits what comes, and reports each batch with the error that ended it.
pub(crate) async fn run(
    mut committers: Committers,
    mut orders: mpsc::Receiver<Vec<Durable>>,
    done: mpsc::Sender<(Vec<Committed>, Option<Error>)>,
) {
    let env = committers.env.clone();
    while let Some(mut batch) = orders.recv().await {
        batch.sort_by_key(|(c, _)| (c.epoch, c.subtask, c.sequence));
        let mut committed = Vec::new();
        let mut failed = None;
        for (c, since) in batch {
            match committers.commit(&c).await {
                Ok(()) => committed.push((c, env.now().since(since))),
                Err(e) => {
                    failed = Some(e);
                    break;
                }
            }
        }
        if done.send((committed, failed)).await.is_err() {
            return;
        }
    }
}
