//! cgrantd: takes the sockets and directories, starts the engine, the fronts and the network helper,
//! and keeps them running.
//!
//! It runs as root with one thread and without a runtime. It reads the command line, `cgrantd.toml`, and
//! bounded messages of its own children; nothing that a user sends reaches it. It opens what the others need
//! and hands it to them as descriptors. It touches no cgroup and no process but its own children.

mod accounts;
mod args;
mod background;
mod backoff;
mod child;
mod config;
mod dirs;
mod error;
mod legacy;
mod lock;
mod log;
mod ready;
mod scope;
mod settings;
mod socket;
mod supervise;
mod watchdog;

use std::{os::fd::OwnedFd, path::Path, process::ExitCode};

// Its own children, as everything that starts programs of the broker's has them.
use cgrant_process::program as process;
use cgrant_sys::privilege::{self, Capability};
use cgrant_wire::boot::FrontKind;
use clap::Parser;
use rustix::{
    fs::Mode,
    process::{Resource, Rlimit},
};

use crate::{
    accounts::{FrontAccount, front_account},
    args::{Args, Bus},
    dirs::Access,
    error::SupervisorError,
    process::Program,
    ready::{Announcer, Listener},
    settings::Settings,
    supervise::{Directories, Prepared, Programs, Supervisor},
};

/// The host's users.
const PASSWD: &str = "/etc/passwd";
/// As many descriptors as an engine with many thousand grants uses; more only costs memory in the kernel's table.
const DESCRIPTORS: u64 = 262_144;

/// What the children keep of root's capabilities, or need to get rid of them; the supervisor has no others either.
/// The engine's are listed where it confines itself; `SETUID`, `SETGID` and `SYS_ADMIN` are for writing id maps, the last also for
/// limiting devices; `MKNOD` is for nodes of devices, `SETPCAP` for dropping; those that begin with `NET` are the network
/// helper's.
const CAPABILITIES: [Capability; 15] = [
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_FOWNER,
    Capability::CAP_KILL,
    Capability::CAP_MKNOD,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_SYS_NICE,
    Capability::CAP_SYS_PTRACE,
];

/// Entry point of the program.
pub fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(SupervisorError::BackgroundFailed | SupervisorError::NotInOrder) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cgrantd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), SupervisorError> {
    if args.check_config {
        return check_config(args);
    }
    if args.print_config {
        print!("{}", Settings::new(args)?.print()?);
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        return Err(SupervisorError::NotRoot);
    }
    if args.shutdown {
        raise_descriptor_limit();
        let ended = scope::end_all(&Program::find("cgrant-scope")?, &args.instance, args.timeout)?;
        return if ended { Ok(()) } else { Err(SupervisorError::NotInOrder) };
    }
    let settings = Settings::new(args)?;
    if args.foreground {
        return serve(settings, Listener::Foreground);
    }
    background::run(|listener| match serve(settings, listener) {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("cgrantd: {error}");
            1
        }
    })
}

fn check_config(args: &Args) -> Result<(), SupervisorError> {
    let settings = Settings::new(args)?;
    let on_v1 = config::controllers_on_v1().map_err(SupervisorError::system("reading /proc/self/cgroup"))?;
    for ceiling in config::check(&settings.config_dir, &on_v1)? {
        eprintln!("cgrantd: {ceiling}");
    }
    println!("The configuration in {} is good.", settings.config_dir.display());
    Ok(())
}

/// Prepares everything, then supervises until the end.
fn serve(settings: Settings, listener: Listener) -> Result<(), SupervisorError> {
    let signals = supervise::block_signals().map_err(SupervisorError::system("sigprocmask"))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    raise_descriptor_limit();
    privilege::drop_capabilities(&CAPABILITIES).map_err(SupervisorError::system("dropping capabilities"))?;
    privilege::set_no_new_privs().map_err(SupervisorError::system("no_new_privs"))?;
    let log = log::target();
    log::start(log);
    let inherited = socket::inherited()?;
    let runtime = dirs::open_or_create(&settings.runtime_dir, Access::Public)?;
    let _lock = lock::lock_instance(&runtime, &settings.runtime_dir, "lock")?;
    let directories = open_directories(&settings)?;
    let name = format!("instance-{}.lock", settings.instance.as_str());
    let _name = lock::lock_instance(&directories.ids, settings.config.ids.record.as_path(), &name)?;
    let programs = find_programs()?;
    let fronts = fronts(&settings)?;
    let net = account(&settings, settings.config.accounts.net.as_str(), 3)?;
    // Before any socket listens, as nobody can have a request then.
    let scope =
        programs.scope.as_ref().map(|helper| scope::obtain(helper, &settings.instance)).transpose()?;
    let listeners = if inherited.is_empty() { vec![bind(&settings)?] } else { inherited };
    let legacy = legacy::listen(&settings.legacy_socket)?;
    let metrics = vec![socket::bind(&settings.metrics_socket(), true)?];
    let prepared =
        Prepared { settings, directories, programs, listeners, legacy, metrics, fronts, net, scope, log };
    Supervisor::new(prepared, Announcer::new(listener), &signals)?.run()
}

fn open_directories(settings: &Settings) -> Result<Directories, SupervisorError> {
    let run_dir = settings.run_dir();
    let run: OwnedFd = dirs::open_or_create(&run_dir, Access::Private)?;
    lock::lock_directory(&run, &run_dir)?;
    let state: OwnedFd = dirs::open_or_create(&settings.state_dir, Access::Private)?;
    lock::lock_directory(&state, &settings.state_dir)?;
    dirs::open_or_create(&settings.public_dir(), Access::Public)?;
    let config = if settings.config_dir_named {
        dirs::open(&settings.config_dir)?
    } else {
        dirs::open_or_create(&settings.config_dir, Access::Public)?
    };
    Ok(Directories {
        config,
        state,
        run,
        ids: dirs::open_or_create(settings.config.ids.record.as_path(), Access::Private)?,
        ids_run: dirs::open_or_create(settings.config.ids.live.as_path(), Access::Private)?,
        net: dirs::open_or_create(&settings.net_dir(), Access::Private)?,
        net_host: dirs::open_or_create(&settings.net_host_dir(), Access::Private)?,
    })
}

fn find_programs() -> Result<Programs, SupervisorError> {
    Ok(Programs {
        engine: Program::find("cgrant-engine")?,
        front: Program::find("cgrant-front")?,
        net: Program::find("cgrant-net")?,
        scope: scope::systemd_runs().then(|| Program::find("cgrant-scope")).transpose()?,
    })
}

/// The fronts that are to run, each with its account.
fn fronts(settings: &Settings) -> Result<Vec<(FrontKind, FrontAccount)>, SupervisorError> {
    let accounts = &settings.config.accounts;
    let mut fronts = vec![(FrontKind::Socket, account(settings, accounts.socket_front.as_str(), 1)?)];
    match settings.bus {
        Bus::None => {
            tracing::info!("no bus, so polkit can't be asked: where policy says \"ask\" the answer is no")
        }
        _ => fronts.push((FrontKind::Bus, account(settings, accounts.bus_front.as_str(), 2)?)),
    }
    Ok(fronts)
}

/// The account of a process without privilege: the user `name`, else an id of the broker's own.
fn account(settings: &Settings, name: &str, offset: u32) -> Result<FrontAccount, SupervisorError> {
    // The pool's first block is the broker's own and is granted to nobody.
    let base = settings.config.ids.pool.own_block().map_or(0, |block| block.first());
    Ok(front_account(name, Path::new(PASSWD), base.saturating_add(offset))?)
}

fn bind(settings: &Settings) -> Result<socket::Listener, SupervisorError> {
    Ok(socket::bind(&settings.socket, !settings.socket_named)?)
}

/// Raises the soft limit to what may be had; the children inherit it. Where the host allows less, less must do.
fn raise_descriptor_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let wanted = limit.maximum.map_or(DESCRIPTORS, |most| most.min(DESCRIPTORS));
    if limit.current.is_some_and(|now| now < wanted) {
        let _ = rustix::process::setrlimit(
            Resource::Nofile,
            Rlimit { current: Some(wanted), maximum: limit.maximum },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // What the unit bounds the processes to is lacking without a word where it is needed.
    #[test]
    fn the_unit_bounds_the_broker_to_its_own_capabilities() {
        let unit = include_str!("../../../systemd/cgrantd.service");
        let bound: Vec<&str> =
            unit.lines().filter_map(|line| line.strip_prefix("CapabilityBoundingSet=")).collect();
        assert_eq!(bound, [CAPABILITIES.map(|capability| capability.to_string()).join(" ")]);
    }
    /// Settings that `systemd-analyze security` judges a unit by, as of systemd 252.
    const HARDENING: [&str; 38] = [
        "AmbientCapabilities",
        "CapabilityBoundingSet",
        "Delegate",
        "DeviceAllow",
        "DynamicUser",
        "IPAddressDeny",
        "KeyringMode",
        "LockPersonality",
        "MemoryDenyWriteExecute",
        "NoNewPrivileges",
        "NotifyAccess",
        "PrivateDevices",
        "PrivateMounts",
        "PrivateNetwork",
        "PrivateTmp",
        "PrivateUsers",
        "ProcSubset",
        "ProtectClock",
        "ProtectControlGroups",
        "ProtectHome",
        "ProtectHostname",
        "ProtectKernelLogs",
        "ProtectKernelModules",
        "ProtectKernelTunables",
        "ProtectProc",
        "ProtectSystem",
        "RemoveIPC",
        "RestrictAddressFamilies",
        "RestrictNamespaces",
        "RestrictRealtime",
        "RestrictSUIDSGID",
        "RootDirectory",
        "RootImage",
        "SupplementaryGroups",
        "SystemCallArchitectures",
        "SystemCallFilter",
        "UMask",
        "User",
    ];

    #[test]
    fn units_have_every_hardening_or_say_why_not() {
        for (name, unit) in [
            ("cgrantd", include_str!("../../../systemd/cgrantd.service")),
            ("cgrant-shutdown", include_str!("../../../systemd/cgrant-shutdown.service")),
            ("cgrant-departed", include_str!("../../../systemd/cgrant-departed.service")),
            ("cgrant-disk", include_str!("../../../systemd/cgrant-disk.service")),
            ("cgrant-autostart", include_str!("../../../systemd/cgrant-autostart.service")),
        ] {
            let words = unit.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '=');
            let named: Vec<&str> = words.filter_map(|word| Some(word.split_once('=')?.0)).collect();
            let lacking: Vec<_> = HARDENING.into_iter().filter(|setting| !named.contains(setting)).collect();
            assert!(lacking.is_empty(), "{name}.service has no word of {lacking:?}");
        }
    }
}
