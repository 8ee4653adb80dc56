//! Keys and values of a state as JSON, byte for byte as sinks print columns.

use std::sync::Arc;

use arrow_array::{ArrayRef, BinaryArray, BooleanArray, StringArray, make_array};
use arrow_buffer::Buffer;
use arrow_data::ArrayData;
use arrow_schema::DataType;
use millstream_common::Result;
use millstream_formats::json::{push_string, push_value};
use millstream_formats::time::{RANGE_MS, format_timestamp_ms};
use millstream_state_store::key::decode_key;
use millstream_state_store::schema::{
    COLUMN_NULL, ColumnWidth, Form, KeyColumn, column_width, damaged, skip, take_bytes, take_i64, take_u64,
};

/// Appends an encoded key as an object of its columns.
pub fn push_key(key: &[u8], columns: &[KeyColumn], out: &mut Vec<u8>) -> Result<()> {
    let types: Vec<DataType> = columns.iter().map(|c| c.ty.clone()).collect();
    let arrays = decode_key(key, &types)?;
    out.push(b'{');
    for (i, (column, array)) in columns.iter().zip(&arrays).enumerate() {
        push_label(&column.name, i, out);
        push_value(array, 0, out)?;
    }
    out.push(b'}');
    Ok(())
}

/// Appends a value, without its tag and stamp. `bytes` hold nothing else.
pub fn push_stored(form: &Form, mut bytes: &[u8], out: &mut Vec<u8>) -> Result<()> {
    push_form(form, &mut bytes, out)?;
    if bytes.is_empty() { Ok(()) } else { Err(damaged("it goes on behind its last field")) }
}

/// Appends a moment: as text, or as a number when it lies beyond the years that have one.
pub fn push_time(ms: i64, out: &mut Vec<u8>) {
    if RANGE_MS.contains(&ms) {
        push_string(&format_timestamp_ms(ms), out);
    } else {
        out.extend_from_slice(ms.to_string().as_bytes());
    }
}

/// Bytes of which nothing is known.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// Appends `,"name":`, or `"name":` for the first.
pub fn push_label(name: &str, index: usize, out: &mut Vec<u8>) {
    if index > 0 {
        out.push(b',');
    }
    push_string(name, out);
    out.push(b':');
}

fn push_form(form: &Form, bytes: &mut &[u8], out: &mut Vec<u8>) -> Result<()> {
    match form {
        Form::Nothing => out.extend_from_slice(b"{}"),
        Form::Integer => out.extend_from_slice(take_i64(bytes)?.to_string().as_bytes()),
        Form::Column(ty) => push_value(&column(ty, skip(form, bytes)?)?, 0, out)?,
        Form::Record { fields, .. } => {
            out.push(b'{');
            for (i, field) in fields.iter().enumerate() {
                push_label(&field.name, i, out);
                push_form(&field.form, bytes, out)?;
            }
            out.push(b'}');
        }
        Form::List(item) => {
            out.push(b'[');
            let count = take_u64(bytes)?;
            if count > bytes.len() as u64 {
                return Err(damaged("a list is cut short"));
            }
            for i in 0..count {
                if i > 0 {
                    out.push(b',');
                }
                push_form(item, bytes, out)?;
            }
            out.push(b']');
        }
        Form::Framed(inner) => push_stored(inner, take_bytes(bytes)?, out)?,
        Form::Rest | Form::Opaque(_) => {
            push_string(&format!("0x{}", hex(bytes)), out);
            *bytes = &[];
        }
    }
    Ok(())
}

/// The column of one row that stands in `bytes`, with its marker.
fn column(ty: &DataType, bytes: &[u8]) -> Result<ArrayRef> {
    if bytes.first() == Some(&COLUMN_NULL) {
        return Ok(Arc::new(arrow_array::NullArray::new(1)));
    }
    let mut value = bytes.get(1..).unwrap_or_default();
    Ok(match (column_width(ty), ty) {
        (Some(ColumnWidth::Varying), DataType::Utf8 | DataType::LargeUtf8) => {
            let text = std::str::from_utf8(take_bytes(&mut value)?).map_err(|_| damaged("a text is not UTF-8"))?;
            Arc::new(StringArray::from(vec![text]))
        }
        (Some(ColumnWidth::Varying), _) => Arc::new(BinaryArray::from_vec(vec![take_bytes(&mut value)?])),
        (_, DataType::Boolean) => Arc::new(BooleanArray::from(vec![value.first() == Some(&1)])),
        _ => {
            let data = ArrayData::builder(ty.clone()).len(1).add_buffer(Buffer::from(value)).align_buffers(true);
            make_array(data.build().map_err(|e| damaged(&format!("a column does not fit its type: {e}")))?)
        }
    })
}

#[cfg(test)]
mod tests {
    use arrow_schema::{Field as ArrowField, TimeUnit};
    use millstream_state_store::schema::{COLUMN_VALUE, Field, put_bytes, put_i64};

    use super::*;

    fn shown(form: &Form, bytes: &[u8]) -> String {
        let mut out = Vec::new();
        push_stored(form, bytes, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn values_of_every_form_print_as_columns_do() {
        let column = |name: &str, ty| Field::column(&ArrowField::new(name, ty, true));
        let row = Form::Record {
            kind: "row".into(),
            fields: vec![
                column("text", DataType::Utf8),
                column("at", DataType::Timestamp(TimeUnit::Millisecond, None)),
                column("price", DataType::Decimal128(23, 3)),
                column("flag", DataType::Boolean),
                column("blob", DataType::Binary),
                column("none", DataType::Int32),
            ],
        };
        let form = Form::Record {
            kind: String::new(),
            fields: vec![
                Field::new("n", Form::Integer),
                Field::new("rows", Form::List(Box::new(Form::Framed(Box::new(row))))),
                Field::new("nothing", Form::Nothing),
                Field::new("rest", Form::Rest),
            ],
        };
        let mut row = vec![COLUMN_VALUE];
        put_bytes("a\"b".as_bytes(), &mut row);
        row.push(COLUMN_VALUE);
        row.extend(1_767_225_604_330_i64.to_le_bytes());
        row.push(COLUMN_VALUE);
        row.extend(1_006_023_140_i128.to_le_bytes());
        row.extend([COLUMN_VALUE, 1, COLUMN_VALUE]);
        put_bytes(&[0, 255], &mut row);
        row.push(COLUMN_NULL);
        let mut value = Vec::new();
        put_i64(-3, &mut value);
        value.push(1);
        put_bytes(&row, &mut value);
        value.extend([7, 8]);
        assert_eq!(
            shown(&form, &value),
            concat!(
                r#"{"n":-3,"rows":[{"text":"a\"b","at":"2026-01-01 00:00:04.330","price":1006023.140,"#,
                r#""flag":true,"blob":"0x00ff","none":null}],"nothing":{},"rest":"0x0708"}"#
            )
        );
        let mut out = Vec::new();
        assert!(push_stored(&Form::Integer, &value, &mut out).is_err());
        assert!(push_stored(&Form::List(Box::new(Form::Nothing)), &[100], &mut out).is_err());
    }

    #[test]
    fn moments_beyond_the_calendar_are_numbers() {
        let mut out = Vec::new();
        push_time(0, &mut out);
        push_time(i64::MAX, &mut out);
        assert_eq!(String::from_utf8(out).unwrap(), "\"1970-01-01 00:00:00.000\"9223372036854775807");
    }
}
