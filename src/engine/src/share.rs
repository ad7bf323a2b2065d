//! What ordinary users of containers take of their account's connections and requests, of which its roots must have some left. No I/O.
//!
//! An attacker in a container wants nobody else there, and not the account on the host either, to get through to the broker: its
//! connections are the account's, and it may open as many. One such user has at most a quarter of what the quota allows,
//! and all of an account's together at most half, whether they are served or not. What a container's root takes, the account itself has let run.

use std::collections::HashMap;

use cgrant_policy::HostUid;

/// What part of a quota all ordinary users have together, and one of them, as divisors.
const ALL: u64 = 2;
const ONE: u64 = 4;

/// What is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shared {
    /// Connections.
    Connections,
    /// Requests under way.
    Requests,
}

impl Shared {
    /// The quota's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Requests => "requests",
        }
    }
}

/// A share that is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsedUp {
    /// How many it may be.
    pub quota: u64,
    /// How many it is.
    pub usage: u64,
}

/// What ordinary users have, by user and by account.
#[derive(Debug, Default)]
pub struct Shares {
    users: HashMap<(Shared, HostUid), u64>,
    accounts: HashMap<(Shared, HostUid), u64>,
}

impl Shares {
    /// Is there room for one more of the user's, an ordinary one of a container of the account's, whose quota this is? Of the smallest quota each
    /// share is one.
    ///
    /// # Errors
    /// [`UsedUp`].
    pub fn room(&self, what: Shared, account: HostUid, user: HostUid, quota: u64) -> Result<(), UsedUp> {
        let has = |map: &HashMap<_, u64>, uid, part: u64| {
            let (quota, usage) = ((quota / part).max(1), map.get(&(what, uid)).copied().unwrap_or(0));
            if usage < quota { Ok(()) } else { Err(UsedUp { quota, usage }) }
        };
        has(&self.users, user, ONE)?;
        has(&self.accounts, account, ALL)
    }

    /// Counts one more.
    pub fn take(&mut self, what: Shared, account: HostUid, user: HostUid) {
        *self.users.entry((what, user)).or_default() += 1;
        *self.accounts.entry((what, account)).or_default() += 1;
    }

    /// Counts one less.
    pub fn give_back(&mut self, what: Shared, account: HostUid, user: HostUid) {
        for (map, uid) in [(&mut self.users, user), (&mut self.accounts, account)] {
            if let Some(count) = map.get_mut(&(what, uid)) {
                *count = count.saturating_sub(1);
                if *count == 0 {
                    map.remove(&(what, uid));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_has_a_quarter_and_all_together_half() {
        let (account, mut shares) = (HostUid(1000), Shares::default());
        let (quota, what) = (16, Shared::Connections);
        let room = |shares: &Shares, user| shares.room(what, account, HostUid(user), quota);
        for _ in 0..4 {
            assert_eq!(room(&shares, 7), Ok(()));
            shares.take(what, account, HostUid(7));
        }
        assert_eq!(room(&shares, 7), Err(UsedUp { quota: 4, usage: 4 }));
        for user in [8, 8, 9, 9] {
            assert_eq!(room(&shares, user), Ok(()));
            shares.take(what, account, HostUid(user));
        }
        assert_eq!(room(&shares, 10), Err(UsedUp { quota: 8, usage: 8 }), "all together");
        // Neither another account's users nor anything else is held up.
        assert_eq!(shares.room(what, HostUid(1001), HostUid(11), quota), Ok(()));
        assert_eq!(shares.room(Shared::Requests, account, HostUid(7), quota), Ok(()));
        shares.give_back(what, account, HostUid(9));
        assert_eq!(room(&shares, 10), Ok(()));
        assert!(room(&shares, 7).is_err());
        // With the smallest quota one is let through.
        assert_eq!(Shares::default().room(what, account, HostUid(7), 1), Ok(()));
    }

    #[test]
    fn what_is_given_back_is_forgotten() {
        let mut shares = Shares::default();
        shares.take(Shared::Requests, HostUid(1), HostUid(2));
        shares.give_back(Shared::Requests, HostUid(1), HostUid(2));
        shares.give_back(Shared::Requests, HostUid(1), HostUid(2));
        assert!(shares.users.is_empty() && shares.accounts.is_empty());
    }
}
