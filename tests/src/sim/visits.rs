//! An operator whose state expires by event time, and whose values grow by a field in the program's second release: counts
//! the rows of a key that came close enough behind one another. Which ones do depends on the watermark that a row met, so
//! that is in the output beside the counts, and [`check`] can tell row by row what the state must have held.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int64Array, RecordBatch};
use arrow_schema::{DataType, Field as ArrowField, Schema, SchemaRef};
use millstream_common::{Error, Result};
use millstream_engine::element::{TimestampMs, WATERMARK_MIN};
use millstream_engine::operator::{Collector, KeyedBatch, Operator};
use millstream_engine::state::value::{put_i64, take_i64};
use millstream_engine::state::{KeyedState, StateSet, StateValue};
use millstream_state_store::schema::{Field, Form, Ttl, TtlClock};

use super::data::Dataset;
use super::sink::Row;

/// A visit ends when the watermark has gone so far since its last row.
const TTL_MS: i64 = 300;
/// Rows of a batch, about.
const EMIT_ROWS: usize = 64;
/// Columns of the output.
const COLUMNS: [&str; 6] = ["key", "id", "rows", "since", "fired", "release"];

/// The rows of a visit and, from the second release on, how many of them that release has seen.
#[derive(Clone)]
struct Visit {
    rows: i64,
    since: Option<i64>,
}

impl StateValue for Visit {
    fn encode(&self, into: &mut Vec<u8>) {
        put_i64(self.rows, into);
        if let Some(since) = self.since {
            put_i64(since, into);
        }
    }

    fn decode(mut bytes: &[u8]) -> Result<Self> {
        let rows = take_i64(&mut bytes)?;
        let since = if bytes.is_empty() { None } else { Some(take_i64(&mut bytes)?) };
        Ok(Self { rows, since })
    }

    fn heap_bytes(&self) -> usize {
        0
    }
}

/// Emits for each row what its visit has come to.
pub struct Visits {
    release: u32,
    visits: KeyedState<Visit>,
}

impl Visits {
    /// That of a release of the program: 0 or 1.
    #[must_use]
    pub fn new(release: u32) -> Self {
        let names = if release == 0 { &["rows"][..] } else { &["rows", "since"] };
        let fields = names.iter().map(|name| Field::new(name, Form::Integer)).collect();
        let visits = KeyedState::new("visits", &format!("visits of release {release}"))
            .described(Form::Record { kind: "visit".into(), fields })
            .with_ttl(Some(Ttl { duration_ms: TTL_MS, clock: TtlClock::EventTime }));
        Self { release, visits }
    }
}

/// The columns that it emits.
#[must_use]
pub fn schema() -> SchemaRef {
    Arc::new(Schema::new(COLUMNS.map(|name| ArrowField::new(name, DataType::Int64, false)).to_vec()))
}

impl Operator for Visits {
    fn name_reads(&mut self, _input: usize, batch: &KeyedBatch) -> Result<()> {
        self.visits.name_batch(&batch.keys);
        Ok(())
    }

    fn process(&mut self, _input: usize, batch: &KeyedBatch, out: &mut Collector) -> Result<()> {
        let column = |name: &str| {
            let column = batch.records.column_by_name(name).map(|c| c.as_primitive::<Int64Type>().values());
            column.ok_or_else(|| Error::internal(format!("a batch without {name}")))
        };
        let (ids, keys) = (column("id")?, column("key")?);
        let rows = self.visits.take_rows()?;
        let first = || Visit { rows: 0, since: (self.release > 0).then_some(0) };
        let mut emitted: Vec<[i64; COLUMNS.len()]> = Vec::with_capacity(ids.len());
        for (i, &slot) in rows.slots.iter().enumerate() {
            let visit = self.visits.update(slot, first, |visit| {
                visit.rows += 1;
                visit.since = visit.since.map(|n| n + 1);
                visit.clone()
            });
            let fired = out.fired(batch.keys.group(i));
            emitted.push([keys[i], ids[i], visit.rows, visit.since.unwrap_or(0), fired, self.release.into()]);
        }
        self.visits.give_back(rows);
        for chunk in emitted.chunks(EMIT_ROWS) {
            let column = |c: usize| -> ArrayRef { Arc::new(chunk.iter().map(|row| row[c]).collect::<Int64Array>()) };
            let batch = RecordBatch::try_new(schema(), (0..COLUMNS.len()).map(column).collect());
            out.emit(batch.map_err(|e| Error::internal("visits make no batch").source(e))?);
        }
        Ok(())
    }

    fn states(&mut self) -> Vec<&mut dyn StateSet> {
        vec![&mut self.visits]
    }
}

/// What an output row says.
#[derive(Clone, Copy, Debug)]
struct Seen {
    rows: i64,
    since: i64,
    fired: TimestampMs,
    release: i64,
}

/// Whether each event has one row, and each row what the one before it of its key has left.
pub fn check(got: &[Row], data: &Dataset) -> Result<(), String> {
    let mut due: BTreeSet<(i64, i64)> = data.events().map(|e| (e.key, e.id)).collect();
    let mut last: BTreeMap<i64, Seen> = BTreeMap::new();
    for row in got {
        let numbers: Vec<i64> = row.iter().copied().flatten().collect();
        let [key, id, rows, since, fired, release] = numbers[..] else { return Err(format!("{row:?} is no row")) };
        if !due.remove(&(key, id)) {
            return Err(format!("{row:?} comes twice, or from nowhere"));
        }
        let seen = Seen { rows, since, fired, release };
        let before = last.insert(key, seen);
        // What was written before the first watermark never expires.
        let going_on = before.filter(|b| b.fired == WATERMARK_MIN || b.fired.saturating_add(TTL_MS) > fired);
        // A release that does not know the field drops it.
        let since_before = going_on.filter(|b| b.release > 0).map_or(0, |b| b.since);
        let wanted = (going_on.map_or(0, |b| b.rows) + 1, if release > 0 { since_before + 1 } else { 0 });
        if (rows, since) != wanted {
            return Err(format!("key {key}: {seen:?} behind {before:?}, {wanted:?} is due"));
        }
    }
    if due.is_empty() { Ok(()) } else { Err(format!("{} rows are missing, as {:?}", due.len(), due.first())) }
}

/// The keys whose visits never expire: the last row of each came before the first watermark.
#[must_use]
pub fn never_expire(got: &[Row]) -> BTreeSet<i64> {
    let mut last = BTreeMap::new();
    for row in got {
        last.insert(row[0].unwrap_or_default(), row[4]);
    }
    last.into_iter().filter(|(_, fired)| *fired == Some(WATERMARK_MIN)).map(|(key, _)| key).collect()
}
