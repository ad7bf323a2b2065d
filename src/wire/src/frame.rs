//! How a message becomes bytes: postcard, with a hard size limit on both sides.
//!
//! A message of up to [`MAX_INLINE`] bytes is one SEQPACKET datagram. A longer one (a list of ten
//! thousand processes) is a datagram of the single byte [`INDIRECT`] whose first descriptor is a sealed
//! memfd with the encoded message; the message's own descriptors follow it.

use serde::{Serialize, de::DeserializeOwned};

/// Longest message that is sent inside a datagram, in bytes.
pub const MAX_INLINE: usize = 32 * 1024;
/// Longest message at all, in bytes: root's list of twenty thousand grants, each with its place in ten hierarchies.
pub const MAX_MESSAGE: usize = 32 * 1024 * 1024;
/// Most descriptors that may travel beside one message.
pub const MAX_FDS: usize = 16;
/// The whole content of a datagram whose message lies in the memfd that comes with it.
///
/// No encoded message is this byte alone: every message is an enum, and variant 255 exists in none.
pub const INDIRECT: u8 = 0xff;

/// Why bytes are not a message, or a message does not become bytes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FrameError {
    /// The message is longer than [`MAX_MESSAGE`].
    #[error("message of {length} bytes is longer than the limit of {MAX_MESSAGE}")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// The bytes are no message of this type, or bytes are left over.
    #[error("malformed message")]
    Malformed,
}

/// Encodes `message`.
///
/// # Errors
/// [`FrameError::TooLong`] past [`MAX_MESSAGE`]; [`FrameError::Malformed`] if it cannot be encoded.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, FrameError> {
    let bytes = postcard::to_stdvec(message).map_err(|_| FrameError::Malformed)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(FrameError::TooLong { length: bytes.len() });
    }
    Ok(bytes)
}

/// Decodes one message that takes up all of `bytes`.
///
/// # Errors
/// [`FrameError::TooLong`] past [`MAX_MESSAGE`]; [`FrameError::Malformed`] for anything that is not exactly one message.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, FrameError> {
    if bytes.len() > MAX_MESSAGE {
        return Err(FrameError::TooLong { length: bytes.len() });
    }
    match postcard::take_from_bytes(bytes) {
        Ok((message, [])) => Ok(message),
        _ => Err(FrameError::Malformed),
    }
}
