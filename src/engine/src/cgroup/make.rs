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
//! Controllers that policy does not let the account have are not enabled in `GRANT/`: the grant's own files of them are root's and hold
//! its limits, and below it there are none, whoever asks for them there.
//!
//! Never a group of the account's: who shares it (`users`, an LDAP group) could move the payload's processes about in it.
//!
//! On v1 everything is root's: v1 is no safe delegation boundary (design, invariant 11).

use cgrant_policy::{Controllers, GrantPath, HostGid, HostUid};

use super::{
    cpuset,
    enable::{enable_all, hand_on, hand_on_new},
    error::CgroupError,
    hierarchy::Hierarchy,
    limits::bound_descendants,
    mounts::Kind,
    node::{Node, is_missing},
    tree::{CHILDREN, LEAF, MONITOR, PAYLOAD, Tree, account_name, below_base, with_part},
};

/// Where the kernel names the files that come with a delegated cgroup.
const DELEGATE: &str = "/sys/kernel/cgroup/delegate";
/// Those of the oldest kernels that have cgroup2; what is delegated if the list can't be read.
const ALWAYS_DELEGATED: [&str; 3] = ["cgroup.procs", "cgroup.threads", "cgroup.subtree_control"];
const PROCS: &str = "cgroup.procs";
/// What is made in a grant's own cgroup.
const PARTS: [&str; 3] = [PAYLOAD, MONITOR, CHILDREN];
/// The holder may write as its group, whose members are in the range all.
const ENTERABLE: u32 = 0o664;

/// Who owns what in a grant's cgroup2 cgroups, and which controllers are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delegation {
    /// The account and its group.
    pub account: (HostUid, HostGid),
    /// Root of the grant's range; `None` for a grant without ids, whose payload is the account's own.
    pub root: Option<(HostUid, HostGid)>,
    /// Controllers for the payload and what is below it.
    pub controllers: Controllers,
    /// Most cgroups below the grant's own beside what it has for itself; `None` where the account's number alone bounds it.
    pub most: Option<u64>,
}

impl Delegation {
    /// Who has the payload.
    fn holder(&self) -> (u32, u32) {
        let (uid, gid) = self.root.unwrap_or(self.account);
        (uid.0, gid.0)
    }
}

/// The files that come with a delegated cgroup on this kernel, where grants get these controllers on cgroup2.
pub(super) fn delegated_files(controllers: &[String]) -> Vec<String> {
    let listed = std::fs::read_to_string(DELEGATE).ok().filter(|text| !text.trim().is_empty());
    let files = listed.map_or_else(
        || ALWAYS_DELEGATED.map(str::to_owned).to_vec(),
        |text| text.lines().map(str::to_owned).collect(),
    );
    let is_there = |file: &String| {
        let of = file.split('.').next().unwrap_or_default();
        of == "cgroup" || controllers.iter().any(|controller| controller == of)
    };
    files.into_iter().filter(is_there).collect()
}

impl Tree {
    /// Makes a grant's cgroups in every hierarchy; gives the kernel's id of the payload on cgroup2.
    ///
    /// An attacker wants a cgroup of another account, or limits that are its own to change. Names are checked types, every
    /// step goes from a directory that root owns, and nothing that exists already is taken over.
    ///
    /// # Errors
    /// [`CgroupError::GrantExists`]; [`CgroupError::NoSuchGrant`] if the grant around it has no cgroup;
    /// [`CgroupError::NoPlacement`] if somebody removed the instance's; what the kernel refuses. Nothing that was made is left then.
    pub fn make(&self, grant: &GrantPath, delegation: &Delegation) -> Result<u64, CgroupError> {
        let names = below_base(grant);
        let mut made = Vec::new();
        let result = self.make_all(grant, &names, delegation, &mut made);
        if result.is_err() {
            for hierarchy in made.iter().rev() {
                unmake(hierarchy, grant, &names);
            }
            self.remove_empty_account(grant.account);
        }
        result
    }

    fn make_all<'t>(
        &'t self,
        grant: &GrantPath,
        names: &[String],
        delegation: &Delegation,
        made: &mut Vec<&'t Hierarchy>,
    ) -> Result<u64, CgroupError> {
        let (mut alone, parts) = (false, parts_of(names));
        for hierarchy in &self.hierarchies.v1 {
            self.make_own(hierarchy, grant, names, &mut alone)?;
            made.push(hierarchy);
            let given = cpuset::is_v1_cpuset(hierarchy) && {
                let above = open_made(&hierarchy.base, names.split_last().map_or(&[], |(_, above)| above))?;
                cpuset::inherit(hierarchy, &above, &open_made(&hierarchy.base, names)?)?
            };
            make_parts(hierarchy, &parts)?;
            // Where the kernel gave the grant's cgroup its CPUs, it has given them to the new ones in it too.
            if given {
                let node = open_made(&hierarchy.base, names)?;
                for part in PARTS {
                    cpuset::inherit(hierarchy, &node, &open_made(&node, &[part.to_owned()])?)?;
                }
            }
        }
        let v2 = self.v2();
        self.make_own(v2, grant, names, &mut false)?;
        made.push(v2);
        let node = open_made(&v2.base, names)?;
        let all = delegation.controllers == Controllers::All;
        // That some can be enabled does not say that what is above hands all of them down, which limits are set with.
        if !(all && hand_on_new(v2, &node)?) {
            // What is above may have been made by somebody who did not come to handing anything down.
            self.hand_on_above(grant)?;
            hand_on(v2, &node, true, &delegation.controllers)?;
        }
        make_parts(v2, &parts)?;
        // Before anybody can make any.
        delegation.most.map_or(Ok(()), |most| bound_descendants(&node, most))?;
        self.delegate(&node, delegation)
    }

    /// Makes a grant's own cgroup, and its account's if that is not there. `alone` is what the hierarchies before had to say
    /// of that.
    fn make_own(
        &self,
        hierarchy: &Hierarchy,
        grant: &GrantPath,
        names: &[String],
        alone: &mut bool,
    ) -> Result<(), CgroupError> {
        let may_be_alone = !grant.is_nested();
        if *alone && may_be_alone {
            self.make_account(hierarchy, grant.account)?;
        }
        let mut result = hierarchy.base.make_below(names)?;
        if result.is_none() && may_be_alone {
            *alone = true;
            self.make_account(hierarchy, grant.account)?;
            result = hierarchy.base.make_below(names)?;
        }
        match result {
            Some(true) => Ok(()),
            Some(false) => Err(CgroupError::GrantExists(grant.clone())),
            // The account's is there now, if the instance's is.
            None if may_be_alone => Err(CgroupError::NoPlacement {
                hierarchy: hierarchy.name.clone(),
                path: hierarchy.base_path.clone(),
            }),
            None => Err(CgroupError::NoSuchGrant(grant.clone())),
        }
    }

    /// Makes an account's node if it is not there.
    fn make_account(&self, hierarchy: &Hierarchy, account: HostUid) -> Result<(), CgroupError> {
        if hierarchy.kind == Kind::V2 {
            return self.ensure_account(hierarchy, account).map(drop);
        }
        let names = [account_name(account)];
        let made = hierarchy.base.make_below(&names)? == Some(true);
        if made && cpuset::is_v1_cpuset(hierarchy) {
            cpuset::inherit(hierarchy, &hierarchy.base, &open_made(&hierarchy.base, &names)?)?;
        }
        Ok(())
    }

    /// Hands controllers down on cgroup2 in what a grant is made in: the account's node, or `children` of the grant around it.
    fn hand_on_above(&self, grant: &GrantPath) -> Result<(), CgroupError> {
        if !grant.is_nested() {
            return self.ensure_account(self.v2(), grant.account).map(drop);
        }
        enable_all(&self.need_part(self.v2(), &grant.around(), CHILDREN)?).map(drop)
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
            hand_on(hierarchy, &node, made, &Controllers::All)?;
        }
        Ok(node)
    }

    /// Hands a new grant's parts to whom they belong; the kernel's id of the payload.
    fn delegate(&self, grant: &Node, delegation: &Delegation) -> Result<u64, CgroupError> {
        let account = delegation.account.0.0;
        chown(grant, PROCS, account, 0)?;
        // Both are root's still, and there are no links in cgroupfs.
        let monitor = || grant.path_of(format!("{MONITOR}/{PROCS}"));
        let handed = grant.dir().chown_below(&[MONITOR, PROCS], account, 0);
        handed.map_err(|error| CgroupError::kernel("to hand over", monitor())(error))?;
        let payload = open_made(grant, &[PAYLOAD.to_owned()])?;
        let id = payload.dir().inode().map_err(CgroupError::kernel("to stat", payload.path()))?;
        self.hand_over(&payload, delegation.holder(), account)?;
        Ok(id)
    }

    /// Gives a cgroup2 cgroup to its holder, who may then make cgroups in it and move its processes; `entrant` may enter it.
    pub(super) fn hand_over(&self, node: &Node, holder: (u32, u32), entrant: u32) -> Result<(), CgroupError> {
        let (uid, gid) = holder;
        // Who may enter is said below.
        for file in self.delegated.iter().filter(|file| *file != PROCS) {
            match node.dir().chown(file, uid, gid) {
                Err(error) if is_missing(&error) => (),
                other => other.map_err(CgroupError::kernel("to hand over", node.path_of(file)))?,
            }
        }
        chown(node, PROCS, entrant, gid)?;
        if entrant != uid {
            // There are no links in cgroupfs.
            node.dir()
                .chmod_below(&[PROCS], ENTERABLE)
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
}

/// The names on the way to each part of a grant.
fn parts_of(names: &[String]) -> [Vec<String>; PARTS.len()] {
    PARTS.map(|part| with_part(names, part))
}

/// Makes the parts of a grant in one hierarchy.
fn make_parts(hierarchy: &Hierarchy, parts: &[Vec<String>]) -> Result<(), CgroupError> {
    for names in parts {
        if hierarchy.base.make_below(names)? != Some(true) {
            let path = hierarchy.base.path_of(names.join("/"));
            return Err(CgroupError::kernel("to make", path)(rustix::io::Errno::NOENT.into()));
        }
    }
    Ok(())
}

/// Takes back what [`Tree::make`] made in one hierarchy before it failed. Nobody knows of it yet, so it is empty.
fn unmake(hierarchy: &Hierarchy, grant: &GrantPath, names: &[String]) {
    for part in parts_of(names) {
        let _ = hierarchy.base.remove_below(&part);
    }
    if let Err(error) = hierarchy.base.remove_below(names) {
        tracing::warn!(%grant, hierarchy = hierarchy.name, %error, "a cgroup that was half made could not be removed");
    }
}

/// A cgroup that was made just now, by the names on the way there; without names the one to start from.
fn open_made(from: &Node, names: &[String]) -> Result<Node, CgroupError> {
    if names.is_empty() {
        return from.again();
    }
    let gone =
        || CgroupError::kernel("to open", from.path_of(names.join("/")))(rustix::io::Errno::NOENT.into());
    from.below(names)?.ok_or_else(gone)
}

fn chown(node: &Node, file: &str, uid: u32, gid: u32) -> Result<(), CgroupError> {
    node.dir().chown(file, uid, gid).map_err(CgroupError::kernel("to hand over", node.path_of(file)))
}
