//! The rows for `doctor`.

use cgrant_wire::net::{Finding, Order, Reply};

use crate::{
    Test,
    support::{Host, assert_same, link, namespace, own_bridge, run, snapshot},
};

pub const TESTS: &[Test] = &[
    ("the_kernel_is_tried_and_nothing_remains", the_kernel_is_tried_and_nothing_remains),
    ("a_foreign_drop_is_named", a_foreign_drop_is_named),
    ("who_shares_forwarding_is_named", who_shares_forwarding_is_named),
    ("who_shares_the_one_switch_is_named", who_shares_the_one_switch_is_named),
];

fn examine(host: &mut Host) -> Vec<Finding> {
    match host.order(Order::Examine, Vec::new()).unwrap().0 {
        Reply::Findings(findings) => findings,
        other => panic!("{other:?}"),
    }
}

fn row<'f>(findings: &'f [Finding], subject: &str) -> &'f Finding {
    findings
        .iter()
        .find(|finding| finding.subject == subject)
        .unwrap_or_else(|| panic!("{subject}: {findings:?}"))
}

fn the_kernel_is_tried_and_nothing_remains() {
    let mut host = Host::new();
    let before = snapshot();
    let findings = examine(&mut host);
    assert_same(&before, &snapshot(), "after a look");
    for subject in
        ["bridge", "veth", "tbf", "nftables", "IPv4 forwarding", "IPv6 forwarding", "foreign rules"]
    {
        let row = row(&findings, subject);
        assert!(row.good, "{row:?}");
    }
    for finding in &findings {
        assert!(finding.good || !finding.remedy.is_empty(), "{finding:?}");
    }
    let netns = namespace();
    host.add(&own_bridge(), &link(1), &netns).unwrap();
    run("sysctl -w net.ipv4.conf.cgrant0.forwarding=0");
    let findings = examine(&mut host);
    assert!(!row(&findings, "IPv4 forwarding").good);
}

fn a_foreign_drop_is_named() {
    let mut host = Host::new();
    run("nft add table ip filter");
    run("nft add chain ip filter FORWARD { type filter hook forward priority 0 ; policy drop ; }");
    let findings = examine(&mut host);
    let row = row(&findings, "foreign rules");
    assert!(
        !row.good && row.found.contains("FORWARD") && row.remedy.contains("iptables -I FORWARD"),
        "{row:?}"
    );
}

/// Another program's bridge, whose packets ours would drop.
fn who_shares_forwarding_is_named() {
    let mut host = Host::new();
    run("ip link add other0 type bridge");
    run("ip addr add 203.0.113.1/24 dev other0");
    run("ip link set other0 up");
    let netns = namespace();
    host.add(&own_bridge(), &link(1), &netns).unwrap();
    assert!(!examine(&mut host).iter().any(|row| row.subject == "shared forwarding"), "it does not route");
    run("sysctl -w net.ipv4.conf.other0.forwarding=1");
    let findings = examine(&mut host);
    let row = row(&findings, "shared forwarding");
    assert!(!row.good && row.found.contains("other0") && row.found.contains("IPv4"), "{row:?}");
    assert!(row.found.contains("up0") && row.remedy.contains("net.ipv4.ip_forward = 1"), "{row:?}");
    // It makes a router of the host for everybody: there is nothing to be kept to links any more.
    run("sysctl -w net.ipv4.ip_forward=1");
    assert!(!examine(&mut host).iter().any(|row| row.subject == "shared forwarding"));
    assert!(!run("nft list set inet cgrant-test guard4").contains("up0"));
    host.remove(&link(1));
    assert_eq!(run("sysctl -n net.ipv4.conf.up0.forwarding"), "1\n", "it is the other's now");
}

fn who_shares_the_one_switch_is_named() {
    let mut host = Host::with(false);
    run("ip link add other0 type bridge");
    let netns = namespace();
    host.add(&own_bridge(), &link(1), &netns).unwrap();
    assert!(!examine(&mut host).iter().any(|row| row.subject == "shared forwarding"));
    run("ip addr add 2001:db8:7::1/64 dev other0");
    let findings = examine(&mut host);
    let row = row(&findings, "shared forwarding");
    assert!(!row.good && row.found.contains("other0") && row.found.contains("IPv6"), "{row:?}");
    assert!(row.remedy.contains("net.ipv6.conf.all.forwarding = 1"), "{row:?}");
}
