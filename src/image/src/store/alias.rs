//! Names of images that people give.

use std::fmt;

/// A name of an image: `debian:trixie`.
///
/// Letters, digits and `._:/+-`, beginning with a letter or digit, at most 128 of them, and nothing that could be the
/// beginning of an id.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Alias(String);

/// Not a name for an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no name for an image: letters, digits and `._:/+-`, the first a letter or digit, at most 128, and not like an id"
)]
pub struct BadAlias(String);

/// So many hexadecimal digits are the beginning of an id.
pub(super) const ID_PREFIX: usize = 8;

impl Alias {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for Alias {
    type Err = BadAlias;

    fn from_str(text: &str) -> Result<Self, BadAlias> {
        let good = text.starts_with(|first: char| first.is_ascii_alphanumeric())
            && text.len() <= 128
            && text.chars().all(|letter| letter.is_ascii_alphanumeric() || "._:/+-".contains(letter))
            && !is_id_prefix(text);
        if good { Ok(Self(text.to_owned())) } else { Err(BadAlias(crate::path::shown(text.as_bytes()))) }
    }
}

impl fmt::Display for Alias {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

pub(super) fn is_id_prefix(text: &str) -> bool {
    (ID_PREFIX..=64).contains(&text.len())
        && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn names_are_of_few_letters() {
        for good in ["debian:trixie", "a", "3.22", "my/image+x_1-2", "decade", "deadbee"] {
            assert_eq!(good.parse::<Alias>().unwrap().as_str(), good);
        }
        for bad in ["", ".x", "-x", "a b", "a\n", "ä", &"x".repeat(129), "deadbeef", "../x", ":x"] {
            assert!(bad.parse::<Alias>().is_err(), "{bad}");
        }
    }
}
