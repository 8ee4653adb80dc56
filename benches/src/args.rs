//! What a user types.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::place::StateKind;

/// Measures the millstream binary and prints tables; without a command all benches with their defaults.
#[derive(Debug, Parser)]
#[command(name = "bench", version, max_term_width = 110)]
pub struct Cli {
    /// Which bench.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Options of every bench.
    #[command(flatten)]
    pub common: Common,
}

/// The benches.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Events a second of the Nexmark queries, in units of the yardstick.
    Throughput(ThroughputArgs),
    /// How long a job under load stands still when it is rescaled, over the size of its state.
    Rescale(StateArgs),
    /// How long fresh processes with empty caches take to the first row, over the size of the state.
    Restore(StateArgs),
    /// Writes per checkpoint, as the S3 server counts them (needs MinIO with public metrics).
    Checkpoint(CheckpointArgs),
    /// Requests of a job without events, as the S3 server counts them (needs MinIO with public metrics).
    Idle(IdleArgs),
    /// A second job from a version of one that runs: how soon, what is copied, are the outputs right?
    Fork(ForkArgs),
    /// A long run of a job whose state is far larger than its memory: does anything grow, or slow down?
    Soak(SoakArgs),
    /// A query from Kafka to Kafka while workers, coordinator and broker are killed: is each row there once? (--bin nexmark-kafka)
    KafkaKills(KillsArgs),
    /// How long after an event its row is there, from Kafka to Kafka, by guarantee. (--bin nexmark-kafka)
    KafkaLatency(LatencyArgs),
    /// How fast the source reads a topic, beside bare consumers of librdkafka, in units of the yardstick.
    KafkaSource(SourceArgs),
    /// Queries from Kafka to Kafka, beside the same from the generator, in units of the yardstick. (--bin nexmark-kafka)
    KafkaThroughput(KafkaThroughputArgs),
}

/// Options of every bench.
#[derive(Debug, Args)]
pub struct Common {
    /// The binary [default: MILLSTREAM_BIN, or release/millstream in CARGO_TARGET_DIR or target].
    #[arg(long, global = true, value_name = "PATH")]
    pub bin: Option<PathBuf>,
    /// Where fresh folders are made [default: the folder for temporary files].
    #[arg(long, global = true, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Where fresh prefixes are made; the server is the one of AWS_ENDPOINT_URL.
    #[arg(long, global = true, value_name = "URL", default_value = "s3://millstream/bench")]
    pub s3: String,
}

/// `throughput`.
#[derive(Debug, Args)]
pub struct ThroughputArgs {
    /// The queries.
    #[arg(long, value_delimiter = ',', default_value = "q0,q1,q2,q5,q7,q8,q11,q17")]
    pub queries: Vec<String>,
    /// Where state is [default: memory, file, and s3 when AWS_ENDPOINT_URL is set].
    #[arg(long, value_delimiter = ',')]
    pub state: Option<Vec<StateKind>>,
    /// Events per second of event time.
    #[arg(long, value_delimiter = ',', default_value = "100,10000000", value_parser = clap::value_parser!(u64).range(1..))]
    pub event_rate: Vec<u64>,
    /// Events of a run.
    #[arg(long, default_value_t = 4_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub events: u64,
    /// Runs of each case, taken in turn.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// Parallelism.
    #[arg(short, long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub parallelism: u32,
    /// From one checkpoint to the next.
    #[arg(long, default_value = "1s")]
    pub checkpoint_interval: String,
    /// Events that a measurement of the yardstick makes.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub yardstick_events: u64,
}

/// `rescale` and `restore`.
#[derive(Debug, Args)]
pub struct StateArgs {
    /// Sizes of state in GB: keys of 1,000 bytes.
    #[arg(long, value_delimiter = ',', default_value = "0.1,0.5,1")]
    pub sizes: Vec<f64>,
    /// Where state is: file, s3 [default: file, and s3 when AWS_ENDPOINT_URL is set].
    #[arg(long, value_delimiter = ',')]
    pub state: Option<Vec<StateKind>>,
    /// Measurements of each size, each with fresh processes and empty caches.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// Events a second while it is measured.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: u64,
    /// Workers, each with as many slots as make four altogether: 1, 2 or 4.
    #[arg(long, default_value_t = 2, value_parser = worker_count)]
    pub workers: u32,
    /// --cache-memory of each worker [default: what the worker takes by itself].
    #[arg(long, value_name = "SIZE")]
    pub cache_memory: Option<String>,
    /// --cache-disk of each worker [default: what the worker takes by itself, up to 10 GB].
    #[arg(long, value_name = "SIZE")]
    pub cache_disk: Option<String>,
}

impl StateArgs {
    /// What the workers are given besides.
    pub fn worker_options(&self) -> String {
        let option = |name: &str, size: &Option<String>| size.as_ref().map(|size| format!("{name} {size} "));
        let both = [option("--cache-memory", &self.cache_memory), option("--cache-disk", &self.cache_disk)];
        both.into_iter().flatten().collect()
    }
}

/// `checkpoint`.
#[derive(Debug, Args)]
pub struct CheckpointArgs {
    /// Parallelism, up to four.
    #[arg(short, long, value_delimiter = ',', default_value = "2,4", value_parser = clap::value_parser!(u32).range(1..=4))]
    pub parallelism: Vec<u32>,
    /// Checkpoints of the longer one of two jobs, whose difference counts; the shorter one takes a quarter.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(4..))]
    pub checkpoints: u64,
    /// From one checkpoint to the next.
    #[arg(long, default_value = "1s")]
    pub checkpoint_interval: String,
    /// Events a second.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: u64,
    /// Keys of 1,000 bytes.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,
}

/// `idle`.
#[derive(Debug, Args)]
pub struct IdleArgs {
    /// How long it is left alone.
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    pub minutes: u32,
    /// Runs, each of a new cluster.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// From one checkpoint to the next.
    #[arg(long, default_value = "500ms")]
    pub checkpoint_interval: String,
}

/// `fork`.
#[derive(Debug, Args)]
pub struct ForkArgs {
    /// Size of the state in GB: keys of 1,000 bytes.
    #[arg(long, default_value_t = 1.0)]
    pub gigabytes: f64,
    /// Where state is: file, s3 [default: file, and s3 when AWS_ENDPOINT_URL is set].
    #[arg(long, value_delimiter = ',')]
    pub state: Option<Vec<StateKind>>,
    /// Forks, each of a new parent.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// Events a second of the parent and of the fork.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: u64,
}

/// `soak`.
#[derive(Debug, Args)]
pub struct SoakArgs {
    /// Size of the state in GB: keys of 1,000 bytes.
    #[arg(long, default_value_t = 10.0)]
    pub gigabytes: f64,
    /// How long it runs once all keys are there.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    pub minutes: u32,
    /// So many of the minutes caches and compactions get to find their level.
    #[arg(long, value_name = "N", default_value_t = 10)]
    pub warm_up: u32,
    /// Seconds of what is called a minute here and in the table.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    pub minute: u32,
    /// Where state is: file or s3.
    #[arg(long, default_value = "s3")]
    pub state: StateKind,
    /// --memory-limit of the worker.
    #[arg(long, value_name = "SIZE", default_value = "1GiB")]
    pub memory_limit: String,
    /// The share of the state that its SSD tier has room for, in percent; 0: none.
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub ssd_share: u32,
    /// Events a second once all keys are there; 0: as fast as it goes.
    #[arg(long, default_value_t = 0)]
    pub rate: u64,
    /// Takes the throughput as it comes: for machines that do other things meanwhile.
    #[arg(long)]
    pub any_speed: bool,
}

/// `kafka-kills`.
#[derive(Debug, Args)]
pub struct KillsArgs {
    /// Until there were so many.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pub kills: u32,
    /// The query: q5, q7, q17 or q20.
    #[arg(long, value_name = "NAME", default_value = "q5")]
    pub query: String,
    /// Events a second.
    #[arg(long, value_name = "N", default_value_t = 150, value_parser = clap::value_parser!(u32).range(1..))]
    pub rate: u32,
    /// From one blow to the next at most, milliseconds, beyond the first 300.
    #[arg(long, value_name = "N", default_value_t = 4_000)]
    pub pause_ms: u64,
    /// The same seed hits the same things in the same order; when, the machine decides.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// The transactions' time-out, seconds.
    #[arg(long, value_name = "N", default_value_t = 300)]
    pub transaction_timeout: u32,
    /// Seconds from the end of a job until its rows are read. Brokers before 3.0 do not tell which transactions the dead left
    /// open, and these hold readers back until their time-out: longer than that.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub settle: u64,
    /// The folder of events and golden rows.
    #[arg(long, value_name = "DIR", default_value = "tests/data/nexmark-10k")]
    pub golden: PathBuf,
    /// The script that starts and kills a broker.
    #[arg(long, value_name = "PATH", default_value = "scripts/kafka.sh")]
    pub kafka: PathBuf,
}

/// What a sink promises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Guarantee {
    /// Rows of a failed attempt may stay.
    AtLeastOnce,
    /// Each row once.
    ExactlyOnce,
}

impl Guarantee {
    /// Its name on command lines and in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AtLeastOnce => "at-least-once",
            Self::ExactlyOnce => "exactly-once",
        }
    }
}

/// `kafka-latency`.
#[derive(Debug, Args)]
pub struct LatencyArgs {
    /// Events a second.
    #[arg(long, value_name = "N", default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub rate: u64,
    /// How long it is measured.
    #[arg(long, value_name = "N", default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    pub seconds: u32,
    /// So long it runs before.
    #[arg(long, value_name = "N", default_value_t = 15)]
    pub warm_up: u32,
    /// What the sink promises.
    #[arg(long, value_delimiter = ',', default_value = "at-least-once,exactly-once")]
    pub guarantee: Vec<Guarantee>,
    /// Parallelism.
    #[arg(short, long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub parallelism: u32,
    /// Events that a measurement of the yardstick makes.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub yardstick_events: u64,
    /// The script that starts and kills a broker.
    #[arg(long, value_name = "PATH", default_value = "scripts/kafka.sh")]
    pub kafka: PathBuf,
}

/// `kafka-source`.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// Records in the topic, of about 200 bytes.
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub records: u64,
    /// So many times they are read in each way, in turn.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Events that a measurement of the yardstick makes.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub yardstick_events: u64,
    /// The script that starts and kills a broker.
    #[arg(long, value_name = "PATH", default_value = "scripts/kafka.sh")]
    pub kafka: PathBuf,
}

/// `kafka-throughput`.
#[derive(Debug, Args)]
pub struct KafkaThroughputArgs {
    /// The queries: q5, q7, q17, q20.
    #[arg(long, value_delimiter = ',', default_value = "q5,q7,q20")]
    pub queries: Vec<String>,
    /// The binary with the same queries from the generator; without it they are left out.
    #[arg(long, value_name = "PATH")]
    pub millstream: Option<PathBuf>,
    /// Events in the topic.
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub events: u64,
    /// Events per second of event time.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub event_rate: u64,
    /// Runs of each case, taken in turn.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// Parallelism.
    #[arg(short, long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..))]
    pub parallelism: u32,
    /// From one checkpoint to the next.
    #[arg(long, default_value = "1s")]
    pub checkpoint_interval: String,
    /// Events that a measurement of the yardstick makes.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub yardstick_events: u64,
    /// The script that starts and kills a broker.
    #[arg(long, value_name = "PATH", default_value = "scripts/kafka.sh")]
    pub kafka: PathBuf,
}

fn worker_count(text: &str) -> Result<u32, String> {
    match text {
        "1" => Ok(1),
        "2" => Ok(2),
        "4" => Ok(4),
        _ => Err("give 1, 2 or 4".to_owned()),
    }
}

/// The options of a bench when nothing is typed.
#[must_use]
pub fn default_of<T: Args>() -> T {
    let command = T::augment_args(clap::Command::new("bench"));
    let matches = command.get_matches_from(["bench"]);
    // Every option has a default, or need not be given; a test reads them all.
    T::from_arg_matches(&matches).expect("an option without a default")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound_and_has_defaults() {
        Cli::command().debug_assert();
        assert_eq!(default_of::<ThroughputArgs>().queries.len(), 8);
        assert_eq!(default_of::<StateArgs>().sizes, [0.1, 0.5, 1.0]);
        assert_eq!(default_of::<CheckpointArgs>().parallelism, [2, 4]);
        let mut args = default_of::<StateArgs>();
        assert_eq!(args.worker_options(), "");
        (args.cache_memory, args.cache_disk) = (Some("1GB".to_owned()), Some("2GB".to_owned()));
        assert_eq!(args.worker_options().trim(), "--cache-memory 1GB --cache-disk 2GB");
        assert_eq!(default_of::<SoakArgs>().minutes, 60);
        assert_eq!(default_of::<LatencyArgs>().guarantee, [Guarantee::AtLeastOnce, Guarantee::ExactlyOnce]);
        assert_eq!(default_of::<SourceArgs>().rounds, 3);
        assert_eq!(default_of::<KafkaThroughputArgs>().queries, ["q5", "q7", "q20"]);
    }

    #[test]
    fn lists_and_options_are_read() {
        let cli = Cli::parse_from(["bench", "rescale", "--sizes", "0.01,2", "--state", "file,s3", "--bin", "/b"]);
        let Some(Command::Rescale(args)) = cli.command else { panic!("{cli:?}") };
        assert_eq!((args.sizes, args.state), (vec![0.01, 2.0], Some(vec![StateKind::File, StateKind::S3])));
        assert_eq!(cli.common.bin, Some(PathBuf::from("/b")));
        for bad in [["throughput", "--state", "disk"], ["throughput", "--runs", "0"], ["rescale", "--workers", "3"]] {
            assert!(Cli::try_parse_from(["bench"].iter().chain(&bad)).is_err(), "{bad:?}");
        }
    }
}
