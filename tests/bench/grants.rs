//! A grant of cgroup and ids with the map written, and its release: beside the bare system calls, and with others present.

use std::{cell::RefCell, os::fd::OwnedFd, time::Duration};

use crate::{
    Bench,
    caller::Caller,
    common::{Broker, Options, Process, User},
    floor::Floor,
    sample::{self, Case, Parts, time},
    size::{self, Activity},
};

/// How many grants are there already, in the second table.
const PRESENT: [usize; 4] = [0, 1, 100, 1000];

/// User namespaces that nobody has mapped yet, made before the clock runs.
struct Namespaces<'a> {
    user: &'a User,
    fresh: RefCell<Vec<(Process, OwnedFd)>>,
    used: RefCell<Vec<(Process, OwnedFd)>>,
}

impl<'a> Namespaces<'a> {
    fn new(user: &'a User) -> Self {
        Self { user, fresh: RefCell::default(), used: RefCell::default() }
    }

    fn stock(&self, number: usize) {
        self.used.borrow_mut().clear();
        let missing = number.saturating_sub(self.fresh.borrow().len());
        self.fresh.borrow_mut().extend((0..missing).map(|_| self.user.userns()));
    }

    fn with_next<T>(&self, act: impl FnOnce(&Process, &OwnedFd) -> T) -> T {
        let next = self.fresh.borrow_mut().pop().expect("enough namespaces in stock");
        let result = act(&next.0, &next.1);
        self.used.borrow_mut().push(next);
        result
    }
}

/// The part `grant`.
pub fn measure(bench: &Bench) {
    let broker = bench.lab.broker();
    beside_the_floor(bench, &broker);
    with_others_present(bench, &broker);
}

fn beside_the_floor(bench: &Bench, broker: &Broker) {
    let caller = Caller::new(&bench.user, broker.socket());
    let floor = {
        let (_, grant) = caller.create(Options::new());
        let floor = Floor::learn(&bench.lab, &bench.user, 0x7000_0000);
        caller.release(&grant);
        floor
    };
    let namespaces = Namespaces::new(&bench.user);
    let before = size::activity(broker.processes());
    let mut cases = [
        Case::new("bare system calls", || by_hand(&floor, &namespaces)),
        Case::new("broker", || by_broker(&caller, &namespaces)),
    ];
    let mut rows = sample::take(&mut cases, bench.runs, || namespaces.stock(2 * (bench.runs + 1)));
    rows.sort_by_key(|row| {
        ["grant and release", "grant", "release"].iter().position(|part| row.name.ends_with(part))
    });
    sample::print("Grant of a cgroup in every hierarchy and 65536 ids, mapped; one open connection", &rows);
    println!("bare system calls: {}", floor.describe());
    print_processor_time(&before, &size::activity(broker.processes()), 2 * (bench.runs + 1));
    let median = |row: usize, idle: bool| {
        let samples = if idle { &rows[row].idle } else { &rows[row].hot };
        sample::quantile(samples, 0.5).map_or(0.0, sample::milliseconds)
    };
    let over = |idle| median(1, idle) - median(0, idle);
    println!(
        "broker over the floor, grant and release, median: {:.3} idle, {:.3} hot",
        over(true),
        over(false)
    );
}

// Steadier than the clock where other work runs.
fn print_processor_time(before: &[Activity], after: &[Activity], grants: usize) {
    // A process that came or went meanwhile (the map helper makes one for each map) has no figure.
    let both = before
        .iter()
        .filter_map(|before| Some((before, after.iter().find(|after| after.pid == before.pid)?)));
    let parts = both.map(|(before, after)| {
        let time =
            Duration::from_nanos(after.nanoseconds - before.nanoseconds) / u32::try_from(grants).unwrap();
        (&after.name, sample::milliseconds(time))
    });
    let parts: Vec<(&String, f64)> = parts.filter(|(_, time)| *time > 0.0).collect();
    let sum: f64 = parts.iter().map(|(_, time)| time).sum();
    let parts: Vec<String> = parts.iter().map(|(name, time)| format!("{name} {time:.3}")).collect();
    println!("the broker's processor time for one grant and release: {sum:.3} ({})", parts.join(", "));
}

fn by_hand(floor: &Floor, namespaces: &Namespaces<'_>) -> Parts {
    let create = namespaces.with_next(|process, _| time(|| floor.create(process)).0);
    let release = time(|| floor.release()).0;
    vec![("grant and release", create + release), ("grant", create), ("release", release)]
}

fn by_broker(caller: &Caller, namespaces: &Namespaces<'_>) -> Parts {
    let (create, grant) =
        namespaces.with_next(|_, userns| caller.create(Options::new().fd("userns", userns)));
    let release = caller.release(&grant);
    vec![("grant and release", create + release), ("grant", create), ("release", release)]
}

fn with_others_present(bench: &Bench, broker: &Broker) {
    let caller = Caller::new(&bench.user, broker.socket());
    let namespaces = Namespaces::new(&bench.user);
    let mut present = Vec::new();
    let mut rows = Vec::new();
    for number in PRESENT {
        while present.len() < number {
            present.push(caller.create(Options::new()).1);
        }
        let mut cases = [Case::new(format!("{number} grants of the account present"), || {
            by_broker(&caller, &namespaces)
        })];
        let taken = sample::take(&mut cases, bench.runs, || namespaces.stock(bench.runs + 1));
        rows.extend(taken.into_iter().filter(|row| row.name.ends_with("grant and release")));
    }
    sample::print(
        "The next grant and its release (the first grant of an account makes the account's cgroups too)",
        &rows,
    );
    for grant in present {
        caller.release(&grant);
    }
}
