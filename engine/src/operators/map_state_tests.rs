//! An operator over a map state, in the store as it is: maps and single entries, removed and cleared, over flushes, evictions,
//! compactions, restores, rescales, and a release of the program that adds to the values.

use std::cell::Cell as Counter;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{Array, ArrayRef, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field as ArrowField, Schema};
use millstream_common::Result;
use millstream_state_store::key::{KeyBuffer, encode_keys};
use millstream_state_store::schema::{Field, Form, KeyColumn, Ttl, TtlClock};

use super::testing::{Cell, Logged, Program};
use super::tests::{KEY, Shape, VALUE, try_programs};
use crate::operator::{Collector, KeyedBatch, Operator};
use crate::state::value::{put_i64, take_i64};
use crate::state::{MapState, StateSet, StateValue};

/// How often a value came under a key and, from the second release on, its sum.
#[derive(Clone, Debug, Default, PartialEq)]
struct Tally(Vec<i64>);

impl StateValue for Tally {
    fn encode(&self, into: &mut Vec<u8>) {
        self.0.iter().for_each(|n| put_i64(*n, into));
    }
    fn decode(mut bytes: &[u8]) -> Result<Self> {
        let mut numbers = Vec::new();
        while !bytes.is_empty() {
            numbers.push(take_i64(&mut bytes)?);
        }
        Ok(Self(numbers))
    }
    fn heap_bytes(&self) -> usize {
        self.0.capacity() * 8
    }
}

/// Counts the values of each key. Input 0 sees the whole map of a key: a value that divides by 5 is removed, 7 clears the map,
/// and it tells how many entries and rows there are. Input 1 sees one entry, and removes those that divide by 5.
struct Tallies {
    release: usize,
    tallies: MapState<Tally>,
    map_keys: KeyBuffer,
}

fn map_keys(batch: &RecordBatch) -> Result<KeyBuffer> {
    let mut keys = KeyBuffer::default();
    encode_keys(&[batch.column(VALUE).clone()], &mut keys)?;
    Ok(keys)
}

impl Tallies {
    fn new(release: usize, ttl: Option<Ttl>) -> Self {
        let fields = ["rows", "sum"][..=release].iter().map(|name| Field::new(name, Form::Integer)).collect();
        let tallies = MapState::new("tallies", &format!("tallies/{release}"))
            .described(Form::Record { kind: "tally".into(), fields })
            .with_map_key(vec![KeyColumn { name: "value".into(), ty: DataType::Int64, nullable: true }])
            .with_ttl(ttl);
        Self { release, tallies, map_keys: KeyBuffer::default() }
    }

    fn count(tally: &mut Tally, value: i64) {
        tally.0[0] += 1;
        if let Some(sum) = tally.0.get_mut(1) {
            *sum += value;
        }
    }

    /// What a row of input 0 does; how many entries and rows there are then.
    fn whole(&mut self, batch: &KeyedBatch, out: &mut Vec<[i64; 3]>) -> Result<()> {
        let maps = self.tallies.take_maps()?;
        let values = batch.records.column(VALUE).as_primitive::<Int64Type>();
        for (row, &map) in maps.maps.iter().enumerate() {
            let (entry, value) = (self.map_keys.key(row), values.value(row));
            if values.is_valid(row) && value == 7 {
                self.tallies.clear(map)?;
            } else if values.is_valid(row) && value % 5 == 0 {
                self.tallies.remove(map, entry);
            } else {
                let release = self.release;
                self.tallies.update(map, entry, || Tally(vec![0; release + 1]), |t| Self::count(t, value))?;
            }
            let (mut entries, mut rows, mut sum) = (0, 0, 0);
            for (_, tally) in self.tallies.iter(map)? {
                entries += 1;
                rows += tally.0[0];
                sum += tally.0.get(1).copied().unwrap_or(0);
            }
            assert_eq!(self.tallies.is_empty(map)?, entries == 0);
            out.push([entries, rows, sum]);
        }
        Ok(())
    }

    /// What a row of input 1 does; the rows and the sum of its entry.
    fn single(&mut self, batch: &KeyedBatch, out: &mut Vec<[i64; 3]>) -> Result<()> {
        let rows = self.tallies.take_rows()?;
        let values = batch.records.column(VALUE).as_primitive::<Int64Type>();
        for (row, &slot) in rows.slots.iter().enumerate() {
            let value = values.value(row);
            if values.is_valid(row) && value % 5 == 0 {
                self.tallies.remove_entry(slot);
            } else {
                let release = self.release;
                self.tallies.update_entry(slot, || Tally(vec![0; release + 1]), |t| Self::count(t, value));
            }
            let tally = self.tallies.get_entry(slot).map_or(&[][..], |t| &t.0);
            let number = |i: usize| tally.get(i).copied().unwrap_or(0);
            out.push([-1, number(0), number(1)]);
        }
        self.tallies.give_back(rows);
        Ok(())
    }
}

impl Operator for Tallies {
    fn name_reads(&mut self, input: usize, batch: &KeyedBatch) -> Result<()> {
        if input == 0 {
            self.tallies.name_maps(&batch.keys);
            return Ok(());
        }
        self.tallies.name_entries(&batch.keys, &map_keys(&batch.records)?)
    }

    fn process(&mut self, input: usize, batch: &KeyedBatch, out: &mut Collector) -> Result<()> {
        self.map_keys = map_keys(&batch.records)?;
        let mut numbers = Vec::new();
        if input == 0 {
            self.whole(batch, &mut numbers)?
        } else {
            self.single(batch, &mut numbers)?
        };
        for (row, chunk) in numbers.chunks(super::EMIT_ROWS).enumerate() {
            let column = |i: usize| Arc::new(chunk.iter().map(|n| n[i]).collect::<Int64Array>()) as ArrayRef;
            let keys = batch.records.column(KEY).slice(row * super::EMIT_ROWS, chunk.len());
            let keys: ArrayRef = Arc::new(keys.as_string::<i32>().iter().collect::<StringArray>());
            let number = |name: &str| ArrowField::new(name, DataType::Int64, false);
            let fields = vec![ArrowField::new("key", DataType::Utf8, true), number("a"), number("b"), number("c")];
            let columns = vec![keys, column(0), column(1), column(2)];
            out.emit(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap());
        }
        Ok(())
    }

    fn states(&mut self) -> Vec<&mut dyn StateSet> {
        vec![&mut self.tallies]
    }
}

/// Rows and sum of a value, and until when they count.
type Reference = BTreeMap<(Cell, Cell), ([i64; 2], i64)>;

/// What the operator must have emitted for a row.
fn expected(row: &Logged, all: &mut Reference, ttl: Option<Ttl>) -> Vec<Cell> {
    let (key, value) = (row.cells[KEY].clone(), row.cells[VALUE].clone());
    let now = if ttl.is_some() { row.wall } else { 0 };
    let until = ttl.map_or(i64::MAX, |t| now + t.duration_ms);
    all.retain(|_, (_, until)| *until > now);
    let place = (key.clone(), value.clone());
    match value {
        Cell::Int(7) if row.input == 0 => all.retain(|(k, _), _| *k != key),
        Cell::Int(v) if v % 5 == 0 => drop(all.remove(&place)),
        _ => {
            let (numbers, end) = all.entry(place.clone()).or_default();
            numbers[0] += 1;
            if let (Cell::Int(v), true) = (&value, row.program > 0) {
                numbers[1] += v;
            }
            *end = until;
        }
    }
    let numbers = if row.input == 0 {
        let of_key = || all.iter().filter(|((k, _), _)| *k == key).map(|(_, (numbers, _))| numbers);
        [of_key().count() as i64, of_key().map(|n| n[0]).sum(), of_key().map(|n| n[1]).sum()]
    } else {
        let [rows, sum] = all.get(&place).map_or([0, 0], |(numbers, _)| *numbers);
        [-1, rows, sum]
    };
    std::iter::once(key).chain(numbers.map(Cell::Int)).collect()
}

fn agrees(seeds: u64, ttl: Option<Ttl>) {
    let shape = Shape { inputs: 2, keys: 12, rows: 600, disorder: 10 };
    let programs = move || {
        (0..2)
            .map(|release| {
                let make = move || -> Box<dyn Operator> { Box::new(Tallies::new(release, ttl)) };
                Program { make: Box::new(make), convert: RecordBatch::clone }
            })
            .collect()
    };
    let (upgraded, compactions) = (Counter::new(0), Counter::new(0));
    try_programs(seeds, &shape, &[KEY], programs, |outcome| {
        let mut all = Reference::new();
        assert_eq!(outcome.output.len(), outcome.log.len());
        for (row, output) in outcome.log.iter().zip(&outcome.output) {
            assert_eq!(*output, expected(row, &mut all, ttl), "{row:?}");
        }
        upgraded.set(upgraded.get() + u64::from(outcome.log.last().is_some_and(|row| row.program > 0)));
        compactions.set(compactions.get() + outcome.compactions);
    });
    assert!(upgraded.get() > seeds / 4 && compactions.get() > seeds, "{} {}", upgraded.get(), compactions.get());
}

#[test]
fn an_operator_over_a_map_state_does_what_ordered_maps_do() {
    agrees(60, None);
}

#[test]
fn entries_of_a_map_expire_one_by_one() {
    agrees(40, Some(Ttl { duration_ms: 150, clock: TtlClock::ProcessingTime }));
}
