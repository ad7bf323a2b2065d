//! `list`: the account's containers, and with `--tree` what runs inside of them.
//!
//! Which there are the account's store says. What was made inside of one is kept in there, and from outside is known by its grant
//! alone, while it runs.

use std::collections::{BTreeMap, HashMap};

use cgrant_container::{
    Interfaces, SessionError,
    system::{Phase, State},
};
use cgrant_image::store::{Store, StoreError};
use cgrant_proto::{ListGrants, names};
use serde_json::{Map, Value, json};
use zbus::OwnedObjectPath;

use super::{config::Config, create::RESERVED, phase, reachable, state};
use crate::{
    Client,
    args::{Format, ListArgs, ListState},
    command::{inner, link},
    error::{Doing, Failure},
    output::{self, List},
    storage, value,
};

const DOING: &str = "list the containers";
/// Digits of an image's id in a table.
const SHORT: usize = 12;
/// What a name in a table has before it for each container around it.
const INDENT: &str = "  ";

/// A container that is listed.
struct Item {
    name: String,
    phase: Phase,
    /// `None`: not known.
    granted: Option<Granted>,
    config: Option<Config>,
}

/// What the broker knows of a container that runs.
struct Granted {
    /// It does not, if the container around it does not.
    frozen: bool,
    links: Value,
    inside: Vec<(String, Self)>,
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
    let rows = items.iter().flat_map(|item| match (args.tree, client.format) {
        (false, format) => vec![row(item, format)],
        (true, Format::Table) => [vec![row(item, Format::Table)], lines(item.inside(), 1)].concat(),
        (true, Format::Json) => vec![tree(row(item, Format::Json), item.inside())],
    });
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
    let missing = match (&live, args.state) {
        (None, Some(ListState::Paused)) => Some("which of them are paused"),
        (None, _) if args.tree => Some("what runs inside of them"),
        _ => None,
    };
    if let Some(missing) = missing {
        return Err(Failure::Refused(format!("cannot {DOING}: {missing} is not known")));
    }
    let items = names.into_iter().zip(&states).map(|(name, state)| {
        let phase = phase(state.as_ref());
        let granted = live.as_mut().map(|live| live.remove(&name).unwrap_or_default());
        // What does not run has none.
        let granted = if phase == Phase::Stopped { Some(Granted::default()) } else { granted };
        Item { phase, granted, config: Config::read(store, &name).ok(), name }
    });
    let of_image =
        |item: &Item| image.is_none() || item.config.as_ref().map(|config| &config.image) == image.as_ref();
    let in_state = |item: &Item| args.state.is_none_or(|state| state == item.state());
    Ok(items.filter(|item| of_image(item) && in_state(item)).collect())
}

impl Item {
    fn is_frozen(&self) -> bool {
        self.granted.as_ref().is_some_and(|granted| granted.frozen)
    }

    fn inside(&self) -> &[(String, Granted)] {
        self.granted.as_ref().map_or(&[], |granted| granted.inside.as_slice())
    }

    fn state(&self) -> ListState {
        match self.phase {
            Phase::Starting | Phase::Running if self.is_frozen() => ListState::Paused,
            Phase::Starting => ListState::Starting,
            Phase::Running => ListState::Running,
            Phase::Stopping => ListState::Stopping,
            Phase::Stopped => ListState::Stopped,
        }
    }
}

fn row(item: &Item, format: Format) -> Value {
    let address: Value = match (&item.granted, format) {
        (Some(granted), _) => granted.addresses(),
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

/// The row of a container, and in it those of what runs inside.
fn tree(mut row: Value, inside: &[(String, Granted)]) -> Value {
    let rows = inside.iter().map(|(name, granted)| tree(granted.row(name), &granted.inside));
    if let Value::Object(fields) = &mut row {
        fields.insert("inside".to_owned(), rows.collect());
    }
    row
}

/// The rows of what runs inside, in a table, in which a name is the further right the deeper it lies.
fn lines(inside: &[(String, Granted)], depth: usize) -> Vec<Value> {
    let line = |(name, granted): &(String, Granted)| {
        let row = granted.row(&format!("{}{name}", INDENT.repeat(depth)));
        std::iter::once(row).chain(lines(&granted.inside, depth + 1)).collect::<Vec<_>>()
    };
    inside.iter().flat_map(line).collect()
}

impl Default for Granted {
    fn default() -> Self {
        Self { frozen: false, links: json!([]), inside: Vec::new() }
    }
}

impl Granted {
    fn addresses(&self) -> Value {
        self.links.as_array().into_iter().flatten().flat_map(link::addresses).map(Value::from).collect()
    }

    /// What is known from outside of one that was made inside another.
    fn row(&self, name: &str) -> Value {
        let state = if self.frozen { "paused" } else { "running" };
        json!({ "name": name, "state": state, "address": self.addresses(), "image": null, "alias": null })
    }
}

/// What the broker knows of every grant that was made here, by its name.
fn live(client: &Client) -> Result<HashMap<String, Granted>, Failure> {
    let doing = || "ask for the containers' addresses".to_owned();
    let session = client.connect(&doing())?;
    let ask = || {
        let grants = session.call(session.manager()?.list_grants(&ListGrants::new()))?;
        let mut known = Known::new(session.all_grants()?);
        // In a container links are not the broker's to tell of.
        let mut own = if inner::is_here(&client.endpoint) { inner::links() } else { Map::new() };
        let of = |(path, name, _): (OwnedObjectPath, String, u32)| {
            let granted = known.take(&path, false);
            let links = own.remove(&name).unwrap_or_else(|| granted.links.clone());
            (name, Granted { links, ..granted })
        };
        Ok::<_, SessionError>(grants.into_iter().map(of).collect())
    };
    ask().doing(doing)
}

/// All grants that can be seen from here.
struct Known {
    grants: HashMap<OwnedObjectPath, Interfaces>,
    /// Those that were made inside another one, by its id: their objects by name.
    inside: HashMap<String, BTreeMap<String, OwnedObjectPath>>,
}

impl Known {
    fn new(grants: HashMap<OwnedObjectPath, Interfaces>) -> Self {
        let mut inside: HashMap<String, BTreeMap<_, _>> = HashMap::new();
        for (path, interfaces) in &grants {
            let own = |property| text(interfaces, property);
            let (Some(parent), Some(name)) = (own("Parent"), own("Name")) else { continue };
            // What works on images in there is no container.
            if !parent.is_empty() && !name.starts_with(RESERVED) {
                inside.entry(parent).or_default().insert(name, path.clone());
            }
        }
        Self { grants, inside }
    }

    /// A grant and those inside of it. One that has ended meanwhile has nothing.
    fn take(&mut self, path: &OwnedObjectPath, is_around_frozen: bool) -> Granted {
        let interfaces = self.grants.remove(path).unwrap_or_default();
        let property =
            |interface: &str, name: &str| interfaces.get(interface)?.get(name).map(|it| value::json(it));
        let frozen = is_around_frozen || property(names::CGROUP, "Frozen") == Some(Value::Bool(true));
        let links = property(names::LINKS, "Links").unwrap_or_else(|| json!([]));
        let inner = names::grant_id(path).and_then(|id| self.inside.remove(id)).unwrap_or_default();
        let inside = inner.into_iter().map(|(name, path)| (name, self.take(&path, frozen))).collect();
        Granted { frozen, links, inside }
    }
}

/// A property of a grant that is a text.
fn text(interfaces: &Interfaces, property: &str) -> Option<String> {
    interfaces
        .get(names::GRANT)?
        .get(property)
        .and_then(|value| value::json(value).as_str().map(str::to_owned))
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
