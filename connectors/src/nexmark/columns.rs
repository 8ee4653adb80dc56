//! Events under construction: plain vectors, turned into arrays without copying.

use std::sync::Arc;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray, StructArray, TimestampMillisecondArray, UnionArray};
use arrow_buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow_schema::{ArrowError, SchemaRef};
use millstream_common::{Error, Result};

use super::schema::{
    AUCTION, BID, PERSON, auction_schema, bid_schema, events_schema, fields, person_schema, union_fields,
};

/// A column of strings: all bytes in one buffer, and where each string ends.
#[derive(Debug)]
pub(crate) struct Strings {
    ends: Vec<i32>,
    /// The bytes; whoever appends here calls [`Strings::end`] behind each string.
    pub(crate) bytes: Vec<u8>,
}

impl Strings {
    /// Room for `rows` strings of `len` bytes each.
    pub(crate) fn with_capacity(rows: usize, len: usize) -> Self {
        let mut ends = Vec::with_capacity(rows + 1);
        ends.push(0);
        Self { ends, bytes: Vec::with_capacity(rows * len) }
    }

    #[inline]
    pub(crate) fn push(&mut self, text: &str) {
        self.bytes.extend_from_slice(text.as_bytes());
        self.end();
    }

    /// The string ends where the bytes end now.
    #[inline]
    pub(crate) fn end(&mut self) {
        // More than 2 GiB would turn negative here, and be refused by `finish`: offsets must rise.
        self.ends.push(self.bytes.len() as i32);
    }

    fn finish(self) -> Result<ArrayRef, ArrowError> {
        if i32::try_from(self.bytes.len()).is_err() {
            return Err(ArrowError::InvalidArgumentError("more than 2 GiB of text in a batch".into()));
        }
        let ends = OffsetBuffer::new(ScalarBuffer::from(self.ends));
        Ok(Arc::new(StringArray::try_new(ends, Buffer::from_vec(self.bytes), None)?))
    }
}

/// Persons under construction.
#[derive(Debug)]
pub(crate) struct PersonColumns {
    pub(crate) id: Vec<i64>,
    pub(crate) name: Strings,
    pub(crate) email_address: Strings,
    pub(crate) credit_card: Strings,
    pub(crate) city: Strings,
    pub(crate) state: Strings,
    pub(crate) date_time: Vec<i64>,
    pub(crate) extra: Strings,
}

/// Auctions under construction.
#[derive(Debug)]
pub(crate) struct AuctionColumns {
    pub(crate) id: Vec<i64>,
    pub(crate) item_name: Strings,
    pub(crate) description: Strings,
    pub(crate) initial_bid: Vec<i64>,
    pub(crate) reserve: Vec<i64>,
    pub(crate) date_time: Vec<i64>,
    pub(crate) expires: Vec<i64>,
    pub(crate) seller: Vec<i64>,
    pub(crate) category: Vec<i64>,
    pub(crate) extra: Strings,
}

/// Bids under construction.
#[derive(Debug)]
pub(crate) struct BidColumns {
    pub(crate) auction: Vec<i64>,
    pub(crate) bidder: Vec<i64>,
    pub(crate) price: Vec<i64>,
    pub(crate) channel: Strings,
    pub(crate) url: Strings,
    pub(crate) date_time: Vec<i64>,
    pub(crate) extra: Strings,
}

/// A batch of events under construction.
#[derive(Debug)]
pub(crate) struct EventColumns {
    kinds: Vec<i8>,
    places: Vec<i32>,
    pub(crate) persons: PersonColumns,
    pub(crate) auctions: AuctionColumns,
    pub(crate) bids: BidColumns,
}

impl EventColumns {
    /// Room for `rows` events in the benchmark's proportions and usual lengths.
    pub(crate) fn with_capacity(rows: usize) -> Self {
        let (persons, auctions, bids) = (rows / 25 + 2, rows / 12 + 4, rows);
        Self {
            kinds: Vec::with_capacity(rows),
            places: Vec::with_capacity(rows),
            persons: PersonColumns {
                id: Vec::with_capacity(persons),
                name: Strings::with_capacity(persons, 14),
                email_address: Strings::with_capacity(persons, 15),
                credit_card: Strings::with_capacity(persons, 19),
                city: Strings::with_capacity(persons, 13),
                state: Strings::with_capacity(persons, 2),
                date_time: Vec::with_capacity(persons),
                extra: Strings::with_capacity(persons, 176),
            },
            auctions: AuctionColumns {
                id: Vec::with_capacity(auctions),
                item_name: Strings::with_capacity(auctions, 14),
                description: Strings::with_capacity(auctions, 60),
                initial_bid: Vec::with_capacity(auctions),
                reserve: Vec::with_capacity(auctions),
                date_time: Vec::with_capacity(auctions),
                expires: Vec::with_capacity(auctions),
                seller: Vec::with_capacity(auctions),
                category: Vec::with_capacity(auctions),
                extra: Strings::with_capacity(auctions, 420),
            },
            bids: BidColumns {
                auction: Vec::with_capacity(bids),
                bidder: Vec::with_capacity(bids),
                price: Vec::with_capacity(bids),
                channel: Strings::with_capacity(bids, 10),
                url: Strings::with_capacity(bids, 65),
                date_time: Vec::with_capacity(bids),
                extra: Strings::with_capacity(bids, 69),
            },
        }
    }

    /// Events so far.
    pub(crate) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// The event that is being pushed is a person, the next of [`EventColumns::persons`].
    #[inline]
    pub(crate) fn begin_person(&mut self) {
        self.begin(PERSON, self.persons.id.len());
    }

    /// The event that is being pushed is an auction, the next of [`EventColumns::auctions`].
    #[inline]
    pub(crate) fn begin_auction(&mut self) {
        self.begin(AUCTION, self.auctions.id.len());
    }

    /// The event that is being pushed is a bid, the next of [`EventColumns::bids`].
    #[inline]
    pub(crate) fn begin_bid(&mut self) {
        self.begin(BID, self.bids.auction.len());
    }

    #[inline]
    fn begin(&mut self, kind: i8, place: usize) {
        self.kinds.push(kind);
        self.places.push(place as i32);
    }

    /// The batch.
    pub(crate) fn finish(self) -> Result<RecordBatch> {
        self.build().map_err(|e| Error::internal("the columns of events do not fit together").source(e))
    }

    fn build(self) -> Result<RecordBatch, ArrowError> {
        let children: Vec<ArrayRef> = vec![self.persons.finish()?, self.auctions.finish()?, self.bids.finish()?];
        let kinds = ScalarBuffer::from(self.kinds);
        let places = ScalarBuffer::from(self.places);
        let union = UnionArray::try_new(union_fields(), kinds, Some(places), children)?;
        RecordBatch::try_new(events_schema(), vec![Arc::new(union)])
    }
}

fn int64(values: Vec<i64>) -> ArrayRef {
    Arc::new(Int64Array::new(ScalarBuffer::from(values), None))
}

fn time(values: Vec<i64>) -> ArrayRef {
    Arc::new(TimestampMillisecondArray::new(ScalarBuffer::from(values), None))
}

fn record(schema: &SchemaRef, columns: Vec<ArrayRef>) -> Result<ArrayRef, ArrowError> {
    Ok(Arc::new(StructArray::try_new(fields(schema), columns, None)?))
}

impl PersonColumns {
    fn finish(self) -> Result<ArrayRef, ArrowError> {
        record(
            &person_schema(),
            vec![
                int64(self.id),
                self.name.finish()?,
                self.email_address.finish()?,
                self.credit_card.finish()?,
                self.city.finish()?,
                self.state.finish()?,
                time(self.date_time),
                self.extra.finish()?,
            ],
        )
    }
}

impl AuctionColumns {
    fn finish(self) -> Result<ArrayRef, ArrowError> {
        record(
            &auction_schema(),
            vec![
                int64(self.id),
                self.item_name.finish()?,
                self.description.finish()?,
                int64(self.initial_bid),
                int64(self.reserve),
                time(self.date_time),
                time(self.expires),
                int64(self.seller),
                int64(self.category),
                self.extra.finish()?,
            ],
        )
    }
}

impl BidColumns {
    fn finish(self) -> Result<ArrayRef, ArrowError> {
        record(
            &bid_schema(),
            vec![
                int64(self.auction),
                int64(self.bidder),
                int64(self.price),
                self.channel.finish()?,
                self.url.finish()?,
                time(self.date_time),
                self.extra.finish()?,
            ],
        )
    }
}
