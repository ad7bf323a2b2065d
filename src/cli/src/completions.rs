//! `cgrant completions`: what makes shells complete this command's words, and the names that they ask for.
//!
//! Verbs, options and their values stand in a script, which is made of the definition of the command line. Which containers,
//! images and grants there are changes: the script asks `cgrant names` with the words that were written so far. What that
//! prints needs no quoting in any shell, as nothing else is printed.

use std::ffi::OsString;

use cgrant_container::SessionError;
use cgrant_proto::ListGrants;
use clap::{Arg, Command, CommandFactory};
use clap_complete::aot::{self, generate};

use crate::{
    Client,
    args::{Cli, Shell},
    error::Failure,
    output, storage,
};

const NAME: &str = "cgrant";
const BASH: &str = include_str!("completions/cgrant.bash");
const ZSH: &str = include_str!("completions/cgrant.zsh");
const FISH: &str = include_str!("completions/cgrant.fish");
/// How the body of the function begins that zsh calls.
const ZSH_BEGINS: &str = "_cgrant() {\n";
/// The words up to the cursor, before that function takes verbs away from them.
const ZSH_WORDS: &str = "    local -a cgrant_words=(\"${(@)words[1,CURRENT]}\")\n";

/// What a word of the command line names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Containers,
    Images,
    Grants,
}

/// The command with what people are shown of it.
pub(crate) fn shown() -> Command {
    let all = Cli::command();
    let verbs = all.get_subcommands().filter(|verb| !verb.is_hide_set()).cloned();
    let mut shown = Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .args(all.get_arguments().cloned())
        .subcommands(verbs.collect::<Vec<_>>());
    if let Some(about) = all.get_about() {
        shown = shown.about(about.clone());
    }
    if let Some(help) = all.get_after_long_help() {
        shown = shown.after_long_help(help.clone());
    }
    shown
}

/// Prints the script of a shell.
pub(crate) fn print(shell: Shell) -> Result<(), Failure> {
    output::write(&script(shell))
}

fn script(shell: Shell) -> Vec<u8> {
    let mut command = shown();
    let mut generated = Vec::new();
    match shell {
        Shell::Bash => generate(aot::Bash, &mut command, NAME, &mut generated),
        Shell::Zsh => generate(aot::Zsh, &mut command, NAME, &mut generated),
        Shell::Fish => generate(aot::Fish, &mut command, NAME, &mut generated),
    }
    match shell {
        Shell::Bash => [generated, BASH.into()].concat(),
        Shell::Fish => [generated, FISH.into()].concat(),
        Shell::Zsh => zsh(&String::from_utf8_lossy(&generated)).into(),
    }
}

/// Has zsh ask for names wherever it would offer files for want of anything better.
fn zsh(generated: &str) -> String {
    let asking = generated.replace(":_default", ":_cgrant_names");
    asking.replacen(ZSH_BEGINS, &format!("{ZSH_BEGINS}{ZSH_WORDS}"), 1).replacen(
        "\n_cgrant() {",
        &format!("\n{ZSH}_cgrant() {{"),
        1,
    )
}

/// Prints the names that can stand where the last of these words does, one a line. Where there are none, or they can't be
/// known, the shell goes on without them.
pub(crate) fn names(client: &Client, words: &[OsString]) -> Result<(), Failure> {
    let Some((last, before)) = words.split_last() else { return Ok(()) };
    let (Some(last), Some(kind)) = (last.to_str(), kind(before)) else { return Ok(()) };
    let names = all(client, kind).unwrap_or_default();
    let fitting = names.iter().filter(|name| !last.starts_with('-') && name.starts_with(last));
    let lines: String = fitting.filter(|name| is_plain(name)).flat_map(|name| [name, "\n"]).collect();
    output::write(lines.as_bytes())
}

/// Nothing that a shell would take for anything but text.
fn is_plain(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._:/+-".contains(&byte);
    name.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric()) && name.bytes().all(plain)
}

fn all(client: &Client, kind: Kind) -> Result<Vec<String>, Failure> {
    if kind == Kind::Grants {
        let session = client.connect("list the grants")?;
        let list = || session.call(session.manager()?.list_grants(&ListGrants::new()));
        let grants = list().or_else(|_: SessionError| Ok::<_, Failure>(Vec::new()))?;
        return Ok(grants.into_iter().map(|(_, name, _)| name).collect());
    }
    // Looking makes nothing.
    if !storage::path()?.is_dir() {
        return Ok(Vec::new());
    }
    let store = storage::store()?;
    let failed = |error: cgrant_image::store::StoreError| Failure::work("list names", error.into());
    match kind {
        Kind::Images => Ok(store.aliases().map_err(failed)?.into_keys().collect()),
        _ => store.containers().map_err(failed),
    }
}

/// What the word behind `before` names.
fn kind(before: &[OsString]) -> Option<Kind> {
    let mut root = shown();
    root.build();
    let mut command = &root;
    let mut path = Vec::new();
    let mut position = 0;
    let mut words = before.iter();
    while let Some(word) = words.next() {
        let word = word.to_str()?;
        if word == "--" {
            return None;
        }
        if word.len() > 1 && word.starts_with('-') {
            if takes_next(command, word) {
                // That one's value is being written, if there is no next word.
                words.next()?;
            }
        } else if let Some(verb) = command.find_subcommand(word).filter(|_| position == 0) {
            command = verb;
            path.push(verb.get_name());
        } else {
            position += 1;
        }
    }
    let repeated = command.get_positionals().last().filter(|arg| is_repeated(arg));
    of(&path, command.get_positionals().nth(position).or(repeated)?.get_id().as_str())
}

fn is_repeated(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|numbers| numbers.max_values() > 1)
}

/// Is the word behind this option its value?
fn takes_next(command: &Command, option: &str) -> bool {
    let takes = |arg: &Arg| arg.get_action().takes_values() && !arg.is_require_equals_set();
    let mut arguments = command.get_arguments();
    if let Some(long) = option.strip_prefix("--") {
        return arguments.any(|arg| arg.get_long() == Some(long) && takes(arg));
    }
    // Of `-ab`, the first that takes a value has the rest for it, or if there is none, the next word.
    let mut letters = option.chars().skip(1);
    let taking = |letter| command.get_arguments().any(|arg| arg.get_short() == Some(letter) && takes(arg));
    letters.any(taking) && letters.next().is_none()
}

/// What a positional argument of a verb names. New names name nothing yet.
fn of(path: &[&str], argument: &str) -> Option<Kind> {
    match (path, argument) {
        (["create" | "launch" | "run" | "range", ..] | [_, "create"], "name") => None,
        (["grant" | "link", ..], "name") => Some(Kind::Grants),
        (_, "image" | "images") => Some(Kind::Images),
        ([_], "name" | "names" | "container") | (["copy"], "from") | (["rename"], "old") => {
            Some(Kind::Containers)
        }
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn kind_behind(line: &str) -> Option<Kind> {
        kind(&line.split_whitespace().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn names_are_offered_where_they_can_stand() {
        use Kind::{Containers, Grants, Images};
        for (line, wanted) in [
            ("", None),
            ("start", Some(Containers)),
            ("start web", Some(Containers)),
            ("--format json start", Some(Containers)),
            ("--socket", None),
            ("start --socket /x", Some(Containers)),
            ("stop -t", None),
            ("stop -t 5", Some(Containers)),
            ("stop -t5", Some(Containers)),
            ("stop --timeout=5 web", Some(Containers)),
            ("info", Some(Containers)),
            ("info web", None),
            ("exec", Some(Containers)),
            ("exec -tu", None),
            ("exec -tu ann", Some(Containers)),
            ("exec web", None),
            ("exec web --", None),
            ("push", Some(Containers)),
            ("push web", None),
            ("set web", None),
            ("create", Some(Images)),
            ("launch --link", Some(Images)),
            ("launch debian:trixie", None),
            ("image remove a", Some(Images)),
            ("image export", Some(Images)),
            ("image alias add", Some(Images)),
            ("image alias add a", None),
            ("copy", Some(Containers)),
            ("export", Some(Containers)),
            ("import", None),
            ("copy web", None),
            ("rename", Some(Containers)),
            ("grant show", Some(Grants)),
            ("link list", Some(Grants)),
            ("grant create", None),
            ("run", None),
            ("nonsense", None),
        ] {
            assert_eq!(kind_behind(line), wanted, "{line:?}");
        }
    }

    #[test]
    fn only_plain_names_reach_a_shell() {
        for good in ["web", "debian:trixie", "my_web-1", "a/b+c.d"] {
            assert!(is_plain(good), "{good}");
        }
        for bad in ["", "-x", "$(x)", "a b", "a;b", "`x`", "ä", "a\n"] {
            assert!(!is_plain(bad), "{bad}");
        }
    }

    #[test]
    fn scripts_ask_for_names_and_show_no_hidden_verb() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(script(shell)).unwrap();
            assert!(script.contains("names --") && script.contains("launch"), "{shell:?}");
            assert!(!script.contains("manual"), "{shell:?} shows what is hidden");
        }
        let zsh = String::from_utf8(script(Shell::Zsh)).unwrap();
        assert!(zsh.contains(&format!("{ZSH_BEGINS}{ZSH_WORDS}")) && zsh.contains("\n_cgrant_names() {"));
        assert!(zsh.starts_with("#compdef cgrant\n") && !zsh.contains(":_default"));
    }
}
