//! How the engine starts: privileges are taken away step by step, and nobody is served before record and kernel agree.

use std::{
    collections::HashMap,
    process::ExitCode,
    sync::{Arc, Mutex, RwLock},
};

use cgrant_policy::HostUid;
use cgrant_process::{
    boot::{self, BootError, step},
    log,
};
use cgrant_sys::{
    dir::Dir,
    namespace::{NetnsFd, UsernsFd},
    process,
    seqpacket::Channel,
};
use cgrant_wire::{
    FdIndex, Refusal, Surface,
    boot::{FromChild, ToChild},
};

use crate::{
    addresses::Addresses,
    cgroup::Tree,
    connection::Connections,
    devices::Devices,
    disk::Disk,
    engine::Engine,
    fault::Fault,
    idmap::Mapper,
    ids::IdRecord,
    legacy::{self, Ledger, Wishes},
    metrics::{Counters, Part},
    mountmap::Mounter,
    net::Network,
    ops::{account, check::Descriptors},
    reconcile,
    record::Journal,
    registry::Registry,
    reload::{self, Reload},
    sandbox,
    server::{End, Server},
    settings,
    show::{self, Shower},
    watch::Watches,
};

/// What the engine is called in logs.
const PROGRAM: &str = "cgrant-engine";
/// What is added to the nice value that the administrator gave the service (sched(7), "The nice value").
///
/// A call goes from client to front to engine and back. Who is woken may be put in the place of who woke it before that one has gone to
/// sleep; whoever is woken next is then sent to another processor, for there are two that want this one, and to wake an idle processor
/// takes longer than the work of a call. So a front does not take the engine's place; nor soon a client's, as it has a nice value of its
/// own. And who holds the kernel's locks for all cgroups, which everybody waits for, is not kept from going on.
///
/// It counts among processes of one cgroup with cpu shares of its own, or of one session where the kernel groups by these
/// (sched(7), "The autogroup feature"); how the service stands to others is its cgroup's to say. Where it has none, an attacker could
/// want the engine's work before that of everybody else: what its calls and connections cost the engine is about what they cost its
/// own processes and the front.
const NICE: i32 = -10;

/// Runs the engine until the supervisor ends it.
pub fn run() -> ExitCode {
    boot::run(PROGRAM, |control| serve(&Arc::new(start(control)?)))
}

fn serve(server: &Arc<Server>) -> Result<(), BootError> {
    server.tell_supervisor(&FromChild::Ready);
    match step("serving", server.run())? {
        End::Stopped => Ok(()),
        End::HelperDied => Err(BootError::Step { what: "id maps", reason: "a helper has died".into() }),
    }
}

fn start(control: &Channel) -> Result<Server, BootError> {
    let engines = |message| if let ToChild::Engine(boot) = message { Some(boot) } else { None };
    let (boot, fds) = boot::receive(control, engines)?;
    log::start(boot.log, PROGRAM);
    let mut fds = Descriptors::new(fds);
    let directory = |fds: &mut Descriptors, index: FdIndex, what: &'static str| {
        let fd = fds.take(index, what).map_err(|refusal: Refusal| BootError::NotStarted(refusal.message))?;
        step(what, Dir::from_fd(fd))
    };
    let config = directory(&mut fds, boot.config_dir, "configuration directory")?;
    let state = directory(&mut fds, boot.state_dir, "state directory")?;
    let run = directory(&mut fds, boot.run_dir, "run directory")?;
    let ids_durable = directory(&mut fds, boot.ids_dir, "directory of the id record")?;
    let ids_live = directory(&mut fds, boot.ids_run_dir, "directory of the ids in use")?;
    let listeners = boot
        .listeners
        .iter()
        .map(|index| (*index, Surface::Native))
        .chain(boot.legacy_listeners.iter().map(|index| (*index, Surface::Legacy)))
        .chain(boot.metrics_listeners.iter().map(|index| (*index, Surface::Metrics)))
        .map(|(index, surface)| fds.take(index, "a listener").map(|listener| (listener, surface)))
        .collect::<Result<Vec<_>, _>>();
    let listeners = listeners.map_err(|refusal| BootError::NotStarted(refusal.message))?;

    // While there is one thread: the helpers that keep the rights to write id maps, to make mounts and to name processes, which
    // the engine itself gives up.
    let settings = step("configuration", settings::settings(&config))?;
    let mapper = step("starting the helpers", Mapper::start(&settings.ids.pool))?;
    let mounter = step("starting the helpers", Mounter::start())?;
    let shower =
        step("starting the helpers", Shower::start(&settings.ids.pool, boot.socket_front, show::LIMIT))?;
    let devices = step("starting the helpers", Devices::start())?;
    let policy = step("policy", reload::read(&config))?;
    let tree = step("cgroups", Tree::open(&boot.instance, &boot.placements))?;
    account::tell_unkept(&tree, &policy);
    // Without the helpers, of which one runs programs of the host's. All threads that are started from here on have it too.
    if let Err(error) = rustix::process::nice(NICE) {
        tracing::debug!(%error, "the nice value stays; calls take longer, no more");
    }
    step("giving up privileges", sandbox::confine())?;

    let names = mapper.name_service();
    let ids =
        step("id record", IdRecord::open(ids_durable, ids_live, &settings.ids.pool, &boot.instance, names))?;
    let counters = Counters::default();
    counters.started(Part::Engine, boot.engines_before);
    counters.were_started(boot.others_before);
    let engine = Engine {
        instance: boot.instance,
        boot_id: step("boot id", process::boot_id())?,
        tree,
        ids,
        disk: step(
            "record of disk use",
            state.try_clone().and_then(|state| Disk::open(state, &settings.ids.pool)),
        )?,
        mapper,
        mounter,
        shower,
        devices,
        network: Network::new(settings.network, step("record of addresses", Addresses::open(&state))?),
        journal: step("journal", Journal::open(&state, &run))?,
        fault: step("journal", Fault::new(&run))?,
        watches: step("epoll", Watches::new())?,
        ledger: step("record of cgroups", Ledger::open(&run))?,
        wishes: step("record of cgroups", Wishes::open(&run))?,
        pool: crate::pool::Pool::default(),
        counters,
        paces: crate::pace::Paces::default(),
        refusals: crate::refusal_log::RefusalLog::default(),
        usages: crate::usage::Usages::default(),
        config,
        own_userns: step("user namespace", UsernsFd::own().and_then(|own| own.id()))?,
        own_netns: step("network namespace", NetnsFd::own().and_then(|own| own.id()))?,
        front_uids: boot.front_uids.into_iter().map(HostUid).collect(),
        policy: RwLock::new(Arc::new(policy)),
        reload: Reload::default(),
        lingering: Mutex::default(),
        registry: Mutex::new(Registry::default()),
        connections: Mutex::new(Connections::default()),
        links: RwLock::new(HashMap::new()),
        leavings: crate::leaving::Leavings::default(),
        notice: crate::leaving::Notice::new(step("state directory", state.try_clone())?),
        questions: crate::asking::Questions::default(),
    };
    engine.watch_accounts();
    reload::watch(&engine);
    // What changed since it was read.
    reload::noticed(&engine);
    step("bringing record and kernel together", reconcile::reconcile(&engine))?;
    crate::ops::link::forget_departed(&engine);
    step("record of cgroups", legacy::take_over(&engine))?;
    crate::leaving::begin(&engine);
    let control = step("supervisor", control.try_clone())?;
    step("sockets", Server::new(Arc::new(engine), control, listeners))
}
