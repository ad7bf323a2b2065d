//! Checks of what callers send: descriptors, names, settings. Nothing here has an effect.

use std::{io, os::fd::OwnedFd};

use cgrant_policy::{
    GrantPath, HostUid, LimitKey, LimitValue, NameError, RawKey, RawValue, Request, Setting,
};
use cgrant_sys::{
    namespace::UsernsFd,
    pidfd::{Pidfd, PidfdInfo},
};
use cgrant_wire::{FdIndex, Refusal, RefusalCode};

use crate::{
    connection::Caller,
    engine::{About, Engine},
};

/// Most limits in one request.
const MAX_LIMITS: usize = 64;
/// Resources that have pressure figures.
const PRESSURE: [&str; 3] = ["cpu", "memory", "io"];

/// The descriptors that came beside a message; each may be taken once, and all have to be.
#[derive(Debug)]
pub struct Descriptors(Vec<Slot>);

#[derive(Debug)]
enum Slot {
    There(OwnedFd),
    Wrong,
    Taken,
}

impl Descriptors {
    /// All of them, from a sender who can be trusted.
    pub fn new(fds: Vec<OwnedFd>) -> Self {
        Self(fds.into_iter().map(Slot::There).collect())
    }

    /// Those among a caller's that operations take: pidfds, namespaces of users, networks and mounts, open directories; and
    /// sockets, if the operation takes one.
    ///
    /// An attacker wants the engine to wait: closing a file of a FUSE file system of its own, or a socket that lingers,
    /// can last for ever. What is neither is put away at once, without touching it, and closed where nobody waits.
    /// The fronts pass no such descriptor on, so there is no flood of them.
    pub fn of_caller(fds: Vec<OwnedFd>, takes_socket: bool) -> Self {
        let mut wrong = Vec::new();
        let slots = fds.into_iter().map(|fd| {
            if is_expected(&fd, takes_socket) {
                Slot::There(fd)
            } else {
                wrong.push(fd);
                Slot::Wrong
            }
        });
        let slots = slots.collect();
        // Nobody waits for that thread; it ends when the sender lets it.
        drop(cgrant_sys::close_aside(wrong));
        Self(slots)
    }

    /// Takes the one that the message names; `what` it is for goes into the refusal.
    ///
    /// # Errors
    /// [`RefusalCode::InvalidDescriptor`] if it is not there or was taken.
    pub fn take(&mut self, index: FdIndex, what: &str) -> Result<OwnedFd, Refusal> {
        let slot = self.0.get_mut(usize::from(index.0)).map(|slot| std::mem::replace(slot, Slot::Taken));
        match slot {
            Some(Slot::There(fd)) => Ok(fd),
            Some(Slot::Wrong) => Err(Refusal::new(
                RefusalCode::InvalidDescriptor,
                format!(
                    "the descriptor of {what} is neither a pidfd, a namespace of the kinds that are taken, nor an open directory"
                ),
            )),
            Some(Slot::Taken) | None => Err(Refusal::new(
                RefusalCode::InvalidDescriptor,
                format!("the descriptor of {what} did not come with the request"),
            )),
        }
    }

    /// The same descriptors once more, for a request that may be carried out from its beginning a second time.
    ///
    /// # Errors
    /// If there are no descriptors left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let copies = self.0.iter().map(|slot| match slot {
            Slot::There(fd) => fd.try_clone().map(Slot::There),
            Slot::Wrong => Ok(Slot::Wrong),
            Slot::Taken => Ok(Slot::Taken),
        });
        copies.collect::<io::Result<_>>().map(Self)
    }

    /// Refuses descriptors that the message does not name: nobody sends them by mistake.
    ///
    /// # Errors
    /// [`RefusalCode::InvalidDescriptor`].
    pub fn finish(self) -> Result<(), Refusal> {
        if self.0.iter().any(|slot| !matches!(slot, Slot::Taken)) {
            return Err(Refusal::new(
                RefusalCode::InvalidDescriptor,
                "more descriptors came than the request names",
            ));
        }
        Ok(())
    }
}

/// Is it of a kind that an operation takes? Asks the kernel for its name and nothing of the object itself.
fn is_expected(fd: &OwnedFd, takes_socket: bool) -> bool {
    let name = cgrant_sys::kind_of(fd).unwrap_or_default();
    // Before pidfs (Linux 6.9) and since, a pidfd has this name; a namespace's is its kind and inode.
    name == "anon_inode:[pidfd]"
        || (takes_socket && name.starts_with("socket:["))
        || name.split_once(":[").is_some_and(|(kind, _)| matches!(kind, "user" | "net" | "mnt"))
        || cgrant_sys::is_open_directory(fd).unwrap_or(false)
}

/// What was not taken is closed where nobody waits: the last who closes a directory or a mount namespace may have to take a
/// whole file system apart.
impl Drop for Descriptors {
    fn drop(&mut self) {
        let left = self.0.drain(..).filter_map(|slot| match slot {
            Slot::There(fd) => Some(fd),
            Slot::Wrong | Slot::Taken => None,
        });
        drop(cgrant_sys::close_aside(left.collect()));
    }
}

/// A fault of our own or of the machine; the log has it.
pub fn internal(error: impl std::fmt::Display) -> Refusal {
    tracing::error!(%error, "an operation failed in the broker");
    Refusal::new(RefusalCode::Internal, format!("the broker met an error of its own: {error}"))
        .hint("the broker's log has the details")
}

/// The process has ended.
pub fn gone(error: &io::Error) -> Refusal {
    Refusal::new(RefusalCode::NoSuchProcess, format!("the process has ended: {error}"))
}

/// A name that is none.
pub fn bad_name(error: &NameError) -> Refusal {
    Refusal::new(RefusalCode::InvalidName, error.to_string())
}

/// What is to be set on a grant: portable limits, and files of the kernel's that policy lists.
#[derive(Debug, Default)]
pub struct Settings {
    /// Portable limits, those that were asked for first.
    pub limits: Vec<(LimitKey, LimitValue)>,
    /// How many of them were asked for.
    asked: usize,
    /// Raw files.
    pub raw: Vec<(RawKey, RawValue)>,
}

impl Settings {
    /// The portable limits that were asked for; the others are policy's own.
    pub fn asked(&self) -> &[(LimitKey, LimitValue)] {
        self.limits.get(..self.asked).unwrap_or(&self.limits)
    }

    /// Key and canonical value of each.
    pub fn texts(&self) -> Vec<(String, String)> {
        let limits = self.limits.iter().map(|(key, value)| (key.to_string(), value.to_string()));
        limits.chain(self.raw.iter().map(|(key, value)| (key.to_string(), value.to_string()))).collect()
    }

    /// Asks policy for each raw file of the grant that it is `about`.
    ///
    /// # Errors
    /// The decision's refusal.
    pub fn authorize_raw(
        &self,
        engine: &Engine,
        caller: &Caller,
        owner: HostUid,
        about: About<'_>,
    ) -> Result<(), Refusal> {
        self.raw.iter().try_for_each(|(key, value)| {
            let request = Request::WriteRaw { owner, key, value: value.as_str() };
            engine.authorize(caller, about, &request)
        })
    }

    /// Sets them on a grant: all or none.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn apply(&self, engine: &Engine, path: &GrantPath) -> Result<(), Refusal> {
        let limits = self.limits.iter().map(|(key, value)| Setting::Limit(*key, value.clone()));
        let raw = self.raw.iter().map(|(key, value)| Setting::Raw(key.clone(), value.clone()));
        Ok(engine.tree.set_limits(path, &limits.chain(raw).collect::<Vec<_>>())?)
    }
}

/// Parses limits; none may come twice.
///
/// # Errors
/// [`RefusalCode::InvalidArgument`] saying what is expected.
pub fn settings(limits: &[(String, String)]) -> Result<Settings, Refusal> {
    if limits.len() > MAX_LIMITS {
        return Err(Refusal::new(
            RefusalCode::InvalidArgument,
            format!("more than {MAX_LIMITS} limits in one request"),
        ));
    }
    let mut parsed = Settings::default();
    for (key, value) in limits {
        let setting = Setting::parse(key, value)
            .map_err(|error| Refusal::new(RefusalCode::InvalidArgument, error.to_string()))?;
        let twice = match &setting {
            Setting::Limit(key, _) => parsed.limits.iter().any(|(known, _)| known == key),
            Setting::Raw(key, _) => parsed.raw.iter().any(|(known, _)| known == key),
        };
        if twice {
            return Err(Refusal::new(
                RefusalCode::InvalidArgument,
                format!("{key} is set twice in one request"),
            ));
        }
        match setting {
            Setting::Limit(key, value) => parsed.limits.push((key, value)),
            Setting::Raw(key, value) => parsed.raw.push((key, value)),
        }
    }
    parsed.asked = parsed.limits.len();
    Ok(parsed)
}

/// Checks the names of resources whose pressure shall be signalled.
///
/// # Errors
/// [`RefusalCode::InvalidArgument`].
pub fn pressure(resources: &[String]) -> Result<Vec<String>, Refusal> {
    let mut wanted: Vec<String> = Vec::new();
    for resource in resources {
        if !PRESSURE.contains(&resource.as_str()) {
            return Err(Refusal::new(
                RefusalCode::InvalidArgument,
                "pressure can be signalled of cpu, memory and io",
            ));
        }
        if !wanted.contains(resource) {
            wanted.push(resource.clone());
        }
    }
    Ok(wanted)
}

/// Is every uid of the process the account's? A process that can become somebody else (real, effective or saved uid
/// differs) is not the account's to move: it may be a setuid program in the middle of its work.
pub fn is_own(account: HostUid, info: &PidfdInfo) -> bool {
    account.is_root() || [info.ruid, info.euid, info.suid].iter().all(|uid| *uid == account.0)
}

/// A pidfd of a process of the caller's own.
///
/// An attacker wants another user's process moved or watched. The kernel's word on the very pidfd decides.
///
/// # Errors
/// [`RefusalCode::InvalidDescriptor`] if it is no pidfd, [`RefusalCode::NoSuchProcess`] if the process has ended,
/// [`RefusalCode::NotAuthorized`] if it is not the caller's.
pub fn own_process(caller: &Caller, fd: OwnedFd) -> Result<Pidfd, Refusal> {
    let pidfd = Pidfd::from_fd(fd).map_err(|_| {
        Refusal::new(
            RefusalCode::InvalidDescriptor,
            "the descriptor of a process must be a pidfd (man 2 pidfd_open)",
        )
    })?;
    let info = pidfd.info().map_err(|error| gone(&error))?;
    if !is_own(caller.uid, &info) {
        return Err(Refusal::new(
            RefusalCode::NotAuthorized,
            // What a process in a container is called outside is not its to know.
            match caller.nested {
                None => format!("process {} is not yours: all its uids have to be {}", info.pid, caller.uid),
                Some(_) => "the process is not yours: all its uids have to be your own".to_owned(),
            },
        )
        .rule("built-in own-processes"));
    }
    Ok(pidfd)
}

/// A user namespace of the caller's that a range may be written into.
///
/// An attacker wants ids written into a namespace that it doesn't own, that has a parent of its own making, or that is the
/// host's. The parent has to be the host's, or for a caller inside a grant the one that it is in itself. Owner and parent are
/// read from the descriptor that the map is later written through; whether it is still unmapped is checked by the writer,
/// inside it.
///
/// # Errors
/// [`RefusalCode::InvalidDescriptor`] or [`RefusalCode::NotAuthorized`].
pub fn unmapped_userns(engine: &Engine, caller: &Caller, fd: OwnedFd) -> Result<UsernsFd, Refusal> {
    let wrong = |message: &str| Refusal::new(RefusalCode::InvalidDescriptor, message);
    let userns = UsernsFd::from_fd(fd)
        .map_err(|error| wrong(&format!("the descriptor of a user namespace is not one: {error}")))?;
    if userns.id().map_err(internal)? == engine.own_userns {
        return Err(wrong("the user namespace is the host's own"));
    }
    let owner = userns.owner_uid().map_err(internal)?;
    if owner != caller.uid.0 {
        return Err(Refusal::new(
            RefusalCode::NotAuthorized,
            match caller.nested {
                None => format!("the user namespace belongs to uid {owner}, not to you"),
                Some(_) => "the user namespace belongs to another uid than yours".to_owned(),
            },
        )
        .rule("built-in own-namespaces"));
    }
    let own = super::nested::own_userns(caller)?;
    let stranger = || {
        match caller.nested {
        None => Refusal::new(
            RefusalCode::Unsupported,
            "the user namespace is not a direct child of the host's",
        )
        .hint(
            "create the namespace from a process that is in the host's user namespace; the root of a grant that was made \
             with nesting asks for those inside it",
        ),
        Some(_) => {
            Refusal::new(RefusalCode::NotAuthorized, "the user namespace is not a direct child of your own")
                .rule("built-in own-namespaces")
                .hint("make it from a process that is in the same user namespace as the one that asks")
        }
    }
    };
    let expected = match &own {
        Some(own) => own.id().map_err(internal)?,
        None => engine.own_userns,
    };
    let parent = userns.parent().map_err(|_| stranger())?;
    if parent.id().map_err(internal)? != expected {
        return Err(stranger());
    }
    Ok(userns)
}
