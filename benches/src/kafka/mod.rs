//! Jobs from Kafka to Kafka: are they exact, how late and how fast are they? With a real broker as a process.

mod broker;
mod kills;

pub use kills::run as kills;
