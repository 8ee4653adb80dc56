//! The Nexmark jobs: the queries of the public benchmark as Flink runs them.
//!
//! Every plan begins with the events, takes the kind of event it needs (which copies nothing) and hands the columns it
//! needs on. Where one key would be hot (the window itself, in q5 and q7) there are two stages: per auction and window
//! first, then per window with one row per auction.

use std::sync::Arc;
use std::time::Duration;

use arrow_array::types::{Int64Type, TimestampMillisecondType};
use arrow_array::{
    Array, ArrayRef, ArrowPrimitiveType, BooleanArray, Date32Array, Decimal128Array, PrimitiveArray, RecordBatch,
};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use millstream_common::{Error, Result};
use millstream_connectors::nexmark::{auction_schema, auctions, bid_schema, bids, event_times, person_schema, persons};
use millstream_engine::dataflow::{
    Assigned, Dataflow, JobContext, JobDefinition, JoinColumns, Session, Sliding, SourceStream, Stream, Tumbling, avg,
    count, max, min, sum,
};
use millstream_engine::graph::JobGraph;
use millstream_engine::source::WatermarkStrategy;

use crate::args::NexmarkArgs;

const TEN_SECONDS: Duration = Duration::from_secs(10);
const TWO_SECONDS: Duration = Duration::from_secs(2);
const DAY_MS: i64 = 86_400_000;

/// 0.908 euros a dollar, with three digits behind the point.
const EUROS_PER_DOLLAR_SCALED: i128 = 908;
const PRICE_PRECISION: u8 = 23;
const PRICE_SCALE: i8 = 3;
/// q2 looks at auctions whose number this divides.
const SAMPLED_AUCTIONS: i64 = 123;
/// q17 counts prices below the first, from there to below the second, and from there on.
const RANKS: [i64; 2] = [10_000, 1_000_000];

/// A query: its results from the events.
pub type Query = fn(&Stream) -> Stream;

/// All queries: their names, what they say, their plans.
const QUERIES: [(&str, &str, Query); 8] = [
    ("q0", "every bid as it is: what passing events through costs", q0),
    ("q1", "every bid with its price in euros", q1),
    ("q2", "bids for one auction in 123", q2),
    ("q5", "auctions with the most bids of the last 10 s, every 2 s", q5),
    ("q7", "the highest bid of each 10 s", q7),
    ("q8", "people who came and opened an auction within the same 10 s", q8),
    ("q11", "bids of each bidder's sessions, which end after 10 s without one", q11),
    ("q17", "bids and prices of each auction and day, as a changelog", q17),
];

/// The plan of a query, `q5` say, for programs that have events and results of their own.
#[must_use]
pub fn query(name: &str) -> Option<Query> {
    QUERIES.iter().find(|q| q.0 == name).map(|q| q.2)
}

/// All Nexmark jobs.
pub fn definitions() -> Vec<JobDefinition> {
    let job = |(name, about, plan): (&str, &str, Query)| {
        JobDefinition::new(format!("nexmark-{name}"), about, move |args: &NexmarkArgs, _: &JobContext| {
            build(args, plan)
        })
    };
    QUERIES.into_iter().map(job).collect()
}

fn build(args: &NexmarkArgs, plan: Query) -> Result<JobGraph> {
    let flow = Dataflow::new();
    let events = events(&flow, args);
    plan(&events).sink("out", args.output.sink()?);
    flow.build()
}

fn events(flow: &Dataflow, args: &NexmarkArgs) -> SourceStream {
    let watermarks = WatermarkStrategy::bounded_out_of_orderness(Arc::new(event_times), args.watermark_delay_ms());
    flow.source("events", args.source()).watermarks(watermarks.with_idle_timeout(args.idle_timeout.0)).rate(args.rate)
}

fn bid_stream(events: &Stream) -> Stream {
    events.map("bids", bid_schema(), bids)
}

fn q0(events: &Stream) -> Stream {
    bid_stream(events).select(["auction", "bidder", "price", "dateTime", "extra"])
}

fn q1(events: &Stream) -> Stream {
    let bids = q0(events);
    let euro = DataType::Decimal128(PRICE_PRECISION, PRICE_SCALE);
    let fields = bids.schema().fields().iter().map(|f| match f.name().as_str() {
        "price" => Arc::new(f.as_ref().clone().with_data_type(euro.clone())),
        _ => f.clone(),
    });
    let schema: SchemaRef = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let emitted = schema.clone();
    bids.map("euros", schema, move |batch| {
        let prices = values::<Int64Type>(batch, "price")?;
        let euros = prices.values().iter().map(|p| i128::from(*p) * EUROS_PER_DOLLAR_SCALED);
        let euros = Decimal128Array::from_iter_values(euros)
            .with_precision_and_scale(PRICE_PRECISION, PRICE_SCALE)
            .map_err(|e| Error::internal("a price that is no decimal").source(e))?;
        let euros: ArrayRef = Arc::new(euros);
        let columns = emitted.fields().iter().map(|f| match f.name().as_str() {
            "price" => Ok(euros.clone()),
            name => column(batch, name).cloned(),
        });
        rows(&emitted, columns.collect::<Result<_>>()?)
    })
}

fn q2(events: &Stream) -> Stream {
    bid_stream(events).select(["auction", "price"]).filter("sampled", |batch| {
        let auctions = values::<Int64Type>(batch, "auction")?;
        Ok(BooleanArray::from_unary(auctions, |auction| auction % SAMPLED_AUCTIONS == 0))
    })
}

fn q5(events: &Stream) -> Stream {
    let counts = bid_stream(events)
        .key_by(["auction"])
        .window(Sliding::of(TEN_SECONDS, TWO_SECONDS).on("dateTime").end_as("window_end"))
        .aggregate("bids per auction", [count().as_("num")]);
    counts
        .key_by(["window_end"])
        .window(Assigned::ending_at("window_end"))
        .top("hottest auctions", "num")
        .select(["auction", "num"])
}

fn q7(events: &Stream) -> Stream {
    let highest = bid_stream(events)
        .select(["auction", "price", "bidder", "dateTime", "extra"])
        .key_by(["auction"])
        .window(Tumbling::of(TEN_SECONDS).on("dateTime").end_as("window_end"))
        .top("highest bid per auction", "price");
    highest
        .key_by(["window_end"])
        .window(Assigned::ending_at("window_end"))
        .top("highest bid", "price")
        .select(["auction", "price", "bidder", "dateTime", "extra"])
}

fn q8(events: &Stream) -> Stream {
    let people = events.map("persons", person_schema(), persons);
    let auctions = events.map("auctions", auction_schema(), auctions);
    people
        .key_by(["id"])
        .join(&auctions.key_by(["seller"]))
        .window(Tumbling::of(TEN_SECONDS).on("dateTime").start_as("starttime"))
        .select("new users", JoinColumns::of(["id", "name"]).distinct(), JoinColumns::none().distinct())
        .select(["id", "name", "starttime"])
}

fn q11(events: &Stream) -> Stream {
    bid_stream(events)
        .key_by(["bidder"])
        .window(Session::gap(TEN_SECONDS).on("dateTime").start_as("starttime").end_as("endtime"))
        .aggregate("bids per session", [count().as_("bid_count")])
        .select(["bidder", "bid_count", "starttime", "endtime"])
}

fn q17(events: &Stream) -> Stream {
    let fields = [
        ("auction", DataType::Int64),
        ("day", DataType::Date32),
        ("price", DataType::Int64),
        ("rank1", DataType::Boolean),
        ("rank2", DataType::Boolean),
        ("rank3", DataType::Boolean),
    ];
    let fields: Vec<Field> = fields.into_iter().map(|(name, kind)| Field::new(name, kind, false)).collect();
    let schema: SchemaRef = Arc::new(Schema::new(fields));
    let emitted = schema.clone();
    let ranked = bid_stream(events).map("ranks", schema, move |batch| {
        let prices = values::<Int64Type>(batch, "price")?;
        let days = values::<TimestampMillisecondType>(batch, "dateTime")?.values().iter();
        let days = Date32Array::from_iter_values(days.map(|t| t.div_euclid(DAY_MS) as i32));
        let rank = |from: i64, to: i64| -> ArrayRef {
            Arc::new(BooleanArray::from_unary(prices, |price| from <= price && price < to))
        };
        let (auctions, all_prices) = (column(batch, "auction")?.clone(), column(batch, "price")?.clone());
        let (rank1, rank2) = (rank(i64::MIN, RANKS[0]), rank(RANKS[0], RANKS[1]));
        let rank3: ArrayRef = Arc::new(BooleanArray::from_unary(prices, |price| price >= RANKS[1]));
        rows(&emitted, vec![auctions, Arc::new(days), all_prices, rank1, rank2, rank3])
    });
    ranked.key_by(["auction", "day"]).aggregate(
        "bids per auction and day",
        [
            count().as_("total_bids"),
            count().filter("rank1").as_("rank1_bids"),
            count().filter("rank2").as_("rank2_bids"),
            count().filter("rank3").as_("rank3_bids"),
            min("price").as_("min_price"),
            max("price").as_("max_price"),
            avg("price").as_("avg_price"),
            sum("price").as_("sum_price"),
        ],
    )
}

fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(name).ok_or_else(|| Error::internal(format!("a batch without the column {name:?}")))
}

fn values<'a, T: ArrowPrimitiveType>(batch: &'a RecordBatch, name: &str) -> Result<&'a PrimitiveArray<T>> {
    let array = column(batch, name)?;
    array.as_any().downcast_ref().ok_or_else(|| {
        Error::internal(format!("the column {name:?} holds {}, not {}", array.data_type(), T::DATA_TYPE))
    })
}

fn rows(schema: &SchemaRef, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
    RecordBatch::try_new(schema.clone(), columns).map_err(|e| Error::internal("columns that make no batch").source(e))
}
