//! q20: bids with the auction that they are for, of auctions of category 10. An operator of one's own with two inputs and
//! state by key: the auction once it has come, and the bids that came before it.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Int64Type, TimestampMillisecondType};
use arrow_array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use millstream_common::{Error, Result};
use millstream_connectors::nexmark::{auction_schema, auctions, bid_schema, bids};
use millstream_engine::dataflow::Stream;
use millstream_engine::operator::{Collector, KeyedBatch, Operator};
use millstream_engine::state::value::{put_bytes, put_i64, put_u64, take_bytes, take_i64, take_u64};
use millstream_engine::state::{KeyedState, StateSet, StateValue};

/// The category whose auctions count.
const CATEGORY: i64 = 10;
const BIDS: usize = 0;

/// Columns of an auction that the result has, and their names there.
const OF_AUCTION: [(&str, &str); 9] = [
    ("itemName", "itemName"),
    ("description", "description"),
    ("initialBid", "initialBid"),
    ("reserve", "reserve"),
    ("dateTime", "dateTime0"),
    ("expires", "expires"),
    ("seller", "seller"),
    ("category", "category"),
    ("extra", "extra0"),
];

/// Bids with their auction, of auctions of category 10.
pub fn q20(events: &Stream) -> Stream {
    let of_category = events.map("auctions", auction_schema(), auctions).filter("category 10", |batch| {
        let category = batch.column_by_name("category").ok_or_else(|| Error::internal("auctions without category"))?;
        Ok(BooleanArray::from_unary(category.as_primitive::<Int64Type>(), |c| c == CATEGORY))
    });
    events.map("bids", bid_schema(), bids).key_by(["auction"]).connect(&of_category.key_by(["id"])).process(
        "bids with their auction",
        schema(),
        Enrich::new,
    )
}

fn schema() -> SchemaRef {
    let auction = auction_schema();
    let named = |(from, to): &(&str, &str)| auction.field_with_name(from).ok().map(|f| f.clone().with_name(*to));
    let bid = bid_schema();
    let fields = bid.fields().iter().map(|f| f.as_ref().clone());
    Arc::new(Schema::new(fields.chain(OF_AUCTION.iter().filter_map(named)).collect::<Vec<Field>>()))
}

/// A value of a column.
#[derive(Clone, Debug)]
enum Cell {
    Number(i64),
    Text(Vec<u8>),
}

type Row = Vec<Cell>;

/// What is known of an auction: its columns once it has come, and bids that wait for it.
#[derive(Clone, Default)]
struct Known {
    auction: Option<Row>,
    waiting: Vec<Row>,
}

fn put_row(row: &Row, into: &mut Vec<u8>) {
    put_u64(row.len() as u64, into);
    for cell in row {
        match cell {
            Cell::Number(n) => {
                into.push(0);
                put_i64(*n, into);
            }
            Cell::Text(text) => {
                into.push(1);
                put_bytes(text, into);
            }
        }
    }
}

fn take_row(bytes: &mut &[u8]) -> Result<Row> {
    let cells = take_u64(bytes)?;
    let cell = |_| match bytes.split_off_first() {
        Some(0) => take_i64(bytes).map(Cell::Number),
        _ => take_bytes(bytes).map(|text| Cell::Text(text.to_vec())),
    };
    (0..cells).map(cell).collect()
}

impl StateValue for Known {
    fn encode(&self, into: &mut Vec<u8>) {
        put_u64(u64::from(self.auction.is_some()), into);
        self.auction.iter().for_each(|row| put_row(row, into));
        put_u64(self.waiting.len() as u64, into);
        self.waiting.iter().for_each(|row| put_row(row, into));
    }

    fn decode(mut bytes: &[u8]) -> Result<Self> {
        let auction = if take_u64(&mut bytes)? == 1 { Some(take_row(&mut bytes)?) } else { None };
        let waiting = (0..take_u64(&mut bytes)?).map(|_| take_row(&mut bytes)).collect::<Result<_>>()?;
        Ok(Self { auction, waiting })
    }

    fn heap_bytes(&self) -> usize {
        let cells = self.auction.iter().chain(&self.waiting).flatten();
        let text = |cell: &Cell| match cell {
            Cell::Number(_) => size_of::<Cell>(),
            Cell::Text(text) => size_of::<Cell>() + text.capacity(),
        };
        cells.map(text).sum()
    }
}

struct Enrich {
    known: KeyedState<Known>,
    schema: SchemaRef,
}

impl Enrich {
    fn new() -> Self {
        Self { known: KeyedState::new("auctions", "an auction and the bids that wait for it, v1"), schema: schema() }
    }

    fn emit(&self, rows: Vec<Row>, out: &mut Collector) -> Result<()> {
        let number = |c: usize| {
            rows.iter().map(move |row| match row.get(c) {
                Some(Cell::Number(n)) => *n,
                _ => 0,
            })
        };
        let text = |c: usize| {
            rows.iter().map(move |row| match row.get(c) {
                Some(Cell::Text(text)) => String::from_utf8_lossy(text),
                _ => "".into(),
            })
        };
        let columns = self.schema.fields().iter().enumerate().map(|(c, field)| -> ArrayRef {
            match field.data_type() {
                DataType::Int64 => Arc::new(Int64Array::from_iter_values(number(c))),
                DataType::Utf8 => Arc::new(StringArray::from_iter_values(text(c))),
                _ => Arc::new(TimestampMillisecondArray::from_iter_values(number(c))),
            }
        });
        let batch = RecordBatch::try_new(self.schema.clone(), columns.collect());
        out.emit(batch.map_err(|e| Error::internal("bids that make no batch").source(e))?);
        Ok(())
    }
}

/// The cells of a row.
fn row(batch: &RecordBatch, columns: &[usize], row: usize) -> Row {
    let cell = |&c: &usize| match batch.column(c).data_type() {
        DataType::Int64 => Cell::Number(batch.column(c).as_primitive::<Int64Type>().value(row)),
        DataType::Utf8 => Cell::Text(batch.column(c).as_string::<i32>().value(row).as_bytes().to_vec()),
        _ => Cell::Number(batch.column(c).as_primitive::<TimestampMillisecondType>().value(row)),
    };
    columns.iter().map(cell).collect()
}

impl Operator for Enrich {
    fn name_reads(&mut self, _: usize, batch: &KeyedBatch) -> Result<()> {
        self.known.name_batch(&batch.keys);
        Ok(())
    }

    fn process(&mut self, input: usize, batch: &KeyedBatch, out: &mut Collector) -> Result<()> {
        let schema = batch.records.schema();
        let columns: Vec<usize> = if input == BIDS {
            (0..schema.fields().len()).collect()
        } else {
            OF_AUCTION.iter().filter_map(|(name, _)| schema.index_of(name).ok()).collect()
        };
        let rows = self.known.take_rows()?;
        let mut found: Vec<Row> = Vec::new();
        for (i, &slot) in rows.slots.iter().enumerate() {
            let came = row(&batch.records, &columns, i);
            if input == BIDS {
                if let Some(auction) = self.known.get(slot).and_then(|known| known.auction.as_ref()) {
                    found.push([came, auction.clone()].concat());
                } else {
                    self.known.update(slot, Known::default, |known| known.waiting.push(came));
                }
            } else {
                let waited = self.known.update(slot, Known::default, |known| {
                    known.auction = Some(came.clone());
                    std::mem::take(&mut known.waiting)
                });
                found.extend(waited.into_iter().map(|bid| [bid, came.clone()].concat()));
            }
        }
        self.known.give_back(rows);
        self.emit(found, out)
    }

    fn states(&mut self) -> Vec<&mut dyn StateSet> {
        vec![&mut self.known]
    }
}
