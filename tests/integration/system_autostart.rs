//! Containers that start with the machine: who calls for it at boot does what is called here.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::Stdio,
};

use crate::common::{
    Lab, checker,
    containers::{Shell, busybox, text},
    wait_until,
};

/// Is systemd there to do it at boot?
fn systemd_runs() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

fn those_that_want_it_start_whatever_becomes_of_others(lab: &Lab) {
    let mut broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    // Nothing is wanted, and nothing made, before there is anything.
    shell.done(&["autostart", "start"]);
    assert!(!user.home.join(".local").exists(), "looking has made something");
    shell.import(lab, &busybox(lab), "box");
    // The first in order can't be started: its init is not there.
    shell.done(&["create", "box", "alpha", "--init", "/nothing"]);
    for name in ["db", "other", "web"] {
        shell.done(&["create", "box", name]);
    }
    shell.fails(&["set", "web", "autostart=perhaps"], 2, "autostart is true or false");
    for name in ["alpha", "web", "db"] {
        let output = shell.output(&["set", name, "autostart=true"]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
        // What the machine lacks for it is said, with what to do.
        assert!(systemd_runs() || said.contains("crontab -e") && said.lines().count() == 1, "{said}");
    }
    assert_eq!(shell.json(&["get", "web", "autostart"])["autostart"], true);
    assert_eq!(shell.json(&["get", "other", "autostart"])["autostart"], false);
    // Said once.
    let again = shell.output(&["set", "web", "autostart=true"]);
    assert_eq!((again.status.code(), text(&again.stderr)), (Some(0), String::new()));

    let states = || ["alpha", "db", "other", "web"].map(|name| shell.state(name) != "stopped");
    shell.fails(&["autostart", "start"], 4, "\"alpha\"");
    assert_eq!(states(), [false, true, false, true]);
    checker::assert_in_order(lab);
    shell.done(&["set", "alpha", "autostart=false"]);
    // Those that run go on running.
    let booted = |name: &str| shell.json(&["info", name])["started-at"].clone();
    let before = booted("web");
    shell.done(&["stop", "db"]);
    shell.done(&["autostart", "start"]);
    assert_eq!(states(), [false, true, false, true]);
    assert_eq!(booted("web"), before);

    // At the machine's end those that it started stop, and what was started by hand does not.
    shell.done(&["start", "other"]);
    shell.done(&["autostart", "stop", "--timeout", "30"]);
    assert_eq!(states(), [false, false, true, false]);
    shell.done(&["autostart", "stop"]);

    // A container that can't be read keeps none of the others back.
    let config = user.home.join(".local/share/cgrant/containers/db/config.json");
    let whole = fs::read(&config).unwrap();
    fs::write(&config, "nonsense").unwrap();
    shell.fails(&["autostart", "start"], 4, "db");
    assert_ne!(shell.state("web"), "stopped");
    fs::write(&config, whole).unwrap();
    shell.done(&["stop", "web"]);

    broker.kill_everything();
    shell.fails(&["autostart", "start"], 3, "cannot start the container \"db\"");
    // One that is called while the broker is not there yet waits for it.
    let mut early = shell.command(&["autostart", "start", "--wait-for-broker", "600"]);
    let mut early = early.stderr(Stdio::piped()).spawn().unwrap();
    assert_eq!(early.try_wait().unwrap(), None);
    broker.start_again();
    let said: Vec<_> = BufReader::new(early.stderr.take().unwrap()).lines().collect();
    assert_eq!(early.wait().unwrap().code(), Some(0), "{said:?}");
    assert_eq!(
        states()[1..],
        [true, true, true],
        "what ran ended with the broker's processes, or web did not start"
    );
    shell.done(&["delete", "--force", "alpha", "db", "other", "web"]);
    wait_until("nothing is left", || checker::grants_in_kernel(lab).is_empty());
}

crate::tests![those_that_want_it_start_whatever_becomes_of_others];
