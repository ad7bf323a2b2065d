//! Tables of nftables, each put in place as a whole: what a network namespace does with packets, where no `nft` is installed.
//!
//! Only what a bridge with address translation and published ports needs can be said. It is one transaction: the table is
//! there with all its rules or as it was before.
//!
//! Sources: `include/uapi/linux/netfilter/{nfnetlink,nf_tables}.h`; what `nft --debug=netlink` says of the same rules.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::OwnedFd,
};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REQUEST,
    NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::{
    NetlinkError, Result,
    attribute::{concat, find, text as text_of},
    socket::{LARGEST, borrow, receive, verdict},
};

const ACTION: &str = "set the rules of nftables";
const LISTING: &str = "list the tables of nftables";

/// Most tables that are looked at.
const MOST: usize = 1 << 14;
/// How often a list that changed meanwhile is asked for again.
const TRIES: usize = 16;

/// Bit of an attribute's number that says that there are attributes in it.
const NESTED: u16 = 0x8000;

/// `NFNL_SUBSYS_NFTABLES`, and what begins and ends a transaction.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;

/// `enum nf_tables_msg_types`.
const NEW_TABLE: u16 = 0;
const GET_TABLE: u16 = 1;
const DELETE_TABLE: u16 = 2;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;

/// `NFPROTO_UNSPEC`, `NFPROTO_INET`, `NFPROTO_IPV4`, `NFPROTO_NETDEV`, `NFPROTO_BRIDGE`, `NFPROTO_IPV6`.
const NO_FAMILY: u8 = 0;
const BOTH_FAMILIES: u8 = 1;
const IPV4: u8 = 2;
const DEVICES: u8 = 5;
const BRIDGES: u8 = 7;
const IPV6: u8 = 10;

/// `NFTA_TABLE_NAME`, and the table's name in what is about chains and rules.
const TABLE: u16 = 1;
const TABLE_FLAGS: u16 = 2;
const TABLE_USERDATA: u16 = 6;
/// `NFT_TABLE_F_OWNER` (Linux 5.12).
const OWNED: u32 = 2;
/// `NFTNL_UDATA_TABLE_COMMENT`: how `nft` keeps a comment.
const COMMENT: u8 = 0;
/// `NFTA_CHAIN_*`.
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4 | NESTED;
const CHAIN_TYPE: u16 = 7;
/// `NFTA_HOOK_*`.
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_DEVICE: u16 = 3;
/// `NFTA_RULE_*`.
const RULE_CHAIN: u16 = 2;
const RULE_EXPRESSIONS: u16 = 4 | NESTED;
/// `NFTA_LIST_ELEM`, `NFTA_EXPR_*`.
const ELEMENT: u16 = 1 | NESTED;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2 | NESTED;
/// `NFTA_DATA_*`, `NFTA_VERDICT_CODE`.
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2 | NESTED;
const VERDICT_CODE: u16 = 1;

/// The register that all rules here use, a second one beside it, and that of the verdict.
const REGISTER: [u8; 4] = 1_u32.to_be_bytes();
const SECOND_REGISTER: [u8; 4] = 2_u32.to_be_bytes();
const VERDICT_REGISTER: [u8; 4] = 0_u32.to_be_bytes();

/// `NFT_META_*`.
const META_PROTOCOL: u32 = 1;
const META_IIF: u32 = 4;
const META_OIF: u32 = 5;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
/// `ETH_P_IP`, `ETH_P_ARP`, `ETH_P_IPV6`.
const ETHERTYPE_ARP: [u8; 2] = 0x0806_u16.to_be_bytes();
const ETHERTYPE_IPV4: [u8; 2] = 0x0800_u16.to_be_bytes();
const ETHERTYPE_IPV6: [u8; 2] = 0x86dd_u16.to_be_bytes();
/// `NFT_CT_STATE`; its bits for packets that belong to no connection, begin one, or are not looked at.
const CT_STATE: u32 = 0;
const NOT_KNOWN: u32 = 1 | 8 | 64;
/// `NFT_CT_STATUS` and `IPS_DST_NAT`; who began a connection (`NFT_CT_SRC_IP`, `NFT_CT_SRC_IP6`, `IP_CT_DIR_ORIGINAL`).
const CT_STATUS: u32 = 2;
const REDIRECTED: u32 = 1 << 5;
const CT_SOURCE4: u32 = 19;
const CT_SOURCE6: u32 = 21;
const ORIGINAL: [u8; 1] = [0];
/// `NFT_FIB_RESULT_ADDRTYPE`, `NFTA_FIB_F_DADDR`, `RTN_LOCAL`.
const ADDRESS_TYPE: u32 = 3;
const OF_DESTINATION: u32 = 2;
const LOCAL: u32 = 2;
/// `NFT_PAYLOAD_LL_HEADER`, `NFT_PAYLOAD_NETWORK_HEADER`, `NFT_PAYLOAD_TRANSPORT_HEADER`.
const FRAME_HEADER: u32 = 0;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
/// Where its type stands in a frame's header: that of a tag, if there is one, also if the kernel took the tag off already.
const FRAME_TYPE: u32 = 12;
/// The sixteen groups of IEEE 802.1Q, table 8-1, without the last four bits.
const RESERVED: [u8; 6] = [0x01, 0x80, 0xc2, 0, 0, 0];
const RESERVED_MASK: [u8; 6] = [0xff, 0xff, 0xff, 0xff, 0xff, 0xf0];
/// Where the sender's address stands in ARP of Ethernet and IPv4, and the target in neighbour discovery.
const ARP_SENDER: u32 = 14;
const TARGET6: u32 = 8;
const IPPROTO_ICMPV6: u8 = 58;
/// Where the ports stand in the transport header.
const SOURCE_PORT: u32 = 0;
const DESTINATION_PORT: u32 = 2;
/// `NFT_LIMIT_PKT_BYTES`, `NFT_LIMIT_F_INV`.
const BYTES: u32 = 1;
const OVER: u32 = 1;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY`.
const FULLY_RANDOM: u32 = 1 << 4;
/// `NFT_NAT_DNAT`.
const DESTINATION_NAT: u32 = 1;

/// What of a packet a rule looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    /// It came in by the device of this index.
    From(u32),
    /// By another one, or it is of this namespace.
    NotFrom(u32),
    /// It goes out by the device of this index.
    To(u32),
    /// By another one.
    NotTo(u32),
    /// Its sender is in this network.
    Source(IpAddr, u8),
    /// It is of the network's family, and its sender is not in it.
    ForeignSource(IpAddr, u8),
    /// It belongs to no connection that is known.
    Unknown,
    /// Its protocol above IP is another one (`IPPROTO_*`).
    NotProtocol(u8),
    /// It is this one.
    Protocol(u8),
    /// It goes to an address in this network.
    Destination(IpAddr, u8),
    /// It is of the network's family, and goes to an address that is not in it.
    ForeignDestination(IpAddr, u8),
    /// It goes to an address of this namespace's own.
    Local,
    /// Its frame goes to all, or to a group.
    Group,
    /// Its frame goes to a group of those that no bridge passes on: `01:80:c2:00:00:00` to `…:0f`.
    ReservedGroup,
    /// Its frame is neither of ARP nor of IP, but with a tag for instance, whatever lies behind that.
    OtherFrame,
    /// It is ARP, whose sender claims another address than this one. (One that asks whether an address is free claims none.)
    ForeignClaim4(Ipv4Addr),
    /// It is a message of ICMPv6 of this type.
    Icmp6(u8),
    /// The address that it is about is not in this network; only behind [`Match::Icmp6`] of neighbour discovery.
    ForeignTarget6(Ipv6Addr, u8),
    /// It comes from this port; only behind [`Match::Protocol`] of one that has ports.
    SourcePort(u16),
    /// It goes to this port; likewise.
    DestinationPort(u16),
    /// Its connection was led elsewhere than it was meant for.
    Redirected,
    /// It was not.
    NotRedirected,
    /// Its connection is of the address's family and was begun by another one.
    NotBegunBy(IpAddr),
    /// More than so many bytes come in a second, after so many at once.
    Over(u64, u32),
}

/// What becomes of a packet that all matches of a rule are true of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Drop,
    /// It leaves with an address of the device that it goes out by; only in [`Hook::SourceNat`].
    Masquerade,
    /// The same, with a port that nobody can foresee.
    MasqueradeAnew,
    /// It goes there, of its own family; only in [`Hook::DestinationNat`] and [`Hook::OwnDestinationNat`].
    Redirect(SocketAddr),
}

/// Where a chain sees packets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hook {
    /// Before it is decided where it goes, the first of each connection.
    DestinationNat,
    /// The same of what programs of this namespace send.
    OwnDestinationNat,
    /// For programs of this namespace.
    Input,
    /// On their way through it.
    Forward,
    /// On their way out of it, the first of each connection.
    SourceNat,
    /// The same, before others decide.
    FirstSourceNat,
    /// At last, as they leave it.
    Leaving,
    /// From port to port of a bridge; only of a table of [`Family::Bridges`].
    Bridged,
    /// By the device of this name, before anything else sees them; only of a table of [`Family::Devices`].
    Ingress(String),
}

/// What a table is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Internet,
    /// Devices.
    Devices,
    /// Bridges.
    Bridges,
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Self::Internet => BOTH_FAMILIES,
            Self::Devices => DEVICES,
            Self::Bridges => BRIDGES,
        }
    }
}

/// A rule.
pub type Rule = (Vec<Match>, Verdict);

/// A chain of rules; what none of them is about passes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Where it sees packets.
    pub hook: Hook,
    /// In their order.
    pub rules: Vec<Rule>,
}

/// Puts the table of this name, for both families, in the place of the one that is there, in the network namespace of this thread.
///
/// # Errors
/// [`NetlinkError`]: `EPERM` without `CAP_NET_ADMIN` there, `EOPNOTSUPP` or `ENOENT` for what the kernel was made without.
pub fn replace_table(name: &str, chains: &[Chain]) -> Result<()> {
    let socket = open().map_err(|source| NetlinkError::Socket { action: ACTION, source })?;
    carry_out(&socket, &Batch::replacing(name, chains))
}

/// Makes a table of this name, with a note of at most 250 bytes, in the network namespace of this thread. It is there as long as
/// the descriptor is open, in whatever process; nobody else can change it, nor flush it with all others (Linux 5.12).
///
/// # Errors
/// As [`replace_table`]; `EEXIST` if there is one of the name.
pub fn own_table(family: Family, name: &str, note: &str, chains: &[Chain]) -> Result<OwnedFd> {
    let socket_error = |source| NetlinkError::Socket { action: ACTION, source };
    let socket = open().map_err(socket_error)?;
    carry_out(&socket, &Batch::owning(family, name, note, chains))?;
    borrow(&socket).try_clone_to_owned().map_err(socket_error)
}

/// Names and notes of the tables of a family, in the network namespace of this thread. Those without a note are left out.
///
/// # Errors
/// [`NetlinkError`]: `EPERM` without `CAP_NET_ADMIN` there.
pub fn tables(family: Family) -> Result<Vec<(String, String)>> {
    let socket_error = |source| NetlinkError::Socket { action: LISTING, source };
    let socket = open().map_err(socket_error)?;
    for _ in 0..TRIES {
        let mut request = Batch::empty(family.number());
        request.push(SUBSYSTEM << 8 | GET_TABLE, NLM_F_DUMP, family.number(), 0, &[]);
        socket.send(&request.bytes, libc::MSG_DONTWAIT).map_err(socket_error)?;
        let (mut found, mut interrupted) = (Vec::new(), false);
        each_answer(&socket, LISTING, |kind, flags, payload| {
            interrupted |= flags & NLM_F_DUMP_INTR != 0;
            match kind {
                NLMSG_DONE => return Ok(true),
                NLMSG_ERROR => verdict(LISTING, flags, payload, 0)?,
                _ if found.len() < MOST => found.extend(noted(payload)),
                _ => {}
            }
            Ok(false)
        })?;
        if !interrupted {
            return Ok(found);
        }
    }
    Err(NetlinkError::Unsteady { action: LISTING })
}

/// Name and note of a table.
fn noted(payload: &[u8]) -> Option<(String, String)> {
    // Behind struct nfgenmsg.
    let attributes = payload.get(4..)?;
    let [COMMENT, _, note @ ..] = find(attributes, TABLE_USERDATA)? else { return None };
    Some((text_of(find(attributes, TABLE)?), text_of(note)))
}

/// Sends a transaction. The kernel has done, or refused, all of it by then; each part is answered.
fn carry_out(socket: &netlink_sys::Socket, batch: &Batch) -> Result<()> {
    let socket_error = |source| NetlinkError::Socket { action: ACTION, source };
    let sent = socket.send(&batch.bytes, libc::MSG_DONTWAIT).map_err(socket_error)?;
    if sent != batch.bytes.len() {
        return Err(socket_error(io::ErrorKind::WriteZero.into()));
    }
    let mut answered = 0;
    each_answer(socket, ACTION, |kind, flags, payload| {
        if kind == NLMSG_ERROR {
            verdict(ACTION, flags, payload, 0)?;
            answered += 1;
        }
        Ok(answered == batch.parts)
    })
}

/// Reads answers, type, flags and what is behind the header, until `each` says that it was the last one.
fn each_answer(
    socket: &netlink_sys::Socket,
    action: &'static str,
    mut each: impl FnMut(u16, u16, &[u8]) -> Result<bool>,
) -> Result<()> {
    let mut buffer = vec![0; LARGEST];
    loop {
        let length =
            receive(socket, &mut buffer).map_err(|source| NetlinkError::Socket { action, source })?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            let malformed = || NetlinkError::Malformed { action };
            let message = NetlinkBuffer::new_checked(rest).map_err(|_| malformed())?;
            let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            if each(message.message_type(), message.flags(), message.payload())? {
                return Ok(());
            }
        }
    }
}

fn open() -> io::Result<netlink_sys::Socket> {
    let mut socket = netlink_sys::Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    // Requests are not echoed in errors: an answer stays short.
    socket.set_cap_ack(true)?;
    socket.connect(&netlink_sys::SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// A transaction: messages one behind the other.
struct Batch {
    family: u8,
    bytes: Vec<u8>,
    /// How many answers there will be.
    parts: usize,
}

impl Batch {
    fn empty(family: u8) -> Self {
        Self { family, bytes: Vec::new(), parts: 0 }
    }

    fn replacing(name: &str, chains: &[Chain]) -> Self {
        let mut batch = Self::empty(BOTH_FAMILIES);
        let table = concat(&[(TABLE, &text(name))]);
        batch.push(BATCH_BEGIN, 0, NO_FAMILY, SUBSYSTEM, &[]);
        // To delete what is not there is refused.
        batch.part(NEW_TABLE, NLM_F_CREATE, &table);
        batch.part(DELETE_TABLE, 0, &table);
        batch.part(NEW_TABLE, NLM_F_CREATE, &table);
        batch.fill(name, chains);
        batch
    }

    fn owning(family: Family, name: &str, note: &str, chains: &[Chain]) -> Self {
        let mut batch = Self::empty(family.number());
        let note = text(note);
        let length = u8::try_from(note.len()).unwrap_or(0);
        let comment = [&[COMMENT, length], note.as_slice()].concat();
        let table =
            concat(&[(TABLE, &text(name)), (TABLE_FLAGS, &OWNED.to_be_bytes()), (TABLE_USERDATA, &comment)]);
        batch.push(BATCH_BEGIN, 0, NO_FAMILY, SUBSYSTEM, &[]);
        batch.part(NEW_TABLE, NLM_F_CREATE | NLM_F_EXCL, &table);
        batch.fill(name, chains);
        batch
    }

    /// Chains and rules, and the end.
    fn fill(&mut self, table: &str, chains: &[Chain]) {
        for chain in chains {
            self.part(NEW_CHAIN, NLM_F_CREATE, &chain.attributes(table));
            for rule in &chain.rules {
                let attributes = concat(&[
                    (TABLE, &text(table)),
                    (RULE_CHAIN, &text(chain.name)),
                    (RULE_EXPRESSIONS, &expressions(self.family, rule)),
                ]);
                self.part(NEW_RULE, NLM_F_CREATE | NLM_F_APPEND, &attributes);
            }
        }
        self.push(BATCH_END, 0, NO_FAMILY, SUBSYSTEM, &[]);
    }

    fn part(&mut self, kind: u16, flags: u16, attributes: &[u8]) {
        self.parts += 1;
        self.push(SUBSYSTEM << 8 | kind, NLM_F_ACK | flags, self.family, 0, attributes);
    }

    /// `struct nlmsghdr`, `struct nfgenmsg`, attributes.
    fn push(&mut self, kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) {
        let length = u32::try_from(20 + attributes.len()).unwrap_or(u32::MAX);
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        self.bytes.extend([0; 8]);
        self.bytes.extend([family, 0]);
        self.bytes.extend(resource.to_be_bytes());
        self.bytes.extend(attributes);
    }
}

impl Chain {
    fn attributes(&self, table: &str) -> Vec<u8> {
        // NF_INET_* or NF_NETDEV_INGRESS, and where others' chains expect theirs (NF_IP_PRI_NAT_DST, _FILTER, _NAT_SRC).
        let (number, priority, kind): (u32, i32, &str) = match self.hook {
            Hook::DestinationNat => (0, -100, "nat"),
            Hook::Input => (1, 0, "filter"),
            Hook::Forward => (2, 0, "filter"),
            Hook::OwnDestinationNat => (3, -100, "nat"),
            Hook::SourceNat => (4, 100, "nat"),
            Hook::FirstSourceNat => (4, 99, "nat"),
            Hook::Leaving => (4, 110, "filter"),
            // NF_BR_FORWARD, NF_BR_PRI_FILTER_BRIDGED.
            Hook::Bridged => (2, -200, "filter"),
            Hook::Ingress(_) => (0, 0, "filter"),
        };
        let mut hook =
            concat(&[(HOOK_NUMBER, &number.to_be_bytes()), (HOOK_PRIORITY, &priority.to_be_bytes())]);
        if let Hook::Ingress(device) = &self.hook {
            hook.extend(concat(&[(HOOK_DEVICE, &text(device))]));
        }
        concat(&[
            (TABLE, &text(table)),
            (CHAIN_NAME, &text(self.name)),
            (CHAIN_HOOK, &hook),
            (CHAIN_TYPE, &text(kind)),
        ])
    }
}

/// A text and its NUL.
fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

/// One part of a rule.
fn expression(name: &str, data: &[(u16, &[u8])]) -> Vec<u8> {
    let data = concat(data);
    concat(&[(ELEMENT, &concat(&[(EXPRESSION_NAME, &text(name)), (EXPRESSION_DATA, &data)]))])
}

fn expressions(table: u8, (matches, verdict): &Rule) -> Vec<u8> {
    let mut all = Vec::new();
    for one in matches {
        match *one {
            Match::From(index) => all.extend(meta(META_IIF, true, &index.to_ne_bytes())),
            Match::NotFrom(index) => all.extend(meta(META_IIF, false, &index.to_ne_bytes())),
            Match::To(index) => all.extend(meta(META_OIF, true, &index.to_ne_bytes())),
            Match::NotTo(index) => all.extend(meta(META_OIF, false, &index.to_ne_bytes())),
            Match::Source(network, prefix) => all.extend(address(table, End::Source, network, prefix, true)),
            Match::ForeignSource(network, prefix) => {
                all.extend(address(table, End::Source, network, prefix, false));
            }
            Match::Destination(network, prefix) => {
                all.extend(address(table, End::Destination, network, prefix, true));
            }
            Match::ForeignDestination(network, prefix) => {
                all.extend(address(table, End::Destination, network, prefix, false));
            }
            Match::NotProtocol(number) => all.extend(meta(META_L4PROTO, false, &[number])),
            Match::Protocol(number) => all.extend(meta(META_L4PROTO, true, &[number])),
            Match::SourcePort(port) => all.extend(port_at(SOURCE_PORT, port)),
            Match::DestinationPort(port) => all.extend(port_at(DESTINATION_PORT, port)),
            Match::Local => {
                let (result, flags) = (ADDRESS_TYPE.to_be_bytes(), OF_DESTINATION.to_be_bytes());
                all.extend(expression("fib", &[(1, &REGISTER), (2, &result), (3, &flags)]));
                all.extend(compared(true, &LOCAL.to_ne_bytes()));
            }
            Match::Group => {
                // The first bit on the wire.
                all.extend(payload(FRAME_HEADER, 0, 1));
                all.extend(masked(&[1]));
                all.extend(compared(true, &[1]));
            }
            Match::ReservedGroup => {
                all.extend(payload(FRAME_HEADER, 0, 6));
                all.extend(masked(&RESERVED_MASK));
                all.extend(compared(true, &RESERVED));
            }
            Match::OtherFrame => {
                all.extend(payload(FRAME_HEADER, FRAME_TYPE, 2));
                for known in [ETHERTYPE_ARP, ETHERTYPE_IPV4, ETHERTYPE_IPV6] {
                    all.extend(compared(false, &known));
                }
            }
            Match::ForeignClaim4(own) => {
                all.extend(meta(META_PROTOCOL, true, &ETHERTYPE_ARP));
                all.extend(payload(NETWORK_HEADER, ARP_SENDER, 4));
                all.extend(compared(false, &own.octets()));
                all.extend(compared(false, &Ipv4Addr::UNSPECIFIED.octets()));
            }
            Match::Icmp6(kind) => {
                all.extend(meta(META_L4PROTO, true, &[IPPROTO_ICMPV6]));
                all.extend(payload(TRANSPORT_HEADER, 0, 1));
                all.extend(compared(true, &[kind]));
            }
            Match::ForeignTarget6(network, prefix) => {
                let (network, mask) = network_of(network.into(), prefix);
                all.extend(payload(TRANSPORT_HEADER, TARGET6, 16));
                all.extend(masked(&mask));
                all.extend(compared(false, &network));
            }
            Match::Unknown => all.extend(connection(CT_STATE, NOT_KNOWN, true)),
            Match::Redirected => all.extend(connection(CT_STATUS, REDIRECTED, true)),
            Match::NotRedirected => all.extend(connection(CT_STATUS, REDIRECTED, false)),
            Match::NotBegunBy(address) => all.extend(begun_by_another(address)),
            Match::Over(rate, burst) => all.extend(expression(
                "limit",
                &[
                    (1, &rate.to_be_bytes()),
                    (2, &1_u64.to_be_bytes()),
                    (3, &burst.to_be_bytes()),
                    (4, &BYTES.to_be_bytes()),
                    (5, &OVER.to_be_bytes()),
                ],
            )),
        }
    }
    match verdict {
        Verdict::Drop => {
            let code = concat(&[(VERDICT_CODE, &0_u32.to_be_bytes())]);
            let data = concat(&[(DATA_VERDICT, &code)]);
            all.extend(expression("immediate", &[(1, &VERDICT_REGISTER), (2 | NESTED, &data)]));
        }
        Verdict::Masquerade => all.extend(expression("masq", &[])),
        Verdict::MasqueradeAnew => all.extend(expression("masq", &[(1, &FULLY_RANDOM.to_be_bytes())])),
        Verdict::Redirect(to) => {
            let family = u32::from(family_of(to.ip())).to_be_bytes();
            all.extend(loaded(&REGISTER, &octets(to.ip())));
            all.extend(loaded(&SECOND_REGISTER, &to.port().to_be_bytes()));
            all.extend(expression(
                "nat",
                &[(1, &DESTINATION_NAT.to_be_bytes()), (2, &family), (3, &REGISTER), (5, &SECOND_REGISTER)],
            ));
        }
    }
    all
}

fn family_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { IPV4 } else { IPV6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// Puts a value into a register.
fn loaded(register: &[u8; 4], value: &[u8]) -> Vec<u8> {
    expression("immediate", &[(1, register), (2 | NESTED, &concat(&[(DATA_VALUE, value)]))])
}

/// Are there any of these bits in what is known of the connection, or none?
fn connection(key: u32, bits: u32, any: bool) -> Vec<u8> {
    let load = expression("ct", &[(1, &REGISTER), (2, &key.to_be_bytes())]);
    [load, masked(&bits.to_ne_bytes()), compared(!any, &[0; 4])].concat()
}

fn begun_by_another(address: IpAddr) -> Vec<u8> {
    let key = if address.is_ipv4() { CT_SOURCE4 } else { CT_SOURCE6 };
    let load = expression("ct", &[(1, &REGISTER), (2, &key.to_be_bytes()), (3, &ORIGINAL)]);
    [meta(META_NFPROTO, true, &[family_of(address)]), load, compared(false, &octets(address))].concat()
}

/// Is it this port?
fn port_at(offset: u32, port: u16) -> Vec<u8> {
    [payload(TRANSPORT_HEADER, offset, 2), compared(true, &port.to_be_bytes())].concat()
}

/// So many bytes of a header.
fn payload(header: u32, offset: u32, length: u32) -> Vec<u8> {
    expression(
        "payload",
        &[(1, &REGISTER), (2, &header.to_be_bytes()), (3, &offset.to_be_bytes()), (4, &length.to_be_bytes())],
    )
}

/// Whose address is looked at.
#[derive(Clone, Copy)]
enum End {
    Source,
    Destination,
}

/// Is this of the packet so, or not so?
fn meta(key: u32, is: bool, value: &[u8]) -> Vec<u8> {
    let load = expression("meta", &[(1, &REGISTER), (2, &key.to_be_bytes())]);
    [load, compared(is, value)].concat()
}

/// Is the address in the network, or not in it? Of the other family neither is true.
fn address(table: u8, end: End, network: IpAddr, prefix: u8, is: bool) -> Vec<u8> {
    let family = family_of(network);
    let (offset, length) = match (family, end) {
        (IPV4, End::Source) => (12, 4),
        (IPV4, End::Destination) => (16, 4),
        (_, End::Source) => (8, 16),
        (_, End::Destination) => (24, 16),
    };
    let (network, mask) = network_of(network, prefix);
    let load = payload(NETWORK_HEADER, offset, length);
    // Where devices are looked at, no family is decided on yet.
    let of_family = match (table, family) {
        (DEVICES, IPV4) => meta(META_PROTOCOL, true, &ETHERTYPE_IPV4),
        (DEVICES, _) => meta(META_PROTOCOL, true, &ETHERTYPE_IPV6),
        _ => meta(META_NFPROTO, true, &[family]),
    };
    [of_family, load, masked(&mask), compared(is, &network)].concat()
}

/// The bytes of a network's address, and those of its mask.
fn network_of(address: IpAddr, prefix: u8) -> (Vec<u8>, Vec<u8>) {
    let address = octets(address);
    let mask: Vec<u8> = (0_u8..16).take(address.len()).map(|at| byte_of_mask(prefix, at)).collect();
    (address.iter().zip(&mask).map(|(byte, mask)| byte & mask).collect(), mask)
}

fn byte_of_mask(prefix: u8, at: u8) -> u8 {
    let bits = prefix.saturating_sub(at.saturating_mul(8)).min(8);
    u8::try_from(0xff00_u16.checked_shr(bits.into()).unwrap_or(0) & 0xff).unwrap_or(0)
}

/// Leaves these bits of the register.
fn masked(mask: &[u8]) -> Vec<u8> {
    let length = u32::try_from(mask.len()).unwrap_or(0).to_be_bytes();
    let (mask, xor) = (concat(&[(DATA_VALUE, mask)]), concat(&[(DATA_VALUE, &vec![0; mask.len()])]));
    expression(
        "bitwise",
        &[(1, &REGISTER), (2, &REGISTER), (3, &length), (4 | NESTED, &mask), (5 | NESTED, &xor)],
    )
}

/// Is the register this, or not this?
fn compared(is: bool, value: &[u8]) -> Vec<u8> {
    let operation = u32::from(!is).to_be_bytes();
    expression("cmp", &[(1, &REGISTER), (2, &operation), (3 | NESTED, &concat(&[(DATA_VALUE, value)]))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_have_as_many_bits_as_the_prefix() {
        let mask = |prefix| [0, 1, 2, 3].map(|at| byte_of_mask(prefix, at));
        assert_eq!(mask(0), [0, 0, 0, 0]);
        assert_eq!(mask(1), [0x80, 0, 0, 0]);
        assert_eq!(mask(22), [0xff, 0xff, 0xfc, 0]);
        assert_eq!(mask(32), [0xff; 4]);
    }

    #[test]
    fn each_part_of_a_transaction_is_answered() {
        let rules = vec![(vec![Match::From(3), Match::Unknown], Verdict::Drop)];
        let batch = Batch::replacing("t", &[Chain { name: "c", hook: Hook::Input, rules }]);
        assert_eq!(batch.parts, 5);
        let mut rest = &batch.bytes[..];
        let mut count = 0;
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).unwrap();
            let length = usize::try_from(message.length()).unwrap();
            assert_eq!(length % 4, 0);
            rest = &rest[length..];
            count += 1;
        }
        assert_eq!(count, batch.parts + 2);
    }

    #[test]
    fn a_note_is_kept_as_nft_keeps_comments() {
        let batch = Batch::owning(Family::Internet, "t", "whose it is", &[]);
        // Behind the begin, struct nlmsghdr.
        let payload = &batch.bytes[20 + 16..];
        assert_eq!(noted(payload), Some(("t".to_owned(), "whose it is".to_owned())));
        assert_eq!(noted(&Batch::replacing("t", &[]).bytes[20 + 16..]), None);
    }
}
