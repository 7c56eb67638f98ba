//! One JSON line per operation, for checkers outside of this program.
//!
//! Fields: `client`, `op` (get, put, delete, cas), `key`, `value`, `expected` (cas), `result` (a
//! get's value or null; "true" or "false" of a cas), `outcome`, `invoke_ns`, `return_ns` on one
//! monotonic clock. `outcome` is `ok`, `fail` only where the operation certainly had no effect,
//! else `unknown`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;

use parking_lot::Mutex;
use serde::Serialize;

/// A file that operations are written to. The first error is kept and told at the end.
#[derive(Debug)]
pub(super) struct History {
    file: Mutex<(BufWriter<File>, Option<std::io::Error>)>,
}

/// One operation.
#[derive(Debug, Serialize)]
pub(super) struct Line<'a> {
    pub(super) client: u64,
    pub(super) op: &'static str,
    pub(super) key: &'a str,
    pub(super) value: Option<&'a str>,
    pub(super) expected: Option<&'a str>,
    pub(super) result: Option<&'a str>,
    pub(super) outcome: &'static str,
    pub(super) invoke_ns: u64,
    pub(super) return_ns: u64,
}

impl History {
    pub(super) fn create(path: &Path) -> Result<Self, String> {
        let file = File::create(path)
            .map_err(|error| format!("cannot create {}: {error}", path.display()))?;
        Ok(Self {
            file: Mutex::new((BufWriter::new(file), None)),
        })
    }

    pub(super) fn write(&self, line: &Line<'_>) {
        let mut guard = self.file.lock();
        let (file, failed) = &mut *guard;
        if failed.is_some() {
            return;
        }
        let written = serde_json::to_writer(&mut *file, line).map_err(std::io::Error::from);
        *failed = written.and_then(|()| file.write_all(b"\n")).err();
    }

    pub(super) fn finish(&self) -> Result<(), String> {
        let mut guard = self.file.lock();
        let (file, failed) = &mut *guard;
        let result = failed.take().map_or_else(|| file.flush(), Err);
        result.map_err(|error| format!("the history could not be written: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_as_outside_checkers_read_them() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("history");
        let history = History::create(&path).expect("a file");
        let cas = Line {
            client: 7,
            op: "cas",
            key: "k1",
            value: Some("7.2"),
            expected: None,
            result: Some("true"),
            outcome: "ok",
            invoke_ns: 5,
            return_ns: 9,
        };
        history.write(&cas);
        history.write(&Line {
            op: "get",
            value: None,
            result: None,
            outcome: "unknown",
            ..cas
        });
        history.finish().expect("written");
        let expected = r#"{"client":7,"op":"cas","key":"k1","value":"7.2","expected":null,"result":"true","outcome":"ok","invoke_ns":5,"return_ns":9}
{"client":7,"op":"get","key":"k1","value":null,"expected":null,"result":null,"outcome":"unknown","invoke_ns":5,"return_ns":9}
"#;
        assert_eq!(std::fs::read_to_string(&path).expect("a file"), expected);
    }
}
