//! Runs `nft`: one transaction a run, by absolute path, without environment, with an end.
//!
//! The input is a sealed memory file, so neither side ever waits for the other while it is written.

use std::{
    io::{self, Read},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
    process::{Child, Command as Process, Stdio},
    time::{Duration, Instant},
};

use cgrant_sys::memfd;
use cgrant_wire::patience;
use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{SeekFrom, seek},
    io::Errno,
    net::{AddressFamily, SocketFlags, SocketType, netdevice::name_to_index, socket_with},
};

use super::{
    error::FirewallError,
    schema::{Command, Document},
};

/// Where distributions put it.
const PLACES: [&str; 4] = ["/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft", "/usr/local/sbin/nft"];

/// So much of what it complains of is kept, bytes.
const COMPLAINT: usize = 1024;

/// So much of a listing is taken, bytes: a thousand links are 5 MiB.
const LISTING: usize = 256 << 20;

/// Runs of `nft`.
#[derive(Debug, Default)]
pub struct Nft {
    /// How long all runs together may take, and until when; if nothing was said, each as long as those of an order.
    allowed: Option<(Duration, Instant)>,
}

impl Nft {
    /// From now on all runs together may take so long.
    pub fn allow(&mut self, patience: Duration) {
        self.allowed = Some((patience, Instant::now() + patience));
    }

    /// Carries out `commands`, all or none; what it printed.
    ///
    /// # Errors
    /// [`FirewallError::Refused`] with its first complaint; [`FirewallError::Late`]; others if it can't be run.
    pub fn run(&self, commands: &[Command]) -> Result<Vec<u8>, FirewallError> {
        let input = serde_json::to_vec(&Document { nftables: commands }).map_err(FirewallError::Render)?;
        let input = memfd::sealed("nft", &input).map_err(FirewallError::Run)?;
        // Version 1.0.6 opens its input anew, 1.1.3 reads on where the writer stopped, which is the end: no rule and no complaint
        // [tried].
        seek(&input, SeekFrom::Start(0)).map_err(|errno| FirewallError::Run(errno.into()))?;
        let program =
            PLACES.into_iter().find(|place| Path::new(place).exists()).ok_or(FirewallError::NoProgram)?;
        let mut child = Process::new(program)
            .args(["-j", "-f", "-"])
            .env_clear()
            .current_dir("/")
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(FirewallError::Run)?;
        let usual = || (patience::NFT, Instant::now() + patience::NFT);
        let (allowed, until) = self.allowed.unwrap_or_else(usual);
        let late = || FirewallError::Late(allowed.as_secs());
        let outcome = collect(&mut child, until).and_then(|outputs| outputs.ok_or_else(late));
        if outcome.is_err() {
            let _ = child.kill();
        }
        let status = child.wait().map_err(FirewallError::Run)?;
        let (output, complaint) = outcome?;
        if status.success() { Ok(output) } else { Err(FirewallError::Refused(first_line(&complaint))) }
    }
}

/// Reads both outputs to their ends; `None` if they have none in time.
#[allow(clippy::type_complexity)] // Output and complaint, used here only.
fn collect(child: &mut Child, deadline: Instant) -> Result<Option<(Vec<u8>, Vec<u8>)>, FirewallError> {
    let (mut output, mut complaint) = (Vec::new(), Vec::new());
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    while stdout.is_some() || stderr.is_some() {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let out = stdout.as_ref().map(AsFd::as_fd);
        let err = stderr.as_ref().map(AsFd::as_fd);
        let (out_ready, err_ready) = wait(out, err, left).map_err(FirewallError::Run)?;
        if out_ready && !take(&mut stdout, &mut output, LISTING).map_err(FirewallError::Run)? {
            stdout = None;
        }
        if err_ready && !take(&mut stderr, &mut complaint, COMPLAINT).map_err(FirewallError::Run)? {
            stderr = None;
        }
    }
    Ok(Some((output, complaint)))
}

/// Waits until one of them has something to read, or `left` is over.
fn wait(
    out: Option<BorrowedFd<'_>>,
    err: Option<BorrowedFd<'_>>,
    left: Duration,
) -> io::Result<(bool, bool)> {
    let mut fds: Vec<PollFd<'_>> =
        out.iter().chain(&err).map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let timeout = left.try_into().map_err(|_| Errno::INVAL)?;
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
    let out_ready = out.is_some() && ready.next().unwrap_or(false);
    let err_ready = err.is_some() && ready.next().unwrap_or(false);
    Ok((out_ready, err_ready))
}

/// Reads once, keeps the first `most` bytes; says whether there may be more.
fn take(from: &mut Option<impl Read>, into: &mut Vec<u8>, most: usize) -> io::Result<bool> {
    let Some(from) = from else { return Ok(false) };
    let mut buffer = [0; 65536];
    let count = match from.read(&mut buffer) {
        Ok(count) => count,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
        Err(error) => return Err(error),
    };
    let keep = count.min(most.saturating_sub(into.len()));
    into.extend_from_slice(buffer.get(..keep).unwrap_or_default());
    Ok(count > 0)
}

fn first_line(complaint: &[u8]) -> String {
    let text = String::from_utf8_lossy(complaint);
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("without a word");
    line.trim_start_matches("internal:0:0-0:").trim().to_owned()
}

/// The index of a device of this network namespace.
///
/// # Errors
/// [`FirewallError::NoDevice`].
pub fn index_of(device: &str) -> Result<u32, FirewallError> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(|errno| FirewallError::Run(errno.into()))?;
    name_to_index(&socket, device).map_err(|_| FirewallError::NoDevice(device.to_owned()))
}
