//! Containers whose programs are hostile to who runs them: what they want of the caller's terminal, and of its files.

use std::{
    fs::{self, File},
    io::{Read, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{MetadataExt, PermissionsExt},
    },
    path::Path,
    process::{Command, ExitStatus},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt},
};

use crate::common::{
    Lab, checker,
    containers::{Shell, busybox},
};

// A terminal: its master, and itself.
fn terminal() -> (File, OwnedFd) {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags).unwrap();
    unlockpt(&master).unwrap();
    let terminal = ioctl_tiocgptpeer(&master, flags).unwrap();
    (master.into(), terminal)
}

// Runs a command whose three streams are a terminal, on which this is typed; what is seen there.
fn on_a_terminal(mut command: Command, typed: &str) -> (ExitStatus, String) {
    let (mut master, terminal) = terminal();
    let stream = || terminal.try_clone().unwrap();
    let child = command.stdin(stream()).stdout(stream()).stderr(stream()).spawn();
    let mut child = child.unwrap();
    drop((command, terminal));
    master.write_all(typed.as_bytes()).unwrap();
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    let patience = Timespec { tv_sec: 60, tv_nsec: 0 };
    loop {
        if poll(&mut [PollFd::new(&master, PollFlags::IN)], Some(&patience)) == Ok(0) {
            let _ = child.kill();
            panic!("somebody keeps the terminal: {:?}", String::from_utf8_lossy(&seen));
        }
        // EIO: nobody has it open any more, in the container neither.
        let Ok(length @ 1..) = master.read(&mut buffer) else { break };
        seen.extend_from_slice(&buffer[..length]);
    }
    (child.wait().unwrap(), String::from_utf8_lossy(&seen).into_owned())
}

// Whoever has a terminal open reads what is typed there, for as long as it likes.
fn no_program_inside_gets_the_callers_terminal(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["launch", "box", "one"]);
    const LOOK: &str = "for n in 0 1 2; do [ ! -t $n ] || echo $n is one; done";
    let script = format!("{LOOK}; read line; echo got $line; echo error >&2; sleep 1000 & exit 7");
    let command = shell.command(&["exec", "--no-terminal", "one", "--", "sh", "-c", &script]);
    let (status, seen) = on_a_terminal(command, "typed\n");
    assert!(seen.contains("got typed") && seen.contains("error") && !seen.contains("is one"), "{seen:?}");
    assert_eq!(status.code(), Some(7), "{seen}");
    // One that wants more than is typed is told the end of it; one that reads nothing is no reason to wait.
    let command = shell.command(&["exec", "--no-terminal", "one", "--", "wc", "-c"]);
    assert!(on_a_terminal(command, "typed\n\x04").1.contains("\n6\r\n"));
    let command = shell.command(&["exec", "--no-terminal", "one", "--", "true"]);
    assert!(on_a_terminal(command, "typed\n").0.success());

    // The shell that moves files.
    let inside = |words: &[&str]| shell.done(&[&["exec", "one", "--", "/bin/busybox"], words].concat());
    let sh = |script: &str| {
        let set = "rm -f /bin/sh; echo \"$1\" >/bin/sh; chmod 755 /bin/sh";
        inside(&["sh", "-c", set, "sh", &format!("#!/bin/busybox sh\n{script}")]);
    };
    sh(&format!("(echo asked; {LOOK}) >>/seen; exec /bin/busybox sh \"$@\""));
    fs::write(user.home.join("letter"), "a letter").unwrap();
    fs::set_permissions(user.home.join("letter"), fs::Permissions::from_mode(0o644)).unwrap();
    for words in [&["push", "one", "letter", "/letter"][..], &["pull", "one", "/letter", "back"]] {
        let (status, seen) = on_a_terminal(shell.command(words), "");
        assert!(status.success(), "{seen}");
    }
    assert_eq!(fs::read(user.home.join("back")).unwrap(), b"a letter");
    assert_eq!(inside(&["cat", "/seen"]), "asked\nasked\n");

    // What it says is shown, and nothing of it obeyed.
    sh("printf '\\033[31mred\\033]0;title\\007' >&2; exit 1");
    let (_, seen) = on_a_terminal(shell.command(&["pull", "one", "/letter", "back"]), "");
    assert!(seen.contains("red") && !seen.contains(['\x1b', '\x07']), "{seen:?}");
    shell.done(&["delete", "--force", "one"]);
    checker::assert_empty(lab);
}

// What programs of a container's make belongs to ids that are nobody's on the host, where nobody but the account gets to.
fn what_is_set_user_id_inside_is_out_of_reach_outside(lab: &Lab) {
    let broker = lab.broker();
    let (user, other) = (lab.user(), lab.user());
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["launch", "box", "one"]);
    let script = "/bin/busybox cp /bin/busybox /bin/su; chmod 6755 /bin/su; chmod 777 /; stat -c %a /bin/su";
    assert_eq!(shell.done(&["exec", "one", "--", "/bin/busybox", "sh", "-c", script]), "6755\n");
    let data = user.home.join(".local/share/cgrant");
    let made = data.join("containers/one/upper/bin/su");
    let (owner, mode) = (fs::metadata(&made).unwrap().uid(), fs::metadata(&made).unwrap().mode());
    assert!(owner > 0x6fff_ffff && mode & 0o6000 == 0o6000, "{owner} {mode:o}");
    // The home may be open.
    fs::set_permissions(&user.home, fs::Permissions::from_mode(0o755)).unwrap();
    let run = |path: &Path| other.command(path).arg("true").output().unwrap().status.success();
    assert!(!run(&made));
    for part in ["", "containers", "images"] {
        let mode = fs::metadata(data.join(part)).unwrap().mode() & 0o077;
        assert!(part.is_empty() && mode == 0 || !part.is_empty(), "{part}: {mode:o}");
    }
    // Nor does its root get to the account's own files about it.
    for name in ["config.json", "run"] {
        let path = data.join("containers/one").join(name);
        assert_eq!(fs::metadata(&path).unwrap().uid(), user.uid);
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o022, 0, "{name}");
    }
    shell.done(&["delete", "--force", "one"]);
}

crate::tests![
    no_program_inside_gets_the_callers_terminal,
    what_is_set_user_id_inside_is_out_of_reach_outside,
];
