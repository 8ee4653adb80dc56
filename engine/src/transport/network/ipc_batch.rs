//! Whether a record batch message fits its schema and its body.
//!
//! The decoder of arrow-ipc checks what the arrays mean (offsets rise, text is UTF-8, unions point at rows that
//! exist), but slices buffers by what the message says, and panics where that lies. This walk over the schema checks
//! just those claims: how many nodes and buffers there are, where they lie, and whether validity and union buffers
//! are as long as the rows need. It reads no row and allocates nothing.

use arrow_ipc::{Buffer as Place, FieldNode, RecordBatch as BatchMessage};
use arrow_schema::{DataType, Field, Schema, UnionMode};
use millstream_common::Result;

use super::frame::bad;

/// The most rows of a batch, and the most values of a column inside a column.
const ROWS_MAX: i64 = i32::MAX as i64;
/// Where a buffer may begin.
const BUFFER_ALIGNMENT: i64 = 8;

/// Whether `message` describes a batch of `schema` in a body of `body_bytes`.
pub(super) fn check_batch(message: &BatchMessage<'_>, schema: &Schema, body_bytes: usize) -> Result<()> {
    if message.compression().is_some() {
        return Err(bad("a compressed batch"));
    }
    if !(0..=ROWS_MAX).contains(&message.length()) {
        return Err(bad(format!("a batch of {} rows", message.length())));
    }
    let (Some(nodes), Some(buffers)) = (message.nodes(), message.buffers()) else {
        return Err(bad("a batch without nodes or buffers"));
    };
    let mut claims = Claims {
        nodes: nodes.iter(),
        buffers: buffers.iter(),
        views: message.variadicBufferCounts().into_iter().flatten(),
        body_bytes: i64::try_from(body_bytes).unwrap_or(i64::MAX),
    };
    schema.fields().iter().try_for_each(|field| claims.check_field(field))?;
    if claims.nodes.next().is_some() || claims.buffers.next().is_some() || claims.views.next().is_some() {
        return Err(bad("a batch with more columns than its schema"));
    }
    Ok(())
}

/// What is left of a message's claims.
struct Claims<N, B, V> {
    nodes: N,
    buffers: B,
    views: V,
    body_bytes: i64,
}

impl<'a, N, B, V> Claims<N, B, V>
where
    N: Iterator<Item = &'a FieldNode>,
    B: Iterator<Item = &'a Place>,
    V: Iterator<Item = i64>,
{
    fn check_field(&mut self, field: &Field) -> Result<()> {
        let (rows, nulls) = self.node()?;
        match field.data_type() {
            DataType::Null => return Ok(()),
            DataType::Union(fields, mode) => {
                self.buffer(rows, 1)?;
                if *mode == UnionMode::Dense {
                    self.buffer(rows * 4, 4)?;
                }
                return fields.iter().try_for_each(|(_, field)| self.check_field(field));
            }
            _ => self.buffer(if nulls > 0 { (rows + 7) / 8 } else { 0 }, 1)?,
        }
        match field.data_type() {
            DataType::Utf8 | DataType::Binary => {
                self.buffer(0, 4)?;
                self.buffer(0, 1)
            }
            DataType::LargeUtf8 | DataType::LargeBinary => {
                self.buffer(0, 8)?;
                self.buffer(0, 1)
            }
            DataType::Utf8View | DataType::BinaryView => {
                let data = self.views.next().ok_or_else(|| bad("a batch that does not count its view buffers"))?;
                if data < 0 {
                    return Err(bad(format!("{data} view buffers")));
                }
                self.buffer(rows * 16, 16)?;
                // Each step takes a buffer that must exist: a great count ends soon.
                (0..data).try_for_each(|_| self.buffer(0, 1))
            }
            DataType::List(child) | DataType::Map(child, _) => {
                self.buffer(0, 4)?;
                self.check_field(child)
            }
            DataType::LargeList(child) => {
                self.buffer(0, 8)?;
                self.check_field(child)
            }
            DataType::FixedSizeList(child, _) => self.check_field(child),
            DataType::Struct(fields) => fields.iter().try_for_each(|field| self.check_field(field)),
            DataType::Dictionary(..)
            | DataType::RunEndEncoded(..)
            | DataType::ListView(_)
            | DataType::LargeListView(_) => Err(bad(format!("a column of type {}", field.data_type()))),
            fixed => self.buffer(0, fixed.primitive_width().unwrap_or(1) as i64),
        }
    }

    /// Rows and nulls of the next column.
    fn node(&mut self) -> Result<(i64, i64)> {
        let node = self.nodes.next().ok_or_else(|| bad("a batch with fewer columns than its schema"))?;
        let (rows, nulls) = (node.length(), node.null_count());
        if !(0..=ROWS_MAX).contains(&rows) || !(0..=rows).contains(&nulls) {
            return Err(bad(format!("a column of {rows} rows with {nulls} nulls")));
        }
        Ok((rows, nulls))
    }

    /// The next buffer lies in the body, has at least `bytes_min`, and holds whole values of `width` bytes.
    fn buffer(&mut self, bytes_min: i64, width: i64) -> Result<()> {
        let place = self.buffers.next().ok_or_else(|| bad("a batch with fewer buffers than its schema needs"))?;
        let (offset, length) = (place.offset(), place.length());
        let end = offset.checked_add(length).filter(|end| *end <= self.body_bytes);
        if offset < 0 || length < 0 || end.is_none() || offset % BUFFER_ALIGNMENT != 0 {
            let what = format!("a buffer of {length} bytes at {offset} in a body of {} bytes", self.body_bytes);
            return Err(bad(what));
        }
        if length < bytes_min || length % width != 0 {
            let what = format!("a buffer of {length} bytes where its column needs {bytes_min}, in values of {width}");
            return Err(bad(what));
        }
        Ok(())
    }
}
