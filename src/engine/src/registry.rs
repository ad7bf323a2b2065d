//! The engine's memory of the grants that are there: an index over what the journal says. No I/O.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cgrant_policy::{GrantName, GrantPath, HostUid, NsUid};
use cgrant_wire::{ConnectionId, EndReason, GrantId, GrantInfo, Hierarchy, Lifetime};

use crate::record::{GrantRecord, Phase};

/// What can change about a grant.
#[derive(Debug)]
pub struct Live {
    /// The record as the journal has it.
    pub record: GrantRecord,
    /// The connection that holds it.
    pub connection: Option<ConnectionId>,
    /// Is it frozen?
    pub frozen: bool,
    /// Are there processes in payload or children?
    pub populated: bool,
    /// Out-of-memory kills that were signalled.
    pub oom_kills: u64,
    /// Its entries among the watches, but for that of its holder.
    pub watches: Vec<u64>,
    /// The watch for its holder's end.
    pub holder_watch: Option<u64>,
    /// The watch for the end of its time without a holder.
    pub deadline: Option<u64>,
    /// The watch for the end of the time in which it is to end by itself, and why it is to.
    pub leaving: Option<(u64, EndReason)>,
    /// Its payload in each hierarchy.
    pub hierarchies: Vec<Hierarchy>,
}

/// A grant.
#[derive(Debug)]
pub struct Grant {
    /// Its identity.
    pub id: GrantId,
    /// Where it lies.
    pub path: GrantPath,
    /// The uid that is charged.
    pub account: HostUid,
    /// Its name.
    pub name: GrantName,
    live: Mutex<Live>,
}

impl Live {
    /// Is the time over that the grant has without a holder? Not by the deadline of an earlier such time: somebody may have
    /// adopted it and left since.
    pub fn is_overdue(&self, deadline: u64) -> bool {
        self.record.lifetime == Lifetime::Populated && self.deadline == Some(deadline)
    }
}

impl Grant {
    /// The grant that `record` describes; `name` is the last of its path.
    pub fn new(id: GrantId, path: GrantPath, name: GrantName, record: GrantRecord) -> Self {
        let account = path.account;
        let live = Live {
            record,
            connection: None,
            frozen: false,
            populated: false,
            oom_kills: 0,
            watches: Vec::new(),
            holder_watch: None,
            deadline: None,
            leaving: None,
            hierarchies: Vec::new(),
        };
        Self { id, path, account, name, live: Mutex::new(live) }
    }

    /// What can change. Held briefly, never across a kernel call that can wait.
    pub fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who of what it was made in has it.
    pub fn user(&self) -> NsUid {
        self.path.steps.last().map_or(NsUid::ROOT, |step| step.user)
    }

    /// Is it there, and not on its way in or out?
    pub fn is_active(&self) -> bool {
        self.live().record.phase == Phase::Active
    }

    /// All that its account may know.
    pub fn info(&self) -> GrantInfo {
        let live = self.live();
        GrantInfo {
            id: self.id,
            name: live.record.name.clone(),
            account: live.record.account,
            lifetime: live.record.lifetime,
            range: live.record.range,
            limits: live.record.limits.clone(),
            frozen: live.frozen,
            populated: live.populated,
            created: live.record.created,
            cgroup_id: live.record.cgroup_id,
            hierarchies: live.hierarchies.clone(),
            links: crate::ops::link::all_told(&live.record),
            nesting: live.record.nesting,
            parent: live.record.nested.as_ref().and_then(|nested| nested.parent.parse().ok()),
        }
    }
}

/// What is counted of an account.
#[derive(Debug, Default)]
struct Account {
    grants: BTreeSet<GrantId>,
    persistent: u64,
    pressure: u64,
    links: u64,
    ports: u64,
    nested: u64,
    tidying: u64,
    tidying_inside: u64,
}

/// How many links a record has, and how many published ports.
fn links(record: &GrantRecord) -> (u64, u64) {
    let ports = record.links.iter().map(|link| link.link.info.ports.len() as u64);
    (record.links.len() as u64, ports.sum())
}

/// What an account's grants come to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Grants.
    pub grants: u64,
    /// Persistent ones among them.
    pub persistent: u64,
    /// Notices about pressure.
    pub pressure: u64,
    /// Links.
    pub links: u64,
    /// Published ports.
    pub ports: u64,
    /// Grants among them that were made inside others.
    pub nested: u64,
    /// Grants among them that are for removing files, made from the host.
    pub tidying: u64,
    /// Such grants that were made inside others.
    pub tidying_inside: u64,
}

impl Account {
    fn count(&mut self, record: &GrantRecord) {
        self.persistent += u64::from(record.lifetime == Lifetime::Persistent);
        self.pressure += record.pressure.len() as u64;
        let (links, ports) = links(record);
        self.links += links;
        self.ports += ports;
        self.nested += u64::from(record.nested.is_some());
        self.tidying += u64::from(record.tidies && record.nested.is_none());
        self.tidying_inside += u64::from(record.tidies && record.nested.is_some());
    }

    fn discount(&mut self, record: &GrantRecord) {
        self.persistent = self.persistent.saturating_sub(u64::from(record.lifetime == Lifetime::Persistent));
        self.pressure = self.pressure.saturating_sub(record.pressure.len() as u64);
        let (links, ports) = links(record);
        self.links = self.links.saturating_sub(links);
        self.ports = self.ports.saturating_sub(ports);
        self.nested = self.nested.saturating_sub(u64::from(record.nested.is_some()));
        self.tidying = self.tidying.saturating_sub(u64::from(record.tidies && record.nested.is_none()));
        self.tidying_inside =
            self.tidying_inside.saturating_sub(u64::from(record.tidies && record.nested.is_some()));
    }
}

/// The grants by everything that they are looked up by.
#[derive(Debug, Default)]
pub struct Registry {
    by_id: HashMap<GrantId, Arc<Grant>>,
    accounts: HashMap<HostUid, Account>,
    by_path: HashMap<GrantPath, GrantId>,
    /// By what they are in, who has them there, and their key.
    by_key: HashMap<(GrantPath, NsUid, String), GrantId>,
    by_connection: HashMap<ConnectionId, BTreeSet<GrantId>>,
}

impl Registry {
    /// Adds a grant.
    pub fn add(&mut self, grant: &Arc<Grant>) {
        let key = grant.live().record.key.clone();
        if !key.is_empty() {
            self.by_key.insert((grant.path.around(), grant.user(), key), grant.id);
        }
        self.by_path.insert(grant.path.clone(), grant.id);
        let account = self.accounts.entry(grant.account).or_default();
        if account.grants.insert(grant.id) {
            account.count(&grant.live().record);
        }
        self.by_id.insert(grant.id, Arc::clone(grant));
    }

    /// Removes a grant.
    pub fn remove(&mut self, grant: &Grant) {
        let (key, connection) = {
            let live = grant.live();
            (live.record.key.clone(), live.connection)
        };
        self.by_key.remove(&(grant.path.around(), grant.user(), key));
        self.by_path.remove(&grant.path);
        if let Some(account) = self.accounts.get_mut(&grant.account)
            && account.grants.remove(&grant.id)
        {
            account.discount(&grant.live().record);
            if account.grants.is_empty() {
                self.accounts.remove(&grant.account);
            }
        }
        if let Some(connection) = connection {
            self.unhold(connection, grant.id);
        }
        self.by_id.remove(&grant.id);
    }

    /// The accounts that have grants.
    pub fn accounts(&self) -> impl Iterator<Item = HostUid> {
        self.accounts.keys().copied()
    }

    /// The grant of this id.
    pub fn get(&self, id: GrantId) -> Option<Arc<Grant>> {
        self.by_id.get(&id).cloned()
    }

    /// The grant that lies there.
    pub fn at(&self, path: &GrantPath) -> Option<Arc<Grant>> {
        self.by_path.get(path).and_then(|id| self.get(*id))
    }

    /// The grant directly in `around` that this user asked for with this key.
    pub fn keyed(&self, around: GrantPath, user: NsUid, key: &str) -> Option<Arc<Grant>> {
        self.by_key.get(&(around, user, key.to_owned())).and_then(|id| self.get(*id))
    }

    /// The grants inside of one, at any depth, each before those inside of it. Looks at all of the account's.
    pub fn inside(&self, around: &GrantPath) -> Vec<Arc<Grant>> {
        let mut grants = self.list(Some(around.account));
        grants.retain(|grant| grant.path.is_inside(around));
        grants
    }

    /// What the account's grants come to.
    pub fn counts(&self, account: HostUid) -> Counts {
        self.accounts.get(&account).map_or_else(Counts::default, |account| Counts {
            grants: account.grants.len() as u64,
            persistent: account.persistent,
            pressure: account.pressure,
            links: account.links,
            ports: account.ports,
            nested: account.nested,
            tidying: account.tidying,
            tidying_inside: account.tidying_inside,
        })
    }

    /// Gives a grant its new record.
    pub fn set_record(&mut self, grant: &Grant, record: GrantRecord) {
        let account = self.accounts.entry(grant.account).or_default();
        let mut live = grant.live();
        account.discount(&live.record);
        account.count(&record);
        live.record = record;
    }

    /// The account's grants, or everybody's, each before those inside of it.
    pub fn list(&self, account: Option<HostUid>) -> Vec<Arc<Grant>> {
        let mut grants: Vec<_> = match account {
            Some(account) => self
                .accounts
                .get(&account)
                .into_iter()
                .flat_map(|account| &account.grants)
                .filter_map(|id| self.get(*id))
                .collect(),
            None => self.by_id.values().cloned().collect(),
        };
        grants.sort_by(|a, b| a.path.cmp(&b.path));
        grants
    }

    /// Makes `connection` the holder, or nobody.
    pub fn hold(&mut self, grant: &Grant, connection: Option<ConnectionId>) {
        let before = std::mem::replace(&mut grant.live().connection, connection);
        if let Some(before) = before {
            self.unhold(before, grant.id);
        }
        if let Some(connection) = connection {
            self.by_connection.entry(connection).or_default().insert(grant.id);
        }
    }

    fn unhold(&mut self, connection: ConnectionId, grant: GrantId) {
        if let Some(held) = self.by_connection.get_mut(&connection) {
            held.remove(&grant);
            if held.is_empty() {
                self.by_connection.remove(&connection);
            }
        }
    }

    /// The grants that the connection holds. They are not found by it any more, but still say that it holds them:
    /// another may become the holder before somebody gets to their end.
    pub fn take_held(&mut self, connection: ConnectionId) -> Vec<Arc<Grant>> {
        let held = self.by_connection.remove(&connection).unwrap_or_default();
        held.into_iter().filter_map(|id| self.get(id)).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_deadline_of_an_earlier_time_without_a_holder_ends_nothing() {
        let record = |lifetime| GrantRecord {
            lifetime,
            phase: Phase::Active,
            ..GrantRecord::new(GrantId(7), 1000, 1000, "web", "boot")
        };
        let name = GrantName::new("web").unwrap();
        let path = GrantPath::new(HostUid(1000), name.clone());
        let grant = Grant::new(GrantId(7), path, name, record(Lifetime::Populated));
        grant.live().deadline = Some(1);
        assert!(grant.live().is_overdue(1));
        grant.live().record = record(Lifetime::Connection);
        assert!(!grant.live().is_overdue(1));
        // Its connection has broken, too: another time begins.
        grant.live().record = record(Lifetime::Populated);
        grant.live().deadline = Some(2);
        assert!(!grant.live().is_overdue(1));
        assert!(grant.live().is_overdue(2));
    }
}
