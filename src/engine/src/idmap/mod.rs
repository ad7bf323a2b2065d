//! Id maps of user namespaces, written by a process that does nothing else; and the name service, asked by another.
//!
//! Both are forked from the engine at its start and are all that keeps the rights this takes (`helper`, `names`). They
//! are asked over channels of their own, and any thread may ask: nobody waits for another's request.

mod error;
mod helper;
mod message;
mod names;

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use cgrant_policy::{HostGid, HostUid, IdRange, IdSpan, Pool};
use cgrant_sys::{Channel, Pidfd, UsernsFd, seqpacket};
use rustix::pipe::{PipeFlags, pipe_with};

pub use self::error::{MapError, MapRefusal, Step};
use self::{
    helper::Spare,
    message::{MapAnswer, MapNumbers, MapRequest, NamesAnswer, NamesRequest, ask},
};
pub(crate) use self::{
    helper::seclude,
    message::{AskError, answer, receive, send, timespec, wait},
};
use crate::ids::{NameService, NamesError};

/// How long a map may take: more than the helper gives a process that joins.
const MAP_LIMIT: Duration = Duration::from_secs(5);
/// How long the name service may take for users and groups together.
const NAMES_LIMIT: Duration = Duration::from_secs(10);
/// Which ids of the broker's own block the helpers' children have, counted from its first.
const SPARE: [u32; 2] = [3, 4];

/// The two helpers.
#[derive(Debug)]
pub struct Mapper {
    maps: Channel,
    names: Arc<Channel>,
    processes: [Pidfd; 2],
}

impl Mapper {
    /// Starts the helpers. Only while this process has one thread, and before it gives up its capabilities.
    ///
    /// Children of the helpers run under ids of the first block of `pool`, which nobody else has.
    ///
    /// # Errors
    /// `EBUSY` with more than one thread; those of `clone3(2)` and `socketpair(2)`.
    pub fn start(pool: &Pool) -> io::Result<Self> {
        let own = pool.own_block().ok_or(io::ErrorKind::InvalidInput)?;
        let [map_spare, names_spare] = SPARE.map(|offset| Spare(own.first().saturating_add(offset)));
        let (maps, maps_end) = seqpacket::pair()?;
        let maps_helper = helper::start(&maps_end, map_spare)?;
        let (names, names_end) = seqpacket::pair()?;
        let names_helper = names::start(&names_end, names_spare)?;
        let processes = [maps_helper.pidfd, names_helper.pidfd];
        Ok(Self { maps, names: Arc::new(names), processes })
    }

    /// Has a process join a user namespace that `owner` made, and that is to be mapped; its parent has to be `parent`, or the
    /// host's own. That takes a while, in which the caller can do other things; nothing is written before [`Mapping::write`].
    ///
    /// # Errors
    /// [`MapError`] if the helper can't be asked.
    pub fn begin(
        &self,
        namespace: &UsernsFd,
        parent: Option<&UsernsFd>,
        owner: HostUid,
    ) -> Result<Mapping, MapError> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from);
        let ((answer, answers), (orders, numbers)) = (pipe()?, pipe()?);
        let namespaces = [Some(namespace), parent].into_iter().flatten().map(AsFd::as_fd);
        let fds: Vec<_> = [answers.as_fd(), orders.as_fd()].into_iter().chain(namespaces).collect();
        send(&self.maps, &MapRequest { owner: owner.0 }, &fds)?;
        Ok(Mapping { answer, numbers })
    }

    /// Asks the host's name service, through the other helper.
    pub fn name_service(&self) -> Box<dyn NameService> {
        Box::new(HostNames(Arc::clone(&self.names)))
    }

    /// Pidfds of the helpers. When one becomes readable its helper has died: no more maps are written, or no more blocks
    /// given, until the engine is started anew.
    pub fn processes(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.processes.iter().map(AsFd::as_fd)
    }
}

/// A map that is being prepared. Dropped, it is not written.
#[derive(Debug)]
pub struct Mapping {
    answer: OwnedFd,
    numbers: OwnedFd,
}

impl Mapping {
    /// Has `range` written into the namespace, and before that said whether it may call setgroups(2). The caller can do other
    /// things meanwhile.
    ///
    /// The ids are those of the namespace's parent, which has them. The namespace must have no map. Afterwards id 0 inside is the first of the range.
    /// What can't be undone: a map stays for the namespace's life, also beyond the grant's; so the range must be the account's own for ever.
    ///
    /// `own` are the ids of the account itself, as the id behind the range's last. They must be those of the connection that
    /// asks: the namespace's root has all rights over what belongs to them.
    pub fn write(self, range: IdRange, own: Option<(HostUid, HostGid)>, setgroups: bool) -> Writing {
        let own = own.map(|(uid, gid)| (uid.0, gid.0));
        let (uid, gid, count) = (range.uid().0, range.gid().0, range.count());
        let numbers = MapNumbers { uid, gid, count, own, setgroups };
        // A helper that has refused already takes no numbers; its answer says why.
        answer(&self.numbers, &numbers);
        Writing(self)
    }
}

/// A map that is being written. Nobody can stop that.
#[derive(Debug)]
#[must_use = "whether the map was written is known when it is finished"]
pub struct Writing(Mapping);

impl Writing {
    /// Waits until it is written.
    ///
    /// # Errors
    /// [`MapError`]. If the kernel refused the last step, the gids may have been written.
    pub fn finish(self) -> Result<(), MapError> {
        let answer: MapAnswer = receive(&self.0.answer, Instant::now() + MAP_LIMIT)?;
        Ok(answer?)
    }
}

struct HostNames(Arc<Channel>);

impl NameService for HostNames {
    fn knows(&self, span: IdSpan) -> Result<bool, NamesError> {
        let answer: Result<NamesAnswer, AskError> = ask(&self.0, &NamesRequest { span }, NAMES_LIMIT);
        match answer {
            Ok(Ok(known)) => Ok(known),
            Ok(Err(reason)) => Err(NamesError::Failed(reason)),
            Err(AskError::TimedOut) => Err(NamesError::TimedOut),
            Err(error) => Err(NamesError::Failed(error.to_string())),
        }
    }
}

impl From<AskError> for MapError {
    fn from(error: AskError) -> Self {
        match error {
            AskError::TimedOut => Self::TimedOut,
            AskError::Gone => Self::HelperGone,
            AskError::Io(error) => Self::Io(error),
        }
    }
}
