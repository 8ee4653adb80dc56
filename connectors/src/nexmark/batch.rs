//! Taking batches of events apart.

use arrow_array::{
    Array, ArrayRef, Int32Array, RecordBatch, StructArray, TimestampMillisecondArray, UnionArray, cast::AsArray,
};
use arrow_schema::SchemaRef;
use arrow_select::take::take;
use millstream_common::{Error, Result};

use super::schema::{AUCTION, BID, PERSON, auction_schema, bid_schema, person_schema};

/// The bids of a batch of events, in their order. Copies nothing unless the batch was put together out of order.
pub fn bids(events: &RecordBatch) -> Result<RecordBatch> {
    member(events, BID, bid_schema())
}

/// The auctions of a batch of events; see [`bids`].
pub fn auctions(events: &RecordBatch) -> Result<RecordBatch> {
    member(events, AUCTION, auction_schema())
}

/// The persons of a batch of events; see [`bids`].
pub fn persons(events: &RecordBatch) -> Result<RecordBatch> {
    member(events, PERSON, person_schema())
}

/// The `dateTime` of each event of a batch, in their order.
pub fn event_times(events: &RecordBatch) -> Result<TimestampMillisecondArray> {
    let union = union_of(events)?;
    let missing = || Error::internal("an event without a dateTime in milliseconds");
    let times_of = |id| {
        let column = union.child(id).as_struct_opt().and_then(|rows| rows.column_by_name("dateTime"));
        let times = column.and_then(|c| c.as_any().downcast_ref::<TimestampMillisecondArray>());
        times.map(|t| t.values().clone()).ok_or_else(missing)
    };
    let members = [times_of(PERSON)?, times_of(AUCTION)?, times_of(BID)?];
    let offsets = union.offsets().map(|o| &o[..]).unwrap_or_default();
    let time = |(member, at): (&i8, &i32)| members.get(*member as usize)?.get(*at as usize).copied();
    let times: Option<Vec<i64>> = union.type_ids().iter().zip(offsets).map(time).collect();
    times.map(TimestampMillisecondArray::from).ok_or_else(missing)
}

fn member(events: &RecordBatch, id: i8, schema: SchemaRef) -> Result<RecordBatch> {
    let rows = rows_of(events, id)?;
    let (_, columns, _) = rows.into_parts();
    RecordBatch::try_new(schema, columns).map_err(|e| Error::internal("the columns of an event differ").source(e))
}

fn union_of(events: &RecordBatch) -> Result<&UnionArray> {
    let union = events.columns().first().and_then(|c| c.as_any().downcast_ref::<UnionArray>());
    union
        .filter(|u| u.is_dense() && u.fields().len() == 3)
        .ok_or_else(|| Error::internal("a batch whose first column is not the union of events"))
}

/// The rows of one member that the (perhaps sliced) union refers to.
fn rows_of(events: &RecordBatch, id: i8) -> Result<StructArray> {
    let union = union_of(events)?;
    let child = union.child(id);
    let count = union.type_ids().iter().filter(|t| **t == id).count();
    let rows: ArrayRef = if count == child.len() {
        child.clone()
    } else {
        let at: Vec<i32> = union
            .type_ids()
            .iter()
            .zip(union.offsets().map(|o| &o[..]).unwrap_or_default())
            .filter_map(|(t, at)| (*t == id).then_some(*at))
            .collect();
        let first = at.first().copied().unwrap_or(0);
        if at.iter().zip(first..).all(|(a, b)| *a == b) {
            child.slice(first as usize, count)
        } else {
            take(child, &Int32Array::from(at), None).map_err(|e| Error::internal("cannot pick events").source(e))?
        }
    };
    rows.as_struct_opt().cloned().ok_or_else(|| Error::internal("a member of the events' union is no struct"))
}
