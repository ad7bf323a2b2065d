//! What went wrong, as one line for people and one exit code for scripts.

use std::{ffi::OsString, io};

use cgrant_container::{
    LaunchError, SessionError, SpecError,
    system::{ControlError, Refused, StartError},
};
use cgrant_proto::{Code, Error as BrokerError, names};

use crate::{
    exit,
    legacy::{LegacyError, SOCKET_VARIABLE},
    storage::{self, JobFailure},
};

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The broker refused or does not answer.
    #[error("cannot {doing}: {source}")]
    Broker {
        /// What was asked, as in "cannot freeze the grant x".
        doing: String,
        source: SessionError,
    },
    /// Whoever serves CGManager's interface refused or does not answer.
    #[error("cannot {doing}: {source}")]
    Legacy {
        /// What was asked.
        doing: String,
        source: LegacyError,
    },
    /// A container was not launched.
    #[error("cannot run the command: {0}")]
    Launch(#[from] LaunchError),
    /// A network namespace cannot be opened.
    #[error("cannot open the network namespace {namespace:?}: {source}")]
    Namespace { namespace: OsString, source: io::Error },
    /// A process that was named is not there.
    #[error("cannot name the process {pid} to the broker: {source}")]
    Process { pid: u32, source: io::Error },
    /// A command that was to take this one's place cannot be executed.
    #[error("cannot execute {program:?}: {source}")]
    Execute { program: OsString, source: io::Error },
    /// Something on the command line that its syntax does not show.
    #[error("{0}")]
    Usage(String),
    /// The endpoint that was given is none.
    #[error("{given:?} names no broker: give the path of its socket, \"system\" or \"bus:ADDRESS\"")]
    Endpoint { given: OsString },
    /// A container was not started.
    #[error("cannot {doing}: {source}")]
    Start { doing: String, source: StartError },
    /// A container's monitor refused, or is not there.
    #[error("cannot {doing}: {source}")]
    Control { doing: String, source: ControlError },
    /// A container ended too soon.
    #[error("the container {name:?} did not boot: {text}")]
    NotBooted { name: String, text: String },
    /// What was asked for can't be done as things are.
    #[error("{0}")]
    Refused(String),
    /// A file that was named can't be read or written.
    #[error("cannot {doing} {path:?}: {source}")]
    File { doing: &'static str, path: OsString, source: io::Error },
    /// Files of policy that the broker would refuse.
    #[error("the broker would refuse this policy: {0}")]
    Policy(#[from] cgrant_policy::FileError),
    /// Files of policy that can't be read, or that somebody else could have written.
    #[error("cannot read the policy in {directory:?}: {source}")]
    PolicyUnread { directory: OsString, source: cgrant_sys::dropin::DropInError },
    /// A kernel interface that the command itself needs failed.
    #[error("cannot {doing}: {source}")]
    Machine { doing: &'static str, source: io::Error },
    /// Work on files of images or containers failed.
    #[error("cannot {doing}: {}", failure.text)]
    Work { doing: String, failure: JobFailure },
    /// A signal ended it; nothing of it was kept.
    #[error("{}; nothing was kept of the attempt to {doing}", signal_text(*signal))]
    Interrupted { doing: String, signal: u8 },
    /// The result could not be written.
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
}

impl Failure {
    /// A job's failure. `doing` completes "cannot …".
    pub(crate) fn work(doing: impl Into<String>, failure: JobFailure) -> Self {
        Self::Work { doing: doing.into(), failure }
    }

    /// Nobody wants the rest of the output: that is no failure (`cgrant … | head`).
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    /// The exit code.
    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Broker { source: SessionError::Broker(error), .. } => broker_code(error),
            Self::Broker { source: SessionError::Silent, .. } => exit::NO_BROKER,
            Self::Legacy { source: LegacyError::Refused(_), .. } => exit::REFUSED,
            Self::Legacy { .. } => exit::NO_BROKER,
            Self::Launch(LaunchError::Step(step)) => step.command_status().unwrap_or(exit::MACHINE),
            Self::Launch(LaunchError::Spec(_)) | Self::Usage(_) | Self::Endpoint { .. } => exit::USAGE,
            Self::Execute { source, .. } if source.kind() == io::ErrorKind::NotFound => exit::NOT_FOUND,
            Self::Execute { .. } => exit::NOT_EXECUTABLE,
            Self::Work { failure, .. } => failure.code,
            Self::Start { source: StartError::Spec(_), .. } => exit::USAGE,
            Self::Control { source: ControlError::Step(step), .. } => {
                step.command_status().unwrap_or(exit::MACHINE)
            }
            Self::Start { source: StartError::Running, .. }
            | Self::Control { source: ControlError::NotRunning | ControlError::Refused(_), .. }
            | Self::NotBooted { .. }
            | Self::Refused(_) => exit::REFUSED,
            Self::Interrupted { signal, .. } => signal.saturating_add(128),
            Self::Broker { .. }
            | Self::Start { .. }
            | Self::Control { .. }
            | Self::Launch(_)
            | Self::Process { .. }
            | Self::Namespace { .. }
            | Self::Machine { .. }
            | Self::File { .. }
            | Self::Policy(_)
            | Self::PolicyUnread { .. }
            | Self::Output(_) => exit::MACHINE,
        }
    }

    /// What the kernel said, where the message itself does not say it.
    fn cause(&self) -> Option<&io::Error> {
        match self {
            Self::Broker {
                source: SessionError::Broker(BrokerError::Unreachable { source, .. }), ..
            } => Some(source),
            _ => None,
        }
    }

    /// What to do about it, where the message itself does not say it.
    fn advice(&self) -> Option<String> {
        match self {
            Self::Broker { source: SessionError::Broker(error), .. } => broker_advice(error),
            Self::Broker { source: SessionError::Silent, .. } => Some("see the broker's log".to_owned()),
            Self::Legacy { source: LegacyError::Unreachable { .. }, .. } => Some(format!(
                "start cgrantd with --cgmanager-socket, or say where the socket is with ${SOCKET_VARIABLE}"
            )),
            Self::Legacy { source: LegacyError::Refused(text), .. } if text == "invalid request" => Some(
                "it says no more: look whether the cgroup is there, whose it is, and which you are in"
                    .to_owned(),
            ),
            Self::Launch(LaunchError::Step(step)) => step.hint().map(str::to_owned),
            Self::Start { source: StartError::Step(step), .. }
            | Self::Control { source: ControlError::Step(step), .. } => step.hint().map(str::to_owned),
            Self::Start { source: StartError::Died(_), .. } => {
                Some("a memory.max or pids.max that leaves no room for setting up does this".to_owned())
            }
            Self::Start { source: StartError::Running, .. } => {
                Some("'cgrant shell' opens a shell in it, 'cgrant restart' starts it anew".to_owned())
            }
            Self::Control { source: ControlError::NotRunning, .. } => {
                Some("'cgrant start' starts it".to_owned())
            }
            Self::Control { source: ControlError::Refused(Refused::Paused), .. } => {
                Some("'cgrant resume' lets it go on".to_owned())
            }
            Self::Namespace { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Some("it has to be one of yours, such as a container's".to_owned())
            }
            Self::Launch(LaunchError::Died(_)) => {
                Some("a memory.max or pids.max that leaves no room for setting up does this".to_owned())
            }
            Self::Machine { source, .. } => storage::room(source).map(str::to_owned),
            Self::Launch(LaunchError::Spec(SpecError::NoCommand)) => Some("write it after --".to_owned()),
            _ => None,
        }
    }

    /// The whole line, without end of line. Bytes from elsewhere can't break it or colour the terminal.
    pub(crate) fn line(&self) -> String {
        let advice = self.advice().map(|advice| format!("; {advice}")).unwrap_or_default();
        let cause = self.cause().map(|cause| format!(": {cause}")).unwrap_or_default();
        let line = format!("cgrant: {self}{cause}{advice}");
        let printable = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        match self {
            // What a program said last has lines of its own, after the one that matters; so has the place of a mistake.
            Self::Work { .. } | Self::NotBooted { .. } | Self::Policy(_) => {
                line.chars().map(|c| if c == '\n' { c } else { printable(c) }).collect()
            }
            _ => line.chars().map(printable).collect(),
        }
    }
}

fn signal_text(signal: u8) -> String {
    match signal {
        2 => "interrupted".to_owned(),
        number => format!("ended by signal {number}"),
    }
}

fn broker_code(error: &BrokerError) -> u8 {
    match error {
        BrokerError::Refused(_) => exit::REFUSED,
        BrokerError::BadEndpoint { .. } => exit::USAGE,
        BrokerError::Unreachable { .. } | BrokerError::Dbus(_) => exit::NO_BROKER,
    }
}

fn broker_advice(error: &BrokerError) -> Option<String> {
    const START: &str = "start cgrantd, or say where it is with --socket or $CGRANT_SOCKET";
    Some(match error {
        BrokerError::Refused(refusal) if refusal.hint.is_some() => return None,
        BrokerError::Refused(refusal) => match refusal.code {
            Code::NoSuchGrant => "'cgrant grant list' shows yours".to_owned(),
            Code::QuotaExceeded => "'cgrant usage' shows what you use".to_owned(),
            Code::NoSuchLink => "'cgrant link list' shows yours".to_owned(),
            Code::LinkExists => "give it another name with --as, or remove that one".to_owned(),
            Code::NoSuchBridge => "'cgrant link bridges' shows those that you may use".to_owned(),
            Code::AddressInUse => "choose another, or free that one".to_owned(),
            Code::Busy => "'cgrant grant ps' shows what is in it".to_owned(),
            Code::GrantExists => "choose another name, or release that one".to_owned(),
            Code::Internal => "the broker's log has the details".to_owned(),
            _ => return None,
        },
        BrokerError::Unreachable { source, .. } => match source.kind() {
            io::ErrorKind::PermissionDenied => "the socket is not open to you".to_owned(),
            _ => START.to_owned(),
        },
        BrokerError::Dbus(_) => format!("{START} (usually it is {})", names::DEFAULT_SOCKET),
        BrokerError::BadEndpoint { .. } => return None,
    })
}

/// Says what was being done when the broker refused.
pub(crate) trait Doing<T> {
    /// `doing` completes "cannot …".
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: Into<SessionError>> Doing<T> for Result<T, E> {
    fn doing(self, doing: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|source| Failure::Broker { doing: doing(), source: source.into() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use cgrant_container::{Step, StepFailure};
    use cgrant_proto::Refusal;

    use super::*;

    fn refused(code: Code, hint: Option<&str>) -> Failure {
        let refusal = Refusal {
            code,
            message: "no grant has this name".into(),
            rule: None,
            quota: None,
            usage: None,
            resource: None,
            limit: None,
            hint: hint.map(str::to_owned),
            argument: None,
            action: None,
        };
        Err::<(), _>(BrokerError::Refused(Box::new(refusal))).doing(|| "show the grant x".into()).unwrap_err()
    }

    #[test]
    fn a_refusal_says_what_why_and_what_to_do() {
        let failure = refused(Code::NoSuchGrant, None);
        let line = "cgrant: cannot show the grant x: no grant has this name; 'cgrant grant list' shows yours";
        assert_eq!(failure.line(), line);
        assert_eq!(failure.code(), exit::REFUSED);
    }

    #[test]
    fn the_brokers_own_advice_is_not_doubled() {
        let line = refused(Code::NoSuchGrant, Some("look elsewhere")).line();
        assert_eq!(line, "cgrant: cannot show the grant x: no grant has this name; look elsewhere");
    }

    #[test]
    fn no_broker_has_its_own_code() {
        let source = io::Error::from(io::ErrorKind::NotFound);
        let error = BrokerError::Unreachable { path: "/x".into(), source };
        let failure = Err::<(), _>(error).doing(|| "list the grants".into()).unwrap_err();
        assert_eq!(failure.code(), exit::NO_BROKER);
        assert!(
            failure.line().contains("/x") && failure.line().contains("$CGRANT_SOCKET"),
            "{}",
            failure.line()
        );
    }

    #[test]
    fn a_command_that_is_not_there_ends_as_with_a_shell() {
        let step = |errno| StepFailure { step: Step::Execute, subject: "x".into(), errno };
        assert_eq!(Failure::from(LaunchError::Step(step(2))).code(), 127);
        assert_eq!(Failure::from(LaunchError::Step(step(13))).code(), 126);
        let mount = StepFailure { step: Step::Mount, subject: "proc on /proc".into(), errno: 2 };
        let failure = Failure::from(LaunchError::Step(mount));
        assert_eq!(failure.code(), exit::MACHINE);
        assert!(failure.line().contains("make that directory"), "{}", failure.line());
    }

    #[test]
    fn what_the_machine_refuses_has_its_own_code() {
        let not_there = || io::Error::from_raw_os_error(3);
        assert_eq!(Failure::Process { pid: 7, source: not_there() }.code(), exit::MACHINE);
        assert_eq!(Failure::Namespace { namespace: "7".into(), source: not_there() }.code(), exit::MACHINE);
        let execute = |kind: io::ErrorKind| Failure::Execute { program: "x".into(), source: kind.into() };
        assert_eq!(execute(io::ErrorKind::NotFound).code(), 127);
        assert_eq!(execute(io::ErrorKind::PermissionDenied).code(), 126);
    }

    #[test]
    fn an_error_is_one_line_whatever_is_in_it() {
        let failure = Failure::Usage("a\nb\x1b[31m".into());
        assert!(!failure.line().contains(['\n', '\x1b']));
    }

    #[test]
    fn a_closed_pipe_is_no_failure() {
        assert!(Failure::from(io::Error::from(io::ErrorKind::BrokenPipe)).is_broken_pipe());
        assert!(!Failure::from(io::Error::from(io::ErrorKind::StorageFull)).is_broken_pipe());
    }
}
