//! Jobs from Kafka to Kafka: are they exact, how late and how fast are they? With a real broker as a process.

mod batches;
mod broker;
mod clients;
mod delays;
mod kills;
mod latency;
mod load;
mod source;
mod through;
mod throughput;

pub use kills::run as kills;
pub use latency::run as latency;
pub use source::run as source;
pub use throughput::run as throughput;
