//! What is remembered of a name server that runs, so that the next helper finds it: which process, and which device.
//!
//! A number of a process says nothing by itself, as it is given anew. It is the process that was recorded if it started at the
//! same clock tick of the same boot, has the same inode where pidfds have one, and runs as the account of name servers.

use std::io;

use cgrant_sys::{Dir, Pidfd, pidfd::Signal, process::boot_id};
use serde::{Deserialize, Serialize};

/// Longest record, in bytes.
const LONGEST: usize = 4096;

/// A name server's process and its port on the bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The boot that the rest belongs to.
    boot: String,
    /// The process.
    pid: u32,
    /// When it started, in clock ticks.
    start: u64,
    /// Its pidfd's inode.
    inode: Option<u64>,
    /// The account that it becomes.
    uid: u32,
    /// Index of the host's end of its device.
    pub ifindex: u32,
}

impl Record {
    /// Of a process that has just been made and waits.
    ///
    /// # Errors
    /// If it has ended.
    pub fn of(pid: u32, pidfd: &Pidfd, uid: u32, ifindex: u32) -> io::Result<Self> {
        Ok(Self { boot: boot_id()?, pid, start: pidfd.start_time()?, inode: pidfd.inode(), uid, ifindex })
    }

    /// The record of this name, if there is a whole one.
    pub fn read(directory: &Dir, name: &str) -> Option<Self> {
        serde_json::from_slice(&directory.read_bytes(name, LONGEST).ok()?).ok()
    }

    /// Writes it.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write(&self, directory: &Dir, name: &str) -> io::Result<()> {
        directory.write_atomic(name, &serde_json::to_vec(self).map_err(io::Error::other)?, false)
    }

    /// The process, if it still is the one that was recorded.
    pub fn process(&self) -> Option<Pidfd> {
        if boot_id().ok()? != self.boot {
            return None;
        }
        let pidfd = Pidfd::open(self.pid).ok()?;
        let is_it = pidfd.start_time().ok()? == self.start
            && pidfd.inode() == self.inode
            // It may have been recorded before it became its account.
            && [self.uid, 0].contains(&pidfd.info().ok()?.ruid)
            && pidfd.is_alive().ok()?;
        is_it.then_some(pidfd)
    }

    /// Ends the process, if it still is the one that was recorded.
    pub fn end(&self) {
        if let Some(process) = self.process() {
            // What has ended meanwhile needs no signal.
            let _ = process.send_signal(Signal::KILL);
        }
    }
}
