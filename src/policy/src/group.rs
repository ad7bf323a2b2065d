//! The groups that rules name, from the text of group(5): the broker and who tries files out read it alike. Pure.

use std::collections::HashMap;

/// Gids by the names of their groups. Lines that make no sense are passed over, as getgrent(3) does.
pub fn groups(text: &[u8]) -> HashMap<String, u32> {
    let mut groups = HashMap::new();
    let lines = text.split(|byte| *byte == b'\n');
    for line in lines.filter(|line| !line.is_empty() && line.first() != Some(&b'#')) {
        let mut fields = line.split(|byte| *byte == b':');
        let name = String::from_utf8_lossy(fields.next().unwrap_or_default()).into_owned();
        let gid = fields.nth(1).and_then(|field| std::str::from_utf8(field).ok()?.parse().ok());
        if let Some(gid) = gid {
            // Of two lines of one name the first counts, as for getgrnam(3).
            groups.entry(name).or_insert(gid);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_by_name() {
        let found = groups(b"root:x:0:\nstaff:x:50:a\nstaff:x:51:\nbad:x:y:\n");
        assert_eq!(found, HashMap::from([("root".to_owned(), 0), ("staff".to_owned(), 50)]));
    }

    #[test]
    fn lines_of_groups() {
        let found = groups(b"root:x:0:\nstaff:x:50:a,b\nstaff:x:51:\nbad:x\n+\n#old:x:7:\n\nodd\xff:x:9:\n");
        let expected =
            [("root", 0), ("staff", 50), ("odd\u{fffd}", 9)].map(|(name, gid)| (name.to_owned(), gid));
        assert_eq!(found, HashMap::from(expected));
    }
}
