//! The millstream binary: the jobs of `millstream-jobs` behind the command line of `millstream-server`.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    millstream_server::main(millstream_jobs::registry())
}
