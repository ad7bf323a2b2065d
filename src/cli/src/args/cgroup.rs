//! The command line of `cgrant cgroup`.

use clap::{Args, Subcommand};

/// Controllers of a verb, by their names on cgroup v1.
#[derive(Debug, Args)]
pub(crate) struct Controllers {
    /// Only of these controllers, with commas between them
    #[arg(short, long, value_name = "LIST", default_value = "all")]
    pub(crate) controllers: String,
}

/// A cgroup of somebody's who asks.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The cgroup, counted from the one that you are in
    pub(crate) cgroup: String,
    #[command(flatten)]
    pub(crate) of: Controllers,
}

/// The same where one's own cgroup is meant if none is named.
#[derive(Debug, Args)]
pub(crate) struct PlaceOrOwn {
    /// The cgroup, counted from the one that you are in; that one itself if left out
    #[arg(default_value = "", hide_default_value = true)]
    pub(crate) cgroup: String,
    #[command(flatten)]
    pub(crate) of: Controllers,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LegacyCommand {
    /// Makes a cgroup, with those above it that are missing
    #[command(after_help = "\
Examples:
  cgrant cgroup create jobs/one
  cgrant cgroup create jobs --controllers memory,cpu")]
    Create(Place),
    /// Removes a cgroup; without processes in it, and without cgroups below it unless told otherwise
    #[command(after_help = "\
Examples:
  cgrant cgroup remove jobs/one
  cgrant cgroup remove jobs --recursive")]
    Remove {
        #[command(flatten)]
        place: Place,
        /// With all cgroups below it
        #[arg(short, long)]
        recursive: bool,
        /// When the last process has left it, if somebody is in it now
        #[arg(long, conflicts_with = "recursive")]
        when_empty: bool,
    },
    /// Removes all cgroups below one that nobody is in, now and as they become empty
    #[command(after_help = "Example:\n  cgrant cgroup prune jobs")]
    Prune(PlaceOrOwn),
    /// Lists the cgroups below one
    #[command(after_help = "\
Examples:
  cgrant cgroup list
  cgrant cgroup list jobs --format json")]
    List(PlaceOrOwn),
    /// Lists the processes in a cgroup
    #[command(after_help = "\
Examples:
  cgrant cgroup ps jobs
  cgrant cgroup ps --recursive --controllers memory")]
    Ps {
        #[command(flatten)]
        place: PlaceOrOwn,
        /// And in all cgroups below it
        #[arg(short, long)]
        recursive: bool,
    },
    /// Lists the files of a cgroup, with their owners and modes
    #[command(after_help = "Example:\n  cgrant cgroup files jobs --controllers memory")]
    Files(PlaceOrOwn),
    /// Reads values
    #[command(after_help = "\
A key is the name of a file, which begins with its controller; before one that does not, write the
controller and a colon.

Examples:
  cgrant cgroup get jobs memory.limit_in_bytes cpu.shares
  cgrant cgroup get jobs freezer:tasks")]
    Get {
        /// The cgroup, counted from the one that you are in
        cgroup: String,
        /// What is to be read
        #[arg(required = true, value_name = "[CONTROLLER:]KEY", value_parser = key)]
        keys: Vec<Key>,
    },
    /// Sets values, one after the other
    #[command(after_help = "\
Examples:
  cgrant cgroup set jobs memory.limit_in_bytes=512M
  cgrant cgroup set jobs cpu.shares=512 freezer.state=FROZEN")]
    Set {
        /// The cgroup, counted from the one that you are in
        cgroup: String,
        /// What is to be set
        #[arg(required = true, value_name = "[CONTROLLER:]KEY=VALUE", value_parser = setting)]
        values: Vec<(Key, String)>,
    },
    /// Moves a process of yours into a cgroup
    #[command(after_help = "\
Examples:
  cgrant cgroup attach jobs/one $$
  cgrant cgroup attach /user/me --absolute 4711     counted from the root")]
    Attach {
        #[command(flatten)]
        place: Place,
        /// The process
        #[arg(value_parser = clap::value_parser!(i32).range(1..))]
        pid: i32,
        /// The cgroup is counted from the root
        #[arg(long)]
        absolute: bool,
    },
    /// Shows which cgroups a process is in, counted from the root
    #[command(after_help = "Example:\n  cgrant cgroup show $$")]
    Show {
        /// The process
        #[arg(value_parser = clap::value_parser!(i32).range(1..))]
        pid: i32,
        #[command(flatten)]
        of: Controllers,
    },
    /// Gives a cgroup to somebody else, whose limits it then has; its own stay as they are (root only)
    #[command(after_help = "Example:\n  cgrant cgroup chown jobs 1000:1000")]
    Chown {
        #[command(flatten)]
        place: Place,
        /// The new owner
        #[arg(value_name = "UID:GID", value_parser = owner)]
        owner: (i32, i32),
    },
    /// Sets the mode of a cgroup, or of a file in it
    #[command(after_help = "\
Examples:
  cgrant cgroup chmod jobs 750
  cgrant cgroup chmod jobs 664 --file tasks --controllers memory")]
    Chmod {
        #[command(flatten)]
        place: Place,
        /// The mode, octal
        #[arg(value_parser = mode)]
        mode: i32,
        /// The file
        #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
        file: String,
    },
    /// Lists the controllers that there are, those together that share a hierarchy
    #[command(after_help = "Example:\n  cgrant cgroup controllers")]
    Controllers,
}

/// A file of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Key {
    /// Whose hierarchy it is looked for in.
    pub(crate) controller: String,
    /// Its name.
    pub(crate) name: String,
}

fn key(text: &str) -> Result<Key, String> {
    const FORM: &str = "a key is written as in memory.limit_in_bytes or freezer:tasks";
    let (controller, name) = match text.split_once(':') {
        Some(both) => both,
        None => (text.split_once('.').ok_or(FORM)?.0, text),
    };
    if controller.is_empty() || name.is_empty() {
        return Err(FORM.to_owned());
    }
    Ok(Key { controller: controller.to_owned(), name: name.to_owned() })
}

fn setting(text: &str) -> Result<(Key, String), String> {
    let (name, value) = text.split_once('=').ok_or("a value is written KEY=VALUE, as in cpu.shares=512")?;
    Ok((key(name)?, value.to_owned()))
}

fn owner(text: &str) -> Result<(i32, i32), String> {
    let id = |text: &str| text.parse::<i32>().ok().filter(|id| *id >= 0);
    let (uid, gid) = text.split_once(':').unwrap_or((text, text));
    id(uid).zip(id(gid)).ok_or_else(|| "an owner is written UID:GID, in numbers below 2147483648".to_owned())
}

fn mode(text: &str) -> Result<i32, String> {
    let mode = i32::from_str_radix(text, 8).ok().filter(|mode| (0..=0o7777).contains(mode));
    mode.ok_or_else(|| "a mode is an octal number, as in 755".to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_its_controller() {
        let of = |controller: &str, name: &str| Key { controller: controller.into(), name: name.into() };
        assert_eq!(key("memory.limit_in_bytes"), Ok(of("memory", "memory.limit_in_bytes")));
        assert_eq!(key("freezer:tasks"), Ok(of("freezer", "tasks")));
        assert_eq!(key("name=systemd:tasks"), Ok(of("name=systemd", "tasks")));
        for wrong in ["", "tasks", ":tasks", "memory:", ".x"] {
            assert!(key(wrong).is_err(), "{wrong}");
        }
        assert_eq!(setting("cpu.shares=a=b").unwrap(), (of("cpu", "cpu.shares"), "a=b".to_owned()));
        assert!(setting("cpu.shares").is_err());
    }

    #[test]
    fn owners_and_modes_are_numbers() {
        assert_eq!(owner("7:8"), Ok((7, 8)));
        assert_eq!(owner("7"), Ok((7, 7)));
        for wrong in ["", "-1:0", "0:-1", "2147483648:0", "a:b", "7:"] {
            assert!(owner(wrong).is_err(), "{wrong}");
        }
        assert_eq!(mode("750"), Ok(0o750));
        for wrong in ["", "8", "-1", "10000"] {
            assert!(mode(wrong).is_err(), "{wrong}");
        }
    }
}
