//! `cgrant events`: the broker's signals, one a line, until the broker or the user ends it.

use cgrant_proto::{Description, Error, names};
use futures_util::StreamExt;
use serde_json::{Map, Value, json};
use zbus::{Message, MessageStream, OwnedObjectPath, message::Type};

use crate::{
    Client,
    args::Format,
    error::{Doing, Failure},
    exit, output, value,
};

const DOING: &str = "follow what happens";

pub(crate) fn run(client: &Client) -> Result<u8, Failure> {
    let session = client.connect(DOING)?;
    let mut stream = MessageStream::from(session.connection());
    // The broker tells those who have called it: this is the call.
    let greet = || session.call(session.manager()?.version());
    greet().doing(|| DOING.to_owned())?;
    loop {
        match session.wait(stream.next()) {
            Some(Ok(message)) => {
                if let Some(event) = event(&message) {
                    print(client.format, &event)?;
                }
            }
            Some(Err(error)) => return Err(Error::Dbus(error)).doing(|| DOING.to_owned()),
            None => return Ok(exit::NO_BROKER),
        }
    }
}

fn print(format: Format, event: &Map<String, Value>) -> Result<(), Failure> {
    match format {
        Format::Json => output::write(output::json(event)?.as_bytes()),
        Format::Table => {
            let kind = event.get("event").map(value::text).unwrap_or_default();
            let rest: Vec<String> = event
                .iter()
                .filter(|(key, _)| *key != "event")
                .map(|(key, value)| format!("{key}={}", output::printable(&value::text(value))))
                .collect();
            output::write(format!("{kind:<18}{}\n", rest.join(" ")).as_bytes())
        }
    }
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
    let about = |path: &OwnedObjectPath| names::grant_id(path.as_str()).map(str::to_owned);
    let fields = match (interface.as_str(), member.as_str()) {
        (names::MANAGER, "GrantAdded") => {
            let (path, name, account): (OwnedObjectPath, String, u32) = body.deserialize().ok()?;
            json!({ "event": "grant-added", "id": about(&path), "name": name, "account": account })
        }
        (names::MANAGER, "GrantRemoved") => {
            let (path, name, account, reason): (OwnedObjectPath, String, u32, String) =
                body.deserialize().ok()?;
            json!({ "event": "grant-removed", "id": about(&path), "name": name, "account": account, "reason": reason })
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
        ("org.freedesktop.DBus.Properties", "PropertiesChanged") => {
            let (_, changed, _): (
                String,
                std::collections::HashMap<String, zbus::OwnedVariant>,
                Vec<String>,
            ) = body.deserialize().ok()?;
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
    fn other_messages_and_odd_bodies_are_no_events() {
        let call = Message::method_call(PATH, "Freeze").build(&()).unwrap();
        assert!(event(&call).is_none());
        let odd = Message::signal(PATH, names::CGROUP, "Oom").build(&"text").unwrap();
        assert!(event(&odd).is_none());
        let foreign = Message::signal(PATH, "org.example.X", "Oom").build(&1_u64).unwrap();
        assert!(event(&foreign).is_none());
    }
}
