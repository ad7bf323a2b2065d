//! Routing between bridges and elsewhere: the host's settings that it needs, and the guard that keeps it to links.
//!
//! The order is everything: the guard stands before any setting makes the host a router, and falls when the settings are
//! as they were. So at no moment does a neighbour of the host get a router that there was none of before.
//!
//! May touch `/proc/sys/net`, of own bridges at will and of the host's interfaces by [`crate::sysctl::Sysctls`].

use std::collections::BTreeSet;

use cgrant_sys::netlink::LinkState;
use cgrant_wire::GrantId;

use crate::{
    bridge::is_bridge,
    failure::Failure,
    firewall::Guard,
    state::{Bridged, Net},
    sysctl::{self, How, Snapshot, Wish},
};

/// Has a device addresses of IPv4, and of IPv6?
#[derive(Debug, Clone, Copy)]
struct Families {
    four: bool,
    six: bool,
}

/// A device of the host's by which others are reached.
type Uplink<'d> = (&'d LinkState, Families);

/// IPv6's switch for all interfaces.
pub(crate) const ALL_IPV6: &str = "ipv6/conf/all/forwarding";

/// What is to be set for routing, and which devices are routers by that alone.
#[derive(Default)]
struct Plan {
    wishes: Vec<Wish>,
    guarded4: BTreeSet<String>,
    guarded6: BTreeSet<String>,
}

impl Plan {
    fn guard(&self) -> Guard {
        Guard {
            forwarding4: self.guarded4.iter().cloned().collect(),
            forwarding6: self.guarded6.iter().cloned().collect(),
        }
    }

    fn set(&mut self, setting: String, ifindex: u32, value: &'static str) {
        self.wishes.push(Wish { setting, ifindex, how: How::Set(value) });
    }

    fn remember(&mut self, setting: String, ifindex: u32, old: &'static str, ours: &'static str) {
        self.wishes.push(Wish { setting, ifindex, how: How::Remember { old, ours } });
    }
}

/// Is the setting 1 because of an instance, or going to be?
fn is_ours(record: &Snapshot, setting: &str, ifindex: u32) -> bool {
    match record.set_to(setting, ifindex) {
        Some(ours) => ours == "1",
        None => sysctl::read(setting).as_deref() != Some("1"),
    }
}

fn value(device: &str, name: &str) -> Option<String> {
    sysctl::read(&format!("ipv6/conf/{device}/{name}"))
}

impl Net {
    /// Makes the kernel route between bridges and elsewhere, if there is a link that needs it; puts everything back if not.
    ///
    /// Per interface where the kernel lets it: the global switch would make a router of a host that was none. Packets between
    /// two interfaces of the host that did not route before are dropped by a rule of ours.
    pub(crate) fn settle_forwarding(&mut self) -> Result<(), Failure> {
        self.is_routing = self.needs_routing();
        if !self.is_routing {
            return self.end_forwarding();
        }
        if !self.firewall.stands() {
            return Err(Failure::NoRules);
        }
        let devices = self.route.links()?;
        let plan = self.plan(&devices)?;
        let guard = plan.guard();
        self.fault.step("guard")?;
        self.wall(|wall| wall.set_guard(guard.clone()))?;
        self.fault.step("settings of the host")?;
        // First of all, who configures itself by advertisements must not lose its routes by a bridge that becomes a router.
        self.sysctls.wish(&plan.wishes)?;
        self.forward_on_bridges()?;
        // Somebody may have changed something between the look and the deed.
        let now = self.plan(&devices)?.guard();
        if now != guard {
            self.wall(|wall| wall.set_guard(now))?;
        }
        Ok(())
    }

    /// The guard that what was set by an earlier helper needs: rules that are built anew must not lack it for a moment.
    pub(crate) fn expect_guard(&mut self) -> Result<(), Failure> {
        if self.needs_routing() {
            let guard = self.plan(&self.route.links()?)?.guard();
            self.firewall.expect_guard(&guard);
        }
        Ok(())
    }

    fn forward_on_bridges(&self) -> Result<(), Failure> {
        let is_single = self.forwards_singly() && sysctl::read(ALL_IPV6).as_deref() != Some("1");
        for bridge in self.bridges.values().filter(|bridge| bridge.is_own()) {
            let device = &bridge.bridge.device;
            sysctl::write(&format!("ipv4/conf/{device}/forwarding"), "1")?;
            if value(device, "forwarding").is_some() {
                // Neighbours see by it that the gateway is a router.
                sysctl::write(&format!("ipv6/conf/{device}/forwarding"), "1")?;
            }
            if is_single && self.needs_ipv6() {
                sysctl::write(&format!("ipv6/conf/{device}/force_forwarding"), "1")?;
            }
        }
        Ok(())
    }

    /// Has somebody made a router of the host by the one switch for IPv4, of which nobody tells? Then there is nothing to be kept
    /// to links any more.
    pub(crate) fn has_needless_guard(&self) -> bool {
        !self.firewall.guard().forwarding4.is_empty()
            && sysctl::read("ipv4/ip_forward").as_deref() == Some("1")
    }

    fn needs_ipv6(&self) -> bool {
        self.bridges.values().any(|bridge| bridge.networks().any(|one| one.address.is_ipv6()))
    }

    /// From Linux 6.17 on each interface can be told by itself, without becoming a router in anything else.
    pub(crate) fn forwards_singly(&self) -> bool {
        self.settings.may_forward_singly && value("all", "force_forwarding").is_some()
    }

    fn plan(&self, devices: &[LinkState]) -> Result<Plan, Failure> {
        let record = self.sysctls.look()?;
        let mut plan = Plan::default();
        self.keep_routers(devices, &record, &mut plan);
        let uplinks = self.uplinks(devices)?;
        if sysctl::read("ipv4/ip_forward").as_deref() != Some("1") {
            for (device, _) in uplinks.iter().filter(|(_, families)| families.four) {
                let setting = format!("ipv4/conf/{}/forwarding", device.name);
                if is_ours(&record, &setting, device.index) {
                    plan.guarded4.insert(device.name.clone());
                }
                plan.set(setting, device.index, "1");
            }
        }
        self.plan_ipv6(devices, &uplinks, &record, &mut plan);
        Ok(plan)
    }

    fn plan_ipv6(&self, devices: &[LinkState], uplinks: &[Uplink<'_>], record: &Snapshot, plan: &mut Plan) {
        let Some(all) = sysctl::read(ALL_IPV6).filter(|_| self.needs_ipv6()) else { return };
        if all == "1" && !record.has_changed(ALL_IPV6, 0) {
            return;
        }
        if !self.forwards_singly() {
            return self.plan_all_ipv6(devices, record, plan);
        }
        for (device, _) in uplinks.iter().filter(|(_, families)| families.six) {
            let setting = format!("ipv6/conf/{}/force_forwarding", device.name);
            if is_ours(record, &setting, device.index) {
                plan.guarded6.insert(device.name.clone());
            }
            plan.set(setting, device.index, "1");
        }
    }

    /// Who configures itself by advertisements goes on doing so. The routes that came with them are dropped otherwise as
    /// soon as any interface is a router, a bridge of ours too (`addrconf_fixup_forwarding` in net/ipv6/addrconf.c).
    fn keep_routers(&self, devices: &[LinkState], record: &Snapshot, plan: &mut Plan) {
        for device in devices.iter().filter(|device| !self.is_ours(device)) {
            let setting = format!("ipv6/conf/{}/accept_ra", device.name);
            let configures_itself = value(&device.name, "accept_ra").as_deref() == Some("1")
                && value(&device.name, "forwarding").as_deref() == Some("0");
            if configures_itself || record.has_changed(&setting, device.index) {
                plan.set(setting, device.index, "2");
            }
        }
    }

    /// The switch sets every interface's value, and the default: each is remembered.
    fn plan_all_ipv6(&self, devices: &[LinkState], record: &Snapshot, plan: &mut Plan) {
        let is_on = record.has_changed(ALL_IPV6, 0);
        let others = devices.iter().filter(|device| !self.is_ours(device));
        let others = others.map(|device| (device.name.as_str(), device.index));
        for (name, index) in others.chain([("default", 0)]) {
            let setting = format!("ipv6/conf/{name}/forwarding");
            let known = record.set_to(&setting, index).map(|ours| ours == "1");
            let is_guarded = match (known, value(name, "forwarding").as_deref()) {
                (Some(is_ours), _) => is_ours,
                (None, Some("0")) => true,
                // One that came after the switch has it from there.
                (None, Some("1")) => is_on,
                _ => continue,
            };
            match (is_guarded, known) {
                (true, None) if is_on => plan.remember(setting, index, "0", "1"),
                (true, _) => plan.set(setting, index, "1"),
                // Putting the switch back will change this one.
                (false, _) => plan.remember(setting, index, "1", "0"),
            }
            if is_guarded && index != 0 {
                plan.guarded6.insert(name.to_owned());
            }
        }
        plan.set(ALL_IPV6.to_owned(), 0, "1");
    }

    fn end_forwarding(&mut self) -> Result<(), Failure> {
        if !self.sysctls.is_empty()? {
            let devices = self.route.links()?;
            let there: BTreeSet<&str> = devices.iter().filter_map(instance_of_link).collect();
            let index_of =
                |name: &str| devices.iter().find(|device| device.name == name).map(|device| device.index);
            // Somebody has made a router of the host meanwhile: its interfaces forward for him too.
            let is_router = sysctl::read("ipv4/ip_forward").as_deref() == Some("1");
            let for_good =
                |setting: &str| is_router && setting.starts_with("ipv4/") && setting.ends_with("/forwarding");
            self.sysctls.release(|instance| there.contains(instance), index_of, for_good)?;
        }
        self.wall(|wall| wall.set_guard(Guard::default()))
    }

    /// Is there a link whose packets the host has to route?
    pub(crate) fn needs_routing(&self) -> bool {
        self.links.values().any(|made| {
            !made.link.info.ports.is_empty() || self.bridges.get(&made.device).is_some_and(Bridged::is_own)
        })
    }

    /// The interfaces by which others are reached, each with the families that it has addresses of.
    fn uplinks<'d>(&self, devices: &'d [LinkState]) -> Result<Vec<Uplink<'d>>, Failure> {
        let addresses = self.route.addresses()?;
        let routes = self.route.routes()?;
        let families = |device: &LinkState| {
            let has = |is_ipv4: bool| {
                addresses.iter().any(|address| {
                    let is_of_host =
                        !matches!(address.address, std::net::IpAddr::V6(six) if six.is_unicast_link_local());
                    address.ifindex == device.index && address.address.is_ipv4() == is_ipv4 && is_of_host
                })
            };
            Families { four: has(true), six: has(false) }
        };
        let leads_on =
            |index: u32| routes.iter().any(|route| route.ifindex == Some(index) && route.gateway.is_some());
        let is_loopback = |device: &LinkState| device.name == "lo";
        let is_inner =
            |device: &LinkState| is_bridge(device) && !leads_on(device.index) && is_virtual(device, devices);
        Ok(devices
            .iter()
            .filter(|device| !is_loopback(device) && !self.is_ours(device) && !is_inner(device))
            .map(|device| (device, families(device)))
            .filter(|(_, families)| families.four || families.six)
            .collect())
    }

    /// Is the device of this instance or, as its alias says, of another?
    pub(crate) fn is_ours(&self, device: &LinkState) -> bool {
        instance_of(device).is_some() || self.names.is_port(&device.name)
    }

    /// Packets from the host's loopback reach published ports on a bridge exactly while there are some: a rule that drops
    /// such addresses from the bridge was set with its first link, and goes with its last one.
    pub(crate) fn settle_loopback(&self, device: &str) -> Result<(), Failure> {
        let Some(bridge) = self.bridges.get(device).filter(|bridge| bridge.is_own()) else { return Ok(()) };
        let has_ports =
            self.links.values().any(|made| made.device == device && !made.link.info.ports.is_empty());
        let setting = format!("ipv4/conf/{}/route_localnet", bridge.bridge.device);
        let value = if has_ports { "1" } else { "0" };
        if sysctl::read(&setting).as_deref() == Some(value) {
            return Ok(());
        }
        if has_ports && !self.firewall.stands() {
            return Err(Failure::NoRules);
        }
        Ok(sysctl::write(&setting, value)?)
    }

    /// Both of the above where nothing can be told any more.
    pub(crate) fn settle_quietly(&mut self, device: &str) {
        let settled = self.settle_loopback(device).and_then(|()| self.settle_forwarding());
        if let Err(error) = settled {
            tracing::error!(%error, "the host's settings are not as they should be");
        }
    }
}

/// The instance whose a device is, as its alias says.
fn instance_of(device: &LinkState) -> Option<&str> {
    device.alias.as_deref()?.strip_prefix("cgrant ")?.split_once(' ').map(|(instance, _)| instance)
}

/// The same, if it is the host's end of a link.
fn instance_of_link(device: &LinkState) -> Option<&str> {
    let (instance, rest) = device.alias.as_deref()?.strip_prefix("cgrant ")?.split_once(' ')?;
    let (grant, _) = rest.split_once(' ')?;
    grant.parse::<GrantId>().ok().map(|_| instance)
}

/// Has a bridge only ports behind which there are containers and machines of this host, or none?
fn is_virtual(bridge: &LinkState, devices: &[LinkState]) -> bool {
    let mut ports = devices.iter().filter(|device| device.master == Some(bridge.index));
    ports.all(|port| matches!(port.kind.as_deref(), Some("veth" | "tun")))
}
