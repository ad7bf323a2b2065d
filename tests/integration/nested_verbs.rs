//! Every verb of the command, said by the root of a container: it does there what it does outside, or says what it can't.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Output},
};

use crate::common::{
    Lab, checker,
    containers::{Shell, busybox_with_command, inside, states, text},
    network::Network,
};

/// What is typed in the container; how it ends; what is said then.
type Row = (&'static str, i32, &'static str);

// One after the other, each with what those before left. Verbs of one line are all those in it.
const ROWS: &[Row] = &[
    // Images: the one that came through standard input goes out into a file and comes in again.
    ("cgrant image list", 0, "box"),
    ("cgrant image alias add box again", 0, ""),
    ("cgrant image alias remove again", 0, ""),
    ("cgrant image export box /root/box.tar --quiet", 0, ""),
    ("cgrant image remove box --quiet && cgrant image import /root/box.tar --alias box --quiet", 0, ""),
    ("cgrant image build debian:trixie", 4, "mmdebstrap is not installed"),
    // The life of a container.
    ("cgrant create box two --pids 60", 0, ""),
    ("cgrant start two --wait", 0, ""),
    ("cgrant wait two", 0, ""),
    ("cgrant list", 0, "two   running"),
    ("cgrant list --tree", 0, "two   running"),
    ("cgrant info two", 0, "running"),
    ("cgrant get two pids.max", 0, "60"),
    ("cgrant set two pids.max=50 && cgrant get two pids.max", 0, "50"),
    ("cgrant exec two -- cat /proc/sys/kernel/hostname", 0, "two"),
    ("echo 'hostname; exit 7' | cgrant shell two", 7, "two"),
    ("cgrant push two /etc/passwd /root/pushed && cgrant exec two -- ls /root/pushed", 0, "/root/pushed"),
    ("cgrant pull two /root/pushed /root/pulled && busybox cmp /etc/passwd /root/pulled", 0, ""),
    ("until cgrant logs --console two | grep ready; do sleep 0.1; done", 0, "ready"),
    ("printf '\\035' | cgrant console two", 0, ""),
    ("cgrant top --once two", 0, "two"),
    ("cgrant pause two && cgrant list", 0, "two   paused"),
    ("cgrant resume two && cgrant list", 0, "two   running"),
    ("cgrant restart two && cgrant list", 0, "two   running"),
    ("cgrant kill two && cgrant wait two --stopped && cgrant info two", 0, "signal 9"),
    ("cgrant rename two zwei && cgrant list", 0, "zwei  stopped"),
    ("cgrant copy zwei three && cgrant start three && cgrant exec three -- hostname", 0, "three"),
    ("cgrant stop three", 0, ""),
    ("cgrant export three /root/three.tar --quiet", 0, ""),
    ("cgrant import /root/three.tar four --quiet && cgrant start four", 0, ""),
    ("cgrant exec four -- hostname", 0, "three"),
    ("cgrant delete --force zwei three four && cgrant list --quiet | wc -l", 0, "0"),
    ("cgrant create box five --mount /root:/srv", 2, "can't be shown \"/root\""),
    ("cgrant create box five --link --vlan 9", 2, "has no VLANs on its bridge"),
    ("cgrant launch box five --link --wait && cgrant exec five -- ip address show eth0", 0, "inet "),
    // Ports of this container's, which the broker has no part in.
    ("cgrant link publish five eth0 8080:80 && cgrant link list five", 0, "8080:80/tcp"),
    ("cgrant link publish five eth0 8080:81", 1, "published already, for the container \"five\""),
    ("cgrant link unpublish five eth0 8080:80 && cgrant link list five", 0, "five"),
    ("cgrant link unpublish five eth0 8080:80", 0, ""),
    ("cgrant delete --force five", 0, ""),
    ("cgrant run --link -- /bin/ip -o link", 0, "eth0"),
    // Grants.
    ("cgrant grant create g --pids 20", 0, ""),
    ("cgrant grant list", 0, "g "),
    ("cgrant grant show g", 0, "pids.max"),
    ("cgrant grant set g pids.max=10 && cgrant grant get g pids.max", 0, "10"),
    ("cgrant grant stat g", 0, "pids"),
    // By the number that it has in there (Linux 6.11).
    (
        "sleep 1000 >/dev/null 2>&1 & cgrant grant attach g $! && cgrant grant ps g | grep -w $! && echo told",
        0,
        "told",
    ),
    ("cgrant grant attach g $$ --tree", 1, "not there for callers inside"),
    ("cgrant grant freeze g", 0, ""),
    ("cgrant grant thaw g", 0, ""),
    ("cgrant grant adopt g --persistent", 0, ""),
    ("cgrant grant cgroup create g x && cgrant grant cgroup list g", 0, "x"),
    ("cgrant grant cgroup remove g x", 0, ""),
    ("cgrant grant kill g", 0, ""),
    // Links to bridges of the host's, of which policy has none here; those of the verbs above are made without the broker.
    // Ports of the host's are not to be had.
    ("cgrant link bridges", 0, ""),
    ("cgrant link list", 0, ""),
    ("cgrant link add g --netns $$ --bridge lan", 1, ""),
    ("cgrant link tap g --bridge lan -- true", 1, "taps are not there"),
    ("cgrant link publish g eth0 8080:80", 1, "not there for callers inside"),
    ("cgrant link unpublish g eth0 8080:80", 1, "not there for callers inside"),
    ("cgrant link remove g eth0", 1, "no link named"),
    ("cgrant grant release g --kill", 0, ""),
    // The account, as it is told of inside.
    ("cgrant usage", 0, "grants"),
    ("cgrant usage --disk", 0, "box"),
    ("cgrant usage --all", 1, "not there for callers inside"),
    ("cgrant explain create-grant --ids 65536", 0, "allowed"),
    ("cgrant explain create-grant --account 1000", 1, "not there for callers inside"),
    ("cgrant range list", 0, ""),
    ("cgrant grant create kept --ids 1000 && cgrant grant release kept && cgrant range forget kept", 0, ""),
    ("cgrant policy show", 1, "not there for callers inside"),
    ("cgrant policy test create-grant", 0, "allowed"),
    // What is the host's. CGManager's socket is in no container but by `cgproxy`.
    ("cgrant departed list", 1, "not there for callers inside"),
    ("cgrant departed clean", 1, "not there for callers inside"),
    ("cgrant departed usage --account 1000 /root", 1, "not there for callers inside"),
    ("cgrant departed remove --account 1000 /root", 1, "not there for callers inside"),
    ("cgrant disk measure", 0, ""),
    (
        "mkdir /tmp/c && echo 'disk.directories = [\"/root\"]' >/tmp/c/cgrantd.toml && cgrant disk measure --config-dir /tmp/c",
        1,
        "not there for callers inside",
    ),
    ("cgrant cgroup create x", 3, "cgmanager/sock"),
    ("cgrant cgroup remove x", 3, "cgmanager/sock"),
    ("cgrant cgroup prune x", 3, "cgmanager/sock"),
    ("cgrant cgroup list", 3, "cgmanager/sock"),
    ("cgrant cgroup ps", 3, "cgmanager/sock"),
    ("cgrant cgroup files", 3, "cgmanager/sock"),
    ("cgrant cgroup get x memory.limit_in_bytes", 3, "cgmanager/sock"),
    ("cgrant cgroup set x memory.limit_in_bytes=1", 3, "cgmanager/sock"),
    ("cgrant cgroup show $$", 3, "cgmanager/sock"),
    ("cgrant cgroup controllers", 3, "cgmanager/sock"),
    ("cgrant cgroup attach x $$", 3, "cgmanager/sock"),
    ("cgrant cgroup chown x 1:1", 3, "cgmanager/sock"),
    ("cgrant cgroup chmod x 755", 3, "cgmanager/sock"),
    // With what starts in it.
    ("cgrant create box auto && cgrant set auto autostart=true", 0, ""),
    ("cgrant autostart start && cgrant list", 0, "auto  running"),
    ("cgrant autostart stop && cgrant list", 0, "auto  stopped"),
    ("cgrant delete auto", 0, ""),
    (
        "cgrant events >/root/events & until grep grant-added /root/events; do \
         cgrant grant create e && cgrant grant release e; done; kill $!",
        0,
        "e",
    ),
    ("cgrant doctor", 0, "broker"),
    ("cgrant completions bash", 0, "complete"),
];

// Each verb, as its words: those of whom there is a manual page, and none of a longer one.
fn verbs(lab: &Lab) -> BTreeSet<String> {
    let pages = lab.scratch.join("pages");
    fs::create_dir(&pages).unwrap();
    let done = Command::new(lab.programs.join("cgrant")).arg("manual").arg(&pages).status();
    assert!(done.unwrap().success());
    let name = |file: fs::DirEntry| file.file_name().into_string().unwrap();
    let pages = fs::read_dir(&pages).unwrap().map(|file| name(file.unwrap()));
    let words = |page: String| Some(page.strip_prefix("cgrant-")?.strip_suffix(".1")?.replace('-', " "));
    let all: BTreeSet<String> = pages.filter_map(words).collect();
    let is_leaf = |verb: &&String| !all.iter().any(|other| other.starts_with(&format!("{verb} ")));
    all.iter().filter(is_leaf).cloned().collect()
}

// The verbs that a line has.
fn said_in(line: &str, verbs: &BTreeSet<String>) -> BTreeSet<String> {
    let parts = line.split("cgrant ").skip(1);
    parts
        .map(|part| {
            let is_this = |verb: &&String| part == *verb || part.starts_with(&format!("{verb} "));
            verbs.iter().find(is_this).unwrap_or_else(|| panic!("no verb: {part}")).clone()
        })
        .collect()
}

// What is wrong with how a line ended, if anything.
fn complaint(&(line, code, says): &Row, output: &Output) -> Option<String> {
    let (out, error) = (text(&output.stdout), text(&output.stderr));
    let said = if code == 0 || code == 7 { &out } else { &error };
    let is_right = output.status.code() == Some(code) && said.contains(says);
    (!is_right).then(|| format!("{line}: {:?}, not {code} with {says:?}\n{out}{error}", output.status.code()))
}

fn each_verb_works_inside_or_says_why_not(lab: &Lab) {
    let verbs = verbs(lab);
    let tried: BTreeSet<String> = ROWS.iter().flat_map(|(line, ..)| said_in(line, &verbs)).collect();
    let untried: Vec<&String> = verbs.difference(&tried).collect();
    assert!(verbs.len() > 60 && untried.is_empty(), "no row for {untried:?}");
    let network = Network::new(lab);
    let broker = network.broker();
    let user = lab.user();
    let shell = Shell::beside(lab, &user, &broker, &network);
    let archive = busybox_with_command(lab);
    shell.import_inside(&[], &archive, "box");
    shell.done(&["launch", "box", "one", "--nesting", "--link", "--wait"]);
    shell.import_inside(&["one"], &archive, "box");
    let complaints: Vec<String> = ROWS
        .iter()
        .filter_map(|row| {
            let words = ["busybox", "timeout", "-s", "KILL", "60", "sh", "-c", row.0];
            let output = shell.output(&inside(&["one"], &words));
            complaint(row, &output)
        })
        .collect();
    assert!(complaints.is_empty(), "{} of {}:\n{}", complaints.len(), ROWS.len(), complaints.join("\n"));
    // Nothing of it is seen outside, and nothing is left.
    checker::assert_in_order(lab);
    assert_eq!(states(&shell.done(&["--format", "json", "list"])), ["one running"]);
    shell.done(&["delete", "--force", "one"]);
    checker::assert_empty(lab);
}

crate::tests![each_verb_works_inside_or_says_why_not];
