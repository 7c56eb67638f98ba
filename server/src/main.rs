//! The binary `polyraft`.

use std::process::ExitCode;

/// Requests allocate on one thread and free on another, which the system's allocator does not like.
/// Without huge pages: with them an idle group costs five times its memory.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Here and not in the library: another revision then compiles this file anew, and nothing else.
    polyraft_server::cli::run(option_env!("POLYRAFT_REVISION"))
}
