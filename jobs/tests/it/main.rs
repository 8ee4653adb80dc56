//! The jobs as a whole: their plans, and what they compute over known events.

#![allow(clippy::unwrap_used)] // a test that cannot go on fails

mod executor;
mod golden;
mod keyed_count;
mod plans;

use millstream_common::Env;
use millstream_engine::dataflow::{Job, JobContext};
use millstream_jobs::registry;

/// A job from its name and arguments.
fn job(name: &str, args: &[String]) -> Job {
    let context = JobContext::new(Env::test(1), "test");
    registry().build(name, args, &context).unwrap_or_else(|e| panic!("{name}: {e:?}"))
}

/// A job from its name and arguments, as typed.
fn typed(name: &str, args: &str) -> Job {
    let args: Vec<String> = args.split_whitespace().map(str::to_owned).collect();
    job(name, &args)
}
