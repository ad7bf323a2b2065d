//! How many blocks of ids a container has for those inside it.

use std::str::FromStr;

/// The value of `--nesting`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Blocks {
    /// The usual number, or what there are.
    Auto,
    /// So many.
    Number(u32),
}

impl FromStr for Blocks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            number => number.parse().map(Self::Number).map_err(|_| {
                format!("a number of blocks of 65536 ids is expected, such as 16, and not {text:?}")
            }),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_number_or_as_many_as_there_are() {
        assert_eq!("auto".parse::<Blocks>().unwrap(), Blocks::Auto);
        assert_eq!("4".parse::<Blocks>().unwrap(), Blocks::Number(4));
        for bad in ["", "-1", "many", "4294967296"] {
            assert!(bad.parse::<Blocks>().is_err(), "{bad}");
        }
    }
}
