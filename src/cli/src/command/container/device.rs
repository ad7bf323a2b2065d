//! Devices of the host's that a container sees: which of them the broker makes nodes of.

use std::{
    fs::Metadata,
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::Path,
};

use cgrant_container::{Session, SessionError};
use cgrant_proto::Code;
use zbus::{OwnedFd, OwnedObjectPath};

/// What others may do.
const READ: u32 = 0o004;
const WRITE: u32 = 0o002;

/// Is the broker asked for it? Who is neither owner nor in the group of the host's node, as nobody in a container is, can't read and
/// write that.
pub(super) fn is_granted(name: &str) -> bool {
    host(name).is_some_and(|node| node.file_type().is_char_device() && !others_may(&node, READ | WRITE))
}

/// Nodes of these, attached nowhere. Where the broker gives none, the host's own is seen if others may read that.
pub(super) fn make(
    session: &Session,
    grant: &OwnedObjectPath,
    names: &[String],
) -> Result<Vec<Option<OwnedFd>>, SessionError> {
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let proxy = session.mounts(grant)?;
    let make = |name: &String| match session.call(proxy.make_device(name)) {
        Ok(node) => Ok(Some(node)),
        Err(SessionError::Broker(_)) if host(name).is_some_and(|node| others_may(&node, READ)) => {
            or_unlimited(session.call(proxy.allow_device(name))).map(|()| None)
        }
        Err(error) => Err(error),
    };
    names.iter().map(make).collect()
}

/// Has the broker let the container open those of which it sees the host's own nodes: all but those that were made.
pub(super) fn allow(
    session: &Session,
    grant: &OwnedObjectPath,
    names: &[String],
    made: &[String],
) -> Result<(), SessionError> {
    let mut shown = names.iter().filter(|name| !made.contains(name)).peekable();
    if shown.peek().is_none() {
        return Ok(());
    }
    let proxy = session.mounts(grant)?;
    shown.try_for_each(|name| or_unlimited(session.call(proxy.allow_device(name))))
}

/// In a container nothing is limited but by what limits that one, and what it has can be seen and opened.
fn or_unlimited(allowed: Result<(), SessionError>) -> Result<(), SessionError> {
    match allowed {
        Err(SessionError::Broker(error)) if error.code() == Some(Code::Unsupported) => Ok(()),
        allowed => allowed,
    }
}

fn host(name: &str) -> Option<Metadata> {
    Path::new("/dev").join(name).symlink_metadata().ok()
}

fn others_may(node: &Metadata, what: u32) -> bool {
    node.permissions().mode() & what == what
}
