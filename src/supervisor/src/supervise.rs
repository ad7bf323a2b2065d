//! The supervisor's loop: one thread that waits for signals, for what children say, and for their ends.
//!
//! It holds no state of a grant and decides nothing about one. When nothing happens it makes no system call.

use std::{
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use cgrant_sys::{ChannelError, seqpacket};
use cgrant_wire::{
    FdIndex,
    boot::{EngineBoot, FrontBoot, FrontKind, LogTarget, NetBoot, ToChild},
};
use nix::sys::{
    signal::{SigSet, Signal},
    signalfd::{SfdFlags, SignalFd},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    accounts::FrontAccount,
    args::Bus,
    child::{Role, Said, Slot, State},
    error::SupervisorError,
    process::Program,
    ready::Announcer,
    scope::{self, Scope},
    settings::Settings,
    socket::Listener,
    watchdog::Watchdog,
};

/// How long the engine may take to end in order.
const ENGINE_END: Duration = Duration::from_secs(15);
/// How long the fronts may take after it.
const FRONTS_END: Duration = Duration::from_secs(5);
/// A second signal within this time is the same order, not impatience: `timeout(1)` tells the process and then its group.
const SAME_ORDER: Duration = Duration::from_secs(1);

/// The directories that the engine is given.
#[derive(Debug)]
pub struct Directories {
    /// Of the configuration.
    pub config: OwnedFd,
    /// Of what survives a reboot.
    pub state: OwnedFd,
    /// Of this boot; locked.
    pub run: OwnedFd,
    /// Of the host's record of ranges.
    pub ids: OwnedFd,
    /// Of the host's record of ranges in use.
    pub ids_run: OwnedFd,
    /// Of the network helper's files.
    pub net: OwnedFd,
    /// Of what the network helpers of all instances share.
    pub net_host: OwnedFd,
}

/// The programs that children are made of.
#[derive(Debug)]
pub struct Programs {
    /// The engine.
    pub engine: Program,
    /// Both fronts.
    pub front: Program,
    /// The network helper.
    pub net: Program,
    /// The helper that asks systemd for the scope; none where systemd does not run the host.
    pub scope: Option<Program>,
}

/// Everything that was prepared before the first child starts.
#[derive(Debug)]
pub struct Prepared {
    /// The settings.
    pub settings: Settings,
    /// The directories.
    pub directories: Directories,
    /// The programs.
    pub programs: Programs,
    /// The listening sockets of the broker's own interface.
    pub listeners: Vec<Listener>,
    /// Those of CGManager's.
    pub legacy: Vec<Listener>,
    /// Those of metrics.
    pub metrics: Vec<Listener>,
    /// The fronts with their accounts.
    pub fronts: Vec<(FrontKind, FrontAccount)>,
    /// The account of the network helper's own children.
    pub net: FrontAccount,
    /// What systemd gave.
    pub scope: Option<Scope>,
    /// Where the log goes.
    pub log: LogTarget,
}

impl Prepared {
    /// Uid and gid of the socket front, which there always is.
    fn socket_front(&self) -> (u32, u32) {
        let front = self.fronts.iter().find(|(kind, _)| *kind == FrontKind::Socket);
        let account = front.map_or(self.net, |(_, account)| *account);
        (account.uid, account.gid)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Children are kept running.
    Serving,
    /// The engine has been told to end; at the moment given it is killed.
    EndingEngine(Instant),
    /// Likewise the fronts.
    EndingFronts(Instant),
}

/// What poll woke for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Signals,
    Keeper,
    Control(usize),
    End(usize),
}

/// The supervisor.
#[derive(Debug)]
pub struct Supervisor {
    prepared: Prepared,
    announcer: Announcer,
    signals: SignalFd,
    /// The service manager's, if it has one.
    watchdog: Option<Watchdog>,
    /// The engine first, then the fronts in the order of `prepared.fronts`, then the network helper.
    slots: Vec<Slot>,
    phase: Phase,
    /// When a signal told the broker to end.
    told_to_end: Option<Instant>,
    was_ready: bool,
    is_ready: bool,
    killed: bool,
    fatal: Option<SupervisorError>,
}

/// Position of the engine among the slots.
const ENGINE: usize = 0;

/// The signals that the supervisor acts on. Engine and fronts have them blocked: what a terminal or `timeout(1)` sends to the
/// whole group is the supervisor's to act on, which ends them in order. That it is gone they see by their channels.
fn signals() -> SigSet {
    SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP])
}

/// Blocks [`signals`]; from the start, so that none is lost.
pub fn block_signals() -> nix::Result<SigSet> {
    let signals = signals();
    signals.thread_block()?;
    Ok(signals)
}

impl Supervisor {
    /// A supervisor of what was prepared.
    ///
    /// # Errors
    /// [`SupervisorError::System`].
    pub fn new(prepared: Prepared, announcer: Announcer, signals: &SigSet) -> Result<Self, SupervisorError> {
        let signals = SignalFd::with_flags(signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(SupervisorError::system("signalfd"))?;
        let mut slots = vec![Slot::new(Role::Engine)];
        slots.extend(prepared.fronts.iter().map(|(kind, _)| Slot::new(Role::Front(*kind))));
        slots.push(Slot::new(Role::Net));
        Ok(Self {
            prepared,
            announcer,
            signals,
            watchdog: Watchdog::wanted(),
            slots,
            phase: Phase::Serving,
            told_to_end: None,
            was_ready: false,
            is_ready: false,
            killed: false,
            fatal: None,
        })
    }

    /// Runs until the broker was told to end, or can't go on. Its sockets are gone afterwards.
    ///
    /// # Errors
    /// Why it could not go on; [`SupervisorError::Killed`].
    pub fn run(mut self) -> Result<(), SupervisorError> {
        let result = self.serve();
        self.leave_scope();
        let Prepared { listeners, legacy, metrics, .. } = self.prepared;
        listeners.into_iter().chain(legacy).chain(metrics).for_each(Listener::remove);
        result?;
        match self.fatal {
            Some(error) => Err(error),
            None if self.killed => Err(SupervisorError::Killed),
            None => Ok(()),
        }
    }

    fn serve(&mut self) -> Result<(), SupervisorError> {
        loop {
            self.notice_what_is_stuck();
            self.look_after_health();
            self.start_what_is_due();
            self.advance_ending();
            // What the kernel keeps ends as soon as the kernel lets it, and nobody has to wait for that.
            let is_over = |slot: &Slot| slot.running().is_none() || slot.is_stuck();
            if self.phase != Phase::Serving && self.slots.iter().all(is_over) {
                return Ok(());
            }
            for source in self.wait()? {
                match source {
                    Source::Signals => self.on_signals(),
                    Source::Keeper => self.on_keeper_end(),
                    Source::Control(position) => self.on_message(position),
                    Source::End(position) => self.on_end(position),
                }
            }
        }
    }

    /// Waits for something to happen, or for the next moment at which something is to be done.
    fn wait(&self) -> Result<Vec<Source>, SupervisorError> {
        let mut sources = vec![Source::Signals];
        let mut fds = vec![PollFd::from_borrowed_fd(self.signals.as_fd(), PollFlags::IN)];
        if let Some(scope) = &self.prepared.scope {
            sources.push(Source::Keeper);
            fds.push(PollFd::from_borrowed_fd(scope.keeper.as_fd(), PollFlags::IN));
        }
        for (position, slot) in self.slots.iter().enumerate() {
            let Some(running) = slot.running() else { continue };
            if slot.control_open() {
                sources.push(Source::Control(position));
                fds.push(PollFd::from_borrowed_fd(running.process.control.as_fd(), PollFlags::IN));
            }
            sources.push(Source::End(position));
            fds.push(PollFd::from_borrowed_fd(running.process.pidfd.as_fd(), PollFlags::IN));
        }
        let timeout = self.next_moment().map(|moment| moment.saturating_duration_since(Instant::now()));
        // Far less than what a Timespec holds: the longest wait is that of the back-off.
        let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(SupervisorError::system("poll")(errno)),
        }
        let woken = sources.iter().zip(&fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(woken.map(|(source, _)| *source).collect())
    }

    /// The next moment at which something is to be done without being woken for it.
    fn next_moment(&self) -> Option<Instant> {
        match self.phase {
            Phase::EndingEngine(deadline) | Phase::EndingFronts(deadline) => Some(deadline),
            Phase::Serving => {
                let due = self.slots.iter().enumerate().filter(|(at, _)| self.may_start(*at));
                let due = due.filter_map(|(_, slot)| slot.due());
                let health = self.watchdog.as_ref().map(Watchdog::next);
                due.chain(self.slots.iter().filter_map(Slot::must_end)).chain(health).min()
            }
        }
    }

    /// A process that was killed and does not end is told, once. Of the network helper there is no other meanwhile: what that
    /// one is at may still be done.
    fn notice_what_is_stuck(&mut self) {
        for position in 0..self.slots.len() {
            let Some(slot) = self.slots.get_mut(position) else { continue };
            let Some(pid) = slot.notice_stuck(Instant::now()) else { continue };
            tracing::error!(
                child = slot.role.name(),
                pid,
                "{} was killed and does not end: it hangs in the kernel (/proc/{pid}/stack says where)",
                slot.role.name()
            );
            if slot.role == Role::Net {
                self.tell_of_stuck_net();
            }
            self.update_readiness();
        }
    }

    /// Where the service manager wants to know, asks engine and fronts whether they still serve, and tells it that all is well only if
    /// each has answered when it was asked last. The network helper is looked after by the engine.
    fn look_after_health(&mut self) {
        let Some(watchdog) = self.watchdog.as_mut().filter(|_| self.phase == Phase::Serving) else { return };
        let now = Instant::now();
        if !watchdog.is_due(now) {
            return;
        }
        let patience = watchdog.patience();
        if !self.slots.iter().any(Slot::is_silent) {
            Watchdog::tell();
        }
        self.slots.iter_mut().for_each(|slot| slot.ask(now, patience));
    }

    /// Tells the engine that there will be no network helper for a while, if it is so.
    fn tell_of_stuck_net(&self) {
        let is_net = |slot: &&Slot| slot.role == Role::Net && slot.is_stuck();
        if let Some(engine) = self.slots.get(ENGINE).filter(|_| self.slots.iter().any(|slot| is_net(&slot)))
            && engine.running().is_some()
            && let Err(error) = engine.send(&ToChild::NetStuck, &[])
        {
            tracing::warn!(%error, "the engine can't be told of a network helper that hangs");
        }
    }

    /// The engine waits for the ends of the others that were there with the one before; they wait for the engine.
    fn may_start(&self, position: usize) -> bool {
        let works = |slot: &Slot| slot.running().is_some() && !(slot.role == Role::Net && slot.is_stuck());
        match self.slots.split_first() {
            Some((_, others)) if position == ENGINE => !others.iter().any(works),
            Some((engine, _)) => engine.running().is_some(),
            None => false,
        }
    }

    fn start_what_is_due(&mut self) {
        for position in 0..self.slots.len() {
            let due =
                self.slots.get(position).and_then(Slot::due).is_some_and(|moment| moment <= Instant::now());
            if self.phase != Phase::Serving || !due || !self.may_start(position) {
                continue;
            }
            let started = match self.prepared.fronts.get(position.wrapping_sub(1)).copied() {
                Some((kind, account)) if position != ENGINE => self.start_front(position, kind, account),
                _ if position == ENGINE => self.start_engine(),
                _ => self.start_net(position),
            };
            if let Err(error) = started {
                self.on_start_failure(position, error);
            }
        }
    }

    fn on_start_failure(&mut self, position: usize, error: SupervisorError) {
        if let Some(slot) = self.slots.get_mut(position) {
            tracing::error!(child = slot.role.name(), "{} cannot be started: {error}", slot.role.name());
            // A process that was started but did not get its message is of no use.
            slot.dismiss();
            if slot.running().is_none() {
                slot.start_failed();
            }
            if slot.may_lack() {
                return self.update_readiness();
            }
        }
        if !self.was_ready {
            self.give_up(error);
        }
    }

    /// Ends the broker with `error`; the first one is what is told.
    fn give_up(&mut self, error: SupervisorError) {
        self.fatal.get_or_insert(error);
        self.begin_end();
    }

    fn start_engine(&mut self) -> Result<(), SupervisorError> {
        self.renew_scope()?;
        let process = self.prepared.programs.engine.start(&[], &signals())?;
        let directories = &self.prepared.directories;
        let mut fds = vec![
            &directories.config,
            &directories.state,
            &directories.run,
            &directories.ids,
            &directories.ids_run,
        ];
        let listeners = (fds.len()..).take(self.prepared.listeners.len()).map(index).collect();
        fds.extend(self.prepared.listeners.iter().map(|listener| &listener.socket));
        let legacy = self.prepared.legacy.iter();
        let legacy_listeners = (fds.len()..).zip(legacy.clone()).map(|(at, _)| index(at)).collect();
        fds.extend(legacy.map(|listener| &listener.socket));
        let metrics = self.prepared.metrics.iter();
        let metrics_listeners = (fds.len()..).zip(metrics.clone()).map(|(at, _)| index(at)).collect();
        fds.extend(metrics.map(|listener| &listener.socket));
        let boot = EngineBoot {
            instance: self.prepared.settings.instance.as_str().to_owned(),
            config_dir: FdIndex(0),
            state_dir: FdIndex(1),
            run_dir: FdIndex(2),
            ids_dir: FdIndex(3),
            ids_run_dir: FdIndex(4),
            listeners,
            legacy_listeners,
            metrics_listeners,
            engines_before: self.started_before(Role::Engine),
            others_before: [
                self.started_before(Role::Front(FrontKind::Socket)),
                self.started_before(Role::Front(FrontKind::Bus)),
                self.started_before(Role::Net),
            ],
            placements: self
                .prepared
                .scope
                .as_ref()
                .map(|scope| scope.report.placements.clone())
                .unwrap_or_default(),
            front_uids: self
                .prepared
                .fronts
                .iter()
                .map(|(_, account)| account.uid)
                .chain([self.prepared.net.uid])
                .collect(),
            socket_front: self.prepared.socket_front(),
            log: self.prepared.log,
        };
        let fds: Vec<_> = fds.into_iter().map(AsFd::as_fd).collect();
        let Some(slot) = self.slots.get_mut(ENGINE) else { return Ok(()) };
        slot.fill(process);
        send(slot, &ToChild::Engine(boot), &fds)?;
        self.tell_of_stuck_net();
        Ok(())
    }

    /// How many processes there were in this place.
    fn started_before(&self, role: Role) -> u64 {
        self.slots.iter().find(|slot| slot.role == role).map_or(0, Slot::count)
    }

    fn start_front(
        &mut self,
        position: usize,
        kind: FrontKind,
        account: FrontAccount,
    ) -> Result<(), SupervisorError> {
        let process = self.prepared.programs.front.start(&[], &signals())?;
        let (fronts, engines) = seqpacket::pair().map_err(SupervisorError::system("socketpair"))?;
        let settings = &self.prepared.settings;
        let boot = FrontBoot {
            kind,
            instance: settings.instance.as_str().to_owned(),
            engine: FdIndex(0),
            uid: account.uid,
            gid: account.gid,
            bus_address: match &settings.bus {
                Bus::Address(address) if kind == FrontKind::Bus => address.clone(),
                _ => String::new(),
            },
            log: self.prepared.log,
        };
        let Some(slot) = self.slots.get_mut(position) else { return Ok(()) };
        slot.fill(process);
        send(slot, &ToChild::Front(boot), &[fronts.as_fd()])?;
        let Some(engine) = self.slots.get(ENGINE) else { return Ok(()) };
        send(engine, &ToChild::FrontStarted(kind), &[engines.as_fd()])
    }

    fn start_net(&mut self, position: usize) -> Result<(), SupervisorError> {
        let process = self.prepared.programs.net.start(&[], &signals())?;
        let (nets, engines) = seqpacket::pair().map_err(SupervisorError::system("socketpair"))?;
        let (settings, account) = (&self.prepared.settings, self.prepared.net);
        let boot = NetBoot {
            instance: settings.instance.as_str().to_owned(),
            engine: FdIndex(0),
            directory: FdIndex(1),
            host: FdIndex(2),
            path: settings.net_dir().to_string_lossy().into_owned(),
            uid: account.uid,
            gid: account.gid,
            domain: settings.config.network.domain.as_str().to_owned(),
            dns: settings.config.network.dns.addresses().to_vec(),
            log: self.prepared.log,
        };
        let Some(slot) = self.slots.get_mut(position) else { return Ok(()) };
        slot.fill(process);
        let directories = &self.prepared.directories;
        let fds = [nets.as_fd(), directories.net.as_fd(), directories.net_host.as_fd()];
        send(slot, &ToChild::Net(boot), &fds)?;
        let number = slot.number();
        let Some(engine) = self.slots.get(ENGINE) else { return Ok(()) };
        send(engine, &ToChild::NetStarted(number), &[engines.as_fd()])
    }

    /// Before an engine starts: the scope must live. It may have been stopped together with everything in it.
    fn renew_scope(&mut self) -> Result<(), SupervisorError> {
        let Some(helper) = &self.prepared.programs.scope else { return Ok(()) };
        let lives =
            self.prepared.scope.as_ref().is_some_and(|scope| scope.keeper.is_alive().unwrap_or(false));
        if !lives {
            self.prepared.scope = Some(scope::obtain(helper, &self.prepared.settings.instance)?);
        }
        Ok(())
    }

    /// Without a keeper systemd would remove the scope as soon as the last grant is empty. If it has done so
    /// already, the engine's descriptors lead nowhere and it must start anew.
    fn on_keeper_end(&mut self) {
        self.prepared.scope = None;
        if self.phase != Phase::Serving {
            return;
        }
        match self.renew_scope() {
            Ok(()) if self.prepared.scope.as_ref().is_some_and(|scope| !scope.report.made) => {
                tracing::warn!("the keeper of the scope ended; there is a new one");
            }
            result => {
                let reason =
                    result.err().map_or_else(|| "it was stopped".to_owned(), |error| error.to_string());
                tracing::error!("the scope is gone ({reason}); starting anew");
                self.restart_engine();
            }
        }
    }

    /// At the end: a scope without a grant in it goes too. After a failure it stays, for the next start to find.
    fn leave_scope(&self) {
        let (Some(helper), Some(scope)) = (&self.prepared.programs.scope, &self.prepared.scope) else {
            return;
        };
        if self.fatal.is_none()
            && !self.killed
            && let Err(error) = scope::leave(helper, scope)
        {
            tracing::warn!("the scope stays: {error}");
        }
    }

    fn restart_engine(&mut self) {
        for slot in &mut self.slots {
            slot.dismiss();
        }
        self.update_readiness();
    }

    fn on_message(&mut self, position: usize) {
        let Some(slot) = self.slots.get_mut(position) else { return };
        match slot.read() {
            Said::Ready => self.update_readiness(),
            Said::Reloaded(result) => self.on_reloaded(result),
            Said::NetHangs(number) => {
                let net = self.slots.iter_mut().find(|slot| slot.role == Role::Net);
                if let Some(net) = net {
                    net.end_hung(number);
                }
                self.update_readiness();
            }
            Said::Nothing => {}
        }
    }

    fn on_end(&mut self, position: usize) {
        let Some(slot) = self.slots.get_mut(position) else { return };
        let Some(death) = slot.bury() else { return };
        let (role, may_lack) = (slot.role.name(), slot.may_lack());
        if self.phase != Phase::Serving {
            slot.state = State::Gone;
            tracing::debug!(child = role, "ended");
            return;
        }
        if !death.dismissed {
            let wait = u64::try_from(death.wait.as_millis()).unwrap_or(u64::MAX);
            tracing::error!(child = role, restart_in_ms = wait, "{role}: {}", death.reason);
        }
        if position == ENGINE {
            // What the fronts know is of an engine that is no more.
            for front in self.slots.iter_mut().skip(1) {
                front.dismiss();
            }
        }
        if !self.was_ready && !may_lack {
            self.give_up(SupervisorError::ChildFailed { role, reason: death.reason });
        }
        self.update_readiness();
    }

    /// Tells the world when the broker becomes ready, and when it is no more.
    fn update_readiness(&mut self) {
        let ready = self.phase == Phase::Serving && self.slots.iter().all(Slot::is_settled);
        if ready == self.is_ready {
            return;
        }
        self.is_ready = ready;
        if ready {
            tracing::info!(instance = self.prepared.settings.instance.as_str(), "ready");
            self.was_ready = true;
            self.announcer.ready();
        } else if self.phase == Phase::Serving {
            self.announcer.status("A process of the broker failed and is being restarted");
        }
    }

    fn on_signals(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            let number = i32::try_from(info.ssi_signo).unwrap_or_default();
            match Signal::try_from(number) {
                Ok(Signal::SIGHUP) => self.reload(),
                Ok(_) => self.on_order_to_end(),
                Err(_) => {}
            }
        }
    }

    fn on_order_to_end(&mut self) {
        match self.told_to_end {
            None => {
                self.told_to_end = Some(Instant::now());
                self.begin_end();
            }
            Some(first) if first.elapsed() < SAME_ORDER => {}
            // Told twice: no more patience.
            Some(_) => self.kill_what_is_left(),
        }
    }

    fn reload(&mut self) {
        let Some(engine) = self.slots.get(ENGINE) else { return };
        // An engine that does not run yet will read the configuration anyway.
        if self.phase != Phase::Serving || !engine.is_ready() {
            return;
        }
        self.announcer.reloading();
        if let Err(error) = engine.send(&ToChild::Reload, &[]) {
            self.on_reloaded(Err(error.to_string()));
        }
    }

    fn on_reloaded(&mut self, result: Result<(), String>) {
        self.announcer.ready();
        match result {
            Ok(()) => tracing::info!("configuration read again"),
            Err(reason) => {
                tracing::error!("configuration refused, the previous one stays: {reason}");
                self.announcer.status("The configuration was refused; the previous one stays");
            }
        }
    }

    /// Ends the engine first: it finishes what is under way and notes that it is the broker that goes, before
    /// the fronts close the connections.
    fn begin_end(&mut self) {
        if self.phase != Phase::Serving {
            return;
        }
        tracing::info!("ending");
        self.announcer.stopping();
        self.phase = Phase::EndingEngine(Instant::now() + ENGINE_END);
        if let Some(engine) = self.slots.get_mut(ENGINE)
            && engine.running().is_some()
            && engine.send(&ToChild::Stop, &[]).is_err()
        {
            engine.dismiss();
        }
    }

    fn advance_ending(&mut self) {
        if let Phase::EndingEngine(_) = self.phase
            && self.slots.get(ENGINE).is_some_and(|engine| engine.running().is_none())
        {
            self.phase = Phase::EndingFronts(Instant::now() + FRONTS_END);
            for front in self.slots.iter_mut().skip(1) {
                if front.running().is_some() && front.send(&ToChild::Stop, &[]).is_err() {
                    front.dismiss();
                }
            }
        }
        if let Phase::EndingEngine(deadline) | Phase::EndingFronts(deadline) = self.phase
            && Instant::now() >= deadline
        {
            self.kill_what_is_left();
        }
    }

    /// Kills the broker's own processes. What runs in grants is never touched.
    fn kill_what_is_left(&mut self) {
        for slot in &mut self.slots {
            if slot.running().is_some() && !slot.is_stuck() {
                tracing::warn!("{} did not end in order and was killed", slot.role.name());
                self.killed = true;
                slot.dismiss();
            }
        }
        self.phase = Phase::EndingFronts(Instant::now() + FRONTS_END);
    }
}

/// Sends a message to a child. One that has closed its channel is about to end, which is dealt with then.
fn send(slot: &Slot, message: &ToChild, fds: &[std::os::fd::BorrowedFd<'_>]) -> Result<(), SupervisorError> {
    match slot.send(message, fds) {
        Ok(()) | Err(ChannelError::Closed) => Ok(()),
        Err(error) => Err(SupervisorError::ChildFailed { role: slot.role.name(), reason: error.to_string() }),
    }
}

/// Position of a descriptor; there are a handful.
fn index(position: usize) -> FdIndex {
    FdIndex(u8::try_from(position).unwrap_or(u8::MAX))
}
