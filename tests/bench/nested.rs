//! What a grant and `cgrant run` cost inside of grants: asked for from the host and by the roots of three levels of user namespaces, each
//! inside the one before, side by side.
//!
//! Nothing in what the broker does for a caller ought to grow with how deep it is but the way down a path of cgroups.

use std::{cell::RefCell, os::fd::OwnedFd, path::Path, process::Command};

use crate::{
    Bench,
    caller::Caller,
    common::{
        Client, Lab, Options, Process, User,
        level::{Level, nesting, put},
    },
    runner::Runner,
    sample::{self, Case, time},
};

/// Blocks of ids that each level has for what is inside, enough for the levels below and a grant beside them.
const LEVELS: [(&str, u32); 3] = [("one", 12), ("two", 7), ("three", 3)];

/// Somebody who asks: the user on the host, or the root of a level.
struct Depth<'a> {
    name: String,
    user: &'a User,
    level: Option<&'a Level>,
    /// User namespaces that nobody has mapped yet, made before the clock runs.
    fresh: RefCell<Vec<(Process, OwnedFd)>>,
    used: RefCell<Vec<(Process, OwnedFd)>>,
}

impl<'a> Depth<'a> {
    fn new(depth: usize, user: &'a User, level: Option<&'a Level>) -> Self {
        let (fresh, used) = (RefCell::default(), RefCell::default());
        Self { name: format!("depth {depth}"), user, level, fresh, used }
    }

    fn caller(&self, lab: &Lab, socket: &Path) -> Caller {
        match self.level {
            None => Caller::new(self.user, socket),
            Some(level) => Caller::inside(level.caller(lab, self.user, 0, socket)),
        }
    }

    fn userns(&self) -> (Process, OwnedFd) {
        self.level.map_or_else(|| self.user.userns(), |level| level.userns(self.user))
    }

    fn stock(&self, number: usize) {
        self.used.borrow_mut().clear();
        let missing = number.saturating_sub(self.fresh.borrow().len());
        self.fresh.borrow_mut().extend((0..missing).map(|_| self.userns()));
    }
}

/// The part `nested`.
pub fn measure(bench: &Bench) {
    let broker = bench.lab.broker();
    let (lab, user) = (&bench.lab, &bench.user);
    // Each goes with the client that made it, so the innermost first.
    let mut clients: Vec<Client> = vec![user.client(broker.socket())];
    let mut levels: Vec<Level> = Vec::new();
    for (name, blocks) in LEVELS {
        let client = &clients[levels.len()];
        let level = match levels.last() {
            None => Level::new(user, client, name, nesting(blocks)),
            Some(around) => around.inner(user, client, name, nesting(blocks)),
        };
        clients.push(level.client(lab, user, broker.socket()));
        levels.push(level);
    }
    let inside = levels.iter().enumerate().map(|(depth, level)| Depth::new(depth + 1, user, Some(level)));
    let depths: Vec<Depth<'_>> = std::iter::once(Depth::new(0, user, None)).chain(inside).collect();
    grants(bench, &depths, broker.socket());
    runs(bench, &depths, broker.socket());
    drop(depths);
    while clients.pop().is_some() {}
}

fn grants(bench: &Bench, depths: &[Depth<'_>], socket: &Path) {
    let callers: Vec<Caller> = depths.iter().map(|depth| depth.caller(&bench.lab, socket)).collect();
    let act = |depth: &Depth<'_>, caller: &Caller| {
        let next = depth.fresh.borrow_mut().pop().expect("enough namespaces in stock");
        let (create, grant) = caller.create(Options::new().fd("userns", &next.1));
        let release = caller.release(&grant);
        depth.used.borrow_mut().push(next);
        vec![("grant and release", create + release), ("grant", create), ("release", release)]
    };
    let cases = depths.iter().zip(&callers);
    let cases = cases.map(|(depth, caller)| Case::new(depth.name.clone(), move || act(depth, caller)));
    let mut cases: Vec<Case<'_>> = cases.collect();
    let mut rows = sample::take(&mut cases, bench.runs, || {
        depths.iter().for_each(|depth| depth.stock(bench.runs + 1));
    });
    rows.sort_by_key(|row| {
        ["grant and release", "grant", "release"].iter().position(|part| row.name.ends_with(part))
    });
    sample::print(
        "Grant of cgroups and 65536 ids, mapped, by callers at each depth; one open connection",
        &rows,
    );
}

fn runs(bench: &Bench, depths: &[Depth<'_>], socket: &Path) {
    let program = bench.lab.programs.join("cgrant");
    let words =
        [program.as_path(), "run".as_ref(), "--socket".as_ref(), socket, "--".as_ref(), "/bin/true".as_ref()];
    let command: Vec<String> = words.iter().map(|word| word.to_str().unwrap().to_owned()).collect();
    let runners: Vec<RefCell<Runner>> =
        depths.iter().map(|depth| RefCell::new(runner(&bench.lab, depth))).collect();
    let cases = depths.iter().zip(&runners).map(|(depth, runner)| {
        let command = &command;
        let act = move || {
            let (all, ran) = time(|| runner.borrow_mut().run(command));
            let time = ran.unwrap_or_else(|failure| panic!("cgrant run after {all:?}: {failure}"));
            vec![("", time)]
        };
        Case::new(depth.name.clone(), act)
    });
    let mut cases: Vec<Case<'_>> = cases.collect();
    let rows = sample::take(&mut cases, bench.runs, || ());
    sample::print("cgrant run /bin/true, host root, from start to gone, at each depth", &rows);
}

/// What runs commands at a depth: below, as the root of the level, in its user namespace and its payload.
fn runner(lab: &Lab, depth: &Depth<'_>) -> Runner {
    let Some(level) = depth.level else {
        return Runner::start(crate::runner::View::Machine, Some(depth.user), None);
    };
    let mut command = Command::new("nsenter");
    command.arg(format!("--user=/proc/{}/ns/user", level.namespace.pid)).args(["-S0", "-G0"]);
    command.arg(lab.programs.join("tests")).env("HOME", "/").current_dir("/");
    let runner = Runner::of(command);
    put(lab, depth.user, &level.name, runner.pid());
    runner
}
