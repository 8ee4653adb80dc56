//! A keyed subtask that fires more than it has memory for, between channels and a store in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMillisecondType};
use arrow_array::{RecordBatch, StringArray, TimestampMillisecondArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use millstream_common::{AssignmentId, Env, Epoch, Execution, Generation, KeyGroupRanges};
use millstream_objects::object_store::memory::InMemory;
use millstream_objects::{Store, StoreOptions};
use millstream_state_store::tree::Tree;
use millstream_state_store::{Caches, Layout, MergeOperators, StateLayout, StateStore, StateStoreOptions, WriterName};
use tokio::sync::mpsc;

use super::chain::{Chain, Node};
use super::gate::{ChannelEnd, InputChannel, Origin};
use super::keyed::{self, KeyedTaskParts, Start, TaskMemory};
use super::output::EdgeOutput;
use super::{SubtaskId, TASK_QUEUE, TaskControl, TaskEvent, TaskMetrics, VersionView};
use crate::element::{Assignment, Barrier, BarrierKind, StreamElement, WATERMARK_MAX};
use crate::graph::Target;
use crate::operator::{Collector, Operator};
use crate::operators::aggregate::{AggregateCall, AggregateFunction};
use crate::operators::window::{WindowAggregate, WindowColumns, WindowSpec};

const KEYS: usize = 20_000;
const BATCH: usize = 500;
const MEMORY: TaskMemory =
    TaskMemory { rows_bytes: 256 << 10, write_buffer_bytes: 64 << 10, reads_bytes: 64 << 10, due_bytes: 256 << 10 };

fn schema() -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Millisecond, None);
    Arc::new(Schema::new(vec![Field::new("key", DataType::Utf8, false), Field::new("time", time, false)]))
}

/// One row of each key at each of these times.
fn rows(times: &[i64]) -> Vec<StreamElement> {
    let keys: Vec<String> = (0..KEYS).map(|key| format!("{key:06}")).collect();
    let batch = |time: i64, keys: &[String]| {
        let columns: Vec<arrow_array::ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(keys)),
            Arc::new(TimestampMillisecondArray::from_value(time, keys.len())),
        ];
        StreamElement::Batch(RecordBatch::try_new(schema(), columns).unwrap())
    };
    times.iter().flat_map(|&time| keys.chunks(BATCH).map(move |some| batch(time, some))).collect()
}

fn counts(window: WindowSpec) -> WindowAggregate {
    let count = AggregateCall {
        function: AggregateFunction::Count,
        input: None,
        filter: None,
        name: "n".into(),
        state_id: None,
    };
    let columns = WindowColumns { start: None, end: Some("end".into()) };
    WindowAggregate::new(&schema(), &[0], 1, window, vec![count], columns).unwrap()
}

/// What the windows of these rows have: rows by end of window and count, and the most memory that the state took.
async fn fire(window: WindowSpec, times: &[i64]) -> (BTreeMap<(i64, i64), usize>, u64) {
    let env = Env::test(1);
    let place = Store::from_backend(Arc::new(InMemory::new()), "memory://", &StoreOptions::default(), &env);
    let (caches, options) = (Caches::in_memory(64 << 10, 4 << 20), StateStoreOptions::default());
    let store = StateStore::new(place, caches, options, env.clone(), MergeOperators::default());
    let mut operator = counts(window);
    let mut tree = Tree::default();
    let task = tree.add_task("count").unwrap();
    let descriptor = operator.states()[0].descriptor().clone();
    let layout = StateLayout { layout: Layout::TimeOrdered, merge_operator: descriptor.merge_operator.clone() };
    let values = (&*descriptor.value_schema, Some(descriptor.schema(Vec::new())));
    let id = tree.add_described_state(task, "count", &descriptor.name, layout, values).unwrap();
    let assignment = Assignment { id: AssignmentId(1), ranges: vec![KeyGroupRanges::all()] };
    let version = VersionView {
        epoch: Epoch(0),
        committed_ms: 0,
        assignment: assignment.clone(),
        runs: vec![Vec::new()],
        layouts: tree.layouts(),
        fired: vec![Vec::new()],
        splits: BTreeMap::new(),
        task_ids: vec![Some(task)],
        committables: BTreeMap::new(),
    };
    let ((input, channel), (output, mut found)) = (mpsc::channel(8), mpsc::channel(8));
    let ((orders, control), (events_in, mut events)) = (mpsc::channel(TASK_QUEUE), mpsc::channel(8));
    let edge = EdgeOutput::new(0, vec![0], operator.schema(), &assignment, vec![output]);
    let node = Node { operator: Box::new(operator), collector: Collector::default(), targets: vec![Target::Edge(0)] };
    let metrics = Arc::<TaskMetrics>::default();
    let subtask = keyed::run(KeyedTaskParts {
        env: env.clone(),
        id: SubtaskId { task: 0, index: 0 },
        task,
        state_ids: vec![id],
        key_columns: vec![vec![0]],
        chain: Chain::new(env.clone(), 0, vec![node], Vec::new(), vec![edge]),
        channels: vec![InputChannel::new(0, 0, 0, Origin::Source(0), ChannelEnd::Open(channel))],
        store: store.clone(),
        memory: MEMORY,
        control,
        events: events_in,
        metrics: metrics.clone(),
        epoch: Epoch(1),
        start: Start::From(Arc::new(version)),
    });
    let source = async {
        for element in rows(times) {
            input.send(element).await.unwrap();
        }
        input.send(StreamElement::Watermark(WATERMARK_MAX)).await.unwrap();
        let last = Barrier { epoch: Epoch(1), kind: BarrierKind::Last };
        input.send(StreamElement::Barrier(last)).await.unwrap();
    };
    // What a worker does: it writes sections and says when they are there.
    let worker = async {
        let writer = WriterName { generation: Generation(1), execution: Execution(1) };
        loop {
            match events.recv().await.expect("the subtask runs") {
                TaskEvent::EarlySection { section, .. } => {
                    let options = store.section_options(0);
                    let encoded =
                        section.writer.encode(&options, &section.layouts, section.ranges, section.interval).unwrap();
                    let runs = store.write_bundle(writer, vec![encoded]).await.unwrap();
                    for run in runs {
                        orders.send(TaskControl::Flushed(Arc::new(run))).await.unwrap();
                    }
                }
                TaskEvent::Closed(_) => return,
                TaskEvent::Failed { error, .. } => panic!("{error}"),
                _ => {}
            }
        }
    };
    let receiver = async {
        let (mut windows, mut most) = (BTreeMap::new(), 0);
        loop {
            let element = found.recv().await.expect("the subtask runs");
            most = most.max(metrics.memory_bytes.load(Ordering::Relaxed));
            match element {
                StreamElement::Batch(batch) => {
                    let ends = batch.column_by_name("end").unwrap().as_primitive::<TimestampMillisecondType>();
                    let counts = batch.column_by_name("n").unwrap().as_primitive::<Int64Type>();
                    for (&end, &n) in ends.values().iter().zip(counts.values()) {
                        *windows.entry((end, n)).or_insert(0) += 1;
                    }
                }
                StreamElement::Barrier(_) => return (windows, most),
                _ => {}
            }
        }
    };
    let done = Box::pin(futures::future::join3(source, worker, receiver));
    match futures::future::select(done, Box::pin(subtask)).await {
        futures::future::Either::Left(((_, (), found), _)) => found,
        futures::future::Either::Right(_) => panic!("the subtask has ended"),
    }
}

/// Rows, what waits to be written, and what is due.
const MOST: u64 = 2 * MEMORY.rows_bytes + 4 * MEMORY.write_buffer_bytes;

#[tokio::test(start_paused = true)]
async fn a_window_with_more_keys_than_memory_fires_in_slices() {
    let (windows, most) = fire(WindowSpec::tumbling(10_000), &[1_000, 2_000, 15_000]).await;
    assert_eq!(windows, BTreeMap::from([((10_000, 2), KEYS), ((20_000, 1), KEYS)]));
    // All at once would be 20,000 slots of more than 100 bytes: 2 MB.
    assert!(most < MOST, "{most} of {MOST}");
}

#[tokio::test(start_paused = true)]
async fn panes_of_a_sliding_window_that_do_not_fit_together_fire_in_slices() {
    let (windows, most) = fire(WindowSpec { size_ms: 20_000, slide_ms: 5_000 }, &[1_000, 6_000, 11_000, 16_000]).await;
    let ends = [(5_000, 1), (10_000, 2), (15_000, 3), (20_000, 4), (25_000, 3), (30_000, 2), (35_000, 1)];
    assert_eq!(windows, ends.into_iter().map(|window| (window, KEYS)).collect());
    assert!(most < MOST, "{most} of {MOST}");
}
