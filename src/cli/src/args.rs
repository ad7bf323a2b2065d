//! What can be written on the command line, and the help that goes with it. Parsing only.
//!
//! What names files and commands may be any bytes; what goes into D-Bus messages must be UTF-8.

mod autostart;
mod blocks;
mod cgroup;
mod completions;
mod container;
mod dns;
mod image;
mod quick;
mod told;

use std::{ffi::OsString, net::IpAddr, path::PathBuf};

use cgrant_proto::Port;
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::exit;
pub(crate) use autostart::AutostartCommand;
pub(crate) use blocks::Blocks;
pub(crate) use cgroup::{Controllers, Key, LegacyCommand, Place, PlaceOrOwn};
pub(crate) use completions::{CompletionsArgs, ManualArgs, NamesArgs, Shell};
pub(crate) use container::{
    ContainerCommand, ContainerExport, ContainerImport, ExecArgs, LaunchArgs, ListArgs, ListState, LogsArgs,
    Mount, NewArgs, TopArgs, TransferArgs,
};
pub(crate) use dns::Dns;
pub(crate) use image::{AliasCommand, BuildArgs, ExportArgs, ImageCommand, ImportArgs, TellingArgs};
pub(crate) use quick::parse;
pub(crate) use told::{Content, Credential};

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Columns for people.
    Table,
    /// One JSON document a result, one a line for events.
    Json,
}

/// Grants of cgroups and ids, and commands in containers of their own, without root.
#[derive(Debug, Parser)]
#[command(name = "cgrant", version, after_help = EXAMPLES,
    after_long_help = format!("{EXAMPLES}\n\n{}", exit::TABLE),
    disable_help_subcommand = true, arg_required_else_help = true, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What can be said to each verb.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Where the broker is: its socket's path, "system" for the system bus, "bus:ADDRESS" for another bus
    ///
    /// Otherwise $CGRANT_SOCKET says it; otherwise it is /run/cgrant/public/bus if that is there, and the system
    /// bus if not.
    #[arg(long, global = true, value_name = "PATH", help_heading = "Global options")]
    pub(crate) socket: Option<OsString>,

    /// How results are written
    #[arg(long, global = true, value_enum, default_value_t = Format::Table, help_heading = "Global options")]
    pub(crate) format: Format,

    /// Let nobody be asked for a password
    ///
    /// From a terminal, what policy leaves to polkit is asked about: by the agent of the session, or by pkttyagent at the
    /// terminal. Where standard input is no terminal nobody is asked.
    #[arg(long, global = true, help_heading = "Global options")]
    pub(crate) no_ask: bool,
}

const EXAMPLES: &str = "\
Examples:
  cgrant image build debian:trixie                   an image of Debian, made here
  cgrant launch debian:trixie web --memory 512M      a whole system in a container
  cgrant doctor                                      what this machine can and cannot do
  cgrant run --memory 512M -- make -j2               a command in a container, under a limit
  cgrant run --link -p 8080:80 -- ./httpd            with a network, and a page for others to see
  cgrant grant create build --memory 2G --pids 500   a grant that stays, to be used by name";

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Container(ContainerCommand),
    /// Makes, shows, changes and releases grants
    #[command(subcommand)]
    Grant(GrantCommand),
    /// Adds, removes and lists the links of grants, publishes ports to them
    #[command(subcommand)]
    Link(LinkCommand),
    /// Makes, shows, changes and removes cgroups by CGManager's interface, with the names and values of cgroup v1
    #[command(subcommand, after_help = ABOUT_CGROUP)]
    Cgroup(LegacyCommand),
    /// Builds, imports, exports, lists and removes images of system containers
    #[command(subcommand)]
    Image(ImageCommand),
    /// Shows and unties the ranges of ids that belong to you
    #[command(subcommand)]
    Range(RangeCommand),
    /// Shows ids of users who are gone, and removes the files of their images and containers (root only)
    #[command(subcommand)]
    Departed(DepartedCommand),
    /// Measures what files of images and containers take, for quotas and usage (root only)
    #[command(subcommand)]
    Disk(DiskCommand),
    /// Shows what you use beside what policy lets you use
    #[command(after_help = "\
Examples:
  cgrant usage
  cgrant usage --disk
  cgrant usage --account 1000 --format json     as root: somebody else's
  cgrant usage --all                            as root: everybody's")]
    Usage(UsageArgs),
    /// Says whether a request would be allowed, by which rule, and how far the quotas are, without making it
    #[command(after_help = "\
Ends with 0 if it would be allowed, with 1 if not.

Examples:
  cgrant explain create-grant --ids 65536 --limit memory.max=8G --persistent
  cgrant explain create-grant --link --publish 80:8080
  cgrant explain set-limits --grant build --limit pids.max=max
  cgrant explain create-grant --account 1000 --application unit:ci.service     as root: for somebody else")]
    Explain(Box<ExplainArgs>),
    /// Shows the rules of policy, and tries requests on rules that are not in force yet
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Runs a command in a container: a grant of its own, all namespaces, gone when it ends
    Run(Box<RunArgs>),
    /// Says what this machine can and cannot do, and how to mend it
    #[command(after_help = "\
Ends with 1 if anything fails, with 0 if not; warnings do not count.

Examples:
  cgrant doctor
  cgrant doctor --format json | jq '.[] | select(.verdict != \"ok\")'")]
    Doctor,
    /// Starts and stops the containers that are set to start with the machine
    #[command(subcommand)]
    Autostart(AutostartCommand),
    /// Prints what makes a shell complete this command's words
    #[command(after_help = "\
The names of containers, images and grants are completed too. Packages install these files.

Examples:
  cgrant completions bash >~/.local/share/bash-completion/completions/cgrant
  cgrant completions fish >~/.config/fish/completions/cgrant.fish
  cgrant completions zsh >/usr/local/share/zsh/site-functions/_cgrant     as root")]
    Completions(CompletionsArgs),
    /// Prints the names that can stand where the last of these words does: for shells
    #[command(hide = true, after_help = "Example:\n  cgrant names -- start w")]
    Names(NamesArgs),
    /// Writes the manual pages of this command into a directory: for packages
    #[command(hide = true, after_help = "Example:\n  cgrant manual /tmp/pages")]
    Manual(ManualArgs),
    /// Follows what happens to your containers and grants, until interrupted
    #[command(after_help = "\
Of containers: container-created, -started, -ready, -rebooted, -stopping, -stopped (with 'ended' and
'status'), -renamed, -deleted. Of grants, also those of containers: grant-added, grant-removed,
link-added, link-removed, oom, pressure, changed. In JSON each line is an object, whose 'time' is in
microseconds since 1970.

Examples:
  cgrant events
  cgrant events web
  cgrant events --format json | jq --unbuffered 'select(.event == \"container-stopped\")'")]
    Events {
        /// Only what is about these
        #[arg(value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PolicyCommand {
    /// Shows the rules that are for you, with file and line; as root with --all everybody's
    #[command(after_help = "\
What a rule does not say is as in the rule 'built-in everybody'.

Examples:
  cgrant policy show
  cgrant policy show --all                    as root: all rules in force, in the order in which they are tried
  cgrant policy show --config-dir ./draft     those of files in ./draft/policy.d, over the built-in ones")]
    Show {
        /// All rules (root only, but for files)
        #[arg(long)]
        all: bool,
        /// Instead of what is in force, the files in policy.d below this directory
        #[arg(long, value_name = "DIR")]
        config_dir: Option<PathBuf>,
    },
    /// Says whether somebody would be allowed a request, by which rule
    #[command(after_help = "\
By the policy in force the broker says it, as 'cgrant explain' does, and what the account uses counts. Files are judged here, without
the broker, for an account that uses nothing yet. An account that is named has the groups that the host's databases give it,
unless --group says others. Ends with 0 if it would be allowed, with 1 if not.

With --inside it is asked in a container of the account's, by its root or by an ordinary user in there; the figures are the quotas of
those. Not asked is what is refused there whatever policy says, such as links.

Examples:
  cgrant policy test create-grant --account alice --limit memory.max=64G                 as root
  cgrant policy test create-grant --account 1000 --application unit:ci.service           as root
  cgrant policy test create-grant --account alice --config-dir ./draft --link --publish 80:8080
  cgrant policy test create-grant --account alice --config-dir ./draft --inside user --nesting 2
  cgrant policy test connect --account bob --group students --config-dir ./draft")]
    Test(Box<PolicyTestArgs>),
}

#[derive(Debug, Args)]
pub(crate) struct PolicyTestArgs {
    #[command(flatten)]
    pub(crate) request: ExplainArgs,
    /// Instead of what is in force, the files in policy.d below this directory
    #[arg(long, value_name = "DIR")]
    pub(crate) config_dir: Option<PathBuf>,
    /// create-grant as somebody in a container of the account's would ask for it
    #[arg(long, value_name = "WHO", requires = "config_dir")]
    pub(crate) inside: Option<Inside>,
    /// How many containers are around whoever asks, one in the other [default: 1]
    #[arg(long, value_name = "LEVELS", requires = "inside", value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) depth: Option<u8>,
}

/// Who asks in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Inside {
    /// Its root
    Root,
    /// One of its ordinary users
    User,
}

const ABOUT_CGROUP: &str = "\
What may be done is what CGManager let do: you make and change cgroups below the one that you are in, where
root has given it to you, or that a login gave you. For limits of your own without any of that, see
'cgrant grant'. $CGRANT_CGMANAGER_SOCKET names another socket than CGManager's own.";

#[derive(Debug, Subcommand)]
pub(crate) enum GrantCommand {
    /// Makes a grant: a cgroup and a range of ids
    #[command(after_help = "\
Examples:
  cgrant grant create build --memory 2G --cpus 1.5 --pids 500
  cgrant grant create session --holder $$ --no-ids     gone when this shell ends
  cgrant grant create job --limit io.max='8:0 rbps=10M' --pressure memory")]
    Create(CreateArgs),
    /// Lists your grants
    #[command(after_help = "\
Examples:
  cgrant grant list
  cgrant grant list --all     as root: everybody's")]
    List {
        /// Everybody's grants (root only)
        #[arg(long)]
        all: bool,
    },
    /// Shows all about a grant
    #[command(after_help = "\
In JSON, \"created\" is a number: microseconds since 1970.

Examples:
  cgrant grant show build
  cgrant grant show build --format json | jq '.created / 1e6 | todate'")]
    Show(GrantName),
    /// Sets limits: all of them, or none
    #[command(after_help = "\
Keys: memory.max memory.high memory.swap.max cpu.max cpu.weight cpuset.cpus io.max pids.max
hugetlb.SIZE.max, and what policy allows besides. Bytes take K M G T; cpu.max takes 150% or 1.5cpu
as well as \"QUOTA PERIOD\"; \"max\" lifts a limit.

Examples:
  cgrant grant set build memory.max=1G
  cgrant grant set build cpu.max=150% cpuset.cpus=0-1 memory.swap.max=0")]
    Set {
        #[command(flatten)]
        grant: GrantName,
        /// Limits
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = limit)]
        limits: Vec<(String, String)>,
    },
    /// Reads values; without keys, all portable limits
    #[command(after_help = "\
Examples:
  cgrant grant get build
  cgrant grant get build memory.max cpu.weight")]
    Get {
        #[command(flatten)]
        grant: GrantName,
        /// Which
        #[arg(value_name = "KEY")]
        keys: Vec<String>,
    },
    /// Shows what a grant uses now
    #[command(after_help = "Example:\n  cgrant grant stat build --format json")]
    Stat(GrantName),
    /// Lists the processes in a grant
    #[command(after_help = "Example:\n  cgrant grant ps build")]
    Ps(GrantName),
    /// Moves a process of yours into a grant
    #[command(after_help = "\
Examples:
  cgrant grant attach build $$            this shell and what it starts from now on
  cgrant grant attach build 4711 --tree   with all its descendants, however fast they fork")]
    Attach {
        #[command(flatten)]
        grant: GrantName,
        /// The process
        #[arg(value_parser = clap::value_parser!(u32).range(1..))]
        pid: u32,
        /// Its descendants too, all or none
        #[arg(long)]
        tree: bool,
        /// As a launch stage, which may then clone into the payload
        #[arg(long, conflicts_with = "tree")]
        stage: bool,
    },
    /// Changes what ends a grant
    #[command(after_help = "\
Examples:
  cgrant grant adopt build --holder $$    gone when this shell ends
  cgrant grant adopt build --persistent   stays until it is released")]
    Adopt {
        #[command(flatten)]
        grant: GrantName,
        #[command(flatten)]
        lifetime: LifetimeArgs,
    },
    /// Freezes all processes of a grant
    #[command(after_help = "Example:\n  cgrant grant freeze build")]
    Freeze(GrantName),
    /// Lets them go on
    #[command(after_help = "Example:\n  cgrant grant thaw build")]
    Thaw(GrantName),
    /// Kills all processes of a grant; the grant stays
    #[command(after_help = "Example:\n  cgrant grant kill build")]
    Kill(GrantName),
    /// Ends a grant
    #[command(after_help = "\
Examples:
  cgrant grant release build                   refused while processes are in it
  cgrant grant release build --kill            kills them
  cgrant grant release build --kill --force    ends the grants made inside it too")]
    Release {
        #[command(flatten)]
        grant: GrantName,
        /// Kill what is left in it
        #[arg(long)]
        kill: bool,
        /// End the grants that were made from inside it too, the innermost first
        #[arg(long)]
        force: bool,
    },
    /// Makes, removes and lists cgroups inside a grant
    #[command(subcommand)]
    Cgroup(CgroupCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum LinkCommand {
    /// Adds a link to a grant: an interface in a network namespace of yours, on a bridge
    #[command(after_help = "\
The namespace has to be owned by a user namespace of yours: that of a container, or what
'unshare --user --map-root-user --net' makes.

Examples:
  cgrant link add web                              in the namespace of the grant's processes
  cgrant link add web --bridge lan --vlan 12
  cgrant link add web --netns 4711 -p 8080:80
  cgrant link add web --netns /proc/4711/ns/net --upload 10M --download 100M")]
    Add(Box<LinkAddArgs>),
    /// Adds a tap to a grant and runs a command that has it: Ethernet frames for a virtual machine
    #[command(after_help = "\
The command takes cgrant's place and inherits the tap's descriptor. In its arguments {fd} stands for
the descriptor's number and {mac} for the MAC address that the machine has to use; they are in
$CGRANT_TAP_FD and $CGRANT_TAP_MAC too. Each frame has a virtio_net_hdr before it. The machine asks for
its addresses by DHCP or router advertisement. The link ends when the descriptor is closed.

Examples:
  cgrant link tap vm -p 2222:22 -- qemu-system-x86_64 -m 1G disk.img \\
    -netdev tap,id=n,fd={fd} -device virtio-net,netdev=n,mac={mac}
  cgrant link tap vm --bridge lan --as eth1 -- sh -c 'exec vmm --tap-fd $CGRANT_TAP_FD'")]
    Tap(Box<TapArgs>),
    /// Removes a link of a grant
    #[command(after_help = "Example:\n  cgrant link remove web eth1")]
    Remove {
        #[command(flatten)]
        grant: GrantName,
        /// The link's name
        link: String,
    },
    /// Lists links: those of one grant, or of all of yours
    #[command(after_help = "\
Examples:
  cgrant link list
  cgrant link list web --format json")]
    List {
        /// The grant's name
        name: Option<String>,
        /// Whose grant (root only)
        #[arg(long, value_name = "UID", requires = "name")]
        account: Option<u32>,
    },
    /// Publishes ports of the host's to a link: all of them, or none
    #[command(after_help = "\
A port is written [ADDRESS:]HOST:CONTAINER[/tcp|/udp], an IPv6 address in brackets; without an address
it is published on all of the host's.

Examples:
  cgrant link publish web eth0 8080:80
  cgrant link publish web eth0 127.0.0.1:5353:53/udp '[::1]:5353:53/udp'")]
    Publish(PublishArgs),
    /// Takes published ports back
    #[command(after_help = "Example:\n  cgrant link unpublish web eth0 8080:80")]
    Unpublish(PublishArgs),
    /// Lists the bridges that you may have links on, the usual one first
    #[command(after_help = "Example:\n  cgrant link bridges")]
    Bridges,
}

/// A link as it is to be, whatever its far end is.
#[derive(Debug, Args)]
pub(crate) struct NewLinkArgs {
    /// The bridge that it is on; otherwise the first of 'cgrant link bridges'
    #[arg(long)]
    pub(crate) bridge: Option<String>,
    /// Its name; otherwise the first free of eth0, eth1 …
    #[arg(long = "as", value_name = "NAME")]
    pub(crate) link: Option<String>,
    #[command(flatten)]
    pub(crate) ports: PortArgs,
    #[command(flatten)]
    pub(crate) properties: LinkArgs,
}

#[derive(Debug, Args)]
pub(crate) struct LinkAddArgs {
    #[command(flatten)]
    pub(crate) grant: GrantName,
    /// The network namespace: of a process, or a file; without this, that of the grant's processes
    #[arg(long, value_name = "PID|PATH")]
    pub(crate) netns: Option<OsString>,
    #[command(flatten)]
    pub(crate) wanted: NewLinkArgs,
}

#[derive(Debug, Args)]
pub(crate) struct TapArgs {
    #[command(flatten)]
    pub(crate) grant: GrantName,
    #[command(flatten)]
    pub(crate) wanted: NewLinkArgs,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct PublishArgs {
    #[command(flatten)]
    pub(crate) grant: GrantName,
    /// The link's name
    pub(crate) link: String,
    /// The ports
    #[arg(required = true, value_name = "[ADDRESS:]HOST:CONTAINER[/udp]")]
    pub(crate) ports: Vec<Port>,
}

#[derive(Debug, Default, Args)]
pub(crate) struct PortArgs {
    /// A port of the host's that leads to it; may be given several times
    #[arg(
        short = 'p',
        long = "publish",
        value_name = "[ADDRESS:]HOST:CONTAINER[/udp]",
        help_heading = "Link"
    )]
    pub(crate) publish: Vec<Port>,
}

/// What a link is like.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct LinkArgs {
    /// A fixed address, IPv4 or IPv6; may be given once for each
    #[arg(long, value_name = "ADDRESS", help_heading = "Link")]
    pub(crate) address: Vec<IpAddr>,
    /// Set no addresses and routes: what runs inside asks for them by DHCP
    #[arg(long, help_heading = "Link")]
    pub(crate) dhcp: bool,
    /// Largest packet, in bytes
    #[arg(long, value_name = "BYTES", help_heading = "Link", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) mtu: Option<u32>,
    /// Length of its transmit queue, in packets
    #[arg(long, value_name = "PACKETS", help_heading = "Link", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) queue_length: Option<u32>,
    /// Most that it may send, in bits a second or with K, M, G (of 1000)
    #[arg(long, value_name = "RATE", help_heading = "Link", value_parser = rate)]
    pub(crate) upload: Option<u64>,
    /// Most that is sent to it, in bits a second or with K, M, G (of 1000)
    #[arg(long, value_name = "RATE", help_heading = "Link", value_parser = rate)]
    pub(crate) download: Option<u64>,
    /// VLAN, on a bridge that knows VLANs
    #[arg(long, value_name = "ID", help_heading = "Link", value_parser = clap::value_parser!(u16).range(1..=4094))]
    pub(crate) vlan: Option<u16>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CgroupCommand {
    /// Makes a cgroup below the payload
    #[command(
        after_help = "Examples:\n  cgrant grant cgroup create build workers\n  cgrant grant cgroup create build workers/one"
    )]
    Create(CgroupArgs),
    /// Removes an empty cgroup below the payload
    #[command(after_help = "Example:\n  cgrant grant cgroup remove build workers/one")]
    Remove(CgroupArgs),
    /// Lists the cgroups below the payload
    #[command(after_help = "Example:\n  cgrant grant cgroup list build")]
    List(GrantName),
}

#[derive(Debug, Args)]
pub(crate) struct CgroupArgs {
    #[command(flatten)]
    pub(crate) grant: GrantName,
    /// Path below the payload
    pub(crate) path: String,
}

#[derive(Debug, Args)]
pub(crate) struct GrantName {
    /// The grant's name
    pub(crate) name: String,
    /// Whose grant (root only)
    #[arg(long, value_name = "UID")]
    pub(crate) account: Option<u32>,
}

#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct UsageArgs {
    /// Whose (root only)
    #[arg(long, value_name = "UID")]
    pub(crate) account: Option<u32>,
    /// Of every account that has something here (root only)
    #[arg(long)]
    pub(crate) all: bool,
    /// What your images and containers take on their disk: blocks and files, looked at one by one
    #[arg(long, conflicts_with_all = ["account", "all"])]
    pub(crate) disk: bool,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct LifetimeArgs {
    /// The grant ends with this process of yours
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) holder: Option<u32>,
    /// The grant stays until it is released
    #[arg(long)]
    pub(crate) persistent: bool,
}

/// A user by name or uid.
fn user(text: &str) -> Result<u32, String> {
    let named = || match nix::unistd::User::from_name(text) {
        Ok(Some(user)) => Ok(user.uid.as_raw()),
        Ok(None) => Err("there is no such user".to_owned()),
        Err(error) => Err(format!("the users can't be looked up: {error}")),
    };
    text.parse().or_else(|_| named())
}

/// A group by name or gid.
fn group(text: &str) -> Result<u32, String> {
    let named = || match nix::unistd::Group::from_name(text) {
        Ok(Some(group)) => Ok(group.gid.as_raw()),
        Ok(None) => Err("there is no such group".to_owned()),
        Err(error) => Err(format!("the groups can't be looked up: {error}")),
    };
    text.parse().or_else(|_| named())
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// The request
    #[arg(value_name = "REQUEST", value_parser = [
        "create-grant", "set-limits", "get-values", "create-cgroup", "remove-cgroup", "open-cgroup", "add-link",
        "remove-link", "publish-ports", "unpublish-ports", "make-device", "allow-device", "map-directory", "attach", "adopt",
        "freeze", "thaw", "kill", "release", "stat", "list-processes", "list-cgroups", "forget-range", "list-grants",
        "list-accounts", "list-rules", "list-departed", "get-usage", "connect", "cgmanager",
    ])]
    pub(crate) request: String,
    /// The grant that it is about
    #[arg(long, value_name = "NAME")]
    pub(crate) grant: Option<String>,
    /// A limit
    #[arg(long = "limit", value_name = "KEY=VALUE", value_parser = limit)]
    pub(crate) limits: Vec<(String, String)>,
    /// How many ids
    #[arg(long, value_name = "COUNT")]
    pub(crate) ids: Option<u32>,
    /// No ids
    #[arg(long, conflicts_with = "ids")]
    pub(crate) no_ids: bool,
    /// So many blocks of 65536 ids beside its own, for grants inside it
    #[arg(long, value_name = "BLOCKS", conflicts_with = "no_ids")]
    pub(crate) nesting: Option<u32>,
    /// It stays until it is released
    #[arg(long)]
    pub(crate) persistent: bool,
    /// Resources whose pressure is to be signalled
    #[arg(long, value_name = "RESOURCE", value_delimiter = ',', value_parser = ["cpu", "memory", "io"])]
    pub(crate) pressure: Vec<String>,
    /// With a link
    #[arg(long)]
    pub(crate) link: bool,
    /// The link's bridge
    #[arg(long, value_name = "NAME")]
    pub(crate) bridge: Option<String>,
    /// A port to be published, as in cgrant link publish
    #[arg(long, value_name = "PORT")]
    pub(crate) publish: Vec<Port>,
    /// Values to be read
    #[arg(long = "key", value_name = "KEY")]
    pub(crate) keys: Vec<String>,
    /// A cgroup below the payload
    #[arg(long)]
    pub(crate) path: Option<String>,
    /// The name of a new grant, of a link, of a range, or of a device below /dev
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The range that a directory's files have the ids of; without it, your own
    #[arg(long, value_name = "RANGE")]
    pub(crate) from: Option<String>,
    /// Everybody's
    #[arg(long)]
    pub(crate) all: bool,
    /// Whose request: a user's name or uid (root only)
    #[arg(long, value_name = "USER", value_parser = user)]
    pub(crate) account: Option<u32>,
    /// Groups that it would be made with, by name or gid, the primary one first (root only)
    #[arg(long = "group", value_name = "GROUP", value_parser = group)]
    pub(crate) groups: Vec<u32>,
    /// The application that it would be made by, such as unit:ci.service (root only)
    #[arg(long, value_name = "APPLICATION")]
    pub(crate) application: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its name; without one, the broker makes one up
    #[arg(default_value = "")]
    pub(crate) name: String,
    /// It ends with this process of yours; without this it stays until it is released
    #[arg(long, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) holder: Option<u32>,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    #[command(flatten)]
    pub(crate) ids: IdArgs,
    /// No ids: a cgroup alone
    #[arg(long, conflicts_with = "ids")]
    pub(crate) no_ids: bool,
    /// Your own mark of this request: repeated with the same mark, it gives the same grant
    #[arg(long)]
    pub(crate) key: Option<String>,
    /// Resources whose pressure shall be signalled
    #[arg(long, value_name = "RESOURCE", value_delimiter = ',', value_parser = ["cpu", "memory", "io"])]
    pub(crate) pressure: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct IdArgs {
    /// How many ids; policy has a default (65536)
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) ids: Option<u32>,
}

#[derive(Debug, Default, Args)]
pub(crate) struct LimitArgs {
    /// Most memory (memory.max), in bytes or with K, M, G, T
    #[arg(long, value_name = "BYTES", help_heading = "Limits")]
    pub(crate) memory: Option<String>,
    /// Most CPU time, in CPUs (cpu.max): 0.5, 2
    #[arg(long, value_name = "NUMBER", help_heading = "Limits")]
    pub(crate) cpus: Option<String>,
    /// Most tasks (pids.max)
    #[arg(long, value_name = "NUMBER", help_heading = "Limits")]
    pub(crate) pids: Option<String>,
    /// Any limit by its key; may be given several times
    #[arg(short = 'l', long = "limit", value_name = "KEY=VALUE", help_heading = "Limits", value_parser = limit)]
    pub(crate) others: Vec<(String, String)>,
}

impl LimitArgs {
    /// All limits by key. Where one is given in two ways, the broker is told both and refuses.
    pub(crate) fn all(&self) -> Vec<(String, String)> {
        let short = [
            ("memory.max", self.memory.clone()),
            ("cpu.max", self.cpus.as_ref().map(|cpus| format!("{cpus}cpu"))),
            ("pids.max", self.pids.clone()),
        ];
        let short = short.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
        short.chain(self.others.iter().cloned()).collect()
    }
}

#[derive(Debug, Args)]
#[command(after_help = ABOUT_RUN, after_long_help = format!("{ABOUT_RUN}\n\n{}", exit::TABLE))]
pub(crate) struct RunArgs {
    /// The grant's name, whose ids it gets each time; without one it gets any ids of yours
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(crate) name: String,
    /// The directory that is its root; without one, the host's own tree, read-only
    #[arg(long, value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// Mount the root directory read-only
    #[arg(long, requires = "root")]
    pub(crate) read_only: bool,
    /// Its hostname; otherwise the grant's name
    #[arg(long)]
    pub(crate) hostname: Option<String>,
    /// A variable of its environment: with a value, or taken over from yours
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<OsString>,
    /// Its working directory, seen from inside
    #[arg(short, long, value_name = "DIR", default_value = "/")]
    pub(crate) workdir: PathBuf,
    /// Run a tiny reaper as pid 1, and the command as its child
    #[arg(long)]
    pub(crate) init: bool,
    /// Forbid setgroups inside, where your groups take rights away (they stay in force then)
    #[arg(long)]
    pub(crate) no_setgroups: bool,
    #[command(flatten)]
    pub(crate) ids: IdArgs,
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
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

const ABOUT_RUN: &str = "\
The command is pid 1 of the container unless --init is given. Its standard streams are those of
cgrant. SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2 and SIGWINCH are passed on; of those that
would end an ordinary process, one for which the command has no handler ends the container. ^Z
freezes the container. It has no controlling terminal: a shell in it has no job control.

The ids inside are not yours: files of your own belong to 'nobody' there, and must be open to others
to be used. A root directory must have the directories proc sys dev run tmp to mount on.

Without --link it has a loopback interface and nothing else; -p and what else is about a link
imply --link. With it, /etc/resolv.conf and /etc/hosts are its own where the root has files of that
name, and other containers of yours on the bridge reach it as NAME.cgrant.

Examples:
  cgrant run -- id
  cgrant run --memory 256M --pids 50 -- sh -c 'hostname; ps ax'
  cgrant run --root ./busybox --init --hostname box -- /bin/sh
  cgrant run --name web --link -p 8080:80 --root ./busybox -- /bin/httpd -f -h /www
  cgrant run --name ci --env PATH=/usr/bin:/bin --env LANG -- make test";

#[derive(Debug, Subcommand)]
pub(crate) enum RangeCommand {
    /// Lists your ranges of ids
    #[command(after_help = "Example:\n  cgrant range list")]
    List,
    /// Unties a range from the name of a grant that is gone, so that other grants of yours may use it
    #[command(after_help = "\
Files that belong to ids of the range keep their owner: whatever uses the range next owns them.

Example:
  cgrant range forget build")]
    Forget {
        /// The name
        name: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DepartedCommand {
    /// Lists the ids of users who are gone
    #[command(after_help = "\
STATE is
  retired   the ids are nobody's, and will be nobody's again
  leaving   they will be retired if the user does not come back within ten seconds
  taken     they were retired, and /etc/passwd, group, subuid or subgid gives some of them to somebody by hand
GRANTS is how many grants that still run have some of them.

Examples:
  cgrant departed list
  cgrant departed list --account 1001")]
    List {
        /// Of this account alone
        #[arg(long, value_name = "UID")]
        account: Option<u32>,
    },
    /// Counts the files that belong to an account's retired ids, below directories
    #[command(after_help = "\
Links are not followed, and other file systems that are mounted below the directories not entered.

Example:
  cgrant departed usage --account 1001 /home /srv")]
    Usage(DepartedArgs),
    /// Removes the files that belong to an account's retired ids, below directories
    #[command(after_help = "\
Removes files of images and containers of a user who was deleted, and no others: whatever belongs to ids of somebody
who is there stays, and so do the files that were the user's own. Waits until the user is believed to be gone and nothing of
it runs in a grant any more; end what the user still runs elsewhere first (pkill -u UID, loginctl terminate-user). Name
directories of the user's, and none like /tmp, where everybody makes and renames files. Links are not followed, and
other file systems that are mounted below the directories not entered.

Example:
  cgrant departed remove --account 1001 /home/alice /srv")]
    Remove {
        #[command(flatten)]
        which: DepartedArgs,
        /// How long to wait, at most
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        timeout: u64,
    },
    /// Removes files of all users who are gone and whose files policy has removed
    #[command(after_help = "\
Of users whose rule said 'lifetime.departed = \"remove\"' when they last got ids for a grant, below the directories that
cgrantd.toml names in [departed], as 'cgrant departed remove' does; and has the broker note that it is done. Where files could
not be removed it is tried again with the next call, seven times in all. A directory in which nothing goes on for five minutes
is left, and the others are looked through; all of it has 19 hours. The unit cgrant-departed.service calls it.

Example:
  cgrant departed clean")]
    Clean {
        /// The directory that cgrantd.toml is in
        #[arg(long, value_name = "DIRECTORY", default_value = "/etc/cgrant")]
        config_dir: PathBuf,
        /// How long to wait for grants that still run, at most
        #[arg(long, value_name = "SECONDS", default_value_t = 120)]
        timeout: u64,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum DiskCommand {
    /// Counts files of everybody's images and containers, and tells the broker
    #[command(after_help = "\
Looks at all files below the directories that cgrantd.toml names in [disk], counts bytes and number of those that belong to ids
that the broker gives out, and tells the broker, which charges them to the accounts that have these ids: 'quota.disk' and
'quota.disk-files' of policy, and 'cgrant usage'. Links are not followed, and other file systems that are mounted below
the directories not entered. A directory in which nothing goes on for five minutes is left. If not everything could be looked
at, what is known from before stays where that is more, and this ends with an error. The unit cgrant-disk.service calls it.

Example:
  cgrant disk measure")]
    Measure {
        /// The directory that cgrantd.toml is in
        #[arg(long, value_name = "DIRECTORY", default_value = "/etc/cgrant")]
        config_dir: PathBuf,
        /// How long it may take, at most
        #[arg(long, value_name = "SECONDS", default_value_t = 21600)]
        timeout: u64,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DepartedArgs {
    /// The uid that the user had
    #[arg(long, value_name = "UID")]
    pub(crate) account: u32,
    /// Where to look
    #[arg(required = true, value_name = "DIRECTORY")]
    pub(crate) directories: Vec<PathBuf>,
}

fn limit(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a limit is written KEY=VALUE, as in memory.max=512M".to_owned()),
    }
}

/// Bits a second.
fn rate(text: &str) -> Result<u64, String> {
    let power = match text.bytes().last() {
        Some(b'K') => 3,
        Some(b'M') => 6,
        Some(b'G') => 9,
        Some(b'T') => 12,
        _ => 0,
    };
    let digits = if power == 0 { text } else { text.get(..text.len() - 1).unwrap_or_default() };
    // The standard library would take a sign.
    let digits = if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits } else { "" };
    match digits.parse::<u64>().ok().and_then(|number| number.checked_mul(10_u64.pow(power))) {
        Some(rate) if rate > 0 => Ok(rate),
        _ => Err("a rate is a number of bits a second, as in 500K, 10M or 1G".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use clap::{CommandFactory, error::ErrorKind};

    use super::*;

    fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once("cgrant").chain(words.iter().copied()))
    }

    fn run(words: &[&str]) -> RunArgs {
        match parse(words).unwrap().command {
            Command::Run(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_follows_the_command_belongs_to_it() {
        let args = run(&["run", "--memory", "1M", "--", "sh", "-c", "x", "--memory", "2M"]);
        assert_eq!(args.command, ["sh", "-c", "x", "--memory", "2M"]);
        assert_eq!(args.limits.all(), [("memory.max".to_owned(), "1M".to_owned())]);
        assert_eq!(run(&["run", "id", "--socket", "x"]).command, ["id", "--socket", "x"]);
    }

    #[test]
    fn limits_have_short_and_long_forms() {
        let args = run(&[
            "run",
            "--cpus",
            "1.5",
            "--pids",
            "9",
            "-l",
            "io.max=8:0 rbps=1M",
            "-l",
            "cpu.weight=5",
            "x",
        ]);
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let all = [
            pair("cpu.max", "1.5cpu"),
            pair("pids.max", "9"),
            pair("io.max", "8:0 rbps=1M"),
            pair("cpu.weight", "5"),
        ];
        assert_eq!(args.limits.all(), all);
    }

    #[test]
    fn a_malformed_limit_is_a_usage_error_that_shows_the_form() {
        for wrong in ["memory.max", "=1"] {
            let error = parse(&["grant", "set", "x", wrong]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ValueValidation);
            assert!(error.to_string().contains("KEY=VALUE"), "{error}");
        }
        assert_eq!(parse(&["grant", "set", "x"]).unwrap_err().kind(), ErrorKind::MissingRequiredArgument);
    }

    #[test]
    fn a_link_is_asked_for_with_or_without_its_bridge() {
        let args = run(&["run", "--link", "id"]);
        assert_eq!((args.link.as_deref(), &args.command[..]), (Some(""), &["id".into()][..]));
        assert_eq!(run(&["run", "--link=lan", "id"]).link.as_deref(), Some("lan"));
        assert_eq!(run(&["run", "id"]).link, None);
        let args = run(&["run", "-p", "8080:80", "-p", "[::1]:53:53/udp", "--upload", "10M", "--", "id"]);
        let ports: Vec<_> = args.ports.publish.iter().map(ToString::to_string).collect();
        assert_eq!(ports, ["8080:80/tcp", "[::1]:53:53/udp"]);
        assert_eq!(args.properties.upload, Some(10_000_000));
    }

    #[test]
    fn what_is_wrong_with_a_link_is_said() {
        for (words, says) in [
            (["run", "-p", "80", "x"], "[ADDRESS:]HOST:CONTAINER"),
            (["run", "-p", "0.0.0.0:80:80", "x"], "leave the address out"),
            (["run", "--upload", "fast", "x"], "bits a second"),
            (["run", "--vlan", "4095", "x"], "4094"),
        ] {
            let error = parse(&words).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ValueValidation);
            assert!(error.to_string().contains(says), "{error}");
        }
        assert!(parse(&["link", "publish", "web", "eth0"]).is_err());
        assert!(parse(&["link", "list", "--account", "7"]).is_err());
        assert!(parse(&["link", "tap", "web"]).is_err());
    }

    #[test]
    fn rates_are_of_1000() {
        for (text, bits) in [("1", 1), ("500K", 500_000), ("2G", 2_000_000_000), ("1T", 1_000_000_000_000)] {
            assert_eq!(rate(text), Ok(bits));
        }
        for wrong in
            ["", "0", "K", "+1", "1.5M", "10m", "10KK", "99999999999999999999", "18446744073709551615K"]
        {
            assert!(rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn commands_and_paths_may_be_any_bytes() {
        let odd = || OsString::from_vec(vec![b'x', 0xff]);
        let words =
            ["cgrant", "run", "--root"].map(OsString::from).into_iter().chain([odd(), "--".into(), odd()]);
        let Command::Run(args) = Cli::try_parse_from(words).unwrap().command else { panic!("not run") };
        assert_eq!(args.command, [odd()]);
        assert_eq!(args.root, Some(PathBuf::from(odd())));
        let error = Cli::try_parse_from(["cgrant".into(), "grant".into(), "show".into(), odd()]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidUtf8);
    }

    #[test]
    fn a_lifetime_is_one_of_two() {
        assert_eq!(parse(&["grant", "adopt", "x"]).unwrap_err().kind(), ErrorKind::MissingRequiredArgument);
        let both = parse(&["grant", "adopt", "x", "--persistent", "--holder", "1"]);
        assert_eq!(both.unwrap_err().kind(), ErrorKind::ArgumentConflict);
        assert!(parse(&["grant", "adopt", "x", "--holder", "0"]).is_err());
        assert!(parse(&["grant", "adopt", "x", "--holder", "7"]).is_ok());
    }

    #[test]
    fn global_options_stand_anywhere_before_the_command_of_run() {
        assert_eq!(parse(&["grant", "list", "--format", "json"]).unwrap().global.format, Format::Json);
        assert_eq!(parse(&["--socket", "/x", "usage"]).unwrap().global.socket, Some("/x".into()));
    }

    #[test]
    fn the_long_help_has_the_exit_codes_and_the_examples() {
        for words in [&["--help"][..], &["run", "--help"]] {
            let help = parse(words).unwrap_err().to_string();
            assert!(help.contains("Exit codes:") && help.contains("Examples:"), "{help}");
        }
    }

    #[test]
    fn every_verb_that_does_something_has_an_example() {
        fn check(command: &clap::Command) {
            if command.has_subcommands() {
                return command.get_subcommands().for_each(check);
            }
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example") && help.contains("  cgrant "), "{}", command.get_name());
        }
        check(&Cli::command());
    }
}
