//! Processes that are run in a container.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
};

use cgrant_container::{
    Signal, Step,
    system::{ControlError, Ended, ExecSpec, Executed, Request, Terminal},
};

use crate::scene::{Case, Scene, case, read_until, wait_until};

pub const CASES: &[Case] = &[
    case("exec_gives_status_and_streams", exec_gives_status_and_streams),
    case("exec_passes_any_bytes", exec_passes_any_bytes),
    case("exec_is_in_the_container", exec_is_in_the_container),
    case("exec_as_a_user", exec_as_a_user),
    case("exec_says_what_failed", exec_says_what_failed),
    case("exec_takes_signals", exec_takes_signals),
    case("exec_ends_with_its_client", exec_ends_with_its_client),
    case("exec_with_a_terminal", exec_with_a_terminal),
    case("exec_after_a_reboot", exec_after_a_reboot),
];

fn with_container(scene: &Scene, play: impl FnOnce()) {
    scene.start(&scene.script("trap 'exit 0' TERM; echo up; while true; do sleep 0.1; done"));
    scene.wait_for_log("up");
    play();
    scene.control().tell(&Request::Stop { seconds: 60 }).unwrap();
    wait_until("it has ended", || scene.last_state().ended.is_some());
}

fn words(words: &[&str]) -> ExecSpec {
    ExecSpec { argv: words.iter().map(Into::into).collect(), ..ExecSpec::default() }
}

/// A process with pipes: its input, its output and errors together.
struct Piped {
    process: Executed,
    input: Option<File>,
    output: File,
}

impl Scene {
    fn pipe(&self, spec: &ExecSpec) -> Result<Piped, ControlError> {
        let (inner_input, input) = pipe();
        let (output, inner_output) = pipe();
        let streams = [inner_input.as_fd(), inner_output.as_fd(), inner_output.as_fd()];
        let process = self.control().exec(spec, streams)?;
        Ok(Piped { process, input: Some(input.into()), output: output.into() })
    }

    /// Runs it to its end, without input: how it ended, what it printed.
    fn exec(&self, spec: &ExecSpec) -> (Ended, String) {
        let mut piped = self.pipe(spec).unwrap_or_else(|error| panic!("{error}"));
        piped.input = None;
        let mut text = String::new();
        piped.output.read_to_string(&mut text).unwrap();
        (piped.process.wait().unwrap().0, text)
    }
}

fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

fn exec_gives_status_and_streams(scene: &Scene) {
    with_container(scene, || {
        assert_eq!(
            scene.exec(&words(&["sh", "-c", "echo out; echo err >&2; exit 42"])),
            (Ended::Status(42), "out\nerr\n".into())
        );
        assert_eq!(scene.exec(&words(&["sh", "-c", "kill -9 $$"])).0, Ended::Signal(9));
        // Nothing of the monitor's is open in it.
        assert_eq!(scene.exec(&words(&["ls", "/proc/self/fd"])).1, "0\n1\n2\n3\n");
    });
}

fn exec_passes_any_bytes(scene: &Scene) {
    with_container(scene, || {
        let mut piped = scene.pipe(&words(&["cat"])).unwrap();
        let bytes: Vec<u8> =
            (0..1_000_000_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut input = piped.input.take().unwrap();
        let sent = bytes.clone();
        let writer = std::thread::spawn(move || input.write_all(&sent).unwrap());
        let mut seen = Vec::new();
        piped.output.read_to_end(&mut seen).unwrap();
        writer.join().unwrap();
        assert!(seen == bytes);
        assert_eq!(piped.process.wait().unwrap().0, Ended::Status(0));
    });
}

fn exec_is_in_the_container(scene: &Scene) {
    with_container(scene, || {
        let (_, text) = scene.exec(&words(&[
            "sh",
            "-c",
            "hostname; for n in cgroup ipc mnt net pid user uts; do readlink /proc/1/ns/$n >> /tmp/1; readlink /proc/self/ns/$n >> /tmp/2; done; busybox cmp /tmp/1 /tmp/2 && echo same; \
             grep -E '^0:' /proc/self/cgroup; grep -E '^(CapBnd|Seccomp:|NoNewPrivs)' /proc/self/status; stat -c %u /sys/fs/cgroup/.cgrant; pwd; echo $HOME $container",
        ]));
        assert_eq!(
            text,
            "web\nsame\n0::/.cgrant\nCapBnd:\t000001009decffff\nNoNewPrivs:\t0\nSeccomp:\t2\n0\n/root\n/root cgrant\n"
        );
    });
}

fn exec_as_a_user(scene: &Scene) {
    with_container(scene, || {
        let run = |user: &str, directory: Option<&str>| {
            let directory = directory.map(Into::into);
            let spec = words(&["sh", "-c", "id; pwd; echo $HOME $USER $X; grep CapEff /proc/self/status"]);
            let environment = vec![("X".into(), "y".into())];
            scene.exec(&ExecSpec { user: Some(user.into()), directory, environment, ..spec }).1
        };
        // A home that is not there is no obstacle.
        assert_eq!(
            run("ann", None),
            "uid=1000(ann) gid=1000(ann) groups=100(users)\n/\n/home/ann ann y\nCapEff:\t0000000000000000\n"
        );
        assert!(run("1000", Some("/tmp")).contains("groups=100(users)\n/tmp\n"));
        assert!(run("4242", None).starts_with("uid=4242 gid=4242"));
    });
}

fn exec_says_what_failed(scene: &Scene) {
    with_container(scene, || {
        let step = |spec: &ExecSpec| match scene.pipe(spec) {
            Err(ControlError::Step(failure)) => failure,
            Ok(piped) => match piped.process.wait() {
                Err(ControlError::Step(failure)) => failure,
                other => panic!("{other:?}"),
            },
            Err(other) => panic!("{other}"),
        };
        let failure = step(&words(&["nothing"]));
        assert_eq!((failure.step, failure.command_status()), (Step::Execute, Some(127)));
        assert_eq!(failure.subject, "nothing");
        assert_eq!(step(&words(&["/etc/passwd"])).command_status(), Some(126));
        assert_eq!(step(&ExecSpec { user: Some("eve".into()), ..words(&["id"]) }).step, Step::User);
        assert_eq!(
            step(&ExecSpec { directory: Some("/no".into()), ..words(&["id"]) }).step,
            Step::WorkingDirectory
        );
        assert!(matches!(scene.pipe(&words(&[])), Err(ControlError::NoProgram)));
        assert_eq!(scene.exec(&words(&["true"])).0, Ended::Status(0));
    });
}

fn exec_takes_signals(scene: &Scene) {
    with_container(scene, || {
        let mut piped = scene
            .pipe(&words(&[
                "sh",
                "-c",
                "trap 'echo got; exit 9' USR1; echo up; while true; do sleep 0.1; done",
            ]))
            .unwrap();
        read_until(&mut piped.output, "up\n");
        piped.process.signal(Signal::USR1.as_raw()).unwrap();
        read_until(&mut piped.output, "got\n");
        assert_eq!(piped.process.wait().unwrap().0, Ended::Status(9));
    });
}

fn exec_ends_with_its_client(scene: &Scene) {
    with_container(scene, || {
        let script = "trap 'echo hung up >> /end; exit' HUP; echo up; while true; do sleep 0.1; done";
        let mut piped = scene.pipe(&words(&["sh", "-c", script])).unwrap();
        read_until(&mut piped.output, "up\n");
        drop(piped.process);
        wait_until("it was hung up", || scene.exec(&words(&["cat", "/end"])).1 == "hung up\n");
        let mut piped = scene
            .pipe(&ExecSpec { detached: true, ..words(&["sh", "-c", "echo up; read go; echo gone on"]) })
            .unwrap();
        read_until(&mut piped.output, "up\n");
        drop(piped.process);
        assert_eq!(scene.exec(&words(&["true"])).0, Ended::Status(0));
        piped.input.unwrap().write_all(b"\n").unwrap();
        read_until(&mut piped.output, "gone on\n");
    });
}

fn exec_with_a_terminal(scene: &Scene) {
    with_container(scene, || {
        let null = File::open("/dev/null").unwrap();
        let spec = words(&[
            "sh",
            "-c",
            "stty size; tty; stat -c %u $(tty); read line; echo e$line; stty size; echo x > /dev/tty; exit 4",
        ]);
        let size = Terminal { columns: 91, rows: 33 };
        let spec = ExecSpec { terminal: Some(size), user: Some("ann".into()), ..spec };
        let process = scene.control().exec(&spec, [null.as_fd(); 3]).unwrap();
        let mut terminal = File::from(process.terminal.as_ref().unwrap().try_clone().unwrap());
        let seen = read_until(&mut terminal, "\r\n1000\r\n");
        assert!(seen.starts_with("33 91\r\n/dev/pts/1\r\n"), "{seen}");
        process.resize(Terminal { columns: 80, rows: 24 }).unwrap();
        terminal.write_all(b"cho\n").unwrap();
        read_until(&mut terminal, "echo\r\n24 80\r\nx\r\n");
        assert_eq!(process.wait().unwrap().0, Ended::Status(4));
        // Its terminal's end is the end of what it runs.
        let process = scene.control().exec(&ExecSpec { user: None, ..spec }, [null.as_fd(); 3]).unwrap();
        let mut terminal = File::from(process.terminal.as_ref().unwrap().try_clone().unwrap());
        read_until(&mut terminal, "\r\n0\r\n");
        terminal.write_all(b"\x03").unwrap();
        assert!(matches!(process.wait().unwrap().0, Ended::Signal(2) | Ended::Status(130)));
    });
}

fn exec_after_a_reboot(scene: &Scene) {
    let script = "test -e /again || { echo > /again; busybox mkdir -p /sys/fs/cgroup/.cgrant; reboot -f; }; \
        trap 'exit 0' TERM; echo up; while true; do sleep 0.1; done";
    scene.start(&scene.script(script));
    scene.wait_for_log("up");
    assert_eq!(scene.exec(&words(&["grep", "^0:", "/proc/self/cgroup"])).1, "0::/.cgrant\n");
    scene.control().tell(&Request::Stop { seconds: 60 }).unwrap();
    wait_until("it has ended", || scene.last_state().ended.is_some());
}
