//! The binary `polyraft`.

use std::process::ExitCode;

fn main() -> ExitCode {
    // Here and not in the library: another revision then compiles this file anew, and nothing else.
    polyraft_server::cli::run(option_env!("POLYRAFT_REVISION"))
}
