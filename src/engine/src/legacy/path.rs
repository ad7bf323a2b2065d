//! The path argument: which words are a path, and whether one lies below another. Always by components, never by text.

use super::fault::Fault;

/// Longest path, in bytes.
const MAX_PATH: usize = cgrant_wire::legacy::MAX_TEXT;
/// Longest component, in bytes (`NAME_MAX`).
const MAX_NAME: usize = 255;
/// The cgroup that has the processes of the one around it on cgroup2. Clients neither see nor name it.
pub const LEAF: &str = ".cgm_leaf";

/// The names on the way to a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Did it begin with `/`?
    pub absolute: bool,
    /// The names; none for the beginning itself.
    pub names: Vec<String>,
}

impl Wanted {
    /// Reads a path as clients write them. `..` is refused anywhere, as CGManager does, also within a name; and so is [`LEAF`].
    ///
    /// # Errors
    /// [`Fault::Path`].
    pub fn parse(text: &str) -> Result<Self, Fault> {
        if text.len() > MAX_PATH || text.contains("..") || text.contains(['\0', '\n']) {
            return Err(Fault::Path);
        }
        let names = components(text);
        if names.iter().any(|name| name.len() > MAX_NAME || name == LEAF) {
            return Err(Fault::Path);
        }
        Ok(Self { absolute: text.starts_with('/'), names })
    }
}

/// The names in a path.
pub fn components(path: &str) -> Vec<String> {
    path.split('/').filter(|name| !name.is_empty() && *name != ".").map(str::to_owned).collect()
}

/// The names in a path of cgroup2's, to the cgroup that clients take a process to be in.
pub fn shown(mut names: Vec<String>) -> Vec<String> {
    names.pop_if(|last| last == LEAF);
    names
}

/// The names below `above` of a path, if it lies there or is it.
pub fn below<'p>(path: &'p [String], above: &[String]) -> Option<&'p [String]> {
    path.strip_prefix(above)
}

/// The name of a file of a cgroup, if it is one component.
///
/// # Errors
/// [`Fault::File`].
pub fn file_name(text: &str) -> Result<&str, Fault> {
    let bad = text.is_empty()
        || text.len() > MAX_NAME
        || text.contains("..")
        || text == "."
        || text.contains(['/', '\\', '\0', '\n']);
    if bad { Err(Fault::File(text.escape_default().take(64).collect())) } else { Ok(text) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_names() {
        let wanted = Wanted::parse("/a//b/./c/").unwrap();
        assert_eq!((wanted.absolute, wanted.names.join("|").as_str()), (true, "a|b|c"));
        assert_eq!(Wanted::parse("").unwrap(), Wanted { absolute: false, names: Vec::new() });
        assert_eq!(Wanted::parse(&format!("{}x", "a/".repeat(2047))).unwrap().names.len(), 2048);
    }

    #[test]
    fn what_leads_elsewhere_is_no_path() {
        let long = "x".repeat(4097);
        let name = "x".repeat(256);
        for bad in [
            "..",
            "a/../b",
            "x..y",
            "a\0b",
            "a\nb",
            "a/.cgm_leaf",
            ".cgm_leaf/b",
            long.as_str(),
            name.as_str(),
        ] {
            assert!(matches!(Wanted::parse(bad), Err(Fault::Path)), "{bad:?}");
        }
    }

    #[test]
    fn the_leaf_of_a_cgroup_is_the_cgroup() {
        assert_eq!(shown(components("/a/b/.cgm_leaf")), ["a", "b"]);
        assert_eq!(shown(components("/.cgm_leaf/b")), [".cgm_leaf", "b"]);
        assert!(shown(components("/.cgm_leaf")).is_empty() && shown(Vec::new()).is_empty());
    }

    #[test]
    fn a_prefix_of_a_name_is_not_above_it() {
        let names = components;
        assert_eq!(below(&names("/foobar"), &names("/foo")), None);
        assert_eq!(below(&names("/foo/bar"), &names("/foo")).unwrap(), ["bar"]);
        assert!(below(&names("/foo"), &names("/foo")).unwrap().is_empty());
        assert!(below(&names("/foo"), &names("/")).is_some());
    }

    #[test]
    fn a_file_is_one_component() {
        assert_eq!(file_name("memory.limit_in_bytes").unwrap(), "memory.limit_in_bytes");
        for bad in ["", ".", "..", "a/b", "/etc/passwd", "a\\b", "x..y", "a\0", "a\n"] {
            assert!(matches!(file_name(bad), Err(Fault::File(_))), "{bad:?}");
        }
    }
}
