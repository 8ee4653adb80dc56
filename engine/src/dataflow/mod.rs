//! The Rust dataflow API: how a job is written.
//!
//! A [`Dataflow`] hands out streams of its sources; each call on a [`Stream`] adds an operator; `build` checks the plan
//! and turns it into the [`JobGraph`](crate::graph::JobGraph) that every process of a cluster executes. Batches are
//! Arrow record batches throughout: a closure is called per batch, never per row. Schemas are checked while the plan is
//! made; `build` answers with the first thing that is wrong, naming the operator and, for an unknown column, the columns
//! there are.
//!
//! What it never does: start anything, look at data, or know how many subtasks there will be.
//!
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use arrow_array::{Int64Array, cast::AsArray, types::Int64Type};
//! use millstream_common::{Error, Result};
//! use millstream_engine::dataflow::{Assigned, Dataflow, Sliding, count, sum};
//! use millstream_engine::graph::JobGraph;
//! use millstream_engine::sink::Sink;
//! use millstream_engine::source::{EventTimeFn, Source, WatermarkStrategy};
//!
//! # use arrow_array::RecordBatch;
//! # use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
//! # use millstream_engine::{sink, source};
//! /// Every minute, of the last ten: the shops with the most orders above 100, and their turnover.
//! fn busiest_shops(orders: Arc<dyn Source>, times: EventTimeFn, out: Arc<dyn Sink>) -> Result<JobGraph> {
//!     let flow = Dataflow::new();
//!     let orders = flow
//!         .source("orders", orders)
//!         .watermarks(WatermarkStrategy::bounded_out_of_orderness(times, 4_000));
//!
//!     let large = orders.filter("large", |batch| {
//!         let amounts = batch.column_by_name("amount").ok_or_else(|| Error::internal("no amount"))?;
//!         Ok(amounts.as_primitive::<Int64Type>().iter().map(|a| a.map(|a| a > 100)).collect())
//!     });
//!
//!     // One exchange by shop, carrying the three columns that the aggregate reads; a second by window, carrying one row
//!     // per shop and window. Both aggregates keep their state in the object store.
//!     let minute = Duration::from_secs(60);
//!     let per_shop = large
//!         .key_by(["shop"])
//!         .window(Sliding::of(10 * minute, minute).on("time").end_as("window_end"))
//!         .aggregate("orders per shop", [count().as_("orders"), sum("amount").as_("turnover")])
//!         .uid("per-shop");
//!     per_shop
//!         .key_by(["window_end"])
//!         .window(Assigned::ending_at("window_end"))
//!         .top("busiest", "orders")
//!         .select(["window_end", "shop", "orders", "turnover"])
//!         .sink("out", out);
//!     flow.build()
//! }
//! # struct Orders;
//! # impl Source for Orders {
//! #     fn schema(&self) -> SchemaRef {
//! #         Arc::new(Schema::new(vec![
//! #             Field::new("shop", DataType::Utf8, false),
//! #             Field::new("amount", DataType::Int64, false),
//! #             Field::new("time", DataType::Timestamp(TimeUnit::Millisecond, None), false),
//! #             Field::new("note", DataType::Utf8, true),
//! #         ]))
//! #     }
//! #     fn enumerator(&self) -> Result<Box<dyn source::SplitEnumerator>> { Err(Error::internal("not read")) }
//! #     fn reader(&self, _: &source::Split, _: Option<&source::Position>) -> Result<Box<dyn source::SplitReader>> {
//! #         Err(Error::internal("not read"))
//! #     }
//! # }
//! # struct Out;
//! # impl Sink for Out {
//! #     fn writer(&self, _: SchemaRef, _: sink::SinkContext) -> Result<Box<dyn sink::SinkWriter>> {
//! #         Err(Error::internal("not written"))
//! #     }
//! #     fn committer(&self) -> Result<Box<dyn sink::Committer>> { Err(Error::internal("not written")) }
//! # }
//!
//! # fn main() -> Result<()> {
//! # let (orders, out) = (Arc::new(Orders), Arc::new(Out));
//! # let times: EventTimeFn = source::event_time_column("time");
//! let graph = busiest_shops(orders, times, out)?;
//! assert_eq!(graph.tasks.len(), 3);
//! println!("{graph}");
//! # assert_eq!(graph.edges[0].schema.fields().len(), 3);
//! # Ok(())
//! # }
//! ```
//!
//! Jobs that a binary offers by name are [`JobDefinition`]s in a [`JobRegistry`].

mod aggregate;
mod build;
mod flow;
mod keyed;
mod plan;
mod registry;
mod stateless;
mod stream;
mod window;

#[cfg(test)]
mod tests;

pub use aggregate::{Aggregate, avg, count, max, min, sum};
pub use millstream_state_store::schema::TtlClock;

pub use flow::{DEFAULT_BATCH_ROWS, Dataflow, SourceStream};
pub use keyed::{ConnectedStreams, JoinColumns, JoinedStreams, KeyedStream, WindowedJoin, WindowedStream};
pub use registry::{
    JOB_USAGE, Job, JobArg, JobArgs, JobContext, JobDefinition, JobRegistry, NoArgs, UNKNOWN_JOB, nearest, usage_error,
};
pub use stream::{Selected, Stream};
pub use window::{Assigned, Session, Sliding, Tumbling, Window};
