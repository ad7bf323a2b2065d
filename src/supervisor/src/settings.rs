//! The settings in force: the command line over the packaged defaults.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use cgrant_policy::Config;
use serde::Serialize;

use crate::{
    args::{Args, Bus, InstanceName, LegacySocket},
    config::{self, ConfigError},
    error::SupervisorError,
};

/// Where the configuration is unless `--config-dir` says otherwise.
const CONFIG: &str = "/etc/cgrant";

/// All settings, complete.
#[derive(Debug)]
pub struct Settings {
    /// Name of the instance.
    pub instance: InstanceName,
    /// Directory of the configuration.
    pub config_dir: PathBuf,
    /// Was it named on the command line? Then it must be there.
    pub config_dir_named: bool,
    /// Directory of what survives a reboot.
    pub state_dir: PathBuf,
    /// Directory of what belongs to this boot.
    pub runtime_dir: PathBuf,
    /// The listening socket.
    pub socket: PathBuf,
    /// Was it named on the command line? Then its directory must be there.
    pub socket_named: bool,
    /// The bus.
    pub bus: Bus,
    /// Where CGManager's interface is served.
    pub legacy_socket: LegacySocket,
    /// `cgrantd.toml`.
    pub config: Config,
}

impl Settings {
    /// Settings from the command line and `cgrantd.toml`.
    ///
    /// # Errors
    /// [`SupervisorError::Configuration`].
    pub fn new(args: &Args) -> Result<Self, SupervisorError> {
        let config_dir = args.config_dir.clone().unwrap_or_else(|| PathBuf::from(CONFIG));
        if args.config_dir.is_some() && !config_dir.is_dir() {
            return Err(ConfigError::Missing(config_dir).into());
        }
        let runtime_dir = args.runtime_dir.clone().unwrap_or_else(|| packaged("/run", &args.instance));
        Ok(Self {
            config: config::host_config(&config_dir)?,
            config_dir_named: args.config_dir.is_some(),
            config_dir,
            state_dir: args.state_dir.clone().unwrap_or_else(|| packaged("/var/lib", &args.instance)),
            socket: args.socket.clone().unwrap_or_else(|| runtime_dir.join("public/bus")),
            socket_named: args.socket.is_some(),
            runtime_dir,
            bus: args.bus.clone(),
            // Its places are one for the whole host.
            legacy_socket: match &args.cgmanager_socket {
                Some(wanted) => wanted.clone(),
                None if args.instance.is_default() => LegacySocket::Auto,
                None => LegacySocket::Off,
            },
            instance: args.instance.clone(),
        })
    }

    /// The directory that the engine keeps its state of this boot in.
    pub fn run_dir(&self) -> PathBuf {
        self.runtime_dir.join("state")
    }

    /// The directory of the network helper's files.
    pub fn net_dir(&self) -> PathBuf {
        self.run_dir().join("net")
    }

    /// The directory that the network helpers of all instances share: beside that of ranges in use, which they share as well.
    pub fn net_host_dir(&self) -> PathBuf {
        let live = self.config.ids.live.as_path();
        let mut name = live.file_name().unwrap_or_default().to_owned();
        name.push("-net");
        live.with_file_name(name)
    }

    /// The socket of metrics. Not in the directory that appears in containers.
    pub fn metrics_socket(&self) -> PathBuf {
        self.runtime_dir.join("metrics")
    }

    /// The directory that appears in containers.
    pub fn public_dir(&self) -> PathBuf {
        self.runtime_dir.join("public")
    }

    /// Everything in force as TOML: what the command line decides, the policy files, then `cgrantd.toml` complete.
    ///
    /// # Errors
    /// [`ConfigError`] when the policy's directory cannot be read.
    pub fn print(&self) -> Result<Printed<'_>, ConfigError> {
        Ok(Printed { settings: self, policy: config::policy_files(&self.config_dir)? })
    }
}

fn packaged(parent: &str, instance: &InstanceName) -> PathBuf {
    let name =
        if instance.is_default() { "cgrant".to_owned() } else { format!("cgrant-{}", instance.as_str()) };
    Path::new(parent).join(name)
}

/// Settings to be printed.
pub struct Printed<'a> {
    settings: &'a Settings,
    policy: Vec<PathBuf>,
}

#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct CommandLine<'a> {
    instance: &'a str,
    config_dir: &'a Path,
    state_dir: &'a Path,
    runtime_dir: &'a Path,
    socket: &'a Path,
    bus: String,
    cgmanager_socket: String,
    policy_files: &'a [PathBuf],
}

impl fmt::Display for Printed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = self.settings;
        let line = CommandLine {
            instance: settings.instance.as_str(),
            config_dir: &settings.config_dir,
            state_dir: &settings.state_dir,
            runtime_dir: &settings.runtime_dir,
            socket: &settings.socket,
            bus: settings.bus.to_string(),
            cgmanager_socket: settings.legacy_socket.to_string(),
            policy_files: &self.policy,
        };
        let line = toml::to_string(&line).map_err(|_| fmt::Error)?;
        write!(f, "{line}\n{}", settings.config)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;
    use clap::Parser;

    fn settings(line: &[&str]) -> Result<Settings, SupervisorError> {
        Settings::new(&Args::try_parse_from(std::iter::once(&"cgrantd").chain(line)).unwrap())
    }

    #[test]
    fn every_path_has_its_packaged_default() {
        let scratch = tempfile::tempdir().unwrap();
        let config = scratch.path().to_str().unwrap();
        let default = settings(&["--config-dir", config]).unwrap();
        assert_eq!(default.state_dir, Path::new("/var/lib/cgrant"));
        assert_eq!(default.runtime_dir, Path::new("/run/cgrant"));
        assert_eq!(default.run_dir(), Path::new("/run/cgrant/state"));
        assert_eq!(default.socket, Path::new("/run/cgrant/public/bus"));
        assert_eq!(default.config.ids.record.as_path(), Path::new("/var/lib/cgrant/ids"));
    }

    #[test]
    fn a_second_instance_has_directories_of_its_own_and_the_same_record_of_ids() {
        let scratch = tempfile::tempdir().unwrap();
        let other =
            settings(&["--instance", "two", "--config-dir", scratch.path().to_str().unwrap()]).unwrap();
        assert_eq!(other.state_dir, Path::new("/var/lib/cgrant-two"));
        assert_eq!(other.socket, Path::new("/run/cgrant-two/public/bus"));
        assert_eq!(other.config.ids.record.as_path(), Path::new("/var/lib/cgrant/ids"));
    }

    #[test]
    fn the_socket_follows_the_runtime_directory_unless_it_is_named() {
        let follows = settings(&["--runtime-dir", "/tmp/r"]).unwrap();
        assert_eq!(follows.socket, Path::new("/tmp/r/public/bus"));
        let named = settings(&["--runtime-dir", "/tmp/r", "--socket", "/tmp/s"]).unwrap();
        assert_eq!(named.socket, Path::new("/tmp/s"));
    }

    #[test]
    fn the_legacy_interface_has_a_socket_if_it_is_wanted() {
        let scratch = tempfile::tempdir().unwrap();
        let config = scratch.path().to_str().unwrap();
        for option in ["/run/cgm", "off", "auto"] {
            let settings = settings(&["--config-dir", config, "--cgmanager-socket", option]).unwrap();
            assert_eq!(settings.legacy_socket, option.parse().unwrap());
            let printed: toml::Table = settings.print().unwrap().to_string().parse().unwrap();
            assert_eq!(printed["cgmanager-socket"].as_str(), Some(option));
        }
        let of =
            |words: &[&str]| settings(&[&["--config-dir", config], words].concat()).unwrap().legacy_socket;
        assert_eq!(of(&[]), LegacySocket::Auto);
        assert_eq!(of(&["--instance", "two"]), LegacySocket::Off, "one instance has the host's places");
    }

    #[test]
    fn a_configuration_directory_that_is_named_must_be_there() {
        assert!(settings(&["--config-dir", "/nonexistent/cgrant"]).is_err());
    }

    #[test]
    fn what_is_printed_is_toml_and_complete() {
        let scratch = tempfile::tempdir().unwrap();
        let settings =
            settings(&["--config-dir", scratch.path().to_str().unwrap(), "--bus", "none"]).unwrap();
        let printed = settings.print().unwrap().to_string();
        let table: toml::Table = printed.parse().unwrap();
        for key in [
            "instance",
            "config-dir",
            "state-dir",
            "runtime-dir",
            "socket",
            "bus",
            "policy-files",
            "ids",
            "accounts",
        ] {
            assert!(table.contains_key(key), "{key} in {printed}");
        }
        assert_eq!(table["bus"].as_str(), Some("none"));
    }
}
