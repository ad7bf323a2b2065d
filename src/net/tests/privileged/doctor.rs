//! The rows for `doctor`.

use cgrant_wire::net::{Finding, Order, Reply};

use crate::{
    Test,
    support::{Host, assert_same, link, namespace, own_bridge, run, snapshot},
};

pub const TESTS: &[Test] = &[
    ("the_kernel_is_tried_and_nothing_remains", the_kernel_is_tried_and_nothing_remains),
    ("a_foreign_drop_is_named", a_foreign_drop_is_named),
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
