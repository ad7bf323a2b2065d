//! The command `cgrant`: a thin client of the broker and of the container engine, without any privilege.
//!
//! It parses, asks, prints. What may be done is decided by the broker; what a container is, by the crate
//! cgrant-container.

mod agent;
mod args;
mod command;
mod completions;
mod error;
mod exit;
mod legacy;
mod man;
mod output;
mod progress;
mod storage;
mod value;

use std::{
    env,
    ffi::{OsStr, OsString},
    io::{self, IsTerminal, Write},
    os::unix::ffi::OsStrExt,
    path::PathBuf,
    process::ExitCode,
};

use agent::TerminalAgent;
use args::{Cli, Command, Global};
use cgrant_container::Session;
use cgrant_proto::{Agent, Endpoint, names::SOCKET_VARIABLE};
use clap::error::ErrorKind;
use error::{Doing, Failure};

/// The whole program.
pub fn main() -> ExitCode {
    let words: Vec<OsString> = env::args_os().collect();
    if legacy::cgm::is_called(words.first()) {
        return ExitCode::from(legacy::cgm::run(words.get(1..).unwrap_or_default()));
    }
    let cli = match args::parse(words) {
        Ok(cli) => cli,
        Err(error) => return ExitCode::from(show_usage(&error)),
    };
    let code = carry_out(cli).unwrap_or_else(|failure| {
        if failure.is_broken_pipe() {
            return exit::DONE;
        }
        // Standard error may be closed; the exit code still says it.
        let _ = writeln!(io::stderr(), "{}", failure.line());
        failure.code()
    });
    ExitCode::from(code)
}

/// Help and version go to standard output and are no error; everything else about usage is, and is one line.
fn show_usage(error: &clap::Error) -> u8 {
    use ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    // A closed pipe is no reason to fail: whoever closed it has read enough.
    let _ = match error.kind() {
        DisplayHelp | DisplayVersion | DisplayHelpOnMissingArgumentOrSubcommand => error.print(),
        _ => writeln!(io::stderr(), "{}", usage_line(&error.render().to_string())),
    };
    match error.kind() {
        DisplayHelp | DisplayVersion => exit::DONE,
        _ => exit::USAGE,
    }
}

/// What is wrong and what may be meant, without the usage that follows in a paragraph of its own.
fn usage_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let telling =
        lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"));
    let telling: Vec<&str> = telling.map(|line| line.trim_start_matches("error: ")).collect();
    format!("cgrant: {}; --help shows the usage", telling.join(" "))
}

fn carry_out(cli: Cli) -> Result<u8, Failure> {
    let Cli { global: Global { socket, format, no_ask }, command } = cli;
    let endpoint = endpoint(socket)?;
    // Who is not at the terminal can't be asked there, and must not have others' windows ask.
    let asks = !no_ask && io::stdin().is_terminal();
    let client = Client { endpoint, format, asks };
    match command {
        Command::Container(command) => command::container::run(&client, command),
        Command::Grant(command) => command::grant::run(&client, command),
        Command::Link(command) => command::link::run(&client, command),
        Command::Cgroup(command) => command::cgroup::run(&client, command),
        Command::Image(command) => command::image::run(&client, command),
        Command::Range(command) => command::account::range(&client, command),
        Command::Departed(command) => command::departed::run(&client, command),
        Command::Disk(command) => command::disk::run(&client, command),
        Command::Usage(args) => command::account::usage(&client, &args),
        Command::Explain(args) => command::explain::run(&client, &args),
        Command::Policy(command) => command::policy::run(&client, command),
        Command::Run(args) => command::run::run(&client, *args),
        Command::Doctor => command::doctor::run(&client),
        Command::Autostart(command) => command::autostart::run(&client, &command),
        Command::Completions(args) => completions::print(args.shell).map(|()| exit::DONE),
        Command::Names(args) => completions::names(&client, &args.words).map(|()| exit::DONE),
        Command::Manual(args) => man::write(&args.directory).map(|()| exit::DONE),
        Command::Events { names } => command::events::run(&client, &names),
    }
}

/// What every verb needs: where the broker is, how results are written, and whether somebody may be asked for a password.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) endpoint: Endpoint,
    pub(crate) format: args::Format,
    pub(crate) asks: bool,
}

impl Client {
    /// Connects, which is the first thing that can fail of whatever is `doing`.
    pub(crate) fn connect(&self, doing: &str) -> Result<Session, Failure> {
        let agent = || Box::new(TerminalAgent::default()) as Box<dyn Agent>;
        Session::connect_asking(&self.endpoint, self.asks.then(agent)).doing(|| doing.to_owned())
    }
}

/// The option, else the variable, else where a broker usually is. Paths may be any bytes.
fn endpoint(option: Option<OsString>) -> Result<Endpoint, Failure> {
    let variable = env::var_os(SOCKET_VARIABLE).filter(|value| !value.is_empty());
    let Some(given) = option.or(variable) else {
        return Endpoint::find().map_err(|_| Failure::Endpoint { given: OsString::new() });
    };
    if let Some(text) = given.to_str() {
        return Endpoint::parse(text).map_err(|_| Failure::Endpoint { given });
    }
    let path = given.as_bytes().strip_prefix(b"unix:path=").unwrap_or(given.as_bytes());
    match path.contains(&b'/') {
        true => Ok(Endpoint::Socket(PathBuf::from(OsStr::from_bytes(path)))),
        false => Err(Failure::Endpoint { given }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use clap::Parser;

    use super::*;

    #[test]
    fn a_usage_error_is_one_line() {
        let line = |words: &[&str]| {
            let words = std::iter::once("cgrant").chain(words.iter().copied());
            usage_line(&Cli::try_parse_from(words).unwrap_err().render().to_string())
        };
        let missing =
            "cgrant: the following required arguments were not provided: <NAME>; --help shows the usage";
        assert_eq!(line(&["grant", "show"]), missing);
        assert!(line(&["grnt"]).contains("unrecognized subcommand 'grnt'"));
        assert!(line(&["grant", "attach", "x", "0"]).contains("<PID>"));
    }

    #[test]
    fn an_option_names_the_broker() {
        assert_eq!(endpoint(Some("/x/bus".into())).unwrap(), Endpoint::Socket("/x/bus".into()));
        assert_eq!(endpoint(Some("system".into())).unwrap(), Endpoint::SystemBus);
        assert!(matches!(endpoint(Some("nonsense".into())), Err(Failure::Endpoint { .. })));
    }

    #[test]
    fn a_sockets_path_may_be_any_bytes() {
        let path = OsString::from_vec(b"/run/\xff".to_vec());
        assert_eq!(endpoint(Some(path.clone())).unwrap(), Endpoint::Socket(path.into()));
        assert!(endpoint(Some(OsString::from_vec(b"\xff".to_vec()))).is_err());
    }
}
