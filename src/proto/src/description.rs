//! What the broker says about a link or a bridge: a dictionary, to which later brokers may add.

use std::{
    collections::HashMap,
    os::fd::{AsFd, BorrowedFd},
};

use serde::Deserialize;
use zbus::{OwnedVariant, Type, Variant};

/// A dictionary (`a{sv}`) whose keys the contract names; what does not apply is absent.
#[derive(Debug, Default, PartialEq, Deserialize, Type)]
pub struct Description(HashMap<String, OwnedVariant>);

impl Description {
    /// All of it.
    pub const fn entries(&self) -> &HashMap<String, OwnedVariant> {
        &self.0
    }

    /// The text under `key`; `None` if there is none, or something else.
    pub fn text(&self, key: &str) -> Option<&str> {
        match &**self.0.get(key)? {
            Variant::Str(text) => Some(text.as_str()),
            _ => None,
        }
    }

    /// The number under `key`; `None` if there is none, or something else.
    pub fn number(&self, key: &str) -> Option<u64> {
        match **self.0.get(key)? {
            Variant::U32(number) => Some(number.into()),
            Variant::U64(number) => Some(number),
            _ => None,
        }
    }

    /// Is there `true` under `key`?
    pub fn flag(&self, key: &str) -> bool {
        matches!(self.0.get(key).map(|value| &**value), Some(Variant::Bool(true)))
    }

    /// The descriptor under `key`; `None` if there is none, or something else.
    pub fn descriptor(&self, key: &str) -> Option<BorrowedFd<'_>> {
        match &**self.0.get(key)? {
            Variant::Fd(fd) => Some(fd.as_fd()),
            _ => None,
        }
    }

    /// The texts under `key`; none if there are none.
    pub fn texts(&self, key: &str) -> Vec<&str> {
        match self.0.get(key).map(|value| &**value) {
            Some(Variant::Array(values)) => values
                .iter()
                .filter_map(|value| match value {
                    Variant::Str(text) => Some(text.as_str()),
                    _ => None,
                })
                .collect(),
            _ => Vec::new(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_of_another_type_is_not_there() {
        let entries = HashMap::from([
            ("name", Variant::new("eth0")),
            ("mtu", Variant::new(1500u32)),
            ("managed", Variant::new(true)),
            ("dns", Variant::new(vec!["10.0.0.2", "fd00::2"])),
        ]);
        let message = zbus::Message::method_call("/", "Call").build(&entries).unwrap();
        let description: Description = message.body().deserialize().unwrap();
        assert_eq!(description.text("name"), Some("eth0"));
        assert!(description.descriptor("name").is_none() && description.descriptor("tap").is_none());
        assert_eq!((description.text("mtu"), description.text("mac")), (None, None));
        assert_eq!((description.number("mtu"), description.number("name")), (Some(1500), None));
        assert_eq!(description.texts("dns"), ["10.0.0.2", "fd00::2"]);
        assert!(description.texts("name").is_empty());
        assert_eq!((description.flag("managed"), description.flag("name")), (true, false));
        assert_eq!(description.entries().len(), 4);
    }
}
