//! Most of something that there may be, where "no limit" is an answer too: `"50G"`, `1000000` or `"max"`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, de};

use crate::limit::bytes;

/// Most of something, units of 1024; or no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Most(u64);

impl Most {
    /// No limit.
    pub const UNLIMITED: Self = Self(u64::MAX);
    const EXPECTED: &str = "expected an amount as in \"50G\" (units of 1024), or \"max\" for no limit";

    /// So many.
    pub const fn new(most: u64) -> Self {
        Self(most)
    }

    /// How many; [`u64::MAX`] for no limit.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// As it would stand in a file, without quotation marks: in the largest unit that it is a whole number of.
impl fmt::Display for Most {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::UNLIMITED {
            return f.write_str("max");
        }
        let units = [("T", 1u64 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];
        match units.into_iter().find(|(_, unit)| self.0 > 0 && self.0.is_multiple_of(*unit)) {
            Some((letter, unit)) => write!(f, "{}{letter}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl FromStr for Most {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "max" => Ok(Self::UNLIMITED),
            text => bytes(text).map(Self).ok_or(Self::EXPECTED),
        }
    }
}

impl<'de> Deserialize<'de> for Most {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Most;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an amount as in \"50G\", or \"max\" for no limit")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Most, E> {
                u64::try_from(number).map(Most).map_err(|_| E::custom(Most::EXPECTED))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Most, E> {
                text.parse().map_err(E::custom)
            }
        }
        from.deserialize_any(Visitor)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_as_they_are_written() {
        for (text, most, written) in [
            ("max", u64::MAX, "max"),
            ("0", 0, "0"),
            ("50G", 50 << 30, "50G"),
            ("1.5GiB", 3 << 29, "1536M"),
            ("1025", 1025, "1025"),
            ("2048", 2048, "2K"),
        ] {
            let read: Most = text.parse().unwrap();
            assert_eq!((read.get(), read.to_string().as_str()), (most, written), "{text}");
            assert_eq!(written.parse(), Ok(read));
        }
        for text in ["", "-1", "none", "50GB", "18446744073709551615", "99999999T", "1G "] {
            assert!(text.parse::<Most>().is_err(), "{text}");
        }
    }
}
