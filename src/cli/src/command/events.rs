//! `cgrant events`: the broker's signals, and what happens to the account's containers, one a line, until the broker or the user
//! ends it.
//!
//! A thread waits for the signals and passes them on through a pipe, so that one wait is for all there is.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, PipeReader, PipeWriter, Write},
    os::fd::AsFd,
    thread,
};

use cgrant_container::{Session, SessionError};
use cgrant_proto::{Description, Error, ListGrants, names};
use futures_util::StreamExt;
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde_json::{Map, Value, json};
use zbus::{Message, MessageStream, OwnedObjectPath, message::Type};

use super::container::{
    now,
    watch::{Event, Watch},
};
use crate::{
    Client,
    args::Format,
    error::{Doing, Failure},
    exit, output, value,
};

const DOING: &str = "follow what happens";

/// `names`: only what is about these containers and grants; all if there are none.
pub(crate) fn run(client: &Client, names: &[String]) -> Result<u8, Failure> {
    let machine = |source| Failure::Machine { doing: DOING, source };
    let session = client.connect(DOING)?;
    let signals = MessageStream::from(session.connection());
    // The broker tells those who have called it: this is the call.
    let list = || session.call(session.manager()?.list_grants(&ListGrants::new()));
    let grants = list().doing(|| DOING.to_owned())?;
    let known = grants.iter().filter_map(|(path, name, _)| Some((grant_of(path)?, name.clone())));
    let mut follower =
        Follower { format: client.format, wanted: names, known: known.collect(), watch: Watch::new()? };
    let (pipe, passed) = io::pipe().map_err(machine)?;
    let listener = thread::spawn(move || pass_on(&session, signals, passed));
    follower.follow(pipe)?;
    match listener.join() {
        Ok(Err(error)) => Err(error).doing(|| DOING.to_owned()),
        _ => Ok(exit::NO_BROKER),
    }
}

/// Writes signals to the pipe, one a line, until there are none any more or nobody reads them.
fn pass_on(session: &Session, mut signals: MessageStream, mut pipe: PipeWriter) -> Result<(), SessionError> {
    while let Some(message) = session.wait(signals.next()) {
        let message = message.map_err(Error::Dbus)?;
        if let Some(event) = event(&message)
            && writeln!(pipe, "{}", Value::Object(event)).is_err()
        {
            return Ok(());
        }
    }
    Ok(())
}

struct Follower<'a> {
    format: Format,
    wanted: &'a [String],
    /// Names of grants by their ids.
    known: HashMap<String, String>,
    watch: Watch,
}

impl Follower<'_> {
    /// Until the pipe has ended.
    fn follow(&mut self, pipe: PipeReader) -> Result<(), Failure> {
        let mut pipe = BufReader::new(pipe);
        loop {
            // What was read beyond a line waits in here, and not in the pipe.
            if pipe.buffer().is_empty() && !self.wait(pipe.get_ref())? {
                self.tell_of_containers()?;
                continue;
            }
            let mut line = String::new();
            let read = pipe.read_line(&mut line);
            if read.map_err(|source| Failure::Machine { doing: DOING, source })? == 0 {
                return Ok(());
            }
            // First what a container's monitor wrote down before its grant ended.
            self.tell_of_containers()?;
            if let Ok(Value::Object(event)) = serde_json::from_str(&line) {
                self.tell_of_grant(event)?;
            }
        }
    }

    /// `true` if it is the pipe that has something.
    fn wait(&self, pipe: &PipeReader) -> Result<bool, Failure> {
        loop {
            let mut fds = [
                PollFd::new(pipe.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.watch.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Ok(_) => return Ok(fds.first().and_then(PollFd::any).unwrap_or(false)),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Failure::Machine { doing: DOING, source: errno.into() }),
            }
        }
    }

    fn tell_of_containers(&mut self) -> Result<(), Failure> {
        self.watch.events().into_iter().try_for_each(|event| self.tell(event))
    }

    /// Most signals have the grant's id alone; people know its name.
    fn tell_of_grant(&mut self, mut event: Event) -> Result<(), Failure> {
        let id = text(&event, "id");
        let kind = text(&event, "event");
        let name = match (kind.as_str(), text(&event, "name")) {
            ("grant-added", name) => {
                self.known.insert(id, name.clone());
                name
            }
            ("grant-removed", name) => {
                self.known.remove(&id);
                name
            }
            (_, link) => {
                let grant = self.known.get(&id).cloned().unwrap_or_default();
                // The name of a link stays what it is.
                let key = if link.is_empty() { "name" } else { "grant" };
                event.insert(key.to_owned(), grant.as_str().into());
                grant
            }
        };
        let lost = (kind == "grant-removed").then(|| self.watch.lost(&name)).flatten();
        event.insert("container".to_owned(), self.watch.has(&name).into());
        self.tell(event)?;
        lost.map_or(Ok(()), |lost| self.tell(lost))
    }

    fn tell(&self, mut event: Event) -> Result<(), Failure> {
        let about = ["name", "grant", "before"].map(|key| text(&event, key));
        if !self.wanted.is_empty() && !about.iter().any(|name| self.wanted.contains(name)) {
            return Ok(());
        }
        event.insert("time".to_owned(), now().into());
        print(self.format, &event)
    }
}

fn text(event: &Event, key: &str) -> String {
    event.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn grant_of(path: &OwnedObjectPath) -> Option<String> {
    names::grant_id(path.as_str()).map(str::to_owned)
}

fn print(format: Format, event: &Event) -> Result<(), Failure> {
    match format {
        Format::Json => output::write(output::json(event)?.as_bytes()),
        Format::Table => output::write(line(event).as_bytes()),
    }
}

/// When, what, to which, and the rest.
fn line(event: &Event) -> String {
    let time = event.get("time").and_then(Value::as_u64).map(output::time).unwrap_or_default();
    let first = ["event", "time"];
    // Whether a grant is a container's is seen from the container's own events.
    let rest = |key: &&String| !first.contains(&key.as_str()) && *key != "name" && *key != "container";
    let pair = |key: &String| {
        format!("{key}={}", output::printable(&event.get(key).map(value::text).unwrap_or_default()))
    };
    let name = event.contains_key("name").then(|| pair(&"name".to_owned()));
    let all: Vec<String> = name.into_iter().chain(event.keys().filter(rest).map(pair)).collect();
    format!("{time}  {:<20}{}\n", text(event, "event"), all.join(" "))
}

/// A signal of the broker's as one object; `None` for every other message.
fn event(message: &Message) -> Option<Map<String, Value>> {
    if message.message_type() != Type::Signal {
        return None;
    }
    let header = message.header();
    let (interface, member) = (header.interface()?.to_string(), header.member()?.to_string());
    let id = header.path().and_then(|path| names::grant_id(path.as_str()).map(str::to_owned));
    let body = message.body();
    let fields = match (interface.as_str(), member.as_str()) {
        (names::MANAGER, "GrantAdded") => {
            let (path, name, account): (OwnedObjectPath, String, u32) = body.deserialize().ok()?;
            json!({ "event": "grant-added", "id": grant_of(&path), "name": name, "account": account })
        }
        (names::MANAGER, "GrantRemoved") => {
            let (path, name, account, reason): (OwnedObjectPath, String, u32, String) =
                body.deserialize().ok()?;
            json!({ "event": "grant-removed", "id": grant_of(&path), "name": name, "account": account, "reason": reason })
        }
        (names::LINKS, "LinkAdded") => {
            let (name, link): (String, Description) = body.deserialize().ok()?;
            json!({ "event": "link-added", "id": id, "name": name, "link": value::description(&link) })
        }
        (names::LINKS, "LinkRemoved") => {
            let (name, reason): (String, String) = body.deserialize().ok()?;
            json!({ "event": "link-removed", "id": id, "name": name, "reason": reason })
        }
        (names::CGROUP, "Oom") => {
            json!({ "event": "oom", "id": id, "kills": body.deserialize::<u64>().ok()? })
        }
        (names::CGROUP, "Pressure") => {
            json!({ "event": "pressure", "id": id, "resource": body.deserialize::<String>().ok()? })
        }
        // Of grants. What an account uses changes all the time, and `usage` shows it.
        ("org.freedesktop.DBus.Properties", "PropertiesChanged") if id.is_some() => {
            let (_, changed, _): (String, HashMap<String, zbus::OwnedVariant>, Vec<String>) =
                body.deserialize().ok()?;
            json!({ "event": "changed", "id": id, "properties": value::properties(&changed) })
        }
        _ => return None,
    };
    match fields {
        Value::Object(fields) => Some(fields),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use std::collections::HashMap;

    use zbus::{ObjectPath, Variant};

    use super::*;

    const PATH: &str = "/org/cgrant/Broker1/grant/00000000000000ff";

    #[test]
    fn signals_become_events() {
        let path = ObjectPath::try_from(PATH).unwrap();
        let removed = Message::signal(names::MANAGER_PATH, names::MANAGER, "GrantRemoved")
            .build(&(path, "x", 7_u32, "released"))
            .unwrap();
        let event = Value::Object(event(&removed).unwrap());
        let expected = json!({"event": "grant-removed", "id": "00000000000000ff", "name": "x", "account": 7, "reason": "released"});
        assert_eq!(event, expected);
    }

    #[test]
    fn changes_name_their_properties() {
        let changed = HashMap::from([("Frozen", Variant::new(true))]);
        let message = Message::signal(PATH, "org.freedesktop.DBus.Properties", "PropertiesChanged")
            .build(&(names::CGROUP, changed, Vec::<String>::new()))
            .unwrap();
        let expected = json!({"event": "changed", "id": "00000000000000ff", "properties": {"frozen": true}});
        assert_eq!(Value::Object(event(&message).unwrap()), expected);
        let usage = HashMap::from([("Usage", Variant::new(HashMap::from([("grants", 1_u64)])))]);
        let message =
            Message::signal(names::account_path(7), "org.freedesktop.DBus.Properties", "PropertiesChanged")
                .build(&("org.cgrant.Broker1.Account", usage, Vec::<String>::new()))
                .unwrap();
        assert_eq!(event(&message), None);
    }

    #[test]
    fn links_come_and_go() {
        let link = HashMap::from([("address4", Variant::new("10.0.0.16/22"))]);
        let added = Message::signal(PATH, names::LINKS, "LinkAdded").build(&("eth0", link)).unwrap();
        let expected = json!({"event": "link-added", "id": "00000000000000ff", "name": "eth0",
            "link": {"address4": "10.0.0.16/22"}});
        assert_eq!(Value::Object(event(&added).unwrap()), expected);
        let removed = Message::signal(PATH, names::LINKS, "LinkRemoved").build(&("eth0", "lost")).unwrap();
        let expected =
            json!({"event": "link-removed", "id": "00000000000000ff", "name": "eth0", "reason": "lost"});
        assert_eq!(Value::Object(event(&removed).unwrap()), expected);
    }

    #[test]
    fn a_line_begins_with_what_matters() {
        let Value::Object(event) = json!({"event": "oom", "id": "ff", "kills": 2, "name": "w\neb", "time": 0,
            "container": true})
        else {
            panic!()
        };
        let expected = "1970-01-01 00:00:00 UTC  oom                 name=w\u{fffd}eb id=ff kills=2\n";
        assert_eq!(line(&event), expected);
    }

    #[test]
    fn other_messages_and_odd_bodies_are_no_events() {
        let call = Message::method_call(PATH, "Freeze").build(&()).unwrap();
        assert!(event(&call).is_none());
        let odd = Message::signal(PATH, names::CGROUP, "Oom").build(&"text").unwrap();
        assert!(event(&odd).is_none());
        let foreign = Message::signal(PATH, "org.example.X", "Oom").build(&1_u64).unwrap();
        assert!(event(&foreign).is_none());
    }
}
