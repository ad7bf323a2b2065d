//! Processes of grants that were never finished: put outside, not killed. They did nothing but ask.
//!
//! Where they came from was in the memory of a broker that died. A process whose parent has the same uid and is outside of the
//! tree goes to where that is, which is where it was forked; any other one goes to the account's `_evicted`, under the
//! account's ceilings. Nobody gets into a cgroup that is not an own parent's.
//!
//! Of a grant inside another, outside is inside that other one: with a parent in its payload, or in `children/_evicted`.

use cgrant_policy::GrantPath;
use cgrant_sys::{Dir, Pidfd};

use super::{
    attach::{PROCS, path_in},
    cpuset,
    error::CgroupError,
    hierarchy::{Hierarchy, strip},
    node::{Node, PidsError, pids},
    processes::MOST_PROCESSES,
    state::set_frozen,
    tree::{CHILDREN, EVICTED, PAYLOAD, Tree, account_name, below_base, with_part},
    walk::{Visit, walk},
};

/// Rounds over a cgroup before it is given up: it is frozen, so that one round nearly always does.
const ROUNDS: usize = 64;

impl Tree {
    /// Puts everybody in a grant's cgroups outside, in every hierarchy. Fine if there is no such grant.
    ///
    /// # Errors
    /// [`CgroupError::Populated`] if somebody can't be moved; what the kernel refuses.
    pub fn evict(&self, grant: &GrantPath) -> Result<(), CgroupError> {
        for hierarchy in self.hierarchies.all().rev() {
            if let Some(node) = self.node(hierarchy, grant)? {
                self.put_outside(grant, &node, hierarchy)?;
            }
        }
        Ok(())
    }

    /// Puts everybody in a cgroup of a grant and below it outside, in this hierarchy.
    pub(super) fn put_outside(
        &self,
        grant: &GrantPath,
        node: &Node,
        hierarchy: &Hierarchy,
    ) -> Result<(), CgroupError> {
        if hierarchy.kind == super::mounts::Kind::V2 {
            if !node.is_populated()? {
                return Ok(());
            }
            // Who is moved out goes on by itself; who forks meanwhile does not.
            set_frozen(node, true)?;
        }
        for _ in 0..ROUNDS {
            let mut found = Vec::new();
            collect(node.dir(), &mut found).map_err(|error| error.told(node))?;
            walk(node.dir(), |visit| match visit {
                Visit::Enter { dir, .. } => collect(dir, &mut found),
                Visit::Leave { .. } => Ok(()),
            })
            .map_err(|error| error.told(node))?;
            if found.is_empty() {
                return Ok(());
            }
            // Parents first, so that a child finds its parent outside.
            found.sort_by_cached_key(|pid| self.proc.stat(*pid).map_or(u64::MAX, |stat| stat.start_time));
            for pid in found {
                self.put_one_outside(grant, hierarchy, pid)?;
            }
        }
        Err(CgroupError::Populated { cgroup: node.path().to_owned() })
    }

    /// Puts a process outside in a hierarchy in which it is in the grant's cgroups.
    pub(super) fn put_one_outside_if_in(
        &self,
        grant: &GrantPath,
        hierarchy: &Hierarchy,
        pid: u32,
    ) -> Result<(), CgroupError> {
        let Ok(origin) = self.proc.cgroups(pid) else { return Ok(()) };
        let above = format!("{}/{}", hierarchy.base_path.trim_end_matches('/'), below_base(grant).join("/"));
        match path_in(&origin, hierarchy) {
            Some(path) if strip(path, &above).is_some() => self.put_one_outside(grant, hierarchy, pid),
            _ => Ok(()),
        }
    }

    fn put_one_outside(&self, grant: &GrantPath, hierarchy: &Hierarchy, pid: u32) -> Result<(), CgroupError> {
        let Ok(process) = Pidfd::open(pid) else { return Ok(()) };
        if let Some(path) = self.parents_place(grant, hierarchy, &process, pid)
            && let Ok(dir) = hierarchy.open(&path)
            && dir.write(PROCS, &pid.to_string()).is_ok()
        {
            return Ok(());
        }
        let evicted = evicted(hierarchy, &grant.around())?;
        match evicted.write(PROCS, &pid.to_string()) {
            Err(source) if process.is_alive().unwrap_or(false) => {
                Err(CgroupError::Move { pid, cgroup: evicted.path().to_owned(), source })
            }
            _ => Ok(()),
        }
    }

    /// Where the parent of a process is, if it has the same uid and is outside of the instance's tree; or in the payload around
    /// the grant, if there is one.
    fn parents_place(
        &self,
        grant: &GrantPath,
        hierarchy: &Hierarchy,
        process: &Pidfd,
        pid: u32,
    ) -> Option<String> {
        let parent = Pidfd::open(self.proc.stat(pid).ok()?.ppid).ok()?;
        let (own, parents) = (process.info().ok()?, parent.info().ok()?);
        let same = [parents.ruid, parents.euid, parents.suid].iter().all(|uid| *uid == own.ruid);
        if !same || parents.pid == 1 {
            return None;
        }
        let origin = self.proc.cgroups(parents.pid).ok()?;
        let path = path_in(&origin, hierarchy)?.to_owned();
        let base = hierarchy.base_path.trim_end_matches('/');
        let outside = match grant.is_nested() {
            true => {
                let payload = with_part(&below_base(&grant.around()), PAYLOAD).join("/");
                strip(&path, &format!("{base}/{payload}")).is_some()
            }
            false => strip(&path, &hierarchy.base_path).is_none(),
        };
        // Of a process that is ending, its v1 paths are not told.
        let told = !self.proc.stat(parents.pid).ok()?.exiting;
        (outside && told && parent.is_alive().ok()?).then_some(path)
    }
}

/// The cgroup of an account, or of a grant that others are made in, for processes that have no place of their own, made if it is
/// not there. It goes with the account's node once it is empty, or with the grant.
pub(super) fn evicted(hierarchy: &Hierarchy, around: &GrantPath) -> Result<Node, CgroupError> {
    let above = match around.steps.is_empty() {
        true => {
            let (above, made) = hierarchy.base.ensure(&account_name(around.account))?;
            if made {
                cpuset::inherit(hierarchy, &hierarchy.base, &above)?;
            }
            above
        }
        false => hierarchy
            .base
            .below(&with_part(&below_base(around), CHILDREN))?
            .ok_or_else(|| CgroupError::NoSuchGrant(around.clone()))?,
    };
    let (evicted, made) = above.ensure(EVICTED)?;
    if made {
        cpuset::inherit(hierarchy, &above, &evicted)?;
    }
    Ok(evicted)
}

/// Why the processes of a cgroup were not had.
struct NotHad(PidsError);

impl NotHad {
    fn told(self, node: &Node) -> CgroupError {
        match self.0 {
            PidsError::TooMany => CgroupError::TooMany { what: "processes", limit: MOST_PROCESSES },
            PidsError::Io(error) => CgroupError::kernel("to list", node.path())(error),
        }
    }
}

impl From<std::io::Error> for NotHad {
    fn from(error: std::io::Error) -> Self {
        Self(PidsError::Io(error))
    }
}

fn collect(dir: &Dir, found: &mut Vec<u32>) -> Result<(), NotHad> {
    found.extend(pids(dir, MOST_PROCESSES).map_err(NotHad)?);
    Ok(())
}
