//! Ports of the container that this is called in, which lead to one inside: published and taken back while that one runs.

use cgrant_container::system::Request;
use cgrant_image::store::StoreError;
use cgrant_proto::Port;

use super::Found;
use crate::{command::inner, error::Failure, storage};

/// As on a host they are there until the container ends; at its next start it has those that it was made with.
pub(crate) fn change(name: &str, ports: &[Port], publish: bool) -> Result<(), Failure> {
    let verb = if publish { "publish ports to" } else { "take back ports of" };
    if let Err(StoreError::UnknownContainer(_)) = storage::store()?.container(name) {
        // It has a link here, so it is there.
        return Err(Failure::Refused(format!(
            "cannot {verb} the container {name:?}: a command of \"cgrant run\" has the ports that it was started with (-p) until it \
             ends; \"cgrant launch\" makes containers whose ports can be changed"
        )));
    }
    let found = Found::new(name, verb)?;
    let control = found.control()?;
    if publish {
        let kept = inner::publish(name, ports)?;
        return kept.iter().try_for_each(|kept| found.asked(control.keep(kept)));
    }
    ports.iter().try_for_each(|port| {
        let forget = Request::Forget { name: port.to_string() };
        match control.tell(&forget) {
            // As with the broker, what is not there is as good as taken back.
            Err(source) if source.is_not_kept() => Ok(()),
            told => found.asked(told),
        }
    })
}
