//! A program with jobs of its own: Nexmark events from Kafka, results to Kafka. See its README.

mod args;
mod enrich;
mod jobs;
mod properties;

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    millstream_server::main(jobs::registry())
}
