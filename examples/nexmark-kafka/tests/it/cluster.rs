//! A coordinator and workers as processes. One that has ended is started again.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::program::wait;

const PROGRAM: &str = env!("CARGO_BIN_EXE_nexmark-kafka");

/// So soon a job starts again.
const QUICK: [&str; 6] =
    ["-D", "restart.initial-delay=50ms", "-D", "restart.max-delay=200ms", "-D", "restart.jitter=0"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Coordinator,
    Worker,
}

/// A variable of the environment, for the first processes of a role.
pub(crate) type Armed = (Role, &'static str, &'static str);

/// A process that has ended.
pub(crate) struct Death {
    pub(crate) role: Role,
    pub(crate) pid: u32,
    pub(crate) signal: Option<i32>,
    pub(crate) log: String,
}

struct Process {
    role: Role,
    child: Child,
    log: PathBuf,
}

pub(crate) struct Cluster {
    folder: tempfile::TempDir,
    address: String,
    slots: u32,
    started: u32,
    processes: Vec<Process>,
    pub(crate) deaths: Vec<Death>,
}

impl Cluster {
    /// Its workers are there when this returns.
    pub(crate) fn start(workers: usize, slots: u32, armed: &[Armed]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let address = "127.0.0.1:0".to_owned();
        let mut cluster = Self { folder, address, slots, started: 0, processes: Vec::new(), deaths: Vec::new() };
        std::fs::create_dir(cluster.point("")).unwrap();
        cluster.begin(Role::Coordinator, armed);
        for _ in 0..workers {
            cluster.begin(Role::Worker, armed);
        }
        let there = |found: Value| found.as_array().is_some_and(|all| all.len() == workers);
        wait("the workers", || cluster.ask(&["workers"]).is_some_and(there));
        cluster
    }

    /// A file that a test and its processes share (`millstream_common::kill_points`).
    pub(crate) fn point(&self, name: &str) -> PathBuf {
        self.folder.path().join("points").join(name)
    }

    fn begin(&mut self, role: Role, armed: &[Armed]) {
        self.started += 1;
        let log = self.folder.path().join(format!("{role:?}-{}.log", self.started));
        let mut command = Command::new(PROGRAM);
        match role {
            Role::Coordinator => {
                let state = format!("file://{}", self.folder.path().join("state").display());
                command.args(["coordinator", "--json", "--state", &state, "--listen", &self.address]);
                command.stdout(Stdio::piped());
            }
            Role::Worker => {
                let cache = self.folder.path().join(format!("cache-{}", self.started));
                command.args(["worker", "--coordinator", &self.address, "--slots", &self.slots.to_string()]);
                command.arg("--cache-dir").arg(cache).stdout(Stdio::null());
            }
        }
        let variables = armed.iter().filter(|a| a.0 == role).map(|a| (a.1, a.2));
        command.env("MILLSTREAM_KILL_FOLDER", self.point("")).envs(variables);
        let mut child = command.stdin(Stdio::null()).stderr(File::create(&log).unwrap()).spawn().unwrap();
        if let Some(out) = child.stdout.take() {
            let mut line = String::new();
            BufReader::new(out).read_line(&mut line).unwrap();
            let said: Value = serde_json::from_str(&line).unwrap();
            self.address = said["listen"].as_str().unwrap().to_owned();
        }
        self.processes.push(Process { role, child, log });
    }

    /// Begins again what has ended.
    pub(crate) fn tend(&mut self) {
        for i in (0..self.processes.len()).rev() {
            let Some(status) = self.processes[i].child.try_wait().unwrap() else { continue };
            let Process { role, child, log } = self.processes.remove(i);
            let log = std::fs::read_to_string(log).unwrap();
            self.deaths.push(Death { role, pid: child.id(), signal: status.signal(), log });
            self.begin(role, &[]);
        }
    }

    /// What a command of a client prints; none when it fails, as it does while there is no coordinator.
    fn ask(&self, words: &[&str]) -> Option<Value> {
        let words = [words, &["--json", "--coordinator", &self.address]].concat();
        let out = Command::new(PROGRAM).args(words).stdin(Stdio::null()).output().unwrap();
        out.status.success().then(|| serde_json::from_slice(&out.stdout).unwrap())
    }

    /// Submits a query.
    pub(crate) fn submit(&self, query: &str, name: &str, options: &[&str], args: &[&str]) {
        let to = ["--name", name, "--coordinator", &self.address];
        let words = [&["submit", query], &to[..], &QUICK, options, &["--"], args].concat();
        super::program::call(&words);
    }

    /// Waits until the status of a job is so.
    pub(crate) fn wait_for(&mut self, job: &str, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        let mut last = Value::Null;
        wait(what, || {
            self.tend();
            last = self.ask(&["status", job]).unwrap_or_default();
            is_so(&last)
        });
        last
    }

    /// Waits until a job has finished.
    pub(crate) fn finish(&mut self, job: &str) -> Value {
        self.wait_for(job, "it finishes", |s| {
            assert!(s["state"] != "failed", "{}", s["error"]);
            s["state"] == "finished"
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for Process { role, child, log } in &mut self.processes {
            let _ = child.kill();
            let _ = child.wait();
            if std::thread::panicking() {
                let text = std::fs::read_to_string(log).unwrap_or_default();
                let lines: Vec<&str> = text.lines().collect();
                eprintln!("{role:?}:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
            }
        }
    }
}
