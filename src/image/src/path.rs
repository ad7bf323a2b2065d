//! Names of members: any bytes that somebody else wrote, made into components that are safe one by one.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::limits::Limits;

/// The way from the root of a tree to something in it; empty: the root itself.
///
/// Each component is a name: not empty, neither `.` nor `..`, without `/` and NUL.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct TreePath(Vec<OsString>);

/// Why a name is no way into a tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// `..` leads out of what it is in.
    #[error("it goes up with `..`")]
    Up,
    /// No file can be named so.
    #[error("it has a NUL byte")]
    Nul,
    /// Longer than [`Limits::PATH`].
    #[error("it is longer than {} bytes", Limits::PATH)]
    Long,
    /// Deeper than [`Limits::DEPTH`].
    #[error("it is more than {} directories deep", Limits::DEPTH)]
    Deep,
    /// No name at all.
    #[error("it is empty")]
    Empty,
}

impl TreePath {
    /// Takes a member's name. What leads to the root (`/`, `./`) is stripped, as tar does.
    ///
    /// # Errors
    /// [`BadPath`].
    pub fn parse(name: &[u8]) -> Result<Self, BadPath> {
        if name.is_empty() {
            return Err(BadPath::Empty);
        }
        if name.len() > Limits::PATH {
            return Err(BadPath::Long);
        }
        if name.contains(&0) {
            return Err(BadPath::Nul);
        }
        let mut components = Vec::new();
        for component in name.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => (),
                b".." => return Err(BadPath::Up),
                _ if components.len() == Limits::DEPTH => return Err(BadPath::Deep),
                _ => components.push(OsString::from_vec(component.to_vec())),
            }
        }
        Ok(Self(components))
    }

    /// All components, from the root on.
    pub fn components(&self) -> &[OsString] {
        &self.0
    }

    /// The directory's components and the last one; `None` for the root.
    pub fn split(&self) -> Option<(&[OsString], &OsStr)> {
        self.0.split_last().map(|(last, parents)| (parents, last.as_os_str()))
    }

    /// The path of `name` in this directory. `name` comes from a directory, so it is a component.
    pub fn join(&self, name: &OsStr) -> Self {
        let mut components = self.0.clone();
        components.push(name.to_owned());
        Self(components)
    }

    /// The bytes as tar writes them, without leading `/`.
    pub fn bytes(&self) -> Vec<u8> {
        let parts: Vec<&[u8]> = self.0.iter().map(|component| component.as_bytes()).collect();
        parts.join(&b'/')
    }
}

/// Names as they are shown: printable characters themselves, everything else as an escape, and never too long for a line.
impl fmt::Display for TreePath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "/{}", shown(&self.bytes()))
    }
}

/// Bytes of a source as a message can hold them: no control characters, at most 200 characters.
pub(crate) fn shown(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes).chars().flat_map(char::escape_debug).collect();
    match text.char_indices().nth(200) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn parsed(name: &str) -> String {
        TreePath::parse(name.as_bytes()).unwrap().to_string()
    }

    #[test]
    fn what_leads_to_the_root_is_stripped() {
        for (name, path) in [
            ("a/b", "/a/b"),
            ("./a/./b/", "/a/b"),
            ("//etc//passwd", "/etc/passwd"),
            ("./", "/"),
            ("/", "/"),
            ("...", "/..."),
        ] {
            assert_eq!(parsed(name), path);
        }
    }

    #[test]
    fn bad_names_are_refused() {
        for name in ["..", "a/../b", "/..", "a/.."] {
            assert_eq!(TreePath::parse(name.as_bytes()), Err(BadPath::Up), "{name}");
        }
        assert_eq!(TreePath::parse(b""), Err(BadPath::Empty));
        assert_eq!(TreePath::parse(b"a\0b"), Err(BadPath::Nul));
        assert_eq!(TreePath::parse(&[b'a'; Limits::PATH + 1]), Err(BadPath::Long));
        assert_eq!(TreePath::parse("a/".repeat(Limits::DEPTH + 1).as_bytes()), Err(BadPath::Deep));
        assert!(TreePath::parse("a/".repeat(Limits::DEPTH).as_bytes()).is_ok());
    }

    #[test]
    fn messages_hold_no_escapes() {
        assert_eq!(parsed("a\x1b[31m\n"), "/a\\u{1b}[31m\\n");
        assert!(parsed(&"x".repeat(4000)).chars().count() < 210);
    }
}
