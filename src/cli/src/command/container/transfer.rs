//! `push` and `pull`: one file into a running container, or out of it.
//!
//! A shell of the container's reads and writes on its side, as the container's root or another user of it: what links there
//! mean, and who may read what, is the container's business, and its bytes are nothing but bytes here. They go through a pipe:
//! no program of the container's gets a descriptor of a file of the caller's, or of its terminal, which it could keep.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::PermissionsExt,
    },
    path::Path,
};

use cgrant_container::system::{ExecSpec, Executed};

use super::{Found, streams::Errors};
use crate::{args::TransferArgs, command::image::Partial, error::Failure};

/// Arguments: where to, the mode, and the name in a directory. It is there when it is whole.
const WRITE: &str = "if [ -d \"$1\" ]; then set -- \"$1/$3\" \"$2\"; fi; umask 077; \
    cat > \"$1.cgrant-new\" && chmod \"$2\" \"$1.cgrant-new\" && mv -f \"$1.cgrant-new\" \"$1\" || { rm -f \"$1.cgrant-new\"; exit 1; }";
const READ: &str = "exec cat < \"$1\"";

/// A file here becomes one there, with its mode.
pub(super) fn push(args: &TransferArgs) -> Result<(), Failure> {
    let TransferArgs { container, from, to, user } = args;
    let found = Found::new(container, "copy a file into")?;
    let here = Path::new(from);
    let unread = |source| Failure::File { doing: "read", path: from.clone(), source };
    let mut file = File::open(here).map_err(unread)?;
    let data = file.metadata().map_err(unread)?;
    if data.is_dir() {
        return Err(unread(io::ErrorKind::IsADirectory.into()));
    }
    let mode = OsString::from(format!("{:o}", data.permissions().mode() & 0o777));
    let name = here.file_name().unwrap_or_default();
    let words = [WRITE.as_ref(), "push".as_ref(), to.as_os_str(), &mode, name];
    let (input, mut pipe) = io::pipe().map_err(no_pipe)?;
    let executed = run(&found, &words, user.clone(), input.as_fd())?;
    drop(input);
    match io::copy(&mut file, &mut pipe) {
        // Whoever reads has ended, and said why.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(unread(error)),
        _ => {}
    }
    drop(pipe);
    finish(&found, executed)
}

/// A file there becomes one here, with the mode that new files have.
pub(super) fn pull(args: &TransferArgs) -> Result<(), Failure> {
    let TransferArgs { container, from, to, user } = args;
    let found = Found::new(container, "copy a file out of")?;
    let unwritten = |source| Failure::File { doing: "write", path: to.clone(), source };
    let target = Path::new(to);
    let whole = match (target.is_dir(), Path::new(from).file_name()) {
        (true, Some(name)) => target.join(name),
        _ => target.to_owned(),
    };
    let partial = Partial::new(&whole).map_err(unwritten)?;
    let words = [READ.as_ref(), "pull".as_ref(), from.as_os_str()];
    let (mut pipe, output) = io::pipe().map_err(no_pipe)?;
    let executed = run(&found, &words, user.clone(), output.as_fd())?;
    drop(output);
    io::copy(&mut pipe, &mut partial.file()).map_err(unwritten)?;
    finish(&found, executed)?;
    partial.finish(&whole).map_err(unwritten)
}

fn no_pipe(source: io::Error) -> Failure {
    Failure::Machine { doing: "make a pipe", source }
}

/// Runs a shell there with the pipe's end as input or output, of which each script uses one.
fn run(
    found: &Found,
    words: &[&OsStr],
    user: Option<String>,
    pipe: BorrowedFd<'_>,
) -> Result<(Executed, Errors), Failure> {
    let argv = ["/bin/sh".as_ref(), "-c".as_ref()].into_iter().chain(words.iter().copied());
    let spec = ExecSpec { argv: argv.map(OsStr::to_owned).collect(), user, ..ExecSpec::default() };
    let control = found.control()?;
    let errors = Errors::new().map_err(no_pipe)?;
    let executed = found.asked(control.exec(&spec, [pipe, pipe, errors.given()]))?;
    Ok((executed, errors))
}

fn finish(found: &Found, (executed, errors): (Executed, Errors)) -> Result<(), Failure> {
    let ended = found.asked(executed.wait());
    errors.show();
    match ended?.0.status() {
        0 => Ok(()),
        _ => Err(Failure::Refused(format!("cannot {}: see what it said above", found.doing))),
    }
}
