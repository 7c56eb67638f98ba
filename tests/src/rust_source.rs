//! Splits Rust source into code, comments and literals, so that a check can look at one kind alone.
//!
//! [`Masked::split`] never fails: what does not lex (an unfinished string) ends with the file.
//! Invariant: every part has the lines of the original at the same numbers and columns (in characters);
//! what belongs to another part is replaced by spaces.

/// One source text in three layers of the same shape.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Masked {
    /// Everything but comments and the insides of literals.
    pub code: String,
    /// Only comments, documentation among them.
    pub comments: String,
    /// Only the insides of string and character literals.
    pub literals: String,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Layer {
    Code,
    Comment,
    Literal,
}

impl Masked {
    /// Splits `source` into its layers.
    pub fn split(source: &str) -> Self {
        let chars: Vec<char> = source.chars().collect();
        let mut splitter = Splitter {
            chars: &chars,
            at: 0,
            out: Self::empty(chars.len()),
        };
        splitter.run();
        splitter.out
    }

    fn empty(capacity: usize) -> Self {
        let room = || String::with_capacity(capacity);
        Self {
            code: room(),
            comments: room(),
            literals: room(),
        }
    }
}

struct Splitter<'a> {
    chars: &'a [char],
    at: usize,
    out: Masked,
}

impl Splitter<'_> {
    fn run(&mut self) {
        while let Some(c) = self.peek(0) {
            match (c, self.peek(1)) {
                ('/', Some('/')) => self.line_comment(),
                ('/', Some('*')) => self.block_comment(),
                ('"', _) => self.string(0, true),
                ('r' | 'b' | 'c', _) if !self.inside_word() => self.prefixed(),
                ('\'', _) => self.quote(),
                _ => self.emit(1, Layer::Code),
            }
        }
    }

    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn inside_word(&self) -> bool {
        self.at > 0 && is_word(self.chars[self.at - 1])
    }

    /// Moves `n` characters to `layer`; the other layers get blanks.
    fn emit(&mut self, n: usize, layer: Layer) {
        for _ in 0..n {
            let Some(c) = self.peek(0) else { return };
            let blank = if c == '\n' { '\n' } else { ' ' };
            let pick = |mine: Layer| if mine == layer { c } else { blank };
            self.out.code.push(pick(Layer::Code));
            self.out.comments.push(pick(Layer::Comment));
            self.out.literals.push(pick(Layer::Literal));
            self.at += 1;
        }
    }

    fn line_comment(&mut self) {
        while self.peek(0).is_some_and(|c| c != '\n') {
            self.emit(1, Layer::Comment);
        }
    }

    fn block_comment(&mut self) {
        let mut depth = 0;
        while self.peek(0).is_some() {
            match (self.peek(0), self.peek(1)) {
                (Some('/'), Some('*')) => {
                    depth += 1;
                    self.emit(2, Layer::Comment);
                }
                (Some('*'), Some('/')) => {
                    depth -= 1;
                    self.emit(2, Layer::Comment);
                    if depth == 0 {
                        return;
                    }
                }
                _ => self.emit(1, Layer::Comment),
            }
        }
    }

    /// `r"…"`, `r#"…"#`, `b"…"`, `br"…"`, `c"…"`, `b'…'`, or a plain word that begins with such a letter.
    fn prefixed(&mut self) {
        let mut n = 0;
        let mut raw = false;
        while let Some(c @ ('r' | 'b' | 'c')) = self.peek(n) {
            raw |= c == 'r';
            n += 1;
        }
        let mut hashes = 0;
        while raw && self.peek(n + hashes) == Some('#') {
            hashes += 1;
        }
        match self.peek(n + hashes) {
            Some('"') if n <= 2 => {
                self.emit(n + hashes, Layer::Code);
                self.string(hashes, !raw);
            }
            Some('\'') if n == 1 && !raw && self.peek(0) == Some('b') => {
                self.emit(1, Layer::Code);
                self.quote();
            }
            _ => {
                while self.peek(0).is_some_and(is_word) {
                    self.emit(1, Layer::Code);
                }
            }
        }
    }

    /// A string from its opening quote to the closing quote and `hashes` hash signs.
    fn string(&mut self, hashes: usize, escapes: bool) {
        self.emit(1, Layer::Code);
        while let Some(c) = self.peek(0) {
            if c == '\\' && escapes {
                self.emit(2, Layer::Literal);
            } else if c == '"' && (1..=hashes).all(|i| self.peek(i) == Some('#')) {
                self.emit(1 + hashes, Layer::Code);
                return;
            } else {
                self.emit(1, Layer::Literal);
            }
        }
    }

    /// A character literal or a lifetime: only the literal is closed after one character or an escape.
    fn quote(&mut self) {
        if self.peek(1) == Some('\\') {
            self.emit(1, Layer::Code);
            self.emit(2, Layer::Literal);
            while self.peek(0).is_some_and(|c| c != '\'' && c != '\n') {
                self.emit(1, Layer::Literal);
            }
            self.emit(1, Layer::Code);
        } else if self.peek(2) == Some('\'') {
            self.emit(1, Layer::Code);
            self.emit(1, Layer::Literal);
            self.emit(1, Layer::Code);
        } else {
            self.emit(1, Layer::Code);
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// For each line of `code` (the layer of that name) whether it belongs to an item under `#[cfg(test)]`.
pub fn test_lines(code: &str) -> Vec<bool> {
    let lines: Vec<&str> = code.lines().collect();
    let mut test = vec![false; lines.len()];
    let mut at = 0;
    while at < lines.len() {
        if lines[at].trim_start().starts_with("#[cfg(test)]") {
            let end = end_of_item(&lines, at);
            test[at..=end].fill(true);
            at = end;
        }
        at += 1;
    }
    test
}

/// The line on which the item that begins at line `start` ends: by its closing brace, or by a semicolon
/// outside braces.
fn end_of_item(lines: &[&str], start: usize) -> usize {
    let mut depth = 0usize;
    for (number, line) in lines.iter().enumerate().skip(start) {
        for c in line.chars() {
            match c {
                '{' => depth += 1,
                '}' if depth == 1 => return number,
                '}' => depth = depth.saturating_sub(1),
                ';' if depth == 0 => return number,
                _ => {}
            }
        }
    }
    lines.len() - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn squeeze(layer: &str) -> String {
        layer.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn comments_and_strings_leave_the_code() {
        let masked = Masked::split("let a = \"x // y\"; // z \"w\"\nb /* c /* d */ e */ f\n");
        assert_eq!(squeeze(&masked.code), "let a = \" \"; b f");
        assert_eq!(squeeze(&masked.comments), "// z \"w\" /* c /* d */ e */");
        assert_eq!(squeeze(&masked.literals), "x // y");
    }

    #[test]
    fn layers_keep_the_shape_of_the_source() {
        let source =
            "fn f<'a>(x: &'a str) -> char { '\\'' }\nconst S: &str = r#\"a\"b\n\"#;\n'\"';\n";
        let masked = Masked::split(source);
        for layer in [&masked.code, &masked.comments, &masked.literals] {
            assert_eq!(layer.chars().count(), source.chars().count());
            assert_eq!(layer.lines().count(), source.lines().count());
        }
        assert!(masked.code.contains("fn f<'a>(x: &'a str)"));
        assert_eq!(squeeze(&masked.literals), "\\' a\"b \"");
    }

    #[test]
    fn words_that_begin_like_a_prefix_are_code() {
        let masked = Masked::split("crate::brace(br\"x\", b'y', b\"z\", bar, c\"w\", r#type)");
        assert_eq!(squeeze(&masked.literals), "x y z w");
        assert!(masked.code.contains("crate::brace(br"));
        assert!(masked.code.contains("r#type"));
    }

    #[test]
    fn test_items_end_with_their_brace() {
        let code =
            "a\n#[cfg(test)]\nmod tests {\n  fn f() { }\n}\nb\n#[cfg(test)]\nmod other;\nc\n";
        let test = test_lines(code);
        assert_eq!(
            test,
            [false, true, true, true, true, false, true, true, false]
        );
    }
}
