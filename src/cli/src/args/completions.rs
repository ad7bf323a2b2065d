//! The words of `cgrant completions`, and of what shells and packages ask for.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, ValueEnum};

/// A shell that can complete this command's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    Bash,
    Zsh,
    Fish,
}

#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// Which shell
    #[arg(value_enum)]
    pub(crate) shell: Shell,
}

#[derive(Debug, Args)]
pub(crate) struct NamesArgs {
    /// The words behind 'cgrant', up to the one that is being written
    #[arg(last = true, value_name = "WORD")]
    pub(crate) words: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct ManualArgs {
    /// A directory that is there
    pub(crate) directory: PathBuf,
}
