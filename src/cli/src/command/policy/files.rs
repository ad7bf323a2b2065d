//! Policy files that are not in force, read as the broker reads those that are.
//!
//! May touch: the directory that it is given and `/etc/group`, for reading.

use std::{fs, path::Path};

use cgrant_policy::{HostGid, Policy, Source, groups};
use cgrant_sys::{dir::Dir, dropin};

use crate::error::Failure;

/// Where the broker takes the groups from that rules name.
const GROUPS: &str = "/etc/group";

/// The policy of the files in `policy.d` below a directory, over the built-in one.
///
/// # Errors
/// That the directory can't be read; what the broker would refuse the files for, with file, line and column.
pub(super) fn read(directory: &Path) -> Result<Policy, Failure> {
    let failed = |source| Failure::File { doing: "read the policy in", path: directory.into(), source };
    let open = std::path::absolute(directory).and_then(|path| Dir::open(&path)).map_err(failed)?;
    let unread = |source| Failure::PolicyUnread { directory: directory.into(), source };
    let files = dropin::read_all(&open, "policy.d", ".toml").map_err(unread)?;
    let sources: Vec<Source<'_>> = files.iter().map(|(name, text)| Source { name, text }).collect();
    let policy = Policy::parse(&sources)?;
    let unread = |source| Failure::File { doing: "read", path: GROUPS.into(), source };
    let groups = groups(&fs::read(GROUPS).map_err(unread)?);
    Ok(policy.with_groups(|name| groups.get(name).copied().map(HostGid)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_are_refused_as_the_broker_would() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("policy.d/10-a.toml");
        fs::create_dir(scratch.path().join("policy.d")).unwrap();
        fs::write(&file, "[[rule]]\nname = \"a\"\ngroups = [\"root\"]\nquota.grants = 1\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let policy = read(scratch.path()).unwrap();
        let caller = cgrant_policy::Caller::by_uid(cgrant_policy::HostUid(0));
        assert_eq!(policy.ruling(&caller).label, "10-a.toml:1 a");
        fs::write(&file, "[[rule]]\nname = \"a\"\nquota.grantz = 1\n").unwrap();
        let error = read(scratch.path()).unwrap_err().to_string();
        assert!(error.contains("10-a.toml:3:7: unknown field"), "{error}");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o666)).unwrap();
        let error = read(scratch.path()).unwrap_err().to_string();
        assert!(error.contains("10-a.toml: has mode 0666"), "{error}");
        assert!(read(&scratch.path().join("nowhere")).is_err());
    }
}
