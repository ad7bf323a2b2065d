//! What is done with a client's socket and may wait for whoever has that socket too, for as long as it likes: by threads that nobody
//! else waits for. One uid has few of them.

use std::{
    cell::RefCell,
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use tokio::sync::oneshot;

/// Threads of one uid.
const PER_UID: usize = 48;
/// Stack of each, in bytes.
const STACK: usize = 128 * 1024;

/// Threads that were started and have not ended, by uid.
#[derive(Debug, Default)]
pub struct Aside(RefCell<HashMap<u32, Arc<()>>>);

impl Aside {
    /// Does something with a socket of this uid's.
    ///
    /// # Errors
    /// `QuotaExceeded` if too many threads of the uid wait; `EMFILE`, `EAGAIN`.
    pub async fn run<T: Send + 'static>(
        &self,
        uid: u32,
        socket: &OwnedFd,
        act: impl FnOnce(&OwnedFd) -> T + Send + 'static,
    ) -> io::Result<T> {
        let socket = socket.as_fd().try_clone_to_owned()?;
        let counted = self.count(uid).ok_or(io::ErrorKind::QuotaExceeded)?;
        let (tell, told) = oneshot::channel();
        std::thread::Builder::new().name("socket".to_owned()).stack_size(STACK).spawn(move || {
            let done = act(&socket);
            drop((socket, counted));
            // The proxy may be ending.
            let _ = tell.send(done);
        })?;
        told.await.map_err(io::Error::other)
    }

    /// What a thread has as long as it lives; the list has one, too.
    fn count(&self, uid: u32) -> Option<Arc<()>> {
        let mut all = self.0.borrow_mut();
        all.retain(|_, counted| Arc::strong_count(counted) > 1);
        let counted = all.entry(uid).or_default();
        (Arc::strong_count(counted) <= PER_UID).then(|| Arc::clone(counted))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn one_uid_has_few_threads_and_no_other_has_fewer() {
        let aside = Aside::default();
        let all: Vec<_> = (0..PER_UID).map(|_| aside.count(7).unwrap()).collect();
        assert!(aside.count(7).is_none());
        assert!(aside.count(8).is_some());
        drop(all);
        assert!(aside.count(7).is_some());
    }
}
