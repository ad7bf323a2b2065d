//! Ranges inside ranges: what grants made from inside a grant have, out of the ids that were mapped into it when it was made.
//!
//! Nothing of it is anybody else's: the whole belongs to the account already, and its quota counts it once. Which part is in use
//! say the live grants; which part belongs to a name is kept with the range around it, and goes with that.
//!
//! An attacker inside wants ids of what it is in, or of another container beside it. It chooses a name, a size and
//! an order of requests; the parts lie behind the own ids of the grant around, apart from all that is in use there, and the kernel
//! maps nothing into a namespace that its parent does not have.
//!
//! An ordinary user inside wants the ids of another one's next container: a process in a namespace that has them, or a program with such an
//! id's set-user-ID bit, which are still there when the grant that had the ids is not. So what a user had once is that user's for as long as
//! the range around is there, and counts with what the user has.

use std::collections::BTreeSet;

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

/// What a user in there has, in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Blocks {
    /// All that it ever had.
    pub all: u64,
    /// Those that its grants have or that belong to its names.
    pub held: u64,
}

impl Blocks {
    /// What counts beside so many grants without ids: such a one takes no block that was the user's, nor the place of one.
    pub fn with(self, bare: usize) -> u64 {
        let bare = u64::try_from(bare).unwrap_or(u64::MAX);
        self.all.max(self.held.saturating_add(bare))
    }
}

impl IdRecord {
    /// A part of a range for a grant made inside the one that has it: the one of this name there, or with `None` any that neither
    /// has a name nor is in use, which `live` says, nor was another user's. `count` 0 means the size that the name's part has, or 65536.
    ///
    /// # Errors
    /// [`IdError::NoRoomInside`], [`IdError::InUse`], [`IdError::SizeDiffers`]; [`IdError::NothingKept`]; [`IdError::Io`] if it can't be
    /// recorded.
    pub fn acquire_inner(
        &self,
        around: Around,
        name: Option<&GrantName>,
        count: u32,
        live: &[(IdSpan, GrantId)],
    ) -> Result<IdRange, IdError> {
        self.locked(|inner| match inner.part_of(around, name, count, live)? {
            Part::Known(range) => Ok(range),
            Part::New { range, first, mut area, offset, part } => {
                let span = range.uids();
                let is_within =
                    |known: &InnerSlot| first.checked_add(known.around).is_some_and(|at| span.contains(at));
                let mut changed = part.is_some();
                // What is kept now says the same of these.
                let is_covered = |known: &InnerSlot| {
                    part.as_ref().is_some_and(|part| {
                        known.is_nameless_of(part.around, part.user) && part.covers(known)
                    })
                };
                area.change(offset, |slot| {
                    let before = slot.inner.len();
                    // What was kept in there for others who had it.
                    slot.inner.retain(|known| !is_within(known) && !is_covered(known));
                    changed |= slot.inner.len() < before;
                    slot.inner.extend(part.clone());
                });
                if changed {
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

    /// The blocks of a range that a user in there has: those that its live grants have, `own`, and those that are kept for it; and
    /// with a part more, of this name and size as [`acquire_inner`](Self::acquire_inner) takes them, what it comes to then. `live` are
    /// everybody's.
    ///
    /// # Errors
    /// [`IdError::Damaged`] if the record does not have the range.
    pub fn blocks_inside(
        &self,
        around: Around,
        own: &[IdSpan],
        live: &[(IdSpan, GrantId)],
        more: Option<(Option<&GrantName>, u32)>,
    ) -> Result<Blocks, IdError> {
        self.locked(|inner| {
            let (area, slot, at) = inner.slot_around(around.range)?;
            let first = area.span.first() + slot.offset;
            let is_its = |known: &&InnerSlot| known.around == at && known.user == around.user;
            let kept: Vec<_> = slot.inner.iter().filter(is_its).collect();
            let blocks = |spans: &mut dyn Iterator<Item = IdSpan>| -> BTreeSet<u32> {
                spans.flat_map(|span| blocks_of(around, span)).collect()
            };
            let mut all = blocks(&mut kept.iter().filter_map(|known| span_of(known, first)));
            let named = kept.iter().filter(|known| known.name.is_some());
            let mut held =
                blocks(&mut named.filter_map(|known| span_of(known, first)).chain(own.iter().copied()));
            let mut more_than_there_is = 0;
            if let Some((name, count)) = more {
                match inner.part_of(around, name, count, live) {
                    Ok(part) => held.extend(blocks_of(around, part.range().uids())),
                    Err(_) if name.is_some() && kept.iter().any(|known| known.name.as_ref() == name) => {}
                    // Where there is no room either, that it is too much is said first.
                    Err(_) => {
                        more_than_there_is = if count == 0 { 1 } else { u64::from(count.div_ceil(BLOCK)) }
                    }
                }
            }
            all.extend(&held);
            let count = |blocks: BTreeSet<u32>| blocks.len() as u64 + more_than_there_is;
            Ok(Blocks { all: count(all), held: count(held) })
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
            Ok(here.filter_map(|known| Some((span_of(&known, first)?, known.name?))).collect::<Vec<_>>())
        })?;
        let info = |(span, name): (IdSpan, GrantName)| {
            let seen = IdSpan::new(span.first().checked_sub(around.uid)?, span.count()).ok()?;
            let range = wire_range(IdRange::same(seen));
            Some(RangeInfo { range, name: name.to_string(), grant: user(span) })
        };
        Ok(parts.into_iter().filter_map(info).collect())
    }

    /// Unties a part of a range from a name of a user in there. An ordinary user's stays that user's.
    ///
    /// # Errors
    /// [`IdError::NoSuchRange`], [`IdError::Io`].
    pub fn forget_inner(&self, around: Range, whose: NsUid, name: &GrantName) -> Result<(), IdError> {
        self.locked(|inner| {
            let (mut area, slot, at) = inner.slot_around(around)?;
            let is_it = |known: &InnerSlot| {
                known.around == at && known.user == whose && known.name.as_ref() == Some(name)
            };
            let part = slot.inner.iter().find(|known| is_it(known)).cloned();
            let part = part.ok_or_else(|| IdError::NoSuchRange(name.clone()))?;
            // Who has the range now may go on: what is kept for users in there without a name stays.
            let goes = |known: &InnerSlot| {
                is_it(known)
                    || (known.name.is_some()
                        && (part.offset..part.offset + part.count).contains(&known.around))
            };
            let stays = (!whose.is_root()).then_some(InnerSlot { name: None, ..part });
            let is_covered = |known: &InnerSlot| {
                stays.as_ref().is_some_and(|stays| known.is_nameless_of(at, whose) && stays.covers(known))
            };
            area.change(slot.offset, |slot| {
                slot.inner.retain(|known| !goes(known) && !is_covered(known));
                let covers = |known: &InnerSlot, stays: &InnerSlot| {
                    known.is_nameless_of(at, whose) && known.covers(stays)
                };
                let stays =
                    stays.clone().filter(|stays| !slot.inner.iter().any(|known| covers(known, stays)));
                slot.inner.extend(stays);
            });
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
        /// The outermost range's first id.
        first: u32,
        /// Its area.
        area: Area,
        /// The outermost range's place in it.
        offset: u32,
        /// What is to be recorded, if it is to belong to a name, or an ordinary user has it for the first time.
        part: Option<InnerSlot>,
    },
}

impl Part {
    const fn range(&self) -> IdRange {
        match self {
            Self::Known(range) | Self::New { range, .. } => *range,
        }
    }
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
        let is_its = |known: &&InnerSlot| known.user == around.user;
        if let Some(name) = name
            && let Some(known) =
                slot.inner.iter().filter(here).filter(is_its).find(|known| known.name.as_ref() == Some(name))
        {
            return named(known, name, around, first, count, live).map(Part::Known);
        }
        let is_ordinary = !around.user.is_root();
        if is_ordinary && slot.name.is_none() {
            return Err(IdError::NothingKept);
        }
        let count = if count == 0 { BLOCK } else { count };
        let none = || IdError::NoRoomInside { count };
        let own = |known: &&InnerSlot| known.name.is_none() && is_its(known);
        let mut busy: Vec<IdSpan> = live.iter().map(|(span, _)| *span).collect();
        let others = slot.inner.iter().filter(here).filter(|known| !own(known));
        busy.extend(others.filter_map(|known| span_of(known, first)));
        // What the user had before, and nobody has now.
        let had = slot.inner.iter().filter(here).filter(own).filter_map(|known| span_of(known, first));
        let again = had
            .filter_map(|had| had.part(0, count))
            .find(|span| is_for_others(around, *span) && !busy.iter().any(|busy| busy.overlaps(*span)));
        let span = again.or_else(|| free(around, &busy, count)).ok_or_else(none)?;
        let is_kept = |known: &InnerSlot| span_of(known, first).is_some_and(|known| known.covers(span));
        let is_new =
            name.is_some() || (is_ordinary && !slot.inner.iter().filter(here).filter(own).any(is_kept));
        let all = || area.slots().iter().flat_map(|slot| &slot.inner);
        let of_users = || all().filter(|known| !known.user.is_root()).count();
        if is_new && (all().count() >= MAX_INNER || (is_ordinary && of_users() >= MAX_INNER / 2)) {
            return Err(none());
        }
        let part = is_new.then(|| InnerSlot {
            around: at,
            offset: span.first() - first,
            count,
            user: around.user,
            name: name.cloned(),
        });
        Ok(Part::New { range: IdRange::same(span), first, area, offset: slot.offset, part })
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

/// The blocks that ids lie in, counted from those for grants inside.
fn blocks_of(around: Around, span: IdSpan) -> impl Iterator<Item = u32> {
    let begin = around.range.uid.saturating_add(around.own);
    let block = move |id: u32| id.saturating_sub(begin) / BLOCK;
    block(span.first())..=block(span.last())
}

fn span_of(part: &InnerSlot, first: u32) -> Option<IdSpan> {
    IdSpan::new(first.checked_add(part.offset)?, part.count).ok()
}

/// The part that belongs to a name, if nobody has it.
fn named(
    known: &InnerSlot,
    name: &GrantName,
    around: Around,
    first: u32,
    count: u32,
    live: &[(IdSpan, GrantId)],
) -> Result<IdRange, IdError> {
    let name = name.clone();
    if count != 0 && count != known.count {
        return Err(IdError::SizeDiffers { name, has: known.count, asked: count });
    }
    // The container around may have been made anew with more ids of its own.
    let span = span_of(known, first).filter(|span| is_for_others(around, *span));
    let span = span.ok_or(IdError::NoRoomInside { count: known.count })?;
    match live.iter().find(|(other, _)| other.overlaps(span)) {
        Some((_, grant)) => Err(IdError::InUse { name, grant: *grant }),
        None => Ok(IdRange::same(span)),
    }
}

/// Do these ids lie where those for grants inside are?
fn is_for_others(around: Around, span: IdSpan) -> bool {
    let all = IdSpan::new(around.range.uid, around.range.count);
    let begin = around.range.uid.checked_add(around.own);
    all.is_ok_and(|all| all.covers(span)) && begin.is_some_and(|begin| span.first() >= begin)
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
        let kept = Some(name.clone());
        let part = InnerSlot { around: 0, offset: BLOCK, count: BLOCK, user: NsUid::ROOT, name: kept };
        let first = 20 * BLOCK;
        let range = Range { uid: first, gid: first, count: 2 * BLOCK };
        let around = Around { range, own: BLOCK, user: NsUid::ROOT };
        let more = Around { own: BLOCK + 1, ..around };
        assert!(matches!(named(&part, &name, more, first, 0, &[]), Err(IdError::NoRoomInside { .. })));
        assert_eq!(
            named(&part, &name, around, first, 0, &[]).unwrap(),
            IdRange::same(span(first + BLOCK, BLOCK))
        );
        assert!(matches!(named(&part, &name, around, first, 7, &[]), Err(IdError::SizeDiffers { .. })));
        let live = [(span(first + BLOCK, 1), GrantId(3))];
        assert!(matches!(
            named(&part, &name, around, first, 0, &live),
            Err(IdError::InUse { grant: GrantId(3), .. })
        ));
    }
}
