//! `cgrant link tap …`: a tap for a command that takes this one's place, such as a virtual machine.

use std::{
    convert::Infallible,
    ffi::{OsStr, OsString},
    io,
    os::{
        fd::BorrowedFd,
        unix::{
            ffi::{OsStrExt, OsStringExt},
            process::CommandExt,
        },
    },
    process::Command,
};

use nix::fcntl::{FcntlArg, fcntl};

use super::{
    grant::Found,
    link::{links, wanted},
};
use crate::{Client, args::TapArgs, error::Failure};

/// The first number that is no standard stream's.
const FIRST: i32 = 3;

/// Adds the link and becomes the command. Who has the descriptor has the link: if there is no command to become, the
/// end of this process is the link's.
pub(super) fn run(client: &Client, args: &TapArgs) -> Result<Infallible, Failure> {
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(Failure::Usage("no command is given; write it after --".to_owned()));
    };
    let options = wanted(&args.wanted)?.tap();
    let found = Found::new(client, &args.grant, "add a tap to")?;
    let link = found.with(links(&found)?.add_link(&options))?;
    let tap = link.descriptor("tap").ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData));
    let number =
        tap.and_then(inheritable).map_err(|source| Failure::Machine { doing: "pass the tap on", source })?;
    let (number, mac) = (number.to_string(), link.text("mac").unwrap_or_default());
    let arguments = arguments.iter().map(|argument| filled(argument, &number, mac));
    let source =
        Command::new(program).args(arguments).env("CGRANT_TAP_FD", &number).env("CGRANT_TAP_MAC", mac).exec();
    Err(Failure::Execute { program: program.clone(), source })
}

/// Another descriptor of the same tap, which stays open in the command: the broker's message has none that does.
fn inheritable(tap: BorrowedFd<'_>) -> io::Result<i32> {
    Ok(fcntl(tap, FcntlArg::F_DUPFD(FIRST))?)
}

/// An argument with what stands for the descriptor and the MAC address.
fn filled(argument: &OsStr, number: &str, mac: &str) -> OsString {
    let filled = replace(argument.as_bytes(), b"{fd}", number.as_bytes());
    OsString::from_vec(replace(&filled, b"{mac}", mac.as_bytes()))
}

fn replace(text: &[u8], mark: &[u8], with: &[u8]) -> Vec<u8> {
    let mut result = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.first() {
        match rest.strip_prefix(mark) {
            Some(after) => {
                result.extend_from_slice(with);
                rest = after;
            }
            None => {
                result.push(*first);
                rest = rest.get(1..).unwrap_or_default();
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_filled_in_wherever_they_are() {
        let filled = |text: &[u8]| filled(OsStr::from_bytes(text), "7", "02:00:00:00:00:01").into_vec();
        assert_eq!(filled(b"tap,fd={fd},mac={mac}"), b"tap,fd=7,mac=02:00:00:00:00:01");
        assert_eq!(filled(b"{fd}{fd}{f{}\xff"), b"77{f{}\xff");
        assert_eq!(filled(b""), b"");
    }
}
