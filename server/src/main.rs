//! The millstream binary: the jobs of `millstream-jobs` behind the command line of `millstream-server`.

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Settings that jemalloc reads when the process starts. Memory is often freed by another thread than the one that took
/// it (a read's buffers, batches of an exchange): few arenas share it, and what nobody uses goes back within half a
/// second, so that the process stays near what its budgets account.
// SAFETY: jemalloc declares the symbol as a pointer to a string that ends with 0, which is what the first word of this is;
// no other crate of the binary defines it.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static MALLOC_CONF: &[u8] = b"background_thread:true,narenas:4,dirty_decay_ms:500,muzzy_decay_ms:0\0";

fn main() -> std::process::ExitCode {
    millstream_server::main(millstream_jobs::registry())
}
