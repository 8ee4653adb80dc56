//! Tests that need several crates, or a server. One binary, so that it is linked once.

#![allow(clippy::unwrap_used)] // tests

#[cfg(feature = "s3")]
mod s3;
mod simulation;
