//! Plants every known bug in the hosts of simulated worlds, one at a time, and says which checker
//! caught it.
//!
//! A world that fails with the bug counts only if it does not fail without it. Each bug has a process
//! of its own, since one is planted for a whole process, and since a bug may keep a world from ever
//! ending.
//!
//! Exit codes: 0 all were caught, 1 one was not, 2 the arguments make no sense or the build has no
//! known bugs.

use std::process::ExitCode;

#[cfg(canary)]
mod hunt;
#[cfg(canary)]
mod table;

#[cfg(canary)]
fn main() -> ExitCode {
    hunt::main()
}

#[cfg(not(canary))]
#[expect(
    clippy::print_stderr,
    reason = "this is all that the command has to say"
)]
fn main() -> ExitCode {
    eprintln!("this build has no known bugs: use scripts/canaries");
    ExitCode::from(2)
}
