//! The accounts that the fronts become: users of the host if the package made them, else ids of the broker's own pool.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

/// More than any real user database, so that a broken one cannot fill memory.
const MAX_PASSWD: u64 = 64 * 1024 * 1024;

/// The ids that a front runs with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrontAccount {
    /// Its uid; never 0.
    pub uid: u32,
    /// Its gid; never 0.
    pub gid: u32,
}

/// Why a front has no account.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// The user database cannot be read.
    #[error("{path}: {source}")]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The account has the privilege that it is there to avoid.
    #[error("the account {0} has uid or gid 0; a front must have no privilege")]
    Privileged(String),
}

/// The account of a front: the user `name` of `passwd`, else the id `fallback` of the broker's own block.
///
/// # Errors
/// [`AccountError::Unreadable`] unless the file is merely missing; [`AccountError::Privileged`].
pub fn front_account(name: &str, passwd: &Path, fallback: u32) -> Result<FrontAccount, AccountError> {
    let text = read(passwd)?;
    let account = find(&text, name).unwrap_or(FrontAccount { uid: fallback, gid: fallback });
    if account.uid == 0 || account.gid == 0 {
        return Err(AccountError::Privileged(name.to_owned()));
    }
    Ok(account)
}

fn read(path: &Path) -> Result<Vec<u8>, AccountError> {
    let unreadable = |source| AccountError::Unreadable { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unreadable(error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_PASSWD).read_to_end(&mut bytes).map_err(unreadable)?;
    Ok(bytes)
}

/// passwd(5): `name:password:uid:gid:…`.
fn find(passwd: &[u8], name: &str) -> Option<FrontAccount> {
    passwd.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        (fields.next()? == name.as_bytes()).then_some(())?;
        let _password = fields.next()?;
        Some(FrontAccount { uid: number(fields.next()?)?, gid: number(fields.next()?)? })
    })
}

fn number(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn account(passwd: &[u8], name: &str) -> Result<FrontAccount, AccountError> {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("passwd");
        std::fs::write(&path, passwd).unwrap();
        front_account(name, &path, 1001)
    }

    #[test]
    fn the_users_of_the_package_are_used() {
        let passwd =
            b"root:x:0:0::/root:/bin/sh\ncgrant-socket:x:998:997::/:/bin/false\ncgrant-bus:x:996:995::/:\n";
        assert_eq!(account(passwd, "cgrant-socket").unwrap(), FrontAccount { uid: 998, gid: 997 });
        assert_eq!(account(passwd, "cgrant-bus").unwrap(), FrontAccount { uid: 996, gid: 995 });
    }

    #[test]
    fn without_them_the_id_of_the_pool_is_used() {
        let passwd = b"root:x:0:0::/root:/bin/sh\ncgrant-socketx:x:5:5::/:\n\xff\xfe:x:1:1\n";
        assert_eq!(account(passwd, "cgrant-socket").unwrap(), FrontAccount { uid: 1001, gid: 1001 });
        let nowhere = front_account("cgrant-bus", Path::new("/nonexistent/passwd"), 7).unwrap();
        assert_eq!(nowhere.uid, 7);
    }

    #[test]
    fn a_front_never_becomes_root() {
        assert!(matches!(account(b"f:x:0:5::/:\n", "f"), Err(AccountError::Privileged(_))));
        assert!(matches!(account(b"f:x:5:0::/:\n", "f"), Err(AccountError::Privileged(_))));
        assert!(matches!(front_account("f", Path::new("/nonexistent"), 0), Err(AccountError::Privileged(_))));
    }
}
