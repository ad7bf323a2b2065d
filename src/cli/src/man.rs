//! `cgrant manual`: a manual page for the command and one for each verb, made of the definition of the command line, and
//! those of the files that configure the broker, made of the files that explain each key.
//!
//! Names, synopsis and options are rendered by clap_mangen. What stands behind the options in the help is laid out here: its
//! lines are as they are meant to be seen.

use std::{fs, io, path::Path};

use clap::Command;
use clap_mangen::{
    Man,
    roff::{Roff, bold, italic, roman},
};

use crate::{completions, error::Failure};

const SECTION: &str = "1";
const MANUAL: &str = "cgrant";
/// What is true of every verb.
const ENVIRONMENT: [(&str, &str); 2] = [
    ("CGRANT_SOCKET", "Where the broker is, as with --socket."),
    (
        "XDG_DATA_HOME",
        "Images and containers are in the directory cgrant below it; otherwise below ~/.local/share.",
    ),
];
/// Pages about the rest of it.
const OTHERS: [&str; 4] = ["cgm(1)", "cgrantd(8)", "cgrantd.toml(5)", "cgrant-policy(5)"];
/// Files with a comment for each key: name, what they are, where they lie, and the text.
const COMMENTED: [(&str, &str, &str, &str); 2] = [
    (
        "cgrantd.toml",
        "what is so on the whole host for cgrantd",
        "/etc/cgrant/cgrantd.toml",
        include_str!("../../../examples/cgrantd.toml"),
    ),
    (
        "cgrant-policy",
        "who may have how much of what cgrantd grants",
        "/etc/cgrant/policy.d/*.toml",
        include_str!("../../../policy/default.toml"),
    ),
];
const FILE_SECTION: &str = "5";

/// Writes all pages into a directory.
pub(crate) fn write(directory: &Path) -> Result<(), Failure> {
    let mut command = completions::shown();
    command.build();
    let write = || -> io::Result<()> {
        write_one(&command, None, directory)?;
        COMMENTED.iter().try_for_each(|(name, about, path, text)| {
            let page = of_file(name, about, path, text).render();
            fs::write(directory.join(format!("{name}.{FILE_SECTION}")), page)
        })
    };
    write().map_err(|source| Failure::File {
        doing: "write manual pages into",
        path: directory.into(),
        source,
    })
}

/// The page of a command and those of its verbs.
fn write_one(command: &Command, parent: Option<&str>, directory: &Path) -> io::Result<()> {
    let name = page_name(command, parent);
    fs::write(directory.join(format!("{name}.{SECTION}")), page(command, &name, parent)?)?;
    command.get_subcommands().try_for_each(|verb| write_one(verb, Some(&name), directory))
}

fn page_name(command: &Command, parent: Option<&str>) -> String {
    match parent {
        Some(parent) => format!("{parent}-{}", command.get_name()),
        None => command.get_name().to_owned(),
    }
}

fn page(command: &Command, name: &str, parent: Option<&str>) -> io::Result<Vec<u8>> {
    let source = format!("cgrant {}", env!("CARGO_PKG_VERSION"));
    // What follows the options in the help has its own layout below.
    let plain = command.clone().after_help("").after_long_help("");
    let plain = plain.subcommand_value_name("verb").subcommand_help_heading("VERBS");
    // Without a date two builds of one version are alike; an empty one would be left out.
    let man = Man::new(plain).title(name).section(SECTION).date(" ").source(source).manual(MANUAL);
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut page)?;
    }
    let mut rest = Roff::new();
    let help = command.get_after_long_help().or_else(|| command.get_after_help());
    behind_options(&mut rest, &help.map(ToString::to_string).unwrap_or_default());
    if parent.is_none() {
        environment(&mut rest);
    } else {
        rest.control("SH", ["EXIT STATUS"]).text([roman("See "), bold("cgrant"), roman("(1).")]);
    }
    see_also(&mut rest, command, name, parent);
    rest.to_writer(&mut page)?;
    Ok(page)
}

/// Paragraphs are filled; what is indented below a line of its own that ends with a colon is shown as it is.
fn behind_options(page: &mut Roff, help: &str) {
    let mut lines = help.lines().peekable();
    let mut notes = false;
    while let Some(line) = lines.next() {
        let heading = match line {
            "Example:" | "Examples:" => Some("EXAMPLES"),
            "Exit codes:" => Some("EXIT STATUS"),
            _ => None,
        };
        match heading {
            Some(heading) => {
                page.control("SH", [heading]).control("nf", []);
                while let Some(example) = lines.next_if(|line| line.starts_with("  ")) {
                    page.text([roman(example.strip_prefix("  ").unwrap_or(example))]);
                }
                page.control("fi", []);
            }
            None if line.is_empty() => {
                if notes && lines.peek().is_some_and(|next| !next.ends_with(':')) {
                    page.control("PP", []);
                }
            }
            None => {
                if !notes {
                    page.control("SH", ["NOTES"]);
                    notes = true;
                }
                page.text([roman(line)]);
            }
        }
    }
}

fn environment(page: &mut Roff) {
    page.control("SH", ["ENVIRONMENT"]);
    for (name, meaning) in ENVIRONMENT {
        page.control("TP", []).text([bold(name)]).text([roman(meaning)]);
    }
}

fn see_also(page: &mut Roff, command: &Command, name: &str, parent: Option<&str>) {
    let verbs = command.get_subcommands().map(|verb| format!("{name}-{}({SECTION})", verb.get_name()));
    let above = parent.map(|parent| format!("{parent}({SECTION})"));
    let others = OTHERS.into_iter().filter(|_| parent.is_none()).map(str::to_owned);
    let pages: Vec<String> = above.into_iter().chain(verbs).chain(others).collect();
    page.control("SH", ["SEE ALSO"]).text([roman(pages.join(", "))]);
}

/// The page of a file: comments as paragraphs, all else as it stands there.
fn of_file(name: &str, about: &str, path: &str, text: &str) -> Roff {
    let mut page = Roff::new();
    page.control("TH", [name, FILE_SECTION, " ", "cgrant", MANUAL]);
    page.control("SH", ["NAME"]).text([roman(format!("{name} - {about}"))]);
    page.control("SH", ["SYNOPSIS"]).text([italic(path)]);
    page.control("SH", ["DESCRIPTION"]);
    let mut filled = true;
    for line in text.lines() {
        let comment = line.strip_prefix('#').map(|rest| rest.strip_prefix(' ').unwrap_or(rest));
        // What is indented in a comment, or commented out, is an example.
        let prose = comment.filter(|comment| !comment.starts_with("  ") && !is_setting(comment));
        if prose.is_some() != filled {
            filled = prose.is_some();
            if filled {
                page.control("fi", []).control("PP", [])
            } else {
                page.control("PP", []).control("nf", [])
            };
        }
        match prose.or(comment).unwrap_or(line) {
            "" => page.control("PP", []),
            line => page.text([roman(line)]),
        };
    }
    if !filled {
        page.control("fi", []);
    }
    page.control("SH", ["SEE ALSO"]).text([bold("cgrantd"), roman("(8), "), bold("cgrant"), roman("(1)")]);
    page
}

fn is_setting(text: &str) -> bool {
    let key = |text: &str| text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    text.starts_with("[[") || text.split_once(" = ").is_some_and(|(before, _)| key(before))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn pages() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path()).unwrap();
        directory
    }

    fn read(pages: &tempfile::TempDir, name: &str) -> String {
        fs::read_to_string(pages.path().join(name)).unwrap()
    }

    #[test]
    fn every_verb_has_a_page_and_a_hidden_one_has_none() {
        let pages = pages();
        for name in [
            "cgrant.1",
            "cgrant-launch.1",
            "cgrant-grant.1",
            "cgrant-grant-cgroup-create.1",
            "cgrant-policy.5",
            "cgrantd.toml.5",
        ] {
            assert!(read(&pages, name).contains(".SH SYNOPSIS"), "{name}");
        }
        assert!(!pages.path().join("cgrant-manual.1").exists());
        assert!(!pages.path().join("cgrant-help.1").exists());
    }

    #[test]
    fn examples_are_lines_of_their_own() {
        let page = read(&pages(), "cgrant-stop.1");
        let examples = page.split(".SH EXAMPLES\n.nf\n").nth(1).unwrap();
        assert!(
            examples.starts_with("cgrant stop web\ncgrant stop web db \\-\\-timeout 10\n.fi\n"),
            "{page}"
        );
        assert!(page.contains("cgrant(1)"), "{page}");
        let page = read(&pages(), "cgrant.1");
        assert!(page.contains(".SH \"EXIT STATUS\"\n.nf\n0        done"), "{page}");
        assert!(page.contains("cgrant\\-launch(1)") && page.contains("cgrantd(8)"), "{page}");
    }

    #[test]
    fn keys_stand_as_they_are_written_below_what_explains_them() {
        let page = read(&pages(), "cgrant-policy.5");
        assert!(
            page.contains(
                "To make grants that end with a process or with the connection.\n.PP\n.nf\ngrant = "
            )
        );
        let page = read(&pages(), "cgrantd.toml.5");
        assert!(page.contains(".nf\n[[network.bridge]]\nname = \"lan\"\n"), "{page}");
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let failure = write(Path::new("/nonexistent/pages")).unwrap_err();
        assert!(failure.line().contains("/nonexistent/pages"), "{}", failure.line());
    }
}
