//! An area: a run of blocks of the pool that belongs to one account for ever, and the ranges in it. Pure.

use cgrant_policy::{BLOCK, GrantName, HostUid, IdSpan, NsUid};
use cgrant_wire::GrantId;
use serde::{Deserialize, Serialize};

/// Format of the files. One of another format is refused, never guessed at.
const FORMAT: u32 = 1;
/// Most ranges of names inside those of an area.
pub const MAX_INNER: usize = 128;
/// Most ranges in an area: bounds the file and every search in it.
pub const MAX_SLOTS: usize = 128;

/// A range in an area: it has a name, or is in use, or both.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slot {
    /// Where it begins, counted from the area's first id.
    pub offset: u32,
    /// How many ids.
    pub count: u32,
    /// The name that it stays with.
    pub name: Option<GrantName>,
    /// The live grant that uses it.
    pub grant: Option<GrantId>,
    /// Ranges within it that belong to names of grants made inside that one. They go with it.
    pub inner: Vec<InnerSlot>,
}

/// A part of a range that stays with the name of a grant inside the one that has the range; or, without one, with an ordinary user in there,
/// who had it: what has these ids may be that user's still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InnerSlot {
    /// Where the range of the grant around it begins, counted from the outermost one's first id.
    pub around: u32,
    /// Where it begins, counted likewise.
    pub offset: u32,
    /// How many ids.
    pub count: u32,
    /// Whose name: root's of the grant around it, or an ordinary user's in there.
    #[serde(default = "root", skip_serializing_if = "is_root")]
    pub user: NsUid,
    /// The name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<GrantName>,
}

impl InnerSlot {
    /// Is it one without a name, of this user in the range that begins there?
    pub fn is_nameless_of(&self, around: u32, user: NsUid) -> bool {
        self.name.is_none() && self.around == around && self.user == user
    }

    /// Are all ids of the other one its?
    pub fn covers(&self, other: &Self) -> bool {
        let end = |slot: &Self| u64::from(slot.offset) + u64::from(slot.count);
        self.offset <= other.offset && end(other) <= end(self)
    }
}

const fn root() -> NsUid {
    NsUid::ROOT
}

fn is_root(user: &NsUid) -> bool {
    user.is_root()
}

/// Are files of an area's ids to be removed when its user is gone? Administrators' word, by policy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Removal {
    /// No, or not any more.
    #[default]
    No,
    /// Yes, when a grant last got some of them.
    Wanted,
    /// The user is gone.
    Due {
        /// How often they were looked for, and some could not be removed.
        failures: u8,
    },
}

impl Removal {
    fn is_no(&self) -> bool {
        *self == Self::No
    }
}

/// A run of blocks of one account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Area {
    /// Its ids.
    pub span: IdSpan,
    /// Whose it is.
    pub account: HostUid,
    /// The account's user when it was taken; `None` if `/etc/passwd` knew none.
    pub user: Option<String>,
    /// Nothing of it is given out again: its user is gone.
    pub retired: bool,
    /// What becomes of files of its ids then.
    pub removal: Removal,
    /// In what way its file is damaged. Nothing of it is given out then.
    pub damaged: Option<String>,
    /// Its ranges, sorted, without overlap.
    slots: Vec<Slot>,
}

/// How large a range an area has room for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Room {
    /// Ids in one piece anywhere.
    pub any: u32,
    /// Ids in one piece from the beginning of a block.
    pub whole: u32,
}

impl Area {
    /// An area without ranges.
    pub fn new(span: IdSpan, account: HostUid, user: Option<&str>) -> Self {
        let user = user.map(str::to_owned);
        Self { span, account, user, retired: false, removal: Removal::No, damaged: None, slots: Vec::new() }
    }

    /// The same ids with nothing known about them, so that nothing of them is given out.
    #[must_use]
    pub fn into_damaged(self, reason: String) -> Self {
        Self { damaged: Some(reason), ..Self::new(self.span, self.account, None) }
    }

    /// Its ranges.
    pub fn slots(&self) -> &[Slot] {
        &self.slots
    }

    /// The ids of a range in it.
    pub fn ids(&self, slot: &Slot) -> Option<IdSpan> {
        self.span.part(slot.offset, slot.count)
    }

    /// May anything in it be given out?
    pub fn is_usable(&self) -> bool {
        !self.retired && self.damaged.is_none()
    }

    /// How many blocks it has.
    pub fn blocks(&self) -> u32 {
        self.span.count() / BLOCK
    }

    /// The name of its file, which says enough to keep its ids apart when the file itself is unreadable.
    pub fn file(&self) -> String {
        format!("{}.{}.{}.json", self.span.first(), self.blocks(), self.account)
    }

    /// What there is room for.
    pub fn room(&self) -> Room {
        if !self.is_usable() || self.slots.len() >= MAX_SLOTS {
            return Room::default();
        }
        self.gaps().fold(Room::default(), |room, (start, end)| Room {
            any: room.any.max(end - start),
            whole: room.whole.max(end.saturating_sub(start.next_multiple_of(BLOCK))),
        })
    }

    /// Where `count` ids fit, counted from the area's first. A range of a block or more begins at a block, so that a
    /// later one of the same size fits there again.
    pub fn place(&self, count: u32) -> Option<u32> {
        if !self.is_usable() || self.slots.len() >= MAX_SLOTS {
            return None;
        }
        let start = |start: u32| if count >= BLOCK { start.next_multiple_of(BLOCK) } else { start };
        self.gaps()
            .map(|(from, end)| (start(from), end))
            .find_map(|(from, end)| (end.checked_sub(from)? >= count).then_some(from))
    }

    /// The gaps between ranges: beginning, and one past the end.
    fn gaps(&self) -> impl Iterator<Item = (u32, u32)> + '_ {
        let starts = std::iter::once(0).chain(self.slots.iter().map(|slot| slot.offset + slot.count));
        let ends = self.slots.iter().map(|slot| slot.offset).chain([self.span.count()]);
        starts.zip(ends).filter(|(start, end)| start < end)
    }

    /// Puts a range in; `false` if it overlaps another or does not fit the area.
    pub fn insert(&mut self, slot: Slot) -> bool {
        let Some(ids) = self.ids(&slot) else { return false };
        if self.slots.iter().filter_map(|other| self.ids(other)).any(|other| other.overlaps(ids)) {
            return false;
        }
        let at = self.slots.partition_point(|other| other.offset < slot.offset);
        self.slots.insert(at, slot);
        true
    }

    /// Changes the range that begins there; one that has neither name nor grant afterwards is no more.
    pub fn change(&mut self, offset: u32, change: impl FnOnce(&mut Slot)) {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.offset == offset) {
            change(slot);
        }
        self.slots.retain(|slot| slot.name.is_some() || slot.grant.is_some());
    }

    /// What its file says. Ranges without a name are not in it: they end with their grants.
    pub fn to_bytes(&self) -> serde_json::Result<Vec<u8>> {
        let named = |slot: &Slot| {
            let name = slot.name.clone()?;
            Some(RangeText { offset: slot.offset, count: slot.count, name, inner: slot.inner.clone() })
        };
        let text = AreaText {
            format: FORMAT,
            first: self.span.first(),
            blocks: self.blocks(),
            account: self.account,
            user: self.user.clone(),
            retired: self.retired,
            removal: self.removal,
            ranges: self.slots.iter().filter_map(named).collect(),
        };
        serde_json::to_vec_pretty(&text)
    }

    /// The area that a file of this name stands for, with nothing known about it; `None` if it is no such name.
    pub fn from_file_name(file: &str) -> Option<Self> {
        let mut parts = file.strip_suffix(".json")?.split('.');
        let (first, blocks, account) =
            (number(parts.next()?)?, number(parts.next()?)?, number(parts.next()?)?);
        if parts.next().is_some() || first % BLOCK != 0 {
            return None;
        }
        let span = IdSpan::new(first, blocks.checked_mul(BLOCK)?).ok()?;
        Some(Self::new(span, HostUid(account), None))
    }

    /// The same with what its file says.
    ///
    /// # Errors
    /// In what way the file is not one of this area's.
    pub fn with_text(mut self, text: &str) -> Result<Self, String> {
        let text: AreaText = serde_json::from_str(text).map_err(|error| error.to_string())?;
        if text.format != FORMAT {
            return Err(format!("its format is {}, not {FORMAT}", text.format));
        }
        if (text.first, text.blocks, text.account) != (self.span.first(), self.blocks(), self.account) {
            return Err("it is about other ids than its name says".to_owned());
        }
        (self.user, self.retired, self.removal) = (text.user, text.retired, text.removal);
        if text.ranges.len() > MAX_SLOTS {
            return Err(format!("it has more than {MAX_SLOTS} ranges"));
        }
        for range in text.ranges {
            let (offset, count, inner) = (range.offset, range.count, range.inner);
            let fits = |inner: &InnerSlot| {
                inner.offset.checked_add(inner.count).is_some_and(|end| inner.count > 0 && end <= count)
            };
            if !inner.iter().all(fits) {
                return Err(format!("a range inside that at {offset} is not within it"));
            }
            let slot = Slot { offset, count, name: Some(range.name), grant: None, inner };
            if !self.insert(slot) {
                return Err(format!("its range at {} overlaps another or is not within it", offset));
            }
        }
        Ok(self)
    }
}

fn number(text: &str) -> Option<u32> {
    // One form only, so that a file has one name.
    text.parse().ok().filter(|number: &u32| number.to_string() == text)
}

#[derive(Serialize, Deserialize)]
struct AreaText {
    format: u32,
    first: u32,
    blocks: u32,
    account: HostUid,
    user: Option<String>,
    retired: bool,
    #[serde(default, skip_serializing_if = "Removal::is_no")]
    removal: Removal,
    ranges: Vec<RangeText>,
}

#[derive(Serialize, Deserialize)]
struct RangeText {
    offset: u32,
    count: u32,
    name: GrantName,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    inner: Vec<InnerSlot>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn area(blocks: u32) -> Area {
        Area::new(IdSpan::new(20 * BLOCK, blocks * BLOCK).unwrap(), HostUid(1000), Some("alice"))
    }

    fn slot(offset: u32, count: u32, name: &str) -> Slot {
        Slot { offset, count, name: Some(GrantName::new(name).unwrap()), grant: None, inner: Vec::new() }
    }

    #[test]
    fn small_ranges_are_packed_and_large_ones_begin_at_blocks() {
        let mut area = area(3);
        assert_eq!(
            (area.place(10), area.place(3 * BLOCK), area.place(3 * BLOCK + 1)),
            (Some(0), Some(0), None)
        );
        assert!(area.insert(slot(0, 10, "a")));
        assert_eq!(
            (area.place(10), area.place(BLOCK - 10), area.place(BLOCK)),
            (Some(10), Some(10), Some(BLOCK))
        );
        assert_eq!(area.room(), Room { any: 3 * BLOCK - 10, whole: 2 * BLOCK });
        assert!(!area.insert(slot(5, 10, "b")));
        assert!(!area.insert(slot(3 * BLOCK - 1, 2, "b")));
        area.change(0, |slot| slot.name = None);
        assert_eq!(area.room(), Room { any: 3 * BLOCK, whole: 3 * BLOCK });
    }

    #[test]
    fn a_file_holds_what_has_a_name() {
        let mut area = area(2);
        area.insert(slot(0, BLOCK, "web"));
        area.removal = Removal::Due { failures: 3 };
        let before = area.clone();
        area.insert(Slot { offset: BLOCK, count: 7, name: None, grant: Some(GrantId(1)), inner: Vec::new() });
        let text = String::from_utf8(area.to_bytes().unwrap()).unwrap();
        let read = Area::from_file_name(&area.file()).unwrap().with_text(&text);
        assert_eq!(read, Ok(before));
    }

    #[test]
    fn damaged_files_are_told_apart() {
        let mut area = area(1);
        area.insert(slot(0, 10, "web"));
        let good = String::from_utf8(area.to_bytes().unwrap()).unwrap();
        let empty = Area::from_file_name(&area.file()).unwrap();
        for at in 0..good.trim_end().len() {
            assert!(empty.clone().with_text(&good[..at]).is_err(), "truncated at {at}");
        }
        for (from, to) in [
            ("\"format\": 1", "\"format\": 2"),
            ("\"account\": 1000", "\"account\": 1001"),
            ("\"blocks\": 1", "\"blocks\": 2"),
            ("\"count\": 10", "\"count\": 65537"),
            ("\"count\": 10", "\"count\": 0"),
            ("\"web\"", "\"../web\""),
        ] {
            assert!(good.contains(from));
            assert!(empty.clone().with_text(&good.replace(from, to)).is_err(), "{to}");
        }
        for name in [
            "1310720.1.1000",
            "1310721.1.1000.json",
            "1310720.0.1000.json",
            "x.json",
            "01310720.1.1000.json",
            "1310720.1.1000.1.json",
            "4294901760.1.0.json",
        ] {
            assert!(Area::from_file_name(name).is_none(), "{name}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_placed_fits_and_room_says_so(counts in prop::collection::vec((1u32..200_000, any::<bool>()), 1..40)) {
            let mut area = area(4);
            for (number, (count, keep)) in counts.into_iter().enumerate() {
                let room = area.room();
                let fits = if count >= BLOCK { count <= room.whole } else { count <= room.any };
                let place = area.place(count);
                prop_assert_eq!(place.is_some(), fits);
                let Some(offset) = place else { continue };
                prop_assert!(count < BLOCK || offset % BLOCK == 0);
                prop_assert!(area.insert(slot(offset, count, &format!("n{number}"))), "overlap or outside");
                if !keep {
                    area.change(offset, |slot| slot.name = None);
                }
            }
        }
    }
}
