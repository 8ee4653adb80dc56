//! Inner join of two keyed inputs within tumbling windows of event time.

use std::sync::Arc;

use arrow_array::{ArrayRef, TimestampMillisecondArray};
use arrow_schema::SchemaRef;
use millstream_common::Result;
use millstream_state_store::schema::{Field as StateField, Form};

use super::EMIT_ROWS;
use super::due::{Firing, Next, next_due};
use super::keys::{check_append_only, check_positive, check_time, field, output, output_schema, times};
use super::row::{RowBuilder, RowCodec};
use super::window::WindowColumns;
use crate::element::TimestampMs;
use crate::operator::{Collector, KeyedBatch, Operator, Progress};
use crate::state::value::{put_bytes, put_u64, take_bytes, take_u64};
use crate::state::{SlotId, StateSet, StateValue, TimedState};

/// One input of a join.
#[derive(Clone, Debug)]
pub struct JoinSide {
    /// Its columns.
    pub schema: SchemaRef,
    /// The column with the event times.
    pub time_column: usize,
    /// The columns that it gives to the result; may be none.
    pub columns: Vec<usize>,
    /// Rows of a key and window that are alike in these columns count once. With no columns: one row stands for all.
    pub distinct: bool,
}

/// Rows of one side, by their bytes.
#[derive(Debug, Default)]
struct SideRows {
    rows: Vec<Box<[u8]>>,
    /// Sum of their lengths.
    bytes: usize,
}

impl SideRows {
    fn find(&self, row: &[u8]) -> Result<usize, usize> {
        self.rows.binary_search_by(|r| (**r).cmp(row))
    }

    fn insert(&mut self, row: &[u8]) {
        let (Ok(at) | Err(at)) = self.find(row);
        self.bytes += row.len();
        self.rows.insert(at, row.into());
    }

    fn heap_bytes(&self) -> usize {
        self.bytes + self.rows.capacity() * size_of::<Box<[u8]>>()
    }

    fn encode(&self, into: &mut Vec<u8>) {
        put_u64(self.rows.len() as u64, into);
        self.rows.iter().for_each(|row| put_bytes(row, into));
    }

    fn decode(bytes: &mut &[u8]) -> Result<Self> {
        let mut side = Self::default();
        for _ in 0..take_u64(bytes)? {
            let row = take_bytes(bytes)?;
            side.bytes += row.len();
            side.rows.push(row.into());
        }
        Ok(side)
    }
}

/// The rows of a key and window.
#[derive(Debug, Default)]
struct Pair([SideRows; 2]);

impl StateValue for Pair {
    fn encode(&self, into: &mut Vec<u8>) {
        self.0.iter().for_each(|side| side.encode(into));
    }

    fn decode(mut bytes: &[u8]) -> Result<Self> {
        Ok(Self([SideRows::decode(&mut bytes)?, SideRows::decode(&mut bytes)?]))
    }

    fn heap_bytes(&self) -> usize {
        self.0[0].heap_bytes() + self.0[1].heap_bytes()
    }

    fn after_upgrade(&mut self) {
        // Rows of another form may be in another order.
        for side in &mut self.0 {
            side.rows.sort_unstable();
            side.bytes = side.rows.iter().map(|r| r.len()).sum();
        }
    }
}

struct Side {
    time_column: usize,
    distinct: bool,
    codec: RowCodec,
}

/// Joins rows of two inputs with equal keys in the same window. Emits, at the window's end, for each pair the columns of
/// the left row, those of the right row, then the window's own. Input 0 is the left one.
pub struct WindowJoin {
    sides: [Side; 2],
    size_ms: i64,
    columns: WindowColumns,
    schema: SchemaRef,
    state: TimedState<Pair>,
    lasts: Vec<TimestampMs>,
    firing: Option<Firing>,
}

impl WindowJoin {
    /// A join in windows of `size_ms`.
    pub fn new(left: JoinSide, right: JoinSide, size_ms: i64, columns: WindowColumns) -> Result<Self> {
        check_positive(size_ms, "the size of a window")?;
        let mut fields = Vec::new();
        let mut value_schema = String::from("rows of both sides:");
        let mut sides = Vec::with_capacity(2);
        for side in [left, right] {
            check_append_only(&side.schema)?;
            check_time(&side.schema, side.time_column)?;
            for &i in &side.columns {
                fields.push(field(&side.schema, i)?.clone());
            }
            let codec = RowCodec::new(&side.schema, side.columns)?;
            let distinct = if side.distinct { " distinct" } else { "" };
            value_schema.push_str(&format!("{distinct} {};", codec.value_schema()));
            sides.push(Side { time_column: side.time_column, distinct: side.distinct, codec });
        }
        fields.extend(columns.fields());
        let schema = output_schema(fields)?;
        let value_schema = format!("size {size_ms}; {value_schema}");
        let [left, right] = <[Side; 2]>::try_from(sides)
            .map_err(|_| millstream_common::Error::internal("a join has two sides").code(9123))?;
        let rows = |name: &str, side: &Side| StateField::new(name, side.codec.list_form(side.distinct));
        let fields = vec![rows("left", &left), rows("right", &right)];
        let form = Form::Record { kind: format!("pairs in windows of {size_ms} ms"), fields };
        let state = TimedState::new("pairs", &value_schema, size_ms).described(form);
        Ok(Self { sides: [left, right], size_ms, columns, schema, state, lasts: Vec::new(), firing: None })
    }

    /// The columns that it emits.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// Emits the pairs of some entries; true when entries may be left.
    fn emit(&mut self, firing: &mut Firing, out: &mut Collector) -> Result<bool> {
        let mut pairs = Pairs::new(&self.sides);
        let mut total = 0;
        while total < EMIT_ROWS {
            let Some(slot) = firing.next() else {
                self.emit_pairs(pairs, firing.time, out)?;
                return Ok(false);
            };
            let Some(Pair([left, right])) = self.state.expire(slot) else { continue };
            for l in &left.rows {
                for r in &right.rows {
                    pairs.push(l, r)?;
                    total += 1;
                    if pairs.rows == EMIT_ROWS {
                        self.emit_pairs(std::mem::replace(&mut pairs, Pairs::new(&self.sides)), firing.time, out)?;
                    }
                }
            }
        }
        self.emit_pairs(pairs, firing.time, out)?;
        Ok(true)
    }

    fn emit_pairs(&self, pairs: Pairs, last: TimestampMs, out: &mut Collector) -> Result<()> {
        let rows = pairs.rows;
        if rows == 0 {
            return Ok(());
        }
        let mut columns = pairs.left.finish()?;
        columns.extend(pairs.right.finish()?);
        let bound = |time: i64| Arc::new(TimestampMillisecondArray::from_value(time, rows)) as ArrayRef;
        columns.extend(self.columns.values(bound(last + 1 - self.size_ms), bound(last + 1)));
        // Without columns of any kind there would be no batch to hold the rows.
        out.emit(output(&self.schema, columns)?);
        Ok(())
    }

    /// Adds a row to its side, unless it is there already and counts once.
    fn add(&mut self, input: usize, slot: SlotId, row: &[u8]) {
        let distinct = self.sides[input].distinct;
        if distinct && self.state.get(slot).is_some_and(|pair| pair.0[input].find(row).is_ok()) {
            return;
        }
        self.state.update(slot, Pair::default, |pair| pair.0[input].insert(row));
    }
}

/// Joined rows in the making.
struct Pairs {
    left: RowBuilder,
    right: RowBuilder,
    rows: usize,
}

impl Pairs {
    fn new(sides: &[Side; 2]) -> Self {
        Self { left: sides[0].codec.builder(), right: sides[1].codec.builder(), rows: 0 }
    }

    fn push(&mut self, left: &[u8], right: &[u8]) -> Result<()> {
        self.left.push(left)?;
        self.right.push(right)?;
        self.rows += 1;
        Ok(())
    }
}

impl Operator for WindowJoin {
    fn name_reads(&mut self, input: usize, batch: &KeyedBatch) -> Result<()> {
        let size = self.size_ms;
        self.lasts.clear();
        let times = times(&batch.records, self.sides[input].time_column)?;
        self.lasts.extend(times.iter().map(|t| (t.div_euclid(size) + 1) * size - 1));
        self.state.name_batch(&batch.keys, &self.lasts);
        Ok(())
    }

    fn process(&mut self, input: usize, batch: &KeyedBatch, out: &mut Collector) -> Result<()> {
        let rows = self.state.take_rows()?;
        let (bound, mut bytes) = (self.sides[input].codec.bind(&batch.records)?, Vec::new());
        let mut late = 0;
        for (row, &slot) in rows.slots.iter().enumerate() {
            let last = self.state.time(slot);
            if last <= out.fired_max() && last <= out.fired(self.state.group(slot)) {
                late += 1;
                continue;
            }
            bound.encode(row, &mut bytes);
            self.add(input, slot, &bytes);
        }
        out.count_late(late);
        self.state.give_back(rows);
        Ok(())
    }

    fn advance(&mut self, watermark: TimestampMs, out: &mut Collector) -> Result<Progress> {
        loop {
            if let Some(mut firing) = self.firing.take()
                && self.emit(&mut firing, out)?
            {
                self.firing = Some(firing);
                return Ok(Progress::More);
            }
            match next_due(&mut self.state, watermark, out) {
                Next::Fire(time) => self.firing = Some(Firing::start(&mut self.state, time, out)),
                Next::State => return Ok(Progress::NeedsState),
                Next::Nothing => return Ok(Progress::Done),
            }
        }
    }

    fn states(&mut self) -> Vec<&mut dyn StateSet> {
        vec![&mut self.state]
    }
}
