//! Writes what subtasks hand over: one bundle object for all of a worker's subtasks and one epoch, and a bundle of its
//! own for each early flush. In the order in which things were handed over.
//!
//! What could not be written stays here, encoded, and goes with the next bundle by its identity (epoch and flush): it
//! is never encoded a second time.

use std::sync::Arc;

use millstream_common::{Env, Epoch, Error, Lane, Result};
use millstream_state_store::section::{EncodedSection, SectionOptions};
use millstream_state_store::{Run, StateStore, WriterName};
use tokio::sync::mpsc;

use crate::task::{PendingSection, SubtaskId};

/// What is to be written.
pub(crate) enum WriteOrder {
    /// A section of an open epoch.
    Early(SubtaskId, PendingSection),
    /// All sections of an epoch that every subtask here has closed.
    Epoch(Epoch, Vec<(SubtaskId, PendingSection)>),
}

/// What became of it.
pub(crate) struct Written {
    /// Sections that are in the store now, in the order in which each subtask handed them over.
    pub(crate) runs: Vec<(SubtaskId, Arc<Run>)>,
    /// The epoch, when the order was one; with the error when its sections are not in the store.
    pub(crate) epoch: Option<(Epoch, Option<Error>)>,
    /// Bytes and requests that it took.
    pub(crate) bytes: u64,
    pub(crate) puts: u32,
}

/// Works off orders until either end closes.
pub(crate) async fn run(
    env: Env,
    store: StateStore,
    name: WriterName,
    options: SectionOptions,
    mut orders: mpsc::Receiver<WriteOrder>,
    done: mpsc::Sender<Written>,
) {
    let mut left: Vec<(SubtaskId, EncodedSection)> = Vec::new();
    while let Some(order) = orders.recv().await {
        let (sections, epoch) = match order {
            WriteOrder::Early(id, section) => (vec![(id, section)], None),
            WriteOrder::Epoch(epoch, sections) => (sections, Some(epoch)),
        };
        let mut failed = None;
        for (id, section) in sections {
            match encode(&env, section, &options).await {
                Ok(encoded) => left.push((id, encoded)),
                Err(e) => failed = Some(e),
            }
        }
        let mut written = Written { runs: Vec::new(), epoch: None, bytes: 0, puts: 0 };
        if failed.is_none() && !left.is_empty() {
            match store.write_bundle(name, left.iter().map(|(_, s)| s.clone()).collect()).await {
                Ok(runs) => {
                    written.bytes = runs.first().map_or(0, |r| r.object_bytes);
                    written.puts = 1;
                    written.runs = left.drain(..).map(|(id, _)| id).zip(runs.into_iter().map(Arc::new)).collect();
                }
                Err(e) => failed = Some(e),
            }
        }
        written.epoch = epoch.map(|e| (e, failed));
        if done.send(written).await.is_err() {
            return;
        }
    }
}

async fn encode(env: &Env, section: PendingSection, options: &SectionOptions) -> Result<EncodedSection> {
    let options = options.clone();
    env.run(Lane::Background, "encode section", async move {
        section.writer.encode(&options, &section.layouts, section.ranges, section.interval)
    })
    .await?
}
