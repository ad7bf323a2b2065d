//! Names of links: of their devices on the host, and those that lead to containers. Pure.

use cgrant_wire::{GrantId, LinkKind};

use super::secret::public;

/// Names that programs look up by themselves and act on what answers: no container is found by one of these alone.
const RESERVED: [&str; 9] =
    ["autoconfig", "autodiscover", "broadcasthost", "gateway", "host", "isatap", "localhost", "ns", "wpad"];

/// `PREFIX` and the last digits of what follows from the parts.
fn hashed(prefix: &str, digits: usize, parts: &[&[u8]]) -> String {
    let text = format!("{:032x}", public(parts));
    format!("{prefix}{}", text.get(..digits).unwrap_or(&text))
}

/// The host's end of a link.
pub fn host_end(instance: &str, grant: GrantId, link: &str, kind: LinkKind) -> String {
    let prefix = if kind == LinkKind::Tap { "cgt" } else { "cgv" };
    hashed(prefix, 10, &[instance.as_bytes(), &grant.0.to_be_bytes(), link.as_bytes()])
}

/// The device of a bridge of the broker's own that accounts share.
pub fn own_bridge(instance: &str, bridge: &str) -> String {
    if instance == "default" && bridge == cgrant_policy::DEFAULT_BRIDGE {
        return "cgrant0".to_owned();
    }
    hashed("cgb", 10, &[instance.as_bytes(), bridge.as_bytes()])
}

/// The device of an account's own bridge.
pub fn account_bridge(instance: &str, account: u32) -> String {
    hashed("cgu", 10, &[instance.as_bytes(), &account.to_be_bytes()])
}

/// A grant's name as a label of the name service (RFC 1123, section 2.1), if it can be one. `_` becomes `-`, and what stands at
/// an end goes, as the name server does it.
///
/// An attacker wants another's name: `my_app` and `my-app` are one and the same there, so they are one here, where it is decided
/// whose it is.
pub fn label(grant: &str) -> Option<String> {
    let label = grant.to_ascii_lowercase().replace('_', "-");
    let label = label.trim_matches('-');
    let form = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
    ((1..=63).contains(&label.len()) && label.bytes().all(form)).then(|| label.to_owned())
}

/// What stands for the account behind a container's name: the user's name if it can be a label that no other account's is.
pub fn account_label(account: u32, user: Option<&str>) -> String {
    // `u` and digits stand for accounts without a usable name.
    let clash =
        |name: &str| name.strip_prefix('u').is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()));
    // Only a name that is its own label: `a_b` would have that of the user `a-b`.
    user.filter(|name| label(name).as_deref() == Some(name))
        .filter(|name| !clash(name))
        .map_or_else(|| format!("u{account}"), ToOwned::to_owned)
}

/// The names that lead to a container, the first for the way back: `NAME` if its account has it, and `NAME.USER`.
pub fn of_container(grant: &str, account: u32, user: Option<&str>, owns: bool) -> Vec<String> {
    let Some(label) = label(grant) else { return Vec::new() };
    let full = format!("{label}.{}", account_label(account, user));
    if owns && !RESERVED.contains(&label.as_str()) { vec![label, full] } else { vec![full] }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn names_of_devices_fit_and_differ() {
        let veth = host_end("default", GrantId(1), "eth0", LinkKind::Veth);
        let names = [
            veth.clone(),
            host_end("two", GrantId(1), "eth0", LinkKind::Veth),
            host_end("default", GrantId(2), "eth0", LinkKind::Veth),
            host_end("default", GrantId(1), "eth1", LinkKind::Veth),
            host_end("default", GrantId(1), "eth0", LinkKind::Tap),
            own_bridge("default", "default"),
            own_bridge("two", "default"),
            own_bridge("default", "second"),
            account_bridge("default", 1000),
            account_bridge("default", 1001),
        ];
        let different: std::collections::BTreeSet<_> = names.iter().collect();
        assert_eq!(different.len(), names.len());
        assert!(names.iter().all(|name| name.len() <= 15 && name.starts_with("cg")), "{names:?}");
        assert_eq!(veth, host_end("default", GrantId(1), "eth0", LinkKind::Veth));
        assert_eq!(names[5], "cgrant0");
    }

    #[test]
    fn a_container_is_found_by_its_name_and_its_users() {
        assert_eq!(of_container("Web_1", 1000, Some("alice"), true), ["web-1", "web-1.alice"]);
        assert_eq!(of_container("web", 1000, Some("alice"), false), ["web.alice"]);
        assert_eq!(of_container("web", 1000, Some("Al.Ice"), true), ["web", "web.u1000"]);
        assert_eq!(of_container("web", 1000, Some("u0"), false), ["web.u1000"], "another account's");
        assert_eq!(of_container("web", 1000, None, false), ["web.u1000"]);
        assert_eq!(of_container("wpad", 1000, None, true), ["wpad.u1000"], "browsers would obey it");
        assert_eq!(of_container("wpad_", 1000, None, true), ["wpad.u1000"], "and this is the same one");
        assert_eq!(
            of_container("web-", 1000, Some("a_b"), true),
            ["web", "web.u1000"],
            "a-b is somebody else"
        );
    }
}
