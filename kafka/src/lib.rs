//! Apache Kafka as a source and as a sink.
//!
//! - [`source`]: the partitions of topics as splits, read by librdkafka.
//! - [`client`]: requests of our own to brokers, for what librdkafka does not offer.
//! - [`registry`]: schemas of Avro records, kept by a registry that is asked over HTTP.

pub mod client;
pub mod registry;
pub mod source;
