//! The options of a link, as what is asked of the engine. Which values make sense together and what policy allows is
//! the engine's to say; here a value only gets its type.

use std::str::FromStr;

use cgrant_proto::Port;
use cgrant_wire::{LinkKind, LinkRequest, PublishedPort, Transport};

use crate::{
    call::{MAX_NAME, MAX_WORD},
    fault::Fault,
    options::{Descriptors, Options},
};

/// Longest text of an address that is looked at: the longest of IPv6's.
const MAX_ADDRESS: usize = 45;

/// The link that `options` ask for.
///
/// # Errors
/// [`Fault::Argument`] with the option that is wrong.
pub fn request(options: Options<true>, fds: &mut Descriptors) -> Result<LinkRequest, Fault> {
    let request = described(options, fds)?;
    match (request.kind, request.netns) {
        (LinkKind::Veth, None) => {
            Err(Fault::argument("netns", "a veth pair needs the network namespace of its far end"))
        }
        (LinkKind::Tap, Some(_)) => Err(Fault::argument("netns", "means nothing with kind \"tap\"")),
        _ => Ok(request),
    }
}

/// The link that `options` describe, whether or not there is a namespace for it.
///
/// # Errors
/// [`Fault::Argument`] with the option that is wrong.
pub fn described(mut options: Options<true>, fds: &mut Descriptors) -> Result<LinkRequest, Fault> {
    let request = LinkRequest {
        kind: kind(&mut options)?,
        netns: options.fd("netns")?.map(|fd| fds.add(fd)),
        name: options.text("name", MAX_NAME)?.unwrap_or_default(),
        bridge: options.text("bridge", MAX_NAME)?.unwrap_or_default(),
        address4: address(&mut options, "address4", "an IPv4 address")?,
        address6: address(&mut options, "address6", "an IPv6 address")?,
        configure: options.flag("configure")?.unwrap_or(true),
        mtu: options.number("mtu")?.unwrap_or(0),
        queue_length: options.number("queue-length")?.unwrap_or(0),
        upload: options.long("upload")?.unwrap_or(0),
        download: options.long("download")?.unwrap_or(0),
        vlan: options.short("vlan")?.unwrap_or(0),
        ports: ports(&options.texts("ports")?.unwrap_or_default().0)?,
    };
    options.finish()?;
    Ok(request)
}

/// Published ports as callers write them.
///
/// # Errors
/// [`Fault::Argument`] with the first that is none.
pub fn ports(texts: &[String]) -> Result<Vec<PublishedPort>, Fault> {
    texts.iter().map(|text| text.parse().map(published).map_err(|error| bad_port(&error))).collect()
}

fn bad_port(error: &cgrant_proto::BadPort) -> Fault {
    Fault::argument("ports", &error.to_string())
}

const fn published(port: Port) -> PublishedPort {
    let Port { address, host, container, transport } = port;
    let transport = match transport {
        cgrant_proto::Transport::Tcp => Transport::Tcp,
        cgrant_proto::Transport::Udp => Transport::Udp,
    };
    PublishedPort { address, host, container, transport }
}

fn kind(options: &mut Options<true>) -> Result<LinkKind, Fault> {
    match options.text("kind", MAX_WORD)?.as_deref() {
        None | Some("veth") => Ok(LinkKind::Veth),
        Some("tap") => Ok(LinkKind::Tap),
        Some(_) => Err(Fault::argument("kind", "neither \"veth\" nor \"tap\"")),
    }
}

fn address<A: FromStr>(options: &mut Options<true>, key: &str, what: &str) -> Result<Option<A>, Fault> {
    let Some(text) = options.text(key, MAX_ADDRESS)? else { return Ok(None) };
    text.parse().map(Some).map_err(|_| Fault::argument(key, &format!("not {what}")))
}
