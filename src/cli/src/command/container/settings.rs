//! `set` and `get`: what a container is to be; its limits hold at once where it runs.

use std::collections::HashMap;

use cgrant_container::system::Control;
use cgrant_proto::Account;
use serde_json::{Map, Value};

use super::{Found, config::Config};
use crate::{
    Client,
    command::grant::each_once,
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
            "hostname" => config.hostname = value,
            "nesting" => {
                config.nesting = value
                    .parse()
                    .map_err(|_| Failure::Usage(format!("nesting is true or false, and not {value:?}")))?;
            }
            // Every limit has a dot in its key.
            key if key.contains('.') => drop(limits.insert(key.to_owned(), value)),
            key => {
                return Err(Failure::Usage(format!(
                    "{key:?} is no setting: limits (memory.max …), hostname and nesting are"
                )));
            }
        }
    }
    config.check(name)?;
    config.limits.extend(limits.clone());
    let running = found.run().and_then(|run| Control::connect(&run)).is_ok();
    if running && !limits.is_empty() {
        // The broker's word first: what it refuses is not written down.
        let session = client.connect(&found.doing)?;
        let change = || {
            let grant = session.call(session.manager()?.get_grant(name, &Account::new()))?;
            session.call(session.cgroup(&grant)?.set_limits(&limits))
        };
        change().doing(|| found.doing.clone())?;
    }
    config.write(&found.store, name).map_err(|error| found.failed(error))
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
    all.insert("nesting".to_owned(), config.nesting.into());
    all
}
