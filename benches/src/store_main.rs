//! `store-bench`: see `millstream_benches::store`, or `store-bench --help`.

use std::process::ExitCode;

use clap::Parser;
use millstream_benches::store::args::StoreCli;

/// The same allocator for all stores that are written in Rust. (The server has jemalloc.)
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match millstream_benches::store::run(&StoreCli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
