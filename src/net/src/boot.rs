//! How the helper starts: boot message, privileges taken away, loop.

use std::{os::fd::OwnedFd, process::ExitCode};

use cgrant_sys::{dir::Dir, inherited, seqpacket::Channel};
use cgrant_wire::{
    FdIndex,
    boot::{CONTROL_FD, FromChild, LogTarget, NetBoot, ToChild},
};
use tracing_subscriber::{Layer, filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    sandbox,
    server::Server,
    state::{Net, Settings},
};

/// Why the helper can't start or go on. The sentence goes to the administrator.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("cgrant-net is started by cgrantd, not by hand: {0}")]
    NotStarted(String),
    #[error("{what}: {reason}")]
    Step { what: &'static str, reason: String },
}

/// Turns a failure of `what` into a sentence.
fn step<T, E: std::fmt::Display>(what: &'static str, result: Result<T, E>) -> Result<T, BootError> {
    result.map_err(|error| BootError::Step { what, reason: error.to_string() })
}

/// Runs the helper until the supervisor or the engine is gone. What it made stays.
pub fn run() -> ExitCode {
    let control = match inherited::take(CONTROL_FD).and_then(Channel::from_fd) {
        Ok(control) => control,
        Err(error) => {
            eprintln!("{}", BootError::NotStarted(error.to_string()));
            return ExitCode::FAILURE;
        }
    };
    match start(&control).and_then(serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the network helper can't go on");
            if let Ok(bytes) = cgrant_wire::encode(&FromChild::Failed(error.to_string())) {
                let _ = control.send(&bytes, &[]);
            }
            ExitCode::FAILURE
        }
    }
}

fn serve(mut server: Server) -> Result<(), BootError> {
    server.tell_supervisor(&FromChild::Ready);
    step("serving", server.run())
}

fn receive_boot(control: &Channel) -> Result<(NetBoot, Vec<Option<OwnedFd>>), BootError> {
    let no_boot = |reason: String| BootError::NotStarted(reason);
    let received = control
        .receive()
        .map_err(|error| no_boot(error.to_string()))?
        .ok_or_else(|| no_boot("no boot message".into()))?;
    match cgrant_wire::decode(&received.bytes) {
        Ok(ToChild::Net(boot)) => Ok((boot, received.fds.into_iter().map(Some).collect())),
        _ => Err(no_boot("the first message is no boot message of a network helper".into())),
    }
}

fn start(control: &Channel) -> Result<Server, BootError> {
    let (boot, mut fds) = receive_boot(control)?;
    log_to(boot.log);
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

fn log_to(target: LogTarget) {
    let level = LevelFilter::INFO;
    if target == LogTarget::Journal
        && let Ok(journal) = tracing_journald::layer()
    {
        tracing_subscriber::registry()
            .with(journal.with_syslog_identifier("cgrant-net".into()).with_filter(level))
            .init();
        return;
    }
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(lines.with_filter(level)).init();
}
