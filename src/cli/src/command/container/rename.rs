//! `rename`: a container's directory has another name, and nothing else changes. Its files belong to its range, which keeps the
//! name that it has.

use cgrant_container::{Session, SessionError, system::ControlError};
use cgrant_proto::{Account, Code, CreateGrant};

use super::{Found, config::hostname_of, create};
use crate::{
    Client,
    error::{Doing, Failure},
};

pub(super) fn rename(client: &Client, old: &str, new: &str) -> Result<(), Failure> {
    let found = Found::new(old, "rename")?;
    create::check_name(new)?;
    if found.store.containers().map_err(|error| found.failed(error))?.iter().any(|name| name == new) {
        return Err(found.failed(cgrant_image::store::StoreError::NameTaken(new.to_owned())));
    }
    found.must_not_run("stop it first")?;
    let session = client.connect(&found.doing)?;
    check_with_broker(&session, &found, new)?;
    hold(&session, &found)?;
    let mut config = found.config.clone();
    if config.hostname == hostname_of(old) {
        config.set_hostname(hostname_of(new));
    }
    config.check(new)?;
    // Whatever happens between the two: a container with its old hostname is whole.
    found.store.rename_container(old, new).map_err(|error| found.failed(error))?;
    config.write(&found.store, new).map_err(|error| found.failed(error))
}

/// Is the name one that a grant can have, and does none have it?
fn check_with_broker(session: &Session, found: &Found, name: &str) -> Result<(), Failure> {
    let asked = session.manager().and_then(|manager| session.call(manager.get_grant(name, &Account::new())));
    match asked {
        Ok(_) => Err(Failure::Refused(format!(
            "cannot {}: you have a grant {name:?} already; take another name, or release that one",
            found.doing
        ))),
        Err(SessionError::Broker(error)) if error.code() == Some(Code::NoSuchGrant) => Ok(()),
        Err(error) => Err(error).doing(|| found.doing.clone()),
    }
}

/// Takes the grant's name that the container would run under, for as long as the session lasts: nobody starts it meanwhile.
fn hold(session: &Session, found: &Found) -> Result<(), Failure> {
    let options = CreateGrant::new().no_range();
    let held =
        session.manager().and_then(|manager| session.call(manager.create_grant(&found.name, &options)));
    match held {
        Ok(_) => Ok(()),
        Err(SessionError::Broker(error)) if error.code() == Some(Code::GrantExists) => {
            found.must_not_run("stop it first")?;
            Err(Failure::Refused(format!(
                "cannot {}: another command is at work on it, or it is just ending; try again",
                found.doing
            )))
        }
        Err(error) => Err(error).doing(|| found.doing.clone()),
    }
}

impl Found {
    /// Refuses if it runs, with what to do about that.
    pub(super) fn must_not_run(&self, advice: &str) -> Result<(), Failure> {
        match self.control() {
            Err(Failure::Control { source: ControlError::NotRunning, .. }) => Ok(()),
            Err(failure) => Err(failure),
            Ok(_) => Err(Failure::Refused(format!("cannot {}: it is running; {advice}", self.doing))),
        }
    }
}
