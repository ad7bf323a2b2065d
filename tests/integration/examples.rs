//! The worked examples, as an ordinary user runs them: in Python as it is in the tree, and in Rust, which is compiled into this
//! program. Over the socket and on a real bus.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, ExitCode, ExitStatus, Stdio},
    sync::mpsc::{Receiver, channel},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::{
    busses::accounts,
    common::{Lab, PATIENCE, User, checker, daemon::Daemon, wait_until},
};

#[path = "../../examples/rust/src/main.rs"]
#[allow(dead_code)]
mod limited;

/// Becomes the example if it is asked to.
pub fn requested() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    (arguments.next()? == "--limited")
        .then(|| limited::program(std::iter::once("limited".into()).chain(arguments)))
}

#[derive(Debug, Clone, Copy)]
enum Example {
    Python,
    Rust,
}

/// A running example.
struct Run {
    child: Child,
    lines: Receiver<String>,
}

impl Run {
    fn command(lab: &Lab, user: &User, example: Example, broker: &str, words: &[&str]) -> Command {
        let mut command = match example {
            Example::Python => {
                // The tree may lie where the user can't go.
                let copy = lab.programs.join("limited.py");
                let original = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/python/limited.py");
                std::fs::copy(original, &copy).unwrap();
                // Debian's own, which has Debian's bindings.
                let mut command = user.command("/usr/bin/python3");
                command.arg(copy);
                command
            }
            Example::Rust => {
                let mut command = user.command(lab.programs.join("tests"));
                command.arg("--limited");
                command
            }
        };
        let name = format!("--bus-name=org.cgrant.Broker1.{}", lab.instance);
        command.args(["--broker", broker, "--every", "1", &name]).args(words);
        command
    }

    fn start(lab: &Lab, user: &User, example: Example, broker: &str, words: &[&str]) -> Self {
        let mut command = Self::command(lab, user, example, broker, words);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Self { child, lines }
    }

    /// Reads to the first line that begins so.
    fn until(&self, beginning: &str) -> String {
        let mut heard = Vec::new();
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|_| panic!("no {beginning:?} in {heard:?}"));
            if line.starts_with(beginning) {
                return line;
            }
            heard.push(line);
        }
    }

    fn end(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

/// One that eats memory is killed, which is shown; the command goes on, and so does the example, to its end.
fn memory(lab: &Lab, user: &User, example: Example, broker: &str) {
    let eater = "head -c 300M /dev/zero | tail -n 1 >/dev/null; sleep 1; exit 7";
    let words = ["--memory", "64M", "--cpu", "90%", "--", "sh", "-c", eater];
    let run = Run::start(lab, user, example, broker, &words);
    assert!(run.until("granted /org/cgrant/Broker1/grant/").ends_with(" memory.max=64M cpu.max=90%"));
    run.until("out of memory: 1 killed");
    assert!(run.until("usage: ").contains("killed 1;"));
    run.until("ended: status 7");
    assert_eq!(run.end().code(), Some(7), "{example:?}");
    checker::assert_empty(lab);
}

/// One that wants more than its processor time waits for it, which is shown; and the example is told to stop.
fn pressure(lab: &Lab, user: &User, example: Example, broker: &str) {
    let words = ["--cpu", "20%", "--", "sh", "-c", "(while :; do :; done) & while :; do :; done"];
    let run = Run::start(lab, user, example, broker, &words);
    run.until("pressure: cpu");
    // Who changes to another user stays the same process.
    kill_process(Pid::from_child(&run.child), Signal::TERM).unwrap();
    run.until("ended: status 137");
    assert_eq!(run.end().code(), Some(137), "{example:?}");
    checker::assert_empty(lab);
}

/// One that is killed itself leaves nothing: the grant ends with the connection, its processes with the grant.
fn death(lab: &Lab, user: &User, example: Example, broker: &str) {
    let run = Run::start(lab, user, example, broker, &["--", "sleep", "1000"]);
    run.until("usage: ");
    kill_process(Pid::from_child(&run.child), Signal::KILL).unwrap();
    run.end();
    wait_until("the grant ended with it", || checker::records(lab).is_empty());
    checker::assert_empty(lab);
}

fn over_the_socket(lab: &Lab, example: Example) {
    let broker = lab.broker();
    let (user, socket) = (lab.user(), broker.socket().to_str().unwrap());
    memory(lab, &user, example, socket);
    pressure(lab, &user, example, socket);
    death(lab, &user, example, socket);
}

fn on_a_bus(lab: &Lab, example: Example) {
    let [user, _] = accounts(lab);
    let daemon = Daemon::start(lab);
    let _broker = lab.setup().bus(&daemon.address).start();
    let name = format!("org.cgrant.Broker1.{}", lab.instance);
    wait_until("the name is on the bus", || {
        let mut list = Command::new("busctl");
        list.arg(format!("--address={}", daemon.address)).args(["status", &name]);
        list.output().unwrap().status.success()
    });
    let bus = format!("bus:{}", daemon.address);
    memory(lab, &user, example, &bus);
    pressure(lab, &user, example, &bus);
    death(lab, &user, example, &bus);
}

fn python_over_the_socket(lab: &Lab) {
    over_the_socket(lab, Example::Python);
}

fn python_on_a_bus(lab: &Lab) {
    on_a_bus(lab, Example::Python);
}

fn rust_over_the_socket(lab: &Lab) {
    over_the_socket(lab, Example::Rust);
}

fn rust_on_a_bus(lab: &Lab) {
    on_a_bus(lab, Example::Rust);
}

fn a_refusal_is_shown(lab: &Lab) {
    let broker = lab.broker();
    let socket = broker.socket().to_str().unwrap();
    for example in [Example::Python, Example::Rust] {
        let words = ["--memory", "1X", "--", "true"];
        let output = Run::command(lab, &lab.user(), example, socket, &words).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{example:?}: {said}");
        assert!(said.contains("memory.max: expected bytes"), "{example:?}: {said}");
    }
    checker::assert_empty(lab);
}

crate::tests![
    python_over_the_socket,
    python_on_a_bus,
    rust_over_the_socket,
    rust_on_a_bus,
    a_refusal_is_shown,
];
