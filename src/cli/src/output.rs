//! Results, as columns for people or JSON for programs.

use std::io::{self, Write};

use comfy_table::{Table, presets};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{args::Format, error::Failure, value};

/// A result: what people see of it, and the whole of it.
pub(crate) trait Report: Serialize {
    /// Column heads; without any there is nothing to see but the rows.
    fn heads(&self) -> &[&'static str] {
        &[]
    }
    /// One row a line.
    fn rows(&self) -> Vec<Vec<String>>;
}

/// One object: a name and a value a row.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct Fields(pub(crate) Map<String, Value>);

impl Report for Fields {
    fn rows(&self) -> Vec<Vec<String>> {
        self.0.iter().map(|(name, value)| vec![name.clone(), value::text(value)]).collect()
    }
}

/// A list of objects: one a row, with the columns `heads`, which are their fields in capitals.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(crate) struct List {
    #[serde(skip)]
    heads: &'static [&'static str],
    items: Vec<Map<String, Value>>,
}

impl List {
    /// A list whose items have the fields that `heads` names.
    pub(crate) fn new(heads: &'static [&'static str], items: impl IntoIterator<Item = Value>) -> Self {
        let items = items.into_iter().filter_map(|item| match item {
            Value::Object(fields) => Some(fields),
            _ => None,
        });
        Self { heads, items: items.collect() }
    }
}

impl Report for List {
    fn heads(&self) -> &[&'static str] {
        self.heads
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let cell = |item: &Map<String, Value>, head: &str| {
            item.get(&head.to_lowercase()).map(value::text).unwrap_or_default()
        };
        self.items.iter().map(|item| self.heads.iter().map(|head| cell(item, head)).collect()).collect()
    }
}

/// Writes a result to standard output.
pub(crate) fn print(format: Format, report: &impl Report) -> Result<(), Failure> {
    let text = match format {
        Format::Json => json(report)?,
        Format::Table => columns(report),
    };
    write(text.as_bytes())
}

/// A result as columns for people.
pub(crate) fn columns(report: &impl Report) -> String {
    table(report.heads(), report.rows())
}

/// Writes bytes to standard output and flushes them.
pub(crate) fn write(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// One JSON document and an end of line.
pub(crate) fn json(value: &impl Serialize) -> Result<String, Failure> {
    let mut text = serde_json::to_string(value).map_err(io::Error::from)?;
    text.push('\n');
    Ok(text)
}

fn table(heads: &[&'static str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    if !heads.is_empty() {
        table.set_header(heads.iter().copied());
    }
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut text: String =
        table.lines().flat_map(|line| [line.trim_end().to_owned(), "\n".to_owned()]).collect();
    if heads.is_empty() && text == "\n" {
        text.clear();
    }
    text
}

/// A cell can't break the table or colour the terminal, whatever somebody named a cgroup.
pub(crate) fn printable(cell: &str) -> String {
    cell.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Bytes as people read them: `1.5G`.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["B", "K", "M", "G", "T"];
    let mut value = number as f64;
    let mut units = UNITS.iter();
    let mut unit = units.next().copied().unwrap_or_default();
    for larger in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "B" { format!("{number}B") } else { format!("{value:.1}{unit}") }
}

/// A time, given in microseconds since 1970, as people read it: `2026-11-22 02:15:07 UTC`.
pub(crate) fn time(microseconds: u64) -> String {
    let seconds = microseconds / 1_000_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// Year, month and day of a number of days since 1970. Years are counted from the first of March, so that the day that
/// some have more is the last of theirs.
fn date(days: u64) -> (u64, u64, u64) {
    // From 0000-03-01, in periods of 400 years, which are all of one length.
    let days = days + 719_468;
    let (period, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    // March to July and August to December have the same 153 days.
    let month = (5 * day + 2) / 153;
    let (year, day) = (400 * period + year, day - (153 * month + 2) / 5 + 1);
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_have_no_trailing_blanks() {
        let rows = vec![vec!["a".to_owned(), "x".to_owned()], vec!["longer".to_owned(), String::new()]];
        assert_eq!(table(&["NAME", "OF"], rows), "NAME    OF\na       x\nlonger\n");
    }

    #[test]
    fn an_empty_list_has_its_heads() {
        assert_eq!(table(&["NAME"], Vec::new()), "NAME\n");
        assert_eq!(table(&[], Vec::new()), "");
    }

    #[test]
    fn cells_cannot_break_the_table() {
        assert_eq!(table(&["N"], vec![vec!["a\nb\x1b[1m".to_owned()]]), "N\na\u{fffd}b\u{fffd}[1m\n");
    }

    #[test]
    fn a_list_shows_the_fields_that_its_heads_name() {
        let list =
            List::new(&["NAME", "CGROUP-ID"], [serde_json::json!({"name": "x", "cgroup-id": 7, "more": 1})]);
        assert_eq!(table(list.heads(), list.rows()), "NAME  CGROUP-ID\nx     7\n");
        assert_eq!(json(&list).ok().as_deref(), Some("[{\"cgroup-id\":7,\"more\":1,\"name\":\"x\"}]\n"));
    }

    #[test]
    fn bytes_have_units() {
        assert_eq!(bytes(0), "0B");
        assert_eq!(bytes(1023), "1023B");
        assert_eq!(bytes(1536), "1.5K");
        assert_eq!(bytes(3 << 40), "3.0T");
        assert_eq!(bytes(u64::MAX), "16777216.0T");
    }

    #[test]
    fn times_are_dates_in_utc() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00 UTC"),
            (951_782_399, "2000-02-28 23:59:59 UTC"),
            (951_782_400, "2000-02-29 00:00:00 UTC"),
            (1_798_761_599, "2026-12-31 23:59:59 UTC"),
            (4_107_542_400, "2100-03-01 00:00:00 UTC"),
        ] {
            assert_eq!(time(seconds * 1_000_000 + 999_999), text);
        }
        assert!(time(u64::MAX).ends_with(" UTC"));
    }
}
