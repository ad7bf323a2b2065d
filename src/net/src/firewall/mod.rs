//! The nftables tables of an instance: who may send what on a link, who reaches whom, NAT and published ports.
//!
//! Three tables, all called `cgrant-INSTANCE`, made with the first link and gone with the last:
//! * `netdev`: one ingress chain per link on the host's end, an allow-list ([`link`]). It sees every frame before the bridge
//!   does, which hands frames to 01:80:c2:00:00:0x on past every other hook. What passes gets the account's mark.
//! * `bridge`: who reaches whom on the data link layer ([`lan`]).
//! * `inet`: what reaches the host, what is routed, NAT, published ports ([`route`]).
//!
//! Whoever asks "may this pass?" asks for the mark that only the netdev chain sets, and names devices by index. So a link
//! whose chain is missing (a flushed ruleset; a device that was renamed, which since Linux 6.16 takes its hook away [tried])
//! reaches nobody, and no renamed device slips out of a rule. Nothing here lists what the kernel has, but for
//! [`Firewall::is_intact`]: a change costs one run of `nft` with what changes.

mod change;
mod check;
mod element;
mod error;
mod lan;
mod link;
mod mark;
mod nft;
mod route;
mod schema;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::Duration,
};

use cgrant_wire::{
    link::{Mac, PublishedPort},
    net::{Bridge, BridgeKind, Link, LinkKey},
};

use change::{Change, State};
pub use error::FirewallError;
use mark::Mark;
use nft::Nft;
use schema::{Command, Family, Object, Table};

/// The tables of one instance, and what is in them.
pub struct Firewall {
    instance: String,
    nft: Nft,
    state: State,
}

/// A link on its bridge.
#[derive(Clone, PartialEq, Eq)]
struct Placed {
    /// Name and index of the host's end.
    device: String,
    index: u32,
    /// Name and index of its bridge.
    bridge_device: String,
    bridge: u32,
    own_bridge: bool,
    mark: Mark,
    link: Link,
}

/// A name server's port.
#[derive(Clone, PartialEq, Eq)]
struct Server {
    device: String,
    index: u32,
    mac: Mac,
    bridge: u32,
    address4: Option<Ipv4Addr>,
    address6: Option<Ipv6Addr>,
}

/// Devices that forward only because the broker made them: what comes in there is forwarded to own bridges and nowhere else.
///
/// Without it a host that was no router became one with its first link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guard {
    /// Names of devices, IPv4.
    pub forwarding4: Vec<String>,
    /// Names of devices, IPv6.
    pub forwarding6: Vec<String>,
}

impl Firewall {
    /// The tables of the instance called `instance`. Touches nothing.
    pub fn new(instance: &str) -> Self {
        Self { instance: instance.to_owned(), nft: Nft::default(), state: State::default() }
    }

    /// From now on all runs of `nft` together may take so long, until this is said again.
    pub fn allow(&mut self, patience: Duration) {
        self.nft.allow(patience);
    }

    /// The tables' name, in each family.
    pub fn table(&self) -> String {
        format!("cgrant-{}", self.instance)
    }

    /// Builds the wall round a link whose host's end `ifname` exists and whose far end is not up yet; with the first one the
    /// tables. A link that is there already is replaced.
    ///
    /// # Errors
    /// [`FirewallError::NoDevice`] if a device is gone; [`FirewallError::Accounts`]; [`FirewallError::PortTaken`]; what `nft`
    /// says. Nothing has changed then.
    pub fn add_link(&mut self, bridge: &Bridge, ifname: &str, link: &Link) -> Result<(), FirewallError> {
        let mut change = Change::default();
        if let Some(old) = self.state.link(&link.key) {
            change.remove_link(old);
        }
        change.add_link(Placed::new(&self.state, bridge, ifname, link)?);
        self.commit(&change)
    }

    /// Takes the wall of a link away; with the last one the tables. A link that is not known is none.
    ///
    /// # Errors
    /// What `nft` says; the link is then still known.
    pub fn remove_link(&mut self, key: &LinkKey) -> Result<(), FirewallError> {
        let Some(old) = self.state.link(key) else { return Ok(()) };
        let mut change = Change::default();
        change.remove_link(old);
        self.commit(&change)
    }

    /// As [`Firewall::remove_link`], when the device is gone already.
    ///
    /// # Errors
    /// As there.
    pub fn forget_link(&mut self, key: &LinkKey) -> Result<(), FirewallError> {
        self.remove_link(key)
    }

    /// Gives a link exactly these published ports.
    ///
    /// # Errors
    /// [`FirewallError::Unknown`]; [`FirewallError::PortTaken`]; what `nft` says. Nothing has changed then.
    pub fn set_ports(&mut self, key: &LinkKey, ports: &[PublishedPort]) -> Result<(), FirewallError> {
        let old = self.state.link(key).ok_or_else(|| FirewallError::Unknown(key.name.clone()))?;
        let mut new = Placed::clone(&old);
        new.link.info.ports = ports.to_vec();
        let mut change = Change::default();
        change.remove_link(old);
        change.add_link(new);
        self.commit(&change)
    }

    /// Builds the wall round the port of a bridge's name server; its addresses are those that the bridge says.
    ///
    /// # Errors
    /// As [`Firewall::add_link`].
    pub fn add_server(&mut self, bridge: &Bridge, ifname: &str, mac: Mac) -> Result<(), FirewallError> {
        let mut change = Change::default();
        if let Some(old) = self.state.server(&bridge.device) {
            change.remove_server(&bridge.device, old);
        }
        change.add_server(&bridge.device, Server::new(bridge, ifname, mac)?);
        self.commit(&change)
    }

    /// Takes the wall round a bridge's name server away.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn remove_server(&mut self, bridge: &Bridge) -> Result<(), FirewallError> {
        let Some(old) = self.state.server(&bridge.device) else { return Ok(()) };
        let mut change = Change::default();
        change.remove_server(&bridge.device, old);
        self.commit(&change)
    }

    /// Says which devices forward only because of the broker. The tables stay as long as there are some, also without links.
    ///
    /// # Errors
    /// What `nft` says.
    #[allow(clippy::needless_pass_by_value)] // A guard is made for this.
    pub fn set_guard(&mut self, guard: Guard) -> Result<(), FirewallError> {
        self.commit(&Change::of_guard(self.state.guard(), &guard))
    }

    /// As [`Firewall::set_guard`], for the next [`Firewall::restore`]. Touches nothing.
    pub fn expect_guard(&mut self, guard: &Guard) {
        self.state.apply(&Change::of_guard(&self.state.guard().clone(), guard));
    }

    /// Which devices forward only because of the broker.
    #[must_use]
    pub fn guard(&self) -> &Guard {
        self.state.guard()
    }

    /// Has the link a wall, as far as is known?
    #[must_use]
    pub fn knows(&self, key: &LinkKey) -> bool {
        self.state.link(key).is_some()
    }

    /// Are there tables, as far as is known?
    #[must_use]
    pub fn stands(&self) -> bool {
        self.state.has_walls()
    }

    /// Replaces all that is there by what ought to be, in one transaction: at no time is there less.
    ///
    /// # Errors
    /// As [`Firewall::add_link`], for the first link that fails; nothing has changed then.
    pub fn restore(
        &mut self,
        bridges: &[Bridge],
        links: &[(Link, String)],
        servers: &[(Bridge, String, Mac)],
    ) -> Result<(), FirewallError> {
        let mut next = State::default();
        next.apply(&Change::of_guard(&Guard::default(), self.state.guard()));
        for (link, ifname) in links {
            let bridge = bridges.iter().find(|bridge| bridge.name == link.info.bridge);
            let bridge = bridge.ok_or_else(|| FirewallError::Unknown(link.key.name.clone()))?;
            let mut change = Change::default();
            change.add_link(Placed::new(&next, bridge, ifname, link)?);
            next.check(&change)?;
            next.apply(&change);
        }
        for (bridge, ifname, mac) in servers {
            let mut change = Change::default();
            change.add_server(&bridge.device, Server::new(bridge, ifname, *mac)?);
            next.apply(&change);
        }
        self.replace(&next)?;
        self.state = next;
        Ok(())
    }

    /// Builds everything anew from what is known, as [`Firewall::restore`]: after somebody else changed it.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn mend(&mut self) -> Result<(), FirewallError> {
        self.replace(&self.state)
    }

    /// Takes everything away, known or not.
    ///
    /// # Errors
    /// What `nft` says.
    pub fn clear(&mut self) -> Result<(), FirewallError> {
        self.restore(&[], &[], &[])
    }

    /// Is everything there as it ought to be? Lists the tables, so to be asked only when somebody else changed something.
    ///
    /// # Errors
    /// [`FirewallError::Listing`] if the answer makes no sense; others if `nft` can't be run.
    pub fn is_intact(&self) -> Result<bool, FirewallError> {
        if self.state.is_empty() {
            return Ok(true);
        }
        let expected = check::expected(&self.build(&self.state), &self.state.device_names());
        let mut output = Vec::new();
        // One run each: asked for several tables of one name, nft finds that of the first family only [tried: 1.0.6].
        for family in Family::ALL {
            match self.nft.run(&[check::listing(family, &self.table())]) {
                Ok(more) => output.extend(more),
                Err(FirewallError::Refused(_)) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(check::found(&output)? == expected)
    }

    /// All chains of all tables on this host, without rules, as nft's JSON: for looking for what drops what ours let pass.
    ///
    /// # Errors
    /// As [`Firewall::is_intact`].
    pub fn list_chains(&self) -> Result<Vec<u8>, FirewallError> {
        self.nft.run(&[Command::List(Object::Chains(()))])
    }

    /// Carries out a change, or nothing of it.
    fn commit(&mut self, change: &Change) -> Result<(), FirewallError> {
        self.state.check(change)?;
        let before = self.state.is_empty();
        let commands = self.state.commands(&self.table(), change);
        self.state.apply(change);
        let after = self.state.is_empty();
        let done = match (before, after) {
            (true, true) => Ok(()),
            (false, false) => self.run_or_replace(&commands),
            _ => self.replace(&self.state),
        };
        if done.is_err() {
            self.state.apply(&change.inverse());
        }
        done
    }

    /// What differs, in one transaction; if the kernel has not what we think it has, one that replaces everything.
    fn run_or_replace(&self, commands: &[Command]) -> Result<(), FirewallError> {
        if commands.is_empty() {
            return Ok(());
        }
        match self.nft.run(commands) {
            Ok(_) => Ok(()),
            Err(FirewallError::Refused(_)) => self.replace(&self.state),
            Err(error) => Err(error),
        }
    }

    /// Makes the tables what `state` says, whatever there is.
    fn replace(&self, state: &State) -> Result<(), FirewallError> {
        let mut commands = Vec::new();
        for family in Family::ALL {
            // Only what is there can be deleted, and adding what is there does nothing.
            commands.push(Command::add(self.empty_table(family)));
            commands.push(Command::delete(self.empty_table(family)));
        }
        if !state.is_empty() {
            commands.extend(self.build(state));
        }
        self.nft.run(&commands)?;
        if state.is_empty() {
            return Ok(());
        }
        // All else rests on it, and it is not often: are there rules now?
        match self.nft.run(&[check::listing(Family::Netdev, &self.table())]) {
            Err(FirewallError::Refused(_)) => Err(FirewallError::NoEffect),
            other => other.map(|_| ()),
        }
    }

    /// All tables with everything in them.
    fn build(&self, state: &State) -> Vec<Command> {
        let table = self.table();
        let mut commands: Vec<Command> =
            Family::ALL.into_iter().map(|family| Command::add(self.empty_table(family))).collect();
        commands.extend(link::shared(&table));
        commands.extend(element::sets(&table, state.counts()));
        commands.extend(lan::chains(&table));
        commands.extend(route::chains(&table));
        commands.extend(state.walls(&table));
        commands
    }

    fn empty_table(&self, family: Family) -> Table {
        Table { family, name: self.table(), comment: format!("cgrant {}", self.instance) }
    }
}

impl Placed {
    fn new(state: &State, bridge: &Bridge, ifname: &str, link: &Link) -> Result<Self, FirewallError> {
        Ok(Self {
            device: ifname.to_owned(),
            index: nft::index_of(ifname)?,
            bridge_device: bridge.device.clone(),
            bridge: nft::index_of(&bridge.device)?,
            own_bridge: matches!(bridge.kind, BridgeKind::Own { .. }),
            mark: state.mark(link.account)?,
            link: link.clone(),
        })
    }

    /// Its addresses, without their networks, and without the link-local one.
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let v4 = self.link.info.address4.map(|address| IpAddr::V4(address.address));
        let v6 = self.link.info.address6.map(|address| IpAddr::V6(address.address));
        v4.into_iter().chain(v6)
    }
}

impl Server {
    fn new(bridge: &Bridge, ifname: &str, mac: Mac) -> Result<Self, FirewallError> {
        let (address4, address6) = match bridge.kind {
            BridgeKind::Own { server4, server6, .. } => (server4, server6),
            BridgeKind::Foreign => (None, None),
        };
        let (device, index) = (ifname.to_owned(), nft::index_of(ifname)?);
        Ok(Self { device, index, mac, bridge: nft::index_of(&bridge.device)?, address4, address6 })
    }

    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.address4.map(IpAddr::V4).into_iter().chain(self.address6.map(IpAddr::V6))
    }
}
