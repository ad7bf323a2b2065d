//! POSIX access control lists: as text in archives, as bytes in extended attributes.
//!
//! Sources: `acl(5)`; `linux/posix_acl_xattr.h` (version 2: tag, permissions and id of each entry, little endian).

use std::fmt::Write as _;

/// Version of the bytes.
const VERSION: u32 = 2;
/// Most entries that are taken: the kernel's own bound is the size of an attribute.
const MAX_ENTRIES: usize = 1024;
/// The id of entries that need none.
const NO_ID: u32 = u32::MAX;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// Whose number is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// A user's.
    User,
    /// A group's.
    Group,
}

/// Knows the numbers of users and groups by their names.
pub(crate) type Lookup<'a> = dyn Fn(Whose, &str) -> Option<u32> + 'a;

/// One list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl(Vec<Entry>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    tag: u16,
    id: u32,
    permissions: u16,
}

/// Not a list that can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadAcl {
    /// Not of the form that the source describes.
    #[error("it is malformed")]
    Malformed,
    /// A user or group by name, whose number the archive does not tell.
    #[error("it names a user or group without its number")]
    Named,
    /// An id at or above the bound.
    #[error("it names an id outside of the container's range")]
    ForeignId,
}

impl Acl {
    /// Reads what tar writes: `user::rwx,user:1000:r--,…`, with commas or lines between, the number perhaps as a fourth field.
    /// Ids are below `ids`.
    ///
    /// # Errors
    /// [`BadAcl`].
    pub fn from_text(text: &str, ids: u32) -> Result<Self, BadAcl> {
        Self::from_text_with(text, ids, &|_, _| None)
    }

    /// The same, with somebody who knows the numbers of users and groups.
    pub(crate) fn from_text_with(text: &str, ids: u32, lookup: &Lookup<'_>) -> Result<Self, BadAcl> {
        let lines = text.split([',', '\n']).map(|line| line.split('#').next().unwrap_or_default().trim());
        let entries: Result<Vec<Entry>, BadAcl> = lines
            .filter(|line| !line.is_empty())
            .take(MAX_ENTRIES + 1)
            .map(|line| entry_of_text(line, lookup))
            .collect();
        Self::checked(entries?, ids)
    }

    /// Reads the bytes of `system.posix_acl_access` or `…_default`. Ids are below `ids`.
    ///
    /// # Errors
    /// [`BadAcl`].
    pub fn from_bytes(bytes: &[u8], ids: u32) -> Result<Self, BadAcl> {
        let (version, rest) = bytes.split_first_chunk::<4>().ok_or(BadAcl::Malformed)?;
        if u32::from_le_bytes(*version) != VERSION || rest.len() % 8 != 0 {
            return Err(BadAcl::Malformed);
        }
        let entries: Result<Vec<Entry>, BadAcl> = rest.chunks_exact(8).map(entry_of_bytes).collect();
        Self::checked(entries?, ids)
    }

    /// The bytes of the extended attribute.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            bytes.extend(entry.tag.to_le_bytes());
            bytes.extend(entry.permissions.to_le_bytes());
            bytes.extend(entry.id.to_le_bytes());
        }
        bytes
    }

    /// The text as tar writes it, with numbers.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for entry in &self.0 {
            let (tag, has_id) = match entry.tag {
                USER_OBJ => ("user", false),
                USER => ("user", true),
                GROUP_OBJ => ("group", false),
                GROUP => ("group", true),
                MASK => ("mask", false),
                _ => ("other", false),
            };
            let bit = |bit, letter| if entry.permissions & bit == 0 { '-' } else { letter };
            let separator = if text.is_empty() { "" } else { "," };
            let id = if has_id { entry.id.to_string() } else { String::new() };
            // Writing to a string can't fail.
            let _ = write!(text, "{separator}{tag}:{id}:{}{}{}", bit(4, 'r'), bit(2, 'w'), bit(1, 'x'));
        }
        text
    }

    /// The kernel wants entries in the order of their tags, and refuses what misses one of the three that modes have.
    fn checked(mut entries: Vec<Entry>, ids: u32) -> Result<Self, BadAcl> {
        if entries.len() > MAX_ENTRIES {
            return Err(BadAcl::Malformed);
        }
        if entries.iter().any(|entry| matches!(entry.tag, USER | GROUP) && entry.id >= ids) {
            return Err(BadAcl::ForeignId);
        }
        entries.sort_unstable();
        Ok(Self(entries))
    }
}

fn entry_of_text(line: &str, lookup: &Lookup<'_>) -> Result<Entry, BadAcl> {
    let line = line.strip_prefix("default:").unwrap_or(line);
    let mut fields = line.split(':');
    let (Some(tag), Some(who), Some(permissions)) = (fields.next(), fields.next(), fields.next()) else {
        return Err(BadAcl::Malformed);
    };
    let number = fields.next();
    let tag = match (tag, who) {
        ("user" | "u", "") => USER_OBJ,
        ("user" | "u", _) => USER,
        ("group" | "g", "") => GROUP_OBJ,
        ("group" | "g", _) => GROUP,
        ("mask" | "m", "") => MASK,
        ("other" | "o", "") => OTHER,
        _ => return Err(BadAcl::Malformed),
    };
    let id = match (who, number) {
        ("", _) => NO_ID,
        (_, Some(number)) => number.parse().map_err(|_| BadAcl::Malformed)?,
        (who, None) => match who.parse() {
            Ok(id) => id,
            Err(_) => {
                lookup(if tag == USER { Whose::User } else { Whose::Group }, who).ok_or(BadAcl::Named)?
            }
        },
    };
    let mut bits = 0;
    for letter in permissions.chars() {
        bits |= match letter {
            'r' => 4,
            'w' => 2,
            'x' => 1,
            '-' => 0,
            _ => return Err(BadAcl::Malformed),
        };
    }
    Ok(Entry { tag, id, permissions: bits })
}

fn entry_of_bytes(bytes: &[u8]) -> Result<Entry, BadAcl> {
    let [tag_low, tag_high, low, high, id @ ..] = bytes else { return Err(BadAcl::Malformed) };
    let id = u32::from_le_bytes(id.try_into().map_err(|_| BadAcl::Malformed)?);
    let (tag, permissions) = (u16::from_le_bytes([*tag_low, *tag_high]), u16::from_le_bytes([*low, *high]));
    if !matches!(tag, USER_OBJ | USER | GROUP_OBJ | GROUP | MASK | OTHER) || permissions > 7 {
        return Err(BadAcl::Malformed);
    }
    let id = if matches!(tag, USER | GROUP) { id } else { NO_ID };
    Ok(Entry { tag, id, permissions })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const TEXT: &str = "user::rwx,user:1000:r--,group::r-x,group:4:rw-,mask::rwx,other::---";

    #[test]
    fn text_and_bytes_say_the_same() {
        let acl = Acl::from_text(TEXT, 65_536).unwrap();
        assert_eq!(acl.to_text(), TEXT);
        assert_eq!(Acl::from_bytes(&acl.to_bytes(), 65_536).unwrap(), acl);
        assert_eq!(acl.to_bytes().len(), 4 + 6 * 8);
    }

    #[test]
    fn other_writings_are_understood() {
        let lines =
            "other::---\nuser::rwx\nuser:joe:r--:1000 # joe\ngroup::r-x\ngroup:adm:rw-:4\nmask::rwx\n";
        assert_eq!(Acl::from_text(lines, 65_536).unwrap().to_text(), TEXT);
        let short = "u::rwx,g::r-x,o::---,u:1000:r,g:4:rw,m::rwx";
        assert_eq!(Acl::from_text(short, 65_536).unwrap().to_text(), TEXT);
        assert_eq!(Acl::from_text("default:user::rwx", 1).unwrap(), Acl::from_text("user::rwx", 1).unwrap());
    }

    #[test]
    fn what_is_wrong_is_refused() {
        assert_eq!(Acl::from_text("user:joe:r--", 65_536), Err(BadAcl::Named));
        assert_eq!(Acl::from_text("user:65536:r--", 65_536), Err(BadAcl::ForeignId));
        assert_eq!(Acl::from_text("user:1:r--:65536", 65_536), Err(BadAcl::ForeignId));
        for text in ["user", "user::", "x::rwx", "user::rwz", "mask:1:r--", "user:1:r:x"] {
            let wrong = Acl::from_text(text, 65_536);
            assert!(wrong == Err(BadAcl::Malformed) || text == "user::", "{text}: {wrong:?}");
        }
        let acl = Acl::from_text(TEXT, 65_536).unwrap().to_bytes();
        assert_eq!(Acl::from_bytes(&acl, 1000), Err(BadAcl::ForeignId));
        for bytes in [&acl[..3], &acl[..11], &[3, 0, 0, 0], &[2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]] {
            assert_eq!(Acl::from_bytes(bytes, 65_536), Err(BadAcl::Malformed));
        }
        assert_eq!(Acl::from_text(&"user:1:r--,".repeat(5000), 65_536), Err(BadAcl::Malformed));
    }
}
