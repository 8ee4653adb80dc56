//! What something took: time of the clock, and of the CPU.
//!
//! CPU time is that of the system's clocks of the thread and of the process, in nanoseconds: the counters of getrusage tick
//! too slowly for a batch.

use std::time::Duration;

use millstream_common::Result;
use rustix::time::{ClockId, clock_gettime};

use crate::outside::now;

/// What something took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    /// Of the clock.
    pub wall: Duration,
    /// CPU time of the calling thread.
    pub thread: Duration,
    /// CPU time of the whole process.
    pub process: Duration,
}

impl Cost {
    /// Nanoseconds of the clock for each of `count`.
    #[must_use]
    pub fn wall_ns(&self, count: u64) -> f64 {
        self.wall.as_nanos() as f64 / count.max(1) as f64
    }

    /// Nanoseconds of the calling thread for each of `count`.
    #[must_use]
    pub fn thread_ns(&self, count: u64) -> f64 {
        self.thread.as_nanos() as f64 / count.max(1) as f64
    }

    /// Nanoseconds of all threads for each of `count`.
    #[must_use]
    pub fn process_ns(&self, count: u64) -> f64 {
        self.process.as_nanos() as f64 / count.max(1) as f64
    }
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.wall += other.wall;
        self.thread += other.thread;
        self.process += other.process;
    }
}

fn cpu(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Does `work` and says what it took.
pub fn measured<T>(work: impl FnOnce() -> Result<T>) -> Result<(T, Cost)> {
    let (thread, process, wall) = (cpu(ClockId::ThreadCPUTime), cpu(ClockId::ProcessCPUTime), now());
    let result = work()?;
    let wall = wall.elapsed();
    let (thread, process) = (cpu(ClockId::ThreadCPUTime) - thread, cpu(ClockId::ProcessCPUTime) - process);
    Ok((result, Cost { wall, thread, process }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_takes_time_of_the_cpu_and_sleep_does_not() {
        let spin = || {
            let start = now();
            while start.elapsed() < Duration::from_millis(20) {
                std::hint::spin_loop();
            }
            Ok(())
        };
        let (_, busy) = measured(spin).unwrap();
        assert!(busy.thread > Duration::ZERO && busy.process >= busy.thread / 2);
        let sleep = || {
            crate::outside::sleep(Duration::from_millis(30));
            Ok(())
        };
        let (_, idle) = measured(sleep).unwrap();
        assert!(idle.wall >= Duration::from_millis(30) && idle.thread < idle.wall);
    }
}
