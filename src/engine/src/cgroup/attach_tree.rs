//! Attaching a running tree of processes: all of it or none, however fast it forks.
//!
//! Everybody found is first moved into `GRANT/entry` on cgroup2, which is frozen. That move is one write; it stops the
//! process, and what it was about to fork is born in there and stands still too, so a tree can only shrink outside. Once
//! a whole pass over all processes finds nobody outside, what stands still in `entry` is the tree: each is examined, moved in
//! the v1 hierarchies and last into its place on cgroup2. Then they go on, and `entry` is removed.
//!
//! Reading all of `/proc` takes milliseconds, in which a process that forks and ends at once has had dozens of successors. If
//! anything at all was forked during the last pass, the newest pids are therefore followed for a while (`chase`), which
//! takes microseconds from a pid's birth to the write.
//!
//! Not SIGSTOP: that is seen by parents (job control), can be undone by anybody of the same account (SIGCONT), and would
//! last for ever if the broker died meanwhile. A cgroup is found again at the next start ([`Tree::finish_attachments`]).

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use cgrant_policy::GrantPath;
use cgrant_sys::{Pidfd, PidfdInfo, process::Stat};
use cgrant_wire::AttachTarget;
use rustix::process::{getpriority_process, setpriority_process};

use super::{
    attach::{Moved, cgroup2_path, enter, gone, put_back},
    error::CgroupError,
    hierarchy::CGROUP2,
    node::Node,
    state::set_frozen,
    tree::{ENTRY, Tree},
};

/// How long catching the whole tree may take.
const DEADLINE: Duration = Duration::from_secs(2);
/// How long the newest pids are followed before it is believed that none of them is a member.
const CHASE: Duration = Duration::from_millis(20);
/// In how many looks at the newest pids, besides: a thread that did not run for [`CHASE`] has looked at nobody.
const LOOKS: u32 = 500;
/// How many parents of a new process may be new themselves, none of whom has been looked at.
const GENERATIONS: u32 = 16;
/// Most of the newest pids that are looked at in one step.
const NEWEST: u32 = 64;
/// Most processes in one tree.
const MOST: usize = 100_000;

/// All processes at one moment, nearly: those that start and end while `/proc` is read may be missing.
type Scan = HashMap<u32, Stat>;

/// One attachment under way.
pub(super) struct Catch<'a> {
    tree: &'a Tree,
    grant: &'a GrantPath,
    target: AttachTarget,
    may: &'a dyn Fn(&PidfdInfo) -> bool,
    entry: &'a Node,
    /// Everybody there was before it began, by pid and start time.
    pub(super) before: HashSet<(u32, u64)>,
    /// Who was caught and waits in `entry`, by pid.
    caught: HashMap<u32, Moved>,
    /// Where on cgroup2 everybody who was ever caught came from, by pid.
    pub(super) origins: HashMap<u32, String>,
    /// The same by the kernel's id of that cgroup.
    cgroups: HashMap<u64, String>,
    /// Members that were seen outside by `chase`, caught or not.
    seen: HashSet<u32>,
    /// The process that was named.
    root: u32,
    /// Its real uid.
    uid: u32,
    /// Their sessions.
    pub(super) sessions: HashSet<u32>,
    deadline: Instant,
}

impl Tree {
    pub(super) fn attach_tree(
        &self,
        grant: &GrantPath,
        target: AttachTarget,
        places: &[Node],
        process: &Pidfd,
        may: &dyn Fn(&PidfdInfo) -> bool,
    ) -> Result<Vec<Moved>, CgroupError> {
        let node = self.need(self.v2(), grant)?;
        let (entry, _) = node.ensure(ENTRY)?;
        let _hurry = Hurry::begin();
        let mut catch = Catch::new(self, grant, target, may, &entry);
        let mut placed = Vec::new();
        let result = set_frozen(&entry, true)
            .and_then(|()| catch.everybody(process))
            .and_then(|()| catch.place(places, &mut placed));
        if result.is_err() {
            catch.let_go(&placed);
        }
        // Nobody is in it any more, whichever way it went.
        let removed = node.remove(ENTRY);
        result?;
        removed.map_err(CgroupError::kernel("to remove", node.path_of(ENTRY)))?;
        if placed.is_empty() { Err(CgroupError::NoSuchProcess) } else { Ok(placed) }
    }

    /// Puts back processes that a broker which died left in an `entry`, frozen. Their caller has had no answer. One that can't be
    /// brought in order is told and left; it keeps nobody else from being served.
    pub(super) fn finish_attachments(&self) -> Result<(), CgroupError> {
        for grant in self.scan()? {
            if let Err(error) = self.finish_attachment(&grant) {
                tracing::error!(%grant, %error, "an attachment that was cut short can't be taken back");
            }
        }
        Ok(())
    }

    fn finish_attachment(&self, grant: &GrantPath) -> Result<(), CgroupError> {
        let Some(node) = self.node(self.v2(), grant)? else { return Ok(()) };
        let Some(entry) = node.child(ENTRY)? else { return Ok(()) };
        tracing::warn!(%grant, "an attachment was cut short by the end of the broker: its processes are put back");
        // Some may be in v1 hierarchies already. They stand still until they leave the entry, which is last.
        for pid in entry.pids(MOST)? {
            for hierarchy in &self.hierarchies.v1 {
                self.put_one_outside_if_in(grant, hierarchy, pid)?;
            }
        }
        self.put_outside(grant, &entry, self.v2())?;
        node.remove(ENTRY).map_err(CgroupError::kernel("to remove", node.path_of(ENTRY)))
    }

    fn scan_processes(&self) -> Result<Scan, CgroupError> {
        let pids = self.proc.pids().map_err(CgroupError::system("listing /proc"))?;
        Ok(pids.into_iter().filter_map(|pid| Some((pid, self.proc.stat(pid).ok()?))).collect())
    }
}

impl<'a> Catch<'a> {
    pub(super) fn new(
        tree: &'a Tree,
        grant: &'a GrantPath,
        target: AttachTarget,
        may: &'a dyn Fn(&PidfdInfo) -> bool,
        entry: &'a Node,
    ) -> Self {
        Self {
            tree,
            grant,
            target,
            may,
            entry,
            before: HashSet::new(),
            caught: HashMap::new(),
            origins: HashMap::new(),
            cgroups: HashMap::new(),
            seen: HashSet::new(),
            root: 0,
            uid: 0,
            sessions: HashSet::new(),
            deadline: Instant::now() + DEADLINE,
        }
    }

    /// Catches the process and all its descendants: passes over all processes until one finds nobody outside.
    fn everybody(&mut self, process: &Pidfd) -> Result<(), CgroupError> {
        let scan = self.tree.scan_processes()?;
        self.before = scan.iter().map(|(pid, stat)| (*pid, stat.start_time)).collect();
        let info = process.info().map_err(gone)?;
        (self.root, self.uid) = (info.pid, info.ruid);
        if !self.catch(self.root, process)? {
            return Err(CgroupError::NoSuchProcess);
        }
        loop {
            let newest = newest_pid()?;
            let scan = self.tree.scan_processes()?;
            let outside = self.outside(&scan)?;
            if outside.is_empty() && (newest_pid()? == newest || !self.chase(newest)?) {
                return Ok(());
            }
            for pid in outside {
                self.in_time()?;
                // It may have ended since; or be somebody else, which the start time tells.
                let Some(stat) = scan.get(&pid) else { continue };
                let Ok(process) = Pidfd::open(pid) else { continue };
                if process.start_time().ok() == Some(stat.start_time) {
                    self.catch(pid, &process)?;
                }
            }
            if self.caught.len() > MOST {
                return Err(CgroupError::TooMany { what: "processes in the tree", limit: MOST });
            }
        }
    }

    /// Moves one process into `entry`. `false` if it ended first.
    fn catch(&mut self, pid: u32, process: &Pidfd) -> Result<bool, CgroupError> {
        let moved = match self.tree.examine(self.grant, self.target, process, self.may) {
            Err(CgroupError::NoSuchProcess) => return Ok(false),
            other => other?,
        };
        let id = process.info().map_err(gone)?.cgroup_id;
        if let Ok(stat) = self.tree.proc.stat(pid) {
            self.sessions.insert(stat.session);
        }
        match enter(self.entry, process, pid) {
            Ok(()) => (),
            Err(CgroupError::NoSuchProcess) => {
                self.tree.put_right(self.grant, self.tree.v2(), pid);
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        if let Some(path) = cgroup2_path(&moved.origin) {
            self.origins.insert(pid, path.to_owned());
            if let Some(id) = id {
                self.cgroups.insert(id, path.to_owned());
            }
        }
        self.caught.insert(pid, moved);
        Ok(true)
    }

    fn in_time(&self) -> Result<(), CgroupError> {
        match Instant::now() > self.deadline {
            true => Err(CgroupError::TimedOut("catching a tree of processes that keeps forking")),
            false => Ok(()),
        }
    }

    /// Follows the pids given out after `from`, until for [`CHASE`] and [`LOOKS`] looks none of them was a member's. Was anybody
    /// caught?
    fn chase(&mut self, from: u32) -> Result<bool, CgroupError> {
        let (mut last, mut caught) = (from, false);
        let (mut end, mut looks) = (Instant::now() + CHASE, 0);
        while looks < LOOKS || Instant::now() < end {
            self.in_time()?;
            let newest = newest_pid()?;
            // Pids start again at the bottom some day; then only the newest is looked at.
            let first = if newest >= last {
                last.max(newest.saturating_sub(NEWEST))
            } else {
                newest.saturating_sub(1)
            };
            looks = looks.saturating_add(1);
            for pid in first.saturating_add(1)..=newest {
                if self.may_be_member(pid) {
                    self.seen.insert(pid);
                    caught |= self.catch_fast(pid)?;
                    (end, looks) = (Instant::now() + CHASE, 0);
                }
            }
            last = newest;
        }
        Ok(caught)
    }

    /// Is a process that has just been forked a member? The line of its parents leads to one, over others that nobody has seen yet;
    /// or the line ends with one of a member's session whose parent has gone.
    pub(super) fn may_be_member(&self, pid: u32) -> bool {
        let Ok(stat) = self.tree.proc.stat(pid) else { return false };
        if has_ended(&stat) || self.is_caught(pid, &stat) {
            return false;
        }
        let (session, mut lowest, mut above) = (stat.session, pid, stat.ppid);
        for _ in 0..GENERATIONS {
            if self.seen.contains(&above) || self.origins.contains_key(&above) {
                return true;
            }
            // The leader of a session has another one's parent from the start.
            if lowest == session || !self.sessions.contains(&session) {
                return false;
            }
            match self.tree.proc.stat(above) {
                Ok(parent) if parent.session != session => return self.is_of_account(pid),
                // Who was there before and is no member has only such children.
                Ok(parent) if self.before.contains(&(above, parent.start_time)) => return false,
                Ok(parent) => (lowest, above) = (above, parent.ppid),
                Err(_) => return self.is_of_account(pid),
            }
        }
        false
    }

    /// Is it the very process that was caught under this pid?
    fn is_caught(&self, pid: u32, stat: &Stat) -> bool {
        self.caught.get(&pid).is_some_and(|moved| moved.start_time == stat.start_time)
    }

    /// Has it the real uid of the process that was named? An orphan of somebody else's is nobody's descendant that we know of.
    fn is_of_account(&self, pid: u32) -> bool {
        Pidfd::open(pid).and_then(|process| process.info()).is_ok_and(|info| info.ruid == self.uid)
    }

    /// Moves a process into `entry` before anything is asked about it that takes long. Whether it may be moved is asked before, of its
    /// pidfd; the rest when it stands still.
    fn catch_fast(&mut self, pid: u32) -> Result<bool, CgroupError> {
        let Ok(process) = Pidfd::open(pid) else { return Ok(false) };
        let Ok(info) = process.info() else { return Ok(false) };
        let known = info.cgroup_id.and_then(|id| self.cgroups.get(&id)).cloned();
        // From a cgroup that is not known, or on a kernel that does not tell it: the long way.
        let Some(path) = known.filter(|_| (self.may)(&info)) else { return self.catch(pid, &process) };
        match enter(self.entry, &process, pid) {
            Ok(()) => (),
            Err(CgroupError::NoSuchProcess) => {
                self.tree.put_right(self.grant, self.tree.v2(), pid);
                return Ok(false);
            }
            Err(error) => return Err(error),
        }
        self.origins.insert(pid, path.clone());
        let mut moved = match self.tree.examine(self.grant, self.target, &process, self.may) {
            Err(CgroupError::NoSuchProcess) => return Ok(false),
            other => other?,
        };
        if let Some((_, now)) = moved.origin.iter_mut().find(|(name, _)| name == CGROUP2) {
            *now = path;
        }
        self.caught.insert(pid, moved);
        Ok(true)
    }

    /// Members of the tree that are outside: whose line of parents leads to somebody caught, or who were forked since it began
    /// in a member's session and whose own parent has gone.
    fn outside(&self, scan: &Scan) -> Result<Vec<u32>, CgroupError> {
        let inside: HashSet<u32> = self.entry.pids(MOST)?.into_iter().collect();
        let is_member = |pid: u32| inside.contains(&pid) || self.caught.contains_key(&pid);
        let descends = |stat: &Stat| {
            let mut above = stat.ppid;
            // A line of parents has no loop, but /proc is not read at one moment.
            for _ in 0..=scan.len() {
                if is_member(above) {
                    return true;
                }
                match scan.get(&above) {
                    Some(next) if above > 1 => above = next.ppid,
                    _ => return false,
                }
            }
            false
        };
        let orphaned = |pid: u32, stat: &Stat| {
            // A process has its parent's session unless it began one itself. With another one, it has another parent
            // than the one that forked it: that one has ended, and a reaper took it.
            let reaped = scan.get(&stat.ppid).is_none_or(|parent| parent.session != stat.session);
            stat.session != pid
                && self.sessions.contains(&stat.session)
                && reaped
                && self.is_of_account(pid)
                && !self.before.contains(&(pid, stat.start_time))
        };
        let wanted = |pid: u32, stat: &Stat| {
            !has_ended(stat)
                && !inside.contains(&pid)
                && !self.is_caught(pid, stat)
                && (descends(stat) || orphaned(pid, stat))
        };
        let found = scan.iter().filter(|(pid, stat)| wanted(**pid, stat)).map(|(pid, _)| *pid);
        Ok(found.filter(|pid| !self.is_placed(*pid)).collect())
    }

    /// Is the process where it shall go already? A child of somebody who was attached before.
    fn is_placed(&self, pid: u32) -> bool {
        let Ok(origin) = self.tree.proc.cgroups(pid) else { return false };
        let place = cgroup2_path(&origin).and_then(|path| self.tree.place_of(CGROUP2, path));
        let wanted = match self.target {
            AttachTarget::Stage | AttachTarget::Monitor => super::tree::MONITOR,
            AttachTarget::Payload => super::tree::PAYLOAD,
        };
        place.is_some_and(|(grant, part)| grant == *self.grant && part == wanted)
    }

    /// Moves everybody from `entry` to where the tree belongs: v1 first, cgroup2 last.
    fn place(&mut self, places: &[Node], placed: &mut Vec<Moved>) -> Result<(), CgroupError> {
        loop {
            let pids = self.entry.pids(MOST)?;
            if pids.is_empty() {
                return Ok(());
            }
            for pid in pids {
                if Instant::now() > self.deadline + DEADLINE {
                    return Err(CgroupError::TimedOut("attaching a tree of processes"));
                }
                let Ok(process) = Pidfd::open(pid) else { continue };
                let moved = match self.caught.remove(&pid) {
                    Some(moved) => moved,
                    // Born in there: examined now, and on cgroup2 it comes from where its parent does.
                    None => match self.born(pid, &process) {
                        Err(CgroupError::NoSuchProcess) => continue,
                        other => other?,
                    },
                };
                match places.iter().try_for_each(|place| enter(place, &process, pid)) {
                    Ok(()) => placed.push(moved),
                    Err(CgroupError::NoSuchProcess) => {
                        self.tree
                            .hierarchies
                            .all()
                            .for_each(|hierarchy| self.tree.put_right(self.grant, hierarchy, pid));
                    }
                    Err(error) => {
                        placed.push(moved);
                        return Err(error);
                    }
                }
            }
        }
    }

    /// A process that was born in `entry`, if it may be moved.
    fn born(&mut self, pid: u32, process: &Pidfd) -> Result<Moved, CgroupError> {
        let mut moved = self.tree.examine(self.grant, self.target, process, self.may)?;
        self.complete(pid, &mut moved);
        Ok(moved)
    }

    /// Says of a process that was born in `entry` where on cgroup2 it would be: where its parent was.
    fn complete(&mut self, pid: u32, moved: &mut Moved) {
        let parent = self.tree.proc.stat(pid).map_or(self.root, |stat| stat.ppid);
        let from = self.origins.get(&parent).or_else(|| self.origins.get(&self.root)).cloned();
        if let Some(from) = from
            && let Some((_, path)) = moved.origin.iter_mut().find(|(name, _)| name == CGROUP2)
        {
            path.clone_from(&from);
            self.origins.insert(pid, from);
        }
    }

    /// Puts everybody back to where they were.
    fn let_go(&mut self, placed: &[Moved]) {
        for moved in placed.iter().rev() {
            put_back(&self.tree.hierarchies, &self.grant.around(), moved);
        }
        for pid in self.entry.pids(MOST).unwrap_or_default() {
            let moved = match self.caught.remove(&pid) {
                Some(moved) => Ok(moved),
                None => Pidfd::open(pid).map_err(gone).and_then(|process| {
                    let (_, mut moved) = Tree::look_at(&process, &self.tree.proc)?;
                    self.complete(pid, &mut moved);
                    Ok(moved)
                }),
            };
            match moved {
                Ok(moved) => put_back(&self.tree.hierarchies, &self.grant.around(), &moved),
                Err(error) => tracing::warn!(pid, %error, "a process could not be put back"),
            }
        }
        // Whoever could not be put back stays in the entry, running; the grant's end or the next start finds it.
        let _ = set_frozen(self.entry, false);
    }
}

/// Nothing of it will fork again.
fn has_ended(stat: &Stat) -> bool {
    stat.exiting && stat.threads <= 1
}

/// The pid that was given out last in our pid namespace (fs/proc/loadavg.c), by any fork or thread on the host.
fn newest_pid() -> Result<u32, CgroupError> {
    let text =
        std::fs::read_to_string("/proc/loadavg").map_err(CgroupError::system("reading /proc/loadavg"))?;
    let malformed = || CgroupError::system("reading /proc/loadavg")(std::io::ErrorKind::InvalidData.into());
    text.split_ascii_whitespace().next_back().and_then(|pid| pid.parse().ok()).ok_or_else(malformed)
}

/// While this lives, our thread goes before the hundreds of processes of a fork bomb, which would leave it a hundredth of a CPU:
/// its tree could never be caught then, least of all by its own user who wants it bounded.
///
/// What that can cost others is less than what the bomb costs them anyhow: one thread an account, for an account's operations
/// go one after the other; for [`DEADLINE`] at most, of which a tree that stands still takes a few milliseconds; and the
/// requests are counted and bounded by policy. Without CAP_SYS_NICE it changes nothing.
struct Hurry(Option<i32>);

impl Hurry {
    fn begin() -> Self {
        // Without a pid: the calling thread (setpriority(2), "C library/kernel differences").
        let before = getpriority_process(None).ok();
        Self(before.filter(|_| setpriority_process(None, -20).is_ok()))
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            // Less priority is always allowed.
            let _ = setpriority_process(None, before);
        }
    }
}
