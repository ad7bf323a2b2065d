//! The tree of all cgroups of one instance over all hierarchies, and finding a grant's cgroups in it.

use std::{
    collections::HashMap,
    fmt,
    os::fd::OwnedFd,
    sync::{Arc, Mutex},
};

use cgrant_policy::{GrantName, GrantPath, HostUid, Step};
use cgrant_sys::{Dir, ProcFs};
use cgrant_wire::{Hierarchy as WireHierarchy, boot::Placement};
use rustix::fs::OFlags;

use super::{
    cpuset,
    enable::enable_all,
    error::CgroupError,
    hierarchy::{CGROUP2, Hierarchies, Hierarchy, find, strip},
    make::delegated_files,
    mounts::Kind,
    node::{Node, children},
};

/// The part of a grant that its holder has.
pub(super) const PAYLOAD: &str = "payload";
/// The part for the account's own launch stage and monitor.
pub(super) const MONITOR: &str = "monitor";
/// The part for grants made from inside.
pub(super) const CHILDREN: &str = "children";
/// Where a tree waits, frozen, while it is being attached. There only meanwhile.
pub(super) const ENTRY: &str = "entry";
/// What processes that were exec'd into or attached to a payload with cgroups of its own sit in.
pub(super) const LEAF: &str = ".cgrant";
/// Below the account's node: processes of grants that were never finished and that nobody took back. No grant's name
/// begins like this.
pub(super) const EVICTED: &str = "_evicted";
/// What lists of cgroups call systemd's own hierarchy of v1.
const SYSTEMD: &str = "name=systemd";
/// Longest name of an instance.
const MAX_INSTANCE: usize = 32;

/// Which cgroup versions the host's controllers are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKind {
    /// All on v1; cgroup2 is not mounted by the host, and is there without controllers.
    V1,
    /// v1 hierarchies with controllers beside a mounted cgroup2.
    Hybrid,
    /// All on cgroup2.
    V2,
}

impl fmt::Display for HostKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::Hybrid => "hybrid",
            Self::V2 => "v2",
        })
    }
}

/// All cgroups of one instance.
///
/// Safe to use from several threads for different accounts. Operations on grants of one account have to come one after
/// the other: the engine's pool keeps that order.
#[derive(Debug)]
pub struct Tree {
    pub(super) hierarchies: Arc<Hierarchies>,
    pub(super) proc: ProcFs,
    /// The files that come with a delegated cgroup.
    pub(super) delegated: Vec<String>,
    kind: HostKind,
    /// What was said last of how many cgroups an account may have and how deep, and of which node: its kernel id.
    pub(super) governed: Mutex<HashMap<HostUid, Governed>>,
    /// How many cgroups an account has on cgroup v1 at most, once it was looked ([`super::shadow`]).
    pub(super) shadows: Mutex<HashMap<HostUid, u64>>,
}

/// Kernel id of an account's node, most descendants, greatest depth.
pub(super) type Governed = (u64, u64, u64);

impl Tree {
    /// Finds the host's hierarchies, makes the instance's node in each where systemd did not, enables all controllers on the way,
    /// and puts back the processes of attachments that a crash cut short.
    ///
    /// # Errors
    /// [`CgroupError::BadInstance`], [`CgroupError::NoHierarchy`], [`CgroupError::NoPlacement`],
    /// [`CgroupError::ProcessesInside`] where controllers can't be handed down, and what the kernel refuses.
    pub fn open(instance: &str, placements: &[Placement]) -> Result<Self, CgroupError> {
        let form = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if instance.is_empty() || instance.len() > MAX_INSTANCE || !instance.bytes().all(form) {
            return Err(CgroupError::BadInstance(instance.escape_default().to_string()));
        }
        let mut hierarchies = find(instance, placements)?;
        for hierarchy in &hierarchies.v1 {
            cpuset::prepare_base(hierarchy)?;
        }
        enable_to_base(&mut hierarchies.v2)?;
        let kind = kind_of(&hierarchies);
        let delegated = delegated_files(&hierarchies.v2.controllers);
        let proc = ProcFs::open().map_err(CgroupError::system("opening /proc"))?;
        let tree = Self {
            hierarchies: Arc::new(hierarchies),
            proc,
            delegated,
            kind,
            governed: Mutex::default(),
            shadows: Mutex::default(),
        };
        tree.finish_attachments()?;
        tree.remove_empty_accounts()?;
        Ok(tree)
    }

    fn remove_empty_accounts(&self) -> Result<(), CgroupError> {
        let names = dirs(&self.v2().base)?;
        names
            .iter()
            .filter_map(|name| account_of(name))
            .for_each(|account| self.remove_empty_account(account));
        Ok(())
    }

    /// Removes accounts' nodes that are empty, and the instance's own where they are and were not systemd's. To be called last.
    pub fn close(&self) {
        if let Err(error) = self.remove_empty_accounts() {
            tracing::warn!(%error, "empty cgroups of accounts may be left");
        }
        for hierarchy in self.hierarchies.all().filter(|hierarchy| !hierarchy.in_scope) {
            let (above, name) = hierarchy.base_path.rsplit_once('/').unwrap_or_default();
            let above = if above.is_empty() { "/" } else { above };
            // Grants that are left, persistent ones, keep it there: EBUSY is as it should be.
            let _ = hierarchy.open(above).and_then(|above| above.remove_dir(name));
        }
    }

    /// Which versions the controllers are on.
    pub fn kind(&self) -> HostKind {
        self.kind
    }

    /// The hierarchies of the host.
    pub(crate) fn host(&self) -> &Hierarchies {
        &self.hierarchies
    }

    /// The processes of the host.
    pub fn proc(&self) -> &ProcFs {
        &self.proc
    }

    /// Did systemd delegate the tree?
    pub fn is_in_scope(&self) -> bool {
        self.hierarchies.all().any(|hierarchy| hierarchy.in_scope)
    }

    /// The controllers that a grant gets, by the kernel's names, each once.
    pub fn controllers(&self) -> Vec<String> {
        let mut names: Vec<String> =
            self.hierarchies.all().flat_map(|hierarchy| hierarchy.controllers.iter().cloned()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }

    /// Features of the kernel that matter here: name, is it there, and what is done without it.
    pub fn features(&self) -> Vec<(String, bool, String)> {
        let v2 = &self.v2().base;
        let row = |name: &str, there: bool, without: &str| (name.to_owned(), there, without.to_owned());
        let mut rows = vec![
            row("cgroup.kill", v2.has("cgroup.kill"), "killing a grant is refused"),
            row("cgroup.freeze", v2.has("cgroup.freeze"), "freezing a grant is refused"),
            row("pressure", v2.read("cpu.pressure").is_ok(), "no pressure figures and signals"),
            row("memory.swap.max", self.has_swap_limit(), "memory.swap.max is refused"),
            row("memory.high", self.version_of("memory") == Some(Kind::V2), "memory.high is refused"),
        ];
        for (name, why) in self.v2().refused.iter() {
            rows.push(row(&format!("controller {name}"), false, &format!("grants don't get it: {why}")));
        }
        rows
    }

    fn has_swap_limit(&self) -> bool {
        match self.hierarchies.controller("memory") {
            Some(hierarchy) if hierarchy.kind == Kind::V1 => {
                hierarchy.base.has("memory.memsw.limit_in_bytes")
            }
            Some(hierarchy) => hierarchy.base.has("memory.swap.max"),
            None => false,
        }
    }

    fn version_of(&self, controller: &str) -> Option<Kind> {
        self.hierarchies.controller(controller).map(|hierarchy| hierarchy.kind)
    }

    /// Where a grant's payload is, in every hierarchy.
    pub fn hierarchies(&self, grant: &GrantPath) -> Vec<WireHierarchy> {
        let below = below_base(grant).join("/");
        self.hierarchies
            .all()
            .map(|hierarchy| WireHierarchy {
                name: hierarchy.name.clone(),
                path: format!("{}/{below}/{PAYLOAD}", hierarchy.base_path.trim_end_matches('/')),
            })
            .collect()
    }

    /// The innermost grant that a process is inside of, by a line of its `/proc/PID/cgroup`. A launch stage and a monitor are
    /// outside of their grant, and so inside the one around it, if there is one.
    ///
    /// Only cgroup2 says so: on v1 the account's own launch stage and monitor are in the payload's cgroups too.
    pub fn payload_around(&self, hierarchy: &str, path: &str) -> Option<GrantPath> {
        let (grant, part) = self.place_of(hierarchy, path)?;
        if part == PAYLOAD || part == CHILDREN {
            return Some(grant);
        }
        grant.is_nested().then(|| grant.around())
    }

    /// The hierarchies in which a service manager may say what processes are, by the names that lists of cgroups have, the better
    /// one first.
    pub fn unit_hierarchies(&self) -> [&'static str; 2] {
        [CGROUP2, SYSTEMD]
    }

    /// Is this cgroup one that nobody but root could have made, and on v1, where whoever may write its files moves processes into
    /// it from anywhere, root's itself?
    pub fn only_root_could_make(&self, hierarchy: &str, above: &[String], name: &str) -> bool {
        let Some(hierarchy) = self.hierarchies.all().find(|known| known.name == hierarchy) else {
            return false;
        };
        let is_roots = |names: &[String]| {
            let dir = hierarchy.open(&format!("/{}", names.join("/")));
            dir.and_then(|dir| dir.is_roots()).unwrap_or(false)
        };
        let ways = (0..=above.len()).all(|length| above.get(..length).is_some_and(is_roots));
        let itself = [above, &[name.to_owned()]].concat();
        ways && (hierarchy.kind == Kind::V2 || is_roots(&itself))
    }

    /// The kernel's id of a cgroup2 cgroup, by a line of a process's `/proc/PID/cgroup`; `None` for other hierarchies, and if it
    /// can't be had.
    pub fn id_of(&self, hierarchy: &str, path: &str) -> Option<u64> {
        (hierarchy == CGROUP2).then(|| self.v2().open(path).and_then(|dir| dir.inode()).ok()).flatten()
    }

    /// The innermost grant that a cgroup2 path lies in, and which part of it; the empty part is the grant's own cgroup.
    pub(super) fn place_of(&self, hierarchy: &str, path: &str) -> Option<(GrantPath, String)> {
        if hierarchy != CGROUP2 {
            return None;
        }
        let mut names = strip(path, &self.v2().base_path)?.split('/');
        let account = account_of(names.next()?)?;
        let mut grant = GrantPath::new(account, GrantName::new(names.next()?).ok()?);
        loop {
            let part = names.next().unwrap_or_default();
            let inner = (part == CHILDREN).then(|| names.next()).flatten().map(Step::new);
            match inner {
                Some(Ok(step)) => grant.steps.push(step),
                _ => return Some((grant, part.to_owned())),
            }
        }
    }

    /// The kernel's id of the payload's cgroup2 cgroup; `None` if there is none.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn payload_id(&self, grant: &GrantPath) -> Result<Option<u64>, CgroupError> {
        let Some(payload) = self.part(self.v2(), grant, PAYLOAD)? else { return Ok(None) };
        payload.dir().inode().map(Some).map_err(CgroupError::kernel("to stat", payload.path()))
    }

    /// An `O_PATH` descriptor of the payload's cgroup2 directory. It carries none of the broker's rights.
    ///
    /// # Errors
    /// [`CgroupError::NoSuchGrant`].
    pub fn open_payload(&self, grant: &GrantPath) -> Result<OwnedFd, CgroupError> {
        let names = with_part(&below_base(grant), PAYLOAD);
        self.open_below(self.v2(), grant, &names, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// A grant's own cgroup2 directory, around its payload, as a place.
    ///
    /// # Errors
    /// [`CgroupError::NoSuchGrant`].
    pub fn open_grant(&self, grant: &GrantPath) -> Result<OwnedFd, CgroupError> {
        self.open_below(self.v2(), grant, &below_base(grant), OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Every grant that there are cgroups of, in any hierarchy, those inside others after them.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn scan(&self) -> Result<Vec<GrantPath>, CgroupError> {
        let mut found = Vec::new();
        for hierarchy in self.hierarchies.all() {
            for name in dirs(&hierarchy.base)? {
                let Some(account) = account_of(&name) else { continue };
                let Some(node) = hierarchy.base.child(&name)? else { continue };
                collect(node, GrantPath::of_account(account), &mut found)?;
            }
        }
        found.sort_by(|a, b| (a.account, &a.steps).cmp(&(b.account, &b.steps)));
        found.dedup();
        Ok(found)
    }

    /// How many cgroups the account's payloads have below them, when so many of its grants are inside others. Costs the same
    /// however many there are.
    pub fn count_cgroups(&self, account: HostUid, nested: u64) -> u64 {
        let Some((_, grants)) = self.account_node(account) else { return 0 };
        let grants = grants.saturating_add(nested);
        let names = [account_name(account), "cgroup.stat".to_owned()];
        let all = self.v2().base.keyed_below(&names, "nr_descendants").ok().flatten().flatten().unwrap_or(0);
        all.saturating_sub(grants.saturating_mul(PARTS))
    }

    /// The kernel's id of an account's cgroup2 node, and how many cgroups are directly in it; `None` if it is not there.
    pub(super) fn account_node(&self, account: HostUid) -> Option<(u64, u64)> {
        let name = account_name(account);
        let stat = rustix::fs::statat(self.v2().base.dir(), name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
        stat.ok().map(|stat| (stat.st_ino, directories(&stat)))
    }

    /// The cgroup2 hierarchy.
    pub(super) fn v2(&self) -> &Hierarchy {
        &self.hierarchies.v2
    }

    /// A grant's cgroup in a hierarchy, if it is there. Without names: the account's node.
    pub(super) fn node(&self, hierarchy: &Hierarchy, grant: &GrantPath) -> Result<Option<Node>, CgroupError> {
        hierarchy.base.below(&below_base(grant))
    }

    /// A part of a grant in a hierarchy, if it is there.
    pub(super) fn part(
        &self,
        hierarchy: &Hierarchy,
        grant: &GrantPath,
        part: &str,
    ) -> Result<Option<Node>, CgroupError> {
        hierarchy.base.below(&with_part(&below_base(grant), part))
    }

    /// A part of a grant that has to be there.
    pub(super) fn need_part(
        &self,
        hierarchy: &Hierarchy,
        grant: &GrantPath,
        part: &str,
    ) -> Result<Node, CgroupError> {
        self.part(hierarchy, grant, part)?.ok_or_else(|| CgroupError::NoSuchGrant(grant.clone()))
    }

    /// Opens what has to be there of a grant, by the names from the instance's node.
    pub(super) fn open_below(
        &self,
        hierarchy: &Hierarchy,
        grant: &GrantPath,
        names: &[String],
        flags: OFlags,
    ) -> Result<OwnedFd, CgroupError> {
        hierarchy.base.open_below(names, flags)?.ok_or_else(|| CgroupError::NoSuchGrant(grant.clone()))
    }

    /// A grant's cgroup that has to be there.
    pub(super) fn need(&self, hierarchy: &Hierarchy, grant: &GrantPath) -> Result<Node, CgroupError> {
        self.node(hierarchy, grant)?.ok_or_else(|| CgroupError::NoSuchGrant(grant.clone()))
    }
}

/// Cgroups that every grant has for itself: its own, payload, monitor, children.
const PARTS: u64 = 4;

/// How many cgroups are directly below one.
pub(super) fn grants_in(dir: &Dir) -> u64 {
    rustix::fs::fstat(dir).map_or(0, |stat| directories(&stat))
}

/// How many directories are in one, by its link count: cgroupfs counts them there (fs/kernfs/inode.c,
/// `kernfs_refresh_inode`).
fn directories(stat: &rustix::fs::Stat) -> u64 {
    stat.st_nlink.saturating_sub(2)
}

/// Enables every controller from the mount's root, or from the delegated scope, down to the instance's node.
fn enable_to_base(hierarchy: &mut Hierarchy) -> Result<(), CgroupError> {
    let mut refused = Vec::new();
    if !hierarchy.in_scope {
        let dir = hierarchy.mount.try_clone().map_err(CgroupError::system("duplicating a descriptor"))?;
        refused = enable_all(&Node::new(dir, format!("{CGROUP2}:{}", hierarchy.mount_path)))?;
    }
    refused.extend(enable_all(&hierarchy.base)?);
    let on = hierarchy.base.read_if_there("cgroup.subtree_control")?.unwrap_or_default();
    hierarchy.controllers = on.split_ascii_whitespace().map(str::to_owned).collect();
    hierarchy.refused = refused.into_iter().map(|(name, error)| (name, error.to_string())).collect();
    Ok(())
}

fn kind_of(hierarchies: &Hierarchies) -> HostKind {
    let v1 = hierarchies.v1.iter().any(|hierarchy| !hierarchy.controllers.is_empty());
    match (v1, hierarchies.v2.detached.is_some()) {
        (false, _) => HostKind::V2,
        (true, true) => HostKind::V1,
        (true, false) => HostKind::Hybrid,
    }
}

/// The name of an account's node.
pub(super) fn account_name(account: HostUid) -> String {
    format!("u{account}")
}

fn account_of(name: &str) -> Option<HostUid> {
    let account = HostUid(name.strip_prefix('u')?.parse().ok()?);
    (account_name(account) == name).then_some(account)
}

/// The names from the instance's node to a grant's cgroup.
pub fn below_base(grant: &GrantPath) -> Vec<String> {
    let mut names = vec![account_name(grant.account)];
    for (at, step) in grant.steps.iter().enumerate() {
        if at > 0 {
            names.push(CHILDREN.to_owned());
        }
        names.push(step.to_string());
    }
    names
}

/// The names from the instance's node to a part of a grant's cgroup, or to a file in it.
pub(super) fn with_part(names: &[String], part: &str) -> Vec<String> {
    names.iter().map(String::as_str).chain([part]).map(str::to_owned).collect()
}

/// The cgroups directly below one whose names are text.
fn dirs(node: &Node) -> Result<Vec<String>, CgroupError> {
    let names = children(node.dir()).map_err(CgroupError::kernel("to list", node.path()))?;
    Ok(names.into_iter().filter_map(|name| name.into_string().ok()).collect())
}

/// Adds the grants below an account's node and below each grant's `children`.
fn collect(account: Node, path: GrantPath, found: &mut Vec<GrantPath>) -> Result<(), CgroupError> {
    let mut todo = vec![(account, path)];
    while let Some((node, above)) = todo.pop() {
        for name in dirs(&node)? {
            let Ok(step) = Step::new(&name) else { continue };
            // An account's own grants are told apart by nothing but their names.
            if above.steps.is_empty() && !step.user.is_root() {
                continue;
            }
            let path = above.inner(step);
            let grant = node.child(&name)?;
            found.push(path.clone());
            if let Some(inner) = grant.map(|grant| grant.child(CHILDREN)).transpose()?.flatten() {
                todo.push((inner, path));
            }
        }
    }
    Ok(())
}
