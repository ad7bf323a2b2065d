//! The network of containers in containers: from the innermost to the host and beyond it, and who is kept from whom on the way.

use std::{path::PathBuf, process::Stdio};

use serde_json::Value;

use crate::common::{
    Lab, checker,
    containers::{Shell, busybox_with_command, inside, text},
    network::{HOST4, HOST6, Network, OUTSIDE4, OUTSIDE6},
    node::Tcp,
    wait_until,
};

/// Where the outside says who calls.
const PORT: &str = "7070";

// The user's command line, and what is executed by it in containers in each other.
struct Levels<'a> {
    shell: Shell<'a>,
    archive: PathBuf,
}

impl Levels<'_> {
    // In the innermost of these.
    #[track_caller]
    fn sh(&self, levels: &[&str], script: &str) -> String {
        self.shell.done(&inside(levels, &["sh", "-c", script]))
    }

    fn fails(&self, levels: &[&str], script: &str) -> bool {
        !self.shell.output(&inside(levels, &["sh", "-c", script])).status.success()
    }

    // A new one in the innermost of these.
    fn launch(&self, levels: &[&str], name: &str, options: &[&str]) {
        self.shell.import_inside(levels, &self.archive, "box");
        let launch = [&["cgrant", "launch", "box", name], options].concat();
        self.shell.done(&inside(levels, &launch));
    }

    // The addresses of one, as who is in the innermost of these is told.
    fn addresses(&self, levels: &[&str], name: &str) -> Vec<String> {
        let list = inside(levels, &["cgrant", "--format", "json", "list", name]);
        let list: Value = serde_json::from_str(&self.shell.done(&list)).unwrap();
        let addresses = list[0]["address"].as_array().unwrap();
        addresses.iter().map(|address| address.as_str().unwrap().to_owned()).collect()
    }

    #[track_caller]
    fn pings(&self, levels: &[&str], to: &str) {
        wait_until(&format!("{levels:?} reach {to}"), || {
            !self.fails(levels, &format!("ping -c 1 -W 1 {to}"))
        });
    }
}

// Two roots make networks of their own, inside of one of the broker's.
fn from_the_innermost_to_the_host_and_out(lab: &Lab) {
    let network = Network::new(lab);
    network.outside.serve(Tcp, &format!("[::]:{PORT}"));
    let mut broker = network.broker();
    let user = lab.user();
    let levels =
        Levels { shell: Shell::beside(lab, &user, &broker, &network), archive: busybox_with_command(lab) };
    levels.launch(&[], "one", &["--nesting", "--link"]);
    levels.launch(&["one"], "two", &["--nesting", "--link"]);
    levels.launch(&["one", "two"], "three", &["--link"]);
    let all = ["one", "two", "three"];
    checker::assert_in_order(lab);
    // Each is told what the next one has, and that is what it has.
    let known: Vec<Vec<String>> = (0..3).map(|depth| levels.addresses(&all[..depth], all[depth])).collect();
    for (depth, addresses) in known.iter().enumerate() {
        assert_eq!(addresses.len(), 2, "{known:?}");
        let own = levels.sh(&all[..=depth], "ip -o address show eth0");
        assert!(
            addresses.iter().all(|address| own.contains(&format!(" {address}/"))),
            "{addresses:?}: {own}"
        );
        levels.pings(&all[..depth.max(1)], &addresses[0]);
    }
    // No network of one level is that of another.
    let networks: Vec<String> = (0..3)
        .flat_map(|depth| {
            let own = levels.sh(&all[..=depth], "ip -4 route");
            own.lines().filter(|line| line.contains("scope link")).map(str::to_owned).collect::<Vec<_>>()
        })
        .map(|line| line.split(' ').next().unwrap().to_owned())
        .collect();
    let mut different = networks.clone();
    different.sort();
    different.dedup();
    // Each network is seen on both of its sides, the first one by the host.
    assert_eq!((networks.len(), different.len()), (5, 3), "{networks:?}");
    // To the host, and beyond: both families, names too.
    let out = || {
        for to in [HOST4, HOST6, OUTSIDE4, OUTSIDE6] {
            levels.pings(&all, to);
        }
        // Who calls is the host, for all that the outside sees.
        let said = |to: &str| levels.sh(&all, &format!("busybox nc -w 20 {to} {PORT} </dev/null"));
        assert!(said(OUTSIDE4).contains(HOST4), "{}", said(OUTSIDE4));
        assert!(said(OUTSIDE6).contains(HOST6), "{}", said(OUTSIDE6));
    };
    // Who answers for names is the broker's, and may have to be started again.
    let names = || wait_until("names are known", || !levels.fails(&all, "busybox nslookup far.test"));
    out();
    names();
    // A command has a link too, as long as it runs.
    let run = ["cgrant", "run", "--link", "--", "/bin/ping", "-c", "1", "-w", "20", OUTSIDE4];
    levels.shell.done(&inside(&["one"], &run));
    // Nobody needs the broker for it.
    broker.kill_everything();
    out();
    broker.start_again();
    wait_until("the broker is back", || levels.shell.output(&["list"]).status.success());
    checker::assert_in_order(lab);
    out();
    names();
    // The same addresses at the next start.
    levels.shell.done(&inside(&["one"], &["cgrant", "stop", "two"]));
    let ports = || levels.sh(&["one"], "ls /sys/class/net").matches("cgi").count();
    wait_until("its link is gone", || ports() == 0);
    levels.shell.done(&inside(&["one"], &["cgrant", "start", "two"]));
    assert_eq!((levels.addresses(&["one"], "two"), ports()), (known[1].clone(), 1));
    levels.pings(&["one", "two"], OUTSIDE4);
    levels.shell.done(&["delete", "--force", "one"]);
    checker::assert_empty(lab);
}

// A container inside wants at the one around it, or to be somebody else; others want at it.
fn who_is_inside_gets_no_further_than_its_network(lab: &Lab) {
    let network = Network::new(lab);
    let broker = network.broker();
    let user = lab.user();
    let levels =
        Levels { shell: Shell::beside(lab, &user, &broker, &network), archive: busybox_with_command(lab) };
    levels.launch(&[], "one", &["--nesting", "--link"]);
    // A device of the bridge's name that somebody else made is left alone.
    levels.sh(&["one"], "ip link add cgrant-inner type veth peer name other");
    let run = inside(&["one"], &["cgrant", "run", "--link", "--", "/bin/true"]);
    levels.shell.fails(&run, 4, "no bridge of cgrant's");
    levels.sh(&["one"], "ip link delete cgrant-inner");
    levels.launch(&["one"], "two", &["--nesting", "--link"]);
    levels.launch(&["one", "two"], "three", &["--link"]);
    let all = ["one", "two", "three"];
    let (two, three) = (levels.addresses(&["one"], "two"), levels.addresses(&all[..2], "three"));
    // Services of the one around it, by each of its addresses, as it can use those of this one. It may be pinged.
    for level in [&all[..2], &all[..3]] {
        levels.sh(level, "busybox nc -ll -p 7 -e /bin/echo here </dev/null >/dev/null 2>&1 &");
    }
    let calls = |levels_of: &[&str], to: &str| {
        let call = levels.shell.command(&inside(levels_of, &["busybox", "nc", "-w", "2", to, "7"]));
        text(&{ call }.stdin(Stdio::null()).output().unwrap().stdout)
    };
    let gateway = |of: &[&str], family: &str| {
        let route = levels.sh(of, &format!("ip {family} route show default"));
        route.split(' ').nth(2).unwrap().to_owned()
    };
    for address in [&gateway(&all, "-4"), &gateway(&all, "-6"), &two[0], &two[1]] {
        levels.pings(&all, address);
        assert_eq!(calls(&all, address), "", "{address}");
    }
    assert_eq!(
        (calls(&all[..2], &three[0]), calls(&all[..2], &three[1])),
        ("here\n".into(), "here\n".into())
    );
    // From around, by a way that leads there: it answers nobody who has not been asked.
    assert_eq!(calls(&["one"], &two[0]), "here\n");
    levels.sh(&["one"], &format!("ip route add {} via {}", three[0], two[0]));
    assert!(levels.fails(&["one"], &format!("ping -c 1 -W 1 {}", three[0])));
    // As somebody else: none of it gets to where an answer would be looked for.
    let one = gateway(&all[..2], "-4");
    let forged = format!("{}.222", one.rsplit_once('.').unwrap().0);
    levels.sh(&all, &format!("ip address add {forged}/32 dev eth0"));
    assert!(levels.fails(&all, &format!("ping -c 1 -W 1 -I {forged} {one}")));
    let asked = levels.sh(&["one"], "ip neigh");
    assert!(!asked.contains(&forged), "{asked}");
    // What a broker would give on a host is refused, before anything is made.
    for (options, why) in [
        (&["--dhcp"][..], "no DHCP"),
        (&["--address", "fd00::9"], "by chance"),
        (&["--vlan", "9"], "no VLANs"),
    ] {
        let words = [&["cgrant", "launch", "box", "four"], options].concat();
        levels.shell.fails(&inside(&["one"], &words), 2, why);
    }
    let words = ["cgrant", "launch", "box", "four", "--link=default"];
    levels.shell.fails(&inside(&["one"], &words), 1, "there is no bridge");
    levels.shell.done(&["delete", "--force", "one"]);
    checker::assert_empty(lab);
}

crate::tests![from_the_innermost_to_the_host_and_out, who_is_inside_gets_no_further_than_its_network];
