//! `logs`: what a container has logged.
//!
//! Its own `journalctl` shows the journal of one that runs. Of one that has stopped this machine's does, in the storage namespace,
//! where the files of the container can be read, but without any right of that namespace: the files are what the container made
//! of them. Without a journal there is what was printed on the console.

use std::{
    ffi::OsString,
    fs::File,
    io::{self, IsTerminal, Read},
    os::fd::AsFd,
    process::{Command, Stdio},
};

use cgrant_container::system::{Control, ControlError, ExecSpec, Refused, read_log};
use cgrant_sys::{Dir, privilege};
use rustix::process::fchdir;

use super::{Found, streams::Errors};
use crate::{
    Client,
    args::LogsArgs,
    error::Failure,
    exit, output,
    storage::{JobFailure, Storage, Worker},
};

/// What shows a journal.
const PROGRAM: &str = "journalctl";
/// Most that is read of a console's log.
const ALL: usize = usize::MAX;
/// Lines that tell why a container ended.
const LAST: usize = 10;
/// How much is passed on at once, in bytes.
const PIECE: usize = 16 * 1024;

pub(super) fn logs(client: &Client, args: &LogsArgs) -> Result<u8, Failure> {
    let found = Found::new(&args.container.name, "show the logs of")?;
    if args.console {
        return console(&found, args);
    }
    let shown = match found.run().and_then(|run| Control::connect(&run)) {
        Ok(control) => of_running(&found, control, args)?,
        Err(ControlError::NotRunning) => of_stopped(client, &found, args)?,
        Err(error) => return found.asked(Err(error)),
    };
    shown.map_or_else(|| console(&found, args), Ok)
}

/// What journalctl shall do.
fn words(args: &LogsArgs) -> Vec<OsString> {
    let mut words = vec![OsString::from("--no-pager")];
    words.extend(args.follow.then(|| "--follow".into()));
    words.extend(args.lines.map(|lines| format!("--lines={lines}").into()));
    words.extend(args.since.as_ref().map(|since| format!("--since={since}").into()));
    words
}

/// The exit code; `None` if it has no journalctl.
fn of_running(found: &Found, control: Control, args: &LogsArgs) -> Result<Option<u8>, Failure> {
    let machine = |source| Failure::Machine { doing: "pass on what is logged", source };
    let argv = std::iter::once(PROGRAM.into()).chain(words(args)).collect();
    let spec = ExecSpec { argv, ..ExecSpec::default() };
    let nothing = File::open("/dev/null").map_err(machine)?;
    // Through a pipe: no program of the container's gets the caller's terminal.
    let (mut pipe, output) = io::pipe().map_err(machine)?;
    let said = Errors::new().map_err(machine)?;
    let executed = match found.asked(control.exec(&spec, [nothing.as_fd(), output.as_fd(), said.given()])) {
        Err(Failure::Control { source: ControlError::Refused(Refused::Paused), .. }) => {
            return Err(Failure::Refused(format!(
                "cannot {}: the container is paused; 'cgrant logs --console' shows what it printed, 'cgrant resume' lets it go on",
                found.doing
            )));
        }
        Err(failure) if failure.code() == exit::NOT_FOUND => return Ok(None),
        executed => executed?,
    };
    drop(output);
    pass_on(&mut pipe)?;
    let ended = found.asked(executed.wait());
    said.show();
    match ended {
        Err(failure) if failure.code() == exit::NOT_FOUND => Ok(None),
        finished => Ok(Some(finished?.0.status())),
    }
}

/// The exit code; `None` if it keeps no journal, or nothing here can show it.
fn of_stopped(client: &Client, found: &Found, args: &LogsArgs) -> Result<Option<u8>, Failure> {
    let root = found.config.root.directory();
    let (name, words) = (found.name.clone(), words(&LogsArgs { follow: false, ..args.clone() }));
    let storage = Storage::begin(found.doing.clone(), move |worker: &Worker| {
        let container = worker.store.container(&name)?;
        match container.open_below(&[root, "var", "log", "journal"]) {
            Ok(journal) => show(&journal, &words),
            Err(_) => Ok(None),
        }
    })?;
    let session = client.connect(&found.doing)?;
    storage.run(&session, &found.name, found.range(), &mut |_| ())
}

/// As the owner of the files, without capabilities.
fn show(journal: &Dir, words: &[OsString]) -> Result<Option<u8>, JobFailure> {
    let failed = |error: io::Error| JobFailure::machine(format!("{PROGRAM} can't be run: {error}"));
    fchdir(journal).map_err(|errno| failed(errno.into()))?;
    privilege::drop_capabilities(&[]).and_then(|()| privilege::set_no_new_privs()).map_err(failed)?;
    let mut command = Command::new(PROGRAM);
    match command.arg("--directory=.").args(words).stdin(Stdio::null()).status() {
        Ok(status) => {
            Ok(Some(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(exit::MACHINE)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// What was printed on the console.
fn console(found: &Found, args: &LogsArgs) -> Result<u8, Failure> {
    let machine = |source| Failure::Machine { doing: "read what was printed on the console", source };
    let Ok(run) = found.run() else { return Ok(exit::DONE) };
    // Before the log is read: what is printed meanwhile is shown twice, perhaps, but nothing is lost.
    let control = Control::connect(&run);
    let stream = match (args.follow, &control) {
        (true, Ok(control)) => Some(found.asked(control.console(false))?),
        _ => None,
    };
    let text = read_log(&run, ALL).map_err(machine)?;
    pass_on(&mut newest(&text, args.lines))?;
    if let Some(stream) = stream {
        pass_on(&mut File::from(stream))?;
    }
    Ok(exit::DONE)
}

/// The newest lines of a text.
fn newest(text: &[u8], lines: Option<u32>) -> &[u8] {
    let Some(lines) = lines else { return text };
    let Ok(lines) = usize::try_from(lines) else { return text };
    let whole = text.strip_suffix(b"\n").unwrap_or(text);
    let ends = whole.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at);
    let first = match lines.checked_sub(1) {
        None => text.len(),
        Some(others) => ends.skip(others).map(|at| at.saturating_add(1)).next().unwrap_or(0),
    };
    text.get(first..).unwrap_or_default()
}

/// To standard output; a terminal gets nothing that it would obey.
fn pass_on(from: &mut dyn Read) -> Result<(), Failure> {
    let mut plain = io::stdout().is_terminal().then(Plain::default);
    let mut buffer = vec![0; PIECE];
    loop {
        let length = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(source) => return Err(Failure::Machine { doing: "pass on what is logged", source }),
        };
        let bytes = buffer.get(..length).unwrap_or_default();
        match &mut plain {
            Some(plain) => output::write(&plain.of(bytes))?,
            None => output::write(bytes)?,
        }
    }
}

/// Takes out of a text what a terminal would obey: control characters but for ends of lines and tabs, and control
/// sequences (ECMA-48, 5.4 and 5.6).
#[derive(Debug, Default)]
struct Plain {
    within: Within,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Within {
    #[default]
    Text,
    /// After ESC.
    Escape,
    /// After ESC [.
    Sequence,
    /// After ESC ] and the like: until BEL or ESC \.
    String,
    /// After the first byte of a control character in UTF-8 (U+0080 to U+009F), or of another one.
    Latin,
}

impl Plain {
    fn of(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut kept = Vec::with_capacity(bytes.len());
        for byte in bytes {
            self.take(*byte, &mut kept);
        }
        kept
    }

    fn take(&mut self, byte: u8, kept: &mut Vec<u8>) {
        use Within as W;
        self.within = match (self.within, byte) {
            (W::String, 7) => W::Text,
            (W::Text | W::Latin | W::String | W::Sequence, 0x1b) => W::Escape,
            (W::Escape, b'[') => W::Sequence,
            (W::Escape, b']' | b'P' | b'X' | b'^' | b'_') => W::String,
            // Intermediate bytes.
            (W::Escape, 0x20..=0x2f) => W::Escape,
            (W::Escape, _) => W::Text,
            (W::Sequence, 0x40..=0x7e) => W::Text,
            (W::Sequence, _) => W::Sequence,
            (W::String, _) => W::String,
            (W::Text, 0xc2) => W::Latin,
            (W::Latin, 0x80..=0x9f) => W::Text,
            (within @ (W::Text | W::Latin), byte) => {
                if within == W::Latin {
                    kept.push(0xc2);
                }
                if matches!(byte, b'\n' | b'\t') || (byte >= b' ' && byte != 0x7f) {
                    kept.push(byte);
                }
                W::Text
            }
        };
    }
}

/// The last lines on a container's console, without what a terminal would obey.
pub(super) fn last_lines(found: &Found) -> String {
    let Ok(text) = found.run().map_err(drop).and_then(|run| read_log(&run, ALL).map_err(drop)) else {
        return String::new();
    };
    let text = Plain::default().of(&text);
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(LAST);
    let last = lines.get(from..).unwrap_or_default();
    last.iter().map(|line| output::printable(line)).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_lines_are_whole_ones() {
        let text = b"one\ntwo\nthree\n";
        for (lines, left) in
            [(None, 0), (Some(0), text.len()), (Some(1), 8), (Some(2), 4), (Some(3), 0), (Some(9), 0)]
        {
            assert_eq!(newest(text, lines), &text[left..], "{lines:?}");
        }
        assert_eq!(newest(b"one\ntwo", Some(1)), b"two");
        assert_eq!(newest(b"", Some(1)), b"");
    }

    #[test]
    fn a_terminal_gets_text_alone() {
        let all = "a\x1b[1;31mred\x1b[0m\r\n\x1b]0;title\x07b\x1b]2;x\x1b\\c\x08\x1b(Bd\u{9b}31me\u{e9}\u{a9}\tf\x7f";
        let kept = "ared\nbcd31me\u{e9}\u{a9}\tf";
        assert_eq!(String::from_utf8(Plain::default().of(all.as_bytes())).unwrap(), kept);
        // Wherever it is cut.
        let mut plain = Plain::default();
        let pieces: Vec<u8> = all.bytes().flat_map(|byte| plain.of(&[byte])).collect();
        assert_eq!(String::from_utf8(pieces).unwrap(), kept);
    }
}
