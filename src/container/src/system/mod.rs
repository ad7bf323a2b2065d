//! System containers: a whole distribution, with its own init as first process, under a monitor of the account's.
//!
//! ```text
//! Monitor::begin(spec)      the monitor is forked; it makes the user and the network namespace
//!   .namespaces()           both, to be shown to the broker, the monitor, to be the grant's holder, and its stage; for a root in
//!                           layers the directories that the broker has to show with the container's ids
//!   .start(granted)         ids are mapped, the monitor is in the grant: it starts the container and stays
//! Control::connect(place)   later, from any process of the account's: state, stop, console, exec
//! ```
//!
//! The monitor is one process with one thread. It holds the grant: its end is the end of the container. It outlives
//! the client, takes `SIGTERM` as "stop the container in order", starts it again when it reboots, and keeps in the
//! container's own directory what is to be known later: `control` (its socket), `state.json`, and `console.log` with `console.log.1`
//! before it.
//!
//! The container's own namespaces are made anew at each start, but for user and network namespace, which hold what the
//! broker granted.

mod arguments;
mod children;
mod confine;
mod control;
mod environment;
mod exec;
mod halt;
mod host_keys;
mod host_view;
mod init;
mod kind;
mod layers;
mod log;
mod message;
mod monitor;
mod notify;
mod nursery;
mod payload;
mod personal;
mod serve;
mod spec;
mod stage;
mod state;
mod tree;
mod users;

pub use control::{Answer, Control, ControlError, ExecSpec, Executed, Finished, Refused, Request, Terminal};
pub use log::read_log;
pub use monitor::{Begun, Granted, Monitor, Namespaces, StartError};
pub use spec::{Bind, MachineId, Personal, SystemError, SystemRoot, SystemSpec, Timezone};
pub use state::{Ended, Phase, State, read_state};
