//! Going through all cgroups below one, however many and however deep a holder made them.
//!
//! No recursion: depth is the holder's choice and the stack is ours. Few descriptors: of the directories on the way down
//! only the last [`WINDOW`] and every [`WINDOW`]th stay open, the others are opened again on the way back, which costs
//! one step each. Names can't change under a walk: cgroup2 has no rename, and on v1 the directories are root's.

use std::{
    ffi::{OsStr, OsString},
    io,
};

use cgrant_sys::Dir;

use super::node::{children, is_missing};

/// How many levels stay open.
const WINDOW: usize = 64;

/// One step of a walk.
pub(crate) enum Visit<'a> {
    /// Before what is below the cgroup is looked at.
    Enter {
        /// Its directory.
        dir: &'a Dir,
        /// Its name.
        name: &'a OsStr,
    },
    /// After everything below the cgroup was visited.
    Leave {
        /// The cgroup above.
        parent: &'a Dir,
        /// Its name.
        name: &'a OsStr,
    },
}

struct Frame {
    name: OsString,
    dir: Option<Dir>,
    pending: Vec<OsString>,
}

/// Visits every cgroup below `top`, not `top` itself. Cgroups that vanish meanwhile are left out.
///
/// `Enter` comes before the cgroup's children are listed: what it does to the directory (taking it from its owner) holds
/// for the listing.
pub(crate) fn walk<E: From<io::Error>>(
    top: &Dir,
    mut visit: impl FnMut(Visit<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut frames: Vec<Frame> = Vec::new();
    let mut first = listed(top)?;
    loop {
        let next = frames.last_mut().map_or(&mut first, |frame| &mut frame.pending).pop();
        match next {
            Some(name) => {
                let Some(parent) = reopen(top, &mut frames)? else {
                    if let Some(frame) = frames.last_mut() {
                        frame.pending.clear();
                    }
                    continue;
                };
                let dir = match parent.open_dir(&name) {
                    Ok(dir) => dir,
                    Err(error) if is_missing(&error) => continue,
                    Err(error) => return Err(error.into()),
                };
                visit(Visit::Enter { dir: &dir, name: &name })?;
                let pending = listed(&dir)?;
                frames.push(Frame { name, dir: Some(dir), pending });
                close_far(&mut frames);
            }
            None => {
                let Some(frame) = frames.pop() else { return Ok(()) };
                if let Some(parent) = reopen(top, &mut frames)? {
                    visit(Visit::Leave { parent, name: &frame.name })?;
                }
            }
        }
    }
}

fn listed(dir: &Dir) -> io::Result<Vec<OsString>> {
    match children(dir) {
        Err(error) if is_missing(&error) => Ok(Vec::new()),
        other => other,
    }
}

/// Closes the directory that has just left the window.
fn close_far(frames: &mut [Frame]) {
    let Some(far) = frames.len().checked_sub(WINDOW + 1) else { return };
    if !far.is_multiple_of(WINDOW)
        && let Some(frame) = frames.get_mut(far)
    {
        frame.dir = None;
    }
}

/// The directory of the last frame, opened again if need be from the nearest one that is open. `None` if it has vanished.
fn reopen<'a>(top: &'a Dir, frames: &'a mut [Frame]) -> io::Result<Option<&'a Dir>> {
    let open = frames.iter().rposition(|frame| frame.dir.is_some());
    let closed = open.map_or(0, |at| at + 1);
    for at in closed..frames.len() {
        let (before, rest) = frames.split_at_mut(at);
        let parent = before.last().map_or(Some(top), |frame| frame.dir.as_ref());
        let (Some(parent), Some(frame)) = (parent, rest.first_mut()) else { return Ok(None) };
        match parent.open_dir(&frame.name) {
            Ok(dir) => frame.dir = Some(dir),
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(error),
        }
    }
    Ok(frames.last().map_or(Some(top), |frame| frame.dir.as_ref()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    /// A directory in a temporary place: the walk does not care that it is no cgroup.
    fn place(name: &str) -> std::path::PathBuf {
        let path = std::env::temp_dir().join(format!("cgrant-walk-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        path
    }

    #[test]
    fn everything_is_entered_before_and_left_after_what_is_below() {
        let path = place("order");
        for dir in ["a/b/c", "a/d", "e"] {
            std::fs::create_dir_all(path.join(dir)).unwrap();
        }
        let file = path.join("a/file");
        std::fs::write(&file, "").unwrap();
        let mut steps = Vec::new();
        walk(&Dir::open(&path).unwrap(), |visit| {
            steps.push(match visit {
                Visit::Enter { name, .. } => format!("+{}", name.display()),
                Visit::Leave { name, .. } => format!("-{}", name.display()),
            });
            io::Result::Ok(())
        })
        .unwrap();
        std::fs::remove_file(&file).unwrap();
        for dir in ["a/b/c", "a/b", "a/d", "a", "e", ""] {
            std::fs::remove_dir(path.join(dir)).unwrap();
        }
        let at = |step: &str| steps.iter().position(|found| found == step).unwrap();
        assert_eq!(steps.len(), 10, "{steps:?}");
        assert!(at("+a") < at("+b") && at("+b") < at("+c") && at("-c") < at("-b") && at("-d") < at("-a"));
    }

    #[test]
    fn a_deep_tree_is_removed_with_few_descriptors() {
        let path = place("deep");
        let mut dir = Dir::open(&path).unwrap();
        for level in 0..1000 {
            dir.create_dir(format!("side{level}"), 0o700).unwrap();
            dir = dir.create_dir("d", 0o700).unwrap();
        }
        let (mut removed, mut most) = (0, 0);
        walk(&Dir::open(&path).unwrap(), |visit| {
            if let Visit::Leave { parent, name } = visit {
                parent.remove_dir(name)?;
                removed += 1;
                if removed % 100 == 0 {
                    most = most.max(std::fs::read_dir("/proc/self/fd")?.count());
                }
            }
            io::Result::Ok(())
        })
        .unwrap();
        std::fs::remove_dir(&path).unwrap();
        assert_eq!(removed, 2000);
        assert!(most < 300, "{most} descriptors");
    }
}
