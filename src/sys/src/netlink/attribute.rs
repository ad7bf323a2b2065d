//! Reading attributes out of the kernel's answers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netlink_packet_core::NlasIterator;

/// The attributes in `bytes`, up to the first that is malformed.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut position = 0;
    std::iter::from_fn(move || {
        // One at a time: what the library's iterator gives lives no longer than itself.
        let attribute = NlasIterator::new(bytes.get(position..)?).next()?.ok()?;
        let (length, kind) = (usize::from(attribute.length()), attribute.kind());
        let value = bytes.get(position + HEADER..position + length)?;
        position += length.next_multiple_of(HEADER);
        Some((kind, value))
    })
}

/// An attribute's header, and what attributes are aligned to.
const HEADER: usize = 4;

/// The first attribute of this kind.
pub(super) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A text up to its NUL; what is not UTF-8 in it is replaced.
pub(super) fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(value.get(..end).unwrap_or_default()).into_owned()
}

/// The first bytes as a number in the machine's order.
pub(super) fn u32_of(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

/// The same of two bytes.
pub(super) fn u16_of(value: &[u8]) -> Option<u16> {
    value.first_chunk().map(|bytes| u16::from_ne_bytes(*bytes))
}

/// The four bytes at `offset` of a header.
pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes.get(offset..).and_then(u32_of)
}

/// Is the first byte set?
pub(super) fn flag(value: &[u8]) -> bool {
    value.first().is_some_and(|byte| *byte != 0)
}

/// An address by its length.
pub(super) fn ip(value: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(value) {
        return Some(IpAddr::V4(Ipv4Addr::from(bytes)));
    }
    <[u8; 16]>::try_from(value).ok().map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)))
}

/// The address of all zeros in the family of `AF_INET` or `AF_INET6`.
pub(super) fn unspecified(family: u8) -> Option<IpAddr> {
    match i32::from(family) {
        libc::AF_INET => Some(Ipv4Addr::UNSPECIFIED.into()),
        libc::AF_INET6 => Some(Ipv6Addr::UNSPECIFIED.into()),
        _ => None,
    }
}

/// Puts attributes one behind the other. One that is too long to have a length is left out.
pub(super) fn concat(attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, value) in attributes {
        let Ok(length) = u16::try_from(HEADER + value.len()) else { continue };
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(*value);
        bytes.resize(bytes.len().next_multiple_of(HEADER), 0);
    }
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_together_can_be_read() {
        let bytes = concat(&[(1, b"one\0"), (0x8002, &[]), (3, b"three")]);
        let read: Vec<_> = attributes(&bytes).collect();
        assert_eq!(read, [(1, &b"one\0"[..]), (2, &[]), (3, b"three")]);
        assert_eq!(find(&bytes, 3), Some(&b"three"[..]));
        assert_eq!(find(&bytes, 4), None);
        assert_eq!(text(find(&bytes, 1).unwrap()), "one");
    }

    #[test]
    fn malformed_ones_end_the_list() {
        let good = concat(&[(1, b"abcd")]);
        for tail in [&[0u8][..], &[3, 0, 1, 0], &[0, 0, 1, 0], &[9, 0, 1, 0, 1, 2], &[0xff; 7]] {
            let bytes = [&good, tail].concat();
            assert_eq!(attributes(&bytes).count(), 1, "{tail:?}");
        }
        assert_eq!(attributes(&[]).count(), 0);
    }

    #[test]
    fn values_of_the_wrong_length_are_none() {
        assert_eq!((u32_of(&[1, 2, 3]), u16_of(&[1]), ip(&[1, 2, 3, 4, 5])), (None, None, None));
        assert_eq!(ip(&[10, 0, 0, 1]), Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))));
        assert!(!flag(&[]));
        assert_eq!(text(b"a\xffb"), "a\u{fffd}b");
    }
}
