//! `delete`: a container goes with all its files, in its storage namespace.

use cgrant_container::{SessionError, system::ControlError};
use cgrant_proto::Code;

use super::{Found, ask};
use crate::{
    Client,
    error::{Doing, Failure},
    storage::Storage,
};

/// How long a container has to stop that is to be deleted anyway, in seconds.
const PATIENCE: u32 = 5;

pub(super) fn delete(client: &Client, name: &str, force: bool) -> Result<(), Failure> {
    let found = Found::new(name, "delete")?;
    match (found.control(), force) {
        (Err(Failure::Control { source: ControlError::NotRunning, .. }), _) => {}
        (Err(failure), _) => return Err(failure),
        (Ok(_), true) => ask::stop_one(client, name, PATIENCE)?,
        (Ok(_), false) => {
            return Err(Failure::Refused(format!(
                "cannot {}: it is running; stop it first, or use --force",
                found.doing
            )));
        }
    }
    remove(client, &found.doing, name, found.range())
}

/// Removes the files of a container that does not run, and unties its range.
pub(super) fn remove(client: &Client, doing: &str, name: &str, range: &str) -> Result<(), Failure> {
    let gone = name.to_owned();
    let storage = Storage::begin(doing, move |worker| Ok(worker.store.remove_container(&gone)?))?;
    let session = client.connect(doing)?;
    storage.tidy(&session, name, range, &mut |_| ())?;
    // No file has its ids any more: other containers may have them.
    match session.manager().and_then(|manager| session.call(manager.forget_range(range))) {
        Err(SessionError::Broker(error)) if error.code() == Some(Code::InvalidArgument) => Ok(()),
        forgotten => forgotten.doing(|| format!("forget the range {range:?}")),
    }
}
