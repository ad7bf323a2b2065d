//! Keys that are files of the kernel's by name, and what a caller's list of settings is made of.
//!
//! Form only. Whether a key may be read or written is policy's to say (`judge`).

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::limit::{LimitError, LimitKey, LimitValue};

/// Longest name of a raw key, bytes.
pub const MAX_RAW_KEY: usize = 128;
/// Longest value of a raw key, bytes.
pub const MAX_RAW_VALUE: usize = 4096;

/// Files of which [`RawKey::takes_from_nobody`] is known (Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst). Not those that keep
/// one's memory from swap, so that others' goes there in its place.
const TAKES_FROM_NOBODY: [&str; 5] =
    ["cpu.idle", "cpuset.mems", "memory.oom.group", "memory.swap.high", "memory.zswap.max"];

/// The name of a cgroup's file: a controller (or `cgroup`), a dot, and more, as in `memory.swappiness`.
///
/// Letters, digits, `_` and single dots inside; so never a path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RawKey(String);

/// Text to write into a cgroup's file: one line without control characters, at most 4096 bytes, not empty.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RawValue(String);

/// What a caller may name: a limit that means the same everywhere, or a file of this kernel.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// A portable limit.
    Limit(LimitKey),
    /// A file of the kernel's.
    Raw(RawKey),
}

/// A key with a value that fits it.
#[derive(Debug, Clone, PartialEq)]
pub enum Setting {
    /// A portable limit.
    Limit(LimitKey, LimitValue),
    /// A file of the kernel's and what to write.
    Raw(RawKey, RawValue),
}

/// Why a key or a value can't be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// Neither a limit nor the form of a file's name.
    #[error("`{0}` is neither a limit nor the name of a cgroup file, such as memory.swappiness")]
    Key(String),
    /// The value does not fit the limit.
    #[error("{key}: {error}")]
    Limit {
        /// The limit.
        key: LimitKey,
        /// What is wrong.
        error: LimitError,
    },
    /// A raw value is empty, too long, or has control characters.
    #[error("{0}: expected one line of 1 to 4096 bytes without control characters")]
    RawValue(RawKey),
}

impl RawKey {
    /// Checks a name.
    ///
    /// # Errors
    /// [`SettingError::Key`].
    pub fn new(text: &str) -> Result<Self, SettingError> {
        let word =
            |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        if text.len() <= MAX_RAW_KEY && text.contains('.') && text.split('.').all(word) {
            return Ok(Self(text.to_owned()));
        }
        Err(SettingError::Key(excerpt(text)))
    }

    /// The file's name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Does what is written there take from nobody beside the cgroup? Files that move work about in it, or make it have less; of all others,
    /// those of later kernels among them, that is not known.
    pub fn takes_from_nobody(&self) -> bool {
        TAKES_FROM_NOBODY.contains(&self.0.as_str())
    }

    /// What is before the first dot: a controller, or `cgroup`.
    pub fn controller(&self) -> &str {
        self.0.split('.').next().unwrap_or_default()
    }
}

impl RawValue {
    /// Checks a value; `None` if it can't be one.
    pub fn new(text: &str) -> Option<Self> {
        let fits = !text.is_empty() && text.len() <= MAX_RAW_VALUE && !text.chars().any(char::is_control);
        fits.then(|| Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Key {
    type Err = SettingError;
    fn from_str(text: &str) -> Result<Self, SettingError> {
        match text.parse() {
            Ok(limit) => Ok(Self::Limit(limit)),
            Err(_) => RawKey::new(text).map(Self::Raw),
        }
    }
}

impl Setting {
    /// What a caller's key and value mean.
    ///
    /// # Errors
    /// Says what is expected in their place.
    pub fn parse(key: &str, value: &str) -> Result<Self, SettingError> {
        match key.parse()? {
            Key::Limit(key) => match LimitValue::parse(&key, value) {
                Ok(value) => Ok(Self::Limit(key, value)),
                Err(error) => Err(SettingError::Limit { key, error }),
            },
            Key::Raw(key) => match RawValue::new(value) {
                Some(value) => Ok(Self::Raw(key, value)),
                None => Err(SettingError::RawValue(key)),
            },
        }
    }
}

/// A caller's text as it may stand in a message: short, nothing in it that a terminal obeys.
pub(crate) fn excerpt(text: &str) -> String {
    let mut short: String = text.chars().take(64).flat_map(char::escape_debug).collect();
    if text.chars().nth(64).is_some() {
        short.push('…');
    }
    short
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limit(key) => key.fmt(f),
            Self::Raw(key) => key.fmt(f),
        }
    }
}

impl fmt::Display for RawKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for RawValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for RawKey {
    type Error = SettingError;
    fn try_from(text: String) -> Result<Self, SettingError> {
        Self::new(&text)
    }
}

/// The text is empty, too long, or has control characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected one line of 1 to 4096 bytes without control characters")]
pub struct BadRawValue;

impl TryFrom<String> for RawValue {
    type Error = BadRawValue;
    fn try_from(text: String) -> Result<Self, BadRawValue> {
        Self::new(&text).ok_or(BadRawValue)
    }
}

impl From<RawKey> for String {
    fn from(key: RawKey) -> Self {
        key.0
    }
}

impl From<RawValue> for String {
    fn from(value: RawValue) -> Self {
        value.0
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys() {
        assert!(matches!("memory.max".parse(), Ok(Key::Limit(LimitKey::MemoryMax))));
        assert!(matches!("memory.swappiness".parse(), Ok(Key::Raw(_))));
        assert_eq!(RawKey::new("blkio.throttle.read_bps_device").unwrap().controller(), "blkio");
        for bad in
            ["", "tasks", ".", "..", "a.", ".a", "a..b", "a/b.c", "../x.y", "a.b\n", "a.b\0", "memory.mäx"]
        {
            assert!(matches!(bad.parse::<Key>(), Err(SettingError::Key(_))), "{bad:?}");
        }
        assert!(RawKey::new(&format!("a.{}", "b".repeat(127))).is_err());
    }

    #[test]
    fn values() {
        assert!(RawValue::new("60").is_some());
        for bad in ["", "a\nb", "a\0", "\u{7f}"] {
            assert!(RawValue::new(bad).is_none(), "{bad:?}");
        }
        assert!(RawValue::new(&"x".repeat(4097)).is_none());
        let error = Setting::parse("memory.max", "lots").unwrap_err();
        assert!(error.to_string().starts_with("memory.max: expected"), "{error}");
    }

    #[test]
    fn a_message_holds_no_control_characters() {
        let error = RawKey::new("\u{1b}[2J\n").unwrap_err().to_string();
        assert!(!error.chars().any(char::is_control), "{error:?}");
    }

    proptest! {
        #[test]
        fn a_raw_key_is_never_a_path(text in "\\PC{0,40}") {
            if let Ok(key) = RawKey::new(&text) {
                prop_assert!(!key.as_str().contains('/') && !key.as_str().starts_with('.'));
            }
        }
    }
}
