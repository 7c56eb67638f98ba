//! What the user typed: the verbs of `polyraft`, and running them.
//!
//! Exit codes: 0 done; 1 it failed, and the last line says why; 2 it was called wrongly; 130 it was
//! interrupted; 141 nobody read its output to the end.

mod args;
mod balance;
mod directory;
mod error;
#[cfg(test)]
mod fuzz;
mod group;
mod kv;
mod load;
mod output;
mod range;
mod scan;
mod status;
mod store;

use std::process::ExitCode;

use clap::Parser;

use self::args::{Arguments, Output, Verb};
pub(crate) use self::args::{DemoArguments, StartArguments};
pub(crate) use self::error::Error;
pub(crate) use self::output::say;
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
    let output = arguments.verb.output();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            let error = Error::Other(format!("cannot start the runtime: {error}"));
            return failed(&error, output);
        }
    };
    match runtime.block_on(dispatch(arguments.verb, revision)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error, output),
    }
}

async fn dispatch(verb: Verb, revision: Option<&'static str>) -> Result<(), Error> {
    match verb {
        Verb::Start(start) => Ok(crate::node::run(start, revision).await?),
        Verb::Init {
            groups,
            replicas,
            connection,
        } => status::init(groups, replicas, &connection).await,
        Verb::Status { connection } => status::status(&connection).await,
        Verb::Group { verb } => group::run(verb).await,
        Verb::Balance { verb } => balance::run(verb).await,
        Verb::Directory { verb } => directory::run(verb).await,
        Verb::Range { verb } => range::run(verb).await,
        Verb::Store { verb } => store::run(verb).await,
        Verb::Kv { verb } => kv::run(verb).await,
        Verb::Load(arguments) => load::run(arguments, revision).await,
        Verb::Demo(arguments) => crate::demo::run(arguments, revision).await,
    }
}

fn failed(error: &Error, output: Output) -> ExitCode {
    if let Some(text) = error.shown(output) {
        output::complain(&text);
    }
    ExitCode::from(error.exit_code())
}

impl args::Connection {
    fn client(&self) -> Result<Client, Error> {
        Client::new(&self.endpoints, self.timeout()).map_err(Error::bad_request)
    }
}
