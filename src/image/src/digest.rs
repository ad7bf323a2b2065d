//! SHA-256: what images are named by, and what downloads are checked against.

use std::fmt;
use std::io::{self, Read, Write};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::progress::{Progress, Step, Watch};

/// A SHA-256 sum. Written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256([u8; 32]);

/// Not 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a SHA-256 sum has 64 hexadecimal digits")]
pub struct NotASum;

impl Sha256 {
    /// The sum of all that `source` gives. `size` is for progress alone.
    ///
    /// # Errors
    /// Those of `source`.
    pub fn of_reader(mut source: impl Read, size: Option<u64>, watch: &mut Watch<'_>) -> io::Result<Self> {
        let mut hasher = Hasher::new(io::sink());
        let mut buffer = vec![0; 1 << 17];
        loop {
            let count = match source.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result?,
            };
            let Some(part) = buffer.get(..count).filter(|part| !part.is_empty()) else { break };
            hasher.write_all(part)?;
            watch(Progress { step: Step::Verify, done: hasher.count(), total: size });
        }
        Ok(hasher.finish().0)
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for Sha256 {
    type Err = NotASum;

    fn from_str(text: &str) -> Result<Self, NotASum> {
        if text.len() != 64 || !text.is_ascii() {
            return Err(NotASum);
        }
        let mut sum = [0; 32];
        for (byte, pair) in sum.iter_mut().zip(text.as_bytes().chunks(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| NotASum)?;
            if pair.starts_with('+') {
                return Err(NotASum);
            }
            *byte = u8::from_str_radix(pair, 16).map_err(|_| NotASum)?;
        }
        Ok(Self(sum))
    }
}

impl TryFrom<String> for Sha256 {
    type Error = NotASum;

    fn try_from(text: String) -> Result<Self, NotASum> {
        text.parse()
    }
}

impl From<Sha256> for String {
    fn from(sum: Sha256) -> Self {
        sum.to_string()
    }
}

/// A writer that hashes and counts what goes through it.
pub(crate) struct Hasher<W> {
    inner: W,
    state: sha2::Sha256,
    count: u64,
}

impl<W: Write> Hasher<W> {
    pub fn new(inner: W) -> Self {
        Self { inner, state: sha2::Sha256::new(), count: 0 }
    }

    /// How many bytes went through.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The sum of what went through, and where it went.
    pub fn finish(self) -> (Sha256, W) {
        (Sha256(self.state.finalize().into()), self.inner)
    }
}

impl<W: Write> Write for Hasher<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.state.update(bytes.get(..count).unwrap_or_default());
        self.count = self.count.saturating_add(count as u64);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_that_everybody_has() {
        let sum = Sha256::of_reader(&b"abc"[..], None, &mut |_| ()).unwrap();
        assert_eq!(sum.to_string(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(sum.to_string().parse(), Ok(sum));
        assert_eq!(sum.to_string().to_uppercase().parse(), Ok(sum));
    }

    #[test]
    fn other_texts_are_no_sums() {
        for text in ["", "abc", &"g".repeat(64), &"+1".repeat(32), &"ä".repeat(32), &"0".repeat(65)] {
            assert_eq!(text.parse::<Sha256>(), Err(NotASum), "{text}");
        }
    }
}
