//! The server's side of the D-Bus authentication, as a machine over bytes: no I/O, no time, no allocation
//! beyond one line.
//!
//! Who the peer is the engine read from the kernel when it accepted the connection. So nothing is decided here: a
//! handshake that ends well says only that the peer speaks D-Bus. On the broker's own socket only the EXTERNAL mechanism
//! is known, and the identity it may claim is that one. On CGManager's socket any identity may be claimed, and none
//! (ANONYMOUS): libdbus in a user namespace claims the uid that it has there. Both are worth nothing. DBUS_COOKIE_SHA1 is
//! not offered: it has the server write into a home directory. Source: D-Bus specification, "Authentication Protocol".

use std::fmt::Write as _;

/// Most bytes that a peer may send before BEGIN, all lines together.
pub const MAX_BYTES: usize = 4096;

/// What a peer may claim to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// This uid, which it has.
    Own(u32),
    /// Of one in a container: the uid that it has on the host, or the one that it has there.
    Inside {
        /// On the host.
        uid: u32,
        /// In its own user namespace.
        claim: u32,
    },
    /// Anything, or nothing.
    Any,
}

impl Claim {
    const fn rejected(self) -> &'static str {
        match self {
            Self::Own(_) | Self::Inside { .. } => "REJECTED EXTERNAL\r\n",
            Self::Any => "REJECTED EXTERNAL ANONYMOUS\r\n",
        }
    }

    /// The identity is the uid in decimal, in hexadecimal; or nothing, which means "whoever the kernel says".
    fn covers(self, identity: &str) -> bool {
        match self {
            _ if identity.is_empty() => true,
            Self::Own(uid) => identity == hex(&uid.to_string()),
            Self::Inside { uid, claim } => [uid, claim].iter().any(|id| identity == hex(&id.to_string())),
            Self::Any => is_hex(identity),
        }
    }
}

/// Why a handshake is broken off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SaslError {
    /// The first byte of a connection is a zero byte.
    #[error("no zero byte at the start")]
    NoNul,
    /// More than [`MAX_BYTES`] before BEGIN.
    #[error("more than {MAX_BYTES} bytes before BEGIN")]
    TooLong,
    /// A byte that is not printable ASCII.
    #[error("a line with a byte that is not printable ASCII")]
    NotAscii,
    /// BEGIN before the peer was authenticated.
    #[error("BEGIN before authentication")]
    TooEarly,
}

/// What became of the bytes that were fed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Step {
    /// How many of them belong to the handshake; all, unless it is done.
    pub consumed: usize,
    /// What to send to the peer.
    pub reply: String,
    /// Set when the peer said BEGIN: were descriptors agreed on?
    pub done: Option<bool>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Nothing has come.
    Start,
    /// No mechanism is chosen.
    Auth,
    /// EXTERNAL is chosen, the identity is to come.
    Data,
    /// The identity fits.
    Authenticated,
}

/// One handshake.
#[derive(Debug)]
pub struct Handshake {
    claim: Claim,
    guid: String,
    state: State,
    line: Vec<u8>,
    total: usize,
    unix_fds: bool,
}

impl Handshake {
    /// A handshake with a peer that may claim `claim`; `guid` is the server's, 32 hexadecimal digits.
    pub fn new(claim: Claim, guid: impl Into<String>) -> Self {
        Self { claim, guid: guid.into(), state: State::Start, line: Vec::new(), total: 0, unix_fds: false }
    }

    /// Takes the next bytes of the peer, in pieces of any size. After [`Step::done`] the rest belongs to the
    /// messages.
    ///
    /// # Errors
    /// [`SaslError`]; the connection is then to be closed.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<Step, SaslError> {
        let mut step = Step::default();
        for byte in bytes {
            step.consumed += 1;
            self.total += 1;
            if self.total > MAX_BYTES {
                return Err(SaslError::TooLong);
            }
            if self.state == State::Start {
                self.state = if *byte == 0 { State::Auth } else { return Err(SaslError::NoNul) };
                continue;
            }
            if !self.end_of_line(*byte)? {
                continue;
            }
            let line = std::mem::take(&mut self.line);
            let text = std::str::from_utf8(&line).map_err(|_| SaslError::NotAscii)?;
            if self.command(text, &mut step.reply)? {
                step.done = Some(self.unix_fds);
                return Ok(step);
            }
        }
        Ok(step)
    }

    /// Adds a byte to the line; `true` when that ends it. A carriage return stands before a line feed and nowhere else.
    fn end_of_line(&mut self, byte: u8) -> Result<bool, SaslError> {
        match (self.line.last(), byte) {
            (Some(b'\r'), b'\n') => {
                self.line.pop();
                Ok(true)
            }
            (Some(b'\r'), _) => Err(SaslError::NotAscii),
            (_, b' '..=b'~' | b'\r') => {
                self.line.push(byte);
                Ok(false)
            }
            _ => Err(SaslError::NotAscii),
        }
    }

    /// Answers one line; `true` for the BEGIN that ends the handshake.
    fn command(&mut self, line: &str, reply: &mut String) -> Result<bool, SaslError> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match (self.state, word, rest) {
            (State::Auth, "AUTH", rest) => self.choose(rest, reply),
            (State::Data, "DATA", identity) => self.identify(identity, reply),
            (State::Data, "CANCEL" | "ERROR", _) => self.reject(reply),
            (State::Authenticated, "NEGOTIATE_UNIX_FD", "") => {
                self.unix_fds = true;
                reply.push_str("AGREE_UNIX_FD\r\n");
            }
            (State::Authenticated, "BEGIN", "") => return Ok(true),
            (State::Authenticated, "CANCEL" | "ERROR", _) => self.reject(reply),
            (_, "BEGIN", _) => return Err(SaslError::TooEarly),
            (State::Auth, "ERROR", _) => reply.push_str(self.claim.rejected()),
            _ => reply.push_str("ERROR\r\n"),
        }
        Ok(false)
    }

    fn choose(&mut self, rest: &str, reply: &mut String) {
        match rest.split_once(' ') {
            Some(("EXTERNAL", identity)) => self.identify(identity, reply),
            None if rest == "EXTERNAL" => {
                self.state = State::Data;
                reply.push_str("DATA\r\n");
            }
            // What it says of itself may be left out.
            Some(("ANONYMOUS", trace)) if self.claim == Claim::Any => self.identify(trace, reply),
            None if rest == "ANONYMOUS" && self.claim == Claim::Any => self.identify("", reply),
            _ => self.reject(reply),
        }
    }

    fn identify(&mut self, identity: &str, reply: &mut String) {
        if !self.claim.covers(identity) {
            return self.reject(reply);
        }
        self.state = State::Authenticated;
        reply.push_str("OK ");
        reply.push_str(&self.guid);
        reply.push_str("\r\n");
    }

    fn reject(&mut self, reply: &mut String) {
        self.state = State::Auth;
        self.unix_fds = false;
        reply.push_str(self.claim.rejected());
    }
}

/// Is it bytes in hexadecimal?
fn is_hex(text: &str) -> bool {
    text.len().is_multiple_of(2) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The bytes of a text in hexadecimal, as EXTERNAL writes an identity. Digits have no letters in theirs, so there is
/// one spelling only.
pub(crate) fn hex(text: &str) -> String {
    text.bytes().fold(String::with_capacity(text.len() * 2), |mut hex, byte| {
        // Writing to a String can't fail.
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GUID: &str = "0123456789abcdef0123456789abcdef";

    /// Everything that a peer gets for these bytes, fed in the given pieces.
    fn run(pieces: &[&[u8]]) -> Result<(String, Option<bool>, usize), SaslError> {
        run_with(Claim::Own(1000), pieces)
    }

    fn run_with(claim: Claim, pieces: &[&[u8]]) -> Result<(String, Option<bool>, usize), SaslError> {
        let mut handshake = Handshake::new(claim, GUID);
        let (mut reply, mut consumed) = (String::new(), 0);
        for piece in pieces {
            let step = handshake.feed(piece)?;
            reply.push_str(&step.reply);
            consumed += step.consumed;
            if step.done.is_some() {
                return Ok((reply, step.done, consumed));
            }
            assert_eq!(step.consumed, piece.len());
        }
        Ok((reply, None, consumed))
    }

    fn ok() -> String {
        format!("OK {GUID}\r\n")
    }

    #[test]
    fn external_with_and_without_identity() {
        for (bytes, replies) in [
            (&b"\0AUTH EXTERNAL 31303030\r\nBEGIN\r\n"[..], ok()),
            (b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n", format!("DATA\r\n{}", ok())),
            (b"\0AUTH EXTERNAL\r\nDATA 31303030\r\nBEGIN\r\n", format!("DATA\r\n{}", ok())),
            (b"\0AUTH EXTERNAL \r\nBEGIN\r\n", ok()),
            (b"\0AUTH\r\nAUTH EXTERNAL 31303030\r\nBEGIN\r\n", format!("REJECTED EXTERNAL\r\n{}", ok())),
        ] {
            assert_eq!(run(&[bytes]).unwrap(), (replies, Some(false), bytes.len()));
        }
    }

    #[test]
    fn pipelined_with_descriptors_and_a_message_behind_it() {
        let bytes = b"\0AUTH EXTERNAL 31303030\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\nl\x01\0\x01rest";
        let (reply, done, consumed) = run(&[bytes]).unwrap();
        assert_eq!(reply, format!("{}AGREE_UNIX_FD\r\n", ok()));
        assert_eq!(done, Some(true));
        assert_eq!(&bytes[consumed..], b"l\x01\0\x01rest");
    }

    #[test]
    fn another_identity_or_mechanism_is_rejected() {
        for bytes in [
            &b"\0AUTH EXTERNAL 30\r\n"[..],
            b"\0AUTH EXTERNAL 313030\r\n",
            b"\0AUTH EXTERNAL 3130303000\r\n",
            b"\0AUTH EXTERNAL zz\r\n",
            b"\0AUTH EXTERNAL  31303030\r\n",
            b"\0AUTH ANONYMOUS\r\n",
            b"\0AUTH ANONYMOUS 6c6f6c\r\n",
            b"\0AUTH DBUS_COOKIE_SHA1 31303030\r\n",
            b"\0AUTH EXTERNALLY 31303030\r\n",
        ] {
            let (reply, done, _) = run(&[bytes]).unwrap();
            assert_eq!((reply.as_str(), done), ("REJECTED EXTERNAL\r\n", None), "{}", bytes.escape_ascii());
        }
        // A rejection takes back what was agreed before it.
        let bytes =
            b"\0AUTH EXTERNAL\r\nDATA\r\nNEGOTIATE_UNIX_FD\r\nCANCEL\r\nAUTH EXTERNAL 31303030\r\nBEGIN\r\n";
        assert_eq!(run(&[bytes]).unwrap().1, Some(false));
    }

    #[test]
    fn anything_may_be_claimed_where_it_is_worth_nothing() {
        for bytes in [
            &b"\0AUTH EXTERNAL 30\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n"[..],
            b"\0AUTH EXTERNAL 343239343936373239\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n",
            b"\0AUTH ANONYMOUS 6c6962646275732031\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n",
            b"\0AUTH ANONYMOUS\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\n",
        ] {
            let expected = (format!("{}AGREE_UNIX_FD\r\n", ok()), Some(true), bytes.len());
            assert_eq!(run_with(Claim::Any, &[bytes]).unwrap(), expected, "{}", bytes.escape_ascii());
        }
        // What libdbus in a user namespace did with CGManager, as far as it gets here.
        let asks = b"\0AUTH\r\nAUTH DBUS_COOKIE_SHA1 30\r\nAUTH EXTERNAL zz\r\nAUTH EXTERNAL 3\r\nAUTH ANONYMOUS \xe2\r\n";
        let (reply, ..) = run_with(Claim::Any, &[&asks[..asks.len() - 3]]).unwrap();
        assert_eq!(reply, "REJECTED EXTERNAL ANONYMOUS\r\n".repeat(4));
        assert_eq!(run_with(Claim::Any, &[asks]).unwrap_err(), SaslError::NotAscii);
    }

    #[test]
    fn hostile_bytes_end_it() {
        for (bytes, error) in [
            (&b"\n"[..], SaslError::NoNul),
            (b"AUTH EXTERNAL\r\n", SaslError::NoNul),
            (b"\0\n", SaslError::NotAscii),
            (b"\0\r\r\n", SaslError::NotAscii),
            (b"\0\0", SaslError::NotAscii),
            (b"\0AUTH\n", SaslError::NotAscii),
            (b"\0AUTH \xff\r\n", SaslError::NotAscii),
            (b"\0BEGIN\r\n", SaslError::TooEarly),
            (b"\0AUTH EXTERNAL 30\r\nBEGIN\r\n", SaslError::TooEarly),
            (b"\0AUTH EXTERNAL\r\nBEGIN\r\n", SaslError::TooEarly),
        ] {
            assert_eq!(run(&[bytes]).unwrap_err(), error, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn a_giant_line_and_many_lines_end_at_the_limit() {
        let mut line = vec![0];
        line.resize(MAX_BYTES, b'A');
        assert!(run(&[&line]).is_ok());
        line.push(b'A');
        assert_eq!(run(&[&line]).unwrap_err(), SaslError::TooLong);
        let many = [&b"\0"[..], &b"NOISE\r\n".repeat(MAX_BYTES / 7 + 1)].concat();
        assert_eq!(run(&[&many]).unwrap_err(), SaslError::TooLong);
    }

    #[test]
    fn an_empty_or_unknown_line_is_answered_and_no_end() {
        let (reply, done, _) = run(&[b"\0\r\nNEGOTIATE_UNIX_FD\r\nauth EXTERNAL\r\n"]).unwrap();
        assert_eq!((reply, done), ("ERROR\r\n".repeat(3), None));
        let begin = b"\0AUTH EXTERNAL 31303030\r\nBEGIN now\r\n";
        assert_eq!(run(&[begin]).unwrap_err(), SaslError::TooEarly);
    }

    proptest! {
        #[test]
        fn pieces_make_no_difference(cuts in proptest::collection::vec(0usize..90, 0..12)) {
            let bytes = b"\0AUTH EXTERNAL 30\r\nAUTH EXTERNAL\r\nDATA 31303030\r\nNEGOTIATE_UNIX_FD\r\nBEGIN\r\nmessage";
            let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
            prop_assert_eq!(run(&pieces).unwrap(), run(&[bytes]).unwrap());
        }

        #[test]
        fn any_bytes_are_bounded_and_never_authenticate_another_uid(bytes in proptest::collection::vec(any::<u8>(), 0..6000)) {
            let mut handshake = Handshake::new(Claim::Own(1000), GUID);
            if let Ok(step) = handshake.feed(&bytes) {
                prop_assert!(step.consumed <= MAX_BYTES);
                prop_assert!(step.reply.len() <= MAX_BYTES * 20);
            }
        }

        #[test]
        fn only_the_own_uid_passes(uid in any::<u32>(), claimed in any::<u32>()) {
            let mut handshake = Handshake::new(Claim::Own(uid), GUID);
            let step = handshake.feed(format!("\0AUTH EXTERNAL {}\r\n", hex(&claimed.to_string())).as_bytes()).unwrap();
            prop_assert_eq!(step.reply.starts_with("OK "), uid == claimed);
        }
    }
}
