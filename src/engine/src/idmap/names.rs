//! The helper that asks the name service: NSS modules are other people's code (LDAP, sssd, …), may take their time, and
//! are loaded by `getent` only, in a process without any right.
//!
//! The helper keeps `SETUID` and `SETGID`. For each request it makes a child, which becomes nobody in particular with them
//! (and may so end what it started, which has the same uid), and runs getent(1) on a sample of the ids: who has ids from LDAP and the like has many of them in a row, and asking for every
//! one of 65536 would take minutes. The ids come from the record, never from a caller.

use std::{
    fs::File,
    io::{self, Read},
    os::fd::{AsRawFd, OwnedFd},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use cgrant_policy::{BLOCK, IdSpan};
use cgrant_sys::{Child, Clone3, Pidfd, Received, privilege, seqpacket::Channel};
use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
};

use super::{
    helper::{Spare, seclude},
    message::{NamesAnswer, NamesRequest, answer, wait},
};

/// The program. Not looked up in any path.
const GETENT: &str = "/usr/bin/getent";
/// How long getent may take for users, and then for groups.
const LIMIT: Duration = Duration::from_secs(4);
/// Longest output that is read, in bytes.
const MAX_OUTPUT: u64 = 64 * 1024;
/// Where in each block ids are asked about: beginning and end, where ids given out in order begin, and between.
const SAMPLE: [u32; 16] =
    [0, 1, 2, 500, 512, 513, 1000, 1001, 1103, 1104, 10_000, 20_000, 32_768, 50_000, 65_534, 65_535];
/// Most blocks of one request that are asked about, from the first.
const MAX_BLOCKS: usize = 16;

/// Starts the helper.
///
/// # Errors
/// As [`Clone3::spawn`].
pub fn start(channel: &Channel, spare: Spare) -> io::Result<Child> {
    Clone3::new().spawn(|| serve(channel, spare))
}

fn serve(channel: &Channel, spare: Spare) -> i32 {
    use privilege::Capability as C;
    if seclude(channel, &[C::CAP_SETUID, C::CAP_SETGID]).is_err() {
        return 1;
    }
    let mut children: Vec<Pidfd> = Vec::new();
    loop {
        let Ok(has_request) = wait_for_news(channel, &children) else { return 1 };
        children.retain(|child| child.try_wait().is_ok_and(|exit| exit.is_none()));
        if !has_request {
            continue;
        }
        match channel.receive() {
            Ok(Some(received)) => children.extend(begin(received, spare)),
            Ok(None) => return 0,
            Err(_) => (),
        }
    }
}

/// Waits for a request or the end of a child, which is reaped at once; says whether there is a request.
fn wait_for_news(channel: &Channel, children: &[Pidfd]) -> Result<bool, Errno> {
    let mut fds = vec![PollFd::new(channel, PollFlags::IN)];
    fds.extend(children.iter().map(|child| PollFd::new(child, PollFlags::IN)));
    match poll(&mut fds, None) {
        Ok(_) | Err(Errno::INTR) => Ok(fds.first().is_some_and(|channel| !channel.revents().is_empty())),
        Err(errno) => Err(errno),
    }
}

/// Makes a child for a request, so that a slow answer to one holds up no other.
fn begin(received: Received, spare: Spare) -> Option<Pidfd> {
    let pipe = received.fds.into_iter().next()?;
    let request: NamesRequest = cgrant_wire::decode(&received.bytes).ok()?;
    let child = Clone3::new().spawn(|| {
        if privilege::close_fds_from(3, &[pipe.as_raw_fd()]).is_err() {
            return 1;
        }
        let known = give_up_rights(spare).and_then(|()| knows(request.span));
        answer(&pipe, &known.map_err(|error| error.to_string()));
        0
    });
    match child {
        Ok(child) => Some(child.pidfd),
        Err(error) => {
            answer(&pipe, &NamesAnswer::Err(error.to_string()));
            None
        }
    }
}

/// A uid that only children of this helper have. What getent loads has it as well, and is kept out of this process by its
/// not being dumpable, which changing the uid may have undone (`fs.suid_dumpable`).
fn give_up_rights(spare: Spare) -> io::Result<()> {
    privilege::become_account(spare.0, spare.0)?;
    privilege::set_dumpable(false)
}

fn knows(span: IdSpan) -> io::Result<bool> {
    let blocks = (span.first()..=span.last()).step_by(BLOCK as usize).take(MAX_BLOCKS);
    let ids = blocks.flat_map(|block| SAMPLE.iter().filter_map(move |offset| block.checked_add(*offset)));
    let ids: Vec<u32> = ids.filter(|id| span.contains(*id)).collect();
    Ok(any_in("passwd", &ids, span)? || any_in("group", &ids, span)?)
}

/// Does the database have an entry whose id is in the span?
fn any_in(database: &str, ids: &[u32], span: IdSpan) -> io::Result<bool> {
    let mut command = Command::new(GETENT);
    command.arg(database).args(ids.iter().map(u32::to_string));
    command.env_clear().current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut getent = match command.spawn() {
        Ok(getent) => getent,
        // A host without getent has no name service to speak of (musl, busybox).
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    let deadline = Instant::now() + LIMIT;
    let text = read_until(&mut getent, deadline);
    if text.is_err() {
        getent.kill()?;
    }
    let status = getent.wait()?;
    // 2: some of the ids are nobody's (getent(1)).
    match (text?, status.code()) {
        (text, Some(0 | 2)) => Ok(has_id(&text, span)),
        (_, _) => Err(io::Error::other(format!("{GETENT} {database}: {status}"))),
    }
}

/// All that the program writes, once it has ended.
fn read_until(getent: &mut std::process::Child, deadline: Instant) -> io::Result<String> {
    let process = Pidfd::open(getent.id())?;
    let Some(output) = getent.stdout.take() else { return Ok(String::new()) };
    let mut output = File::from(OwnedFd::from(output)).take(MAX_OUTPUT);
    let mut bytes = Vec::new();
    let left = || deadline.saturating_duration_since(Instant::now());
    loop {
        if !wait(output.get_ref(), PollFlags::IN, left())? {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut piece = [0; 4096];
        match output.read(&mut piece)? {
            0 => break,
            length => bytes.extend_from_slice(piece.get(..length).unwrap_or_default()),
        }
    }
    if !wait(&process, PollFlags::IN, left())? {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Third field of passwd(5) and group(5), and for users the group in the fourth.
fn has_id(text: &str, span: IdSpan) -> bool {
    let fields = text.lines().flat_map(|line| line.split(':').skip(2).take(2));
    fields.filter_map(|field| field.parse().ok()).any(|id| span.contains(id))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_found_in_what_getent_prints() {
        let span = IdSpan::new(100, 10).unwrap();
        assert!(has_id("a:x:105:7::/:\n", span));
        assert!(has_id("b:x:7:109::/:\n", span));
        assert!(has_id("r:x:0:0::/:\ng:x:100:\n", span));
        assert!(!has_id("r:x:0:0:105:/:\ng:x:110:a,b\n", span));
        assert!(!has_id("", span));
    }
}
