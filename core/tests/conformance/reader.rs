//! The file format: directive, input, `----`, expected output, blank line. Arguments keep their order.

/// One argument: bare (`1`), or keyed with one (`a=1`) or several (`a=(1,2)`) values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Argument {
    pub(crate) key: String,
    pub(crate) values: Vec<String>,
}

/// One test case.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    /// Line number of the directive, from 1.
    pub(crate) line: usize,
    /// Number of lines before the expected output.
    pub(crate) output_line: usize,
    pub(crate) directive: String,
    pub(crate) command: String,
    pub(crate) arguments: Vec<Argument>,
    pub(crate) input: String,
    pub(crate) expected: String,
}

impl Case {
    /// The bare arguments in order.
    pub(crate) fn bare(&self) -> impl Iterator<Item = &str> {
        self.arguments
            .iter()
            .filter(|a| a.values.is_empty())
            .map(|a| a.key.as_str())
    }

    /// The bare arguments that are numbers.
    pub(crate) fn ids(&self) -> Vec<u64> {
        self.bare()
            .map(|id| id.parse().expect("a number"))
            .collect()
    }

    /// The values of the first argument with this key.
    pub(crate) fn values(&self, key: &str) -> Option<&[String]> {
        let found = self
            .arguments
            .iter()
            .find(|a| a.key == key && !a.values.is_empty());
        found.map(|a| a.values.as_slice())
    }

    /// The only value of an argument.
    pub(crate) fn value(&self, key: &str) -> Option<&str> {
        self.values(key).map(|values| values[0].as_str())
    }

    /// The numbers of an argument.
    pub(crate) fn numbers(&self, key: &str) -> Vec<u64> {
        let values = self.values(key).unwrap_or_default();
        values
            .iter()
            .map(|v| v.parse().expect("a number"))
            .collect()
    }
}

/// All cases of a file.
pub(crate) fn parse(text: &str) -> Result<Vec<Case>, String> {
    let lines: Vec<&str> = text.lines().collect();
    let (mut cases, mut at) = (Vec::new(), 0);
    while at < lines.len() {
        let line = at + 1;
        let mut directive = lines[at].trim().to_owned();
        at += 1;
        if directive.is_empty() || directive.starts_with('#') {
            continue;
        }
        while directive.ends_with('\\') && at < lines.len() {
            directive.pop();
            directive.push(' ');
            directive.push_str(lines[at].trim());
            at += 1;
        }
        let from = at;
        while at < lines.len() && lines[at] != "----" {
            at += 1;
        }
        if at == lines.len() {
            return Err(format!("line {line}: no ---- after {directive}"));
        }
        let input = lines[from..at].join("\n").trim().to_owned();
        at += 1;
        let output_line = at;
        let expected = take_expected(&lines, &mut at);
        let (command, arguments) = split_directive(&directive)?;
        cases.push(Case {
            line,
            output_line,
            directive,
            command,
            arguments,
            input,
            expected,
        });
    }
    Ok(cases)
}

/// Up to a blank line; or, if it begins with another `----`, up to two of those in a row.
fn take_expected(lines: &[&str], at: &mut usize) -> String {
    let mut expected = String::new();
    let blank_lines = lines.get(*at) == Some(&"----");
    if blank_lines {
        *at += 1;
    }
    while let Some(line) = lines.get(*at) {
        if blank_lines && *line == "----" && lines.get(*at + 1) == Some(&"----") {
            *at += 2;
            break;
        }
        if !blank_lines && line.trim().is_empty() {
            break;
        }
        expected.push_str(line);
        expected.push('\n');
        *at += 1;
    }
    expected
}

fn split_directive(line: &str) -> Result<(String, Vec<Argument>), String> {
    let (command, mut rest) = line.split_once(' ').unwrap_or((line, ""));
    let mut arguments = Vec::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Ok((command.to_owned(), arguments));
        }
        let end = rest.find([' ', '=']).unwrap_or(rest.len());
        let key = rest[..end].to_owned();
        rest = &rest[end..];
        let mut values = Vec::new();
        if let Some(after) = rest.strip_prefix('=') {
            if after.starts_with('(') {
                let close = closing(after).ok_or_else(|| format!("unbalanced ( in {line}"))?;
                values = split_values(&after[1..close]);
                rest = &after[close + 1..];
            } else {
                let end = after.find(' ').unwrap_or(after.len());
                values.push(after[..end].to_owned());
                rest = &after[end..];
            }
        }
        arguments.push(Argument { key, values });
    }
}

fn closing(text: &str) -> Option<usize> {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return Some(at);
        }
    }
    None
}

fn split_values(text: &str) -> Vec<String> {
    let (mut values, mut depth, mut value) = (Vec::new(), 0, String::new());
    for c in text.chars() {
        match c {
            ',' if depth == 0 => {
                values.push(std::mem::take(&mut value));
                continue;
            }
            ' ' if value.is_empty() => continue,
            '(' => depth += 1,
            ')' => depth -= 1,
            _ => {}
        }
        value.push(c);
    }
    values.push(value);
    values
}
