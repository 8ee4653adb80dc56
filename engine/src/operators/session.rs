//! Aggregates over sessions: a session begins with a row and ends when its key has had no row for a gap.
//!
//! A row at `t` is a session from `t` to `t + gap`; sessions of a key that overlap or touch are one. The open sessions of
//! a key stand in a point state, because their ends move. Each key with open sessions has one timer, set when its first
//! session is made and never behind the last millisecond of the one that ends first. It is not moved when a session
//! grows: when it fires, what has ended is emitted, and the next timer is set. Only a row that comes so late that it
//! makes an earlier session moves the timer forward.
//!
//! A row is late when its own session would have fired already and it meets no open one.

use std::sync::Arc;

use arrow_array::{ArrayRef, TimestampMillisecondArray};
use arrow_schema::SchemaRef;
use millstream_common::Result;
use millstream_state_store::schema::{Field, Form};
use smallvec::SmallVec;

use super::EMIT_ROWS;
use super::aggregate::{Accumulators, AggregateCall, AggregateSet, Results};
use super::due::{Firing, Next, next_due};
use super::keys::{KeyColumns, check_append_only, check_positive, check_time, output, output_schema, times};
use super::window::WindowColumns;
use crate::element::TimestampMs;
use crate::operator::{Collector, KeyedBatch, Operator, Progress};
use crate::state::value::{put_bytes, put_i64, put_u64, take_bytes, take_i64, take_u64};
use crate::state::{KeyedState, SlotId, StateSet, StateValue, TimedState};

/// Timers whose keys are read and fired together.
const PIECE: usize = if cfg!(test) { 5 } else { 4_096 };

/// One open session.
#[derive(Clone, Debug)]
struct Session {
    start: TimestampMs,
    /// Exclusive: the time of the last row and the gap.
    end: TimestampMs,
    numbers: Accumulators,
}

/// The open sessions of a key: at least one.
#[derive(Debug)]
struct Sessions {
    /// When its timer fires; at or before the last millisecond of every session.
    timer: TimestampMs,
    /// By start; they neither overlap nor touch.
    list: SmallVec<[Session; 1]>,
}

impl StateValue for Sessions {
    fn encode(&self, into: &mut Vec<u8>) {
        put_i64(self.timer, into);
        put_u64(self.list.len() as u64, into);
        let mut numbers = Vec::new();
        for session in &self.list {
            put_i64(session.start, into);
            put_i64(session.end - session.start, into);
            numbers.clear();
            session.numbers.encode_to(&mut numbers);
            put_bytes(&numbers, into);
        }
    }

    fn decode(mut bytes: &[u8]) -> Result<Self> {
        let (timer, count) = (take_i64(&mut bytes)?, take_u64(&mut bytes)?);
        let mut list = SmallVec::new();
        for _ in 0..count {
            let start = take_i64(&mut bytes)?;
            let end = start.wrapping_add(take_i64(&mut bytes)?);
            list.push(Session { start, end, numbers: Accumulators::decode(take_bytes(&mut bytes)?)? });
        }
        Ok(Self { timer, list })
    }

    fn heap_bytes(&self) -> usize {
        let list = if self.list.spilled() { self.list.capacity() * size_of::<Session>() } else { 0 };
        list + self.list.iter().map(|s| s.numbers.heap_bytes()).sum::<usize>()
    }
}

impl Sessions {
    /// The sessions that meet `[start, end]`: from the first number to before the second.
    fn meeting(&self, start: TimestampMs, end: TimestampMs) -> (usize, usize) {
        let first = self.list.iter().position(|s| s.end >= start).unwrap_or(self.list.len());
        let met = self.list[first..].iter().take_while(|s| s.start <= end).count();
        (first, first + met)
    }

    /// The session that a row in `[start, end)` belongs to: made, or found and grown.
    fn session(&mut self, start: TimestampMs, end: TimestampMs, set: &AggregateSet) -> &mut Session {
        let (first, behind) = self.meeting(start, end);
        if first == behind {
            self.list.insert(first, Session { start, end, numbers: set.init() });
            return &mut self.list[first];
        }
        for other in self.list.drain(first + 1..behind).collect::<SmallVec<[Session; 4]>>() {
            let session = &mut self.list[first];
            session.end = session.end.max(other.end);
            set.merge(&mut session.numbers.0, &other.numbers.0);
        }
        let session = &mut self.list[first];
        session.start = session.start.min(start);
        session.end = session.end.max(end);
        session
    }

    /// The last millisecond of the session that ends first.
    fn first_last(&self) -> Option<TimestampMs> {
        self.list.iter().map(|s| s.end - 1).min()
    }
}

/// A keyed aggregate over sessions. Emits the key columns, the aggregates, the session's start and end if asked for.
pub struct SessionAggregate {
    keys: KeyColumns,
    time_column: usize,
    gap_ms: i64,
    aggregates: AggregateSet,
    columns: WindowColumns,
    schema: SchemaRef,
    sessions: KeyedState<Sessions>,
    timers: TimedState<()>,
    firing: Option<Firing>,
    /// The keys whose timers have fired and whose sessions have not been looked at.
    due: Vec<SlotId>,
}

impl SessionAggregate {
    /// An aggregate over rows of `input`, by `key_columns` and sessions with `gap_ms` of the event times in
    /// `time_column`.
    pub fn new(
        input: &SchemaRef,
        key_columns: &[usize],
        time_column: usize,
        gap_ms: i64,
        calls: Vec<AggregateCall>,
        columns: WindowColumns,
    ) -> Result<Self> {
        check_append_only(input)?;
        check_time(input, time_column)?;
        check_positive(gap_ms, "the gap of a session")?;
        let keys = KeyColumns::new(input, key_columns)?;
        let aggregates = AggregateSet::new(calls, input)?;
        let fields = keys.fields.iter().cloned().chain(aggregates.fields()).chain(columns.fields());
        let schema = output_schema(fields.collect())?;
        let value_schema = format!("gap {gap_ms}; timer, sessions/1 (start, length, {})", aggregates.value_schema());
        Ok(Self {
            keys,
            time_column,
            gap_ms,
            sessions: KeyedState::new("sessions", &value_schema).described(sessions_form(gap_ms, &aggregates)),
            timers: TimedState::new("timers", "", gap_ms),
            aggregates,
            columns,
            schema,
            firing: None,
            due: Vec::new(),
        })
    }

    /// The columns that it emits.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// Whether a row with the session `[start, end)` comes too late.
    fn is_late(&self, slot: SlotId, start: TimestampMs, end: TimestampMs, out: &Collector) -> bool {
        if end - 1 > out.fired_max() || end - 1 > out.fired(self.sessions.group(slot)) {
            return false;
        }
        self.sessions.get(slot).is_none_or(|sessions| {
            let (first, behind) = sessions.meeting(start, end);
            first == behind
        })
    }

    /// Gathers keys whose timers are due.
    fn gather(&mut self, watermark: TimestampMs, out: &Collector) -> Next {
        while self.due.len() < PIECE {
            let Some(firing) = &mut self.firing else {
                match next_due(&mut self.timers, watermark, out) {
                    Next::Fire(time) => self.firing = Some(Firing::start(&mut self.timers, time, out)),
                    end => return end,
                }
                continue;
            };
            match firing.next() {
                None => self.firing = None,
                Some(timer) => {
                    self.due.push(self.sessions.name(self.timers.hash(timer), self.timers.key(timer)));
                    self.timers.expire(timer);
                }
            }
        }
        Next::Fire(watermark)
    }

    /// Emits what has ended of the sessions of the keys that were gathered.
    fn fire(&mut self, watermark: TimestampMs, out: &mut Collector) -> Result<()> {
        let mut ended = Ended::new(&self.aggregates);
        for slot in std::mem::take(&mut self.due) {
            // A timer that was left behind may find nothing.
            let Some(sessions) = self.sessions.get(slot) else { continue };
            for session in sessions.list.iter().filter(|s| s.end - 1 <= watermark) {
                ended.push(slot, session);
                if ended.slots.len() == EMIT_ROWS {
                    self.emit(std::mem::replace(&mut ended, Ended::new(&self.aggregates)), out)?;
                }
            }
            let left = sessions.list.iter().filter(|s| s.end - 1 > watermark).map(|s| s.end - 1).min();
            match left {
                None => {
                    self.sessions.remove(slot);
                }
                Some(_) if sessions.timer > watermark => {}
                Some(first_last) => {
                    self.sessions.update(slot, no_sessions, |s| {
                        s.list.retain(|s| s.end - 1 > watermark);
                        s.timer = first_last;
                    });
                    let key = self.sessions.key(slot);
                    self.timers.set(self.sessions.hash(slot), first_last, key, ());
                }
            }
        }
        self.emit(ended, out)
    }

    fn emit(&self, ended: Ended<'_>, out: &mut Collector) -> Result<()> {
        if ended.slots.is_empty() {
            return Ok(());
        }
        let mut columns = self.keys.decode(ended.slots.iter().map(|&s| self.sessions.key(s)))?;
        columns.extend(ended.results.finish());
        let times = |times: Vec<i64>| Arc::new(TimestampMillisecondArray::from(times)) as ArrayRef;
        columns.extend(self.columns.values(times(ended.starts), times(ended.ends)));
        out.emit(output(&self.schema, columns)?);
        Ok(())
    }
}

/// What [`Sessions`] are made of.
fn sessions_form(gap_ms: i64, aggregates: &AggregateSet) -> Form {
    let numbers = Form::Framed(Box::new(aggregates.form("aggregates".to_owned())));
    let session = vec![
        Field::new("start", Form::Integer),
        Field::new("length", Form::Integer),
        Field::new("aggregates", numbers),
    ];
    let session = Form::Record { kind: "session".to_owned(), fields: session };
    let fields = vec![Field::new("timer", Form::Integer), Field::new("sessions", Form::List(Box::new(session)))];
    Form::Record { kind: format!("sessions with a gap of {gap_ms} ms"), fields }
}

fn no_sessions() -> Sessions {
    Sessions { timer: TimestampMs::MAX, list: SmallVec::new() }
}

/// Sessions that go out.
struct Ended<'a> {
    slots: Vec<SlotId>,
    results: Results<'a>,
    starts: Vec<i64>,
    ends: Vec<i64>,
}

impl<'a> Ended<'a> {
    fn new(aggregates: &'a AggregateSet) -> Self {
        Self { slots: Vec::new(), results: aggregates.results(), starts: Vec::new(), ends: Vec::new() }
    }

    fn push(&mut self, slot: SlotId, session: &Session) {
        self.slots.push(slot);
        self.results.push(&session.numbers.0);
        self.starts.push(session.start);
        self.ends.push(session.end);
    }
}

impl Operator for SessionAggregate {
    fn name_reads(&mut self, _input: usize, batch: &KeyedBatch) -> Result<()> {
        self.sessions.name_batch(&batch.keys);
        Ok(())
    }

    fn process(&mut self, _input: usize, batch: &KeyedBatch, out: &mut Collector) -> Result<()> {
        let rows = self.sessions.take_rows()?;
        let (times, bound) = (times(&batch.records, self.time_column)?, self.aggregates.bind(&batch.records)?);
        let mut late = 0;
        for (row, &slot) in rows.slots.iter().enumerate() {
            let (start, end) = (times[row], times[row] + self.gap_ms);
            if self.is_late(slot, start, end, out) {
                late += 1;
                continue;
            }
            let aggregates = &self.aggregates;
            let timers = self.sessions.update(slot, no_sessions, |sessions| {
                bound.add(row, &mut sessions.session(start, end, aggregates).numbers.0);
                let first_last = sessions.first_last()?;
                let was = sessions.timer;
                sessions.timer = was.min(first_last);
                (first_last < was).then_some((was, first_last))
            });
            if let Some((was, timer)) = timers {
                let (hash, key) = (batch.keys.hash(row), batch.keys.key(row));
                if was < TimestampMs::MAX {
                    self.timers.unset(hash, was, key);
                }
                self.timers.set(hash, timer, key, ());
            }
        }
        out.count_late(late);
        self.sessions.give_back(rows);
        Ok(())
    }

    fn advance(&mut self, watermark: TimestampMs, out: &mut Collector) -> Result<Progress> {
        loop {
            let next = if self.due.is_empty() { self.gather(watermark, out) } else { Next::Fire(watermark) };
            if self.due.is_empty() {
                match next {
                    Next::Nothing => return Ok(Progress::Done),
                    Next::State => return Ok(Progress::NeedsState),
                    Next::Fire(_) => continue,
                }
            }
            if !self.due.iter().all(|&slot| self.sessions.is_resident(slot)) {
                return Ok(Progress::NeedsState);
            }
            self.fire(watermark, out)?;
            if !out.is_empty() {
                return Ok(Progress::More);
            }
        }
    }

    fn parameters(&self) -> Vec<(String, String)> {
        self.aggregates.parameters()
    }

    fn states(&mut self) -> Vec<&mut dyn StateSet> {
        vec![&mut self.sessions, &mut self.timers]
    }
}
