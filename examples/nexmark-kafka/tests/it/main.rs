//! The program as a process, on a real broker: `scripts/kafka.sh run cargo test -p nexmark-kafka --features broker`.

#![allow(clippy::unwrap_used)] // tests

#[cfg(feature = "broker")]
mod cluster;
#[cfg(feature = "broker")]
mod cut;
#[cfg(feature = "broker")]
mod kills;
#[cfg(feature = "broker")]
mod program;
#[cfg(feature = "broker")]
mod queries;
#[cfg(feature = "broker")]
#[path = "../../../../kafka/tests/it/support.rs"]
#[allow(dead_code)] // what the tests of the crate need besides
mod support;
