//! `bench`: see the crate's documentation, or `bench --help`.

use std::process::ExitCode;

use clap::Parser;
use millstream_benches::args::Cli;

/// A fast allocator: an event of the yardstick is mostly strings, and a slower one would make the unit smaller.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match millstream_benches::run(&Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
