//! The millstream binary: the jobs of `millstream-jobs` behind the command line of `millstream-server`.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Settings that jemalloc reads when the process starts. Memory is often freed by another thread than the one that took
/// it (a read's buffers, batches of an exchange), and each arena keeps what it got back: with one, which all threads
/// share, a process stays near what its budgets account. `_RJEM_MALLOC_CONF` in the environment overrides it, for machines
/// with many cores and no limit of memory.
// SAFETY: jemalloc declares the symbol as a pointer to a string that ends with 0, which is what the first word of this is;
// no other crate of the binary defines it.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static MALLOC_CONF: &[u8] = b"background_thread:true,narenas:1,dirty_decay_ms:100,muzzy_decay_ms:0\0";

fn main() -> std::process::ExitCode {
    millstream_server::main(millstream_jobs::registry())
}
