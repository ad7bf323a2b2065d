//! Ranges inside ranges: what grants made from inside a grant have, out of the ids that were mapped into it when it was made.
//!
//! Nothing of it is anybody else's: the whole belongs to the account already, and its quota counts it once. Which part is in use
//! say the live grants; which part belongs to a name is kept with the range around it, and goes with that.
//!
//! An attacker inside wants ids of what it is in, or of another container beside it. It chooses a name, a size and
//! an order of requests; the parts lie behind the own ids of the grant around, apart from all that is in use there, and the kernel
//! maps nothing into a namespace that its parent does not have.

use cgrant_policy::{BLOCK, GrantName, IdRange, IdSpan, NsUid};
use cgrant_wire::{GrantId, Range, RangeInfo};

use super::{
    IdError, IdRecord, Inner,
    area::{Area, InnerSlot, MAX_INNER, Slot},
    wire_range,
};

/// A range that others are made in.
#[derive(Debug, Clone, Copy)]
pub struct Around {
    /// All of it.
    pub range: Range,
    /// How many ids at its beginning are its grant's own.
    pub own: u32,
    /// Who asks for a part of it: each user in there has names of its own.
    pub user: NsUid,
}

impl IdRecord {
    /// A part of a range for a grant made inside the one that has it: the one of this name there, or with `None` any that neither
    /// has a name nor is in use, which `live` says. `count` 0 means the size that the name's part has, or 65536.
    ///
    /// # Errors
    /// [`IdError::NoRoomInside`], [`IdError::InUse`], [`IdError::SizeDiffers`]; [`IdError::Io`] if a new name can't be recorded.
    pub fn acquire_inner(
        &self,
        around: Around,
        name: Option<&GrantName>,
        count: u32,
        live: &[(IdSpan, GrantId)],
    ) -> Result<IdRange, IdError> {
        self.locked(|inner| match inner.part_of(around, name, count, live)? {
            Part::Known(range) => Ok(range),
            Part::New { range, mut area, offset, part } => {
                if let Some(part) = part {
                    area.change(offset, |slot| slot.inner.push(part));
                    inner.write(area)?;
                }
                Ok(range)
            }
        })
    }

    /// Would [`acquire_inner`](Self::acquire_inner) find a part now? Nothing is taken.
    ///
    /// # Errors
    /// What `acquire_inner` would refuse with.
    pub fn foresee_inner(
        &self,
        around: Around,
        name: Option<&GrantName>,
        count: u32,
        live: &[(IdSpan, GrantId)],
    ) -> Result<(), IdError> {
        self.locked(|inner| inner.part_of(around, name, count, live).map(|_| ()))
    }

    /// How many blocks of a range a user in there has: those that its live grants have, `live`, and those that are kept for its names; and
    /// with a part more, of this name and size as [`acquire_inner`](Self::acquire_inner) takes them, what it comes to then.
    ///
    /// # Errors
    /// [`IdError::Damaged`] if the record does not have the range.
    pub fn blocks_inside(
        &self,
        around: Around,
        live: &[IdSpan],
        more: Option<(Option<&GrantName>, u32)>,
    ) -> Result<u64, IdError> {
        self.locked(|inner| {
            let (area, slot, at) = inner.slot_around(around.range)?;
            let first = area.span.first() + slot.offset;
            let here = |known: &&InnerSlot| known.around == at && known.user == around.user;
            let name = more.and_then(|(name, _)| name);
            let (asked, kept): (Vec<_>, Vec<_>) =
                slot.inner.iter().filter(here).partition(|known| Some(&known.name) == name);
            let unused = kept.into_iter().filter_map(|known| span_of(known, first));
            let unused = unused.filter(|span| !live.iter().any(|live| live.overlaps(*span)));
            let had: u64 = live.iter().copied().chain(unused).map(|span| blocks(span.count())).sum();
            let new = more.map_or(0, |(_, count)| if count == 0 { BLOCK } else { count });
            Ok(had + blocks(asked.first().map_or(new, |known| known.count)))
        })
    }

    /// The parts of a range that belong to names of a user in there, and which grants use them; as the range's own root counts.
    ///
    /// # Errors
    /// [`IdError::Io`].
    pub fn list_inner(
        &self,
        around: Range,
        whose: NsUid,
        user: impl Fn(IdSpan) -> Option<GrantId>,
    ) -> Result<Vec<RangeInfo>, IdError> {
        let parts = self.locked(|inner| {
            let (area, slot, at) = inner.slot_around(around)?;
            let first = area.span.first() + slot.offset;
            let here = slot.inner.into_iter().filter(|known| known.around == at && known.user == whose);
            Ok(here.filter_map(|known| Some((span_of(&known, first)?, known.name))).collect::<Vec<_>>())
        })?;
        let info = |(span, name): (IdSpan, GrantName)| {
            let seen = IdSpan::new(span.first().checked_sub(around.uid)?, span.count()).ok()?;
            let range = wire_range(IdRange::same(seen));
            Some(RangeInfo { range, name: name.to_string(), grant: user(span) })
        };
        Ok(parts.into_iter().filter_map(info).collect())
    }

    /// Unties a part of a range from a name of a user in there.
    ///
    /// # Errors
    /// [`IdError::NoSuchRange`], [`IdError::Io`].
    pub fn forget_inner(&self, around: Range, whose: NsUid, name: &GrantName) -> Result<(), IdError> {
        self.locked(|inner| {
            let (mut area, slot, at) = inner.slot_around(around)?;
            let is_it = |known: &InnerSlot| known.around == at && known.user == whose && known.name == *name;
            let part = slot.inner.iter().find(|known| is_it(known)).cloned();
            let part = part.ok_or_else(|| IdError::NoSuchRange(name.clone()))?;
            let within = |known: &InnerSlot| known.around == part.offset;
            area.change(slot.offset, |slot| slot.inner.retain(|known| !is_it(known) && !within(known)));
            inner.write(area)
        })
    }
}

/// A part of a range.
enum Part {
    /// The one that belongs to the name already.
    Known(IdRange),
    /// One that is free.
    New {
        range: IdRange,
        /// Where the outermost range is.
        area: Area,
        /// The outermost range's place in it.
        offset: u32,
        /// What is to be recorded, if it is to belong to a name.
        part: Option<InnerSlot>,
    },
}

impl Inner {
    fn part_of(
        &self,
        around: Around,
        name: Option<&GrantName>,
        count: u32,
        live: &[(IdSpan, GrantId)],
    ) -> Result<Part, IdError> {
        let (area, slot, at) = self.slot_around(around.range)?;
        let first = area.span.first() + slot.offset;
        let here = |known: &&InnerSlot| known.around == at;
        if let Some(name) = name
            && let Some(known) =
                slot.inner.iter().filter(here).find(|known| known.user == around.user && known.name == *name)
        {
            return named(known, first, count, live).map(Part::Known);
        }
        let count = if count == 0 { BLOCK } else { count };
        let none = || IdError::NoRoomInside { count };
        let mut busy: Vec<IdSpan> = live.iter().map(|(span, _)| *span).collect();
        busy.extend(slot.inner.iter().filter(here).filter_map(|known| span_of(known, first)));
        let span = free(around, &busy, count).ok_or_else(none)?;
        let kept = || area.slots().iter().map(|slot| slot.inner.len()).sum::<usize>();
        if name.is_some() && kept() >= MAX_INNER {
            return Err(none());
        }
        let part = |name: &GrantName| InnerSlot {
            around: at,
            offset: span.first() - first,
            count,
            user: around.user,
            name: name.clone(),
        };
        let part = name.map(part);
        Ok(Part::New { range: IdRange::same(span), area, offset: slot.offset, part })
    }

    /// The outermost range that this one is in or is, its area, and where in it this one begins.
    fn slot_around(&self, range: Range) -> Result<(Area, Slot, u32), IdError> {
        let found = self.index.area_of(range.uid).and_then(|area| {
            let has = |slot: &&Slot| area.ids(slot).is_some_and(|ids| ids.contains(range.uid));
            let slot = area.slots().iter().find(has)?;
            let at = range.uid.checked_sub(area.span.first())?.checked_sub(slot.offset)?;
            Some((area.clone(), slot.clone(), at))
        });
        found.ok_or_else(|| IdError::Damaged {
            file: range.uid.to_string(),
            reason: "the range of a live grant is not in it".to_owned(),
        })
    }
}

/// How many blocks so many ids are, counted as those that they lie in.
fn blocks(count: u32) -> u64 {
    u64::from(count.div_ceil(BLOCK))
}

fn span_of(part: &InnerSlot, first: u32) -> Option<IdSpan> {
    IdSpan::new(first.checked_add(part.offset)?, part.count).ok()
}

/// The part that belongs to a name, if nobody has it.
fn named(known: &InnerSlot, first: u32, count: u32, live: &[(IdSpan, GrantId)]) -> Result<IdRange, IdError> {
    let name = known.name.clone();
    if count != 0 && count != known.count {
        return Err(IdError::SizeDiffers { name, has: known.count, asked: count });
    }
    let span = span_of(known, first).ok_or(IdError::NoRoomInside { count: known.count })?;
    match live.iter().find(|(other, _)| other.overlaps(span)) {
        Some((_, grant)) => Err(IdError::InUse { name, grant: *grant }),
        None => Ok(IdRange::same(span)),
    }
}

/// The first place behind the own ids of the grant around, a whole number of blocks from them, that has room.
fn free(around: Around, busy: &[IdSpan], count: u32) -> Option<IdSpan> {
    let all = IdSpan::new(around.range.uid, around.range.count).ok()?;
    let mut offset = around.own;
    loop {
        let span = all.part(offset, count)?;
        let Some(other) = busy.iter().find(|other| other.overlaps(span)) else { return Some(span) };
        let behind = other.last().checked_sub(all.first())?.checked_add(1)?.checked_sub(around.own)?;
        offset = around.own.checked_add(behind.checked_next_multiple_of(BLOCK)?)?;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::*;

    fn span(first: u32, count: u32) -> IdSpan {
        IdSpan::new(first, count).unwrap()
    }

    #[test]
    fn places_lie_behind_the_own_ids_apart_from_what_is_busy_and_within() {
        let first = 20 * BLOCK;
        let around = Around {
            range: Range { uid: first, gid: first, count: 4 * BLOCK },
            own: BLOCK,
            user: NsUid::ROOT,
        };
        assert_eq!(free(around, &[], BLOCK), Some(span(first + BLOCK, BLOCK)));
        let busy = [span(first + BLOCK, 10)];
        assert_eq!(free(around, &busy, BLOCK), Some(span(first + 2 * BLOCK, BLOCK)));
        assert_eq!(free(around, &busy, 2 * BLOCK), Some(span(first + 2 * BLOCK, 2 * BLOCK)));
        assert_eq!(free(around, &busy, 2 * BLOCK + 1), None);
        assert_eq!(free(around, &[span(first + 2 * BLOCK, 1)], 3 * BLOCK), None);
        assert_eq!(free(around, &[], u32::MAX), None);
        let odd = Around { own: 1000, ..around };
        assert_eq!(free(odd, &[span(first + 1000, BLOCK)], 5), Some(span(first + 1000 + BLOCK, 5)));
    }

    #[test]
    fn a_name_has_its_part_until_it_is_in_use() {
        let name = GrantName::new("web").unwrap();
        let part = InnerSlot { around: 0, offset: BLOCK, count: BLOCK, user: NsUid::ROOT, name };
        let first = 20 * BLOCK;
        assert_eq!(named(&part, first, 0, &[]).unwrap(), IdRange::same(span(first + BLOCK, BLOCK)));
        assert!(matches!(named(&part, first, 7, &[]), Err(IdError::SizeDiffers { .. })));
        let live = [(span(first + BLOCK, 1), GrantId(3))];
        assert!(matches!(named(&part, first, 0, &live), Err(IdError::InUse { grant: GrantId(3), .. })));
    }
}
