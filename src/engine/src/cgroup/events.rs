//! What the kernel tells by itself: populated and frozen, out of memory, pressure. Descriptors to wait on; no polling.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use cgrant_policy::GrantPath;
use rustix::{
    event::{EventfdFlags, eventfd},
    fs::OFlags,
    io::{Errno, retry_on_intr, write},
};

use super::{
    error::CgroupError,
    mounts::Kind,
    node::Node,
    tree::{MONITOR, PAYLOAD, Tree, below_base, with_part},
};

/// A share of waiting time that is told: 150 ms in any 2 s. Windows of 2 s need no privilege (kernel 6.4).
const TRIGGER: &str = "some 150000 2000000";

/// What becomes ready when a grant runs out of memory.
#[derive(Debug)]
pub enum OomWatch {
    /// v2: `memory.events`, for inotify through `/proc/self/fd` (`O_PATH`); modified when a count changes.
    File(OwnedFd),
    /// v1: an eventfd. It becomes readable when the payload, or a cgroup above it, runs out of memory, **before** the
    /// kernel has killed anybody and counted it, and when the cgroup is removed. Read [`Tree::oom_kills`] a little later.
    Eventfd(OwnedFd),
    /// This host has no memory controller.
    None,
}

/// How often and how long the count of kills is waited for after a signal on v1.
const OOM_TRIES: u32 = 25;
const OOM_PAUSE: std::time::Duration = std::time::Duration::from_millis(10);

impl Tree {
    /// The payload's `cgroup.events`, for inotify through `/proc/self/fd` (`O_PATH`): modified when populated or frozen changes.
    ///
    /// # Errors
    /// [`CgroupError::NoSuchGrant`], what the kernel refuses.
    pub fn events_file(&self, grant: &GrantPath) -> Result<OwnedFd, CgroupError> {
        let names = with_part(&with_part(&below_base(grant), PAYLOAD), "cgroup.events");
        self.open_below(self.v2(), grant, &names, OFlags::PATH)
    }

    /// The grant's cgroup2 directory, for inotify (`O_PATH`): only there does the kernel tell of the payload's removal (`IN_DELETE`); a
    /// removed cgroup's own files and directory say nothing.
    ///
    /// # Errors
    /// [`CgroupError::NoSuchGrant`], what the kernel refuses.
    pub fn directory(&self, grant: &GrantPath) -> Result<OwnedFd, CgroupError> {
        self.open_below(self.v2(), grant, &below_base(grant), OFlags::PATH | OFlags::DIRECTORY)
    }

    /// What to wait on to learn that a grant has run out of memory.
    ///
    /// # Errors
    /// [`CgroupError::NoSuchGrant`], what the kernel refuses.
    pub fn oom_watch(&self, grant: &GrantPath) -> Result<OomWatch, CgroupError> {
        let Some(hierarchy) = self.hierarchies.controller("memory") else { return Ok(OomWatch::None) };
        if hierarchy.kind == Kind::V2 {
            let names = with_part(&below_base(grant), "memory.events");
            return self.open_below(hierarchy, grant, &names, OFlags::PATH).map(OomWatch::File);
        }
        let payload = self.need_part(hierarchy, grant, PAYLOAD)?;
        let control = payload.open("memory.oom_control", OFlags::RDONLY)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let event =
            eventfd(0, flags).map_err(|error| CgroupError::system("making an eventfd")(error.into()))?;
        let order = format!("{} {}", event.as_raw_fd(), control.as_raw_fd());
        payload
            .write("cgroup.event_control", &order)
            .map_err(CgroupError::kernel("to watch", payload.path_of("memory.oom_control")))?;
        Ok(OomWatch::Eventfd(event))
    }

    /// How many processes of a grant the kernel has killed for want of memory; 0 where it does not count them.
    ///
    /// # Errors
    /// [`CgroupError::NoSuchGrant`], what the kernel refuses.
    pub fn oom_kills(&self, grant: &GrantPath) -> Result<u64, CgroupError> {
        let Some(hierarchy) = self.hierarchies.controller("memory") else { return Ok(0) };
        let node = self.need(hierarchy, grant)?;
        if hierarchy.kind == Kind::V2 {
            return Ok(node.keyed("memory.events", "oom_kill")?.unwrap_or(0));
        }
        // v1 counts in the victim's own cgroup only.
        let count = |part: Option<Node>| match part {
            Some(part) => Ok(part.keyed("memory.oom_control", "oom_kill")?.unwrap_or(0)),
            None => Ok(0),
        };
        Ok(count(node.child(PAYLOAD)?)?.saturating_add(count(node.child(MONITOR)?)?))
    }

    /// The same after a signal. On v1 the kernel signals before it kills and counts; the count is given a moment to go
    /// past `before`. Waits up to 250 ms then, with only the grant's account behind it.
    ///
    /// # Errors
    /// As [`Self::oom_kills`].
    pub fn oom_kills_past(&self, grant: &GrantPath, before: u64) -> Result<u64, CgroupError> {
        let early = self.hierarchies.controller("memory").is_some_and(|hierarchy| hierarchy.kind != Kind::V2);
        for _ in 0..OOM_TRIES {
            let kills = self.oom_kills(grant)?;
            if kills != before || !early {
                return Ok(kills);
            }
            std::thread::sleep(OOM_PAUSE);
        }
        self.oom_kills(grant)
    }

    /// A descriptor that says POLLPRI when the grant has waited for `cpu`, `memory` or `io` for 150 ms of 2 s. It works as long
    /// as it is open.
    ///
    /// # Errors
    /// [`CgroupError::Unsupported`] for another resource or a kernel without pressure figures;
    /// [`CgroupError::NoSuchGrant`]; what the kernel refuses.
    pub fn pressure_trigger(&self, grant: &GrantPath, resource: &str) -> Result<OwnedFd, CgroupError> {
        let unsupported = |reason| CgroupError::Unsupported { what: "pressure signals".to_owned(), reason };
        if !["cpu", "memory", "io"].contains(&resource) {
            return Err(unsupported("there are figures of cpu, memory and io only"));
        }
        let node = self.need(self.v2(), grant)?;
        let file = format!("{resource}.pressure");
        let trigger = node.dir().open_file(&file, OFlags::RDWR | OFlags::NONBLOCK);
        let told = |errno: Option<Errno>, error: std::io::Error| match errno {
            Some(Errno::NOENT | Errno::OPNOTSUPP) => unsupported("this kernel has none (CONFIG_PSI, psi=1)"),
            Some(Errno::PERM) => {
                unsupported("before kernel 6.4 they need CAP_SYS_RESOURCE, which the broker has not got here")
            }
            _ => CgroupError::kernel("to watch", node.path_of(&file))(error),
        };
        let trigger = trigger.map_err(|error| told(Errno::from_io_error(&error), error))?;
        match retry_on_intr(|| write(trigger.as_fd(), TRIGGER.as_bytes())) {
            Ok(_) => Ok(trigger),
            Err(errno) => Err(told(Some(errno), errno.into())),
        }
    }
}
