//! The environment of a container's init, as systemd's CONTAINER_INTERFACE describes it, that of its services, and what the host's
//! os-release says.

use std::ffi::CString;

use super::spec::Prepared;
use crate::spec::DEFAULT_PATH;

/// What every container's processes find in `container`.
pub(crate) const MANAGER: &str = "cgrant";
/// Where the host's os-release is (os-release(5)), in order.
const OS_RELEASE: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];
/// The longest that is taken over, in bytes.
const OS_RELEASE_MAX: usize = 16 * 1024;
/// What of it init is told.
const HOST_FIELDS: [&str; 4] = ["ID", "VERSION_ID", "BUILD_ID", "VARIANT_ID"];

/// The host's os-release; empty if it has none, or a strange one.
pub(crate) fn os_release() -> String {
    let text = OS_RELEASE.iter().find_map(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    if text.len() <= OS_RELEASE_MAX { text } else { String::new() }
}

/// The whole environment of init. What was asked for comes last, and wins.
pub(crate) fn of_init(spec: &Prepared, os_release: &str) -> Vec<CString> {
    let mut variables = vec![
        ("container".to_owned(), MANAGER.to_owned()),
        ("container_uuid".to_owned(), spec.machine.hyphenated()),
        ("NOTIFY_SOCKET".to_owned(), "/run/host/notify".to_owned()),
        ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
        ("TERM".to_owned(), "linux".to_owned()),
    ];
    if !spec.credentials.is_empty() {
        variables.push(("CREDENTIALS_DIRECTORY".to_owned(), "/run/host/credentials".to_owned()));
    }
    for name in HOST_FIELDS {
        if let Some(value) = field(os_release, name) {
            variables.push((format!("container_host_{}", name.to_ascii_lowercase()), value));
        }
    }
    let asked = |name: &str| {
        let starts = |text: &CString| {
            text.as_bytes().strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"="))
        };
        spec.environment.iter().any(starts)
    };
    variables
        .into_iter()
        .filter(|(name, _)| !asked(name))
        .filter_map(|(name, value)| CString::new(format!("{name}={value}")).ok())
        .chain(spec.environment.iter().cloned())
        .collect()
}

/// A drop-in for systemd (systemd-system.conf(5)), which gives these to all services; `None` if there are none, or they are no UTF-8,
/// which systemd would not take.
pub(crate) fn of_services(variables: &[CString]) -> Option<String> {
    let quoted = |text: &CString| {
        let escape = |c: char| match c {
            '"' | '\\' => format!("\\{c}"),
            '%' => "%%".to_owned(),
            '\n' => "\\n".to_owned(),
            '\r' => "\\r".to_owned(),
            c => c.to_string(),
        };
        let text: String = text.to_str().ok()?.chars().map(escape).collect();
        Some(format!(" \"{text}\""))
    };
    let all: String = variables.iter().filter_map(quoted).collect();
    (!all.is_empty()).then(|| format!("[Manager]\nDefaultEnvironment={}\n", all.trim_start()))
}

/// The value of an assignment, without quotes; escapes within quotes stay as they are.
fn field(text: &str, name: &str) -> Option<String> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='))?;
    let value = value.trim();
    let unquoted = ['"', '\'']
        .into_iter()
        .find_map(|quote| value.strip_prefix(quote)?.strip_suffix(quote))
        .unwrap_or(value);
    (!unquoted.is_empty() && !unquoted.contains('\0')).then(|| unquoted.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use crate::system::{MachineId, SystemSpec};

    #[test]
    fn services_are_told_in_systemds_words() {
        let variables = ["A=b c", "B=50%\"\\\n"].map(|text| CString::new(text).unwrap());
        assert_eq!(
            of_services(&variables).unwrap(),
            "[Manager]\nDefaultEnvironment=\"A=b c\" \"B=50%%\\\"\\\\\\n\"\n"
        );
        assert_eq!(of_services(&[]), None);
    }

    #[test]
    fn init_is_told_what_the_interface_asks_for() {
        let spec = SystemSpec {
            root: "/r".into(),
            run: "/run".into(),
            hostname: "web".into(),
            machine: MachineId::from_random([1; 16]),
            init: Vec::new(),
            environment: vec![("TERM".into(), "dumb".into()), ("TERMINAL".into(), "x".into())],
            credentials: vec![("a".into(), Vec::new())],
            devices: Vec::new(),
            granted_devices: Vec::new(),
            nesting: false,
            broker: None,
            personal: None,
        };
        let release = "NAME='x'\nID=debian\nVERSION_ID=\"12\"\nBUILD_ID=\n";
        let environment = of_init(&spec.prepare().unwrap(), release);
        let texts: Vec<&str> = environment.iter().map(|text| text.to_str().unwrap()).collect();
        for text in [
            "container=cgrant",
            "container_uuid=01010101-0101-4101-8101-010101010101",
            "NOTIFY_SOCKET=/run/host/notify",
            "CREDENTIALS_DIRECTORY=/run/host/credentials",
            "container_host_id=debian",
            "container_host_version_id=12",
            "TERM=dumb",
            "TERMINAL=x",
        ] {
            assert!(texts.contains(&text), "{text} not in {texts:?}");
        }
        assert!(!texts.contains(&"TERM=linux"));
        assert!(!texts.iter().any(|text| text.starts_with("container_host_build_id")));
    }
}
