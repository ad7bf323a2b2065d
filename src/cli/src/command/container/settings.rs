//! `set` and `get`: what a container is to be; its limits hold at once where it runs.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Write},
};

use cgrant_container::system::Control;
use cgrant_proto::{Account, CreateGrant, ReleaseGrant};
use serde_json::{Map, Value};

use super::{Found, autostart, config::Config};
use crate::{
    Client,
    command::{autostart as boot, grant::each_once},
    error::{Doing, Failure},
    output::{self, Fields},
};

pub(super) fn set(client: &Client, name: &str, settings: &[(String, String)]) -> Result<(), Failure> {
    let found = Found::new(name, "change")?;
    let settings = each_once(settings.to_vec())?;
    let mut config = found.config.clone();
    let mut limits = HashMap::new();
    for (key, value) in settings {
        match key.as_str() {
            "hostname" => config.set_hostname(value),
            "dns" => config.dns = value.parse().map_err(Failure::Usage)?,
            "nesting" => config.nesting = yes_or_no(&key, &value)?,
            "autostart" => config.autostart = yes_or_no(&key, &value)?,
            // Every limit has a dot in its key.
            key if key.contains('.') => drop(limits.insert(key.to_owned(), value)),
            key => {
                return Err(Failure::Usage(format!(
                    "{key:?} is no setting: limits (memory.max …), hostname, dns, nesting and autostart are"
                )));
            }
        }
    }
    config.check(name)?;
    config.limits.extend(limits.clone());
    // The broker's word first: what it refuses is not written down.
    match found.run().and_then(|run| Control::connect(&run)) {
        Ok(_) if !limits.is_empty() => {
            let session = client.connect(&found.doing)?;
            let change = || {
                let grant = session.call(session.manager()?.get_grant(name, &Account::new()))?;
                session.call(session.cgroup(&grant)?.set_limits(&limits))
            };
            change().doing(|| found.doing.clone())?;
        }
        _ => check_limits(client, &limits.into_iter().collect(), &found.doing)?,
    }
    config.write(&found.store, name).map_err(|error| found.failed(error))?;
    if config.autostart == found.config.autostart { Ok(()) } else { at_boot(name, config.autostart) }
}

/// Has the broker look at limits before a container has them: a grant with them is made, and ends with the connection. `doing`
/// completes "cannot …".
pub(super) fn check_limits(
    client: &Client,
    limits: &BTreeMap<String, String>,
    doing: &str,
) -> Result<(), Failure> {
    if limits.is_empty() {
        return Ok(());
    }
    let limits: Vec<(String, String)> = limits.clone().into_iter().collect();
    let session = client.connect(doing)?;
    let check = || {
        let options = CreateGrant::new().no_range().limits(&limits);
        let (grant, ..) = session.call(session.manager()?.create_grant("", &options))?;
        session.call(session.grant(&grant)?.release(&ReleaseGrant::new()))
    };
    check().doing(|| doing.to_owned())
}

fn yes_or_no(key: &str, value: &str) -> Result<bool, Failure> {
    value.parse().map_err(|_| Failure::Usage(format!("{key} is true or false, and not {value:?}")))
}

/// Has the machine do what was wished. The wish stands, whatever the machine lacks for it.
fn at_boot(name: &str, wanted: bool) -> Result<(), Failure> {
    if wanted {
        if let Err(missing) = boot::arrange() {
            // Standard error may be closed, which is no reason to fail.
            let _ =
                writeln!(io::stderr(), "cgrant: the container {name:?} is set to start by itself; {missing}");
        }
    } else if !autostart::is_wanted()? {
        boot::withdraw();
    }
    Ok(())
}

pub(super) fn get(client: &Client, name: &str, keys: &[String]) -> Result<(), Failure> {
    let found = Found::new(name, "read settings of")?;
    let mut all = all(&found.config);
    if !keys.is_empty() {
        let unknown = |key: &&String| !all.contains_key(*key) && !key.contains('.');
        if let Some(key) = keys.iter().find(unknown) {
            return Err(Failure::Usage(format!("{key:?} is no setting")));
        }
        // A limit that was never set has no value.
        all = keys.iter().map(|key| (key.clone(), all.get(key).cloned().unwrap_or_default())).collect();
    }
    output::print(client.format, &Fields(all))
}

fn all(config: &Config) -> Map<String, Value> {
    let mut all: Map<String, Value> =
        config.limits.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect();
    all.insert("hostname".to_owned(), config.hostname.as_str().into());
    all.insert("dns".to_owned(), config.dns.to_string().into());
    all.insert("nesting".to_owned(), config.nesting.into());
    all.insert("autostart".to_owned(), config.autostart.into());
    all
}
