//! Records of pax headers: `LENGTH KEY=VALUE\n`.

use super::{ACL_ACCESS_RECORD, ACL_DEFAULT_RECORD, ArchiveError, Segment, Time, XATTR_RECORD};
use crate::limits::Limits;

/// Most records of one member.
const MAX_RECORDS: usize = 4096;

/// What pax records say of a member; what they don't, its header does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Extended {
    pub path: Option<Vec<u8>>,
    pub link: Option<Vec<u8>>,
    pub size: Option<u64>,
    pub uid: Option<u64>,
    pub gid: Option<u64>,
    pub modified: Option<Time>,
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub acl_access: Option<Vec<u8>>,
    pub acl_default: Option<Vec<u8>>,
    pub sparse: Sparse,
}

/// What pax records say of holes, in the three ways in which GNU tar said it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sparse {
    /// Version, if it is said: 1.0 has the map before the data.
    pub major: Option<u64>,
    /// The name that the file really has.
    pub name: Option<Vec<u8>>,
    /// The size that the file really has.
    pub real_size: Option<u64>,
    /// The map, in the older versions.
    pub map: Vec<u64>,
}

impl Sparse {
    /// Does it say anything?
    pub fn is_some(&self) -> bool {
        self.major.is_some() || self.real_size.is_some() || !self.map.is_empty()
    }

    /// The map of versions 0.0 and 0.1: offsets and lengths by turns.
    pub fn segments(&self) -> Result<Vec<Segment>, ArchiveError> {
        let (pairs, []) = self.map.as_chunks::<2>() else { return Err(MALFORMED) };
        Ok(pairs.iter().map(|&[offset, length]| Segment { offset, length }).collect())
    }
}

const MALFORMED: ArchiveError = ArchiveError::Malformed("a pax header");

impl Extended {
    /// Adds the records of one header.
    pub fn add(&mut self, mut bytes: &[u8]) -> Result<(), ArchiveError> {
        for _ in 0..MAX_RECORDS {
            if bytes.is_empty() {
                return Ok(());
            }
            let (key, value, rest) = record(bytes).ok_or(MALFORMED)?;
            self.set(key, value)?;
            bytes = rest;
        }
        if bytes.is_empty() { Ok(()) } else { Err(ArchiveError::HeaderTooLarge) }
    }

    fn set(&mut self, key: &str, value: &[u8]) -> Result<(), ArchiveError> {
        match key {
            "path" => self.path = Some(value.to_vec()),
            "linkpath" => self.link = Some(value.to_vec()),
            "size" => self.size = Some(number(value)?),
            "uid" => self.uid = Some(number(value)?),
            "gid" => self.gid = Some(number(value)?),
            "mtime" => self.modified = Some(time(value)?),
            ACL_ACCESS_RECORD => self.acl_access = Some(value.to_vec()),
            ACL_DEFAULT_RECORD => self.acl_default = Some(value.to_vec()),
            "GNU.sparse.major" => self.sparse.major = Some(number(value)?),
            "GNU.sparse.name" => self.sparse.name = Some(value.to_vec()),
            "GNU.sparse.realsize" | "GNU.sparse.size" => self.sparse.real_size = Some(number(value)?),
            "GNU.sparse.offset" | "GNU.sparse.numbytes" => self.sparse.map.push(number(value)?),
            "GNU.sparse.map" => self.sparse.map = numbers(value)?,
            _ => self.set_xattr(key, value),
        }
        Ok(())
    }

    /// An extended attribute; every other key is for somebody else.
    fn set_xattr(&mut self, key: &str, value: &[u8]) {
        if let Some(name) = key.strip_prefix(XATTR_RECORD) {
            self.xattrs.retain(|(other, _)| other != name.as_bytes());
            self.xattrs.push((name.into(), value.to_vec()));
        }
    }
}

/// The first record and what follows it.
fn record(bytes: &[u8]) -> Option<(&str, &[u8], &[u8])> {
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(bytes.get(..space)?).ok()?.parse().ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let record = record.get(space.checked_add(1)?..)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = record.split_at_checked(equals)?;
    Some((std::str::from_utf8(key).ok()?, value.get(1..)?, rest))
}

pub(super) fn number(text: &[u8]) -> Result<u64, ArchiveError> {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(MALFORMED)
}

fn numbers(text: &[u8]) -> Result<Vec<u64>, ArchiveError> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    let numbers: Result<Vec<u64>, ArchiveError> =
        text.split(|byte| *byte == b',').take(2 * Limits::SEGMENTS + 1).map(number).collect();
    let numbers = numbers?;
    if numbers.len() > 2 * Limits::SEGMENTS { Err(ArchiveError::HeaderTooLarge) } else { Ok(numbers) }
}

/// `[-]SECONDS[.FRACTION]`; digits past nanoseconds are dropped.
fn time(text: &[u8]) -> Result<Time, ArchiveError> {
    let text = std::str::from_utf8(text).map_err(|_| MALFORMED)?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let whole: i64 = seconds.parse().map_err(|_| MALFORMED)?;
    if fraction.bytes().any(|byte| !byte.is_ascii_digit()) {
        return Err(MALFORMED);
    }
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().map_err(|_| MALFORMED)?;
    if !seconds.starts_with('-') || nanoseconds == 0 {
        return Ok(Time { seconds: whole, nanoseconds });
    }
    // -1.25 is 0.75 s after -2.
    let seconds = whole.checked_sub(1).ok_or(MALFORMED)?;
    Ok(Time { seconds, nanoseconds: 1_000_000_000_u32.saturating_sub(nanoseconds) })
}

/// One record as bytes, its own length included.
pub(super) fn encode(key: &str, value: &[u8]) -> Vec<u8> {
    let body = key.len().saturating_add(value.len()).saturating_add(3);
    let mut length = body;
    // The length counts its own digits, which may make it a digit longer.
    loop {
        let whole = body.saturating_add(length.to_string().len());
        if whole == length {
            break;
        }
        length = whole;
    }
    [length.to_string().as_bytes(), b" ", key.as_bytes(), b"=", value, b"\n"].concat()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn parsed(records: &[(&str, &[u8])]) -> Result<Extended, ArchiveError> {
        let bytes: Vec<u8> = records.iter().flat_map(|(key, value)| encode(key, value)).collect();
        let mut extended = Extended::default();
        extended.add(&bytes)?;
        Ok(extended)
    }

    #[test]
    fn lengths_count_themselves() {
        assert_eq!(encode("a", b"b"), b"6 a=b\n");
        assert_eq!(encode("path", &[b'x'; 90])[..4], *b"99 p");
        assert_eq!(encode("path", &[b'x'; 91])[..4], *b"101 ");
        for length in 0..2000 {
            let value = vec![b'x'; length];
            assert_eq!(parsed(&[("path", &value)]).unwrap().path.unwrap(), value);
        }
    }

    #[test]
    fn records_become_what_they_say() {
        let extended = parsed(&[
            ("path", b"a=b\nc"),
            ("size", b"18446744073709551615"),
            ("mtime", b"-1.25"),
            ("SCHILY.xattr.user.x", b"\0\n="),
            ("SCHILY.xattr.user.x", b"later"),
            ("comment", b"none"),
        ])
        .unwrap();
        assert_eq!(extended.path.unwrap(), b"a=b\nc");
        assert_eq!(extended.size, Some(u64::MAX));
        assert_eq!(extended.modified, Some(Time { seconds: -2, nanoseconds: 750_000_000 }));
        assert_eq!(extended.xattrs, [(b"user.x".to_vec(), b"later".to_vec())]);
        assert_eq!(time(b"12.5").unwrap(), Time { seconds: 12, nanoseconds: 500_000_000 });
        assert_eq!(time(b"7.1234567899").unwrap().nanoseconds, 123_456_789);
    }

    #[test]
    fn malformed_records_are_refused() {
        for bytes in [
            &b"x"[..],
            b"6 a=b",
            b"6 a=bb",
            b"5 a=b\n",
            b"7 a=b\n",
            b"0 a=b\n",
            b"3 a\n",
            b"99999999999999999999 a=b\n",
            b"-6 a=b\n",
            b" 6 a=b\n",
        ] {
            assert!(Extended::default().add(bytes).is_err(), "{:?}", String::from_utf8_lossy(bytes));
        }
        for (key, value) in [("size", "-1"), ("size", "1e3"), ("uid", ""), ("mtime", "1.x"), ("mtime", "now")]
        {
            assert!(parsed(&[(key, value.as_bytes())]).is_err(), "{key} {value}");
        }
        assert!(matches!(
            parsed(&vec![("a", b"".as_slice()); MAX_RECORDS + 1]),
            Err(ArchiveError::HeaderTooLarge)
        ));
        assert!(parsed(&vec![("a", b"".as_slice()); MAX_RECORDS]).is_ok());
    }
}
