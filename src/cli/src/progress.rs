//! How far long work has come, on standard error: a line that is written over on a terminal, a line a step elsewhere.

use std::io::{self, IsTerminal, Write};

use cgrant_image::{Progress, Step};
use rustix::termios::tcgetwinsize;

use crate::{
    output::{bytes, printable},
    storage::Told,
};

/// Width of a terminal that does not know its own, and least that a line needs.
const WIDTH: usize = 80;
const LEAST: usize = 20;
/// Cells of the bar.
const BAR: u64 = 24;

/// Shows what a job tells. Dropped, it leaves no half line on a terminal.
#[derive(Debug)]
pub(crate) struct Display {
    kind: Kind,
    step: Option<Step>,
    /// What stands on the terminal's line.
    shown: String,
    last: Option<Progress>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Quiet,
    Lines,
    Terminal,
}

impl Display {
    /// For this program's standard error.
    pub(crate) fn new(quiet: bool) -> Self {
        let kind = match (quiet, io::stderr().is_terminal()) {
            (true, _) => Kind::Quiet,
            (false, true) => Kind::Terminal,
            (false, false) => Kind::Lines,
        };
        Self { kind, step: None, shown: String::new(), last: None }
    }

    /// Shows it. Closed standard error is no reason to fail.
    pub(crate) fn tell(&mut self, told: Told) {
        let _ = self.write(told, &mut io::stderr().lock());
    }

    /// A sentence of its own, unless this is quiet.
    pub(crate) fn say(&mut self, sentence: &str) {
        if self.kind != Kind::Quiet {
            self.clear();
            let _ = writeln!(io::stderr(), "{}", printable(sentence));
        }
    }

    fn write(&mut self, told: Told, out: &mut dyn Write) -> io::Result<()> {
        match (self.kind, told) {
            (Kind::Quiet, _) | (_, Told::Asks) => Ok(()),
            (Kind::Lines, Told::Progress(progress)) => {
                if self.step.replace(progress.step) == Some(progress.step) {
                    return Ok(());
                }
                writeln!(out, "{}", label(progress.step))
            }
            // What mmdebstrap says of its steps; all the rest is told if it fails.
            (Kind::Lines, Told::Line(line)) if line.starts_with("I: ") => {
                writeln!(out, "  {}", printable(&line))
            }
            (Kind::Lines, Told::Line(_)) => Ok(()),
            (Kind::Terminal, Told::Progress(progress)) => {
                self.last = Some(progress);
                self.draw(out, &amount(progress))
            }
            (Kind::Terminal, Told::Line(line)) => self.draw(out, &printable(&line)),
        }
    }

    fn draw(&mut self, out: &mut dyn Write, more: &str) -> io::Result<()> {
        let width = tcgetwinsize(io::stderr()).map_or(0, |size| usize::from(size.ws_col));
        let width = if width == 0 { WIDTH } else { width };
        let line = line(self.last, more, width.max(LEAST).saturating_sub(1));
        if line == self.shown {
            return Ok(());
        }
        // Written over from its beginning; what is left of a longer one is cleared.
        write!(out, "\r{line}\x1b[K")?;
        self.shown = line;
        out.flush()
    }

    fn clear(&mut self) {
        if !std::mem::take(&mut self.shown).is_empty() {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.clear();
    }
}

fn label(step: Step) -> &'static str {
    match step {
        Step::Download => "downloading",
        Step::Receive => "receiving",
        Step::Verify => "checking",
        Step::Unpack => "unpacking",
        Step::Copy => "copying",
        Step::Build => "building",
    }
}

fn amount(Progress { step, done, total }: Progress) -> String {
    match (step, total) {
        (Step::Build, Some(total)) => format!("step {done} of {total}"),
        (Step::Build, None) => String::new(),
        (_, Some(total)) => format!("{} of {}", bytes(done), bytes(total)),
        (_, None) => bytes(done),
    }
}

/// What fits on a line of so many cells.
fn line(last: Option<Progress>, more: &str, width: usize) -> String {
    let bar = match last {
        Some(Progress { step, done, total: Some(total) }) if total > 0 => {
            let full = done.min(total).saturating_mul(BAR) / total;
            let cell = |at| if at < full { '#' } else { '.' };
            let percent = done.min(total).saturating_mul(100) / total;
            format!("{} [{}] {percent:3}% ", label(step), (0..BAR).map(cell).collect::<String>())
        }
        Some(Progress { step, .. }) => format!("{} ", label(step)),
        None => String::new(),
    };
    format!("{bar}{more}").chars().take(width).collect::<String>().trim_end().to_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn written(kind: Kind, told: &[Told]) -> String {
        let mut display = Display { kind, step: None, shown: String::new(), last: None };
        let mut out = Vec::new();
        for what in told {
            display.write(what.clone(), &mut out).unwrap();
        }
        // Nothing that a test's own standard error would get.
        display.shown.clear();
        String::from_utf8(out).unwrap()
    }

    fn progress(step: Step, done: u64, total: Option<u64>) -> Told {
        Told::Progress(Progress { step, done, total })
    }

    #[test]
    fn elsewhere_each_step_is_one_line() {
        let told = [
            progress(Step::Download, 0, None),
            progress(Step::Download, 9, None),
            Told::Line("I: extracting\x1b[1m".into()),
            Told::Line("Get:1 x".into()),
            progress(Step::Unpack, 1, Some(2)),
        ];
        assert_eq!(written(Kind::Lines, &told), "downloading\n  I: extracting\u{fffd}[1m\nunpacking\n");
        assert_eq!(written(Kind::Quiet, &told), "");
    }

    #[test]
    fn a_terminals_line_is_written_over() {
        let told = [progress(Step::Unpack, 1, Some(2)), progress(Step::Unpack, 1, Some(2))];
        let text = written(Kind::Terminal, &told);
        assert_eq!(text.matches('\r').count(), 1, "what stands there is not written again: {text:?}");
        assert!(text.contains("unpacking [############............]  50% 1B of 2B"), "{text:?}");
        assert!(!written(Kind::Terminal, &[Told::Line("a\nb\x1b[31m".into())]).contains("\x1b[31m"));
    }

    #[test]
    fn a_line_is_no_longer_than_the_terminal() {
        let last = Progress { step: Step::Copy, done: u64::MAX, total: Some(1) };
        assert_eq!(line(Some(last), &"x".repeat(500), 60).chars().count(), 60);
        assert!(line(Some(last), "", 60).ends_with("100%"));
        assert_eq!(line(None, "", 60), "");
        let unknown = Progress { step: Step::Copy, done: 5, total: Some(0) };
        assert_eq!(line(Some(unknown), "x", 60), "copying x");
    }
}
