//! What a monitor was started with is no longer told.
//!
//! It is a copy of the command that started the container, and lives for as long as that: anybody on the host could read in
//! `/proc/PID/cmdline` what variables and credentials were given, and anybody in the container while a command enters it, whose process is a copy
//! of the monitor's for a moment.

use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
};

use cgrant_sys::ProcFs;

/// Writes `title` over the arguments, as far as there is room. Nothing in this process may look at them later.
pub(crate) fn forget(title: &[u8]) -> io::Result<()> {
    let (start, end) = ProcFs::open()?.stat(std::process::id())?.arguments;
    let length = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
    let mut title = title.to_vec();
    // The last byte stays 0: otherwise the kernel goes on reading behind it.
    title.truncate(length.saturating_sub(1));
    title.resize(length, 0);
    let mut memory = File::options().write(true).open("/proc/self/mem")?;
    memory.seek(SeekFrom::Start(start))?;
    memory.write_all(&title)
}
