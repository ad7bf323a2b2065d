//! The helper's side of the proxy: starts it, feeds it, starts it again.

use std::{
    convert::Infallible,
    ffi::{CStr, CString},
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    time::Duration,
};

use cgrant_sys::{
    Channel, Clone3, Pidfd,
    pidfd::Signal,
    privilege::close_fds_from,
    seqpacket::{self, ChannelError},
    signals,
};
use cgrant_wire::boot::CONTROL_FD;
use nix::fcntl::{FcntlArg, fcntl};
use rustix::{
    fs::{CWD, Mode, OFlags},
    net::sockopt::{Timeout, set_socket_timeout},
};

use super::{
    ROLE,
    message::{Lead, PortId, ToProxy},
};
use crate::backoff::Backoff;

/// Longest that the helper waits for a proxy that reads or answers nothing; it is replaced then.
const PATIENCE: Duration = Duration::from_secs(1);
/// Descriptors that the child moves out of the way get numbers from here on.
const ASIDE: RawFd = 10;
/// Status of a child that could not execute the program.
const NOT_STARTED: i32 = 127;

/// The proxy is this very program, with another argument.
const PROGRAM: &CStr = c"/proc/self/exe";

/// What the proxy becomes: an account without rights.
#[derive(Debug, Clone)]
pub struct ProxySettings {
    /// Its uid, not 0.
    pub uid: u32,
    /// Its gid, not 0.
    pub gid: u32,
}

/// A proxy that runs.
#[derive(Debug)]
struct Running {
    channel: Channel,
    pidfd: Pidfd,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing that it serves is wanted any more; it has no state. It is ours, so the number can't have been given anew.
        let _ = self.pidfd.send_signal(Signal::KILL);
        let _ = self.pidfd.wait();
    }
}

/// The proxy of an instance: runs while it serves a port.
#[derive(Debug)]
pub struct Proxy {
    settings: ProxySettings,
    last: u64,
    served: usize,
    running: Option<Running>,
    backoff: Backoff,
    /// Runs down to the next attempt while there is none running that should.
    timer: Option<OwnedFd>,
}

impl Proxy {
    /// None runs yet.
    #[must_use]
    pub fn new(settings: ProxySettings) -> Self {
        Self { settings, last: 0, served: 0, running: None, backoff: Backoff::new(), timer: None }
    }

    /// Serves a port. A proxy that can't be started is tried again later, and nobody else has to know: what it
    /// serves is held by a socket all the same.
    pub fn serve(&mut self, socket: BorrowedFd<'_>, lead: &Lead) -> Option<PortId> {
        self.last = self.last.checked_add(1)?;
        self.served = self.served.saturating_add(1);
        let id = PortId(self.last);
        // While an attempt is due, that one will tell everything.
        if self.running.is_none() && self.timer.is_none() {
            self.start();
        }
        self.tell(&ToProxy::Serve(id, lead.clone()), &[socket]);
        Some(id)
    }

    /// A port leads elsewhere.
    pub fn change(&mut self, id: PortId, lead: &Lead) {
        self.tell(&ToProxy::Change(id, lead.clone()), &[]);
    }

    /// A port is no longer served. With the last one the proxy ends.
    pub fn end(&mut self, id: PortId) {
        self.served = self.served.saturating_sub(1);
        if self.served > 0 {
            self.tell(&ToProxy::End(id), &[]);
            self.wait_for_end(id);
        } else {
            self.running = None;
            self.timer = None;
        }
    }

    /// What is to be watched for being readable.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let process = self.running.iter().map(|running| running.pidfd.as_fd());
        process.chain(self.timer.iter().map(AsFd::as_fd)).collect()
    }

    /// One of the descriptors is readable. Says whether a proxy is to be started again now ([`Proxy::restart`]).
    pub fn ready(&mut self, fd: RawFd) -> bool {
        if self.timer.as_ref().is_some_and(|timer| timer.as_fd().as_raw_fd() == fd) {
            self.timer = None;
            return self.served > 0;
        }
        if let Some(running) = self.running.take_if(|running| running.pidfd.as_fd().as_raw_fd() == fd) {
            let end = running.pidfd.wait();
            tracing::warn!(?end, "the loopback proxy has ended");
            self.later();
        }
        false
    }

    /// Starts a new proxy with everything that it is to serve.
    pub fn restart<'a>(&mut self, leads: impl Iterator<Item = (PortId, BorrowedFd<'a>, &'a Lead)>) {
        self.start();
        for (id, socket, lead) in leads {
            self.tell(&ToProxy::Serve(id, lead.clone()), &[socket]);
        }
    }

    fn start(&mut self) {
        match ProxySettings::start() {
            Ok(running) => {
                self.running = Some(running);
                self.backoff.started();
                let (uid, gid) = (self.settings.uid, self.settings.gid);
                self.tell(&ToProxy::Become { uid, gid }, &[]);
            }
            Err(error) => {
                tracing::error!(%error, "cannot start the loopback proxy");
                self.later();
            }
        }
    }

    /// Sends, if there is somebody to send to; one that does not listen is replaced.
    fn tell(&mut self, message: &ToProxy, sockets: &[BorrowedFd<'_>]) {
        let Some(running) = &self.running else { return };
        let sent = cgrant_wire::encode(message)
            .map_err(|error| ChannelError::Io(io::Error::other(error)))
            .and_then(|bytes| running.channel.send(&bytes, sockets));
        if let Err(error) = sent {
            tracing::error!(%error, "the loopback proxy does not listen");
            self.running = None;
            self.later();
        }
    }

    /// Until it has closed its socket, which keeps others from the port as well as ours does.
    fn wait_for_end(&mut self, id: PortId) {
        let Some(running) = &self.running else { return };
        let answer = running.channel.receive().ok().flatten();
        let ended = answer.and_then(|answer| cgrant_wire::decode::<PortId>(&answer.bytes).ok());
        if ended != Some(id) {
            tracing::error!("the loopback proxy does not close a port");
            self.running = None;
            self.later();
        }
    }

    /// Tries again after a while, the longer the more often it was in vain.
    fn later(&mut self) {
        match crate::backoff::timer(self.backoff.ended()) {
            Ok(timer) => self.timer = Some(timer),
            Err(error) => tracing::error!(%error, "no timer for the next proxy for [::1]"),
        }
    }
}

impl ProxySettings {
    fn start() -> io::Result<Running> {
        let (channel, theirs) = seqpacket::pair()?;
        set_socket_timeout(&channel, Timeout::Send, Some(PATIENCE))?;
        set_socket_timeout(&channel, Timeout::Recv, Some(PATIENCE))?;
        let child = Clone3::new().spawn(|| Self::become_it(&theirs))?;
        Ok(Running { channel, pidfd: child.pidfd })
    }

    /// The child's part; returns only when it failed.
    fn become_it(control: &Channel) -> i32 {
        match Self::execute(control) {
            Ok(never) => match never {},
            Err(error) => {
                eprintln!("cgrant-net: cannot start the proxy: {error}");
                NOT_STARTED
            }
        }
    }

    fn execute(control: &Channel) -> io::Result<Infallible> {
        signals::reset()?;
        let null: OwnedFd =
            rustix::fs::openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        nix::unistd::dup2_stdin(&null)?;
        let control = rustix::io::fcntl_dupfd_cloexec(control.as_fd(), ASIDE)?;
        close_fds_from(CONTROL_FD, &[control.as_raw_fd()])?;
        // Everything from 3 up to here is closed, so the lowest free number is 3; this copy stays open at exec.
        if fcntl(&control, FcntlArg::F_DUPFD(CONTROL_FD))? != CONTROL_FD {
            return Err(rustix::io::Errno::BADF.into());
        }
        let role = CString::new(ROLE)?;
        let environment: [&CStr; 0] = [];
        Ok(nix::unistd::execve(PROGRAM, &[c"cgrant-net", role.as_c_str()], &environment)?)
    }
}
