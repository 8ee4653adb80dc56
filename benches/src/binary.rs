//! The measured binary: where it is, and processes of it.
//!
//! A [`Running`] process ends with its value. What it says goes to a file, whose end stands in errors.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use millstream_common::{Error, Result};
use serde_json::Value;

use crate::outside::{cpu_seconds, sleep, variable};

/// How long a command of a client may take: a `stop` writes a checkpoint of all state first.
const CALL_LIMIT: Duration = Duration::from_secs(600);

/// From one look at a process to the next: what a measured time may be off by.
const LOOK: Duration = Duration::from_millis(2);

/// So much of what a process said stands in an error.
const SAID_CHARS: usize = 600;

/// The binary that is measured.
#[derive(Clone, Debug)]
pub struct Binary {
    path: PathBuf,
}

impl Binary {
    /// The one that was named, or `MILLSTREAM_BIN`, or the one that `cargo build --release` makes.
    pub fn find(named: Option<&Path>) -> Result<Self> {
        let built = || {
            let target = variable("CARGO_TARGET_DIR").unwrap_or_else(|| "target".to_owned());
            Path::new(&target).join("release").join("millstream")
        };
        let path = named.map(Path::to_owned).or_else(|| variable("MILLSTREAM_BIN").map(PathBuf::from));
        let path = path.unwrap_or_else(built);
        // Absolute: processes may be started elsewhere.
        path.canonicalize().ok().filter(|p| p.is_file()).map(|path| Self { path }).ok_or_else(|| {
            Error::config("there is no binary to measure")
                .at(path.display().to_string())
                .next("build it (cargo build --release --bin millstream), or name one by --bin")
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Starts a process; stdout and stderr are appended to `log`.
    pub fn start(&self, words: &[String], log: &Path) -> Result<Running> {
        let out = log_file(log)?;
        let err = out.try_clone().map_err(|e| cannot("open a log", log, e))?;
        self.spawn(words, out, err, log)
    }

    /// Runs a command to its end; gives its stdout.
    pub fn call(&self, words: &[String]) -> Result<String> {
        let folder = tempfile::tempdir().map_err(|e| cannot("make a folder in", &std::env::temp_dir(), e))?;
        let (out, err) = (folder.path().join("out"), folder.path().join("err"));
        self.spawn(words, log_file(&out)?, log_file(&err)?, &err)?.finish(CALL_LIMIT)?;
        fs::read_to_string(&out).map_err(|e| cannot("read", &out, e))
    }

    fn spawn(&self, words: &[String], out: File, err: File, log: &Path) -> Result<Running> {
        let child = Command::new(&self.path)
            .args(words)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(err)
            .env_remove("MILLSTREAM_COORDINATOR")
            .spawn()
            .map_err(|e| cannot("start", &self.path, e))?;
        Ok(Running { child, what: words.join(" "), log: log.to_owned() })
    }
}

fn log_file(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).open(path).map_err(|e| cannot("write", path, e))
}

fn cannot(what: &str, path: &Path, e: std::io::Error) -> Error {
    Error::unavailable(format!("cannot {what} it"))
        .at(path.display().to_string())
        .next("see whether it is there, whether it may be used, and whether the disk is full")
        .source(e)
}

/// A process that ends with this value.
#[derive(Debug)]
pub struct Running {
    child: Child,
    what: String,
    log: PathBuf,
}

impl Running {
    /// Waits for its end; anything but exit code 0 is an error, and so is none within `limit`.
    pub fn finish(&mut self, limit: Duration) -> Result<()> {
        let start = crate::outside::now();
        loop {
            if let Some(status) = self.status()? {
                return if status.success() { Ok(()) } else { Err(self.ended(status)) };
            }
            if start.elapsed() > limit {
                return Err(Error::unavailable(format!(
                    "it has not ended within {limit:?}, and said: {}",
                    self.said()
                ))
                .at(self.what.clone())
                .next("run the command by hand to see what it waits for"));
            }
            sleep(LOOK);
        }
    }

    /// Its resident set now and at its greatest, in bytes, as the kernel counts them.
    pub fn resident_bytes(&self) -> Result<(u64, u64)> {
        let path = PathBuf::from(format!("/proc/{}/status", self.child.id()));
        let text = fs::read_to_string(&path).map_err(|e| cannot("read", &path, e))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(name))?;
            Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
        };
        field("VmRSS:").zip(field("VmHWM:")).ok_or_else(|| {
            Error::unavailable("the kernel does not tell its resident set")
                .at(path.display().to_string())
                .next("run the bench on Linux")
        })
    }

    /// CPU seconds that it has used since its start.
    pub fn cpu_seconds(&self) -> Result<f64> {
        cpu_seconds(self.child.id()).ok_or_else(|| {
            Error::unavailable("the kernel does not tell the CPU time of a process").at(self.what.clone())
        })
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> Result<bool> {
        Ok(self.status()?.is_some())
    }

    /// An error when it has ended: for processes that are to stay.
    pub fn must_run(&mut self) -> Result<()> {
        match self.status()? {
            Some(status) => Err(self.ended(status)),
            None => Ok(()),
        }
    }

    fn status(&mut self) -> Result<Option<ExitStatus>> {
        self.child.try_wait().map_err(|e| Error::internal("cannot ask for the state of a process").source(e))
    }

    fn ended(&self, status: ExitStatus) -> Error {
        Error::unavailable(format!("a process has ended with {status}, and said: {}", self.said()))
            .at(self.what.clone())
            .next("run the command by hand to see more")
    }

    /// The end of its log, in one line.
    fn said(&self) -> String {
        let text = fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let line: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        let line = line.join(" | ");
        let skip = line.chars().count().saturating_sub(SAID_CHARS);
        line.chars().skip(skip).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // SIGKILL; it may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A run whose summary says something else is no measurement.
pub(crate) fn must_say(summary: &Value, wanted: &[(&str, Value)], command: &str) -> Result<()> {
    match wanted.iter().find(|(field, value)| summary[*field] != *value) {
        Some((field, value)) => {
            Err(Error::internal(format!("its summary says {field} {}, not {value}", summary[*field]))
                .at(command.to_owned())
                .next("run the command by hand"))
        }
        None => Ok(()),
    }
}

/// Words of a command line from one text.
#[must_use]
pub fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell() -> Binary {
        Binary::find(Some(Path::new("/bin/sh"))).unwrap()
    }

    #[test]
    fn what_a_process_says_is_its_result_or_stands_in_the_error() {
        let script = |text: &str| vec!["-c".to_owned(), text.to_owned()];
        assert_eq!(shell().call(&script("echo j1; echo noise >&2")).unwrap(), "j1\n");
        let e = shell().call(&script("echo out of order >&2; exit 3")).unwrap_err().to_string();
        assert!(e.contains("out of order") && e.contains("exit status: 3"), "{e}");
    }

    #[test]
    fn a_process_that_stays_is_watched_and_ends_with_its_value() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let forever = Binary::find(Some(Path::new("/bin/sleep"))).unwrap();
        let mut running = forever.start(&words("60"), &log).unwrap();
        running.must_run().unwrap();
        let (now, most) = running.resident_bytes().unwrap();
        assert!(now > 0 && most >= now);
        assert!(running.finish(Duration::from_millis(5)).is_err());
        drop(running);
        let mut gone = shell().start(&words("-c exit"), &log).unwrap();
        gone.finish(Duration::from_secs(10)).unwrap();
        assert!(gone.has_ended().unwrap() && gone.must_run().is_err());
    }

    #[test]
    fn a_binary_that_is_not_there_is_an_error_that_says_what_to_do() {
        let e = Binary::find(Some(Path::new("/nowhere/millstream"))).unwrap_err().to_string();
        assert!(e.contains("/nowhere/millstream") && e.contains("cargo build"), "{e}");
    }
}
