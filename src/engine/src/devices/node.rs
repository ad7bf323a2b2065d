//! Nodes of the host's `/dev`: reached by names without links, on that file system, never opened.

use std::{io, os::fd::OwnedFd, path::Path};

use cgrant_policy::{NodeName, NodePattern};
use cgrant_sys::{Dir, bpf::DeviceAccess};
use rustix::fs::{FileType, OFlags, Stat, fstat, major, minor};

use super::list::Number;

const DEV: &str = "/dev";

/// The node, opened as a place, and what it is.
///
/// # Errors
/// `ENOENT`, `ENOTDIR`; `ELOOP` and `EXDEV` if a link or another mount is on the way.
pub fn look(node: &NodeName) -> io::Result<(OwnedFd, Stat)> {
    let names: Vec<&str> = node.as_str().split('/').collect();
    let host = Dir::open(Path::new(DEV))?.open_file_below(&names, OFlags::PATH)?;
    let found = fstat(&host)?;
    Ok((host, found))
}

/// The character devices that policy means by a pattern, and that there are.
pub fn named(pattern: &NodePattern) -> Vec<Number> {
    let nodes = pattern.only().map_or_else(|| listed(pattern).unwrap_or_default(), |node| vec![node]);
    nodes.iter().filter_map(character).collect()
}

fn character(node: &NodeName) -> Option<Number> {
    let (_, found) = look(node).ok()?;
    Number::of(&found, DeviceAccess::ALL)
}

/// What there is of the names in a pattern's directory, in order.
fn listed(pattern: &NodePattern) -> io::Result<Vec<NodeName>> {
    let dev = Dir::open(Path::new(DEV))?;
    let directory = pattern.directory();
    let dir = match directory {
        "" => dev,
        below => dev.open_below(&below.split('/').collect::<Vec<_>>())?,
    };
    let name = |name: &str| {
        let whole = if directory.is_empty() { name.to_owned() } else { format!("{directory}/{name}") };
        NodeName::new(&whole).ok().filter(|node| pattern.names(node))
    };
    let mut names: Vec<String> =
        dir.entries()?.into_iter().filter_map(|entry| entry.name.into_string().ok()).collect();
    names.sort_unstable();
    Ok(names.iter().filter_map(|text| name(text)).collect())
}

impl Number {
    /// Of a node, if it is one of a character device.
    pub fn of(found: &Stat, access: DeviceAccess) -> Option<Self> {
        (FileType::from_raw_mode(found.st_mode) == FileType::CharacterDevice).then(|| Self {
            major: major(found.st_rdev),
            minor: minor(found.st_rdev),
            access: access.bits(),
        })
    }
}
