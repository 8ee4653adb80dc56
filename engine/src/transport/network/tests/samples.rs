//! Batches and keys to send.

use std::sync::Arc;

use arrow_array::builder::{Int32Builder, ListBuilder, MapBuilder, StringBuilder};
use arrow_array::types::Int64Type;
use arrow_array::{
    ArrayRef, BinaryArray, BooleanArray, Decimal128Array, DictionaryArray, FixedSizeBinaryArray, FixedSizeListArray,
    Float64Array, Int64Array, NullArray, RecordBatch, StringArray, StringViewArray, StructArray,
    TimestampMillisecondArray, UInt8Array, UnionArray,
};
use arrow_buffer::{NullBuffer, ScalarBuffer};
use arrow_schema::{DataType, Field, Schema, UnionFields, UnionMode};
use millstream_common::{AssignmentId, Execution, Generation, KeyGroupRange};

use crate::element::Assignment;
use crate::transport::ChannelKey;

pub(super) fn key() -> ChannelKey {
    ChannelKey {
        job: "job-1".to_owned(),
        generation: Generation(3),
        execution: Execution(7),
        assignment: AssignmentId(2),
        edge: 4,
        from: 1,
        to: 9,
    }
}

pub(super) fn assignment() -> Assignment {
    let ranges = [(0, 1000), (1000, 65_536)].map(|(a, b)| KeyGroupRange::new(a, b).into());
    Assignment { id: AssignmentId(8), ranges: ranges.to_vec() }
}

fn union(rows: i32, mode: UnionMode) -> ArrayRef {
    let fields = UnionFields::try_new(
        [3, 5],
        [Field::new("number", DataType::Int64, true), Field::new("text", DataType::Utf8, true)],
    )
    .unwrap();
    let ids: ScalarBuffer<i8> = (0..rows).map(|i| if i % 3 == 0 { 5 } else { 3 }).collect();
    let offsets: ScalarBuffer<i32> = (0..rows).map(|i| if i % 3 == 0 { i / 3 } else { i - i / 3 - 1 }).collect();
    let (numbers, texts) = match mode {
        UnionMode::Dense => (rows - (rows + 2) / 3, (rows + 2) / 3),
        UnionMode::Sparse => (rows, rows),
    };
    let children: Vec<ArrayRef> = vec![
        Arc::new((0..numbers).map(|i| (i % 7 != 0).then_some(i64::from(i))).collect::<Int64Array>()),
        Arc::new((0..texts).map(|i| Some(format!("text {i}"))).collect::<StringArray>()),
    ];
    let offsets = (mode == UnionMode::Dense).then_some(offsets);
    Arc::new(UnionArray::try_new(fields, ids, offsets, children).unwrap())
}

fn list(rows: i32) -> ArrayRef {
    let mut out = ListBuilder::new(Int32Builder::new());
    for i in 0..rows {
        (0..i % 4).for_each(|n| out.values().append_value(n));
        out.append(i % 6 != 0);
    }
    Arc::new(out.finish())
}

fn map(rows: i32) -> ArrayRef {
    let mut out = MapBuilder::new(None, StringBuilder::new(), Int32Builder::new());
    for i in 0..rows {
        (0..i % 3).for_each(|n| {
            out.keys().append_value(format!("k{n}"));
            out.values().append_value(i * n);
        });
        out.append(true).unwrap();
    }
    Arc::new(out.finish())
}

fn structure(rows: i32) -> ArrayRef {
    let inner = Field::new("inner", DataType::Int64, true);
    let nested = Field::new("list", list(0).data_type().clone(), true);
    let columns: Vec<ArrayRef> = vec![Arc::new(Int64Array::from_iter(0..i64::from(rows))), list(rows)];
    let nulls = NullBuffer::from_iter((0..rows).map(|i| i % 4 != 1));
    Arc::new(StructArray::new(vec![inner, nested].into(), columns, Some(nulls)))
}

/// A batch with a column of each type that can be sent, with nulls where the type has them.
pub(super) fn batch(rows: i32) -> RecordBatch {
    let n = i64::from(rows);
    let some = |i: i64| i % 5 != 2;
    let text = |i: i64| some(i).then(|| "x".repeat((i % 30) as usize));
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("kind", Arc::new((0..n).map(|i| Some((i % 4) as u8)).collect::<UInt8Array>())),
        ("int64", Arc::new((0..n).map(|i| some(i).then_some(i * 1_000_003)).collect::<Int64Array>())),
        ("utf8", Arc::new((0..n).map(text).collect::<StringArray>())),
        ("utf8view", Arc::new((0..n).map(text).collect::<StringViewArray>())),
        ("binary", Arc::new(BinaryArray::from_iter_values((0..n).map(|i| i.to_be_bytes())))),
        (
            "time",
            Arc::new((0..n).map(|i| some(i).then_some(i)).collect::<TimestampMillisecondArray>().with_timezone("UTC")),
        ),
        (
            "decimal",
            Arc::new(
                (0..n)
                    .map(|i| some(i).then_some(i128::from(i) << 70))
                    .collect::<Decimal128Array>()
                    .with_precision_and_scale(38, 4)
                    .unwrap(),
            ),
        ),
        ("struct", structure(rows)),
        ("dense", union(rows, UnionMode::Dense)),
        ("sparse", union(rows, UnionMode::Sparse)),
        ("bool", Arc::new((0..n).map(|i| some(i).then_some(i % 3 == 0)).collect::<BooleanArray>())),
        ("list", list(rows)),
        ("map", map(rows)),
        (
            "pair",
            Arc::new(FixedSizeListArray::from_iter_primitive::<Int64Type, _, _>(
                (0..n).map(|i| Some([Some(i), None])),
                2,
            )),
        ),
        (
            "uuid",
            Arc::new(
                FixedSizeBinaryArray::try_from_iter((0..rows.max(1)).map(|i| [i as u8; 16]))
                    .unwrap()
                    .slice(0, rows as usize),
            ),
        ),
        ("float", Arc::new((0..n).map(|i| some(i).then_some(i as f64 / 3.0)).collect::<Float64Array>())),
        ("null", Arc::new(NullArray::new(rows as usize))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

/// `rows` numbers from `first` on.
pub(super) fn numbers(first: i64, rows: i64) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(first..first + rows));
    RecordBatch::try_from_iter([("n", column)]).unwrap()
}

/// A batch that cannot be sent.
pub(super) fn dictionary() -> RecordBatch {
    let column: DictionaryArray<arrow_array::types::Int32Type> = ["a", "b", "a"].into_iter().collect();
    let schema = Schema::new(vec![Field::new("word", arrow_array::Array::data_type(&column).clone(), true)]);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::new(column)]).unwrap()
}
