//! Apache Kafka as a source and as a sink.
//!
//! - [`source`]: the partitions of topics as splits, read by librdkafka.
//! - [`client`]: requests of our own to brokers, for what librdkafka does not offer.
//! - [`security`]: TLS and SASL, for both.

pub mod client;
pub mod security;
pub mod source;
