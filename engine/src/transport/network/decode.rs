//! From frames to stream elements.
//!
//! A batch's arrays point into the frame's buffer: nothing is copied (unless the allocator gave a buffer that is not
//! aligned for 16-byte values). Refuses whatever a writer of this version would not have sent; never panics on it.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_ipc::convert::fb_to_schema;
use arrow_ipc::reader::RecordBatchDecoder;
use arrow_ipc::{Message, MetadataVersion, root_as_message};
use arrow_schema::SchemaRef;
use millstream_common::Result;

use super::frame::{FLAG_SCHEMA, FrameKind, Header, bad, decode_small};
use super::ipc_batch::check_batch;
use super::ipc_schema::check_schema_message;
use crate::element::StreamElement;

/// Bytes before the metadata of an encapsulated message: continuation mark and length.
const PREFIX_BYTES: usize = 8;

/// Decodes the frames of one connection, in order.
#[derive(Default)]
pub(super) struct Decoder {
    schema: Option<SchemaRef>,
}

impl Decoder {
    /// The element of a frame whose checksum was right.
    pub(super) fn decode(&mut self, header: &Header, payload: Vec<u8>) -> Result<StreamElement> {
        if header.kind != FrameKind::Batch {
            return decode_small(header.kind, &payload);
        }
        let mut rest = Buffer::from_vec(payload);
        if header.flags & FLAG_SCHEMA != 0 {
            self.schema = Some(read_schema(&mut rest)?);
        }
        let schema = self.schema.clone().ok_or_else(|| bad("a batch before its schema"))?;
        let batch = read_batch(&mut rest, schema)?;
        if !rest.is_empty() {
            return Err(bad(format!("{} bytes behind a batch", rest.len())));
        }
        Ok(StreamElement::Batch(batch))
    }
}

/// Takes one encapsulated message off the front: its metadata and its body.
fn take_message(rest: &mut Buffer) -> Result<(Buffer, Buffer)> {
    let Some((prefix, behind)) = rest.split_first_chunk::<PREFIX_BYTES>() else {
        return Err(bad("a batch that is cut off"));
    };
    let [c0, c1, c2, c3, l0, l1, l2, l3] = *prefix;
    let metadata_bytes = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if [c0, c1, c2, c3] != [0xff; 4] || metadata_bytes > behind.len() {
        return Err(bad("a batch whose message is cut off"));
    }
    let metadata = rest.slice_with_length(PREFIX_BYTES, metadata_bytes);
    let body_bytes = usize::try_from(open(&metadata)?.bodyLength()).map_err(|_| bad("a message's body"))?;
    let body_at = PREFIX_BYTES + metadata_bytes;
    if body_bytes > rest.len() - body_at {
        return Err(bad(format!("a message's body of {body_bytes} bytes, {} are there", rest.len() - body_at)));
    }
    let body = rest.slice_with_length(body_at, body_bytes);
    rest.advance(body_at + body_bytes);
    Ok((metadata, body))
}

fn open(metadata: &Buffer) -> Result<Message<'_>> {
    let message = root_as_message(metadata).map_err(|e| bad("a message that cannot be read").source(e.to_string()))?;
    if message.version() != MetadataVersion::V5 {
        return Err(bad(format!("a message of Arrow metadata version {:?}", message.version())));
    }
    Ok(message)
}

fn read_schema(rest: &mut Buffer) -> Result<SchemaRef> {
    let (metadata, _) = take_message(rest)?;
    let message = open(&metadata)?.header_as_schema().ok_or_else(|| bad("another message where a schema should be"))?;
    check_schema_message(&message)?;
    Ok(Arc::new(fb_to_schema(message)))
}

fn read_batch(rest: &mut Buffer, schema: SchemaRef) -> Result<RecordBatch> {
    let (metadata, body) = take_message(rest)?;
    let message = open(&metadata)?;
    let batch = message.header_as_record_batch().ok_or_else(|| bad("another message where a batch should be"))?;
    check_batch(&batch, &schema, body.len())?;
    let no_dictionaries = Default::default();
    RecordBatchDecoder::try_new(&body, batch, schema, &no_dictionaries, &message.version())
        .and_then(RecordBatchDecoder::read_record_batch)
        .map_err(|e| bad("a batch that cannot be read").source(e))
}
