//! What this program does inside a container.

use std::{os::fd::OwnedFd, process::ExitCode};

use nix::sys::signal::SigSet;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketType, sendto, socket};

/// `notify TEXT`; `init TEXT`, which then waits for SIGRTMIN+3, as systemd does.
pub fn act(words: &[&str]) -> ExitCode {
    match words {
        ["notify", text] => notify(text),
        ["init", text] => {
            notify(text);
            wait_for_halt();
        }
        other => panic!("{other:?}"),
    }
    ExitCode::SUCCESS
}

fn notify(text: &str) {
    let socket: OwnedFd = socket(AddressFamily::UNIX, SocketType::DGRAM, None).unwrap();
    let address = SocketAddrUnix::new(std::env::var("NOTIFY_SOCKET").unwrap()).unwrap();
    sendto(&socket, text.as_bytes(), SendFlags::empty(), &address).unwrap();
}

/// No library has a name for the signal: it is blocked with all the others, and looked for in /proc.
fn wait_for_halt() {
    const HALT: u64 = 1 << (37 - 1);
    SigSet::all().thread_block().unwrap();
    let pending = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let mask = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        (mask("SigPnd:") | mask("ShdPnd:")) & HALT != 0
    };
    while !pending() {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    println!("told to halt");
}
