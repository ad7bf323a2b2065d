//! The command line, read. The command that programs use many times a second is read by itself first: to build the tree of commands
//! takes longer than all that it then does. What is not written plainly is for the tree, which also says what is wrong.

use std::ffi::{OsStr, OsString};

use clap::{Error, Parser};

use super::{Cli, Command, ContainerCommand, ExecArgs, Format, container::Name};

/// Reads the command line, the program's name first.
///
/// # Errors
/// Those of clap, with what is to be told; help and version are among them.
pub(crate) fn parse(words: Vec<OsString>) -> Result<Cli, Error> {
    match exec(&words) {
        Some(cli) => Ok(cli),
        None => Cli::try_parse_from(words),
    }
}

/// `cgrant exec [--option VALUE]… NAME [--] COMMAND…`, if that is all there is: options before the name, each in words of its own.
fn exec(words: &[OsString]) -> Option<Cli> {
    let mut words = words.iter().skip(1).peekable();
    words.next_if(|word| *word == "exec")?;
    let mut socket = None;
    let mut args = ExecArgs {
        container: Name { name: String::new() },
        user: None,
        workdir: None,
        env: Vec::new(),
        terminal: false,
        no_terminal: false,
        command: Vec::new(),
    };
    while let Some(option) = words.next_if(|word| !is_plain(word)) {
        match option.to_str()? {
            "-t" | "--terminal" if !args.terminal => args.terminal = true,
            "-T" | "--no-terminal" if !args.no_terminal => args.no_terminal = true,
            option => {
                let value = words.next().filter(|word| is_plain(word))?;
                match option {
                    "--socket" => once(&mut socket, value.clone())?,
                    "-u" | "--user" => once(&mut args.user, value.to_str()?.to_owned())?,
                    "-w" | "--workdir" => once(&mut args.workdir, value.into())?,
                    "-e" | "--env" => args.env.push(value.clone()),
                    _ => return None,
                }
            }
        }
    }
    args.container.name = words.next()?.to_str()?.to_owned();
    if words.next_if(|word| *word == "--").is_none() && !words.peek().is_some_and(|word| is_plain(word)) {
        return None;
    }
    args.command = words.cloned().collect();
    if args.command.is_empty() || args.terminal && args.no_terminal {
        return None;
    }
    let command = Command::Container(ContainerCommand::Exec(Box::new(args)));
    Some(Cli { socket, format: Format::Table, command })
}

/// Neither an option nor nothing.
fn is_plain(word: &OsStr) -> bool {
    !matches!(word.as_encoded_bytes().first(), None | Some(b'-'))
}

/// What is given twice is for the tree of commands to refuse.
fn once<T>(place: &mut Option<T>, value: T) -> Option<()> {
    place.replace(value).is_none().then_some(())
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
        ] {
            let words = read(words);
            let whole = Cli::try_parse_from(&words).unwrap();
            assert_eq!(format!("{:?}", parse(words).unwrap()), format!("{whole:?}"));
        }
    }

    #[test]
    fn the_short_way_is_taken() {
        let words = ["cgrant", "exec", "--socket", "/x/bus", "web", "--", "ls", "-l"];
        assert!(exec(&read(&words)).is_some());
        assert!(exec(&read(&["cgrant", "exec", "-t", "-u", "ann", "web", "ls"])).is_some());
    }

    #[test]
    fn what_is_wrong_is_told_as_ever() {
        for words in [
            &["cgrant", "exec"] as &[&str],
            &["cgrant", "exec", "--help"],
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
