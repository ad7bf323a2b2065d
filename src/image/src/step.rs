//! One step of whoever goes through directories that somebody else may change meanwhile: to a directory below, or to a file's figures.

use std::ffi::OsStr;
use std::io;

use cgrant_sys::Dir;
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

/// What has a name.
pub(crate) enum Found {
    /// A directory on the same mount.
    Directory(Dir),
    /// Anything else.
    File(Stat),
    /// A mount, or nothing any more.
    Nothing,
}

/// What has this name in `dir`. `is_directory` is what the directory says about it, where it does. A mount may be of somebody's who
/// does not answer, and is not asked about itself.
///
/// # Errors
/// Those of openat2(2), but for what somebody may have changed meanwhile.
pub(crate) fn step(dir: &Dir, name: &OsStr, is_directory: Option<bool>) -> io::Result<Found> {
    if is_directory != Some(false) {
        match dir.open_dir(name) {
            Ok(below) => return Ok(Found::Directory(below)),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::XDEV | Errno::NOENT) => return Ok(Found::Nothing),
                // Something else has its name.
                Some(Errno::NOTDIR | Errno::LOOP) => (),
                _ => return Err(error),
            },
        }
    }
    match dir.look(name) {
        Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => Ok(Found::Nothing),
        Ok(stat) => Ok(Found::File(stat)),
        Err(error) => match Errno::from_io_error(&error) {
            Some(Errno::XDEV | Errno::NOENT) => Ok(Found::Nothing),
            _ => Err(error),
        },
    }
}
