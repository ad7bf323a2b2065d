//! The command line, read. The command that programs use many times a second is tried by itself first: to build the whole tree of
//! commands takes longer than all that it then does.

use std::ffi::OsString;

use clap::{Error, Parser, Subcommand};

use super::{Cli, Command, ContainerCommand, ExecArgs, Format};

/// [`Cli`] with one command.
#[derive(Debug, Parser)]
#[command(name = "cgrant")]
struct Quick {
    #[arg(long, global = true)]
    socket: Option<OsString>,
    #[arg(long, global = true, value_enum, default_value_t = Format::Table)]
    format: Format,
    #[command(subcommand)]
    command: QuickCommand,
}

#[derive(Debug, Subcommand)]
enum QuickCommand {
    Exec(Box<ExecArgs>),
}

/// Reads the command line, the program's name first.
///
/// # Errors
/// Those of clap, with what is to be told; help and version are among them.
pub(crate) fn parse(words: Vec<OsString>) -> Result<Cli, Error> {
    if words.get(1).is_some_and(|word| word == "exec")
        && let Ok(Quick { socket, format, command: QuickCommand::Exec(args) }) = Quick::try_parse_from(&words)
    {
        return Ok(Cli { socket, format, command: Command::Container(ContainerCommand::Exec(args)) });
    }
    // What is wrong, or to be explained, is for the whole tree to say.
    Cli::try_parse_from(words)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn read(words: &[&str]) -> Vec<OsString> {
        words.iter().map(OsString::from).collect()
    }

    #[test]
    fn the_short_way_leads_to_the_same() {
        for words in [
            &["cgrant", "exec", "web", "--", "ls", "-l"] as &[&str],
            &["cgrant", "exec", "-t", "web", "--user", "ann", "-w", "/x", "-e", "A=b", "--", "sh"],
            &["cgrant", "exec", "web", "ls", "--socket", "x"],
            &["cgrant", "exec", "--socket", "/x/bus", "--format", "json", "web", "ls"],
        ] {
            let words = read(words);
            let whole = Cli::try_parse_from(&words).unwrap();
            assert_eq!(format!("{:?}", parse(words).unwrap()), format!("{whole:?}"));
        }
    }

    #[test]
    fn what_is_wrong_is_told_as_ever() {
        for words in [
            &["cgrant", "exec"] as &[&str],
            &["cgrant", "exec", "--help"],
            &["cgrant", "exec", "web", "--terminl"],
            &["cgrant", "exce", "web"],
            &["cgrant"],
        ] {
            let words = read(words);
            let whole = Cli::try_parse_from(&words).unwrap_err().to_string();
            assert_eq!(parse(words).unwrap_err().to_string(), whole);
        }
    }
}
