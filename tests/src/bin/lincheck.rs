//! Checks a history file of `polyraft load --history` for linearizability.
//!
//! Exit code 0: every key is linearizable; 1: some key is not; 2: the file cannot be read, or wrong use;
//! 3: nothing is wrong as far as was searched, but some key could not be decided within the limits.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::path::Path;
use std::process::ExitCode;

use polyraft_tests::linearizability::{Limits, check, read_file};

const USAGE: &str = "usage: lincheck FILE\n\n\
    Checks a history that `polyraft load --history FILE` wrote.\n\
    Exit code 0: linearizable, 1: not, 2: unreadable, 3: undecided within the limits.";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [file] = arguments.as_slice() else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if file == "-h" || file == "--help" {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let history = match read_file(Path::new(file)) {
        Ok(history) => history,
        Err(error) => {
            eprintln!("{file}: {error}");
            return ExitCode::from(2);
        }
    };
    let report = check(&history, &Limits::default());
    print!("{report}");
    if report.has_violation() {
        ExitCode::from(1)
    } else if report.is_linearizable() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(3)
    }
}
