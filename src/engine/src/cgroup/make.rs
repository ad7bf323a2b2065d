//! Making a grant's cgroups: the same directories in every hierarchy, and on cgroup2 the delegation.
//!
//! | on cgroup2 | belongs to | so that |
//! |---|---|---|
//! | `GRANT/` | root | limits can't be changed |
//! | `GRANT/cgroup.procs` | the account | its processes may go from `monitor` into the payload (the common ancestor has to be writable) |
//! | `payload/` and the files of `/sys/kernel/cgroup/delegate` | the range's root, or the account | it is the holder's |
//! | `payload/cgroup.procs` | the account, group the range's root's, 0664 | the account may clone into it from `monitor` |
//! | `monitor/cgroup.procs` | the account | its own processes may be moved back |
//! | `children/` | root | grants made from inside are under the limits of this one |
//!
//! Never a group of the account's: who shares it (`users`, an LDAP group) could move the payload's processes about in it.
//!
//! On v1 everything is root's: v1 is no safe delegation boundary (design, invariant 11).

use cgrant_policy::{GrantPath, HostGid, HostUid};

use super::{
    cpuset,
    enable::{enable_all, hand_on},
    error::CgroupError,
    hierarchy::Hierarchy,
    mounts::Kind,
    node::{Node, is_missing},
    tree::{CHILDREN, LEAF, MONITOR, PAYLOAD, Tree, account_name},
};

/// Where the kernel names the files that come with a delegated cgroup.
const DELEGATE: &str = "/sys/kernel/cgroup/delegate";
/// Those of the oldest kernels that have cgroup2; what is delegated if the list can't be read.
const ALWAYS_DELEGATED: [&str; 3] = ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];
const PROCS: &str = "cgroup.procs";
/// The holder may write as its group, whose members are in the range all.
const ENTERABLE: u32 = 0o664;

/// Who owns what in a grant's cgroup2 cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delegation {
    /// The account and its group.
    pub account: (HostUid, HostGid),
    /// Root of the grant's range; `None` for a grant without ids, whose payload is the account's own.
    pub root: Option<(HostUid, HostGid)>,
}

impl Delegation {
    /// Who has the payload.
    fn holder(&self) -> (u32, u32) {
        let (uid, gid) = self.root.unwrap_or(self.account);
        (uid.0, gid.0)
    }
}

/// The files that come with a delegated cgroup on this kernel.
pub(super) fn delegated_files() -> Vec<String> {
    match std::fs::read_to_string(DELEGATE) {
        Ok(text) if !text.trim().is_empty() => text.lines().map(str::to_owned).collect(),
        _ => ALWAYS_DELEGATED.map(str::to_owned).to_vec(),
    }
}

impl Tree {
    /// Makes a grant's cgroups in every hierarchy; gives the kernel's id of the payload on cgroup2.
    ///
    /// An attacker wants a cgroup of another account, or limits that are its own to change. Names are checked types, every
    /// step goes from a directory that root owns, and nothing that exists already is taken over.
    ///
    /// # Errors
    /// [`CgroupError::GrantExists`]; [`CgroupError::NoSuchGrant`] if the grant around it has no cgroup; what the kernel
    /// refuses. Nothing that was made is left then.
    pub fn make(&self, grant: &GrantPath, delegation: &Delegation) -> Result<u64, CgroupError> {
        let mut made = Vec::new();
        let result = self.make_all(grant, delegation, &mut made);
        if result.is_err() {
            for (above, hierarchy) in made.iter().rev() {
                self.unmake(grant, above, hierarchy);
            }
            self.remove_empty_account(grant.account);
        }
        result
    }

    fn make_all<'t>(
        &'t self,
        grant: &GrantPath,
        delegation: &Delegation,
        made: &mut Vec<(Node, &'t Hierarchy)>,
    ) -> Result<u64, CgroupError> {
        let Some((name, around)) = grant.names.split_last() else {
            return Err(CgroupError::NoSuchGrant(grant.clone()));
        };
        let mut id = 0;
        for hierarchy in self.hierarchies.all() {
            let above = self.above(hierarchy, grant.account, around)?;
            let node = above.make(name.as_str())?.ok_or_else(|| CgroupError::GrantExists(grant.clone()))?;
            cpuset::inherit(hierarchy, &above, &node)?;
            made.push((above, hierarchy));
            if hierarchy.kind == Kind::V2 {
                hand_on(hierarchy, &node, true)?;
            }
            for part in [PAYLOAD, MONITOR, CHILDREN] {
                node.make_only(part)?;
                if cpuset::is_v1_cpuset(hierarchy) {
                    cpuset::inherit(hierarchy, &node, &open_made(&node, part)?)?;
                }
            }
            if hierarchy.kind == Kind::V2 {
                id = self.delegate(&node, delegation)?;
            }
        }
        Ok(id)
    }

    /// The cgroup that a grant is made in: the account's node, or `children` of the grant around it.
    fn above(
        &self,
        hierarchy: &Hierarchy,
        account: HostUid,
        around: &[cgrant_policy::GrantName],
    ) -> Result<Node, CgroupError> {
        if around.is_empty() {
            return self.ensure_account(hierarchy, account);
        }
        let around = GrantPath { account, names: around.to_vec() };
        let children = self.need_part(hierarchy, &around, CHILDREN)?;
        if hierarchy.kind == Kind::V2 {
            enable_all(&children)?;
        }
        Ok(children)
    }

    /// An account's node, made if it is not there.
    pub(super) fn ensure_account(
        &self,
        hierarchy: &Hierarchy,
        account: HostUid,
    ) -> Result<Node, CgroupError> {
        let (node, made) = hierarchy.base.ensure(&account_name(account))?;
        if made {
            cpuset::inherit(hierarchy, &hierarchy.base, &node)?;
        }
        if hierarchy.kind == Kind::V2 {
            hand_on(hierarchy, &node, made)?;
        }
        Ok(node)
    }

    /// Hands a new grant's parts to whom they belong; the kernel's id of the payload.
    fn delegate(&self, grant: &Node, delegation: &Delegation) -> Result<u64, CgroupError> {
        let account = delegation.account.0.0;
        chown(grant, PROCS, account, 0)?;
        chown(&open_made(grant, MONITOR)?, PROCS, account, 0)?;
        let payload = open_made(grant, PAYLOAD)?;
        let id = payload.dir().inode().map_err(CgroupError::kernel("to stat", payload.path()))?;
        self.hand_over(&payload, delegation.holder(), account)?;
        Ok(id)
    }

    /// Gives a cgroup2 cgroup to its holder, who may then make cgroups in it and move its processes; `entrant` may enter it.
    pub(super) fn hand_over(&self, node: &Node, holder: (u32, u32), entrant: u32) -> Result<(), CgroupError> {
        let (uid, gid) = holder;
        for file in &self.delegated {
            match node.dir().chown(file, uid, gid) {
                Err(error) if is_missing(&error) => (),
                other => other.map_err(CgroupError::kernel("to hand over", node.path_of(file)))?,
            }
        }
        chown(node, PROCS, entrant, gid)?;
        if entrant != uid {
            node.dir()
                .chmod(PROCS, ENTERABLE)
                .map_err(CgroupError::kernel("to hand over", node.path_of(PROCS)))?;
        }
        // The directory last: until then nobody but root makes anything in it.
        chown(node, "", uid, gid)
    }

    /// `payload/.cgrant`, made if it is not there: the leaf for processes that come from outside into a payload which has
    /// cgroups of its own. It belongs to whom the payload does.
    pub(super) fn ensure_leaf(&self, payload: &Node) -> Result<Node, CgroupError> {
        let (leaf, made) = payload.ensure(LEAF)?;
        if made {
            let holder = payload.dir().owner().map_err(CgroupError::kernel("to stat", payload.path()))?;
            let procs = rustix::fs::statat(payload.dir(), PROCS, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| CgroupError::kernel("to stat", payload.path_of(PROCS))(error.into()))?;
            self.hand_over(&leaf, holder, procs.st_uid)?;
        }
        Ok(leaf)
    }

    /// Takes back what [`Tree::make`] made in one hierarchy before it failed. Nobody knows of it yet, so it is empty.
    fn unmake(&self, grant: &GrantPath, above: &Node, hierarchy: &Hierarchy) {
        let Some(name) = grant.name() else { return };
        let result = above.child(name.as_str()).map(|node| {
            if let Some(node) = node {
                for part in [PAYLOAD, MONITOR, CHILDREN] {
                    let _ = node.remove(part);
                }
            }
            above.remove(name.as_str())
        });
        if !matches!(result, Ok(Ok(()))) {
            tracing::warn!(%grant, hierarchy = hierarchy.name, "a cgroup that was half made could not be removed");
        }
    }
}

/// A part that was made just now.
fn open_made(grant: &Node, part: &str) -> Result<Node, CgroupError> {
    let gone = || CgroupError::kernel("to open", grant.path_of(part))(rustix::io::Errno::NOENT.into());
    grant.child(part)?.ok_or_else(gone)
}

fn chown(node: &Node, file: &str, uid: u32, gid: u32) -> Result<(), CgroupError> {
    node.dir().chown(file, uid, gid).map_err(CgroupError::kernel("to hand over", node.path_of(file)))
}
