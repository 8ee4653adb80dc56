//! What a user types.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Measures the state store, in this process, beside other stores, and prints tables.
#[derive(Debug, Parser)]
#[command(name = "store-bench", version, max_term_width = 110)]
pub struct StoreCli {
    /// Which bench.
    #[command(subcommand)]
    pub command: StoreCommand,
    /// Options of every bench.
    #[command(flatten)]
    pub common: StoreCommon,
}

/// The benches.
#[derive(Debug, Subcommand)]
pub enum StoreCommand {
    /// Batches of keys with all blocks in memory, over one run and over six.
    PointRead(PointReadArgs),
    /// Read-modify-write through a working set.
    Rmw(RmwArgs),
    /// Collecting, encoding and writing a bundle.
    Write(WriteArgs),
    /// Reads after many checkpoints beside reads after everything was merged.
    AfterCheckpoints(AfterCheckpointsArgs),
    /// A batch without anything in memory, from a slow object store.
    Cold(ColdArgs),
    /// Hit ratio and throughput when a part of the state fits into memory.
    Zipf(ZipfArgs),
    /// A checkpoint of the same change over states of several sizes.
    CheckpointSize(CheckpointSizeArgs),
    /// Bytes written for each byte that was flushed, over many checkpoints.
    WriteAmp(WriteAmpArgs),
    /// How long a subtask stands at a barrier with many dirty entries.
    Barrier(BarrierArgs),
}

/// Options of every bench.
#[derive(Debug, Args)]
pub struct StoreCommon {
    /// Runs of each case, taken in turn.
    #[arg(long, global = true, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// Where states of gigabytes are kept from one run to the next [default: millstream-store-bench in MILLSTREAM_CACHE
    /// or in the folder for temporary files].
    #[arg(long, global = true, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Values that compress to a third; else they do not compress.
    #[arg(long, global = true)]
    pub compressible: bool,
    /// Leaves out the peers whose names begin so: rocksdb, slatedb, fjall.
    #[arg(long, global = true, value_delimiter = ',')]
    pub without: Vec<String>,
}

/// `point-read`.
#[derive(Debug, Args)]
pub struct PointReadArgs {
    /// Keys of the state.
    #[arg(long, default_value_t = 4_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,
    /// Batches of 4,096 keys in a run.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub batches: u32,
    /// How many runs hold the state, each a share of the keys.
    #[arg(long, value_delimiter = ',', default_value = "1,6", value_parser = clap::value_parser!(u64).range(1..))]
    pub over: Vec<u64>,
}

/// `rmw`.
#[derive(Debug, Args)]
pub struct RmwArgs {
    /// Keys of the working set.
    #[arg(long, value_delimiter = ',', default_value = "10000,10000000", value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: Vec<u64>,
    /// Batches of 4,096 keys in a run.
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    pub batches: u32,
}

/// `write`.
#[derive(Debug, Args)]
pub struct WriteArgs {
    /// Entries of a bundle.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub entries: u64,
}

/// `after-checkpoints`.
#[derive(Debug, Args)]
pub struct AfterCheckpointsArgs {
    /// Bytes of the state before the first checkpoint, in GB.
    #[arg(long, default_value_t = 0.25)]
    pub gigabytes: f64,
    /// Checkpoints.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    pub epochs: u64,
    /// Entries that each changes.
    #[arg(long, default_value_t = 5_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub changes: u64,
    /// What compactions merge from one checkpoint to the next, in MB.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    pub merged_megabytes: u64,
    /// Batches of 4,096 keys in a run.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    pub batches: u32,
}

/// `cold`.
#[derive(Debug, Args)]
pub struct ColdArgs {
    /// Bytes of the state, in GB.
    #[arg(long, default_value_t = 1.0)]
    pub gigabytes: f64,
    /// Keys of the batch.
    #[arg(long, default_value_t = 3_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,
    /// Half of the requests take up to so many milliseconds.
    #[arg(long, default_value_t = 30)]
    pub p50_ms: u64,
    /// 99 in 100 requests take up to so many milliseconds.
    #[arg(long, default_value_t = 100)]
    pub p99_ms: u64,
}

/// `zipf`.
#[derive(Debug, Args)]
pub struct ZipfArgs {
    /// Bytes of the state, in GB.
    #[arg(long, default_value_t = 1.0)]
    pub gigabytes: f64,
    /// The share of it that fits into memory, rows and blocks together, in percent.
    #[arg(long, value_delimiter = ',', default_value = "1,5,10,50")]
    pub shares: Vec<f64>,
    /// The skew.
    #[arg(long, default_value_t = 0.99)]
    pub skew: f64,
    /// Seconds of warming up in each case, at most; it ends when as many keys were read as make the cache full twice.
    #[arg(long, default_value_t = 20.0)]
    pub warm_s: f64,
    /// Seconds of measuring in each case.
    #[arg(long, default_value_t = 5.0)]
    pub measure_s: f64,
    /// Bytes of the SSD tier, in GB.
    #[arg(long, default_value_t = 2.0)]
    pub ssd_gigabytes: f64,
    /// Half of the requests to the object store take up to so many milliseconds, 99 in 100 three times that.
    #[arg(long, default_value_t = 0)]
    pub p50_ms: u64,
    /// Where the plot is written.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
}

/// `checkpoint-size`.
#[derive(Debug, Args)]
pub struct CheckpointSizeArgs {
    /// Bytes of the states, in GB.
    #[arg(long, value_delimiter = ',', default_value = "1,10")]
    pub sizes: Vec<f64>,
    /// Entries that the checkpoint changes.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub changes: u64,
}

/// `write-amp`.
#[derive(Debug, Args)]
pub struct WriteAmpArgs {
    /// Keys of the state.
    #[arg(long, default_value_t = 2_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: u64,
    /// Checkpoints.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    pub epochs: u64,
    /// Updates in each.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub changes: u64,
    /// What compactions merge from one checkpoint to the next, in MB.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    pub merged_megabytes: u64,
}

/// `barrier`.
#[derive(Debug, Args)]
pub struct BarrierArgs {
    /// Dirty entries.
    #[arg(long, default_value_t = 1_000_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub entries: u64,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        StoreCli::command().debug_assert();
        let cli = StoreCli::parse_from(["store-bench", "zipf", "--shares", "1,2.5", "--runs", "2", "--compressible"]);
        let StoreCommand::Zipf(args) = cli.command else { panic!("{cli:?}") };
        assert_eq!((args.shares, cli.common.runs, cli.common.compressible), (vec![1.0, 2.5], 2, true));
        for bad in [["write", "--entries", "0"], ["write", "--runs", "0"], ["rmw", "--keys", "0"]] {
            assert!(StoreCli::try_parse_from(["store-bench"].iter().chain(&bad)).is_err(), "{bad:?}");
        }
    }
}
