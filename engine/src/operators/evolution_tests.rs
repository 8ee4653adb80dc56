//! Operators whose state another release of the program goes on with, and operators whose state expires.

use std::cell::Cell as Counter;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int64Type;
use arrow_array::{ArrayRef, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use bytes::Bytes;
use millstream_common::{KeyGroupRanges, StateId};
use millstream_state_store::key::{KeyBuffer, encode_keys, timed_key};
use millstream_state_store::schema::{Ttl, TtlClock, field_id, skip};

use super::aggregate::{AggregateCall, AggregateFunction};
use super::join::{JoinSide, WindowJoin};
use super::running::RunningAggregate;
use super::session::SessionAggregate;
use super::testing::{Cell, Logged, Program, cells};
use super::tests::{KEY, SHAPE, Shape, TIME, VALUE, aggregate, calls, open_ends, same, schema, try_programs};
use super::top::WindowTop;
use super::window::{WindowAggregate, WindowColumns, WindowSpec};
use crate::element::RowKind;
use crate::operator::{Collector, KeyedBatch, Operator, Progress, SubtaskTime};

fn call(function: AggregateFunction, input: Option<usize>, name: &str) -> AggregateCall {
    AggregateCall { function, input, filter: None, name: name.into(), state_id: None }
}

/// Three releases of an aggregate: aggregates are dropped, added, renamed and moved.
fn release(program: usize) -> Vec<AggregateCall> {
    use AggregateFunction::*;
    let total = call(Sum, Some(VALUE), "total");
    match program {
        0 => vec![call(Count, None, "rows"), total, call(Max, Some(VALUE), "max")],
        1 => vec![total, call(Min, Some(VALUE), "min"), call(Count, None, "rows")],
        _ => {
            // Of a sum an average; what was dropped begins anew.
            let mean = AggregateCall { state_id: Some(field_id("total")), ..call(Avg, Some(VALUE), "mean") };
            vec![call(Max, Some(VALUE), "max"), mean, call(Count, None, "rows"), call(Min, Some(VALUE), "min")]
        }
    }
}

/// What a key's last row of the changelog must show, from its rows.
fn expected(rows: &[&Logged]) -> Vec<Cell> {
    expected_by(rows.last().unwrap().program, rows)
}

/// What a release shows for these rows of a key.
fn expected_by(program: usize, rows: &[&Logged]) -> Vec<Cell> {
    let values = |since: usize| -> Vec<i64> {
        let rows = rows.iter().filter(|r| r.program >= since);
        rows.filter_map(|r| if let Cell::Int(v) = r.cells[VALUE] { Some(v) } else { None }).collect()
    };
    let cell = |v: Option<i64>| v.map_or(Cell::Null, Cell::Int);
    let all = values(0);
    let sum = (!all.is_empty()).then(|| all.iter().sum::<i64>());
    let count = Cell::Int(rows.len() as i64);
    match program {
        0 => vec![count, cell(sum), cell(all.iter().max().copied())],
        1 => vec![cell(sum), cell(values(1).iter().min().copied()), count],
        _ => vec![
            cell(values(2).iter().max().copied()),
            cell(sum.map(|s| s / all.len() as i64)),
            count,
            cell(values(1).iter().min().copied()),
        ],
    }
}

/// By key, the last row of a changelog, and how often a key was inserted.
fn last_rows(output: &[Vec<Cell>]) -> (BTreeMap<Cell, Vec<Cell>>, usize) {
    let (mut table, mut inserts) = (BTreeMap::new(), 0);
    for change in output {
        let Cell::Int(kind) = change[0] else { panic!("no row kind") };
        match RowKind::from_number(kind as u8).unwrap() {
            RowKind::UpdateBefore => continue,
            RowKind::Insert => inserts += 1,
            _ => {}
        }
        table.insert(change[1].clone(), change[2..].to_vec());
    }
    (table, inserts)
}

fn by_key(log: &[Logged]) -> BTreeMap<Cell, Vec<&Logged>> {
    let mut keys: BTreeMap<Cell, Vec<&Logged>> = BTreeMap::new();
    log.iter().for_each(|row| keys.entry(row.cells[KEY].clone()).or_default().push(row));
    keys
}

#[test]
fn aggregates_go_on_in_another_release() {
    let make = |program: usize| Program {
        make: Box::new(move || -> Box<dyn Operator> {
            Box::new(RunningAggregate::new(&schema(), &[KEY], release(program)).unwrap())
        }),
        convert: RecordBatch::clone,
    };
    let upgraded = Counter::new(0);
    try_programs(
        60,
        &SHAPE,
        &[KEY],
        || (0..3).map(make).collect(),
        |outcome| {
            let keys = by_key(&outcome.log);
            let (table, inserts) = last_rows(&outcome.output);
            // A key that was there before is no insert.
            assert_eq!(inserts, keys.len());
            for (key, rows) in &keys {
                let programs: Vec<usize> = rows.iter().map(|r| r.program).collect();
                upgraded.set(upgraded.get() + usize::from(programs.first() != programs.last()));
                assert_eq!(table[key], expected(rows), "{key:?} {programs:?}");
            }
            assert_eq!(table.len(), keys.len());
        },
    );
    assert!(upgraded.get() > 100, "{}", upgraded.get());
}

#[test]
fn operands_of_an_earlier_release_are_added_to_panes_of_this_one() {
    const SIZE: i64 = 200;
    let make = |program: usize| Program {
        make: Box::new(move || -> Box<dyn Operator> {
            let (spec, columns) = (WindowSpec::tumbling(SIZE), WindowColumns::default());
            Box::new(WindowAggregate::new(&schema(), &[KEY], TIME, spec, release(program), columns).unwrap())
        }),
        convert: RecordBatch::clone,
    };
    let (upgraded, operands) = (Counter::new(0), Counter::new(0));
    let programs = || (0..3).map(make).collect();
    try_programs(60, &SHAPE, &[KEY], programs, |outcome| {
        let mut windows: BTreeMap<(Cell, i64), Vec<&Logged>> = BTreeMap::new();
        for row in &outcome.log {
            for end in open_ends(row, SIZE, SIZE) {
                windows.entry((row.cells[KEY].clone(), end)).or_default().push(row);
            }
        }
        // A window may have been fired by any release from that of its last row on.
        let mut left_over = outcome.output.clone();
        for ((key, _), rows) in &windows {
            let last = rows.iter().map(|r| r.program).max().unwrap();
            let shows = |by: usize| [vec![key.clone()], expected_by(by, rows)].concat();
            let at = (last..3).find_map(|by| left_over.iter().position(|r| *r == shows(by)));
            left_over.swap_remove(at.unwrap_or_else(|| panic!("{key:?}: {:?} is missing", shows(last))));
            upgraded.set(upgraded.get() + usize::from(rows.iter().any(|r| r.program != last)));
        }
        assert!(left_over.is_empty(), "{left_over:?}");
        operands.set(operands.get() + outcome.operands);
    });
    assert!(upgraded.get() > 30 && operands.get() > 500, "{} {}", upgraded.get(), operands.get());
}

fn narrow() -> SchemaRef {
    let mut fields: Vec<Field> = schema().fields().iter().map(|f| (**f).clone()).collect();
    fields.push(Field::new("small", DataType::Int32, true));
    fields.push(Field::new("gone", DataType::Utf8, true));
    Arc::new(Schema::new(fields))
}

fn wide() -> SchemaRef {
    let mut fields: Vec<Field> = schema().fields().iter().map(|f| (**f).clone()).collect();
    fields.push(Field::new("small", DataType::Int64, true));
    fields.push(Field::new("more", DataType::Boolean, true));
    fields.push(Field::new("text", DataType::Utf8, true));
    Arc::new(Schema::new(fields))
}

fn values(batch: &RecordBatch) -> &Int64Array {
    batch.column(VALUE).as_primitive::<Int64Type>()
}

fn to_narrow(batch: &RecordBatch) -> RecordBatch {
    let small = Int32Array::from_iter(values(batch).iter().map(|v| v.map(|v| v as i32 * 3)));
    let gone = StringArray::from_iter((0..batch.num_rows()).map(|i| (i % 3 > 0).then(|| "x".repeat(i % 5))));
    let columns = batch.columns().iter().cloned().chain([Arc::new(small) as ArrayRef, Arc::new(gone)]);
    RecordBatch::try_new(narrow(), columns.collect()).unwrap()
}

fn to_wide(batch: &RecordBatch) -> RecordBatch {
    let small = Int64Array::from_iter(values(batch).iter().map(|v| v.map(|v| v << 40)));
    let more = arrow_array::BooleanArray::from_iter((0..batch.num_rows()).map(|i| Some(i % 2 == 0)));
    let text = StringArray::from_iter((0..batch.num_rows()).map(|i| (i % 4 > 0).then(|| "t".repeat(i % 6))));
    let columns = batch.columns().iter().cloned();
    let columns = columns.chain([Arc::new(small) as ArrayRef, Arc::new(more), Arc::new(text)]);
    RecordBatch::try_new(wide(), columns.collect()).unwrap()
}

/// What a row that the first release has stored is for the second.
fn widened(row: &Logged) -> Vec<Cell> {
    if row.program == 1 {
        return row.cells.clone();
    }
    let kept = row.cells[..row.cells.len() - 1].iter().cloned();
    kept.chain([Cell::Null, Cell::Null]).collect()
}

#[test]
fn whole_rows_are_upgraded_when_they_are_read() {
    const SIZE: i64 = 200;
    let programs = || {
        let top = |schema: SchemaRef| -> Box<dyn Operator> {
            Box::new(WindowTop::by_time(&schema, TIME, SIZE, VALUE, WindowColumns::default()).unwrap())
        };
        vec![
            Program { make: Box::new(move || top(narrow())), convert: to_narrow },
            Program { make: Box::new(move || top(wide())), convert: to_wide },
        ]
    };
    let upgraded = Counter::new(0);
    try_programs(60, &SHAPE, &[KEY], programs, |outcome| {
        let mut groups: BTreeMap<(Cell, i64), Vec<&Logged>> = BTreeMap::new();
        for row in outcome.log.iter().filter(|r| r.cells[VALUE] != Cell::Null) {
            for end in open_ends(row, SIZE, SIZE) {
                groups.entry((row.cells[KEY].clone(), end)).or_default().push(row);
            }
        }
        // Which release fired a window is told by the rows: the second one's are longer.
        let second = |group: &(Cell, i64)| {
            let end = |row: &[Cell]| if let Cell::Int(t) = row[TIME] { (t.div_euclid(SIZE) + 1) * SIZE } else { 0 };
            outcome.output.iter().any(|r| r.len() == 7 && r[KEY] == group.0 && end(r) == group.1)
        };
        let mut rows_out = Vec::new();
        for (group, rows) in &groups {
            let best = rows.iter().map(|r| r.cells[VALUE].clone()).max();
            let second = second(group);
            for row in rows.iter().filter(|r| Some(&r.cells[VALUE]) == best.as_ref()) {
                upgraded.set(upgraded.get() + usize::from(second && row.program == 0));
                rows_out.push(if second { widened(row) } else { row.cells.clone() });
            }
        }
        same(&outcome.output, rows_out);
    });
    assert!(upgraded.get() > 100, "{}", upgraded.get());
}

#[test]
fn both_sides_of_a_join_are_upgraded_and_in_order_again() {
    const SIZE: i64 = 150;
    // The columns of the right side: a text first, so that the order of the bytes changes.
    let programs = || {
        let join = |right: SchemaRef, columns: &[&str]| -> Box<dyn Operator> {
            let columns = columns.iter().map(|c| right.index_of(c).unwrap()).collect();
            let left = JoinSide { schema: schema(), time_column: TIME, columns: vec![KEY], distinct: true };
            let right = JoinSide { schema: right, time_column: TIME, columns, distinct: false };
            Box::new(WindowJoin::new(left, right, SIZE, WindowColumns::default()).unwrap())
        };
        vec![
            Program { make: Box::new(move || join(narrow(), &["gone", "small"])), convert: to_narrow },
            Program { make: Box::new(move || join(wide(), &["small", "more", "text"])), convert: to_wide },
        ]
    };
    let shape = Shape { inputs: 2, rows: 800, ..SHAPE };
    let mixed = Counter::new(0);
    try_programs(60, &shape, &[KEY], programs, |outcome| {
        let mut groups: BTreeMap<(Cell, i64), [Vec<&Logged>; 2]> = BTreeMap::new();
        for row in &outcome.log {
            for end in open_ends(row, SIZE, SIZE) {
                groups.entry((row.cells[KEY].clone(), end)).or_default()[row.input].push(row);
            }
        }
        // A window with rows of the second release was fired by it.
        let (mut sure, mut shown) = (Vec::new(), Vec::new());
        for ((key, _), [left, right]) in &groups {
            let both = left.iter().chain(right);
            if left.is_empty() || !both.clone().any(|r| r.program == 1) {
                continue;
            }
            for row in right {
                let cells = if row.program == 1 {
                    row.cells[4..7].to_vec()
                } else {
                    vec![row.cells[4].clone(), Cell::Null, Cell::Null]
                };
                mixed.set(mixed.get() + usize::from(row.program == 0));
                sure.push([vec![key.clone()], cells].concat());
            }
        }
        // The others are those of windows that only the first release has seen, whoever fired them: its rows are shorter.
        for ((key, _), [left, right]) in &groups {
            if left.is_empty() || left.iter().chain(right).any(|r| r.program == 1) {
                continue;
            }
            for row in right {
                let old = vec![key.clone(), row.cells[5].clone(), row.cells[4].clone()];
                let new = vec![key.clone(), row.cells[4].clone(), Cell::Null, Cell::Null];
                shown.push((old, new));
            }
        }
        let mut left_over = outcome.output.clone();
        for row in sure {
            let at = left_over.iter().position(|r| *r == row).unwrap_or_else(|| panic!("{row:?} is missing"));
            left_over.swap_remove(at);
        }
        for (old, new) in shown {
            let at = left_over.iter().position(|r| *r == old).or_else(|| left_over.iter().position(|r| *r == new));
            left_over.swap_remove(at.unwrap_or_else(|| panic!("{old:?} is missing")));
        }
        assert!(left_over.is_empty(), "{left_over:?}");
    });
    assert!(mixed.get() > 100, "{}", mixed.get());
}

#[test]
fn another_function_is_another_state() {
    let form = |function| {
        let mut operator = RunningAggregate::new(&schema(), &[KEY], vec![call(function, Some(VALUE), "v")]).unwrap();
        operator.states()[0].descriptor().schema(Vec::new())
    };
    use AggregateFunction::*;
    use millstream_state_store::schema::Upgrade;
    assert!(Upgrade::new(&form(Sum), &form(Avg)).unwrap().is_same());
    for (old, new) in [(Min, Max), (Sum, Min), (Count, Sum), (Max, Count)] {
        let why = Upgrade::new(&form(old), &form(new)).unwrap_err();
        assert!(why.contains("field 'v' was"), "{why}");
    }
}

/// The rows of a key since it last had no state.
fn since_expiry<'a>(rows: &[&'a Logged], ttl: Ttl, started: &mut usize) -> Vec<&'a Logged> {
    let (mut live, mut stamp): (Vec<&Logged>, i64) = (Vec::new(), i64::MAX);
    for row in rows {
        let now = match ttl.clock {
            TtlClock::EventTime => row.fired,
            TtlClock::ProcessingTime => row.wall,
        };
        if stamp != i64::MAX && stamp <= now {
            live.clear();
        }
        *started += usize::from(live.is_empty());
        live.push(row);
        stamp = if now == i64::MIN { i64::MAX } else { now + ttl.duration_ms };
    }
    live
}

fn expires_as_told(clock: TtlClock, duration_ms: i64) {
    let ttl = Ttl { duration_ms, clock };
    let programs = move || {
        let make = move || -> Box<dyn Operator> {
            Box::new(RunningAggregate::new(&schema(), &[KEY], calls()).unwrap().with_ttl(Some(ttl)))
        };
        vec![Program { make: Box::new(make), convert: RecordBatch::clone }]
    };
    let again = Counter::new(0);
    try_programs(60, &SHAPE, &[KEY], programs, |outcome| {
        let keys = by_key(&outcome.log);
        let (table, inserts) = last_rows(&outcome.output);
        let mut started = 0;
        for (key, rows) in &keys {
            assert_eq!(table[key], aggregate(&since_expiry(rows, ttl, &mut started)), "{key:?}");
        }
        assert_eq!(inserts, started);
        again.set(again.get() + started - keys.len());
    });
    assert!(again.get() > 150, "{}", again.get());
}

#[test]
fn aggregates_expire_by_event_time() {
    expires_as_told(TtlClock::EventTime, 40);
}

#[test]
fn aggregates_expire_by_the_clock_of_the_machine() {
    expires_as_told(TtlClock::ProcessingTime, 40);
}

/// A row of the test's schema with the key `a`.
fn one_row(time: i64, value: i64) -> RecordBatch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec!["a"])),
        Arc::new(arrow_array::TimestampMillisecondArray::from(vec![time])),
        Arc::new(Int64Array::from(vec![value])),
        Arc::new(arrow_array::BooleanArray::from(vec![None::<bool>])),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}

/// When the pane of that row is due, in windows of 10 ms.
const MERGED_AT: i64 = 9;

/// What an operator emits for a row and the watermark 20 when the store holds `stored`, bytes of the first release.
fn go_on_from(mut operator: impl Operator, stored: &[u8], row: &RecordBatch, timer: Option<i64>) -> Vec<Vec<Cell>> {
    let (id, all) = (StateId(3), KeyGroupRanges::all());
    for (i, state) in operator.states().into_iter().enumerate() {
        let described = state.descriptor().schema(Vec::new());
        state.set_history(&[described]).unwrap();
        state.open(StateId(id.0 + i as u16), all.clone(), false);
    }
    let form = operator.states()[0].descriptor().form.clone();
    let mut rest = stored;
    skip(&form, &mut rest).unwrap();
    assert!(rest.is_empty(), "{form} is not what is stored");
    let mut keys = KeyBuffer::default();
    encode_keys(&[row.column(KEY).clone()], &mut keys).unwrap();
    let batch = KeyedBatch { records: row.clone(), keys };
    operator.name_reads(0, &batch).unwrap();
    operator.states().into_iter().for_each(|s| s.end_group());
    let mut missing = Vec::new();
    operator.states()[0].take_missing(&mut missing);
    // What adds up is not read before it fires.
    let merged = !operator.states()[0].descriptor().merge_operator.is_empty();
    assert_eq!(missing.len(), usize::from(!merged));
    if !merged {
        operator.states()[0].install(&missing[0], Some(stored)).unwrap();
    }
    let mut out = Collector::new(SubtaskTime::uniform(-1));
    operator.process(0, &batch, &mut out).unwrap();
    while operator.advance(20, &mut out).unwrap() != Progress::Done {
        for (i, state) in operator.states().into_iter().enumerate() {
            if state.take_scan().is_some() {
                let mut key = Vec::new();
                let (time, value) = if merged { (Some(MERGED_AT), stored) } else { (timer, &[][..]) };
                let at = time.unwrap_or_default();
                timed_key(StateId(id.0 + i as u16), at, batch.keys.group(0), batch.keys.key(0), &mut key);
                let entry = (key.into(), Bytes::copy_from_slice(value));
                let entries: Vec<_> = time.map(|_| entry).into_iter().collect();
                state.install_scan(&entries, true).unwrap();
            }
        }
    }
    out.take().iter().flat_map(cells).collect()
}

#[test]
fn values_of_the_first_release_are_read() {
    let calls = || release(0);
    let row = one_row(3, 1);
    let [key, rows, sum, max] = [Cell::Text("a".into()), Cell::Int(3), Cell::Int(-4), Cell::Int(7)];
    let result = vec![key.clone(), rows, sum, max];
    // Two rows, -5 of two values, the greatest of two is 7.
    let numbers = [4, 9, 4, 14, 4];
    let running = RunningAggregate::new(&schema(), &[KEY], calls()).unwrap();
    let changes = go_on_from(running, &numbers, &row, None);
    assert_eq!((changes.len(), &changes[1][1..]), (2, &result[..]));

    let spec = WindowSpec { size_ms: 10, slide_ms: 10 };
    let columns = WindowColumns::default;
    let window = WindowAggregate::new(&schema(), &[KEY], TIME, spec, calls(), columns()).unwrap();
    assert_eq!(go_on_from(window, &numbers, &row, None), std::slice::from_ref(&result));

    // Its timer at 11; one session from 0, 12 long.
    let sessions = [&[22, 1, 0, 24, 5][..], &numbers].concat();
    let session = SessionAggregate::new(&schema(), &[KEY], TIME, 10, calls(), columns()).unwrap();
    assert_eq!(go_on_from(session, &sessions, &row, Some(11)), [result]);

    // The greatest is 5, in one row of 22 bytes: "a", 2, 5, null.
    let mut best = vec![10, 1, 22, 1, 1, b'a', 1];
    best.extend(2i64.to_le_bytes());
    best.push(1);
    best.extend(5i64.to_le_bytes());
    best.push(0);
    let top = WindowTop::by_time(&schema(), TIME, 10, VALUE, columns()).unwrap();
    let rows = go_on_from(top, &best, &one_row(3, 5), None);
    let expected = |time| vec![key.clone(), Cell::Int(time), Cell::Int(5), Cell::Null];
    assert_eq!(rows, [expected(2), expected(3)]);

    // A row of three bytes on the left, one of nine on the right.
    let mut pair = vec![1, 3, 1, 1, b'a', 1, 9, 1];
    pair.extend(5i64.to_le_bytes());
    let side = |column| JoinSide { schema: schema(), time_column: TIME, columns: vec![column], distinct: false };
    let join = WindowJoin::new(side(KEY), side(VALUE), 10, columns()).unwrap();
    let pairs = go_on_from(join, &pair, &row, None);
    assert_eq!(pairs, vec![vec![key, Cell::Int(5)]; 2]);
}
