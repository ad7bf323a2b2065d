//! Names of device nodes, and what policy says about them.

use std::str::FromStr;

use serde::{Deserialize, Deserializer};

use crate::diagnostic::text;

/// Most characters of a name.
const MAX_NAME: usize = 64;

/// What a device node is called below `/dev`: `kvm`, `dri/renderD128`.
///
/// Parts of letters, digits, `.`, `_` and `-` that do not begin with a dot, so that it leads nowhere but below.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeName(String);

/// A text that is no name of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected a name below /dev of at most 64 characters, such as \"kvm\" or \"net/tun\"")]
pub struct NodeNameError;

impl NodeName {
    /// Checks a name.
    ///
    /// # Errors
    /// [`NodeNameError`].
    pub fn new(name: &str) -> Result<Self, NodeNameError> {
        let fits = name.len() <= MAX_NAME && name.split('/').all(|part| !part.is_empty() && is_part(part));
        fits.then(|| Self(name.to_owned())).ok_or(NodeNameError)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Of a name, or the beginning of one.
fn is_part(text: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    text.bytes().all(good) && !text.starts_with('.')
}

/// Which device nodes policy means: `/dev/kvm`, `/dev/dri/renderD*`, `/dev/dri/*`. A `*` stands at the end, for any text
/// without a `/`. Not all of `/dev`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePattern {
    /// All of the name, or its beginning.
    text: String,
    is_whole: bool,
}

impl NodePattern {
    fn parse(text: &str) -> Result<Self, &'static str> {
        const EXPECTED: &str = "expected a path such as \"/dev/kvm\", \"/dev/nvidia*\" or \"/dev/dri/*\"";
        let name = text.strip_prefix("/dev/").ok_or(EXPECTED)?;
        let Some(beginning) = name.strip_suffix('*') else {
            return NodeName::new(name)
                .map(|name| Self { text: name.0, is_whole: true })
                .map_err(|_| EXPECTED);
        };
        let (directory, last) = beginning.rsplit_once('/').unwrap_or(("", beginning));
        let in_directory = directory.is_empty() || NodeName::new(directory).is_ok();
        match in_directory && is_part(last) && !beginning.is_empty() && !beginning.starts_with('/') {
            true => Ok(Self { text: beginning.to_owned(), is_whole: false }),
            false => Err(EXPECTED),
        }
    }

    /// The node, if it names but one.
    pub fn only(&self) -> Option<NodeName> {
        self.is_whole.then(|| NodeName(self.text.clone()))
    }

    /// The directory below `/dev` in which the nodes are that it names; empty for `/dev` itself.
    pub fn directory(&self) -> &str {
        self.text.rsplit_once('/').map_or("", |(directory, _)| directory)
    }

    /// Does it mean this one?
    pub fn names(&self, node: &NodeName) -> bool {
        match node.0.strip_prefix(&self.text) {
            Some(rest) if self.is_whole => rest.is_empty(),
            Some(rest) => !rest.is_empty() && !rest.contains('/'),
            None => false,
        }
    }
}

impl FromStr for NodePattern {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::parse(text)
    }
}

/// As in a policy file.
impl std::fmt::Display for NodePattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "/dev/{}{}", self.text, if self.is_whole { "" } else { "*" })
    }
}

impl<'de> Deserialize<'de> for NodePattern {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text(from, "the path of a device node", Self::parse)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_but_below() {
        for good in ["kvm", "net/tun", "dri/by.path/a-b_c", &"x".repeat(64)] {
            assert_eq!(NodeName::new(good).unwrap().as_str(), good);
        }
        let long = "x".repeat(65);
        for bad in
            ["", "/kvm", "kvm/", "a//b", ".", "..", "../sda", "a/../sda", "a/.b", "a b", "a\0", "ä", &long]
        {
            assert_eq!(NodeName::new(bad), Err(NodeNameError), "{bad}");
        }
    }

    #[test]
    fn patterns_name_what_they_say_and_no_more() {
        let named = |pattern, name| NodePattern::parse(pattern).unwrap().names(&NodeName::new(name).unwrap());
        assert!(named("/dev/kvm", "kvm") && named("/dev/net/tun", "net/tun"));
        assert!(named("/dev/dri/*", "dri/card0") && named("/dev/nvidia*", "nvidia0"));
        for (pattern, name) in [
            ("/dev/kvm", "kvm2"),
            ("/dev/kvm", "a/kvm"),
            ("/dev/dri/*", "dri/by-path/card"),
            ("/dev/dri/*", "dri2/card"),
            ("/dev/dri/card*", "dri/renderD128"),
            ("/dev/nvidia*", "nvidia-caps/cap1"),
            ("/dev/nvidia*", "nvidia"),
        ] {
            assert!(!named(pattern, name), "{pattern} {name}");
        }
    }

    #[test]
    fn patterns_say_where_their_nodes_are() {
        for (pattern, only, directory) in [
            ("/dev/kvm", Some("kvm"), ""),
            ("/dev/net/tun", Some("net/tun"), "net"),
            ("/dev/dri/*", None, "dri"),
            ("/dev/nvidia*", None, ""),
            ("/dev/a/b/c*", None, "a/b"),
        ] {
            let parsed: NodePattern = pattern.parse().unwrap();
            let found = parsed.only();
            assert_eq!((found.as_ref().map(NodeName::as_str), parsed.directory()), (only, directory));
            assert_eq!(parsed.to_string(), pattern);
        }
    }

    #[test]
    fn patterns_of_everything_are_refused() {
        for bad in [
            "/dev/*",
            "/dev/",
            "kvm",
            "/sys/kvm",
            "/dev/a*b",
            "/dev/*/a",
            "/dev//*",
            "/dev/../*",
            "/dev/a/.*",
            "*",
        ] {
            assert!(NodePattern::parse(bad).is_err(), "{bad}");
        }
    }
}
