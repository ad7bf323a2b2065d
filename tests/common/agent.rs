//! The test program as an unprivileged process: what a user of the broker does, one role a process.
//!
//! Standard input is a UNIX socket to the test. An agent does its role, reports over the socket (a line,
//! with descriptors where the role gives some), and stays until the socket is closed.

use std::{
    ffi::OsString,
    fs,
    io::{IoSlice, IoSliceMut, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{net::UnixStream, process::CommandExt},
    },
    process::{Command, ExitCode},
};

use cgrant_sys::deny;
use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};
use rustix::{
    io::Errno,
    net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
        SendFlags,
    },
};

use super::{node, place, polkit};

/// Becomes the user that the arguments after `--agent` name, and executes a program or plays a role.
///
/// GID may be `GID+EFFECTIVE`, as that of who executes a set-group-ID program.
///
/// `refused CALL ERRNO PROGRAM ARGUMENT…`, for which the kernel answers so to this call; `as UID GID GROUP,GROUP exec PROGRAM ARGUMENT…` or `as UID GID GROUP,GROUP role ROLE ARGUMENT…`
pub fn main(arguments: &[OsString]) -> ExitCode {
    let text = |at: usize| arguments[at].to_str().unwrap();
    if text(0) == "refused" {
        let (call, errno) = (text(1).parse().unwrap(), Errno::from_raw_os_error(text(2).parse().unwrap()));
        deny::deny(&[deny::Denied { native: Some(call), i386: None, errno }]).unwrap();
        let error = Command::new(&arguments[3]).args(&arguments[4..]).exec();
        eprintln!("{}: {error}", arguments[3].display());
        return ExitCode::from(127);
    }
    let (gid, effective) = text(2).split_once('+').unwrap_or((text(2), text(2)));
    let (uid, gid) = (text(1).parse().unwrap(), gid.parse().unwrap());
    let groups: Vec<Gid> =
        text(3).split(',').filter(|g| !g.is_empty()).map(|g| Gid::from_raw(g.parse().unwrap())).collect();
    // A new uid takes every capability with it.
    setgroups(&groups).unwrap();
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let effective = Gid::from_raw(effective.parse().unwrap());
    setresgid(gid, effective, effective).unwrap();
    setresuid(uid, uid, uid).unwrap();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    if text(4) == "exec" {
        let error = Command::new(&arguments[5]).args(&arguments[6..]).exec();
        eprintln!("{}: {error}", arguments[5].display());
        return ExitCode::from(127);
    }
    // As after an exec: its files in /proc are its own.
    nix::sys::prctl::set_dumpable(true).unwrap();
    play(&arguments[5..])
}

// A role, as whoever this process is.
fn play(arguments: &[OsString]) -> ExitCode {
    let words: Vec<&str> = arguments.iter().map(|a| a.to_str().unwrap()).collect();
    let socket = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    match words.as_slice() {
        // A connection to a socket, made by this process.
        ["connect", path] => match UnixStream::connect(path) {
            Ok(stream) => tell(&socket, "ok", &[stream.as_fd()]),
            Err(error) => tell(&socket, &format!("error {error}"), &[]),
        },
        // The same for each `go`, so that the test can move this process first.
        ["connect-when-told", path] => {
            tell(&socket, "ok", &[]);
            let mut word = [0; 2];
            while (&socket).read_exact(&mut word).is_ok() {
                match UnixStream::connect(path) {
                    Ok(stream) => tell(&socket, "ok", &[stream.as_fd()]),
                    Err(error) => tell(&socket, &format!("error {error}"), &[]),
                }
            }
            return ExitCode::SUCCESS;
        }
        // As somebody's set-user-ID program that another one has started: the first is the real uid, the second the effective one.
        ["connect-as", real, effective, path] => {
            let [real, effective] = [real, effective].map(|uid| Uid::from_raw(uid.parse().unwrap()));
            setresgid(7.into(), 7.into(), 7.into()).unwrap();
            setresuid(real, effective, effective).unwrap();
            return play(&["connect-when-told".into(), path.into()]);
        }
        // As root of a user namespace of its own making, with the one id that it has: makes it, then as before.
        ["connect-from-inner-userns", path] => {
            let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
            unshare(CloneFlags::CLONE_NEWUSER).unwrap();
            fs::write("/proc/self/uid_map", format!("0 {uid} 1")).unwrap();
            fs::write("/proc/self/setgroups", "deny").unwrap();
            fs::write("/proc/self/gid_map", format!("0 {gid} 1")).unwrap();
            return play(&["connect-when-told".into(), path.into()]);
        }
        // So many connections to a socket, one after the other, of which as many stay open as can be.
        ["flood", path, number] => {
            flood(path, number.parse().unwrap(), &socket);
        }
        // A user namespace of this process's own, not mapped.
        ["userns"] => {
            unshare(CloneFlags::CLONE_NEWUSER).unwrap();
            let namespace = fs::File::open("/proc/self/ns/user").unwrap();
            tell(&socket, "ok", &[namespace.as_fd()]);
        }
        // A user namespace inside another one: its parent is not the host's.
        ["inner-userns"] => {
            let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
            unshare(CloneFlags::CLONE_NEWUSER).unwrap();
            // Only who is mapped may make another one.
            fs::write("/proc/self/setgroups", "deny").unwrap();
            fs::write("/proc/self/uid_map", format!("0 {uid} 1")).unwrap();
            fs::write("/proc/self/gid_map", format!("0 {gid} 1")).unwrap();
            let outer = fs::File::open("/proc/self/ns/user").unwrap();
            unshare(CloneFlags::CLONE_NEWUSER).unwrap();
            let inner = fs::File::open("/proc/self/ns/user").unwrap();
            tell(&socket, "ok", &[outer.as_fd(), inner.as_fd()]);
        }
        // On the word `go`: takes so much memory, in megabytes, and keeps it.
        // Tries to enter namespaces whose descriptors it is given.
        ["enter"] => {
            tell(&socket, "ok", &[]);
            let (_, fds) = hear(&socket).unwrap();
            let enter = |fd: &OwnedFd| match nix::sched::setns(fd, CloneFlags::empty()) {
                Ok(()) => "ok".to_owned(),
                Err(error) => format!("{error:?}"),
            };
            tell(&socket, &fds.iter().map(enter).collect::<Vec<_>>().join(" "), &[]);
        }
        ["eat", megabytes] => {
            tell(&socket, "ok", &[]);
            await_go(&socket);
            let block = vec![1_u8; megabytes.parse::<usize>().unwrap() << 20];
            tell(&socket, &format!("ate {}", block.iter().step_by(4096).filter(|b| **b == 1).count()), &[]);
            wait_for_end(&socket);
            drop(block);
        }
        // On the word `go`: starts children until it can't or has so many; says how many it has.
        ["fork", number] => {
            tell(&socket, "ok", &[]);
            await_go(&socket);
            let mut children = Vec::new();
            for _ in 0..number.parse::<usize>().unwrap() {
                match Command::new("sleep").arg("1000").spawn() {
                    Ok(child) => children.push(child),
                    Err(_) => break,
                }
            }
            tell(&socket, &format!("forked {}", children.len()), &[]);
            wait_for_end(&socket);
            for mut child in children {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
        // A tree that forks as fast as it can: each process starts two more and waits for them. Bounded by its time and
        // by the number of this uid's processes, so that the machine stays usable.
        ["bomb", milliseconds, processes] => {
            let most = Some(processes.parse().unwrap());
            let limit = rustix::process::Rlimit { current: most, maximum: most };
            rustix::process::setrlimit(rustix::process::Resource::Nproc, limit).unwrap();
            tell(&socket, "ok", &[]);
            let deadline = now() + milliseconds.parse::<u128>().unwrap();
            bomb(deadline);
            tell(&socket, "over", &[]);
        }
        // Tries to open files for writing, relative to a directory that it is given.
        ["through-fd"] => {
            tell(&socket, "ok", &[]);
            let (names, fds) = hear(&socket).unwrap();
            let answers: Vec<String> = names.split(' ').map(|name| open_at(&fds[0], name)).collect();
            tell(&socket, &answers.join(" "), &[]);
        }
        // A network namespace, and what is asked for in it.
        ["node", kind] => return node::play(kind, socket),
        // User and mount namespaces, and what is asked for in a directory there.
        ["place", directory] => return place::play(directory, &socket),
        ["polkit-agent", address, pid, says] => return polkit::play([*address, *pid, *says], socket),
        // Does to a file of the host what the test says, and answers with the kernel's words.
        ["files"] => {
            tell(&socket, "ok", &[]);
            serve_files(&socket);
            return ExitCode::SUCCESS;
        }
        _ => return ExitCode::from(2),
    }
    wait_for_end(&socket);
    ExitCode::SUCCESS
}

fn open_at(directory: &OwnedFd, name: &str) -> String {
    let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC;
    match rustix::fs::openat(directory, name, flags, rustix::fs::Mode::empty()) {
        Ok(_) => "ok".into(),
        Err(error) => errno_name(error.raw_os_error()),
    }
}

/// Connects as often as is said, and authenticates, so that what is let in stays however long it takes; what is open stays so until
/// the test has heard of it and closes its socket.
fn flood(path: &str, number: usize, socket: &UnixStream) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let mut open = std::collections::VecDeque::new();
    tell(socket, "ok", &[]);
    for nth in 1..=number {
        // Emulated machines are slow: the test hears that it goes on.
        if nth % 500 == 0 {
            tell(socket, "more", &[]);
        }
        match UnixStream::connect(path) {
            Ok(mut stream) => {
                // Whoever is not let in is told by the end of the connection.
                let _ = stream.write_all(b"\0AUTH ANONYMOUS\r\nBEGIN\r\n");
                open.push_back(stream);
            }
            // No descriptor is left: the oldest is given up.
            Err(_) => drop(open.pop_front()),
        }
    }
    tell(socket, "flooded", &[]);
    wait_for_end(socket);
}

fn errno_name(number: i32) -> String {
    format!("{:?}", nix::errno::Errno::from_raw(number))
}

fn now() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis()
}

// Two children, each of which goes on; waits for neither until both are there. Failing to fork is no reason to stop.
fn bomb(deadline: u128) {
    let me = std::env::current_exe().unwrap();
    while now() < deadline {
        let child = |_| Command::new(&me).args(["--bomb", &deadline.to_string()]).spawn().ok();
        let children: Vec<_> = (0..2).filter_map(child).collect();
        if children.is_empty() {
            std::thread::yield_now();
        }
        for mut child in children {
            let _ = child.wait();
        }
    }
}

fn await_go(socket: &UnixStream) {
    let mut word = [0; 2];
    let mut socket = socket;
    socket.read_exact(&mut word).unwrap();
}

fn wait_for_end(socket: &UnixStream) {
    let mut socket = socket;
    let mut rest = [0; 64];
    while socket.read(&mut rest).is_ok_and(|n| n > 0) {}
}

// Commands, one a datagram-like line: VERB PATH [ARGUMENT]; the answer is `ok TEXT` or the error's name.
fn serve_files(socket: &UnixStream) {
    loop {
        let mut buffer = vec![0; 8192];
        let mut reader = socket;
        let Ok(length) = reader.read(&mut buffer) else { return };
        if length == 0 {
            return;
        }
        let line = String::from_utf8(buffer[..length].to_vec()).unwrap();
        let mut parts = line.splitn(3, '\t');
        let (verb, path, argument) =
            (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap_or(""));
        let result: std::io::Result<String> = match verb {
            "read" => fs::read_to_string(path),
            "write" => fs::OpenOptions::new()
                .write(true)
                .open(path)
                .and_then(|mut file| file.write_all(argument.as_bytes()))
                .map(|()| String::new()),
            "mkdir" => fs::create_dir(path).map(|()| String::new()),
            "rmdir" => fs::remove_dir(path).map(|()| String::new()),
            "rename" => fs::rename(path, argument).map(|()| String::new()),
            "chmod" => fs::set_permissions(
                path,
                std::os::unix::fs::PermissionsExt::from_mode(u32::from_str_radix(argument, 8).unwrap()),
            )
            .map(|()| String::new()),
            "unshare" => {
                let flags = path.split(',').fold(CloneFlags::empty(), |flags, name| {
                    flags
                        | match name {
                            "user" => CloneFlags::CLONE_NEWUSER,
                            "mount" => CloneFlags::CLONE_NEWNS,
                            "cgroup" => CloneFlags::CLONE_NEWCGROUP,
                            _ => CloneFlags::empty(),
                        }
                });
                unshare(flags).map(|()| String::new()).map_err(Into::into)
            }
            "mount" => nix::mount::mount(
                Some("cgroup"),
                path,
                Some(argument),
                nix::mount::MsFlags::empty(),
                None::<&str>,
            )
            .map(|()| String::new())
            .map_err(Into::into),
            _ => Err(std::io::ErrorKind::InvalidInput.into()),
        };
        let answer = match result {
            Ok(text) => format!("ok {text}"),
            Err(error) => match error.raw_os_error() {
                Some(number) => errno_name(number),
                None => format!("{error}"),
            },
        };
        tell(socket, &answer, &[]);
    }
}

/// Sends a line with descriptors.
pub fn tell(socket: &UnixStream, line: &str, fds: &[BorrowedFd<'_>]) {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(fds)));
    }
    let text = format!("{line}\n");
    rustix::net::sendmsg(socket, &[IoSlice::new(text.as_bytes())], &mut ancillary, SendFlags::NOSIGNAL)
        .unwrap();
}

/// Receives a line with its descriptors; `None` at the end.
pub fn hear(socket: &UnixStream) -> Option<(String, Vec<OwnedFd>)> {
    let mut text = vec![0; 65536];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut text)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )
    .ok()?;
    if received.bytes == 0 {
        return None;
    }
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    text.truncate(received.bytes);
    Some((String::from_utf8(text).unwrap().trim_end_matches('\n').to_owned(), fds))
}

/// Is this process to be an agent? Then what becomes of it.
pub fn requested() -> Option<ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.first().and_then(|word| word.to_str()) {
        Some("--agent") => Some(main(&arguments[1..])),
        Some("--role") => Some(play(&arguments[1..])),
        Some("--bomb") => {
            let deadline: u128 = arguments[1].to_str().unwrap().parse().unwrap();
            if now() < deadline {
                bomb(deadline);
            }
            Some(ExitCode::SUCCESS)
        }
        _ => None,
    }
}
