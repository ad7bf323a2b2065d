//! Is what the kernel has what was put there? Compared are chains with their places, rules by their comments and order, and what is
//! in sets; not the rules' inside, which each version of `nft` writes in its own way.
//!
//! That finds a flushed or deleted table, chain or rule, a rule that was put in, an element that was taken out. Only root can
//! change a rule and leave its comment.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Deserializer, Value};

use super::{
    error::FirewallError,
    schema::{Command, Family, Object, Table},
};

/// What is compared.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Picture {
    tables: BTreeSet<String>,
    /// Place and policy, and the comments of rules, by table and chain.
    chains: BTreeMap<(String, String), (Option<String>, Vec<String>)>,
    /// Elements by table and set.
    sets: BTreeMap<(String, String), BTreeSet<String>>,
}

/// What lists the table of that family and name.
pub fn listing(family: Family, table: &str) -> Command {
    Command::List(Object::Table(Table { family, name: table.to_owned(), comment: String::new() }))
}

/// The picture of what commands build. `names` are those of devices by index: listings have names.
pub fn expected(commands: &[Command], names: &BTreeMap<u32, &str>) -> Picture {
    let mut picture = Picture::default();
    for command in commands {
        let Command::Add(object) = command else { continue };
        let Ok(value) = serde_json::to_value(object) else { continue };
        picture.add(&value, &|word: &str| {
            let name = word.parse().ok().and_then(|index: u32| names.get(&index));
            name.map_or_else(|| word.to_owned(), |name| (*name).to_owned())
        });
    }
    picture
}

/// The picture of what `nft` listed: one document for each command.
///
/// # Errors
/// [`FirewallError::Listing`].
pub fn found(output: &[u8]) -> Result<Picture, FirewallError> {
    let mut picture = Picture::default();
    for document in Deserializer::from_slice(output).into_iter::<Value>() {
        let document = document.map_err(FirewallError::Listing)?;
        let objects = document.get("nftables").and_then(Value::as_array);
        objects.into_iter().flatten().for_each(|object| picture.add(object, &|word| word.to_owned()));
    }
    Ok(picture)
}

impl Picture {
    fn add(&mut self, object: &Value, name: &dyn Fn(&str) -> String) {
        let Some((kind, value)) = object.as_object().and_then(|object| object.iter().next()) else { return };
        let text = |key: &str| value.get(key).map(plain).unwrap_or_default();
        let table = |name: &str| format!("{} {}", text("family"), text(name));
        match kind.as_str() {
            "table" => {
                self.tables.insert(table("name"));
            }
            "chain" => {
                let place =
                    value.get("hook").map(|_| ["type", "hook", "prio", "policy"].map(&text).join(" "));
                self.chains.entry((table("table"), text("name"))).or_default().0 = place;
            }
            "rule" => {
                let chain = self.chains.entry((table("table"), text("chain"))).or_default();
                chain.1.push(text("comment"));
            }
            "set" | "map" => {
                let devices = value.get("type").map(words).unwrap_or_default();
                let elements = value.get("elem").and_then(Value::as_array);
                let elements = elements.into_iter().flatten();
                let elements = elements.map(|element| {
                    // Only indexes of devices are numbers in one and names in the other.
                    let word = |(place, word): (usize, String)| match devices.get(place) {
                        Some(kind) if kind == "iface_index" => name(&word),
                        // Without /etc/protocols nft lists numbers [tried].
                        Some(kind) if kind == "inet_proto" && word == "6" => "tcp".to_owned(),
                        Some(kind) if kind == "inet_proto" && word == "17" => "udp".to_owned(),
                        _ => word,
                    };
                    words(element).into_iter().enumerate().map(word).collect::<Vec<_>>().join(" ")
                });
                self.sets.insert((table("table"), text("name")), elements.collect());
            }
            _ => {}
        }
    }
}

/// All words in a value, in order.
fn words(value: &Value) -> Vec<String> {
    match value {
        Value::Array(members) => members.iter().flat_map(words).collect(),
        Value::Object(members) => members.values().flat_map(words).collect(),
        _ => vec![plain(value)],
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::{lan, link, route};

    #[test]
    fn rules_of_a_chain_are_told_apart_by_their_comments() {
        let commands = [link::shared("t"), lan::chains("t"), route::chains("t")].concat();
        let picture = expected(&commands, &BTreeMap::new());
        assert!(picture.chains.len() > 15);
        for (name, (_, comments)) in &picture.chains {
            let different: BTreeSet<&String> = comments.iter().collect();
            assert_eq!(different.len(), comments.len(), "{name:?}: {comments:?}");
            // The kernel keeps no more with a rule.
            assert!(comments.iter().all(|comment| !comment.is_empty() && comment.len() < 128), "{name:?}");
        }
    }

    #[test]
    fn listings_of_two_versions_are_the_same_picture() {
        let new = r#"{"nftables": [{"metainfo": {"version": "1.1.3"}},
            {"table": {"family": "netdev", "name": "t", "handle": 1, "comment": "x"}},
            {"chain": {"family": "netdev", "table": "t", "name": "c", "handle": 3, "dev": "va", "type": "filter",
                "hook": "ingress", "prio": 0, "policy": "drop"}},
            {"set": {"family": "netdev", "name": "s", "table": "t", "type": ["mark", "iface_index"], "handle": 1,
                "elem": [{"concat": [1048576, "va"]}, {"concat": [1048576, "77"]}]}},
            {"rule": {"family": "netdev", "table": "t", "chain": "c", "handle": 4, "comment": "r", "expr": []}}]}"#;
        let old = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
            {"table": {"family": "netdev", "name": "t", "handle": 1}},
            {"set": {"family": "netdev", "name": "s", "table": "t", "type": ["mark", "iface_index"], "handle": 1,
                "elem": [{"concat": [1048576, "77"]}, {"concat": [1048576, "va"]}]}},
            {"chain": {"family": "netdev", "table": "t", "name": "c", "handle": 3, "type": "filter",
                "hook": "ingress", "prio": 0, "policy": "drop"}},
            {"rule": {"family": "netdev", "table": "t", "chain": "c", "handle": 9, "comment": "r", "expr": [1]}}]}"#;
        let (new, old) = (found(new.as_bytes()).unwrap(), found(old.as_bytes()).unwrap());
        assert_eq!(new, old);
        assert!(new != found(b"{\"nftables\": []}").unwrap());
        assert!(matches!(found(b"{"), Err(FirewallError::Listing(_))));
    }
}
