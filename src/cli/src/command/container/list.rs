//! `list`: the account's containers.

use std::collections::HashMap;

use cgrant_container::{
    Session, SessionError,
    system::{Phase, State},
};
use cgrant_image::store::{Store, StoreError};
use cgrant_proto::{ListGrants, names};
use serde_json::{Value, json};
use zbus::OwnedObjectPath;

use super::{config::Config, phase, reachable, state};
use crate::{
    Client,
    args::{Format, ListArgs, ListState},
    command::link,
    error::{Doing, Failure},
    output::{self, List},
    storage, value,
};

const DOING: &str = "list the containers";
/// Digits of an image's id in a table.
const SHORT: usize = 12;

/// A container that is listed.
struct Item {
    name: String,
    phase: Phase,
    frozen: bool,
    /// `None`: not known.
    links: Option<Value>,
    config: Option<Config>,
}

pub(super) fn list(client: &Client, args: &ListArgs) -> Result<(), Failure> {
    let store = storage::store()?;
    let items = wanted(client, &store, args)?;
    if args.quiet {
        let lines: String = items.iter().map(|item| format!("{}\n", item.name)).collect();
        return match client.format {
            Format::Table => output::write(lines.as_bytes()),
            Format::Json => {
                let names: Vec<&str> = items.iter().map(|item| item.name.as_str()).collect();
                output::write(output::json(&names)?.as_bytes())
            }
        };
    }
    let rows = items.iter().map(|item| row(item, client.format));
    output::print(client.format, &List::new(&["NAME", "STATE", "ADDRESS", "IMAGE"], rows))
}

/// Those that were asked for.
fn wanted(client: &Client, store: &Store, args: &ListArgs) -> Result<Vec<Item>, Failure> {
    let failed = |error: StoreError| Failure::work(DOING, error.into());
    let image = args.image.as_deref().map(|image| store.resolve(image).map_err(failed)).transpose()?;
    let image = image.map(|id| id.to_string());
    let mut names = store.containers().map_err(failed)?;
    names.retain(|name| args.names.is_empty() || args.names.iter().any(|pattern| matches(pattern, name)));
    let states: Vec<Option<State>> = names.iter().map(|name| state(store, name)).collect();
    // Nobody has to answer where nothing runs.
    let running = states.iter().any(|state| phase(state.as_ref()) != Phase::Stopped);
    let mut live = if running { reachable(live(client))? } else { Some(HashMap::new()) };
    if live.is_none() && args.state == Some(ListState::Paused) {
        return Err(Failure::Refused(format!("cannot {DOING}: which of them are paused is not known")));
    }
    let items = names.into_iter().zip(&states).map(|(name, state)| {
        let phase = phase(state.as_ref());
        let granted = live.as_mut().map(|live| live.remove(&name).unwrap_or_else(|| (json!([]), false)));
        // What does not run has none.
        let granted = if phase == Phase::Stopped { Some((json!([]), false)) } else { granted };
        let frozen = granted.as_ref().is_some_and(|(_, frozen)| *frozen);
        let config = Config::read(store, &name).ok();
        Item { phase, frozen, links: granted.map(|(links, _)| links), config, name }
    });
    let of_image =
        |item: &Item| image.is_none() || item.config.as_ref().map(|config| &config.image) == image.as_ref();
    let in_state = |item: &Item| args.state.is_none_or(|state| state == item.state());
    Ok(items.filter(|item| of_image(item) && in_state(item)).collect())
}

impl Item {
    fn state(&self) -> ListState {
        match self.phase {
            Phase::Starting | Phase::Running if self.frozen => ListState::Paused,
            Phase::Starting => ListState::Starting,
            Phase::Running => ListState::Running,
            Phase::Stopping => ListState::Stopping,
            Phase::Stopped => ListState::Stopped,
        }
    }
}

fn row(item: &Item, format: Format) -> Value {
    let addresses = |links: &Value| {
        links.as_array().into_iter().flatten().flat_map(link::addresses).map(Value::from).collect()
    };
    let address: Value = match (&item.links, format) {
        (Some(links), _) => addresses(links),
        (None, Format::Json) => Value::Null,
        (None, Format::Table) => "?".into(),
    };
    let image = item.config.as_ref().map(|config| match format {
        Format::Json => config.image.clone(),
        Format::Table if config.alias.is_empty() => config.image.chars().take(SHORT).collect(),
        Format::Table => config.alias.clone(),
    });
    let state = match item.state() {
        ListState::Paused => "paused".to_owned(),
        _ => item.phase.to_string(),
    };
    json!({
        "name": item.name,
        "state": state,
        "address": address,
        "image": image,
        "alias": item.config.as_ref().map(|config| &config.alias),
    })
}

/// Links of every grant, and whether it is frozen, by the grants' names.
fn live(client: &Client) -> Result<HashMap<String, (Value, bool)>, Failure> {
    let doing = || "ask for the containers' addresses".to_owned();
    let session = client.connect(&doing())?;
    let ask = || {
        let grants = session.call(session.manager()?.list_grants(&ListGrants::new()))?;
        let mut links = session.all_links()?;
        let of = |(path, name, _): (OwnedObjectPath, String, u32)| {
            let links = links.remove(&path).map_or_else(|| json!([]), |links| value::json(&links));
            (name, (links, is_frozen(&session, &path)))
        };
        Ok::<_, SessionError>(grants.into_iter().map(of).collect())
    };
    ask().doing(doing)
}

/// One that has ended meanwhile is not.
fn is_frozen(session: &Session, grant: &OwnedObjectPath) -> bool {
    let properties = session.properties(grant, names::CGROUP);
    properties.is_ok_and(|all| value::properties(&all).get("frozen") == Some(&Value::Bool(true)))
}

/// Is this the name, where '*' stands for anything?
fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else { return pattern == name };
    let Some(left) = name.strip_prefix(head) else { return false };
    (0..=left.len()).any(|at| left.get(at..).is_some_and(|tail| matches(rest, tail)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name) in [
            ("web", "web"),
            ("web*", "web"),
            ("web*", "web-1"),
            ("*", "x"),
            ("*b", "web"),
            ("w*b*1", "web-1"),
        ] {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("web", "web-1"), ("", "web"), ("*-", "web"), ("w*c", "web"), ("W*", "web")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
