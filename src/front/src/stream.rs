//! The two halves of a connection: whole, bounded D-Bus messages over a UNIX socket.
//!
//! zbus makes messages out of the bytes; how many bytes and descriptors it may ask for is decided here, on the
//! fixed header, before it allocates. A connection is read one message at a time and only when there is room to
//! work on it, so a peer that floods waits in its own socket buffer.

use std::{
    io::{self, Cursor, IoSlice, IoSliceMut, Read},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use async_trait::async_trait;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use zbus::{
    Message,
    connection::socket::{ReadHalf, WriteHalf},
};

use crate::{
    castoff::{Bin, Kept, Pins},
    framing::{Extent, FIXED, FramingError, MAX_FDS, without_body},
    watched::Watched,
};

/// Most descriptors that the kernel gives at once (`SCM_MAX_FD`).
const KERNEL_FDS: usize = 253;
/// Room for them: what does not fit would be lost with an error that says nothing about whose message it was.
const CONTROL_SPACE: usize = rustix::cmsg_space!(ScmRights(KERNEL_FDS));
/// Longest message that is sent together with others, in bytes.
const SHORT: usize = 4096;
/// Most that is sent at once of them, in bytes.
const TOGETHER: usize = 16 * 1024;
/// Longest message that is received at once, header and all, in bytes.
const WHOLE: usize = 4096;
/// How much is read at once of what is thrown away.
const SCRATCH: usize = 4096;

/// What is done with a message that is too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TooLong {
    /// The connection is closed: it is the sender's own.
    Fail,
    /// The body is thrown away and the message is passed on without it, so that its sender gets an error: the
    /// connection is the bus daemon's, and others' messages come over it too.
    Blank,
}

/// What a message may do to the stream position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Position {
    /// In the fixed header; so many bytes of it are there.
    Header(usize),
    /// The fixed header is there and being handed out; so many of its bytes are out.
    HeaderOut(usize, Extent),
    /// In fields and body; so many bytes are still to be handed out, then so many to be thrown away.
    Rest(u64, u64),
    /// So many bytes are to be thrown away.
    Skip(u64),
}

/// Receives messages.
#[derive(Debug)]
pub struct Reader {
    stream: Arc<Watched>,
    too_long: TooLong,
    unix_fds: bool,
    header: [u8; FIXED],
    position: Position,
    /// How long the next message is, if all of it is there.
    whole: Option<usize>,
    /// Was nothing seen behind it?
    is_last: bool,
    /// May there be something that was hidden by a message's descriptors?
    hides: bool,
    /// What was received of a message, as far as it is there.
    ahead: Cursor<Vec<u8>>,
    fds: Vec<OwnedFd>,
    fds_of_message: usize,
    received: u64,
    bin: Bin,
    pins: Pins,
}

/// A message with what must not be closed here before it.
#[derive(Debug)]
pub struct Parcel {
    message: Message,
    /// Dropped after the message.
    pins: Pins,
}

impl Parcel {
    /// The message, and what is to be dropped after it.
    pub fn into_parts(self) -> (Message, Pins) {
        (self.message, self.pins)
    }
}

impl std::ops::Deref for Parcel {
    type Target = Message;

    fn deref(&self) -> &Message {
        &self.message
    }
}

/// Sends messages.
#[derive(Debug)]
pub struct Writer {
    stream: Arc<Watched>,
    unix_fds: bool,
}

/// Both halves of an authenticated stream. Without `unix_fds` a message with descriptors is an error.
/// Descriptors that no operation takes go into `bin`.
pub fn halves(stream: Watched, unix_fds: bool, too_long: TooLong, bin: Bin) -> (Reader, Writer) {
    let stream = Arc::new(stream);
    let reader = Reader {
        stream: Arc::clone(&stream),
        too_long,
        unix_fds,
        header: [0; FIXED],
        position: Position::Header(0),
        whole: None,
        is_last: false,
        hides: false,
        ahead: Cursor::default(),
        fds: Vec::new(),
        fds_of_message: 0,
        received: 0,
        pins: Pins::new(bin.clone()),
        bin,
    };
    (reader, Writer { stream, unix_fds })
}

impl Reader {
    /// Waits until there is something to read, or the connection has ended.
    ///
    /// # Errors
    /// Those of `recv(2)`.
    pub async fn readable(&mut self) -> io::Result<()> {
        let stream = Arc::clone(&self.stream);
        let mut piece = [0; WHOLE];
        let mut look = || {
            let seen = peek(&stream, &mut piece)?;
            let seen = piece.get(..seen).unwrap_or_default();
            let whole = whole_message(seen);
            io::Result::Ok((whole, seen.len() < WHOLE && whole == Some(seen.len())))
        };
        // Nobody sees past descriptors, and what was hidden behind them is no news.
        self.hides |= self.fds_of_message > 0;
        let hidden = if self.hides { look().ok() } else { None };
        self.hides = hidden.is_some();
        (self.whole, self.is_last) = match hidden {
            Some((whole, _)) => (whole, false),
            None => stream.look(look, |(_, is_last)| *is_last).await?,
        };
        Ok(())
    }

    /// Was something seen behind the message that [`readable`](Self::readable) waited for?
    pub const fn has_more(&self) -> bool {
        !self.is_last
    }

    /// The next message. Not to be dropped half-way: what was read of a message would be lost.
    ///
    /// # Errors
    /// `InputOutput` when the stream has ended, or must: a message past a limit, or bytes that are no message. Anything
    /// else is about this message alone, and the next one can be read.
    pub async fn next(&mut self) -> zbus::Result<Parcel> {
        self.skip_rest();
        // Those of a message that could not be read.
        drop(self.pins.take());
        self.received = self.received.wrapping_add(1);
        let message = self.receive_message(self.received, &mut Vec::new(), &mut Vec::new()).await?;
        // More descriptors than the header names would stay open for as long as the message does.
        let named = message.header().unix_fds().unwrap_or(0);
        if u32::try_from(message.data().fds().len()) != Ok(named) && self.too_long == TooLong::Fail {
            return Err(FramingError::TooManyFds.into_io().into());
        }
        Ok(Parcel { message, pins: self.pins.take() })
    }

    /// The socket, to be shut down when the connection is to end.
    pub fn stream(&self) -> &Arc<Watched> {
        &self.stream
    }

    /// Goes on behind a message that zbus has refused before it was read to its end.
    fn skip_rest(&mut self) {
        match self.position {
            Position::Header(_) | Position::Skip(_) => {}
            Position::HeaderOut(_, extent) => self.position = Self::after_header(0, extent.rest()),
            Position::Rest(give, skip) => self.position = Self::after_header(0, give.saturating_add(skip)),
        }
        self.fds.clear();
    }

    /// Reads up to the end of the fixed header, and decides about the message.
    async fn read_header(&mut self, have: usize) -> io::Result<()> {
        if have == 0 {
            self.fds_of_message = 0;
        }
        let mut piece = [0; FIXED];
        let count = self.receive(&mut piece, FIXED - have).await?;
        let arrived = piece.iter().take(count);
        for (place, byte) in self.header.iter_mut().skip(have).zip(arrived) {
            *place = *byte;
        }
        let have = have + count;
        self.position = if have < FIXED { Position::Header(have) } else { self.judge_header()? };
        Ok(())
    }

    fn judge_header(&mut self) -> io::Result<Position> {
        let extent = Extent::of(&self.header).map_err(FramingError::into_io)?;
        if extent.fits() {
            return Ok(Position::HeaderOut(0, extent));
        }
        match self.too_long {
            TooLong::Fail => Err(FramingError::TooLong.into_io()),
            TooLong::Blank if extent.fields_fit() => {
                self.header = without_body(self.header);
                Ok(Position::HeaderOut(0, extent))
            }
            TooLong::Blank => Ok(Position::Skip(extent.rest())),
        }
    }

    /// Hands out what it can of the fixed header.
    fn give_header(&mut self, out: usize, extent: Extent, buffer: &mut [u8]) -> usize {
        let mut count = 0;
        for (place, byte) in buffer.iter_mut().zip(self.header.iter().skip(out)) {
            *place = *byte;
            count += 1;
        }
        let out = out + count;
        self.position = if out < FIXED {
            Position::HeaderOut(out, extent)
        } else if extent.fits() {
            Self::after_header(extent.rest(), 0)
        } else {
            Self::after_header(extent.fields, extent.body)
        };
        count
    }

    const fn after_header(give: u64, skip: u64) -> Position {
        match (give, skip) {
            (0, 0) => Position::Header(0),
            (0, skip) => Position::Skip(skip),
            (give, skip) => Position::Rest(give, skip),
        }
    }

    /// Receives at most `most` bytes into `buffer`, and keeps the descriptors that come with them.
    async fn receive(&mut self, buffer: &mut [u8], most: usize) -> io::Result<usize> {
        let length = buffer.len().min(most);
        let buffer = buffer.get_mut(..length).unwrap_or_default();
        if let Some(whole) = self.whole.take() {
            self.receive_whole(whole)?;
        }
        match self.ahead.read(buffer)? {
            0 => {}
            count => return Ok(count),
        }
        self.make_sure_of_room()?;
        let stream = Arc::clone(&self.stream);
        let mut attempt = || receive_once(stream.as_fd(), buffer, &self.bin);
        let at_once = if self.hides { attempt() } else { Err(io::ErrorKind::WouldBlock.into()) };
        let received = match at_once {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.read(attempt).await?,
            received => received?,
        };
        self.keep(received)
    }

    /// Receives a message that is there to its end, without waiting.
    fn receive_whole(&mut self, length: usize) -> io::Result<()> {
        let mut bytes = std::mem::take(&mut self.ahead).into_inner();
        bytes.clear();
        bytes.resize(length, 0);
        let mut rest = bytes.as_mut_slice();
        while !rest.is_empty() {
            self.make_sure_of_room()?;
            let count = self.keep(receive_once(self.stream.as_fd(), rest, &self.bin)?)?;
            rest = rest.get_mut(count..).unwrap_or_default();
        }
        self.ahead = Cursor::new(bytes);
        Ok(())
    }

    fn make_sure_of_room(&self) -> io::Result<()> {
        // What is not received is left in the socket until there is room for its closing.
        if self.bin.has_room() { Ok(()) } else { Err(io::ErrorKind::QuotaExceeded.into()) }
    }

    /// Keeps what came with some bytes; how many bytes.
    fn keep(&mut self, (count, kept): (usize, Vec<Kept>)) -> io::Result<usize> {
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.pins.add(&kept)?;
        self.fds_of_message += kept.len();
        // A bus daemon has limits of its own, and passes on what is within them; its messages carry them all at once.
        let most = if self.too_long == TooLong::Fail { MAX_FDS } else { KERNEL_FDS };
        if self.fds_of_message > most || (!kept.is_empty() && !self.unix_fds) {
            return Err(FramingError::TooManyFds.into_io());
        }
        self.fds.extend(kept.into_iter().map(|kept| kept.fd));
        Ok(count)
    }
}

#[async_trait]
impl ReadHalf for Reader {
    async fn recvmsg(&mut self, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
        loop {
            match self.position {
                Position::Header(have) => self.read_header(have).await?,
                Position::HeaderOut(out, extent) => {
                    let count = self.give_header(out, extent, buffer);
                    return Ok((count, std::mem::take(&mut self.fds)));
                }
                Position::Rest(give, skip) => {
                    let count = self.receive(buffer, usize::try_from(give).unwrap_or(usize::MAX)).await?;
                    self.position = Self::after_header(give.saturating_sub(count as u64), skip);
                    return Ok((count, std::mem::take(&mut self.fds)));
                }
                Position::Skip(left) => {
                    let mut scratch = [0; SCRATCH];
                    let count =
                        self.receive(&mut scratch, usize::try_from(left).unwrap_or(usize::MAX)).await?;
                    self.fds.clear();
                    self.position = Self::after_header(0, left.saturating_sub(count as u64));
                }
            }
        }
    }

    fn can_pass_unix_fd(&self) -> bool {
        self.unix_fds
    }
}

impl Writer {
    /// Sends messages, whole and in their order; short ones that follow each other at once, so that the other side wakes up
    /// once for them.
    ///
    /// # Errors
    /// Those of `sendmsg(2)`; `Unsupported` for descriptors to a peer that did not agree on them.
    pub async fn send<'m>(&mut self, messages: impl Iterator<Item = &'m Message>) -> zbus::Result<()> {
        let mut together = Vec::new();
        for message in messages {
            let data = message.data();
            let is_plain = data.fds().is_empty() && data.len() <= SHORT;
            if is_plain && together.len() + data.len() <= TOGETHER {
                together.extend_from_slice(data);
                continue;
            }
            self.send_bytes(&mut together).await?;
            if is_plain {
                together.extend_from_slice(data);
                continue;
            }
            if !data.fds().is_empty() && !self.unix_fds {
                return Err(zbus::Error::Unsupported);
            }
            self.send_message(message).await?;
        }
        self.send_bytes(&mut together).await
    }

    /// Sends whole messages without descriptors.
    async fn send_bytes(&mut self, bytes: &mut Vec<u8>) -> zbus::Result<()> {
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let sent = self.sendmsg(rest, &[]).await?;
            rest = rest.get(sent..).unwrap_or_default();
        }
        bytes.clear();
        Ok(())
    }
}

#[async_trait]
impl WriteHalf for Writer {
    async fn sendmsg(&mut self, buffer: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
        let stream = &self.stream;
        stream.write(|| send_once(stream.as_fd(), buffer, fds)).await
    }

    async fn close(&mut self) -> io::Result<()> {
        shut_down(&self.stream);
        Ok(())
    }

    fn can_pass_unix_fd(&self) -> bool {
        self.unix_fds
    }
}

/// Ends a connection in both directions; whoever waits on it wakes up.
pub fn shut_down(stream: &Watched) {
    // A connection that is over already is what is wanted.
    let _ = rustix::net::shutdown(stream, rustix::net::Shutdown::Both);
}

impl FramingError {
    /// As an error of the stream.
    pub fn into_io(self) -> io::Error {
        io::Error::new(io::ErrorKind::InvalidData, self)
    }
}

/// How long the message is that is at the beginning of this, if all of it is.
fn whole_message(seen: &[u8]) -> Option<usize> {
    let extent = Extent::of(seen.first_chunk()?).ok().filter(|extent| extent.fits())?;
    let length = FIXED.checked_add(usize::try_from(extent.rest()).ok()?)?;
    (length <= seen.len()).then_some(length)
}

/// Looks at what there is to read and leaves it there.
pub(crate) fn peek(stream: &Watched, piece: &mut [u8]) -> io::Result<usize> {
    let (_, count) = rustix::net::recv(stream, piece, RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
    Ok(count)
}

/// One `recvmsg(2)`. Descriptors are owned, and closed on error, from the moment they are there.
/// Those that no operation takes are replaced.
pub(crate) fn receive_once(
    stream: BorrowedFd<'_>,
    buffer: &mut [u8],
    bin: &Bin,
) -> io::Result<(usize, Vec<Kept>)> {
    let mut space = [MaybeUninit::uninit(); CONTROL_SPACE];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        stream,
        &mut [IoSliceMut::new(buffer)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT,
    )?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    let kept = bin.sift(fds)?;
    if received.flags.contains(ReturnFlags::CTRUNC) {
        return Err(FramingError::TooManyFds.into_io());
    }
    Ok((received.bytes, kept))
}

fn send_once(stream: BorrowedFd<'_>, buffer: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); CONTROL_SPACE];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(FramingError::TooManyFds.into_io());
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    Ok(rustix::net::sendmsg(stream, &[IoSlice::new(buffer)], &mut control, flags)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::UnixStream};

    use super::*;
    use crate::castoff::Castoffs;

    /// What is read out of these bytes, to the first error that ends the stream.
    fn read(bytes: &[u8], too_long: TooLong) -> Vec<Result<Message, zbus::Error>> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let ours = Watched::new(ours.into_std().unwrap()).unwrap();
            let (mut reader, writer) = halves(ours, true, too_long, Castoffs::default().of(0));
            let bytes = bytes.to_vec();
            let writing = tokio::spawn(async move {
                let mut theirs = theirs;
                let _ = theirs.write_all(&bytes).await;
            });
            let mut results = Vec::new();
            loop {
                let result = reader.next().await.map(|parcel| Message::clone(&parcel));
                let ended = matches!(result, Err(zbus::Error::InputOutput(_)));
                results.push(result);
                if ended {
                    break;
                }
            }
            drop((reader, writer));
            let _ = writing.await;
            results
        })
    }

    fn call(member: &str, body: &str) -> Vec<u8> {
        Message::method_call("/", member).build(&body).unwrap().data().to_vec()
    }

    fn members(results: &[Result<Message, zbus::Error>]) -> Vec<String> {
        results.iter().flatten().map(|message| message.header().member().unwrap().to_string()).collect()
    }

    #[test]
    fn a_message_that_is_too_long_ends_a_peer_and_is_emptied_for_a_bus() {
        let long = "x".repeat(crate::framing::MAX_MESSAGE);
        let bytes = [call("One", "1"), call("Two", &long), call("Three", "3")].concat();
        assert_eq!(members(&read(&bytes, TooLong::Fail)), ["One"]);
        let results = read(&bytes, TooLong::Blank);
        assert_eq!(members(&results), ["One", "Two", "Three"]);
        let two = results.into_iter().nth(1).unwrap().unwrap();
        assert!(two.body().is_empty());
        assert_eq!(two.header().signature().to_string(), "s");
    }

    #[test]
    fn fields_that_are_too_long_are_passed_over_on_a_bus() {
        let path = format!("/{}", "x".repeat(crate::framing::MAX_MESSAGE));
        let long = Message::method_call(path.as_str(), "Two").build(&()).unwrap().data().to_vec();
        let bytes = [call("One", "1"), long, call("Three", "3")].concat();
        assert_eq!(members(&read(&bytes, TooLong::Blank)), ["One", "Three"]);
    }

    #[test]
    fn a_message_that_zbus_refuses_does_not_take_the_next_ones_with_it() {
        let mut zero_serial = call("Two", "2");
        zero_serial.get_mut(8..12).unwrap().fill(0);
        // The code of the first field becomes one that nobody knows.
        let mut unknown_field = call("Three", "3");
        *unknown_field.get_mut(16).unwrap() = 200;
        let bytes = [call("One", "1"), zero_serial, unknown_field, call("Four", "4")].concat();
        let results = read(&bytes, TooLong::Blank);
        assert_eq!(members(&results), ["One", "Four"]);
        assert_eq!(results.len(), 5, "two refused, one end: {results:?}");
    }

    /// How a writer sends these: the length of each write and the descriptors beside it.
    fn written(messages: &[Message]) -> Vec<(usize, usize)> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            // Every write is a datagram.
            let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
            let bin = Castoffs::default().of(0);
            let (reader, mut writer) = halves(Watched::new(ours).unwrap(), true, TooLong::Fail, bin.clone());
            writer.send(messages.iter()).await.unwrap();
            drop((reader, writer));
            let mut buffer = vec![0; 64 * 1024];
            let next =
                || receive_once(theirs.as_fd(), &mut buffer, &bin).ok().filter(|(count, _)| *count > 0);
            std::iter::from_fn(next).map(|(count, fds)| (count, fds.len())).collect()
        })
    }

    #[test]
    fn short_messages_are_sent_at_once_and_descriptors_with_their_own() {
        let signal = |length| Message::signal("/", "a.b", "C").build(&"x".repeat(length)).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let with_fd = Message::signal("/", "a.b", "C").build(&zbus::Fd::from(&null)).unwrap();
        let messages = [signal(10), signal(20), with_fd, signal(30), signal(SHORT), signal(40), signal(50)];
        let length = |range: std::ops::Range<usize>| {
            messages.get(range).unwrap().iter().map(|message| message.data().len()).sum::<usize>()
        };
        let expected =
            [(length(0..2), 0), (length(2..3), 1), (length(3..4), 0), (length(4..5), 0), (length(5..7), 0)];
        assert_eq!(written(&messages), expected);
        let many = vec![signal(1000); 40];
        let writes = written(&many);
        assert!(writes.len() > 1 && writes.iter().all(|(count, _)| *count <= TOGETHER), "{writes:?}");
        assert_eq!(
            writes.iter().map(|(count, _)| count).sum::<usize>(),
            40 * many.first().unwrap().data().len()
        );
    }

    #[test]
    fn what_is_there_already_is_read_without_more_coming() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
            ours.set_nonblocking(true).unwrap();
            theirs.set_nonblocking(true).unwrap();
            let bin = Castoffs::default().of(0);
            let watched = |stream: std::os::unix::net::UnixStream| Watched::new(stream).unwrap();
            let (mut reader, _) = halves(watched(ours), true, TooLong::Fail, bin.clone());
            let (_, mut writer) = halves(watched(theirs), true, TooLong::Fail, bin);
            let plain = |length| Message::signal("/", "a.b", "C").build(&"x".repeat(length)).unwrap();
            let null = std::fs::File::open("/dev/null").unwrap();
            let with_fd = || Message::signal("/", "a.b", "C").build(&zbus::Fd::from(&null)).unwrap();
            let (empty, long) = (plain(0).data().len(), plain(2 * WHOLE));
            // One that is as long as what is looked at; one behind descriptors that shows others; and so once more.
            let messages =
                [plain(WHOLE - empty), with_fd(), with_fd(), plain(1), plain(2), long, with_fd(), plain(3)];
            assert_eq!(messages.first().unwrap().data().len(), WHOLE);
            for message in &messages {
                writer.send(std::iter::once(message)).await.unwrap();
            }
            for message in &messages {
                let next = async {
                    reader.readable().await.unwrap();
                    reader.next().await.unwrap().data().len()
                };
                let next = tokio::time::timeout(std::time::Duration::from_secs(20), next).await;
                assert_eq!(next, Ok(message.data().len()), "it waits for what is there");
            }
        });
    }

    #[test]
    fn a_stream_that_ends_within_a_message_has_ended() {
        let whole = call("One", "1");
        for length in [0, 1, 15, 16, 17, whole.len() - 1] {
            assert_eq!(read(whole.get(..length).unwrap(), TooLong::Fail).len(), 1);
        }
    }
}
