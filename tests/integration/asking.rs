//! The command at a terminal: whoever sits there is asked for a password where policy wants it, by polkit's own agent or the
//! session's, and by nobody who was told not to.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::{Child, Command},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, kill_process},
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
    termios::{LocalModes, tcgetattr},
};

use crate::common::{
    Broker, Client, Lab, Options, User, checker, harness,
    polkit::Desk,
    polkit::{Agent, PASSWORD},
    wait_until,
};

const ONE_GRANT: &str = "[[rule]]\nname = \"one\"\nquota.grants = 1\n";
/// The command, when its process is known.
const HELD: &str = "read -r _; exec \"$0\" \"$@\"";
const PROMPT: &str = "Password:";

/// Somebody at a terminal, and what is seen there.
struct Person {
    uid: u32,
    master: File,
    terminal: Option<OwnedFd>,
    child: Child,
    seen: String,
}

impl Person {
    /// Who is about to run the command with these words, once [`go`](Self::go) is called.
    fn sits_down(desk: &Desk, user: &User, broker: &Broker, lab: &Lab, words: &[&str]) -> Self {
        let mut command = user.command("sh");
        command.args(["-c", HELD]).arg(lab.programs.join("cgrant")).args(words);
        command.env("CGRANT_SOCKET", broker.socket());
        let mut command: Command = desk.at_terminal(&command);
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        unlockpt(&master).unwrap();
        let terminal = ioctl_tiocgptpeer(&master, flags).unwrap();
        let stream = || terminal.try_clone().unwrap();
        let child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn().unwrap();
        Self { uid: user.uid, master: master.into(), terminal: Some(terminal), child, seen: String::new() }
    }

    /// An agent that polkit finds for the command.
    fn agent(&self, desk: &Desk, lab: &Lab, says: &str) -> Agent {
        desk.agent_of(lab, self.process(), says)
    }

    fn types(&mut self, text: &str) {
        self.master.write_all(text.as_bytes()).unwrap();
    }

    fn go(&mut self) {
        self.process();
        self.types("\n");
    }

    /// The user's process, which waits for a line and then becomes the command.
    fn process(&self) -> u32 {
        let ids = format!("\nUid:\t{0}\t{0}\t{0}\t{0}\n", self.uid);
        let is_it = |pid: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            status.starts_with("Name:\tsh\n") && status.contains(&ids)
        };
        let mut found = None;
        wait_until("the shell waits", || {
            found = harness::descendants_of(self.child.id()).into_iter().find(is_it);
            found.is_some()
        });
        found.unwrap()
    }

    /// Reads until this is seen, or nobody has the terminal open any more; was it?
    fn sees(&mut self, words: &str) -> bool {
        let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
        let mut buffer = [0; 4096];
        while !self.seen.contains(words) {
            let waited = poll(&mut [PollFd::new(&self.master, PollFlags::IN)], Some(&patience));
            assert_ne!(waited, Ok(0), "nothing more comes after {:?}", self.seen);
            match self.master.read(&mut buffer) {
                Ok(length @ 1..) => self.seen += &String::from_utf8_lossy(&buffer[..length]),
                _ => return false,
            }
        }
        true
    }

    /// Reads until a password is asked for and would not be seen: what is typed before is thrown away then.
    fn is_asked(&mut self) {
        assert!(self.sees(PROMPT), "{}", self.seen);
        wait_until("a password would not be seen", || !self.echoes());
    }

    fn echoes(&self) -> bool {
        tcgetattr(self.terminal.as_ref().unwrap()).unwrap().local_modes.contains(LocalModes::ECHO)
    }

    /// What the command ended with, when all that it started has ended too; and what was seen.
    fn leaves(mut self) -> (Option<i32>, String) {
        self.terminal = None;
        while self.sees("\0") {}
        (self.child.wait().unwrap().code(), self.seen)
    }
}

fn kill(process: u32) {
    kill_process(Pid::from_raw(process.cast_signed()).unwrap(), Signal::KILL).unwrap();
}

fn start(lab: &Lab, desk: &Desk) -> Broker {
    let broker = lab.setup().bus(&desk.address).start();
    wait_until("the broker knows of polkit", || broker.log().contains("polkit is there"));
    broker
}

fn first(user: &User, broker: &Broker) -> Client {
    let client = user.client(broker.socket());
    client.create("first", Options::new().no_range().lifetime("persistent")).unwrap();
    client
}

/// An account that has as many grants as it may, where policy leaves more to polkit.
fn scene(lab: &Lab) -> (User, Desk, Broker, Client) {
    lab.write_policy(ONE_GRANT);
    let user = lab.user();
    let desk = Desk::start(lab, &[&user]);
    let broker = start(lab, &desk);
    let client = first(&user, &broker);
    (user, desk, broker, client)
}

fn release_all(client: &Client) {
    for name in client.names() {
        client.release(&client.find(&name).unwrap(), true).unwrap();
    }
}

const SECOND: [&str; 4] = ["grant", "create", "second", "--no-ids"];

fn who_sits_at_a_terminal_is_asked_there(lab: &Lab) {
    let (user, desk, broker, client) = scene(lab);
    // A password that is none.
    let mut person = Person::sits_down(&desk, &user, &broker, lab, &SECOND);
    person.go();
    person.is_asked();
    assert!(person.seen.contains("the account has 1 of at most 1 grants"), "{}", person.seen);
    person.types("wrong\n");
    let (code, seen) = person.leaves();
    assert_eq!(code, Some(1), "{seen}");
    assert!(seen.contains("1 of at most 1 grants"), "{seen}");
    assert_eq!(client.names(), ["first"]);
    // The right one.
    let mut person = Person::sits_down(&desk, &user, &broker, lab, &SECOND);
    person.go();
    person.is_asked();
    person.types(&format!("{PASSWORD}\n"));
    let (code, seen) = person.leaves();
    assert_eq!(code, Some(0), "{seen}");
    assert_eq!(client.names(), ["first", "second"]);
    checker::assert_in_order(lab);
    release_all(&client);
    drop((client, broker));
}

fn nobody_is_asked_who_does_not_want_it(lab: &Lab) {
    let (user, desk, broker, client) = scene(lab);
    let words: Vec<&str> = SECOND.into_iter().chain(["--no-ask"]).collect();
    let mut person = Person::sits_down(&desk, &user, &broker, lab, &words);
    // There would be somebody.
    let mut agent = person.agent(&desk, lab, "yes");
    person.go();
    let (code, seen) = person.leaves();
    assert_eq!(code, Some(1), "{seen}");
    assert!(seen.contains("let a person be asked") && !seen.contains("pkttyagent"), "{seen}");
    assert!(agent.is_left_alone(), "asked though the caller did not let it");
    // Who is not at the terminal, even if the results are shown there.
    let output = user.cgrant(broker.socket(), &SECOND);
    assert_eq!(output.status.code(), Some(1));
    assert!(!broker.log().contains("interactive=true"), "the broker was let ask");
    assert_eq!(client.names(), ["first"]);
    release_all(&client);
    drop((client, agent, broker));
}

fn the_sessions_agent_is_asked_where_there_is_one(lab: &Lab) {
    let (user, desk, broker, client) = scene(lab);
    let mut person = Person::sits_down(&desk, &user, &broker, lab, &SECOND);
    let mut agent = person.agent(&desk, lab, "yes");
    person.go();
    let (code, seen) = person.leaves();
    assert_eq!(code, Some(0), "{seen}");
    assert!(agent.hear().starts_with("asked"));
    assert!(!seen.contains(PROMPT), "asked twice: {seen}");
    assert_eq!(client.names(), ["first", "second"]);
    // What is had as of right is asked about nowhere.
    let mut person = Person::sits_down(&desk, &user, &broker, lab, &["grant", "list"]);
    let mut agent = person.agent(&desk, lab, "yes");
    person.go();
    assert_eq!(person.leaves().0, Some(0));
    assert!(agent.is_left_alone());
    release_all(&client);
    drop((client, agent, broker));
}

fn who_is_killed_at_the_terminal_is_asked_no_more(lab: &Lab) {
    let (user, desk, broker, client) = scene(lab);
    let mut person = Person::sits_down(&desk, &user, &broker, lab, &SECOND);
    let mut agent = person.agent(&desk, lab, "nothing");
    let process = person.process();
    person.go();
    assert!(agent.hear().starts_with("asked"));
    kill(process);
    assert_eq!(agent.hear(), "cancelled");
    person.types("\n");
    person.leaves();
    // Polkit's own agent goes with who started it, and gives the terminal back.
    let mut person = Person::sits_down(&desk, &user, &broker, lab, &SECOND);
    let process = person.process();
    person.go();
    person.is_asked();
    kill(process);
    wait_until("the terminal echoes again", || person.echoes());
    person.types("\n");
    // Nobody has it open any more.
    person.leaves();
    assert_eq!(client.names(), ["first"]);
    release_all(&client);
    drop((client, agent, broker));
}

/// An account's grant is asked for by name, then acted on: neither is to be known of without consent.
fn others_grants_are_managed_from_a_terminal(lab: &Lab) {
    let (admin, user) = (lab.user(), lab.user());
    let desk = Desk::start(lab, &[&admin, &user]);
    let broker = start(lab, &desk);
    let owner = first(&user, &broker);
    let account = user.uid.to_string();
    for (grant, code) in [("first", 0), ("none", 1)] {
        let words = ["grant", "freeze", grant, "--account", &account];
        let mut person = Person::sits_down(&desk, &admin, &broker, lab, &words);
        let mut agent = person.agent(&desk, lab, "yes");
        person.go();
        let (ended, seen) = person.leaves();
        assert_eq!(ended, Some(code), "{seen}");
        assert!(agent.hear().starts_with("asked org.cgrant.broker1.manage-others "));
    }
    let path = owner.find("first").unwrap();
    assert!(owner.property::<bool>(&path, crate::common::bus::CGROUP, "Frozen"));
    release_all(&owner);
    drop((owner, broker));
}

crate::tests![
    who_sits_at_a_terminal_is_asked_there,
    nobody_is_asked_who_does_not_want_it,
    the_sessions_agent_is_asked_where_there_is_one,
    who_is_killed_at_the_terminal_is_asked_no_more,
    others_grants_are_managed_from_a_terminal,
];
