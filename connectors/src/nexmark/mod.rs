//! The events of the Nexmark benchmark: an auction house with people, auctions and bids.
//!
//! Events travel as batches of one column, a dense union: "the bids of a batch" is then a child array that is there
//! already ([`bids`]), and a query that needs one kind of event pays nothing for the others.

mod batch;
mod columns;
mod generate;
mod schema;
mod source;
mod vocabulary;

pub use batch::{auctions, bids, event_times, persons};
pub(crate) use columns::EventColumns;
pub use generate::EventSettings;
pub use schema::{auction_schema, bid_schema, events_schema, person_schema};
pub use source::NexmarkSource;
