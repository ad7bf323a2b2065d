//! Where D-Bus messages begin and end in a stream of bytes, and the limits on them, checked on the fixed header
//! before anything is allocated for the rest. Pure: no I/O.
//!
//! Source: D-Bus specification, "Message Format": byte order, type, flags, version, body length at 4, serial at
//! 8, length of the array of header fields at 12; the fields are padded to 8 bytes, then comes the body.

/// Length of the part of the header that every message has.
pub const FIXED: usize = 16;
/// Longest message that is taken, in bytes, header included.
pub const MAX_MESSAGE: usize = 256 * 1024;
/// Most descriptors beside one message.
pub const MAX_FDS: usize = 16;

const LITTLE: u8 = b'l';
const BIG: u8 = b'B';
const VERSION: u8 = 1;

/// Why bytes are not the start of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// The byte order is neither `l` nor `B`, the version not 1, or the type unknown.
    #[error("not the start of a D-Bus message")]
    NotAMessage,
    /// The message is longer than [`MAX_MESSAGE`].
    #[error("message longer than {MAX_MESSAGE} bytes")]
    TooLong,
    /// More than [`MAX_FDS`] descriptors beside one message.
    #[error("more than {MAX_FDS} descriptors beside one message")]
    TooManyFds,
}

/// What a fixed header says about the message's length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// The header fields with their padding, in bytes.
    pub fields: u64,
    /// The body, in bytes.
    pub body: u64,
}

impl Extent {
    /// Reads a fixed header.
    ///
    /// # Errors
    /// [`FramingError::NotAMessage`].
    pub fn of(header: &[u8; FIXED]) -> Result<Self, FramingError> {
        let [order, kind, _, version, rest @ ..] = header;
        if !matches!(*order, LITTLE | BIG) || !matches!(kind, 1..=4) || *version != VERSION {
            return Err(FramingError::NotAMessage);
        }
        let [b0, b1, b2, b3, _, _, _, _, f0, f1, f2, f3] = *rest;
        let number =
            |bytes| if *order == LITTLE { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) };
        let fields = u64::from(number([f0, f1, f2, f3])).next_multiple_of(8);
        Ok(Self { fields, body: u64::from(number([b0, b1, b2, b3])) })
    }

    /// What follows the fixed header, in bytes.
    pub const fn rest(self) -> u64 {
        self.fields + self.body
    }

    /// Is the whole message within [`MAX_MESSAGE`]?
    pub const fn fits(self) -> bool {
        FIXED as u64 + self.rest() <= MAX_MESSAGE as u64
    }

    /// Are header and fields alone within [`MAX_MESSAGE`]?
    pub const fn fields_fit(self) -> bool {
        FIXED as u64 + self.fields <= MAX_MESSAGE as u64
    }
}

/// The same header for a message with an empty body.
pub fn without_body(header: [u8; FIXED]) -> [u8; FIXED] {
    let [order, kind, flags, version, _, _, _, _, serial_and_fields @ ..] = header;
    let [s0, s1, s2, s3, f0, f1, f2, f3] = serial_and_fields;
    [order, kind, flags, version, 0, 0, 0, 0, s0, s1, s2, s3, f0, f1, f2, f3]
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(order: u8, body: u32, fields: u32) -> [u8; FIXED] {
        let bytes = |number: u32| if order == LITTLE { number.to_le_bytes() } else { number.to_be_bytes() };
        let mut header = [order, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        for (at, number) in [(4, body), (8, 1), (12, fields)] {
            for (offset, byte) in bytes(number).into_iter().enumerate() {
                *header.get_mut(at + offset).unwrap() = byte;
            }
        }
        header
    }

    #[test]
    fn the_limit_is_met_exactly() {
        let most = u32::try_from(MAX_MESSAGE - FIXED).unwrap();
        for order in [LITTLE, BIG] {
            assert!(Extent::of(&header(order, most - 8, 8)).unwrap().fits());
            assert!(!Extent::of(&header(order, most - 7, 8)).unwrap().fits());
            assert!(!Extent::of(&header(order, most - 8, 9)).unwrap().fits());
            assert!(!Extent::of(&header(order, u32::MAX, u32::MAX)).unwrap().fields_fit());
        }
    }

    #[test]
    fn what_is_no_message() {
        let good = header(LITTLE, 0, 0);
        assert!(Extent::of(&good).is_ok());
        for (at, wrong) in [(0, b'L'), (0, 0), (1, 0), (1, 5), (3, 0), (3, 2)] {
            let mut bad = good;
            *bad.get_mut(at).unwrap() = wrong;
            assert_eq!(Extent::of(&bad), Err(FramingError::NotAMessage));
        }
    }

    proptest! {
        #[test]
        fn any_header_is_read_as_the_specification_says(body in any::<u32>(), fields in any::<u32>(), big in any::<bool>()) {
            let header = header(if big { BIG } else { LITTLE }, body, fields);
            let extent = Extent::of(&header).unwrap();
            prop_assert_eq!(extent.body, u64::from(body));
            prop_assert!(extent.fields >= u64::from(fields) && extent.fields < u64::from(fields) + 8);
            prop_assert_eq!(extent.fields % 8, 0);
            let blank = Extent::of(&without_body(header)).unwrap();
            prop_assert_eq!(blank, Extent { fields: extent.fields, body: 0 });
        }

        #[test]
        fn any_bytes_are_judged(bytes in any::<[u8; FIXED]>()) {
            if let Ok(extent) = Extent::of(&bytes) {
                prop_assert_eq!(extent.fits(), FIXED as u64 + extent.rest() <= MAX_MESSAGE as u64);
            }
        }
    }
}
