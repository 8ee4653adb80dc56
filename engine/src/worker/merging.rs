//! A compaction that the coordinator asked for, from its order to its report. Who runs it makes no difference here.

use std::sync::Arc;

use millstream_common::{Error, Execution, Generation, KeyGroupRanges, Result};
use millstream_proto::control::{Compact, CompactionDone, CompactionFailed, JobRef, to_coordinator::Message};
use millstream_state_store::compaction::{Merge, Merged, Throttle};
use millstream_state_store::{ReadTime, Run, StateStore, Tree, WriterName};

use crate::convert::{failure_to_proto, ranges_from_proto};

/// The inputs of an order.
pub(super) fn inputs(order: &Compact) -> Result<Vec<Arc<Run>>> {
    order.inputs.iter().map(|r| Run::from_proto(r).map(Arc::new)).collect()
}

/// Whether a run that is live is what an order for these key groups was given: only these count, as for the coordinator
/// when it puts the outputs in the place of the inputs.
pub(super) fn is_as_ordered(live: &Run, input: &Run, ranges: &KeyGroupRanges) -> bool {
    live.identity() == input.identity() && live.clip.intersect(ranges) == input.clip.intersect(ranges)
}

/// Merges `inputs` as `order` says, and writes what they amount to.
pub(super) async fn merge(
    state: &StateStore,
    order: &Compact,
    inputs: &[Arc<Run>],
    throttle: &Throttle,
) -> Result<Merged> {
    let job = order.job.clone().unwrap_or_default();
    let layouts = Tree::from_proto(order.tree.as_ref().unwrap_or(&Default::default()))?.layouts();
    let merge = Merge {
        inputs,
        ranges: &ranges_from_proto(&order.ranges)?,
        layouts: &layouts,
        bottom: order.bottom,
        read_time: ReadTime { event_time_ms: order.event_time_ms, processing_time_ms: order.processing_time_ms },
        writer: WriterName { generation: Generation(job.generation), execution: Execution(job.execution) },
        number: Some(order.number),
    };
    state.merge(merge, throttle).await
}

/// What the coordinator is told of its end.
pub(super) fn report(order: Compact, outcome: Result<Merged>) -> Message {
    match outcome {
        Ok(merged) => Message::CompactionDone(CompactionDone {
            job: order.job,
            outputs: merged.outputs.iter().map(Run::to_proto).collect(),
            number: order.number,
            bytes_read: merged.bytes_read,
        }),
        Err(e) => given_up(order.job, order.number, &e),
    }
}

/// What the coordinator is told of one that does not come to its end here.
pub(super) fn given_up(job: Option<JobRef>, number: u64, error: &Error) -> Message {
    Message::CompactionFailed(CompactionFailed { job, number, failure: Some(failure_to_proto(error)) })
}
