//! Which devices programs in grants can open: real root in the grant's cgroup, which nothing else holds back, and the root of a
//! user namespace, try nodes that anybody may open. And who would be rid of that.

use std::{fs, path::PathBuf, process::Command};

use crate::common::{Client, Grant, Lab, Options, User, bus::Refused, checker, place::MOUNTS, wait_until};

/// Makes nodes in a file system of its own, enters the cgroup and, if there is one, a user namespace, and says what it can open and make.
const TRIES: &str = r#"
    procs=$1 userns=$2
    mount -t tmpfs -o mode=755 nodes /mnt; cd /mnt
    while read name kind numbers; do mknod -m 666 $name $kind $numbers; done <<END
null c 1 3
zero c 1 5
urandom c 1 9
ptmx c 5 2
kmsg c 1 11
loop b 7 0
END
    cat >tries <<'END'
    reason() { reason=${1##*: }; echo "$2 ${reason:-ok}"; }
    for name in null zero urandom kmsg loop; do
        reason "$( (exec 3<$name) 2>&1)" "$name r"
        test $name = loop || reason "$( (exec 3<>$name) 2>&1)" "$name rw"
    done
    reason "$( (exec 3<>/dev/ptmx) 2>&1)" "ptmx rw"
    for node in 'c 1 3' 'c 136 9' 'c 1 11' 'b 7 0'; do
        reason "$(mknod made $node 2>&1)" "make $node"; rm -f made
    done
END
    echo $$ >$procs
    if test "$userns"; then nsenter --user=$userns -S0 -G0 sh tries; else sh tries; fi
"#;

const CONFINED: &str = "null r ok|null rw ok|zero r ok|zero rw ok|urandom r ok|urandom rw ok|\
    kmsg r EPERM|kmsg rw EPERM|loop r EPERM|ptmx rw ok|make c 1 3 ok|make c 136 9 ok|make c 1 11 EPERM|make b 7 0 EPERM";

/// What root of the host can do in the cgroup; or who has entered the process's user namespace.
fn tries(procs: &PathBuf, userns: Option<u32>) -> String {
    let userns = userns.map(|pid| format!("/proc/{pid}/ns/user")).unwrap_or_default();
    let output = Command::new("unshare")
        .args(["-m", "sh", "-ec", TRIES, "sh"])
        .arg(procs)
        .arg(userns)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    said.trim().replace("Operation not permitted", "EPERM").replace('\n', "|")
}

fn inside(lab: &Lab, user: &User, name: &str, below: &str) -> PathBuf {
    checker::places(lab, user.uid, name)["cgroup2"].join(below).join("cgroup.procs")
}

fn allow(client: &Client, grant: &Grant, name: &str) -> Result<(), Refused> {
    client.call(&grant.path, MOUNTS, "AllowDevice", &(name,))
}

/// Is a line of what was tried so?
#[track_caller]
fn is(said: &str, line: &str) {
    assert!(said.split('|').any(|known| known == line), "not {line:?}: {said}");
}

fn programs_open_what_policy_and_the_account_allow(lab: &Lab) {
    let mut broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let create =
        |client: &Client, name: &str, options: Options| client.create(name, options.lifetime("persistent"));
    let grant = create(&client, "box", Options::new()).unwrap();
    let bare = create(&client, "bare", Options::new().no_range()).unwrap();
    client.cgroup::<_, ()>(&grant.path, "CreateCgroup", &"below").unwrap();
    let places: Vec<PathBuf> =
        ["payload/below", "monitor"].iter().map(|below| inside(lab, &user, "box", below)).collect();
    for place in &places {
        assert_eq!(tries(place, None), CONFINED, "{}", place.display());
    }
    // A grant without ids is the account's own work, and left alone.
    let open = tries(&inside(lab, &user, "bare", "payload"), None);
    for line in ["kmsg rw ok", "make c 1 11 ok", "make b 7 0 ok"] {
        is(&open, line);
    }

    // What everybody may read of the host's node can be read, and no more. Nothing else is had by it.
    allow(&client, &grant, "kmsg").unwrap();
    allow(&client, &grant, "kmsg").unwrap();
    let read = CONFINED.replace("kmsg r EPERM", "kmsg r ok");
    assert_eq!(tries(&places[0], None), read);
    for (name, error) in
        [("console", "NotAuthorized"), ("nothing", "InvalidArgument"), ("../dev/kmsg", "InvalidArgument")]
    {
        allow(&client, &grant, name).unwrap_err().is(error, "");
    }
    let stranger = lab.user().client(broker.socket());
    allow(&stranger, &grant, "kmsg").unwrap_err().is("NoSuchGrant", "");
    // It is no use to what is not limited, and no harm.
    allow(&client, &bare, "kmsg").unwrap();

    // Nobody of the broker's has to live for it.
    broker.kill_everything();
    assert_eq!(tries(&places[0], None), read);
    broker.start_again();
    assert_eq!(tries(&places[0], None), read);

    // What policy says counts for new grants; what is there stays as it is, also when it is given more.
    lab.write_policy("[[rule]]\nname = \"messages\"\naccess.devices = [\"/dev/kmsg\", \"/dev/no*\"]\naccess.limit-devices = \"all\"\n");
    broker.reload();
    let client = user.client(broker.socket());
    let mut made = 0;
    wait_until("policy is read", || {
        made += 1;
        let name = format!("try{made}");
        let new = create(&client, &name, Options::new().no_range()).unwrap();
        let said = tries(&inside(lab, &user, &name, "payload"), None);
        client.release(&new.path, true).unwrap();
        said == CONFINED
            .replace("kmsg r EPERM", "kmsg r ok")
            .replace("kmsg rw EPERM", "kmsg rw ok")
            .replace("1 11 EPERM", "1 11 ok")
    });
    assert_eq!(tries(&places[0], None), read);
    allow(&client, &grant, "kmsg").unwrap();
    is(&tries(&places[0], None), "kmsg rw ok");
    is(&tries(&inside(lab, &user, "bare", "payload"), None), "make b 7 0 ok");
    broker.stop();
    broker.start_again();
    is(&tries(&places[0], None), "kmsg rw ok");
    let client = user.client(broker.socket());
    for grant in [&grant, &bare] {
        client.release(&grant.path, true).unwrap();
    }
    checker::assert_empty(lab);
}

/// The number of the system call, and its commands that detach, find, load and attach.
const DETACHES: &str = r#"
    use Fcntl;
    my ($call, @dirs) = @ARGV;
    my $code = pack("C C s l C C s l", 0xb7, 0, 0, 1, 0x95, 0, 0, 0);
    my $licence = "GPL\0";
    for my $dir (@dirs) {
        sysopen(my $fd, $dir, O_RDONLY | O_DIRECTORY) or next;
        for my $program (0, 1, 0xffffffff) {
            my $attributes = pack("L5", fileno($fd), $program, 6, 0, 0);
            print "detached $dir\n" if syscall($call, 9, $attributes, length $attributes) == 0;
        }
        my $query = pack("L4 Q L2 Q4", fileno($fd), 6, 0, 0, 0, 0, 0, 0, 0, 0, 0);
        print "queried $dir\n" if syscall($call, 16, $query, length $query) == 0;
    }
    my $load = pack("L2 P P L2 Q L2 a16 L2", 15, 2, $code, $licence, 0, 0, 0, 0, 0, "x", 0, 0);
    print "loaded\n" if syscall($call, 5, $load, length $load) >= 0;
    for my $id (1 .. 2000) {
        my $get = pack("L3", $id, 0, 0);
        print "found $id\n" if syscall($call, 13, $get, length $get) >= 0;
    }
    print "done\n";
"#;

fn nobody_is_rid_of_it(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let (process, userns) = user.userns();
    let grant = client.create("box", Options::new().fd("userns", &userns)).unwrap();
    let place = checker::places(lab, user.uid, "box")["cgroup2"].clone();
    let payload = inside(lab, &user, "box", "payload");
    // The root of the user namespace has all rights in it, and opens what anybody may open.
    let confined = tries(&payload, Some(process.pid));
    for line in ["null rw ok", "zero r ok", "kmsg r EPERM", "kmsg rw EPERM", "loop r EPERM"] {
        is(&confined, line);
    }
    // The account, the container's root as the host sees it, and the one that has all rights in its namespace.
    let root = User::new(grant.uid, &[], &lab.scratch, &lab.programs);
    let dirs =
        [place.parent().unwrap(), &place, &place.join("payload"), &place.join("monitor")].map(PathBuf::from);
    let call = nix::libc::SYS_bpf.to_string();
    let mut attackers = vec![user.command("perl"), root.command("perl"), Command::new("nsenter")];
    attackers[2].arg(format!("--user=/proc/{}/ns/user", process.pid)).args(["-S0", "-G0", "perl"]);
    for mut attacker in attackers {
        let output = attacker.args(["-e", DETACHES, &call]).args(&dirs).output().unwrap();
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            "done\n",
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    assert_eq!(tries(&payload, None), CONFINED);
    // Not by cgroups of its own either, which it makes below the payload.
    for below in ["a", "a/b"] {
        client.cgroup::<_, ()>(&grant.path, "CreateCgroup", &below).unwrap();
    }
    assert_eq!(tries(&inside(lab, &user, "box", "payload/a/b"), None), CONFINED);
    // Who attaches programs has two rights, and can get no other.
    let engine = broker.engine();
    let children = fs::read_to_string(format!("/proc/{engine}/task/{engine}/children")).unwrap();
    let statuses = children
        .split_ascii_whitespace()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok())
        .filter(|status| status.contains("\nCapEff:\t0000000000201000\nCapBnd:\t0000000000201000\n"));
    let helpers: Vec<String> = statuses.collect();
    assert_eq!(helpers.len(), 1, "SYS_ADMIN and NET_ADMIN alone");
    for line in ["CapPrm:\t0000000000201000", "CapBnd:\t0000000000201000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(helpers[0].lines().any(|known| known == line), "{line} is not in {}", helpers[0]);
    }
    // Root of the host detaches without a descriptor of the program no more than others.
    let output = Command::new("perl").args(["-e", DETACHES, &call]).args(&dirs).output().unwrap();
    assert!(!String::from_utf8_lossy(&output.stdout).contains("detached"));
    assert_eq!(tries(&inside(lab, &user, "box", "payload/a/b"), None), CONFINED);
}

fn policy_lets_grants_be_open(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"open\"\naccess.limit-devices = \"none\"\n");
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("box", Options::new()).unwrap();
    let said = tries(&inside(lab, &user, "box", "payload"), None);
    for line in ["kmsg rw ok", "make c 1 11 ok", "make b 7 0 ok"] {
        is(&said, line);
    }
    client.release(&grant.path, true).unwrap();
    assert!(fs::read_to_string("/proc/self/mounts").unwrap().lines().all(|line| !line.starts_with("nodes ")));
}

crate::tests![
    programs_open_what_policy_and_the_account_allow,
    nobody_is_rid_of_it,
    policy_lets_grants_be_open
];
