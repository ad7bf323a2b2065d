//! What is wrong with a configuration file, and where, so that it can be mended without searching.

use std::{fmt, ops::Range};

use serde::{Deserializer, de, de::DeserializeOwned};

/// A mistake in a file. The file was refused whole.
///
/// Displayed as `FILE:LINE:COLUMN: what is wrong`, the line, and carets under the place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileError {
    /// The file, as its reader named it.
    pub file: String,
    /// The line, from 1.
    pub line: usize,
    /// The character in the line, from 1.
    pub column: usize,
    /// What is wrong and what was expected.
    pub message: String,
    /// The line's text.
    pub excerpt: String,
    /// How many characters are meant, at least 1.
    pub width: usize,
}

/// Longest line that is shown, characters; of a longer one the part around the place.
const MAX_EXCERPT: usize = 100;

impl FileError {
    /// A mistake at these bytes of the text.
    pub fn at(file: &str, text: &str, span: &Range<usize>, message: impl Into<String>) -> Self {
        let start = floor_boundary(text, span.start);
        let before = text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let rest = text.get(line_start..).unwrap_or_default();
        let line = rest.lines().next().unwrap_or_default();
        let place = text.get(line_start..start).unwrap_or_default().chars().count();
        let end = floor_boundary(text, span.end.max(start)).min(line_start + line.len());
        let width = text.get(start..end).unwrap_or_default().chars().count().max(1);
        let skipped = if place + width > MAX_EXCERPT { place.saturating_sub(MAX_EXCERPT / 4) } else { 0 };
        let excerpt: String = line.chars().skip(skipped).take(MAX_EXCERPT).map(printable).collect();
        Self {
            file: file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: place + 1,
            message: message.into(),
            excerpt,
            width: width.min(MAX_EXCERPT.saturating_sub(place - skipped).max(1)),
        }
        .shifted(skipped)
    }

    /// Remembers in the excerpt that its beginning was left out.
    fn shifted(mut self, skipped: usize) -> Self {
        if skipped > 0 {
            self.excerpt = format!("…{}", self.excerpt.chars().skip(1).collect::<String>());
        }
        self
    }

    /// Where in the excerpt the carets begin, characters.
    fn indent(&self) -> usize {
        let place = self.column.saturating_sub(1);
        if place + self.width > MAX_EXCERPT && self.excerpt.starts_with('…') {
            MAX_EXCERPT / 4
        } else {
            place
        }
    }
}

/// A control character would move the carets, or do worse to a terminal.
fn printable(c: char) -> char {
    if c.is_control() { ' ' } else { c }
}

fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = self.line.to_string();
        writeln!(f, "{}:{}:{}: {}", self.file, self.line, self.column, self.message)?;
        writeln!(f, "  {number} | {}", self.excerpt)?;
        let (gutter, indent) = (" ".repeat(number.len()), " ".repeat(self.indent()));
        write!(f, "  {gutter} | {indent}{}", "^".repeat(self.width))
    }
}

impl std::error::Error for FileError {}

/// Reads TOML; every mistake names its place.
pub(crate) fn read<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, FileError> {
    toml::from_str(text).map_err(|error| {
        let span = error.span().unwrap_or(0..0);
        let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
        FileError::at(file, text, &span, message)
    })
}

/// Reads a value that is a text of some form. The check is made inside the visitor, because TOML's reader
/// knows only there which element of a list it is at.
pub(crate) fn text<'de, D, T, E, F>(from: D, expected: &'static str, parse: F) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    E: fmt::Display,
    F: FnOnce(&str) -> Result<T, E>,
{
    struct Visitor<F>(&'static str, F);
    impl<T, E: fmt::Display, F: FnOnce(&str) -> Result<T, E>> de::Visitor<'_> for Visitor<F> {
        type Value = T;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
        fn visit_str<X: de::Error>(self, text: &str) -> Result<T, X> {
            (self.1)(text).map_err(X::custom)
        }
    }
    from.deserialize_str(Visitor(expected, parse))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn carets_stand_under_the_place() {
        let text = "a = 1\n\tgrüße = [nope]\n";
        let at = text.find("nope").unwrap();
        let error = FileError::at("x.toml", text, &(at..at + 4), "no such thing");
        assert_eq!(
            error.to_string(),
            "x.toml:2:11: no such thing\n  2 |  grüße = [nope]\n    |           ^^^^"
        );
    }

    #[test]
    fn a_place_far_to_the_right_is_shown() {
        let text = format!("a = [{}here]", "1, ".repeat(200));
        let at = text.find("here").unwrap();
        let shown = FileError::at("x", &text, &(at..at + 4), "m").to_string();
        let lines: Vec<Vec<char>> = shown.lines().map(|line| line.chars().collect()).collect();
        let caret = lines[2].iter().position(|c| *c == '^').unwrap();
        assert_eq!(lines[1][caret..caret + 4].iter().collect::<String>(), "here", "{shown}");
    }

    proptest! {
        #[test]
        fn any_place_in_any_text_can_be_shown(text in "\\PC{0,300}(\n\\PC{0,20})?", a in 0usize..400, b in 0usize..400) {
            let error = FileError::at("f", &text, &(a.min(b)..a.max(b)), "m");
            prop_assert_eq!(error.to_string().lines().count(), 3);
        }
    }
}
