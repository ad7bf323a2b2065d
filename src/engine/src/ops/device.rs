//! MakeDevice: a node of one of the host's devices for a container, whose root owns the node.
//!
//! Nothing is recorded: the mount is attached nowhere, and lives as long as whoever holds its descriptor lets it.

use std::{
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::Arc,
};

use cgrant_policy::{NodeName, Request, Verb};
use cgrant_sys::Dir;
use cgrant_wire::{Answer, FdIndex, GrantId, Refusal, RefusalCode};
use rustix::{
    fs::{FileType, OFlags, Stat, fstat, major},
    io::Errno,
};

use super::{inside, query::usable};
use crate::{
    connection::Caller,
    engine::{Engine, Outcome},
    mountmap::NodeWish,
};

/// Major numbers of terminals, of what they show, and of pseudoterminals (Documentation/admin-guide/devices.txt of the kernel).
/// Such a node changes hands with who is logged in there, which a node of one's own would not.
const TERMINALS: [u32; 11] = [4, 5, 7, 136, 137, 138, 139, 140, 141, 142, 143];

/// Makes a node of a device, of the same kind and number as the host's, and with its mode.
///
/// An attacker wants a device that is not for it. Either policy names the node, or it is root's and the caller is in its group
/// by the kernel's word when it connected, and the kernel says that this group may read and write it (`mountmap`). A group counts
/// only among the supplementary ones: the other may be that of a set-group-ID program that was made to connect. What is looked at is
/// a node of the host's own `/dev`, by a name without links, mounts and `..`, and only a
/// character device: with the numbers of a block device somebody's files could be read past their owners. The mount
/// has the number of that very node, which nobody can change, and nothing but it; who may make no nodes makes no others of it.
/// Access is not taken back while the container runs; at its next start it is asked for anew.
///
/// # Errors
/// [`RefusalCode::NotAuthorized`]; [`RefusalCode::InvalidArgument`] for what is no such node.
pub fn make_device(engine: &Engine, caller: &Arc<Caller>, grant: GrantId, name: &str) -> Outcome {
    let node = NodeName::new(name).map_err(|error| invalid(error.to_string()))?;
    let grant = usable(engine, caller, grant, Verb::Read)?;
    inside::must_be_outside(engine, caller, "have a device")?;
    if grant.account != caller.uid {
        return Err(Refusal::new(
            RefusalCode::NotAuthorized,
            format!("the grant is uid {}'s, who alone can say which devices it gets", grant.account),
        )
        .rule("built-in own-devices"));
    }
    let range = grant.live().record.range.ok_or_else(|| invalid("the grant has no ids"))?;
    let (host, found) = look(&node)?;
    let group = Some(found.st_gid).filter(|gid| is_for_its_group(&found) && caller.groups.contains(gid));
    // What policy names needs no group.
    let (policy, subject) = (engine.policy(), caller.subject());
    let doubted = policy.doubted(&subject).is_none_or(|account| account.access.may_have(&node));
    let is_named = doubted && policy.ruling(&subject).access.may_have(&node);
    let by_group = group.filter(|_| !is_named);
    let request = Request::UseDevice { owner: grant.account, node: &node, by_group: by_group.is_some() };
    engine.authorize(caller, node.as_str(), &request)?;
    let wish =
        NodeWish { account: grant.account, host: host.as_fd(), uid: range.uid, gid: range.gid, by_group };
    let mount = engine.mounter.make_node(&wish)?;
    Ok((Answer::Mount(FdIndex(0)), vec![mount]))
}

/// Is the node the host's, and in a group of these that may open it?
///
/// # Errors
/// [`RefusalCode::InvalidArgument`] for what is no such node, [`RefusalCode::NotAuthorized`] for a block device.
pub fn has_by_group(node: &NodeName, groups: &[u32]) -> Result<bool, Refusal> {
    let (_, found) = look(node)?;
    Ok(is_for_its_group(&found) && groups.contains(&found.st_gid))
}

/// The host's node, and what it is.
fn look(node: &NodeName) -> Result<(OwnedFd, Stat), Refusal> {
    let name = node.as_str();
    let names: Vec<&str> = name.split('/').collect();
    let open = || {
        let host = Dir::open(Path::new("/dev"))?.open_file_below(&names, OFlags::PATH)?;
        let found = fstat(&host)?;
        Ok::<_, std::io::Error>((host, found))
    };
    let (host, found) = open().map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::NOTDIR) => invalid(format!("the host has no /dev/{name}")),
        Some(Errno::LOOP | Errno::XDEV) => {
            invalid(format!("/dev/{name} is reached by a link, or lies on another mount"))
                .hint("name the node that the link leads to")
        }
        _ => Refusal::new(
            RefusalCode::KernelRefused,
            format!("the kernel refused to look at /dev/{name}: {error}"),
        ),
    })?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::CharacterDevice => Ok((host, found)),
        FileType::BlockDevice => Err(Refusal::new(
            RefusalCode::NotAuthorized,
            format!("/dev/{name} is a block device, which no container gets"),
        )
        .rule("built-in no-block-devices")
        .hint("mount what is on it on the host, and show the container the directory")),
        _ => Err(invalid(format!("/dev/{name} is no device node"))),
    }
}

/// Is it root's for good, so that only its group makes somebody's right to it?
fn is_for_its_group(found: &Stat) -> bool {
    found.st_uid == 0 && !TERMINALS.contains(&major(found.st_rdev))
}

fn invalid(message: impl Into<String>) -> Refusal {
    Refusal::new(RefusalCode::InvalidArgument, message)
}
