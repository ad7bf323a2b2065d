//! CGManager's operations: over one connection, over eight, by one process a call, and the same work by hand in cgroupfs; beside
//! what CGManager itself took.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use zbus::Message;

use crate::{
    Bench,
    common::{
        Process,
        cgmanager::{INTERFACE, Jail, Manager, PATH},
        raw::Raw,
        wait_until,
    },
    sample, size,
};

/// Calls over one connection, and over each of the eight.
const CALLS: usize = 3000;
const TOGETHER: usize = 8;
/// Processes that make one call each.
const PROCESSES: usize = 150;
/// Calls while the broker's system calls are counted.
const COUNTED: usize = 200;
/// Children of the cgroup that is listed.
const CHILDREN: usize = 2002;
const LIMIT: &str = "memory.limit_in_bytes";

/// What CGManager 0.42 took, with 2 processors, on another day: rate and 99th percentile in microseconds over one connection,
/// its processor time in microseconds and its system calls for one; rate over eight; by one process a call; by hand.
struct Original {
    rate: u32,
    p99: u32,
    processor: u32,
    calls: u32,
    eight: Option<u32>,
    processes: Option<u32>,
    by_hand: Option<u32>,
}

/// An operation: the n-th call of the w-th caller; that of the command; and the same by hand.
struct Operation {
    name: &'static str,
    original: Original,
    call: fn(usize, usize, &Movable) -> Message,
    command: &'static str,
    by_hand: Option<fn(&Path, usize, &Movable)>,
    calls: usize,
}

/// Whom a call moves: one process of each caller.
struct Movable(Vec<u32>);

fn call<B: serde::Serialize + zbus::DynamicType>(method: &str, body: &B) -> Message {
    Message::method_call(PATH, method).interface(INTERFACE).build(body).unwrap()
}

const fn original(rate: u32, p99: u32, processor: u32, calls: u32) -> Original {
    Original { rate, p99, processor, calls, eight: None, processes: None, by_hand: None }
}

/// In an order in which each finds what it needs.
fn operations() -> [Operation; 8] {
    let with = |of: Original, eight, processes, by_hand| Original { eight, processes, by_hand, ..of };
    [
        Operation {
            name: "Ping",
            original: with(original(39_535, 98, 10, 8), Some(33_315), Some(435), None),
            call: |_, _, _| call("Ping", &0),
            command: "ping",
            by_hand: None,
            calls: CALLS,
        },
        Operation {
            name: "Create",
            original: with(original(3244, 1298, 230, 100), Some(3334), Some(359), Some(20_005)),
            call: |of, nth, _| call("Create", &("memory", format!("x/c{of}-{nth}"))),
            command: "create memory x/p$i",
            by_hand: Some(|top, nth, _| fs::create_dir(top.join(format!("h{nth}"))).unwrap()),
            calls: CALLS,
        },
        Operation {
            name: "GetValue",
            original: with(original(11_857, 360, 50, 32), Some(17_979), Some(392), Some(258_087)),
            call: |_, _, _| call("GetValue", &("memory", "x", LIMIT)),
            command: "getvalue memory x memory.limit_in_bytes",
            by_hand: Some(|top, _, _| drop(fs::read(top.join(limit(top))).unwrap())),
            calls: CALLS,
        },
        Operation {
            name: "SetValue",
            original: with(original(7312, 737, 70, 33), Some(15_740), Some(375), Some(204_963)),
            call: |_, _, _| call("SetValue", &("memory", "x", LIMIT, "1073741824")),
            command: "setvalue memory x memory.limit_in_bytes 1073741824",
            by_hand: Some(|top, _, _| fs::write(top.join(limit(top)), "1073741824").unwrap()),
            calls: CALLS,
        },
        Operation {
            name: "MovePid",
            original: with(original(8516, 566, 70, 42), Some(12_689), Some(389), Some(88_066)),
            call: |of, nth, movable| {
                let to = if nth % 2 == 0 { "x/one" } else { "x/two" };
                call("MovePid", &("memory", to, movable.0[of].cast_signed()))
            },
            command: "movepid memory x/one $p",
            by_hand: Some(|top, nth, movable| {
                let to = if nth % 2 == 0 { "one" } else { "two" };
                fs::write(top.join(to).join("cgroup.procs"), movable.0[0].to_string()).unwrap();
            }),
            calls: CALLS,
        },
        Operation {
            name: "GetTasks",
            original: with(original(9296, 403, 50, 33), Some(17_849), None, None),
            call: |_, _, _| call("GetTasks", &("memory", "single")),
            command: "gettasks memory single",
            by_hand: None,
            calls: CALLS,
        },
        Operation {
            name: "ListChildren",
            original: original(971, 3565, 800, 0),
            call: |_, _, _| call("ListChildren", &("memory", "many")),
            command: "listchildren memory many",
            by_hand: None,
            calls: CALLS / 10,
        },
        Operation {
            name: "Remove",
            original: with(original(3519, 2536, 155, 0), Some(4976), Some(344), Some(21_734)),
            call: |of, nth, _| call("Remove", &("memory", format!("x/c{of}-{nth}"), 1)),
            command: "remove memory x/p$i",
            by_hand: Some(|top, nth, _| fs::remove_dir(top.join(format!("h{nth}"))).unwrap()),
            calls: CALLS,
        },
    ]
}

/// The file of the limit, by the host's kind.
fn limit(top: &Path) -> &'static str {
    if top.join(LIMIT).exists() { LIMIT } else { "memory.max" }
}

/// A connection whose messages are laid out before the clock starts.
struct Line {
    raw: Raw,
    _process: Process,
}

impl Line {
    fn new(bench: &Bench, manager: &Manager, jail: &Jail) -> Self {
        let (process, stream) = bench.user.connect(&manager.socket);
        jail.put(process.pid);
        let mut raw = Raw::new(stream);
        raw.authenticate(bench.user.uid);
        Self { raw, _process: process }
    }

    /// Makes the calls one after the other; how long each took.
    fn make(&mut self, messages: &[Message]) -> Vec<Duration> {
        messages.iter().map(|message| sample::time(|| self.ask(message)).0).collect()
    }

    fn ask(&mut self, message: &Message) {
        assert!(self.raw.send(message.data().bytes()));
        let answer = self.raw.message().expect("the broker closed the connection");
        assert_eq!(answer[1], 2, "refused: {}", String::from_utf8_lossy(&answer));
    }
}

/// The part `cgmanager`.
pub fn measure(bench: &Bench) {
    let manager = Manager::start(&bench.lab);
    let jail = Jail::new(&bench.lab, "memory", "bench");
    jail.give_to(&bench.user);
    let mut lines: Vec<Line> = (0..TOGETHER).map(|_| Line::new(bench, &manager, &jail)).collect();
    let sleepers: Vec<Process> = (0..=TOGETHER).map(|_| bench.user.sleeper()).collect();
    for sleeper in &sleepers {
        jail.put(sleeper.pid);
    }
    let movable = Movable(sleepers.iter().map(|sleeper| sleeper.pid).collect());
    prepare(&mut lines[0], &movable);
    println!("\nCGManager's operations (calls a second); in brackets: CGManager 0.42 on another day");
    println!(
        "{:14}|{:^16}|{:^16}|{:^16}|{:^16}|{:^16}|{:^16}|{:^18}",
        "", "one connection", "p99, us", "processor, us", "system calls", "eight", "processes", "by hand"
    );
    for operation in operations() {
        row(bench, &manager, &jail, &mut lines, &movable, &operation);
    }
    let plain = rate(PROCESSES, commands(bench, &manager, &jail, "true", movable.0[TOGETHER]));
    println!("processes that do nothing: {plain} a second");
}

/// The cgroups that the operations are about.
fn prepare(line: &mut Line, movable: &Movable) {
    let mut wanted = vec!["x/one".to_owned(), "x/two".to_owned(), "single".to_owned()];
    wanted.extend((0..CHILDREN).map(|nth| format!("many/c{nth}")));
    let messages: Vec<Message> = wanted.iter().map(|path| call("Create", &("memory", path))).collect();
    line.make(&messages);
    // The last one but the command's is the one task.
    line.ask(&call("MovePid", &("memory", "single", movable.0[TOGETHER].cast_signed())));
}

fn row(
    bench: &Bench,
    manager: &Manager,
    jail: &Jail,
    lines: &mut [Line],
    movable: &Movable,
    operation: &Operation,
) {
    let messages = |of: usize, from: usize, count: usize| -> Vec<Message> {
        (from..from + count).map(|nth| (operation.call)(of, nth, movable)).collect()
    };
    let calls = operation.calls;
    let one = messages(0, 0, calls);
    let before = size::activity(&manager.broker);
    let start = Instant::now();
    let times = lines[0].make(&one);
    let (elapsed, after) = (start.elapsed(), size::activity(&manager.broker));
    let counted = messages(0, calls, COUNTED);
    let system_calls = count_system_calls(manager, || drop(lines[0].make(&counted)));
    let all: Vec<Vec<Message>> =
        (0..TOGETHER).map(|of| messages(of, calls + COUNTED, calls / TOGETHER)).collect();
    let together = make_together(lines, &all);
    let processes = commands(bench, manager, jail, operation.command, movable.0[TOGETHER]);
    let by_hand = operation.by_hand.map(|by_hand| {
        let top = jail.dir.join("x");
        sample::time(|| (0..calls).for_each(|nth| by_hand(&top, nth, movable))).0
    });
    let of = &operation.original;
    let p99 = sample::quantile(&times, 0.99).map_or(0, |time| time.as_micros());
    let cells = [
        cell(rate(calls, elapsed), Some(of.rate)),
        cell(p99, Some(of.p99)),
        cell(processor_time(&before, &after, calls).as_micros(), Some(of.processor)),
        system_calls.map_or_else(|| "-".to_owned(), |calls| cell(calls, (of.calls > 0).then_some(of.calls))),
        cell(rate(calls / TOGETHER * TOGETHER, together), of.eight),
        cell(rate(PROCESSES, processes), of.processes),
        by_hand.map_or_else(|| "-".to_owned(), |time| cell(rate(calls, time), of.by_hand)),
    ];
    let cells: Vec<String> = cells.iter().map(|cell| format!("|{cell:>16}")).collect();
    println!("{:14}{}", operation.name, cells.concat());
}

fn cell(ours: impl std::fmt::Display, original: Option<u32>) -> String {
    let original = original.map_or_else(|| "-".to_owned(), |number| number.to_string());
    format!("{ours} [{original}]")
}

fn rate(count: usize, time: Duration) -> u64 {
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap().max(1);
    u64::try_from(count).unwrap() * 1_000_000_000 / nanoseconds
}

fn processor_time(before: &[size::Activity], after: &[size::Activity], calls: usize) -> Duration {
    let used = after.iter().filter_map(|after| {
        let before = before.iter().find(|before| before.pid == after.pid)?;
        Some(after.nanoseconds.saturating_sub(before.nanoseconds))
    });
    Duration::from_nanos(used.sum()) / u32::try_from(calls).unwrap()
}

/// Calls over all connections at once; from the first one's start to the last one's end.
fn make_together(lines: &mut [Line], messages: &[Vec<Message>]) -> Duration {
    let (ready, done) = (Barrier::new(lines.len() + 1), Barrier::new(lines.len() + 1));
    thread::scope(|scope| {
        for (line, messages) in lines.iter_mut().zip(messages) {
            let (ready, done) = (&ready, &done);
            scope.spawn(move || {
                ready.wait();
                line.make(messages);
                done.wait();
            });
        }
        ready.wait();
        sample::time(|| done.wait()).0
    })
}

/// How long it takes a shell in the cgroup to run the command so many times, each in a process of its own.
fn commands(bench: &Bench, manager: &Manager, jail: &Jail, verb: &str, pid: u32) -> Duration {
    let line = if verb == "true" { "/bin/true".to_owned() } else { format!("\"$2\" {verb} >/dev/null") };
    let script = format!("i=0; p=$1; while [ $i -lt {PROCESSES} ]; do {line}; i=$((i+1)); done");
    let mut command = bench.user.command("sh");
    command.args(["-c", &script, "sh", &pid.to_string()]).arg(bench.lab.programs.join("cgm"));
    command.env("CGRANT_CGMANAGER_SOCKET", &manager.socket);
    let (time, output) = sample::time(|| jail.command(&command).output().unwrap());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && said.is_empty(), "{verb}: {said}");
    time
}

/// How many system calls one call costs the broker's processes, as strace sees them; `None` without it.
fn count_system_calls(manager: &Manager, calls: impl FnOnce()) -> Option<u64> {
    let counts = manager.socket.with_file_name("strace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-c", "-o"]).arg(&counts);
    let pids: Vec<u32> = manager.broker.processes().into_iter().map(|(pid, _)| pid).collect();
    for pid in &pids {
        strace.args(["-p", &pid.to_string()]);
    }
    let mut strace = strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    let is_traced = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
    };
    wait_until("the broker is traced", || pids.iter().all(is_traced));
    calls();
    Command::new("kill").args(["-INT", &strace.id().to_string()]).status().unwrap();
    strace.wait().unwrap();
    let text = fs::read_to_string(&counts).unwrap();
    let total = text.lines().find(|line| line.ends_with(" total"))?;
    let number = total.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).next_back();
    let with_errors = total.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).count() > 2;
    // The columns are share, seconds, microseconds a call, calls, errors if there are any.
    let all: Vec<u64> = total.split_whitespace().filter_map(|word| word.parse::<u64>().ok()).collect();
    let calls = if with_errors { all.get(all.len() - 2).copied() } else { number };
    calls.map(|calls| calls / u64::try_from(COUNTED).unwrap())
}
