//! Runs a command under limits, and shows how it bears them: a video encoder that is to leave the desktop usable.
//!
//!     limited --memory 1G --cpu 50% -- ffmpeg -i holiday.mov holiday.webm

use std::{
    ffi::OsString,
    io::Write,
    os::{fd::AsFd, unix::process::ExitStatusExt},
    process::{Child, Command, ExitCode, Stdio},
    time::Duration,
};

use cgrant_proto::{
    AttachTo, CgroupProxy, CreateGrant, Endpoint, Error, GrantProxy, ManagerProxy, ReleaseGrant, connect,
    names::BUS_NAME,
};
use clap::Parser;
use futures_util::StreamExt;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::{
    signal::unix::{SignalKind, signal},
    task::spawn_blocking,
    time::interval,
};
use zbus::{DeserializeDict, Fd, Type};

/// It waits for a line, so that it is in its grant before it becomes the command; without one, because this program has died, it
/// ends.
const STAGE: &str = "read -r go && exec \"$@\" </dev/null";

/// Runs a command under limits, and shows how it bears them
#[derive(Debug, Parser)]
struct Options {
    /// A socket's path, system, or bus:ADDRESS [default: $CGRANT_SOCKET, the broker's socket, the system bus]
    #[arg(long)]
    broker: Option<String>,
    /// The broker's name on a bus
    #[arg(long, default_value = BUS_NAME)]
    bus_name: String,
    /// Name of the grant; the broker makes one up
    #[arg(long, default_value = "")]
    name: String,
    /// Most memory: 1G
    #[arg(long)]
    memory: Option<String>,
    /// Most processor time: 50% of one
    #[arg(long)]
    cpu: Option<String>,
    /// Seconds between two looks
    #[arg(long, default_value_t = 5)]
    every: u32,
    /// What is to run
    #[arg(required = true, last = true)]
    command: Vec<OsString>,
}

/// What is shown of what a grant uses. What the host's kernel does not give is absent.
#[derive(Debug, DeserializeDict, Type)]
#[zbus(signature = "a{sv}", rename_all = "kebab-case")]
struct Stat {
    memory_current: Option<u64>,
    cpu_usage_usec: Option<u64>,
    oom_kills: Option<u64>,
    pressure: Option<Vec<Pressure>>,
}

/// Resource, kind, averages over 10, 60 and 300 seconds in hundredths of a percent, microseconds in all.
type Pressure = (String, String, u32, u32, u32, u64);

fn main() -> ExitCode {
    program(std::env::args_os())
}

/// The program, with these arguments.
pub fn program(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let options = match Options::try_parse_from(arguments) {
        Ok(options) => options,
        Err(error) => error.exit(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(Failure::from).and_then(|runtime| runtime.block_on(run(&options))) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("limited: {error}");
            ExitCode::FAILURE
        }
    }
}

type Failure = Box<dyn std::error::Error>;

/// Runs it to its end; its status.
async fn run(options: &Options) -> Result<u8, Failure> {
    let endpoint = options.broker.as_deref().map_or_else(Endpoint::find, Endpoint::parse)?;
    let connection = connect(&endpoint).await?;
    let to = options.bus_name.as_str();
    let manager = ManagerProxy::builder(&connection).destination(to).build().await?;
    let limits: Vec<_> = [("memory.max", &options.memory), ("cpu.max", &options.cpu)]
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value.clone()?)))
        .collect();
    // The lifetime is the default, the connection's: the grant ends with this program, however that ends.
    let wish = CreateGrant::new().no_range().limits(&limits).pressure(&["cpu", "memory", "io"]);
    let (path, _, _) = manager.create_grant(&options.name, &wish).await?;
    let shown: Vec<_> = limits.iter().map(|(key, value)| format!(" {key}={value}")).collect();
    println!("granted {path}{}", shown.concat());
    let grant = GrantProxy::builder(&connection).destination(to).path(&path).build().await?;
    let cgroup = CgroupProxy::builder(&connection).destination(to).path(&path).build().await?;
    let (mut oom, mut pressure) = (cgroup.receive_oom().await?, cgroup.receive_pressure().await?);
    let mut ended = grant.receive_ended().await?;
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);

    let mut child = start(&cgroup, &options.command).await?;
    let mut command = spawn_blocking(move || child.wait());
    let mut looks = interval(Duration::from_secs(options.every.max(1).into()));
    let status = loop {
        tokio::select! {
            status = &mut command => break status??,
            Some(news) = oom.next() => println!("out of memory: {} killed so far", news.args()?.kills),
            Some(news) = pressure.next() => println!("pressure: {}", news.args()?.resource),
            Some(news) = ended.next() => println!("the grant has ended: {}", news.args()?.reason),
            _ = looks.tick() => show(&cgroup).await?,
            // This ends the command, and that everything else.
            _ = interrupt.recv() => cgroup.kill().await?,
            _ = terminate.recv() => cgroup.kill().await?,
        }
    };
    show(&cgroup).await?;
    // What the command left behind ends with it.
    grant.release(&ReleaseGrant::new().kill()).await?;
    let status = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default());
    println!("ended: status {status}");
    Ok(u8::try_from(status).unwrap_or(u8::MAX))
}

/// Starts the command within the grant.
async fn start(cgroup: &CgroupProxy<'_>, command: &[OsString]) -> Result<Child, Failure> {
    let mut child =
        Command::new("sh").args(["-c", STAGE, "sh"]).args(command).stdin(Stdio::piped()).spawn()?;
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())?;
    let attached = cgroup.attach(Fd::from(pidfd.as_fd()), &AttachTo::new()).await;
    // Closed behind the line, or without one: then the stage ends.
    let go = child.stdin.take();
    match (attached, go) {
        (Ok(_), Some(mut go)) => go.write_all(b"go\n")?,
        (Ok(_), None) => {}
        (Err(error), go) => {
            drop(go);
            child.wait()?;
            return Err(error.into());
        }
    }
    Ok(child)
}

/// Shows what the grant uses and what it waits for.
async fn show(cgroup: &CgroupProxy<'_>) -> Result<(), Failure> {
    let answer = cgroup.inner().call_method("Stat", &()).await.map_err(Error::from)?;
    let stat: Stat = answer.body().deserialize()?;
    let waits: Vec<_> = stat
        .pressure
        .iter()
        .flatten()
        .filter(|(_, kind, ..)| kind == "some")
        .map(|(resource, _, ten, ..)| format!("{resource} {}.{:02}%", ten / 100, ten % 100))
        .collect();
    println!(
        "usage: memory {}M, cpu {}ms, killed {}; waits for {}",
        stat.memory_current.unwrap_or(0) >> 20,
        stat.cpu_usage_usec.unwrap_or(0) / 1000,
        stat.oom_kills.unwrap_or(0),
        if waits.is_empty() { "what is not known".to_owned() } else { waits.join(", ") }
    );
    Ok(())
}
