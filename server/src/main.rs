//! The binary `polyraft`.

use std::process::ExitCode;

fn main() -> ExitCode {
    polyraft_server::cli::run()
}
