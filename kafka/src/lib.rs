//! Apache Kafka as a source and as a sink.
//!
//! - [`source`]: the partitions of topics as splits, read by librdkafka.
//! - [`sink`]: rows as records, at least once or, in transactions that are committed with the version, exactly once.
//! - [`client`]: requests of our own to brokers, for what librdkafka does not offer.
//! - [`security`]: TLS and SASL, for all of them.
//! - `model`: a broker that is none, for simulations (feature `model`).
//! - [`registry`]: schemas of Avro records, kept by a registry that is asked over HTTP.

pub mod client;
mod headers;
#[cfg(feature = "librdkafka")]
mod log;
#[cfg(any(test, feature = "model"))]
pub mod model;
pub mod registry;
pub mod security;
pub mod sink;
#[cfg(feature = "librdkafka")]
pub mod source;
