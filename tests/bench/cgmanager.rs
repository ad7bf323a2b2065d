//! CGManager's operations: over one connection, over eight, by one process a call, and the same work by hand in cgroupfs. Beside
//! CGManager itself, in turns, where it is installed; else beside what it took on another day. Connections are made by the same client, processes
//! run the `cgm` of who is asked.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Barrier,
    thread,
    time::Duration,
};

use rustix::event::{PollFd, PollFlags, poll};
use zbus::Message;

use crate::{
    Bench,
    common::{
        Process,
        cgmanager::{INTERFACE, Jail, Manager, PATH},
        original::Original,
        raw::Raw,
        wait_until,
    },
    peers::{find, is_installed},
    sample, size,
};

/// Calls over one connection, and over the eight together.
const CALLS: usize = 3000;
const TOGETHER: usize = 8;
/// Turns in which all of these are made. What is told is the median one: what else the machine does is not to decide.
const ROUNDS: usize = 20;
/// Processes that make one call each.
const PROCESSES: usize = 400;
/// Calls while the broker's system calls are counted.
const COUNTED: usize = 200;
/// Children of the cgroup that is listed.
const CHILDREN: usize = 2002;
const LIMIT: &str = "memory.limit_in_bytes";

/// What CGManager 0.42 took, with 2 processors, on another day: rate, median and 99th percentile in microseconds over one connection,
/// its processor time in microseconds and its system calls for one; rate over eight; by one process a call; by hand.
struct AnotherDay {
    rate: u32,
    median: u32,
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
    another_day: AnotherDay,
    call: fn(usize, usize, &Movable) -> Message,
    command: &'static str,
    by_hand: Option<ByHand>,
    calls: usize,
}

type ByHand = fn(&Path, usize, &Movable);

/// Whom a call moves: one process of each caller.
struct Movable(Vec<u32>);

fn call<B: serde::Serialize + zbus::DynamicType>(method: &str, body: &B) -> Message {
    Message::method_call(PATH, method).interface(INTERFACE).build(body).unwrap()
}

const fn took(rate: u32, [median, p99]: [u32; 2], processor: u32, calls: u32) -> AnotherDay {
    AnotherDay { rate, median, p99, processor, calls, eight: None, processes: None, by_hand: None }
}

/// In an order in which each finds what it needs.
fn operations() -> [Operation; 8] {
    let with = |of: AnotherDay, eight, processes, by_hand| AnotherDay { eight, processes, by_hand, ..of };
    [
        Operation {
            name: "Ping",
            another_day: with(took(39_535, [18, 98], 10, 8), Some(33_315), Some(435), None),
            call: |_, _, _| call("Ping", &0),
            command: "ping",
            by_hand: None,
            calls: CALLS,
        },
        Operation {
            name: "Create",
            another_day: with(took(3244, [250, 1298], 230, 100), Some(3334), Some(359), Some(20_005)),
            call: |of, nth, _| call("Create", &("memory", format!("x/c{of}-{nth}"))),
            command: "create memory x/p$i",
            by_hand: Some(|top, nth, _| fs::create_dir(top.join(format!("h{nth}"))).unwrap()),
            calls: CALLS,
        },
        Operation {
            name: "GetValue",
            another_day: with(took(11_857, [55, 360], 50, 32), Some(17_979), Some(392), Some(258_087)),
            call: |_, _, _| call("GetValue", &("memory", "x", LIMIT)),
            command: "getvalue memory x memory.limit_in_bytes",
            by_hand: Some(|top, _, _| drop(fs::read(top.join(limit(top))).unwrap())),
            calls: CALLS,
        },
        Operation {
            name: "SetValue",
            another_day: with(took(7312, [113, 737], 70, 33), Some(15_740), Some(375), Some(204_963)),
            call: |_, _, _| call("SetValue", &("memory", "x", LIMIT, "1073741824")),
            command: "setvalue memory x memory.limit_in_bytes 1073741824",
            by_hand: Some(|top, _, _| fs::write(top.join(limit(top)), "1073741824").unwrap()),
            calls: CALLS,
        },
        Operation {
            name: "MovePid",
            another_day: with(took(8516, [70, 566], 70, 42), Some(12_689), Some(389), Some(88_066)),
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
            another_day: with(took(9296, [53, 403], 50, 33), Some(17_849), None, None),
            call: |_, _, _| call("GetTasks", &("memory", "single")),
            command: "gettasks memory single",
            by_hand: None,
            calls: CALLS,
        },
        Operation {
            name: "ListChildren",
            another_day: took(971, [882, 3565], 800, 0),
            call: |_, _, _| call("ListChildren", &("memory", "many")),
            command: "listchildren memory many",
            by_hand: None,
            calls: CALLS / 5,
        },
        Operation {
            name: "Remove",
            another_day: with(took(3519, [181, 2536], 155, 0), Some(4976), Some(344), Some(21_734)),
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
    fn new(bench: &Bench, socket: &Path, jail: &Jail) -> Self {
        let (process, stream) = bench.user.connect(socket);
        jail.put(process.pid);
        let mut raw = Raw::new(stream);
        raw.authenticate(bench.user.uid);
        Self { raw, _process: process }
    }

    /// Makes the calls one after the other; how long each took.
    fn make(&mut self, messages: &[Message]) -> Vec<Duration> {
        messages.iter().map(|message| sample::time(|| self.ask(message)).0).collect()
    }

    /// Waits by poll(2), as the bus libraries do: who waits in recv(2) is woken once more, for nothing, when the other side
    /// takes what was sent.
    fn ask(&mut self, message: &Message) {
        assert!(self.raw.send(message.data().bytes()));
        poll(&mut [PollFd::new(&self.raw.0, PollFlags::IN)], None).unwrap();
        let answer = self.raw.message().expect("the broker closed the connection");
        assert_eq!(answer[1], 2, "refused: {}", String::from_utf8_lossy(&answer));
    }
}

/// Who is asked.
enum Server {
    Ours(Manager),
    Theirs(Original),
}

impl Server {
    fn socket(&self) -> &PathBuf {
        match self {
            Self::Ours(manager) => &manager.socket,
            Self::Theirs(original) => &original.socket,
        }
    }

    fn processes(&self) -> Vec<(u32, String)> {
        match self {
            Self::Ours(manager) => manager.broker.processes(),
            Self::Theirs(original) => original.processes(),
        }
    }
}

/// A shell of the user's that runs what it is told, line by line.
struct Shell {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// The command that asks.
    cgm: String,
}

impl Shell {
    /// In the cgroup, where the server's socket is where its command looks for it.
    fn new(bench: &Bench, server: &Server, jail: &Jail) -> Self {
        let mut shell = bench.user.command("sh");
        shell.args([
            "-c",
            "exec 2>&1; while read -r line; do eval \"$line\" && echo done || echo failed; done",
        ]);
        // Where an original that is not the system's has its libraries. Looking there takes either command as long.
        shell.envs(std::env::var_os("LD_LIBRARY_PATH").map(|places| ("LD_LIBRARY_PATH", places)));
        let (cgm, mut shell) = match server {
            Server::Ours(manager) => {
                shell.env("CGRANT_CGMANAGER_SOCKET", &manager.socket);
                (bench.lab.programs.join("cgm"), jail.command(&shell))
            }
            Server::Theirs(original) => (
                find("cgm").expect("CGManager's cgm is not installed"),
                jail.command(&original.in_sight(&shell)),
            ),
        };
        let mut process = shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(process.stdout.take().unwrap());
        Self { input: process.stdin.take(), output, cgm: cgm.to_str().unwrap().to_owned(), process }
    }

    /// How long it takes to run a line, which must succeed and say nothing.
    fn run(&mut self, line: &str) -> Duration {
        let (time, said) = sample::time(|| {
            writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
            let mut said = String::new();
            self.output.read_line(&mut said).unwrap();
            said
        });
        assert_eq!(said, "done\n", "{line}");
        time
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        self.input.take();
        let _ = self.process.wait();
    }
}

/// One that is asked, with callers of its own in a cgroup of their own.
struct Side {
    lines: Vec<Line>,
    shell: Shell,
    movable: Movable,
    _sleepers: Vec<Process>,
    jail: Jail,
    server: Server,
}

impl Side {
    fn new(bench: &Bench, server: Server, name: &str) -> Self {
        let jail = Jail::new(&bench.lab, "memory", name);
        jail.give_to(&bench.user);
        let mut lines: Vec<Line> = (0..TOGETHER).map(|_| Line::new(bench, server.socket(), &jail)).collect();
        let sleepers: Vec<Process> = (0..=TOGETHER).map(|_| bench.user.sleeper()).collect();
        for sleeper in &sleepers {
            jail.put(sleeper.pid);
        }
        let movable = Movable(sleepers.iter().map(|sleeper| sleeper.pid).collect());
        prepare(&mut lines[0], &movable);
        let shell = Shell::new(bench, &server, &jail);
        Self { lines, shell, movable, _sleepers: sleepers, jail, server }
    }

    /// The calls of an operation by a caller, laid out.
    fn messages(&self, operation: &Operation, of: usize, from: usize, count: usize) -> Vec<Message> {
        (from..from + count).map(|nth| (operation.call)(of, nth, &self.movable)).collect()
    }

    /// One turn.
    fn act(&mut self, operation: &Operation, round: usize, figures: &mut Figures) {
        let count = operation.calls / ROUNDS;
        let messages = self.messages(operation, 0, round * count, count);
        let before = size::activity(self.server.processes());
        let (elapsed, times) = sample::time(|| self.lines[0].make(&messages));
        figures.processor.push(processor_time(&before, &size::activity(self.server.processes())));
        figures.one.push(elapsed);
        figures.times.extend(times);
        let (first, count) = (operation.calls + COUNTED, together(operation));
        let all: Vec<Vec<Message>> =
            (0..TOGETHER).map(|of| self.messages(operation, of, first + round * count, count)).collect();
        figures.eight.push(make_together(&mut self.lines, &all));
        figures.processes.push(self.commands(operation.command, round));
    }

    /// The same by hand.
    fn act_by_hand(&self, operation: &Operation, round: usize, by_hand: ByHand) -> Duration {
        let (top, count) = (self.jail.dir.join("x"), operation.calls / ROUNDS);
        let numbers = round * count..(round + 1) * count;
        sample::time(|| numbers.for_each(|nth| by_hand(&top, nth, &self.movable))).0
    }

    /// How long it takes a shell in the cgroup to run the command as often as it is a turn's, each in a process of its own.
    fn commands(&mut self, verb: &str, round: usize) -> Duration {
        let (first, end) = (round * PROCESSES / ROUNDS, (round + 1) * PROCESSES / ROUNDS);
        let command =
            if verb == "true" { "/bin/true".to_owned() } else { format!("{} {verb}", self.shell.cgm) };
        let pid = self.movable.0[TOGETHER];
        self.shell.run(&format!(
            "p={pid}; i={first}; while [ $i -lt {end} ]; do {command} </dev/null >/dev/null || break; i=$((i+1)); done; [ $i -eq {end} ]"
        ))
    }
}

/// How long each turn took, and each call over one connection.
#[derive(Default)]
struct Figures {
    one: Vec<Duration>,
    times: Vec<Duration>,
    processor: Vec<Duration>,
    system_calls: Option<u64>,
    eight: Vec<Duration>,
    processes: Vec<Duration>,
}

impl Figures {
    /// As they are told: all but what is done by hand.
    fn cells(&self, operation: &Operation) -> [Option<u64>; 7] {
        let microseconds = |time: Duration| u64::try_from(time.as_micros()).unwrap();
        let calls = operation.calls / ROUNDS;
        let processor = sample::quantile(&self.processor, 0.5).map(microseconds);
        [
            rate(calls, &self.one),
            sample::quantile(&self.times, 0.5).map(microseconds),
            sample::quantile(&self.times, 0.99).map(microseconds),
            processor.map(|time| time / u64::try_from(calls).unwrap()),
            self.system_calls,
            rate(together(operation) * TOGETHER, &self.eight),
            rate(PROCESSES / ROUNDS, &self.processes),
        ]
    }
}

/// CGManager itself, with the memory controller only; else why not.
fn original(bench: &Bench) -> Result<Original, String> {
    if !is_installed("cgmanager") {
        return Err("cgmanager: not installed".to_owned());
    }
    Original::start(&bench.lab, "cgmanager", &["memory"])
}

/// The part `cgmanager`.
pub fn measure(bench: &Bench) {
    let mut sides = vec![Side::new(bench, Server::Ours(Manager::start(&bench.lab)), "bench")];
    match original(bench) {
        Ok(original) => {
            sides.push(Side::new(bench, Server::Theirs(original), "original"));
            println!("\nCGManager's operations (calls a second): the broker / CGManager, in turns");
        }
        Err(absent) => {
            println!("\nabsent: {absent}");
            println!("CGManager's operations (calls a second); in brackets: CGManager 0.42 on another day");
        }
    }
    let columns = [
        "one connection",
        "median, us",
        "p99, us",
        "processor, us",
        "system calls",
        "eight",
        "processes",
        "by hand",
    ];
    println!("{:14}{}", "", columns.map(|column| format!("|{column:^16}")).concat());
    for operation in operations() {
        row(&mut sides, &operation);
    }
    let plain: Vec<Duration> = (0..ROUNDS).map(|round| sides[0].commands("true", round)).collect();
    println!("processes that do nothing: {} a second", rate(PROCESSES / ROUNDS, &plain).unwrap());
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

fn row(sides: &mut [Side], operation: &Operation) {
    let mut figures: Vec<Figures> = sides.iter().map(|_| Figures::default()).collect();
    let mut by_hand = Vec::new();
    for round in 0..ROUNDS {
        let mut turns: Vec<_> = sides.iter_mut().zip(&mut figures).collect();
        // To and fro, as with all samples.
        if round % 2 == 1 {
            turns.reverse();
        }
        for (side, figures) in turns {
            side.act(operation, round, figures);
        }
        by_hand.extend(operation.by_hand.map(|act| sides[0].act_by_hand(operation, round, act)));
    }
    for (side, figures) in sides.iter_mut().zip(&mut figures) {
        let messages = side.messages(operation, 0, operation.calls, COUNTED);
        let (lines, server) = (&mut side.lines, &side.server);
        figures.system_calls = count_system_calls(server, || drop(lines[0].make(&messages)));
    }
    let by_hand = rate(operation.calls / ROUNDS, &by_hand);
    println!("{:14}{}", operation.name, cells(operation, &figures, by_hand).concat());
}

/// What is told of an operation, each beside the original's.
fn cells(operation: &Operation, figures: &[Figures], by_hand: Option<u64>) -> Vec<String> {
    let text = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    let told: Vec<_> = figures.iter().map(|figures| figures.cells(operation)).collect();
    let of = &operation.another_day;
    let calls = (of.calls > 0).then_some(of.calls);
    let before =
        [Some(of.rate), Some(of.median), Some(of.p99), Some(of.processor), calls, of.eight, of.processes];
    let cell = |nth: usize| match &told[..] {
        [ours, theirs] => format!("{} / {}", text(ours[nth]), text(theirs[nth])),
        _ => format!("{} [{}]", text(told[0][nth]), text(before[nth].map(u64::from))),
    };
    let by_hand = match (by_hand, told.len()) {
        (Some(rate), 1) => format!("{rate} [{}]", text(of.by_hand.map(u64::from))),
        (rate, _) => text(rate),
    };
    (0..before.len()).map(cell).chain([by_hand]).map(|cell| format!("|{cell:>16}")).collect()
}

/// The calls of each of the eight in a turn.
const fn together(operation: &Operation) -> usize {
    operation.calls / TOGETHER / ROUNDS
}

/// So many in the median turn: how many a second.
fn rate(count: usize, turns: &[Duration]) -> Option<u64> {
    let nanoseconds = u64::try_from(sample::quantile(turns, 0.5)?.as_nanos()).unwrap().max(1);
    Some(u64::try_from(count).unwrap() * 1_000_000_000 / nanoseconds)
}

fn processor_time(before: &[size::Activity], after: &[size::Activity]) -> Duration {
    let used = after.iter().filter_map(|after| {
        let before = before.iter().find(|before| before.pid == after.pid)?;
        Some(after.nanoseconds.saturating_sub(before.nanoseconds))
    });
    Duration::from_nanos(used.sum())
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

/// How many system calls one call costs the processes that serve it, as strace sees them; `None` without it.
fn count_system_calls(server: &Server, calls: impl FnOnce()) -> Option<u64> {
    let counts = server.socket().with_file_name("strace");
    let mut strace = Command::new("strace");
    strace.args(["-f", "-c", "-o"]).arg(&counts);
    let pids: Vec<u32> = server.processes().into_iter().map(|(pid, _)| pid).collect();
    for pid in &pids {
        strace.args(["-p", &pid.to_string()]);
    }
    let mut strace = strace.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().ok()?;
    let is_traced = |pid: &u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.strip_prefix("TracerPid:").is_some_and(|pid| pid.trim() != "0"))
    };
    wait_until("they are traced", || pids.iter().all(is_traced));
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
