//! Sealed memory files: content that nobody can change any more.
//!
//! Source: `memfd_create(2)`, section "File sealing".

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, memfd_create};
use rustix::io::{Errno, pread, retry_on_intr, write};

/// The seals that make content final: not even a mapping made before can change it.
const FINAL: SealFlags =
    SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// `MFD_NOEXEC_SEAL`: never executable (kernel 6.3).
const NOEXEC: MemfdFlags = MemfdFlags::from_bits_retain(0x08);

/// A memory file with `bytes` in it that nobody can change. `name` is seen in `/proc` only.
///
/// # Errors
/// `EMFILE`, `ENFILE`, `ENOMEM`, `EINVAL` for a name of more than 249 bytes.
pub fn sealed(name: &str, bytes: &[u8]) -> io::Result<OwnedFd> {
    let memfd = create(name, NOEXEC)?;
    write_all(&memfd, bytes)?;
    fcntl_add_seals(&memfd, FINAL)?;
    Ok(memfd)
}

/// The content of a sealed memory file that came from elsewhere.
///
/// The seals are looked at before anything else: only a memory file has them, so the size that is read next is final,
/// and reading never waits for anybody.
///
/// # Errors
/// `EINVAL` if it is no memory file; `EPERM` if a seal is missing, as of every named file of a tmpfs; `EFBIG` if it holds more than `max` bytes.
pub fn read_sealed(fd: impl AsFd, max: usize) -> io::Result<Vec<u8>> {
    if !fcntl_get_seals(&fd)?.contains(FINAL) {
        return Err(Errno::PERM.into());
    }
    let size = usize::try_from(fstat(&fd)?.st_size).map_err(|_| Errno::FBIG)?;
    if size > max {
        return Err(Errno::FBIG.into());
    }
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match retry_on_intr(|| pread(&fd, &mut *rest, filled as u64))? {
            0 => return Err(Errno::IO.into()),
            read => filled += read,
        }
    }
    Ok(bytes)
}

/// A memory file that can be sealed; `extra` is left out where the kernel does not know it.
fn create(name: &str, extra: MemfdFlags) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match memfd_create(name, flags | extra) {
        Err(Errno::INVAL) => Ok(memfd_create(name, flags)?),
        other => Ok(other?),
    }
}

fn write_all(fd: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = retry_on_intr(|| write(fd, bytes))?;
        bytes = bytes.get(written..).filter(|_| written > 0).ok_or(Errno::IO)?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn errno<T: std::fmt::Debug>(result: io::Result<T>) -> Option<Errno> {
        Errno::from_io_error(&result.unwrap_err())
    }

    #[test]
    fn what_is_sealed_can_be_read_and_not_changed() {
        let memfd = sealed("test", b"content").unwrap();
        assert_eq!(read_sealed(&memfd, 7).unwrap(), b"content");
        assert_eq!(read_sealed(&memfd, 7).unwrap(), b"content");
        assert_eq!(write(&memfd, b"x").unwrap_err(), Errno::PERM);
        assert_eq!(rustix::fs::ftruncate(&memfd, 1).unwrap_err(), Errno::PERM);
        assert_eq!(rustix::fs::ftruncate(&memfd, 100).unwrap_err(), Errno::PERM);
        assert_eq!(fcntl_add_seals(&memfd, SealFlags::empty()).unwrap_err(), Errno::PERM);
    }

    #[test]
    fn the_bound_is_exact() {
        let memfd = sealed("test", &[7; 5000]).unwrap();
        assert_eq!(read_sealed(&memfd, 5000).unwrap().len(), 5000);
        assert_eq!(errno(read_sealed(&memfd, 4999)), Some(Errno::FBIG));
        assert_eq!(read_sealed(sealed("test", b"").unwrap(), 0).unwrap(), b"");
    }

    #[test]
    fn each_missing_seal_is_noticed() {
        for missing in [SealFlags::SEAL, SealFlags::SHRINK, SealFlags::GROW, SealFlags::WRITE] {
            let memfd = create("test", MemfdFlags::empty()).unwrap();
            write_all(&memfd, b"content").unwrap();
            fcntl_add_seals(&memfd, FINAL.difference(missing)).unwrap();
            assert_eq!(errno(read_sealed(&memfd, 100)), Some(Errno::PERM), "{missing:?}");
        }
    }

    #[test]
    fn other_descriptors_are_refused() {
        assert_eq!(
            errno(read_sealed(std::fs::File::open("/proc/self/status").unwrap(), 1 << 20)),
            Some(Errno::INVAL)
        );
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(errno(read_sealed(socket, 100)), Some(Errno::INVAL));
    }
}
