//! Telling what accounts use, when it has changed.
//!
//! Whoever changes something says so with [`touch`](Engine::touch); the account is looked at a moment later, in its own order, and
//! what is not as it was told last is told. However much an account does, it is looked at twice a second, and nobody is told of others'.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cgrant_policy::{HostUid, Resource, UsageNow};
use cgrant_wire::Event;

use crate::{engine::Engine, watch::Target};

/// From the first change to the look.
const PAUSE: Duration = Duration::from_millis(500);

/// What was told of an account.
#[derive(Debug, Default)]
struct Told {
    usage: UsageNow,
    /// Is it to be looked at soon?
    due: bool,
}

/// What was told of the accounts that have something.
#[derive(Debug, Default)]
pub struct Usages(Mutex<HashMap<HostUid, Told>>);

impl Usages {
    fn lock(&self) -> MutexGuard<'_, HashMap<HostUid, Told>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something of the account's has changed: is a look at it to be ordered?
    fn touch(&self, account: HostUid) -> bool {
        !std::mem::replace(&mut self.lock().entry(account).or_default().due, true)
    }

    /// Nobody looks at the account.
    fn not_due(&self, account: HostUid) {
        if let Some(told) = self.lock().get_mut(&account) {
            told.due = false;
        }
    }

    /// The account uses this now: is it news?
    fn update(&self, account: HostUid, now: &UsageNow) -> bool {
        // Asking is a request: if that were news, whoever asks at each piece of news would never stop.
        // And so would be the time that goes by.
        let now = UsageNow { requests: 0, requests_per_second: 0, disk_age: 0, ..*now };
        let mut all = self.lock();
        let is_idle = now == UsageNow::default();
        let Some(told) = all.get_mut(&account) else { return !is_idle };
        let is_news = told.usage != now;
        told.usage = now;
        if is_idle && !told.due {
            all.remove(&account);
        }
        is_news
    }
}

impl Engine {
    /// What the account uses may have changed.
    pub fn touch(&self, account: HostUid) {
        if self.usages.touch(account)
            && let Err(error) = self.watches.after(PAUSE, |watch| Target::Usage(account, watch))
        {
            tracing::warn!(%error, "no timer for the usage of an account");
            self.usages.not_due(account);
        }
    }

    /// Looks at what the account uses, and tells what is new. Runs on the pool, in the account's order.
    pub fn look_at_usage(&self, account: HostUid) {
        // First, so that what changes from now on is looked at again.
        self.usages.not_due(account);
        let usage = self.usage(account);
        if self.usages.update(account, &usage) {
            self.tell(Event::Usage { account: account.0, usage: rows(&usage) });
        }
    }

    /// Every account that has a connection, a grant, ids or files of them, by its number.
    pub fn accounts(&self) -> Vec<HostUid> {
        let mut accounts = self.ids.accounts();
        accounts.extend(self.ids.holders_of(self.disk.blocks()));
        accounts.extend(self.registry().accounts());
        accounts.extend(self.connections().accounts());
        accounts.extend(self.ledger.accounts());
        accounts.sort_unstable();
        accounts.dedup();
        accounts
    }
}

fn rows(usage: &UsageNow) -> Vec<(String, u64)> {
    Resource::ALL.into_iter().map(|resource| (resource.name().to_owned(), resource.used(usage))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: HostUid = HostUid(1000);

    #[test]
    fn an_account_is_looked_at_once_for_all_that_changes_meanwhile() {
        let usages = Usages::default();
        assert_eq!([usages.touch(ACCOUNT), usages.touch(ACCOUNT)], [true, false]);
        assert!(usages.touch(HostUid(1001)), "each has its own look");
        usages.not_due(ACCOUNT);
        assert!(usages.touch(ACCOUNT));
    }

    #[test]
    fn requests_are_no_news_and_accounts_without_anything_are_forgotten() {
        let usages = Usages::default();
        usages.touch(ACCOUNT);
        let one = UsageNow { grants: 1, ..UsageNow::default() };
        assert!(usages.update(ACCOUNT, &one));
        assert!(
            !usages.update(ACCOUNT, &UsageNow { requests: 5, requests_per_second: 7, disk_age: 9, ..one })
        );
        assert!(usages.update(ACCOUNT, &UsageNow { disk: 4096, ..one }));
        assert!(usages.update(ACCOUNT, &UsageNow { cgroups: 3, ..one }));
        usages.not_due(ACCOUNT);
        assert!(usages.update(ACCOUNT, &UsageNow { requests: 1, ..UsageNow::default() }));
        assert!(usages.lock().is_empty());
    }
}
