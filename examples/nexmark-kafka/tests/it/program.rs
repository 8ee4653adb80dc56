//! The program as a process, and what it counts.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A `run` that goes on until this value goes.
pub(crate) struct Program {
    child: Child,
    metrics: String,
}

/// Runs a command to its end.
pub(crate) fn call(args: &[&str]) {
    let out = Command::new(env!("CARGO_BIN_EXE_nexmark-kafka")).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}: {}", out.status, String::from_utf8_lossy(&out.stderr));
}

/// Runs a command that fails, and gives what it says.
pub(crate) fn refused(args: &[&str]) -> String {
    let out = Command::new(env!("CARGO_BIN_EXE_nexmark-kafka")).args(args).stdin(Stdio::null()).output().unwrap();
    assert!(!out.status.success(), "{args:?}");
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

impl Program {
    /// `run JOB` with its state below `folder`.
    pub(crate) fn run(job: &str, folder: &Path, options: &[&str], args: &[&str]) -> Self {
        // Free a moment ago.
        let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let state = format!("file://{}", folder.display());
        let child = Command::new(env!("CARGO_BIN_EXE_nexmark-kafka"))
            .args(["run", job, "--state", &state, "--metrics-listen", &metrics])
            .args(options)
            .arg("--")
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, metrics }
    }

    /// The sum of a counter over all its labels; `None` while it is not there.
    pub(crate) fn counter(&self, name: &str) -> Option<f64> {
        let mut stream = TcpStream::connect(&self.metrics).ok()?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let samples = text.lines().filter(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        let values: Vec<f64> = samples.filter_map(|l| l.rsplit(' ').next()?.parse().ok()).collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// Waits until a counter is there and satisfies `condition`.
    pub(crate) fn wait_for(&mut self, name: &str, condition: impl Fn(f64) -> bool) {
        wait(name, || {
            assert!(self.child.try_wait().unwrap().is_none(), "the program has ended");
            self.counter(name).is_some_and(&condition)
        });
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until it is so, for two minutes at most.
pub(crate) fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..1_200 {
        if is_so() {
            return;
        }
        pause(Duration::from_millis(100));
    }
    panic!("it did not come to this: {what}");
}

#[allow(clippy::disallowed_methods)] // a real process in real time
pub(crate) fn pause(time: Duration) {
    std::thread::sleep(time);
}
