//! The host numbers of one bridge's network: which link has which, and which is kept for a link that is not there. No I/O.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv6Addr,
    ops::RangeInclusive,
};

use cgrant_wire::GrantId;
use serde::{Deserialize, Serialize};

/// Whose a number is: it stays with the name of container and link.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// The account.
    pub account: u32,
    /// The grant's name.
    pub grant: String,
    /// The link's name in it.
    pub link: String,
}

/// A number that is somebody's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Whose.
    pub owner: Owner,
    /// An IPv6 address beside the one that follows from the number.
    pub address6: Option<Ipv6Addr>,
    /// When it was given: numbers given earlier have smaller ones.
    pub serial: u64,
    /// The live grant that uses it.
    pub user: Option<GrantId>,
    /// Does it stay when the grant ends?
    pub kept: bool,
    /// When it was last used, in ends of use.
    pub freed: u64,
}

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Wish {
    /// For whom.
    pub owner: Owner,
    /// The grant that will use it.
    pub user: GrantId,
    /// The numbers to choose from.
    pub span: RangeInclusive<u32>,
    /// One of them that is somebody else's in the network, the gateway's say.
    pub excluded: Vec<u32>,
    /// It must be this one.
    pub fixed: Option<u32>,
    /// An IPv6 address that it must have.
    pub address6: Option<Ipv6Addr>,
    /// Where to begin to look, so that numbers are seldom given again soon.
    pub start: u128,
    /// Does it stay when the grant ends?
    pub kept: bool,
    /// May it take one that is kept for another?
    pub evicts: bool,
}

/// Why a number was not given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The number is somebody's.
    Number,
    /// The number is outside of those that are given out.
    Outside,
    /// The IPv6 address is somebody's.
    Address6,
    /// The same container has the link already.
    InUse,
    /// All are in use.
    Full,
}

/// What was given, and what that did to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Given {
    /// The number.
    pub number: u32,
    /// Was it not the owner's before?
    pub new: bool,
    /// Numbers that were kept and are not any more.
    pub evicted: Vec<u32>,
}

/// The numbers of a bridge.
#[derive(Debug, Default)]
pub struct Pool {
    entries: BTreeMap<u32, Entry>,
    owners: HashMap<Owner, u32>,
}

impl Pool {
    /// Puts in what a file says. Of two that contradict each other the first stays.
    pub fn load(&mut self, number: u32, entry: Entry) -> bool {
        if self.entries.contains_key(&number) || self.owners.contains_key(&entry.owner) {
            return false;
        }
        self.owners.insert(entry.owner.clone(), number);
        self.entries.insert(number, entry);
        true
    }

    /// The entry of a number.
    pub fn get(&self, number: u32) -> Option<&Entry> {
        self.entries.get(&number)
    }

    /// The number that is this owner's.
    pub fn of(&self, owner: &Owner) -> Option<u32> {
        self.owners.get(owner).copied()
    }

    /// All of them.
    pub fn entries(&self) -> impl Iterator<Item = (u32, &Entry)> {
        self.entries.iter().map(|(number, entry)| (*number, entry))
    }

    /// How many live links have one.
    pub fn in_use(&self) -> usize {
        self.entries.values().filter(|entry| entry.user.is_some()).count()
    }

    /// Gives the number to whoever wishes: the one that is its already, or the fixed one, or a free one, or the one that its
    /// owner has not used for longest, of the account that keeps most.
    ///
    /// # Errors
    /// [`Taken`]; nothing has changed then.
    pub fn give(&mut self, wish: &Wish, serial: u64) -> Result<Given, Taken> {
        let before = self.of(&wish.owner);
        if before.and_then(|number| self.get(number)).is_some_and(|entry| entry.user.is_some()) {
            return Err(Taken::InUse);
        }
        if let Some(address) = wish.address6
            && self.entries.values().any(|e| e.address6 == Some(address) && e.owner != wish.owner)
        {
            return Err(Taken::Address6);
        }
        let usable = |number: u32| wish.span.contains(&number) && !wish.excluded.contains(&number);
        let mut evicted = Vec::new();
        let number = match (wish.fixed, before) {
            (Some(fixed), _) if !usable(fixed) => return Err(Taken::Outside),
            (Some(fixed), _) => match self.get(fixed) {
                Some(entry) if entry.owner == wish.owner => fixed,
                // One that is kept for another container of the same account, and not in use, may move.
                Some(entry) if entry.owner.account == wish.owner.account && entry.user.is_none() => {
                    evicted.push(fixed);
                    fixed
                }
                Some(_) => return Err(Taken::Number),
                None => fixed,
            },
            (None, Some(number)) if usable(number) => number,
            (None, _) => match self.free(wish) {
                Some(free) => free,
                None => {
                    let oldest = self.oldest_unused(&wish.span).filter(|_| wish.evicts).ok_or(Taken::Full)?;
                    evicted.push(oldest);
                    oldest
                }
            },
        };
        evicted.extend(before.filter(|before| *before != number));
        for number in &evicted {
            self.remove(*number);
        }
        let new = self.get(number).is_none();
        let address6 = wish.address6.or_else(|| self.get(number).and_then(|entry| entry.address6));
        let serial = self.get(number).map_or(serial, |entry| entry.serial);
        let entry = Entry {
            owner: wish.owner.clone(),
            address6,
            serial,
            user: Some(wish.user),
            kept: wish.kept,
            freed: 0,
        };
        self.owners.insert(wish.owner.clone(), number);
        let changed = self.entries.insert(number, entry).is_none_or(|old| old.address6 != address6);
        Ok(Given { number, new: new || changed, evicted })
    }

    fn free(&self, wish: &Wish) -> Option<u32> {
        let (first, last) = (*wish.span.start(), *wish.span.end());
        let count = last.checked_sub(first)?.checked_add(1)?;
        let start = u32::try_from(wish.start % u128::from(count)).ok()?;
        (0..count)
            .map(|step| first + (start + step) % count)
            .find(|number| !self.entries.contains_key(number) && !wish.excluded.contains(number))
    }

    /// The number that has been unused for longest, of the account that keeps most unused ones: who fills the pool with names
    /// takes from itself.
    fn oldest_unused(&self, span: &RangeInclusive<u32>) -> Option<u32> {
        let unused = || self.entries.range(span.clone()).filter(|(_, entry)| entry.user.is_none());
        let mut kept: HashMap<u32, usize> = HashMap::new();
        for (_, entry) in unused() {
            *kept.entry(entry.owner.account).or_default() += 1;
        }
        let most = kept.values().copied().max()?;
        unused()
            .filter(|(_, entry)| kept.get(&entry.owner.account) == Some(&most))
            .min_by_key(|(_, entry)| (entry.freed, entry.serial))
            .map(|(number, _)| *number)
    }

    /// The account's number that has been unused for longest, and since when.
    pub fn oldest_of(&self, account: u32) -> Option<(u64, u32)> {
        self.entries
            .iter()
            .filter(|(_, entry)| entry.owner.account == account && entry.user.is_none())
            .map(|(number, entry)| (entry.freed, *number))
            .min()
    }

    /// The grant uses the number no more. `Some(true)` if it is kept for its owner, `Some(false)` if it is free.
    pub fn free_up(&mut self, number: u32, user: GrantId, clock: u64) -> Option<bool> {
        let entry = self.entries.get_mut(&number).filter(|entry| entry.user == Some(user))?;
        (entry.user, entry.freed) = (None, clock);
        let kept = entry.kept;
        if !kept {
            self.remove(number);
        }
        Some(kept)
    }

    /// Forgets a number.
    pub fn remove(&mut self, number: u32) -> Option<Entry> {
        let entry = self.entries.remove(&number)?;
        self.owners.remove(&entry.owner);
        Some(entry)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn owner(account: u32, grant: &str) -> Owner {
        Owner { account, grant: grant.to_owned(), link: "eth0".to_owned() }
    }

    fn wish(account: u32, grant: &str, user: u64) -> Wish {
        Wish {
            owner: owner(account, grant),
            user: GrantId(user),
            span: 16..=19,
            excluded: vec![17],
            fixed: None,
            address6: None,
            start: u128::from(user),
            kept: true,
            evicts: true,
        }
    }

    #[test]
    fn a_container_has_the_same_number_again() {
        let mut pool = Pool::default();
        let first = pool.give(&wish(1, "web", 5), 1).unwrap();
        assert!(first.new && first.evicted.is_empty());
        assert_eq!(pool.give(&wish(1, "web", 6), 2), Err(Taken::InUse));
        assert_eq!(pool.free_up(first.number, GrantId(6), 1), None, "another grant's");
        assert_eq!(pool.free_up(first.number, GrantId(5), 1), Some(true));
        let again = pool.give(&wish(1, "web", 9), 3).unwrap();
        assert_eq!((again.number, again.new), (first.number, false));
        assert_eq!(pool.get(first.number).unwrap().serial, 1);
    }

    #[test]
    fn what_is_not_kept_is_free_afterwards() {
        let mut pool = Pool::default();
        let given = pool.give(&Wish { kept: false, ..wish(1, "g1", 5) }, 1).unwrap();
        assert_eq!(pool.free_up(given.number, GrantId(5), 1), Some(false));
        assert!(pool.entries().next().is_none() && pool.of(&owner(1, "g1")).is_none());
    }

    #[test]
    fn a_full_pool_takes_from_who_keeps_most() {
        let mut pool = Pool::default();
        // 16, 18 and 19 are there; account 1 has two of them.
        for (n, (account, name)) in [(1, "a"), (1, "b"), (2, "c")].into_iter().enumerate() {
            let given = pool.give(&wish(account, name, n as u64), n as u64).unwrap();
            assert_ne!(given.number, 17);
            assert_eq!(pool.give(&wish(3, "x", 99), 9).is_err(), n == 2);
            if let Some(number) = pool.of(&owner(3, "x")) {
                pool.remove(number);
            }
        }
        let (a, b, c) = (
            pool.of(&owner(1, "a")).unwrap(),
            pool.of(&owner(1, "b")).unwrap(),
            pool.of(&owner(2, "c")).unwrap(),
        );
        pool.free_up(c, GrantId(2), 1);
        pool.free_up(b, GrantId(1), 2);
        pool.free_up(a, GrantId(0), 3);
        // Who may not take what is another's does not, kept by the same account or not.
        for account in [1, 3] {
            let inside = Wish { evicts: false, kept: false, ..wish(account, "one/x", 98) };
            assert_eq!(pool.give(&inside, 8), Err(Taken::Full));
        }
        let given = pool.give(&wish(3, "x", 50), 10).unwrap();
        assert_eq!((given.number, given.evicted), (b, vec![b]), "the oldest of account 1, not of account 2");
        assert!(pool.of(&owner(2, "c")).is_some());
    }

    #[test]
    fn fixed_numbers_are_given_or_refused() {
        let mut pool = Pool::default();
        let fixed = |number, account, name, user| Wish { fixed: Some(number), ..wish(account, name, user) };
        assert_eq!(pool.give(&fixed(17, 1, "a", 1), 1), Err(Taken::Outside));
        assert_eq!(pool.give(&fixed(20, 1, "a", 1), 1), Err(Taken::Outside));
        assert_eq!(pool.give(&fixed(18, 1, "a", 1), 1).unwrap().number, 18);
        assert_eq!(pool.give(&fixed(18, 2, "b", 2), 2), Err(Taken::Number));
        pool.free_up(18, GrantId(1), 1);
        assert_eq!(pool.give(&fixed(18, 2, "b", 2), 2), Err(Taken::Number), "kept for another account");
        assert_eq!(pool.give(&fixed(18, 1, "b", 2), 2).unwrap().evicted, [18], "kept for the same account");
        pool.free_up(18, GrantId(2), 1);
        let moved = pool.give(&fixed(19, 1, "b", 3), 3).unwrap();
        assert_eq!((moved.number, moved.evicted), (19, vec![18]));
        let address6 = Some("fd00::1:0:0:1".parse().unwrap());
        assert!(pool.give(&Wish { address6, ..wish(1, "c", 4) }, 4).is_ok());
        assert_eq!(pool.give(&Wish { address6, ..wish(2, "d", 5) }, 5), Err(Taken::Address6));
    }

    proptest! {
        #[test]
        fn nobody_ever_has_what_another_has(steps in prop::collection::vec((0_u32..3, 0_u8..6, any::<bool>(), prop::option::of(14_u32..24)), 1..80)) {
            let (mut pool, mut live) = (Pool::default(), HashMap::new());
            for (step, (account, name, kept, fixed)) in steps.into_iter().enumerate() {
                let user = GrantId(step as u64);
                let wanted = Wish { span: 16..=22, kept, fixed, ..wish(account, &name.to_string(), user.0) };
                match pool.give(&wanted, step as u64) {
                    Ok(given) => {
                        prop_assert!((16..=22).contains(&given.number) && given.number != 17);
                        prop_assert!(fixed.is_none_or(|fixed| fixed == given.number));
                        prop_assert!(live.insert(given.number, user).is_none(), "in use already");
                    }
                    Err(_) => {
                        if let Some((number, user)) = live.iter().next().map(|(n, u)| (*n, *u)) {
                            live.remove(&number);
                            prop_assert!(pool.free_up(number, user, step as u64).is_some());
                        }
                    }
                }
                prop_assert_eq!(pool.in_use(), live.len());
                prop_assert_eq!(pool.entries().count(), pool.owners.len());
            }
        }
    }
}
