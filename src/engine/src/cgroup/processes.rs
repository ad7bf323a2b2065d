//! The processes of a grant.

use std::io;

use cgrant_policy::GrantPath;
use cgrant_sys::Dir;

use super::{
    error::CgroupError,
    node::{Node, PidsError, pids},
    tree::Tree,
    walk::{Visit, walk},
};

/// Most processes that are listed.
pub(super) const MOST_PROCESSES: usize = 100_000;

impl Tree {
    /// The pids in payload and children and below them, as the engine's pid namespace counts them, sorted. A process that forks
    /// or ends meanwhile may be missing.
    ///
    /// # Errors
    /// [`CgroupError::TooMany`] past 100,000; [`CgroupError::NoSuchGrant`]; what the kernel refuses.
    pub fn processes(&self, grant: &GrantPath) -> Result<Vec<u32>, CgroupError> {
        let mut found = Vec::new();
        for part in self.parts(grant)? {
            below(&part, &mut found)?;
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

fn below(part: &Node, found: &mut Vec<u32>) -> Result<(), CgroupError> {
    let mut add = |dir: &Dir| -> io::Result<()> {
        let room = MOST_PROCESSES.saturating_sub(found.len());
        match pids(dir, room) {
            Ok(pids) => {
                found.extend(pids);
                Ok(())
            }
            Err(PidsError::TooMany) => Err(io::ErrorKind::FileTooLarge.into()),
            Err(PidsError::Io(error)) => Err(error),
        }
    };
    add(part.dir())
        .and_then(|()| {
            walk(part.dir(), |visit| match visit {
                Visit::Enter { dir, .. } => add(dir),
                Visit::Leave { .. } => io::Result::Ok(()),
            })
        })
        .map_err(|error| match error.kind() {
            io::ErrorKind::FileTooLarge => CgroupError::TooMany { what: "processes", limit: MOST_PROCESSES },
            _ => CgroupError::kernel("to list", part.path())(error),
        })
}
