//! What no process of a system container may do, root of its namespace included: capabilities that are left out of the
//! bounding set, system calls that are refused, and files of proc and sysfs that are hidden or read-only.
//!
//! The kernel refuses most of this to a user namespace anyhow. What is refused twice needs two errors to be open.
//! The container's root may unmount what hides a file, for it is the root of the namespace that the mount is in; for everybody else inside,
//! inner user namespaces included, it holds.
//!
//! no_new_privs is not set, so that sudo and su work inside.

use std::io;

use cgrant_sys::{
    deny::{Denied, deny},
    privilege::{Capability, drop_capabilities},
};
use nix::libc;
use rustix::io::Errno;

/// All but AUDIT_CONTROL, AUDIT_READ, AUDIT_WRITE (auditing is the host's), BLOCK_SUSPEND, BPF, MAC_ADMIN, MAC_OVERRIDE,
/// PERFMON, SYSLOG, SYS_MODULE, SYS_PACCT, SYS_RAWIO, SYS_TIME, WAKE_ALARM. Without SYS_RAWIO systemd does not try to mount the
/// kernel's debugfs and tracefs, without AUDIT_READ it does not listen to audit messages: the conditions in its own units
/// ask for these.
const KEPT: [Capability; 27] = [
    Capability::CAP_CHECKPOINT_RESTORE,
    Capability::CAP_CHOWN,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_FOWNER,
    Capability::CAP_FSETID,
    Capability::CAP_IPC_LOCK,
    Capability::CAP_IPC_OWNER,
    Capability::CAP_KILL,
    Capability::CAP_LEASE,
    Capability::CAP_LINUX_IMMUTABLE,
    Capability::CAP_MKNOD,
    Capability::CAP_NET_ADMIN,
    Capability::CAP_NET_BIND_SERVICE,
    Capability::CAP_NET_BROADCAST,
    Capability::CAP_NET_RAW,
    Capability::CAP_SETFCAP,
    Capability::CAP_SETGID,
    Capability::CAP_SETPCAP,
    Capability::CAP_SETUID,
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_BOOT,
    Capability::CAP_SYS_CHROOT,
    Capability::CAP_SYS_NICE,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_SYS_RESOURCE,
    Capability::CAP_SYS_TTY_CONFIG,
];

/// Hidden where nesting is not asked for: what tells of the host, or reaches hardware.
pub(crate) const MASKED_FILES: [&str; 6] = [
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/timer_list",
    "proc/timer_stats",
];
/// The same, directories.
pub(crate) const MASKED_DIRECTORIES: [&str; 4] =
    ["proc/acpi", "proc/scsi", "sys/firmware", "sys/devices/virtual/powercap"];
/// Read-only where nesting is not asked for.
pub(crate) const READ_ONLY: [&str; 4] = ["proc/bus", "proc/fs", "proc/irq", "proc/sysrq-trigger"];

const fn refused(native: i64, i386: Option<u32>) -> Denied {
    Denied { native: Some(native), i386, errno: Errno::PERM }
}

const fn absent(native: i64, i386: Option<u32>) -> Denied {
    Denied { native: Some(native), i386, errno: Errno::NOSYS }
}

const fn only_i386(number: u32, errno: Errno) -> Denied {
    Denied { native: None, i386: Some(number), errno }
}

/// System calls that are answered with an error. `ENOSYS` where programs fall back to something else then.
const DENIED: &[Denied] = &[
    // What LXC refuses: other kernels and modules, files by handle past every mount.
    refused(libc::SYS_kexec_load, Some(283)),
    #[cfg(target_arch = "x86_64")]
    refused(libc::SYS_kexec_file_load, None),
    refused(libc::SYS_init_module, Some(128)),
    refused(libc::SYS_finit_module, Some(350)),
    refused(libc::SYS_delete_module, Some(129)),
    refused(libc::SYS_open_by_handle_at, Some(342)),
    // Keyrings are not namespaced by user namespaces alone.
    absent(libc::SYS_add_key, Some(286)),
    absent(libc::SYS_request_key, Some(287)),
    absent(libc::SYS_keyctl, Some(288)),
    // Much kernel for little need.
    refused(libc::SYS_perf_event_open, Some(336)),
    refused(libc::SYS_bpf, Some(357)),
    absent(libc::SYS_userfaultfd, Some(374)),
    absent(libc::SYS_io_uring_setup, Some(425)),
    absent(libc::SYS_io_uring_enter, Some(426)),
    absent(libc::SYS_io_uring_register, Some(427)),
    // The host's swap, clock, log, accounting, quotas and ports.
    refused(libc::SYS_swapon, Some(87)),
    refused(libc::SYS_swapoff, Some(115)),
    refused(libc::SYS_clock_settime, Some(264)),
    only_i386(404, Errno::PERM), // clock_settime64
    refused(libc::SYS_settimeofday, Some(79)),
    only_i386(25, Errno::PERM), // stime
    refused(libc::SYS_syslog, Some(103)),
    refused(libc::SYS_acct, Some(51)),
    refused(libc::SYS_quotactl, Some(131)),
    refused(libc::SYS_quotactl_fd, Some(443)),
    #[cfg(target_arch = "x86_64")]
    refused(libc::SYS_iopl, Some(110)),
    #[cfg(target_arch = "x86_64")]
    refused(libc::SYS_ioperm, Some(101)),
    // What no program of this century calls.
    #[cfg(target_arch = "x86_64")]
    absent(libc::SYS_uselib, Some(86)),
    absent(libc::SYS_lookup_dcookie, Some(253)),
    absent(libc::SYS_nfsservctl, Some(169)),
    #[cfg(target_arch = "x86_64")]
    absent(libc::SYS__sysctl, Some(149)),
    only_i386(127, Errno::NOSYS), // create_module
    only_i386(113, Errno::NOSYS), // vm86old
    only_i386(166, Errno::NOSYS), // vm86
];

/// Leaves these capabilities to this process and its descendants, whatever they execute.
pub(crate) fn bound_capabilities() -> io::Result<()> {
    drop_capabilities(&KEPT)
}

/// Refuses the system calls from now on, to this process and its descendants.
pub(crate) fn refuse_calls() -> io::Result<()> {
    deny(DENIED)
}
