//! Answers as tables for people and as JSON for scripts. The only place that prints.
#![allow(clippy::print_stdout)]

use comfy_table::{Table, presets};
use serde_json::Value;

use super::args::Output;

/// Prints `json`, or what `table` makes of the answer.
pub(super) fn show(output: Output, json: &Value, table: impl FnOnce() -> String) {
    match output {
        Output::Json => println!("{json}"),
        Output::Table => {
            let text = table();
            println!("{}", text.trim_end());
        }
    }
}

/// A table with a head and rows.
pub(super) fn table<const N: usize>(
    head: [&str; N],
    rows: impl IntoIterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(head);
    for row in rows {
        table.add_row(row);
    }
    table.to_string()
}

/// Bytes as text where they are text, else as hexadecimal with a mark.
pub(super) fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => text.to_owned(),
        _ => format!("0x{}", hex(bytes)),
    }
}

/// Bytes as hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes from hexadecimal.
pub(super) fn parse_hex(text: &str) -> Result<Vec<u8>, String> {
    let wrong = || format!("{text:?} is not hexadecimal");
    if !text.is_ascii() || !text.len().is_multiple_of(2) {
        return Err(wrong());
    }
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).map_err(|_| wrong()))
        .collect()
}
