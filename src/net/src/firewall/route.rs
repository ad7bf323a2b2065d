//! The inet table: what reaches the host, what is routed, NAT and published ports.
//!
//! Chains judge what concerns the broker's links and let everything else alone. An accept here is no leave to pass: another table
//! may drop it still. With `bridge-nf-call-*` packets that are bridged come by here too, with the bridge as device on both
//! sides; the rules hold for those as well.

use super::{
    lan::{our_mark, set_mark},
    mark::{BRIDGED, PUBLISHED, SERVER},
    schema::{
        ACCEPT, Command, DROP, Expression, Family, Hook, Match, Nat, Ports, Statement, Writer, ct, field,
        goto, is, isnt, jump, meta,
    },
};

/// The chains.
pub fn chains(table: &str) -> Vec<Command> {
    let mut writer = Writer::new(Family::Inet, table);
    raw(&mut writer);
    published(&mut writer);
    input(&mut writer);
    forward(&mut writer);
    between(&mut writer);
    source(&mut writer);
    writer.finish()
}

fn hook(kind: &'static str, hook: &'static str, prio: i32) -> Option<Hook> {
    Some(Hook { kind, hook, prio, policy: "accept", dev: None })
}

fn from_bridges() -> Statement {
    is(meta("iif"), "@bridges")
}

fn to_bridges() -> Statement {
    is(meta("oif"), "@bridges")
}

fn state<const N: usize>(states: [&str; N]) -> Statement {
    is(ct("state"), states)
}

fn dnat() -> Statement {
    Statement::Match(Match { op: "in", left: ct("status"), right: "dnat".into() })
}

fn loopback() -> Expression {
    Expression::Prefix { addr: "127.0.0.0".to_owned(), len: 8 }
}

/// Transport and a port of it.
fn service(port: &'static str) -> [Expression; 2] {
    [meta("l4proto"), field("th", port)]
}

fn pair(first: Expression, rest: impl IntoIterator<Item = Expression>) -> Expression {
    Expression::Concat(std::iter::once(first).chain(rest).collect())
}

/// Wants: the host's services that listen on loopback. The bridge has `route_localnet`, which a published port needs to be reached
/// from the host's loopback; without this, containers could send there [tried]. Before connection tracking, so that no
/// connection exists of which it could be part.
fn raw(writer: &mut Writer<'_>) {
    writer.chain("loopback", hook("filter", "prerouting", -300));
    writer.rule("from loopback", [from_bridges(), is(field("ip", "saddr"), loopback()), DROP]);
    writer.rule("to loopback", [from_bridges(), is(field("ip", "daddr"), loopback()), DROP]);
}

/// Published ports, for clients outside, on the host, and in containers.
fn published(writer: &mut Writer<'_>) {
    let local = || is(Expression::Fib { result: "type", flags: ["daddr"] }, "local");
    for (chain, place) in [("published", "prerouting"), ("published-here", "output")] {
        writer.chain(chain, hook("nat", place, -100));
        // Wants: a port of some other machine's, whose packets pass this host or are sent by it: where `ip_nonlocal_bind` is set
        // (as for HAProxy and keepalived) the holder binds any address, and everywhere a broadcast one.
        writer.rule(
            "one IPv4 address",
            [local(), redirect("ip", "one4", &pair(field("ip", "daddr"), service("dport")))],
        );
        writer.rule(
            "one IPv6 address",
            [local(), redirect("ip6", "one6", &pair(field("ip6", "daddr"), service("dport")))],
        );
        let any = || Expression::Concat(service("dport").into());
        writer
            .rule("any IPv4 address", [local(), is(meta("nfproto"), "ipv4"), redirect("ip", "any4", &any())]);
        // From ::1 nothing leaves the loopback device; the proxy serves there.
        let not_loopback = isnt(field("ip6", "daddr"), "::1");
        writer.rule("any IPv6 address", [not_loopback, local(), redirect("ip6", "any6", &any())]);
    }
    // Connections to a published port may cross accounts, also where bridge-nf-call-iptables bridges them. New and established
    // only: an ICMP error that claims to belong to somebody's connection has no such right.
    writer.chain("crossing", hook("filter", "prerouting", -90));
    writer
        .rule("published", [isnt(our_mark(), 0), dnat(), state(["new", "established"]), set_mark(PUBLISHED)]);
}

fn redirect(family: &'static str, map: &str, key: &Expression) -> Statement {
    let look_up = |data: String| Expression::Map { key: Box::new(key.clone()), data };
    let (addr, port) = (look_up(format!("@{map}")), look_up(format!("@{map}port")));
    Statement::Dnat(Nat { family, addr, port })
}

/// What reaches the host itself.
fn input(writer: &mut Writer<'_>) {
    writer.chain("input", hook("filter", "input", 0));
    writer.rule("from own bridges", [from_bridges(), goto("host")]);
    // On a bridge of the administrator's only what comes from a link: the wall marked it.
    writer.rule("from links elsewhere", [isnt(our_mark(), 0), goto("host-elsewhere")]);

    // Wants: the host's services. DHCP and DNS are the name server's, which has an address of its own.
    writer.chain("host", None);
    writer.rule("answers", [state(["established"]), ACCEPT]);
    icmp(writer);
    for (comment, protocol, servers) in
        [("IPv4 resolver", "ip", "@servers4"), ("IPv6 resolver", "ip6", "@servers6")]
    {
        // The name server itself may ask a resolver that runs on the host.
        let server = is(pair(meta("iif"), [field(protocol, "saddr")]), servers);
        writer.rule(
            comment,
            [server, is(meta("l4proto"), ["tcp", "udp"]), is(field("th", "dport"), 53), ACCEPT],
        );
    }
    writer.rule("anything else of the host's", [DROP]);

    // There the administrator's own server may be on the host.
    writer.chain("host-elsewhere", None);
    writer.rule("answers", [state(["established"]), ACCEPT]);
    icmp(writer);
    writer.rule("DHCP and DNS", [is(field("udp", "dport"), [53, 67, 547]), ACCEPT]);
    writer.rule("DNS by TCP", [is(field("tcp", "dport"), 53), ACCEPT]);
    writer.rule("anything else of the host's", [DROP]);
}

/// Pings, errors, and for IPv6 neighbour discovery, without which nothing works.
fn icmp(writer: &mut Writer<'_>) {
    writer.rule("ICMP", [is(field("icmp", "type"), [0, 3, 8, 11, 12]), ACCEPT]);
    let types = [1, 2, 3, 4, 128, 129, 131, 132, 133, 135, 136, 143];
    writer.rule("ICMPv6", [is(field("icmpv6", "type"), types), ACCEPT]);
}

/// What is routed.
fn forward(writer: &mut Writer<'_>) {
    writer.chain("forward", hook("filter", "forward", 0));
    writer.rule("between own bridges", [from_bridges(), to_bridges(), goto("between")]);
    writer.rule("from name servers", [from_bridges(), is(our_mark(), u64::from(SERVER.0)), goto("asking")]);
    writer.rule("from own bridges", [from_bridges(), ACCEPT]);
    writer.rule("to own bridges", [to_bridges(), goto("inward")]);
    writer.rule("from links elsewhere", [isnt(our_mark(), 0), jump("elsewhere")]);
    // Wants: nobody of ours, but a neighbour of the host, who could use it as a router because links made it one.
    for (comment, family, set) in
        [("no router for IPv4", "ipv4", "@guard4"), ("no router for IPv6", "ipv6", "@guard6")]
    {
        writer.rule(comment, [is(meta("nfproto"), family), is(meta("iifname"), set), goto("guarded")]);
    }

    // Another instance of the broker has bridges of its own on this host, whose packets its own rules judge; an accept of theirs
    // could not help against a drop here.
    writer.chain("guarded", None);
    for (comment, bridges) in
        [("a bridge", "cgb*"), ("a bridge of an account", "cgu*"), ("the first bridge", "cgrant0")]
    {
        writer.rule(comment, [is(meta("oifname"), bridges), ACCEPT]);
    }
    writer.rule("nowhere else", [DROP]);

    // Wants: to be more than a name server, if it was taken over by what containers or the outside send it: it asks other servers
    // and has nothing else to say to anybody outside.
    writer.chain("asking", None);
    writer.rule("questions", [is(meta("l4proto"), ["tcp", "udp"]), is(field("th", "dport"), 53), ACCEPT]);
    writer.rule("anything else", [DROP]);

    // Wants: a container's services that were not published, from outside by a route through the host.
    writer.chain("inward", None);
    writer.rule("answers", [state(["established", "related"]), ACCEPT]);
    writer.rule("published", [dnat(), ACCEPT]);
    writer.rule("not published", [DROP]);
}

/// Wants: another account's container, by way of the gateway. Judged packet by packet, whatever connection it claims to be of.
fn between(writer: &mut Writer<'_>) {
    writer.chain("between", None);
    passage(writer);
    // The name server, for its own bridge.
    for (protocol, set) in [("ip", "@servers4"), ("ip6", "@servers6")] {
        let comments = if protocol == "ip" {
            ("to the name server", "from the name server")
        } else {
            ("to the name server, IPv6", "from the name server, IPv6")
        };
        writer.rule(comments.0, [is(pair(meta("iif"), [field(protocol, "daddr")]), set), ACCEPT]);
        writer.rule(comments.1, [is(pair(meta("oif"), [field(protocol, "saddr")]), set), ACCEPT]);
    }
    writer.rule("other accounts", [DROP]);

    // From a link on a bridge of the administrator's: all that is his, but not other accounts' links.
    writer.chain("elsewhere", None);
    passage(writer);
    writer.rule("other accounts", [is(field("ip", "daddr"), "@known4"), DROP]);
    writer.rule("other accounts, IPv6", [is(field("ip6", "daddr"), "@known6"), DROP]);
}

/// Who may pass from link to link.
fn passage(writer: &mut Writer<'_>) {
    // What is bridged comes by here with bridge-nf-call-*; the bridge table has judged it.
    writer.rule("bridged", [is(our_mark(), u64::from(BRIDGED.0)), ACCEPT]);
    // Wants: another account's container, past all that is said about addresses below. The kernel routes what is link-local, or comes
    // from nowhere, if it leaves where it came in [tried: 6.18].
    let local = || Expression::Prefix { addr: "fe80::".to_owned(), len: 10 };
    writer.rule("from link-local", [is(field("ip6", "saddr"), local()), DROP]);
    writer.rule("to link-local", [is(field("ip6", "daddr"), local()), DROP]);
    writer.rule("from nowhere", [is(field("ip6", "saddr"), "::"), DROP]);
    writer.rule("published", [dnat(), state(["new", "established"]), ACCEPT]);
    for (protocol, same, known, open) in
        [("ip", "@same4", "@known4", "@open4"), ("ip6", "@same6", "@known6", "@open6")]
    {
        let (saddr, daddr) = (field(protocol, "saddr"), field(protocol, "daddr"));
        let comments = if protocol == "ip" {
            ("same account", "both open")
        } else {
            ("same account, IPv6", "both open, IPv6")
        };
        let same = is(pair(our_mark(), [daddr.clone()]), same);
        writer.rule(comments.0, [is(saddr.clone(), known), same, ACCEPT]);
        writer.rule(comments.1, [is(saddr, open), is(daddr, open), isnt(our_mark(), 0), ACCEPT]);
    }
}

/// What is sent in the host's name.
fn source(writer: &mut Writer<'_>) {
    writer.chain("source", hook("nat", "postrouting", 100));
    writer.rule("to the outside", [from_bridges(), isnt(meta("oif"), "@bridges"), goto("outside")]);
    writer.rule("to a published port", [dnat(), goto("back")]);

    // Clients outside keep their address. The container must answer those that share its bridge, or the host, by way of the
    // gateway: it sees the gateway's address.
    writer.chain("back", None);
    for (protocol, known, comment) in
        [("ip", "@known4", "from containers"), ("ip6", "@known6", "from containers, IPv6")]
    {
        let (saddr, daddr) = (field(protocol, "saddr"), field(protocol, "daddr"));
        writer.rule(comment, [is(saddr, known), is(daddr, known), goto("host-name")]);
    }
    let local = is(Expression::Fib { result: "type", flags: ["saddr"] }, "local");
    writer.rule("from the host", [to_bridges(), local, goto("host-name")]);

    // Wants: a published port of somebody else's. Who sends from the host's port 5000 to a client is the one that the client's
    // packets to port 5000 are an answer to: they would come here and not to the container that has the port. So only that
    // container may keep the number; others get any.
    writer.chain("outside", None);
    for (protocol, held, comment) in
        [("ip", "@held4", "own published port"), ("ip6", "@held6", "own published port, IPv6")]
    {
        let own = is(pair(field(protocol, "saddr"), service("sport")), held);
        writer.rule(comment, [own, goto("host-name")]);
    }
    for transport in ["tcp", "udp"] {
        let held = is(Expression::Concat(service("sport").into()), "@held");
        let comment =
            if transport == "tcp" { "TCP from a published port" } else { "UDP from a published port" };
        let random = masquerade(Some("fully-random"));
        writer.rule(comment, [is(meta("l4proto"), transport), held, random]);
    }
    writer.rule("the rest", [goto("host-name")]);

    // Wants: a source port that NFS, rsh and others trust because only root has it on the host; without the range a container's
    // port 700 leaves as port 700 [tried].
    writer.chain("host-name", None);
    for (transport, comment) in [("tcp", "TCP"), ("udp", "UDP")] {
        writer.rule(comment, [is(meta("l4proto"), transport), masquerade(None)]);
    }
    writer.rule("no ports", [Statement::Masquerade(None)]);

    // Chance may still have chosen a published port. The connection is not made, and another try gets another number.
    writer.chain("shadow", hook("filter", "postrouting", 110));
    let new = [from_bridges(), isnt(meta("oif"), "@bridges"), state(["new"])];
    for (family, held, comment) in
        [("ip", "@held4", "own published port"), ("ip6", "@held6", "own published port, IPv6")]
    {
        let key = if family == "ip" { "ip saddr" } else { "ip6 saddr" };
        let original = Expression::Ct { key, dir: Some("original") };
        let own = is(pair(original, service("sport")), held);
        let nfproto = is(meta("nfproto"), if family == "ip" { "ipv4" } else { "ipv6" });
        let mut rule = new.to_vec();
        rule.extend([nfproto, own, ACCEPT]);
        writer.rule(comment, rule);
    }
    let mut rule = new.to_vec();
    rule.extend([is(Expression::Concat(service("sport").into()), "@held"), DROP]);
    writer.rule("somebody's published port", rule);
}

fn masquerade(flags: Option<&'static str>) -> Statement {
    Statement::Masquerade(Some(Ports { port: Expression::Range([1024, 65535]), flags }))
}
