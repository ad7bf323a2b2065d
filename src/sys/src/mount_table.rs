//! The list of a namespace's mounts, and which of them a descriptor is on, without asking any file system.
//!
//! Sources: `proc_pid_mountinfo(5)`, `proc_pid_fdinfo(5)`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Errno;

/// Most of a list that is read, in bytes: a namespace has 100,000 mounts at most (`fs.mount-max`), unless root says otherwise.
const MAX_LIST: u64 = 64 * 1024 * 1024;
/// Longest text about a descriptor, in bytes.
const MAX_FDINFO: u64 = 4096;

/// A mount, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its number, as [`mount_of`] gives it.
    pub id: u64,
    /// The device of its file system: `MAJOR:MINOR`.
    pub device: String,
    /// The type of its file system, with a subtype where it has one (`fuse.sshfs`).
    pub kind: String,
    /// Are the owners of its files mapped already?
    pub id_mapped: bool,
}

/// The number of the mount that `fd` was opened on. It stays the mount's as long as the descriptor is open.
///
/// # Errors
/// Those of reading `/proc/self/fdinfo`; `InvalidData` if there is no number in it.
pub fn mount_of(fd: impl AsFd) -> io::Result<u64> {
    let file = File::open(format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd()))?;
    let mut text = String::new();
    file.take(MAX_FDINFO).read_to_string(&mut text)?;
    let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    id.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The first mount of a `mountinfo` that is `wanted`.
///
/// # Errors
/// Those of reading; `EFBIG` if it is not among the first 64 MiB.
pub fn find(mountinfo: impl Read, wanted: impl Fn(&Mount) -> bool) -> io::Result<Option<Mount>> {
    let mut reader = BufReader::new(mountinfo.take(MAX_LIST));
    let (mut line, mut length) = (Vec::new(), 0_u64);
    loop {
        line.clear();
        let count = reader.read_until(b'\n', &mut line)?;
        if count == 0 {
            break;
        }
        length = length.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
        if let Some(mount) = mount(&String::from_utf8_lossy(&line)).filter(&wanted) {
            return Ok(Some(mount));
        }
    }
    if length >= MAX_LIST { Err(Errno::FBIG.into()) } else { Ok(None) }
}

/// One line. Whoever chose names in it can't add fields: the kernel writes their blanks as `\040` and the like.
fn mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ');
    let id = fields.next()?.parse().ok()?;
    let device = fields.nth(1)?.to_owned();
    let id_mapped = fields.nth(2)?.split(',').any(|option| option == "idmapped");
    let kind = after.split(' ').next()?.trim_end().to_owned();
    Some(Mount { id, device, kind, id_mapped })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const LIST: &str = "\
21 1 259:0 / / rw,relatime shared:1 - ext4 /dev/root rw
33 21 0:44 /a\\040-\\040b /mnt/with\\040-\\040blanks rw,nosuid,nodev,idmapped master:1 propagate_from:2 - fuse.sshfs me@x:/ rw,user_id=1
40 21 0:50 / /idmapped rw - tmpfs idmapped rw
broken
";

    #[test]
    fn lines_are_taken_apart() {
        let by = |id: u64| find(LIST.as_bytes(), |mount| mount.id == id).unwrap();
        let mount = |id, device: &str, kind: &str, id_mapped| {
            Some(Mount { id, device: device.to_owned(), kind: kind.to_owned(), id_mapped })
        };
        assert_eq!(by(21), mount(21, "259:0", "ext4", false));
        assert_eq!(by(33), mount(33, "0:44", "fuse.sshfs", true));
        assert_eq!(by(40), mount(40, "0:50", "tmpfs", false));
        assert_eq!(by(50), None);
    }

    #[test]
    fn a_list_without_end_is_not_read() {
        let endless = io::repeat(b'x');
        assert_eq!(find(endless, |_| true).unwrap_err().raw_os_error(), Some(libc::EFBIG));
    }

    #[test]
    fn a_descriptor_is_on_a_mount_of_the_list() {
        let proc = File::open("/proc").unwrap();
        let id = mount_of(&proc).unwrap();
        let mount = find(File::open("/proc/self/mountinfo").unwrap(), |mount| mount.id == id).unwrap();
        assert_eq!(mount.unwrap().kind, "proc");
    }
}
