//! The engine: job graph, operators, keyed state with async paging, checkpoints, exchange, coordinator and worker.

pub mod convert;
pub mod coordinator;
pub mod dataflow;
pub mod element;
pub mod figures;
pub mod graph;
pub mod lateness;
pub mod memory_plan;
pub mod operator;
pub mod operators;
pub mod settings;
pub mod sink;
pub mod source;
pub mod state;
pub mod task;
pub mod transport;
pub mod worker;
