//! Places at which a test has a process kill itself, or stand still: the steps of a commit (docs/kafka.md).
//!
//! They are in the program only with the cargo feature `kill-points`, which tests of killed processes are built with and no
//! release can be; else [`kill_point`] is empty. With it variables of the environment say what happens where. All need
//! `MILLSTREAM_KILL_FOLDER`, a folder that the test and its processes share:
//!
//! - `MILLSTREAM_KILL_AT=NAME[:N]`: when it comes there for the N-th time (1 unless said), the process says so on stderr and
//!   ends by SIGKILL. It leaves `killed-NAME` in the folder with its process id; once that is there, no other one does it.
//!   With `:wait` behind N the process goes on at that place, and ends as soon as the folder has a file `go`.
//! - `MILLSTREAM_STAY_AT=NAME[:N]`: then it makes a file `stays-NAME` in the folder, and the thread stays there for as long as
//!   the file does.

#[cfg(all(feature = "kill-points", not(debug_assertions)))]
compile_error!("the feature kill-points is for tests: no release is built with it");

/// Goes on, unless a test wants something else.
#[cfg(not(feature = "kill-points"))]
#[inline(always)]
pub const fn kill_point(_name: &str) {}

/// Learns from the environment what is to happen where.
#[cfg(not(feature = "kill-points"))]
#[inline(always)]
pub fn arm(_variable: impl Fn(&str) -> Option<String>) {}

#[cfg(feature = "kill-points")]
pub use armed::{arm, kill_point};

#[cfg(feature = "kill-points")]
mod armed {
    use std::fs::OpenOptions;
    use std::io::Write;
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    static PLAN: OnceLock<Plan> = OnceLock::new();

    struct Plan {
        kill: Option<At>,
        stay: Option<At>,
        folder: PathBuf,
    }

    /// Which time of coming to a place counts.
    struct At {
        name: String,
        /// So many times are left, that one included.
        left: AtomicU64,
        waits: bool,
    }

    impl At {
        fn parse(text: &str) -> Option<Self> {
            let mut parts = text.split(':');
            let name = parts.next().filter(|name| !name.is_empty())?.to_owned();
            let left = parts.next().map_or(Some(1), |n| n.parse().ok().filter(|n| *n > 0))?;
            let waits = parts.next().map_or(Some(false), |word| (word == "wait").then_some(true))?;
            parts.next().is_none().then_some(Self { name, left: AtomicU64::new(left), waits })
        }

        fn is_now(&self, name: &str) -> bool {
            self.name == name && self.left.fetch_sub(1, Ordering::Relaxed) == 1
        }
    }

    /// Learns from the environment what is to happen where.
    pub fn arm(variable: impl Fn(&str) -> Option<String>) {
        let Some(folder) = variable("MILLSTREAM_KILL_FOLDER") else { return };
        let at = |name: &str| {
            let text = variable(name)?;
            let at = At::parse(&text);
            if at.is_none() {
                eprintln!("{name}={text} is not NAME[:N[:wait]]");
            }
            at
        };
        let plan = Plan { kill: at("MILLSTREAM_KILL_AT"), stay: at("MILLSTREAM_STAY_AT"), folder: folder.into() };
        // A second start in one process keeps the first.
        let _ = PLAN.set(plan);
    }

    /// Goes on, unless a test wants something else.
    pub fn kill_point(name: &str) {
        let Some(plan) = PLAN.get() else { return };
        if plan.stay.as_ref().is_some_and(|at| at.is_now(name)) {
            stay(plan, name);
        }
        let Some(at) = plan.kill.as_ref().filter(|at| at.is_now(name)) else { return };
        // One process does it.
        if !make(&plan.folder.join(format!("killed-{name}"))) {
            return;
        }
        if !at.waits {
            end(name);
        }
        let (name, go) = (name.to_owned(), plan.folder.join("go"));
        let waiting = std::thread::Builder::new().name("kill point".to_owned()).spawn(move || {
            while !go.exists() {
                pause();
            }
            end(&name);
        });
        if let Err(e) = waiting {
            eprintln!("no thread waits to kill this process: {e}");
        }
    }

    fn make(file: &std::path::Path) -> bool {
        let made = OpenOptions::new().write(true).create_new(true).open(file);
        made.is_ok_and(|mut file| write!(file, "{}", std::process::id()).is_ok())
    }

    fn stay(plan: &Plan, name: &str) {
        let file = plan.folder.join(format!("stays-{name}"));
        if make(&file) {
            eprintln!("stays at {name}");
            while file.exists() {
                pause();
            }
        }
    }

    #[allow(clippy::disallowed_methods)] // a process of a test, in real time
    fn pause() {
        std::thread::sleep(Duration::from_millis(1));
    }

    fn end(name: &str) {
        eprintln!("killed at {name}");
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        // Never as another signal would have it: the test looks at which it was.
        std::process::abort();
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_nth_time_counts_and_no_other() {
            let at = At::parse("told:2").unwrap();
            let times: Vec<_> = (0..4).map(|_| at.is_now("told")).collect();
            assert_eq!(times, [false, true, false, false]);
            assert!(!At::parse("told").unwrap().is_now("reported"));
            assert!(At::parse("told:1:wait").unwrap().waits);
            for wrong in ["", ":1", "told:0", "told:x", "told:1:go", "told:1:wait:2"] {
                assert!(At::parse(wrong).is_none(), "{wrong}");
            }
        }
    }
}
