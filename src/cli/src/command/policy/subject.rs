//! Whose request is tried: an account with its groups, and an application.

use std::ffi::CString;

use cgrant_policy::{Application, Caller, HostGid, HostUid};
use nix::unistd::{Uid, User, getgid, getgrouplist, getgroups, getuid};

use crate::{args::ExplainArgs, error::Failure};

/// The gids that a login of the account has, the primary one first; its own number as a gid if there is no such user.
///
/// # Errors
/// If the host's databases can't be asked.
pub(super) fn groups_of(account: u32) -> Result<Vec<u32>, Failure> {
    let failed =
        |error: nix::Error| Failure::Machine { doing: "look up the user's groups", source: error.into() };
    let Some(user) = User::from_uid(Uid::from_raw(account)).map_err(failed)? else {
        return Ok(vec![account]);
    };
    let name = CString::new(user.name)
        .map_err(|error| Failure::Machine { doing: "look up the user's groups", source: error.into() })?;
    // The primary one comes first.
    let groups = getgrouplist(&name, user.gid).map_err(failed)?;
    Ok(groups.into_iter().map(|gid| gid.as_raw()).collect())
}

/// The one whom the command line names, or whoever runs it.
///
/// # Errors
/// If the application's name is none.
pub(super) fn of(args: &ExplainArgs) -> Result<Caller, Failure> {
    let failed =
        |error: nix::Error| Failure::Machine { doing: "look up your own groups", source: error.into() };
    let uid = args.account.unwrap_or_else(|| getuid().as_raw());
    let mut groups: Vec<HostGid> = args.groups.iter().copied().map(HostGid).collect();
    if groups.is_empty() {
        groups.push(HostGid(getgid().as_raw()));
        groups.extend(getgroups().map_err(failed)?.into_iter().map(|gid| HostGid(gid.as_raw())));
    }
    let application = args.application.as_deref().map(Application::named).transpose();
    let application = application.map_err(|expected| Failure::Usage(format!("--application: {expected}")))?;
    let mut groups = groups.into_iter();
    let gid = groups.next().unwrap_or(HostGid(uid));
    Ok(Caller { uid: HostUid(uid), gid, groups: groups.collect(), application })
}
