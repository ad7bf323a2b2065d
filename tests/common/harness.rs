//! Runs tests one after another, each in a [`Lab`] of its own, and looks for leaks after each.

use std::{
    fs,
    io::Write,
    os::unix::fs::PermissionsExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use libtest_mimic::{Arguments, Failed, Trial};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};

use super::{Lab, agent};

thread_local! {
    // Where the last panic of this thread was.
    static PLACE: std::cell::RefCell<String> = const { std::cell::RefCell::new(String::new()) };
}

/// A test: its name and what it does.
pub type Test = (&'static str, fn(&Lab));

/// The tests of a module, by name. One that is not listed is dead code, which the build refuses.
#[macro_export]
macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        pub const TESTS: &[$crate::common::Test] = &[$((concat!(module_path!(), "::", stringify!($name)), $name)),*];
    };
}

/// The same without some of them, which have to be there.
pub fn main_without(tests: &[&[Test]], left_out: &[&str]) -> ExitCode {
    let all: Vec<Test> = tests.concat();
    let short = |name: &'static str| name.split_once("::").map_or(name, |(_, rest)| rest);
    for name in left_out {
        assert!(all.iter().any(|(known, _)| short(known) == *name), "there is no test {name} to be left out");
    }
    let kept: Vec<Test> = all.into_iter().filter(|(name, _)| !left_out.contains(&short(name))).collect();
    main(&[&kept])
}

/// As [`main_without`], also without the modules of `others`, whose tests are reported as those of the host beside them.
pub fn main_without_modules(tests: &[&[Test]], left_out: &[&str], others: &[(&[&str], String)]) -> ExitCode {
    let short = |name: &'static str| name.split_once("::").map_or(name, |(_, rest)| rest);
    let host_of = |name: &'static str| {
        let tried_there = |modules: &[&str]| modules.iter().any(|module| short(name).starts_with(module));
        others.iter().find(|(modules, _)| tried_there(modules)).map(|(_, host)| host)
    };
    let (elsewhere, here): (Vec<Test>, Vec<Test>) =
        tests.concat().into_iter().partition(|(name, _)| host_of(name).is_some());
    let kept_out: Vec<&str> =
        left_out.iter().copied().filter(|name| here.iter().any(|(known, _)| short(known) == *name)).collect();
    if let Some(end) = agent::requested() {
        return end;
    }
    for (name, _) in elsewhere.iter().filter(|(name, _)| !left_out.contains(&short(name))) {
        if let Some(host) = host_of(name) {
            append_to_report(&format!("same {} {host}\n", short(name)));
        }
    }
    main_without(&[&here], &kept_out)
}

/// The main function of a test program.
pub fn main(tests: &[&[Test]]) -> ExitCode {
    if let Some(end) = agent::requested() {
        return end;
    }
    let mut arguments = Arguments::from_args();
    // Processes and cgroups that appear belong to the test that runs.
    arguments.test_threads = Some(1);
    if arguments.list {
        return libtest_mimic::run(&arguments, trials(tests, Path::new("/"))).exit_code();
    }
    assert!(rustix::process::geteuid().is_root(), "these tests need root: they start a broker");
    // Whatever loses its parent becomes this program's child, so nothing that a test starts is lost from sight.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    // A panic is a test's failure and is shown with it, once.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|l| format!(" ({}:{})", l.file(), l.line())).unwrap_or_default();
        PLACE.with_borrow_mut(|known| *known = place);
    }));
    let programs = gather_programs();
    let conclusion = libtest_mimic::run(&arguments, trials(tests, &programs));
    fs::remove_dir_all(&programs).unwrap();
    conclusion.exit_code()
}

fn trials(tests: &[&[Test]], programs: &Path) -> Vec<Trial> {
    let all = tests.iter().flat_map(|module| module.iter());
    all.map(|(name, test)| {
        let short = name.split_once("::").map_or(*name, |(_, rest)| rest);
        let (test, programs) = (*test, programs.to_owned());
        Trial::test(short, move || run(short, test, &programs))
    })
    .collect()
}

fn run(name: &str, test: fn(&Lab), programs: &Path) -> Result<(), Failed> {
    let start = Instant::now();
    let lab = Lab::new(programs);
    let message = match catch_unwind(AssertUnwindSafe(|| test(&lab))) {
        Ok(()) => leak_message(&lab),
        Err(payload) => Some(words(&*payload) + &PLACE.take()),
    };
    let message = message.map(|message| format!("{message}{}", broker_logs(&lab)));
    lab.clean();
    report(name, start.elapsed().as_secs_f32(), message.as_deref());
    message.map_or(Ok(()), |message| Err(message.into()))
}

fn leak_message(lab: &Lab) -> Option<String> {
    let leaks = lab.leaks();
    let shown: Vec<&str> = leaks.iter().take(12).map(String::as_str).collect();
    (!leaks.is_empty()).then(|| format!("{} things left behind:\n  {}", leaks.len(), shown.join("\n  ")))
}

fn words(payload: &(dyn std::any::Any + Send)) -> String {
    let text = payload.downcast_ref::<String>().cloned();
    text.or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_owned())).unwrap_or_else(|| "panic".into())
}

// The end of what the test's brokers logged.
fn broker_logs(lab: &Lab) -> String {
    let text = fs::read_to_string(lab.scratch.join("log")).unwrap_or_default();
    // Not that somebody looked, again and again.
    let lines: Vec<&str> = text.lines().filter(|line| !line.contains("request=\"read\"")).collect();
    let tail = lines.iter().skip(lines.len().saturating_sub(25));
    tail.fold(String::new(), |all, line| format!("{all}\n  log: {line}"))
}

// For runs in a virtual machine: one line a test in a file.
fn report(name: &str, seconds: f32, failure: Option<&str>) {
    let mut text = match failure {
        None => format!("ok {name} {seconds:.1}\n"),
        Some(_) => format!("FAILED {name} {seconds:.1}\n"),
    };
    for line in failure.into_iter().flat_map(str::lines) {
        text += &format!("| {line}\n");
    }
    append_to_report(&text);
}

fn append_to_report(text: &str) {
    let Ok(path) = std::env::var("CGRANT_TEST_REPORT") else { return };
    let mut file = fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
    file.write_all(text.as_bytes()).unwrap();
}

// The programs in a directory that every user can reach; the build's own may lie under somebody's home.
fn gather_programs() -> PathBuf {
    let directory = PathBuf::from(format!("/tmp/cgrant-test-bin-{}", std::process::id()));
    fs::create_dir(&directory).unwrap();
    fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
    let built = [
        ("cgrantd", env!("CARGO_BIN_EXE_cgrantd")),
        ("cgproxy", env!("CARGO_BIN_EXE_cgproxy")),
        ("cgrant-engine", env!("CARGO_BIN_EXE_cgrant-engine")),
        ("cgrant-front", env!("CARGO_BIN_EXE_cgrant-front")),
        ("cgrant-net", env!("CARGO_BIN_EXE_cgrant-net")),
        ("cgrant-scope", env!("CARGO_BIN_EXE_cgrant-scope")),
        ("cgrant", env!("CARGO_BIN_EXE_cgrant")),
    ];
    let elsewhere = std::env::var("CGRANT_TEST_BIN").ok().map(PathBuf::from);
    for (name, path) in built {
        let source = elsewhere.as_ref().map_or_else(|| PathBuf::from(path), |place| place.join(name));
        fs::copy(&source, directory.join(name))
            .unwrap_or_else(|error| panic!("{}: {error}", source.display()));
    }
    // As a package links it.
    std::os::unix::fs::symlink("cgrant", directory.join("cgm")).unwrap();
    fs::copy("/proc/self/exe", directory.join("tests")).unwrap();
    // The PAM module is a dependency of this program, and so beside it in the build.
    let module = "libpam_cgrant.so";
    let beside = || std::env::current_exe().unwrap().with_file_name(module);
    let module_at = [elsewhere.map(|place| place.join(module)), Some(beside())].into_iter().flatten();
    let module_at = module_at.into_iter().find(|path| path.exists()).expect("the PAM module is not built");
    fs::copy(module_at, directory.join(module)).unwrap();
    directory
}

/// Living processes that this program started, at any remove. Reaps what is dead.
pub fn descendants() -> Vec<u32> {
    while let Ok(Some(_)) = wait(WaitOptions::NOHANG) {}
    let all = processes();
    let mut found = vec![std::process::id()];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(all.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

/// Living processes below `parent`.
pub fn descendants_of(parent: u32) -> Vec<u32> {
    let all = processes();
    let mut found = vec![parent];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(all.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

// Pid and parent of every process that is not dead.
fn processes() -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { continue };
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let fields: Vec<&str> = rest.split(' ').collect();
        if !matches!(fields[0], "Z" | "X") {
            found.push((pid, fields[1].parse().unwrap()));
        }
    }
    found
}

/// Kills everything that this program started.
pub fn kill_descendants() {
    for _ in 0..200 {
        let left = descendants();
        if left.is_empty() {
            return;
        }
        for pid in left {
            let _ = kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), Signal::KILL);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
