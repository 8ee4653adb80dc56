//! Asks sources for further splits while their job runs.

use std::time::Duration;

use millstream_common::env::AbortOnDrop;
use millstream_common::{Env, Lane};
use tokio::sync::mpsc;

use super::Event;
use super::open::Enumerators;
use crate::graph::{Head, JobGraph};
use crate::source::SplitEnumerator;

/// Asks as long as it is kept.
pub(super) struct Discoverer {
    _asking: Vec<AbortOnDrop>,
}

impl Discoverer {
    /// `id`: of the job. `known`: source and id of each split that it has.
    pub(super) fn start(
        env: &Env,
        id: &str,
        graph: &JobGraph,
        mut enumerators: Enumerators,
        known: &[(String, String)],
        events: &mpsc::Sender<Event>,
    ) -> Self {
        let mut all = Vec::new();
        for task in &graph.tasks {
            let Head::Source(source) = &task.head else { continue };
            let Some(interval) = source.source.discovery_interval() else { continue };
            let Some(enumerator) = enumerators.remove(&source.uid) else { continue };
            let known = known.iter().filter(|(uid, _)| *uid == source.uid).map(|(_, id)| id.clone()).collect();
            let asking = Asking { source_uid: source.uid.clone(), job: id.to_owned(), enumerator, known };
            let (clock, events) = (env.clone(), events.clone());
            all.push(AbortOnDrop(env.spawn(Lane::Io, "find splits", asking.run(clock, interval, events))));
        }
        Self { _asking: all }
    }
}

struct Asking {
    source_uid: String,
    job: String,
    enumerator: Box<dyn SplitEnumerator>,
    known: Vec<String>,
}

impl Asking {
    /// Until no split comes any more.
    async fn run(mut self, env: Env, interval: Duration, events: mpsc::Sender<Event>) {
        loop {
            env.sleep(interval).await;
            let found = match self.enumerator.discover(&self.known).await {
                Ok(found) => found,
                Err(e) => {
                    let (source, after) = (&self.source_uid, interval);
                    tracing::warn!(
                        "source {source} could not be asked for new splits, and will be again after {after:?}: {e}"
                    );
                    continue;
                }
            };
            let complete = found.complete;
            self.known.extend(found.new.iter().map(|s| s.id.clone()));
            if !complete && found.new.is_empty() {
                continue;
            }
            let (id, source_uid) = (self.job.clone(), self.source_uid.clone());
            if events.send(Event::Discovered { id, source_uid, found }).await.is_err() || complete {
                return;
            }
        }
    }
}
