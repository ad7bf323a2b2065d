//! The command line, read. Of the verbs that programs use many times a second the own tree of arguments is tried first: to build the
//! tree of all commands takes longer than what they then do. That one reads the rest, and also says what is wrong.

use std::ffi::OsString;

use clap::{Args, Error, Parser};

use super::{Cli, Command, ContainerCommand, Global};

/// Reads the command line, the program's name first.
///
/// # Errors
/// Those of clap, with what is to be told; help and version are among them.
pub(crate) fn parse(words: Vec<OsString>) -> Result<Cli, Error> {
    match quickly(&words) {
        Some(cli) => Ok(cli),
        None => Cli::try_parse_from(words),
    }
}

/// A verb with what can be said to each.
#[derive(Parser)]
struct Alone<A: Args> {
    #[command(flatten)]
    global: Global,
    #[command(flatten)]
    args: A,
}

/// `cgrant exec …` and `cgrant run …`, if nothing is wrong with them.
fn quickly(words: &[OsString]) -> Option<Cli> {
    let words = words.get(1..)?;
    match words.first()?.to_str()? {
        "exec" => alone(words, |args| Command::Container(ContainerCommand::Exec(Box::new(args)))),
        "run" => alone(words, |args| Command::Run(Box::new(args))),
        _ => None,
    }
}

fn alone<A: Args>(words: &[OsString], command: impl FnOnce(A) -> Command) -> Option<Cli> {
    let Alone { global, args } = Alone::try_parse_from(words).ok()?;
    Some(Cli { global, command: command(args) })
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
            &["cgrant", "exec", "web", "ls", "--", "-l", "--"],
            &["cgrant", "exec", "web", "--", "--", "ls"],
            &[
                "cgrant", "exec", "--socket", "/x/bus", "-e", "A=b", "--env", "C", "-u", "0", "-T", "web",
                "", "--", "-x",
            ],
            &["cgrant", "exec", "--socket", "/x/bus", "--user", "ann", "--workdir", "/x", "-t", "web", "ls"],
            &["cgrant", "exec", "--socket", "/x/bus", "--format", "json", "web", "ls"],
            &["cgrant", "exec", "--", "web", "--help"],
            &["cgrant", "exec", "--user=ann", "-eA", "web", "-t", "--", "ls"],
            &["cgrant", "exec", "--socket", "/x/bus", "web", "--", "ls", "-l"],
            &["cgrant", "exec", "-t", "-u", "ann", "web", "ls"],
            &["cgrant", "run", "true"],
            &["cgrant", "run", "--", "--help"],
            &[
                "cgrant", "run", "--socket", "/x/bus", "--memory", "512M", "-e", "A", "--root", "/r",
                "--link", "-p", "8080:80", "sh", "-c", "x",
            ],
        ] {
            let words = read(words);
            let whole = Cli::try_parse_from(&words).unwrap();
            assert_eq!(format!("{:?}", quickly(&words).unwrap()), format!("{whole:?}"));
        }
    }

    #[test]
    fn what_is_wrong_is_told_as_ever() {
        for words in [
            &["cgrant", "exec"] as &[&str],
            &["cgrant", "exec", "--help"],
            &["cgrant", "run"],
            &["cgrant", "run", "-h"],
            &["cgrant", "run", "--version"],
            &["cgrant", "run", "--memory", "-1", "x"],
            &["cgrant", "run", "--read-only", "x"],
            &["cgrant", "exec", "web", "--terminl"],
            &["cgrant", "exec", "web"],
            &["cgrant", "exec", "web", "--"],
            &["cgrant", "exec", "-t", "-t", "web", "ls"],
            &["cgrant", "exec", "-t", "-T", "web", "ls"],
            &["cgrant", "exec", "-u", "a", "--user", "b", "web", "ls"],
            &["cgrant", "exec", "-u", "-x", "web", "ls"],
            &["cgrant", "exec", "-u"],
            &["cgrant", "exce", "web"],
            &["cgrant"],
        ] {
            let words = read(words);
            let whole = Cli::try_parse_from(&words).unwrap_err().to_string();
            assert_eq!(parse(words).unwrap_err().to_string(), whole);
        }
    }
}
