//! Measures the `millstream` binary from outside, and the state store from inside, and prints tables in Markdown.
//!
//! `bench` drives fresh processes through the command line, in fresh folders, and reads what a user can read: `--summary`,
//! `status --json`, `versions --json`, `/metrics`. No code of the engine runs in its process, but for the source of Kafka in
//! `kafka-source`. `store-bench` ([`store`]) calls the state store and working sets, beside other stores.
//!
//! - [`throughput`]: Nexmark queries, in units of the [`yardstick`], beside the figures of [`peers`].
//! - [`rescale`], [`restore`]: how long a job stands still, over the size of its state.
//! - [`fork`]: how soon a second job from a version of the first has a row, and what that copies.
//! - [`checkpoint`]: writes per checkpoint as the S3 server counts them.
//! - [`idle`]: requests of a job without events, as the S3 server counts them.
//! - [`soak`]: a long run, minute by minute.
//! - [`mod@kafka`]: jobs from Kafka to Kafka, with a real broker; and the source alone, which is called in this process.
//!
//! Below them: [`binary`] (processes), [`cluster`] (a coordinator and workers), [`filled`] (a job with much state),
//! [`place`] (folders and prefixes that go away again), [`counters`] (Prometheus text), [`s3_server`] (what a MinIO has
//! counted), [`table`] and [`stats`].
//! [`outside`] is the one module that asks the machine for time and variables.

pub mod args;
pub mod binary;
pub mod checkpoint;
pub mod cluster;
pub mod counters;
pub mod filled;
pub mod fork;
pub mod idle;
pub mod kafka;
pub mod outside;
pub mod peers;
pub mod place;
pub mod rescale;
pub mod restore;
pub mod s3_server;
pub mod soak;
pub mod stats;
pub mod store;
pub mod table;
pub mod throughput;
pub mod yardstick;

use millstream_common::Result;

use crate::args::{Cli, Command, Common};
use crate::binary::Binary;
use crate::place::Places;

/// A machine with a higher load average is no place to measure: the yardstick would lose more than two threads do.
const BUSY: f64 = 0.7;

/// What every bench needs.
#[derive(Debug)]
pub struct Bench {
    /// The binary that is measured.
    pub binary: Binary,
    /// Where its state and files go.
    pub places: Places,
}

impl Bench {
    fn new(common: &Common) -> Result<Self> {
        let binary = Binary::find(common.bin.as_deref())?;
        Ok(Self { binary, places: Places::new(common)? })
    }
}

/// Runs the command; without one all benches but the long run, one after the other. Tables go to stdout, progress to stderr.
pub fn run(cli: &Cli) -> Result<()> {
    if let Some(load) = outside::load_average().filter(|l| *l > BUSY) {
        note(&format!("other processes load this machine (load average {load:.1}): the figures will be off"));
    }
    let bench = || Bench::new(&cli.common);
    match &cli.command {
        Some(Command::Throughput(args)) => throughput::run(&bench()?, args),
        Some(Command::Rescale(args)) => rescale::run(&bench()?, args),
        Some(Command::Restore(args)) => restore::run(&bench()?, args),
        Some(Command::Checkpoint(args)) => checkpoint::run(&bench()?, args),
        Some(Command::Idle(args)) => idle::run(&bench()?, args),
        Some(Command::Fork(args)) => fork::run(&bench()?, args),
        Some(Command::Soak(args)) => soak::run(&bench()?, args),
        Some(Command::KafkaKills(args)) => kafka::kills(&bench()?, args),
        Some(Command::KafkaLatency(args)) => kafka::latency(&bench()?, args),
        Some(Command::KafkaThroughput(args)) => kafka::throughput(&bench()?, args),
        // It measures no binary.
        Some(Command::KafkaSource(args)) => kafka::source(&Places::new(&cli.common)?, args),
        None => all(&bench()?),
    }
}

fn all(bench: &Bench) -> Result<()> {
    throughput::run(bench, &args::default_of())?;
    rescale::run(bench, &args::default_of())?;
    restore::run(bench, &args::default_of())?;
    fork::run(bench, &args::default_of())?;
    if bench.places.has_s3() {
        checkpoint::run(bench, &args::default_of())?;
        idle::run(bench, &args::default_of())?;
    }
    Ok(())
}

/// Tells the person at the terminal how far it is.
pub fn note(text: &str) {
    eprintln!("bench: {text}");
}
