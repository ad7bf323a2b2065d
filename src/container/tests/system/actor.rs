//! What this program does inside a container.

use std::{
    io::{IoSlice, Write},
    mem::MaybeUninit,
    net::{TcpListener, TcpStream},
    os::fd::{AsFd, OwnedFd},
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
    time::Duration,
};

use nix::sys::signal::{SigSet, Signal};
use rustix::{
    io::Errno,
    net::{
        AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketType,
        connect, sendmsg, sendto, socket, sockopt::set_socket_linger,
    },
};

/// SIGRTMIN+3, which systemd takes as the order to halt.
const HALT: i32 = 37;
/// Longer than a monitor waits for an init that has never listened.
const DEAF: Duration = Duration::from_secs(6);

/// `again` and `listen-late`, what systemd does for SIGTERM; `linger`, an attack; `notify TEXT`; `init TEXT`, which then waits for SIGRTMIN+3, as systemd does.
pub fn act(words: &[&str]) -> ExitCode {
    match words {
        ["notify", text] => notify(text),
        ["init", text] => {
            notify(text);
            wait_for_halt();
        }
        ["again"] => execute_again(),
        ["listen-late"] => {
            std::thread::sleep(DEAF);
            wait_for_halt();
        }
        ["linger"] => linger(),
        other => panic!("{other:?}"),
    }
    ExitCode::SUCCESS
}

/// Sends the monitor connections with data that nobody takes, and closes them here: the last who closes such a one waits for
/// an hour. Several times, because that may be this program.
fn linger() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    for _ in 0..8 {
        let sender = TcpStream::connect(address).unwrap();
        // Whoever takes it stays, and takes nothing.
        std::mem::forget(listener.accept().unwrap());
        std::thread::spawn(|| send_lingering(sender));
    }
    std::thread::sleep(Duration::from_millis(500));
    println!("done");
    // As long as it lives, so do the connections.
    wait_for_halt();
}

fn send_lingering(mut sender: TcpStream) {
    let notify: OwnedFd = socket(AddressFamily::UNIX, SocketType::DGRAM, None).unwrap();
    connect(&notify, &SocketAddrUnix::new("/run/host/notify").unwrap()).unwrap();
    sender.set_nonblocking(true).unwrap();
    while sender.write(&[0; 65536]).is_ok() {}
    set_socket_linger(&sender, Some(Duration::from_secs(3600))).unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [sender.as_fd()];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    let sent = sendmsg(&notify, &[IoSlice::new(b"STATUS=linger")], &mut control, SendFlags::empty());
    drop(sender);
    // From Linux 6.16 on who receives can say that nothing of that kind is to be sent.
    assert!(matches!(sent, Ok(_) | Err(Errno::PERM)), "{sent:?}");
}

fn notify(text: &str) {
    let socket: OwnedFd = socket(AddressFamily::UNIX, SocketType::DGRAM, None).unwrap();
    let address = SocketAddrUnix::new(std::env::var("NOTIFY_SOCKET").unwrap()).unwrap();
    sendto(&socket, text.as_bytes(), SendFlags::empty(), &address).unwrap();
}

/// Executes itself again for SIGTERM, and by that throws away that it was told to halt meanwhile.
fn execute_again() {
    SigSet::all().thread_block().unwrap();
    println!("up");
    wait_for(Signal::SIGTERM as i32);
    println!("again");
    wait_for(HALT);
    // The first process of a pid namespace gets nothing that it has no handler for.
    SigSet::all().thread_unblock().unwrap();
    let error = Command::new("/proc/self/exe").args(["--actor", "listen-late"]).exec();
    panic!("{error}");
}

fn wait_for_halt() {
    SigSet::all().thread_block().unwrap();
    wait_for(HALT);
    println!("told to halt");
}

/// No library has a name for SIGRTMIN+3: what is blocked is looked for in /proc.
fn wait_for(signal: i32) {
    let bit = 1_u64 << (signal - 1);
    let pending = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let mask = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            u64::from_str_radix(line.trim(), 16).unwrap()
        };
        (mask("SigPnd:") | mask("ShdPnd:")) & bit != 0
    };
    while !pending() {
        std::thread::sleep(Duration::from_millis(20));
    }
}
