//! The binary as a black box: exit codes, texts, files.

// A test: what it cannot do it fails at, and it waits for processes in real time.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod cluster;
mod command_line;
mod compactor;
mod documents;
mod drain;
mod metrics;
mod residency;
mod run;
mod state;
mod versions;

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// What a finished command left.
pub struct Done {
    /// The exit code; none when a signal ended it.
    pub code: Option<i32>,
    /// stdout.
    pub out: String,
    /// stderr.
    pub err: String,
}

impl Done {
    /// Of a process that has ended.
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Asserts that it succeeded.
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "stdout: {}\nstderr: {}", self.out, self.err);
        self
    }

    /// Asserts that it failed as the contract wants it: the exit code, one error line with a number, no panic.
    pub fn refused(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, Some(code), "stdout: {}\nstderr: {}", self.out, self.err);
        let lines: Vec<_> = self.err.lines().filter(|l| l.starts_with("error[MS")).collect();
        assert_eq!(lines.len(), 1, "not one error line: {}", self.err);
        let number = &lines[0]["error[MS".len()..];
        assert!(number.len() > 6 && number[..4].chars().all(|c| c.is_ascii_digit()) && number[4..].starts_with("]: "));
        for word in words {
            assert!(lines[0].contains(word), "'{word}' is not in: {}", lines[0]);
        }
        assert!(!self.err.contains("panicked") && !self.err.contains("RUST_BACKTRACE"), "{}", self.err);
        self
    }

    /// Asserts that stderr has `word` on one line alone.
    pub fn once(self, word: &str) -> Self {
        assert_eq!(self.err.lines().filter(|l| l.contains(word)).count(), 1, "{}", self.err);
        self
    }

    /// stdout as one JSON document.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }
}

/// The binary with `words`, in a clean environment, not started yet.
pub fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_millstream"));
    command.args(words).stdin(Stdio::null());
    for name in ["MILLSTREAM_COORDINATOR", "MILLSTREAM_LOG", "AWS_ENDPOINT_URL"] {
        command.env_remove(name);
    }
    command
}

/// Runs the binary to its end.
pub fn millstream(words: &[&str]) -> Done {
    Done::of(command(words).output().unwrap())
}

/// Runs the binary to its end, in a folder.
pub fn millstream_in(folder: &Path, words: &[&str]) -> Done {
    Done::of(command(words).current_dir(folder).output().unwrap())
}
