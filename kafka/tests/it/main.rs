//! Tests on a real broker. One binary, so that it is linked once.
//!
//! The broker is named by KAFKA_BOOTSTRAP: `scripts/kafka.sh run cargo test -p millstream-kafka --features broker`. Without one
//! these tests fail; without the feature they are not built. They hold on Apache Kafka 2.8 and later (KAFKA_VERSION), but for
//! those that docs/kafka.md names; what an older broker does otherwise stands in them. A schema registry is named by SCHEMA_REGISTRY_URL:
//! `scripts/schema-registry.sh run cargo test -p millstream-kafka --features registry`.

#![allow(clippy::unwrap_used)] // tests

#[cfg(feature = "broker")]
mod again;
#[cfg(feature = "broker")]
mod bad_records;
#[cfg(feature = "broker")]
mod client;
#[cfg(feature = "broker")]
mod figures;
#[cfg(feature = "registry")]
mod registry;
#[cfg(feature = "broker")]
mod rights;
#[cfg(feature = "broker")]
mod security;
#[cfg(feature = "broker")]
mod sink;
#[cfg(feature = "broker")]
mod source;
#[cfg(feature = "broker")]
mod support;
#[cfg(feature = "broker")]
mod transactions;
#[cfg(feature = "broker")]
mod versions;
#[cfg(all(feature = "broker", feature = "registry"))]
mod whole_job;
