//! The few D-Bus messages that the module sends and gets: calls with strings and numbers, and their replies. Pure.
//!
//! In the byte order of the machine, which is the broker's too. What is read is bounded, and looked at with nothing taken for
//! granted: the process that writes it is one that speaks with every user.

/// Length of the beginning of every message, in bytes.
pub const FIXED: usize = 16;
/// Longest reply, in bytes; a list of 100,000 processes is shorter.
const MAX: usize = 1024 * 1024;
/// The object that everything is called on.
const PATH: &str = "/org/linuxcontainers/cgmanager";
/// The interface.
const INTERFACE: &str = "org.linuxcontainers.cgmanager0_0";
/// The byte that says which byte order it is.
const ORDER: u8 = if cfg!(target_endian = "little") { b'l' } else { b'B' };
/// Kinds of messages.
const CALL: u8 = 1;
const RETURN: u8 = 2;
const ERROR: u8 = 3;
/// Fields of the header.
const FIELD_PATH: u8 = 1;
const FIELD_INTERFACE: u8 = 2;
const FIELD_MEMBER: u8 = 3;
const FIELD_REPLY_TO: u8 = 5;
const FIELD_SIGNATURE: u8 = 8;

/// A value in a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Value<'a> {
    /// `s`.
    Text(&'a str),
    /// `i`.
    Number(i32),
}

/// What is no message that can be a reply.
#[derive(Debug, Clone, Copy, thiserror::Error, PartialEq, Eq)]
#[error("the broker's reply is no D-Bus message of the kind that is wanted")]
pub struct Malformed;

/// A call of a method. `serial` is not 0.
pub fn call(serial: u32, member: &str, values: &[Value<'_>]) -> Vec<u8> {
    let mut body = Writer::default();
    let mut signature = String::new();
    for value in values {
        match value {
            Value::Text(text) => {
                signature.push('s');
                body.text(text);
            }
            Value::Number(number) => {
                signature.push('i');
                body.number(number.cast_unsigned());
            }
        }
    }
    let mut fields = Writer::default();
    fields.field(FIELD_PATH, "o", |fields| fields.text(PATH));
    fields.field(FIELD_INTERFACE, "s", |fields| fields.text(INTERFACE));
    fields.field(FIELD_MEMBER, "s", |fields| fields.text(member));
    if !signature.is_empty() {
        fields.field(FIELD_SIGNATURE, "g", |fields| fields.signature(&signature));
    }
    let mut message = Writer(vec![ORDER, CALL, 0, 1]);
    message.number(length(&body.0));
    message.number(serial);
    message.number(length(&fields.0));
    message.0.extend(&fields.0);
    message.align(8);
    message.0.extend(&body.0);
    message.0
}

/// Lengths of what is written here are far below 4 GiB.
fn length(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX)
}

#[derive(Debug, Default)]
struct Writer(Vec<u8>);

impl Writer {
    fn align(&mut self, to: usize) {
        self.0.resize(self.0.len().next_multiple_of(to), 0);
    }

    fn number(&mut self, number: u32) {
        self.align(4);
        self.0.extend(number.to_ne_bytes());
    }

    fn text(&mut self, text: &str) {
        self.number(length(text.as_bytes()));
        self.0.extend(text.as_bytes());
        self.0.push(0);
    }

    fn signature(&mut self, signature: &str) {
        self.0.push(u8::try_from(signature.len()).unwrap_or(u8::MAX));
        self.0.extend(signature.as_bytes());
        self.0.push(0);
    }

    /// A field of the header: they begin where 8 divides.
    fn field(&mut self, code: u8, signature: &str, value: impl FnOnce(&mut Self)) {
        self.align(8);
        self.0.push(code);
        self.signature(signature);
        value(self);
    }
}

/// How many bytes follow the first [`FIXED`] ones of a message.
///
/// # Errors
/// [`Malformed`], also if it is too long.
pub fn rest_of(fixed: &[u8; FIXED]) -> Result<usize, Malformed> {
    let mut reader = Reader { bytes: fixed, at: 4 };
    if fixed.first() != Some(&ORDER) {
        return Err(Malformed);
    }
    let (body, _serial, fields) = (reader.length()?, reader.number()?, reader.length()?);
    let rest = fields.checked_next_multiple_of(8).and_then(|fields| fields.checked_add(body));
    rest.filter(|rest| *rest <= MAX).ok_or(Malformed)
}

/// A reply.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply {
    signature: String,
    body: Vec<u8>,
    failed: bool,
}

impl Reply {
    /// From a whole message; `None` if it is not the reply to `serial`.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(message: &[u8], serial: u32) -> Result<Option<Self>, Malformed> {
        let kind = *message.get(1).ok_or(Malformed)?;
        let mut reader = Reader { bytes: message, at: FIXED - 4 };
        let fields = reader.length()?;
        let end = FIXED.checked_add(fields).ok_or(Malformed)?;
        let (mut reply_to, mut signature) = (None, String::new());
        while reader.at < end {
            reader.align(8)?;
            let code = reader.byte()?;
            match reader.signature()?.as_str() {
                "s" | "o" => drop(reader.text()?),
                "g" if code == FIELD_SIGNATURE => signature = reader.signature()?,
                "g" => drop(reader.signature()?),
                "u" if code == FIELD_REPLY_TO => reply_to = Some(reader.number()?),
                "u" => drop(reader.number()?),
                _ => return Err(Malformed),
            }
        }
        reader.align(8)?;
        if !matches!(kind, RETURN | ERROR) || reply_to != Some(serial) {
            return Ok(None);
        }
        let body = message.get(reader.at..).ok_or(Malformed)?.to_vec();
        Ok(Some(Self { signature, body, failed: kind == ERROR }))
    }

    fn reader(&self, signature: &str) -> Result<Reader<'_>, Malformed> {
        if self.signature != signature {
            return Err(Malformed);
        }
        Ok(Reader { bytes: &self.body, at: 0 })
    }

    /// The text of an error, if it is one.
    pub fn failure(&self) -> Option<String> {
        let text = || self.reader("s").and_then(|mut reader| reader.text());
        self.failed.then(|| text().unwrap_or_else(|_| "it does not say why".to_owned()))
    }

    /// One number.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn number(&self) -> Result<i32, Malformed> {
        Ok(self.reader("i")?.number()?.cast_signed())
    }

    /// How many numbers are in a list.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn count(&self) -> Result<usize, Malformed> {
        let length = self.reader("ai")?.length()?;
        Ok(length / size_of::<i32>())
    }

    /// A list of texts.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn texts(&self) -> Result<Vec<String>, Malformed> {
        let mut reader = self.reader("as")?;
        let end = reader.length()?.checked_add(reader.at).ok_or(Malformed)?;
        let mut texts = Vec::new();
        while reader.at < end {
            texts.push(reader.text()?);
        }
        if reader.at == end { Ok(texts) } else { Err(Malformed) }
    }
}

#[derive(Debug)]
struct Reader<'m> {
    bytes: &'m [u8],
    at: usize,
}

impl Reader<'_> {
    fn take(&mut self, count: usize) -> Result<&[u8], Malformed> {
        let end = self.at.checked_add(count).ok_or(Malformed)?;
        let taken = self.bytes.get(self.at..end).ok_or(Malformed)?;
        self.at = end;
        Ok(taken)
    }

    fn align(&mut self, to: usize) -> Result<(), Malformed> {
        self.at = self.at.checked_next_multiple_of(to).ok_or(Malformed)?;
        if self.at > self.bytes.len() { Err(Malformed) } else { Ok(()) }
    }

    fn byte(&mut self) -> Result<u8, Malformed> {
        self.take(1)?.first().copied().ok_or(Malformed)
    }

    fn number(&mut self) -> Result<u32, Malformed> {
        self.align(4)?;
        let bytes = self.take(4)?.try_into().map_err(|_| Malformed)?;
        Ok(u32::from_ne_bytes(bytes))
    }

    fn length(&mut self) -> Result<usize, Malformed> {
        usize::try_from(self.number()?).map_err(|_| Malformed)
    }

    fn text(&mut self) -> Result<String, Malformed> {
        let length = self.length()?;
        self.letters(length)
    }

    fn signature(&mut self) -> Result<String, Malformed> {
        let length = self.byte()?;
        self.letters(length.into())
    }

    fn letters(&mut self, length: usize) -> Result<String, Malformed> {
        let text = String::from_utf8(self.take(length)?.to_vec()).map_err(|_| Malformed)?;
        if self.byte()? == 0 { Ok(text) } else { Err(Malformed) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    /// A reply as the broker would write it.
    fn reply(serial: u32, kind: u8, signature: &str, body: &[u8]) -> Vec<u8> {
        let mut fields = Writer::default();
        fields.field(FIELD_REPLY_TO, "u", |fields| fields.number(serial));
        if kind == ERROR {
            fields.field(4, "s", |fields| fields.text("org.freedesktop.DBus.Error.InvalidArgs"));
        }
        if !signature.is_empty() {
            fields.field(FIELD_SIGNATURE, "g", |fields| fields.signature(signature));
        }
        let mut message = Writer(vec![ORDER, kind, 0, 1]);
        message.number(length(body));
        message.number(9);
        message.number(length(&fields.0));
        message.0.extend(&fields.0);
        message.align(8);
        message.0.extend(body);
        message.0
    }

    fn body(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut body = Writer::default();
        write(&mut body);
        body.0
    }

    fn parsed(signature: &str, body: &[u8]) -> Reply {
        let message = reply(3, RETURN, signature, body);
        assert_eq!(rest_of(&message[..FIXED].try_into().unwrap()).unwrap(), message.len() - FIXED);
        Reply::parse(&message, 3).unwrap().unwrap()
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn a_call_is_what_the_specification_says() {
        let message = call(1, "Ping", &[Value::Number(5)]);
        let expected = [
            &b"l\x01\0\x01\x04\0\0\0\x01\0\0\0\x7f\0\0\0"[..],
            b"\x01\x01o\0\x1e\0\0\0/org/linuxcontainers/cgmanager\0\0",
            b"\x02\x01s\0\x20\0\0\0org.linuxcontainers.cgmanager0_0\0\0\0\0\0\0\0\0",
            b"\x03\x01s\0\x04\0\0\0Ping\0\0\0\0",
            b"\x08\x01g\0\x01i\0\0",
            b"\x05\0\0\0",
        ];
        let fields: usize = expected[1..5].iter().map(|part| part.len()).sum();
        let mut expected = expected.concat();
        // The last field's padding is not counted.
        expected[12] = u8::try_from(fields - 1).unwrap();
        assert_eq!(message.escape_ascii().to_string(), expected.escape_ascii().to_string());
        assert_eq!(rest_of(&message[..FIXED].try_into().unwrap()).unwrap(), message.len() - FIXED);
    }

    #[test]
    fn replies_are_read() {
        assert_eq!(parsed("i", &body(|body| body.number(u32::MAX))).number().unwrap(), -1);
        let list = body(|body| {
            body.number(18);
            body.text("cpu");
            body.text("memory");
        });
        assert!(parsed("as", &list).texts().is_err(), "the length is another one");
        let list = body(|body| {
            body.number(19);
            body.text("cpu");
            body.text("memory");
        });
        assert_eq!(parsed("as", &list).texts().unwrap(), ["cpu", "memory"]);
        let numbers = body(|body| [8, 1, 2].into_iter().for_each(|number| body.number(number)));
        assert_eq!(parsed("ai", &numbers).count(), Ok(2));
        let error = reply(3, ERROR, "s", &body(|body| body.text("invalid request")));
        let error = Reply::parse(&error, 3).unwrap().unwrap();
        assert_eq!(error.failure().unwrap(), "invalid request");
        assert_eq!(parsed("", &[]).failure(), None);
        assert!(Reply::parse(&reply(4, RETURN, "", &[]), 3).unwrap().is_none(), "another call's");
        assert!(parsed("i", &[]).number().is_err());
        assert!(parsed("s", &body(|body| body.text("x"))).number().is_err());
    }

    #[test]
    fn no_bytes_make_it_fail_otherwise() {
        let whole = reply(3, RETURN, "as", &body(|body| body.number(400_000_000)));
        assert!(Reply::parse(&whole, 3).unwrap().unwrap().texts().is_err());
        for end in 0..whole.len() {
            let _ = Reply::parse(&whole[..end], 3);
        }
        for at in 0..whole.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut changed = whole.clone();
                changed[at] = byte;
                if let Ok(Some(reply)) = Reply::parse(&changed, 3) {
                    let _ = (reply.texts(), reply.number(), reply.count(), reply.failure());
                }
                let _ = rest_of(&changed[..FIXED].try_into().unwrap());
            }
        }
        let mut long = [0; FIXED];
        long[0] = ORDER;
        long[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert_eq!(rest_of(&long), Err(Malformed));
    }
}
