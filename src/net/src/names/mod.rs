//! Name servers: one dnsmasq for each of the broker's own bridges, which serves DHCPv4, DHCPv6 and DNS on it.
//!
//! It runs in namespaces of its own ([`child`]) with one device, the far end of a veth pair on the bridge. It gives
//! addresses to those that it knows, and answers for `NAME.cgrant`, both ways; other questions go to the host's own
//! servers ([`upstream`]). Its files are written here ([`zone`]) and read again at `SIGHUP`.
//!
//! It outlives the helper. The next one finds it by its record ([`record`]), or ends it and makes another.
//!
//! In two steps, so that no packet of it passes unfiltered: [`NameServers::prepare`] makes namespace and device,
//! then rules are set for the device, then [`NameServers::launch`] lets it go.

mod child;
mod forward;
mod label;
mod record;
mod upstream;
mod zone;

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv6Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use cgrant_sys::{
    Dir, Pidfd,
    netlink::{NetlinkError, PortFlags, Route},
    pidfd::Signal,
};
use cgrant_wire::{
    Mac,
    net::{Bridge, BridgeKind, Link},
};

use self::{
    child::{Confinement, Started, Waiting},
    forward::Forwarder,
    record::Record,
    upstream::Servers,
};
use crate::{backoff, backoff::Backoff, proxy::child::ProxySettings, state::Settings};

/// The program, where every distribution has it.
const PROGRAM: &str = "/usr/sbin/dnsmasq";
/// The directory of all name servers, in the helper's own: for root only, as what is in it is about every account.
const DIRECTORY: &str = "names";
/// Files of a name server.
const CONFIGURATION: &str = "dnsmasq.conf";
const HOSTS: &str = "hosts";
const DHCP_HOSTS: &str = "dhcp-hosts";
const RESOLV: &str = "resolv.conf";
const FILES: [&str; 4] = [CONFIGURATION, HOSTS, DHCP_HOSTS, RESOLV];
/// What the name of a record ends with, which lies beside the directory of the files.
const RECORD: &str = ".record";
/// Longest file of ours that is compared, in bytes.
const LONGEST: usize = 1024 * 1024;
/// How long a name server may take to listen before somebody is told that it is there.
const LISTENS: Duration = Duration::from_millis(500);
/// How often that is looked at.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Ports of DNS and DHCP, as `/proc/net/udp` has them.
const PORTS: [&str; 2] = [":0035", ":0043"];
/// Index of the loopback device of every network namespace.
const LOOPBACK: u32 = 1;

/// Why a name server is not there or was not told.
#[derive(Debug, thiserror::Error)]
pub enum NamesError {
    /// dnsmasq is not installed.
    #[error("there is no {}, which serves names and addresses on bridges", PROGRAM)]
    NotInstalled,
    /// Its process could not be made.
    #[error("cannot start the name server of {device}: {source}")]
    Start {
        /// The bridge's device.
        device: String,
        /// Why.
        source: io::Error,
    },
    /// Its device could not be made or set up.
    #[error("the device of the name server: {0}")]
    Device(#[from] NetlinkError),
    /// Its files could not be written.
    #[error("cannot write the files of the name server of {device}: {source}")]
    Files {
        /// The bridge's device.
        device: String,
        /// Why.
        source: io::Error,
    },
    /// It ended as soon as it was started.
    #[error("the name server of {device} does not start: {complaint}")]
    Ended {
        /// The bridge's device.
        device: String,
        /// What it said.
        complaint: String,
    },
    /// There is no such name server: a fault of the helper's.
    #[error("there is no name server for {0}")]
    NotPrepared(String),
    /// The bridge has no addresses: a fault of the engine's.
    #[error("the bridge {0} is not the broker's own")]
    NotOwn(String),
}

/// The host's end of a name server's device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerPort {
    /// Its name.
    pub ifname: String,
    /// Its index.
    pub ifindex: u32,
    /// Address of the other end.
    pub mac: Mac,
    /// The name server lives already and only has to be told.
    pub is_running: bool,
}

/// A name server in one of its states.
#[derive(Debug)]
enum Process {
    /// None, but there should be; the timer says when to try again.
    None(Option<OwnedFd>),
    /// At the gate.
    Waiting(Box<Waiting>),
    /// Serves, as a child of ours.
    Child(Started),
    /// Serves since a helper before us.
    Found(Pidfd),
}

impl Process {
    fn pidfd(&self) -> Option<&Pidfd> {
        match self {
            Self::None(_) => None,
            Self::Waiting(waiting) => Some(&waiting.pidfd),
            Self::Child(started) => Some(&started.pidfd),
            Self::Found(pidfd) => Some(pidfd),
        }
    }

    /// What is readable when it ends or is due.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::None(timer) => timer.as_ref().map(AsFd::as_fd),
            other => other.pidfd().map(AsFd::as_fd),
        }
    }

    /// Ends it.
    fn end(self) {
        match self {
            Self::None(_) => (),
            Self::Waiting(waiting) => waiting.end(),
            Self::Child(started) => {
                let _ = started.pidfd.send_signal(Signal::KILL);
                let _ = started.pidfd.wait();
            }
            Self::Found(pidfd) => {
                let _ = pidfd.send_signal(Signal::KILL);
                // Not ours to reap, unless this process has taken over its ancestor's children.
                let _ = pidfd.wait();
            }
        }
    }
}

/// The name server of a bridge.
#[derive(Debug)]
struct Server {
    process: Process,
    port: ServerPort,
    /// The host's address on the bridge.
    gateway: Option<IpAddr>,
    backoff: Backoff,
}

/// The name servers of an instance.
#[derive(Debug)]
pub struct NameServers {
    instance: String,
    domain: String,
    /// Servers for other names; the host's own if empty.
    dns: Vec<IpAddr>,
    uid: u32,
    gid: u32,
    directory: Dir,
    path: PathBuf,
    servers: BTreeMap<String, Server>,
    forwarder: Forwarder,
    watch: Option<upstream::Watch>,
    due: Vec<String>,
}

impl NameServers {
    /// None runs yet, or is known.
    #[must_use]
    pub fn new(settings: &Settings, directory: Dir) -> Self {
        Self {
            instance: settings.instance.clone(),
            domain: settings.domain.clone(),
            dns: settings.dns.clone(),
            uid: settings.uid,
            gid: settings.gid,
            directory,
            path: settings.path.join(DIRECTORY),
            servers: BTreeMap::new(),
            forwarder: Forwarder::new(ProxySettings { uid: settings.uid, gid: settings.gid }),
            watch: None,
            due: Vec::new(),
        }
    }

    /// Makes sure that there is a name server for an own bridge: one that runs, also since before a restart, or one that
    /// waits for its device to be filtered, down still, and for [`NameServers::launch`].
    ///
    /// # Errors
    /// [`NamesError`]; nothing of it remains then.
    pub fn prepare(
        &mut self,
        route: &Route,
        bridge: &Bridge,
        bridge_index: u32,
    ) -> Result<ServerPort, NamesError> {
        let device = &bridge.device;
        if !matches!(bridge.kind, BridgeKind::Own { .. }) {
            return Err(NamesError::NotOwn(device.clone()));
        }
        if let Some(server) = self.running(device)
            && is_port(route, &server.port, bridge_index)?
        {
            return Ok(server.port.clone());
        }
        if let Some(port) = self.find(route, bridge, bridge_index) {
            return Ok(port);
        }
        let backoff = self.take_backoff(device);
        self.stop(route, device)?;
        let port = self.make(route, bridge, bridge_index).inspect_err(|_| {
            let _ = self.remove_files(device);
        })?;
        let Some(server) = self.servers.get_mut(device) else { return Ok(port) };
        server.backoff = backoff;
        Ok(port)
    }

    /// Lets a name server go that [`NameServers::prepare`] made: its device is set up, and it is waited for until
    /// it listens. Does nothing about one that runs.
    ///
    /// # Errors
    /// [`NamesError`]; nothing of it remains then.
    pub fn launch(&mut self, route: &Route, bridge: &Bridge) -> Result<(), NamesError> {
        let device = &bridge.device;
        let server = self.servers.get_mut(device).ok_or_else(|| NamesError::NotPrepared(device.clone()))?;
        let waiting = match std::mem::replace(&mut server.process, Process::None(None)) {
            Process::Waiting(waiting) => waiting,
            other => {
                server.process = other;
                return self
                    .running(device)
                    .map(|_| ())
                    .ok_or_else(|| NamesError::NotPrepared(device.clone()));
            }
        };
        let (index, mac) = (server.port.ifindex, server.port.mac);
        match release(route, bridge, *waiting, index, mac) {
            Ok(started) => {
                server.backoff.started();
                server.process = Process::Child(started);
                server.port.is_running = true;
                self.watch_upstream();
                Ok(())
            }
            Err(error) => {
                self.stop(route, device)?;
                Err(error)
            }
        }
    }

    /// Tells the name server of a bridge of all links on it.
    ///
    /// # Errors
    /// [`NamesError`]. Some files may be new then; the next call writes the others.
    pub fn set_hosts<'a>(
        &self,
        device: &str,
        links: impl Iterator<Item = &'a Link> + Clone,
    ) -> Result<(), NamesError> {
        let failed = |source| NamesError::Files { device: device.to_owned(), source };
        let files = self.files(device).map_err(failed)?;
        let texts =
            [(HOSTS, zone::hosts(links.clone(), &self.domain)), (DHCP_HOSTS, zone::dhcp_hosts(links))];
        let mut changed = false;
        for (file, text) in &texts {
            changed |= replace(&files, file, text).map_err(failed)?;
        }
        if changed {
            self.tell(device);
        }
        Ok(())
    }

    /// Ends the name server of a bridge, if there is one, with its device and its files.
    ///
    /// # Errors
    /// [`NamesError`]; the process has ended all the same.
    pub fn stop(&mut self, route: &Route, device: &str) -> Result<(), NamesError> {
        let record = self.record(device);
        if let Some(record) = &record {
            record.end();
        }
        self.forwarder.end(device);
        let server = self.servers.remove(device);
        let known = server.as_ref().map(|server| server.port.ifindex);
        if let Some(server) = server {
            server.process.end();
        }
        self.due.retain(|due| due != device);
        if self.servers.is_empty() {
            self.watch = None;
        }
        for index in known.into_iter().chain(record.map(|record| record.ifindex)) {
            self.remove_device(route, device, index)?;
        }
        if let Some(left) = route.link_by_name(&self.ifname(device))? {
            self.remove_device(route, device, left.index)?;
        }
        self.remove_files(device).map_err(|source| NamesError::Files { device: device.to_owned(), source })
    }

    /// Ends what helpers before us left and what is not among the bridges that ought to be there.
    ///
    /// # Errors
    /// [`NamesError`] of the last one that could not be ended.
    pub fn keep_only(&mut self, route: &Route, devices: &[&str]) -> Result<(), NamesError> {
        let Ok(all) = self.directory.open_dir(DIRECTORY) else { return Ok(()) };
        let unwanted = |name: &String| !devices.contains(&name.as_str());
        let left = all.names().map_err(|source| NamesError::Files { device: DIRECTORY.into(), source })?;
        let mut result = Ok(());
        let mut names: Vec<String> =
            left.into_iter().map(|name| name.strip_suffix(RECORD).unwrap_or(&name).to_owned()).collect();
        names.sort_unstable();
        names.dedup();
        for device in names.into_iter().filter(unwanted) {
            result = self.stop(route, &device).and(result);
        }
        let _ = self.directory.remove_dir(DIRECTORY);
        result
    }

    /// Is this the name of a device of a name server of ours?
    #[must_use]
    pub fn is_port(&self, ifname: &str) -> bool {
        self.servers.values().any(|server| server.port.ifname == ifname)
    }

    /// The bridge whose name server has the device of this index.
    #[must_use]
    pub fn bridge_of_port(&self, index: u32) -> Option<&str> {
        let is_it = |(_, server): &(&String, &Server)| index != 0 && server.port.ifindex == index;
        self.servers.iter().find(is_it).map(|(device, _)| device.as_str())
    }

    /// Has the name server of a bridge its device, as it was made? One that is not running is not looked at.
    ///
    /// # Errors
    /// [`NamesError`].
    pub fn is_whole(&self, route: &Route, device: &str, bridge_index: u32) -> Result<bool, NamesError> {
        self.running(device).map_or(Ok(true), |server| is_port(route, &server.port, bridge_index))
    }

    /// The devices of name servers that are filtered, by their bridges.
    pub fn ports(&self) -> impl Iterator<Item = (&str, &ServerPort)> {
        self.servers.iter().map(|(device, server)| (device.as_str(), &server.port))
    }

    /// What is to be watched for being readable. It changes with every call of anything else.
    #[must_use]
    pub fn descriptors(&self) -> Vec<BorrowedFd<'_>> {
        let servers = self.servers.values().filter_map(|server| server.process.descriptor());
        servers.chain(self.watch.iter().map(AsFd::as_fd)).chain(self.forwarder.descriptors()).collect()
    }

    /// One of [`NameServers::descriptors`] is readable; others are ignored. [`NameServers::due`] afterwards says whose
    /// name server is to be made again.
    pub fn ready(&mut self, fd: RawFd) {
        if self.watch.as_ref().is_some_and(|watch| watch.as_fd().as_raw_fd() == fd && watch.drain()) {
            self.set_upstream();
            return;
        }
        self.forwarder.ready(fd);
        let is_it = |server: &Server| server.process.descriptor().is_some_and(|own| own.as_raw_fd() == fd);
        let Some((device, server)) = self.servers.iter_mut().find(|(_, server)| is_it(server)) else {
            return;
        };
        // Until the timer is set nothing is waited for.
        match std::mem::replace(&mut server.process, Process::None(None)) {
            Process::None(_) => {
                self.due.push(device.clone());
                return;
            }
            Process::Waiting(waiting) => {
                tracing::error!(device, "a name server ended before it was started");
                waiting.end();
            }
            Process::Child(started) => {
                let end = started.pidfd.wait();
                tracing::error!(device, ?end, complaint = started.complaint(), "a name server has ended");
            }
            Process::Found(_) => tracing::error!(device, "a name server has ended"),
        }
        server.retry_later();
    }

    /// Bridges whose name server ended and is to be prepared and launched again now.
    pub fn due(&mut self) -> Vec<String> {
        std::mem::take(&mut self.due)
    }

    /// A name server that was due could not be made: it is due again after a while.
    pub fn retry(&mut self, device: &str) {
        let port =
            ServerPort { ifname: self.ifname(device), ifindex: 0, mac: Mac([0; 6]), is_running: false };
        let server = self.servers.entry(device.to_owned()).or_insert_with(|| Server {
            process: Process::None(None),
            port,
            gateway: None,
            backoff: Backoff::new(),
        });
        if server.process.descriptor().is_none() {
            server.retry_later();
        }
    }

    fn running(&self, device: &str) -> Option<&Server> {
        self.servers
            .get(device)
            .filter(|server| matches!(server.process, Process::Child(_) | Process::Found(_)))
    }

    fn take_backoff(&mut self, device: &str) -> Backoff {
        self.servers.get_mut(device).map_or_else(Backoff::new, |server| std::mem::take(&mut server.backoff))
    }

    /// The one that a helper before us made, if it is as we would make it.
    fn find(&mut self, route: &Route, bridge: &Bridge, bridge_index: u32) -> Option<ServerPort> {
        let device = &bridge.device;
        let record = self.record(device)?;
        let process = record.process()?;
        let files = self.directory.open_dir(DIRECTORY).ok()?.open_dir(device).ok()?;
        if files.read(CONFIGURATION, LONGEST).ok()? != self.configuration(bridge) {
            return None;
        }
        let port = ServerPort {
            ifname: self.ifname(device),
            ifindex: record.ifindex,
            mac: self.mac(device),
            is_running: true,
        };
        let link = route.link(port.ifindex).ok()??;
        if link.name != port.ifname || link.master != Some(bridge_index) || !link.up {
            return None;
        }
        let mut backoff = self.take_backoff(device);
        backoff.started();
        let gateway = gateway(bridge);
        let server = Server { process: Process::Found(process), port: port.clone(), gateway, backoff };
        self.servers.insert(device.clone(), server);
        self.watch_upstream();
        // Nobody looked while there was no helper.
        self.set_upstream();
        Some(port)
    }

    /// Makes files, namespace and device. What was made is taken back if it fails.
    fn make(&mut self, route: &Route, bridge: &Bridge, bridge_index: u32) -> Result<ServerPort, NamesError> {
        let device = &bridge.device;
        if !Path::new(PROGRAM).exists() {
            return Err(NamesError::NotInstalled);
        }
        self.write_files(bridge).map_err(|source| NamesError::Files { device: device.clone(), source })?;
        let files = self.path.join(device);
        let confinement =
            Confinement { program: Path::new(PROGRAM), files: &files, uid: self.uid, gid: self.gid };
        let started = |source| NamesError::Start { device: device.clone(), source };
        let waiting = Waiting::start(&confinement).map_err(started)?;
        match self.make_port(route, bridge, bridge_index, &waiting) {
            Ok(port) => {
                let process = Process::Waiting(Box::new(waiting));
                let (gateway, backoff) = (gateway(bridge), Backoff::new());
                let server = Server { process, port: port.clone(), gateway, backoff };
                self.servers.insert(device.clone(), server);
                Ok(port)
            }
            Err(error) => {
                waiting.end();
                if let Ok(Some(left)) = route.link_by_name(&self.ifname(device)) {
                    self.remove_device(route, device, left.index)?;
                }
                Err(error)
            }
        }
    }

    /// The pair of devices, and the record of it before it can do anything.
    fn make_port(
        &self,
        route: &Route,
        bridge: &Bridge,
        bridge_index: u32,
        waiting: &Waiting,
    ) -> Result<ServerPort, NamesError> {
        let device = &bridge.device;
        let (ifname, mac) = (self.ifname(device), self.mac(device));
        let ifindex = route.add_veth(&cgrant_sys::netlink::NewVeth {
            name: &ifname,
            alias: &self.alias(device),
            mtu: bridge.mtu,
            queue_length: 0,
            master: Some(bridge_index),
            peer_name: zone::DEVICE,
            peer_mac: mac.0,
            peer_netns: &waiting.netns,
        })?;
        // Where it is was said once and for all, so that nobody else can pretend to be it.
        route.set_port(ifindex, &PortFlags { learning: false, ..PortFlags::default() })?;
        route.add_fdb(ifindex, mac.0, None)?;
        let failed = |source| NamesError::Files { device: device.clone(), source };
        let record = Record::of(waiting.pid, &waiting.pidfd, self.uid, ifindex).map_err(failed)?;
        let directory = self.directory.open_dir(DIRECTORY).map_err(failed)?;
        record.write(&directory, &format!("{device}{RECORD}")).map_err(failed)?;
        Ok(ServerPort { ifname, ifindex, mac, is_running: false })
    }

    /// Removes a device if it is a name server's of this bridge; one that is gone is no error.
    fn remove_device(&self, route: &Route, device: &str, index: u32) -> Result<(), NamesError> {
        let alias = self.alias(device);
        if route.link(index)?.is_some_and(|link| link.alias.as_deref() == Some(alias.as_str())) {
            route.delete_link(index)?;
        }
        Ok(())
    }

    fn configuration(&self, bridge: &Bridge) -> String {
        zone::configuration(bridge, &self.domain, &child::PLACE.to_string_lossy())
    }

    fn write_files(&mut self, bridge: &Bridge) -> io::Result<()> {
        make_dir(&self.directory, DIRECTORY, 0o700)?;
        make_dir(&self.directory.open_dir(DIRECTORY)?, &bridge.device, 0o755)?;
        let files = self.files(&bridge.device)?;
        files.sweep()?;
        files.write_readable(CONFIGURATION, self.configuration(bridge).as_bytes())?;
        let servers = self.resolv(&bridge.device, gateway(bridge));
        files.write_readable(RESOLV, servers.as_bytes())?;
        files.write_readable(HOSTS, b"")?;
        files.write_readable(DHCP_HOSTS, b"")
    }

    fn files(&self, device: &str) -> io::Result<Dir> {
        self.directory.open_dir(DIRECTORY)?.open_dir(device)
    }

    fn record(&self, device: &str) -> Option<Record> {
        Record::read(&self.directory.open_dir(DIRECTORY).ok()?, &format!("{device}{RECORD}"))
    }

    /// Removes the files of a name server that are there; the record last.
    fn remove_files(&self, device: &str) -> io::Result<()> {
        let Ok(all) = self.directory.open_dir(DIRECTORY) else { return Ok(()) };
        if let Ok(files) = all.open_dir(device) {
            files.sweep()?;
            for file in FILES {
                unless_gone(files.remove_file(file))?;
            }
            unless_gone(all.remove_dir(device))?;
        }
        unless_gone(all.remove_file(format!("{device}{RECORD}")))?;
        // With the last one, and not before.
        let _ = self.directory.remove_dir(DIRECTORY);
        Ok(())
    }

    fn upstream(&self) -> Servers {
        if self.dns.is_empty() { upstream::servers() } else { Servers::of(self.dns.iter().copied()) }
    }

    /// Whom the name server of a bridge asks, with a way there if it has none by itself.
    fn resolv(&mut self, device: &str, gateway: Option<IpAddr>) -> String {
        let servers = self.upstream();
        let local = gateway.filter(|_| !servers.local.is_empty());
        match local.map(|gateway| self.forwarder.serve(device, gateway, &servers.local)) {
            None => self.forwarder.end(device),
            Some(Ok(())) => (),
            Some(Err(error)) => tracing::error!(device, %error, "the host's own resolver can't be reached"),
        }
        upstream::render(local.iter().chain(&servers.reachable))
    }

    fn watch_upstream(&mut self) {
        if self.watch.is_some() || !self.dns.is_empty() {
            return;
        }
        match upstream::Watch::new() {
            Ok(watch) => self.watch = Some(watch),
            Err(error) => tracing::warn!(%error, "changes of the host's name servers will not be noticed"),
        }
    }

    /// The host's servers may have changed: those that ask them look at this file by themselves.
    fn set_upstream(&mut self) {
        let servers: Vec<_> =
            self.servers.iter().map(|(device, server)| (device.clone(), server.gateway)).collect();
        for (device, gateway) in servers {
            let text = self.resolv(&device, gateway);
            let written = self.files(&device).and_then(|files| replace(&files, RESOLV, &text));
            if let Err(error) = written {
                tracing::error!(device, %error, "the host's name servers can't be passed on");
            }
        }
    }

    /// Has a name server read its files again.
    fn tell(&self, device: &str) {
        if let Some(pidfd) = self.running(device).and_then(|server| server.process.pidfd()) {
            // One that has ended meanwhile is made again, and reads then.
            let _ = pidfd.send_signal(Signal::HUP);
        }
    }

    /// `cgd` and ten hexadecimal digits.
    fn ifname(&self, device: &str) -> String {
        let hash = self.hash(device);
        format!("cgd{:010x}", hash & 0xff_ffff_ffff)
    }

    /// Locally administered, of one host.
    fn mac(&self, device: &str) -> Mac {
        let [.., a, b, c, d, e] = self.hash(device).rotate_left(17).to_be_bytes();
        Mac([0x06, a, b, c, d, e])
    }

    fn alias(&self, device: &str) -> String {
        format!("cgrant {} names {device}", self.instance)
    }

    /// FNV-1a: short, and the same in every build, which names that outlive a process need.
    fn hash(&self, device: &str) -> u64 {
        let bytes = self.instance.bytes().chain([0]).chain(device.bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }
}

impl Server {
    fn retry_later(&mut self) {
        match backoff::timer(self.backoff.ended()) {
            Ok(timer) => self.process = Process::None(Some(timer)),
            Err(error) => tracing::error!(%error, "no timer for the next name server"),
        }
    }
}

/// Sets up the device and lets the child go; it has ended if that fails.
fn release(
    route: &Route,
    bridge: &Bridge,
    waiting: Waiting,
    index: u32,
    mac: Mac,
) -> Result<Started, NamesError> {
    let device = || bridge.device.clone();
    if let Err(error) = configure(&waiting, bridge, mac).and_then(|()| Ok(route.set_up(index, true)?)) {
        waiting.end();
        return Err(error);
    }
    let pid = waiting.pid;
    let started = waiting.go().map_err(|source| NamesError::Start { device: device(), source })?;
    if wait_until_it_listens(pid, &started.pidfd) {
        return Ok(started);
    }
    let _ = started.pidfd.wait();
    Err(NamesError::Ended { device: device(), complaint: started.complaint() })
}

/// Sets up the far end from outside: the child has not begun, and nobody else is in its namespace.
fn configure(waiting: &Waiting, bridge: &Bridge, mac: Mac) -> Result<(), NamesError> {
    let source = |source| NamesError::Start { device: bridge.device.clone(), source };
    let BridgeKind::Own { gateway4, gateway6, server4, server6 } = &bridge.kind else {
        return Err(NamesError::NotOwn(bridge.device.clone()));
    };
    let route = Route::open_in(&waiting.netns).map_err(source)?;
    let absent = || source(io::ErrorKind::NotFound.into());
    let index = route.link_by_name(zone::DEVICE)?.ok_or_else(absent)?.index;
    route.set_up(LOOPBACK, true)?;
    if gateway6.is_some() {
        // The link-local address that the kernel would give it, but at once, and not after a second of looking for
        // others that have it.
        route.add_address(index, link_local(mac).into(), 64, true)?;
    }
    route.set_up(index, true)?;
    if let (Some(gateway), Some(server)) = (gateway4, server4) {
        route.add_address(index, (*server).into(), gateway.prefix, true)?;
        route.add_default_route(index, gateway.address.into())?;
    }
    if let (Some(gateway), Some(server)) = (gateway6, server6) {
        route.add_address(index, (*server).into(), gateway.prefix, true)?;
        route.add_default_route(index, gateway.address.into())?;
    }
    Ok(())
}

/// The host's address on an own bridge.
fn gateway(bridge: &Bridge) -> Option<IpAddr> {
    let BridgeKind::Own { gateway4, gateway6, .. } = &bridge.kind else { return None };
    let four = gateway4.map(|gateway| IpAddr::V4(gateway.address));
    four.or_else(|| gateway6.map(|gateway| IpAddr::V6(gateway.address)))
}

/// RFC 4291, appendix A.
fn link_local(mac: Mac) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac.0;
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

/// Waits until the process has its sockets, or a moment; says whether it lives.
fn wait_until_it_listens(pid: u32, pidfd: &Pidfd) -> bool {
    let begun = Instant::now();
    loop {
        // What comes from now on waits in the sockets.
        let sockets = std::fs::read_to_string(format!("/proc/{pid}/net/udp")).unwrap_or_default();
        let listens = PORTS.iter().all(|port| sockets.contains(port));
        if !pidfd.is_alive().unwrap_or(false) {
            return false;
        }
        if listens || begun.elapsed() > LISTENS {
            return true;
        }
        thread::sleep(LOOK_AGAIN);
    }
}

/// Is the device there, on this bridge?
fn is_port(route: &Route, port: &ServerPort, bridge_index: u32) -> Result<bool, NamesError> {
    let link = route.link(port.ifindex)?;
    Ok(link.is_some_and(|link| link.name == port.ifname && link.master == Some(bridge_index) && link.up))
}

/// Replaces a file if it is not so already; says whether it did.
fn replace(files: &Dir, file: &str, text: &str) -> io::Result<bool> {
    if files.read(file, LONGEST).is_ok_and(|old| old == text) {
        return Ok(false);
    }
    files.write_readable(file, text.as_bytes())?;
    Ok(true)
}

/// Makes a directory that may be there.
fn make_dir(directory: &Dir, name: &str, mode: u32) -> io::Result<()> {
    match directory.make_dir(name, mode) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
        result => result?,
    }
    // Whatever the umask is.
    directory.chmod(name, mode)
}

fn unless_gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
