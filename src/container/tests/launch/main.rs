//! The container engine, with this test in the broker's place: it maps ids and makes cgroups as root, and the
//! launchers are processes of real accounts: root, and a uid that no file knows.
//!
//! `launch` runs all cases, `launch WORDS` those whose title contains one of the words. Every case is a launcher
//! process of its own (`launch --case NAME DIR`): a launch wants a process with one thread. Needs root, and
//! leaves nothing behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod cases;
mod double;

use std::{
    env,
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    process::ExitCode,
};

use cases::{CASES, Case, Scene};
use double::{Double, Link};

/// The accounts that launch: (uid and gid, how titles call it). The second is in no file.
const ACCOUNTS: [(u32, &str); 2] = [(0, "root"), (0x6fff_fff1, "user")];

fn main() -> ExitCode {
    let words: Vec<String> = env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
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

fn titles() -> impl Iterator<Item = (String, &'static Case, u32)> {
    CASES
        .iter()
        .flat_map(|case| ACCOUNTS.map(|(uid, account)| (format!("{account}::{}", case.name), case, uid)))
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
    let directory = tempfile::Builder::new().prefix("cgrant-launch-").tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o711)).unwrap();
    // The build directory may be closed to the account.
    let program = directory.path().join("launch");
    fs::copy(env::current_exe().unwrap(), &program).unwrap();
    cases::make_scene(directory.path(), uid);
    let double = Double::new(uid, case.ids, case.setgroups);
    let status = double.serve(&program, ["--case", case.name].map(Path::new), directory.path());
    double.clean_up();
    assert!(status.success(), "the launcher ended with {status}");
}

fn launcher(name: &str, directory: &Path) -> ExitCode {
    let case = CASES.iter().find(|case| case.name == name).expect("no such case");
    (case.launch)(&Scene {
        link: Link::inherited(),
        directory: directory.to_owned(),
        ids: case.ids,
        setgroups: case.setgroups,
    });
    ExitCode::SUCCESS
}
