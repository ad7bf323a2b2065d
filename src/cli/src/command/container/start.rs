//! `start` and `launch`: a monitor, a grant that it holds, and the container in it.
//!
//! The monitor is forked before a session is connected, and makes the namespaces. One call to the broker makes the grant, with
//! limits, ids, links and the monitor in it; a second one gives the image's files with the container's ids. On a host with
//! cgroup v1 the stage is another process, and a call more puts the monitor beside it. In a container the link is made here.

use std::{
    io::{self, Write},
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use cgrant_container::{
    Network, Placement, Session, SessionError,
    inner::Kept,
    system::{Begun, Granted, Monitor, Namespaces},
};
use cgrant_proto::{AttachTo, CreateGrant, Lifetime, MapDirectory, Target};
use cgrant_sys::Dir;
use zbus::{Fd, OwnedFd, OwnedObjectPath};

use super::{
    Codes, Found, RUN,
    ask::{self, Patience},
    config::{Config, Root},
    create, device, nesting, remove,
};
use crate::{
    Client,
    args::{Dns, LaunchArgs},
    command::{inner, link, run},
    error::{Doing, Failure},
    storage,
};

/// How long the grant of a monitor that has ended may take to end, too. As long waits who has a grant of the name that is no
/// container's, before it is refused.
const SUCCESSION: Duration = Duration::from_secs(5);

pub(super) fn launch(client: &Client, args: &LaunchArgs) -> Result<(), Failure> {
    create::make(client, &args.new)?;
    let name = &args.new.name;
    let found = Found::new(name, "launch")?;
    if let Err(failure) = begin(client, &found).and_then(|begun| go_on(client, &found, begun)) {
        // Nothing is left of it. Why it failed is what matters, not what else may fail now.
        let _ = remove::remove(client, "remove what was made", name, found.range());
        return Err(failure);
    }
    if args.wait.wait { ask::until_running(&found, Patience::default()) } else { Ok(()) }
}

/// The exit code.
pub(super) fn start(client: &Client, names: &[String], wait: bool) -> u8 {
    let mut codes = Codes::default();
    // All monitors first: each makes its namespaces meanwhile, and none may be forked once a session is connected.
    let begin = |name: &String| {
        let found = Found::new(name, "start")?;
        begin(client, &found).map(|begun| (found, begun))
    };
    let begun: Vec<(Found, Begun)> = names.iter().filter_map(|name| codes.note(begin(name))).collect();
    let mut started = Vec::new();
    for (found, begun) in begun {
        started.extend(codes.note(go_on(client, &found, begun)).map(|()| found));
    }
    if wait {
        for found in &started {
            codes.note(ask::until_running(found, Patience::default()));
        }
    }
    codes.first
}

/// Forks the monitor.
fn begin(client: &Client, found: &Found) -> Result<Begun, Failure> {
    let mut spec = found.config.spec(&found.name)?;
    found.config.check_place(client)?;
    if found.config.nesting && found.config.blocks > 0 {
        spec.broker = nesting::sockets(&client.endpoint);
    }
    make_run(found)
        .map_err(|source| Failure::Machine { doing: "make the container's run directory", source })?;
    Monitor::begin(&spec).map_err(|source| Failure::Start { doing: found.doing.clone(), source })
}

/// The monitor's directory, the account's own.
fn make_run(found: &Found) -> io::Result<()> {
    let directory: Dir = found.store.container(&found.name).map_err(io::Error::other)?;
    match directory.make_dir(RUN, 0o700) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn go_on(client: &Client, found: &Found, begun: Begun) -> Result<(), Failure> {
    let failed = |source| Failure::Start { doing: found.doing.clone(), source };
    let session = client.connect(&found.doing)?;
    let namespaces = begun.namespaces().map_err(failed)?;
    let bridge = found.config.link.as_ref().and_then(|link| link.bridge.as_deref());
    let grant = grant(&session, found, &namespaces, inner::is_own(&client.endpoint, bridge))?;
    if namespaces.is_apart() {
        let monitor = named(&namespaces)?;
        attach(&session, &grant.path, monitor, Target::Monitor).doing(|| found.doing.clone())?;
    }
    let payload = nesting::is_within_reach(&grant.payload).then(|| grant.payload.as_fd());
    if payload.is_none() {
        let stage = namespaces.stage().map_err(unnamed)?;
        attach(&session, &grant.path, stage, Target::Payload).doing(|| found.doing.clone())?;
    }
    let mounts = map_all(&session, &grant.path, &namespaces, &found.config);
    let mounts = mounts.doing(|| found.doing.clone())?;
    let mounts: Vec<_> = mounts.iter().map(AsFd::as_fd).collect();
    let devices = device::make(&session, &grant.path, namespaces.devices()).doing(|| found.doing.clone())?;
    device::allow(&session, &grant.path, &found.config.devices, namespaces.devices())
        .doing(|| found.doing.clone())?;
    let devices: Vec<_> = devices.iter().map(|node| node.as_ref().map(AsFd::as_fd)).collect();
    let granted = Granted {
        payload,
        mounts: &mounts,
        devices: &devices,
        kept: &grant.kept,
        placement: &grant.placement,
    };
    namespaces.start(&granted).map_err(failed)?;
    if payload.is_none()
        && let Err(error) = nesting::end_in_order(&found.name)
    {
        let name = &found.name;
        let _ = writeln!(
            io::stderr(),
            "cgrant: stop {name} before you power this container off; its systemd can't be told to: {error}"
        );
    }
    if found.config.started && found.config.news.is_none() {
        return Ok(());
    }
    let mut config = found.config.clone();
    (config.started, config.news) = (true, None);
    config.write(&found.store, &found.name).map_err(|error| found.failed(error))
}

/// What the broker gave.
struct Grant {
    path: OwnedObjectPath,
    payload: OwnedFd,
    placement: Placement,
    /// What was made here, and is there as long as its monitor has it open.
    kept: Vec<Kept>,
}

fn grant(
    session: &Session,
    found: &Found,
    namespaces: &Namespaces,
    is_own_link: bool,
) -> Result<Grant, Failure> {
    let config = &found.config;
    let limits: Vec<(String, String)> =
        config.limits.iter().map(|(key, value)| (key.clone(), value.clone())).collect();
    let stage = namespaces.stage().map_err(unnamed)?;
    let mut options = CreateGrant::new()
        .lifetime(Lifetime::Process(named(namespaces)?))
        .userns(namespaces.user())
        .stage(stage)
        .range_name(found.range())
        .limits(&limits);
    options = match config.nesting {
        true => options.range_count(storage::IDS).nesting(config.blocks),
        // They are its range's still.
        false => options.range_count(config.ids()),
    };
    if let Some(wanted) = config.link.as_ref().filter(|_| !is_own_link) {
        let link = link::options(wanted.bridge.as_deref(), &wanted.ports()?, &wanted.properties)?;
        options = options.links(vec![link.netns(namespaces.network())]);
    }
    // The monitor has the container's lock, so the one before it has ended; the broker may not have ended its grant yet.
    let granted = storage::make_grant(session, &found.name, &options, Some(SUCCESSION));
    let (path, result, payload) = granted.doing(|| found.doing.clone())?;
    let mut kept = Vec::new();
    let network = match &config.link {
        Some(wanted) if is_own_link => {
            let ports = wanted.ports()?;
            let made = inner::connect(namespaces.network(), &found.name, &ports, &wanted.properties)?;
            kept = made.1;
            Some(made.0)
        }
        _ => result.links.as_deref().map(run::network),
    };
    let network = network.map(|network| match &config.dns {
        Dns::Link => network,
        Dns::None => Network { dns: Vec::new(), ..network },
        Dns::Servers(servers) => Network { dns: servers.clone(), ..network },
    });
    let placement =
        Placement { hostname: config.hostname.clone(), ids: result.count.unwrap_or(storage::IDS), network };
    Ok(Grant { path, payload, placement, kept })
}

fn named(namespaces: &Namespaces) -> Result<BorrowedFd<'_>, Failure> {
    namespaces.monitor().map_err(unnamed)
}

fn unnamed(source: io::Error) -> Failure {
    Failure::Machine { doing: "name the container's monitor", source }
}

/// Puts a process into the grant: the monitor beside the payload, or in a container the stage into it.
fn attach(
    session: &Session,
    grant: &OwnedObjectPath,
    process: BorrowedFd<'_>,
    target: Target,
) -> Result<(), SessionError> {
    let options = AttachTo::new().target(target);
    session.call(session.cgroup(grant)?.attach(Fd::from(process), &options)).map(drop)
}

/// The image's files, and directories of the caller's own, with the container's ids.
fn map_all(
    session: &Session,
    grant: &OwnedObjectPath,
    namespaces: &Namespaces,
    config: &Config,
) -> Result<Vec<OwnedFd>, SessionError> {
    let Some(namespace) = namespaces.mounts() else { return Ok(Vec::new()) };
    let proxy = session.mounts(grant)?;
    let image =
        (config.root == Root::Layers).then(|| MapDirectory::new().from_range(storage::IMAGES).read_only());
    let own = config.mounts.iter().map(|mount| {
        let options = MapDirectory::new().from_own(mount.uid, mount.gid);
        if mount.read_only { options.read_only() } else { options }
    });
    let map = |(directory, options)| {
        session.call(proxy.map_directory(Fd::from(directory), Fd::from(namespace), &options))
    };
    namespaces.directories().zip(image.into_iter().chain(own)).map(map).collect()
}
