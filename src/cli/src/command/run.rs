//! `cgrant run`: one container with a grant of its own, in the foreground.
//!
//! Processes: this one (P), the launch stage (S), the container's first process (I). S makes its namespaces
//! while P connects to the broker. A first call makes the grant and maps the ids, a second one attaches S, while S has
//! the container's tree built; when both are done S clones I, which is P's child. If P dies, the broker, which holds
//! its pidfd, kills the container and removes the grant.

use std::{
    env,
    ffi::{OsStr, OsString},
    net::IpAddr,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::ffi::OsStrExt,
    },
};

use cgrant_container::{
    Command, Container, DEFAULT_PATH, Launch, LaunchSpec, Network, Pidfd, Placement, Root, Session,
    SessionError, Staged, inner::Kept,
};
use cgrant_proto::{
    AddLink, AttachTo, Code, CreateGrant, Description, Error, Lifetime, Port, ReleaseGrant, Target,
};
use zbus::{Fd, OwnedObjectPath};

use super::{container::nesting::is_within_reach, grant::each_once, inner, link, supervise};
use crate::{
    Client,
    args::{LinkArgs, RunArgs},
    error::{Doing, Failure},
};

const DOING: &str = "make a grant for the command";

pub(crate) fn run(client: &Client, args: RunArgs) -> Result<u8, Failure> {
    let bridge = args.link.clone();
    let properties = args.properties.clone();
    let link = match wants_link(&args) {
        true if inner::is_own(&client.endpoint, bridge.as_deref()) => {
            inner::check(&args.ports.publish, &properties)?;
            let ports = &args.ports.publish;
            Link::Own { ports: ports.clone(), properties: &properties, shows_files: args.root.is_some() }
        }
        true => Link::Granted(link::options(bridge.as_deref(), &args.ports.publish, &properties)?),
        false => Link::None,
    };
    let limits = each_once(args.limits.all())?;
    let grant = Wanted {
        name: args.name.clone(),
        limits,
        ids: args.ids.ids.unwrap_or(0),
        setgroups: !args.no_setgroups,
        link,
    };
    let launch = Launch::begin(&spec(args))?;
    let session = client.connect(DOING)?;
    let staged = launch.user_namespace()?;
    let own = Pidfd::own().map_err(|source| Failure::Machine { doing: "name this process", source })?;
    let made = Made::create(&session, grant, &staged, &own)?;
    let ended = made.start(staged).and_then(|container| supervise::supervise(&container, &made));
    let released = made.release(client);
    let status = ended?;
    released?;
    Ok(status)
}

/// Whoever says something about a link wants one.
fn wants_link(args: &RunArgs) -> bool {
    let LinkArgs { address, dhcp, mtu, queue_length, upload, download, vlan } = &args.properties;
    let properties = !address.is_empty()
        || *dhcp
        || mtu.or(*queue_length).is_some()
        || upload.or(*download).is_some()
        || vlan.is_some();
    args.link.is_some() || !args.ports.publish.is_empty() || properties
}

fn spec(args: RunArgs) -> LaunchSpec {
    let links = wants_link(&args);
    let root = match args.root {
        Some(path) => Root::Directory { path, read_only: args.read_only },
        None => Root::Host,
    };
    LaunchSpec {
        root,
        hostname: args.hostname,
        command: Command { argv: args.command, env: environment(&args.env), directory: args.workdir },
        reaper: args.init,
        setgroups: !args.no_setgroups,
        links,
    }
}

/// What a login as root would give, the terminal's kind, and what was asked for. A name without value is taken
/// over from here, if it is set.
fn environment(asked: &[OsString]) -> Vec<(OsString, OsString)> {
    let mut variables: Vec<(OsString, OsString)> = [
        ("PATH", DEFAULT_PATH),
        ("HOME", "/root"),
        ("USER", "root"),
        ("LOGNAME", "root"),
        ("SHELL", "/bin/sh"),
        ("container", "cgrant"),
    ]
    .map(|(name, value)| (name.into(), value.into()))
    .into();
    variables.extend(env::var_os("TERM").map(|term| ("TERM".into(), term)));
    for text in asked {
        let (name, value) = match split(text) {
            Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
            None => (text.clone(), env::var_os(text)),
        };
        variables.retain(|(known, _)| *known != name);
        variables.extend(value.map(|value| (name, value)));
    }
    variables
}

fn split(text: &OsStr) -> Option<(&OsStr, &OsStr)> {
    let bytes = text.as_bytes();
    let at = bytes.iter().position(|byte| *byte == b'=')?;
    let (name, value) = bytes.split_at_checked(at)?;
    Some((OsStr::from_bytes(name), OsStr::from_bytes(value.get(1..)?)))
}

/// The grant that the command shall have.
struct Wanted<'a> {
    name: String,
    limits: Vec<(String, String)>,
    ids: u32,
    setgroups: bool,
    link: Link<'a>,
}

/// The link that it shall have.
enum Link<'a> {
    None,
    /// The broker makes it.
    Granted(AddLink<'a>),
    /// It is made here, in the container that this is run in. In that one's root its files say already who answers for names, and
    /// the kernel lets nothing be shown over them: they have no names any more.
    Own {
        ports: Vec<Port>,
        properties: &'a LinkArgs,
        shows_files: bool,
    },
}

/// The grant that it got.
pub(super) struct Made<'a> {
    session: &'a Session,
    path: OwnedObjectPath,
    placement: Placement,
    payload: zbus::OwnedFd,
    /// What is there for its link as long as this process has it open.
    _kept: Vec<Kept>,
}

impl<'a> Made<'a> {
    fn create(
        session: &'a Session,
        wanted: Wanted<'_>,
        staged: &Staged,
        own: &Pidfd,
    ) -> Result<Self, Failure> {
        let options = CreateGrant::new()
            .lifetime(Lifetime::Process(own.as_fd()))
            .userns(staged.namespace())
            .setgroups(wanted.setgroups)
            .range_count(wanted.ids)
            .range_named(!wanted.name.is_empty())
            .limits(&wanted.limits);
        let mut own = None;
        let options = match (wanted.link, staged.network()) {
            (Link::Granted(link), Some(network)) => options.links(vec![link.netns(network)]),
            (Link::Own { ports, properties, shows_files }, Some(network)) => {
                own = Some((ports, properties, shows_files, network));
                options
            }
            _ => options,
        };
        let create = || session.call(session.manager()?.create_grant(&wanted.name, &options));
        let (path, result, payload) = create().doing(|| DOING.to_owned())?;
        let id = result.id.unwrap_or_default();
        let hostname = if wanted.name.is_empty() { format!("cgrant-{id}") } else { wanted.name.clone() };
        // A hostname has no underscore, and a grant's name may; both end within 64 bytes.
        let hostname = hostname.replace('_', "-").trim_end_matches('-').to_owned();
        let mut kept = Vec::new();
        let network = match own {
            Some((ports, properties, shows_files, network)) => {
                let made = inner::connect(network, &wanted.name, &ports, properties)?;
                kept = made.1;
                Some(made.0).filter(|_| shows_files)
            }
            None => result.links.as_deref().map(network),
        };
        let placement = Placement { hostname, ids: result.count.unwrap_or(1), network };
        Ok(Self { session, path, placement, payload, _kept: kept })
    }

    fn start(&self, staged: Staged) -> Result<Container, Failure> {
        let mapped = staged.mapped(&self.placement)?;
        let payload = is_within_reach(&self.payload).then(|| self.payload.as_fd());
        let target = if payload.is_some() { Target::Stage } else { Target::Payload };
        match self.attach(mapped.stage(), target) {
            Ok(_) => Ok(mapped.start(payload)?),
            // A stage that failed can't be attached any more: what it says comes before what the broker says of it.
            Err(refusal) => match mapped.failure() {
                Some(failure) => Err(failure.into()),
                None => Err(refusal).doing(|| DOING.to_owned()),
            },
        }
    }

    fn attach(&self, stage: BorrowedFd<'_>, target: Target) -> Result<u32, SessionError> {
        let options = AttachTo::new().target(target);
        self.session.call(self.session.cgroup(&self.path)?.attach(Fd::from(stage), &options))
    }

    /// Freezes or thaws everything in the grant.
    pub(super) fn freeze(&self, frozen: bool) -> Result<(), Failure> {
        let doing = || if frozen { "freeze the container" } else { "thaw the container" }.to_owned();
        let cgroup = self.session.cgroup(&self.path).doing(doing)?;
        match frozen {
            true => self.session.call(cgroup.freeze()).doing(doing),
            false => self.session.call(cgroup.thaw()).doing(doing),
        }
    }

    /// Kills what is left and ends the grant. One that has ended already was released by somebody else.
    fn release(&self, client: &Client) -> Result<(), Failure> {
        match self.release_over(self.session) {
            // The broker was started again meanwhile.
            Err(SessionError::Broker(Error::Dbus(_))) => match Session::connect(&client.endpoint) {
                Ok(session) => self.release_over(&session),
                // It has not come back yet. It will find this process gone, and end the grant.
                Err(_) => Ok(()),
            },
            result => result,
        }
        .doing(|| "release the command's grant".to_owned())
    }

    fn release_over(&self, session: &Session) -> Result<(), SessionError> {
        let options = ReleaseGrant::new().kill();
        match session.call(session.grant(&self.path)?.release(&options)) {
            Err(SessionError::Broker(error)) if error.code() == Some(Code::NoSuchGrant) => Ok(()),
            result => result,
        }
    }
}

/// What the container shall know of its links. A text that is no address is one of a later broker's.
pub(super) fn network(links: &[Description]) -> Network {
    let address = |text: &str| text.split('/').next()?.parse::<IpAddr>().ok();
    let mut network = Network::default();
    for link in links {
        let own = ["address4", "address6"].into_iter().filter_map(|key| link.text(key).and_then(address));
        network.addresses.extend(own);
        network.dns.extend(link.texts("dns").into_iter().filter_map(address));
    }
    network
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn value<'a>(variables: &'a [(OsString, OsString)], name: &str) -> Vec<&'a OsStr> {
        variables.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_os_str()).collect()
    }

    #[test]
    fn what_is_about_a_link_asks_for_one() {
        use clap::Parser;
        let wants = |words: &[&str]| {
            let words = ["cgrant", "run"].into_iter().chain(words.iter().copied()).chain(["--", "id"]);
            match crate::args::Cli::try_parse_from(words).unwrap().command {
                crate::args::Command::Run(args) => (wants_link(&args), spec(*args).links),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(wants(&[]), (false, false));
        assert_eq!(wants(&["--memory", "1M", "--init"]), (false, false));
        for words in [
            &["--link"][..],
            &["--link=lan"],
            &["-p", "80:80"],
            &["--address", "10.0.0.9"],
            &["--dhcp"],
            &["--mtu", "1400"],
            &["--queue-length", "9"],
            &["--upload", "1M"],
            &["--download", "1M"],
            &["--vlan", "9"],
        ] {
            assert_eq!(wants(words), (true, true), "{words:?}");
        }
    }

    #[test]
    fn a_container_knows_its_addresses_and_who_answers_for_names() {
        use std::collections::HashMap;
        use zbus::Variant;
        let link = HashMap::from([
            ("address4", Variant::new("10.0.0.16/22")),
            ("address6", Variant::new("fd00::10/64")),
            ("dns", Variant::new(vec!["10.0.0.2", "later"])),
        ]);
        let message = zbus::Message::method_call("/", "Call").build(&link).unwrap();
        let link: Description = message.body().deserialize().unwrap();
        let given = network(&[link, Description::default()]);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(given.addresses, [address("10.0.0.16"), address("fd00::10")]);
        assert_eq!(given.dns, [address("10.0.0.2")]);
    }

    #[test]
    fn the_environment_is_a_fresh_one() {
        let variables = environment(&[]);
        assert_eq!(value(&variables, "container"), ["cgrant"]);
        assert_eq!(value(&variables, "PATH"), [DEFAULT_PATH]);
        assert!(value(&variables, "CARGO_MANIFEST_DIR").is_empty());
    }

    #[test]
    fn what_is_asked_for_replaces_and_takes_over() {
        let odd = OsString::from_vec(b"ODD=\xff=".to_vec());
        let asked = [
            "PATH=/x".into(),
            "CARGO_MANIFEST_DIR".into(),
            "NOT_SET_AT_ALL".into(),
            "HOME=a".into(),
            "HOME=b".into(),
            odd,
        ];
        let variables = environment(&asked);
        assert_eq!(value(&variables, "PATH"), ["/x"]);
        assert_eq!(value(&variables, "CARGO_MANIFEST_DIR"), [env::var_os("CARGO_MANIFEST_DIR").unwrap()]);
        assert!(value(&variables, "NOT_SET_AT_ALL").is_empty());
        assert_eq!(value(&variables, "HOME"), ["b"]);
        assert_eq!(value(&variables, "ODD"), [OsStr::from_bytes(b"\xff=")]);
    }
}
