//! A tree that one range of ids owns becomes that of another where no mount shows it with other owners: two processes, each
//! root of a storage namespace of its own, of which one can read the files and the other make new ones.
//!
//! The first one sends what each file is, with a descriptor of its data, and waits until it is asked for the next; so a file
//! system that can share data (reflink) shares them here too, and no more than one descriptor is ever under way.

use std::fs::File;
use std::os::fd::AsFd;

use cgrant_sys::seqpacket::ChannelError;
use cgrant_sys::{Channel, Dir};
use serde::{Deserialize, Serialize};

use crate::archive::{Kind, Member};
use crate::copy::{Copied, CopyError, FileData};
use crate::limits::Limits;
use crate::place::Placer;
use crate::progress::Watch;
use crate::walk::{Found, Walk, WalkError};

/// What asks for the next file.
const NEXT: &[u8] = b"next";

/// Why a tree was not handed over.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// It can't be read.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// It can't be made.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The two processes can't talk.
    #[error("the two processes that copy the files lost each other")]
    Channel(#[from] ChannelError),
    /// What came is no file.
    #[error("the process that reads the files said what is not understood")]
    Malformed,
}

/// From the one that reads.
#[derive(Debug, Serialize, Deserialize)]
enum Offer {
    /// A file; beside it a descriptor of its data, if it has any.
    Member(Member),
    /// That was all.
    End,
}

/// Sends all of `source` to whoever accepts it at the other end of `channel`, as root of the namespace that owns it.
///
/// # Errors
/// [`HandoverError`].
pub fn offer(source: &Dir, channel: &Channel, limits: &Limits) -> Result<(), HandoverError> {
    let mut walk = Walk::new(limits, |found: Found<'_>| {
        let data = found.file.filter(|_| matches!(found.member.kind, Kind::File(_)));
        say(channel, &Offer::Member(found.member), data.as_ref())?;
        match channel.receive()? {
            Some(asked) if asked.bytes == NEXT => Ok(()),
            _ => Err(HandoverError::Channel(ChannelError::Closed)),
        }
    });
    walk.run::<HandoverError>(source)?;
    say(channel, &Offer::End, None)
}

fn say(channel: &Channel, offer: &Offer, data: Option<&File>) -> Result<(), HandoverError> {
    let bytes = serde_json::to_vec(offer).map_err(|_| HandoverError::Malformed)?;
    let data: Vec<_> = data.into_iter().map(AsFd::as_fd).collect();
    Ok(channel.send(&bytes, &data)?)
}

/// Makes the tree that is offered at the other end of `channel` in the empty directory `target`, as root of the namespace
/// that is to own it. `layer`: it is the upper layer of an overlay, whose whiteouts and attributes are kept. `total`: bytes of
/// data, where they are known. `None` if the other one ended before all was sent, and knows why.
///
/// # Errors
/// [`HandoverError`]; what was made until then is left for whoever made the directory.
pub fn accept(
    channel: &Channel,
    target: &Dir,
    layer: bool,
    limits: &Limits,
    total: Option<u64>,
    watch: &mut Watch<'_>,
) -> Result<Option<Copied>, HandoverError> {
    let placer = Placer::new(target, *limits, layer);
    let mut placer = placer.map_err(CopyError::Directory)?;
    let mut data = FileData::new(total, watch);
    while let Some((member, file)) = match hear(channel)? {
        None => return Ok(None),
        Some((Offer::End, _)) => None,
        Some((Offer::Member(member), file)) => Some((member, file)),
    } {
        if matches!(member.kind, Kind::File(_)) != file.is_some() {
            return Err(HandoverError::Malformed);
        }
        data.place(&mut placer, member, file)?;
        channel.send(NEXT, &[])?;
    }
    let (omissions, entries, bytes) = placer.finish().map_err(CopyError::Place)?;
    Ok(Some(Copied { entries, bytes, omissions }))
}

fn hear(channel: &Channel) -> Result<Option<(Offer, Option<File>)>, HandoverError> {
    let received = match channel.receive() {
        // It ended with a word of ours unread.
        Err(ChannelError::Closed) | Ok(None) => return Ok(None),
        Ok(Some(received)) => received,
        Err(error) => return Err(error.into()),
    };
    let offer = serde_json::from_slice(&received.bytes).map_err(|_| HandoverError::Malformed)?;
    Ok(Some((offer, received.fds.into_iter().next().map(File::from))))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
    use std::path::Path;

    use cgrant_sys::seqpacket::pair;

    use crate::export::identity;

    fn handed_over(from: &Path, to: &Path, limits: Limits) -> (Result<(), HandoverError>, Option<Copied>) {
        let (near, far) = pair().unwrap();
        let source = Dir::open(from).unwrap();
        std::thread::scope(|scope| {
            let offers = scope.spawn(move || offer(&source, &far, &limits));
            let target = Dir::open(to).unwrap();
            let mut seen = 0;
            let copied = accept(&near, &target, false, &Limits::default(), Some(9), &mut |progress| {
                assert!(progress.done >= seen && progress.total == Some(9));
                seen = progress.done;
            });
            drop(near);
            (offers.join().unwrap(), copied.unwrap())
        })
    }

    #[test]
    fn what_arrives_is_what_was_there() {
        let scene = tempfile::tempdir().unwrap();
        let (from, to) = (scene.path().join("from"), scene.path().join("to"));
        std::fs::create_dir_all(from.join("d/e")).unwrap();
        std::fs::create_dir(&to).unwrap();
        std::fs::write(from.join("d/e/f"), "text").unwrap();
        std::fs::set_permissions(from.join("d/e/f"), PermissionsExt::from_mode(0o4710)).unwrap();
        std::os::unix::fs::chown(from.join("d/e"), Some(5), Some(65_535)).unwrap();
        std::fs::hard_link(from.join("d/e/f"), from.join("g")).unwrap();
        symlink("/etc/passwd", from.join("l")).unwrap();
        nix::unistd::mkfifo(&from.join("p"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let long = vec![b'x'; 60_000];
        rustix::fs::setxattr(from.join("g"), "user.x", &long[..3000], rustix::fs::XattrFlags::empty())
            .unwrap();
        let sparse = File::create(from.join("sparse")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        sparse.write_all_at(&long, 32 << 20).unwrap();
        let (offered, copied) = handed_over(&from, &to, Limits::default());
        offered.unwrap();
        assert_eq!(copied.unwrap().entries, 8);
        let sum = |path: &Path| identity(&Dir::open(path).unwrap(), &Limits::default(), &mut |_| ()).unwrap();
        assert_eq!(sum(&from), sum(&to));
        let meta = |name: &str| std::fs::symlink_metadata(to.join(name)).unwrap();
        assert_eq!(meta("d/e/f").ino(), meta("g").ino());
        assert_eq!((meta("d/e").uid(), meta("d/e").gid(), meta("g").mode() & 0o7777), (5, 65_535, 0o4710));
        assert!(meta("sparse").blocks() < 2048, "{}", meta("sparse").blocks());
    }

    #[test]
    fn one_that_can_not_go_on_is_told_from_the_end() {
        let scene = tempfile::tempdir().unwrap();
        let (from, to) = (scene.path().join("from"), scene.path().join("to"));
        std::fs::create_dir_all(from.join("d")).unwrap();
        std::fs::create_dir(&to).unwrap();
        let (offered, copied) = handed_over(&from, &to, Limits { entries: 0, ..Limits::default() });
        assert!(matches!(offered, Err(HandoverError::Walk(WalkError::TooMany(0)))), "{offered:?}");
        assert_eq!(copied, None);
    }

    #[test]
    fn what_is_no_offer_is_refused() {
        let scene = tempfile::tempdir().unwrap();
        let target = Dir::open(scene.path()).unwrap();
        let file = r#"{"Member":{"name":[102],"kind":{"File":null},"mode":0,"uid":0,"gid":0,
            "modified":{"seconds":0,"nanoseconds":0},"size":5,"xattrs":[],"acl_access":null,"acl_default":null}}"#;
        // A file whose data are not there would be one of zeros.
        for bytes in [&b"{"[..], br#"{"Other":1}"#, file.as_bytes()] {
            let (near, far) = pair().unwrap();
            far.send(bytes, &[]).unwrap();
            let result = accept(&near, &target, false, &Limits::default(), None, &mut |_| ());
            assert!(matches!(result, Err(HandoverError::Malformed)), "{result:?}");
        }
    }
}
