//! A connection to a message bus: calls to the bus itself, and what comes from its clients.
//!
//! zbus's own connection queues what it receives for any number of readers and waits when one of them is slow, so
//! a call to the bus that is made while the queue is full would wait for ever. Here one loop reads, answers of the bus
//! go to whoever waits for them, and the rest is handed on at once.

use std::{
    cell::RefCell, collections::HashMap, io, num::NonZeroU32, os::unix::net::UnixStream, rc::Rc, sync::Arc,
    time::Duration,
};

use serde::Serialize;
use tokio::{sync::oneshot, time::timeout};
use zbus::{
    DynamicType, Message,
    address::{
        Address,
        transport::{Transport, UnixSocket},
    },
    message::{Flags, Type},
};

use crate::{
    castoff::Castoffs,
    contract::DRIVER,
    handshake::{self, HandshakeError},
    object::DRIVER_PATH,
    outbox::{BUS_QUEUE, Outbox, Outgoing},
    stream::{Reader, TooLong, halves},
    watched::Watched,
};

/// How long the bus may take for an answer of its own.
const PATIENCE: Duration = Duration::from_secs(30);
/// Where the system bus is if nothing else is said.
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
/// Environment variable with the system bus's address.
const SYSTEM_BUS_VARIABLE: &str = "DBUS_SYSTEM_BUS_ADDRESS";

/// Why there is no bus, or no answer from it.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// The address is not that of a UNIX socket in the file system.
    #[error("bus address {address:?} is not of the form unix:path=PATH")]
    Address {
        /// The address.
        address: String,
    },
    /// Nothing listens there.
    #[error("cannot connect to the bus")]
    Connect(#[source] io::Error),
    /// The bus does not let us in.
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    /// The bus refused a call; its error name and message.
    #[error("the bus answered {name}: {message}")]
    Refused {
        /// Name of the error.
        name: String,
        /// Its message.
        message: String,
    },
    /// The connection ended, or the bus is too slow.
    #[error("no answer from the bus")]
    NoAnswer,
    /// A message can't be built, or an answer not be read.
    #[error("the bus's answer can't be read")]
    Message(#[from] zbus::Error),
}

/// Where the bus is: the path in `address`, or the system bus's for an empty one.
///
/// # Errors
/// [`BusError::Address`] for an address that is not a path in the file system.
pub fn path_of(address: &str) -> Result<String, BusError> {
    let from_environment = std::env::var(SYSTEM_BUS_VARIABLE).unwrap_or_default();
    let address = if address.is_empty() { from_environment.as_str() } else { address };
    if address.is_empty() {
        return Ok(SYSTEM_BUS.to_owned());
    }
    let bad = || BusError::Address { address: address.to_owned() };
    // Of several addresses the first that is good is taken.
    for one in address.split(';') {
        let Ok(parsed) = Address::try_from(one) else { continue };
        if let Transport::Unix(unix) = parsed.transport()
            && let UnixSocket::File(path) = unix.path()
        {
            return path.to_str().map(str::to_owned).ok_or_else(bad);
        }
    }
    Err(bad())
}

/// The sending side of a connection to a bus.
#[derive(Debug)]
pub struct Bus {
    outbox: Outbox,
    waiting: RefCell<HashMap<NonZeroU32, Waiting>>,
}

/// A call that waits for its answer.
#[derive(Debug)]
struct Waiting {
    /// Who may answer, beside the bus itself.
    from: String,
    answer: oneshot::Sender<Message>,
}

/// An object on the bus.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The unique name of its connection, which nobody else ever has.
    pub name: &'a str,
    /// Its path.
    pub path: &'a str,
    /// Its interface.
    pub interface: &'a str,
}

/// A connection to a bus that has let us in, but has not been greeted.
pub struct Connected<W> {
    /// The sending side.
    pub bus: Rc<Bus>,
    /// The receiving side.
    pub reader: Reader,
    /// The task that writes.
    pub writing: W,
}

/// Connects to the bus at `path` and authenticates.
///
/// # Errors
/// [`BusError::Connect`], [`BusError::Handshake`].
pub async fn connect(path: &str) -> Result<Connected<impl Future<Output = ()> + use<>>, BusError> {
    let stream = UnixStream::connect(path).map_err(BusError::Connect)?;
    stream.set_nonblocking(true).map_err(BusError::Connect)?;
    let stream = Watched::new(stream).map_err(BusError::Connect)?;
    let bin = Castoffs::of_bus();
    let unix_fds = handshake::authenticate(&stream, &bin).await?;
    let (reader, writer) = halves(stream, unix_fds, TooLong::Blank, bin);
    let (outbox, writing) = Outbox::new(writer, Arc::clone(reader.stream()), BUS_QUEUE);
    Ok(Connected { bus: Rc::new(Bus { outbox, waiting: RefCell::default() }), reader, writing })
}

impl Bus {
    /// Where messages to clients go.
    pub const fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Calls a method of the bus itself. Something else must read the connection meanwhile.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn call<B: Serialize + DynamicType>(
        &self,
        member: &'static str,
        body: &B,
    ) -> Result<Message, BusError> {
        let message = driver_call(member, Flags::empty(), body)?;
        timeout(PATIENCE, self.answer(message, DRIVER)).await.map_err(|_| BusError::NoAnswer)?
    }

    /// Calls a method of somebody on the bus, who may take as long as this is waited for.
    ///
    /// # Errors
    /// [`BusError`].
    pub async fn call_to<B: Serialize + DynamicType>(
        &self,
        to: Target<'_>,
        member: &'static str,
        body: &B,
    ) -> Result<Message, BusError> {
        self.answer(call_of(to, member, Flags::empty(), body)?, to.name).await
    }

    /// Sends a call and waits for its answer. If this is dropped nobody waits any more.
    async fn answer(&self, message: Message, from: &str) -> Result<Message, BusError> {
        let serial = message.primary_header().serial_num();
        let (answer, waiting) = oneshot::channel();
        self.waiting.borrow_mut().insert(serial, Waiting { from: from.to_owned(), answer });
        let _waits = Waits { bus: self, serial };
        self.outbox.reply(Outgoing { message, slots: Vec::new() }).await;
        let answer = waiting.await.map_err(|_| BusError::NoAnswer)?;
        if answer.message_type() == Type::Error {
            let name = answer.header().error_name().map(ToString::to_string).unwrap_or_default();
            let message = answer.body().deserialize::<String>().unwrap_or_default();
            return Err(BusError::Refused { name, message });
        }
        Ok(answer)
    }

    /// Calls a method of the bus itself without wanting an answer.
    pub fn tell<B: Serialize + DynamicType>(&self, member: &'static str, body: &B) {
        self.send(member, driver_call(member, Flags::NO_REPLY_EXPECTED, body));
    }

    /// Calls a method of somebody on the bus without wanting an answer.
    pub fn tell_to<B: Serialize + DynamicType>(&self, to: Target<'_>, member: &'static str, body: &B) {
        self.send(member, call_of(to, member, Flags::NO_REPLY_EXPECTED, body));
    }

    fn send(&self, member: &'static str, message: zbus::Result<Message>) {
        match message {
            Ok(message) => {
                if !self.outbox.try_send(message) {
                    tracing::warn!(member, "the bus does not take messages");
                }
            }
            Err(error) => tracing::error!(%error, member, "cannot build a call"),
        }
    }

    /// Takes an answer of the bus to a call of ours; gives back any other message.
    ///
    /// Only what the bus itself sent counts, or whoever was called. The bus writes the sender into every message, so a client
    /// can't answer in another's place, and say of another client what it likes.
    pub fn take_answer(&self, message: Message) -> Option<Message> {
        let header = message.header();
        if !matches!(header.message_type(), Type::MethodReturn | Type::Error) {
            drop(header);
            return Some(message);
        }
        let sender = header.sender().map(ToString::to_string).unwrap_or_default();
        let serial = header.reply_serial();
        drop(header);
        let mut waiting = self.waiting.borrow_mut();
        let may = |waiting: &Waiting| sender == DRIVER || sender == waiting.from;
        if let Some(serial) = serial.filter(|serial| waiting.get(serial).is_some_and(may))
            && let Some(waiting) = waiting.remove(&serial)
        {
            // Who asked may have stopped waiting.
            let _ = waiting.answer.send(message);
        }
        None
    }

    /// Nobody will answer any more.
    pub fn ended(&self) {
        self.waiting.borrow_mut().clear();
    }
}

/// Forgets a call when it is not waited for any more.
struct Waits<'a> {
    bus: &'a Bus,
    serial: NonZeroU32,
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.bus.waiting.borrow_mut().remove(&self.serial);
    }
}

fn call_of<B: Serialize + DynamicType>(
    to: Target<'_>,
    member: &'static str,
    flags: Flags,
    body: &B,
) -> zbus::Result<Message> {
    Message::method_call(to.path, member)
        .destination(to.name)
        .interface(to.interface)
        .with_flags(flags | Flags::NO_AUTO_START)
        .build(body)
}

fn driver_call<B: Serialize + DynamicType>(
    member: &'static str,
    flags: Flags,
    body: &B,
) -> zbus::Result<Message> {
    call_of(Target { name: DRIVER, path: DRIVER_PATH, interface: DRIVER }, member, flags, body)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// An answer to `call` as a bus would deliver it from `sender`.
    fn answer_from(sender: &str, call: &Message) -> Message {
        let header = call.header();
        Message::method_return(&header).sender(sender).build(&"answer").unwrap()
    }

    #[tokio::test]
    async fn a_client_can_not_answer_for_the_bus() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let ours = Watched::new(ours).unwrap();
        let (reader, writer) = halves(ours, true, TooLong::Blank, Castoffs::of_bus());
        let (outbox, _writing) = Outbox::new(writer, Arc::clone(reader.stream()), BUS_QUEUE);
        let bus = Bus { outbox, waiting: RefCell::default() };
        let call = driver_call("GetConnectionCredentials", Flags::empty(), &":1.1").unwrap();
        let (sender, mut waiting) = oneshot::channel();
        let waits = Waiting { from: ":1.9".to_owned(), answer: sender };
        bus.waiting.borrow_mut().insert(call.primary_header().serial_num(), waits);
        assert!(bus.take_answer(answer_from(":1.7", &call)).is_none());
        assert!(waiting.try_recv().is_err(), "a client's answer was taken for the bus's");
        assert!(bus.take_answer(answer_from(DRIVER, &call)).is_none());
        assert_eq!(waiting.try_recv().unwrap().body().deserialize::<String>().unwrap(), "answer");
        let other = Message::method_call("/", "Call").sender(":1.7").build(&()).unwrap();
        assert!(bus.take_answer(other).is_some(), "a call is no answer");
    }

    #[test]
    fn only_paths_are_addresses() {
        assert_eq!(path_of("unix:path=/tmp/bus,guid=0123456789abcdef0123456789abcdef").unwrap(), "/tmp/bus");
        assert_eq!(path_of("tcp:host=localhost,port=1;unix:path=/tmp/bus").unwrap(), "/tmp/bus");
        for wrong in ["unixexec:path=/bin/sh", "tcp:host=localhost,port=1", "/tmp/bus", "unix:abstract=x"] {
            assert!(path_of(wrong).is_err(), "{wrong}");
        }
    }
}
