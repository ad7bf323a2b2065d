//! `list`, `info`, `top` and `logs`.

use std::collections::HashMap;

use cgrant_container::{
    Session,
    system::{Phase, State, read_log},
};
use cgrant_image::store::StoreError;
use cgrant_proto::{Account, ListGrants, names};
use serde_json::{Map, Value, json};

use super::{Found, config::Config, state};
use crate::{
    Client,
    args::Format,
    command::link,
    error::{Doing, Failure},
    output::{self, Fields, List, bytes},
    storage, value,
};

/// Digits of an image's id in a table.
const SHORT: usize = 12;
/// Most that is read of a console's log.
const ALL: usize = usize::MAX;
/// Lines that tell why a container ended.
const LAST: usize = 10;

pub(super) fn list(client: &Client) -> Result<(), Failure> {
    const DOING: &str = "list the containers";
    let failed = |error: StoreError| Failure::work(DOING, error.into());
    let store = storage::store()?;
    let names = store.containers().map_err(failed)?;
    let states: Vec<Option<State>> = names.iter().map(|name| state(&store, name)).collect();
    // Nobody has to answer where nothing runs.
    let running = states.iter().any(|state| phase(state.as_ref()) != Phase::Stopped);
    let mut links = if running { links_of_all(client)? } else { HashMap::new() };
    let items = names.iter().zip(&states).map(|(name, state)| {
        let links = links.remove(name).unwrap_or_else(|| json!([]));
        let address: Vec<&str> = links.as_array().into_iter().flatten().flat_map(link::addresses).collect();
        let config = Config::read(&store, name).ok();
        let image = config.as_ref().map(|config| match client.format {
            Format::Json => config.image.clone(),
            Format::Table if config.alias.is_empty() => config.image.chars().take(SHORT).collect(),
            Format::Table => config.alias.clone(),
        });
        json!({
            "name": name,
            "state": phase(state.as_ref()).to_string(),
            "address": address,
            "image": image,
            "alias": config.map(|config| config.alias),
        })
    });
    output::print(client.format, &List::new(&["NAME", "STATE", "ADDRESS", "IMAGE"], items))
}

fn phase(state: Option<&State>) -> Phase {
    state.map_or(Phase::Stopped, |state| state.phase)
}

/// The links of every grant, by the grants' names.
fn links_of_all(client: &Client) -> Result<HashMap<String, Value>, Failure> {
    const DOING: &str = "ask for the containers' addresses";
    let session = client.connect(DOING)?;
    let ask = || {
        let grants = session.call(session.manager()?.list_grants(&ListGrants::new()))?;
        Ok::<_, cgrant_container::SessionError>((grants, session.all_links()?))
    };
    let (grants, mut links) = ask().doing(|| DOING.to_owned())?;
    let of = grants.into_iter().filter_map(|(path, name, _)| {
        let links = links.remove(&path)?;
        Some((name, value::json(&links)))
    });
    Ok(of.collect())
}

pub(super) fn info(client: &Client, name: &str) -> Result<(), Failure> {
    let found = Found::new(name, "show")?;
    let mut fields = Map::new();
    fields.insert("name".to_owned(), name.into());
    let state = state(&found.store, name);
    fields.insert("state".to_owned(), phase(state.as_ref()).to_string().into());
    if let Some(state) = &state {
        fields.extend(of_state(state, client.format));
    }
    if phase(state.as_ref()) != Phase::Stopped {
        let session = client.connect(&found.doing)?;
        fields.extend(of_grant(&session, &found)?);
    }
    let config = serde_json::to_value(&found.config).unwrap_or_default();
    let config = match config {
        Value::Object(config) => config,
        _ => Map::new(),
    };
    for (key, value) in config {
        let value = match (key.as_str(), value.as_u64(), client.format) {
            ("format" | "started", ..) => continue,
            ("created", Some(time), Format::Table) => output::time(time).into(),
            _ => value,
        };
        fields.entry(key).or_insert(value);
    }
    output::print(client.format, &Fields(fields))
}

fn of_state(state: &State, format: Format) -> Vec<(String, Value)> {
    let time = |time: u64| match format {
        Format::Json => json!(time),
        Format::Table => output::time(time).into(),
    };
    let fields = [
        ("init", state.init.map(Value::from)),
        ("monitor", state.init.map(|_| state.monitor.into())),
        ("started-at", Some(time(state.started))),
        ("booted-at", state.ready.map(time)),
        ("boot-seconds", state.ready.map(|ready| seconds(ready.saturating_sub(state.started)).into())),
        ("stopped-at", state.stopped.map(time)),
        ("ended", state.ended.map(|ended| ended.to_string().into())),
        ("reboots", Some(state.reboots.into())),
        ("status", Some(state.status.as_str().into()).filter(|_| !state.status.is_empty())),
    ];
    fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

fn seconds(microseconds: u64) -> String {
    format!("{}.{:03}", microseconds / 1_000_000, microseconds % 1_000_000 / 1000)
}

/// What the broker says about a container that runs.
fn of_grant(session: &Session, found: &Found) -> Result<Map<String, Value>, Failure> {
    let ask = || {
        let path = session.call(session.manager()?.get_grant(&found.name, &Account::new()))?;
        let figures = session.call(session.cgroup(&path)?.stat())?;
        let mut fields = Map::new();
        for interface in [names::CGROUP, names::LINKS, names::IDS] {
            fields.append(&mut value::properties(&session.properties(&path, interface)?));
        }
        fields.append(&mut value::properties(&figures));
        Ok::<_, cgrant_container::SessionError>(fields)
    };
    ask().doing(|| found.doing.clone())
}

pub(super) fn top(client: &Client) -> Result<(), Failure> {
    const DOING: &str = "show what containers use";
    let failed = |error: StoreError| Failure::work(DOING, error.into());
    let store = storage::store()?;
    let mut running = store.containers().map_err(failed)?;
    running.retain(|name| phase(state(&store, name).as_ref()) != Phase::Stopped);
    let mut items = Vec::new();
    if !running.is_empty() {
        let session = client.connect(DOING)?;
        for name in &running {
            let ask = || {
                let path = session.call(session.manager()?.get_grant(name, &Account::new()))?;
                session.call(session.cgroup(&path)?.stat())
            };
            let figures = value::properties(&ask().doing(|| DOING.to_owned())?);
            items.push(row(client.format, name, &figures));
        }
    }
    output::print(client.format, &List::new(&["NAME", "CPU", "MEMORY", "TASKS"], items))
}

fn row(format: Format, name: &str, figures: &Map<String, Value>) -> Value {
    let figure = |key: &str| figures.get(key).and_then(Value::as_u64);
    let (cpu, memory) = (figure("cpu-usage-usec"), figure("memory-current"));
    match format {
        Format::Json => json!({
            "name": name, "cpu": cpu, "memory": memory, "tasks": figure("pids-current"),
        }),
        Format::Table => json!({
            "name": name,
            "cpu": cpu.map(|cpu| format!("{}s", seconds(cpu))),
            "memory": memory.map(bytes),
            "tasks": figure("pids-current"),
        }),
    }
}

pub(super) fn logs(name: &str) -> Result<(), Failure> {
    let found = Found::new(name, "show the console of")?;
    let Ok(run) = found.run() else { return Ok(()) };
    let text = read_log(&run, ALL)
        .map_err(|source| Failure::Machine { doing: "read what was printed on the console", source })?;
    output::write(&text)
}

/// The last lines on a container's console, without what a terminal would obey.
pub(super) fn last_lines(found: &Found) -> String {
    let Ok(text) = found.run().map_err(drop).and_then(|run| read_log(&run, ALL).map_err(drop)) else {
        return String::new();
    };
    let text = String::from_utf8_lossy(&text).replace('\r', "");
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let from = lines.len().saturating_sub(LAST);
    let last = lines.get(from..).unwrap_or_default();
    last.iter().map(|line| output::printable(line)).collect::<Vec<_>>().join("\n")
}
