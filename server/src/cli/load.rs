//! `polyraft load`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::args::{LoadArguments, Output};
use super::error::Error;
use super::output::say;
use crate::load::{self, Options, Shape, Target};

/// How long a write may stay unreadable before it counts as lost.
const PATIENCE: Duration = Duration::from_secs(60);

/// With a number of operations and no time, nobody waits for its end.
const FOR_EVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

pub(super) async fn run(
    arguments: LoadArguments,
    revision: Option<&'static str>,
) -> Result<(), Error> {
    let LoadArguments {
        connection, json, ..
    } = &arguments;
    if arguments
        .rate
        .is_some_and(|rate| rate.is_nan() || rate <= 0.0)
    {
        return Err(Error::bad_request("--rate must be greater than 0"));
    }
    if arguments.reads + arguments.scans > 100 {
        let text = "--reads and --scans are parts of a hundred: together at most 100";
        return Err(Error::bad_request(text));
    }
    // Before the run: its figures must not be lost to a path that is wrong.
    let mut json = match json {
        Some(path) => Some((path, create(path)?)),
        None => None,
    };
    let shape = Shape {
        connections: arguments.connections as usize,
        groups: arguments.groups.clone(),
    };
    let target = Target::find(&connection.endpoints, connection.timeout(), &shape).await?;
    let (unasked, ops) = (Duration::from_secs(10), arguments.ops);
    let options = Options {
        duration: arguments
            .duration
            .unwrap_or(ops.map_or(unasked, |_| FOR_EVER)),
        ops,
        revision,
        warmup: arguments.warmup,
        seed: arguments.seed.unwrap_or_else(rand::random),
        concurrency: arguments.concurrency as usize,
        rate: arguments.rate,
        value_bytes: arguments.value_bytes,
        reads_percent: arguments.reads,
        scans_percent: arguments.scans,
        zipf: arguments.zipf,
        keys: arguments
            .keys
            .unwrap_or(if arguments.history.is_some() { 5 } else { 1000 }),
        history: arguments.history.clone(),
        remember: arguments.verify,
        timeout: connection.timeout(),
    };
    let people = connection.output == Output::Table;
    let outcome = load::run(options, Arc::new(target), |line| {
        if people { say(line) } else { Ok(()) }
    })
    .await?;
    let report = &outcome.report;
    if let Some((path, file)) = &mut json {
        let written = writeln!(file, "{:#}", report.json()).and_then(|()| file.flush());
        written.map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    match connection.output {
        Output::Table => say(&format!("\n{}", report.summary()))?,
        Output::Json => say(&report.json().to_string())?,
    }
    if arguments.verify {
        let verified = outcome.verify(PATIENCE).await?;
        if people {
            let all = outcome.remembered();
            say(&format!(
                "verified            {verified} of {all} acknowledged writes"
            ))?;
        }
    }
    Ok(())
}

fn create(path: &Path) -> Result<File, Error> {
    let created = File::create(path);
    created.map_err(|error| Error::Other(format!("cannot create {}: {error}", path.display())))
}
