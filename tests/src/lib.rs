//! What the tests of several crates are made with.
//!
//! - [`proxy`]: an HTTP proxy that loses, cuts and delays what a test plans.
//! - [`sim`]: a whole cluster in one thread under virtual time, from a seed.

pub mod proxy;
pub mod sim;
