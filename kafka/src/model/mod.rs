//! A broker that is none: transactions as a real one was seen to answer, for simulations.
//!
//! One broker, topics of one partition. [`ModelBroker`] holds what survives every process; [`ModelDial`] answers our own
//! requests through the codec, and [`ModelProducers`] writes like librdkafka does: in order, again and again until it is answered. Both
//! lose requests, answers, and the order of requests over different connections as far as [`Faults`] say.
//!
//! Of groups it knows the offsets that transactions commit. What it does not have: partitions and leaders that move, several
//! brokers, members of groups, quotas, compaction of topics.

mod broker;
mod dial;
mod producers;

pub use broker::{By, Ended, Faults, ModelBroker, Written};
pub use dial::ModelDial;
pub use producers::ModelProducers;
