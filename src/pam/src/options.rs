//! The module's arguments. Those of CGManager's module, and some of our own.

use std::{ffi::OsString, path::PathBuf, time::Duration};

use crate::pattern::Pattern;

/// The pattern if none is given.
const PATTERN: &str = "user/%u/";
/// Longest time that a login may be held up, in seconds.
const MAX_TIMEOUT: u64 = 60;

/// What is wrong with the arguments.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum OptionError {
    /// There is no such option.
    #[error("there is no option {0}")]
    Unknown(String),
    /// It takes no value.
    #[error("the option {0} takes no value")]
    NoValue(&'static str),
    /// It takes a value that is not there.
    #[error("the option {0} needs a value")]
    Missing(&'static str),
    /// The value is not of the kind that is wanted.
    #[error("{value} is no value for the option {option}: {wanted}")]
    Value {
        /// Which option.
        option: &'static str,
        /// What it was given.
        value: String,
        /// What it takes.
        wanted: &'static str,
    },
}

/// A value that a session's cgroup gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setting {
    /// In the hierarchy of this controller.
    pub controller: String,
    /// Which file.
    pub key: String,
    /// What is written.
    pub value: String,
}

/// What the module is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The controllers: `all`, or names.
    pub controllers: Vec<String>,
    /// The path of a session's cgroup.
    pub pattern: Pattern,
    /// The greatest number behind the pattern; `None` if there is none, and the cgroup is shared.
    pub max_idx: Option<u32>,
    /// How many cgroups above a session's are removed with it, if nothing is left in them.
    pub prune_depth: usize,
    /// What is set.
    pub settings: Vec<Setting>,
    /// The broker's socket; `None` if it is looked for where it may be.
    pub socket: Option<PathBuf>,
    /// How long opening, and closing, a session may take.
    pub timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            controllers: vec!["all".to_owned()],
            pattern: Pattern::new(PATTERN),
            max_idx: Some(100),
            prune_depth: 2,
            settings: Vec::new(),
            socket: None,
            timeout: Duration::from_secs(5),
        }
    }
}

/// Is a session refused that can't have its cgroup? To be known also if the other arguments are wrong.
pub fn is_required(arguments: &[OsString]) -> bool {
    arguments.iter().any(|argument| argument == REQUIRED)
}

/// The option of [`is_required`].
const REQUIRED: &str = "--required";
/// Options with a value: the long name, and the short one.
const VALUED: [(&str, &str); 7] = [
    ("--controllers", "-c"),
    ("--pattern", "-p"),
    ("--max-idx", "-m"),
    ("--set-value", "-s"),
    ("--prune-depth", ""),
    ("--socket", ""),
    ("--timeout", ""),
];
/// Options without one.
const BARE: [&str; 2] = ["--pattern-no-idx-suffix", REQUIRED];

impl Options {
    /// Reads them: `--name VALUE`, `--name=VALUE`, `-n VALUE` and `-nVALUE`.
    ///
    /// # Errors
    /// [`OptionError`].
    pub fn parse(arguments: &[OsString]) -> Result<Self, OptionError> {
        let mut options = Self::default();
        let mut suffixed = true;
        let mut rest = arguments.iter().map(|argument| argument.to_string_lossy().into_owned());
        while let Some(argument) = rest.next() {
            let (name, attached) = split(&argument)?;
            match (BARE.contains(&name), attached) {
                (true, Some(_)) => return Err(OptionError::NoValue(name)),
                (true, None) => suffixed &= name == REQUIRED,
                (false, attached) => {
                    let value = attached.or_else(|| rest.next()).ok_or(OptionError::Missing(name))?;
                    options.set(name, value)?;
                }
            }
        }
        if !suffixed {
            options.max_idx = None;
        }
        Ok(options)
    }

    fn set(&mut self, option: &'static str, value: String) -> Result<(), OptionError> {
        let wrong = |value: String, wanted| OptionError::Value { option, value, wanted };
        match option {
            "--controllers" => self.controllers = value.split(',').map(str::to_owned).collect(),
            "--pattern" => self.pattern = Pattern::new(&value),
            "--socket" => self.socket = Some(value.into()),
            "--max-idx" => {
                let most = value.parse().map_err(|_| wrong(value, "a number"))?;
                self.max_idx = Some(most);
            }
            "--prune-depth" => self.prune_depth = value.parse().map_err(|_| wrong(value, "a number"))?,
            "--timeout" => {
                let seconds = value.parse().ok().filter(|seconds| (1..=MAX_TIMEOUT).contains(seconds));
                let seconds = seconds.ok_or_else(|| wrong(value, "1 to 60 seconds"))?;
                self.timeout = Duration::from_secs(seconds);
            }
            _ => {
                let setting = setting(&value).ok_or_else(|| wrong(value, "CONTROLLER,KEY,VALUE"))?;
                self.settings.push(setting);
            }
        }
        Ok(())
    }
}

/// The long name of an option, and the value that is attached to it.
fn split(argument: &str) -> Result<(&'static str, Option<String>), OptionError> {
    let unknown = || OptionError::Unknown(argument.to_owned());
    if argument.starts_with("--") {
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (argument, None),
        };
        let mut all = VALUED.iter().map(|(long, _)| *long).chain(BARE);
        return all.find(|known| *known == name).map(|known| (known, value)).ok_or_else(unknown);
    }
    let of_short = VALUED.iter().filter(|(_, short)| !short.is_empty());
    of_short
        .filter_map(|(long, short)| Some((*long, argument.strip_prefix(short)?)))
        .map(|(long, value)| (long, (!value.is_empty()).then(|| value.to_owned())))
        .next()
        .ok_or_else(unknown)
}

fn setting(text: &str) -> Option<Setting> {
    let mut parts = text.splitn(3, ',').map(str::to_owned);
    let setting = Setting { controller: parts.next()?, key: parts.next()?, value: parts.next()? };
    (!setting.controller.is_empty() && !setting.key.is_empty()).then_some(setting)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options, OptionError> {
        let words: Vec<OsString> = line.split_whitespace().map(Into::into).collect();
        Options::parse(&words)
    }

    #[test]
    fn without_arguments_it_is_as_cgmanagers() {
        let options = parsed("").unwrap();
        assert_eq!(options, Options::default());
        assert_eq!((options.max_idx, options.prune_depth), (Some(100), 2));
        assert_eq!(
            (options.controllers, options.pattern),
            (vec!["all".to_owned()], Pattern::new("user/%u/"))
        );
    }

    #[test]
    fn every_option_in_every_spelling() {
        for line in [
            "-c memory,cpu -p a/%u -m 7 -s memory,memory.limit_in_bytes,10M",
            "-cmemory,cpu -pa/%u -m7 -smemory,memory.limit_in_bytes,10M",
            "--controllers memory,cpu --pattern a/%u --max-idx 7 --set-value memory,memory.limit_in_bytes,10M",
            "--controllers=memory,cpu --pattern=a/%u --max-idx=7 --set-value=memory,memory.limit_in_bytes,10M",
        ] {
            let options = parsed(line).unwrap();
            assert_eq!(options.controllers, ["memory", "cpu"], "{line}");
            assert_eq!((options.pattern, options.max_idx), (Pattern::new("a/%u"), Some(7)), "{line}");
            let setting = Setting {
                controller: "memory".to_owned(),
                key: "memory.limit_in_bytes".to_owned(),
                value: "10M".to_owned(),
            };
            assert_eq!(options.settings, [setting], "{line}");
        }
        let options =
            parsed("--prune-depth 0 --timeout=9 --socket /a/sock --required -s a,b,c,d -s a,b,").unwrap();
        assert_eq!((options.prune_depth, options.timeout.as_secs()), (0, 9));
        assert_eq!(options.socket.unwrap().to_str(), Some("/a/sock"));
        let values: Vec<&str> = options.settings.iter().map(|setting| setting.value.as_str()).collect();
        assert_eq!(values, ["c,d", ""]);
        for line in ["--pattern-no-idx-suffix -m 3", "-m 3 --pattern-no-idx-suffix"] {
            assert_eq!(parsed(line).unwrap().max_idx, None, "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (line, option) in [
            ("-x", "-x"),
            ("memory", "memory"),
            ("--nothing=1", "--nothing"),
            ("-c", "--controllers"),
            ("--required=yes", "--required"),
            ("--max-idx -1", "--max-idx"),
            ("--timeout 0", "--timeout"),
            ("--timeout 61", "--timeout"),
            ("-s memory,x", "--set-value"),
            ("-s ,x,y", "--set-value"),
        ] {
            let told = parsed(line).unwrap_err().to_string();
            assert!(told.contains(option), "{line}: {told}");
        }
    }

    #[test]
    fn required_is_known_whatever_else_is_wrong() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert!(is_required(&words("-x --required")));
        assert!(!is_required(&words("-x required")));
    }
}
