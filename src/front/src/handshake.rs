//! The handshake over a socket: [`crate::sasl`] for the peers of the broker's own socket, and our own side
//! towards a bus daemon.

use std::{io, os::fd::AsFd, time::Duration};

use tokio::time::timeout;

use crate::{
    castoff::Bin,
    sasl::{Claim, Handshake, SaslError, hex},
    stream::{peek, receive_once},
    watched::Watched,
};

/// How long a handshake may take from the first byte on.
pub const DEADLINE: Duration = Duration::from_secs(5);
/// How much is read at once.
const PIECE: usize = 512;
/// Longest line that a bus daemon answers with.
const MAX_LINE: usize = 1024;

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The peer broke the protocol.
    #[error(transparent)]
    Sasl(#[from] SaslError),
    /// The peer sent descriptors before the first message.
    #[error("descriptors before the first message")]
    Fds,
    /// It took longer than [`DEADLINE`].
    #[error("no BEGIN within {} s", DEADLINE.as_secs())]
    TooSlow,
    /// The bus daemon refused, or answered with something else than is its part.
    #[error("the bus answered {0:?}")]
    Refused(String),
    /// The socket failed or was closed.
    #[error("the connection failed")]
    Io(#[from] io::Error),
}

/// Serves a handshake with a peer that may claim `claim`; `true` if descriptors were agreed on.
/// What the peer sent behind BEGIN stays in the socket.
///
/// # Errors
/// [`HandshakeError`]; the connection is then to be closed.
pub async fn serve(stream: &Watched, claim: Claim, guid: &str, bin: &Bin) -> Result<bool, HandshakeError> {
    timeout(DEADLINE, serve_untimed(stream, claim, guid, bin)).await.unwrap_or(Err(HandshakeError::TooSlow))
}

async fn serve_untimed(
    stream: &Watched,
    claim: Claim,
    guid: &str,
    bin: &Bin,
) -> Result<bool, HandshakeError> {
    let mut handshake = Handshake::new(claim, guid);
    loop {
        // Looked at first and taken afterwards: what is behind BEGIN, descriptors included, belongs to a message.
        let mut piece = [0; PIECE];
        let seen = stream.read(|| peek(stream, &mut piece)).await?;
        if seen == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let step = handshake.feed(piece.get(..seen).unwrap_or_default())?;
        take(stream, step.consumed, bin)?;
        stream.send_all(step.reply.as_bytes()).await?;
        if let Some(unix_fds) = step.done {
            return Ok(unix_fds);
        }
    }
}

/// Authenticates to a bus daemon as this process's own uid and asks for descriptors; `true` if it agreed.
///
/// # Errors
/// [`HandshakeError`].
pub async fn authenticate(stream: &Watched, bin: &Bin) -> Result<bool, HandshakeError> {
    timeout(DEADLINE, authenticate_untimed(stream, bin)).await.unwrap_or(Err(HandshakeError::TooSlow))
}

async fn authenticate_untimed(stream: &Watched, bin: &Bin) -> Result<bool, HandshakeError> {
    let uid = rustix::process::geteuid().as_raw();
    stream.send_all(format!("\0AUTH EXTERNAL {}\r\n", hex(&uid.to_string())).as_bytes()).await?;
    let answer = line(stream, bin).await?;
    if !answer.starts_with("OK ") {
        return Err(HandshakeError::Refused(answer));
    }
    stream.send_all(b"NEGOTIATE_UNIX_FD\r\n").await?;
    let unix_fds = line(stream, bin).await?.starts_with("AGREE_UNIX_FD");
    stream.send_all(b"BEGIN\r\n").await?;
    Ok(unix_fds)
}

/// One line of the daemon's. It says nothing that it was not asked for, so bytewise reading loses nothing, and
/// costs little: two lines a connection.
async fn line(stream: &Watched, bin: &Bin) -> Result<String, HandshakeError> {
    let mut line = Vec::new();
    loop {
        let mut byte = [0];
        let (count, _) = stream.read(|| receive_once(stream.as_fd(), &mut byte, bin)).await?;
        if count == 0 || line.len() > MAX_LINE {
            return Err(HandshakeError::Refused(String::from_utf8_lossy(&line).into_owned()));
        }
        match byte {
            [b'\n'] => return Ok(String::from_utf8_lossy(&line).trim_end().to_owned()),
            [other] => line.push(other),
        }
    }
}

/// Takes bytes that were seen already.
fn take(stream: &Watched, mut count: usize, bin: &Bin) -> Result<(), HandshakeError> {
    while count > 0 {
        let mut piece = [0; PIECE];
        let wanted = piece.get_mut(..count.min(PIECE)).unwrap_or_default();
        let (taken, kept) = receive_once(stream.as_fd(), wanted, bin)?;
        if !kept.is_empty() {
            bin.throw(kept.into_iter().map(|kept| kept.fd).collect());
            return Err(HandshakeError::Fds);
        }
        if taken == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        count = count.saturating_sub(taken);
    }
    Ok(())
}
