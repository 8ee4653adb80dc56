//! The machine: clock, sleep, environment, free ports. The only module that asks for them.
//!
//! The rest of the workspace gets time and randomness through `Env`, so that a simulation can replay it. A bench
//! measures real processes in real time; nothing here is part of the engine.
#![allow(clippy::disallowed_methods)] // a measurement tool outside of the engine: it needs the real clock

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use millstream_common::{Error, Result};

/// The time now.
#[must_use]
pub fn now() -> Instant {
    Instant::now()
}

/// Waits.
pub fn sleep(duration: Duration) {
    std::thread::sleep(duration);
}

/// A variable of the environment; an empty one counts as absent.
#[must_use]
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

/// All variables whose values are text.
#[must_use]
pub fn variables() -> BTreeMap<String, String> {
    std::env::vars_os().filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?))).collect()
}

/// The load of the machine over the last minute: how many processes wanted a core. `None` where nobody tells.
#[must_use]
pub fn load_average() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

/// How many cores this process may use.
#[must_use]
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// CPU seconds of a process since its start, in its code and for it in the kernel; `None` when there is no such process.
#[must_use]
pub fn cpu_seconds(process: u32) -> Option<f64> {
    cpu_seconds_in(&std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
}

/// CPU seconds of this process since its start.
#[must_use]
pub fn own_cpu_seconds() -> f64 {
    cpu_seconds(std::process::id()).unwrap_or_default()
}

/// By proc(5): behind the name in brackets, which may hold anything, `utime` and `stime` are the 12th and the 13th, in ticks.
fn cpu_seconds_in(stat: &str) -> Option<f64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<u64>().ok();
    Some((ticks()? + ticks()?) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// What the CPUs of the machine have done since it started, in ticks of the kernel.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuTicks {
    all: u64,
    stolen: u64,
}

impl CpuTicks {
    /// Until now, by the first line of `/proc/stat` (proc(5): `cpu user nice system idle iowait irq softirq steal ...`).
    /// `None` where nobody tells.
    #[must_use]
    pub fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/stat").ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        let ticks: Vec<u64> =
            stat.lines().next()?.strip_prefix("cpu ")?.split_whitespace().map_while(|t| t.parse().ok()).collect();
        // What guests took, behind `steal`, is counted in `user` already.
        Some(Self { all: ticks.iter().take(8).sum(), stolen: *ticks.get(7)? })
    }

    /// Of the time since `before`, the part in which other machines on the same host had this one's CPUs, in %.
    #[must_use]
    pub fn stolen_percent_since(self, before: Self) -> f64 {
        100.0 * self.stolen.saturating_sub(before.stolen) as f64 / self.all.saturating_sub(before.all).max(1) as f64
    }
}

/// Asks every `every` until there is an answer, `None` when there was none within `limit`.
pub fn wait_for<T>(
    limit: Duration,
    every: Duration,
    mut answer: impl FnMut() -> Result<Option<T>>,
) -> Result<Option<T>> {
    let start = now();
    loop {
        if let Some(found) = answer()? {
            return Ok(Some(found));
        }
        if start.elapsed() >= limit {
            return Ok(None);
        }
        sleep(every);
    }
}

/// Ports of this machine that nobody listens at, below the range that the system takes for outgoing connections: a
/// process that is started again finds its port free.
pub fn free_ports(count: usize) -> Result<Vec<u16>> {
    let first = 15_000 + (std::process::id() * 37 % 14_000) as u16;
    let free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    let ports: Vec<u16> = (first..first + 3_000).filter(free).take(count).collect();
    if ports.len() < count {
        return Err(Error::unavailable("no free ports on this machine")
            .at(format!("127.0.0.1:{first}-{}", first + 3_000))
            .next("end some of what listens there"));
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_for_comes_or_not() {
        let mut left = 3;
        let counted = wait_for(Duration::from_secs(5), Duration::ZERO, || {
            left -= 1;
            Ok((left == 0).then_some("done"))
        });
        assert_eq!(counted.unwrap(), Some("done"));
        assert_eq!(wait_for::<()>(Duration::ZERO, Duration::ZERO, || Ok(None)).unwrap(), None);
        assert!(wait_for::<()>(Duration::ZERO, Duration::ZERO, || Err(Error::unavailable("x"))).is_err());
    }

    #[test]
    fn stolen_time_is_a_part_of_all_time() {
        let before = CpuTicks::parse("cpu  10 0 10 60 0 0 0 20 5 0\ncpu0 1 2").unwrap();
        let after = CpuTicks::parse("cpu  20 0 20 110 10 0 0 40 9 0\n").unwrap();
        assert_eq!(after.stolen_percent_since(before), 20.0);
        assert_eq!(before.stolen_percent_since(before), 0.0);
        assert!(CpuTicks::parse("cpu  10 0 10 60\n").is_none() && CpuTicks::parse("").is_none());
    }

    #[test]
    fn cpu_time_is_read_behind_any_name() {
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 250 50 0 0 20 0 1 0";
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        assert_eq!(cpu_seconds_in(stat), Some(300.0 / ticks));
        assert_eq!(cpu_seconds_in("7 (a) S 1 2"), None);
        assert!(cpu_seconds(std::process::id()).is_some() && cpu_seconds(u32::MAX).is_none());
    }

    #[test]
    fn ports_are_free_and_different() {
        let ports = free_ports(2).unwrap();
        assert!(ports[0] != ports[1] && ports.iter().all(|p| *p >= 15_000));
    }
}
