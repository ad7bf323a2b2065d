//! What a file has beside its data: owner, mode, times, extended attributes. Which of them may be taken from a source.
//!
//! An attacker who writes a source could want
//! * a file of the caller's own account, setuid perhaps: owners are ids of the container's range alone, in access control
//!   lists too;
//! * attributes that an overlay over the image obeys (`user.overlay.redirect` …): they are left out;
//! * capabilities that hold outside: the kernel ties those that are set here to the namespace's root.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{
    AtFlags, Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, fgetxattr, flistxattr,
    fsetxattr, futimens, utimensat,
};
use rustix::io::Errno;

use crate::acl::{Acl, BadAcl};
use crate::archive::{Kind, Member, Time};
use crate::path::shown;

/// Attribute with capabilities of a program.
const CAPABILITY: &str = "security.capability";
const ACL_ACCESS: &str = "system.posix_acl_access";
const ACL_DEFAULT: &str = "system.posix_acl_default";
/// Attributes of overlay in a user namespace.
const OVERLAY: &str = "user.overlay.";
/// Longest list of names, and longest value, that the kernel gives.
const MAX_XATTR: usize = 1 << 16;

/// Longest access control list that is remembered until its names are known, in bytes.
const MAX_NAMED: usize = 1 << 13;

/// `security.capability` of version 2: no root is named.
const CAPS_V2: (u32, usize) = (0x0200_0000, 20);
/// Of version 3: the last four bytes name the root of the namespace in which they hold.
const CAPS_V3: (u32, usize) = (0x0300_0000, 24);

/// Checked attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub modified: Time,
    pub xattrs: Vec<(String, Vec<u8>)>,
    /// Access control lists that name users or groups, as text: their numbers are in the tree itself.
    pub named: Vec<NamedAcl>,
}

/// An access control list that waits for the tree's `/etc/passwd` and `/etc/group`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NamedAcl {
    /// The extended attribute that it will be.
    pub xattr: &'static str,
    pub text: String,
}

/// Something of a member that was left out, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LeftOut {
    /// Nobody but the host's root can make device nodes; a container has its own `/dev`.
    #[error("device node")]
    Device,
    /// Whoever made it listens on it no more.
    #[error("socket")]
    Socket,
    /// A whiteout, where there is no lower layer.
    #[error("whiteout of an overlay")]
    Whiteout,
    /// Not one of the extended attributes that images may have.
    #[error("extended attribute {0}")]
    Xattr(String),
    /// The file system has none.
    #[error("extended attribute {0}: the file system can't keep it")]
    NoXattrs(String),
    /// An access control list that can't be set.
    #[error("access control list: {0}")]
    Acl(BadAcl),
}

/// An owner that is not of the container's range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ForeignOwner(pub u64);

impl Attributes {
    /// Takes those of `member`, with owners below `ids`; `overlay`: this is a layer, whose own attributes are kept.
    /// Tells `leave_out` what is not taken.
    pub fn of(
        member: &Member,
        ids: u32,
        overlay: bool,
        leave_out: &mut dyn FnMut(LeftOut),
    ) -> Result<Self, ForeignOwner> {
        let id = |id: u64| u32::try_from(id).ok().filter(|id| *id < ids).ok_or(ForeignOwner(id));
        let (uid, gid) = (id(member.uid)?, id(member.gid)?);
        let (mut xattrs, mut named) = (Vec::new(), Vec::new());
        for (name, value) in &member.xattrs {
            match xattr(&member.kind, name, value, ids, overlay) {
                Ok(pair) => xattrs.push(pair),
                Err(left_out) => leave_out(left_out),
            }
        }
        for (name, text) in [(ACL_ACCESS, &member.acl_access), (ACL_DEFAULT, &member.acl_default)] {
            let Some(text) = text else { continue };
            let text = std::str::from_utf8(text).map_err(|_| BadAcl::Malformed);
            match text.map(|text| (Acl::from_text(text, ids), text)) {
                Ok((Ok(acl), _)) => xattrs.push((name.to_owned(), acl.to_bytes())),
                Ok((Err(BadAcl::Named), text)) if text.len() <= MAX_NAMED => {
                    named.push(NamedAcl { xattr: name, text: text.to_owned() })
                }
                Ok((Err(error), _)) | Err(error) => leave_out(LeftOut::Acl(error)),
            }
        }
        Ok(Self { mode: member.mode & 0o7777, uid, gid, modified: member.modified, xattrs, named })
    }

    /// Gives a file or directory what these say, in an order in which no step undoes another.
    pub fn apply(&self, file: impl AsFd, leave_out: &mut dyn FnMut(LeftOut)) -> io::Result<()> {
        // A change of owner clears setuid bits and capabilities; a change of mode changes the list's mask.
        fchown(&file, Some(Uid::from_raw(self.uid)), Some(Gid::from_raw(self.gid)))?;
        fchmod(&file, Mode::from_raw_mode(self.mode))?;
        for (name, value) in &self.xattrs {
            match fsetxattr(&file, name.as_str(), value, XattrFlags::empty()) {
                Err(Errno::OPNOTSUPP) => leave_out(LeftOut::NoXattrs(shown(name.as_bytes()))),
                result => result?,
            }
        }
        set_modified(file, self.modified)
    }
}

/// Sets both times to when it was modified.
pub(crate) fn set_modified(file: impl AsFd, modified: Time) -> io::Result<()> {
    Ok(futimens(file, &timestamps(modified))?)
}

/// The same for an entry that can't be opened. `name` is one component.
pub(crate) fn set_modified_at(
    directory: impl AsFd,
    name: &std::ffi::OsStr,
    modified: Time,
) -> io::Result<()> {
    Ok(utimensat(directory, name, &timestamps(modified), AtFlags::SYMLINK_NOFOLLOW)?)
}

fn timestamps(time: Time) -> Timestamps {
    let time = Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    Timestamps { last_access: time, last_modification: time }
}

fn xattr(
    kind: &Kind,
    name: &[u8],
    value: &[u8],
    ids: u32,
    overlay: bool,
) -> Result<(String, Vec<u8>), LeftOut> {
    let refused = || LeftOut::Xattr(shown(name));
    let text = std::str::from_utf8(name).ok().filter(|name| name.len() <= 255 && !name.contains('\0'));
    let text = text.ok_or_else(refused)?;
    match text {
        CAPABILITY if matches!(kind, Kind::File(_)) && is_capability(value) => (),
        ACL_ACCESS | ACL_DEFAULT => {
            let acl = Acl::from_bytes(value, ids).map_err(LeftOut::Acl)?;
            return Ok((text.to_owned(), acl.to_bytes()));
        }
        _ if text.starts_with(OVERLAY) && !overlay => return Err(refused()),
        _ if text.starts_with("user.") && matches!(kind, Kind::File(_) | Kind::Directory) => (),
        _ => return Err(refused()),
    }
    Ok((text.to_owned(), value.to_vec()))
}

/// Capabilities that hold for the namespace's root. (Those that name another root hold for nobody here.)
fn is_capability(value: &[u8]) -> bool {
    let Some(magic) = value.first_chunk::<4>() else { return false };
    // The lowest bit says that they are effective from the start.
    match (u32::from_le_bytes(*magic) & !1, value.len()) {
        CAPS_V2 => true,
        CAPS_V3 => value.ends_with(&[0; 4]),
        _ => false,
    }
}

/// Extended attributes of an open file as a member of an archive has them.
pub(crate) fn read_xattrs(file: &File, member: &mut Member) -> io::Result<()> {
    let mut names = vec![0; MAX_XATTR];
    let length = match flistxattr(file, names.as_mut_slice()) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        result => result?,
    };
    names.truncate(length);
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; MAX_XATTR];
        let length = match fgetxattr(file, name, value.as_mut_slice()) {
            // It went meanwhile, or is for others to read.
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS) => continue,
            result => result?,
        };
        value.truncate(length);
        let acl = || Acl::from_bytes(&value, u32::MAX).ok().map(|acl| acl.to_text().into_bytes());
        match name {
            name if name == ACL_ACCESS.as_bytes() => member.acl_access = acl(),
            name if name == ACL_DEFAULT.as_bytes() => member.acl_default = acl(),
            _ => member.xattrs.push((name.to_vec(), value)),
        }
    }
    member.xattrs.sort();
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn member(kind: Kind, uid: u64, xattrs: &[(&str, &[u8])]) -> Member {
        Member {
            name: b"m".to_vec(),
            kind,
            mode: 0o107_777,
            uid,
            gid: 0,
            modified: Time::default(),
            size: 0,
            xattrs: xattrs.iter().map(|(name, value)| (name.as_bytes().to_vec(), value.to_vec())).collect(),
            acl_access: None,
            acl_default: None,
        }
    }

    /// Which names are kept, and which are left out.
    fn sorted(kind: Kind, xattrs: &[(&str, &[u8])], overlay: bool) -> (Vec<String>, usize) {
        let mut left_out = 0;
        let attributes =
            Attributes::of(&member(kind, 0, xattrs), 65_536, overlay, &mut |_| left_out += 1).unwrap();
        (attributes.xattrs.into_iter().map(|(name, _)| name).collect(), left_out)
    }

    #[test]
    fn owners_are_of_the_range() {
        for (uid, good) in [(0, true), (65_535, true), (65_536, false), (u64::MAX, false)] {
            let result = Attributes::of(&member(Kind::Directory, uid, &[]), 65_536, false, &mut |_| ());
            assert_eq!(result.map(|attributes| attributes.mode).ok(), good.then_some(0o7777), "{uid}");
        }
    }

    #[test]
    fn attributes_are_those_that_images_may_have() {
        let caps = |version: u8, length: usize, root: u8| {
            let mut bytes = vec![0; length];
            bytes[0] = 1;
            bytes[3] = version;
            bytes[length - 4] = root;
            bytes
        };
        let (v2, v3, other, short) = (caps(2, 20, 0), caps(3, 24, 0), caps(3, 24, 9), caps(2, 12, 0));
        for (value, good) in [(&v2, true), (&v3, true), (&other, false), (&short, false), (&vec![], false)] {
            let (kept, left_out) = sorted(Kind::File(None), &[(CAPABILITY, value)], false);
            assert_eq!((kept.len(), left_out), if good { (1, 0) } else { (0, 1) }, "{value:?}");
        }
        assert_eq!(sorted(Kind::Directory, &[(CAPABILITY, &v2)], false).1, 1);
        let hostile: &[(&str, &[u8])] = &[
            ("user.overlay.redirect", b"/etc"),
            ("trusted.overlay.opaque", b"y"),
            ("security.selinux", b"x"),
            ("security.ima", b"x"),
            ("system.other", b""),
            ("user.\0", b""),
            ("", b""),
        ];
        assert_eq!(sorted(Kind::File(None), hostile, false), (vec![], hostile.len()));
        assert_eq!(sorted(Kind::Directory, &hostile[..1], true).0, ["user.overlay.redirect"]);
        assert_eq!(sorted(Kind::SymbolicLink(vec![]), &[("user.x", b"")], false).1, 1);
        assert_eq!(sorted(Kind::File(None), &[("user.x", b"")], false).0, ["user.x"]);
        let acl = Acl::from_text("user::rw-,user:70000:r--", u32::MAX).unwrap().to_bytes();
        assert_eq!(sorted(Kind::File(None), &[(ACL_ACCESS, &acl)], false).1, 1);
    }
}
