//! The names of the contract: bus name, object paths, interfaces. Constants and nothing else.

/// Bus name of the instance `default`.
pub const BUS_NAME: &str = "org.cgrant.Broker1";
/// The instance whose bus name has no suffix.
pub const DEFAULT_INSTANCE: &str = "default";
/// Path of the broker's object.
pub const MANAGER_PATH: &str = "/org/cgrant/Broker1";
/// Path below which the grants are, one object each.
pub const GRANT_DIRECTORY: &str = "/org/cgrant/Broker1/grant";
/// Path below which the accounts are, one object each.
pub const ACCOUNT_DIRECTORY: &str = "/org/cgrant/Broker1/account";
/// Interface of the broker's object.
pub const MANAGER: &str = "org.cgrant.Broker1.Manager";
/// Interface of every grant.
pub const GRANT: &str = "org.cgrant.Broker1.Grant";
/// Interface of a grant's cgroup.
pub const CGROUP: &str = "org.cgrant.Broker1.Cgroup";
/// Interface of a grant's ids; a grant without ids does not have it.
pub const IDS: &str = "org.cgrant.Broker1.Ids";
/// Interface of a grant's links.
pub const LINKS: &str = "org.cgrant.Broker1.Links";
/// Interface of mounts for a grant's ids; a grant without ids does not have it.
pub const MOUNTS: &str = "org.cgrant.Broker1.Mounts";
/// Interface of an account.
pub const ACCOUNT: &str = "org.cgrant.Broker1.Account";
/// What every error name of the broker starts with.
pub const ERROR_PREFIX: &str = "org.cgrant.Error.";
/// Socket of the instance `default`, which is also the broker's socket inside a container.
pub const DEFAULT_SOCKET: &str = "/run/cgrant/public/bus";
/// The same socket in a container in which others can be made.
pub const INNER_SOCKET: &str = "/run/cgrant/bus";
/// Environment variable that names the broker's socket.
pub const SOCKET_VARIABLE: &str = "CGRANT_SOCKET";

/// The bus name of an instance.
pub fn bus_name(instance: &str) -> String {
    if instance == DEFAULT_INSTANCE { BUS_NAME.to_owned() } else { format!("{BUS_NAME}.{instance}") }
}

/// The object path of the grant with this id (16 hexadecimal digits).
pub fn grant_path(id: &str) -> String {
    format!("{GRANT_DIRECTORY}/{id}")
}

/// The id in the object path of a grant; `None` if it is not the path of one.
pub fn grant_id(path: &str) -> Option<&str> {
    let id = path.strip_prefix(GRANT_DIRECTORY)?.strip_prefix('/')?;
    (id.len() == 16 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))).then_some(id)
}

/// The object path of an account.
pub fn account_path(uid: u32) -> String {
    format!("{ACCOUNT_DIRECTORY}/{uid}")
}

/// The uid in the object path of an account; `None` if it is not the path of one. Each has one path: no zeros before it.
pub fn account_uid(path: &str) -> Option<u32> {
    let uid = path.strip_prefix(ACCOUNT_DIRECTORY)?.strip_prefix('/')?.parse().ok()?;
    (account_path(uid) == path).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn path_and_id_agree() {
        assert_eq!(grant_id(&grant_path("00ff00ff00ff00ff")), Some("00ff00ff00ff00ff"));
        for wrong in [
            "",
            "/",
            GRANT_DIRECTORY,
            "/org/cgrant/Broker1/grant/",
            "/org/cgrant/Broker1/grant/00FF00FF00FF00FF",
        ] {
            assert_eq!(grant_id(wrong), None, "{wrong}");
        }
        assert_eq!(account_uid(&account_path(1000)), Some(1000));
        for wrong in ["", "/", "/01", "/+1", "/4294967296", "/-1", "/1/", "/x"] {
            assert_eq!(account_uid(&format!("{ACCOUNT_DIRECTORY}{wrong}")), None, "{wrong}");
        }
        assert_eq!(bus_name("default"), "org.cgrant.Broker1");
        assert_eq!(bus_name("test"), "org.cgrant.Broker1.test");
    }
}
