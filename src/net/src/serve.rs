//! What serves an own bridge while there are links on it: its name server, and router advertisements.
//!
//! A name server's port has its rules before the first packet of it: it is prepared, walled in, told who is there, and
//! only then let go.

use std::os::fd::RawFd;

use cgrant_wire::{
    link::Mac,
    net::{Bridge, BridgeKind},
};

use crate::{
    advert::Advert,
    failure::{Failure, chain},
    state::Net,
    sysctl,
};

impl Net {
    /// Starts the name server of an own bridge, or finds the one that runs.
    pub(crate) fn start_server(&mut self, bridge: &Bridge) -> Result<(), Failure> {
        let index = self.bridges.get(&bridge.device).map_or(0, |bridged| bridged.ifindex);
        self.fault.step("name server prepared")?;
        let port = self.names.prepare(&self.route, bridge, index)?;
        let started = self.wall(|wall| wall.add_server(bridge, &port.ifname, port.mac));
        let started = started.and_then(|()| self.tell_names(bridge)).and_then(|()| {
            self.fault.step("name server launched")?;
            Ok(self.names.launch(&self.route, bridge)?)
        });
        if started.is_err() {
            // Its own words are the ones to tell.
            let _ = self.stop_server(bridge);
        }
        started
    }

    /// Ends it, if there is one.
    pub(crate) fn stop_server(&mut self, bridge: &Bridge) -> Result<(), Failure> {
        let unwalled = self.wall(|wall| wall.remove_server(bridge));
        let stopped = self.names.stop(&self.route, &bridge.device).map_err(Failure::from);
        unwalled.and(stopped)
    }

    /// Tells it of all links on its bridge.
    pub(crate) fn tell_names(&self, bridge: &Bridge) -> Result<(), Failure> {
        let on_it = self.links.values().filter(|made| made.device == bridge.device);
        Ok(self.names.set_hosts(&bridge.device, on_it.map(|made| &made.link))?)
    }

    /// After a restart: makes sure of the name servers' processes and ports, without letting go those that have no rules yet,
    /// and ends those that nobody wants.
    pub(crate) fn prepare_servers(&mut self, bridges: &[Bridge]) {
        let devices: Vec<&str> = bridges.iter().map(|bridge| bridge.device.as_str()).collect();
        if let Err(error) = self.names.keep_only(&self.route, &devices) {
            tracing::error!(error = chain(&error), "a name server that nobody wants can't be ended");
        }
        for bridge in bridges {
            let index = self.bridges.get(&bridge.device).map_or(0, |bridged| bridged.ifindex);
            if let Err(error) = self.names.prepare(&self.route, bridge, index) {
                tracing::error!(error = chain(&error), "a name server can't be had");
                self.names.retry(&bridge.device);
            }
        }
    }

    /// The ports of name servers, for rules.
    pub(crate) fn servers(&self) -> Vec<(Bridge, String, Mac)> {
        let with_port = self.names.ports().filter(|(_, port)| port.ifindex != 0);
        with_port
            .filter_map(|(device, port)| {
                let bridged = self.bridges.get(device)?;
                Some((bridged.bridge.clone(), port.ifname.clone(), port.mac))
            })
            .collect()
    }

    /// Those whose name server has ended get another one.
    pub(crate) fn names_ready(&mut self, fd: RawFd) {
        self.names.ready(fd);
        for device in self.names.due() {
            let Some(bridge) = self.bridges.get(&device).map(|bridged| bridged.bridge.clone()) else {
                continue;
            };
            match self.start_server(&bridge) {
                Ok(()) => tracing::info!(device, "the name server was started again"),
                Err(error) => {
                    tracing::error!(error = chain(&error), device, "the name server can't be started again");
                    self.names.retry(&device);
                }
            }
        }
    }

    /// Advertises an own bridge as the way out, if it has an IPv6 network.
    pub(crate) fn start_advert(&mut self, device: &str) -> Result<(), Failure> {
        let Some(bridged) = self.bridges.get(device) else { return Ok(()) };
        let BridgeKind::Own { gateway6: Some(network), server6, .. } = bridged.bridge.kind else {
            return Ok(());
        };
        if sysctl::read("ipv6/conf/all/forwarding").is_none() {
            // A host that was started without IPv6.
            return Ok(());
        }
        let dns: Vec<_> = server6.into_iter().collect();
        let (ifindex, mtu) = (bridged.ifindex, bridged.mtu);
        let advert = Advert { ifindex, network, mtu, dns: &dns, domain: &self.settings.domain };
        Ok(self.adverts.start(&self.route, &advert)?)
    }

    /// Takes it back.
    pub(crate) fn stop_advert(&mut self, device: &str) {
        if let Some(bridged) = self.bridges.get(device) {
            self.adverts.stop(bridged.ifindex);
        }
    }
}
