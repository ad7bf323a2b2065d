//! `make bench`: what the broker and the client cost, each beside its floor or beside other people's programs.
//!
//! Prints figures and asserts none: times depend on the machine and on what else runs. What is compared is
//! measured in one run, in turns. Two ways: *idle*, with a pause before each sample, where the kernel's waits
//! for RCU grace periods show, and *hot*, back to back.
//!
//! `BENCH_ONLY=grant,run,nested,systems,links,cgmanager,size,wakeups` runs some parts only, `RUNS=N` sets the number of samples. Needs root.
//! Everything that is made is removed.

// What is removed whole are directories that this program made.
#![allow(clippy::disallowed_methods)]

#[path = "../common/mod.rs"]
#[allow(dead_code, unused_imports)]
mod common;

mod caller;
mod cgmanager;
mod floor;
mod grants;
mod launch;
mod links;
mod nested;
mod peers;
mod runner;
mod sample;
mod size;
mod systems;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use common::{Lab, User, agent};

/// What every part works with.
pub struct Bench {
    pub lab: Lab,
    /// The unprivileged user.
    pub user: User,
    /// Samples of each kind.
    pub runs: usize,
}

/// A part: its name for `BENCH_ONLY`, and what it does.
type Part = (&'static str, fn(&Bench));

const PARTS: [Part; 8] = [
    ("grant", grants::measure),
    ("run", launch::measure),
    ("nested", nested::measure),
    ("systems", systems::measure),
    ("links", links::measure),
    ("cgmanager", cgmanager::measure),
    ("size", size::measure_memory),
    ("wakeups", size::measure_wakeups),
];

fn main() -> ExitCode {
    if let Some(end) = agent::requested() {
        return end;
    }
    if let Some(view) = runner::requested() {
        return runner::main(&view);
    }
    if let Some(words) = links::requested() {
        return links::main(&words);
    }
    assert!(rustix::process::geteuid().is_root(), "the benchmark needs root: it starts a broker");
    let only = std::env::var("BENCH_ONLY").unwrap_or_default();
    let only: Vec<&str> = only.split(',').filter(|name| !name.is_empty()).collect();
    if let Some(unknown) = only.iter().find(|name| !PARTS.iter().any(|(part, _)| part == *name)) {
        eprintln!(
            "BENCH_ONLY: there is no part {unknown:?}; there are grant, run, nested, systems, links, cgmanager, size, wakeups"
        );
        return ExitCode::from(2);
    }
    enter_own_mounts();
    let programs = gather_programs();
    let lab = Lab::new(&programs);
    let user = lab.user();
    write_settings(&lab, &user);
    mount_volatile_directories(&lab);
    let runs = std::env::var("RUNS").ok().and_then(|text| text.parse().ok()).unwrap_or(30);
    let bench = Bench { lab, user, runs };
    header(&bench);
    let result = catch_unwind(AssertUnwindSafe(|| {
        for (_, measure) in PARTS.iter().filter(|(part, _)| only.is_empty() || only.contains(part)) {
            measure(&bench);
        }
    }));
    for place in volatile_directories(&bench.lab) {
        umount2(&place, MntFlags::MNT_DETACH).unwrap();
    }
    let leaks = if result.is_ok() { bench.lab.leaks() } else { Vec::new() };
    bench.lab.clean();
    fs::remove_dir_all(&programs).unwrap();
    for leak in &leaks {
        eprintln!("left behind, and removed: {leak}");
    }
    ExitCode::from(u8::from(result.is_err() || !leaks.is_empty()))
}

fn header(bench: &Bench) {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let load = read("/proc/loadavg");
    let load: Vec<&str> = load.split(' ').take(3).collect();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    println!(
        "Linux {}, {cpus} CPUs, cgroups {:?}, load {}; {} samples of each; times in milliseconds",
        read("/proc/sys/kernel/osrelease"),
        bench.lab.host.kind,
        load.join(" "),
        bench.runs
    );
    println!(
        "idle: {} ms pause before each sample; hot: back to back; all of one table in turns",
        sample::PAUSE.as_millis()
    );
}

// What is mounted from here on is seen by this program and its children only, and is gone with them.
fn enter_own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
}

fn volatile_directories(lab: &Lab) -> [PathBuf; 2] {
    [lab.runtime_dir(), lab.scratch.join("ids-live")]
}

// What a broker has in /run is in memory on an ordinary machine; a scratch directory in /tmp may be on a disk.
fn mount_volatile_directories(lab: &Lab) {
    for place in volatile_directories(lab) {
        fs::create_dir(&place).unwrap();
        mount(Some("bench"), &place, Some("tmpfs"), MsFlags::empty(), Some("mode=0755")).unwrap();
    }
}

// The release programs in a directory that every user can reach, and this one for its agents.
fn gather_programs() -> PathBuf {
    let built = std::env::var_os("CGRANT_TEST_BIN")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/release"), PathBuf::from);
    let directory = PathBuf::from(format!("/tmp/cgrant-bench-bin-{}", std::process::id()));
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    for name in
        ["cgrantd", "cgproxy", "cgrant-engine", "cgrant-front", "cgrant-net", "cgrant-scope", "cgrant"]
    {
        let source = built.join(name);
        fs::copy(&source, directory.join(name))
            .unwrap_or_else(|error| panic!("{}: {error}; `make bench` builds it first", source.display()));
    }
    std::os::unix::fs::symlink("cgrant", directory.join("cgm")).unwrap();
    fs::copy("/proc/self/exe", directory.join("tests")).unwrap();
    directory
}

// Quotas and a pool for a thousand grants of the usual size.
fn write_settings(lab: &Lab, user: &User) {
    let policy = format!(
        "[[rule]]\nname = \"bench\"\nuids = [0, {}]\n[rule.quota]\ngrants = 2048\nids = 134217728\ncgroups = 65536\n",
        user.uid
    );
    lab.write_policy(&policy);
    let path = lab.config_dir().join("cgrantd.toml");
    let text = fs::read_to_string(&path).unwrap();
    let (first, last) = common::lab::POOL;
    let small = format!("{first}-{last}");
    // Clear of systemd's range for containers below it and of the broker's usual pool above.
    let large = format!("{}-{}", 0x7000_0000_u32, 0x77ff_ffff_u32);
    assert!(text.contains(&small), "{text}");
    let accounts = format!("[accounts]\nbus-front = \"{}\"\n", size::BUS_FRONT);
    fs::write(path, text.replace(&small, &large) + &accounts).unwrap();
}
