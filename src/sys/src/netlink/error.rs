//! Why a request by netlink came to nothing.

use std::{fmt, io};

/// Why a request by netlink came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel refused it.
    #[error("cannot {action}: {}{}", io::Error::from_raw_os_error(*errno), Reason(reason))]
    Refused {
        /// What was asked for, in the infinitive.
        action: &'static str,
        /// The kernel's error number.
        errno: i32,
        /// What the kernel says besides (extended ack); often empty.
        reason: String,
    },
    /// The socket failed. `ENOBUFS`: the kernel had no memory for the answer, and the request may have had its effect.
    #[error("cannot {action}")]
    Socket {
        /// What was asked for.
        action: &'static str,
        /// What went wrong.
        source: io::Error,
    },
    /// The kernel's answer makes no sense to this program.
    #[error("cannot {action}: the kernel's answer is not understood")]
    Malformed {
        /// What was asked for.
        action: &'static str,
    },
    /// What was listed changed so often that no list is true.
    #[error("cannot {action}: it changes all the time")]
    Unsteady {
        /// What was asked for.
        action: &'static str,
    },
    /// There is more than this program is ready to keep.
    #[error("cannot {action}: there are too many")]
    TooMany {
        /// What was asked for.
        action: &'static str,
    },
    /// A name or text that the kernel would not take, or would cut.
    #[error("cannot {action}: {what} is not acceptable")]
    Unacceptable {
        /// What was asked for.
        action: &'static str,
        /// What is not acceptable.
        what: &'static str,
    },
}

/// The kernel's words behind its error.
struct Reason<'a>(&'a str);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.0) }
    }
}

impl NetlinkError {
    /// The error number of the kernel's refusal.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Did the kernel refuse it with this error number?
    #[must_use]
    pub fn is(&self, errno: i32) -> bool {
        self.errno() == Some(errno)
    }

    /// Is the device, address or route that was named not there?
    #[must_use]
    pub fn is_absent(&self) -> bool {
        matches!(
            self.errno(),
            Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENXIO)
        )
    }

    /// Was an IPv6 address refused because there is no IPv6: in the kernel, or at this device, whose owner has switched it off?
    #[must_use]
    pub fn is_without_ipv6(&self) -> bool {
        matches!(
            self.errno(),
            Some(libc::EACCES | libc::EPERM | libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::EPROTONOSUPPORT)
        )
    }
}
