//! What serves an own bridge while there are links on it: its name server, and router advertisements.

use cgrant_wire::{link::Mac, net::Bridge};

use crate::{failure::Failure, state::Net};

impl Net {
    pub(crate) fn start_server(&mut self, _bridge: &Bridge) -> Result<(), Failure> {
        Ok(())
    }

    pub(crate) fn stop_server(&mut self, _bridge: &Bridge) -> Result<(), Failure> {
        Ok(())
    }

    pub(crate) fn tell_names(&mut self, _bridge: &Bridge) -> Result<(), Failure> {
        Ok(())
    }

    pub(crate) fn keep_servers(&mut self, _bridges: &[Bridge]) {}

    pub(crate) fn servers(&self) -> Vec<(Bridge, String, Mac)> {
        Vec::new()
    }

    pub(crate) fn start_advert(&mut self, _device: &str) -> Result<(), Failure> {
        Ok(())
    }

    pub(crate) fn stop_advert(&mut self, _device: &str) {}
}
