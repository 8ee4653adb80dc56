//! The input of a run: events in splits, from a seed.
//!
//! Event times rise along a split, out of order by less than the watermark's delay. Splits differ in length and in how
//! far they lag behind the others; some end early, one may have nothing to say until all others have said everything.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, TimestampMillisecondArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use millstream_common::{Error, Result};

use super::dice::Dice;

/// One row of the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// Unique.
    pub id: i64,
    /// What it is keyed by.
    pub key: i64,
    /// What is added up.
    pub value: i64,
    /// 0 or 1: which side of a join it is on.
    pub side: i64,
    /// Event time, ms.
    pub time: i64,
    /// When the split hands it out, ms of virtual time since the start of the run.
    pub at_ms: u64,
}

/// All splits.
#[derive(Debug)]
pub struct Dataset {
    /// By split.
    pub splits: Vec<Vec<Event>>,
    /// How far event times of a split are out of order at most, ms.
    pub delay_ms: i64,
    /// A split without rows for so long is idle, ms of virtual time; set when one has nothing to say for long.
    pub idle_ms: Option<u64>,
    /// Watermarks wait for less than rows are out of order: some come late.
    pub late: bool,
    /// The last split is there from then on, in virtual time; the others always are.
    pub appears_ms: Option<u64>,
    /// Splits that are ahead of others by more than this wait for them.
    pub max_drift_ms: Option<u64>,
}

/// Where event times begin.
const START: i64 = 1_000_000;

impl Dataset {
    /// The input of `seed`, which comes over `paced_ms` of virtual time (0: all is there at once). `may_idle`: one split
    /// may have nothing to say for long. `late`: rows may come late.
    #[must_use]
    pub fn generate(seed: u64, paced_ms: u64, may_idle: bool, late: bool) -> Self {
        let mut dice = Dice::new(seed, "data");
        let delay_ms = dice.signed(0..400);
        let splits = dice.within(1..7) as usize;
        let keys = *dice.pick(&[3, 20, 150, 600]);
        let span_ms = dice.signed(4_000..20_000);
        let most_rows = *dice.pick(&[100, 400, 1_200]);
        let late_split = may_idle && paced_ms == 0 && splits > 1 && dice.chance(40);
        let mut out = Vec::new();
        let mut id = 0;
        for split in 0..splits {
            let rows = dice.within(20..most_rows);
            let ends_early = dice.chance(25);
            let share = if ends_early { 0.3 } else { 1.0 };
            let lag_ms = if dice.chance(30) { dice.within(0..1_500) } else { 0 };
            let events = (0..rows).map(|i| {
                let progress = share * i as f64 / rows as f64;
                id += 1;
                let mut event = Event {
                    id,
                    key: skewed(&mut dice, keys),
                    value: dice.signed(-50..1_000),
                    side: i64::from(dice.chance(50)),
                    time: START + (progress * span_ms as f64) as i64 + delay_ms - dice.signed(0..delay_ms + 1),
                    at_ms: (progress * paced_ms as f64) as u64 + if paced_ms > 0 { lag_ms } else { 0 },
                };
                if late_split && split + 1 == splits {
                    event.time += span_ms + 2 * delay_ms + 1;
                    event.at_ms = 12_000;
                }
                event
            });
            out.push(events.collect());
        }
        let mut dice = Dice::new(seed, "appears");
        let appears = may_idle && splits > 1 && dice.chance(if late_split { 60 } else { 20 });
        let appears_ms = appears.then(|| dice.within(0..if late_split { 12_000 } else { paced_ms + 3_000 }));
        if let (Some(ms), Some(last)) = (appears_ms.filter(|_| !late_split), out.last_mut()) {
            let last: &mut Vec<Event> = last;
            // Nobody holds the time for a split that is not there yet: its rows come behind all others.
            for event in last {
                event.time += span_ms + 2 * delay_ms + 1;
                event.at_ms += ms;
            }
        }
        let mut dice = Dice::new(seed, "drift");
        let max_drift_ms = dice.chance(15).then(|| dice.within(500..8_000));
        Self { splits: out, delay_ms, idle_ms: late_split.then_some(2_500), late, appears_ms, max_drift_ms }
    }

    /// All rows, split by split.
    pub fn events(&self) -> impl Iterator<Item = &Event> {
        self.splits.iter().flatten()
    }
}

/// Small keys are more frequent.
fn skewed(dice: &mut Dice, keys: u64) -> i64 {
    let a = dice.within(0..keys);
    (if dice.chance(50) { dice.within(0..a + 1) } else { a }) as i64
}

/// The columns of the input: id, key, value, side, time.
#[must_use]
pub fn schema() -> SchemaRef {
    let number = |name: &str| Field::new(name, DataType::Int64, false);
    Arc::new(Schema::new(vec![
        number("id"),
        number("key"),
        number("value"),
        number("side"),
        Field::new("time", DataType::Timestamp(TimeUnit::Millisecond, None), false),
    ]))
}

/// Rows as a batch.
pub fn batch(events: &[Event]) -> Result<RecordBatch> {
    let column = |f: fn(&Event) -> i64| -> ArrayRef { Arc::new(events.iter().map(f).collect::<Int64Array>()) };
    let times: TimestampMillisecondArray = events.iter().map(|e| Some(e.time)).collect();
    let columns =
        vec![column(|e| e.id), column(|e| e.key), column(|e| e.value), column(|e| e.side), Arc::new(times) as _];
    RecordBatch::try_new(schema(), columns).map_err(|e| Error::internal("the events make no batch").source(e))
}
