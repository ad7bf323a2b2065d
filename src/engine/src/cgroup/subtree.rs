//! Cgroups below a payload: making, removing, listing, opening.
//!
//! The holder makes and removes them itself on cgroup2; through the broker they come to be in every hierarchy. Names that come
//! from a caller are checked types; names that are found may be any bytes.

use std::{io, os::fd::OwnedFd};

use cgrant_policy::{CgroupPath, GrantPath};
use rustix::{fs::OFlags, io::Errno};

use super::{
    cpuset,
    error::CgroupError,
    node::{Node, errno, is_missing},
    tree::{LEAF, PAYLOAD, Tree, grants_in},
    walk::{Visit, walk},
};

/// Most cgroups that are listed.
const MOST_CGROUPS: usize = 65_536;
/// Most bytes of their paths together: an answer has to fit into a message.
const MOST_BYTES: usize = 768 * 1024;

impl Tree {
    /// Makes a cgroup below a payload in every hierarchy. The one above it has to be there on cgroup2; on v1, where the holder can
    /// make none, those above come with it. It belongs to whom the one above belongs to.
    ///
    /// An attacker wants a cgroup outside of the payload: every step goes one checked name from a directory and through no link.
    /// How deep is for the caller to bound; the kernel bounds depth and number too ([`Tree::govern_account`]), and on v1, where it
    /// doesn't, the broker ([`super::shadow`]).
    ///
    /// # Errors
    /// [`CgroupError::CgroupExists`], [`CgroupError::NoSuchCgroup`], [`CgroupError::NoSuchGrant`],
    /// [`CgroupError::ReservedName`], [`CgroupError::TooMany`], what the kernel refuses (`EAGAIN`: the account's number or depth of cgroups is used up).
    pub fn create_cgroup(&self, grant: &GrantPath, path: &CgroupPath) -> Result<(), CgroupError> {
        let (above, name) = split(path)?;
        let payload = self.need_part(self.v2(), grant, PAYLOAD)?;
        let node = descend(payload, &above, path)?;
        let made = node.make(&name)?.ok_or_else(|| CgroupError::CgroupExists(path.to_string()))?;
        let result = node
            .dir()
            .owner()
            .map_err(CgroupError::kernel("to stat", node.path()))
            .and_then(|holder| self.hand_over(&made, holder, holder.0))
            .and_then(|()| self.create_on_v1(grant, path));
        if result.is_err() {
            // Nobody has been told of it; if somebody is in it already, it is the holder's own doing and stays.
            let _ = node.remove(&name);
        }
        result
    }

    fn create_on_v1(&self, grant: &GrantPath, path: &CgroupPath) -> Result<(), CgroupError> {
        self.count_shadow(grant.account, path.depth())?;
        // After a failure some may be there.
        let made = self.ensure_on_v1(grant, path)?;
        self.uncount_shadow(grant.account, path.depth().saturating_sub(made));
        Ok(())
    }

    /// Says how many it made where most were missing.
    fn ensure_on_v1(&self, grant: &GrantPath, path: &CgroupPath) -> Result<usize, CgroupError> {
        let mut most = 0;
        for hierarchy in &self.hierarchies.v1 {
            let mut node = self.need_part(hierarchy, grant, PAYLOAD)?;
            let mut here: usize = 0;
            for name in path.names() {
                let (next, made) = node.ensure(name.as_str())?;
                if made {
                    here = here.saturating_add(1);
                    cpuset::inherit(hierarchy, &node, &next)?;
                }
                node = next;
            }
            most = most.max(here);
        }
        Ok(most)
    }

    /// Is there such a cgroup below a payload? Says of a path that can't be one what making or removing it would say.
    ///
    /// # Errors
    /// [`CgroupError::ReservedName`]; [`CgroupError::NoSuchCgroup`] if there is none above it.
    pub fn has_cgroup(&self, grant: &GrantPath, path: &CgroupPath) -> Result<bool, CgroupError> {
        let (above, name) = split(path)?;
        let payload = self.need_part(self.v2(), grant, PAYLOAD)?;
        Ok(descend(payload, &above, path)?.child(&name)?.is_some())
    }

    /// Removes a cgroup below a payload in every hierarchy.
    ///
    /// # Errors
    /// [`CgroupError::NoSuchCgroup`], [`CgroupError::Populated`], [`CgroupError::HasChildren`],
    /// [`CgroupError::ReservedName`], [`CgroupError::NoSuchGrant`], what the kernel refuses.
    pub fn remove_cgroup(&self, grant: &GrantPath, path: &CgroupPath) -> Result<(), CgroupError> {
        let (above, name) = split(path)?;
        let payload = self.need_part(self.v2(), grant, PAYLOAD)?;
        let node = descend(payload, &above, path)?;
        let found = node.child(&name)?.ok_or_else(|| CgroupError::NoSuchCgroup(path.to_string()))?;
        match node.dir().remove_dir(&name) {
            Err(error) if errno(&error) == Some(Errno::BUSY) => {
                let cgroup = path.to_string();
                return Err(match found.is_populated()? {
                    true => CgroupError::Populated { cgroup },
                    false if grants_in(found.dir()) > 0 => CgroupError::HasChildren { cgroup },
                    false => CgroupError::kernel("to remove", found.path())(error),
                });
            }
            Err(error) if !is_missing(&error) => {
                return Err(CgroupError::kernel("to remove", found.path())(error));
            }
            _ => (),
        }
        let (mut removed, mut left) = (false, false);
        for hierarchy in &self.hierarchies.v1 {
            let Some(mut node) = self.part(hierarchy, grant, PAYLOAD)? else { continue };
            let mut there = true;
            for name in &above {
                match node.child(name)? {
                    Some(next) => node = next,
                    None => there = false,
                }
                if !there {
                    break;
                }
            }
            if there {
                // One that the holder made again on cgroup2 alone may have left something in it: it goes with the grant.
                match node.dir().remove_dir(&name) {
                    Ok(()) => removed = true,
                    Err(error) => left |= !is_missing(&error),
                }
            }
        }
        if removed && !left {
            self.uncount_shadow(grant.account, 1);
        }
        Ok(())
    }

    /// The cgroups below a payload on cgroup2, each after the one that it is in. In a name, bytes that are not text are replaced.
    ///
    /// # Errors
    /// [`CgroupError::TooMany`] past 65,536 of them, or past what fits into an answer; [`CgroupError::NoSuchGrant`];
    /// what the kernel refuses.
    pub fn list_cgroups(&self, grant: &GrantPath) -> Result<Vec<String>, CgroupError> {
        let payload = self.need_part(self.v2(), grant, PAYLOAD)?;
        let mut found: Vec<String> = Vec::new();
        let mut path = String::new();
        let mut bytes = 0;
        let result = walk(payload.dir(), |visit| {
            match visit {
                Visit::Enter { name, .. } => {
                    if !path.is_empty() {
                        path.push('/');
                    }
                    path.push_str(&name.to_string_lossy());
                    bytes += path.len() + 4;
                    if found.len() == MOST_CGROUPS || bytes > MOST_BYTES {
                        return Err(io::ErrorKind::FileTooLarge.into());
                    }
                    found.push(path.clone());
                }
                Visit::Leave { .. } => path.truncate(path.rfind('/').unwrap_or(0)),
            }
            io::Result::Ok(())
        });
        match result {
            Ok(()) => Ok(found),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                Err(CgroupError::TooMany { what: "cgroups", limit: found.len() })
            }
            Err(error) => Err(CgroupError::kernel("to list", payload.path())(error)),
        }
    }

    /// An `O_PATH` descriptor of the directory of a cgroup below a payload. It carries none of the broker's rights: whatever is
    /// opened through it is opened with the opener's own.
    ///
    /// # Errors
    /// [`CgroupError::NoSuchCgroup`], [`CgroupError::NoSuchGrant`].
    pub fn open_cgroup(&self, grant: &GrantPath, path: &CgroupPath) -> Result<OwnedFd, CgroupError> {
        let payload = self.need_part(self.v2(), grant, PAYLOAD)?;
        let names: Vec<&str> = path.names().iter().map(AsRef::as_ref).collect();
        let Some((name, above)) = names.split_last() else {
            return Err(CgroupError::NoSuchCgroup(path.to_string()));
        };
        let above: Vec<String> = above.iter().map(ToString::to_string).collect();
        let node = descend(payload, &above, path)?;
        if node.child(name)?.is_none() {
            return Err(CgroupError::NoSuchCgroup(path.to_string()));
        }
        open_path(&node, name)
    }
}

/// An `O_PATH` descriptor of a cgroup in `node`.
pub(super) fn open_path(node: &Node, name: &str) -> Result<OwnedFd, CgroupError> {
    node.open(name, OFlags::PATH | OFlags::DIRECTORY)
}

/// The names above the last one, and the last one, none of which is the broker's own.
fn split(path: &CgroupPath) -> Result<(Vec<String>, String), CgroupError> {
    let names: Vec<String> = path.names().iter().map(ToString::to_string).collect();
    match names.split_last() {
        Some((name, above)) if names.first().is_some_and(|first| first != LEAF) => {
            Ok((above.to_vec(), name.clone()))
        }
        _ => Err(CgroupError::ReservedName(path.to_string())),
    }
}

fn descend(payload: Node, names: &[String], path: &CgroupPath) -> Result<Node, CgroupError> {
    let mut node = payload;
    for name in names {
        node = node.child(name)?.ok_or_else(|| CgroupError::NoSuchCgroup(path.to_string()))?;
    }
    Ok(node)
}
