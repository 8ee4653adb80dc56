//! What this process has used so far.

/// Seconds of CPU and the greatest resident set of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// User and system time of all threads, seconds; `None` where the system does not tell.
    pub cpu_s: Option<f64>,
    /// High-water mark of the resident set, bytes.
    pub peak_rss_bytes: Option<u64>,
    /// The resident set now, bytes.
    pub rss_bytes: Option<u64>,
}

/// Clock ticks a second in /proc: fixed by the kernel's interface, whatever it runs at inside.
const TICKS_PER_SECOND: f64 = 100.0;

/// Reads it. Only Linux tells.
#[must_use]
pub fn of_this_process() -> Usage {
    let read = |path| std::fs::read_to_string(path).ok();
    let status = read("/proc/self/status");
    let of_status = |name| status.as_deref().and_then(|t| kib_of_status(t, name));
    Usage {
        cpu_s: read("/proc/self/stat").and_then(|t| cpu_of_stat(&t)),
        peak_rss_bytes: of_status("VmHWM:"),
        rss_bytes: of_status("VmRSS:"),
    }
}

/// The 14th and 15th field; the 2nd is a name in parentheses that may hold anything.
fn cpu_of_stat(text: &str) -> Option<f64> {
    let (_, rest) = text.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

/// Bytes of a line that counts KiB.
fn kib_of_status(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find(|l| l.starts_with(name))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_are_found() {
        let stat = "1 (a ) b) S 1 1 1 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100 0 0";
        assert_eq!(cpu_of_stat(stat), Some(3.0));
        let status = "Name: x\nVmHWM:\t   2048 kB\nVmRSS:\t 1024 kB\n";
        assert_eq!((kib_of_status(status, "VmHWM:"), kib_of_status(status, "VmRSS:")), (Some(2 << 20), Some(1 << 20)));
        assert_eq!((cpu_of_stat(""), kib_of_status("", "VmHWM:")), (None, None));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_uses_memory() {
        assert!(of_this_process().peak_rss_bytes.unwrap() > 1 << 20);
    }
}
