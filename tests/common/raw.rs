//! D-Bus by hand, for what no client library would send.

use std::{
    io::{Read, Write},
    os::unix::net::UnixStream,
    time::Duration,
};

/// A connection of bytes.
pub struct Raw(pub UnixStream);

impl Raw {
    pub fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
        Self(stream)
    }

    /// Goes through the handshake as a proper client of this uid.
    pub fn authenticate(&mut self, uid: u32) {
        let hex: String = uid.to_string().bytes().map(|b| format!("{b:02x}")).collect();
        self.0.write_all(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes()).unwrap();
        let line = self.line();
        assert!(line.starts_with("OK "), "{line}");
        self.0.write_all(b"NEGOTIATE_UNIX_FD\r\n").unwrap();
        assert_eq!(self.line(), "AGREE_UNIX_FD");
        self.0.write_all(b"BEGIN\r\n").unwrap();
    }

    /// One line of the handshake without its end; empty when the peer has closed.
    pub fn line(&mut self) -> String {
        let mut line = Vec::new();
        let mut byte = [0];
        while self.0.read(&mut byte).is_ok_and(|n| n == 1) {
            if byte[0] == b'\n' {
                break;
            }
            line.push(byte[0]);
        }
        String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned()
    }

    /// Sends bytes; false if the peer has closed already.
    pub fn send(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).is_ok()
    }

    /// Waits for the peer to close; false if it does not in time. What it still says is thrown away.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = [0; 4096];
        loop {
            match self.0.read(&mut rest) {
                Ok(0) => return true,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return true,
                Err(_) => return false,
            }
        }
    }

    /// The next message's header fields and body as bytes; `None` if the peer closes.
    pub fn message(&mut self) -> Option<Vec<u8>> {
        let mut head = [0; 16];
        self.0.read_exact(&mut head).ok()?;
        let number =
            |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]) as usize;
        let (body, fields) = (number(4), number(12));
        let mut rest = vec![0; fields.next_multiple_of(8) + body];
        self.0.read_exact(&mut rest).ok()?;
        Some([head.to_vec(), rest].concat())
    }
}

/// A method call with a string body, little-endian, laid out by hand. `interface` may be left out.
pub fn method_call(
    serial: u32,
    path: &str,
    interface: Option<&str>,
    member: &str,
    signature: &str,
    body: &[u8],
) -> Vec<u8> {
    let mut fields = Vec::new();
    field(&mut fields, 1, b'o', path);
    if let Some(interface) = interface {
        field(&mut fields, 2, b's', interface);
    }
    field(&mut fields, 3, b's', member);
    if !signature.is_empty() {
        pad(&mut fields, 8);
        fields.extend([8, 1, b'g', 0]);
        fields.push(u8::try_from(signature.len()).unwrap());
        fields.extend(signature.as_bytes());
        fields.push(0);
    }
    let mut message = vec![b'l', 1, 0, 1];
    message.extend(u32::try_from(body.len()).unwrap().to_le_bytes());
    message.extend(serial.to_le_bytes());
    message.extend(u32::try_from(fields.len()).unwrap().to_le_bytes());
    message.extend(&fields);
    pad(&mut message, 8);
    message.extend(body);
    message
}

fn field(out: &mut Vec<u8>, code: u8, kind: u8, text: &str) {
    pad(out, 8);
    out.extend([code, 1, kind, 0]);
    out.extend(u32::try_from(text.len()).unwrap().to_le_bytes());
    out.extend(text.as_bytes());
    out.push(0);
}

fn pad(out: &mut Vec<u8>, to: usize) {
    while !out.len().is_multiple_of(to) {
        out.push(0);
    }
}

/// A string as D-Bus writes it.
pub fn string(text: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(text.len()).unwrap().to_le_bytes().to_vec();
    out.extend(text);
    out.push(0);
    out
}
