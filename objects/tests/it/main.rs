//! The exam of every backend on real servers, each behind a feature of its own: `seaweedfs` (S3 and WebDAV) and
//! `azurite`. MinIO is examined in `millstream-tests`.
//!
//! `scripts/seaweedfs.sh run cargo test -p millstream-objects --features seaweedfs --test it`. Without a server these tests
//! fail; without the features they are not built.

#![allow(clippy::unwrap_used)] // tests

#[cfg(any(feature = "seaweedfs", feature = "azurite"))]
mod servers;
