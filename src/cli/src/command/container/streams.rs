//! What a program of a container's gets as its standard streams, and what passes between them and the caller's.
//!
//! A terminal of the caller's is none of them: whoever has one open can read what is typed there, change how it works and write on
//! it, also when the command has long ended, and a program of the container's may stay for as long as it likes. In a terminal's
//! place it gets a pipe. Files and pipes of the caller's it gets as they are.

use std::{
    fs::File,
    io::{self, IsTerminal, Read, Write},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{SigSet, Signal},
};

use crate::output::printable;

/// How much is passed on at once, in bytes, and how often before others have their turn: together what a pipe holds.
const PIECE: usize = 16 * 1024;
const PIECES: usize = 4;

/// The streams of a program, until it has them.
pub(super) struct Streams {
    given: [OwnedFd; 3],
    relay: Relay,
}

/// What is passed on while it runs.
#[derive(Default)]
pub(super) struct Relay {
    input: Option<Input>,
    outputs: Vec<Output>,
}

struct Input {
    pipe: File,
    /// What was typed and is not taken yet.
    pending: Vec<u8>,
}

struct Output {
    pipe: File,
    to: Box<dyn Write>,
}

impl Streams {
    /// The caller's own, but for terminals.
    pub(super) fn of_caller() -> io::Result<Self> {
        let mut relay = Relay::default();
        let input = match io::stdin().is_terminal() {
            true => relay.type_in()?,
            false => io::stdin().as_fd().try_clone_to_owned()?,
        };
        let output = match io::stdout().is_terminal() {
            true => relay.show_on(Box::new(io::stdout()))?,
            false => io::stdout().as_fd().try_clone_to_owned()?,
        };
        let errors = match io::stderr().is_terminal() {
            true => relay.show_on(Box::new(io::stderr()))?,
            false => io::stderr().as_fd().try_clone_to_owned()?,
        };
        Ok(Self { given: [input, output, errors], relay })
    }

    /// What the program gets.
    pub(super) fn given(&self) -> [BorrowedFd<'_>; 3] {
        self.given.each_ref().map(AsFd::as_fd)
    }

    /// The program has them: only it has, from now on.
    pub(super) fn begin(self) -> Relay {
        self.relay
    }
}

impl Relay {
    fn type_in(&mut self) -> io::Result<OwnedFd> {
        // In the background a terminal is not read: that fails then, where otherwise it would stop this process.
        [Signal::SIGTTIN].into_iter().collect::<SigSet>().thread_block()?;
        let (inner, pipe) = io::pipe()?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        self.input = Some(Input { pipe: File::from(OwnedFd::from(pipe)), pending: Vec::new() });
        Ok(inner.into())
    }

    fn show_on(&mut self, to: Box<dyn Write>) -> io::Result<OwnedFd> {
        let (pipe, inner) = io::pipe()?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        self.outputs.push(Output { pipe: File::from(OwnedFd::from(pipe)), to });
        Ok(inner.into())
    }

    /// What to wait for.
    pub(super) fn watched<'r>(&'r self, input: &'r io::Stdin) -> Vec<PollFd<'r>> {
        let mut fds: Vec<_> =
            self.outputs.iter().map(|output| PollFd::new(output.pipe.as_fd(), PollFlags::POLLIN)).collect();
        match &self.input {
            Some(Input { pipe, pending }) if pending.is_empty() => {
                // Of the pipe, that nobody reads it any more.
                fds.push(PollFd::new(pipe.as_fd(), PollFlags::empty()));
                fds.push(PollFd::new(input.as_fd(), PollFlags::POLLIN));
            }
            Some(Input { pipe, .. }) => fds.push(PollFd::new(pipe.as_fd(), PollFlags::POLLOUT)),
            None => {}
        }
        fds
    }

    /// Passes on what can be without waiting, but for the caller's own terminal. A stream that ends, on whichever side, is closed.
    pub(super) fn go_on(&mut self) {
        self.outputs.retain_mut(|output| output.go_on().is_ok());
        if let Some(input) = &mut self.input
            && input.go_on().is_err()
        {
            self.input = None;
        }
    }
}

/// The end of a stream is one error of many.
fn ended() -> io::Error {
    io::ErrorKind::UnexpectedEof.into()
}

impl Output {
    fn go_on(&mut self) -> io::Result<()> {
        let mut buffer = vec![0; PIECE];
        for _ in 0..PIECES {
            let length = match self.pipe.read(&mut buffer) {
                Ok(0) => return Err(ended()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                length => length?,
            };
            self.to.write_all(buffer.get(..length).unwrap_or_default())?;
            self.to.flush()?;
        }
        Ok(())
    }
}

impl Input {
    fn go_on(&mut self) -> io::Result<()> {
        let stdin = io::stdin();
        if self.pending.is_empty() {
            is_ready(self.pipe.as_fd(), PollFlags::empty())?;
            if !is_ready(stdin.as_fd(), PollFlags::POLLIN)? {
                return Ok(());
            }
            let mut buffer = vec![0; PIECE];
            let length = rustix::io::read(&stdin, &mut buffer)?;
            buffer.truncate(length);
            self.pending = buffer;
            if self.pending.is_empty() {
                return Err(ended());
            }
        }
        match self.pipe.write(&self.pending) {
            Ok(taken) => drop(self.pending.drain(..taken.min(self.pending.len()))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }
}

/// An error if the other end is closed.
fn is_ready(fd: BorrowedFd<'_>, events: PollFlags) -> io::Result<bool> {
    let mut fds = [PollFd::new(fd, events)];
    poll(&mut fds, PollTimeout::ZERO)?;
    let [found] = fds.map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
    if found.contains(PollFlags::POLLERR) { Err(ended()) } else { Ok(!found.is_empty()) }
}

/// Where a program that works for this one says what went wrong: a line or two. What is more than a pipe holds is lost.
pub(super) struct Errors {
    pipe: File,
    given: OwnedFd,
}

impl Errors {
    pub(super) fn new() -> io::Result<Self> {
        let (pipe, given) = io::pipe()?;
        rustix::io::ioctl_fionbio(&pipe, true)?;
        rustix::io::ioctl_fionbio(&given, true)?;
        Ok(Self { pipe: File::from(OwnedFd::from(pipe)), given: given.into() })
    }

    /// What the program gets.
    pub(super) fn given(&self) -> BorrowedFd<'_> {
        self.given.as_fd()
    }

    /// Shows what it has said by now, without anything that a terminal would obey.
    pub(super) fn show(self) {
        let mut said = Vec::new();
        // It ends by "would block" or not, as long as one has it open.
        let _ = self.pipe.take((PIECE * PIECES) as u64).read_to_end(&mut said);
        for line in String::from_utf8_lossy(&said).lines() {
            let _ = writeln!(io::stderr(), "{}", printable(line));
        }
    }
}
