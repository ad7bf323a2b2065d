//! What a listening socket learns of who connects.

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use cgrant_sys::{Clone3, Exit, PeerPidfd, privilege::become_account, socket};

use crate::{Test, children::Waiting, is_readable_soon};

pub const TESTS: &[Test] = &[
    ("peers::groups_of_any_number_are_known", groups_of_any_number_are_known),
    ("peers::credentials_are_those_at_connect", credentials_are_those_at_connect),
    ("peers::a_peer_that_ended_is_gone", a_peer_that_ended_is_gone),
];

fn listener() -> (tempfile::TempDir, std::path::PathBuf, UnixListener) {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    std::fs::set_permissions(&path, PermissionsExt::from_mode(0o666)).unwrap();
    (directory, path, listener)
}

/// The next connection, if it comes soon.
fn accept(listener: &UnixListener) -> OwnedFd {
    assert!(is_readable_soon(listener), "nobody connected");
    socket::accept(listener).unwrap()
}

fn groups_of_any_number_are_known() {
    let (_directory, path, listener) = listener();
    for count in [0_u32, 1, 32, 33, 3000] {
        let groups: Vec<u32> = (50_000..50_000 + count).collect();
        let raw: Vec<_> = groups.iter().map(|group| nix::unistd::Gid::from_raw(*group)).collect();
        let _waiting = Waiting::start(Clone3::new(), || {
            nix::unistd::setgroups(&raw).unwrap();
            std::mem::forget(UnixStream::connect(&path).unwrap());
        });
        let accepted = accept(&listener);
        let found = socket::peer_groups(&accepted).unwrap();
        assert_eq!(found, groups);
    }
}

fn credentials_are_those_at_connect() {
    let (_directory, path, listener) = listener();
    let waiting = Waiting::start(Clone3::new(), || {
        nix::unistd::setegid(12346.into()).unwrap();
        nix::unistd::seteuid(12345.into()).unwrap();
        std::mem::forget(UnixStream::connect(&path).unwrap());
        nix::unistd::seteuid(0.into()).unwrap();
        become_account(54321, 54322).unwrap();
    });
    let child = &waiting.0;
    let accepted = accept(&listener);
    let peer = socket::peer_credentials(&accepted).unwrap();
    let pidfd = socket::peer_pidfd(&accepted).unwrap();
    let pid = match &pidfd {
        PeerPidfd::Some(pidfd) => pidfd.pid().unwrap(),
        PeerPidfd::Unsupported => child.pid,
        PeerPidfd::Gone => 0,
    };
    assert_eq!((peer.uid, peer.gid, peer.pid), (12345, 12346, Some(child.pid)));
    assert_eq!(pid, child.pid);
}

fn a_peer_that_ended_is_gone() {
    let (_directory, path, listener) = listener();
    let child = Clone3::new()
        .spawn(|| {
            let connection = UnixStream::connect(&path).unwrap();
            std::mem::forget(connection);
            0
        })
        .unwrap();
    assert_eq!(child.pidfd.wait().unwrap(), Exit::Code(0));
    let accepted = accept(&listener);
    assert!(matches!(socket::peer_pidfd(&accepted).unwrap(), PeerPidfd::Gone | PeerPidfd::Unsupported));
    assert_eq!(socket::peer_credentials(&accepted).unwrap().uid, 0);
}
