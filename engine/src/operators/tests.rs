//! Every operator against plain reference code, on random input and whatever happens to a cluster on the way.

use std::cell::Cell as Counter;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow_array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::aggregate::{AggregateCall, AggregateFunction};
use super::join::{JoinSide, WindowJoin};
use super::running::RunningAggregate;
use super::session::SessionAggregate;
use super::testing::{Cell, Event, Logged, Outcome, Program, Setup, run};
use super::top::{WindowTop, local_top};
use super::window::{WindowAggregate, WindowColumns, WindowSpec};
use crate::element::RowKind;
use crate::operator::Operator;

/// Columns of the input.
pub(super) const KEY: usize = 0;
pub(super) const TIME: usize = 1;
pub(super) const VALUE: usize = 2;
pub(super) const FLAG: usize = 3;

pub(super) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Utf8, true),
        Field::new("time", DataType::Timestamp(TimeUnit::Millisecond, None), false),
        Field::new("value", DataType::Int64, true),
        Field::new("flag", DataType::Boolean, true),
    ]))
}

pub(super) struct Shape {
    pub(super) inputs: usize,
    pub(super) keys: u64,
    pub(super) rows: usize,
    /// How far times lie behind the greatest at most.
    pub(super) disorder: i64,
}

/// Random rows with watermarks that are sometimes too eager.
fn events(seed: u64, shape: &Shape) -> Vec<Event> {
    let mut rng = SmallRng::seed_from_u64(seed ^ 0x5eed);
    let mut events = Vec::new();
    let (mut now, mut rows) = (rng.random_range(-100..100), 0);
    while rows < shape.rows {
        let length = rng.random_range(1..40);
        rows += length;
        let mut columns = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..length {
            now += rng.random_range(0..4);
            let key = rng.random_range(0..shape.keys);
            columns.0.push((key > 0).then(|| format!("key {key}{}", "!".repeat(key as usize % 20))));
            columns.1.push(now - rng.random_range(0..=shape.disorder));
            columns.2.push(rng.random_bool(0.9).then(|| rng.random_range(-20..20)));
            columns.3.push(rng.random_bool(0.9).then(|| rng.random_bool(0.5)));
        }
        if rng.random_bool(0.1) {
            // A pause, for sessions.
            now += rng.random_range(0..60);
        }
        let columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from(columns.0)),
            Arc::new(TimestampMillisecondArray::from(columns.1)),
            Arc::new(Int64Array::from(columns.2)),
            Arc::new(BooleanArray::from(columns.3)),
        ];
        let input = rng.random_range(0..shape.inputs);
        events.push(Event::Rows(input, RecordBatch::try_new(schema(), columns).unwrap()));
        if rng.random_bool(0.5) {
            events.push(Event::Watermark(now - rng.random_range(0..=shape.disorder)));
        }
    }
    events
}

pub(super) fn calls() -> Vec<AggregateCall> {
    use AggregateFunction::*;
    let call = |function, input, filter: Option<usize>, name: &str| AggregateCall {
        function,
        input,
        filter,
        name: name.into(),
        state_id: None,
    };
    vec![
        call(Count, None, None, "rows"),
        call(Count, None, Some(FLAG), "flagged"),
        call(Sum, Some(VALUE), None, "sum"),
        call(Min, Some(VALUE), Some(FLAG), "min"),
        call(Max, Some(VALUE), None, "max"),
        call(Avg, Some(VALUE), None, "avg"),
    ]
}

/// The results of [`calls`], by plain means.
pub(super) fn aggregate(rows: &[&Logged]) -> Vec<Cell> {
    let flagged = |row: &&&Logged| row.cells[FLAG] == Cell::Int(1);
    let value = |row: &&Logged| if let Cell::Int(v) = row.cells[VALUE] { Some(v) } else { None };
    let all: Vec<i64> = rows.iter().filter_map(value).collect();
    let some: Vec<i64> = rows.iter().filter(flagged).filter_map(value).collect();
    let cell = |v: Option<i64>| v.map_or(Cell::Null, Cell::Int);
    let sum = (!all.is_empty()).then(|| all.iter().sum::<i64>());
    vec![
        Cell::Int(rows.len() as i64),
        Cell::Int(rows.iter().filter(flagged).count() as i64),
        cell(sum),
        cell(some.iter().min().copied()),
        cell(all.iter().max().copied()),
        cell(sum.map(|s| s / all.len() as i64)),
    ]
}

fn time(row: &Logged) -> i64 {
    if let Cell::Int(t) = row.cells[TIME] { t } else { panic!("a row without a time") }
}

/// Both hold the same rows, in whatever order.
pub(super) fn same(output: &[Vec<Cell>], expected: Vec<Vec<Cell>>) {
    let mut counts: BTreeMap<&[Cell], i64> = BTreeMap::new();
    output.iter().for_each(|row| *counts.entry(row).or_default() += 1);
    expected.iter().for_each(|row| *counts.entry(row).or_default() -= 1);
    counts.retain(|_, n| *n != 0);
    assert!(counts.is_empty(), "rows that are too many (1) or missing (-1): {counts:?}");
}

fn both() -> WindowColumns {
    WindowColumns { start: Some("from".into()), end: Some("to".into()) }
}

/// The ends of the windows of a row that have not fired.
pub(super) fn open_ends(row: &Logged, size: i64, slide: i64) -> Vec<i64> {
    let first = (time(row) - size).div_euclid(slide) + 1;
    (first..)
        .map(|k| k * slide)
        .take_while(|s| *s <= time(row))
        .map(|s| s + size)
        .filter(|e| e - 1 > row.fired)
        .collect()
}

/// Runs an operator on random input from many seeds; `check` compares. Answers with how many rows came out and how many
/// came late, over all seeds.
fn try_all(
    seeds: u64,
    shape: &Shape,
    key_columns: &[usize],
    make: impl Fn() -> Box<dyn Operator> + Clone + 'static,
    check: impl Fn(&Outcome),
) -> (usize, u64) {
    let programs = || vec![Program { make: Box::new(make.clone()), convert: RecordBatch::clone }];
    try_programs(seeds, shape, key_columns, programs, check)
}

/// The same with several releases of a program, of which restores may choose the next.
pub(super) fn try_programs(
    seeds: u64,
    shape: &Shape,
    key_columns: &[usize],
    programs: impl Fn() -> Vec<Program>,
    check: impl Fn(&Outcome),
) -> (usize, u64) {
    let (mut out, mut late) = (0, 0);
    for seed in 0..seeds {
        let setup = Setup {
            programs: programs(),
            key_columns: vec![key_columns.to_vec(); shape.inputs],
            events: events(seed, shape),
        };
        let outcome = run(seed, &setup);
        check(&outcome);
        out += outcome.output.len();
        late += outcome.late;
    }
    (out, late)
}

pub(super) const SHAPE: Shape = Shape { inputs: 1, keys: 12, rows: 500, disorder: 30 };

fn windows_are_right(size: i64, slide: i64) {
    let make = move || -> Box<dyn Operator> {
        let spec = WindowSpec { size_ms: size, slide_ms: slide };
        Box::new(WindowAggregate::new(&schema(), &[KEY], TIME, spec, calls(), both()).unwrap())
    };
    let [operands, compactions, overflows, cuts] = [(); 4].map(|()| Counter::new(0));
    let (out, late) = try_all(40, &SHAPE, &[KEY], make, |outcome| {
        operands.set(operands.get() + outcome.operands);
        compactions.set(compactions.get() + outcome.compactions);
        overflows.set(overflows.get() + outcome.overflows);
        cuts.set(cuts.get() + outcome.cuts);
        let mut windows: BTreeMap<(Cell, i64), Vec<&Logged>> = BTreeMap::new();
        let mut late = 0;
        for row in &outcome.log {
            let ends = open_ends(row, size, slide);
            late += u64::from(ends.is_empty());
            for end in ends {
                windows.entry((row.cells[KEY].clone(), end)).or_default().push(row);
            }
        }
        let expected: Vec<Vec<Cell>> = windows
            .iter()
            .map(|((key, end), rows)| {
                let bounds = [Cell::Int(end - size), Cell::Int(*end)];
                [key.clone()].into_iter().chain(aggregate(rows)).chain(bounds).collect()
            })
            .collect();
        same(&outcome.output, expected);
        assert_eq!(outcome.late, late);
    });
    assert!(out > 4_000 && late > 0, "{out} {late}");
    let [operands, compactions, overflows, cuts] = [operands, compactions, overflows, cuts].map(|c| c.get());
    println!("windows of {size} every {slide}: {operands} merge operands, {compactions} compactions,");
    println!("{overflows} scans that brought too much, {cuts} other cuts");
    assert!(operands > 500 && compactions > 20, "{operands} {compactions}");
    assert!(overflows > 50 && cuts > 10, "{overflows} {cuts}");
}

#[test]
fn tumbling_windows() {
    windows_are_right(20, 20);
}

#[test]
fn sliding_windows() {
    windows_are_right(30, 6);
}

#[test]
fn sliding_windows_whose_slide_does_not_divide_their_size() {
    windows_are_right(25, 10);
}

#[test]
fn sessions() {
    const GAP: i64 = 7;
    let make = || -> Box<dyn Operator> {
        Box::new(SessionAggregate::new(&schema(), &[KEY], TIME, GAP, calls(), both()).unwrap())
    };
    let shape = Shape { keys: 30, ..SHAPE };
    let (out, late) = try_all(60, &shape, &[KEY], make, |outcome| {
        let mut keys: BTreeMap<Cell, Vec<&Logged>> = BTreeMap::new();
        outcome.log.iter().for_each(|row| keys.entry(row.cells[KEY].clone()).or_default().push(row));
        let (mut expected, mut late) = (Vec::new(), 0);
        for (key, rows) in keys {
            // Start, end, rows.
            let mut open: Vec<(i64, i64, Vec<&Logged>)> = Vec::new();
            let emit = |s: (i64, i64, Vec<&Logged>)| {
                let bounds = [Cell::Int(s.0), Cell::Int(s.1)];
                [key.clone()].into_iter().chain(aggregate(&s.2)).chain(bounds).collect::<Vec<_>>()
            };
            for row in rows {
                let (ended, still): (Vec<_>, Vec<_>) = open.into_iter().partition(|s| s.1 - 1 <= row.fired);
                expected.extend(ended.into_iter().map(emit));
                let (start, end) = (time(row), time(row) + GAP);
                let (met, mut apart): (Vec<_>, Vec<_>) = still.into_iter().partition(|s| s.0 <= end && s.1 >= start);
                if met.is_empty() && end - 1 <= row.fired {
                    late += 1;
                } else {
                    let mut merged = (start, end, vec![row]);
                    for s in met {
                        merged = (merged.0.min(s.0), merged.1.max(s.1), [merged.2, s.2].concat());
                    }
                    apart.push(merged);
                }
                open = apart;
            }
            expected.extend(open.into_iter().map(emit));
        }
        same(&outcome.output, expected);
        assert_eq!(outcome.late, late);
    });
    assert!(out > 4_000 && late > 100, "{out} {late}");
}

#[test]
fn running_aggregates() {
    let make = || -> Box<dyn Operator> { Box::new(RunningAggregate::new(&schema(), &[KEY], calls()).unwrap()) };
    let (out, _) = try_all(60, &SHAPE, &[KEY], make, |outcome| {
        let mut table: BTreeMap<Cell, Vec<Cell>> = BTreeMap::new();
        let mut taken_back: Option<Cell> = None;
        for change in &outcome.output {
            let (Cell::Int(kind), row) = (&change[0], change[1..].to_vec()) else { panic!("no row kind") };
            let key = row[0].clone();
            match RowKind::from_number(*kind as u8).unwrap() {
                RowKind::Insert => assert_eq!(table.insert(key, row), None),
                RowKind::UpdateBefore => {
                    assert_eq!(table.remove(&key), Some(row));
                    assert_eq!(taken_back.replace(key), None);
                }
                RowKind::UpdateAfter => {
                    assert_eq!(taken_back.take(), Some(key.clone()));
                    table.insert(key, row);
                }
                RowKind::Delete => panic!("nothing is deleted"),
            }
        }
        let mut keys: BTreeMap<Cell, Vec<&Logged>> = BTreeMap::new();
        outcome.log.iter().for_each(|row| keys.entry(row.cells[KEY].clone()).or_default().push(row));
        let expected: BTreeMap<Cell, Vec<Cell>> = keys
            .into_iter()
            .map(|(key, rows)| (key.clone(), [key].into_iter().chain(aggregate(&rows)).collect()))
            .collect();
        assert_eq!(table, expected);
    });
    assert!(out > 4_000, "{out}");
}

/// The rows with the greatest value of each group.
fn greatest(groups: BTreeMap<(Cell, i64), Vec<&Logged>>, more: impl Fn(i64) -> Vec<Cell>) -> Vec<Vec<Cell>> {
    let mut expected = Vec::new();
    for ((_, end), rows) in groups {
        let best = rows.iter().map(|r| r.cells[VALUE].clone()).max();
        for row in rows.iter().filter(|r| Some(&r.cells[VALUE]) == best.as_ref()) {
            expected.push(row.cells.iter().cloned().chain(more(end)).collect());
        }
    }
    expected
}

#[test]
fn greatest_rows_of_windows() {
    const SIZE: i64 = 25;
    let make = || -> Box<dyn Operator> { Box::new(WindowTop::by_time(&schema(), TIME, SIZE, VALUE, both()).unwrap()) };
    let (out, late) = try_all(60, &SHAPE, &[KEY], make, |outcome| {
        let mut groups: BTreeMap<(Cell, i64), Vec<&Logged>> = BTreeMap::new();
        let mut late = 0;
        for row in &outcome.log {
            match open_ends(row, SIZE, SIZE)[..] {
                [] => late += 1,
                _ if row.cells[VALUE] == Cell::Null => {}
                [end] => groups.entry((row.cells[KEY].clone(), end)).or_default().push(row),
                _ => panic!("a row lies in one tumbling window"),
            }
        }
        let expected = greatest(groups, |end| vec![Cell::Int(end - SIZE), Cell::Int(end)]);
        same(&outcome.output, expected);
        assert_eq!(outcome.late, late);
    });
    assert!(out > 4_000 && late > 100, "{out} {late}");
}

#[test]
fn greatest_rows_of_windows_that_stand_in_the_row() {
    // The time column as the end of the window, and the key.
    let shape = Shape { rows: 1_000, ..SHAPE };
    let make = || -> Box<dyn Operator> { Box::new(WindowTop::by_window_end(&schema(), TIME, VALUE).unwrap()) };
    let (out, late) = try_all(40, &shape, &[TIME], make, |outcome| {
        let mut groups: BTreeMap<(Cell, i64), Vec<&Logged>> = BTreeMap::new();
        let mut late = 0;
        for row in &outcome.log {
            if time(row) - 1 <= row.fired {
                late += 1;
            } else if row.cells[VALUE] != Cell::Null {
                groups.entry((Cell::Null, time(row))).or_default().push(row);
            }
        }
        same(&outcome.output, greatest(groups, |_| Vec::new()));
        assert_eq!(outcome.late, late);
    });
    assert!(out > 4_000 && late > 100, "{out} {late}");
}

#[test]
fn a_local_top_keeps_what_can_be_greatest() {
    let keep = local_top(&schema(), TIME, VALUE).unwrap();
    for seed in 0..50 {
        for event in events(seed, &Shape { disorder: 60, ..SHAPE }) {
            let Event::Rows(_, batch) = event else { continue };
            let logged: Vec<Logged> = super::testing::cells(&batch)
                .into_iter()
                .map(|cells| Logged { input: 0, cells, fired: 0, wall: 0, program: 0 })
                .collect();
            let mut groups: BTreeMap<(Cell, i64), Vec<&Logged>> = BTreeMap::new();
            for row in logged.iter().filter(|r| r.cells[VALUE] != Cell::Null) {
                groups.entry((Cell::Null, time(row))).or_default().push(row);
            }
            let kept = super::testing::cells(&keep(&batch).unwrap());
            same(&kept, greatest(groups, |_| Vec::new()));
        }
    }
}

fn joins_are_right(distinct: bool, right_columns: &'static [usize]) {
    const SIZE: i64 = 20;
    let make = move || -> Box<dyn Operator> {
        let side = |columns: &[usize], distinct| JoinSide {
            schema: schema(),
            time_column: TIME,
            columns: columns.to_vec(),
            distinct,
        };
        let columns = WindowColumns { start: Some("from".into()), end: None };
        Box::new(WindowJoin::new(side(&[KEY, FLAG], distinct), side(right_columns, distinct), SIZE, columns).unwrap())
    };
    let shape = Shape { inputs: 2, keys: 10, rows: 400, disorder: 30 };
    let (out, late) = try_all(50, &shape, &[KEY], make, |outcome| {
        let mut sides: BTreeMap<(Cell, i64), [Vec<Vec<Cell>>; 2]> = BTreeMap::new();
        let mut late = 0;
        for row in &outcome.log {
            let [end] = open_ends(row, SIZE, SIZE)[..] else {
                late += 1;
                continue;
            };
            let columns = if row.input == 0 { &[KEY, FLAG] } else { right_columns };
            let kept = columns.iter().map(|&c| row.cells[c].clone()).collect();
            sides.entry((row.cells[KEY].clone(), end)).or_default()[row.input].push(kept);
        }
        let mut expected = Vec::new();
        for ((_, end), mut sides) in sides {
            if distinct {
                for side in &mut sides {
                    *side = side.drain(..).collect::<BTreeSet<_>>().into_iter().collect();
                }
            }
            for l in &sides[0] {
                for r in &sides[1] {
                    expected.push(l.iter().chain(r).cloned().chain([Cell::Int(end - SIZE)]).collect());
                }
            }
        }
        same(&outcome.output, expected);
        assert_eq!(outcome.late, late);
    });
    assert!(out > 1_000 && late > 100, "{out} {late}");
}

#[test]
fn joins_of_distinct_rows_with_existence() {
    joins_are_right(true, &[]);
}

#[test]
fn joins_of_all_rows() {
    joins_are_right(false, &[VALUE]);
}
