//! Waiting for a bus that is not there, without looking again and again: the kernel says when its socket appears.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use tokio::{net::unix::pipe::Receiver, time::sleep};

/// Pauses between attempts after something has changed: a socket is bound before it is listened on.
const PAUSES: [Duration; 5] = [
    Duration::from_millis(50),
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(4),
    Duration::from_secs(15),
];
/// Pause between attempts where the directory can't be watched.
const UNWATCHED: Duration = Duration::from_secs(300);

/// Waits between attempts.
#[derive(Debug)]
pub struct Patience {
    path: PathBuf,
    attempt: usize,
    watch: Option<Watch>,
}

#[derive(Debug)]
struct Watch(Receiver);

impl Patience {
    /// For the socket at `path`. It is watched from now on, so make this before the first attempt.
    pub fn new(path: &str) -> Self {
        let path = PathBuf::from(path);
        Self { watch: Watch::nearest(&path).ok(), path, attempt: 0 }
    }

    /// An attempt was good: the next pauses are short again.
    pub const fn reset(&mut self) {
        self.attempt = 0;
    }

    /// Waits for the time of the next attempt: a few times a short while, then until something changes where the
    /// socket is to be.
    pub async fn wait(&mut self) {
        if let Some(pause) = PAUSES.get(self.attempt) {
            self.attempt += 1;
            return sleep(*pause).await;
        }
        self.attempt = 0;
        let changed = match &self.watch {
            Some(watch) => watch.changed().await,
            None => Err(io::ErrorKind::Unsupported.into()),
        };
        if changed.is_err() {
            sleep(UNWATCHED).await;
        }
        // A directory on the way may have come or gone.
        self.watch = Watch::nearest(&self.path).ok();
    }
}

impl Watch {
    /// Watches the nearest directory above `path` that is there.
    fn nearest(path: &Path) -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let changes = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let there =
            path.ancestors().skip(1).any(|directory| inotify::add_watch(&fd, directory, changes).is_ok());
        if !there {
            return Err(io::ErrorKind::NotFound.into());
        }
        // An inotify descriptor is read like a pipe.
        Ok(Self(Receiver::from_owned_fd_unchecked(fd)?))
    }

    /// Waits for a change, and takes all that are there.
    async fn changed(&self) -> io::Result<()> {
        self.0.readable().await?;
        let mut events = [0; 4096];
        while self.0.try_read(&mut events).is_ok_and(|count| count > 0) {}
        Ok(())
    }
}
