//! What nobody is moved out of, and what nobody changes over this interface.

use cgrant_sys::Pidfd;

use super::super::{
    actor::Access,
    call::{Call, open, stat},
    fault::Fault,
    path::{below, components},
};
use crate::cgroup::{Hierarchy, Kind, is_orphan};

const PROCS: &str = "cgroup.procs";

impl Call<'_> {
    /// Refuses to change the broker's own cgroups, which are those of grants, and what is in them.
    ///
    /// # Errors
    /// [`Fault::Granted`].
    pub fn not_granted(&self, hierarchy: &Hierarchy, names: &[String]) -> Result<(), Fault> {
        match below(names, &components(&hierarchy.base_path)) {
            Some(_) => Err(Fault::Granted),
            None => Ok(()),
        }
    }

    /// May a process go from one cgroup to another, as far as what bounds it is concerned? On v1 the bits of the cgroup that
    /// it goes to say so alone.
    ///
    /// An attacker wants its processes out of what bounds them: into a cgroup that systemd delegated to it elsewhere, say, out of the
    /// session that an administrator limited. So the kernel's own rule for cgroup2 holds, but that nobody needs a right for
    /// going deeper: who takes a process elsewhere has to be able to write `cgroup.procs` of the innermost cgroup that has both.
    /// Whoever is in a cgroup namespace takes nothing out of its own cgroup.
    ///
    /// # Errors
    /// [`Fault::Denied`], [`Fault::Outside`]; what the kernel refuses.
    pub fn may_go(&self, hierarchy: &Hierarchy, from: &[String], to: &[String]) -> Result<(), Fault> {
        if hierarchy.kind == Kind::V1 || self.requestor.uid == 0 {
            return Ok(());
        }
        if !self.requestor.shares_cgroup_namespace()? {
            let own = self.requestor.cgroup(hierarchy)?;
            if below(from, &own).is_none() || below(to, &own).is_none() {
                return Err(Fault::Outside);
            }
        }
        if below(to, from).is_some() {
            return Ok(());
        }
        let common: Vec<String> =
            from.iter().zip(to).take_while(|(from, to)| from == to).map(|(name, _)| name.clone()).collect();
        let refused = Fault::kernel("to look at a cgroup");
        let procs = open(hierarchy, &common)?.open_file(PROCS, rustix::fs::OFlags::PATH).map_err(refused)?;
        self.need(&stat(&procs)?, Access::Write)
    }

    /// Refuses limits of its own cgroup to whoever is in a cgroup namespace, as the kernel does with the one at its root
    /// (`nsdelegate`): they are for what is in the namespace, and not its to change, whose uid it may have.
    ///
    /// # Errors
    /// [`Fault::Denied`], [`Fault::Gone`].
    pub fn may_limit(&self, hierarchy: &Hierarchy, names: &[String]) -> Result<(), Fault> {
        let own = || Ok::<_, Fault>(self.requestor.cgroup(hierarchy)? == names);
        if self.requestor.uid != 0 && own()? && !self.requestor.shares_cgroup_namespace()? {
            return Err(Fault::Denied);
        }
        Ok(())
    }

    /// Where a process is in a hierarchy; `None` if that can't be told.
    pub fn place_of(&self, hierarchy: &Hierarchy, pid: u32) -> Option<Vec<String>> {
        let proc = self.requestor.proc();
        // Of a process whose first thread has ended, v1 says that it is in the root.
        if hierarchy.kind == Kind::V1 && proc.stat(pid).ok()?.exiting {
            return None;
        }
        let all = proc.cgroups(pid).ok()?;
        let (_, path) = all.into_iter().find(|(name, _)| *name == hierarchy.name)?;
        Some(components(&path))
    }

    /// Puts right what a move by a number may have done whose process has ended meanwhile: whoever has the number now, and
    /// is in the cgroup, while the one that forked it is not, goes where that one is.
    ///
    /// An attacker wants out of what bounds it: it has the number given to a process that was forked in the cgroup, whose parent ends
    /// too, so that the one that takes orphans in seems to have forked it. So its own processes stay, which it could have
    /// moved there; and of those that the first process of all has now, none goes there but root's.
    pub fn put_right(&self, hierarchy: &Hierarchy, cgroup: &[String], pid: u32) {
        let Ok(process) = Pidfd::open(pid) else { return };
        let Ok(told) = self.requestor.proc().stat(pid) else { return };
        let Ok(info) = process.info() else { return };
        let is_own = [self.requestor, self.proxy].iter().any(|actor| actor.has_part_in(&info));
        if is_own || is_orphan(&told, &info) {
            return;
        }
        let (Some(place), Some(parents)) =
            (self.place_of(hierarchy, pid), self.place_of(hierarchy, told.ppid))
        else {
            return;
        };
        let inside = |place: &[String]| below(place, cgroup).is_some();
        // What was read is about this process only if it is still there.
        if !inside(&place) || inside(&parents) || !process.is_alive().unwrap_or(false) {
            return;
        }
        tracing::warn!(
            pid,
            hierarchy = hierarchy.name,
            "a process ended while it was moved and its number was given away: put right"
        );
        let written = open(hierarchy, &parents).map(|dir| dir.write(PROCS, &pid.to_string()));
        if !matches!(written, Ok(Ok(()))) {
            tracing::error!(pid, hierarchy = hierarchy.name, "it could not be put right");
        }
    }
}
