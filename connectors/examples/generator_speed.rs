//! Events a second that one core makes: ours as Arrow columns, and crate `nexmark` (default configuration) as structs,
//! the unit in which speeds are given. `cargo run --release -p millstream-connectors --example generator_speed`

use std::time::Instant;

use millstream_connectors::nexmark::EventSettings;
use nexmark::EventGenerator;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EVENTS: usize = 2_000_000;
const BATCH: usize = 4_096;
const RUNS: usize = 5;

fn main() {
    let ours = EventSettings { event_rate: 10_000_000, base_time_ms: 1_767_225_600_000 };
    let mut runs = (Vec::new(), Vec::new());
    for _ in 0..RUNS {
        runs.0.push(events_per_second(|| {
            (0..EVENTS / BATCH)
                .map(|i| {
                    // As a reader of one of 16 splits meets them.
                    let first = (i / 16 * 16 * BATCH + i % 16) as u64;
                    ours.generate(first, 16, BATCH).map_or(0, |b| std::hint::black_box(b).num_rows())
                })
                .sum()
        }));
        runs.1.push(events_per_second(|| {
            EventGenerator::default().take(EVENTS).for_each(|e| drop(std::hint::black_box(e)));
            EVENTS
        }));
    }
    let (ours, yardstick) = (median(&mut runs.0), median(&mut runs.1));
    println!("ours {ours:.0} events/s, crate nexmark {yardstick:.0} events/s: {:.2} Y", ours / yardstick);
}

#[allow(clippy::disallowed_methods)] // a measurement
fn events_per_second(run: impl FnOnce() -> usize) -> f64 {
    let start = Instant::now();
    let events = run();
    events as f64 / start.elapsed().as_secs_f64()
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
