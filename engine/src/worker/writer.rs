//! Writes what subtasks hand over: one bundle object for all of a worker's subtasks and one epoch, and a bundle of its
//! own for each early flush. In the order in which things were handed over.
//!
//! What could not be written stays here, encoded, and goes with the next bundle by its identity (epoch and flush): it
//! is never encoded a second time.

use std::sync::Arc;
use std::time::Duration;

use millstream_common::{Env, Epoch, Error, Lane, Result};
use millstream_state_store::section::{EncodedSection, SectionOptions};
use millstream_state_store::{Run, StateStore, WriterName};
use tokio::sync::mpsc;

use super::heat::HeatLists;
use crate::task::{PendingSection, SubtaskId, VersionView};

/// What is to be written.
pub(crate) enum WriteOrder {
    /// A section of an open epoch.
    Early(SubtaskId, PendingSection),
    /// All sections of an epoch that every subtask here has closed, and the version whose hot blocks they tell of.
    Epoch(Epoch, Vec<(SubtaskId, PendingSection)>, Option<Arc<VersionView>>),
}

/// What became of it.
pub(crate) struct Written {
    /// Sections that are in the store now, in the order in which each subtask handed them over.
    pub(crate) runs: Vec<(SubtaskId, Arc<Run>)>,
    /// The epoch, when the order was one; with the error when its sections are not in the store yet.
    pub(crate) epoch: Option<(Epoch, Option<Error>)>,
    /// A section could not be encoded: what it holds is lost to this deployment.
    pub(crate) lost: Option<Error>,
    /// Bytes and requests that it took.
    pub(crate) bytes: u64,
    pub(crate) puts: u32,
}

/// From one try to write what is left to the next; each has itself tried for long.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// Works off orders until either end closes.
pub(crate) async fn run(
    env: Env,
    store: StateStore,
    name: WriterName,
    mut orders: mpsc::Receiver<WriteOrder>,
    done: mpsc::Sender<Written>,
) {
    let mut left: Vec<(SubtaskId, EncodedSection)> = Vec::new();
    let mut heat = HeatLists::default();
    loop {
        // A subtask that waits for room closes no epoch, so what is left must not wait for an order.
        let again = !left.is_empty();
        let order = millstream_common::select! {
            order = orders.recv() => match order {
                Some(order) => Some(order),
                None => return,
            },
            () = env.sleep(RETRY_PAUSE), if again => None,
        };
        let (sections, epoch, version) = match order {
            Some(WriteOrder::Early(id, section)) => (vec![(id, section)], None, None),
            Some(WriteOrder::Epoch(epoch, sections, version)) => (sections, Some(epoch), version),
            None => (Vec::new(), None, None),
        };
        let mut written = Written { runs: Vec::new(), epoch: None, lost: None, bytes: 0, puts: 0 };
        let mut kept = 0;
        for (id, section) in sections {
            let ranges = section.ranges.clone();
            match encode(&env, section, store.section_options(kept)).await {
                Ok(mut encoded) => {
                    if let Some(version) = &version
                        && let Some(list) = heat.list(&env, &store, id, version, &ranges)
                    {
                        encoded.attach_heat(list);
                    }
                    kept += encoded.kept_bytes();
                    left.push((id, encoded));
                }
                Err(e) => written.lost = Some(e),
            }
        }
        // Nothing of it is held in use while the store takes its time.
        drop(version);
        let mut failed = None;
        if written.lost.is_none() && !left.is_empty() {
            match store.write_bundle(name, left.iter().map(|(_, s)| s.clone()).collect()).await {
                Ok(runs) => {
                    written.bytes = runs.first().map_or(0, |r| r.object_bytes);
                    written.puts = 1;
                    written.runs = left.drain(..).map(|(id, _)| id).zip(runs.into_iter().map(Arc::new)).collect();
                }
                Err(e) => {
                    tracing::warn!("{} sections of state could not be written and will be again: {e}", left.len());
                    left.iter_mut().for_each(|(_, section)| section.drop_kept_blocks());
                    failed = Some(e);
                }
            }
        }
        written.epoch = epoch.map(|e| (e, failed));
        if done.send(written).await.is_err() {
            return;
        }
    }
}

async fn encode(env: &Env, section: PendingSection, options: SectionOptions) -> Result<EncodedSection> {
    env.run(Lane::Background, "encode section", async move {
        section.writer.encode(&options, &section.layouts, section.ranges, section.interval)
    })
    .await?
}
