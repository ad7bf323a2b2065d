//! The command line of cgrantd, as scripts may rely on it.

use std::{convert::Infallible, fmt, path::PathBuf, str::FromStr};

use clap::Parser;

/// Longest name of an instance: it becomes part of names of cgroups, units and interfaces.
const MAX_INSTANCE: usize = 31;

/// Name of an instance: a letter, then letters, digits, `-` and `_`; all lower-case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceName(String);

/// The text is no name for an instance.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("an instance is named by a lower-case letter and up to 30 letters, digits, - and _")]
pub struct BadInstanceName;

impl InstanceName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Is this the instance that the packaged paths are for?
    pub fn is_default(&self) -> bool {
        self.0 == "default"
    }
}

impl FromStr for InstanceName {
    type Err = BadInstanceName;
    fn from_str(text: &str) -> Result<Self, BadInstanceName> {
        let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_');
        let starts_well = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        if !starts_well || text.len() > MAX_INSTANCE || !text.bytes().all(allowed) {
            return Err(BadInstanceName);
        }
        Ok(Self(text.to_owned()))
    }
}

/// Which bus the bus front speaks on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bus {
    /// None: no bus front is started.
    None,
    /// The system bus.
    System,
    /// A bus at this D-Bus address.
    Address(String),
}

impl FromStr for Bus {
    type Err = BadBus;
    fn from_str(text: &str) -> Result<Self, BadBus> {
        match text {
            "none" => Ok(Self::None),
            "system" => Ok(Self::System),
            address if address.contains(':') => Ok(Self::Address(address.to_owned())),
            _ => Err(BadBus),
        }
    }
}

impl fmt::Display for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::System => f.write_str("system"),
            Self::Address(address) => f.write_str(address),
        }
    }
}

/// The text names no bus.
#[derive(Debug, thiserror::Error)]
#[error("say none, system, or a D-Bus address such as unix:path=/run/bus")]
pub struct BadBus;

/// Where the legacy interface listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LegacySocket {
    /// Nowhere.
    Off,
    /// Where programs look for it, as far as the host has room there.
    Auto,
    /// At this path.
    Path(PathBuf),
}

impl FromStr for LegacySocket {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "off" => Self::Off,
            "auto" => Self::Auto,
            path => Self::Path(PathBuf::from(path)),
        })
    }
}

impl fmt::Display for LegacySocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("off"),
            Self::Auto => f.write_str("auto"),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

/// The broker that grants cgroups, id ranges and namespaces to people without root.
#[derive(Debug, Parser)]
#[command(name = "cgrantd", version, after_help = AFTER_HELP)]
pub struct Args {
    /// Name of this broker, when several run side by side.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub instance: InstanceName,
    /// Directory of cgrantd.toml and policy.d [default: /etc/cgrant].
    #[arg(long, value_name = "DIR")]
    pub config_dir: Option<PathBuf>,
    /// Directory of what survives a reboot [default: /var/lib/cgrant, or /var/lib/cgrant-NAME].
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Directory of what belongs to this boot [default: /run/cgrant, or /run/cgrant-NAME].
    #[arg(long, value_name = "DIR")]
    pub runtime_dir: Option<PathBuf>,
    /// Socket of the D-Bus interface without a bus [default: public/bus in the runtime directory].
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Bus on which the D-Bus interface is served too: none, system, or an address.
    #[arg(long, value_name = "none|system|ADDRESS", default_value = "system")]
    pub bus: Bus,
    /// Socket of CGManager's interface: a path, off, or auto, which is wherever its clients look [default: auto of the
    /// instance default, off of others].
    #[arg(long, value_name = "PATH|auto|off")]
    pub cgmanager_socket: Option<LegacySocket>,
    /// Stay in the foreground and say READY on standard output when calls are answered.
    #[arg(long)]
    pub foreground: bool,
    /// Read the configuration, say whether it can be used, and end.
    #[arg(long)]
    pub check_config: bool,
    /// Print the settings that are in force, as TOML, and end.
    #[arg(long, conflicts_with = "check_config")]
    pub print_config: bool,
    /// End everything that runs in grants of this instance, in order, and return: for when the machine is switched off.
    #[arg(long, conflicts_with_all = ["foreground", "check_config", "print_config"])]
    pub shutdown: bool,
    /// With --shutdown: after how many seconds what has not ended is killed.
    #[arg(long, value_name = "SECONDS", default_value_t = PATIENCE, requires = "shutdown",
          value_parser = clap::value_parser!(u32).range(1..=MOST_PATIENCE))]
    pub timeout: u32,
}

/// Longer than a monitor waits for its container, and shorter than `TimeoutStopSec=` of `cgrant-shutdown.service`.
const PATIENCE: u32 = 75;
/// A day, in seconds: more is a mistake.
const MOST_PATIENCE: i64 = 86_400;

const AFTER_HELP: &str = "\
Without --foreground cgrantd goes to the background; the command returns when the broker is ready.

Signals: SIGTERM ends the broker in order and leaves what runs in grants running; SIGHUP reads the policy again.

--shutdown needs no broker. Containers have 60 seconds to end in order; what has not ended after 75, or after --timeout, is killed.

Exit status: 0 ended in order (or: the configuration is good); 1 it could not start or go on, or the
configuration is bad, or something had to be killed; 2 the command line is wrong.

Examples:
  cgrantd --foreground --bus none
  cgrantd --instance test --config-dir /tmp/t/etc --state-dir /tmp/t/lib --runtime-dir /tmp/t/run --bus none --foreground
  cgrantd --check-config
  cgrantd --shutdown";

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(args: &[&str]) -> Result<Args, clap::Error> {
        Args::try_parse_from(std::iter::once(&"cgrantd").chain(args))
    }

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn the_manual_page_has_every_option() {
        let page = include_str!("../../../docs/man/cgrantd.8").replace('\\', "");
        let mut command = Args::command();
        command.build();
        for argument in command.get_arguments() {
            let option = format!("--{}", argument.get_long().unwrap());
            let described = page.lines().any(|line| {
                line.starts_with(&format!("fB{option}fR"))
                    || line == format!(".B {option}")
                    || line.ends_with(&format!(", fB{option}fR"))
            });
            assert!(described, "{option}");
        }
    }

    #[test]
    fn without_options_the_defaults_hold() {
        let args = parse(&[]).unwrap();
        assert!(args.instance.is_default());
        assert_eq!(args.bus, Bus::System);
        assert_eq!(args.cgmanager_socket, None);
        assert!(!args.foreground && !args.check_config && !args.print_config);
        assert!(args.config_dir.is_none() && args.socket.is_none());
    }

    #[test]
    fn every_option_of_the_contract_is_taken() {
        let line = "--instance t1 --config-dir /c --state-dir /s --runtime-dir /r --socket /r/x --bus none \
                    --cgmanager-socket off --foreground --check-config";
        let args = parse(&line.split_whitespace().collect::<Vec<_>>()).unwrap();
        assert_eq!(args.instance.as_str(), "t1");
        assert_eq!(args.bus, Bus::None);
        assert!(args.foreground && args.check_config);
        assert_eq!(args.socket.unwrap(), PathBuf::from("/r/x"));
    }

    #[test]
    fn a_bus_is_none_system_or_an_address() {
        assert_eq!(parse(&["--bus", "unix:path=/x"]).unwrap().bus, Bus::Address("unix:path=/x".into()));
        assert!(parse(&["--bus", "session"]).is_err());
        assert!(parse(&["--bus", ""]).is_err());
    }

    #[test]
    fn instance_names_that_would_break_other_names_are_refused() {
        for good in ["default", "a", "test-2", "a_b"] {
            assert!(good.parse::<InstanceName>().is_ok(), "{good}");
        }
        let long = "a".repeat(MAX_INSTANCE + 1);
        for bad in ["", "1a", "-a", "A", "a.b", "a/b", "..", "a b", "é", long.as_str()] {
            assert!(bad.parse::<InstanceName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_a_call_is_for_is_one_thing() {
        assert!(parse(&["--check-config", "--print-config"]).is_err());
        for other in ["--check-config", "--print-config", "--foreground"] {
            assert!(parse(&["--shutdown", other]).is_err(), "{other}");
        }
        assert!(parse(&["--shutdown", "--instance", "t1"]).unwrap().shutdown);
    }

    #[test]
    fn a_shutdown_has_an_end() {
        assert_eq!(parse(&["--shutdown"]).unwrap().timeout, 75);
        assert_eq!(parse(&["--shutdown", "--timeout", "20"]).unwrap().timeout, 20);
        for bad in ["0", "-1", "86401", "forever", ""] {
            assert!(parse(&["--shutdown", "--timeout", bad]).is_err(), "{bad}");
        }
        assert!(parse(&["--timeout", "20"]).is_err());
        // What systemd gives the packaged unit is enough for all of it.
        let unit = include_str!("../../../systemd/cgrant-shutdown.service");
        let given = unit.lines().find_map(|line| line.strip_prefix("TimeoutStopSec=")).unwrap();
        assert!(given.parse::<u32>().unwrap() >= PATIENCE + 10);
    }
}
