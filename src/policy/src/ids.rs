//! Uids, gids and ranges of them, with arithmetic that can't overflow.
//!
//! Ids of the initial user namespace and ids inside a container are different types, so that one is
//! never written where the other is meant.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

id!(
    /// A uid as the initial user namespace counts it.
    HostUid
);
id!(
    /// A gid as the initial user namespace counts it.
    HostGid
);
id!(
    /// A uid as a container's user namespace counts it.
    NsUid
);
id!(
    /// A gid as a container's user namespace counts it.
    NsGid
);

impl NsUid {
    /// Root of the container.
    pub const ROOT: Self = Self(0);

    /// Is it root of the container?
    pub fn is_root(self) -> bool {
        self == Self::ROOT
    }
}

impl HostUid {
    /// Root of the initial user namespace.
    pub const ROOT: Self = Self(0);

    /// Is it root of the initial user namespace?
    pub fn is_root(self) -> bool {
        self == Self::ROOT
    }
}

/// The largest id: 4294967295 is `(uid_t)-1`, which means "no change" to the kernel and is never an id.
pub const LAST_ID: u32 = u32::MAX - 1;

/// A run of ids, uids or gids alike. Never empty, never holds 4294967295.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IdSpan {
    first: u32,
    last: u32,
}

/// Why something is not a span of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SpanError {
    /// It has no ids.
    #[error("a range of ids can't be empty, and its end can't be before its start")]
    Empty,
    /// It reaches beyond [`LAST_ID`].
    #[error("a range of ids must end at 4294967294 or before")]
    TooLarge,
    /// The text is neither `FIRST-LAST` nor one id.
    #[error("expected FIRST-LAST or one id, as in 100000-165535")]
    Malformed,
}

impl IdSpan {
    /// The ids `first..first + count`.
    ///
    /// # Errors
    /// [`SpanError::Empty`] for no ids, [`SpanError::TooLarge`] if it would reach beyond [`LAST_ID`].
    pub fn new(first: u32, count: u32) -> Result<Self, SpanError> {
        let more = count.checked_sub(1).ok_or(SpanError::Empty)?;
        Self::between(first, first.checked_add(more).ok_or(SpanError::TooLarge)?)
    }

    /// The ids `first..=last`.
    ///
    /// # Errors
    /// As [`IdSpan::new`].
    pub fn between(first: u32, last: u32) -> Result<Self, SpanError> {
        if first > last {
            return Err(SpanError::Empty);
        }
        if last > LAST_ID {
            return Err(SpanError::TooLarge);
        }
        Ok(Self { first, last })
    }

    /// The first id.
    pub fn first(self) -> u32 {
        self.first
    }

    /// The last id, which belongs to it.
    pub fn last(self) -> u32 {
        self.last
    }

    /// How many ids. At least 1.
    pub fn count(self) -> u32 {
        // Neither step can overflow: first <= last <= LAST_ID.
        self.last - self.first + 1
    }

    /// Does it hold this id?
    pub fn contains(self, id: u32) -> bool {
        self.first <= id && id <= self.last
    }

    /// Does it hold every id of the other?
    pub fn covers(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Have the two an id in common?
    pub fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The `count` ids that begin `offset` after the first, if all of them are inside.
    pub fn part(self, offset: u32, count: u32) -> Option<Self> {
        let part = Self::new(self.first.checked_add(offset)?, count).ok()?;
        self.covers(part).then_some(part)
    }
}

impl fmt::Display for IdSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl FromStr for IdSpan {
    type Err = SpanError;
    fn from_str(text: &str) -> Result<Self, SpanError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        Self::between(id_from(first)?, id_from(last)?)
    }
}

impl TryFrom<String> for IdSpan {
    type Error = SpanError;
    fn try_from(text: String) -> Result<Self, SpanError> {
        text.parse()
    }
}

impl From<IdSpan> for String {
    fn from(span: IdSpan) -> Self {
        span.to_string()
    }
}

fn id_from(text: &str) -> Result<u32, SpanError> {
    if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(SpanError::Malformed);
    }
    // All digits, so the only way to fail is that there are too many.
    text.parse().map_err(|_| SpanError::TooLarge)
}

/// What a user namespace is given: `count` uids from `uid` and as many gids from `gid`. Id 0 inside is the
/// first of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "RawRange", into = "RawRange")]
pub struct IdRange {
    uids: IdSpan,
    gids: IdSpan,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRange {
    uid: u32,
    gid: u32,
    count: u32,
}

impl IdRange {
    /// A range.
    ///
    /// # Errors
    /// As [`IdSpan::new`], for either side.
    pub fn new(uid: HostUid, gid: HostGid, count: u32) -> Result<Self, SpanError> {
        Ok(Self { uids: IdSpan::new(uid.0, count)?, gids: IdSpan::new(gid.0, count)? })
    }

    /// A range whose uids and gids have the same numbers, as all that the broker gives out have.
    pub fn same(span: IdSpan) -> Self {
        Self { uids: span, gids: span }
    }

    /// The uid that id 0 inside maps to.
    pub fn uid(self) -> HostUid {
        HostUid(self.uids.first)
    }

    /// The gid that id 0 inside maps to.
    pub fn gid(self) -> HostGid {
        HostGid(self.gids.first)
    }

    /// How many uids, and how many gids. At least 1.
    pub fn count(self) -> u32 {
        self.uids.count()
    }

    /// Its uids.
    pub fn uids(self) -> IdSpan {
        self.uids
    }

    /// Its gids.
    pub fn gids(self) -> IdSpan {
        self.gids
    }

    /// What this uid inside is outside, if it is mapped.
    pub fn host_uid(self, inside: NsUid) -> Option<HostUid> {
        self.uids.part(inside.0, 1).map(|span| HostUid(span.first))
    }

    /// What this gid inside is outside, if it is mapped.
    pub fn host_gid(self, inside: NsGid) -> Option<HostGid> {
        self.gids.part(inside.0, 1).map(|span| HostGid(span.first))
    }

    /// Have the two a uid or a gid in common?
    pub fn overlaps(self, other: Self) -> bool {
        self.uids.overlaps(other.uids) || self.gids.overlaps(other.gids)
    }
}

impl TryFrom<RawRange> for IdRange {
    type Error = SpanError;
    fn try_from(raw: RawRange) -> Result<Self, SpanError> {
        Self::new(HostUid(raw.uid), HostGid(raw.gid), raw.count)
    }
}

impl From<IdRange> for RawRange {
    fn from(range: IdRange) -> Self {
        Self { uid: range.uids.first, gid: range.gids.first, count: range.count() }
    }
}

impl fmt::Display for IdRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.uids == self.gids {
            return self.uids.fmt(f);
        }
        write!(f, "uids {} gids {}", self.uids, self.gids)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_largest_number_is_no_id() {
        assert_eq!(IdSpan::new(u32::MAX, 1), Err(SpanError::TooLarge));
        assert_eq!(IdSpan::new(u32::MAX - 1, 2), Err(SpanError::TooLarge));
        assert_eq!(IdSpan::new(0, u32::MAX).unwrap().last(), LAST_ID);
        assert_eq!(IdSpan::new(5, 0), Err(SpanError::Empty));
    }

    #[test]
    fn text_forms() {
        assert_eq!("7".parse(), IdSpan::new(7, 1));
        assert_eq!("100000-165535".parse(), IdSpan::new(100_000, 65536));
        for (text, error) in [
            ("", SpanError::Malformed),
            ("-", SpanError::Malformed),
            ("1-", SpanError::Malformed),
            ("1--2", SpanError::Malformed),
            ("+1", SpanError::Malformed),
            (" 1", SpanError::Malformed),
            ("2-1", SpanError::Empty),
            ("4294967295", SpanError::TooLarge),
            ("99999999999", SpanError::TooLarge),
        ] {
            assert_eq!(text.parse::<IdSpan>(), Err(error), "{text:?}");
        }
    }

    #[test]
    fn ids_inside_are_translated_within_the_range_only() {
        let range = IdRange::new(HostUid(1000), HostGid(5000), 10).unwrap();
        assert_eq!(range.host_uid(NsUid(0)), Some(HostUid(1000)));
        assert_eq!(range.host_gid(NsGid(9)), Some(HostGid(5009)));
        assert_eq!(range.host_uid(NsUid(10)), None);
        assert_eq!(range.host_uid(NsUid(u32::MAX)), None);
    }

    proptest! {
        #[test]
        fn overlap_is_what_counting_would_say(a in 0u32..60, n in 1u32..20, b in 0u32..60, m in 1u32..20) {
            let (x, y) = (IdSpan::new(a, n).unwrap(), IdSpan::new(b, m).unwrap());
            let common = (a..a + n).any(|id| (b..b + m).contains(&id));
            prop_assert_eq!(x.overlaps(y), common);
            prop_assert_eq!(y.overlaps(x), common);
            prop_assert_eq!(x.covers(y), (b..b + m).all(|id| x.contains(id)));
        }

        #[test]
        fn any_bounds_are_taken_or_refused_without_overflow(first: u32, count: u32) {
            match IdSpan::new(first, count) {
                Ok(span) => {
                    prop_assert_eq!(span.count(), count);
                    prop_assert_eq!(span.to_string().parse::<IdSpan>(), Ok(span));
                }
                Err(_) => prop_assert!(count == 0 || u64::from(first) + u64::from(count) > u64::from(u32::MAX)),
            }
        }
    }
}
