//! How the helper starts: boot message, privileges taken away, loop.

use std::process::ExitCode;

use cgrant_process::{
    boot::{self, BootError, step},
    log,
};
use cgrant_sys::{dir::Dir, seqpacket::Channel};
use cgrant_wire::{
    FdIndex,
    boot::{FromChild, ToChild},
};

use crate::{
    sandbox,
    server::Server,
    state::{Net, Settings},
};

/// What the helper is called in logs.
const PROGRAM: &str = "cgrant-net";

/// Runs the helper until the supervisor or the engine is gone. What it made stays.
pub fn run() -> ExitCode {
    boot::run(PROGRAM, |control| serve(start(control)?))
}

fn serve(mut server: Server) -> Result<(), BootError> {
    server.tell_supervisor(&FromChild::Ready);
    step("serving", server.run())
}

fn start(control: &Channel) -> Result<Server, BootError> {
    let helpers = |message| if let ToChild::Net(boot) = message { Some(boot) } else { None };
    let (boot, fds) = boot::receive(control, helpers)?;
    let mut fds: Vec<_> = fds.into_iter().map(Some).collect();
    log::start(boot.log, PROGRAM);
    let mut take = |index: FdIndex| {
        let fd = fds.get_mut(usize::from(index.0)).and_then(Option::take);
        fd.ok_or_else(|| BootError::NotStarted("a descriptor lacks in the boot message".into()))
    };
    let engine = step("the engine's channel", Channel::from_fd(take(boot.engine)?))?;
    let directory = step("the helper's directory", Dir::from_fd(take(boot.directory)?))?;
    let host = step("the directory of all instances", Dir::from_fd(take(boot.host)?))?;
    step("giving up privileges", sandbox::confine())?;
    let settings = Settings {
        instance: boot.instance,
        path: boot.path.into(),
        uid: boot.uid,
        gid: boot.gid,
        domain: boot.domain,
        dns: boot.dns,
        may_forward_singly: true,
    };
    let net = step("the host's network", Net::open(settings, directory, host))?;
    let control = step("supervisor", control.try_clone())?;
    step("channels", Server::new(net, control, engine))
}
