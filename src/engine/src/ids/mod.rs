//! The record of ranges: which ids belong to which account, and which of them are mapped now.
//!
//! One per host, shared by every instance. The invariants (design section 2, 8), and how each is held:
//!
//! * A block of 65536 ids that was once an account's is never another's. It is taken from the pool by writing a file,
//!   flushed to the disk, before any of it is used; no code removes such a file. A file that can't be read keeps its
//!   ids, which its name says, out of reach.
//! * A range is mapped by one live grant at a time: what is in use is marked in a file that carries the boot's id,
//!   written under the same lock.
//! * A range stays with its account and name. One without a name goes back to its account, not to the pool.
//! * When the user of an account is gone (or the uid has another name) its areas are retired.
//! * Ids of the pool that `/etc/passwd`, `group`, `subuid`, `subgid`, the name service or systemd use are not taken.
//!
//! An attacker is an account that wants ids of another's, or all ids there are. It chooses a name, a size and
//! an order of requests. Names are [`GrantName`]s and never reach a file's name here; sizes are bounded by a quota in ids and
//! in whole blocks; and no order of requests changes whose block it is.
//!
//! May touch: the two directories that it was given, and read `/etc`.

mod accounts;
mod area;
mod error;
mod index;
mod inner;
mod store;

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock},
    time::Duration,
};

use cgrant_policy::{BLOCK, GrantName, HostUid, IdRange, IdSpan, Pool};
use cgrant_sys::Dir;
use cgrant_wire::{DepartedInfo, Fate, GrantId, Range, RangeInfo};

use self::{
    accounts::{Accounts, Lent},
    area::{Area, Removal, Slot},
    index::{Index, Mark, Place},
    store::{AreaFile, Named, News, Store},
};
pub use self::{
    accounts::{Presence, local_groups},
    error::{IdError, NamesError},
    inner::Around,
};

/// What systemd gives to containers and keeps for files of foreign images (UIDS-GIDS.md of systemd). Kept clear on every
/// host: systemd may come later, and images may carry such ids.
const SYSTEMD: [(u32, u32); 2] = [(0x0008_0000, 0x6fff_ffff), (0x7ffe_0000, 0x7ffe_ffff)];

/// How many blocks in a row the name service may know ids of before a request gives up.
const MAX_TRIES: usize = 8;

/// How often files of a user who is gone are looked for where some can't be removed.
pub const TRIES: u8 = 7;

/// Whoever can say which ids the name service (NSS) knows.
pub trait NameService: Send + Sync {
    /// Does a user or a group of the host have any of these ids, as far as can be found out? May take seconds.
    ///
    /// # Errors
    /// [`NamesError`].
    fn knows(&self, span: IdSpan) -> Result<bool, NamesError>;
}

/// The record of ranges.
pub struct IdRecord {
    inner: Mutex<Inner>,
    /// Apart from the rest, so that nobody who asks whose a uid is waits for a write.
    lent: RwLock<Arc<Lent>>,
    names: Box<dyn NameService>,
    pool: Pool,
    instance: String,
}

struct Inner {
    store: Store,
    index: Index,
    accounts: Accounts,
    /// Blocks that a thread is asking the name service about.
    asking: BTreeSet<u32>,
    /// Blocks that the name service knows ids of.
    foreign: BTreeSet<u32>,
    /// A write failed half way, or a user might have left: what is in memory is not to be relied on.
    stale: bool,
    unsettled: bool,
}

/// What an attempt to find a range came to.
enum Attempt {
    Done(IdRange),
    Ask(IdSpan),
}

/// What is asked for.
#[derive(Clone, Copy)]
struct Wish<'a> {
    account: HostUid,
    name: Option<&'a GrantName>,
    count: u32,
    grant: GrantId,
    quota: u64,
}

impl IdRecord {
    /// Opens the record in its two directories and reads all of it.
    ///
    /// # Errors
    /// [`IdError::Io`]; [`IdError::Damaged`] if a file does not even say by its name which ids it is about.
    pub fn open(
        record: Dir,
        live: Dir,
        pool: &Pool,
        instance: &str,
        names: Box<dyn NameService>,
    ) -> Result<Self, IdError> {
        Self::open_with(record, live, pool, instance, names, Path::new("/etc"))
    }

    fn open_with(
        record: Dir,
        live: Dir,
        pool: &Pool,
        instance: &str,
        names: Box<dyn NameService>,
        etc: &Path,
    ) -> Result<Self, IdError> {
        let inner = Inner {
            store: Store::open(record, live)?,
            index: Index::default(),
            accounts: Accounts::open(etc)?,
            asking: BTreeSet::new(),
            foreign: BTreeSet::new(),
            stale: true,
            unsettled: true,
        };
        let lent = RwLock::new(inner.accounts.lent());
        let (pool, instance) = (pool.clone(), instance.to_owned());
        let record = Self { inner: Mutex::new(inner), lent, names, pool, instance };
        record.locked(|_| Ok(()))?;
        Ok(record)
    }

    /// A range for a grant, marked as in use: the one of the account's name, or with `None` any of the account's.
    /// `count` 0 means the size that the name's range has, or 65536. Asked again for the same grant it gives the same.
    ///
    /// The record is on the disk when this returns. May wait seconds for the name service, but only when the account
    /// gets a new block, and without keeping anybody else from theirs.
    ///
    /// # Errors
    /// [`IdError`]; nothing is in use then that was not before.
    pub fn acquire(
        &self,
        account: HostUid,
        name: Option<&GrantName>,
        count: u32,
        grant: GrantId,
        quota: u64,
    ) -> Result<IdRange, IdError> {
        let wish = Wish { account, name, count, grant, quota };
        for _ in 0..MAX_TRIES {
            let span = match self.locked(|inner| self.attempt(inner, wish))? {
                Attempt::Done(range) => return Ok(range),
                Attempt::Ask(span) => span,
            };
            // Without the lock: nobody else waits for the name service.
            let answer = self.names.knows(span);
            self.lock_inner().asking.retain(|block| !span.contains(*block));
            let taken = self.locked(|inner| {
                match answer {
                    Ok(false) => self.take_blocks(inner, wish, span),
                    Ok(true) => {
                        tracing::warn!(ids = %span, "the name service knows ids of the pool; they are kept clear");
                        inner.foreign.extend((span.first()..=span.last()).step_by(BLOCK as usize));
                        inner.index.keep_clear_of(span);
                        Ok(None)
                    }
                    Err(error) => Err(error.into()),
                }
            })?;
            if let Some(range) = taken {
                return Ok(range);
            }
        }
        Err(self.none_free(&self.lock_inner().index, count))
    }

    /// Would [`acquire`](Self::acquire) find ids for a new grant? Takes none, and does not ask the name service.
    ///
    /// # Errors
    /// What `acquire` would refuse with.
    pub fn foresee(
        &self,
        account: HostUid,
        name: Option<&GrantName>,
        count: u32,
        quota: u64,
    ) -> Result<(), IdError> {
        let wish = Wish { account, name, count, grant: GrantId(0), quota };
        self.locked(|inner| {
            let count = inner.size(wish);
            match inner.index.place(account, name, count, quota)? {
                Place::Named(_) | Place::Inside(_) => Ok(()),
                Place::Blocks(blocks) => {
                    let avoid = inner.asking.union(&inner.foreign).copied().collect();
                    let found = inner.index.candidate(blocks, &avoid).map(|_| ());
                    found.ok_or_else(|| self.none_free(&inner.index, count))
                }
            }
        })
    }

    /// The grant does not use its range any more. One without a name is free for the account's other grants from now on.
    /// Nothing happens if the grant has none.
    ///
    /// # Errors
    /// [`IdError::Io`].
    pub fn release(&self, grant: GrantId) -> Result<(), IdError> {
        self.locked(|inner| {
            let Some(mark) = inner.index.mark(grant).cloned() else { return Ok(()) };
            inner.changing(|inner| inner.store.remove_mark(&mark))?;
            inner.index.drop_mark(grant);
            Ok(())
        })
    }

    /// Unties the account's range from its name. If it is in use it stays so until the grant ends.
    ///
    /// # Errors
    /// [`IdError::NoSuchRange`], [`IdError::Io`].
    pub fn forget(&self, account: HostUid, name: &GrantName) -> Result<(), IdError> {
        self.locked(|inner| {
            let found = inner.index.named(account, name).map(|(area, slot)| (area.clone(), slot.offset));
            let (mut area, offset) = found.ok_or_else(|| IdError::NoSuchRange(name.clone()))?;
            area.change(offset, |slot| slot.name = None);
            inner.write(area)
        })
    }

    /// The account's ranges: those with a name, and those in use.
    ///
    /// # Errors
    /// [`IdError::Io`].
    pub fn list(&self, account: HostUid) -> Result<Vec<RangeInfo>, IdError> {
        self.locked(|inner| {
            let info = |area: &Area, slot: &Slot| {
                let span = area.ids(slot)?;
                let name = slot.name.as_ref().map(GrantName::to_string).unwrap_or_default();
                Some(RangeInfo { range: wire_range(IdRange::same(span)), name, grant: slot.grant })
            };
            let areas = inner.index.areas_of(account);
            Ok(areas.flat_map(|area| area.slots().iter().filter_map(move |slot| info(area, slot))).collect())
        })
    }

    /// Notes whether files of the ids that the grant has got belong to those that are removed when its account's user is gone. The
    /// last grant that got some of an area decides about all of it.
    ///
    /// # Errors
    /// [`IdError::Io`].
    pub fn note_removal(&self, grant: GrantId, wanted: bool) -> Result<(), IdError> {
        let removal = if wanted { Removal::Wanted } else { Removal::No };
        let differs = |inner: &Inner| {
            let area = inner.index.mark(grant).and_then(|mark| inner.index.area_of(mark.span.first()));
            area.filter(|area| area.is_usable() && area.removal != removal).cloned()
        };
        if differs(&self.lock_inner()).is_none() {
            return Ok(());
        }
        self.locked(|inner| match differs(inner) {
            Some(mut area) => {
                area.removal = removal;
                inner.write(area)
            }
            None => Ok(()),
        })
    }

    /// Are files of some account to be removed whose user is gone, as far as this instance has looked?
    pub fn is_removal_due(&self) -> bool {
        self.lock_inner().index.areas().any(|area| matches!(area.removal, Removal::Due { .. }))
    }

    /// Files of the area that begins there were removed, or looked for once more: nothing happens where they were not to be.
    ///
    /// # Errors
    /// [`IdError::Io`].
    pub fn forget_departed(&self, first: u32, incomplete: bool) -> Result<(), IdError> {
        self.locked(|inner| {
            let area = inner.index.area_of(first).filter(|area| area.span.first() == first).cloned();
            let Some(mut area) = area else { return Ok(()) };
            let Removal::Due { failures } = area.removal else { return Ok(()) };
            let failures = failures.saturating_add(1);
            area.removal = match incomplete {
                true if failures < TRIES => Removal::Due { failures },
                true => {
                    tracing::error!(
                        target: "ids", account = area.account.0, ids = %area.span, user = area.user,
                        "some files of a user who is gone could not be removed {TRIES} times; they are not looked for any more"
                    );
                    Removal::No
                }
                false => Removal::No,
            };
            inner.write(area)
        })
    }

    /// The ids of accounts whose users are gone, or of this one of them, or only those of them whose files are `to_remove`, as `/etc` and the record say now. Those whose record is
    /// damaged are not among them: nobody knows whose user they were taken for.
    ///
    /// # Errors
    /// [`IdError::Io`].
    pub fn departed(&self, account: Option<HostUid>, to_remove: bool) -> Result<Vec<DepartedInfo>, IdError> {
        self.locked(|inner| {
            self.look_at_accounts(inner)?;
            let mut grants: HashMap<u32, u32> = HashMap::new();
            for area in inner.index.marks().filter_map(|mark| inner.index.area_of(mark.span.first())) {
                *grants.entry(area.span.first()).or_default() += 1;
            }
            let asked = |area: &&Area| {
                account.is_none_or(|account| account == area.account)
                    && (!to_remove || matches!(area.removal, Removal::Due { .. }))
            };
            let info = |area: &Area| {
                let first = area.span.first();
                Some(DepartedInfo {
                    account: area.account.0,
                    user: area.user.clone().unwrap_or_default(),
                    first,
                    count: area.span.count(),
                    fate: inner.fate(area)?,
                    grants: grants.get(&first).copied().unwrap_or_default(),
                })
            };
            Ok(inner.index.areas().filter(asked).filter_map(info).collect())
        })
    }

    /// How many ids the account has by name or in use, as far as this instance has looked.
    pub fn used(&self, account: HostUid) -> u64 {
        self.lock_inner().index.used(account)
    }

    /// The ids that were taken from the pool for the account, as far as this instance has looked; those that were retired not among them.
    pub fn blocks_of(&self, account: HostUid) -> Vec<IdSpan> {
        self.lock_inner().index.areas_of(account).map(|area| area.span).collect()
    }

    /// The accounts that these ids were taken for, as far as this instance has looked; none for those that were retired.
    pub fn holders_of(&self, ids: impl IntoIterator<Item = u32>) -> Vec<HostUid> {
        let inner = self.lock_inner();
        let area = |id| inner.index.area_of(id).filter(|area| !area.retired);
        ids.into_iter().filter_map(|id| Some(area(id)?.account)).collect()
    }

    /// The accounts that have ids by name or in use, as far as this instance has looked.
    pub fn accounts(&self) -> Vec<HostUid> {
        self.lock_inner().index.accounts().collect()
    }

    /// The ranges in use by grants of this instance.
    ///
    /// # Errors
    /// [`IdError::Io`].
    pub fn live(&self) -> Result<Vec<(GrantId, IdRange)>, IdError> {
        self.locked(|inner| {
            let own = inner.index.marks().filter(|mark| mark.instance == self.instance);
            Ok(own.map(|mark| (mark.grant, IdRange::same(mark.span))).collect())
        })
    }

    /// The account that a uid was handed to: one of the pool by this record, also when the account's user is gone; any other
    /// by `/etc/subuid`. `None` for uids that are users' own or nobody's, and those of the broker itself.
    ///
    /// If another instance's changes can't be read, what was known before is answered.
    pub fn owner_of(&self, id: HostUid) -> Option<HostUid> {
        if !self.pool.spans().iter().any(|span| span.contains(id.0)) {
            return self.lent.read().unwrap_or_else(PoisonError::into_inner).owner_of(id);
        }
        if let Some(area) = self.lock_inner().index.area_of(id.0) {
            // An area never changes its account.
            return Some(area.account);
        }
        let found = self.locked(|inner| Ok(inner.index.area_of(id.0).map(|area| area.account)));
        found.unwrap_or_else(|error| {
            tracing::error!(%error, "the record of ranges can't be read");
            None
        })
    }

    /// Is the area of this id retired, by what `/etc` says now?
    ///
    /// # Errors
    /// [`IdError::Io`].
    pub fn is_retired(&self, id: u32) -> Result<bool, IdError> {
        self.locked(|inner| {
            self.look_at_accounts(inner)?;
            Ok(inner.index.area_of(id).is_some_and(|area| area.retired))
        })
    }

    /// The name of the account's user, if `/etc/passwd` has one.
    pub fn user_of(&self, account: HostUid) -> Option<String> {
        self.lock_inner().accounts.user(account).map(str::to_owned)
    }

    /// Is the account's user another one than the `recorded` one, or none any more? Not while that can't be told for certain.
    pub fn has_departed(&self, account: HostUid, recorded: Option<&str>) -> bool {
        self.presence(account, recorded) != Presence::Same
    }

    /// Is the account's user still the `recorded` one? As [`has_departed`](Self::has_departed), which does not say why.
    pub fn presence(&self, account: HostUid, recorded: Option<&str>) -> Presence {
        self.lock_inner().accounts.presence(account, recorded)
    }

    /// Would every user of the host be in `/etc/passwd`? If not, whoever is missing there may be known elsewhere.
    pub fn knows_all_users(&self) -> bool {
        self.lock_inner().accounts.is_complete()
    }

    /// How long until a user who is missing in `/etc/passwd` now is believed to be gone; `None` if that is so already, or nobody
    /// can tell.
    pub fn until_settled(&self) -> Option<Duration> {
        self.lock_inner().accounts.until_settled()
    }

    /// A number that changes when [`has_departed`](Self::has_departed) may have another answer for somebody.
    pub fn users_edition(&self) -> u64 {
        self.lock_inner().accounts.edition()
    }

    /// `/etc/passwd` or another of the four files may have changed: reads what did, and retires the areas of users who left.
    ///
    /// # Errors
    /// [`IdError::Io`].
    pub fn accounts_changed(&self) -> Result<(), IdError> {
        self.locked(|inner| self.look_at_accounts(inner))
    }

    /// One try to find a range, under the lock.
    fn attempt(&self, inner: &mut Inner, wish: Wish<'_>) -> Result<Attempt, IdError> {
        if let Some(mark) = inner.index.mark(wish.grant) {
            return Ok(Attempt::Done(IdRange::same(mark.span)));
        }
        self.look_at_accounts(inner)?;
        let count = inner.size(wish);
        match inner.index.place(wish.account, wish.name, count, wish.quota)? {
            Place::Named(span) => inner.take_named(wish, span, &self.instance).map(Attempt::Done),
            Place::Inside(span) => inner.take_inside(wish, span, &self.instance).map(Attempt::Done),
            Place::Blocks(blocks) => {
                let avoid = inner.asking.union(&inner.foreign).copied().collect();
                let span = inner.index.candidate(blocks, &avoid);
                let span = span.ok_or_else(|| self.none_free(&inner.index, count))?;
                inner.asking.extend((span.first()..=span.last()).step_by(BLOCK as usize));
                Ok(Attempt::Ask(span))
            }
        }
    }

    /// Takes blocks that the name service has nothing against, if nothing came between; else the next try will see.
    fn take_blocks(
        &self,
        inner: &mut Inner,
        wish: Wish<'_>,
        span: IdSpan,
    ) -> Result<Option<IdRange>, IdError> {
        let count = inner.size(wish);
        let place = inner.index.place(wish.account, wish.name, count, wish.quota)?;
        if place != Place::Blocks(span.count() / BLOCK) || !inner.index.is_free(span) {
            return Ok(None);
        }
        let ids = span.part(0, count).ok_or_else(|| self.none_free(&inner.index, count))?;
        let mut area = Area::new(span, wish.account, inner.accounts.user(wish.account));
        if let Some(name) = wish.name {
            area.insert(Slot { offset: 0, count, name: Some(name.clone()), grant: None, inner: Vec::new() });
        }
        inner.write(area)?;
        tracing::info!(target: "ids", account = wish.account.0, ids = %span, "a block of ids is the account's from now on");
        inner.mark(wish, ids, &self.instance).map(Some)
    }

    /// Reads `/etc` if it changed; keeps its ids clear; retires the areas of users who left.
    fn look_at_accounts(&self, inner: &mut Inner) -> Result<(), IdError> {
        let changed = inner.accounts.refresh()?;
        if changed {
            inner.set_pool(&self.pool);
            *self.lent.write().unwrap_or_else(PoisonError::into_inner) = inner.accounts.lent();
        }
        let settled = inner.unsettled && inner.accounts.is_settled();
        if changed || settled {
            inner.unsettled = !settled;
            inner.retire_departed()?;
        }
        Ok(())
    }

    fn none_free(&self, index: &Index, count: u32) -> IdError {
        IdError::NoFreeBlock { count, blocks: self.pool.blocks().count(), free: index.free_blocks() }
    }

    fn lock_inner(&self) -> MutexGuard<'_, Inner> {
        // What a thread that panicked left in memory is read again from the files.
        self.inner.lock().unwrap_or_else(|poisoned: PoisonError<_>| {
            let mut inner: MutexGuard<'_, Inner> = poisoned.into_inner();
            inner.stale = true;
            self.inner.clear_poison();
            inner
        })
    }

    /// Runs `f` with every other thread and instance kept out, on what the files say now.
    fn locked<T>(&self, f: impl FnOnce(&mut Inner) -> Result<T, IdError>) -> Result<T, IdError> {
        let mut inner = self.lock_inner();
        let _guard = inner.store.lock()?;
        inner.catch_up(&self.pool)?;
        f(&mut inner)
    }
}

impl Inner {
    /// Takes over what other instances changed.
    fn catch_up(&mut self, pool: &Pool) -> Result<(), IdError> {
        let news = self.store.news()?;
        match news {
            News::Files(files) if !self.stale => {
                for file in files {
                    self.take_over(&file)?;
                }
                Ok(())
            }
            _ => self.read_everything(pool),
        }
    }

    fn read_everything(&mut self, pool: &Pool) -> Result<(), IdError> {
        self.stale = true;
        let (areas, marks) = self.store.load()?;
        self.index = Index::default();
        for area in areas {
            self.put(area);
        }
        for mark in marks {
            self.index.put_mark(mark);
        }
        self.set_pool(pool);
        self.unsettled = true;
        self.stale = false;
        Ok(())
    }

    fn take_over(&mut self, file: &Named) -> Result<(), IdError> {
        match file {
            Named::Area(file) => {
                if let AreaFile::Area(area) = self.store.read_area(file)? {
                    self.put(area);
                }
            }
            Named::Mark(file) => match (self.store.read_mark(file)?, store::mark_from(file)) {
                (Some(mark), _) => self.index.put_mark(mark),
                (None, Some(mark)) => self.index.drop_mark(mark.grant),
                (None, None) => (),
            },
        }
        Ok(())
    }

    fn put(&mut self, area: Area) {
        if let Err(reason) = self.index.put(area) {
            tracing::error!(
                reason,
                "the record of ranges contradicts itself; nothing of these ids is given out"
            );
        }
    }

    fn set_pool(&mut self, pool: &Pool) {
        let (accounts, foreign) = (&self.accounts, &self.foreign);
        let systemd: Vec<IdSpan> = SYSTEMD.iter().filter_map(|(a, b)| IdSpan::between(*a, *b).ok()).collect();
        self.index.set_pool(pool, |block| {
            accounts.overlap(block).is_some()
                || foreign.contains(&block.first())
                || systemd.iter().any(|kept| kept.overlaps(block))
        });
    }

    /// Runs an effect; if it fails, memory is not relied on any more.
    fn changing<T>(&mut self, effect: impl FnOnce(&mut Self) -> Result<T, IdError>) -> Result<T, IdError> {
        let result = effect(self);
        self.stale |= result.is_err();
        result
    }

    /// Puts an area on the disk and then in memory.
    fn write(&mut self, area: Area) -> Result<(), IdError> {
        self.changing(|inner| inner.store.write_area(&area))?;
        self.put(area);
        Ok(())
    }

    fn size(&self, wish: Wish<'_>) -> u32 {
        if wish.count > 0 {
            return wish.count;
        }
        let named = wish.name.and_then(|name| self.index.named(wish.account, name));
        named.map_or(BLOCK, |(_, slot)| slot.count)
    }

    fn take_named(&mut self, wish: Wish<'_>, span: IdSpan, instance: &str) -> Result<IdRange, IdError> {
        if let Some(taken) = self.accounts.overlap(span) {
            return Err(IdError::Taken(taken));
        }
        self.mark(wish, span, instance)
    }

    fn take_inside(&mut self, wish: Wish<'_>, span: IdSpan, instance: &str) -> Result<IdRange, IdError> {
        if let Some(taken) = self.accounts.overlap(span) {
            return Err(IdError::Taken(taken));
        }
        if let Some(name) = wish.name
            && let Some(mut area) = self.index.area_of(span.first()).cloned()
        {
            let offset = span.first() - area.span.first();
            area.insert(Slot {
                offset,
                count: span.count(),
                name: Some(name.clone()),
                grant: None,
                inner: Vec::new(),
            });
            self.write(area)?;
        }
        self.mark(wish, span, instance)
    }

    fn mark(&mut self, wish: Wish<'_>, span: IdSpan, instance: &str) -> Result<IdRange, IdError> {
        let mark = Mark { grant: wish.grant, span, account: wish.account, instance: instance.to_owned() };
        self.changing(|inner| inner.store.write_mark(&mark))?;
        self.index.put_mark(mark);
        Ok(IdRange::same(span))
    }

    /// What became of an area's ids; `None` if its user is there, or nobody can tell.
    fn fate(&self, area: &Area) -> Option<Fate> {
        if area.damaged.is_some() {
            return None;
        }
        if !area.retired {
            let user = area.user.as_deref()?;
            return (self.accounts.user(area.account) != Some(user)).then_some(Fate::Leaving);
        }
        Some(if self.accounts.overlap(area.span).is_some() { Fate::Taken } else { Fate::Retired })
    }

    /// Retires every area whose user is not the one that it was taken for.
    fn retire_departed(&mut self) -> Result<(), IdError> {
        let departed = |area: &&Area| {
            area.is_usable() && self.accounts.presence(area.account, area.user.as_deref()) != Presence::Same
        };
        let areas: Vec<Area> = self.index.areas().filter(departed).cloned().collect();
        for mut area in areas {
            tracing::warn!(
                target: "ids", account = area.account.0, ids = %area.span, user = area.user,
                "the user is gone or was renamed; these ids are not given out again"
            );
            area.retired = true;
            // Whether one with another name is somebody else or was renamed, nobody can tell; nor, where users are known elsewhere
            // too, whether one who is missing is gone. Files are removed of those only who are gone for certain.
            let presence = self.accounts.presence(area.account, area.user.as_deref());
            let is_gone = presence == Presence::Missing && self.accounts.is_complete();
            area.removal = match area.removal {
                Removal::Wanted if is_gone => Removal::Due { failures: 0 },
                _ => Removal::No,
            };
            self.write(area)?;
        }
        Ok(())
    }
}

/// As the protocol writes it.
pub fn wire_range(range: IdRange) -> Range {
    Range { uid: range.uid().0, gid: range.gid().0, count: range.count() }
}

#[cfg(test)]
mod tests;
