//! The life of a front: boot message, confinement, service, end.

use std::{fs, os::fd::OwnedFd, process::ExitCode, rc::Rc, time::Duration};

use cgrant_proto::names::bus_name;
use cgrant_sys::{Channel, ChannelError, inherited};
use cgrant_wire::{
    Surface,
    boot::{CONTROL_FD, FromChild, FrontBoot, FrontKind, ToChild},
};
use tokio::{
    task::{LocalSet, spawn_local},
    time::{sleep, timeout},
};

use crate::{
    bus::{self, BusError},
    clients::Clients,
    confine::{self, ConfineError},
    contract::{Contract, ContractError},
    core::Core,
    handshake::HandshakeError,
    legacy::LegacyPeers,
    link::{AsyncChannel, Engine, Incoming, LinkError},
    log,
    metrics::MetricsPeers,
    peers::Peers,
    session::Peer,
    wait::Patience,
};

/// What is added to the nice value that the front begins with, so that it lets a client go to sleep which has just woken it (the engine
/// goes before both, and its `NICE` says why).
const NICE: i32 = 3;
/// How long an orderly end may wait for answers of the engine's.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Why a front can't start, or ended.
#[derive(Debug, thiserror::Error)]
enum BootError {
    #[error("no channel to the supervisor as descriptor {CONTROL_FD}")]
    NoControl(#[source] std::io::Error),
    #[error("the channel to the supervisor failed")]
    Control(#[from] ChannelError),
    #[error("the supervisor sent no boot message of a front")]
    NoBoot,
    #[error(transparent)]
    Confine(#[from] ConfineError),
    #[error(transparent)]
    Contract(#[from] ContractError),
    #[error("cannot start the runtime")]
    Runtime(#[source] std::io::Error),
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// The program: started by the supervisor with its end of their pair as descriptor 3.
pub fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cgrant-front: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn start() -> Result<(), BootError> {
    let control = inherited::take(CONTROL_FD).and_then(Channel::from_fd).map_err(BootError::NoControl)?;
    let Some((boot, engine)) = receive_boot(&control)? else { return Ok(()) };
    let result = run(&boot, engine, &control);
    if let Err(error) = &result {
        // The supervisor may be gone, which is one of the reasons to be here.
        let _ = tell(&control, &FromChild::Failed(chain(error)));
    }
    result
}

/// The first message, and the end of the pair with the engine; `None` if the supervisor has ended already.
fn receive_boot(control: &Channel) -> Result<Option<(FrontBoot, Channel)>, BootError> {
    let Some(received) = control.receive()? else { return Ok(None) };
    let Ok(ToChild::Front(boot)) = cgrant_wire::decode(&received.bytes) else {
        return Err(BootError::NoBoot);
    };
    let engine: OwnedFd =
        received.fds.into_iter().nth(usize::from(boot.engine.0)).ok_or(BootError::NoBoot)?;
    let engine = Channel::from_fd(engine).map_err(|_| BootError::NoBoot)?;
    Ok(Some((boot, engine)))
}

fn tell(control: &Channel, message: &FromChild) -> Result<(), ChannelError> {
    match cgrant_wire::encode(message) {
        Ok(bytes) => control.send(&bytes, &[]),
        Err(_) => Err(ChannelError::TooLong),
    }
}

fn run(boot: &FrontBoot, engine: Channel, control: &Channel) -> Result<(), BootError> {
    // More of it is always allowed.
    let _ = rustix::process::nice(NICE);
    confine::drop_rights(boot)?;
    log::start(boot.log);
    let contract = Contract::load()?;
    let machine_id = machine_id();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(BootError::Runtime)?;
    confine::filter(boot.kind)?;
    let control = control.try_clone().map_err(BootError::Runtime)?;
    LocalSet::new().block_on(&runtime, serve(boot, engine, control, contract, machine_id))
}

/// The host's id, for `Peer.GetMachineId`.
fn machine_id() -> Option<String> {
    let text = fs::read_to_string("/etc/machine-id")
        .or_else(|_| fs::read_to_string("/var/lib/dbus/machine-id"))
        .ok()?;
    let id = text.trim();
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

async fn serve(
    boot: &FrontBoot,
    engine: Channel,
    control: Channel,
    contract: Contract,
    machine_id: Option<String>,
) -> Result<(), BootError> {
    let control = Rc::new(AsyncChannel::new(control).map_err(LinkError::from)?);
    let channel = Rc::new(AsyncChannel::new(engine).map_err(LinkError::from)?);
    let (engine, sending) = Engine::new(Rc::clone(&channel));
    let core = Core::new(contract, Rc::clone(&engine), machine_id);
    let doors = Doors {
        peers: Rc::new(Peers::new(Rc::clone(&core))),
        legacy: Rc::new(LegacyPeers::new(Rc::clone(&core))),
        metrics: Rc::new(MetricsPeers::new(Rc::clone(&core))),
    };
    match boot.kind {
        FrontKind::Socket => ready(&control).await?,
        FrontKind::Bus => {
            let (core, control) = (Rc::clone(&core), Rc::clone(&control));
            let (address, name) = (boot.bus_address.clone(), bus_name(&boot.instance));
            spawn_local(async move { serve_bus(&core, &address, &name, &control).await });
        }
    }
    tokio::select! {
        error = sending => ended(error),
        result = receive(&channel, &core, &doors) => result.or_else(ended),
        result = obey(&control, &engine) => result,
    }
}

/// The end of the link is no failure of ours.
fn ended(error: LinkError) -> Result<(), BootError> {
    match error {
        LinkError::Closed => Ok(()),
        error => Err(error.into()),
    }
}

async fn ready(control: &AsyncChannel) -> Result<(), LinkError> {
    say(control, &FromChild::Ready).await
}

async fn say(control: &AsyncChannel, message: &FromChild) -> Result<(), LinkError> {
    control.send(&cgrant_wire::encode(message)?, &[]).await
}

/// The interfaces that connections come to, each by a listener of the engine's.
struct Doors {
    peers: Rc<Peers>,
    legacy: Rc<LegacyPeers>,
    metrics: Rc<MetricsPeers>,
}

/// Takes what the engine sends, to its end.
async fn receive(channel: &AsyncChannel, core: &Core, doors: &Doors) -> Result<(), LinkError> {
    while let Some(received) = channel.receive().await? {
        match core.engine.take(received)? {
            Some(Incoming::Connected { connection, surface, uid, account, claim, audience, socket }) => {
                let peer = Peer { connection, uid, claim, audience };
                match surface {
                    Surface::Native => doors.peers.serve(peer, socket),
                    Surface::Legacy => doors.legacy.serve(peer, account, socket),
                    Surface::Metrics => doors.metrics.serve(peer, socket),
                }
            }
            Some(Incoming::Event(event, audience)) => {
                // Who has had an answer may have called again: that goes on first, signals are nothing that anybody waits for.
                // Nothing more is taken from the engine before they are sent, so answers don't overtake them.
                tokio::task::yield_now().await;
                core.subscribers.publish(&event, audience);
            }
            Some(Incoming::Ask(question, process)) => core.ask_polkit(*question, process).await,
            Some(Incoming::Withdraw(question)) => {
                if let Some(polkit) = &*core.polkit.borrow() {
                    polkit.withdraw(question);
                }
            }
            None => {}
        }
        // Many events at once must not fill up the queues of peers that do read.
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// Does what the supervisor says; its end is ours.
async fn obey(control: &AsyncChannel, engine: &Engine) -> Result<(), BootError> {
    while let Some(received) = control.receive().await? {
        match cgrant_wire::decode(&received.bytes) {
            Ok(ToChild::AreYouAlive) => say(control, &FromChild::Alive).await?,
            Ok(ToChild::Stop) => {
                let answered = async {
                    while engine.waiting() > 0 {
                        sleep(Duration::from_millis(10)).await;
                    }
                    // What was answered is being written.
                    sleep(Duration::from_millis(10)).await;
                };
                let _ = timeout(LAST_ANSWERS, answered).await;
                return Ok(());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Serves the bus for as long as there is one, and waits for it while there is none.
async fn serve_bus(core: &Rc<Core>, address: &str, name: &str, control: &AsyncChannel) {
    let path = bus::path_of(address);
    let mut said_ready = false;
    let mut say_ready = async || {
        if !std::mem::replace(&mut said_ready, true)
            && let Err(error) = ready(control).await
        {
            tracing::error!(%error, "cannot tell the supervisor");
        }
    };
    let path = match path {
        Ok(path) => path,
        Err(error) => {
            tracing::error!(%error, "the bus is not served");
            return say_ready().await;
        }
    };
    let mut patience = Patience::new(&path);
    let mut absence = Absence::default();
    loop {
        match bus::connect(&path).await {
            Ok(connected) => {
                spawn_local(connected.writing);
                let clients = Clients::new(Rc::clone(core), connected.bus);
                let reading = spawn_local({
                    let clients = Rc::clone(&clients);
                    async move { clients.read(connected.reader).await }
                });
                match clients.register(name).await {
                    Ok(()) => {
                        tracing::info!(name, path, "on the bus");
                        patience.reset();
                        absence = Absence::default();
                    }
                    Err(error) => log_refusal(&error, name),
                }
                say_ready().await;
                // However it ended, by a fault of ours too: the bus is tried again.
                let _ = reading.await;
                clients.forget().await;
            }
            Err(error) => {
                absence.log(&error, &path, !address.is_empty());
                say_ready().await;
            }
        }
        patience.wait().await;
    }
}

fn log_refusal(error: &BusError, name: &str) {
    let uid = rustix::process::geteuid().as_raw();
    let hint = match error {
        BusError::NoAnswer => NO_ACCOUNT,
        _ => {
            "it needs the policy org.cgrant.Broker1.conf and the account cgrant-bus that the policy names \
             (systemd-sysusers makes it from sysusers.d/cgrant.conf); then reload the bus, and restart the broker"
        }
    };
    tracing::error!(error = chain(error), name, uid, hint, "the bus does not give us our name");
}

/// What to do if the bus daemon does not know the front's uid.
const NO_ACCOUNT: &str = "a bus daemon lets in only accounts that /etc/passwd or NSS has: make cgrant-bus \
                          (systemd-sysusers does, from sysusers.d/cgrant.conf), then restart the broker";

/// What to do if nothing listens at the address that `--bus` has.
const NO_BUS_THERE: &str = "start that bus, and it is served when its socket appears; or give another --bus: none, \
                            system, or unix:path=PATH";

/// What it means that there is no polkit.
pub const NOBODY_ASKED: &str = "polkit can't be asked: where policy says \"ask\" the answer is no";

/// What was said of a bus that is not there: once for each reason, however often it is tried.
#[derive(Debug, Default)]
struct Absence(Option<String>);

impl Absence {
    /// A bus that was asked for by its address is missed; the system bus need not be there.
    fn log(&mut self, error: &BusError, path: &str, asked_for: bool) {
        let text = chain(error);
        if !self.is_news(&text) {
            return;
        }
        match error {
            BusError::Connect(_) if asked_for => tracing::warn!(
                error = text,
                path,
                hint = NO_BUS_THERE,
                "no bus at the address that was given"
            ),
            BusError::Handshake(HandshakeError::Refused(_)) => {
                tracing::warn!(error = text, path, hint = NO_ACCOUNT, "the bus does not let us in");
            }
            _ => tracing::info!(error = text, path, hint = NOBODY_ASKED, "no bus"),
        }
    }

    fn is_news(&mut self, text: &str) -> bool {
        self.0.replace(text.to_owned()).as_deref() != Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_said_once() {
        let mut absence = Absence::default();
        let said =
            ["refused", "refused", "not there", "not there", "refused"].map(|text| absence.is_news(text));
        assert_eq!(said, [true, false, true, false, true]);
    }
}
