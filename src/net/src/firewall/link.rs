//! The wall round one link: an ingress chain on the host's end, an allow-list. What it does not let pass is dropped.
//!
//! Each rule says what somebody inside could want, and why they can't have it. Rules that drop come with a rule behind them
//! that needs what they look at to be there: a frame too short to be looked at matches neither, and ends at the policy.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cgrant_sys::netlink::qdisc::policing;
use cgrant_wire::link::Mac;

use crate::advert::ROUTER;

use super::{
    Placed, Server,
    mark::{MASK, Mark, SERVER},
    schema::{
        ACCEPT, Chain, Command, DROP, Expression, Family, Hook, Limit, Mangle, Statement, Writer, field,
        goto, is, isnt, jump, meta, number, raw,
    },
};

/// Types of ICMPv6.
const ECHO_REQUEST: u64 = 128;
const ECHO_REPLY: u64 = 129;
const ROUTER_SOLICITATION: u64 = 133;
const NEIGHBOUR_SOLICITATION: u64 = 135;
const NEIGHBOUR_ADVERTISEMENT: u64 = 136;

/// Numbers of protocols and of IPv6 extension headers.
const HOP_BY_HOP: u64 = 0;
const FRAGMENT: u64 = 44;
const ICMP6: u64 = 58;
/// Those that may follow the IPv6 header at once: IPIP, TCP, UDP, DCCP, IPv6, GRE, ESP, L2TP, SCTP, UDP-Lite.
const TRANSPORTS: [u64; 10] = [4, 6, 17, 33, 41, 47, 50, 115, 132, 136];

/// Chains that all walls share, with what does not depend on whose link it is.
pub fn shared(table: &str) -> Vec<Command> {
    let mut writer = Writer::new(Family::Netdev, table);
    frame(&mut writer);
    arp(&mut writer);
    ip4(&mut writer);
    ip6(&mut writer);
    neighbours(&mut writer);
    writer.finish()
}

/// What is no ARP, IPv4 or IPv6 frame, or goes where no container's frame has to go.
fn frame(writer: &mut Writer<'_>) {
    writer.chain("frame", None);
    // Wants: to enter another VLAN by a tag, to be taken for a bridge (spanning tree is LLC, its "type" a length), to speak
    // to the host's LLDP, MACsec, PPPoE … The kernel takes an outer tag off before this hook sees the frame, so "meta
    // protocol" would be that of what is inside; the payload's type is the tag's.
    writer.rule("other ethertypes", [isnt(field("ether", "type"), ["arp", "ip", "ip6"]), DROP]);
    // Wants: frames to these sixteen groups go round every rule of the bridge, and taught it that the neighbour's address
    // lived here [tried].
    let group = and(field("ether", "daddr"), "ff:ff:ff:ff:ff:f0");
    writer.rule("bridge groups", [is(group, "01:80:c2:00:00:00"), DROP]);
    // Wants: to hide from the rules below in a header that is cut off. Nobody would read it either, but that is theirs.
    writer.rule("whole IPv6 header", [is(field("ether", "type"), "ip6"), below(meta("length"), 40), DROP]);
    writer.rule("whole IPv4 header", [is(field("ether", "type"), "ip"), below(meta("length"), 20), DROP]);
}

/// ARP whose sender was looked at.
fn arp(writer: &mut Writer<'_>) {
    writer.chain("arp4", None);
    // Wants: an ARP of other sizes, whose sender lies where nobody looked.
    writer.rule(
        "Ethernet and IPv4",
        [
            is(field("arp", "htype"), 1),
            is(field("arp", "ptype"), 0x0800),
            is(field("arp", "hlen"), 6),
            is(field("arp", "plen"), 4),
            is(field("arp", "operation"), [1, 2]),
            ACCEPT,
        ],
    );
    writer.rule("other ARP", [DROP]);
}

/// IPv4 whose source was looked at.
fn ip4(writer: &mut Writer<'_>) {
    writer.chain("internet4", None);
    // Wants: source routes, round the account test. Only IGMP needs an option.
    writer.rule("options", [isnt(field("ip", "hdrlength"), 5), isnt(field("ip", "protocol"), 2), DROP]);
    // Wants: to become the network's querier, and by its silence end what others hear of groups. Reports pass.
    writer.rule("IGMP reports", [is(field("igmp", "type"), [0x12, 0x16, 0x17, 0x22]), ACCEPT]);
    writer.rule("other IGMP", [is(field("ip", "protocol"), 2), DROP]);
    // Wants: the host's services that listen on loopback. The inet table has the same for what comes another way.
    writer.rule(
        "loopback",
        [is(field("ip", "daddr"), prefix(IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), 8)), DROP],
    );
    // Wants: to answer its neighbours' DHCP and give them itself as router and name server. Clients look at either port. A
    // datagram's first fragment holds both: fragments come in steps of eight bytes.
    writer.rule("DHCP answers from", [is(field("udp", "sport"), 67), DROP]);
    writer.rule("DHCP answers to", [is(field("udp", "dport"), 68), DROP]);
    // Wants: to become somebody's router.
    writer.rule("ICMP redirects", [is(field("icmp", "type"), [5, 9]), DROP]);
    writer.rule("IPv4", [ACCEPT]);

    // Without an address: asking for one, and nothing else.
    writer.chain("nothing4", None);
    writer.rule(
        "DHCP request",
        [
            is(field("ip", "daddr"), "255.255.255.255"),
            is(field("udp", "sport"), 68),
            is(field("udp", "dport"), 67),
            ACCEPT,
        ],
    );
    writer.rule("no IPv4 address", [DROP]);
}

/// IPv6 whose source was looked at. Returns for neighbour discovery, which the link's own chain judges.
fn ip6(writer: &mut Writer<'_>) {
    writer.chain("internet6", None);
    writer.rule("no IPv6 address yet", [is(field("ip6", "saddr"), "::"), goto("nothing6")]);
    // As for IPv4.
    writer.rule("DHCPv6 answers from", [is(field("udp", "sport"), 547), DROP]);
    writer.rule("DHCPv6 answers to", [is(field("udp", "dport"), 546), DROP]);
    // l4proto says besides that the packet is as long as it claims.
    writer.rule(
        "IPv6 transports",
        [is(field("ip6", "nexthdr"), TRANSPORTS), is(meta("l4proto"), TRANSPORTS), ACCEPT],
    );
    writer.rule("fragments", [is(field("ip6", "nexthdr"), FRAGMENT), goto("fragment6")]);
    writer.rule("multicast reports", [is(field("ip6", "nexthdr"), HOP_BY_HOP), goto("report6")]);
    // Wants: to hide neighbour discovery, router advertisements, redirects or DHCP behind destination options, routing
    // headers, AH … where hosts find them and rules may not.
    writer.rule("other headers", [isnt(field("ip6", "nexthdr"), ICMP6), DROP]);
    writer.rule("ICMPv6", [is(field("icmpv6", "type"), [1, 2, 3, 4, ECHO_REQUEST, ECHO_REPLY]), ACCEPT]);
    // Wants: to be everybody's router (134, 137), querier (130), to redirect names of nodes (139 to 142).
    let neighbourhood = [ROUTER_SOLICITATION, NEIGHBOUR_SOLICITATION, NEIGHBOUR_ADVERTISEMENT];
    writer.rule("other ICMPv6", [isnt(field("icmpv6", "type"), neighbourhood), DROP]);
    // Neighbour discovery asks for this itself; a smaller limit has been through a router.
    writer.rule("from afar", [isnt(field("ip6", "hoplimit"), 255), DROP]);
    // Without options these say nothing about anybody.
    writer.rule(
        "plain solicitation",
        [is(field("icmpv6", "type"), NEIGHBOUR_SOLICITATION), is(field("ip6", "length"), 24), ACCEPT],
    );
    writer.rule(
        "plain router solicitation",
        [is(field("icmpv6", "type"), ROUTER_SOLICITATION), is(field("ip6", "length"), 8), ACCEPT],
    );

    writer.chain("nothing6", None);
    writer.rule("multicast reports", [is(field("ip6", "nexthdr"), HOP_BY_HOP), goto("report6")]);
    writer.rule("nothing else", [isnt(field("ip6", "nexthdr"), ICMP6), DROP]);
    writer.rule("from afar", [isnt(field("ip6", "hoplimit"), 255), DROP]);
    writer.rule(
        "plain router solicitation",
        [is(field("icmpv6", "type"), ROUTER_SOLICITATION), is(field("ip6", "length"), 8), ACCEPT],
    );
    // Is an address free? Which, the link's own chain looks at.
    writer.rule("nothing but that", [isnt(field("icmpv6", "type"), NEIGHBOUR_SOLICITATION), DROP]);

    // Wants: neighbour discovery in pieces, of which only the first says what it is. (RFC 6980 forbids it to hosts.) Hosts drop
    // fragments that overlap, so what the first one says is what is read.
    writer.chain("fragment6", None);
    let (next, offset) = (exthdr("frag", "nexthdr"), exthdr("frag", "frag-off"));
    writer.rule("fragments of transports", [is(next.clone(), TRANSPORTS), ACCEPT]);
    writer.rule("later fragments of ICMPv6", [is(next.clone(), ICMP6), isnt(offset, 0), ACCEPT]);
    writer.rule(
        "first fragments of pings",
        [is(next, ICMP6), is(field("icmpv6", "type"), [ECHO_REQUEST, ECHO_REPLY]), ACCEPT],
    );
    writer.rule("other fragments", [DROP]);

    // Reports of multicast groups carry a router alert and nothing else before them; 0x05020000 is that option.
    writer.chain("report6", None);
    writer.rule(
        "multicast report",
        [
            is(exthdr("hbh", "nexthdr"), ICMP6),
            is(exthdr("hbh", "hdrlength"), 0),
            is(raw("nh", 336, 32), 0x0502_0000),
            is(field("icmpv6", "type"), [131, 132, 143]),
            ACCEPT,
        ],
    );
    writer.rule("other hop-by-hop", [DROP]);
}

/// Neighbour discovery about an own address, whose options were looked at where there are any.
fn neighbours(writer: &mut Writer<'_>) {
    writer.chain("own6", None);
    writer.rule(
        "plain advertisement",
        [
            is(field("icmpv6", "type"), NEIGHBOUR_ADVERTISEMENT),
            isnt(field("ip6", "saddr"), "::"),
            is(field("ip6", "length"), 24),
            ACCEPT,
        ],
    );
    // Without a source: is this address free? With a nonce (option 14) that tells its own questions from others'.
    let question = [is(field("icmpv6", "type"), NEIGHBOUR_SOLICITATION), is(field("ip6", "saddr"), "::")];
    let mut plain = question.to_vec();
    plain.extend([is(field("ip6", "length"), 24), ACCEPT]);
    writer.rule("is it free", plain);
    let mut nonce = question.to_vec();
    nonce.extend([is(field("ip6", "length"), 32), is(raw("th", 192, 16), 0x0e01), ACCEPT]);
    writer.rule("is it free, with a nonce", nonce);
    writer.rule("other claims", [DROP]);
}

/// Whose wall it is.
struct Owner<'a> {
    device: &'a str,
    mac: Mac,
    mark: Mark,
    /// Without networks.
    addresses: Vec<IpAddr>,
    /// Bits a second, 0 for no limit.
    upload: u64,
    /// May it use link-local addresses of its own making?
    inventive: bool,
    /// May it use any address?
    any_address: bool,
    /// May it answer DHCP?
    server: bool,
}

/// The chain of a link.
pub fn wall(table: &str, placed: &Placed) -> Vec<Command> {
    chain(
        table,
        &Owner {
            device: &placed.device,
            mac: placed.link.info.mac,
            mark: placed.mark,
            addresses: placed.addresses().collect(),
            upload: placed.link.info.upload,
            inventive: placed.own_bridge,
            any_address: placed.link.any_address && !placed.own_bridge,
            server: false,
        },
    )
}

/// The chain of a name server's port.
pub fn server(table: &str, server: &Server) -> Vec<Command> {
    chain(
        table,
        &Owner {
            device: &server.device,
            mac: server.mac,
            mark: SERVER,
            addresses: server.addresses().collect(),
            upload: 0,
            inventive: false,
            any_address: false,
            server: true,
        },
    )
}

/// Have the two the same chain?
pub fn same_wall(one: &Placed, other: &Placed) -> bool {
    let essence = |placed: &Placed| {
        let Placed { device, index, own_bridge, mark, link, .. } = placed;
        let addresses = (link.info.address4, link.info.address6);
        (
            device.clone(),
            *index,
            *own_bridge,
            *mark,
            link.info.mac,
            addresses,
            link.info.upload,
            link.any_address,
        )
    };
    essence(one) == essence(other)
}

/// Takes a chain away. The kernel did it already if the device is gone, or not (since Linux 6.16 it keeps the chain), so one of that
/// name is made first if there is none.
pub fn removal(table: &str, device: &str) -> [Command; 2] {
    let chain =
        Chain { family: Family::Netdev, table: table.to_owned(), name: device.to_owned(), hook: None };
    [Command::add(chain.clone()), Command::delete(chain)]
}

fn chain(table: &str, owner: &Owner<'_>) -> Vec<Command> {
    let mut writer = Writer::new(Family::Netdev, table);
    let dev = Some(owner.device.to_owned());
    let hook = Hook { kind: "filter", hook: "ingress", prio: 0, policy: "drop", dev };
    writer.chain(owner.device, Some(hook));
    if owner.upload > 0 {
        writer.rule("upload limit", [over(owner.upload), DROP]);
    }
    // Wants: the neighbour's frames, by teaching the bridge its MAC; or to be somebody else for whoever looks at MACs.
    writer.rule("own MAC", [isnt(field("ether", "saddr"), owner.mac), DROP]);
    // The only place that sets our bits: who has none did not come this way, and reaches nobody.
    writer.rule("account", [set_mark(owner.mark)]);
    writer.rule("frame", [jump("frame")]);
    if owner.server {
        writer.rule("DHCP answers", [is(field("udp", "sport"), 67), is_own(owner, "ip"), ACCEPT]);
        writer.rule("DHCPv6 answers", [is(field("udp", "sport"), 547), is_own(owner, "ip6"), ACCEPT]);
    }
    internet4(&mut writer, owner);
    internet6(&mut writer, owner);
    writer.finish()
}

fn internet4(writer: &mut Writer<'_>, owner: &Owner<'_>) {
    if let Some(address) = owner.addresses.iter().copied().find(IpAddr::is_ipv4) {
        own4(writer, owner, address);
    }
    if !owner.any_address {
        return;
    }
    // The administrator said that addresses are not the broker's to judge, 0.0.0.0 among them; but those that it gave to others are.
    let (source, sender) = (field("ip", "saddr"), field("arp", "saddr ip"));
    writer.rule("another's IPv4", [is(source, "@taken4"), DROP]);
    writer.rule("ARP of another", [is(sender.clone(), "@taken4"), DROP]);
    let probed = is(field("arp", "daddr ip"), "@taken4");
    writer.rule("ARP probe of another", [is(sender, "0.0.0.0"), probed, DROP]);
    writer.rule("any IPv4", [is(field("ether", "type"), "ip"), goto("internet4")]);
    writer.rule("any ARP", [is(field("arp", "saddr ether"), owner.mac), goto("arp4")]);
}

fn own4(writer: &mut Writer<'_>, owner: &Owner<'_>, address: IpAddr) {
    let sender = || is(field("arp", "saddr ether"), owner.mac);
    // Wants: a neighbour's address, to answer in its place or to have the blame fall on it.
    writer.rule("own IPv4", [is(field("ip", "saddr"), address), goto("internet4")]);
    writer.rule("no IPv4 yet", [is(field("ip", "saddr"), "0.0.0.0"), goto("nothing4")]);
    // Wants: the neighbour's, or the gateway's, traffic, by saying that its address lives here. ARP has no other sender.
    writer.rule("own ARP", [sender(), is(field("arp", "saddr ip"), address), goto("arp4")]);
    writer.rule(
        "probe of own address",
        [
            is(field("arp", "operation"), 1),
            sender(),
            is(field("arp", "saddr ip"), "0.0.0.0"),
            is(field("arp", "daddr ip"), address),
            goto("arp4"),
        ],
    );
}

fn internet6(writer: &mut Writer<'_>, owner: &Owner<'_>) {
    let local = link_local(owner.mac);
    let mut own: Vec<Ipv6Addr> = owner.addresses.iter().filter_map(only6).collect();
    own.push(local);
    sources6(writer, owner, local, &own);
    writer.rule("IPv6", [is(field("ether", "type"), "ip6"), jump("internet6")]);
    // Only neighbour discovery comes back from there.
    // Wants: to name another's MAC beside its own address, or its own beside another's. One option at most, and what it says
    // is looked at: a second one could say something else.
    writer.rule(
        "solicitation with own MAC",
        [
            is(field("icmpv6", "type"), NEIGHBOUR_SOLICITATION),
            isnt(field("ip6", "saddr"), "::"),
            is(field("ip6", "length"), 32),
            is(raw("th", 192, 64), option(1, owner.mac)),
            ACCEPT,
        ],
    );
    writer.rule(
        "router solicitation with own MAC",
        [
            is(field("icmpv6", "type"), ROUTER_SOLICITATION),
            isnt(field("ip6", "saddr"), "::"),
            is(field("ip6", "length"), 16),
            is(raw("th", 64, 64), option(1, owner.mac)),
            ACCEPT,
        ],
    );
    targets6(writer, owner, local, &own);
    writer.rule(
        "advertisement with own MAC",
        [
            is(field("icmpv6", "type"), NEIGHBOUR_ADVERTISEMENT),
            isnt(field("ip6", "saddr"), "::"),
            is(field("ip6", "length"), 32),
            is(raw("th", 192, 64), option(2, owner.mac)),
            ACCEPT,
        ],
    );
    writer.rule("claims", [is(field("ip6", "nexthdr"), ICMP6), goto("own6")]);
}

/// Wants: a neighbour's address, or the router's. Link-local ones that it makes up pass where neighbours are only its own,
/// unless they are the own bridges' or made of a MAC (`ff:fe` in the middle): its own MAC it may use, so that one belongs, or
/// will belong, to somebody else. Who may use any address may still use none that the broker gave to another.
fn sources6(writer: &mut Writer<'_>, owner: &Owner<'_>, local: Ipv6Addr, own: &[Ipv6Addr]) {
    let source = || field("ip6", "saddr");
    // One comparison after the other and not a set: that would be one more thing to list for each later run of nft.
    let mut not_own: Vec<Statement> = own.iter().map(|address| isnt(source(), text(*address))).collect();
    if owner.inventive || owner.any_address {
        writer.rule("link-local of the router", [is(source(), text(ROUTER)), DROP]);
        writer.rule(
            "link-local of another MAC",
            [
                is(source(), prefix(IpAddr::V6(LINK_LOCAL), 64)),
                isnt(source(), text(local)),
                is(raw("nh", 152, 16), 0xfffe),
                DROP,
            ],
        );
    }
    if owner.any_address {
        not_own.extend([is(source(), "@taken6"), DROP]);
        writer.rule("another's IPv6", not_own);
        return;
    }
    not_own.push(isnt(source(), "::"));
    if owner.inventive {
        not_own.push(isnt(source(), prefix(IpAddr::V6(LINK_LOCAL), 64)));
    }
    not_own.push(DROP);
    writer.rule("own IPv6", not_own);
}

/// The same for the addresses that neighbour discovery is about. (Raw payload can't be looked up in a set: what the broker gave
/// to others is not looked for here, if any address may be used.)
fn targets6(writer: &mut Writer<'_>, owner: &Owner<'_>, local: Ipv6Addr, own: &[Ipv6Addr]) {
    let target = || raw("th", 64, 128);
    let link_local = || Expression::Text("0xfe80000000000000".to_owned());
    let mut not_own: Vec<Statement> = own.iter().map(|address| isnt(target(), number(*address))).collect();
    if owner.inventive || owner.any_address {
        writer.rule("claims of the router's link-local", [is(target(), number(ROUTER)), DROP]);
        writer.rule(
            "claims of link-local of another MAC",
            [
                is(raw("th", 64, 64), link_local()),
                isnt(target(), number(local)),
                is(raw("th", 152, 16), 0xfffe),
                DROP,
            ],
        );
    }
    if owner.any_address {
        return;
    }
    if owner.inventive {
        not_own.push(isnt(raw("th", 64, 64), link_local()));
    }
    not_own.push(DROP);
    writer.rule("claims of own IPv6", not_own);
}

const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);

/// The link-local address made of a MAC (RFC 4291, appendix A).
pub fn link_local(mac: Mac) -> Ipv6Addr {
    let Mac([a, b, c, d, e, f]) = mac;
    let word = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f))
}

fn only6(address: &IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(*address),
    }
}

fn text(address: Ipv6Addr) -> Expression {
    Expression::from(IpAddr::V6(address))
}

/// A link-layer address option of neighbour discovery: its type, length 1 (times eight bytes), the MAC.
fn option(kind: u64, mac: Mac) -> u64 {
    mac.0.iter().fold(kind << 8 | 1, |number, byte| number << 8 | u64::from(*byte))
}

fn and(left: Expression, right: impl Into<Expression>) -> Expression {
    Expression::And(Box::new([left, right.into()]))
}

fn exthdr(name: &'static str, field: &'static str) -> Expression {
    Expression::Exthdr { name, field }
}

fn prefix(address: IpAddr, len: u8) -> Expression {
    Expression::Prefix { addr: address.to_string(), len }
}

fn below(left: Expression, right: u64) -> Statement {
    Statement::Match(super::schema::Match { op: "<", left, right: right.into() })
}

fn is_own(owner: &Owner<'_>, protocol: &'static str) -> Statement {
    let wanted = |address: &&IpAddr| address.is_ipv4() == (protocol == "ip");
    let mut addresses: Vec<Expression> =
        owner.addresses.iter().filter(wanted).map(|address| Expression::from(*address)).collect();
    if protocol == "ip6" {
        addresses.push(text(link_local(owner.mac)));
    }
    is(field(protocol, "saddr"), Expression::Set(addresses))
}

/// Our bits of the mark, and only those. (In the form that `nft` makes of it.)
fn set_mark(mark: Mark) -> Statement {
    let others = and(meta("mark"), u64::from(!MASK | mark.0));
    let value = Expression::Or(Box::new([others, Expression::from(u64::from(mark.0))]));
    Statement::Mangle(Mangle { key: meta("mark"), value })
}

/// What exceeds so many bits a second, with a tenth of a second's worth at once.
fn over(bits: u64) -> Statement {
    let (rate, burst) = policing(bits);
    let burst = u64::from(burst);
    let (rate_unit, burst_unit) = ("bytes", "bytes");
    Statement::Limit(Limit { rate, burst, per: "second", inv: true, rate_unit, burst_unit })
}
