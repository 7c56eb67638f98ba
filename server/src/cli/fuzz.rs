//! Arbitrary words on the command line. Not for `--listen`, which asks the system for the names.

use std::time::{Duration, Instant};

use clap::Parser;
use polyraft_fuzz::{Fuzz, Source};

use super::args::{Arguments, parse_duration};
use super::output::{hex, parse_hex};

/// Words that mean something in some place, so that more than the first one is looked at.
const WORDS: &[&str] = &[
    "start",
    "init",
    "status",
    "kv",
    "get",
    "put",
    "delete",
    "scan",
    "group",
    "list",
    "describe",
    "replace",
    "load",
    "demo",
    "directory",
    "balance",
    "explain",
    "stores",
    "--stale",
    "drain",
    "--store-id",
    "--data-dir",
    "--peers",
    "--endpoints",
    "--timeout",
    "--groups",
    "--replicas",
    "--output",
    "--from",
    "--to",
    "--hex",
    "--limit",
    "--prefix",
    "--reverse",
    "--duration",
    "--balance-interval",
    "--help",
    "--",
    "1=127.0.0.1:7101,2=[::1]:7102",
    "127.0.0.1:7101,host:1",
    "500ms",
    "1.5h",
    "1-100",
    "7",
    "0",
    "json",
];

#[test]
fn any_words_are_a_command_or_an_error() {
    let fuzz = Fuzz::new("server::words").runs(3000).length_max(128);
    fuzz.check(|input| {
        let mut source = Source::new(input);
        let mut words = vec!["polyraft".to_owned()];
        while !source.is_empty() {
            let mut word = match source.below(6) {
                0 => String::from_utf8_lossy(source.bytes(20)).into_owned(),
                _ => source.pick(WORDS).to_owned(),
            };
            if source.one_in(8) {
                word.push_str(&String::from_utf8_lossy(source.bytes(6)));
            }
            words.push(word);
        }
        // It is neither parsed into something nor printed in a way that panics.
        match Arguments::try_parse_from(&words) {
            Ok(arguments) => drop(format!("{arguments:?}")),
            Err(error) => drop(error.render().to_string()),
        }
    });
}

#[test]
fn values_from_text() {
    let fuzz = Fuzz::new("server::values").runs(120_000).length_max(24);
    let fuzz = fuzz
        .example(*b"500ms")
        .example(*b"87599.9h")
        .example(*b"0a1Bff");
    fuzz.check(|input| {
        let text = String::from_utf8_lossy(input);
        if let Ok(time) = parse_duration(&text) {
            // Ends are reckoned from now.
            assert!(
                Instant::now().checked_add(time).is_some(),
                "{text} is {time:?}"
            );
            assert!(time < Duration::from_secs(400 * 24 * 3600 * 10));
        }
        match parse_hex(&text) {
            Ok(bytes) => assert_eq!(hex(&bytes), text.to_ascii_lowercase()),
            Err(_) => assert!(hex(input) != text.to_ascii_lowercase()),
        }
    });
}
