//! Published ports, fixed addresses and rates of containers in containers: made by the root of the one around, without the broker.

use std::{
    fs,
    net::{Ipv4Addr, Ipv6Addr},
    process::{Command, Stdio},
};

use serde_json::Value;

use crate::common::{
    Lab, checker,
    containers::{Shell, busybox_with_command, inside, text},
    frames::{
        ALL_NODES, ALL_NODES_MAC, ARP, EVERYBODY, IPV4, IPV6, Mac, advertisement, any_contains, arp,
        ethernet, link_local, redirect6, router_advertisement, tagged, udp4, udp6,
    },
    network::{HOST4, Network, OUTSIDE4},
    node::{Node, Tcp, Udp},
    wait_until,
};

// Who listens at port 7 of each container says which one it is.
const LISTENS: &str = "busybox nc -ll -p 7 -e /bin/hostname </dev/null >/dev/null 2>&1 &";

const BRIDGE: &str = "cgrant-inner";
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0x66);

struct Levels<'a> {
    shell: Shell<'a>,
}

impl Levels<'_> {
    #[track_caller]
    fn sh(&self, levels: &[&str], script: &str) -> String {
        self.shell.done(&inside(levels, &["sh", "-c", script]))
    }

    // A new one in the innermost of these, where the image is, that listens.
    #[track_caller]
    fn launch(&self, levels: &[&str], name: &str, options: &[&str]) {
        let launch = [&["cgrant", "launch", "box", name, "--wait"], options].concat();
        self.shell.done(&inside(levels, &launch));
        self.sh(&[levels, &[name]].concat(), LISTENS);
    }

    // What whoever listens there says to who is in the innermost of these.
    fn calls(&self, levels: &[&str], to: &str, port: &str) -> String {
        let words = ["busybox", "nc", "-w", "2", to, port];
        let mut call = self.shell.command(&inside(levels, &words));
        text(&call.stdin(Stdio::null()).output().unwrap().stdout)
    }

    #[track_caller]
    fn reaches(&self, levels: &[&str], to: &str, port: &str, who: &str) {
        let said = format!("{who}\n");
        wait_until(&format!("{who} answers {levels:?} at {to} {port}"), || {
            self.calls(levels, to, port) == said
        });
    }

    // As who is in the innermost of these is told.
    fn info(&self, levels: &[&str], name: &str) -> Value {
        let info = inside(levels, &["cgrant", "--format", "json", "info", name]);
        serde_json::from_str(&self.shell.done(&info)).unwrap()
    }

    fn ports(&self, levels: &[&str], name: &str) -> Vec<String> {
        let info = self.info(levels, name);
        let ports = info["links"][0]["ports"].as_array().cloned().unwrap_or_default();
        let mut ports: Vec<String> = ports.iter().map(|port| port.as_str().unwrap().to_owned()).collect();
        ports.sort();
        ports
    }

    fn addresses(&self, levels: &[&str], name: &str) -> Vec<String> {
        let link = &self.info(levels, name)["links"][0];
        let address = |key: &str| link[key].as_str().unwrap().split('/').next().unwrap().to_owned();
        vec![address("address4"), address("address6")]
    }

    // The address of the one around, of either family.
    fn around(&self, levels: &[&str], family: &str) -> String {
        let route = self.sh(levels, &format!("ip {family} route show default"));
        route.split(' ').nth(2).unwrap().to_owned()
    }

    fn mac(&self, levels: &[&str], device: &str) -> Mac {
        let mac = self.sh(levels, &format!("cat /sys/class/net/{device}/address"));
        let bytes: Vec<u8> =
            mac.trim().split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect();
        bytes.try_into().unwrap()
    }

    // The host's root in the network namespace of a container, or of one in it.
    fn node(&self, lab: &Lab, one: &str, inside: Option<&str>) -> Node {
        let around = self.shell.json(&["info", one])["init"].as_u64().unwrap();
        let pid = match inside {
            None => around,
            Some(name) => of_process(around, self.info(&[one], name)["init"].as_u64().unwrap()),
        };
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{pid}/ns/net")).arg(lab.programs.join("tests")).arg("--role");
        Node::start(command, "there")
    }

    #[track_caller]
    fn refuses(&self, levels: &[&str], words: &[&str], code: i32, why: &str) {
        self.shell.fails(&inside(levels, words), code, why);
    }
}

// The number that the host has for a process, which the monitor beside `around` started and which has another one there.
fn of_process(around: u64, number: u64) -> u64 {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let is_it = |pid: &str| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let words = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
        let there: u64 = words("NSpid:")?.split_whitespace().nth(1)?.parse().ok()?;
        let parent = words("PPid:")?.trim().to_owned();
        (there == number && namespace(&parent) == namespace(&around.to_string())).then_some(())
    };
    let processes =
        fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let mut pids = processes.filter(|name| name.parse::<u64>().is_ok());
    pids.find(|pid| is_it(pid).is_some()).unwrap().parse().unwrap()
}

fn from_the_host_to_the_innermost(lab: &Lab) {
    let network = Network::new(lab);
    let mut broker = network.broker();
    let user = lab.user();
    let levels = Levels { shell: Shell::beside(lab, &user, &broker, &network) };
    let archive = busybox_with_command(lab);
    levels.shell.import_inside(&[], &archive, "box");
    levels.launch(&[], "one", &["--nesting", "-p", "8080:8081"]);
    levels.shell.import_inside(&["one"], &archive, "box");
    levels.launch(&["one"], "two", &["--nesting", "-p", "8081:8082", "-p", "9001:7"]);
    levels.shell.import_inside(&["one", "two"], &archive, "box");
    levels.launch(&["one", "two"], "three", &["-p", "8082:7"]);
    let all = ["one", "two", "three"];
    checker::assert_in_order(lab);
    assert_eq!(levels.ports(&["one"], "two"), ["8081:8082/tcp", "9001:7/tcp"]);
    let listed = levels.shell.done(&inside(&["one"], &["cgrant", "link", "list", "two"]));
    assert!(listed.contains("9001:7/tcp"), "{listed}");
    // By each level's own address, by its loopback, and from beside.
    let (one4, one6) = (levels.around(&all[..2], "-4"), levels.around(&all[..2], "-6"));
    for to in [&one4, &one6, "127.0.0.1"] {
        levels.reaches(&["one"], to, "8081", "three");
        levels.reaches(&["one"], to, "9001", "two");
    }
    let two = levels.addresses(&["one"], "two");
    for to in &two {
        levels.reaches(&["one"], to, "8082", "three");
    }
    // Also from the container that has it, by way of the one around; and from the innermost.
    for to in [&one4, &one6] {
        levels.reaches(&["one", "two"], to, "9001", "two");
        levels.reaches(&all, to, "9001", "two");
    }
    let called = || {
        let said = network.neighbour.run(&["busybox", "nc", "-w", "2", HOST4, "8080"]);
        said.trim() == "three"
    };
    wait_until("the host's neighbour reaches the innermost", called);
    // Nobody needs the broker for it.
    broker.kill_everything();
    levels.reaches(&["one"], "127.0.0.1", "9001", "two");
    broker.start_again();
    wait_until("the broker is back", || levels.shell.output(&["list"]).status.success());
    checker::assert_in_order(lab);
    wait_until("the host's neighbour reaches the innermost again", called);
    // They are there again at the next start, as it was launched.
    levels.shell.done(&inside(&["one"], &["cgrant", "stop", "two"]));
    assert_eq!(levels.calls(&["one"], "127.0.0.1", "9001"), "");
    levels.shell.done(&inside(&["one"], &["cgrant", "start", "two", "--wait"]));
    levels.sh(&["one", "two"], LISTENS);
    levels.reaches(&["one"], "127.0.0.1", "9001", "two");
    assert_eq!(levels.ports(&["one"], "two"), ["8081:8082/tcp", "9001:7/tcp"]);
    levels.shell.done(&["delete", "--force", "one"]);
    checker::assert_empty(lab);
}

fn a_port_is_of_one_and_ends_with_it(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let user = lab.user();
    let levels = Levels { shell: Shell::beside(lab, &user, &broker, &network) };
    let archive = busybox_with_command(lab);
    levels.shell.import_inside(&[], &archive, "box");
    levels.launch(&[], "one", &["--nesting", "--link"]);
    levels.shell.import_inside(&["one"], &archive, "box");
    let one = ["one"];
    levels.launch(&one, "two", &["-p", "9001:7", "-p", "9001:7/udp"]);
    levels.launch(&one, "three", &["--link"]);
    // Who has a port has it alone: against another container, against a service, whatever the address.
    let launch = |port: &str, code: i32, why: &str| {
        levels.refuses(&one, &["cgrant", "launch", "box", "four", "-p", port], code, why);
    };
    launch("9001:80", 1, "published already, for the container \"two\"");
    launch("127.0.0.1:9001:80", 1, "published already, for the container \"two\"");
    levels.sh(&one, "busybox nc -ll -p 9009 -e /bin/true </dev/null >/dev/null 2>&1 &");
    wait_until("the service listens", || levels.sh(&one, "netstat -ltn").contains(":9009"));
    launch("9009:80", 1, "port 9009/tcp is taken by a listening TCP socket");
    // Only addresses of the one around; the host's, and those of who is inside, are not.
    launch(&format!("{HOST4}:9010:80"), 1, "has no such address");
    launch(&format!("{}:9010:80", levels.addresses(&one, "two")[0]), 1, "has no such address");
    launch("[::1]:9010:80", 2, "127.0.0.1");
    assert_eq!(levels.shell.done(&inside(&one, &["cgrant", "list", "--quiet"])), "three\ntwo\n");
    let bind =
        levels.shell.output(&inside(&one, &["busybox", "timeout", "2", "busybox", "nc", "-l", "-p", "9001"]));
    assert!(text(&bind.stderr).contains("in use"), "{}", text(&bind.stderr));
    levels.launch(&[], "other", &["--link"]);
    let other = levels.node(lab, "other", None);
    let address_of = |name: &str| {
        let info = levels.shell.json(&["info", name]);
        info["links"][0]["address4"].as_str().unwrap().split('/').next().unwrap().to_owned()
    };
    let there = address_of("other");
    // Who sends with the number of somebody else's port leaves with another one; who has it keeps it.
    other.serve(Tcp, "[::]:7070");
    other.serve(Udp, "[::]:7070");
    let node = levels.node(lab, "one", Some("two"));
    let beside = levels.node(lab, "one", Some("three"));
    for carrier in [Tcp, Udp] {
        let port = |node: &Node| {
            node.talk_from(carrier, Some("0.0.0.0:9001"), &format!("{there}:7070"), 3000).unwrap().port()
        };
        let (three, two) = (port(&beside), port(&node));
        assert!(three != 9001 && two == 9001, "{carrier:?}: {three} {two}");
    }
    // The number of a port is not that of others' ports on the way.
    network.outside.serve(Tcp, "[::]:9001");
    for node in [&node, &beside] {
        assert_eq!(node.talk(Tcp, &format!("{OUTSIDE4}:9001")).unwrap().to_string(), HOST4);
    }
    // UDP likewise, from the neighbour of the one around, which is the host, and from beside.
    let around = levels.node(lab, "one", None);
    node.serve(Udp, "[::]:7");
    let (outer, via) = (address_of("one"), levels.around(&["one", "three"], "-4"));
    network.host.talk(Udp, &format!("{outer}:9001")).unwrap();
    around.talk(Udp, "127.0.0.1:9001").unwrap();
    let seen = beside.talk(Udp, &format!("{via}:9001")).unwrap();
    assert_eq!(seen.to_string(), via);
    // Who calls from outside is seen as who it is: what the one around is is not said in its place.
    let seen = network.host.talk(Udp, &format!("{outer}:9001")).unwrap();
    assert_ne!(seen.to_string(), via);
    // Somebody flushes all rules. Ports still lead there; and what the one around has for itself alone nobody inside gets,
    // though the bridge routes it.
    around.serve(Tcp, "127.0.0.1:9011");
    around.serve(Udp, "127.0.0.1:9011");
    around.talk(Udp, "127.0.0.1:9011").unwrap();
    beside.sh(&format!(
        "echo 1 >/proc/sys/net/ipv4/conf/eth0/route_localnet; ip address del 127.0.0.1/8 dev lo
         ip route add 127.0.0.1/32 via {via} dev eth0"
    ));
    for flushed in [false, true] {
        if flushed {
            around.sh("nft flush ruleset");
            assert!(!around.run(&["nft", "list", "tables"]).contains("cgrant-inner\n"));
        }
        for carrier in [Tcp, Udp] {
            beside.is_cut_off(carrier, "127.0.0.1:9011");
        }
        levels.reaches(&one, "127.0.0.1", "9001", "two");
        around.talk(Udp, "127.0.0.1:9001").unwrap();
    }
    drop((node, around, beside, other));
    // While it runs.
    let change = |verb: &str, port: &str| {
        levels.shell.output(&inside(&one, &["cgrant", "link", verb, "three", "eth0", port]))
    };
    assert!(change("publish", "9002:7").status.success());
    levels.reaches(&one, "127.0.0.1", "9002", "three");
    assert_eq!(levels.ports(&one, "three"), ["9002:7/tcp"]);
    let again = change("publish", "9001:7");
    assert!(text(&again.stderr).contains("published already, for the container \"two\""), "{again:?}");
    // What was flushed is there again.
    levels.sh(&["one", "three"], &format!("ping -c 1 -W 5 {OUTSIDE4}"));
    assert!(change("unpublish", "9002:7").status.success());
    assert_eq!(
        (levels.calls(&one, "127.0.0.1", "9002"), levels.ports(&one, "three").len()),
        (String::new(), 0)
    );
    let twice = change("unpublish", "9002:7");
    assert!(twice.status.success(), "{twice:?}");
    // What runs without being a container of the store has what it was started with.
    levels.sh(&one, "cgrant run --name command --link -p 9003:7 -- /bin/sleep 1000 >/dev/null 2>&1 &");
    let of_command = inside(&one, &["cgrant", "link", "publish", "command", "eth0", "9004:7"]);
    wait_until("the command has its link", || {
        levels.sh(&one, "cat /sys/class/net/*/ifalias").contains("cgrant inner command")
    });
    levels.shell.fails(&of_command, 1, "has the ports that it was started with");
    // However its monitor ends: the port is free at once, and nothing leads anywhere.
    levels.reaches(&one, "127.0.0.1", "9001", "two");
    let monitor = levels.info(&one, "two")["monitor"].as_u64().unwrap();
    levels.sh(&one, &format!("kill -9 {monitor}"));
    wait_until("the port is free", || change("publish", "9001:7").status.success());
    levels.reaches(&one, "127.0.0.1", "9001", "three");
    levels.shell.done(&inside(&one, &["cgrant", "delete", "--force", "two"]));
    levels.shell.done(&inside(&one, &["cgrant", "delete", "--force", "three"]));
    assert_eq!(levels.calls(&one, "127.0.0.1", "9001"), "");
    levels.shell.done(&["delete", "--force", "one", "other"]);
    checker::assert_empty(lab);
}

fn addresses_and_rates_are_as_they_were_asked_for(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let user = lab.user();
    let levels = Levels { shell: Shell::beside(lab, &user, &broker, &network) };
    let archive = busybox_with_command(lab);
    levels.shell.import_inside(&[], &archive, "box");
    levels.launch(&[], "one", &["--nesting", "--link"]);
    levels.shell.import_inside(&["one"], &archive, "box");
    let one = ["one"];
    levels.launch(&one, "two", &["--link"]);
    let two = levels.addresses(&one, "two")[0].clone();
    let gateway = levels.around(&["one", "two"], "-4");
    let base = gateway.rsplit_once('.').unwrap().0.to_owned();
    let fixed = format!("{base}.77");
    let own = levels.sh(&one, "ip -o -4 address show eth0");
    let outer = own.split_ascii_whitespace().nth(3).unwrap().split('/').next().unwrap().to_owned();
    let launch = |address: &str, code: i32, why: &str| {
        levels.refuses(&one, &["cgrant", "launch", "box", "three", "--address", address], code, why);
    };
    // The bridge's own, that of all, the network's, the parent's outer one, the host's, a neighbour's, one of nobody.
    for address in [&gateway, &format!("{base}.0"), &outer, HOST4, "127.0.0.1", "100.127.0.9", "8.8.8.8"] {
        launch(address, 1, "is no address of containers in here");
    }
    launch(&two, 1, "that of the container \"two\"");
    launch("fd00::9", 2, "leave the IPv6 --address out");
    levels.launch(&one, "three", &["--address", &fixed, "--upload", "4M", "--download", "4M"]);
    assert_eq!(levels.addresses(&one, "three")[0], fixed);
    levels.reaches(&one, &fixed, "7", "three");
    // Also at its next start.
    levels.shell.done(&inside(&one, &["cgrant", "restart", "three", "--wait"]));
    assert_eq!(levels.addresses(&one, "three")[0], fixed);
    // Both limits hold: of a burst that takes far longer than the time there is, most is lost.
    let (two_there, three_there) =
        (levels.node(lab, "one", Some("two")), levels.node(lab, "one", Some("three")));
    for (from, to, at, least, most) in
        [(&three_there, &two_there, &two, 1, 2000), (&two_there, &three_there, &fixed, 1, 2000)]
    {
        let heard = to.listen("eth0");
        from.flood(&format!("{at}:9"), 3000, 1000);
        let arrived = to.heard(heard).iter().filter(|frame| frame.len() > 1000).count();
        assert!((least..most).contains(&arrived), "{arrived} of 3000 packets");
        to.close(heard);
    }
    drop((two_there, three_there));
    // Nothing of them is left.
    levels.shell.done(&inside(&one, &["cgrant", "stop", "three"]));
    let around = levels.node(lab, "one", None);
    let tables = around.run(&["nft", "list", "tables"]);
    assert!(tables.contains("inet cgrant-inner\n"), "{tables}");
    assert_eq!(tables.matches("netdev").count(), 1, "of the one that runs: {tables}");
    drop(around);
    levels.shell.done(&["delete", "--force", "one"]);
    checker::assert_empty(lab);
}

// Whoever is inside sends frames of its own making, past all rules that are about the bridge.
fn bare_frames_get_nobody_further(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let user = lab.user();
    let levels = Levels { shell: Shell::beside(lab, &user, &broker, &network) };
    let archive = busybox_with_command(lab);
    levels.shell.import_inside(&[], &archive, "box");
    levels.launch(&[], "one", &["--nesting", "--link"]);
    levels.shell.import_inside(&["one"], &archive, "box");
    let one = ["one"];
    // With a port on 127.0.0.1 the bridge routes that.
    levels.launch(&one, "two", &["-p", "9001:7/udp"]);
    levels.launch(&one, "three", &["--link"]);
    let address = |text: &str| text.parse::<Ipv4Addr>().unwrap();
    let own = (levels.mac(&["one", "three"], "eth0"), address(&levels.addresses(&one, "three")[0]));
    let gateway = (levels.mac(&one, BRIDGE), address(&levels.around(&["one", "three"], "-4")));
    // Routers are listened to as before, but by none of the bridge's ports.
    let settings = "cd /proc/sys/net/ipv6/conf && cat default/accept_ra cgi*/disable_ipv6";
    assert_eq!(levels.sh(&one, settings), "1\n1\n1\n");
    let around = levels.node(lab, "one", None);
    let two = levels.node(lab, "one", Some("two"));
    let three = levels.node(lab, "one", Some("three"));
    two.serve(Udp, "[::]:7");
    around.serve(Udp, "0.0.0.0:9020");
    around.talk(Udp, "127.0.0.1:9020").unwrap();
    // As careless as can be.
    around.sh("for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 >$f; done");
    let to_me = |port: u16| udp4((own.1, 5000), (gateway.1, port), b"in a strange frame");
    let to_loopback = udp4((own.1, 5000), (Ipv4Addr::LOCALHOST, 9020), b"in a strange frame");
    let honest = ethernet(gateway.0, own.0, IPV4, &to_me(9001));
    let mut attacks: Vec<Vec<u8>> = Vec::new();
    for last in 0..16 {
        let group = [0x01, 0x80, 0xc2, 0, 0, last];
        attacks.push(ethernet(group, own.0, IPV4, &to_me(9020)));
        attacks.push(ethernet(group, own.0, IPV6, &router_advertisement(ROUTER, own.0)));
    }
    for packet in [&to_me(9020), &to_loopback] {
        let plain = ethernet(gateway.0, own.0, IPV4, packet);
        let priority = tagged(&plain, 0);
        attacks.extend([tagged(&priority, 0), priority]);
    }
    attacks.push(ethernet(gateway.0, own.0, IPV4, &to_loopback));
    for flushed in [false, true] {
        if flushed {
            around.sh("nft flush ruleset");
            // To its addresses it lets anybody then, as that is what was asked for.
            attacks.retain(|frame| {
                frame.ends_with(&to_loopback)
                    || frame.windows(to_loopback.len()).any(|part| part == to_loopback)
            });
        }
        let listening = three.listen("eth0");
        let mut answers: Vec<u16> = Vec::new();
        wait_until("who may be reached is", || {
            three.send("eth0", &attacks);
            three.send("eth0", std::slice::from_ref(&honest));
            let heard = three.heard(listening).into_iter().filter(|frame| frame.starts_with(&own.0));
            let udp = heard.filter(|frame| frame[12..14] == IPV4.to_be_bytes() && frame[23] == 17);
            answers.extend(udp.map(|frame| u16::from_be_bytes([frame[34], frame[35]])));
            answers.iter().filter(|port| **port == 9001).count() > 2
        });
        three.close(listening);
        assert!(!answers.contains(&9020), "flushed: {flushed}: {answers:?}");
    }
    // In the name of somebody beside, or of the one around: from the addresses of those, and as who has them.
    let own6: Ipv6Addr = levels.addresses(&one, "three")[1].parse().unwrap();
    let other4 = address(&levels.addresses(&one, "two")[0]);
    let other6: Ipv6Addr = levels.addresses(&one, "two")[1].parse().unwrap();
    let to4 = |from: Ipv4Addr| {
        ethernet(gateway.0, own.0, IPV4, &udp4((from, 9001), (gateway.1, 5), b"whose address is this one's?"))
    };
    let to6 = |from: Ipv6Addr, to: Mac| {
        ethernet(to, own.0, IPV6, &udp6((from, 9001), (own6, 5), b"whose address is this one's?"))
    };
    let claim =
        |whose: Ipv4Addr| ethernet(EVERYBODY, own.0, ARP, &arp(1, (own.0, whose), ([0; 6], gateway.1)));
    let claim6 =
        |whose: Ipv6Addr| ethernet(ALL_NODES_MAC, own.0, IPV6, &advertisement(own6, ALL_NODES, whose, own.0));
    let redirect = redirect6(link_local(own.0), ALL_NODES, link_local(own.0), own6);
    let forged = [
        to4(other4),
        to4(gateway.1),
        to4(address("10.66.0.1")),
        to6(other6, gateway.0),
        claim(other4),
        claim(gateway.1),
        claim6(other6),
        ethernet(ALL_NODES_MAC, own.0, IPV6, &router_advertisement(link_local(own.0), own.0)),
        ethernet(ALL_NODES_MAC, own.0, IPV6, &redirect),
    ];
    let own = [to4(own.1), to6(own6, gateway.0), claim(own.1), claim6(own6)];
    let listening = around.listen(BRIDGE);
    let mut seen: Vec<Vec<u8>> = Vec::new();
    wait_until("what is its own passes", || {
        three.send("eth0", &forged);
        three.send("eth0", &own);
        seen.extend(around.heard(listening));
        own.iter().all(|frame| any_contains(&seen, &frame[14..]))
    });
    around.close(listening);
    let passed: Vec<usize> = forged
        .iter()
        .enumerate()
        .filter(|(_, frame)| any_contains(&seen, &frame[14..]))
        .map(|(at, _)| at)
        .collect();
    assert!(passed.is_empty(), "{passed:?}");
    // Who takes its own device away has its number on, as long as its monitor has the rules; others get another.
    let fixed = levels.addresses(&one, "three")[0].clone();
    three.sh("ip link delete eth0");
    levels.refuses(
        &one,
        &["cgrant", "launch", "box", "four", "--address", &fixed],
        1,
        "that of the container \"three\"",
    );
    let learned = levels.sh(&one, "ip -6 address; ip -6 route");
    assert!(!learned.contains("2001:db8:bad"), "{learned}");
    drop((around, two, three));
    levels.shell.done(&["delete", "--force", "one"]);
    checker::assert_empty(lab);
}

crate::tests![
    bare_frames_get_nobody_further,
    from_the_host_to_the_innermost,
    a_port_is_of_one_and_ends_with_it,
    addresses_and_rates_are_as_they_were_asked_for
];
