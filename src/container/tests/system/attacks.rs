//! Containers whose files and processes are hostile: to the host, to the monitor, and to who runs commands in them.

use std::{
    fs::{self, File, Permissions},
    io::{BufRead, BufReader, Read, Write},
    os::{fd::AsFd, unix::fs::PermissionsExt},
};

use cgrant_container::{
    Step,
    system::{ControlError, ExecSpec, Phase, Request, StartError},
};

use crate::{
    double::PATIENCE,
    scene::{Case, Scene, case, wait_until},
};

pub const CASES: &[Case] = &[
    case("no_descriptor_leads_out_of_the_root", no_descriptor_leads_out_of_the_root),
    case("no_init_is_found_through_a_descriptor", no_init_is_found_through_a_descriptor),
    case("a_monitor_does_not_tell_what_it_was_started_with", a_monitor_does_not_tell_its_arguments),
    case("nothing_that_is_sent_holds_the_monitor_up", nothing_that_is_sent_holds_the_monitor_up),
];

/// More than any process has open on its way into a container.
const DESCRIPTORS: std::ops::Range<u32> = 3..24;
/// From the host's directory of a cgroup, or of a root, to the host's root.
const UP: &str = "../../../../../../../../../../../../../..";
const LOOP: &str = "trap 'exit 0' TERM; echo up; while true; do sleep 0.1; done";

fn words(words: &[&str]) -> ExecSpec {
    ExecSpec { argv: words.iter().map(Into::into).collect(), ..ExecSpec::default() }
}

fn begin(scene: &Scene) {
    scene.start(&scene.script(LOOP));
    scene.wait_for_log("up");
}

fn end(scene: &Scene) {
    scene.control().tell(&Request::Stop { seconds: 60 }).unwrap();
    wait_until("it has ended", || scene.last_state().ended.is_some());
}

/// What a command prints, however it ends.
fn printed(scene: &Scene, spec: &ExecSpec) -> String {
    let (output, inner) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let nothing = File::open("/dev/null").unwrap();
    let executed = scene.control().exec(spec, [nothing.as_fd(), inner.as_fd(), inner.as_fd()]);
    drop(inner);
    let mut text = String::new();
    File::from(output).read_to_string(&mut text).unwrap();
    if let Ok(executed) = executed {
        let _ = executed.wait();
    }
    text
}

/// A file of the host's that everybody may read, below /tmp.
fn marker() -> tempfile::NamedTempFile {
    let mut file = tempfile::Builder::new().prefix("cgrant-marker-").tempfile_in("/tmp").unwrap();
    file.write_all(b"the host's").unwrap();
    fs::set_permissions(file.path(), Permissions::from_mode(0o644)).unwrap();
    file
}

// CVE-2024-21626: the home of a user, and what the working directory is a link to, are the container's to say. If they are a
// descriptor of the host's that is still open, the way up from there is the way out.
fn no_descriptor_leads_out_of_the_root(scene: &Scene) {
    begin(scene);
    let make = DESCRIPTORS.map(|number| {
        format!(
            "echo f{number}:x:0:0::/proc/self/fd/{number}:/bin/sh >>/etc/passwd; ln -s /proc/self/fd/{number} /d{number};"
        )
    });
    printed(scene, &words(&["sh", "-c", &make.collect::<String>()]));
    let marker = marker();
    let path = format!("{UP}{}", marker.path().display());
    let sees = words(&["cat", &path]);
    for number in DESCRIPTORS {
        let at_home = ExecSpec { user: Some(format!("f{number}")), ..sees.clone() };
        let there = ExecSpec { directory: Some(format!("/d{number}").into()), ..sees.clone() };
        for spec in [at_home, there] {
            let printed = printed(scene, &spec);
            assert!(!printed.contains("the host's"), "descriptor {number} leads out: {spec:?}");
        }
    }
    // Who gives a program a directory would give it the way out.
    let (host, nothing) = (File::open("/").unwrap(), File::open("/dev/null").unwrap());
    let given = scene.control().exec(&sees, [host.as_fd(), nothing.as_fd(), nothing.as_fd()]);
    assert!(matches!(given, Err(ControlError::Directory)), "{given:?}");
    // The same is found where it is no secret.
    printed(scene, &words(&["sh", "-c", "echo 'the host'\\''s' >/tmp/mine"]));
    assert_eq!(printed(scene, &words(&["cat", &format!("{UP}/tmp/mine")])), "the host's\n");
    end(scene);
}

fn no_init_is_found_through_a_descriptor(scene: &Scene) {
    let program = tempfile::Builder::new().prefix("cgrant-init-").tempdir_in("/tmp").unwrap();
    fs::set_permissions(program.path(), Permissions::from_mode(0o755)).unwrap();
    fs::copy(scene.root.join("bin/busybox"), program.path().join("init")).unwrap();
    fs::set_permissions(program.path().join("init"), Permissions::from_mode(0o755)).unwrap();
    begin(scene);
    let place = program.path().display();
    let link = |number| format!("ln -s /proc/self/fd/{number}/{UP}{place} /x{number};");
    printed(scene, &words(&["sh", "-c", &DESCRIPTORS.map(link).collect::<String>()]));
    end(scene);
    for number in DESCRIPTORS {
        let refused = scene.try_start(&scene.words(&[&format!("/x{number}/init")]));
        let Err(StartError::Step(failure)) = refused else { panic!("descriptor {number} leads out") };
        assert_eq!(failure.step, Step::Execute, "{failure:?}");
    }
}

// They may hold what a container's init is to know and nobody else.
fn a_monitor_does_not_tell_its_arguments(scene: &Scene) {
    begin(scene);
    let told = fs::read_to_string(format!("/proc/{}/cmdline", scene.last_state().monitor)).unwrap();
    assert_eq!(told.trim_end_matches('\0'), "cgrant-monitor");
    assert!(fs::read_to_string("/proc/self/cmdline").unwrap().contains("--case"));
    end(scene);
}

// A message may have descriptors beside it that take long to close: the receiver is who closes them.
fn nothing_that_is_sent_holds_the_monitor_up(scene: &Scene) {
    begin(scene);
    let (output, inner) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let nothing = File::open("/dev/null").unwrap();
    let spec = words(&["/bin/actor", "--actor", "linger"]);
    let executed = scene.control().exec(&spec, [nothing.as_fd(), inner.as_fd(), inner.as_fd()]).unwrap();
    drop(inner);
    let mut lines = BufReader::new(File::from(output)).lines();
    assert!(lines.any(|line| line.unwrap() == "done"), "the sender ended");
    // It answers still, and can be told to end.
    let control = scene.control();
    let (say, said) = std::sync::mpsc::channel();
    std::thread::spawn(move || say.send(control.state()));
    let state = said.recv_timeout(PATIENCE / 3).expect("the monitor is held up").unwrap();
    assert_ne!(state.phase, Phase::Stopped);
    end(scene);
    drop(executed);
}
