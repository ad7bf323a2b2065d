//! What the engine says to the helper that makes mounts, and what is said back.

use serde::{Deserialize, Serialize};

use super::error::MountRefusal;

/// Ids on disk, and what they are shown as: `count` from `disk` as as many from `shown`, host ids all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shift {
    /// First id on disk.
    pub disk: u32,
    /// What the first is shown as.
    pub shown: u32,
    /// How many.
    pub count: u32,
}

impl Shift {
    /// Is the id one of those on disk?
    pub fn has_on_disk(self, id: u32) -> bool {
        id.checked_sub(self.disk).is_some_and(|place| place < self.count)
    }

    /// As a line of `uid_map`. The kernel's "inside" of an id-mapped mount is the disk.
    pub fn line(self) -> String {
        format!("{} {} {}\n", self.disk, self.shown, self.count)
    }
}

/// That a directory is to be had as a mount. Beside it: the channel for the answer, the directory, the mount namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountRequest {
    /// Whose directory it is to be, and whose processes that don't end are counted.
    pub account: u32,
    /// Uids.
    pub uids: Shift,
    /// Gids.
    pub gids: Shift,
    /// Can nothing be written through it?
    pub read_only: bool,
}

/// That a node of a device is to be had as a mount. Beside it: the channel for the answer, and the host's node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRequest {
    /// Who is to have it, and whose processes that don't end are counted.
    pub account: u32,
    /// Owner of the new node.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Only if this group of the host's may read and write the host's node.
    pub by_group: Option<u32>,
}

/// What the helper is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToHelper {
    /// A directory.
    Directory(MountRequest),
    /// A node of a device.
    Node(NodeRequest),
}

impl ToHelper {
    /// To whom it is counted.
    pub fn account(&self) -> u32 {
        match self {
            Self::Directory(request) => request.account,
            Self::Node(request) => request.account,
        }
    }
}

/// What came of it; a mount lies beside the answer.
pub type MountAnswer = Result<(), MountRefusal>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_on_disk_are_those_from_the_first() {
        let shift = Shift { disk: 100, shown: 7, count: 10 };
        let found: Vec<u32> =
            [0, 99, 100, 109, 110, u32::MAX].into_iter().filter(|id| shift.has_on_disk(*id)).collect();
        assert_eq!(found, [100, 109]);
        assert_eq!(shift.line(), "100 7 10\n");
    }
}
