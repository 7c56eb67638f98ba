//! What the user typed: the verbs of `polyraft`, and running them.
//!
//! Exit codes: 0 done; 1 it failed, and the last line says why; 2 it was called wrongly.

mod args;
mod group;
mod kv;
mod load;
mod output;
mod status;

use std::process::ExitCode;

use clap::Parser;

use self::args::{Arguments, Verb};
pub(crate) use self::args::{DemoArguments, StartArguments};
pub(crate) use self::status::environment_json;
use crate::client::Client;

/// Parses the command line, does what it says, and gives the exit code. `revision` names the source
/// that the program was built from, if known.
#[must_use]
pub fn run(revision: Option<&'static str>) -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help goes to standard output and is no error; clap knows which is which.
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            return match error.print() {
                Ok(()) => ExitCode::from(code),
                Err(_) => ExitCode::from(2),
            };
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("cannot start the runtime: {error}")),
    };
    match runtime.block_on(dispatch(arguments.verb, revision)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => failed(&message),
    }
}

async fn dispatch(verb: Verb, revision: Option<&'static str>) -> Result<(), String> {
    match verb {
        Verb::Start(start) => crate::node::run(start, revision).await,
        Verb::Init {
            groups,
            replicas,
            connection,
        } => status::init(groups, replicas, &connection).await,
        Verb::Status { connection } => status::status(&connection).await,
        Verb::Group { verb } => group::run(verb).await,
        Verb::Kv { verb } => kv::run(verb).await,
        Verb::Load(arguments) => load::run(arguments, revision).await,
        Verb::Demo(arguments) => crate::demo::run(arguments, revision).await,
    }
}

#[allow(clippy::print_stderr)]
fn failed(message: &str) -> ExitCode {
    eprintln!("error: {message}");
    ExitCode::FAILURE
}

impl args::Connection {
    fn client(&self) -> Result<Client, String> {
        Client::new(&self.endpoints, self.timeout)
    }
}
