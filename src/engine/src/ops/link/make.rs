//! Links of a grant that come to be together: addresses and ports held, recorded, then made, or given back.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::PoisonError,
};

use cgrant_policy::{Caller as Subject, HostUid, NetworkRules};
use cgrant_sys::NetnsFd;
use cgrant_wire::{
    Address, GrantId, LinkInfo, LinkKind, LinkRequest, PublishedPort, Refusal, RefusalCode,
    net::{Link, LinkKey},
};

use super::{
    site::{self, MAX_ON_BRIDGE, Outline, Site},
    wish::{Wish, free_name},
};
use crate::{
    addresses::{
        AddressError, Networks, Owner, Request, Reserved, Taken, names,
        secret::{address4, address6},
    },
    engine::Engine,
    net::{Conflict, HelperError, Wanted},
    record::{GrantRecord, LinkRecord, Phase},
    registry::Grant,
};

/// Names that are tried in a namespace whose devices are not known.
const TRIES: usize = 64;
/// Addresses on the data link layer that are tried; two are never alike by chance.
const SALTS: u8 = 8;

/// What policy says about the links of whoever asks for them.
pub struct Terms {
    /// What links may be like.
    pub network: NetworkRules,
    /// How many addresses the account may have.
    pub addresses: u64,
    /// The rule.
    pub rule: String,
}

impl Terms {
    /// What it says to them.
    pub fn of(engine: &Engine, subject: &Subject) -> Self {
        let policy = engine.policy();
        let ruling = policy.ruling(subject);
        Self {
            network: ruling.network.clone(),
            addresses: ruling.quotas.addresses,
            rule: ruling.label.clone(),
        }
    }
}

/// Links that hold addresses and ports, which are given back unless the links are [`kept`](Self::keep).
pub struct Prepared<'a> {
    engine: &'a Engine,
    grant: &'a Grant,
    terms: Terms,
    links: Vec<One>,
    kept: bool,
}

struct One {
    request: LinkRequest,
    auto_name: bool,
    netns: Option<NetnsFd>,
    bridges: Vec<String>,
    record: LinkRecord,
    /// Was the address not the container's before?
    new: bool,
}

/// A descriptor of a tap, with the link's name.
pub type Tap = (String, OwnedFd);

impl<'a> Prepared<'a> {
    /// Holds what the links need: an address each, their ports. Nothing has been made yet.
    ///
    /// # Errors
    /// [`RefusalCode::QuotaExceeded`], [`RefusalCode::AddressInUse`], [`RefusalCode::NoSuchBridge`],
    /// [`RefusalCode::InvalidArgument`], [`RefusalCode::Busy`] without a helper.
    pub fn new(
        engine: &'a Engine,
        grant: &'a Grant,
        terms: Terms,
        wishes: Vec<Wish>,
    ) -> Result<Self, Refusal> {
        let mut prepared = Self { engine, grant, terms, links: Vec::new(), kept: false };
        for wish in wishes {
            let Wish { request, auto_name, netns, bridges, .. } = wish;
            let (record, new) = prepared.hold(&request, &bridges)?;
            prepared.links.push(One { request, auto_name, netns, bridges, record, new });
        }
        Ok(prepared)
    }

    /// The links for the grant's record, none of them made yet.
    pub fn records(&self) -> Vec<LinkRecord> {
        self.links.iter().map(|link| link.record.clone()).collect()
    }

    /// The links are there and recorded: what they hold stays theirs.
    pub fn keep(mut self) {
        self.kept = true;
    }

    /// Holds address and ports of one link, on the first bridge that has room.
    fn hold(&self, request: &LinkRequest, bridges: &[String]) -> Result<(LinkRecord, bool), Refusal> {
        let mut full = None;
        for bridge in bridges {
            match self.hold_on(request, bridge) {
                Err(refusal) if refusal.rule.as_deref() == Some(FULL) => full = Some(refusal),
                other => return other,
            }
        }
        Err(full.unwrap_or_else(no_bridge))
    }

    fn hold_on(&self, request: &LinkRequest, bridge: &str) -> Result<(LinkRecord, bool), Refusal> {
        let (engine, grant) = (self.engine, self.grant);
        let (site, reserved) = {
            let _finding = engine.network.finding.lock().unwrap_or_else(PoisonError::into_inner);
            let site = site::site(engine, bridge, grant.account)?;
            fits(request, bridge, &site.outline(), &self.terms)?;
            let reserved = reserve(engine, grant, &self.terms, request, bridge, &site)?;
            (site, reserved)
        };
        let new = reserved.is_some_and(|reserved| reserved.new);
        let record = self.record(request, site, reserved);
        let key = &record.link.key;
        if let Err(conflict) = engine.network.claims.claim(key, grant.account.0, &request.ports) {
            abandon(engine, grant, &record, new);
            return Err(in_use(&conflict, grant.account));
        }
        Ok((record, new))
    }

    fn record(&self, request: &LinkRequest, site: Site, reserved: Option<Reserved>) -> LinkRecord {
        let (engine, grant) = (self.engine, self.grant);
        let (account, name, bridge) = (grant.account.0, known_as(grant), site.bridge.name.clone());
        let prefix4 = |net: ipnet::Ipv4Net, address| Address { address, prefix: net.prefix_len() };
        let own4 =
            site.networks.subnet4.zip(reserved).map(|(net, got)| prefix4(net, address4(net, got.number)));
        let own6 = site.networks.subnet6.zip(reserved).map(|(net, got)| Address {
            address: got.address6.unwrap_or_else(|| address6(net, got.number)),
            prefix: net.prefix_len(),
        });
        let secret = engine.network.addresses.secret();
        let mac = |salt| secret.mac(account, &name, &request.name, salt);
        let free = (0..SALTS).map(mac).find(|mac| !engine.network.helper.has_mac(&bridge, *mac));
        let network = &self.terms.network;
        let info = LinkInfo {
            name: request.name.clone(),
            kind: request.kind,
            bridge: bridge.clone(),
            host_name: names::host_end(&engine.instance, grant.id, &request.name, request.kind),
            ifindex: 0,
            mac: free.unwrap_or_else(|| mac(SALTS)),
            address4: own4,
            address6: own6,
            gateway4: site.gateway4.filter(|_| own4.is_some()),
            gateway6: site.gateway6.filter(|_| own6.is_some()),
            dns: site.dns,
            mtu: if request.mtu == 0 { site.bridge.mtu } else { request.mtu },
            queue_length: request.queue_length,
            upload: network.upload(request.upload),
            download: network.download(request.download),
            vlan: request.vlan,
            ports: request.ports.clone(),
        };
        let label = names::label(&name);
        let owns = label
            .as_deref()
            .is_some_and(|label| engine.network.addresses.owner_of_name(&bridge, label) == Some(account));
        let user = engine.ids.user_of(grant.account);
        let link = Link {
            key: LinkKey { grant: grant.id, name: request.name.clone() },
            account,
            host_name: label.unwrap_or_else(|| format!("g{}", grant.id)),
            names: names::of_container(&name, account, user.as_deref(), owns),
            info,
            configure: request.configure,
            open: network.open,
            any_address: site.any_address,
        };
        LinkRecord {
            phase: Phase::Creating,
            number: reserved.map(|got| got.number),
            kept: keeps_name(grant),
            bridge: site.bridge,
            link,
        }
    }

    /// Makes all of the links, which the grant's `record` has as being made; the caller has written it. Those that were made
    /// when one fails are the caller's to remove.
    ///
    /// # Errors
    /// What the helper refuses; what [`Prepared::new`] refuses when another name is tried.
    pub fn make(&mut self, record: &mut GrantRecord) -> Result<Vec<Tap>, Refusal> {
        let mut taps = Vec::new();
        for at in 0..self.links.len() {
            if let Some(tap) = self.make_one(at, record)? {
                taps.push(tap);
            }
        }
        Ok(taps)
    }

    fn make_one(&mut self, at: usize, record: &mut GrantRecord) -> Result<Option<Tap>, Refusal> {
        for _ in 0..TRIES {
            self.engine.fault.step("link: to be made")?;
            let Some(link) = self.links.get(at) else { return Ok(None) };
            let wanted = Wanted { bridge: link.record.bridge.clone(), link: link.record.link.clone() };
            let netns = link.netns.as_ref().map(AsFd::as_fd);
            match self.engine.network.helper.add(wanted, netns) {
                Ok((ifindex, mtu, tap)) => return self.made(at, record, (ifindex, mtu, tap)),
                Err(HelperError::Refused(failure))
                    if failure.code == RefusalCode::LinkExists && link.auto_name =>
                {
                    self.rename(at, record)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        Err(Refusal::new(
            RefusalCode::LinkExists,
            "the network namespace has devices of all the names that were tried",
        )
        .hint("ask for a name"))
    }

    fn made(
        &mut self,
        at: usize,
        record: &mut GrantRecord,
        (ifindex, mtu, tap): (u32, u32, Option<OwnedFd>),
    ) -> Result<Option<Tap>, Refusal> {
        let Some(link) = self.links.get_mut(at) else { return Ok(None) };
        (link.record.link.info.ifindex, link.record.link.info.mtu) = (ifindex, mtu);
        link.record.phase = Phase::Active;
        replace(record, &link.record.link.key, link.record.clone());
        self.engine.fault.step("link: made")?;
        let name = link.record.link.info.name.clone();
        match tap {
            None if link.record.link.info.kind == LinkKind::Tap => {
                Err(super::super::check::internal("the network helper made a tap and kept it"))
            }
            tap => Ok(tap.map(|tap| (name, tap))),
        }
    }

    /// The namespace has a device of the name: another name, with what it holds. The record follows before it is tried.
    fn rename(&mut self, at: usize, record: &mut GrantRecord) -> Result<(), Refusal> {
        let mut names: Vec<String> = record.links.iter().map(|link| link.link.info.name.clone()).collect();
        let Some(link) = self.links.get(at) else { return Ok(()) };
        let tried = number_of(&link.request.name);
        // All up to the one that was just tried are there, for all that is known.
        names.extend((0..=tried).map(|number| format!("eth{number}")));
        let (mut request, bridges, before) =
            (link.request.clone(), link.bridges.clone(), link.record.clone());
        request.name = free_name(&names);
        abandon(self.engine, self.grant, &before, link.new);
        let held = self.hold(&request, &bridges);
        let Some(link) = self.links.get_mut(at) else { return Ok(()) };
        (link.record, link.new) = held?;
        link.request = request;
        replace(record, &before.link.key, link.record.clone());
        self.engine.write_record(record)
    }
}

impl Drop for Prepared<'_> {
    fn drop(&mut self) {
        if !self.kept {
            for link in &self.links {
                abandon(self.engine, self.grant, &link.record, link.new);
            }
        }
    }
}

/// `eth7` is 7.
fn number_of(name: &str) -> u32 {
    name.strip_prefix("eth").and_then(|number| number.parse().ok()).unwrap_or(0)
}

fn replace(record: &mut GrantRecord, key: &LinkKey, by: LinkRecord) {
    if let Some(link) = record.links.iter_mut().find(|link| link.link.key == *key) {
        *link = by;
    }
}

/// Is its address kept for a container of this name that comes again? Not where the engine made the name up, nor inside another
/// one, where anybody may make names up.
fn keeps_name(grant: &Grant) -> bool {
    !grant.path.is_nested() && grant.name.as_str() != format!("g{}", grant.id)
}

/// What its links are known by, in which addresses they get and in what they are called.
///
/// An attacker in a container wants to be taken for another one of the account's: it gives one inside of it that one's name. Those
/// inside have the way to them before their names, which is nobody's name.
fn known_as(grant: &Grant) -> String {
    let names: Vec<String> = grant.path.steps.iter().map(ToString::to_string).collect();
    names.join("/")
}

/// Whose the address of a grant's link is.
fn owner(grant: &Grant, link: &str) -> Owner {
    Owner { account: grant.account.0, grant: known_as(grant), link: link.to_owned() }
}

/// Gives back the address and the ports of a link that is not there.
pub fn let_go(engine: &Engine, grant: &Grant, record: &LinkRecord) {
    let (link, network) = (&record.link, &engine.network);
    network.claims.release(&link.key, &link.info.ports);
    let owner = owner(grant, &link.info.name);
    network.addresses.free(&record.bridge.name, &owner, grant.id);
}

/// As [`let_go`], of a link that never was: an address that was given for it is not kept.
fn abandon(engine: &Engine, grant: &Grant, record: &LinkRecord, new: bool) {
    let (link, network) = (&record.link, &engine.network);
    if new {
        let owner = owner(grant, &link.info.name);
        network.addresses.forget(&record.bridge.name, &owner, grant.id);
    }
    let_go(engine, grant, record);
}

/// A link that was there before the engine started: what it has is its own again.
pub fn take_over(engine: &Engine, grant: &Grant, record: &LinkRecord) {
    let (link, network) = (&record.link, &engine.network);
    if let Some(number) = record.number {
        let networks = network.addresses.networks(&record.bridge.name);
        let usual = networks.subnet6.map(|net| address6(net, number));
        let given = link.info.address6.map(|address| address.address);
        let own = owner(grant, &link.info.name);
        network.addresses.adopt(
            &record.bridge.name,
            &own,
            number,
            given.filter(|address| usual.is_some_and(|usual| usual != *address)),
            grant.id,
            record.kept,
        );
    }
    if let Err(conflict) = network.claims.claim(&link.key, link.account, &link.info.ports) {
        tracing::error!(?conflict, grant = %grant.id, "two links have one port");
    }
    network.helper.expect(Wanted { bridge: record.bridge.clone(), link: link.clone() });
}

/// The rule of refusals for a bridge that has no room.
const FULL: &str = "built-in bridge-is-full";

fn no_bridge() -> Refusal {
    Refusal::new(RefusalCode::NoSuchBridge, "policy names no bridge that there is")
        .hint("the administrator can name some in network.bridges of the rule")
}

/// Would links be made, for a grant of the account, as far as that can be said without looking at the network or holding anything?
///
/// # Errors
/// As [`Prepared::new`]; but for addresses that are not to be had, and ports that programs have.
pub fn foresee(
    engine: &Engine,
    account: HostUid,
    grant: GrantId,
    terms: &Terms,
    wishes: &[Wish],
) -> Result<(), Refusal> {
    for Wish { request, bridges, .. } in wishes {
        // The next ones are for links that find no room.
        let bridge = bridges.first().ok_or_else(no_bridge)?;
        fits(request, bridge, &site::outline(engine, bridge)?, terms)?;
        let key = LinkKey { grant, name: request.name.clone() };
        let free = engine.network.claims.are_free(&key, &request.ports);
        free.map_err(|conflict| in_use(&conflict, account))?;
    }
    Ok(())
}

/// Does the link fit the bridge?
fn fits(request: &LinkRequest, name: &str, site: &Outline, terms: &Terms) -> Result<(), Refusal> {
    let invalid = |message: String| Err(Refusal::new(RefusalCode::InvalidArgument, message));
    if site.managed && request.vlan != 0 {
        return invalid(format!("bridge {name} is the broker's own and has no VLANs"));
    }
    // An attacker wants out of the VLANs that policy names, into the one that a port without any is in: where the administrator
    // manages his switches, say.
    if !site.managed && request.vlan == 0 && !terms.network.vlans.is_empty() {
        return Err(Refusal::new(
            RefusalCode::NotAuthorized,
            format!("policy lets this account into some VLANs of bridge {name}, and not on it without one"),
        )
        .rule(terms.rule.clone())
        .hint("ask for one of the VLANs in network.vlans of the rule"));
    }
    if site.managed && request.mtu > site.mtu {
        return invalid(format!("bridge {name} carries packets of at most {} bytes", site.mtu));
    }
    if !site.managed && !request.ports.is_empty() {
        return Err(Refusal::new(
            RefusalCode::Unsupported,
            format!(
                "ports are published on the broker's own bridges only; on {name} a container is reached by its own address"
            ),
        ));
    }
    let lacks = |networks: Networks| {
        request.address4.is_some() && networks.subnet4.is_none()
            || request.address6.is_some() && networks.subnet6.is_none()
    };
    if site.networks.is_some_and(lacks) {
        return invalid(format!("bridge {name} has no network of that family"));
    }
    Ok(())
}

fn reserve(
    engine: &Engine,
    grant: &Grant,
    terms: &Terms,
    request: &LinkRequest,
    bridge: &str,
    site: &Site,
) -> Result<Option<Reserved>, Refusal> {
    if site.networks.subnet4.is_none() && site.networks.subnet6.is_none() {
        return Ok(None);
    }
    let addresses = &engine.network.addresses;
    if addresses.in_use(&site.bridge.name) >= MAX_ON_BRIDGE {
        return Err(full(bridge));
    }
    let (fixed, address6) = fixed(request, site)?;
    // A change of `/etc/passwd` is believed a while after it was made only, when nobody may have asked again.
    super::forget_departed(engine);
    addresses.note_user(grant.account.0, engine.ids.user_of(grant.account));
    let wanted = Request {
        bridge: &site.bridge.name,
        owner: owner(grant, &request.name),
        user: grant.id,
        span: site.span.clone(),
        excluded: site.excluded.clone(),
        fixed,
        address6,
        kept: keeps_name(grant),
        evicts: !grant.path.is_nested(),
        quota: terms.addresses,
    };
    addresses.reserve(&wanted).map(Some).map_err(|error| not_given(&error, bridge, request, terms))
}

/// The number and the address that a fixed address stands for.
fn fixed(request: &LinkRequest, site: &Site) -> Result<(Option<u32>, Option<std::net::Ipv6Addr>), Refusal> {
    let outside = |address: std::net::IpAddr| {
        Refusal::new(RefusalCode::InvalidArgument, format!("{address} is not in the bridge's network"))
    };
    let mut number = None;
    if let (Some(address), Some(net)) = (request.address4, site.networks.subnet4) {
        if !net.contains(&address) {
            return Err(outside(address.into()));
        }
        number = Some(u32::from(address).saturating_sub(u32::from(net.network())));
    }
    let (Some(address), Some(net)) = (request.address6, site.networks.subnet6) else {
        return Ok((number, None));
    };
    if !net.contains(&address) {
        return Err(outside(address.into()));
    }
    // An attacker wants to be the router, the name server or the host, for all who are on an administrator's bridge: in IPv6
    // they may have an address that no number stands for.
    if site.others.contains(&address.into()) {
        return Err(Refusal::new(RefusalCode::AddressInUse, format!("{address} is one of the bridge's own"))
            .hint("choose another address, or ask without one"));
    }
    let low = u128::from(address).saturating_sub(u128::from(net.network()));
    match u32::try_from(low) {
        // Such an address belongs to a number, the broker's own among them.
        Ok(low) if low <= *site.span.end() => match number {
            Some(other) if other != low => Err(Refusal::new(
                RefusalCode::AddressInUse,
                format!("{address} is kept for the link with the IPv4 address of the same number"),
            )
            .hint("take an address with more than the last group, or the one that fits the IPv4 address")),
            _ => Ok((Some(low), None)),
        },
        _ => Ok((number, Some(address))),
    }
}

fn full(bridge: &str) -> Refusal {
    Refusal::new(RefusalCode::QuotaExceeded, format!("bridge {bridge} has no room for another link"))
        .rule(FULL)
        .hint("ask for another bridge; the administrator can add one of the broker's own as [[network.bridge]] with managed = true")
}

fn not_given(error: &AddressError, bridge: &str, request: &LinkRequest, terms: &Terms) -> Refusal {
    let message = error.to_string();
    match error {
        AddressError::Quota { quota, used } => Refusal::new(RefusalCode::QuotaExceeded, message)
            .rule(terms.rule.clone())
            .figures(*quota, *used)
            .hint("remove links that are not needed; their addresses are used again then"),
        AddressError::Taken(Taken::Full) => full(bridge),
        AddressError::Taken(Taken::Outside) => Refusal::new(
            RefusalCode::AddressInUse,
            format!(
                "the address is one of the bridge's own, or none of those that bridge {bridge} gives to links"
            ),
        )
        .hint("choose another address, or ask without one"),
        AddressError::Taken(Taken::InUse) => Refusal::new(
            RefusalCode::LinkExists,
            format!("another grant of this name has the link {} at this moment", request.name),
        ),
        AddressError::Taken(Taken::Number | Taken::Address6) => {
            Refusal::new(RefusalCode::AddressInUse, "the address is in use, or kept for another container")
                .hint("choose another address, or ask without one")
        }
        AddressError::Io(_) => Refusal::new(RefusalCode::RecordUnwritable, message).hint(
            "the administrator should look whether the disk of the state directory is full or read-only",
        ),
    }
}

/// Another link has the port. Whose it is, only its own account is told.
pub fn in_use(conflict: &Conflict, account: HostUid) -> Refusal {
    let PublishedPort { address, host, .. } = conflict.port;
    let whose = if conflict.account == account.0 { "a link of yours" } else { "a link of another account" };
    let place = address.map_or_else(String::new, |address| format!(" on {address}"));
    Refusal::new(RefusalCode::AddressInUse, format!("port {host}{place} is published to {whose} already"))
        .hint("choose another port, or take the other one back first")
}
