//! The columns of events. Names and order are those of the result files of the benchmark's queries.

use std::sync::{Arc, LazyLock};

use arrow_schema::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit, UnionFields, UnionMode};

/// The type ids of the union.
pub(crate) const PERSON: i8 = 0;
pub(crate) const AUCTION: i8 = 1;
pub(crate) const BID: i8 = 2;

const TIME: DataType = DataType::Timestamp(TimeUnit::Millisecond, None);

static PERSON_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    columns([
        ("id", DataType::Int64),
        ("name", DataType::Utf8),
        ("emailAddress", DataType::Utf8),
        ("creditCard", DataType::Utf8),
        ("city", DataType::Utf8),
        ("state", DataType::Utf8),
        ("dateTime", TIME),
        ("extra", DataType::Utf8),
    ])
});
static AUCTION_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    columns([
        ("id", DataType::Int64),
        ("itemName", DataType::Utf8),
        ("description", DataType::Utf8),
        ("initialBid", DataType::Int64),
        ("reserve", DataType::Int64),
        ("dateTime", TIME),
        ("expires", TIME),
        ("seller", DataType::Int64),
        ("category", DataType::Int64),
        ("extra", DataType::Utf8),
    ])
});
static BID_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    columns([
        ("auction", DataType::Int64),
        ("bidder", DataType::Int64),
        ("price", DataType::Int64),
        ("channel", DataType::Utf8),
        ("url", DataType::Utf8),
        ("dateTime", TIME),
        ("extra", DataType::Utf8),
    ])
});
static EVENTS_SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
    Arc::new(Schema::new(vec![Field::new("event", DataType::Union(union_fields(), UnionMode::Dense), false)]))
});

fn columns<const N: usize>(columns: [(&str, DataType); N]) -> SchemaRef {
    Arc::new(Schema::new(columns.map(|(name, kind)| Field::new(name, kind, false)).to_vec()))
}

/// The members of the union, by type id.
pub(crate) fn union_fields() -> UnionFields {
    [(PERSON, "person", person_schema()), (AUCTION, "auction", auction_schema()), (BID, "bid", bid_schema())]
        .into_iter()
        .map(|(id, name, schema)| (id, Arc::new(Field::new(name, DataType::Struct(fields(&schema)), false))))
        .collect()
}

pub(crate) fn fields(schema: &SchemaRef) -> Fields {
    schema.fields().clone()
}

/// One column `event`: a dense union of person (0), auction (1) and bid (2).
#[must_use]
pub fn events_schema() -> SchemaRef {
    EVENTS_SCHEMA.clone()
}

/// id, name, emailAddress, creditCard, city, state, dateTime, extra.
#[must_use]
pub fn person_schema() -> SchemaRef {
    PERSON_SCHEMA.clone()
}

/// id, itemName, description, initialBid, reserve, dateTime, expires, seller, category, extra. Prices in cents.
#[must_use]
pub fn auction_schema() -> SchemaRef {
    AUCTION_SCHEMA.clone()
}

/// auction, bidder, price (cents), channel, url, dateTime, extra.
#[must_use]
pub fn bid_schema() -> SchemaRef {
    BID_SCHEMA.clone()
}
