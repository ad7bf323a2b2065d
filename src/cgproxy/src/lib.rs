//! `cgproxy`: CGManager's interface inside a container, for programs there that expect it, passed on to whoever serves it
//! outside: the host's broker, CGManager itself, or another proxy.
//!
//! Numbers of processes and users mean something else outside. So what a program calls plainly here is called by its twin
//! there, whose name ends with Scm: the credentials that go with it over a socket are translated by the kernel, which lets root
//! of a container name whoever is in the container and nobody else.
//!
//! What callers send is parsed by the broker's own front ([`front`]), a child without any right; this process plays the
//! engine for it and takes nothing but bounded messages. It has root's rights in its container and none outside.
//!
//! | module | idea |
//! |---|---|
//! | [`args`], [`places`] | the command line; the two sockets |
//! | [`front`] | the child that parses |
//! | [`serve`] | connections and requests |
//! | [`aside`] | what clients can make wait |
//! | [`peer`] | who asks, and whom one may answer for |
//! | [`chain`] | what another proxy passes on |
//! | [`translate`] | calls and results, as words and bytes; pure |
//! | [`upper`], [`exchange`] | the outer socket, and an Scm call over it |

mod args;
mod aside;
mod chain;
mod exchange;
mod front;
mod peer;
mod places;
mod serve;
mod translate;
mod upper;

use std::{fs, io, process::ExitCode};

use cgrant_process::log;
use cgrant_sys::{Clone3, Exit};
use cgrant_wire::boot::LogTarget;
use clap::Parser;
use rustix::{
    fs::{CWD, Mode, OFlags},
    pipe::PipeFlags,
    process::{Signal, getpid, kill_process},
};

use args::Args;
use front::{Front, FrontError};
use places::PlaceError;
use serve::Proxy;

/// Where CGManager's proxy noted its number.
const PIDFILE: &str = "/run/cgproxy.pid";

/// Why there is no proxy.
#[derive(Debug, thiserror::Error)]
enum ProxyError {
    #[error("only root of a container can answer for those who are in it")]
    NotRoot,
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Front(#[from] FrontError),
    #[error("cannot {what}: {source}")]
    System { what: &'static str, source: io::Error },
}

impl ProxyError {
    fn system<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::System { what, source: source.into() }
    }
}

/// The whole program.
pub fn main() -> ExitCode {
    let args = Args::parse();
    if args.check_master {
        return if places::is_served(&args) { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cgproxy: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), ProxyError> {
    if !rustix::process::geteuid().is_root() {
        return Err(ProxyError::NotRoot);
    }
    if args.daemon { in_background(args) } else { serve(args, || stop_if_wanted(args)) }
}

/// Serves; `ready` is called when calls are answered.
fn serve(args: &Args, ready: impl FnOnce()) -> Result<(), ProxyError> {
    log::start(LogTarget::Terminal, "cgproxy");
    let (upper, listener) = places::take(args)?;
    let front = Front::start(args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ProxyError::system("start the runtime"))?;
    let proxy = Proxy::new(front.uid, upper).map_err(ProxyError::system("look at processes"))?;
    tokio::task::LocalSet::new().block_on(&runtime, async {
        let front = front.ready().await?;
        ready();
        proxy.run(front, listener).await.map_err(ProxyError::system("go on"))
    })
}

/// For an init that takes a stopped process for one that is ready.
fn stop_if_wanted(args: &Args) {
    if args.sigstop {
        let _ = kill_process(getpid(), Signal::STOP);
    }
}

/// Serves in a process of its own session, and returns when calls are answered.
fn in_background(args: &Args) -> Result<(), ProxyError> {
    let (wait, tell) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(ProxyError::system("make a pipe"))?;
    let child = Clone3::new()
        .spawn(move || {
            let served = detach().map_err(ProxyError::system("leave the foreground")).and_then(|()| {
                serve(args, move || {
                    let _ = fs::write(PIDFILE, format!("{}\n", std::process::id()));
                    let _ = rustix::io::write(&tell, b"\n");
                    drop(tell);
                    stop_if_wanted(args);
                })
            });
            served.inspect_err(|error| eprintln!("cgproxy: {error}")).map_or(1, |()| 0)
        })
        .map_err(ProxyError::system("start a process"))?;
    let mut byte = [0];
    let read = rustix::io::retry_on_intr(|| rustix::io::read(&wait, &mut byte));
    if read == Ok(1) || matches!(child.pidfd.wait(), Ok(Exit::Code(0))) {
        return Ok(());
    }
    // It has said why.
    Err(ProxyError::System { what: "start in the background", source: io::ErrorKind::Other.into() })
}

fn detach() -> io::Result<()> {
    rustix::process::setsid()?;
    let null = rustix::fs::openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    nix::unistd::dup2_stdin(&null)?;
    Ok(nix::unistd::dup2_stdout(&null)?)
}
