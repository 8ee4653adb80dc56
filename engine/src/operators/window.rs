//! Aggregates over tumbling and sliding windows of event time.
//!
//! Rows go into panes ([`super::pane`]): a row is added to one row of accumulators however many windows it is in. When a
//! window ends, its panes are merged by key. So a row that comes late for some of its windows counts in those that are
//! still open, through the pane that they share; it is late only when all of its windows have fired.
//!
//! Accumulators add up, so a pane that is not resident is not read when a row comes: what is added goes to the store as a
//! merge operand, and the scan before its window fires brings the sum.

use std::sync::Arc;

use arrow_array::{ArrayRef, TimestampMillisecondArray};
use arrow_schema::SchemaRef;
use millstream_common::{Error, Result};
use millstream_state_store::schema::ACCUMULATORS;

use super::EMIT_ROWS;
use super::aggregate::{Accumulators, AggregateCall, AggregateSet};
use super::keys::{KeyColumns, check_append_only, check_positive, check_time, key_head, output, output_schema, times};
use super::pane::Panes;
use crate::element::TimestampMs;
use crate::operator::{Collector, KeyedBatch, Operator, Progress};
use crate::state::{SlotId, StateSet, TimedState};

/// Windows of one size, aligned to 1970-01-01 00:00 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowSpec {
    /// Their length in milliseconds.
    pub size_ms: i64,
    /// From the start of one to the start of the next, in milliseconds; at most the size.
    pub slide_ms: i64,
}

impl WindowSpec {
    /// One after the other.
    #[must_use]
    pub fn tumbling(size_ms: i64) -> Self {
        Self { size_ms, slide_ms: size_ms }
    }

    /// One beginning every `slide_ms`.
    #[must_use]
    pub fn sliding(size_ms: i64, slide_ms: i64) -> Self {
        Self { size_ms, slide_ms }
    }

    fn check(&self) -> Result<()> {
        check_positive(self.size_ms, "the size of a window")?;
        check_positive(self.slide_ms, "the slide of a window")?;
        if self.slide_ms > self.size_ms {
            return Err(Error::config("the slide is greater than the size: rows between would be lost").code(1047));
        }
        Ok(())
    }
}

/// Columns that tell of the window, by the names that they get; `None`: left out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WindowColumns {
    /// Its start, a time stamp in milliseconds.
    pub start: Option<String>,
    /// Its exclusive end, a time stamp in milliseconds.
    pub end: Option<String>,
}

/// A keyed aggregate over windows. Emits the key columns, the aggregates, the window's columns; windows in the order of
/// their ends, rows of a window by key.
pub struct WindowAggregate {
    keys: KeyColumns,
    time_column: usize,
    window: WindowSpec,
    panes: Panes,
    aggregates: AggregateSet,
    columns: WindowColumns,
    schema: SchemaRef,
    state: TimedState<Accumulators>,
    lives: Vec<TimestampMs>,
    firing: Option<FiringWindow>,
    /// Windows that end at or before it have fired in this `advance`.
    fired_end: Option<TimestampMs>,
}

/// A window that is being emitted.
struct FiringWindow {
    end: TimestampMs,
    /// Its entries by key; the head of a key decides most comparisons.
    entries: Vec<(u128, SlotId)>,
    next: usize,
}

impl WindowAggregate {
    /// An aggregate over rows of `input`, by `key_columns` and windows of the event times in `time_column`.
    pub fn new(
        input: &SchemaRef,
        key_columns: &[usize],
        time_column: usize,
        window: WindowSpec,
        calls: Vec<AggregateCall>,
        columns: WindowColumns,
    ) -> Result<Self> {
        check_append_only(input)?;
        check_time(input, time_column)?;
        window.check()?;
        let keys = KeyColumns::new(input, key_columns)?;
        let aggregates = AggregateSet::new(calls, input)?;
        let fields = keys.fields.iter().cloned().chain(aggregates.fields()).chain(columns.fields());
        let schema = output_schema(fields.collect())?;
        let value_schema = format!("size {} slide {}: {}", window.size_ms, window.slide_ms, aggregates.value_schema());
        let form = aggregates.form(format!("panes of windows of {} ms every {} ms", window.size_ms, window.slide_ms));
        let accumulate = aggregates.accumulate().clone();
        let panes = Panes::new(window.size_ms, window.slide_ms);
        let state = TimedState::new("panes", &value_schema, window.slide_ms).described(form).merged(
            ACCUMULATORS,
            Box::new(move |older: &mut Accumulators, newer: &Accumulators| accumulate.add(&mut older.0, &newer.0)),
        );
        let state = state.looking_beyond(panes.keep_ms());
        Ok(Self {
            keys,
            time_column,
            window,
            panes,
            aggregates,
            columns,
            schema,
            state,
            lives: Vec::new(),
            firing: None,
            fired_end: None,
        })
    }

    /// The columns that it emits.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// The end of the next window that is due and has a loaded entry.
    fn next_window(&self, watermark: TimestampMs, fired_end: TimestampMs) -> Option<TimestampMs> {
        let loaded = self.state.loaded_until();
        let mut life = self.state.first_time()?;
        loop {
            if let Some(end) = self.panes.next_window_end(life, fired_end) {
                let (_, last_life) = self.panes.lives_of_window(end);
                return (end - 1 <= watermark && last_life <= loaded).then_some(end);
            }
            // The windows of this pane have fired; it lives a little longer.
            life = self.state.next_time(life)?;
        }
    }

    fn start(&self, end: TimestampMs, out: &Collector) -> FiringWindow {
        let (after, until) = self.panes.lives_of_window(end);
        let all_due = out.fired_max() < end - 1;
        let mut entries: Vec<(u128, SlotId)> = self
            .state
            .between(after, until)
            .filter(|&slot| all_due || out.fired(self.state.group(slot)) < end - 1)
            .map(|slot| (key_head(self.state.key(slot)), slot))
            .collect();
        entries.sort_unstable_by(|a, b| a.0.cmp(&b.0).then_with(|| self.state.key(a.1).cmp(self.state.key(b.1))));
        FiringWindow { end, entries, next: 0 }
    }

    /// Emits one batch; true when something is left.
    fn emit(&self, firing: &mut FiringWindow, out: &mut Collector) -> Result<bool> {
        let mut results = self.aggregates.results();
        let mut slots: Vec<SlotId> = Vec::with_capacity(EMIT_ROWS.min(firing.entries.len()));
        let mut merged = self.aggregates.init();
        while slots.len() < EMIT_ROWS && firing.next < firing.entries.len() {
            let rest = &firing.entries[firing.next..];
            let (head, first) = rest[0];
            let same = |e: &&(u128, SlotId)| e.0 == head && self.state.key(e.1) == self.state.key(first);
            let panes = 1 + rest[1..].iter().take_while(same).count();
            firing.next += panes;
            let mut numbers = rest[..panes].iter().filter_map(|e| self.state.get(e.1));
            let Some(one) = numbers.next() else { continue };
            merged.0.copy_from_slice(&one.0);
            numbers.for_each(|n| self.aggregates.merge(&mut merged.0, &n.0));
            results.push(&merged.0);
            slots.push(first);
        }
        if !slots.is_empty() {
            let mut columns = self.keys.decode(slots.iter().map(|&s| self.state.key(s)))?;
            columns.extend(results.finish());
            let bound = |time: i64| Arc::new(TimestampMillisecondArray::from_value(time, slots.len())) as ArrayRef;
            columns.extend(self.columns.values(bound(firing.end - self.window.size_ms), bound(firing.end)));
            out.emit(output(&self.schema, columns)?);
        }
        Ok(firing.next < firing.entries.len())
    }
}

impl Operator for WindowAggregate {
    fn name_reads(&mut self, _input: usize, batch: &KeyedBatch) -> Result<()> {
        self.panes.lives(times(&batch.records, self.time_column)?, &mut self.lives);
        self.state.name_batch(&batch.keys, &self.lives);
        Ok(())
    }

    fn process(&mut self, _input: usize, batch: &KeyedBatch, out: &mut Collector) -> Result<()> {
        let rows = self.state.take_rows()?;
        let bound = self.aggregates.bind(&batch.records)?;
        let (aggregates, panes, fired_max) = (&self.aggregates, &self.panes, out.fired_max());
        let mut late = 0;
        for (row, &slot) in rows.slots.iter().enumerate() {
            let life = self.state.time(slot);
            if panes.is_late(life, fired_max) && panes.is_late(life, out.fired(self.state.group(slot))) {
                late += 1;
                continue;
            }
            self.state.update(slot, || aggregates.init(), |held| bound.add(row, &mut held.0));
        }
        out.count_late(late);
        self.state.give_back(rows);
        Ok(())
    }

    fn advance(&mut self, watermark: TimestampMs, out: &mut Collector) -> Result<Progress> {
        let due_end = self.panes.last_due_end(watermark);
        let (_, last_life) = self.panes.lives_of_window(due_end);
        // Between two ends of windows nothing is due, and nothing has to be read.
        while due_end - 1 > out.fired_min() {
            if let Some(mut firing) = self.firing.take() {
                if self.emit(&mut firing, out)? {
                    self.firing = Some(firing);
                    return Ok(Progress::More);
                }
                self.fired_end = Some(firing.end);
                self.state.expire_until(firing.end - 1);
            }
            let loaded = self.state.load_until(last_life, out.fired_min());
            let fired_end = self.fired_end.unwrap_or(out.fired_min().saturating_add(1));
            match self.next_window(watermark, fired_end) {
                Some(end) => self.firing = Some(self.start(end, out)),
                None if loaded => break,
                None => return Ok(Progress::NeedsState),
            }
        }
        self.state.expire_until(watermark);
        self.state.end_advance();
        self.fired_end = None;
        Ok(Progress::Done)
    }

    fn parameters(&self) -> Vec<(String, String)> {
        self.aggregates.parameters()
    }

    fn states(&mut self) -> Vec<&mut dyn StateSet> {
        vec![&mut self.state]
    }
}
