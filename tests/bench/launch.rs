//! `cgrant run /bin/true` from start to gone, beside other people's launchers.

use std::{
    cell::RefCell,
    collections::HashSet,
    sync::atomic::{AtomicU32, Ordering},
};

use crate::{
    Bench,
    peers::{Peer, Peers},
    runner::{Runner, View},
    sample::{self, Case},
};

/// A launcher with the process that runs it.
struct Launcher {
    peer: Peer,
    runner: usize,
}

/// The part `run`.
pub fn measure(bench: &Bench) {
    let broker = bench.lab.broker();
    let mut peers = Peers::prepare(bench);
    let (others, mut absent) = peers.all(&bench.lab.host);
    let mut all = ours(bench, &peers, broker.socket().to_str().unwrap());
    all.extend(others);

    let mut kinds: Vec<(View, bool, bool)> = Vec::new();
    let mut runners = Vec::new();
    let mut launchers = Vec::new();
    for peer in all {
        let kind = (peer.view, peer.user, peer.delegated);
        let runner = kinds.iter().position(|known| *known == kind).unwrap_or_else(|| {
            kinds.push(kind);
            let etc = peers.etc();
            let runner =
                Runner::start(peer.view, peer.user.then_some(&bench.user), peer.delegated.then_some(&etc));
            if peer.delegated {
                peers.delegate(&bench.lab.host, &bench.user, runner.pid());
            }
            runners.push(RefCell::new(runner));
            runners.len() - 1
        });
        match run(&runners[runner], &peer) {
            Ok(_) => launchers.push(Launcher { peer, runner }),
            Err(failure) => absent.push(format!("{}: fails here: {failure}", peer.name)),
        }
    }
    let failed = RefCell::new(HashSet::new());
    let mut cases: Vec<Case<'_>> = launchers
        .iter()
        .map(|launcher| {
            let (runners, failed) = (&runners, &failed);
            Case::new(&*launcher.peer.name, move || match run(&runners[launcher.runner], &launcher.peer) {
                Ok(time) => vec![("", time)],
                Err(failure) => {
                    failed.borrow_mut().insert(format!("{}: failed at times: {failure}", launcher.peer.name));
                    Vec::new()
                }
            })
        })
        .collect();
    let rows = sample::take(&mut cases, bench.runs, || ());
    sample::print(
        "/bin/true in a container, from start to gone; a busybox root unless said otherwise",
        &rows,
    );
    drop(cases);
    for line in absent.into_iter().chain(failed.into_inner()) {
        println!("absent: {line}");
    }
    // Before the cgroups that one of them sits in are removed.
    drop(runners);
}

fn ours(bench: &Bench, peers: &Peers, socket: &str) -> Vec<Peer> {
    let program = bench.lab.programs.join("cgrant").to_str().unwrap().to_owned();
    let mut all = Vec::new();
    for user in [false, true] {
        let who = if user { "user" } else { "root" };
        for (root, name) in [(true, ""), (false, ", host root")] {
            let mut command = vec![program.clone(), "run".into(), "--socket".into(), socket.into()];
            if root {
                command.extend(["--root".into(), peers.root().display().to_string()]);
            }
            command.extend(["--".into(), "/bin/true".into()]);
            all.push(Peer {
                name: format!("cgrant run{name}, {who}"),
                view: View::Machine,
                user,
                delegated: false,
                command,
            });
        }
    }
    all
}

fn run(runner: &RefCell<Runner>, peer: &Peer) -> Result<std::time::Duration, String> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let id = format!("{}x{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let command: Vec<String> = peer.command.iter().map(|word| word.replace("{id}", &id)).collect();
    runner.borrow_mut().run(&command)
}
