//! Addresses of links: stable by account, container and link, kept on disk, never two alike on a bridge.
//!
//! A bridge's network may change (when it clashes with one of the host's); what is kept is the host number in it, from
//! which IPv4 and IPv6 address follow. Touches only `network/` in the state directory.

pub mod names;
mod pool;
pub mod secret;
mod store;

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::Ipv6Addr,
    ops::RangeInclusive,
    sync::{Mutex, MutexGuard, PoisonError},
};

use cgrant_sys::Dir;
use cgrant_wire::GrantId;

pub use self::{
    pool::{Owner, Taken},
    secret::Secret,
    store::Networks,
};
use self::{
    pool::{Pool, Wish},
    store::Store,
};

/// A number that is asked for.
#[derive(Debug, Clone)]
pub struct Request<'a> {
    /// On which bridge.
    pub bridge: &'a str,
    /// For whom.
    pub owner: Owner,
    /// The grant that will use it.
    pub user: GrantId,
    /// The numbers to choose from.
    pub span: RangeInclusive<u32>,
    /// Numbers among them that others have.
    pub excluded: Vec<u32>,
    /// It must be this one.
    pub fixed: Option<u32>,
    /// An IPv6 address that it must have instead of the one that follows from the number.
    pub address6: Option<Ipv6Addr>,
    /// Does it stay the container's when the grant ends? Not where the engine made up the name.
    pub kept: bool,
    /// May it take a number that is kept for another container, where none is free or the account may have no more? Not from inside a
    /// container, where whoever makes names up could come to have any address of another one's that way.
    pub evicts: bool,
    /// How many the account may have.
    pub quota: u64,
}

/// A number that was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserved {
    /// The number.
    pub number: u32,
    /// An IPv6 address instead of the one that follows from the number.
    pub address6: Option<Ipv6Addr>,
    /// Was it not the container's before?
    pub new: bool,
}

/// Why a number was not given.
#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    /// The account has as many as it may, and all are in use.
    #[error("the account has {used} of at most {quota} addresses, and all are in use")]
    Quota {
        /// How many it may have.
        quota: u64,
        /// How many it has.
        used: u64,
    },
    /// Somebody else's, or none left.
    #[error("the address can't be given: {0:?}")]
    Taken(Taken),
    /// The file can't be written.
    #[error("the record of addresses: {0}")]
    Io(#[from] io::Error),
}

#[derive(Default)]
struct Inner {
    bridges: HashMap<String, Pool>,
    networks: BTreeMap<String, Networks>,
    /// How many each account has.
    counts: HashMap<u32, u64>,
    serial: u64,
    clock: u64,
    /// The names of the accounts' users when they got their first numbers.
    users: BTreeMap<u32, String>,
}

impl Inner {
    fn uncount(&mut self, account: u32) {
        if let Some(count) = self.counts.get_mut(&account) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.counts.remove(&account);
            }
        }
    }

    fn recount(&mut self) {
        self.counts.clear();
        for pool in self.bridges.values() {
            for (_, entry) in pool.entries() {
                *self.counts.entry(entry.owner.account).or_default() += 1;
            }
        }
    }
}

/// Who has which address.
pub struct Addresses {
    secret: Secret,
    store: Store,
    inner: Mutex<Inner>,
}

impl Addresses {
    /// Reads what is kept in the instance's state directory.
    ///
    /// # Errors
    /// If it can't be read, or the secret not be made.
    pub fn open(state: &Dir) -> io::Result<Self> {
        let store = Store::open(state)?;
        let secret = Secret::open(store.directory())?;
        let mut inner = Inner { networks: store.networks()?, users: store.users()?, ..Inner::default() };
        for loaded in store.load()? {
            inner.serial = inner.serial.max(loaded.entry.serial);
            let (pool, number) = (inner.bridges.entry(loaded.bridge.clone()).or_default(), loaded.number);
            if !pool.load(number, loaded.entry) {
                store.drop(&loaded.bridge, number);
            }
        }
        inner.recount();
        Ok(Self { secret, store, inner: Mutex::new(inner) })
    }

    /// The instance's secret.
    pub fn secret(&self) -> &Secret {
        &self.secret
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes whose the account is, if it has no number yet. Without a name nobody can be said to have left.
    pub fn note_user(&self, account: u32, name: Option<String>) {
        let mut inner = self.inner();
        let Some(name) = name.filter(|_| !inner.users.contains_key(&account)) else { return };
        inner.users.insert(account, name);
        self.save_users(&inner);
    }

    /// Forgets all numbers that are kept for users who left, but for those in use: false if there are such. `departed` says of
    /// an account and the name of its user whether that one is gone.
    ///
    /// An attacker wants the addresses and names of somebody before him, whose uid he was given.
    pub fn forget_departed(&self, departed: &dyn Fn(u32, Option<&str>) -> bool) -> bool {
        let mut inner = self.inner();
        let mut all = true;
        let is_gone = |(account, name): &(&u32, &String)| departed(**account, Some(name));
        let gone: Vec<u32> = inner.users.iter().filter(is_gone).map(|(account, _)| *account).collect();
        for account in gone {
            for (bridge, pool) in &mut inner.bridges {
                while let Some((_, number)) = pool.oldest_of(account) {
                    pool.remove(number);
                    self.store.drop(bridge, number);
                }
            }
            inner.recount();
            // What is in use is looked at when it is not any more.
            if inner.counts.contains_key(&account) {
                all = false;
                continue;
            }
            let name = inner.users.remove(&account);
            tracing::info!(account, user = name, "the user is gone; the addresses that were kept are free");
            self.save_users(&inner);
        }
        all
    }

    fn save_users(&self, inner: &Inner) {
        if let Err(error) = self.store.set_users(&inner.users) {
            tracing::warn!(%error, "whose addresses are kept can't be written down");
        }
    }

    /// How many addresses the account has, in use or kept.
    pub fn used(&self, account: u32) -> u64 {
        self.inner().counts.get(&account).copied().unwrap_or(0)
    }

    /// How many live links have an address on the bridge.
    pub fn in_use(&self, bridge: &str) -> usize {
        self.inner().bridges.get(bridge).map_or(0, Pool::in_use)
    }

    /// The networks that an own bridge had last.
    pub fn networks(&self, bridge: &str) -> Networks {
        self.inner().networks.get(bridge).copied().unwrap_or_default()
    }

    /// Those of all other own bridges that have live links.
    pub fn other_networks(&self, bridge: &str) -> Vec<Networks> {
        let inner = self.inner();
        let used = |name: &str| inner.bridges.get(name).is_some_and(|pool| pool.in_use() > 0);
        let others = inner.networks.iter().filter(|(name, _)| *name != bridge && used(name));
        others.map(|(_, networks)| *networks).collect()
    }

    /// Notes the networks of an own bridge.
    ///
    /// # Errors
    /// If the file can't be written; nothing has changed then.
    pub fn set_networks(&self, bridge: &str, networks: Networks) -> io::Result<()> {
        let mut inner = self.inner();
        if inner.networks.get(bridge) == Some(&networks) {
            return Ok(());
        }
        let mut all = inner.networks.clone();
        all.insert(bridge.to_owned(), networks);
        self.store.set_networks(&all)?;
        inner.networks = all;
        Ok(())
    }

    /// Gives a number: the one that the container had before, if it had one.
    ///
    /// An attacker wants the address of another's container, or all there are. A number that is kept for another account is
    /// given only when none is free, and then one of the account that keeps most; how many an account keeps is bounded.
    ///
    /// # Errors
    /// [`AddressError`]; nothing has changed then.
    pub fn reserve(&self, request: &Request<'_>) -> Result<Reserved, AddressError> {
        let mut inner = self.inner();
        let account = request.owner.account;
        let known = inner.bridges.get(request.bridge).is_some_and(|pool| pool.of(&request.owner).is_some());
        if !known {
            self.make_room(&mut inner, account, request.quota, request.evicts)?;
        }
        let serial = inner.serial + 1;
        let start = self.secret.hash(&[
            b"number",
            request.bridge.as_bytes(),
            &account.to_be_bytes(),
            request.owner.grant.as_bytes(),
            request.owner.link.as_bytes(),
        ]);
        let wish = Wish {
            owner: request.owner.clone(),
            user: request.user,
            span: request.span.clone(),
            excluded: request.excluded.clone(),
            fixed: request.fixed,
            address6: request.address6,
            start,
            kept: request.kept,
            evicts: request.evicts,
        };
        let pool = inner.bridges.entry(request.bridge.to_owned()).or_default();
        let given = pool.give(&wish, serial).map_err(AddressError::Taken)?;
        let entry = pool.get(given.number).cloned();
        let address6 = entry.as_ref().and_then(|entry| entry.address6);
        let written = match &entry {
            Some(entry) if entry.kept && given.new => self.store.keep(request.bridge, given.number, entry),
            _ => Ok(()),
        };
        for number in given.evicted.iter().filter(|number| **number != given.number || !request.kept) {
            self.store.drop(request.bridge, *number);
        }
        inner.serial = serial;
        if let Err(error) = written {
            inner.bridges.entry(request.bridge.to_owned()).or_default().remove(given.number);
            inner.recount();
            return Err(error.into());
        }
        if !given.evicted.is_empty() {
            inner.recount();
        } else if !known {
            *inner.counts.entry(account).or_default() += 1;
        }
        Ok(Reserved { number: given.number, address6, new: !known })
    }

    /// Forgets the account's number that has been unused for longest, if it may have no more.
    fn make_room(
        &self,
        inner: &mut Inner,
        account: u32,
        quota: u64,
        evicts: bool,
    ) -> Result<(), AddressError> {
        let used = inner.counts.get(&account).copied().unwrap_or(0);
        if used < quota {
            return Ok(());
        }
        let oldest = inner
            .bridges
            .iter()
            .filter_map(|(bridge, pool)| pool.oldest_of(account).map(|found| (found, bridge.clone())))
            .min()
            .filter(|_| evicts);
        let ((_, number), bridge) = oldest.ok_or(AddressError::Quota { quota, used })?;
        if let Some(pool) = inner.bridges.get_mut(&bridge) {
            pool.remove(number);
        }
        inner.uncount(account);
        self.store.drop(&bridge, number);
        Ok(())
    }

    /// A grant that was there before the engine started uses this number.
    pub fn adopt(
        &self,
        bridge: &str,
        owner: &Owner,
        number: u32,
        address6: Option<Ipv6Addr>,
        user: GrantId,
        kept: bool,
    ) {
        let mut inner = self.inner();
        let serial = inner.serial + 1;
        let wish = Wish {
            owner: owner.clone(),
            user,
            span: number..=number,
            excluded: Vec::new(),
            fixed: Some(number),
            address6,
            start: 0,
            kept,
            evicts: false,
        };
        let pool = inner.bridges.entry(bridge.to_owned()).or_default();
        // What the kernel has counts for more than what a file says.
        if pool.get(number).is_some_and(|entry| entry.owner != *owner && entry.user.is_none()) {
            pool.remove(number);
        }
        match pool.give(&wish, serial) {
            Ok(given) => {
                let entry = pool.get(number).cloned();
                if let Some(entry) = entry.filter(|_| kept && given.new)
                    && let Err(error) = self.store.keep(bridge, number, &entry)
                {
                    tracing::warn!(%error, bridge, number, "an address in use is not kept");
                }
                for other in given.evicted.iter().filter(|other| **other != number) {
                    self.store.drop(bridge, *other);
                }
            }
            Err(taken) => {
                tracing::error!(?taken, bridge, number, grant = %user, "two links have one address")
            }
        }
        inner.serial = serial;
        inner.recount();
    }

    /// The grant's link uses its number no more.
    pub fn free(&self, bridge: &str, owner: &Owner, user: GrantId) {
        let mut inner = self.inner();
        inner.clock += 1;
        let clock = inner.clock;
        let Some(pool) = inner.bridges.get_mut(bridge) else { return };
        let Some(number) = pool.of(owner) else { return };
        if pool.free_up(number, user, clock) == Some(false) {
            inner.uncount(owner.account);
        }
    }

    /// Forgets a number that a link was to have which did not come to be.
    pub fn forget(&self, bridge: &str, owner: &Owner, user: GrantId) {
        let mut inner = self.inner();
        let Some(pool) = inner.bridges.get_mut(bridge) else { return };
        let number = pool.of(owner).filter(|number| pool.get(*number).is_some_and(|e| e.user == Some(user)));
        let Some(entry) = number.and_then(|number| pool.remove(number)) else { return };
        inner.uncount(owner.account);
        if let Some(number) = number.filter(|_| entry.kept) {
            self.store.drop(bridge, number);
        }
    }

    /// The account that a container's name without a suffix leads to on a bridge: the one that had the name first.
    pub fn owner_of_name(&self, bridge: &str, label: &str) -> Option<u32> {
        let inner = self.inner();
        let pool = inner.bridges.get(bridge)?;
        let named = pool.entries().filter(|(_, entry)| entry.owner.grant.eq_ignore_ascii_case(label));
        named.min_by_key(|(_, entry)| entry.serial).map(|(_, entry)| entry.owner.account)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn open(path: &std::path::Path) -> Addresses {
        Addresses::open(&Dir::open(path).unwrap()).unwrap()
    }

    fn owner(account: u32, grant: &str) -> Owner {
        Owner { account, grant: grant.to_owned(), link: "eth0".to_owned() }
    }

    fn request(account: u32, grant: &str, user: u64) -> Request<'static> {
        Request {
            bridge: "default",
            owner: owner(account, grant),
            user: GrantId(user),
            span: 16..=1022,
            excluded: Vec::new(),
            fixed: None,
            address6: None,
            kept: true,
            evicts: true,
            quota: 3,
        }
    }

    #[test]
    fn addresses_survive_a_restart() {
        let base = tempfile::tempdir().unwrap();
        let addresses = open(base.path());
        let web = addresses.reserve(&request(1, "web", 1)).unwrap();
        let address6 = Some("fd00::1:0:0:1".parse().unwrap());
        let db = addresses.reserve(&Request { address6, ..request(1, "db", 2) }).unwrap();
        addresses.reserve(&Request { kept: false, ..request(1, "g1", 3) }).unwrap();
        assert_eq!((addresses.used(1), addresses.in_use("default")), (3, 3));
        let networks = Networks { subnet4: Some("10.3.4.0/22".parse().unwrap()), subnet6: None };
        addresses.set_networks("default", networks).unwrap();
        let addresses = open(base.path());
        assert_eq!((addresses.used(1), addresses.in_use("default")), (2, 0), "one was not to be kept");
        assert_eq!(addresses.networks("default"), networks);
        let again = |name| addresses.reserve(&request(1, name, 9)).unwrap();
        assert_eq!(again("web"), Reserved { new: false, ..web });
        assert_eq!(again("db"), Reserved { new: false, ..db });
        assert_eq!(addresses.owner_of_name("default", "web"), Some(1));
        // What leads to the same place is the same name: whoever comes later has it not.
        addresses.reserve(&request(1, "my-app", 10)).unwrap();
        addresses.reserve(&request(2, "My_App", 11)).unwrap();
        assert_eq!(addresses.owner_of_name("default", "my-app"), Some(1));
    }

    #[test]
    fn an_account_at_its_quota_gives_up_what_it_has_not_used_for_longest() {
        let base = tempfile::tempdir().unwrap();
        let addresses = open(base.path());
        for (n, name) in ["a", "b", "c"].into_iter().enumerate() {
            addresses.reserve(&request(1, name, n as u64)).unwrap();
        }
        let full = addresses.reserve(&request(1, "d", 7));
        assert!(matches!(full, Err(AddressError::Quota { quota: 3, used: 3 })), "{full:?}");
        addresses.free("default", &owner(1, "b"), GrantId(1));
        addresses.free("default", &owner(1, "a"), GrantId(0));
        addresses.reserve(&request(1, "d", 7)).unwrap();
        assert_eq!(addresses.used(1), 3);
        let left = |name| {
            base.path().join("network/kept/default").read_dir().unwrap().any(|file| {
                std::fs::read_to_string(file.unwrap().path()).unwrap().contains(&format!("\"{name}\""))
            })
        };
        assert!(left("a") && !left("b") && left("c") && left("d"));
        assert!(addresses.reserve(&request(2, "x", 8)).is_ok(), "others are not concerned");
    }

    #[test]
    fn the_first_to_have_a_name_owns_it_until_it_is_forgotten() {
        let base = tempfile::tempdir().unwrap();
        let addresses = open(base.path());
        addresses.reserve(&request(7, "web", 1)).unwrap();
        addresses.reserve(&request(8, "web", 2)).unwrap();
        assert_eq!(addresses.owner_of_name("default", "web"), Some(7));
        addresses.free("default", &owner(7, "web"), GrantId(1));
        assert_eq!(addresses.owner_of_name("default", "web"), Some(7));
        assert_eq!(addresses.owner_of_name("lan", "web"), None);
    }

    #[test]
    fn what_runs_counts_for_more_than_what_is_written() {
        let base = tempfile::tempdir().unwrap();
        let addresses = open(base.path());
        let web = addresses.reserve(&request(1, "web", 1)).unwrap();
        let addresses = open(base.path());
        addresses.adopt("default", &owner(2, "other"), web.number, None, GrantId(5), true);
        assert_eq!((addresses.used(1), addresses.used(2)), (0, 1));
        assert_ne!(addresses.reserve(&request(1, "web", 9)).unwrap().number, web.number);
    }

    #[test]
    fn what_did_not_come_to_be_leaves_nothing() {
        let base = tempfile::tempdir().unwrap();
        let addresses = open(base.path());
        assert!(addresses.reserve(&request(1, "web", 1)).unwrap().new);
        addresses.forget("default", &owner(1, "web"), GrantId(2));
        assert_eq!(addresses.used(1), 1, "another grant's");
        addresses.forget("default", &owner(1, "web"), GrantId(1));
        assert_eq!(addresses.used(1), 0);
        assert_eq!(base.path().join("network/kept/default").read_dir().unwrap().count(), 0);
    }

    #[test]
    fn nothing_is_kept_for_who_left() {
        let base = tempfile::tempdir().unwrap();
        let addresses = open(base.path());
        for (account, name) in [(1, "alice"), (2, "bob")] {
            addresses.note_user(account, Some(name.to_owned()));
            addresses.reserve(&request(account, "web", u64::from(account))).unwrap();
            addresses.reserve(&request(account, "db", 10 + u64::from(account))).unwrap();
        }
        addresses.note_user(1, Some("mallory".to_owned()));
        addresses.free("default", &owner(1, "db"), GrantId(11));
        addresses.free("default", &owner(2, "db"), GrantId(12));
        let addresses = open(base.path());
        addresses.adopt(
            "default",
            &owner(1, "web"),
            addresses_of(&addresses, 1, "web"),
            None,
            GrantId(1),
            true,
        );
        let departed = |account, name: Option<&str>| (account, name) == (1, Some("alice"));
        assert!(!addresses.forget_departed(&departed));
        assert_eq!((addresses.used(1), addresses.used(2)), (1, 2), "but what is in use");
        addresses.free("default", &owner(1, "web"), GrantId(1));
        assert!(addresses.forget_departed(&departed));
        assert_eq!((addresses.used(1), addresses.used(2)), (0, 2));
        let kept = base.path().join("network/kept/default").read_dir().unwrap().count();
        assert_eq!(kept, 2);
        // The uid is somebody else's now, who stays.
        addresses.note_user(1, Some("mallory".to_owned()));
        addresses.reserve(&request(1, "web", 20)).unwrap();
        let addresses = open(base.path());
        assert!(addresses.forget_departed(&departed));
        assert_eq!(addresses.used(1), 1);
    }

    fn addresses_of(addresses: &Addresses, account: u32, grant: &str) -> u32 {
        addresses.inner().bridges["default"].of(&owner(account, grant)).unwrap()
    }

    #[test]
    fn a_damaged_file_is_removed() {
        let base = tempfile::tempdir().unwrap();
        open(base.path()).reserve(&request(1, "web", 1)).unwrap();
        let directory = base.path().join("network/kept/default");
        std::fs::write(directory.join("99.json"), "{").unwrap();
        std::fs::write(directory.join("x"), "").unwrap();
        assert_eq!(open(base.path()).used(1), 1);
        assert_eq!(directory.read_dir().unwrap().count(), 1);
    }
}
