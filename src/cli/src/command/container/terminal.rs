//! The caller's terminal beside one of a container's: bytes go through as they are, sizes are passed on.

use std::{
    fs::File,
    io::{self, IsTerminal, Read, Write},
    os::fd::{AsFd, OwnedFd},
};

use cgrant_container::system::Terminal;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::{SigSet, Signal},
        signalfd::{SfdFlags, SignalFd},
    },
};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The key that leaves a console: ctrl-].
pub(super) const LEAVE: u8 = 0x1d;
/// How much is passed on at once, in bytes.
const PIECE: usize = 16 * 1024;
/// Size of a terminal where the caller has none.
const USUAL: Terminal = Terminal { columns: 80, rows: 24 };

/// The caller's terminal without any processing of its own, until this is dropped.
pub(super) struct Raw(Option<Termios>);

impl Raw {
    /// Nothing changes where standard input is no terminal.
    pub(super) fn begin() -> Self {
        let input = io::stdin();
        let Ok(before) = tcgetattr(&input) else { return Self(None) };
        let mut raw = before.clone();
        raw.make_raw();
        let changed = tcsetattr(&input, OptionalActions::Now, &raw);
        Self(changed.is_ok().then_some(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // A terminal that is gone needs nothing.
            let _ = tcsetattr(io::stdin(), OptionalActions::Flush, before);
        }
    }
}

/// Size of the caller's terminal.
pub(super) fn size() -> Terminal {
    let sizes = [tcgetwinsize(io::stdin()), tcgetwinsize(io::stdout())];
    let known = sizes.into_iter().flatten().find(|size| size.ws_col > 0 && size.ws_row > 0);
    known.map_or(USUAL, |size| Terminal { columns: size.ws_col, rows: size.ws_row })
}

/// Passes bytes on in both directions until the other end is closed, or the key to leave was pressed.
pub(super) fn relay(other: &OwnedFd, resized: &dyn Fn(Terminal), leave: Option<u8>) -> io::Result<()> {
    let signals: SigSet = [Signal::SIGWINCH].into_iter().collect();
    signals.thread_block()?;
    let changes = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let input = io::stdin();
    let mut typing = Some(input.as_fd());
    let mut other_end = File::from(other.try_clone()?);
    let mut buffer = vec![0; PIECE];
    loop {
        let idle = PollFlags::empty();
        let mut fds = [
            PollFd::new(other.as_fd(), PollFlags::POLLIN),
            PollFd::new(changes.as_fd(), PollFlags::POLLIN),
            PollFd::new(
                typing.unwrap_or(other.as_fd()),
                if typing.is_some() { PollFlags::POLLIN } else { idle },
            ),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let [printed, resizes, typed] = fds.map(|fd| fd.any().unwrap_or(false));
        if resizes && let Ok(Some(_)) = changes.read_signal() {
            resized(size());
        }
        if printed && !show(&mut other_end, &mut buffer)? {
            return Ok(());
        }
        if typed && typing.is_some() {
            match rustix::io::read(&input, &mut buffer)? {
                0 => {
                    typing = None;
                    end_of_input(&mut other_end)?;
                }
                length => {
                    let bytes = buffer.get(..length).unwrap_or_default();
                    let until = leave.and_then(|key| bytes.iter().position(|byte| *byte == key));
                    let sent = bytes.get(..until.unwrap_or(length)).unwrap_or_default();
                    if !send(&mut other_end, sent)? || until.is_some() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

/// Shows what there is; `false` at the end. A terminal whose last user is gone reads as EIO.
fn show(other: &mut File, buffer: &mut [u8]) -> io::Result<bool> {
    match other.read(buffer) {
        Ok(0) => Ok(false),
        Ok(length) => {
            let mut out = io::stdout().lock();
            out.write_all(buffer.get(..length).unwrap_or_default())?;
            out.flush()?;
            Ok(true)
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc_eio) if libc_eio == Errno::EIO as i32) => {
            Ok(false)
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
            Ok(true)
        }
        Err(error) => Err(error),
    }
}

/// `false` if nobody takes it any more.
fn send(other: &mut File, mut bytes: &[u8]) -> io::Result<bool> {
    while !bytes.is_empty() {
        match other.write(bytes) {
            Ok(length) => bytes = bytes.get(length..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(other.as_fd(), PollFlags::POLLOUT)];
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            Err(_) => return Ok(false),
        }
    }
    Ok(true)
}

/// What a terminal understands as the end: ctrl-d at the beginning of a line.
fn end_of_input(other: &mut File) -> io::Result<()> {
    if io::stdin().is_terminal() { Ok(()) } else { send(other, &[4]).map(drop) }
}
