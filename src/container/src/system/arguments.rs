//! What a monitor was started with is no longer told.
//!
//! It is a copy of the command that started the container, and lives for as long as that: anybody on the host could read in
//! `/proc/PID/cmdline` what variables and credentials were given, and anybody in the container while a command enters it, whose process is a copy
//! of the monitor's for a moment.

use std::{
    fs::{self, File},
    io::{self, Seek, SeekFrom, Write},
};

/// What takes their place, as far as there is room.
const TITLE: &[u8] = b"cgrant-monitor";
/// Where the number is that an address is, of those behind the program's name (proc_pid_stat(5): 48 and 49).
const START: usize = 45;

/// Writes over the arguments. Nothing in this process may look at them later.
pub(crate) fn forget() -> io::Result<()> {
    let text = fs::read_to_string("/proc/self/stat")?;
    let (_, fields) = text.rsplit_once(") ").ok_or(io::ErrorKind::InvalidData)?;
    let mut addresses = fields.split(' ').skip(START).map(str::parse::<u64>);
    let (Some(Ok(start)), Some(Ok(end))) = (addresses.next(), addresses.next()) else {
        return Err(io::ErrorKind::InvalidData.into());
    };
    let length = usize::try_from(end.saturating_sub(start)).unwrap_or(0);
    let mut title = TITLE.to_vec();
    // The last byte stays 0: otherwise the kernel goes on reading behind it.
    title.truncate(length.saturating_sub(1));
    title.resize(length, 0);
    let mut memory = File::options().write(true).open("/proc/self/mem")?;
    memory.seek(SeekFrom::Start(start))?;
    memory.write_all(&title)
}
