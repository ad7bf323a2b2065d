//! Devices of a grant: which ones its programs may open (AllowDevice, and what policy says of a new one), and nodes of the host's for
//! a container, whose root owns them (MakeDevice).
//!
//! Of a node nothing is recorded: the mount is attached nowhere, and lives as long as whoever holds its descriptor lets it.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use cgrant_policy::{Caller as Subject, Door, GrantPath, HostUid, NodeName, NodePattern, Request, Verb};
use cgrant_sys::bpf::DeviceAccess;
use cgrant_wire::{Answer, FdIndex, GrantId, Range, Refusal, RefusalCode};
use rustix::{
    fs::{FileType, Stat, major},
    io::Errno,
};

use super::{inside, query::usable};
use crate::{
    connection::Caller,
    devices::{self, DeviceList, Number},
    engine::{About, Engine, Outcome},
    mountmap::NodeWish,
    record::GrantRecord,
    registry::Grant,
};

/// What others may do, of a node's mode.
const OTHERS_READ: u32 = 0o004;
const OTHERS_WRITE: u32 = 0o002;

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
/// From inside a container neither the account's groups nor what policy gave it since count: those there have nodes of what
/// programs of the outermost container can open, and of nothing else.
///
/// # Errors
/// [`RefusalCode::NotAuthorized`]; [`RefusalCode::InvalidArgument`] for what is no such node.
pub fn make_device(engine: &Engine, caller: &Arc<Caller>, grant: GrantId, name: &str) -> Outcome {
    let node = NodeName::new(name).map_err(|error| invalid(error.to_string()))?;
    let grant = usable(engine, caller, grant, Verb::Read)?;
    inside::must_be_outside(engine, caller, "have a device")?;
    must_be_own(caller.account(), &grant)?;
    let range = must_have_ids(&grant)?;
    let (host, found) = look(&node)?;
    let group = Some(found.st_gid).filter(|gid| is_for_its_group(&found) && caller.groups.contains(gid));
    // What policy names needs no group.
    let is_named = has_by_policy(engine, &caller.subject(), &node);
    let by_group = group.filter(|_| !is_named && caller.nested.is_none());
    let is_had = match caller.nested {
        Some(_) => {
            must_be_open_around(engine, &caller.subject(), &grant.path, &node, &found).map(|()| true)?
        }
        None => by_group.is_some(),
    };
    let request = Request::UseDevice { owner: grant.account, node: &node, by_group: is_had };
    engine.authorize(caller, About { grant: Some(grant.id), words: node.as_str() }, &request)?;
    let wish =
        NodeWish { account: grant.account, host: host.as_fd(), uid: range.uid, gid: range.gid, by_group };
    let mount = engine.mounter.make_node(&wish)?;
    // What is not wanted any more if this fails goes with its descriptor.
    allow(engine, &grant, Number::of(&found, DeviceAccess::ALL))?;
    Ok((Answer::Mount(FdIndex(0)), vec![mount]))
}

/// Lets the programs in a grant open one of the host's devices, as far as its nodes let them.
///
/// An attacker wants a device that is not for it. No node comes of it, and no right to one: what a node's mode says counts as
/// ever, and to somebody who has nothing but the grant's ids it says what it says to others. What others may do with the
/// host's node is all that is allowed here, to a caller who is not in the group that such a node shuts out; or else to read and write,
/// where a group gives the caller the device ([`make_device`]). All, which those in containers inside may have nodes by, comes of
/// what policy names alone: by its group the account opens the host's node and no other. Which node is looked at is as
/// strict as there. Neither block devices nor anybody's terminal can be named.
///
/// # Errors
/// As [`make_device`].
pub fn allow_device(engine: &Engine, caller: &Arc<Caller>, grant: GrantId, name: &str) -> Outcome {
    let node = NodeName::new(name).map_err(|error| invalid(error.to_string()))?;
    let grant = usable(engine, caller, grant, Verb::Read)?;
    inside::must_be_outside(engine, caller, "have a device")?;
    must_be_own(caller.account(), &grant)?;
    let (_, found) = look(&node)?;
    let others = for_others(&found, caller.gid.0, &caller.groups);
    let by_group = is_for_its_group(&found) && caller.groups.contains(&found.st_gid);
    let request =
        Request::UseDevice { owner: grant.account, node: &node, by_group: others.is_some() || by_group };
    engine.authorize(caller, About { grant: Some(grant.id), words: node.as_str() }, &request)?;
    let access = if has_by_policy(engine, &caller.subject(), &node) {
        DeviceAccess::ALL
    } else if by_group {
        DeviceAccess::from_bits(DeviceAccess::READ.bits() | DeviceAccess::WRITE.bits())
    } else {
        others.unwrap_or(DeviceAccess::from_bits(0))
    };
    allow(engine, &grant, Number::of(&found, access))?;
    Ok((Answer::Done, Vec::new()))
}

/// The devices that a new grant is limited to; `None` if they are not limited.
///
/// # Errors
/// As [`must_be_limited`].
pub fn limit_of(engine: &Engine, subject: &Subject, has_ids: bool) -> Result<Option<DeviceList>, Refusal> {
    if !must_be_limited(engine, subject, has_ids)? {
        return Ok(None);
    }
    let policy = engine.policy();
    let (ruling, account) = (policy.ruling(subject), policy.doubted(subject));
    let mut named: Vec<NodePattern> = ruling.access.devices.clone();
    // What an application's rule names, its account's has to name too; one of the same words is surely that.
    if let Some(account) = account {
        named.retain(|pattern| account.access.devices.contains(pattern));
    }
    Ok(Some(DeviceList::new(&named)))
}

/// Is a new grant to be limited to some devices?
///
/// # Errors
/// [`RefusalCode::Unsupported`] if it is, the kernel can't, and policy wants no grant then.
pub fn must_be_limited(engine: &Engine, subject: &Subject, has_ids: bool) -> Result<bool, Refusal> {
    let policy = engine.policy();
    let ruling = policy.ruling(subject);
    if !ruling.access.limit_devices.is_for(has_ids) {
        return Ok(false);
    }
    match engine.devices.lacks() {
        None => Ok(true),
        Some(_) if ruling.access.unlimited_devices == Door::Allow => Ok(false),
        Some(why) => Err(Refusal::new(RefusalCode::Unsupported, format!("this grant's devices can't be limited: {why}"))
            .rule(ruling.label.clone())
            .hint("a kernel with CONFIG_CGROUP_BPF can; an administrator can say unlimited-devices = \"allow\" in the rule")),
    }
}

/// Limits the devices of a grant that is there to what its record says.
///
/// # Errors
/// What the kernel refuses; [`RefusalCode::NoSuchGrant`] if its cgroup is gone.
pub fn limit_again(engine: &Engine, grant: &Grant) -> Result<(), Refusal> {
    let list = grant.live().record.devices.clone();
    match list {
        Some(list) => set(engine, grant, &list),
        None => Ok(()),
    }
}

fn set(engine: &Engine, grant: &Grant, list: &DeviceList) -> Result<(), Refusal> {
    let cgroup = engine.tree.open_grant(&grant.path)?;
    Ok(engine.devices.set(cgroup.as_fd(), list)?)
}

/// Adds a device to those that a grant is limited to. A start after a crash in between finishes it.
fn allow(engine: &Engine, grant: &Arc<Grant>, number: Option<Number>) -> Result<(), Refusal> {
    let before = grant.live().record.clone();
    let (Some(mut list), Some(number)) = (before.devices.clone(), number) else { return Ok(()) };
    if !list.add(number)? {
        return Ok(());
    }
    let record = GrantRecord { devices: Some(list.clone()), ..before.clone() };
    engine.write_record(&record)?;
    if let Err(refusal) = set(engine, grant, &list) {
        engine.write_record(&before)?;
        return Err(refusal);
    }
    engine.registry().set_record(grant, record);
    Ok(())
}

/// Refuses a device that programs around a grant can't open: nobody inside has more than they.
///
/// An attacker inside wants a device that the account has and did not give to its container, or that policy has come to name since.
/// What counts is what the kernel holds the outermost container to, as its record says; where it is held to nothing, policy.
///
/// # Errors
/// As [`make_device`].
fn must_be_open_around(
    engine: &Engine,
    subject: &Subject,
    path: &GrantPath,
    node: &NodeName,
    found: &Stat,
) -> Result<(), Refusal> {
    let outermost = super::nested::around(engine, path).pop();
    let list = outermost.and_then(|grant| grant.live().record.devices.clone());
    let is_open = match list {
        Some(list) => Number::of(found, DeviceAccess::ALL).is_some_and(|number| list.has(number)),
        None => has_by_policy(engine, subject, node),
    };
    if is_open {
        return Ok(());
    }
    let name = node.as_str();
    Err(Refusal::new(
        RefusalCode::NotAuthorized,
        format!("the outermost of the containers around was not given /dev/{name}"),
    )
    .rule("built-in nesting")
    .hint(format!("start the outermost container with --device {name}")))
}

/// The ids that a node in the grant belongs to.
///
/// # Errors
/// [`RefusalCode::InvalidArgument`].
pub fn must_have_ids(grant: &Grant) -> Result<Range, Refusal> {
    grant.live().record.range.ok_or_else(|| invalid("the grant has no ids"))
}

/// Refuses devices for grants of other accounts.
///
/// # Errors
/// [`RefusalCode::NotAuthorized`].
pub fn must_be_own(account: HostUid, grant: &Grant) -> Result<(), Refusal> {
    if grant.account == account {
        return Ok(());
    }
    Err(Refusal::new(
        RefusalCode::NotAuthorized,
        format!("the grant is uid {}'s, who alone can say which devices it gets", grant.account),
    )
    .rule("built-in own-devices"))
}

/// Does policy name it?
fn has_by_policy(engine: &Engine, subject: &Subject, node: &NodeName) -> bool {
    let policy = engine.policy();
    let doubted = policy.doubted(subject).is_none_or(|account| account.access.may_have(node));
    doubted && policy.ruling(subject).access.may_have(node)
}

/// What anybody may do with the host's node who is neither its owner nor in its group; `None` if that is nothing, or if the
/// caller is in that group.
fn for_others(found: &Stat, gid: u32, groups: &[u32]) -> Option<DeviceAccess> {
    let bit =
        |of_mode: u32, access: DeviceAccess| if found.st_mode & of_mode == 0 { 0 } else { access.bits() };
    let bits = bit(OTHERS_READ, DeviceAccess::READ) | bit(OTHERS_WRITE, DeviceAccess::WRITE);
    let is_shut_out = found.st_gid == gid || groups.contains(&found.st_gid);
    let is_terminal = TERMINALS.contains(&major(found.st_rdev));
    (bits != 0 && !is_shut_out && !is_terminal).then(|| DeviceAccess::from_bits(bits))
}

/// Is the node one that somebody with this gid and these groups may open without a word of policy's?
///
/// # Errors
/// As [`has_by_group`].
pub fn has_anyhow(node: &NodeName, gid: u32, groups: &[u32]) -> Result<bool, Refusal> {
    let (_, found) = look(node)?;
    let by_group = is_for_its_group(&found) && groups.contains(&found.st_gid);
    Ok(by_group || for_others(&found, gid, groups).is_some())
}

/// Would a caller inside a grant around this one be refused the device?
///
/// # Errors
/// As [`make_device`].
pub fn foresee_inside(
    engine: &Engine,
    subject: &Subject,
    path: &GrantPath,
    node: &NodeName,
) -> Result<(), Refusal> {
    let (_, found) = look(node)?;
    must_be_open_around(engine, subject, path, node, &found)
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
    let (host, found) = devices::look(node).map_err(|error| match Errno::from_io_error(&error) {
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
