//! Jobs by name: what a binary that links the engine can run.
//!
//! Every process of a cluster builds a job's graph from its name and arguments, so both must mean the same everywhere:
//! the place that takes a command calls [`JobRegistry::absolutise`] once (relative paths are meant from there) and sends
//! the result on. The registry reads neither files nor the environment.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use millstream_common::{Env, Error, ErrorKind, Result};

use crate::graph::JobGraph;

/// The number of the error for an unknown job.
pub const UNKNOWN_JOB: u16 = 1004;
/// The number of errors about the arguments of a job: wrong usage (exit code 2).
pub const JOB_USAGE: u16 = 1002;

/// What a job may need of the process that builds it.
#[derive(Clone)]
pub struct JobContext {
    /// Time, randomness and spawning, for sources and sinks that need them.
    pub env: Env,
    /// The job's name, which stays the same over restarts; a fork has its own.
    pub name: String,
}

impl JobContext {
    /// For the job of this name.
    pub fn new(env: Env, name: impl Into<String>) -> Self {
        Self { env, name: name.into() }
    }
}

/// One argument with its value, as it is written on a command line: `--name value`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobArg {
    /// Without the dashes. An argument with several values stands here several times.
    pub name: String,
    /// The value, written the same way however it was typed (`5s` and `5000ms` alike).
    pub value: String,
    /// Whether another value makes another job. False for what may change when a job goes on.
    pub identity: bool,
}

impl JobArg {
    /// An argument that makes the job what it is.
    pub fn identity(name: impl Into<String>, value: impl fmt::Display) -> Self {
        Self { name: name.into(), value: value.to_string(), identity: true }
    }

    /// An argument that may differ when the job goes on.
    pub fn free(name: impl Into<String>, value: impl fmt::Display) -> Self {
        Self { name: name.into(), value: value.to_string(), identity: false }
    }
}

/// The arguments of a job.
pub trait JobArgs: Sized {
    /// Parses what stands behind `--`. Errors should come from [`usage_error`].
    fn parse(args: &[String]) -> Result<Self>;

    /// All arguments in a fixed order, normalised, with the defaults filled in. An argument without a value is left out.
    /// `parse` of the same arguments gives the same job.
    fn normalised(&self) -> Vec<JobArg>;

    /// Makes relative paths absolute: they are meant from `folder`.
    fn absolutise(&mut self, _folder: &Path) {}
}

/// A job without arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoArgs;

impl JobArgs for NoArgs {
    fn parse(args: &[String]) -> Result<Self> {
        match args.first() {
            None => Ok(Self),
            Some(a) => Err(usage_error(format!("unexpected argument {a:?}: this job takes none"))),
        }
    }

    fn normalised(&self) -> Vec<JobArg> {
        Vec::new()
    }
}

/// An error about the arguments of a job; the command line ends with exit code 2 when it meets one.
pub fn usage_error(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Config, JOB_USAGE, what)
}

type BuildFn = Arc<dyn Fn(&[String], &JobContext) -> Result<(JobGraph, Vec<JobArg>)> + Send + Sync>;
type AbsolutiseFn = Arc<dyn Fn(&[String], &Path) -> Result<Vec<String>> + Send + Sync>;

/// A job that a binary contains.
#[derive(Clone)]
pub struct JobDefinition {
    /// What users type.
    pub name: String,
    /// One line for `jobs`.
    pub description: String,
    build: BuildFn,
    absolutise: AbsolutiseFn,
}

impl JobDefinition {
    /// A job whose graph `build` makes from its parsed arguments. It is called in every process of a cluster and must
    /// give the same plan in each.
    pub fn new<A, F>(name: impl Into<String>, description: impl Into<String>, build: F) -> Self
    where
        A: JobArgs + 'static,
        F: Fn(&A, &JobContext) -> Result<JobGraph> + Send + Sync + 'static,
    {
        Self {
            name: name.into(),
            description: description.into(),
            build: Arc::new(move |args, context| {
                let args = A::parse(args)?;
                Ok((build(&args, context)?, args.normalised()))
            }),
            absolutise: Arc::new(|args, folder| {
                let mut args = A::parse(args)?;
                args.absolutise(folder);
                // `--name=value`: a value may begin with a dash.
                Ok(args.normalised().into_iter().map(|a| format!("--{}={}", a.name, a.value)).collect())
            }),
        }
    }
}

impl fmt::Debug for JobDefinition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobDefinition").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A job that can run.
#[derive(Clone)]
pub struct Job {
    /// The job's name in the registry.
    pub name: String,
    /// Its plan.
    pub graph: JobGraph,
    /// What makes it this job and no other, beside the plan: arguments that must be the same when it goes on.
    pub identity_args: Vec<(String, String)>,
}

/// The jobs of a binary, by name.
#[derive(Clone, Debug, Default)]
pub struct JobRegistry {
    jobs: BTreeMap<String, JobDefinition>,
}

impl JobRegistry {
    /// Without any job.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a job; one of the same name gives way.
    #[must_use]
    pub fn with(mut self, job: JobDefinition) -> Self {
        self.add(job);
        self
    }

    /// Adds a job; one of the same name gives way.
    pub fn add(&mut self, job: JobDefinition) {
        self.jobs.insert(job.name.clone(), job);
    }

    /// All jobs, by name.
    pub fn iter(&self) -> impl Iterator<Item = &JobDefinition> {
        self.jobs.values()
    }

    /// The job called `name`, or an error that names the nearest one.
    pub fn get(&self, name: &str) -> Result<&JobDefinition> {
        self.jobs.get(name).ok_or_else(|| {
            let error = Error::config(format!("there is no job {name:?}")).code(UNKNOWN_JOB);
            match nearest(name, self.jobs.keys().map(String::as_str)) {
                Some(near) => error.next(format!("did you mean {near:?}? `millstream jobs` lists all")),
                None => error.next("`millstream jobs` lists those there are"),
            }
        })
    }

    /// Builds a job from what a user typed behind `--`.
    pub fn build(&self, name: &str, args: &[String], context: &JobContext) -> Result<Job> {
        let definition = self.get(name)?;
        let (graph, args) = (definition.build)(args, context)?;
        let identity_args = args.into_iter().filter(|a| a.identity).map(|a| (a.name, a.value)).collect();
        Ok(Job { name: definition.name.clone(), graph, identity_args })
    }

    /// The same arguments, normalised, with relative paths made absolute (they are meant from `folder`).
    pub fn absolutise(&self, name: &str, args: &[String], folder: &Path) -> Result<Vec<String>> {
        (self.get(name)?.absolutise)(args, folder)
    }
}

/// The candidate that differs from `word` by the fewest letters; `None` when every one differs by more than half of it.
#[must_use]
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let limit = word.chars().count() / 2 + 1;
    candidates
        .into_iter()
        .map(|c| (strsim::osa_distance(word, c), c))
        .min()
        .filter(|(distance, _)| *distance <= limit)
        .map(|(_, c)| c)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found_and_a_far_one_is_not() {
        let names = ["keyed-count", "nexmark-q0", "nexmark-q11", "nexmark-q5"];
        assert_eq!(nearest("nexmark-5", names), Some("nexmark-q5"));
        assert_eq!(nearest("keyedcount", names), Some("keyed-count"));
        assert_eq!(nearest("wordcount.sql", names), None);
        assert_eq!(nearest("x", []), None);
    }
}
