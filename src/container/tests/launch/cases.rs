//! The cases. Each runs in a launcher process, as the account.

use std::{
    fs::{self, Permissions},
    io::{Read, Seek},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::{PermissionsExt, chown, symlink},
    },
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use cgrant_container::{
    Command, Container, Ending, Exit, Launch, LaunchError, LaunchSpec, Network, Placement, Root, Signal,
    Staged, Step, StepFailure,
};
use cgrant_sys::namespace::{NetnsFd, UsernsFd};
use rustix::process::{WaitOptions, wait};

use crate::double::{BASE, Link};

pub struct Case {
    pub name: &'static str,
    pub launch: fn(&Scene),
    pub ids: u32,
    pub setgroups: bool,
}

/// What a launcher has.
pub struct Scene {
    pub link: Link,
    pub directory: PathBuf,
    pub ids: u32,
    pub setgroups: bool,
}

const fn case(name: &'static str, launch: fn(&Scene)) -> Case {
    Case { name, launch, ids: 65536, setgroups: true }
}

pub const CASES: &[Case] = &[
    case("first_process_is_root_and_pid_1", first_process_is_root_and_pid_1),
    case("every_namespace_is_new", every_namespace_is_new),
    case("cgroup_is_its_own_root", cgroup_is_its_own_root),
    case("statuses_pass_unharmed", statuses_pass_unharmed),
    case("signals_reach_the_first_process", signals_reach_the_first_process),
    case("nothing_of_the_launcher_leaks_in", nothing_of_the_launcher_leaks_in),
    case("host_root_is_read_only", host_root_is_read_only),
    case("devices_and_temporary_places", devices_and_temporary_places),
    case("loopback_and_hostname", loopback_and_hostname),
    case("links_need_a_namespace_that_can_be_shown", links_need_a_namespace_that_can_be_shown),
    case("a_root_without_names_is_left_as_it_is", a_root_without_names_is_left_as_it_is),
    case("directory_root_under_a_closed_home", directory_root_under_a_closed_home),
    case("read_only_root", read_only_root),
    case("places_to_mount_on_must_be_there", places_to_mount_on_must_be_there),
    case("symlinks_in_a_root_lead_nowhere", symlinks_in_a_root_lead_nowhere),
    case("no_descriptor_leads_out_of_a_root", no_descriptor_leads_out_of_a_root),
    case("failures_of_the_command", failures_of_the_command),
    case("reaper_reaps_and_passes_signals_on", reaper_reaps_and_passes_signals_on),
    case("reaper_says_why_the_command_failed", reaper_says_why_the_command_failed),
    case("a_dropped_launch_leaves_no_process", a_dropped_launch_leaves_no_process),
    case("a_launch_that_is_not_attached_ends", a_launch_that_is_not_attached_ends),
    case("a_launcher_with_threads_is_refused", a_launcher_with_threads_is_refused),
    case("namespaces_can_be_tried", namespaces_can_be_tried),
    Case { name: "without_setgroups", launch: without_setgroups, ids: 65536, setgroups: false },
    Case { name: "one_id_is_enough", launch: one_id_is_enough, ids: 1, setgroups: true },
];

/// A busybox root, and a home of mode 0700 of the account's with another one in it.
pub fn make_scene(directory: &Path, uid: u32) {
    let home = directory.join("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(uid), Some(uid)).unwrap();
    fs::set_permissions(&home, Permissions::from_mode(0o700)).unwrap();
    for root in [directory.join("root"), home.join("root")] {
        make_root(&root, uid);
    }
}

fn make_root(root: &Path, uid: u32) {
    for name in ["", "bin", "dev", "etc", "proc", "run", "sys", "tmp"] {
        fs::create_dir(root.join(name)).unwrap();
        chown(root.join(name), Some(uid), Some(uid)).unwrap();
        fs::set_permissions(root.join(name), Permissions::from_mode(0o755)).unwrap();
    }
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    fs::copy(busybox.expect("busybox-static is not installed"), root.join("bin/busybox")).unwrap();
    for applet in ["sh", "cat", "id", "ls", "sleep", "touch", "readlink", "true", "ps"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(root.join("bin/not-executable"), "x").unwrap();
    fs::write(root.join("bin/not-a-program"), "x").unwrap();
    fs::set_permissions(root.join("bin/not-a-program"), Permissions::from_mode(0o755)).unwrap();
}

impl Scene {
    /// A shell script in the busybox root.
    fn spec(&self, script: &str) -> LaunchSpec {
        self.words(&["sh", "-ec", script])
    }

    fn words(&self, words: &[&str]) -> LaunchSpec {
        LaunchSpec {
            root: Root::Directory { path: self.directory.join("root"), read_only: false },
            hostname: None,
            command: Command {
                argv: words.iter().map(Into::into).collect(),
                env: vec![("PATH".into(), "/bin:/usr/bin".into())],
                directory: "/".into(),
            },
            reaper: false,
            setgroups: self.setgroups,
            links: false,
        }
    }

    fn try_launch(&self, spec: &LaunchSpec) -> Result<Container, LaunchError> {
        let staged = Launch::begin(spec)?.user_namespace()?;
        self.link.map(&staged);
        let network = staged.network().map(|network| given(&staged, network));
        let placement = Placement { hostname: "placed".into(), ids: self.ids, network };
        let mapped = staged.mapped(&placement)?;
        match self.link.attach(&mapped) {
            Some(payload) => mapped.start(payload.as_fd()),
            None => Err(mapped.failure().expect("nothing failed")),
        }
    }

    /// Runs to the end; how it ended and what it wrote.
    fn run(&self, spec: &LaunchSpec) -> (Ending, String) {
        let mut output = tempfile::tempfile_in(self.directory.join("home")).unwrap();
        let before = rustix::io::dup(std::io::stdout()).unwrap();
        nix::unistd::dup2_stdout(&output).unwrap();
        let launched = self.try_launch(spec);
        nix::unistd::dup2_stdout(before).unwrap();
        let ending = launched.unwrap().wait().unwrap();
        output.rewind().unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        (ending, text)
    }

    /// Runs a script that must end well; what it wrote.
    fn output(&self, script: &str) -> String {
        let (ending, text) = self.run(&self.spec(script));
        assert_eq!(ending, Ending(Exit::Code(0)), "{text}");
        text
    }

    fn failure(&self, spec: &LaunchSpec) -> StepFailure {
        match self.try_launch(spec) {
            Err(LaunchError::Step(failure)) => failure,
            other => panic!("no step failed: {other:?}"),
        }
    }
}

fn no_child_is_left() {
    assert_eq!(wait(WaitOptions::NOHANG).unwrap_err(), rustix::io::Errno::CHILD);
}

fn first_process_is_root_and_pid_1(scene: &Scene) {
    let text =
        scene.output("echo $$ $(id -u) $(id -g) $(id -G); cat /proc/self/uid_map /proc/self/gid_map; umask");
    let map = format!("{:>10} {BASE:>10} {:>10}\n", 0, 65536);
    assert_eq!(text, format!("1 0 0 0\n{map}{map}0022\n"));
    no_child_is_left();
}

fn every_namespace_is_new(scene: &Scene) {
    const KINDS: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];
    let inside =
        scene.output(&format!("cd /proc/self/ns; for n in {}; do readlink $n; done", KINDS.join(" ")));
    assert_eq!(inside.lines().count(), KINDS.len());
    for (kind, inside) in KINDS.iter().zip(inside.lines()) {
        let outside = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert!(inside.starts_with(&format!("{kind}:[")), "{inside}");
        assert_ne!(outside, Path::new(inside));
    }
}

fn cgroup_is_its_own_root(scene: &Scene) {
    let text = scene.output(
        "cat /proc/self/cgroup | busybox grep ^0::; busybox mkdir /sys/fs/cgroup/inner; busybox rmdir /sys/fs/cgroup/inner;
         cat /sys/fs/cgroup/cgroup.procs | busybox head -n 1; ls /sys/fs/cgroup/cgroup.controllers",
    );
    assert_eq!(text, "0::/\n1\n/sys/fs/cgroup/cgroup.controllers\n");
}

fn statuses_pass_unharmed(scene: &Scene) {
    for code in [0, 1, 7, 255] {
        let container = scene.try_launch(&scene.spec(&format!("exit {code}"))).unwrap();
        assert_eq!(container.wait().unwrap(), Ending(Exit::Code(code)));
    }
    let container = scene.try_launch(&scene.words(&["sleep", "1000"])).unwrap();
    container.signal(Signal::KILL).unwrap();
    assert_eq!(container.wait().unwrap(), Ending(Exit::Signal(9)));
    no_child_is_left();
}

fn signals_reach_the_first_process(scene: &Scene) {
    let mut spec =
        scene.spec("trap 'echo got; exit 3' USR1; echo ready > /tmp/ready; while :; do sleep 0.01; done");
    spec.hostname = Some("own-name".into());
    let container = scene.try_launch(&spec).unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while container.disposition(Signal::USR1).unwrap() != cgrant_container::Disposition::Takes {
        assert!(Instant::now() < end, "the trap was not set");
        std::thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(container.disposition(Signal::TERM).unwrap(), cgrant_container::Disposition::Default);
    assert_eq!(container.try_wait().unwrap(), None);
    container.signal(Signal::USR1).unwrap();
    assert_eq!(container.wait().unwrap(), Ending(Exit::Code(3)));
}

fn nothing_of_the_launcher_leaks_in(scene: &Scene) {
    // A descriptor without close-on-exec, as a careless parent leaves it; a blocked and an ignored signal.
    let leak = rustix::fs::memfd_create("leak", rustix::fs::MemfdFlags::empty()).unwrap();
    nix::sys::signal::SigSet::from(nix::sys::signal::Signal::SIGUSR2).thread_block().unwrap();
    let text = scene.output(
        "ls /proc/1/fd; busybox env; busybox grep -E '^(SigBlk|SigIgn|NoNewPrivs|CapEff)' /proc/self/status;
         busybox awk '{ print $6, $7 }' /proc/1/stat",
    );
    drop(leak);
    let mut lines = text.lines();
    assert_eq!(lines.by_ref().take(4).take_while(|line| line.len() == 1).collect::<String>(), "012");
    let rest: Vec<&str> = lines.collect();
    assert!(rest.contains(&"PATH=/bin:/usr/bin"), "{text}");
    let foreign = |line: &&&str| {
        line.contains('=') && !["PATH=", "PWD=", "SHLVL=", "_="].iter().any(|own| line.starts_with(own))
    };
    assert_eq!(rest.iter().find(foreign), None, "{text}");
    for line in ["SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", "NoNewPrivs:\t0"] {
        assert!(rest.contains(&line), "{line} is not in {text}");
    }
    let capabilities = rest.iter().find_map(|line| line.strip_prefix("CapEff:\t")).unwrap();
    let capabilities = u64::from_str_radix(capabilities, 16).unwrap();
    assert_eq!(capabilities & 0x1f_ffff, 0x1f_ffff, "the namespace's root has all capabilities in it");
    assert_eq!(rest.last(), Some(&"1 0"), "a session of its own, without terminal");
}

fn host_root_is_read_only(scene: &Scene) {
    let script = "
        for d in / /etc /usr /var/tmp; do if touch $d/cgrant-test 2>/dev/null; then echo wrote $d; exit 1; fi; done
        touch /tmp/x /run/x /dev/shm/x
        [ -z \"$(ls /var/tmp/../../tmp | grep -v '^x$')\" ]
        while read -r line; do set -- $line; case $5 in /proc|/proc/*|/sys|/sys/*|/dev|/dev/*|/run|/tmp) continue;; esac
          case $6 in ro,*nosuid*nodev*) ;; *) echo \"$5 $6\"; exit 1;; esac
        done < /proc/self/mountinfo";
    let mut spec = scene.spec(script);
    spec.root = Root::Host;
    let (ending, text) = scene.run(&spec);
    assert_eq!((ending, text.as_str()), (Ending(Exit::Code(0)), ""));
}

fn devices_and_temporary_places(scene: &Scene) {
    let text = scene.output(
        "echo x > /dev/null; [ -z \"$(cat /dev/null)\" ]; busybox head -c 4 /dev/zero | busybox wc -c
         for d in full random urandom tty; do [ -c /dev/$d ]; done; [ -c /dev/pts/ptmx ]; [ -c /dev/ptmx ]
         for d in /tmp /run /dev/shm; do [ -z \"$(ls $d)\" ]; touch $d/x; done; [ -d /dev/mqueue ]
         readlink /dev/fd; readlink /dev/stdin; busybox stat -c '%a %u' /tmp /run /dev /dev/shm
         if touch /sys/x 2>/dev/null; then exit 9; fi; busybox grep -c . /proc/self/mountinfo
         if busybox mknod /tmp/null c 1 3 2>/dev/null; then exit 8; fi",
    );
    assert_eq!(text, "4\n/proc/self/fd\n/proc/self/fd/0\n1777 0\n755 0\n755 0\n1777 0\n16\n");
}

fn loopback_and_hostname(scene: &Scene) {
    let text = scene.output(
        "cat /proc/sys/kernel/hostname; ls /sys/class/net | busybox grep -c .; cat /sys/class/net/lo/flags",
    );
    // IFF_LOOPBACK and IFF_UP.
    assert!(text.starts_with("placed\n") && text.ends_with("\n0x9\n"), "{text}");
}

/// What a broker would give. The namespace has to be one of the shown user namespace's.
fn given(staged: &Staged, network: BorrowedFd<'_>) -> Network {
    let network = NetnsFd::from_fd(network.try_clone_to_owned().unwrap()).unwrap();
    let owner = UsernsFd::from_fd(staged.namespace().try_clone_to_owned().unwrap()).unwrap();
    assert_eq!(network.owner_userns().unwrap().id().unwrap(), owner.id().unwrap());
    let address = |text: &str| text.parse().unwrap();
    Network { dns: vec![address("10.0.0.2")], addresses: vec![address("10.0.0.16"), address("fd00::10")] }
}

fn links_need_a_namespace_that_can_be_shown(scene: &Scene) {
    let etc = scene.directory.join("root/etc");
    symlink("../run/nobody/made/this", etc.join("resolv.conf")).unwrap();
    fs::write(etc.join("hosts"), "127.0.0.1 before\n").unwrap();
    let mut spec = scene.spec(
        "cat /etc/resolv.conf /etc/hosts /proc/sys/net/ipv4/ping_group_range; cat /sys/class/net/lo/flags
         ls -A /run; echo more >> /etc/hosts",
    );
    spec.links = true;
    let (ending, text) = scene.run(&spec);
    assert_eq!(ending, Ending(Exit::Code(0)), "{text}");
    assert_eq!(
        text,
        "nameserver 10.0.0.2\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n\
         10.0.0.16\tplaced\nfd00::10\tplaced\n0\t65535\n0x9\n"
    );
    assert_eq!(fs::read_to_string(etc.join("hosts")).unwrap(), "127.0.0.1 before\n");
    spec.root = Root::Host;
    spec.command.argv = ["sh", "-c", "grep -c placed /etc/hosts"].map(Into::into).into();
    assert_eq!(scene.run(&spec), (Ending(Exit::Code(0)), "2\n".to_owned()));
}

fn a_root_without_names_is_left_as_it_is(scene: &Scene) {
    let root = scene.directory.join("home/root");
    let mut spec = scene.spec("ls -A /etc; ls -A /run");
    spec.links = true;
    spec.root = Root::Directory { path: root.clone(), read_only: true };
    assert_eq!(scene.run(&spec), (Ending(Exit::Code(0)), String::new()));
    // A directory that is a link to one outside the root: looked up inside, where it is none.
    fs::remove_dir(root.join("etc")).unwrap();
    let outside = scene.directory.join("home/outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("hosts"), "untouched\n").unwrap();
    symlink(&outside, root.join("etc")).unwrap();
    assert_eq!(scene.run(&scene.spec("true")).0, Ending(Exit::Code(0)));
    spec.command.argv = ["sh", "-ec", "[ ! -e /etc/hosts ]"].map(Into::into).into();
    assert_eq!(scene.run(&spec), (Ending(Exit::Code(0)), String::new()));
    assert_eq!(fs::read_to_string(outside.join("hosts")).unwrap(), "untouched\n");
}

fn directory_root_under_a_closed_home(scene: &Scene) {
    let mut spec = scene.spec("[ -d /etc ]; [ ! -e /home ]; busybox stat -c %U:%u /etc; if touch /etc/x 2>/dev/null; then exit 9; fi");
    spec.root = Root::Directory { path: scene.directory.join("home/root"), read_only: false };
    let (ending, text) = scene.run(&spec);
    // What belongs to the account itself belongs to nobody inside.
    assert_eq!((ending, text.trim_end().ends_with(":65534")), (Ending(Exit::Code(0)), true), "{text}");
}

fn read_only_root(scene: &Scene) {
    let mut spec = scene.spec(
        "busybox grep ' / / \\| /.* / ' /proc/self/mountinfo | busybox head -n 1 | busybox cut -d' ' -f6",
    );
    spec.root = Root::Directory { path: scene.directory.join("root"), read_only: true };
    let (ending, text) = scene.run(&spec);
    assert_eq!(ending, Ending(Exit::Code(0)));
    assert!(text.starts_with("ro,") && text.contains("nodev"), "{text}");
}

fn places_to_mount_on_must_be_there(scene: &Scene) {
    let root = scene.directory.join("home/root");
    fs::remove_dir(root.join("run")).unwrap();
    let mut spec = scene.spec("true");
    spec.root = Root::Directory { path: root, read_only: false };
    let failure = scene.failure(&spec);
    assert_eq!((failure.step, failure.subject.as_str()), (Step::Mount, "tmpfs on /run"));
    assert!(failure.hint().unwrap().contains("make that directory"));
    no_child_is_left();
}

fn symlinks_in_a_root_lead_nowhere(scene: &Scene) {
    let root = scene.directory.join("home/root");
    fs::remove_dir(root.join("dev")).unwrap();
    symlink("/tmp", root.join("dev")).unwrap();
    let mut spec = scene.spec("true");
    spec.root = Root::Directory { path: root, read_only: false };
    let failure = scene.failure(&spec);
    assert_eq!((failure.step, failure.subject.as_str()), (Step::Mount, "tmpfs on /dev"));
}

// Where a command starts may be a link of the root's to a descriptor, and that a directory of the host's.
fn no_descriptor_leads_out_of_a_root(scene: &Scene) {
    let root = scene.directory.join("home/root");
    for number in 3..24 {
        symlink(format!("/proc/self/fd/{number}"), root.join(format!("d{number}"))).unwrap();
        for reaper in [false, true] {
            let mut spec = scene.spec("true");
            spec.root = Root::Directory { path: root.clone(), read_only: false };
            spec.reaper = reaper;
            spec.command.directory = format!("/d{number}").into();
            assert_eq!(scene.failure(&spec).step, Step::WorkingDirectory, "{number}");
        }
    }
}

fn failures_of_the_command(scene: &Scene) {
    let failure = scene.failure(&scene.words(&["no-such-program"]));
    assert_eq!((failure.step, failure.command_status()), (Step::Execute, Some(127)));
    no_child_is_left();
}

fn reaper_reaps_and_passes_signals_on(scene: &Scene) {
    let script = "[ $$ != 1 ]; (sleep 0.05 &); sleep 0.3; ! ps | busybox grep -q '\\[sleep\\]'
        kill -TERM $$; sleep 1; exit 9";
    let mut spec = scene.spec(script);
    spec.reaper = true;
    let container = scene.try_launch(&spec).unwrap();
    // Its first process takes what the command, which is not pid 1, shall get.
    assert_eq!(container.disposition(Signal::TERM).unwrap(), cgrant_container::Disposition::Takes);
    assert_eq!(container.wait().unwrap().status(), 128 + 15);
    no_child_is_left();
}

fn reaper_says_why_the_command_failed(scene: &Scene) {
    let mut spec = scene.words(&["/bin/not-executable"]);
    spec.reaper = true;
    let failure = scene.failure(&spec);
    assert_eq!((failure.step, failure.command_status()), (Step::Execute, Some(126)));
    no_child_is_left();
}

fn a_dropped_launch_leaves_no_process(scene: &Scene) {
    drop(Launch::begin(&scene.spec("true")).unwrap());
    no_child_is_left();
    drop(Launch::begin(&scene.spec("true")).unwrap().user_namespace().unwrap());
    no_child_is_left();
    let placement = Placement { hostname: "x".into(), ids: 1, network: None };
    let mapped = || {
        let staged = Launch::begin(&scene.spec("true")).unwrap().user_namespace().unwrap();
        scene.link.map(&staged);
        staged.mapped(&placement).unwrap()
    };
    drop(mapped());
    no_child_is_left();
    // A payload that is no cgroup: the clone fails, in the stage.
    let wrong = cgrant_sys::mount::open_place(Path::new("/")).unwrap();
    match mapped().start(wrong.as_fd()) {
        Err(LaunchError::Step(StepFailure { step: Step::Clone, .. })) => {}
        other => panic!("{other:?}"),
    }
    no_child_is_left();
}

fn a_launch_that_is_not_attached_ends(scene: &Scene) {
    let given_up = |spec: &LaunchSpec| {
        let staged = Launch::begin(spec).unwrap().user_namespace().unwrap();
        scene.link.map(&staged);
        let placement = Placement { hostname: "x".into(), ids: 1, network: None };
        let failure = staged.mapped(&placement).unwrap().failure();
        no_child_is_left();
        failure
    };
    assert!(given_up(&scene.spec("true")).is_none(), "nothing had failed in the stage");
    let mut wrong = scene.spec("true");
    wrong.root = Root::Directory { path: "/no/such/root".into(), read_only: false };
    match given_up(&wrong) {
        Some(LaunchError::Step(StepFailure { step: Step::OpenRoot, .. })) => {}
        other => panic!("{other:?}"),
    }
}

fn a_launcher_with_threads_is_refused(scene: &Scene) {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || stopped.recv().is_err());
    assert!(matches!(Launch::begin(&scene.spec("true")), Err(LaunchError::Stage(_))));
    drop(stop);
    assert!(thread.join().unwrap());
}

fn namespaces_can_be_tried(_: &Scene) {
    cgrant_container::try_namespaces().unwrap();
    no_child_is_left();
}

fn without_setgroups(scene: &Scene) {
    assert_eq!(scene.output("cat /proc/self/setgroups; id -u"), "deny\n0\n");
}

fn one_id_is_enough(scene: &Scene) {
    assert_eq!(scene.output("id -u; [ -c /dev/ptmx ]; busybox stat -c %a /dev/pts"), "0\n755\n");
}
