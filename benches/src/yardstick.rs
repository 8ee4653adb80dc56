//! The yardstick Y: events a second that crate `nexmark`'s `EventGenerator` makes on one core.
//!
//! Machines differ by more than the systems that are compared, so speeds are given in this unit, measured in the same
//! run: once before each measured process, when nothing else of ours runs.

use nexmark::EventGenerator;

use crate::outside::now;

/// Events a second: the crate's default configuration, every field of every event built.
#[must_use]
pub fn measure(events: u64) -> f64 {
    let count = usize::try_from(events).unwrap_or(usize::MAX);
    let start = now();
    EventGenerator::default().take(count).for_each(|event| drop(std::hint::black_box(event)));
    events as f64 / start.elapsed().as_secs_f64()
}
