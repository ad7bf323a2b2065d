//! Limits: all of a request's are set, or none.
//!
//! They are set on the grant's own cgroup, which root owns, and mirrored into the payload's root-owned files, so that
//! programs inside see them. The same key means the same on v1 and v2; [`v1`] and [`v2`] know the files.

mod transaction;
mod v1;
mod v2;
mod values;

pub use values::USUAL_WEIGHT;

use std::{io, rc::Rc, sync::PoisonError};

use cgrant_policy::{GrantPath, HostUid, LimitKey, LimitValue, RawKey, Setting};

use self::transaction::Transaction;
use super::{
    error::CgroupError,
    hierarchy::Hierarchy,
    mounts::Kind,
    node::{Node, value_of},
    tree::{Governed, PAYLOAD, Tree, grants_in},
};

/// Cgroups that a grant has for itself at most: its own, payload, monitor, children, and now and then `entry` and `.cgrant`.
const MOST_PARTS: u64 = 6;

/// Those of them that it has below its own from the beginning: payload, monitor, children.
const PARTS_BELOW: u64 = 3;
/// How many cgroups there may be below one, in all.
const DESCENDANTS: &str = "cgroup.max.descendants";

/// Bounds how many cgroups there are below a grant's own cgroup2 cgroup, beside what it has for itself.
pub(super) fn bound_descendants(grant: &Node, most: u64) -> Result<(), CgroupError> {
    write_bound(grant, DESCENDANTS, most.saturating_add(PARTS_BELOW))
}

fn write_bound(node: &Node, file: &str, value: u64) -> Result<(), CgroupError> {
    // The kernel holds it in an int.
    let value = value.min(i32::MAX as u64).to_string();
    node.write(file, &value).map_err(CgroupError::kernel("to set", node.path_of(file)))
}

/// Cgroups below a grant's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Below {
    /// How many there are, beside what the grant has for itself.
    pub used: u64,
    /// How many there may be, beside that.
    pub most: u64,
}

/// The grants of an account that are inside others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Nested {
    /// How many there are.
    pub grants: u64,
    /// How many levels there may be. Each has `children` and the grant beside its payload.
    pub depth: u64,
}

/// What limits of one controller are set on.
struct Target<'t> {
    hierarchy: &'t Hierarchy,
    /// The cgroup above, for what is inherited.
    above: Rc<Node>,
    /// The cgroup that limits: a grant's own, or an account's.
    outer: Rc<Node>,
    /// The payload that mirrors them.
    inner: Option<Rc<Node>>,
}

impl Target<'_> {
    /// Both cgroups, the limiting one first.
    fn nodes(&self) -> impl Iterator<Item = &Rc<Node>> {
        [&self.outer].into_iter().chain(&self.inner)
    }

    /// Does something with both. A payload without the files of the controller, which policy keeps from it, mirrors nothing: the
    /// cgroup around it holds the limit.
    ///
    /// # Errors
    /// What `act` gives for a cgroup that has them.
    fn each(&self, mut act: impl FnMut(&Rc<Node>) -> io::Result<()>) -> io::Result<()> {
        act(&self.outer)?;
        match self.inner.as_ref().map_or(Ok(()), act) {
            Err(error) if super::node::is_missing(&error) => Ok(()),
            other => other,
        }
    }
}

impl Tree {
    /// Sets limits of a grant, all of them or none: if the kernel refuses one, those before it get their old values back.
    ///
    /// # Errors
    /// [`CgroupError::Unsupported`] before anything is set; [`CgroupError::Limit`] with the kernel's error;
    /// [`CgroupError::NoSuchGrant`]; [`CgroupError::NotPutBack`] if the kernel refuses the old values too.
    pub fn set_limits(&self, grant: &GrantPath, settings: &[Setting]) -> Result<(), CgroupError> {
        self.apply(grant, settings)
    }

    /// Makes an account's node if there is none, and bounds what the account has in all its grants together: cgroups below
    /// payloads (at most `cgroups`, `depth` levels deep, counted by the kernel) and `ceilings`. Grants inside grants have room
    /// beside that: as many as there are, and one more.
    ///
    /// # Errors
    /// As [`Tree::set_limits`].
    pub fn govern_account(
        &self,
        account: HostUid,
        cgroups: u64,
        depth: u64,
        nested: Nested,
        ceilings: &[Setting],
    ) -> Result<(), CgroupError> {
        // Room for the grants that are there, one more, and `_evicted`; what they have for themselves is not the holder's.
        // Two levels are the grant and its payload.
        let bounds = |(id, grants): (u64, u64)| {
            let own = grants.saturating_add(nested.grants).saturating_add(2).saturating_mul(MOST_PARTS);
            let levels = nested.depth.saturating_mul(2).saturating_add(2);
            (id, cgroups.saturating_add(own), depth.saturating_add(levels))
        };
        // A node that was bounded so has all that it needs: it is root's, and nobody but the broker changes it.
        let there = self.account_node(account).map(bounds);
        if ceilings.is_empty() && there.is_some_and(|there| self.is_bounded(account, there)) {
            return Ok(());
        }
        let path = GrantPath::of_account(account);
        if !ceilings.is_empty() {
            for hierarchy in &self.hierarchies.v1 {
                self.ensure_account(hierarchy, account)?;
            }
        }
        let node = self.ensure_account(self.v2(), account)?;
        let id = node.dir().inode().map_err(CgroupError::kernel("to stat", node.path()))?;
        self.bound(account, &node, bounds((id, grants_in(node.dir()))))?;
        self.apply(&path, ceilings)
    }

    /// Is the account's node the one that was bounded last, and so?
    fn is_bounded(&self, account: HostUid, bounds: Governed) -> bool {
        let governed = self.governed.lock().unwrap_or_else(PoisonError::into_inner);
        governed.get(&account) == Some(&bounds)
    }

    /// Bounds what is below an account's node, unless it is bounded so already.
    fn bound(&self, account: HostUid, node: &Node, bounds: Governed) -> Result<(), CgroupError> {
        if self.is_bounded(account, bounds) {
            return Ok(());
        }
        let governed = || self.governed.lock().unwrap_or_else(PoisonError::into_inner);
        governed().remove(&account);
        let (_, descendants, depth) = bounds;
        write_bound(node, DESCENDANTS, descendants)?;
        write_bound(node, "cgroup.max.depth", depth)?;
        governed().insert(account, bounds);
        Ok(())
    }

    /// Bounds how many cgroups are below a grant's own, beside what it has for itself.
    ///
    /// # Errors
    /// [`CgroupError::NoSuchGrant`], what the kernel refuses.
    pub fn bound_grant(&self, grant: &GrantPath, most: u64) -> Result<(), CgroupError> {
        bound_descendants(&self.need(self.v2(), grant)?, most)
    }

    /// How many cgroups there are below a grant's own beside what it has for itself, and how many there may be.
    ///
    /// # Errors
    /// [`CgroupError::NoSuchGrant`], what the kernel refuses.
    pub fn below_grant(&self, grant: &GrantPath) -> Result<Below, CgroupError> {
        let node = self.need(self.v2(), grant)?;
        let read = |file| node.read(file).map_err(CgroupError::kernel("to read", node.path_of(file)));
        let all = value_of(&read("cgroup.stat")?, "nr_descendants").unwrap_or(0);
        // Without a bound it says "max".
        let most = read(DESCENDANTS)?.parse().unwrap_or(u64::MAX);
        Ok(Below { used: all.saturating_sub(PARTS_BELOW), most: most.saturating_sub(PARTS_BELOW) })
    }

    fn apply(&self, path: &GrantPath, settings: &[Setting]) -> Result<(), CgroupError> {
        let mut planned = Vec::with_capacity(settings.len());
        for setting in settings {
            let target = self.target(path, setting)?;
            check(&target, setting)?;
            planned.push((setting, target));
        }
        v1::check_memory(&planned)?;
        let mut transaction = Transaction::default();
        let mut memory_done = false;
        for (setting, target) in &planned {
            let is_memory =
                matches!(setting, Setting::Limit(LimitKey::MemoryMax | LimitKey::MemorySwapMax, _));
            let result = match setting {
                // v1 couples the two: they are set as one.
                Setting::Limit(..) if is_memory && target.hierarchy.kind == Kind::V1 => {
                    if std::mem::replace(&mut memory_done, true) {
                        continue;
                    }
                    v1::set_memory(&mut transaction, &planned, target)
                }
                Setting::Limit(key, value) if target.hierarchy.kind == Kind::V1 => {
                    v1::set(&mut transaction, target, *key, value)
                }
                Setting::Limit(key, value) => v2::set(&mut transaction, target, *key, value),
                Setting::Raw(key, value) => {
                    target.each(|node| transaction.replace(node, key.as_str(), value.as_str()))
                }
            };
            if let Err(source) = result {
                transaction.undo()?;
                let (key, value) = describe(setting);
                return Err(CgroupError::Limit { key, value, source });
            }
        }
        Ok(())
    }

    fn target(&self, path: &GrantPath, setting: &Setting) -> Result<Target<'_>, CgroupError> {
        let hierarchy = match setting {
            Setting::Limit(key, _) => self.hierarchy_of(*key)?,
            Setting::Raw(key, _) => self.hierarchy_of_raw(key)?,
        };
        let above = match path.steps.is_empty() {
            true => None,
            false => self.node(hierarchy, &path.around())?,
        };
        let above = match above {
            Some(above) => above,
            None => {
                let dir = hierarchy.base.dir().try_clone();
                let dir = dir.map_err(CgroupError::system("duplicating a descriptor"))?;
                Node::new(dir, hierarchy.base.path().to_owned())
            }
        };
        let outer = self.need(hierarchy, path)?;
        let inner =
            if path.steps.is_empty() { None } else { Some(self.need_part(hierarchy, path, PAYLOAD)?) };
        Ok(Target { hierarchy, above: Rc::new(above), outer: Rc::new(outer), inner: inner.map(Rc::new) })
    }

    /// Has this host what a limit is carried out with?
    ///
    /// # Errors
    /// [`CgroupError::Unsupported`].
    pub fn can_limit(&self, key: LimitKey) -> Result<(), CgroupError> {
        let hierarchy = self.hierarchy_of(key)?;
        to_be_had(key, hierarchy.kind)?;
        // The broker's own cgroup has the files that those of accounts and grants have.
        has_file(&hierarchy.base, key, hierarchy.kind)
    }

    /// The hierarchy that a limit is in.
    fn hierarchy_of(&self, key: LimitKey) -> Result<&Hierarchy, CgroupError> {
        self.hierarchies
            .controller(key.controller())
            .ok_or_else(|| unsupported(key, "no hierarchy of this host has its controller"))
    }

    /// The hierarchy that a raw key's file is in: its controller's, or cgroup2 for what the core has (`cgroup.*`, pressure).
    fn hierarchy_of_raw(&self, key: &RawKey) -> Result<&Hierarchy, CgroupError> {
        let v1_own = self
            .hierarchies
            .v1
            .iter()
            .find(|hierarchy| hierarchy.controllers.iter().any(|c| c == key.controller()));
        Ok(v1_own.or_else(|| self.hierarchies.controller(key.controller())).unwrap_or(self.v2()))
    }
}

/// Is there what the setting needs? So that what can't be had at all is found before anything is changed.
fn check(target: &Target<'_>, setting: &Setting) -> Result<(), CgroupError> {
    match setting {
        Setting::Limit(key, _) => {
            to_be_had(*key, target.hierarchy.kind)?;
            has_file(&target.outer, *key, target.hierarchy.kind)
        }
        Setting::Raw(key, _) => match target.outer.read(key.as_str()) {
            Ok(_) => Ok(()),
            Err(error) if super::node::is_missing(&error) => {
                Err(unsupported(key, "this kernel has no such file in a grant's cgroup"))
            }
            Err(_) => Err(unsupported(key, "its file can't be read, so a change could not be undone")),
        },
    }
}

/// Can a limit be had in a hierarchy of this kind?
fn to_be_had(key: LimitKey, kind: Kind) -> Result<(), CgroupError> {
    match key.lacks_on_v1().filter(|_| kind == Kind::V1) {
        Some(reason) => Err(unsupported(key, reason)),
        None => Ok(()),
    }
}

/// Has a cgroup of this kind the file that carries a limit?
fn has_file(node: &Node, key: LimitKey, kind: Kind) -> Result<(), CgroupError> {
    if node.has(&file_of(key, kind)) { Ok(()) } else { Err(unsupported(key, missing_file(key))) }
}

/// The file that carries a limit; of several, the one that tells whether the kernel can do it.
fn file_of(key: LimitKey, kind: Kind) -> String {
    let file = match (kind, key) {
        (Kind::V1, LimitKey::MemoryMax) => v1::MEMORY,
        (Kind::V1, LimitKey::MemorySwapMax) => v1::MEMORY_AND_SWAP,
        (Kind::V1, LimitKey::CpuMax) => v1::CPU_QUOTA,
        (Kind::V1, LimitKey::CpuWeight) => v1::CPU_SHARES,
        (Kind::V1, LimitKey::Hugetlb(size)) => return format!("hugetlb.{size}.limit_in_bytes"),
        (_, key) => return key.to_string(),
    };
    file.to_owned()
}

fn missing_file(key: LimitKey) -> &'static str {
    match key {
        LimitKey::MemorySwapMax => "this kernel does not account swap (swapaccount=1 makes it)",
        LimitKey::CpuMax => "this kernel has no CONFIG_CFS_BANDWIDTH",
        LimitKey::IoMax => "this kernel has no CONFIG_BLK_DEV_THROTTLING",
        LimitKey::Hugetlb(_) => "this machine has no huge pages of that size",
        _ => "this kernel has no file for it",
    }
}

fn unsupported(what: impl std::fmt::Display, reason: &'static str) -> CgroupError {
    CgroupError::Unsupported { what: what.to_string(), reason }
}

fn describe(setting: &Setting) -> (String, String) {
    match setting {
        Setting::Limit(key, value) => (key.to_string(), value.to_string()),
        Setting::Raw(key, value) => (key.to_string(), value.to_string()),
    }
}

/// A text of the kernel's as the value of a limit; one that does not parse is not a value.
fn parse(key: LimitKey, text: &str) -> io::Result<LimitValue> {
    LimitValue::parse(&key, text).map_err(|_| io::ErrorKind::InvalidData.into())
}
