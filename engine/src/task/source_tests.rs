//! A source subtask before whoever takes its rows.

use std::collections::BTreeMap;
use std::task::Context;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Int64Array, TimestampMillisecondArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use millstream_common::{Epoch, KeyGroupRanges};

use super::*;
use crate::element::{Assignment, StreamElement};
use crate::graph::Target;
use crate::source::{
    EventTimeFn, Source, Split, SplitEnumerator, SplitFigures, SplitGauges, WatermarkStrategy, no_event_time,
};
use crate::task::TASK_QUEUE;
use crate::task::output::EdgeOutput;
use crate::transport::DATA_QUEUE;

/// Has as many rows as anyone asks for.
#[derive(Clone)]
struct Endless(u64);

impl Source for Endless {
    fn schema(&self) -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, false)]))
    }

    fn enumerator(&self) -> Result<Box<dyn SplitEnumerator>> {
        Err(Error::internal("its split is known"))
    }

    fn reader(&self, _: &Split, _: Option<&Position>) -> Result<Box<dyn SplitReader>> {
        Ok(Box::new(self.clone()))
    }
}

impl SplitReader for Endless {
    fn poll_next(&mut self, _: &mut Context<'_>, max_rows: usize) -> Poll<Result<Read>> {
        let rows = Int64Array::from_iter_values((0..max_rows).map(|n| self.0 as i64 + n as i64));
        self.0 += max_rows as u64;
        let batch = RecordBatch::try_new(self.schema(), vec![Arc::new(rows)]);
        Poll::Ready(batch.map(Read::Batch).map_err(|e| Error::internal("a batch").source(e)))
    }

    fn position(&self) -> Position {
        Position { offset: self.0, detail: Vec::new() }
    }
}

/// A subtask that reads these splits, and its channels: rows, orders and events.
fn begin(
    env: &Env,
    source: Arc<dyn Source>,
    strategy: (WatermarkStrategy, usize),
    splits: &[&str],
) -> (
    impl Future<Output = ()> + use<>,
    mpsc::Receiver<StreamElement>,
    mpsc::Sender<TaskControl>,
    mpsc::Receiver<TaskEvent>,
) {
    begin_at(env, source, strategy, splits, (BTreeMap::new(), Arc::default()))
}

/// The same from positions that a version has, with counters that somebody watches.
fn begin_at(
    env: &Env,
    source: Arc<dyn Source>,
    (watermarks, batch_rows): (WatermarkStrategy, usize),
    splits: &[&str],
    (stored, metrics): (BTreeMap<(String, String), SplitState>, Arc<TaskMetrics>),
) -> (
    impl Future<Output = ()> + use<>,
    mpsc::Receiver<StreamElement>,
    mpsc::Sender<TaskControl>,
    mpsc::Receiver<TaskEvent>,
) {
    let assignment = Assignment { id: AssignmentId(1), ranges: vec![KeyGroupRanges::all()] };
    let (channel, rows) = mpsc::channel(DATA_QUEUE);
    let edge = EdgeOutput::new(0, vec![0], source.schema(), &assignment, vec![channel]);
    let (orders, control) = mpsc::channel(TASK_QUEUE);
    let (events_tx, events) = mpsc::channel(TASK_QUEUE);
    let version = VersionView {
        epoch: Epoch(0),
        committed_ms: 0,
        assignment,
        runs: Vec::new(),
        layouts: millstream_state_store::Layouts::default(),
        fired: Vec::new(),
        splits: stored,
        task_ids: Vec::new(),
        committables: BTreeMap::new(),
    };
    let owned = |(index, id): (u32, &&str)| {
        let split = Split { id: (*id).into(), payload: Vec::new() };
        OwnedSplit { source_uid: "source".into(), split, index }
    };
    let splits: Vec<_> = (0u32..).zip(splits).map(owned).collect();
    let subtask = run(SourceTaskParts {
        env: env.clone(),
        id: SubtaskId { task: 0, index: 0 },
        plan: SourcePlan {
            uid: "source".into(),
            name: "source".into(),
            source,
            watermarks,
            rate: None,
            batch_rows,
            targets: vec![Target::Edge(0)],
        },
        chain: Chain::new(env.clone(), 0, Vec::new(), Vec::new(), vec![edge]),
        live_splits: splits.len() as u64,
        splits,
        control,
        events: events_tx,
        metrics,
        start: Start::From(Arc::new(version)),
    });
    (subtask, rows, orders, events)
}

/// What `receiver` comes to beside the subtask, which must not end before.
async fn beside<T>(subtask: impl Future<Output = ()>, receiver: impl Future<Output = T>) -> T {
    tokio::pin!(receiver);
    tokio::pin!(subtask);
    match futures::future::select(receiver, subtask).await {
        futures::future::Either::Left((outcome, _)) => outcome,
        futures::future::Either::Right(_) => panic!("the subtask has ended"),
    }
}

/// An endless source before one who takes `rate` rows a second; how many rows stand before the barrier of a checkpoint.
async fn rows_before_a_barrier(rate: u32) -> usize {
    const WHEN: Duration = Duration::from_secs(60);
    let env = Env::test(1);
    let watermarks = WatermarkStrategy::monotonous(no_event_time());
    let (subtask, mut rows, orders, _events) = begin(&env, Arc::new(Endless(0)), (watermarks, 8_192), &["0"]);
    let receiver = async {
        let mut before = None;
        loop {
            if before.is_none() && env.now().0 >= WHEN {
                let barrier = TaskControl::Barrier { epoch: Epoch(1), kind: BarrierKind::Checkpoint };
                orders.try_send(barrier).expect("room in its queue");
                before = Some(0);
            }
            match rows.recv().await {
                Some(StreamElement::Batch(batch)) => {
                    before = before.map(|n| n + batch.num_rows());
                    env.sleep(Duration::from_secs(1) * batch.num_rows() as u32 / rate).await;
                }
                Some(StreamElement::Barrier(_)) => return before.expect("nobody else sends one"),
                Some(_) => {}
                None => panic!("the subtask has ended"),
            }
        }
    };
    beside(subtask, receiver).await
}

/// Endless splits, whose names say how much event time lies between two rows, ms. Rows are split and time.
struct Paces;

struct Pace {
    step: i64,
    time: i64,
}

impl Source for Paces {
    fn schema(&self) -> SchemaRef {
        let number = |name| Field::new(name, DataType::Int64, false);
        Arc::new(Schema::new(vec![number("step"), number("time")]))
    }

    fn enumerator(&self) -> Result<Box<dyn SplitEnumerator>> {
        Err(Error::internal("its splits are known"))
    }

    fn reader(&self, split: &Split, _: Option<&Position>) -> Result<Box<dyn SplitReader>> {
        let step = split.id.parse().map_err(|_| Error::internal("no pace"))?;
        Ok(Box::new(Pace { step, time: 0 }))
    }
}

impl SplitReader for Pace {
    fn poll_next(&mut self, _: &mut Context<'_>, max_rows: usize) -> Poll<Result<Read>> {
        let first = self.time;
        self.time += self.step * max_rows as i64;
        let steps = Int64Array::from_value(self.step, max_rows);
        let times = Int64Array::from_iter_values((1..=max_rows as i64).map(|n| first + n * self.step));
        let batch = RecordBatch::try_new(Paces.schema(), vec![Arc::new(steps), Arc::new(times)]);
        Poll::Ready(batch.map(Read::Batch).map_err(|e| Error::internal("a batch").source(e)))
    }

    fn position(&self) -> Position {
        Position { offset: self.time as u64, detail: Vec::new() }
    }
}

const DRIFT: i64 = 5_000;
/// Rows read together.
const TOGETHER: usize = 16;

/// The greatest time of each split, by its step.
type Times = BTreeMap<i64, i64>;

fn note(times: &mut Times, batch: &RecordBatch) {
    let column = |i: usize| batch.column(i).as_primitive::<Int64Type>().values().to_vec();
    for (step, time) in column(0).into_iter().zip(column(1)) {
        times.insert(step, time);
    }
}

fn aligned() -> WatermarkStrategy {
    let drift = Duration::from_millis(DRIFT as u64);
    WatermarkStrategy::bounded_out_of_orderness(time_in(1), 0).with_alignment("all", drift)
}

/// Event times from a column of numbers.
fn time_in(column: usize) -> EventTimeFn {
    Arc::new(move |batch| {
        let times = batch.column(column).as_primitive::<Int64Type>();
        Ok(TimestampMillisecondArray::new(times.values().clone(), None))
    })
}

/// Splits, by their names, with the times of their rows; they never end.
struct Given(BTreeMap<&'static str, Vec<i64>>);

struct GivenRows {
    times: Vec<i64>,
    next: usize,
}

/// Says how many rows there are.
struct Rows(u64);

impl SplitGauges for Rows {
    fn figures(&self) -> SplitFigures {
        SplitFigures { bytes: Some(self.0), ..SplitFigures::default() }
    }
}

impl Source for Given {
    fn schema(&self) -> SchemaRef {
        Endless(0).schema()
    }

    fn enumerator(&self) -> Result<Box<dyn SplitEnumerator>> {
        Err(Error::internal("its splits are known"))
    }

    fn reader(&self, split: &Split, position: Option<&Position>) -> Result<Box<dyn SplitReader>> {
        let next = position.map_or(0, |p| p.offset as usize);
        Ok(Box::new(GivenRows { times: self.0[split.id.as_str()].clone(), next }))
    }
}

impl SplitReader for GivenRows {
    fn poll_next(&mut self, _: &mut Context<'_>, max_rows: usize) -> Poll<Result<Read>> {
        let times: Vec<i64> = self.times[self.next..].iter().take(max_rows).copied().collect();
        if times.is_empty() {
            return Poll::Pending;
        }
        self.next += times.len();
        let batch = RecordBatch::try_new(Endless(0).schema(), vec![Arc::new(Int64Array::from(times))]);
        Poll::Ready(batch.map(Read::Batch).map_err(|e| Error::internal("a batch").source(e)))
    }

    fn position(&self) -> Position {
        Position { offset: self.next as u64, detail: Vec::new() }
    }

    fn gauges(&self) -> Option<Arc<dyn SplitGauges>> {
        Some(Arc::new(Rows(self.times.len() as u64)))
    }
}

/// Two splits, of which one begins behind rows that a version has. 100 ms pass from row to row; of 1,000 rows one is late by an
/// hour, nine by 10 s.
#[tokio::test(start_paused = true)]
async fn how_late_rows_are_is_counted_by_split() {
    const DELAY: i64 = 4_000;
    let env = Env::test(1);
    let late_by = |n: i64| match n % 1_000 {
        550 => 3_600_000,
        n if n % 100 == 99 && n != 599 => 10_000,
        _ => 0,
    };
    let time = |n: i64| 10_000_000 + n * 100 - late_by(n);
    let all: Vec<i64> = (0..2_000).map(time).collect();
    // The row before its first one is the greatest of it; the first itself is late, too.
    let stored = SplitState {
        source_uid: "source".into(),
        split_id: "b".into(),
        offset: 1_000,
        watermark_ms: Some(time(999 + 90) - DELAY),
        ..SplitState::default()
    };
    let stored = BTreeMap::from([(("source".to_owned(), "b".to_owned()), stored)]);
    let metrics = Arc::<TaskMetrics>::default();
    let watermarks = WatermarkStrategy::bounded_out_of_orderness(time_in(0), DELAY);
    let source = Given(BTreeMap::from([("a", all.clone()), ("b", all)]));
    let begun = begin_at(&env, Arc::new(source), (watermarks, 64), &["a", "b"], (stored, metrics.clone()));
    let (subtask, mut rows, _orders, _events) = begun;
    let receiver = async {
        let mut count = 0;
        while count < 3_000 {
            if let Some(StreamElement::Batch(batch)) = rows.recv().await {
                count += batch.num_rows();
            }
        }
        // It publishes before it waits.
        env.sleep(Duration::from_secs(1)).await;
    };
    beside(subtask, receiver).await;
    let splits = metrics.splits.lock().clone();
    let of = |split: &str| splits.iter().find(|s| s.split == split).unwrap();
    let a = of("a").progress.lock().clone();
    assert_eq!((a.rows(), a.behind(), a.lateness().count()), (2_000, 20, 2_000));
    assert_eq!(a.lateness().delay_ms(990), Some(1), "99 of 100 rows are in order");
    let held = |split: &SplitProgress, of_1000, exact: u64| {
        let told = split.lateness().delay_ms(of_1000).unwrap();
        assert!((exact..=exact + exact / 8).contains(&told), "{told} for {exact}");
    };
    // The row before a late one is its greatest: 100 ms more.
    held(&a, 999, 9_901);
    held(&a, 1_000, 3_599_901);
    let b = of("b").progress.lock().clone();
    // Ninety rows catch up with what was shown before, the first fifty of them are behind the watermark.
    assert_eq!((b.rows(), b.behind(), b.lateness().count()), (1_000, 10 + 50, 1_000));
    held(&b, 990, 8_901);
    assert_eq!((of("a").gauges.as_ref().unwrap().figures().bytes, of("b").position), (Some(2_000), 2_000));
}

#[tokio::test(start_paused = true)]
async fn a_split_far_ahead_of_another_waits_for_it() {
    let env = Env::test(1);
    let (subtask, mut rows, _orders, _events) = begin(&env, Arc::new(Paces), (aligned(), TOGETHER), &["100", "1"]);
    let receiver = async {
        let mut times = Times::new();
        while times.get(&1).is_none_or(|time| *time < 20_000) {
            if let Some(StreamElement::Batch(batch)) = rows.recv().await {
                note(&mut times, &batch);
            }
        }
        times
    };
    let times = beside(subtask, receiver).await;
    let drift = times[&100] - times[&1];
    // Rows are gathered by key before they are sent: the slow ones that were read may not all be here.
    let read = (DATA_QUEUE * crate::task::output::PIECE_ROWS_MIN + TOGETHER) as i64;
    assert!((0..=DRIFT + 100 * TOGETHER as i64 + read).contains(&drift), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn a_split_waits_for_what_others_read_and_is_not_idle() {
    let env = Env::test(1);
    let watermarks = aligned().with_idle_timeout(Some(Duration::from_secs(2)));
    let (subtask, mut rows, orders, _events) = begin(&env, Arc::new(Paces), (watermarks, TOGETHER), &["100"]);
    let receiver = async {
        let mut ends = Vec::new();
        for least in [0, 100_000] {
            orders.try_send(TaskControl::Align(least)).expect("room in its queue");
            let mut times = Times::new();
            let quiet = env.now() + Duration::from_secs(60);
            while let Ok(element) = env.timeout(quiet.since(env.now()), "rows", rows.recv()).await {
                match element {
                    Some(StreamElement::Batch(batch)) => note(&mut times, &batch),
                    Some(StreamElement::Idle) => panic!("it waits, and has not fallen silent"),
                    Some(_) => {}
                    None => panic!("the subtask has ended"),
                }
            }
            ends.push(times[&100]);
        }
        ends
    };
    let ends = beside(subtask, receiver).await;
    for (end, least) in ends.into_iter().zip([0, 100_000]) {
        assert!((least + DRIFT..=least + DRIFT + 100 * TOGETHER as i64).contains(&end), "{end} at {least}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_barrier_waits_for_what_goes_through_in_a_moment() {
    let (slow, medium, fast) =
        (rows_before_a_barrier(100).await, rows_before_a_barrier(4_000).await, rows_before_a_barrier(400_000).await);
    // What is read together, what is gathered, and what stands in the channel.
    let least = READ_ROWS_MIN + (DATA_QUEUE + 2) * crate::task::output::PIECE_ROWS_MIN;
    assert!((1..=least).contains(&slow), "{slow}");
    assert!((slow..=2 * 4_000).contains(&medium), "{medium}: two seconds' worth");
    assert!(fast >= 8_192, "{fast}: it is not starved");
}

#[test]
fn the_first_row_comes_at_once_and_the_others_at_their_rate() {
    assert_eq!(allowed_rows(0, 0.001, 0.0, Duration::ZERO), 1);
    assert_eq!(allowed_rows(1, 0.001, 0.0, Duration::from_secs(999)), 0);
    assert_eq!(allowed_rows(1, 0.001, 0.0, Duration::from_secs(1001)), 1);
    assert_eq!(allowed_rows(100, 1000.0, 0.0, Duration::from_millis(200)), 101);
    // The second of two splits comes half a turn later.
    assert_eq!(allowed_rows(0, 1.0, 0.5, Duration::from_millis(499)), 0);
    assert_eq!(allowed_rows(0, 1.0, 0.5, Duration::from_millis(501)), 1);
}
