//! The objects there are, by their paths. Whether a grant exists is the engine's to say.

use cgrant_proto::names::{ACCOUNT_DIRECTORY, GRANT_DIRECTORY, MANAGER_PATH, account_uid, grant_path};
use cgrant_wire::GrantId;

/// Path of the bus driver's object, which our socket has too, for clients that take it for a bus.
pub const DRIVER_PATH: &str = "/org/freedesktop/DBus";

/// An object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object {
    /// A path above an object: it has children and nothing else.
    Above(&'static [&'static str]),
    /// The broker.
    Manager,
    /// The directory of the grants.
    Grants,
    /// A grant.
    Grant(GrantId),
    /// The directory of the accounts.
    Accounts,
    /// An account.
    Account(u32),
    /// What a bus has at this place; only on our own socket.
    Driver,
}

/// The object at `path`; `peer_to_peer` on our own socket.
pub fn find(path: &str, peer_to_peer: bool) -> Option<Object> {
    match path {
        "/" => Some(Object::Above(&["org"])),
        "/org" if peer_to_peer => Some(Object::Above(&["cgrant", "freedesktop"])),
        "/org" => Some(Object::Above(&["cgrant"])),
        "/org/cgrant" => Some(Object::Above(&["Broker1"])),
        "/org/freedesktop" if peer_to_peer => Some(Object::Above(&["DBus"])),
        DRIVER_PATH if peer_to_peer => Some(Object::Driver),
        MANAGER_PATH => Some(Object::Manager),
        GRANT_DIRECTORY => Some(Object::Grants),
        ACCOUNT_DIRECTORY => Some(Object::Accounts),
        _ => account_uid(path)
            .map(Object::Account)
            .or_else(|| cgrant_proto::names::grant_id(path)?.parse().ok().map(Object::Grant)),
    }
}

/// The path of a grant.
pub fn path_of(grant: GrantId) -> String {
    grant_path(&grant.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_object_is_found_from_the_top() {
        assert_eq!(find(&path_of(GrantId(0xab)), false), Some(Object::Grant(GrantId(0xab))));
        assert_eq!(find("/org/cgrant/Broker1/account/1000", false), Some(Object::Account(1000)));
        for peer_to_peer in [true, false] {
            let mut paths = vec!["/".to_owned()];
            while let Some(path) = paths.pop() {
                let Some(Object::Above(children)) = find(&path, peer_to_peer) else {
                    assert!(find(&path, peer_to_peer).is_some(), "{path}");
                    continue;
                };
                paths.extend(children.iter().map(|child| format!("{}/{child}", path.trim_end_matches('/'))));
            }
        }
        for wrong in
            ["/org/cgrant/Broker1/grant/1", "/org/cgrant/Broker1/x", "/nothing", "/org/freedesktop/DBus"]
        {
            assert_eq!(find(wrong, false), None, "{wrong}");
        }
    }
}
