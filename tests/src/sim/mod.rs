//! A whole cluster in one thread under virtual time, from a seed: two coordinators, workers, a client, an object store,
//! with the production code and these replacements only:
//!
//! | replaced | by | in |
//! |---|---|---|
//! | threads and runtimes of a process | futures of a node that can be killed and paused | [`node`] |
//! | clock | tokio's paused clock, through `Env`; a skewed wall clock per node | [`cluster`] |
//! | gRPC and TCP | connections with random delays, breaks, partitions | [`net`], [`transport`] |
//! | the object store's backend | object_store's `InMemory` behind `FaultyStore` | [`store`] |
//! | SSD tier | none | [`cluster`] |
//! | source, sink, usage of the process | ones that are checked | [`source`], [`sink`] |
//!
//! docs/simulation.md says how to run and replay it.

pub mod check;
pub mod cluster;
pub mod data;
pub mod dice;
pub mod jobs;
pub mod net;
pub mod node;
pub mod plan;
pub mod reader;
pub mod reference;
pub mod reminders;
pub mod run;
pub mod scene;
pub mod sink;
pub mod source;
pub mod store;
pub mod trace;
pub mod transport;
pub mod visits;

pub use run::{Outcome, run};
