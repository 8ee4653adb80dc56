//! Object storage: a place that is opened from a URL and read and written by name.
//!
//! - [`Store`]: a prefix in a store, with put, create-if-absent, get, range, size, list and delete. It repeats what may
//!   be repeated until a time-out, with exponential back-off and jitter, sends big bodies in parts, sends less when the
//!   store throttles, and turns what comes back into outcomes (absent, exists already) and errors that say what a person
//!   can do.
//! - [`Fencing`]: whether a store refuses to create what is there, which a cluster needs.
//! - [`Meter`]: what it cost, by operation and purpose, and how long it took.
//! - [`FaultyStore`]: a backend with faults from a seed, for the simulation and for tests.
//! - [`conformance`]: the exam that every backend passes.
//!
//! Backends: `memory://`, `file:///folder` (every write is synced to the disk), `s3://bucket/prefix`, `gs://`, `az://` and
//! others by their schemes; docs/object-stores.md says how each is configured and what it was tried with.
//!
//! This crate never reads the environment of the process: who opens a store hands over its variables. (The clients of
//! OSS and COS do besides, for credentials that were not handed over.)

mod attempt;
mod bridge;
mod clients;
pub mod conformance;
mod failure;
pub mod faults;
mod fencing;
mod limiter;
mod local;
mod meter;
mod open;
mod options;
mod store;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod trouble_tests;
mod upload;

pub use faults::{Faults, FaultyStore, InjectedFaults};
pub use fencing::Fencing;
pub use meter::{Meter, Metered, Operation, Purpose, Tally};
pub use object_store;
pub use open::StoreEnvironment;
pub use options::StoreOptions;
pub use store::{Created, Listed, Store};
