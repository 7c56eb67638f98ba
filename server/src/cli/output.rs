//! Answers as tables for people and as JSON for scripts. The only place that prints.

use std::io::Write;

use comfy_table::{Table, presets};
use serde_json::Value;

use super::args::Output;
use super::error::Error;

/// Prints a line, or more of them.
///
/// # Errors
/// Nobody reads any more, or standard output cannot be written.
pub(crate) fn say(text: &str) -> Result<(), Error> {
    write_line(&mut std::io::stdout().lock(), text)
}

/// Prints to standard error. If that is closed there is nobody left to tell.
pub(super) fn complain(text: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

fn write_line(to: &mut impl Write, text: &str) -> Result<(), Error> {
    let written = writeln!(to, "{text}").and_then(|()| to.flush());
    written.map_err(|error| match error.kind() {
        std::io::ErrorKind::BrokenPipe => Error::OutputClosed,
        _ => Error::Other(format!("standard output cannot be written: {error}")),
    })
}

/// Prints `json`, or what `table` makes of the answer.
///
/// # Errors
/// As [`say`].
pub(super) fn show(
    output: Output,
    json: &Value,
    table: impl FnOnce() -> String,
) -> Result<(), Error> {
    match output {
        Output::Json => say(&json.to_string()),
        Output::Table => say(table().trim_end()),
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

/// A value as text where it is text, else as hexadecimal with a mark.
pub(super) fn readable(bytes: &[u8]) -> String {
    text_of(bytes).map_or_else(|| format!("0x{}", hex(bytes)), str::to_owned)
}

/// A key in quotation marks where it is text, else as hexadecimal with a mark: never taken for each
/// other.
pub(super) fn quoted(key: &[u8]) -> String {
    text_of(key).map_or_else(|| format!("0x{}", hex(key)), |text| format!("{text:?}"))
}

fn text_of(bytes: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(bytes).ok()?;
    (!text.chars().any(char::is_control)).then_some(text)
}

/// Bytes as hexadecimal.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes from hexadecimal.
pub(super) fn parse_hex(text: &str) -> Result<Vec<u8>, String> {
    let wrong = || format!("{text:?} is not hexadecimal");
    let digits = text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !digits || !text.len().is_multiple_of(2) {
        return Err(wrong());
    }
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).map_err(|_| wrong()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipe whose reader is gone.
    struct Closed(std::io::ErrorKind);

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_left_is_told_from_a_disk_that_is_full() {
        let gone = write_line(&mut Closed(std::io::ErrorKind::BrokenPipe), "text");
        assert!(matches!(gone, Err(Error::OutputClosed)), "{gone:?}");
        let full = write_line(&mut Closed(std::io::ErrorKind::StorageFull), "text");
        assert!(matches!(full, Err(Error::Other(_))), "{full:?}");
        let mut text = Vec::new();
        write_line(&mut text, "text").expect("written");
        assert_eq!(text, b"text\n");
    }

    #[test]
    fn text_and_hexadecimal_are_never_taken_for_each_other() {
        assert_eq!(quoted(b"0x61"), "\"0x61\"");
        assert_eq!(quoted(b"\x00a"), "0x0061");
        assert_eq!(quoted(b"say \"a\""), "\"say \\\"a\\\"\"");
        assert_eq!(quoted(&[0xff]), "0xff");
        assert_eq!(readable(b"plain"), "plain");
    }
}
