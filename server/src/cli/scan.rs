//! `polyraft kv scan`.

use bytes::Bytes;
use clap::Args;
use serde_json::{Value, json};

use super::args::{Connection, KeyOptions, Output};
use super::error::Error;
use super::kv::{bytes, header_json};
use super::output::{hex, quoted, readable, say};
use crate::client::{ScanOptions, prefix_end};
use crate::proto::kv::{Pair, ScanPart};

/// What is shown of the pairs.
#[derive(Debug, Args)]
pub(super) struct ScanArguments {
    /// First key [default: the first one of all].
    #[arg(long, value_name = "KEY", allow_negative_numbers = true)]
    from: Option<String>,
    /// Past the last key [default: to the end of all keys].
    #[arg(long, value_name = "KEY", allow_negative_numbers = true)]
    to: Option<String>,
    /// Keys that begin so.
    #[arg(long, value_name = "KEY", allow_negative_numbers = true, conflicts_with_all = ["from", "to"])]
    prefix: Option<String>,
    /// Pairs at most.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Pairs asked for at once [default: a mebibyte of them].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    page: Option<u32>,
    /// From the last key to the first one.
    #[arg(long)]
    reverse: bool,
    /// What the store that is asked holds, perhaps out of date.
    #[arg(long)]
    stale: bool,
    #[command(flatten)]
    options: KeyOptions,
    #[command(flatten)]
    pub(super) connection: Connection,
}

impl ScanArguments {
    fn options(&self) -> Result<ScanOptions, Error> {
        let key = |text: &Option<String>| {
            let text = text.as_ref();
            text.map(|text| bytes(text, self.options)).transpose()
        };
        let (start, end) = match key(&self.prefix)? {
            Some(prefix) => (prefix.clone(), prefix_end(&prefix)),
            None => (key(&self.from)?.unwrap_or_default(), key(&self.to)?),
        };
        Ok(ScanOptions {
            start,
            end,
            reverse: self.reverse,
            stale: self.stale,
            group: self.options.group,
            limit: Some(self.limit),
            page_pairs: self.page,
            ..ScanOptions::default()
        })
    }
}

/// Shows pairs as they come for people, and as one object for scripts.
pub(super) async fn run(arguments: ScanArguments) -> Result<(), Error> {
    let client = arguments.connection.client()?;
    let mut scan = client.scan(arguments.options()?);
    let people = arguments.connection.output == Output::Table;
    let mut gathered = Gathered::default();
    while let Some(page) = scan.next_page().await? {
        gathered.count += page.pairs.len();
        gathered.next = page.next;
        if people {
            let lines = page
                .pairs
                .iter()
                .map(|pair| line(pair, arguments.options.hex));
            let lines: Vec<String> = lines.collect();
            if !lines.is_empty() {
                say(&lines.join("\n"))?;
            }
        } else {
            let hex = arguments.options.hex;
            gathered
                .pairs
                .extend(page.pairs.iter().map(|pair| pair_json(pair, hex)));
        }
        gathered.parts.extend(page.parts);
    }
    if people {
        say(&gathered.summary(arguments.reverse))
    } else {
        say(&gathered.json().to_string())
    }
}

#[derive(Debug, Default)]
struct Gathered {
    count: usize,
    pairs: Vec<Value>,
    parts: Vec<ScanPart>,
    next: Option<Bytes>,
}

impl Gathered {
    fn json(self) -> Value {
        json!({
            "count": self.count,
            "pairs": self.pairs,
            "parts": self.parts.iter().map(part_json).collect::<Vec<_>>(),
            "next_hex": self.next.map(|next| hex(&next)),
        })
    }

    /// How many they are, and what is said of them together.
    fn summary(&self, reverse: bool) -> String {
        let parts = self.parts.len();
        let count = match self.count {
            1 => "1 pair".to_owned(),
            n => format!("{n} pairs"),
        };
        let moments = match parts {
            0 | 1 => String::new(),
            n => format!(" in {n} parts, each as of one moment (-o json shows them)"),
        };
        let more = self.next.as_ref().map_or_else(String::new, |next| {
            let bound = if reverse { "--to" } else { "--from" };
            format!("; there are more: go on with --hex {bound} {}", hex(next))
        });
        format!("({count}{moments}{more})")
    }
}

fn line(pair: &Pair, as_hex: bool) -> String {
    if as_hex {
        return format!("{}  {}", hex(&pair.key), hex(&pair.value));
    }
    format!("{}  {}", quoted(&pair.key), readable(&pair.value))
}

fn pair_json(pair: &Pair, as_hex: bool) -> Value {
    let text = |bytes: &Bytes| if as_hex { hex(bytes) } else { readable(bytes) };
    json!({
        "key": text(&pair.key),
        "key_hex": hex(&pair.key),
        "value": text(&pair.value),
        "value_hex": hex(&pair.value),
    })
}

fn part_json(part: &ScanPart) -> Value {
    json!({
        "header": header_json(part.header.as_ref()),
        "generation": part.header.as_ref().map(|header| header.generation),
        "start_hex": hex(&part.start),
        "end_hex": part.end.as_ref().map(|end| hex(end)),
        "pairs": part.pairs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_told_how_to_go_on() {
        let mut gathered = Gathered {
            count: 1,
            parts: vec![ScanPart::default()],
            ..Gathered::default()
        };
        assert_eq!(gathered.summary(false), "(1 pair)");
        gathered.parts.push(ScanPart::default());
        gathered.count = 2;
        gathered.next = Some(Bytes::from_static(b"a\0"));
        let text = gathered.summary(false);
        assert!(text.starts_with("(2 pairs in 2 parts"), "{text}");
        assert!(text.contains("--hex --from 6100"), "{text}");
        assert!(gathered.summary(true).contains("--to 6100"));
    }
}
