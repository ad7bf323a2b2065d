//! Whether users of a container have subordinate ids that containers in it have. Reads the files of `newuidmap` and the maps that this
//! process is in.

use std::{fs, path::Path};

use super::Finding;

/// Ids of one block (docs/administration.md). Behind a container's first one come those for containers in it.
const BLOCK: u64 = 65_536;
/// Most users that are named.
const MOST: usize = 5;
/// What lies there in a container that was made with nesting, and nowhere else.
const NESTING: &str = "run/.cgrant";

/// One line for each of the two files below `root`; nothing where no containers can be in this one.
pub(super) fn findings(root: &Path) -> Vec<Finding> {
    if !root.join(NESTING).is_dir() {
        return Vec::new();
    }
    [("uid", "newuidmap", "SUB_UID_COUNT"), ("gid", "newgidmap", "SUB_GID_COUNT")]
        .into_iter()
        .filter_map(|(kind, program, setting)| finding(root, kind, program, setting))
        .collect()
}

fn finding(root: &Path, kind: &str, program: &str, setting: &str) -> Option<Finding> {
    let ids = ids(&fs::read_to_string(root.join(format!("proc/self/{kind}_map"))).ok()?)?;
    let file = format!("/etc/sub{kind}");
    // Without the file nobody has any.
    let lines = fs::read(root.join(&file[1..])).unwrap_or_default();
    let lines = String::from_utf8_lossy(&lines);
    let users = users(&lines, ids);
    if users.is_empty() {
        return Some(Finding::ok(file, "gives nobody ids that containers in this one have"));
    }
    Some(Finding::warn(
        file.clone(),
        format!(
            "gives {} ids at or behind {BLOCK}, where the blocks of containers in this one are: {program} maps them, and who has them may be \
             somebody in another's container",
            named(&users)
        ),
        format!(
            "remove these lines from {file}, or give ids below {BLOCK}; {setting} 0 in /etc/login.defs keeps useradd from adding more"
        ),
    ))
}

/// How many ids a container with blocks for others has; `None` if that is no map of such a one.
fn ids(map: &str) -> Option<u64> {
    let fields: Vec<u64> = map.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>().ok()?;
    match fields[..] {
        [0, _, count] if count > BLOCK && count < u64::from(u32::MAX) => Some(count),
        _ => None,
    }
}

/// Who has some of the ids behind the first block, of so many that there are (`USER:FIRST:COUNT`, subuid(5)).
fn users(text: &str, ids: u64) -> Vec<&str> {
    let mut users = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [user, first, count] = fields[..] else { continue };
        let (Ok(first), Ok(count)) = (first.parse::<u32>(), count.parse::<u32>()) else { continue };
        let end = u64::from(first) + u64::from(count);
        if count > 0 && end > BLOCK && u64::from(first) < ids && !users.contains(&user) {
            users.push(user);
        }
    }
    users
}

fn named(users: &[&str]) -> String {
    let named = users.iter().take(MOST).copied().collect::<Vec<_>>().join(", ");
    match users.len().saturating_sub(MOST) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::{super::Verdict, *};

    const MAP: &str = "         0 1879048192     196608\n";

    fn found(files: &[(&str, &str)]) -> Vec<Finding> {
        let directory = tempfile::tempdir().unwrap();
        for (file, text) in files {
            let path = directory.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        findings(directory.path())
    }

    fn inside(uids: &str, gids: &str) -> Vec<Finding> {
        let maps = [("proc/self/uid_map", MAP), ("proc/self/gid_map", MAP), ("run/.cgrant/x", "")];
        found(&[&maps[..], &[("etc/subuid", uids), ("etc/subgid", gids)]].concat())
    }

    #[test]
    fn ids_of_blocks_are_nobodys() {
        let findings = inside("ann:100000:65536\nbob:1000:1000\n", "root:0:65536\n");
        assert_eq!(findings.len(), 2);
        assert_eq!((findings[0].verdict, findings[1].verdict), (Verdict::Warn, Verdict::Ok));
        let said = &findings[0];
        assert!(said.finding.starts_with("gives ann ids at or behind 65536"), "{said:?}");
        assert!(said.mend.contains("/etc/subuid") && said.mend.contains("SUB_UID_COUNT 0"), "{said:?}");
        let findings = inside("", "ann:100000:65536\n");
        assert_eq!((findings[0].verdict, findings[1].verdict), (Verdict::Ok, Verdict::Warn));
        assert!(findings[1].mend.contains("SUB_GID_COUNT 0"));
    }

    #[test]
    fn the_bounds_are_exact() {
        let is_told = |line: &str| inside(line, "")[0].verdict == Verdict::Warn;
        assert!(!is_told("ann:1:65535") && is_told("ann:1:65536") && is_told("ann:65536:1"));
        // Ids that the container does not have can't be mapped.
        assert!(is_told("ann:196607:1") && !is_told("ann:196608:65536") && !is_told("ann:65536:0"));
        assert!(is_told("ann:0:4294967295") && is_told("ann:4:65536\nann:x:y\n::\n"));
        for line in ["", "ann", "ann:65536", "ann:65536:-1", "ann:99999999999:1", "# ann:65536"] {
            assert!(!is_told(line), "{line:?}");
        }
    }

    #[test]
    fn many_users_are_counted() {
        let lines: String = (0..8).map(|number| format!("u{number}:100000:1\n")).collect();
        assert!(inside(&lines, "")[0].finding.contains("u0, u1, u2, u3, u4 and 3 more"));
    }

    #[test]
    fn elsewhere_nothing_is_said() {
        let bad = ("etc/subuid", "ann:100000:65536\n");
        let host = "0 0 4294967295\n";
        assert_eq!(found(&[bad, ("proc/self/uid_map", host)]), []);
        assert_eq!(found(&[bad, ("proc/self/uid_map", MAP)]), [], "no nesting");
        for map in [host, "0 1879048192 65536\n", "0 1000 1\n1 100000 196608\n", "", "x"] {
            assert_eq!(found(&[bad, ("run/.cgrant/x", ""), ("proc/self/uid_map", map)]), [], "{map:?}");
        }
    }
}
