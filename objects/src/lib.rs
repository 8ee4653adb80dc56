//! Object storage: a place that is opened from a URL and read and written by name.
//!
//! - [`Store`]: a prefix in a store, with put, create-if-absent, get, range, size, list and delete. It repeats what may
//!   be repeated until a time-out, with exponential back-off and jitter, and turns what comes back into outcomes
//!   (absent, exists already) and errors that say what a person can do.
//! - [`Meter`]: what it cost, by operation and purpose.
//! - [`FaultyStore`]: a backend with faults from a seed, for the simulation and for tests.
//! - [`conformance`]: the exam that every backend passes.
//!
//! Backends: `memory://`, `file:///folder` (every write is synced to the disk), `s3://bucket/prefix`; `gs://` and
//! `az://` go through the same client, but nobody has tried them on the real services yet.
//!
//! This crate never reads the environment of the process: who opens a store hands over its variables.

mod attempt;
pub mod conformance;
mod failure;
pub mod faults;
mod local;
mod meter;
mod open;
mod options;
mod store;
#[cfg(test)]
mod tests;

pub use faults::{Faults, FaultyStore, InjectedFaults};
pub use meter::{Meter, Metered, Operation, Purpose, Tally};
pub use object_store;
pub use open::StoreEnvironment;
pub use options::StoreOptions;
pub use store::{Created, Listed, Store};
