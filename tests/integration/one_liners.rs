//! The README's commands for busctl, gdbus and dbus-send: each is run as it is written there, on a real bus and over the socket.

use std::process::Output;

use crate::{
    busses::accounts,
    common::{Lab, User, bus::MANAGER_PATH, checker, daemon::Daemon, wait_until},
};

const README: &str = include_str!("../../README.md");
/// The grant that the README shows.
const SHOWN: &str = "91451e7d22ddf659";

/// The commands of the README's part about these tools, each with the first word that it shows of the answer.
fn commands() -> Vec<(String, String)> {
    let (_, part) = README.split_once("need no program of ours:\n\n```\n").expect("the part is not there");
    let (part, _) = part.split_once("\n```\n").unwrap();
    let first_word = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    let mut commands = Vec::new();
    for piece in part.split("$ ").filter(|piece| !piece.is_empty()) {
        let (command, shown) = piece.split_once('\n').unwrap_or((piece, ""));
        commands.push((command.to_owned(), first_word(shown)));
    }
    commands
}

fn run(user: &User, command: &str) -> String {
    let Output { status, stdout, stderr } = user.command("sh").args(["-c", command]).output().unwrap();
    let text = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{command}: {}{text}", String::from_utf8_lossy(&stderr));
    text
}

/// Runs them all; `to` makes of a command one for this test's broker.
fn all_do_as_shown(user: &User, to: impl Fn(&str) -> String) {
    let mut grant = SHOWN.to_owned();
    let commands = commands();
    for tool in ["busctl ", "gdbus ", "dbus-send "] {
        assert!(commands.iter().any(|(command, _)| command.starts_with(tool)), "no {tool}");
    }
    for (command, shown) in commands {
        let said = run(user, &to(&command.replace(SHOWN, &grant)));
        let begins = said.split_whitespace().next().unwrap_or_default();
        assert_eq!(begins, shown.replace(SHOWN, &grant), "{command}: {said}");
        if command.contains("CreateGrant") {
            let (_, id) = said.split_once("/grant/").unwrap();
            id[..SHOWN.len()].clone_into(&mut grant);
        }
    }
    assert_ne!(grant, SHOWN);
}

fn they_work_over_the_socket(lab: &Lab) {
    let broker = lab.broker();
    let address = format!("unix:path={}", broker.socket().display());
    all_do_as_shown(&lab.user(), |command| {
        let option = if command.starts_with("dbus-send") { "--peer" } else { "--address" };
        command.replace("--system", &format!("{option}={address}"))
    });
    checker::assert_empty(lab);
}

fn they_work_on_a_bus(lab: &Lab) {
    let [user, _] = accounts(lab);
    let daemon = Daemon::start(lab);
    let _broker = lab.setup().bus(&daemon.address).start();
    // The name is that of this test's instance, and the bus is this test's own.
    let name = format!("org.cgrant.Broker1.{}", lab.instance);
    let to = |command: &str| {
        let option = if command.starts_with("dbus-send") { "--bus" } else { "--address" };
        let command = command.replace("--system", &format!("{option}={}", daemon.address));
        command
            .replace(" org.cgrant.Broker1 ", &format!(" {name} "))
            .replace("--dest=org.cgrant.Broker1 ", &format!("--dest={name} "))
    };
    wait_until("the name is on the bus", || {
        let introspect = to(&format!("busctl --system introspect org.cgrant.Broker1 {MANAGER_PATH}"));
        user.command("sh").args(["-c", &introspect]).output().unwrap().status.success()
    });
    all_do_as_shown(&user, to);
    checker::assert_empty(lab);
}

crate::tests![they_work_over_the_socket, they_work_on_a_bus,];
