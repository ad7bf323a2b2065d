//! `cgrant link …`: interfaces of a grant, and the ports that lead to them.

use std::{ffi::OsStr, fs::File, net::IpAddr, os::fd::AsFd, path::PathBuf};

use cgrant_container::Pidfd;
use cgrant_proto::{AddLink, Asked, LinksProxy, ListGrants, Port};
use serde_json::{Map, Value, json};

use super::{container::ports, grant::Found, inner, tap};
use crate::{
    Client,
    args::{GrantName, LinkAddArgs, LinkArgs, LinkCommand, NewLinkArgs, PublishArgs},
    error::{Doing, Failure},
    exit,
    output::{self, Fields, List},
    value,
};

/// The columns of a list of links.
const HEADS: &[&str] = &["GRANT", "NAME", "BRIDGE", "ADDRESS4", "ADDRESS6", "PORTS"];

pub(crate) fn run(client: &Client, command: LinkCommand) -> Result<u8, Failure> {
    match command {
        LinkCommand::Add(args) => add(client, &args),
        LinkCommand::Tap(args) => tap::run(client, &args).map(|never| match never {}),
        LinkCommand::Remove { grant, link } => {
            let found = Found::new(client, &grant, &format!("remove the link {link:?} of"))?;
            found.with(links(&found)?.remove_link(&link))
        }
        LinkCommand::List { name: Some(name), account } => {
            let grant = GrantName { name, account };
            let found = Found::new(client, &grant, "list the links of")?;
            let mut own = if grant.account.is_none() { own_links(client) } else { Map::new() };
            let made_here = elements(own.remove(&grant.name));
            let rows = of_grant(&found)?.into_iter().chain(made_here).map(|link| row(&grant.name, link));
            found.print(&List::new(HEADS, rows))
        }
        LinkCommand::List { name: None, .. } => list(client),
        LinkCommand::Publish(args) => publish(client, &args, true),
        LinkCommand::Unpublish(args) => publish(client, &args, false),
        LinkCommand::Bridges => bridges(client),
    }?;
    Ok(exit::DONE)
}

/// The options of a link, without its namespace.
pub(super) fn options<'a>(
    bridge: Option<&'a str>,
    ports: &[Port],
    properties: &LinkArgs,
) -> Result<AddLink<'a>, Failure> {
    let mut options = AddLink::new();
    if let Some(bridge) = bridge.filter(|bridge| !bridge.is_empty()) {
        options = options.bridge(bridge);
    }
    if !ports.is_empty() {
        options = options.ports(ports);
    }
    let (mut seen4, mut seen6) = (false, false);
    for address in &properties.address {
        let seen = if address.is_ipv4() { &mut seen4 } else { &mut seen6 };
        if std::mem::replace(seen, true) {
            let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
            return Err(Failure::Usage(format!("a link has one {family} address: {address} is the second")));
        }
        options = match address {
            IpAddr::V4(address) => options.address4(*address),
            IpAddr::V6(address) => options.address6(*address),
        };
    }
    if properties.dhcp {
        options = options.configure(false);
    }
    options = properties.mtu.into_iter().fold(options, AddLink::mtu);
    options = properties.queue_length.into_iter().fold(options, AddLink::queue_length);
    options = properties.upload.into_iter().fold(options, AddLink::upload);
    options = properties.download.into_iter().fold(options, AddLink::download);
    Ok(properties.vlan.into_iter().fold(options, AddLink::vlan))
}

/// Addresses of a link without their prefixes, as a list of grants shows them.
pub(super) fn addresses(link: &Value) -> impl Iterator<Item = &str> {
    let address = |key: &str| link.get(key)?.as_str()?.split('/').next();
    address("address4").into_iter().chain(address("address6"))
}

/// The options of a link that is added to a grant, without its far end.
pub(super) fn wanted(args: &NewLinkArgs) -> Result<AddLink<'_>, Failure> {
    let options = options(args.bridge.as_deref(), &args.ports.publish, &args.properties)?;
    Ok(args.link.as_deref().into_iter().fold(options, AddLink::name))
}

fn add(client: &Client, args: &LinkAddArgs) -> Result<(), Failure> {
    let options = wanted(&args.wanted)?;
    let given = args.netns.as_deref().map(open_namespace).transpose()?;
    let found = Found::new(client, &args.grant, "add a link to")?;
    let namespace = match given {
        Some(namespace) => namespace,
        None => namespace_of_grant(&found)?,
    };
    let options = options.netns(namespace.as_fd());
    let link = found.with(links(&found)?.add_link(&options))?;
    match value::description(&link) {
        Value::Object(fields) => found.print(&Fields(fields)),
        _ => Ok(()),
    }
}

/// A process by its number, or a file.
fn open_namespace(given: &OsStr) -> Result<File, Failure> {
    match given.to_str().and_then(|text| text.parse::<u32>().ok()) {
        Some(pid) => namespace_of_process(pid),
        None => File::open(given).map_err(|source| Failure::Namespace { namespace: given.into(), source }),
    }
}

/// The process is looked at again afterwards: the number could have become another's.
fn namespace_of_process(pid: u32) -> Result<File, Failure> {
    let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
    let open = || {
        let process = Pidfd::open(pid)?;
        let namespace = File::open(&path)?;
        if process.is_alive()? { Ok(namespace) } else { Err(nix::errno::Errno::ESRCH.into()) }
    };
    open().map_err(|source| Failure::Namespace { namespace: path.clone().into(), source })
}

/// That of the grant's first process.
fn namespace_of_grant(found: &Found<'_>) -> Result<File, Failure> {
    let pids = found.with(found.cgroup()?.list_processes())?;
    let pid = pids.into_iter().filter(|pid| *pid != 0).min();
    let pid = pid.ok_or_else(|| {
        Failure::Usage(
            "no process is in the grant: say with --netns in which namespace the link shall be".to_owned(),
        )
    })?;
    namespace_of_process(pid)
}

fn list(client: &Client) -> Result<(), Failure> {
    const DOING: &str = "list the links";
    let session = client.connect(DOING)?;
    let ask = || {
        let grants = session.call(session.manager()?.list_grants(&ListGrants::new()))?;
        Ok::<_, cgrant_container::SessionError>((grants, session.all_links()?))
    };
    let (mut grants, mut links) = ask().doing(|| DOING.to_owned())?;
    grants.sort_by(|a, b| a.1.cmp(&b.1));
    let mut own = own_links(client);
    let rows = grants.into_iter().flat_map(|(path, name, _)| {
        let links = links.remove(&path).map(|links| value::json(&links));
        let made_here = elements(own.remove(&name));
        elements(links).into_iter().chain(made_here).map(move |link| row(&name, link)).collect::<Vec<_>>()
    });
    output::print(client.format, &List::new(HEADS, rows))
}

/// In a container those on its own bridge, which are not the broker's to tell of.
fn own_links(client: &Client) -> Map<String, Value> {
    if inner::is_here(&client.endpoint) { inner::links() } else { Map::new() }
}

fn publish(client: &Client, args: &PublishArgs, publish: bool) -> Result<(), Failure> {
    let GrantName { name, account } = &args.grant;
    if inner::is_here(&client.endpoint) && account.is_none() && inner::is_connected(name, &args.link) {
        return ports::change(name, &args.ports, publish);
    }
    let ports: Vec<String> = args.ports.iter().map(ToString::to_string).collect();
    let verb = if publish { "publish ports to" } else { "take back ports of" };
    let found = Found::new(client, &args.grant, &format!("{verb} the link {:?} of", args.link))?;
    let links = links(&found)?;
    match publish {
        true => found.with(links.publish_ports(&args.link, &ports)),
        false => found.with(links.unpublish_ports(&args.link, &ports)),
    }
}

fn bridges(client: &Client) -> Result<(), Failure> {
    const DOING: &str = "list the bridges";
    let session = client.connect(DOING)?;
    let ask = || session.call(session.manager()?.list_bridges());
    let bridges = ask().doing(|| DOING.to_owned())?;
    let heads = &["NAME", "DEVICE", "MANAGED", "SUBNET4", "SUBNET6", "LINKS"];
    output::print(client.format, &List::new(heads, bridges.iter().map(value::description)))
}

pub(super) fn links(found: &Found<'_>) -> Result<Asked<LinksProxy<'static>>, Failure> {
    found.session.links(&found.path).doing(|| found.doing.clone())
}

fn of_grant(found: &Found<'_>) -> Result<Vec<Value>, Failure> {
    const LINKS: &str = cgrant_proto::names::LINKS;
    let mut properties = found.session.properties(&found.path, LINKS).doing(|| found.doing.clone())?;
    Ok(elements(properties.remove("Links").map(|links| value::json(&links))))
}

fn elements(list: Option<Value>) -> Vec<Value> {
    match list {
        Some(Value::Array(elements)) => elements,
        _ => Vec::new(),
    }
}

fn row(grant: &str, link: Value) -> Value {
    let mut row = Map::from_iter([("grant".to_owned(), json!(grant))]);
    if let Value::Object(fields) = link {
        row.extend(fields);
    }
    Value::Object(row)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_said_is_asked_for() {
        let bare = options(Some(""), &[], &LinkArgs::default()).unwrap();
        assert!(bare.entries().is_empty());
        let properties = LinkArgs {
            address: vec!["10.0.0.9".parse().unwrap(), "fd00::9".parse().unwrap()],
            dhcp: true,
            mtu: Some(9000),
            queue_length: Some(100),
            upload: Some(1),
            download: Some(2),
            vlan: Some(12),
        };
        let full = options(Some("lan"), &["80:80".parse().unwrap()], &properties).unwrap();
        let keys: Vec<_> = full.entries().keys().copied().collect();
        assert_eq!(
            keys,
            [
                "address4",
                "address6",
                "bridge",
                "configure",
                "download",
                "mtu",
                "ports",
                "queue-length",
                "upload",
                "vlan"
            ]
        );
    }

    #[test]
    fn a_second_address_of_a_family_is_a_mistake() {
        let address = ["10.0.0.9", "10.0.0.10"].map(|text| text.parse().unwrap()).into();
        let error = options(None, &[], &LinkArgs { address, ..LinkArgs::default() }).unwrap_err();
        assert!(error.line().contains("one IPv4 address: 10.0.0.10"), "{}", error.line());
        assert_eq!(error.code(), exit::USAGE);
    }

    #[test]
    fn a_namespace_that_is_not_there_is_named() {
        for given in ["2147483632", "/no/such/namespace"] {
            let error = open_namespace(OsStr::new(given)).unwrap_err();
            assert!(error.line().contains(given), "{}", error.line());
        }
        assert!(open_namespace(OsStr::new(&std::process::id().to_string())).is_ok());
    }

    #[test]
    fn addresses_are_shown_without_prefix() {
        let link = json!({ "address4": "10.0.0.16/22", "address6": "fd00::10/64" });
        assert_eq!(addresses(&link).collect::<Vec<_>>(), ["10.0.0.16", "fd00::10"]);
        assert_eq!(addresses(&json!({})).count(), 0);
    }
}
