//! What the record holds, in memory: every area, every range in use, and what the pool has left. Pure.
//!
//! Finding room costs the same however many ranges there are: the areas of an account are sorted by what they
//! have room for, and the free blocks of the pool by number.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cgrant_policy::{BLOCK, GrantName, HostUid, IdSpan, Pool};
use cgrant_wire::GrantId;

use super::{
    area::{Area, Room, Slot},
    error::IdError,
};

/// A range in use by a live grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The grant.
    pub grant: GrantId,
    /// Its ids.
    pub span: IdSpan,
    /// Its account.
    pub account: HostUid,
    /// The instance that granted it.
    pub instance: String,
}

/// Where a range can come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The range that the name has.
    Named(IdSpan),
    /// Room in an area of the account.
    Inside(IdSpan),
    /// So many blocks of the pool, in one piece.
    Blocks(u32),
}

/// The record in memory.
#[derive(Debug, Default)]
pub struct Index {
    areas: BTreeMap<u32, Area>,
    accounts: HashMap<HostUid, Account>,
    names: HashMap<(HostUid, GrantName), (u32, u32)>,
    marks: HashMap<GrantId, Mark>,
    free: BTreeSet<u32>,
}

/// What an account has, areas that were retired not counted.
#[derive(Debug, Default)]
struct Account {
    areas: BTreeSet<u32>,
    any: BTreeSet<(u32, u32)>,
    whole: BTreeSet<(u32, u32)>,
    ids: u64,
    blocks: u64,
    damaged: BTreeSet<u32>,
}

impl Index {
    /// The area that has this id.
    pub fn area_of(&self, id: u32) -> Option<&Area> {
        self.areas.range(..=id).next_back().map(|(_, area)| area).filter(|area| area.span.contains(id))
    }

    /// Every area.
    pub fn areas(&self) -> impl Iterator<Item = &Area> {
        self.areas.values()
    }

    /// The areas of an account that are not retired.
    pub fn areas_of(&self, account: HostUid) -> impl Iterator<Item = &Area> {
        let firsts = self.accounts.get(&account).into_iter().flat_map(|account| &account.areas);
        firsts.filter_map(|first| self.areas.get(first))
    }

    /// How many ids the account has by name or in use.
    pub fn used(&self, account: HostUid) -> u64 {
        self.accounts.get(&account).map_or(0, |account| account.ids)
    }

    /// The accounts that have ids.
    pub fn accounts(&self) -> impl Iterator<Item = HostUid> {
        self.accounts.iter().filter(|(_, account)| account.ids > 0).map(|(uid, _)| *uid)
    }

    /// The range in use by a grant.
    pub fn mark(&self, grant: GrantId) -> Option<&Mark> {
        self.marks.get(&grant)
    }

    /// Every range in use.
    pub fn marks(&self) -> impl Iterator<Item = &Mark> {
        self.marks.values()
    }

    /// The range of a name.
    pub fn named(&self, account: HostUid, name: &GrantName) -> Option<(&Area, &Slot)> {
        let (first, offset) = self.names.get(&(account, name.clone()))?;
        let area = self.areas.get(first)?;
        area.slots().iter().find(|slot| slot.offset == *offset).map(|slot| (area, slot))
    }

    /// Free blocks of the pool.
    pub fn free_blocks(&self) -> usize {
        self.free.len()
    }

    /// Sets anew which blocks of the pool are free: all but the broker's own, those with an area or a range in use, and
    /// those that `is_taken` for another reason.
    pub fn set_pool(&mut self, pool: &Pool, is_taken: impl Fn(IdSpan) -> bool) {
        let blocks = pool.blocks().skip(1).filter_map(|first| IdSpan::new(first, BLOCK).ok());
        let free = blocks.filter(|block| !is_taken(*block) && !self.has_any_of(*block));
        self.free = free.map(IdSpan::first).collect();
        for mark in self.marks.values() {
            // In use without an area: its file was removed by hand. Nobody gets it while it runs.
            remove_blocks(&mut self.free, mark.span);
        }
    }

    fn has_any_of(&self, span: IdSpan) -> bool {
        self.areas.range(..=span.last()).next_back().is_some_and(|(_, area)| area.span.overlaps(span))
    }

    /// Where a range of `count` ids for this account can come from. `quota`: how many ids the account may have.
    ///
    /// # Errors
    /// Everything that [`IdError`] has but files and the name service.
    pub fn place(
        &self,
        account: HostUid,
        name: Option<&GrantName>,
        count: u32,
        quota: u64,
    ) -> Result<Place, IdError> {
        if let Some(name) = name
            && let Some((area, slot)) = self.named(account, name)
        {
            return existing(area, slot, name, count);
        }
        let default = Account::default();
        let has = self.accounts.get(&account).unwrap_or(&default);
        if let Some(area) = has.damaged.first().and_then(|first| self.areas.get(first)) {
            // The range of this very name may be in there.
            let reason = area.damaged.clone().unwrap_or_default();
            return Err(IdError::Damaged { file: area.file(), reason });
        }
        if has.ids.saturating_add(count.into()) > quota {
            return Err(IdError::Quota { quota, used: has.ids, count });
        }
        let rooms = if count >= BLOCK { &has.whole } else { &has.any };
        // The smallest that is large enough, so that large ones stay whole.
        let area = rooms.range((count, 0)..).next().and_then(|(_, first)| self.areas.get(first));
        if let Some(span) = area.and_then(|area| area.span.part(area.place(count)?, count)) {
            return Ok(Place::Inside(span));
        }
        let blocks = count.div_ceil(BLOCK);
        // Whole blocks count, or many small ranges that pin one block each would empty the pool.
        if has.blocks.saturating_add(blocks.into()) > quota.div_ceil(BLOCK.into()).max(1) {
            return Err(IdError::Fragmented { blocks: has.blocks, count, quota, used: has.ids });
        }
        Ok(Place::Blocks(blocks))
    }

    /// So many free blocks in one piece, but none of `avoid`.
    pub fn candidate(&self, blocks: u32, avoid: &BTreeSet<u32>) -> Option<IdSpan> {
        let mut run: Option<(u32, u32)> = None;
        for block in self.free.iter().filter(|block| !avoid.contains(block)) {
            let (first, count) = match run {
                Some((first, count)) if first + count * BLOCK == *block => (first, count + 1),
                _ => (*block, 1),
            };
            if count == blocks {
                return IdSpan::new(first, blocks.checked_mul(BLOCK)?).ok();
            }
            run = Some((first, count));
        }
        None
    }

    /// Is every block of this free?
    pub fn is_free(&self, span: IdSpan) -> bool {
        blocks_of(span).all(|block| self.free.contains(&block))
    }

    /// Takes blocks out of the free ones.
    pub fn keep_clear_of(&mut self, span: IdSpan) {
        remove_blocks(&mut self.free, span);
    }

    /// Puts an area in, in place of the one that begins there. Ranges in use stay in use.
    ///
    /// # Errors
    /// In what way it contradicts another area; it is put in as a damaged one if it can be.
    pub fn put(&mut self, mut area: Area) -> Result<(), String> {
        let before = self.take(area.span.first());
        remove_blocks(&mut self.free, area.span);
        if self.has_any_of(area.span) {
            return Err(format!("{} is about ids that belong to another area too", area.file()));
        }
        let twice = area.slots().iter().filter_map(|slot| slot.name.as_ref());
        let twice = twice.map(|name| (area.account, name.clone())).find(|key| self.names.contains_key(key));
        let result = match twice {
            Some((_, name)) if area.is_usable() => {
                Err(format!("the account has two ranges of the name {name}"))
            }
            _ => Ok(()),
        };
        if let Err(reason) = &result {
            area = area.into_damaged(reason.clone());
        }
        self.add(area);
        let grants = before.iter().flat_map(Area::slots).filter_map(|slot| self.marks.get(&slot.grant?));
        for mark in grants.cloned().collect::<Vec<_>>() {
            self.attach(&mark);
        }
        result
    }

    /// A range is in use.
    pub fn put_mark(&mut self, mark: Mark) {
        self.attach(&mark);
        remove_blocks(&mut self.free, mark.span);
        self.marks.insert(mark.grant, mark);
    }

    /// A range is not in use any more.
    pub fn drop_mark(&mut self, grant: GrantId) {
        let Some(mark) = self.marks.remove(&grant) else { return };
        self.change_at(mark.span, |slot| {
            if slot.grant == Some(grant) {
                slot.grant = None;
            }
        });
    }

    /// Changes the area that begins there, with all that is known about it.
    pub fn change(&mut self, first: u32, change: impl FnOnce(&mut Area)) {
        if let Some(mut area) = self.take(first) {
            change(&mut area);
            self.add(area);
        }
    }

    fn attach(&mut self, mark: &Mark) {
        let Some(area) = self.area_of(mark.span.first()) else { return };
        let (first, span) = (area.span.first(), area.span);
        let offset = mark.span.first() - span.first();
        if area.account != mark.account || !span.covers(mark.span) {
            tracing::error!(grant = %mark.grant, ids = %mark.span, "a range in use is not within an area of its account");
            return;
        }
        self.change(first, |area| {
            let same = |slot: &Slot| slot.offset == offset && slot.count == mark.span.count();
            if area.slots().iter().any(same) {
                area.change(offset, |slot| slot.grant = Some(mark.grant));
            } else {
                area.insert(Slot {
                    offset,
                    count: mark.span.count(),
                    name: None,
                    grant: Some(mark.grant),
                    inner: Vec::new(),
                });
            }
        });
    }

    fn change_at(&mut self, span: IdSpan, change: impl FnOnce(&mut Slot)) {
        let Some(first) = self.area_of(span.first()).map(|area| area.span.first()) else { return };
        self.change(first, |area| area.change(span.first() - first, change));
    }

    /// Takes an area out, with everything that counts it.
    fn take(&mut self, first: u32) -> Option<Area> {
        let area = self.areas.remove(&first)?;
        self.count(&area, false);
        Some(area)
    }

    fn add(&mut self, area: Area) {
        self.count(&area, true);
        self.areas.insert(area.span.first(), area);
    }

    /// Adds an area to what is counted and sorted, or takes it away.
    fn count(&mut self, area: &Area, add: bool) {
        if area.retired {
            return;
        }
        let first = area.span.first();
        let account = self.accounts.entry(area.account).or_default();
        let ids: u64 = area.slots().iter().map(|slot| u64::from(slot.count)).sum();
        let Room { any, whole } = area.room();
        let names = area.slots().iter().filter_map(|slot| Some((slot.name.clone()?, slot.offset)));
        if add {
            account.areas.insert(first);
            account.any.insert((any, first));
            account.whole.insert((whole, first));
            account.ids = account.ids.saturating_add(ids);
            account.blocks = account.blocks.saturating_add(area.blocks().into());
            if area.damaged.is_some() {
                account.damaged.insert(first);
            }
            self.names.extend(names.map(|(name, offset)| ((area.account, name), (first, offset))));
        } else {
            account.areas.remove(&first);
            account.any.remove(&(any, first));
            account.whole.remove(&(whole, first));
            account.ids = account.ids.saturating_sub(ids);
            account.blocks = account.blocks.saturating_sub(area.blocks().into());
            account.damaged.remove(&first);
            for (name, _) in names {
                self.names.remove(&(area.account, name));
            }
        }
        if account.areas.is_empty() {
            self.accounts.remove(&area.account);
        }
    }
}

fn existing(area: &Area, slot: &Slot, name: &GrantName, count: u32) -> Result<Place, IdError> {
    if let Some(grant) = slot.grant {
        return Err(IdError::InUse { name: name.clone(), grant });
    }
    if slot.count != count {
        return Err(IdError::SizeDiffers { name: name.clone(), has: slot.count, asked: count });
    }
    let damaged =
        || IdError::Damaged { file: area.file(), reason: "a range is not within its area".to_owned() };
    area.ids(slot).map(Place::Named).ok_or_else(damaged)
}

fn blocks_of(span: IdSpan) -> impl Iterator<Item = u32> {
    (span.first() / BLOCK..=span.last() / BLOCK).map(|block| block * BLOCK)
}

fn remove_blocks(free: &mut BTreeSet<u32>, span: IdSpan) {
    for block in blocks_of(span) {
        free.remove(&block);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const QUOTA: u64 = 6 * BLOCK as u64;

    fn index() -> Index {
        let pool = Pool::new(vec![IdSpan::new(10 * BLOCK, 40 * BLOCK).unwrap()]).unwrap();
        let mut index = Index::default();
        index.set_pool(&pool, |_| false);
        index
    }

    fn name(text: &str) -> GrantName {
        GrantName::new(text).unwrap()
    }

    /// What `IdRecord` does, without files.
    fn acquire(
        index: &mut Index,
        account: u32,
        label: Option<&GrantName>,
        count: u32,
        grant: u64,
    ) -> Result<IdSpan, IdError> {
        let account = HostUid(account);
        let span = match index.place(account, label, count, QUOTA)? {
            Place::Named(span) | Place::Inside(span) => span,
            Place::Blocks(blocks) => {
                let none = IdError::NoFreeBlock { count, blocks: 0, free: 0 };
                let span = index.candidate(blocks, &BTreeSet::new()).ok_or(none)?;
                index.put(Area::new(span, account, None)).unwrap();
                span.part(0, count).unwrap()
            }
        };
        let first = index.area_of(span.first()).unwrap().span.first();
        if let Some(label) = label
            && index.named(account, label).is_none()
        {
            let slot = Slot {
                offset: span.first() - first,
                count,
                name: Some(label.clone()),
                grant: None,
                inner: Vec::new(),
            };
            index.change(first, |area| assert!(area.insert(slot)));
        }
        index.put_mark(Mark { grant: GrantId(grant), span, account, instance: "i".into() });
        Ok(span)
    }

    #[test]
    fn a_name_keeps_its_range_and_what_has_none_is_used_again_by_the_account() {
        let mut index = index();
        let web = name("web");
        let first = acquire(&mut index, 1, Some(&web), BLOCK, 1).unwrap();
        assert!(matches!(acquire(&mut index, 1, Some(&web), BLOCK, 2), Err(IdError::InUse { .. })));
        let loose = acquire(&mut index, 1, None, BLOCK, 3).unwrap();
        index.drop_mark(GrantId(1));
        index.drop_mark(GrantId(3));
        assert_eq!(index.used(HostUid(1)), u64::from(BLOCK));
        assert_eq!(acquire(&mut index, 1, None, BLOCK, 4).unwrap(), loose);
        assert_eq!(acquire(&mut index, 1, Some(&web), BLOCK, 5).unwrap(), first);
        let other = acquire(&mut index, 2, Some(&web), BLOCK, 6).unwrap();
        assert!(!other.overlaps(first) && !other.overlaps(loose));
    }

    #[test]
    fn small_ranges_share_a_block_of_one_account_only() {
        let mut index = index();
        let spans: Vec<IdSpan> = (0..3).map(|n| acquire(&mut index, 1, None, 100, n).unwrap()).collect();
        assert!(spans.windows(2).all(|pair| pair[0].last() + 1 == pair[1].first()));
        let other = acquire(&mut index, 2, None, 100, 9).unwrap();
        assert_ne!(other.first() / BLOCK, spans[0].first() / BLOCK);
    }

    #[test]
    fn quotas_count_ids_and_whole_blocks() {
        let mut index = index();
        let label = |n: u64| name(&format!("n{n}"));
        // Fill six blocks, then thin them out to one id each.
        for n in 0..6 {
            acquire(&mut index, 1, Some(&label(n)), BLOCK, n).unwrap();
        }
        assert!(matches!(
            acquire(&mut index, 1, None, 1, 99),
            Err(IdError::Quota { quota: QUOTA, used: QUOTA, count: 1 })
        ));
        for n in 0..6 {
            index.drop_mark(GrantId(n));
            let first = index.named(HostUid(1), &label(n)).unwrap().0.span.first();
            index.change(first, |area| area.change(0, |slot| slot.count = 1));
        }
        assert_eq!(index.used(HostUid(1)), 6);
        assert!(matches!(
            acquire(&mut index, 1, None, BLOCK, 98),
            Err(IdError::Fragmented { blocks: 6, .. })
        ));
        assert!(acquire(&mut index, 1, None, BLOCK - 1, 97).is_ok());
    }

    #[test]
    fn pieces_of_several_blocks_are_found_around_what_is_taken() {
        let mut index = index();
        index.keep_clear_of(IdSpan::new(12 * BLOCK + 5, 1).unwrap());
        let none = BTreeSet::new();
        assert_eq!(index.candidate(1, &none).unwrap().first(), 11 * BLOCK);
        assert_eq!(index.candidate(2, &none).unwrap().first(), 13 * BLOCK);
        assert_eq!(index.candidate(2, &[13 * BLOCK].into()).unwrap().first(), 14 * BLOCK);
        assert_eq!(index.candidate(37, &none).unwrap().first(), 13 * BLOCK);
        assert!(index.candidate(38, &none).is_none());
    }

    #[test]
    fn what_contradicts_another_area_is_never_given_out() {
        let mut index = index();
        let span = |first: u32, count: u32| IdSpan::new(first * BLOCK, count * BLOCK).unwrap();
        index.put(Area::new(span(20, 2), HostUid(1), None)).unwrap();
        assert!(index.put(Area::new(span(21, 1), HostUid(2), None)).is_err());
        assert!(index.put(Area::new(span(19, 2), HostUid(2), None)).is_err());
        assert_eq!(index.area_of(21 * BLOCK).unwrap().account, HostUid(1));
        assert!(index.areas_of(HostUid(2)).next().is_none());
    }

    #[derive(Debug, Clone)]
    enum Step {
        Acquire { account: u32, name: Option<u8>, count: u32 },
        Release(usize),
        Forget { account: u32, name: u8 },
        Retire { account: u32 },
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let count = prop_oneof![Just(BLOCK), 1u32..5000, BLOCK..3 * BLOCK];
        let acquire = (1u32..5, prop::option::of(0u8..4), count);
        let step = prop_oneof![
            6 => acquire.prop_map(|(account, name, count)| Step::Acquire { account, name, count }),
            4 => (0usize..30).prop_map(Step::Release),
            1 => (1u32..5, 0u8..4).prop_map(|(account, name)| Step::Forget { account, name }),
            1 => (1u32..5).prop_map(|account| Step::Retire { account }),
        ];
        prop::collection::vec(step, 1..120)
    }

    proptest! {
        #[test]
        fn ranges_never_overlap_never_change_account_and_names_keep_theirs(steps in steps()) {
            let mut index = index();
            let mut live: Vec<(u64, IdSpan)> = Vec::new();
            let mut owner: HashMap<u32, (u32, u32)> = HashMap::new();
            let mut generation: HashMap<u32, u32> = HashMap::new();
            let mut names: HashMap<(u32, u8), IdSpan> = HashMap::new();
            for (number, step) in steps.into_iter().enumerate() {
                let grant = number as u64;
                match step {
                    Step::Acquire { account, name: label, count } => {
                        let text = label.map(|label| name(&format!("n{label}")));
                        let Ok(span) = acquire(&mut index, account, text.as_ref(), count, grant) else { continue };
                        prop_assert_eq!(span.count(), count);
                        prop_assert!(live.iter().all(|(_, other)| !other.overlaps(span)));
                        let who = (account, generation.get(&account).copied().unwrap_or(0));
                        for block in blocks_of(span) {
                            prop_assert!(block > 10 * BLOCK, "the broker's own block");
                            prop_assert_eq!(*owner.entry(block).or_insert(who), who);
                        }
                        if let Some(label) = label {
                            prop_assert_eq!(*names.entry((account, label)).or_insert(span), span);
                        }
                        live.push((grant, span));
                    }
                    Step::Release(at) if !live.is_empty() => {
                        let (grant, _) = live.remove(at % live.len());
                        index.drop_mark(GrantId(grant));
                    }
                    Step::Release(_) => (),
                    Step::Forget { account, name: label } => {
                        names.remove(&(account, label));
                        let label = name(&format!("n{label}"));
                        let found = index.named(HostUid(account), &label);
                        if let Some((first, offset)) = found.map(|(area, slot)| (area.span.first(), slot.offset)) {
                            index.change(first, |area| area.change(offset, |slot| slot.name = None));
                        }
                    }
                    Step::Retire { account } => {
                        let areas: Vec<u32> = index.areas_of(HostUid(account)).map(|area| area.span.first()).collect();
                        for first in areas {
                            index.change(first, |area| area.retired = true);
                        }
                        names.retain(|(owner, _), _| *owner != account);
                        *generation.entry(account).or_default() += 1;
                    }
                }
                for account in 1..5 {
                    let counted: u64 = index.areas_of(HostUid(account))
                        .flat_map(|area| area.slots()).map(|slot| u64::from(slot.count)).sum();
                    prop_assert_eq!(index.used(HostUid(account)), counted);
                    prop_assert!(counted <= QUOTA);
                    let blocks: u32 = index.areas_of(HostUid(account)).map(Area::blocks).sum();
                    prop_assert!(u64::from(blocks) * u64::from(BLOCK) <= QUOTA);
                }
                prop_assert_eq!(index.marks().count(), live.len());
            }
        }
    }
}
