//! Start, life and end of containers.

use std::{fs, io::Write, os::fd::AsFd, time::Duration};

use cgrant_container::{
    Exit, Signal, Step,
    system::{
        Answer, Control, ControlError, Ended, ExecSpec, MachineId, Monitor, Personal, Phase, Request,
        StartError, SystemSpec, Terminal, Timezone,
    },
};

use crate::scene::{Case, Scene, case, read_until, wait_until};

pub const CASES: &[Case] = &[
    case("init_is_told_what_it_is", init_is_told_what_it_is),
    case("kernel_views_are_protected", kernel_views_are_protected),
    case("nesting_has_whole_views", nesting_has_whole_views),
    case("rights_are_bounded", rights_are_bounded),
    case("devices_are_shown_and_nothing_else", devices_are_shown_and_nothing_else),
    case("credentials_are_roots_alone", credentials_are_roots_alone),
    case("personal_files_are_written_once", personal_files_are_written_once),
    case("host_keys_are_a_containers_own", host_keys_are_a_containers_own),
    case("links_in_a_root_lead_nowhere", links_in_a_root_lead_nowhere),
    case("the_console_is_a_terminal", the_console_is_a_terminal),
    case("a_flood_on_the_console_holds_up_nobody", a_flood_on_the_console_holds_up_nobody),
    case("an_end_is_recorded", an_end_is_recorded),
    case("a_container_runs_once", a_container_runs_once),
    case("ready_is_what_init_says", ready_is_what_init_says),
    case("stop_asks_as_init_understands", stop_asks_as_init_understands),
    case("stop_ends_what_does_not_listen", stop_ends_what_does_not_listen),
    case(
        "an_init_that_executes_itself_again_is_told_again",
        an_init_that_executes_itself_again_is_told_again,
    ),
    case("a_signal_to_the_monitor_is_an_orderly_stop", a_signal_to_the_monitor_is_an_orderly_stop),
    case("busybox_is_an_init", busybox_is_an_init),
    case("reboot_and_power_off_from_inside", reboot_and_power_off_from_inside),
    case("a_reboot_without_end_ends", a_reboot_without_end_ends),
    case("restart_from_outside", restart_from_outside),
    case("what_fails_is_named_and_leaves_nothing", what_fails_is_named_and_leaves_nothing),
    case("a_start_that_is_given_up_leaves_nothing", a_start_that_is_given_up_leaves_nothing),
    Case {
        orderly: false,
        ..case("a_killed_monitor_is_known_to_be_gone", a_killed_monitor_is_known_to_be_gone)
    },
];

fn init_is_told_what_it_is(scene: &Scene) {
    let script = "env; hostname; cd /run/host; cat container-manager; echo; cat container-uuid; echo; \
        stat -c '%A %n' notify inaccessible/*; touch x; stat -c '%u %g %F' /dev/console; readlink /proc/self/fd/0; \
        grep -c ' - sysfs ' /proc/self/mountinfo; id; echo $$; busybox ls -1 /proc/self/fd";
    let state = scene.play(&scene.script(script));
    assert_eq!((state.ended, state.phase, state.init), (Some(Ended::Status(0)), Phase::Stopped, None));
    let log = scene.log();
    for text in [
        "container=cgrant\n",
        "container_uuid=07070707-0707-4707-8707-070707070707\n",
        "NOTIFY_SOCKET=/run/host/notify\n",
        "\nweb\ncgrant\n07070707-0707-4707-8707-070707070707\n",
        "srw------- notify\nd--------- inaccessible/dir\np--------- inaccessible/fifo\n---------- inaccessible/reg\ns--------- inaccessible/sock\n",
        "touch: x: Read-only file system\n",
        "0 5 character special file\n/dev/console\n1\nuid=0(root) gid=0(root)",
        // No descriptor but the streams and that of `ls`.
        "\n1\n0\n1\n2\n3\n",
    ] {
        assert!(log.contains(text), "{text:?} is not in\n{log}");
    }
}

fn kernel_views_are_protected(scene: &Scene) {
    let script = "echo x > /proc/sys/kernel/hostname; echo 1 > /proc/sys/net/ipv4/ip_forward && echo forwards; \
        stat -c '%s %A %n' /proc/keys; \
        cat /proc/sys/kernel/random/boot_id; grep -vc ' shared:' /proc/self/mountinfo; \
        touch /sys/x; mkdir /sys/fs/cgroup/own 2>/dev/null || busybox mkdir /sys/fs/cgroup/own && echo delegated; ls /sys/firmware; echo done";
    scene.play(&scene.script(script));
    let log = scene.log();
    for text in [
        "can't create /proc/sys/kernel/hostname: Read-only file system",
        "forwards\n",
        "0 ---------- /proc/keys\n",
        // Its mounts are seen by everybody inside.
        "\n0\n",
        "touch: /sys/x: Read-only file system",
        "delegated\ndone\n",
    ] {
        assert!(log.contains(text), "{text:?} is not in\n{log}");
    }
    let host = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let is_id = |line: &&str| line.len() == host.trim().len() && line.matches('-').count() == 4;
    let ids: Vec<&str> = log.lines().filter(is_id).collect();
    assert!(matches!(ids.as_slice(), [own] if *own != host.trim()), "{ids:?} beside {host}");
}

fn nesting_has_whole_views(scene: &Scene) {
    let script = "unshare -Urmpfn sh -c 'mount -t proc proc /proc && mount -t sysfs sysfs /sys && echo inner'; \
        stat -c '%A %u' /run/.cgrant; touch /sys/x; touch /sys/kernel/x; \
        grep -c ' /sys ro,' /proc/self/mountinfo";
    let whole = SystemSpec { nesting: true, ..scene.script(script) };
    scene.play(&whole);
    assert!(scene.log().contains("inner\ndrwx------ 0\n"), "{}", scene.log());
    for text in ["touch: /sys/x: Read-only file system\n", "touch: /sys/kernel/x: Read-only file system\n"] {
        assert!(scene.log().contains(text), "{text:?} is not in\n{}", scene.log());
    }
    assert!(scene.log().contains("file system\n1\n"), "{}", scene.log());
    scene.play(&scene.script(script));
    assert_eq!(scene.log().matches("inner\n").count(), 1, "masks do not hide anything:\n{}", scene.log());
}

fn rights_are_bounded(scene: &Scene) {
    scene.play(&scene.script("grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status"));
    let log = scene.log();
    for text in [
        "CapInh:\t0000000000000000\n",
        "CapPrm:\t000001009decffff\n",
        "CapBnd:\t000001009decffff\n",
        "NoNewPrivs:\t0\n",
        "Seccomp:\t2\n",
    ] {
        assert!(log.contains(text), "{text:?} is not in\n{log}");
    }
}

fn devices_are_shown_and_nothing_else(scene: &Scene) {
    let devices = vec!["kmsg".to_owned(), "null".to_owned()];
    scene.play(&SystemSpec {
        devices,
        ..scene.script(
            "cd /dev; stat -c '%t:%T %F' kmsg null; for node in *; do test -L $node || { test -c $node && echo $node; }; done",
        )
    });
    // The root's init is busybox, which wants a first terminal.
    let nodes = "console\nfull\nkmsg\nnull\nrandom\ntty\ntty1\nurandom\nzero\n";
    assert_eq!(scene.log(), format!("1:b character special file\n1:3 character special file\n{nodes}"));
    use rustix::io::Errno;
    // Nobody inside could open the third one.
    let refused = [("net", Errno::NODEV), ("nothing", Errno::NOENT), ("loop-control", Errno::ACCESS)];
    for (name, errno) in refused {
        let spec = SystemSpec { devices: vec![name.into()], ..scene.script("true") };
        match scene.try_start(&spec) {
            Err(StartError::Step(failure)) => {
                assert_eq!((failure.step, failure.errno), (Step::Device, errno.raw_os_error()));
                assert_eq!(failure.subject, name);
            }
            other => panic!("{other:?}"),
        }
    }
}

fn credentials_are_roots_alone(scene: &Scene) {
    let script = "cd $CREDENTIALS_DIRECTORY; stat -c '%a %u' . the.key; cat the.key";
    let credentials = vec![("the.key".to_owned(), b"secret\n".to_vec())];
    scene.play(&SystemSpec { credentials, ..scene.script(script) });
    assert!(scene.log().ends_with("700 0\n400 0\nsecret\n"), "{}", scene.log());
    assert!(!scene.log().contains("/secret"));
}

fn personal_files_are_written_once(scene: &Scene) {
    let script = "busybox mkdir -p /usr/share/zoneinfo/Asia; echo own > /usr/share/zoneinfo/Asia/Tokyo; \
        cat /etc/hostname /etc/machine-id; readlink /etc/localtime; cat /etc/hosts; echo -n mine > /etc/hostname";
    let with = |zone| SystemSpec {
        personal: Some(Personal { new: true, timezone: Some(zone) }),
        ..scene.script(script)
    };
    let first = with(Timezone::Host("Asia/Tokyo".into()));
    match scene.try_start(&with(Timezone::Asked("Asia/Tokyo".into()))) {
        Err(StartError::Step(failure)) => assert_eq!(failure.step, Step::Personal),
        other => panic!("{other:?}"),
    }
    scene.play(&first);
    assert!(
        scene.log().starts_with("web\n07070707070747078707070707070707\n127.0.0.1\tlocalhost"),
        "{}",
        scene.log()
    );
    assert!(scene.log().contains("\n127.0.1.1\tweb\n"), "{}", scene.log());
    scene.play(&first);
    assert!(scene.log().contains("../usr/share/zoneinfo/Asia/Tokyo\n"), "{}", scene.log());
    scene.play(&scene.script(script));
    assert!(
        scene.log().contains("mine07070707"),
        "what is the container's own was written again:\n{}",
        scene.log()
    );
}

fn host_keys_are_a_containers_own(scene: &Scene) {
    // The tree is the container's, so the container makes the server. What takes the keys' place is made once.
    scene.play(&scene.script(
        "busybox mkdir -p /etc/ssh /usr/bin /usr/sbin; cd /etc/ssh; touch /usr/sbin/sshd ssh_config; \
        for kind in rsa ed25519; do echo old > ssh_host_${kind}_key; echo old > ssh_host_${kind}_key.pub; done; \
        printf '#!/bin/sh\ntest \"$*\" = -A || exit 9; echo new > /etc/ssh/ssh_host_rsa_key\n' > /usr/bin/ssh-keygen; \
        busybox chmod 755 /usr/bin/ssh-keygen",
    ));
    let script = "cd /etc/ssh; busybox ls -1; cat ssh_host_rsa_key; echo mine > ssh_host_rsa_key";
    let personal = Some(Personal { new: true, timezone: None });
    scene.play(&SystemSpec { personal, ..scene.script(script) });
    assert!(scene.log().ends_with("ssh_config\nssh_host_rsa_key\nnew\n"), "{}", scene.log());
    let personal = Some(Personal { new: false, timezone: None });
    scene.play(&SystemSpec { personal, ..scene.script(script) });
    assert!(scene.log().ends_with("ssh_host_rsa_key\nmine\n"), "{}", scene.log());
}

fn links_in_a_root_lead_nowhere(scene: &Scene) {
    let outside = scene.run.join("outside");
    fs::create_dir(&outside).unwrap();
    fs::set_permissions(&outside, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    fs::write(outside.join("hostname"), "outside").unwrap();
    // The tree is the container's, so the container makes the links.
    let outer = outside.display();
    scene.play(
        &scene.script(&format!(
            "cd /; busybox mv etc old; busybox ln -s {outer} etc; busybox mkdir -p {outer}"
        )),
    );
    let personal = Some(Personal { new: false, timezone: None });
    scene.play(&SystemSpec { personal: personal.clone(), ..scene.script("cat /etc/hostname") });
    assert!(scene.log().ends_with("web\n"), "{}", scene.log());
    assert_eq!(fs::read_to_string(outside.join("hostname")).unwrap(), "outside");
    scene.play(&scene.script(
        "cd /; busybox rm etc; busybox mv old etc; busybox ln -sf /keep etc/hostname; echo kept > /keep",
    ));
    scene.play(&SystemSpec { personal, ..scene.script("cat /keep; cat /etc/hostname") });
    assert!(scene.log().ends_with("kept\nweb\n"), "{}", scene.log());
}

fn the_console_is_a_terminal(scene: &Scene) {
    scene.start(&scene.script("echo before; stty -echo; while read line; do case $line in size) stty size;; *) eval \"$line\";; esac; done"));
    let control = scene.control();
    scene.wait_for_log("before\n");
    let mut console = scene.console(&control, true);
    read_until(&mut console, "before\r\n");
    let second = scene.control();
    let mut other = scene.console(&second, false);
    console.write_all(b"tty; echo a$((1 + 1))b\n").unwrap();
    assert!(read_until(&mut console, "a2b").contains("/dev/console\r\n"));
    assert!(!read_until(&mut other, "a2b").contains("before"), "what was not asked for was played back");
    second.tell(&Request::Resize(Terminal { columns: 97, rows: 31 })).unwrap();
    other.write_all(b"size\n").unwrap();
    read_until(&mut other, "31 97");
    // More than the terminal takes at once arrives all the same.
    let words = "x".repeat(1000);
    for _ in 0..40 {
        other.write_all(format!(": {words}\n").as_bytes()).unwrap();
    }
    other.write_all(b"echo e$((2 + 2))d; exit 5\n").unwrap();
    read_until(&mut other, "e4d");
    wait_until("it has ended", || scene.last_state().ended == Some(Ended::Status(5)));
}

fn a_flood_on_the_console_holds_up_nobody(scene: &Scene) {
    scene.start(&scene.script("exec yes"));
    scene.wait_for_log("y\ny\n");
    let idle = scene.control();
    let _never_read = scene.console(&idle, true);
    for _ in 0..20 {
        assert_eq!(scene.control().state().unwrap().phase, Phase::Starting);
    }
    scene.control().tell(&Request::Kill { signal: Signal::KILL.as_raw() }).unwrap();
    wait_until("it has ended", || scene.last_state().ended == Some(Ended::Signal(9)));
    let kept: u64 = ["console.log", "console.log.1"]
        .iter()
        .map(|name| fs::metadata(scene.run.join(name)).map_or(0, |data| data.len()))
        .sum();
    assert!(kept <= 2 * 70_000, "{kept} bytes were kept");
}

fn an_end_is_recorded(scene: &Scene) {
    let state = scene.play(&scene.script("echo last words; exit 7"));
    assert_eq!((state.ended, state.phase), (Some(Ended::Status(7)), Phase::Stopped));
    assert!(state.stopped.unwrap() >= state.started && state.init.is_none());
    assert_eq!(scene.log(), "last words\n");
    assert!(matches!(Control::connect(&scene.run_dir()), Err(ControlError::NotRunning)));
    assert!(!scene.run.join("control").exists());
    let state = scene.play(&scene.script("kill -9 $$; exec busybox kill -9 1"));
    assert_ne!(state.ended, Some(Ended::Status(7)));
}

fn a_container_runs_once(scene: &Scene) {
    let spec = scene.script("trap 'exit 0' TERM; while true; do sleep 0.1; done");
    scene.start(&spec);
    assert!(matches!(scene.try_start(&spec), Err(StartError::Running)));
    scene.control().tell(&Request::Stop { seconds: 60 }).unwrap();
    wait_until("it has ended", || scene.last_state().ended.is_some());
    wait_until("it can be started again", || match scene.try_start(&scene.script("true")) {
        Ok(_) => true,
        Err(StartError::Running) => false,
        Err(error) => panic!("{error}"),
    });
}

fn ready_is_what_init_says(scene: &Scene) {
    // Not what another process of the container's root says.
    let script = "/bin/actor --actor notify READY=1; echo lied; read go; exec /bin/actor --actor init 'STATUS=Up.\nREADY=1'";
    scene.start(&scene.script(script));
    scene.wait_for_log("lied");
    assert_eq!(scene.control().state().unwrap().phase, Phase::Starting);
    let control = scene.control();
    scene.console(&control, false).write_all(b"\n").unwrap();
    let state = scene.running();
    assert_eq!((state.status.as_str(), state.ready.is_some()), ("Up.", true));
    scene.control().tell(&Request::Stop { seconds: 60 }).unwrap();
    wait_until("it has ended", || scene.last_state().ended.is_some());
    assert!(scene.log().ends_with("told to halt\n"), "{}", scene.log());
}

fn stop_asks_as_init_understands(scene: &Scene) {
    scene.start(&scene.script("trap 'echo asked; exit 3' TERM; echo up; while true; do sleep 0.1; done"));
    scene.wait_for_log("up");
    let watch = scene.control();
    scene.control().tell(&Request::Stop { seconds: 60 }).unwrap();
    match watch.wait_for(|state| state.phase == Phase::Stopping) {
        Ok(state) => assert!(matches!(state.phase, Phase::Stopping | Phase::Stopped)),
        Err(error) => panic!("{error}"),
    }
    wait_until("it has ended", || scene.last_state().ended == Some(Ended::Status(3)));
    assert!(scene.log().ends_with("asked\n"));
    // An init that takes SIGPWR is asked by that.
    scene.start(&scene.script("trap 'exit 4' PWR; trap '' TERM; echo two; while true; do sleep 0.1; done"));
    scene.wait_for_log("two");
    scene.control().tell(&Request::Stop { seconds: 60 }).unwrap();
    wait_until("it has ended", || scene.last_state().ended == Some(Ended::Status(4)));
    // One that has nothing to do for SIGPWR, as System V's on Debian, is told by its own command.
    scene.start(&scene.script(
        "printf '#!/bin/sh\ntest \"$*\" = 0 && kill -USR1 1\n' > /sbin/telinit; busybox chmod 755 /sbin/telinit; \
        trap 'exit 5' USR1; trap '' TERM; trap 'echo power' PWR; echo three; while true; do sleep 0.1; done",
    ));
    scene.wait_for_log("three");
    scene.control().tell(&Request::Stop { seconds: 60 }).unwrap();
    wait_until("it has ended", || scene.last_state().ended == Some(Ended::Status(5)));
}

fn stop_ends_what_does_not_listen(scene: &Scene) {
    scene.start(&scene.script("trap 'echo no' TERM; echo up; while true; do sleep 0.1; done"));
    scene.wait_for_log("up");
    scene.control().tell(&Request::Stop { seconds: 1 }).unwrap();
    wait_until("it has ended", || scene.last_state().ended == Some(Ended::Signal(9)));
    assert!(scene.log().ends_with("no\n"), "{}", scene.log());
    // Nobody waits a minute for one that can't even hear.
    scene.start(&scene.script("exec sleep 1000"));
    scene.control().tell(&Request::Stop { seconds: 1000 }).unwrap();
    wait_until("it has ended", || scene.last_state().ended == Some(Ended::Signal(9)));
}

// What systemd does for SIGTERM, which a host's shutdown may send to everybody, to the monitor too.
fn an_init_that_executes_itself_again_is_told_again(scene: &Scene) {
    let script = "busybox cp /bin/actor /bin/systemd; exec /bin/systemd --actor again";
    scene.start(&scene.script(script));
    scene.wait_for_log("up\n");
    scene.control().tell(&Request::Kill { signal: 15 }).unwrap();
    scene.wait_for_log("again\n");
    scene.control().tell(&Request::Stop { seconds: 600 }).unwrap();
    wait_until("it has ended", || scene.last_state().ended.is_some());
    assert_eq!(scene.last_state().ended, Some(Ended::Status(0)), "{}", scene.log());
    assert!(scene.log().ends_with("told to halt\n"), "{}", scene.log());
}

fn a_signal_to_the_monitor_is_an_orderly_stop(scene: &Scene) {
    let monitor = scene.start(&scene.script("trap 'exit 6' TERM; echo up; while true; do sleep 0.1; done"));
    scene.wait_for_log("up");
    monitor.send_signal(Signal::HUP).unwrap();
    monitor.send_signal(Signal::TERM).unwrap();
    assert_eq!(monitor.wait().unwrap(), Exit::Code(0));
    assert_eq!(scene.last_state().ended, Some(Ended::Status(6)));
}

fn busybox_is_an_init(scene: &Scene) {
    // No words: the root's own init.
    scene.start(&SystemSpec { init: Vec::new(), ..scene.script("") });
    // It never says so.
    scene.running();
    scene.wait_for_log("up\n");
    let run = |program: &str| {
        let spec = ExecSpec { argv: vec![program.into()], ..ExecSpec::default() };
        let null = fs::File::open("/dev/null").unwrap();
        // It may end with the container.
        let _ = scene.control().exec(&spec, [null.as_fd(); 3]).unwrap().wait();
    };
    run("reboot");
    wait_until("it is up again", || scene.log().matches("up\n").count() == 2);
    let state = scene.control().state().unwrap();
    assert_eq!(state.reboots, 1);
    // There nobody sees which signals it waits for.
    let sleeps = || fs::read_to_string(format!("/proc/{}/wchan", state.init.unwrap())).unwrap();
    wait_until("it sleeps until a signal comes", || sleeps().starts_with("do_sigtimedwait"));
    scene.control().tell(&Request::Stop { seconds: 60 }).unwrap();
    wait_until("it was powered off", || scene.last_state().ended == Some(Ended::PowerOff));
}

fn reboot_and_power_off_from_inside(scene: &Scene) {
    let script = "test -e /sys/fs/cgroup/x/y && echo left over; busybox mkdir -p /sys/fs/cgroup/x/y; echo boot >> /boots; \
        test $(grep -c boot /boots) = 3 && poweroff -f; reboot -f";
    let state = scene.play(&scene.script(script));
    assert_eq!((state.ended, state.reboots), (Some(Ended::PowerOff), 2), "{}", scene.log());
    assert!(!scene.log().contains("left over"), "{}", scene.log());
}

fn a_reboot_without_end_ends(scene: &Scene) {
    let state = scene.play(&scene.script("reboot -f"));
    assert_eq!(state.ended, Some(Ended::Reboot));
    assert!(state.reboots >= 9, "{state:?}");
}

fn restart_from_outside(scene: &Scene) {
    scene.start(&scene.script("trap 'exit 0' TERM; echo up $$; while true; do sleep 0.1; done"));
    scene.wait_for_log("up 1");
    let before = scene.control().state().unwrap();
    scene.control().tell(&Request::Restart { seconds: 60 }).unwrap();
    wait_until("it is up again", || scene.log().matches("up 1").count() == 2);
    let state = scene.control().state().unwrap();
    assert_eq!((state.reboots, state.phase, state.monitor), (1, Phase::Starting, before.monitor));
    assert_ne!(state.init, before.init);
    scene.control().tell(&Request::Stop { seconds: 60 }).unwrap();
    wait_until("it has ended", || scene.last_state().ended.is_some());
}

fn what_fails_is_named_and_leaves_nothing(scene: &Scene) {
    let step = |spec: &SystemSpec| match scene.try_start(spec) {
        Err(StartError::Step(failure)) => failure.step,
        other => panic!("{other:?}"),
    };
    assert_eq!(step(&scene.words(&["/bin/nothing"])), Step::Execute);
    assert_eq!(step(&SystemSpec { root: "/nowhere".into(), ..scene.script("true") }), Step::OpenRoot);
    assert_eq!(
        step(&SystemSpec { root: scene.root.join("etc").into(), ..scene.script("true") }),
        Step::Mount
    );
    let missing = SystemSpec { run: "/nowhere".into(), ..scene.script("true") };
    assert!(matches!(Monitor::begin(&missing), Err(StartError::Run(_))));
    let bad = SystemSpec { hostname: "-".into(), ..scene.script("true") };
    assert!(matches!(Monitor::begin(&bad), Err(StartError::Spec(_))));
    assert!(matches!(Control::connect(&scene.run_dir()), Err(ControlError::NotRunning)));
    assert!("x".parse::<MachineId>().is_err());
}

fn a_start_that_is_given_up_leaves_nothing(scene: &Scene) {
    let spec = scene.script("true");
    drop(Monitor::begin(&spec).unwrap());
    drop(Monitor::begin(&spec).unwrap().namespaces().unwrap());
    let namespaces = Monitor::begin(&spec).unwrap().namespaces().unwrap();
    scene.link.ask(&namespaces);
    drop(namespaces);
    // Whatever its monitor was about when it was killed, and whichever children of it have not ended yet: nobody is kept from starting.
    for moment in 0..100 {
        let begun = Monitor::begin(&spec).unwrap();
        std::thread::sleep(Duration::from_micros(20 * moment));
        drop(begun);
        drop(Monitor::begin(&spec).unwrap().namespaces().unwrap());
    }
    // They are reaped too.
    let waited = nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG));
    assert_eq!(waited, Err(nix::errno::Errno::ECHILD));
}

fn a_killed_monitor_is_known_to_be_gone(scene: &Scene) {
    let monitor = scene.start(&scene.script("echo up; exec sleep 1000"));
    scene.wait_for_log("up");
    let control = scene.control();
    assert!(matches!(control.ask(&Request::Watch), Ok(Answer::State(_))));
    monitor.send_signal(Signal::KILL).unwrap();
    assert!(matches!(control.next(), Err(ControlError::Ended)));
    monitor.wait().unwrap();
    assert!(matches!(Control::connect(&scene.run_dir()), Err(ControlError::NotRunning)));
    // What is left of the container is the broker's to kill; a socket of the dead is no obstacle.
    assert_eq!(scene.play(&scene.script("exit 4")).ended, Some(Ended::Status(4)));
}
