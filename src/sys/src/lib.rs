//! fd-first wrappers of the kernel objects that the broker and the container engine use.
//!
//! The only crate with `unsafe`. Every wrapper takes and gives descriptors instead of paths and pids,
//! returns the kernel's error number, and says which kernel gives what and what is done without it.
//! What nix or rustix already offer safely (epoll, inotify, signalfd, timerfd, eventfd, poll, termios)
//! is used from there and not wrapped again.

pub mod bpf;
pub mod clone;
pub mod code;
pub mod companion;
pub mod credentials;
pub mod deny;
pub mod dir;
pub mod dropin;
pub mod heap;
pub mod hierarchy;
pub mod inherited;
pub mod keyring;
pub mod memfd;
pub mod mount;
pub mod mount_table;
pub mod namespace;
pub mod ndisc;
pub mod netlink;
pub mod numbering;
#[cfg(feature = "pam")]
pub mod pam;
pub mod pidfd;
pub mod port;
pub mod privilege;
pub mod process;
pub mod seccomp;
pub mod seqpacket;
pub mod signals;
pub mod socket;
pub mod tap;

mod descriptor;

pub use clone::{Child, Clone3};
pub use descriptor::{close_aside, is_open_directory, kind_of};
pub use dir::{Dir, Entry, EntryKind, LockGuard};
pub use namespace::{MntnsFd, NamespaceError, NetnsFd, NsId, UsernsFd};
pub use numbering::Numbering;
pub use pidfd::{Exit, NotAPidfd, Pidfd, PidfdInfo};
pub use process::ProcFs;
pub use seqpacket::{Channel, ChannelError, Received};
pub use socket::{PeerCredentials, PeerPidfd};
