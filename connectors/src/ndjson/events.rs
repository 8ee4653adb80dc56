//! The lines of Nexmark events: `{"event_type":2,"person":null,"auction":null,"bid":{...}}`.

use std::borrow::Cow;

use arrow_array::RecordBatch;
use arrow_schema::{DataType, SchemaRef};
use millstream_common::{Error, Result};
use millstream_formats::time::parse_timestamp;
use millstream_formats::{Decoder, DecodingFormat};
use serde::Deserialize;
use serde_json::Value;

use crate::nexmark::{EventColumns, auction_schema, bid_schema, events_schema, person_schema};

/// Parses the lines of Nexmark events into batches of [`events_schema`]. Fields that are not part of an event are
/// passed over.
#[derive(Clone, Copy, Debug, Default)]
pub struct NexmarkLines;

impl DecodingFormat for NexmarkLines {
    fn name(&self) -> &'static str {
        "nexmark"
    }

    fn schema(&self) -> SchemaRef {
        events_schema()
    }

    fn decoder(&self) -> Result<Box<dyn Decoder>> {
        Ok(Box::new(EventParser { columns: EventColumns::with_capacity(0) }))
    }
}

#[derive(Deserialize)]
struct EventLine<'a> {
    event_type: u64,
    #[serde(borrow)]
    person: Option<PersonLine<'a>>,
    #[serde(borrow)]
    auction: Option<AuctionLine<'a>>,
    #[serde(borrow)]
    bid: Option<BidLine<'a>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PersonLine<'a> {
    id: i64,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    email_address: Cow<'a, str>,
    #[serde(borrow)]
    credit_card: Cow<'a, str>,
    #[serde(borrow)]
    city: Cow<'a, str>,
    #[serde(borrow)]
    state: Cow<'a, str>,
    #[serde(borrow)]
    date_time: Cow<'a, str>,
    #[serde(borrow)]
    extra: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuctionLine<'a> {
    id: i64,
    #[serde(borrow)]
    item_name: Cow<'a, str>,
    #[serde(borrow)]
    description: Cow<'a, str>,
    initial_bid: i64,
    reserve: i64,
    #[serde(borrow)]
    date_time: Cow<'a, str>,
    #[serde(borrow)]
    expires: Cow<'a, str>,
    seller: i64,
    category: i64,
    #[serde(borrow)]
    extra: Cow<'a, str>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct BidLine<'a> {
    auction: i64,
    bidder: i64,
    price: i64,
    #[serde(borrow)]
    channel: Cow<'a, str>,
    #[serde(borrow)]
    url: Cow<'a, str>,
    #[serde(borrow)]
    date_time: Cow<'a, str>,
    #[serde(borrow)]
    extra: Cow<'a, str>,
}

struct EventParser {
    columns: EventColumns,
}

impl Decoder for EventParser {
    fn push(&mut self, line: &[u8]) -> Result<()> {
        let event: EventLine<'_> = serde_json::from_slice(line).map_err(|e| explain(line, &e))?;
        match (event.event_type, event.person, event.auction, event.bid) {
            (0, Some(person), None, None) => self.person(&person),
            (1, None, Some(auction), None) => self.auction(&auction),
            (2, None, None, Some(bid)) => self.bid(&bid),
            (kind @ 0..=2, ..) => {
                let name = MEMBERS[kind as usize];
                Err(bad(format!("of event_type {kind} '{name}' must be an object, and the others null")))
            }
            (kind, ..) => Err(bad(format!("event_type must be 0 (person), 1 (auction) or 2 (bid), and is {kind}"))),
        }
    }

    fn rows(&self) -> usize {
        self.columns.len()
    }

    fn take(&mut self) -> Result<RecordBatch> {
        let room = EventColumns::with_capacity(self.rows());
        std::mem::replace(&mut self.columns, room).finish()
    }
}

const MEMBERS: [&str; 3] = ["person", "auction", "bid"];

impl EventParser {
    fn person(&mut self, line: &PersonLine<'_>) -> Result<()> {
        let time = timestamp("person.dateTime", &line.date_time)?;
        self.columns.begin_person();
        let c = &mut self.columns.persons;
        c.id.push(line.id);
        c.name.push(&line.name);
        c.email_address.push(&line.email_address);
        c.credit_card.push(&line.credit_card);
        c.city.push(&line.city);
        c.state.push(&line.state);
        c.date_time.push(time);
        c.extra.push(&line.extra);
        Ok(())
    }

    fn auction(&mut self, line: &AuctionLine<'_>) -> Result<()> {
        let time = timestamp("auction.dateTime", &line.date_time)?;
        let expires = timestamp("auction.expires", &line.expires)?;
        self.columns.begin_auction();
        let c = &mut self.columns.auctions;
        c.id.push(line.id);
        c.item_name.push(&line.item_name);
        c.description.push(&line.description);
        c.initial_bid.push(line.initial_bid);
        c.reserve.push(line.reserve);
        c.date_time.push(time);
        c.expires.push(expires);
        c.seller.push(line.seller);
        c.category.push(line.category);
        c.extra.push(&line.extra);
        Ok(())
    }

    fn bid(&mut self, line: &BidLine<'_>) -> Result<()> {
        let time = timestamp("bid.dateTime", &line.date_time)?;
        self.columns.begin_bid();
        let c = &mut self.columns.bids;
        c.auction.push(line.auction);
        c.bidder.push(line.bidder);
        c.price.push(line.price);
        c.channel.push(&line.channel);
        c.url.push(&line.url);
        c.date_time.push(time);
        c.extra.push(&line.extra);
        Ok(())
    }
}

fn bad(what: impl Into<String>) -> Error {
    Error::data(what).code(3001)
}

fn timestamp(column: &str, text: &str) -> Result<i64> {
    parse_timestamp(text).ok_or_else(|| {
        bad(format!("{column} must be a time stamp such as \"2026-01-01 00:00:04.330\", and is {}", quoted(text)))
    })
}

fn quoted(text: &str) -> String {
    let short: String = text.chars().take(60).collect();
    format!("{short:?}{}", if short.len() < text.len() { "..." } else { "" })
}

/// What is wrong with a line that did not parse: the column, when it is JSON at all. Slow, and run once.
fn explain(line: &[u8], error: &serde_json::Error) -> Error {
    if let Err(e) = std::str::from_utf8(line) {
        let at = e.valid_up_to();
        return bad(format!("the line is no UTF-8: byte {} of it is 0x{:02x}", at + 1, line.get(at).unwrap_or(&0)))
            .next("give a file in UTF-8");
    }
    if let Ok(value) = serde_json::from_slice::<Value>(line) {
        let Value::Object(event) = &value else {
            return bad(format!("the line must be a JSON object, and is {}", kind_of(&value)));
        };
        match event.get("event_type") {
            Some(n) if n.is_u64() => {}
            Some(other) => return bad(format!("event_type must be 0, 1 or 2, and is {}", kind_of(other))),
            None => return bad("event_type is missing"),
        }
        for (name, schema) in MEMBERS.into_iter().zip([person_schema(), auction_schema(), bid_schema()]) {
            match event.get(name) {
                Some(Value::Object(fields)) => {
                    for field in schema.fields() {
                        if let Some(what) = wrong(fields.get(field.name()), field.data_type()) {
                            return bad(format!("{name}.{} {what}", field.name()));
                        }
                    }
                }
                None | Some(Value::Null) => {}
                Some(other) => return bad(format!("{name} must be an object or null, and is {}", kind_of(other))),
            }
        }
    }
    let column = error.column();
    let text = error.to_string();
    let text = text.split(" at line ").next().unwrap_or_default();
    bad(format!("the line is no JSON of an event: {text} (character {column})"))
}

fn wrong(value: Option<&Value>, kind: &DataType) -> Option<String> {
    let Some(value) = value else {
        return Some("is missing".into());
    };
    let (fits, expected) = match kind {
        DataType::Int64 => (value.is_i64(), "a 64-bit integer"),
        _ => (value.is_string(), "a string"),
    };
    (!fits).then(|| format!("must be {expected}, and is {}", kind_of(value)))
}

fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => format!("the string {}", quoted(s)),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "an object".into(),
    }
}
