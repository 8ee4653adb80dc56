//! Messages that go over the wire or are written into objects, generated from `proto/*.proto`.
//!
//! A field number never changes its meaning; fields are only ever added. No code of the engine's operators sees these
//! types: each crate converts them to its own at its border.

// Generated code carries the comments of the .proto files, where there are any.
#![allow(missing_docs, clippy::all)]

/// What is written into objects: the version record and its parts.
pub mod version {
    include!(concat!(env!("OUT_DIR"), "/millstream.version.rs"));
}

/// What coordinator, workers and clients say to each other, with the gRPC service that carries it.
pub mod control {
    include!(concat!(env!("OUT_DIR"), "/millstream.control.rs"));
}
