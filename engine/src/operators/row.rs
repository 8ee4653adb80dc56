//! Rows as bytes: what operators keep of whole rows.
//!
//! A row is its columns one after the other, each a marker (0 null, 1 value) and, for a value, its bytes: those of
//! fixed width as Arrow has them (little endian), Booleans as one byte, texts and byte strings with their length in
//! front. Rows with equal columns have equal bytes.

use std::sync::Arc;

use arrow_array::builder::{BinaryBuilder, BooleanBuilder, LargeBinaryBuilder, LargeStringBuilder, StringBuilder};
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BooleanArray, RecordBatch, make_array};
use arrow_buffer::{Buffer, NullBuffer, NullBufferBuilder};
use arrow_data::ArrayData;
use arrow_schema::{DataType, FieldRef, Schema};
use millstream_common::{Error, Result};
use millstream_state_store::schema::{COLUMN_NULL, COLUMN_VALUE, DISTINCT_ROW, Field as StateField, Form};

use super::keys::{field, wrong_column};
use crate::state::value::{damaged, put_bytes, take_bytes};

const NULL: u8 = COLUMN_NULL;
const VALUE: u8 = COLUMN_VALUE;

/// How rows of some columns are written.
#[derive(Debug)]
pub(super) struct RowCodec {
    columns: Vec<usize>,
    types: Vec<DataType>,
    fields: Vec<FieldRef>,
}

/// The columns of a batch, to be written row by row.
pub(super) struct BoundRows<'a> {
    columns: Vec<BoundColumn<'a>>,
}

enum BoundColumn<'a> {
    Fixed { width: usize, bytes: Buffer, nulls: Option<NullBuffer> },
    Boolean(&'a BooleanArray),
    Text(&'a dyn Texts),
}

/// Arrays of texts or byte strings.
trait Texts {
    fn text(&self, row: usize) -> Option<&[u8]>;
}

macro_rules! texts {
    ($($array:ty),*) => {$(
        impl Texts for $array {
            fn text(&self, row: usize) -> Option<&[u8]> {
                self.is_valid(row).then(|| AsRef::<[u8]>::as_ref(self.value(row)))
            }
        }
    )*};
}
texts!(
    arrow_array::StringArray,
    arrow_array::LargeStringArray,
    arrow_array::BinaryArray,
    arrow_array::LargeBinaryArray
);

/// The width of values of a type; `None` for those of varying width and those that rows cannot hold.
fn fixed_width(ty: &DataType) -> Option<usize> {
    match ty {
        DataType::FixedSizeBinary(width) => usize::try_from(*width).ok(),
        _ => ty.primitive_width(),
    }
}

impl RowCodec {
    /// Rows of `columns` of batches of `schema`.
    pub(super) fn new(schema: &Schema, columns: Vec<usize>) -> Result<Self> {
        let mut types = Vec::with_capacity(columns.len());
        let mut fields = Vec::with_capacity(columns.len());
        for &i in &columns {
            let field = field(schema, i)?;
            let ty = field.data_type();
            let known = matches!(
                ty,
                DataType::Boolean | DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary
            );
            if !known && fixed_width(ty).is_none() {
                return Err(Error::config(format!("column {:?} is {ty}: rows with it cannot be kept", field.name()))
                    .code(1046)
                    .next("leave it out by a select or a map before"));
            }
            types.push(ty.clone());
            fields.push(field.clone());
        }
        Ok(Self { columns, types, fields })
    }

    /// How rows are encoded, in words.
    pub(super) fn value_schema(&self) -> String {
        let words: Vec<_> = self.types.iter().map(ToString::to_string).collect();
        format!("row/1 ({})", words.join(", "))
    }

    /// What a list of rows is made of, each with its length in front. `distinct`: the list holds a row once.
    pub(super) fn list_form(&self, distinct: bool) -> Form {
        let kind = if distinct { DISTINCT_ROW } else { "row" }.to_owned();
        let fields = self.fields.iter().map(|f| StateField::column(f)).collect();
        Form::List(Box::new(Form::Framed(Box::new(Form::Record { kind, fields }))))
    }

    pub(super) fn bind<'a>(&self, batch: &'a RecordBatch) -> Result<BoundRows<'a>> {
        let bind = |(&i, ty): (&usize, &DataType)| {
            let array = batch.column(i);
            if array.data_type() != ty {
                return Err(wrong_column(batch, i, &ty.to_string()));
            }
            Ok(bind_column(array, ty))
        };
        self.columns.iter().zip(&self.types).map(bind).collect::<Result<_>>().map(|columns| BoundRows { columns })
    }

    /// Collects rows as columns.
    pub(super) fn builder(&self) -> RowBuilder {
        RowBuilder { columns: self.types.iter().map(ColumnBuilder::new).collect(), rows: 0 }
    }
}

fn bind_column<'a>(array: &'a ArrayRef, ty: &DataType) -> BoundColumn<'a> {
    match ty {
        DataType::Boolean => BoundColumn::Boolean(array.as_boolean()),
        DataType::Utf8 => BoundColumn::Text(array.as_string::<i32>()),
        DataType::LargeUtf8 => BoundColumn::Text(array.as_string::<i64>()),
        DataType::Binary => BoundColumn::Text(array.as_binary::<i32>()),
        DataType::LargeBinary => BoundColumn::Text(array.as_binary::<i64>()),
        _ => {
            let (data, width) = (array.to_data(), fixed_width(ty).unwrap_or(0));
            let bytes = data.buffers()[0].slice(data.offset() * width);
            BoundColumn::Fixed { width, bytes, nulls: array.nulls().cloned() }
        }
    }
}

impl BoundRows<'_> {
    /// Writes a row; replaces what `into` holds.
    pub(super) fn encode(&self, row: usize, into: &mut Vec<u8>) {
        into.clear();
        for column in &self.columns {
            match column {
                BoundColumn::Fixed { nulls: Some(nulls), .. } if nulls.is_null(row) => into.push(NULL),
                BoundColumn::Fixed { width, bytes, .. } => {
                    into.push(VALUE);
                    into.extend_from_slice(&bytes[row * width..(row + 1) * width]);
                }
                BoundColumn::Boolean(array) if array.is_null(row) => into.push(NULL),
                BoundColumn::Boolean(array) => into.extend([VALUE, u8::from(array.value(row))]),
                BoundColumn::Text(array) => match array.text(row) {
                    None => into.push(NULL),
                    Some(text) => {
                        into.push(VALUE);
                        put_bytes(text, into);
                    }
                },
            }
        }
    }
}

/// Rows as columns in the making.
pub(super) struct RowBuilder {
    columns: Vec<ColumnBuilder>,
    rows: usize,
}

enum ColumnBuilder {
    Fixed { ty: DataType, width: usize, bytes: Vec<u8>, nulls: NullBufferBuilder },
    Boolean(BooleanBuilder),
    Utf8(StringBuilder),
    LargeUtf8(LargeStringBuilder),
    Binary(BinaryBuilder),
    LargeBinary(LargeBinaryBuilder),
}

impl RowBuilder {
    /// Appends a row that [`BoundRows::encode`] wrote.
    pub(super) fn push(&mut self, mut row: &[u8]) -> Result<()> {
        for column in &mut self.columns {
            column.push(&mut row)?;
        }
        self.rows += 1;
        if row.is_empty() { Ok(()) } else { Err(damaged("a row is longer than its columns")) }
    }

    pub(super) fn finish(self) -> Result<Vec<ArrayRef>> {
        let rows = self.rows;
        self.columns.into_iter().map(|c| c.finish(rows)).collect()
    }
}

impl ColumnBuilder {
    fn new(ty: &DataType) -> Self {
        match ty {
            DataType::Boolean => Self::Boolean(BooleanBuilder::new()),
            DataType::Utf8 => Self::Utf8(StringBuilder::new()),
            DataType::LargeUtf8 => Self::LargeUtf8(LargeStringBuilder::new()),
            DataType::Binary => Self::Binary(BinaryBuilder::new()),
            DataType::LargeBinary => Self::LargeBinary(LargeBinaryBuilder::new()),
            _ => Self::Fixed {
                ty: ty.clone(),
                width: fixed_width(ty).unwrap_or(0),
                bytes: Vec::new(),
                nulls: NullBufferBuilder::new(0),
            },
        }
    }

    fn push(&mut self, row: &mut &[u8]) -> Result<()> {
        let (&marker, rest) = row.split_first().ok_or_else(|| damaged("a row is cut short"))?;
        *row = rest;
        match marker {
            NULL => self.push_null(),
            VALUE => self.push_value(row)?,
            _ => return Err(damaged("a column of a row is neither null nor a value")),
        }
        Ok(())
    }

    fn push_null(&mut self) {
        match self {
            Self::Fixed { width, bytes, nulls, .. } => {
                bytes.resize(bytes.len() + *width, 0);
                nulls.append_null();
            }
            Self::Boolean(b) => b.append_null(),
            Self::Utf8(b) => b.append_null(),
            Self::LargeUtf8(b) => b.append_null(),
            Self::Binary(b) => b.append_null(),
            Self::LargeBinary(b) => b.append_null(),
        }
    }

    fn push_value(&mut self, row: &mut &[u8]) -> Result<()> {
        match self {
            Self::Fixed { width, bytes, nulls, .. } => {
                bytes.extend_from_slice(take(row, *width)?);
                nulls.append_non_null();
            }
            Self::Boolean(b) => b.append_value(take(row, 1)?[0] != 0),
            Self::Utf8(b) => b.append_value(utf8(take_bytes(row)?)?),
            Self::LargeUtf8(b) => b.append_value(utf8(take_bytes(row)?)?),
            Self::Binary(b) => b.append_value(take_bytes(row)?),
            Self::LargeBinary(b) => b.append_value(take_bytes(row)?),
        }
        Ok(())
    }

    fn finish(self, rows: usize) -> Result<ArrayRef> {
        Ok(match self {
            Self::Fixed { ty, bytes, mut nulls, .. } => {
                let data = ArrayData::builder(ty).len(rows).add_buffer(Buffer::from_vec(bytes)).nulls(nulls.finish());
                // Bytes of a vector may stand anywhere; values want to be aligned.
                let data = data.align_buffers(true).build();
                make_array(data.map_err(|e| damaged(&format!("its columns do not fit their types: {e}")))?)
            }
            Self::Boolean(mut b) => Arc::new(b.finish()),
            Self::Utf8(mut b) => Arc::new(b.finish()),
            Self::LargeUtf8(mut b) => Arc::new(b.finish()),
            Self::Binary(mut b) => Arc::new(b.finish()),
            Self::LargeBinary(mut b) => Arc::new(b.finish()),
        })
    }
}

fn take<'a>(row: &mut &'a [u8], n: usize) -> Result<&'a [u8]> {
    let (taken, rest) = row.split_at_checked(n).ok_or_else(|| damaged("a row is cut short"))?;
    *row = rest;
    Ok(taken)
}

fn utf8(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| damaged("a text is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use arrow_array::{
        BinaryArray, Date32Array, Decimal128Array, Float64Array, Int32Array, LargeStringArray, StringArray,
        TimestampMillisecondArray, UInt8Array,
    };

    use super::*;

    fn batch() -> RecordBatch {
        let columns: Vec<(&str, ArrayRef)> = vec![
            ("bool", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false), Some(true)]))),
            ("i32", Arc::new(Int32Array::from(vec![Some(-1), Some(i32::MAX), None, Some(7)]))),
            ("u8", Arc::new(UInt8Array::from(vec![1, 2, 3, 4]))),
            ("f64", Arc::new(Float64Array::from(vec![Some(-0.0), Some(f64::NAN), None, Some(1.5)]))),
            ("time", Arc::new(TimestampMillisecondArray::from(vec![Some(1), None, Some(-5), Some(9)]))),
            ("date", Arc::new(Date32Array::from(vec![Some(1), None, Some(-5), Some(9)]))),
            ("decimal", Arc::new(Decimal128Array::from(vec![Some(1i128 << 90), None, Some(-5), Some(9)]))),
            ("text", Arc::new(StringArray::from(vec![Some("a"), Some(""), None, Some("räksmörgås")]))),
            ("long", Arc::new(LargeStringArray::from(vec![Some("b"), None, Some("ccc"), Some("")]))),
            ("bytes", Arc::new(BinaryArray::from_opt_vec(vec![Some(b"\0\xff"), None, Some(b""), Some(b"x")]))),
        ];
        RecordBatch::try_from_iter(columns).unwrap()
    }

    #[test]
    fn rows_come_back_as_columns_also_from_slices() {
        let whole = batch();
        for (offset, length) in [(0, 4), (1, 3), (2, 1), (3, 0)] {
            let batch = whole.slice(offset, length);
            let codec = RowCodec::new(batch.schema_ref(), (0..batch.num_columns()).collect()).unwrap();
            let bound = codec.bind(&batch).unwrap();
            let mut builder = codec.builder();
            let mut bytes = Vec::new();
            for row in 0..length {
                bound.encode(row, &mut bytes);
                builder.push(&bytes).unwrap();
                for cut in 0..bytes.len() {
                    assert!(codec.builder().push(&bytes[..cut]).is_err());
                }
            }
            assert_eq!(RecordBatch::try_new(batch.schema(), builder.finish().unwrap()).unwrap(), batch);
        }
    }

    #[test]
    fn a_column_that_cannot_be_kept_is_named() {
        let schema = Schema::new(vec![arrow_schema::Field::new("nothing", DataType::Null, true)]);
        let error = RowCodec::new(&schema, vec![0]).unwrap_err();
        assert!(error.what().contains("nothing"), "{error}");
    }
}
