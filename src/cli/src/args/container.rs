//! `cgrant launch`, `start`, `exec` …: the verbs of system containers.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use super::{Blocks, Dns, LimitArgs, LinkArgs, PortArgs, TellingArgs, limit, told::ToldArgs};

#[derive(Debug, Subcommand)]
pub(crate) enum ContainerCommand {
    /// Makes a container of an image and starts it
    #[command(after_help = "\
Where no image of the name is there, 'cgrant image build' and 'cgrant image import' make one.

Examples:
  cgrant launch debian:trixie web --memory 512M --link -p 8080:80
  cgrant launch debian:bookworm build --cpus 1.5 --wait")]
    Launch(Box<LaunchArgs>),
    /// Makes a container of an image
    #[command(after_help = "\
Examples:
  cgrant create debian:trixie web --memory 512M --link -p 8080:80
  cgrant start web")]
    Create(Box<NewArgs>),
    /// Starts containers
    #[command(after_help = "\
Examples:
  cgrant start web
  cgrant start web db --wait     returns when both have booted")]
    Start {
        #[command(flatten)]
        containers: Names,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Stops containers in order: as if they were switched off
    #[command(after_help = "\
Examples:
  cgrant stop web
  cgrant stop web db --timeout 10")]
    Stop {
        #[command(flatten)]
        containers: Names,
        #[command(flatten)]
        timeout: TimeoutArgs,
    },
    /// Stops containers in order and starts them again, as they are set by then
    #[command(after_help = "Example:\n  cgrant restart web")]
    Restart {
        #[command(flatten)]
        containers: Names,
        #[command(flatten)]
        timeout: TimeoutArgs,
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Sends containers' first processes a signal, which by default ends them at once
    #[command(after_help = "\
Examples:
  cgrant kill web
  cgrant kill web --signal 1")]
    Kill {
        #[command(flatten)]
        containers: Names,
        /// The signal's number
        #[arg(short, long, default_value_t = 9, value_parser = clap::value_parser!(i32).range(1..=64))]
        signal: i32,
    },
    /// Freezes all processes of containers
    #[command(after_help = "Example:\n  cgrant pause web")]
    Pause(Names),
    /// Lets them go on
    #[command(after_help = "Example:\n  cgrant resume web")]
    Resume(Names),
    /// Deletes containers with all their files
    #[command(after_help = "\
Examples:
  cgrant delete web
  cgrant delete web db --force     stops them first")]
    Delete {
        #[command(flatten)]
        containers: Names,
        /// Stop it first
        #[arg(short, long)]
        force: bool,
    },
    /// Gives a container another name
    #[command(after_help = "\
It must not run. Its files stay as they are, and so do its ids. Its hostname follows if it was made
of the name.

Example:
  cgrant rename web shop")]
    Rename {
        /// The container
        #[arg(value_name = "NAME")]
        old: String,
        /// What it shall be called
        #[arg(value_name = "NEW")]
        new: String,
    },
    /// Makes a container that is as another one
    #[command(after_help = "\
The other one must not run. What it changed of its image's files is copied; the copy has ids, a
machine id and SSH host keys of its own. A fixed address and published ports can be had only once:
they stay with the other one.

Examples:
  cgrant copy web test
  cgrant copy web test --hostname www")]
    Copy {
        /// The container that is copied
        #[arg(value_name = "NAME")]
        from: String,
        /// What the copy shall be called
        #[arg(value_name = "NEW")]
        new: String,
        /// The copy's hostname; otherwise its name
        #[arg(long)]
        hostname: Option<String>,
    },
    /// Writes a container to a file, to be kept or taken to another host
    #[command(after_help = "\
It must not run. The file holds its settings and all its files with their owners as they are inside,
those of its image too; its name says how it is compressed: .tar, .tar.gz, .tar.xz, .tar.zst. It is
there when it is whole. '-' is standard output, as .tar.zst. Prints the file's SHA-256 sum.
Whoever can read the file can read all that is in the container, and its settings.

Examples:
  cgrant export web web.tar.zst
  cgrant export web - | ssh other cgrant import - web")]
    Export(ContainerExport),
    /// Makes a container of a file that 'export' wrote, here or on another host
    #[command(after_help = "\
Its files get ids of this host's. Nobody vouches for such a file: what its settings would have of
this host (mounts, devices, credentials, addresses, published ports, autostart) is left out and told;
--host-settings takes it, for a file of your own. It is the same machine as before, with its machine
id; where that is here already, it gets an identity of its own, as with 'copy'.

Examples:
  cgrant import web.tar.zst web
  ssh other cgrant export web - | cgrant import - web --host-settings")]
    Import(ContainerImport),
    /// Lists your containers
    #[command(after_help = "\
Examples:
  cgrant list
  cgrant list 'web-*' --state running
  cgrant list --tree             with the containers inside of them
  cgrant stop $(cgrant list --quiet --state running)
  cgrant list --format json | jq -r '.[] | select(.state == \"running\").name'")]
    List(ListArgs),
    /// Shows all about a container
    #[command(after_help = "Examples:\n  cgrant info web\n  cgrant info --disk web")]
    Info(InfoArgs),
    /// Runs a command in a container
    #[command(after_help = "\
It gets a terminal of its own where standard input and output are terminals. Its exit status is
that of cgrant. SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2 are passed on.

Examples:
  cgrant exec web -- systemctl --failed
  cgrant exec web --user www-data --env LANG=C -- id
  tar -c site | cgrant exec web -- tar -x -C /var/www")]
    Exec(Box<ExecArgs>),
    /// Opens a login shell in a container
    #[command(after_help = "Examples:\n  cgrant shell web\n  cgrant shell web --user ann")]
    Shell {
        #[command(flatten)]
        container: Name,
        /// As whom: a name that the container knows, or a uid
        #[arg(short, long)]
        user: Option<String>,
    },
    /// Connects to a container's console; ctrl-] ends that
    #[command(after_help = "Example:\n  cgrant console web")]
    Console(Name),
    /// Shows what a container has logged
    #[command(after_help = "\
Its journal: while it runs, its own 'journalctl' shows it; when it has stopped, that of this machine,
if the container keeps its journal. Otherwise, and with --console, what was printed on its console:
the newest 64 to 128 KiB are there, those of an earlier start too.

Examples:
  cgrant logs web
  cgrant logs web -f -n 20
  cgrant logs web --since '10 min ago'
  cgrant logs web --console | tail")]
    Logs(LogsArgs),
    /// Waits until containers have booted, or have stopped
    #[command(after_help = "\
Ends with 1 if a container stops before it has booted, or if the time is over.

Examples:
  cgrant wait web
  cgrant wait web db --stopped
  cgrant wait web --timeout 30")]
    Wait {
        #[command(flatten)]
        containers: Names,
        /// Until it has stopped
        #[arg(long)]
        stopped: bool,
        /// Wait so long and no longer
        #[arg(short, long, value_name = "SECONDS")]
        timeout: Option<u32>,
    },
    /// Copies a file into a running container, with its mode
    #[command(after_help = "\
Whole directories: tar -c DIR | cgrant exec NAME -- tar -x -C PATH

Examples:
  cgrant push web ./site.conf /etc/nginx/conf.d/
  cgrant push web notes /home/ann/notes --user ann")]
    Push(TransferArgs),
    /// Copies a file out of a running container
    #[command(after_help = "\
Whole directories: cgrant exec NAME -- tar -c -C PATH . | tar -x

Example:
  cgrant pull web /var/log/dpkg.log .")]
    Pull(TransferArgs),
    /// Changes settings of a container; limits at once
    #[command(after_help = "\
Keys: all limits (see 'cgrant grant set --help'), hostname, dns, nesting (true, false), autostart (true,
false: with the machine). What is no limit holds from the next start on.

Examples:
  cgrant set web memory.max=1G cpu.max=150%
  cgrant set web hostname=www
  cgrant set web autostart=true")]
    Set {
        #[command(flatten)]
        container: Name,
        /// Settings
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = limit)]
        settings: Vec<(String, String)>,
    },
    /// Shows settings of a container; without keys, all
    #[command(after_help = "Examples:\n  cgrant get web\n  cgrant get web memory.max")]
    Get {
        #[command(flatten)]
        container: Name,
        /// Which
        #[arg(value_name = "KEY")]
        keys: Vec<String>,
    },
    /// Shows what running containers use, over and over on a terminal
    #[command(after_help = "\
On a terminal until q or ^C is pressed. CPU is what was used since the last look, in per cent of one
CPU, and with --once all that was ever used.

Examples:
  cgrant top
  cgrant top web db --delay 5
  cgrant top --once --format json")]
    Top(TopArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// Only those with these names, in which '*' stands for anything
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Only those in this state
    #[arg(short, long)]
    pub(crate) state: Option<ListState>,
    /// Only those of this image: a name or id of 'cgrant image list'
    #[arg(short, long)]
    pub(crate) image: Option<String>,
    /// Names alone, one a line
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Also those inside of them that run, at any depth
    #[arg(short, long, conflicts_with = "quiet")]
    pub(crate) tree: bool,
}

/// Where a container is in its life, as people see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ListState {
    /// Its init has not said that it is ready
    Starting,
    /// Its init said that it is ready
    Running,
    /// It was told to end
    Stopping,
    /// It has ended, or was never started
    Stopped,
    /// Its processes are frozen
    Paused,
}

#[derive(Debug, Clone, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    pub(crate) container: Name,
    /// Go on with what is logged from now on
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the newest lines
    #[arg(short = 'n', long, value_name = "NUMBER")]
    pub(crate) lines: Option<u32>,
    /// Only what is not older: a time as journalctl takes it
    #[arg(long, value_name = "TIME", conflicts_with = "console")]
    pub(crate) since: Option<String>,
    /// What was printed on the console
    #[arg(short, long)]
    pub(crate) console: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TopArgs {
    /// Only these
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,
    /// Seconds between two looks
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) delay: u16,
    /// Once, as where standard output is no terminal
    #[arg(short, long)]
    pub(crate) once: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ContainerExport {
    /// The container
    #[arg(value_name = "NAME")]
    pub(crate) container: String,
    /// Where to; '-' for standard output
    pub(crate) file: PathBuf,
    #[command(flatten)]
    pub(crate) telling: TellingArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ContainerImport {
    /// The file; '-' for standard input
    pub(crate) file: PathBuf,
    /// What the container shall be called
    #[arg(value_name = "NEW")]
    pub(crate) new: String,
    /// Take what the settings have of the host too
    #[arg(long)]
    pub(crate) host_settings: bool,
    #[command(flatten)]
    pub(crate) telling: TellingArgs,
}

/// A directory of the caller's in a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mount {
    /// Where it is.
    pub(crate) source: String,
    /// Where it is seen.
    pub(crate) target: String,
    #[serde(default)]
    pub(crate) read_only: bool,
    /// What the caller's own uid and gid are inside.
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

fn mount(text: &str) -> Result<Mount, String> {
    let form = || "a mount is written DIR:PATH, with ',ro' or ',as=UID' behind it".to_owned();
    let mut parts = text.split(',');
    let (source, target) = parts.next().and_then(|paths| paths.split_once(':')).ok_or_else(form)?;
    if source.is_empty() || target.is_empty() {
        return Err(form());
    }
    let mut mount =
        Mount { source: source.to_owned(), target: target.to_owned(), read_only: false, uid: 0, gid: 0 };
    for part in parts {
        match part.split_once('=') {
            None if part == "ro" => mount.read_only = true,
            Some(("as", ids)) => {
                let (uid, gid) = ids.split_once(':').unwrap_or((ids, ids));
                let id = |text: &str| text.parse::<u32>().map_err(|_| form());
                (mount.uid, mount.gid) = (id(uid)?, id(gid)?);
            }
            _ => return Err(form()),
        }
    }
    Ok(mount)
}

#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// What its files take on their disk too: blocks and files, looked at one by one
    #[arg(long)]
    pub(crate) disk: bool,
    #[command(flatten)]
    pub(crate) container: Name,
}

/// One container.
#[derive(Debug, Clone, Args)]
pub(crate) struct Name {
    /// The container's name
    #[arg(value_name = "NAME")]
    pub(crate) name: String,
}

/// Some containers.
#[derive(Debug, Args)]
pub(crate) struct Names {
    /// The containers' names
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct TransferArgs {
    /// The container's name
    #[arg(value_name = "NAME")]
    pub(crate) container: String,
    /// The file
    pub(crate) from: OsString,
    /// Where to: a file, or a directory that is there
    pub(crate) to: OsString,
    /// As which user of the container; otherwise as root
    #[arg(short, long)]
    pub(crate) user: Option<String>,
}

#[derive(Debug, Default, Args)]
pub(crate) struct WaitArgs {
    /// Return when it has booted; otherwise when its init runs
    #[arg(short, long)]
    pub(crate) wait: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TimeoutArgs {
    /// What has not ended in order after so many seconds is killed
    #[arg(short, long, value_name = "SECONDS", default_value_t = 60)]
    pub(crate) timeout: u32,
}

#[derive(Debug, Args)]
pub(crate) struct LaunchArgs {
    #[command(flatten)]
    pub(crate) new: NewArgs,
    #[command(flatten)]
    pub(crate) wait: WaitArgs,
}

#[derive(Debug, Args)]
pub(crate) struct NewArgs {
    /// The image: a name or id of 'cgrant image list'
    pub(crate) image: String,
    /// The container's name: lower-case letters and digits, and after the first '-', '_' and capitals
    pub(crate) name: String,
    /// Its hostname; otherwise its name
    #[arg(long)]
    pub(crate) hostname: Option<String>,
    /// Give it files of its own, copied from the image's, instead of laying what it changes over these
    #[arg(long)]
    pub(crate) copy: bool,
    /// Let its root make containers in it, with so many blocks of 65536 ids for them; otherwise 16, or what there are. Nothing of
    /// proc and sysfs is hidden then
    #[arg(long, value_name = "BLOCKS", num_args = 0..=1, require_equals = true, default_missing_value = "auto")]
    pub(crate) nesting: Option<Blocks>,
    /// Who answers for names, if it has a link: its servers ('link', the default), these, or whom its own resolv.conf names ('none')
    #[arg(long, value_name = "SERVERS", default_value = "link")]
    pub(crate) dns: Dns,
    /// A device of the host's that it shall see, such as fuse or net/tun; may be given several times
    #[arg(long, value_name = "NAME")]
    pub(crate) device: Vec<String>,
    /// A directory of yours that it shall see: read-only with 'ro'; as that of its root, or of another uid with 'as'
    #[arg(long, value_name = "DIR:PATH[,ro][,as=UID[:GID]]", value_parser = mount)]
    pub(crate) mount: Vec<Mount>,
    #[command(flatten)]
    pub(crate) told: ToldArgs,
    /// Run this in place of its init, with arguments; may be given several times
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub(crate) init: Vec<String>,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// Give it a network: an interface on this bridge, by default on the first of 'cgrant link bridges'
    #[arg(
        long,
        value_name = "BRIDGE",
        help_heading = "Link",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = ""
    )]
    pub(crate) link: Option<String>,
    #[command(flatten)]
    pub(crate) ports: PortArgs,
    #[command(flatten)]
    pub(crate) properties: LinkArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    pub(crate) container: Name,
    /// As whom: a name that the container knows, or a uid; otherwise as root
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Its working directory, seen from inside; otherwise the user's home
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<PathBuf>,
    /// A variable of its environment: with a value, or taken over from yours
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<OsString>,
    /// Give it a terminal of its own, whatever the standard streams are
    #[arg(short = 't', long)]
    pub(crate) terminal: bool,
    /// Give it the standard streams, even if they are a terminal
    #[arg(short = 'T', long, conflicts_with = "terminal")]
    pub(crate) no_terminal: bool,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_written_in_one_word() {
        let plain = mount("src:/srv").unwrap();
        assert_eq!((plain.source.as_str(), plain.target.as_str()), ("src", "/srv"));
        assert_eq!((plain.read_only, plain.uid, plain.gid), (false, 0, 0));
        let full = mount("/a b:/srv/x,ro,as=33:34").unwrap();
        assert_eq!((full.read_only, full.uid, full.gid), (true, 33, 34));
        assert_eq!(mount("a:/b,as=33").unwrap().gid, 33);
        for bad in ["", "a", ":", "a:", ":/b", "a:/b,rw", "a:/b,as=", "a:/b,as=x", "a:/b,as=1:"] {
            assert!(mount(bad).is_err(), "{bad}");
        }
    }
}
