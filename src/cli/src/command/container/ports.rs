//! Ports of the container that this is called in, which lead to one inside: published and taken back while that one runs.

use cgrant_container::system::Request;
use cgrant_proto::Port;

use super::Found;
use crate::{command::inner, error::Failure};

/// As on a host they are there until the container ends; at its next start it has those that it was made with.
pub(crate) fn change(name: &str, ports: &[Port], publish: bool) -> Result<(), Failure> {
    let verb = if publish { "publish ports to" } else { "take back ports of" };
    let found = Found::new(name, verb)?;
    let control = found.control()?;
    if publish {
        let kept = inner::publish(name, ports)?;
        return kept.iter().try_for_each(|kept| found.asked(control.keep(kept)));
    }
    ports.iter().try_for_each(|port| {
        let forget = Request::Forget { name: port.to_string() };
        found.asked(control.tell(&forget)).map_err(|failure| match failure {
            Failure::Control { source, .. } if source.is_not_kept() => {
                Failure::Refused(format!("cannot {}: port {port} is not published", found.doing))
            }
            other => other,
        })
    })
}
