//! Network devices: made, found, changed, deleted.

use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{
        AfSpecInet6, AfSpecUnspec, BridgeStpState, In6AddrGenMode, InfoBridge, InfoData, InfoKind, InfoVeth,
        LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkMessage,
    },
};

use super::{
    NetlinkError, PortState, Result, Route,
    attribute::{attributes, find, text, u32_at, u32_of},
    socket::Answer,
};
use crate::NetnsFd;

/// `struct ifinfomsg`, whose second and third fields are index and flags.
const HEADER: usize = 16;
const INDEX: usize = 4;
const FLAGS: usize = 8;

/// Longest name of a device, without its NUL (`IFNAMSIZ`).
const LONGEST_NAME: usize = 15;

/// Longest alias (`IFALIASZ`).
const LONGEST_ALIAS: usize = 255;

/// A veth pair that is to be made.
#[derive(Debug, Clone, Copy)]
pub struct NewVeth<'a> {
    /// Name of the end in this socket's namespace.
    pub name: &'a str,
    /// Its alias: who it belongs to.
    pub alias: &'a str,
    /// Largest packet of both ends, in bytes.
    pub mtu: u32,
    /// Length of both ends' transmit queues, in packets; the kernel's if 0.
    pub queue_length: u32,
    /// Index of the bridge that the near end becomes a port of.
    pub master: Option<u32>,
    /// Name of the far end.
    pub peer_name: &'a str,
    /// Its address.
    pub peer_mac: [u8; 6],
    /// The network namespace that it is born in.
    pub peer_netns: &'a NetnsFd,
}

/// A device as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkState {
    /// Its index: never another one's while the namespace lives, but 2^31 devices later.
    pub index: u32,
    /// Its name; what is no UTF-8 in it is replaced.
    pub name: String,
    /// Its alias, if it has one.
    pub alias: Option<String>,
    /// Its address on the data link layer, if it has one of six bytes.
    pub mac: Option<[u8; 6]>,
    /// Largest packet, in bytes.
    pub mtu: u32,
    /// Length of the transmit queue, in packets.
    pub queue_length: u32,
    /// Was it set up?
    pub up: bool,
    /// Is it up, and its other end too?
    pub running: bool,
    /// The bridge (or bond …) that it is a port of.
    pub master: Option<u32>,
    /// What it is: `veth`, `bridge`, `tun` …; hardware has none.
    pub kind: Option<String>,
    /// Of a veth the index of its other end, in that end's namespace.
    pub peer_index: Option<u32>,
    /// How it is set as a port of a bridge.
    pub port: Option<PortState>,
}

impl Route {
    /// Makes a veth pair: the near end, down, here; the far end, down, in the namespace that is shown. Either both
    /// come to be, with all that is asked for, or none. -> index of the near end.
    ///
    /// The near end's address is the far one's with a first byte of 0xfe, so that a bridge without an address of
    /// its own never takes it; it has no link-local address.
    ///
    /// # Errors
    /// [`NetlinkError`]; `EEXIST` if one of the names is taken, `EXFULL`, `EBUSY` or `ENOSPC` if the bridge is full.
    pub fn add_veth(&self, veth: &NewVeth<'_>) -> Result<u32> {
        let action = "make a veth pair";
        check_name(action, veth.name)?;
        check_name(action, veth.peer_name)?;
        check_alias(action, veth.alias)?;
        let [_, rest @ ..] = veth.peer_mac;
        let mut near_mac = vec![0xfe];
        near_mac.extend(rest);
        let common = |name: &str, mac: Vec<u8>| {
            let mut attributes = vec![
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::Address(mac),
                LinkAttribute::Mtu(veth.mtu),
            ];
            if veth.queue_length != 0 {
                attributes.push(LinkAttribute::TxQueueLen(veth.queue_length));
            }
            attributes
        };
        let mut peer = LinkMessage::default();
        peer.attributes = common(veth.peer_name, veth.peer_mac.to_vec());
        peer.attributes.push(LinkAttribute::NetNsFd(veth.peer_netns.as_fd().as_raw_fd()));
        let mut message = LinkMessage::default();
        message.attributes = common(veth.name, near_mac);
        message.attributes.extend(veth.master.map(LinkAttribute::Controller));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]));
        self.make(action, veth.name, veth.alias, message)
    }

    /// Makes a bridge, down, with an address of its own. -> its index.
    ///
    /// Without spanning tree, and without snooping of multicasts: a port that pretends to be a multicast router could
    /// otherwise keep neighbour discovery from the others. Without a link-local address of the kernel's choice: routing IPv6
    /// needs one, but one that rules know and protect.
    ///
    /// # Errors
    /// [`NetlinkError`]; `EEXIST` if the name is taken.
    pub fn add_bridge(
        &self,
        name: &str,
        alias: &str,
        mac: [u8; 6],
        mtu: u32,
        vlan_filtering: bool,
    ) -> Result<u32> {
        let action = "make a bridge";
        check_name(action, name)?;
        check_alias(action, alias)?;
        let mut settings = vec![
            InfoBridge::ForwardDelay(0),
            InfoBridge::StpState(BridgeStpState::Disabled),
            InfoBridge::MulticastSnooping(false),
        ];
        if vlan_filtering {
            settings.push(InfoBridge::VlanFiltering(true));
        }
        let mut message = LinkMessage::default();
        message.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Address(mac.to_vec()),
            LinkAttribute::Mtu(mtu),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Bridge),
                LinkInfo::Data(InfoData::Bridge(settings)),
            ]),
        ];
        self.make(action, name, alias, message)
    }

    /// Deletes a device, of a veth both ends. -> was it there?
    ///
    /// # Errors
    /// [`NetlinkError`] but that it is not there.
    pub fn delete_link(&self, index: u32) -> Result<bool> {
        let message = LinkMessage::default();
        match self.act_on(index, "delete a network device", message, RouteNetlinkMessage::DelLink) {
            Ok(()) => Ok(true),
            Err(error) if error.is_absent() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The device of this name, if there is one. Names are found as they are, alternative names not.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn link_by_name(&self, name: &str) -> Result<Option<LinkState>> {
        let action = "look for a network device";
        check_name(action, name)?;
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned()), without_statistics()];
        self.socket.get(action, RouteNetlinkMessage::GetLink(message), read)
    }

    /// The device of this index, if there is one.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn link(&self, index: u32) -> Result<Option<LinkState>> {
        if index == 0 {
            // Asks for nothing in particular, which the kernel calls invalid.
            return Ok(None);
        }
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes = vec![without_statistics()];
        self.socket.get("look for a network device", RouteNetlinkMessage::GetLink(message), read)
    }

    /// All devices.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn links(&self) -> Result<Vec<LinkState>> {
        self.list_links(None)
    }

    /// The ports of a bridge.
    ///
    /// # Errors
    /// [`NetlinkError`]; `EINVAL` if there is no such device.
    pub fn ports(&self, bridge: u32) -> Result<Vec<LinkState>> {
        let mut ports = self.list_links(Some(bridge))?;
        ports.retain(|port| port.master == Some(bridge));
        Ok(ports)
    }

    fn list_links(&self, master: Option<u32>) -> Result<Vec<LinkState>> {
        let mut message = LinkMessage::default();
        message.attributes = vec![without_statistics()];
        message.attributes.extend(master.map(LinkAttribute::Controller));
        self.socket.list("list the network devices", &RouteNetlinkMessage::GetLink(message), read)
    }

    /// Sets a device up or down.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn set_up(&self, index: u32, up: bool) -> Result<()> {
        let mut message = LinkMessage::default();
        message.header.flags = if up { LinkFlags::Up } else { LinkFlags::empty() };
        message.header.change_mask = LinkFlags::Up;
        self.act_on(index, "set a network device up or down", message, RouteNetlinkMessage::SetLink)
    }

    /// Gives a device another name.
    ///
    /// # Errors
    /// [`NetlinkError`]; `EEXIST` if the name is taken, `EBUSY` (before kernel 6.3) while the device is up.
    pub fn set_name(&self, index: u32, name: &str) -> Result<()> {
        check_name("rename a network device", name)?;
        self.set(index, "rename a network device", LinkAttribute::IfName(name.to_owned()))
    }

    /// Sets the largest packet, in bytes.
    ///
    /// # Errors
    /// [`NetlinkError`]; `EINVAL` if the device can't have that.
    pub fn set_mtu(&self, index: u32, mtu: u32) -> Result<()> {
        self.set(index, "set the MTU of a network device", LinkAttribute::Mtu(mtu))
    }

    /// Makes a device a port of a bridge, or of none.
    ///
    /// # Errors
    /// [`NetlinkError`]; `EXFULL`, `EBUSY` or `ENOSPC` if the bridge is full.
    pub fn set_master(&self, index: u32, master: Option<u32>) -> Result<()> {
        let master = LinkAttribute::Controller(master.unwrap_or(0));
        self.set(index, "make a network device a port of a bridge", master)
    }

    /// Writes who a device belongs to into it.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn set_alias(&self, index: u32, alias: &str) -> Result<()> {
        let action = "set the alias of a network device";
        check_alias(action, alias)?;
        self.set(index, action, LinkAttribute::IfAlias(alias.to_owned()))
    }

    /// Sets the address on the data link layer.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn set_mac(&self, index: u32, mac: [u8; 6]) -> Result<()> {
        self.set(index, "set the MAC address of a network device", LinkAttribute::Address(mac.to_vec()))
    }

    /// Sets the length of the transmit queue, in packets.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn set_queue_length(&self, index: u32, packets: u32) -> Result<()> {
        self.set(index, "set the queue length of a network device", LinkAttribute::TxQueueLen(packets))
    }

    /// Keeps the kernel from giving a device a link-local address of its own when it comes up. A kernel without IPv6 has nothing to keep.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub fn set_without_link_local(&self, index: u32) -> Result<()> {
        match self.set(index, "keep a network device without link-local address", without_link_local()) {
            Err(error) if error.is(libc::EAFNOSUPPORT) => Ok(()),
            other => other,
        }
    }

    fn set(&self, index: u32, action: &'static str, attribute: LinkAttribute) -> Result<()> {
        let mut message = LinkMessage::default();
        message.attributes = vec![attribute];
        self.act_on(index, action, message, RouteNetlinkMessage::SetLink)
    }

    /// Does something to one device, which has to be named: index 0 names none, and a request without a name could mean any.
    pub(super) fn act_on(
        &self,
        index: u32,
        action: &'static str,
        mut message: LinkMessage,
        kind: impl FnOnce(LinkMessage) -> RouteNetlinkMessage,
    ) -> Result<()> {
        if index == 0 {
            return Err(NetlinkError::Unacceptable { action, what: "index 0" });
        }
        message.header.index = index;
        self.socket.act(action, kind(message), 0)
    }

    /// Makes a device, and does to it what the kernel takes no notice of while it makes one [tried]: its alias, and that it
    /// has no link-local address. All or nothing. -> its index.
    fn make(&self, action: &'static str, name: &str, alias: &str, message: LinkMessage) -> Result<u32> {
        self.socket.act(action, RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL)?;
        let made = self.link_by_name(name)?;
        // The far end's owner may be that quick.
        let gone = || NetlinkError::Refused { action, errno: libc::ENODEV, reason: "deleted at once".into() };
        let index = made.ok_or_else(gone)?.index;
        let alias = LinkAttribute::IfAlias(alias.to_owned());
        let mut message = LinkMessage::default();
        message.attributes = vec![alias.clone(), without_link_local()];
        let mut rest = self.act_on(index, action, message, RouteNetlinkMessage::SetLink);
        if rest.as_ref().is_err_and(|error| error.is(libc::EAFNOSUPPORT)) {
            // A kernel without IPv6 has nothing to keep.
            rest = self.set(index, action, alias);
        }
        if rest.is_err() {
            // The first error is the one to tell; whoever restores finds the device by its name.
            let _ = self.delete_link(index);
        }
        rest.map(|()| index)
    }
}

/// Keeps the kernel from giving a device a link-local address of its own.
fn without_link_local() -> LinkAttribute {
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])])
}

/// Statistics are most of what the kernel has to say about a device.
fn without_statistics() -> LinkAttribute {
    LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats])
}

/// A device out of the kernel's answer.
fn read(answer: &Answer<'_>) -> Option<LinkState> {
    (answer.kind == libc::RTM_NEWLINK).then(|| LinkState::parse(answer.payload)).flatten()
}

impl LinkState {
    /// Reads a message of kind `RTM_NEWLINK` or `RTM_DELLINK`; `None` if it is about something else than a device.
    pub(super) fn parse(payload: &[u8]) -> Option<Self> {
        if payload.first() != Some(&u8::from(AddressFamily::Unspec)) {
            // The bridge's view of its ports and others come in the same kind of message.
            return None;
        }
        let (index, flags) = (u32_at(payload, INDEX)?, LinkFlags::from_bits_retain(u32_at(payload, FLAGS)?));
        let mut link = Self {
            index,
            name: String::new(),
            alias: None,
            mac: None,
            mtu: 0,
            queue_length: 0,
            up: flags.contains(LinkFlags::Up),
            running: flags.contains(LinkFlags::Running),
            master: None,
            kind: None,
            peer_index: None,
            port: None,
        };
        let mut lower = None;
        for (kind, value) in attributes(payload.get(HEADER..)?) {
            match kind {
                libc::IFLA_IFNAME => link.name = text(value),
                libc::IFLA_IFALIAS => link.alias = Some(text(value)),
                libc::IFLA_ADDRESS => link.mac = value.try_into().ok(),
                libc::IFLA_MTU => link.mtu = u32_of(value)?,
                libc::IFLA_TXQLEN => link.queue_length = u32_of(value)?,
                libc::IFLA_MASTER => link.master = u32_of(value),
                libc::IFLA_LINK => lower = u32_of(value),
                libc::IFLA_LINKINFO => {
                    link.kind = find(value, libc::IFLA_INFO_KIND).map(text);
                    if find(value, libc::IFLA_INFO_SLAVE_KIND).map(text).as_deref() == Some("bridge") {
                        link.port = find(value, libc::IFLA_INFO_SLAVE_DATA).map(PortState::parse);
                    }
                }
                _ => (),
            }
        }
        link.peer_index = lower.filter(|_| link.kind.as_deref() == Some("veth"));
        Some(link)
    }
}

/// What the kernel takes as a name (`dev_valid_name`), without its patterns: `%d` would make it choose.
fn check_name(action: &'static str, name: &str) -> Result<()> {
    let acceptable = (1..=LONGEST_NAME).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'));
    if acceptable { Ok(()) } else { Err(NetlinkError::Unacceptable { action, what: "the device's name" }) }
}

fn check_alias(action: &'static str, alias: &str) -> Result<()> {
    let acceptable = alias.len() <= LONGEST_ALIAS && !alias.contains('\0');
    if acceptable { Ok(()) } else { Err(NetlinkError::Unacceptable { action, what: "the device's alias" }) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn names_that_mean_something_else_are_refused() {
        for good in ["eth0", "a", "cgv0123456789", "fifteen_letters", "x-y.z@1"] {
            check_name("try", good).unwrap();
        }
        for bad in ["", ".", "..", "a/b", "a:b", "eth%d", "a b", "a\0b", "sixteen__letters", "ä"] {
            assert!(check_name("try", bad).is_err(), "{bad:?}");
        }
        check_alias("try", "cgrant default 0123 eth0").unwrap();
        assert!(check_alias("try", &"x".repeat(256)).is_err());
        assert!(check_alias("try", "a\0").is_err());
    }

    #[test]
    fn short_messages_are_no_devices() {
        for length in 0..HEADER {
            assert_eq!(LinkState::parse(&vec![0; length]), None);
        }
        let state = LinkState::parse(&[0; HEADER]).unwrap();
        assert_eq!((state.index, state.name.as_str(), state.up), (0, "", false));
        // The bridge's view.
        assert_eq!(LinkState::parse(&[7; HEADER]), None);
    }
}
