//! Grants inside grants: user namespaces with their ids, and callers in there.

use std::{
    fs,
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
};

use super::{
    Broker, Client, Grant, Lab, Options, Process, User,
    bus::{GRANT, Refused},
    checker,
};

/// Ids of one block.
pub const BLOCK: u32 = 65_536;

/// A grant with ids in a user namespace of its own.
pub struct Level {
    /// The grant, as whoever made it knows it.
    pub grant: Grant,
    /// A process that keeps the namespace there.
    pub namespace: Process,
    /// Where it lies: its directory's name behind those of the grants around it.
    pub name: String,
}

impl Level {
    /// Made on the host.
    pub fn new(user: &User, client: &Client, name: &str, options: Options) -> Self {
        let (namespace, fd) = user.userns();
        let grant = client.create(name, options.fd("userns", &fd)).unwrap();
        Self { grant, namespace, name: name.to_owned() }
    }

    /// Made from inside this one, by `client`.
    pub fn inner(&self, user: &User, client: &Client, name: &str, options: Options) -> Self {
        let (namespace, fd) = self.userns(user);
        let grant = client.create(name, options.fd("userns", &fd)).unwrap();
        Self { grant, namespace, name: format!("{}/{name}", self.name) }
    }

    /// The same, by an ordinary user in there.
    pub fn inner_of(&self, user: &User, id: u32, client: &Client, name: &str, options: Options) -> Self {
        let (namespace, fd) = self.userns_of(user, id);
        let grant = client.create(name, options.fd("userns", &fd)).unwrap();
        Self { grant, namespace, name: format!("{}/@{id}.{name}", self.name) }
    }

    /// A new user namespace that this one's root made.
    pub fn userns(&self, user: &User) -> (Process, OwnedFd) {
        self.userns_of(user, 0)
    }

    /// One that somebody of this id in there made.
    pub fn userns_of(&self, user: &User, id: u32) -> (Process, OwnedFd) {
        let (process, line, mut fds) = user.agent_in(&self.namespace, id, &["userns"]);
        assert_eq!(line, "ok");
        (process, fds.remove(0))
    }

    /// A process of this id in there, in the payload, where its container would have put it.
    pub fn process(&self, lab: &Lab, user: &User, id: u32, role: &[&str]) -> Process {
        let (process, line, _) = user.agent_in(&self.namespace, id, role);
        assert_eq!(line, "ok");
        put(lab, user, &self.name, process.pid);
        process
    }

    /// One of this id that connects when it is told to.
    pub fn caller(&self, lab: &Lab, user: &User, id: u32, socket: &Path) -> Process {
        self.process(lab, user, id, &["connect-when-told", socket.to_str().unwrap()])
    }

    /// A client that is this one's root, in its payload. It says that it is uid 0, as it is there.
    pub fn client(&self, lab: &Lab, user: &User, socket: &Path) -> Client {
        self.client_of(lab, user, 0, socket)
    }

    /// A client of this id in there, likewise.
    pub fn client_of(&self, lab: &Lab, user: &User, id: u32, socket: &Path) -> Client {
        let process = self.caller(lab, user, id, socket);
        Client::new(connected(&process), id, process)
    }

    /// The map of its uids, as the host sees it.
    pub fn map(&self) -> String {
        let text = fs::read_to_string(format!("/proc/{}/uid_map", self.namespace.pid)).unwrap();
        text.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
    }
}

/// Puts a process into the payload of the grant that the account calls so, in every hierarchy.
pub fn put(lab: &Lab, user: &User, name: &str, pid: u32) {
    for (tree, place) in checker::places(lab, user.uid, name) {
        let procs = place.join("payload/cgroup.procs");
        fs::write(&procs, pid.to_string()).unwrap_or_else(|error| panic!("{tree}: {error}"));
    }
}

/// The socket of a caller that is told to connect now.
pub fn connected(process: &Process) -> UnixStream {
    process.say_go();
    let (line, mut fds) = process.hear().expect("the agent ended");
    assert_eq!(line, "ok");
    UnixStream::from(fds.remove(0))
}

/// With so many blocks for grants inside.
pub fn nesting(blocks: u32) -> Options {
    Options::new().with("nesting", blocks)
}

/// A broker, a user and a client of theirs.
pub fn scene(lab: &Lab) -> (Broker, User, Client) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    (broker, user, client)
}

/// The names of its grants and of those inside of them.
pub fn all_names(client: &Client) -> Vec<String> {
    let rows: Vec<(zbus::OwnedObjectPath, String, u32)> =
        client.manager("ListGrants", &Options::new().with("nested", true).0).unwrap();
    rows.into_iter().map(|(_, name, _)| name).collect()
}

/// Ends a grant and what runs in it.
pub fn release(client: &Client, grant: &str, options: Options) -> Result<(), Refused> {
    client.call(grant, GRANT, "Release", &options.with("kill", true).0)
}
