//! The broker's own configuration, `cgrantd.toml`: where ids and addresses come from, and under which accounts the
//! unprivileged processes run.

use std::{fmt, path::PathBuf};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::{
    diagnostic::{FileError, read, text},
    ids::IdSpan,
    network::NetworkConfig,
};

/// How many ids a block of the pool has; a block belongs to one account only.
pub const BLOCK: u32 = 65536;

/// `cgrantd.toml`. All of it is optional.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where ids come from.
    pub ids: IdsConfig,
    /// Accounts of the broker's processes without privilege.
    pub accounts: AccountsConfig,
    /// Addresses and bridges of links.
    pub network: NetworkConfig,
    /// What becomes of files of users who are deleted.
    pub departed: DepartedConfig,
    /// Where files are counted.
    pub disk: DiskConfig,
}

/// `[departed]`. The broker has no part in it: `cgrant departed clean` reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DepartedConfig {
    /// Where files are removed that belong to ids of users whose rule says `lifetime.departed = "remove"`.
    pub directories: Vec<AbsolutePath>,
}

/// `[disk]`. The broker has no part in it: `cgrant disk measure` reads it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskConfig {
    /// Where files are counted that belong to ids of the pool.
    pub directories: Vec<AbsolutePath>,
}

/// `[ids]`. The record is one per host: every instance must be given the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IdsConfig {
    /// Ids that may be granted; ids of accounts and of subordinate ranges in them are left out.
    pub pool: Pool,
    /// Directory of what survives a reboot.
    pub record: AbsolutePath,
    /// Directory of what describes this boot.
    pub live: AbsolutePath,
}

/// `[accounts]`: names in `/etc/passwd`. Where one does not exist, an id of the pool's first block is used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct AccountsConfig {
    /// Account of the front that serves the broker's sockets.
    pub socket_front: AccountName,
    /// Account of the front that speaks with the bus daemon.
    pub bus_front: AccountName,
    /// Account of the network helper's processes that need no privilege: name servers, the proxy for `[::1]`.
    pub net: AccountName,
}

/// Spans that don't overlap, sorted, with at least two whole blocks: the first is the broker's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Pool(Vec<IdSpan>);

/// A path from the root without `.` and `..`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct AbsolutePath(PathBuf);

/// A user's name as useradd(8) makes them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct AccountName(String);

/// Why ids are no pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// Two of its ranges have ids in common.
    #[error("the ranges {0} and {1} of the pool overlap")]
    Overlap(IdSpan, IdSpan),
    /// Ids below 65536 are for accounts.
    #[error("{0} has ids below 65536, which are for accounts")]
    Low(IdSpan),
    /// Nothing could be granted from it.
    #[error(
        "the pool needs at least two whole blocks of 65536 ids, each beginning at a multiple of 65536; the first is the broker's own"
    )]
    TooSmall,
}

impl Config {
    /// Reads `cgrantd.toml`.
    ///
    /// # Errors
    /// The first mistake, with its place; nothing of the file is used then.
    pub fn parse(file: &str, text: &str) -> Result<Self, FileError> {
        read(file, text)
    }
}

impl fmt::Display for Config {
    /// As TOML, complete, for `--print-config`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&toml::to_string(self).map_err(|_| fmt::Error)?)
    }
}

impl Pool {
    /// A pool of these ids.
    ///
    /// # Errors
    /// They overlap, are below 65536, or hold fewer than two whole blocks.
    pub fn new(mut spans: Vec<IdSpan>) -> Result<Self, PoolError> {
        spans.sort_unstable();
        for pair in spans.windows(2) {
            if let [a, b] = pair
                && a.overlaps(*b)
            {
                return Err(PoolError::Overlap(*a, *b));
            }
        }
        if let Some(low) = spans.first().filter(|span| span.first() < BLOCK) {
            return Err(PoolError::Low(*low));
        }
        let pool = Self(spans);
        if pool.blocks().nth(1).is_none() { Err(PoolError::TooSmall) } else { Ok(pool) }
    }

    /// Its spans, sorted.
    pub fn spans(&self) -> &[IdSpan] {
        &self.0
    }

    /// First ids of its whole blocks, ascending. The first one is the broker's own and is never granted.
    pub fn blocks(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().flat_map(|span| {
            let first = span.first().div_ceil(BLOCK);
            // One past the last whole block; the last id is below u32::MAX, so nothing overflows.
            let end = (span.last() + 1) / BLOCK;
            (first..end).map(|block| block * BLOCK)
        })
    }

    /// The broker's own block.
    pub fn own_block(&self) -> Option<IdSpan> {
        self.blocks().next().and_then(|first| IdSpan::new(first, BLOCK).ok())
    }
}

impl Default for Pool {
    /// 0x78000000 to 0x7ffdffff: clear of Debian's subordinate ids, of what systemd uses for containers
    /// (524288 to 1879048191) and foreign files (0x7ffe0000), and of ids that don't fit 31 bits.
    fn default() -> Self {
        Self(IdSpan::between(0x7800_0000, 0x7ffd_ffff).into_iter().collect())
    }
}

impl Default for IdsConfig {
    fn default() -> Self {
        Self {
            pool: Pool::default(),
            record: AbsolutePath(PathBuf::from("/var/lib/cgrant/ids")),
            live: AbsolutePath(PathBuf::from("/run/cgrant/ids")),
        }
    }
}

impl Default for AccountsConfig {
    fn default() -> Self {
        Self {
            socket_front: AccountName("cgrant-socket".to_owned()),
            bus_front: AccountName("cgrant-bus".to_owned()),
            net: AccountName("cgrant-net".to_owned()),
        }
    }
}

impl AbsolutePath {
    /// The path.
    pub fn as_path(&self) -> &std::path::Path {
        &self.0
    }
}

impl AccountName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for Pool {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::new(OneOrMore::deserialize(from)?.0).map_err(de::Error::custom)
    }
}

impl<'de> Deserialize<'de> for AbsolutePath {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        let rest = text.strip_prefix('/').filter(|rest| rest.split('/').all(plain) && !text.contains('\0'));
        match rest {
            Some(_) => Ok(Self(PathBuf::from(text))),
            None => Err(de::Error::custom(
                "expected a path that begins with / and has no empty part, `.` or `..`",
            )),
        }
    }
}

impl<'de> Deserialize<'de> for AccountName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text(from, "the name of an account", |text| {
            let form = |(at, b): (usize, u8)| {
                b.is_ascii_alphabetic()
                    || b == b'_'
                    || at > 0 && (b.is_ascii_digit() || b == b'-' || b == b'.')
            };
            let fits = (1..=32).contains(&text.len()) && text.bytes().enumerate().all(form);
            fits.then(|| Self(text.to_owned())).ok_or("expected the name of an account")
        })
    }
}

/// `"1-2"` or `["1-2", "5-6"]`.
struct OneOrMore(Vec<IdSpan>);

impl<'de> Deserialize<'de> for OneOrMore {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = OneOrMore;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a range of ids such as \"100000-165535\", or a list of such")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<OneOrMore, E> {
                text.parse().map(|span| OneOrMore(vec![span])).map_err(E::custom)
            }
            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<OneOrMore, A::Error> {
                let mut spans = Vec::new();
                while let Some(Span(span)) = list.next_element()? {
                    spans.push(span);
                }
                Ok(OneOrMore(spans))
            }
        }
        from.deserialize_any(Visitor)
    }
}

/// An element of such a list.
struct Span(IdSpan);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text(from, "a range of ids such as \"100000-165535\"", str::parse).map(Self)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn nothing_written_is_the_default() {
        let config = Config::parse("cgrantd.toml", "").unwrap();
        assert_eq!(config, Config::default());
        assert_eq!(Config::parse("x", &config.to_string()).unwrap(), config);
        assert_eq!(config.ids.pool.own_block(), IdSpan::new(0x7800_0000, BLOCK).ok());
        assert_eq!(config.ids.pool.blocks().count(), 2046);
    }

    #[test]
    fn what_is_written_is_taken() {
        let text = "[ids]\npool = [\"200000-400000\", \"1000000-1200000\"]\nrecord = \"/srv/ids\"\n[accounts]\nbus-front = \"b\"\n";
        let config = Config::parse("x", text).unwrap();
        assert_eq!(config.ids.pool.blocks().collect::<Vec<_>>(), [262_144, 327_680, 1_048_576, 1_114_112]);
        assert_eq!(config.ids.record.as_path(), std::path::Path::new("/srv/ids"));
        assert_eq!(config.accounts.bus_front.as_str(), "b");
        assert_eq!(Config::parse("x", &config.to_string()).unwrap(), config);
    }

    #[test]
    fn mistakes_have_their_place() {
        for (text, place, words) in [
            ("[ids]\npol = 1\n", (2, 1), "unknown field `pol`"),
            ("[ids]\npool = 7\n", (2, 8), "range of ids"),
            ("[ids]\npool = \"7\"\n", (2, 8), "below 65536"),
            ("[ids]\npool = \"100000-200000\"\n", (2, 8), "two whole blocks"),
            ("[ids]\npool = [\"100000-300000\", \"200000-900000\"]\n", (2, 8), "overlap"),
            ("[ids]\npool = [\"100000-300000\", \"x\"]\n", (2, 26), "FIRST-LAST"),
            ("[ids]\nrecord = \"a/b\"\n", (2, 10), "begins with /"),
            ("[ids]\nlive = \"/a/../b\"\n", (2, 8), "begins with /"),
            ("[accounts]\nbus-front = \"-x\"\n", (2, 13), "name of an account"),
            ("[departed]\ndirectories = [\"/home\", \"srv\"]\n", (2, 15), "begins with /"),
            ("[departed]\ndirectory = \"/home\"\n", (2, 1), "unknown field `directory`"),
            ("[ids\n", (1, 5), "table"),
        ] {
            let error = Config::parse("c.toml", text).unwrap_err();
            assert_eq!((error.line, error.column), place, "{error}");
            assert!(error.message.contains(words), "{error}");
        }
    }
}
