//! System containers, with this test in the broker's place: it maps ids and makes cgroups as root, and the launchers are
//! processes of real accounts: root, and a uid that no file knows, with a home of mode 0700.
//!
//! `system` runs all cases, `system WORDS` those whose title contains one of the words. Every case is a launcher process of its own
//! (`system --case NAME DIR`): a launch wants a process with one thread. The same program is what runs in the containers (`system --actor
//! WORDS`), beside busybox. Two cases boot Debian 12 and 13, whose trees mmdebstrap makes once below `target`. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod actor;
mod attacks;
mod cases;
mod debian;
mod double;
mod exec;
mod scene;

use std::{
    env,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::ExitCode,
};

use double::Double;
use scene::{Case, Root, Scene};

/// The accounts that launch: (uid and gid, how titles call it). The second is in no file.
const ACCOUNTS: [(u32, &str); 2] = [(0, "root"), (0x6fff_fff2, "user")];

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["--actor", words @ ..] => actor::act(words),
        ["--case", name, directory] => launcher(name, Path::new(directory)),
        words if words.contains(&"--list") => list(words.contains(&"--ignored")),
        words => run(words),
    }
}

/// What cargo-nextest asks for. No case is ignored.
fn list(ignored: bool) -> ExitCode {
    if !ignored {
        titles().for_each(|(title, ..)| println!("{title}: test"));
    }
    ExitCode::SUCCESS
}

fn all_cases() -> impl Iterator<Item = &'static Case> {
    cases::CASES.iter().chain(exec::CASES).chain(attacks::CASES).chain(debian::CASES)
}

fn titles() -> impl Iterator<Item = (String, &'static Case, u32)> {
    // An operating system is booted once, as whom it is made for.
    let accounts = |case: &Case| if case.root == Root::Busybox { &ACCOUNTS[..] } else { &ACCOUNTS[1..] };
    all_cases().flat_map(move |case| {
        accounts(case).iter().map(move |(uid, account)| (format!("{account}::{}", case.name), case, *uid))
    })
}

fn run(words: &[&str]) -> ExitCode {
    assert!(rustix::process::geteuid().is_root(), "this test maps ids and makes cgroups: run it as root");
    let words: Vec<&str> = words.iter().copied().filter(|word| !word.starts_with('-')).collect();
    let (mut passed, mut failed) = (0, Vec::new());
    for (title, case, uid) in
        titles().filter(|(title, ..)| words.is_empty() || words.iter().any(|w| title.contains(w)))
    {
        let good = catch_unwind(AssertUnwindSafe(|| carry_out(case, uid))).is_ok();
        println!("test {title} ... {}", if good { "ok" } else { "FAILED" });
        if good { passed += 1 } else { failed.push(title) }
    }
    println!("\ntest result: {passed} passed; {} failed {failed:?}", failed.len());
    if failed.is_empty() && passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// One launcher with a broker's double, and then: is everything gone?
fn carry_out(case: &Case, uid: u32) {
    let directory = tempfile::Builder::new().prefix("cgrant-system-").tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o711)).unwrap();
    // The build directory may be closed to the account.
    let program = directory.path().join("system");
    fs::copy(env::current_exe().unwrap(), &program).unwrap();
    scene::make(directory.path(), uid, case.root);
    let double = Double::new(uid);
    let status = double.serve(&program, case.name, directory.path());
    double.clean_up(case.orderly && status.success());
    assert!(status.success(), "the launcher ended with {status}");
}

fn launcher(name: &str, directory: &Path) -> ExitCode {
    let case = all_cases().find(|case| case.name == name).expect("no such case");
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    (case.launch)(&Scene::new(directory));
    ExitCode::SUCCESS
}
