//! How long the keyed operators take for a row: `cargo run --release -p millstream-engine --example operator_speed`.
//!
//! One operator, one thread, state that fits into memory; batches of 8,192 rows, a watermark after each. The time covers
//! naming, processing, firing and a checkpoint's freeze and encoding every 64 batches; the encoding of keys, which the
//! task does before, stands beside it. Times are those of the CPU (where /proc tells them), so that a busy machine
//! disturbs less.

use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, TimestampMillisecondArray};
use arrow_schema::SchemaRef;
use millstream_common::{KeyGroupRanges, Result, StateId, TaskId};
use millstream_engine::operator::{Collector, KeyedBatch, Operator, Progress, SubtaskTime};
use millstream_engine::operators::aggregate::{AggregateCall, AggregateFunction};
use millstream_engine::operators::running::RunningAggregate;
use millstream_engine::operators::session::SessionAggregate;
use millstream_engine::operators::window::{WindowAggregate, WindowColumns, WindowSpec};
use millstream_state_store::key::{KeyBuffer, encode_keys};
use millstream_state_store::section::SectionWriter;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const ROWS: usize = 8_192;
const BATCHES: usize = 512;
/// Rows a second of event time.
const RATE: i64 = 100_000;

fn main() -> Result<()> {
    println!("{:<44} {:>9} {:>10} {:>9} {:>12}", "operator", "keys", "ns a row", "rows out", "key ns a row");
    for keys in [1_000, 100_000] {
        let batches = batches(keys);
        let schema = batches[0].schema();
        let both = || WindowColumns { start: Some("starttime".into()), end: Some("endtime".into()) };
        let count = || vec![call(AggregateFunction::Count, None, None, "num")];
        let sliding = WindowSpec::sliding(10_000, 2_000);
        let window = WindowAggregate::new(&schema, &[0], 1, sliding, count(), both())?;
        measure("count over windows of 10 s every 2 s", keys, window, &batches)?;
        let session = SessionAggregate::new(&schema, &[0], 1, 10_000, count(), both())?;
        measure("count over sessions with a gap of 10 s", keys, session, &batches)?;
        let running = RunningAggregate::new(&schema, &[0], seven())?;
        measure("seven running aggregates", keys, running, &batches)?;
        let rare = RunningAggregate::new(&schema, &[0], count())?;
        measure("a running count", keys, rare, &batches)?;
    }
    Ok(())
}

fn call(function: AggregateFunction, input: Option<usize>, filter: Option<usize>, name: &str) -> AggregateCall {
    AggregateCall { function, input, filter, name: name.into(), state_id: None }
}

fn seven() -> Vec<AggregateCall> {
    use AggregateFunction::{Avg, Count, Max, Min, Sum};
    vec![
        call(Count, None, None, "total"),
        call(Count, None, Some(3), "rank1"),
        call(Count, None, Some(4), "rank2"),
        call(Min, Some(2), None, "min"),
        call(Max, Some(2), None, "max"),
        call(Avg, Some(2), None, "avg"),
        call(Sum, Some(2), None, "sum"),
    ]
}

/// Pseudo-random keys and prices.
fn batches(keys: u64) -> Vec<RecordBatch> {
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    (0..BATCHES)
        .map(|b| {
            let time = |row: usize| 1_767_225_600_000 + (b * ROWS + row) as i64 * 1_000 / RATE;
            let prices: Vec<i64> = (0..ROWS).map(|_| (random() % 1_000_000) as i64).collect();
            let low: BooleanArray = prices.iter().map(|p| Some(*p < 10_000)).collect();
            let middle: BooleanArray = prices.iter().map(|p| Some((10_000..500_000).contains(p))).collect();
            let columns: Vec<(&str, ArrayRef)> = vec![
                ("auction", Arc::new(Int64Array::from_iter_values((0..ROWS).map(|_| (random() % keys) as i64)))),
                ("dateTime", Arc::new(TimestampMillisecondArray::from_iter_values((0..ROWS).map(time)))),
                ("price", Arc::new(Int64Array::from(prices))),
                ("low", Arc::new(low)),
                ("middle", Arc::new(middle)),
            ];
            RecordBatch::try_from_iter(columns).expect("the columns have one length")
        })
        .collect()
}

/// Nanoseconds that this thread has run, or else of the clock.
#[allow(clippy::disallowed_methods)] // a measurement by hand, outside of every job
fn now_ns() -> u64 {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    let on_cpu = std::fs::read_to_string("/proc/thread-self/schedstat").ok();
    let on_cpu = on_cpu.and_then(|s| s.split_whitespace().next().and_then(|n| n.parse().ok()));
    on_cpu.unwrap_or_else(|| START.get_or_init(std::time::Instant::now).elapsed().as_nanos() as u64)
}

fn measure(name: &str, keys: u64, mut operator: impl Operator, batches: &[RecordBatch]) -> Result<()> {
    let schema: SchemaRef = batches[0].schema();
    let time_column = schema.index_of("dateTime").expect("made above");
    for (i, state) in operator.states().into_iter().enumerate() {
        state.open(StateId(i as u16), KeyGroupRanges::all(), true);
    }
    let mut out = Collector::new(SubtaskTime::default());
    let (mut rows_out, mut encoding) = (0, 0);
    let start = now_ns();
    for (i, records) in batches.iter().enumerate() {
        let before = now_ns();
        let mut key_buffer = KeyBuffer::default();
        encode_keys(&[records.column(0).clone()], &mut key_buffer)?;
        let batch = KeyedBatch { records: records.clone(), keys: key_buffer };
        encoding += now_ns() - before;
        operator.name_reads(0, &batch)?;
        operator.states().into_iter().for_each(|s| s.end_group());
        operator.process(0, &batch, &mut out)?;
        operator.states().into_iter().for_each(|s| s.release_group());
        rows_out += out.take().iter().map(RecordBatch::num_rows).sum::<usize>();
        let times = records.column(time_column).as_any().downcast_ref::<TimestampMillisecondArray>();
        let watermark = times.expect("made above").value(0) - 4_000;
        while operator.advance(watermark, &mut out)? != Progress::Done {
            rows_out += out.take().iter().map(RecordBatch::num_rows).sum::<usize>();
        }
        rows_out += out.take().iter().map(RecordBatch::num_rows).sum::<usize>();
        out.set_time(SubtaskTime::uniform(watermark));
        if i % 64 == 63 {
            checkpoint(&mut operator)?;
        }
    }
    let rows = (batches.len() * ROWS) as f64;
    let total = (now_ns() - start - encoding) as f64 / rows;
    println!("{name:<44} {keys:>9} {total:>10.1} {rows_out:>9} {:>12.1}", encoding as f64 / rows);
    Ok(())
}

fn checkpoint(operator: &mut impl Operator) -> Result<()> {
    let mut section = SectionWriter::new(TaskId(1));
    for state in operator.states() {
        state.freeze();
        while !state.encode_frozen(4_096, &mut section)? {}
        state.flushed();
    }
    Ok(())
}
