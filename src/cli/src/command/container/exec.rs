//! `exec`, `shell` and `console`: processes and terminals of a running container.

use std::{
    env,
    ffi::{OsStr, OsString},
    io::{self, IsTerminal},
    os::{fd::AsFd, unix::ffi::OsStrExt},
};

use cgrant_container::system::{ExecSpec, Executed, Request, Terminal};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::{
        signal::Signal,
        signalfd::{SfdFlags, SignalFd},
    },
};

use super::{
    Found,
    streams::{Relay, Streams},
    terminal::{self, Raw},
};
use crate::{args::ExecArgs, command::supervise, error::Failure, exit};

/// What is passed on to a command that has the caller's streams.
const PASSED_ON: [Signal; 6] =
    [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGTERM, Signal::SIGUSR1, Signal::SIGUSR2];

pub(super) fn exec(args: ExecArgs) -> Result<u8, Failure> {
    let found = Found::new(&args.container.name, "run a command in")?;
    let both = io::stdin().is_terminal() && io::stdout().is_terminal();
    let terminal = args.terminal || (both && !args.no_terminal);
    let spec = ExecSpec {
        argv: args.command,
        environment: environment(&found.config.environment, &args.env, terminal),
        directory: args.workdir,
        user: args.user,
        terminal: terminal.then(terminal::size),
        detached: false,
    };
    run(&found, &spec)
}

pub(super) fn shell(name: &str, user: Option<String>) -> Result<u8, Failure> {
    let found = Found::new(name, "open a shell in")?;
    // The user's own shell, as a login shell: what its name begins with a hyphen for.
    const LOGIN: &str = "exec \"${SHELL:-/bin/sh}\" -l";
    let spec = ExecSpec {
        argv: ["/bin/sh", "-c", LOGIN].map(OsString::from).into(),
        environment: environment(&found.config.environment, &[], true),
        directory: None,
        user,
        terminal: io::stdin().is_terminal().then(terminal::size),
        detached: false,
    };
    run(&found, &spec)
}

fn run(found: &Found, spec: &ExecSpec) -> Result<u8, Failure> {
    let control = found.control()?;
    // Before there is anybody to pass them on to: none is lost.
    let pending = if spec.terminal.is_none() { Some(hold_signals()?) } else { None };
    let streams = Streams::of_caller()
        .map_err(|source| Failure::Machine { doing: "make the command's streams", source })?;
    let executed = found.asked(control.exec(spec, streams.given()))?;
    let relay = streams.begin();
    match executed.terminal.as_ref().map(|master| master.try_clone()) {
        Some(master) => {
            let master = master.map_err(|source| Failure::Machine { doing: "use the terminal", source })?;
            let raw = Raw::begin();
            let resized = |size| drop(executed.resize(size));
            terminal::relay(&master, &resized, None)
                .map_err(|source| Failure::Machine { doing: "use the terminal", source })?;
            drop(raw);
        }
        None => pending.map_or(Ok(()), |pending| pass_on(&executed, &pending, relay))?,
    }
    Ok(found.asked(executed.wait())?.0.status())
}

fn signals_failed<E: Into<io::Error>>(source: E) -> Failure {
    Failure::Machine { doing: "receive signals", source: source.into() }
}

fn hold_signals() -> Result<SignalFd, Failure> {
    let signals = supervise::served(PASSED_ON);
    signals.thread_block().map_err(signals_failed)?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).map_err(signals_failed)
}

/// Signals, and what is typed and shown, until the process has ended.
fn pass_on(executed: &Executed, pending: &SignalFd, mut relay: Relay) -> Result<(), Failure> {
    let input = io::stdin();
    loop {
        let mut fds = vec![
            PollFd::new(executed.as_fd(), PollFlags::POLLIN),
            PollFd::new(pending.as_fd(), PollFlags::POLLIN),
        ];
        fds.extend(relay.watched(&input));
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(signals_failed(errno)),
        }
        let has_ended = fds.first().and_then(PollFd::any).unwrap_or(false);
        drop(fds);
        relay.go_on();
        if has_ended {
            return Ok(());
        }
        while let Ok(Some(info)) = pending.read_signal() {
            // What comes of it is seen in how it ends.
            let _ = executed.signal(info.ssi_signo.cast_signed());
        }
    }
}

/// What the container's are, the terminal's kind, and what was asked for: the latter wins. A name without value is taken over from here, if
/// it is set.
fn environment(own: &[(String, String)], asked: &[OsString], terminal: bool) -> Vec<(OsString, OsString)> {
    let kind = env::var_os("TERM").filter(|_| terminal).map(|kind| ("TERM".into(), kind));
    let mut variables: Vec<(OsString, OsString)> =
        own.iter().map(|(name, value)| (name.into(), value.into())).collect();
    variables.retain(|(name, _)| kind.is_none() || name != "TERM");
    variables.extend(kind);
    for text in asked {
        let mut parts = text.as_bytes().splitn(2, |byte| *byte == b'=');
        let name = OsStr::from_bytes(parts.next().unwrap_or_default());
        let value = match parts.next() {
            Some(value) => Some(OsStr::from_bytes(value).to_owned()),
            None => env::var_os(name),
        };
        variables.retain(|(known, _)| known != name);
        variables.extend(value.map(|value| (name.to_owned(), value)));
    }
    variables
}

pub(super) fn console(name: &str) -> Result<u8, Failure> {
    let found = Found::new(name, "connect to the console of")?;
    let control = found.control()?;
    let resizing = found.control()?;
    let stream = found.asked(control.console(true))?;
    let resized = |size: Terminal| drop(resizing.tell(&Request::Resize(size)));
    if io::stdin().is_terminal() {
        resized(terminal::size());
    }
    let raw = Raw::begin();
    let ended = terminal::relay(&stream, &resized, Some(terminal::LEAVE));
    drop(raw);
    ended.map_err(|source| Failure::Machine { doing: "use the terminal", source })?;
    Ok(exit::DONE)
}
