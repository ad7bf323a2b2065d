//! MapDirectory: a directory of the account's as a mount whose files belong to ids of a grant.
//!
//! Nothing is recorded: the mount is attached nowhere, and lives as long as whoever holds its descriptor lets it.

use std::{os::fd::OwnedFd, sync::Arc};

use cgrant_policy::{GrantName, HostGid, HostUid, Verb};
use cgrant_sys::{MntnsFd, is_open_directory};
use cgrant_wire::{Answer, FdIndex, MapDirectory, MapSource, Refusal, RefusalCode};

use super::{check, inside, query::usable};
use crate::{
    connection::Caller,
    engine::{Engine, Outcome},
    mountmap::{Shift, Wish},
    registry::Grant,
};

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalCode::InvalidArgument, message)
}

/// The caller's own uid and gid, where files of theirs are to have an owner inside of a grant.
///
/// An attacker wants rights over files that are not its own. These are the ids that the kernel noted when the caller
/// connected. Its gid then may have been that of a set-group-ID program, which was made to connect and whose connection
/// was passed on: the process that connected has to be there still, and to have this gid alone. Root has everybody's rights, and a container with root's ids could leave it programs that whoever runs them
/// on the host runs as root: refused.
///
/// # Errors
/// [`RefusalCode::NotAuthorized`], [`RefusalCode::Unsupported`].
pub fn own_ids(caller: &Caller) -> Result<(HostUid, HostGid), Refusal> {
    must_not_be_root(caller.uid)?;
    // Over a bus that tells no groups.
    if caller.gid == HostGid(u32::MAX) {
        return Err(Refusal::new(RefusalCode::Unsupported, "it is not known what your gid is")
            .hint("ask over the broker's own socket"));
    }
    let process = caller.process.as_ref().and_then(|process| process.info().ok());
    match process {
        Some(info) if [info.rgid, info.egid, info.sgid] == [caller.gid.0; 3] => Ok((caller.uid, caller.gid)),
        _ => Err(Refusal::new(
            RefusalCode::NotAuthorized,
            format!("the process that connected with the gid {} has ended, or has others too", caller.gid),
        )
        .rule("built-in own-gid")
        .hint("connect, and ask, from a process whose real, effective and saved gid are the same")),
    }
}

/// Refuses root's ids in a container.
///
/// # Errors
/// [`RefusalCode::NotAuthorized`].
pub fn must_not_be_root(uid: HostUid) -> Result<(), Refusal> {
    if uid.is_root() {
        return Err(Refusal::new(RefusalCode::NotAuthorized, "root's own ids are put into no container")
            .rule("built-in no-root-inside")
            .hint("ask as the user whose files it is about"));
    }
    Ok(())
}

/// Makes a mount of a directory.
///
/// An attacker wants files shown as owned by ids that are not its own, or to be the owner of files that are not. The map
/// holds ids of the account on both sides: its own by the kernel's word, its ranges by the record. Whose directory it is, and
/// that it can't be made up, the helper finds out by the very descriptors it acts on (`mountmap`). The mount namespace must be
/// ruled by a user namespace that the account made: there the account has every right but those over what was mounted before,
/// and the kernel keeps these from it and from us.
///
/// # Errors
/// [`RefusalCode::InvalidDescriptor`], [`RefusalCode::NotAuthorized`]; [`RefusalCode::Unsupported`] where the kernel or
/// the file system can't.
pub fn map_directory(
    engine: &Engine,
    caller: &Arc<Caller>,
    request: &MapDirectory,
    mut fds: check::Descriptors,
) -> Outcome {
    let directory = fds.take(request.directory, "the directory")?;
    let namespace = fds.take(request.mount_namespace, "the mount namespace")?;
    fds.finish()?;
    let grant = usable(engine, caller, request.grant, Verb::MapDirectory)?;
    inside::must_be_outside(engine, caller, "map a directory")?;
    let (uids, gids) = shifts(engine, caller.uid, &grant, &request.from, || own_ids(caller))?;
    if !is_open_directory(&directory).map_err(check::internal)? {
        return Err(Refusal::new(
            RefusalCode::InvalidDescriptor,
            "the descriptor of the directory is not one that was opened for reading as a directory",
        )
        .hint("open it with O_RDONLY | O_DIRECTORY, and without O_PATH"));
    }
    let namespace = own_namespace(engine, caller, namespace)?;
    let wish = Wish {
        account: caller.uid,
        directory: std::os::fd::AsFd::as_fd(&directory),
        namespace: &namespace,
        uids,
        gids,
        read_only: request.read_only,
    };
    let mount = engine.mounter.make(&wish)?;
    Ok((Answer::Mount(FdIndex(0)), vec![mount]))
}

/// Which ids on disk are shown as which, to a grant that has to be the account's; `own_ids` are those of whoever asks.
///
/// # Errors
/// [`RefusalCode::NotAuthorized`], [`RefusalCode::InvalidArgument`], those of `own_ids`.
pub fn shifts(
    engine: &Engine,
    account: HostUid,
    grant: &Grant,
    from: &MapSource,
    own_ids: impl FnOnce() -> Result<(HostUid, HostGid), Refusal>,
) -> Result<(Shift, Shift), Refusal> {
    if grant.account != account {
        return Err(Refusal::new(
            RefusalCode::NotAuthorized,
            format!("the grant is uid {}'s, who alone can say which directories it gets", grant.account),
        )
        .rule("built-in own-directories"));
    }
    let to = grant.live().record.range.ok_or_else(|| invalid("the grant has no ids"))?;
    match from {
        MapSource::Range(name) => {
            let name = GrantName::new(name).map_err(|error| check::bad_name(&error))?;
            let ranges = engine.ids.list(account)?;
            let from = ranges.iter().find(|info| info.name == name.as_str()).ok_or_else(|| {
                invalid(format!("you have no range named {name}"))
                    .hint("a range belongs to the name of the grant that it was first given to")
            })?;
            let count = from.range.count.min(to.count);
            let shift = |disk, shown| Shift { disk, shown, count };
            Ok((shift(from.range.uid, to.uid), shift(from.range.gid, to.gid)))
        }
        MapSource::Own { uid, gid } => {
            let (own_uid, own_gid) = own_ids()?;
            let at = |first: u32, inside: u32| {
                let host = first.checked_add(inside).filter(|_| inside < to.count);
                host.ok_or_else(|| invalid(format!("the grant has the ids 0 to {} only", to.count - 1)))
            };
            let one = |disk, shown| Shift { disk, shown, count: 1 };
            Ok((one(own_uid.0, at(to.uid, *uid)?), one(own_gid.0, at(to.gid, *gid)?)))
        }
    }
}

/// A mount namespace that is ruled by a user namespace of the account's.
fn own_namespace(engine: &Engine, caller: &Caller, fd: OwnedFd) -> Result<MntnsFd, Refusal> {
    let foreign = |message: String| {
        Refusal::new(RefusalCode::NotAuthorized, message).rule("built-in own-namespaces").hint(
            "show a mount namespace that was made in a user namespace of yours (unshare --user --mount)",
        )
    };
    let namespace = MntnsFd::from_fd(fd).map_err(|error| {
        Refusal::new(
            RefusalCode::InvalidDescriptor,
            format!("the descriptor of a mount namespace is not one: {error}"),
        )
    })?;
    let ruler = namespace
        .owner_userns()
        .map_err(|_| foreign("the mount namespace is not ruled by a user namespace of yours".to_owned()))?;
    if ruler.id().map_err(check::internal)? == engine.own_userns {
        return Err(foreign("the mount namespace belongs to the host".to_owned()));
    }
    let owner = ruler.owner_uid().map_err(check::internal)?;
    if owner != caller.uid.0 {
        return Err(foreign(format!("the mount namespace belongs to uid {owner}, not to you")));
    }
    Ok(namespace)
}
