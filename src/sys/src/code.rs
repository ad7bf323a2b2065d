//! The code that a process has run and will not run again, with the constants beside it.

use std::io;

/// A part of a process's memory that shows the code of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mapping {
    start: usize,
    length: usize,
}

/// Takes the code of the program and of its libraries out of this process's memory, and what lies before it in their files: constants and
/// tables. What is used again comes back from the page cache, some pages at a time; what is not stays out. For processes that
/// live long and do little after a large beginning.
///
/// Source: `madvise(2)`, MADV_DONTNEED.
///
/// # Errors
/// Those of reading `/proc/self/maps`, and of `madvise(2)`. Nothing is lost then but memory.
pub fn forget_code() -> io::Result<()> {
    let maps = std::fs::read_to_string("/proc/self/maps")?;
    for Mapping { start, length } in maps.lines().filter_map(code_of_a_file) {
        let address = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: a private mapping of a file that can be read, perhaps executed, and never was to be written: its pages are the
        // file's, so that each comes back with the same bytes when it is touched. No reference to it is held that could be written through.
        if unsafe { libc::madvise(address, length, libc::MADV_DONTNEED) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// A line of `/proc/PID/maps`: addresses, rights, offset, device, inode, path. Memory of no file has inode 0.
///
/// What can only be read may have been relocated before, and is not the file's any more then. That never begins with the file: its header
/// lies in a segment that nobody writes to (elf(5)).
fn code_of_a_file(line: &str) -> Option<Mapping> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let rights = words.next()?;
    let offset = words.next()?;
    let inode = words.nth(1)?;
    let begins = offset.bytes().all(|digit| digit == b'0');
    if inode == "0" || !(rights == "r-xp" || rights == "r--p" && begins) {
        return None;
    }
    let number = |text| usize::from_str_radix(text, 16).ok();
    let start = number(start)?;
    Some(Mapping { start, length: number(end)?.checked_sub(start)? })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_files_is_taken() {
        let line = "55eba183b000-55eba19ce000 r-xp 00192000 fe:00 1234       /usr/bin/a b";
        let found = code_of_a_file(line).unwrap();
        assert_eq!((found.start, found.length), (0x55eb_a183_b000, 0x19_3000));
        let line = "55eba183b000-55eba19ce000 r--p 00000000 fe:00 1234       /usr/bin/a b";
        assert_eq!(code_of_a_file(line), Some(found));
        for other in [
            "55eba183b000-55eba19ce000 r--p 00192000 fe:00 1234 /usr/bin/a",
            "55eba183b000-55eba19ce000 rw-p 00000000 fe:00 1234 /usr/bin/a",
            "55eba183b000-55eba19ce000 r--s 00000000 fe:00 1234 /usr/bin/a",
            "55eba183b000-55eba19ce000 r--p 00000000 00:00 0",
            "55eba183b000-55eba19ce000 rwxp 00192000 fe:00 1234 /usr/bin/a",
            "7f9b811db000-7f9b811dd000 r-xp 00000000 00:00 0    [vdso]",
            "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]",
            "",
            "x-y r-xp 0 0 1 /a",
        ] {
            assert_eq!(code_of_a_file(other), None, "{other}");
        }
    }

    #[test]
    fn what_was_forgotten_is_there_when_it_is_called() {
        forget_code().unwrap();
        forget_code().unwrap();
        assert_eq!(code_of_a_file("x"), None);
    }
}
