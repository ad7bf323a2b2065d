//! `info`: all about a container.

use std::time::Duration;

use cgrant_container::{
    Session,
    system::{Phase, State},
};
use cgrant_proto::{Account, names};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::{Found, disk, now, phase, reachable, state};
use crate::{
    Client,
    args::Format,
    command::{inner, link},
    error::{Doing, Failure},
    output::{self, Report, bytes},
    value,
};

/// What is known, as programs want it, and as people read it.
struct Sheet {
    all: Map<String, Value>,
    rows: Vec<(&'static str, String)>,
}

impl Serialize for Sheet {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.all.serialize(serializer)
    }
}

impl Report for Sheet {
    fn rows(&self) -> Vec<Vec<String>> {
        self.rows.iter().map(|(name, value)| vec![(*name).to_owned(), value.clone()]).collect()
    }
}

pub(super) fn info(client: &Client, name: &str, with_disk: bool) -> Result<(), Failure> {
    let found = Found::new(name, "show")?;
    // The job is made while this process has one thread.
    let files = with_disk.then(|| disk::of(client, &found)).transpose()?;
    let (state, granted) = look(client, &found)?;
    let mut all = Map::new();
    all.insert("name".to_owned(), name.into());
    all.insert("state".to_owned(), phase(state.as_ref()).to_string().into());
    if let Some(state) = &state {
        all.extend(of_state(state));
    }
    all.extend(granted);
    match files {
        Some(Ok(usage)) => {
            all.insert("disk-bytes".to_owned(), usage.bytes.into());
            all.insert("disk-files".to_owned(), usage.files.into());
        }
        Some(Err(why)) => {
            all.insert("disk-unknown".to_owned(), why.into());
        }
        None => {}
    }
    if let Ok(Value::Object(config)) = serde_json::to_value(&found.config) {
        for (key, value) in config {
            if !matches!(key.as_str(), "format" | "started" | "news") {
                all.entry(key).or_insert(value);
            }
        }
    }
    let rows = match client.format {
        Format::Table => rows(&all),
        Format::Json => Vec::new(),
    };
    output::print(client.format, &Sheet { all, rows })
}

/// What its monitor says, and the broker while it runs. If it ends between the two, it has ended.
fn look(client: &Client, found: &Found) -> Result<(Option<State>, Map<String, Value>), Failure> {
    let state_now = || state(&found.store, &found.name);
    let has_ended = |state: &Option<State>| phase(state.as_ref()) == Phase::Stopped;
    let state = state_now();
    if has_ended(&state) {
        return Ok((state, Map::new()));
    }
    let granted = client.connect(&found.doing).and_then(|session| of_grant(&session, found));
    let granted = granted.map(|granted| with_own_links(client, found, granted));
    match reachable(granted) {
        Ok(granted) => Ok((state, granted.unwrap_or_default())),
        Err(failure) => match state_now() {
            state if has_ended(&state) => Ok((state, Map::new())),
            _ => Err(failure),
        },
    }
}

fn of_state(state: &State) -> Vec<(String, Value)> {
    let runs = state.phase != Phase::Stopped;
    let fields = [
        ("init", state.init.map(Value::from)),
        ("monitor", state.init.map(|_| state.monitor.into())),
        ("started-at", Some(state.started.into())),
        ("uptime", runs.then(|| (now().saturating_sub(state.started) / 1_000_000).into())),
        ("booted-at", state.ready.map(Value::from)),
        ("boot-seconds", state.ready.map(|ready| seconds(ready.saturating_sub(state.started)).into())),
        ("stopped-at", state.stopped.map(Value::from)),
        ("ended", state.ended.map(|ended| ended.to_string().into())),
        ("reboots", Some(state.reboots.into())),
        ("status", Some(state.status.as_str().into()).filter(|_| !state.status.is_empty())),
    ];
    fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
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

/// In a container its links are not the broker's to tell of.
fn with_own_links(client: &Client, found: &Found, mut granted: Map<String, Value>) -> Map<String, Value> {
    if inner::is_here(&client.endpoint)
        && let Some(links) = inner::links().remove(&found.name)
    {
        granted.insert("links".to_owned(), links);
    }
    granted
}

/// In the order in which people ask.
fn rows(all: &Map<String, Value>) -> Vec<(&'static str, String)> {
    let text = |key: &str| all.get(key).map(value::text).filter(|text| !text.is_empty());
    let number = |key: &str| all.get(key).and_then(Value::as_u64);
    let limit = |key: &str| all.get("limits").and_then(|limits| limits.get(key)).map(value::text);
    let links: Vec<&Value> = all.get("links").and_then(Value::as_array).into_iter().flatten().collect();
    let joined = |texts: Vec<String>| Some(texts.join(" ")).filter(|text| !text.is_empty());
    let time = |key: &str| number(key).map(output::time);
    let state = text("state").map(|state| match all.get("frozen") {
        Some(Value::Bool(true)) => format!("{state} (paused)"),
        _ => state,
    });
    let rows = [
        ("name", text("name")),
        ("state", state),
        ("says", text("status")),
        ("image", image(all)),
        ("created", time("created")),
        ("started", time("started-at")),
        ("uptime", number("uptime").map(|seconds| period(Duration::from_secs(seconds)))),
        ("booted within", text("boot-seconds").map(|seconds| format!("{seconds} s"))),
        ("reboots", text("reboots").filter(|number| number != "0")),
        ("stopped", time("stopped-at")),
        ("ended by", text("ended")),
        ("hostname", text("hostname")),
        ("machine id", text("machine")),
        (
            "addresses",
            joined(links.iter().flat_map(|link| link::addresses(link)).map(str::to_owned).collect()),
        ),
        ("ports", joined(links.iter().filter_map(|link| link.get("ports")).map(value::text).collect())),
        ("network", network(&links, all)),
        ("dns", text("dns").filter(|dns| dns != "link")),
        ("memory", used(number("memory-current").map(bytes), limit("memory.max").map(readable))),
        ("tasks", used(number("pids-current").map(|tasks| tasks.to_string()), limit("pids.max"))),
        ("disk", disk_use(all)),
        ("cpu time", number("cpu-usage-usec").map(|used| format!("{} s", seconds(used)))),
        ("killed for memory", text("oom-kills").filter(|kills| kills != "0")),
        ("limits", text("limits")),
        ("ids", number("uid").zip(number("count")).map(|(uid, count)| format!("{count} from {uid}"))),
        ("range", text("range")),
        ("mounts", mounts(all)),
        ("devices", text("devices")),
        ("environment", text("environment")),
        ("init", text("init")),
        ("monitor", text("monitor")),
        ("nesting", text("nesting")),
        ("autostart", text("autostart")),
    ];
    rows.into_iter().filter_map(|(name, text)| Some((name, text?))).collect()
}

fn disk_use(all: &Map<String, Value>) -> Option<String> {
    let number = |key: &str| all.get(key).and_then(Value::as_u64);
    let known = number("disk-bytes").zip(number("disk-files"));
    let known = known.map(|(size, files)| format!("{} in {files} files", bytes(size)));
    known.or_else(|| all.get("disk-unknown").map(|why| format!("unknown: {}", value::text(why))))
}

fn image(all: &Map<String, Value>) -> Option<String> {
    let (id, alias) = (all.get("image")?.as_str()?, all.get("alias")?.as_str()?);
    Some(format!("{alias} ({})", id.get(..12).unwrap_or(id)))
}

/// The bridges of its links; of a container that does not run, what it will get.
fn network(links: &[&Value], all: &Map<String, Value>) -> Option<String> {
    let of = |link: &&Value| {
        let text = |key: &str| link.get(key).map(value::text).unwrap_or_default();
        format!("{} on {}", text("name"), text("bridge"))
    };
    match links.is_empty() {
        false => Some(links.iter().map(of).collect::<Vec<_>>().join(", ")),
        true => all.get("link").map(value::text).filter(|text| !text.is_empty()),
    }
}

fn mounts(all: &Map<String, Value>) -> Option<String> {
    let mount = |mount: &Value| {
        let text = |key: &str| mount.get(key).map(value::text).unwrap_or_default();
        let read_only = if mount.get("read_only") == Some(&json!(true)) { ",ro" } else { "" };
        let owner = match text("uid").as_str() {
            "0" => String::new(),
            uid => format!(",as={uid}:{}", text("gid")),
        };
        format!("{}:{}{read_only}{owner}", text("source"), text("target"))
    };
    let all: Vec<String> = all.get("mounts")?.as_array()?.iter().map(mount).collect();
    Some(all.join(" ")).filter(|text| !text.is_empty())
}

fn used(used: Option<String>, limit: Option<String>) -> Option<String> {
    let used = used?;
    Some(match limit.filter(|limit| limit != "max") {
        Some(limit) => format!("{used} of {limit}"),
        None => used,
    })
}

fn readable(limit: String) -> String {
    limit.parse().map(bytes).unwrap_or(limit)
}

/// Seconds, from microseconds.
pub(super) fn seconds(microseconds: u64) -> String {
    format!("{}.{:03}", microseconds / 1_000_000, microseconds % 1_000_000 / 1000)
}

/// A time as people say it: the two largest units.
fn period(time: Duration) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let mut left = time.as_secs();
    let mut parts = Vec::new();
    for (seconds, unit) in UNITS {
        let count = left / seconds;
        left %= seconds;
        if count > 0 && parts.len() < 2 {
            parts.push(format!("{count} {unit}"));
        }
    }
    if parts.is_empty() { "0 s".to_owned() } else { parts.join(" ") }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn people_see_what_they_ask_for_first() {
        let all = json!({
            "name": "web", "state": "running", "frozen": true, "image": "0123456789abcdef", "alias": "debian",
            "disk-bytes": 1_048_576, "disk-files": 12, "uptime": 93_784, "reboots": 0, "memory-current": 1_572_864, "pids-current": 7, "uid": 100_000,
            "count": 65_536, "limits": {"memory.max": "536870912", "pids.max": "max"},
            "links": [{"name": "eth0", "bridge": "cgrant0", "address4": "10.0.0.9/24", "ports": ["80:8080/tcp"]}],
            "mounts": [{"source": "/srv", "target": "/data", "read_only": true, "uid": 33, "gid": 34}],
        });
        let Value::Object(all) = all else { panic!() };
        let rows = rows(&all);
        let row = |name: &str| rows.iter().find(|(row, _)| *row == name).map(|(_, text)| text.as_str());
        assert_eq!(rows[..2], [("name", "web".to_owned()), ("state", "running (paused)".to_owned())]);
        assert_eq!(row("image"), Some("debian (0123456789ab)"));
        assert_eq!(row("uptime"), Some("1 d 2 h"));
        assert_eq!((row("memory"), row("tasks")), (Some("1.5M of 512.0M"), Some("7")));
        assert_eq!((row("addresses"), row("ports")), (Some("10.0.0.9"), Some("80:8080/tcp")));
        assert_eq!((row("network"), row("ids")), (Some("eth0 on cgrant0"), Some("65536 from 100000")));
        assert_eq!(row("disk"), Some("1.0M in 12 files"));
        assert_eq!(row("mounts"), Some("/srv:/data,ro,as=33:34"));
        assert_eq!((row("reboots"), row("ended by")), (None, None));
    }

    #[test]
    fn periods_have_two_units() {
        for (seconds, text) in
            [(0, "0 s"), (59, "59 s"), (3_600, "1 h"), (3_661, "1 h 1 min"), (172_805, "2 d 5 s")]
        {
            assert_eq!(period(Duration::from_secs(seconds)), text);
        }
    }
}
