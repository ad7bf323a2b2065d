//! What the broker takes while it does nothing: memory, and processor time that it should not take at all.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{
    Bench,
    caller::Caller,
    common::{
        Broker, Lab, Options,
        containers::{Shell, busybox, debian},
    },
};

/// How many grants there are in the second measurement.
const GRANTS: usize = 1000;
/// The release of Debian whose monitor is measured.
const DEBIAN: &str = "bookworm";
/// How long the idle broker is watched.
const WATCHED: Duration = Duration::from_secs(10);

/// The account of the bus front, which a bus daemon lets in only if `/etc/passwd` knows it. Debian always has this one.
pub const BUS_FRONT: &str = "backup";

/// A bus of the benchmark's own.
struct Bus {
    daemon: Child,
    address: String,
}

impl Bus {
    /// Starts one, if the bus daemon is installed.
    fn start(lab: &Lab) -> Option<Self> {
        let (socket, config) = (lab.scratch.join("bus"), lab.scratch.join("bus.conf"));
        let rules = ["user", "own", "send_destination", "receive_sender"]
            .map(|what| format!("<allow {what}=\"*\"/>"));
        let text = format!(
            "<busconfig><type>bench</type><listen>unix:path={}</listen><auth>EXTERNAL</auth>\
             <policy context=\"default\">{}</policy></busconfig>",
            socket.display(),
            rules.concat()
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new("dbus-daemon");
        command.arg("--config-file").arg(&config).args(["--nofork", "--nopidfile", "--print-address=1"]);
        let mut daemon =
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
        let mut line = String::new();
        BufReader::new(daemon.stdout.take().unwrap()).read_line(&mut line).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
        Some(Self { daemon, address: format!("unix:path={}", socket.display()) })
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// All that a broker is made of: with both fronts, if there is a bus for one.
fn whole_broker(bench: &Bench) -> (Option<Bus>, Broker) {
    let bus = Bus::start(&bench.lab);
    let setup = bench.lab.setup();
    let broker = match &bus {
        Some(bus) => setup.bus(&bus.address).start(),
        None => setup.start(),
    };
    // Until everything is settled after the start.
    std::thread::sleep(Duration::from_secs(1));
    (bus, broker)
}

/// The part `size`.
pub fn measure_memory(bench: &Bench) {
    measure_monitors(bench);
    let (bus, broker) = whole_broker(bench);
    if bus.is_none() {
        println!("\nabsent: dbus-daemon, and with it the bus front");
    }
    println!("\nMemory of the broker's processes (kB)");
    println!("{:52}|{:>10} {:>10}", "", "RSS", "PSS");
    let idle = print_memory(&broker, "idle");
    let caller = Caller::new(&bench.user, broker.socket());
    let grants: Vec<String> = (0..GRANTS).map(|_| caller.create(Options::new()).1).collect();
    let full = print_memory(&broker, &format!("with {GRANTS} grants"));
    let each = full.1.saturating_sub(idle.1) / GRANTS as u64;
    println!(
        "a grant takes about {each} kB of the broker's own; what the kernel takes for its cgroups is not counted"
    );
    for grant in grants {
        caller.release(&grant);
    }
    print_memory(&broker, &format!("after {GRANTS} grants"));
}

// What each running container costs beside what runs in it: of a small system, and of a Debian, which says and asks more.
fn measure_monitors(bench: &Bench) {
    println!("\nMemory of a container's monitor (kB); it is to have 3072 at most");
    println!("{:52}|{:>10} {:>10} {:>10}", "", "RSS", "PSS", "its own");
    let broker = bench.lab.broker();
    let shell = Shell::new(&bench.lab, &bench.user, &broker);
    shell.import(&bench.lab, &busybox(&bench.lab), "box");
    shell.import(&bench.lab, &debian(DEBIAN), "debian");
    for image in ["box", "debian"] {
        measure_monitor(&shell, image);
    }
}

fn measure_monitor(shell: &Shell, image: &str) {
    shell.done(&["launch", image, "one"]);
    let monitor = shell.json(&["info", "one"])["monitor"].as_u64().unwrap();
    let print = |when: &str| {
        let [rss, pss, own] = memory(monitor, ["Rss:", "Pss:", "Anonymous:"]);
        println!("{:52}|{rss:>10} {pss:>10} {own:>10}", format!("{image}: {when}"));
    };
    print("just launched");
    if image == "debian" {
        shell.done(&["wait", "one"]);
        print("systemd is up");
    }
    // It is at rest after a second without anything to do.
    let rest = || std::thread::sleep(Duration::from_secs(2));
    rest();
    print("at rest after the launch");
    for _ in 0..20 {
        shell.done(&["exec", "one", "--", "true"]);
    }
    print("just after 20 commands");
    rest();
    print("at rest after them");
    shell.done(&["delete", "--force", "one"]);
}

fn memory<const N: usize>(pid: u64, keys: [&str; N]) -> [u64; N] {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    keys.map(|key| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    })
}

fn print_memory(broker: &Broker, when: &str) -> (u64, u64) {
    let mut sum = (0, 0);
    for (pid, name) in broker.processes() {
        let [rss, pss] = memory(pid.into(), ["Rss:", "Pss:"]);
        println!("{:52}|{rss:>10} {pss:>10}", format!("{when}: {name}"));
        sum = (sum.0 + rss, sum.1 + pss);
    }
    println!("{:52}|{:>10} {:>10}", format!("{when}: together"), sum.0, sum.1);
    sum
}

/// The part `wakeups`.
pub fn measure_wakeups(bench: &Bench) {
    let (_bus, broker) = whole_broker(bench);
    let caller = Caller::new(&bench.user, broker.socket());
    let (_, grant) = caller.create(Options::new());
    // Threads that were started for the call end first.
    std::thread::sleep(Duration::from_secs(6));
    let before = activity(broker.processes());
    std::thread::sleep(WATCHED);
    let after = activity(broker.processes());
    println!("\nAn idle broker with one client and one grant, watched for {} s", WATCHED.as_secs());
    println!("{:52}|{:>10} {:>14}", "", "wake-ups", "processor, us");
    for (before, after) in before.iter().zip(&after) {
        let time = (after.nanoseconds - before.nanoseconds) / 1000;
        println!("{:52}|{:>10} {time:>14}", after.name, after.switches - before.switches);
    }
    caller.release(&grant);
}

/// What a process has done so far.
pub struct Activity {
    pub pid: u32,
    pub name: String,
    /// How often its threads were put on a processor.
    pub switches: u64,
    /// On a processor.
    pub nanoseconds: u64,
}

/// The third and first number of schedstat: turns on a processor, and time there. No system call goes without a turn.
pub fn activity(processes: Vec<(u32, String)>) -> Vec<Activity> {
    let of = |(pid, name): (u32, String)| {
        let mut activity = Activity { pid, name, switches: 0, nanoseconds: 0 };
        for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let text = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
            let numbers: Vec<u64> = text.split_whitespace().filter_map(|word| word.parse().ok()).collect();
            if let [time, _, turns] = numbers[..] {
                activity.nanoseconds += time;
                activity.switches += turns;
            }
        }
        activity
    };
    processes.into_iter().map(of).collect()
}
