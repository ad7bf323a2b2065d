//! Who a user of the container is, from its own `/etc/passwd` and `/etc/group`.
//!
//! Read by the process that becomes that user, inside, where the files can do no harm to anybody else. They are the container's to
//! write: what is longer than any sane file is not read, and nothing in them can make reading wait.

use std::{io, path::Path};

use cgrant_sys::Dir;
use rustix::io::Errno;

/// The longest passwd or group that is read, in bytes.
const MAX: usize = 4 * 1024 * 1024;
/// Most supplementary groups that the kernel takes.
const MAX_GROUPS: usize = 65_536;

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: String,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) home: String,
    pub(crate) shell: String,
}

impl User {
    /// Root, as it is without any file.
    fn root() -> Self {
        let (name, home, shell) = ("root".to_owned(), "/root".to_owned(), "/bin/sh".to_owned());
        Self { name, uid: 0, gid: 0, groups: Vec::new(), home, shell }
    }

    /// A name or a uid; root without one. A uid that nobody has is itself, with the group of the same number.
    ///
    /// # Errors
    /// `ENOENT` for a name that is not there; `ENOTDIR`, `EFBIG`, … of reading the files.
    pub(crate) fn find(wanted: Option<&str>) -> io::Result<Self> {
        let wanted = wanted.unwrap_or("root");
        let (passwd, group) = match Dir::open(Path::new("/etc")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Default::default(),
            etc => read(&etc?)?,
        };
        choose(wanted, &passwd, &group).ok_or_else(|| Errno::NOENT.into())
    }
}

/// Both files; one that is not there is empty.
fn read(etc: &Dir) -> io::Result<(String, String)> {
    let text = |file| etc.read_bytes(file, MAX).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    let passwd = match text("passwd") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        text => text?,
    };
    Ok((passwd, text("group").unwrap_or_default()))
}

fn choose(wanted: &str, passwd: &str, group: &str) -> Option<User> {
    let number: Option<u32> = wanted.parse().ok();
    let is_it = |user: &User| match number {
        Some(uid) => user.uid == uid,
        None => user.name == wanted,
    };
    let found = passwd.lines().filter_map(user).find(is_it);
    let mut user = match (found, number) {
        (Some(user), _) => user,
        (None, Some(0)) => User::root(),
        (None, Some(uid)) => {
            User { uid, gid: uid, name: wanted.to_owned(), home: "/".to_owned(), ..User::root() }
        }
        (None, None) if wanted == "root" => User::root(),
        (None, None) => return None,
    };
    let member = |line: &str| {
        let mut fields = line.split(':').skip(2);
        let gid = fields.next()?.parse().ok()?;
        fields.next()?.split(',').any(|name| name == user.name).then_some(gid)
    };
    user.groups = group.lines().filter_map(member).take(MAX_GROUPS).collect();
    Some(user)
}

/// A line of passwd(5).
fn user(line: &str) -> Option<User> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?.to_owned();
    let uid = fields.nth(1)?.parse().ok()?;
    let gid = fields.next()?.parse().ok()?;
    let home = fields.nth(1)?;
    let shell = fields.next().unwrap_or_default();
    let or = |text: &str, otherwise: &str| if text.starts_with('/') { text } else { otherwise }.to_owned();
    Some(User { name, uid, gid, groups: Vec::new(), home: or(home, "/"), shell: or(shell, "/bin/sh") })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const PASSWD: &str = "junk\n:x:1:1:::\nroot:x:0:0:root:/root:/bin/bash\nann:x:1000:100:Ann,,,:/home/ann:\nbad:x:-1:0::/:/x\nbob:x:1001:1001::rel:sh\n";
    const GROUP: &str = "sudo:x:27:bob,ann\nusers:x:100:\nodd:x:y:ann\nadm:x:4:root\n";

    #[test]
    fn users_are_found_by_name_and_number() {
        let find = |wanted| choose(wanted, PASSWD, GROUP);
        let ann = find("ann").unwrap();
        assert_eq!(
            (ann.uid, ann.gid, ann.home.as_str(), ann.shell.as_str()),
            (1000, 100, "/home/ann", "/bin/sh")
        );
        assert_eq!(ann.groups, [27]);
        assert_eq!(find("1000").unwrap(), ann);
        assert_eq!(find("root").unwrap().groups, [4]);
        let bob = find("bob").unwrap();
        assert_eq!((bob.home.as_str(), bob.shell.as_str()), ("/", "/bin/sh"));
        let nobody = find("4242").unwrap();
        assert_eq!((nobody.uid, nobody.gid, nobody.name.as_str()), (4242, 4242, "4242"));
        assert!(find("bad").is_none() && find("").is_none() && find("eve").is_none());
    }

    #[test]
    fn root_is_there_without_any_file() {
        assert_eq!(choose("root", "", "").unwrap(), User::root());
        assert_eq!(choose("0", "", "").unwrap(), User::root());
    }
}
