//! The command line of cgproxy: CGManager's own options, and where the sockets are.

use std::path::PathBuf;

use clap::Parser;

/// Where programs look for the interface.
pub const SOCKET: &str = "/sys/fs/cgroup/cgmanager/sock";
/// Where the outer socket's directory is put, for the proxy's to be in its place.
pub const UPPER: &str = "/sys/fs/cgroup/cgmanager.lower/sock";

/// CGManager's interface inside a container, passed on to whoever serves it outside.
#[derive(Debug, Parser)]
#[command(name = "cgproxy", version, after_help = AFTER_HELP)]
pub struct Args {
    /// Where programs in the container find it.
    #[arg(long, value_name = "PATH", default_value = SOCKET)]
    pub socket: PathBuf,
    /// The outer socket. If nobody answers there, but at --socket, the directory of that one is moved here.
    #[arg(long, value_name = "PATH", default_value = UPPER)]
    pub upper: PathBuf,
    /// The uid and gid, in the container, of the process that parses what callers send; it must mean nothing to anybody
    /// [default: those of the user cgrant-socket, otherwise 65534].
    #[arg(long, value_name = "UID", value_parser = clap::value_parser!(u32).range(1..))]
    pub account: Option<u32>,
    /// Go to the background when calls are answered; /run/cgproxy.pid has the number of the process.
    #[arg(long)]
    pub daemon: bool,
    /// Stop (SIGSTOP) when calls are answered.
    #[arg(long)]
    pub sigstop: bool,
    /// Say by the exit status whether anybody answers at either socket, and end.
    #[arg(long)]
    pub check_master: bool,
}

const AFTER_HELP: &str = "\
Where the directory of the host's socket is mounted into a container, and nothing inside expects a proxy, none is
needed: the broker answers plain calls from containers itself.

Exit status: 0 ended in order (or: somebody answers); 1 it could not start or go on (or: nobody answers); 2 the command
line is wrong.

Examples:
  cgproxy --check-master
  cgproxy --daemon
  cgproxy --upper /run/host/cgmanager/sock";

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_manual_page_has_every_option() {
        let page = include_str!("../../../docs/man/cgproxy.8").replace('\\', "");
        for argument in Args::command().get_arguments() {
            let option = format!("--{}", argument.get_long().unwrap());
            let starts = [format!("fB{option}fR"), format!(".B {option}")];
            assert!(page.lines().any(|line| starts.iter().any(|start| line.starts_with(start))), "{option}");
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Args::command().debug_assert();
        let args = Args::try_parse_from(["cgproxy", "--daemon", "--sigstop"]).unwrap();
        assert!(args.daemon && args.sigstop && !args.check_master);
        assert!(Args::try_parse_from(["cgproxy", "--account", "0"]).is_err(), "what parses is not root");
    }
}
