//! Giving up rights: each test checks what is left in `/proc/self/status` or by trying.

use std::os::fd::{AsRawFd, RawFd};

use cgrant_sys::Exit;
use cgrant_sys::deny;
use cgrant_sys::privilege::{
    Capability, become_account, close_fds_from, drop_capabilities, empty_bounding_set, set_dumpable,
    set_no_new_privs, thread_count,
};
use cgrant_sys::seccomp::{self, Action, RUNTIME};

use crate::{Test, errno, in_child};

pub const TESTS: &[Test] = &[
    ("rights::an_account_is_for_good", an_account_is_for_good),
    ("rights::only_root_becomes_somebody", only_root_becomes_somebody),
    (
        "rights::capabilities_that_are_not_kept_are_gone_everywhere",
        capabilities_that_are_not_kept_are_gone_everywhere,
    ),
    (
        "rights::kept_capabilities_survive_execve_and_others_do_not",
        kept_capabilities_survive_execve_and_others_do_not,
    ),
    (
        "rights::an_empty_bounding_set_takes_nothing_that_is_had",
        an_empty_bounding_set_takes_nothing_that_is_had,
    ),
    ("rights::an_account_keeps_capabilities_through_execve", an_account_keeps_capabilities_through_execve),
    ("rights::no_new_privs_is_set", no_new_privs_is_set),
    ("rights::what_is_not_dumpable_belongs_to_root", what_is_not_dumpable_belongs_to_root),
    ("rights::threads_are_counted", threads_are_counted),
    ("rights::descriptors_are_closed_but_those_kept", descriptors_are_closed_but_those_kept),
    ("rights::a_filter_refuses_what_is_not_listed", a_filter_refuses_what_is_not_listed),
    ("rights::a_filter_refuses_what_is_listed", a_filter_refuses_what_is_listed),
    ("rights::denied_calls_fail_and_rights_stay", denied_calls_fail_and_rights_stay),
    ("rights::denying_needs_rights", denying_needs_rights),
    ("rights::an_ignored_signal_is_ignored_by_programs", an_ignored_signal_is_ignored_by_programs),
    ("rights::a_filter_can_kill", a_filter_can_kill),
    ("rights::the_runtime_list_is_enough_for_the_runtime", the_runtime_list_is_enough_for_the_runtime),
];

/// The fields of a line of `/proc/self/status`.
fn status(label: &str) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(label)?.strip_prefix(':')).unwrap();
    line.split_ascii_whitespace().map(str::to_owned).collect()
}

fn capability_set(label: &str) -> u64 {
    u64::from_str_radix(&status(label)[0], 16).unwrap()
}

/// A call that changes nothing, and the error that it is to fail with here.
const DENIED: deny::Denied =
    deny::Denied { native: Some(libc::SYS_sched_yield), i386: Some(158), errno: rustix::io::Errno::XDEV };

fn yields() -> std::io::Result<()> {
    // SAFETY: takes and touches no memory.
    if unsafe { libc::syscall(libc::SYS_sched_yield) } < 0 {
        Err(std::io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn denied_calls_fail_and_rights_stay() {
    yields().unwrap();
    deny::deny(&[DENIED]).unwrap();
    assert_eq!(errno(yields()), libc::EXDEV);
    assert_eq!(status("NoNewPrivs"), ["0"]);
    assert_eq!(status("Seccomp"), ["2"]);
    assert_eq!(in_child(|| i32::from(yields().is_ok())), Exit::Code(0));
    // Another one adds to it.
    let other = deny::Denied { native: Some(libc::SYS_getppid), ..DENIED };
    deny::deny(&[other]).unwrap();
    assert_eq!(errno(yields()), libc::EXDEV);
}

fn denying_needs_rights() {
    become_account(12345, 12346).unwrap();
    assert_eq!(errno(deny::deny(&[DENIED])), libc::EACCES);
    yields().unwrap();
}

fn an_account_is_for_good() {
    nix::unistd::setgroups(&[7.into(), 8.into()]).unwrap();
    become_account(12345, 12346).unwrap();
    assert_eq!(status("Uid"), ["12345"; 4]);
    assert_eq!(status("Gid"), ["12346"; 4]);
    assert_eq!(status("Groups"), [""; 0]);
    assert_eq!((capability_set("CapEff"), capability_set("CapPrm")), (0, 0));
    assert!(nix::unistd::setuid(0.into()).is_err());
}

fn only_root_becomes_somebody() {
    become_account(12345, 12346).unwrap();
    assert_eq!(errno(become_account(0, 0)), libc::EPERM);
    assert_eq!(errno(become_account(12347, 12346)), libc::EPERM);
}

fn an_empty_bounding_set_takes_nothing_that_is_had() {
    empty_bounding_set().unwrap();
    let ids = Capability::CAP_SETUID.bitmask() | Capability::CAP_SETGID.bitmask();
    assert_eq!((capability_set("CapBnd"), capability_set("CapPrm") & ids), (0, ids));
    drop_capabilities(&[Capability::CAP_SETUID, Capability::CAP_SETGID]).unwrap();
    assert_eq!((capability_set("CapBnd"), capability_set("CapEff")), (0, ids));
    become_account(12345, 12346).unwrap();
    assert_eq!((capability_set("CapBnd"), capability_set("CapPrm")), (0, 0));
}

fn capabilities_that_are_not_kept_are_gone_everywhere() {
    drop_capabilities(&[Capability::CAP_KILL, Capability::CAP_CHOWN]).unwrap();
    let kept = Capability::CAP_KILL.bitmask() | Capability::CAP_CHOWN.bitmask();
    for (label, expected) in
        [("CapPrm", kept), ("CapEff", kept), ("CapBnd", kept), ("CapInh", 0), ("CapAmb", 0)]
    {
        assert_eq!(capability_set(label), expected, "{label}");
    }
    drop_capabilities(&[Capability::CAP_KILL, Capability::CAP_CHOWN]).unwrap();
    // Without CAP_SETPCAP the bounding set is as it is.
    assert_eq!(errno(drop_capabilities(&[Capability::CAP_KILL])), libc::EPERM);
}

fn kept_capabilities_survive_execve_and_others_do_not() {
    drop_capabilities(&[Capability::CAP_SETPCAP]).unwrap();
    let output = std::process::Command::new("grep").args(["^CapEff", "/proc/self/status"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let effective = u64::from_str_radix(text.split_ascii_whitespace().nth(1).unwrap(), 16).unwrap();
    assert_eq!(effective, Capability::CAP_SETPCAP.bitmask());
}

fn an_account_keeps_capabilities_through_execve() {
    use cgrant_sys::privilege::keep_through_exec;
    // As in a user namespace where the account is nobody's root.
    rustix::thread::set_keep_capabilities(true).unwrap();
    become_account(12345, 12346).unwrap();
    let kept = [Capability::CAP_NET_RAW, Capability::CAP_KILL];
    keep_through_exec(&kept).unwrap();
    let output = std::process::Command::new("grep").args(["^CapEff", "/proc/self/status"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let effective = u64::from_str_radix(text.split_ascii_whitespace().nth(1).unwrap(), 16).unwrap();
    assert_eq!(effective, kept[0].bitmask() | kept[1].bitmask());
}

fn no_new_privs_is_set() {
    assert_eq!(status("NoNewPrivs"), ["0"]);
    set_no_new_privs().unwrap();
    assert_eq!(status("NoNewPrivs"), ["1"]);
}

fn what_is_not_dumpable_belongs_to_root() {
    use std::os::unix::fs::MetadataExt;
    become_account(12345, 12346).unwrap();
    set_dumpable(true).unwrap();
    assert_eq!(std::fs::metadata("/proc/self/environ").unwrap().uid(), 12345);
    set_dumpable(false).unwrap();
    assert_eq!(std::fs::metadata("/proc/self/environ").unwrap().uid(), 0);
}

fn threads_are_counted() {
    assert_eq!(thread_count().unwrap(), 1);
    let (end, wait) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || wait.recv());
    assert_eq!(thread_count().unwrap(), 2);
    drop(end);
    assert!(thread.join().unwrap().is_err());
}

fn open_numbers() -> Vec<RawFd> {
    let mut numbers: Vec<RawFd> = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap().parse().unwrap())
        .collect();
    // The listing's own descriptor is the last of them, and closed by now.
    numbers.retain(|number| std::fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok());
    numbers.sort_unstable();
    numbers
}

fn descriptors_are_closed_but_those_kept() {
    let files: Vec<_> = (0..5).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
    let kept = files[2].as_raw_fd();
    let exit = in_child(|| {
        close_fds_from(3, &[kept]).unwrap();
        assert_eq!(open_numbers(), [0, 1, 2, kept]);
        0
    });
    assert_eq!(exit, Exit::Code(0));
    assert!(open_numbers().len() >= 8);
    assert_eq!(errno(close_fds_from(-1, &[])), libc::EINVAL);
}

fn a_filter_refuses_what_is_not_listed() {
    let allowed = [RUNTIME, &[libc::SYS_getppid]].concat();
    seccomp::apply(&allowed, Action::Refuse).unwrap();
    let _ = std::os::unix::process::parent_id();
    assert_eq!(std::fs::File::open("/dev/null").unwrap_err().raw_os_error(), Some(libc::EPERM));
    assert_eq!(rustix::thread::no_new_privs().unwrap_err(), rustix::io::Errno::PERM);
}

fn a_filter_refuses_what_is_listed() {
    use rustix::net::{AddressFamily, SocketType, netlink, socket};
    seccomp::refuse(&[libc::SYS_getpriority]).unwrap();
    assert_eq!(rustix::process::getpriority_process(None).unwrap_err(), rustix::io::Errno::PERM);
    assert!(std::fs::File::open("/dev/null").is_ok());
    assert!(socket(AddressFamily::INET, SocketType::DGRAM, None).is_ok());
    // NETLINK_ROUTE is protocol 0.
    assert!(socket(AddressFamily::NETLINK, SocketType::RAW, None).is_ok());
    let other = socket(AddressFamily::NETLINK, SocketType::RAW, Some(netlink::NETFILTER));
    assert_eq!(other.unwrap_err(), rustix::io::Errno::PERM);
}

fn an_ignored_signal_is_ignored_by_programs() {
    cgrant_sys::signals::ignore(nix::sys::signal::Signal::SIGHUP).unwrap();
    let status = std::process::Command::new("sh").args(["-c", "kill -HUP $$; exit 7"]).status().unwrap();
    assert_eq!(status.code(), Some(7));
}

fn a_filter_can_kill() {
    let exit = in_child(|| {
        // No core file of a death on purpose.
        rustix::process::setrlimit(
            rustix::process::Resource::Core,
            rustix::process::Rlimit { current: Some(0), maximum: Some(0) },
        )
        .unwrap();
        seccomp::apply(RUNTIME, Action::Kill).unwrap();
        i32::from(std::fs::File::open("/dev/null").is_ok())
    });
    assert_eq!(exit, Exit::Signal(libc::SIGSYS));
}

fn the_runtime_list_is_enough_for_the_runtime() {
    let exit = in_child(|| {
        let file = std::fs::File::open("/dev/zero").unwrap();
        seccomp::apply(&[RUNTIME, &[libc::SYS_clone3, libc::SYS_prctl]].concat(), Action::Kill).unwrap();
        let memory = vec![1_u8; 64 << 20];
        let sum: usize =
            std::thread::spawn(move || memory.iter().map(|byte| usize::from(*byte)).sum()).join().unwrap();
        assert_eq!(sum, 64 << 20);
        let mut bytes = [1; 8];
        std::io::Read::read_exact(&mut &file, &mut bytes).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(1));
        let map: std::collections::HashMap<u8, u8> = bytes.iter().map(|byte| (*byte, 1)).collect();
        i32::from(map.len() != 1)
    });
    assert_eq!(exit, Exit::Code(0));
}
