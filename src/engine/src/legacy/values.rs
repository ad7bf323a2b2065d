//! `GetValue`, `SetValue`, `ListChildren`, `ListKeys`.

use std::{io, os::fd::AsFd};

use cgrant_sys::{EntryKind, process::IdExtent};
use cgrant_wire::LegacyKey;
use rustix::{
    fs::{AtFlags, FileType, OFlags, Stat, statat},
    io::{Errno, read, retry_on_intr, write},
};

use super::{
    actor::Access,
    call::{Call, stat},
    fault::Fault,
    key::is_written,
    path::{LEAF, file_name},
    translate::listed,
};
use crate::cgroup::{Hierarchy, Kind};

/// Longest value that is read, in bytes.
const MAX_READ: usize = 4 * 1024 * 1024;
/// How much is read at first: most files have a line or a few.
const FIRST: usize = 4096;
/// How much is read at once of a longer one.
const CHUNK: usize = 64 * 1024;

impl Call<'_> {
    /// The content of a file, without newlines at its end.
    ///
    /// An attacker wants to read other files: the name is one component, of a regular file of the cgroup, and the bits of the very
    /// file that is read decide.
    ///
    /// # Errors
    /// [`Fault::Path`], [`Fault::File`], [`Fault::Denied`], [`Fault::NoCgroup`], what the kernel refuses.
    pub fn value(&self, hierarchy: &Hierarchy, path: &str, key: &str) -> Result<String, Fault> {
        let key = file_name(key)?;
        let target = self.readable(hierarchy, path)?;
        if hierarchy.kind == Kind::V2 {
            return self.value_v2(hierarchy, &target.dir, key);
        }
        let refused = Fault::kernel("to read a file of a cgroup");
        let file = target.dir.open_file(key, OFlags::RDONLY | OFlags::NONBLOCK).map_err(&refused)?;
        self.need_file(&stat(file.as_fd())?, Access::Read, key)?;
        let bytes = read_all(file.as_fd()).map_err(refused)?;
        let text = String::from_utf8(bytes).map_err(|_| Fault::File(key.to_owned()))?;
        Ok(text.trim_end_matches('\n').to_owned())
    }

    /// Writes a value into a file.
    ///
    /// An attacker wants to raise limits that bound it, or to have root write where it could not: only what is listed is written
    /// at all, and the bits of the very file that is written decide.
    ///
    /// # Errors
    /// As [`value`](Self::value); [`Fault::Key`]; [`Fault::Barred`]; the kernel's verdict on the value.
    pub fn set_value(&self, hierarchy: &Hierarchy, path: &str, key: &str, value: &str) -> Result<(), Fault> {
        let key = file_name(key)?;
        let target = self.readable(hierarchy, path)?;
        self.not_granted(hierarchy, &target.names)?;
        self.may_have_v1(hierarchy)?;
        if hierarchy.kind == Kind::V2 {
            (self.may_have)(key.split('.').next().unwrap_or_default())?;
            self.may_limit(hierarchy, &target.names)?;
            return self.set_value_v2(hierarchy, &target.dir, key, value);
        }
        if !is_written(key) {
            return Err(Fault::Key(key.to_owned()));
        }
        let refused = Fault::kernel("to write a file of a cgroup");
        let file = target.dir.open_file(key, OFlags::WRONLY | OFlags::NONBLOCK).map_err(&refused)?;
        self.need_file(&stat(file.as_fd())?, Access::Write, key)?;
        write_all(file.as_fd(), value)
    }

    /// The names of the cgroups in a cgroup, in the order of the directory.
    ///
    /// # Errors
    /// As [`Call::readable`]; what the kernel refuses.
    pub fn children(&self, hierarchy: &Hierarchy, path: &str) -> Result<Vec<String>, Fault> {
        let target = self.readable(hierarchy, path)?;
        let mut names = target.dir.dirs().map_err(Fault::kernel("to list a cgroup"))?;
        if hierarchy.kind == Kind::V2 {
            names.retain(|name| name != LEAF);
        }
        Ok(names)
    }

    /// The files of a cgroup, with ids as the requestor's user namespace has them.
    ///
    /// # Errors
    /// As [`Call::readable`]; what the kernel refuses.
    pub fn keys(&self, hierarchy: &Hierarchy, path: &str) -> Result<Vec<LegacyKey>, Fault> {
        let target = self.readable(hierarchy, path)?;
        let refused = Fault::kernel("to list a cgroup");
        let groups = self.requestor.gid_map();
        let mut found_all = Vec::new();
        for entry in target.dir.entries().map_err(&refused)? {
            let Ok(name) = entry.name.into_string() else { continue };
            if entry.kind != EntryKind::File {
                continue;
            }
            match statat(&target.dir, name.as_str(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(found) => found_all.push((name, found)),
                Err(Errno::NOENT | Errno::NODEV) => (),
                Err(errno) => return Err(refused(errno.into())),
            }
        }
        if hierarchy.kind == Kind::V2 {
            found_all = with_v1_names(found_all);
        }
        let key = |(name, found): (String, Stat)| LegacyKey {
            name,
            uid: self.requestor.inside(found.st_uid).unwrap_or(u32::MAX),
            gid: inside(&groups, found.st_gid),
            mode: found.st_mode,
        };
        Ok(found_all.into_iter().map(key).collect())
    }

    /// Refuses what is no file, or what the bits do not let the requestor.
    ///
    /// # Errors
    /// [`Fault::File`], [`Fault::Denied`].
    pub fn need_file(&self, found: &Stat, access: Access, key: &str) -> Result<(), Fault> {
        if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
            return Err(Fault::File(key.to_owned()));
        }
        self.need(found, access)
    }
}

/// The files of a cgroup2 cgroup, and before them those of v1's that they stand behind, with owner and mode of the first that does.
fn with_v1_names(own: Vec<(String, Stat)>) -> Vec<(String, Stat)> {
    let there: Vec<String> = own.iter().map(|(name, _)| name.clone()).collect();
    let of = |file: &str| own.iter().find(|(name, _)| name == file).map(|(_, found)| *found);
    let mut keys: Vec<(String, Stat)> = listed(&there)
        .into_iter()
        .filter(|(key, _)| !there.contains(key))
        .filter_map(|(key, file)| Some((key, of(&file)?)))
        .collect();
    keys.extend(own);
    keys
}

fn inside(map: &[IdExtent], id: u32) -> u32 {
    map.iter().find_map(|extent| extent.inside(id)).unwrap_or(u32::MAX)
}

/// Writes a value with one `write(2)`, with a newline at its end.
///
/// # Errors
/// The kernel's verdict on it.
pub fn write_all(file: std::os::fd::BorrowedFd<'_>, value: &str) -> Result<(), Fault> {
    let refused = Fault::kernel("to write a file of a cgroup");
    let mut text = value.to_owned();
    if !text.ends_with('\n') {
        text.push('\n');
    }
    match retry_on_intr(|| write(file, text.as_bytes())) {
        Ok(count) if count == text.len() => Ok(()),
        Ok(_) => Err(refused(io::ErrorKind::WriteZero.into())),
        Err(errno) => Err(refused(errno.into())),
    }
}

/// All of a file, of at most [`MAX_READ`] bytes.
///
/// # Errors
/// Those of `read(2)`; `EFBIG` past that.
pub fn read_all(file: std::os::fd::BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut chunk = vec![0; FIRST];
    loop {
        let count = retry_on_intr(|| read(file, &mut *chunk))?;
        if count == 0 {
            return Ok(bytes);
        }
        bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if bytes.len() > MAX_READ {
            return Err(Errno::FBIG.into());
        }
        if bytes.len() >= FIRST {
            chunk.resize(CHUNK, 0);
        }
    }
}
