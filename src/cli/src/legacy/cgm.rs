//! The command `cgm`, for scripts that were written for CGManager's: the same verbs, output and exit codes. It is this program
//! when it is called by that name.

use std::{
    ffi::{OsStr, OsString},
    io::{self, ErrorKind, Write},
    path::Path,
};

use zbus::{Message, OwnedVariant};

use super::{LegacyError, Manager, Request};

/// The name that it is called by.
const NAME: &str = "cgm";
/// The version of CGManager whose output this is.
const VERSION: &str = "0.42";
const USAGE: &str = "\
Usage:
  cgm ping
  cgm create CONTROLLERS CGROUP
  cgm chown CONTROLLERS CGROUP UID GID
  cgm chmod CONTROLLERS CGROUP MODE
  cgm chmodfile CONTROLLERS CGROUP FILE MODE
  cgm remove CONTROLLERS CGROUP [0|1]
  cgm getpidcgroup CONTROLLER PID
  cgm getpidcgroupabs CONTROLLER PID
  cgm movepid CONTROLLERS CGROUP PID
  cgm movepidabs CONTROLLERS CGROUP PID
  cgm getvalue CONTROLLER CGROUP KEY
  cgm setvalue CONTROLLER CGROUP KEY VALUE
  cgm gettasks CONTROLLER [CGROUP]
  cgm gettasksrecursive CONTROLLERS [CGROUP]
  cgm listchildren CONTROLLER [CGROUP]
  cgm removeonempty CONTROLLERS CGROUP
  cgm prune CONTROLLERS [CGROUP]
  cgm listcontrollers
  cgm listkeys CONTROLLER [CGROUP]
  cgm apiversion
  cgm --version
  cgm -h | --help

CONTROLLERS is one controller, several with commas between them, or all. Modes are octal. remove takes what is below
the cgroup too, unless it is told 0.
";

/// What the words ask for.
#[derive(Debug, PartialEq, Eq)]
enum Wish {
    /// A call, and what it is called in messages.
    Call(Request, &'static str),
    Help,
    Version,
}

/// Why the words ask for nothing.
#[derive(Debug, PartialEq, Eq)]
enum Wrong {
    /// Told on standard output, with exit code 1, as CGManager's does.
    Usage,
    /// A uid or gid is negative or past what the interface can have.
    Ids,
}

/// Is the program called by this name?
pub(crate) fn is_called(program: Option<&OsString>) -> bool {
    program.and_then(|program| Path::new(program).file_name()) == Some(OsStr::new(NAME))
}

/// The whole command; its exit code.
pub(crate) fn run(words: &[OsString]) -> u8 {
    let words: Option<Vec<&str>> = words.iter().map(|word| word.to_str()).collect();
    let told = match words.ok_or(Wrong::Usage).and_then(|words| parse(&words)) {
        Ok(Wish::Call(request, function)) => call(&request, function),
        Ok(Wish::Help) => Ok(USAGE.to_owned()),
        Ok(Wish::Version) => Ok(VERSION.to_owned()),
        Err(Wrong::Usage) => {
            say(io::stdout(), USAGE);
            return 1;
        }
        Err(Wrong::Ids) => Err("Bad uid or gid".to_owned()),
    };
    match told {
        Ok(text) => {
            say(io::stdout(), &text);
            0
        }
        Err(text) => {
            say(io::stderr(), &format!("{text}\n"));
            1
        }
    }
}

/// Whoever does not listen any more has heard enough.
fn say(mut to: impl Write, text: &str) {
    let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
}

fn parse(words: &[&str]) -> Result<Wish, Wrong> {
    let method =
        |method, texts: &[&str]| texts.iter().fold(Request::new(method), |call, text| call.with(*text));
    let (request, function) = match *words {
        ["-h" | "--help"] => return Ok(Wish::Help),
        ["--version"] => return Ok(Wish::Version),
        ["ping"] => (Request::new("Ping").with(0), "ping"),
        ["create", c, g] => (method("Create", &[c, g]), "create"),
        ["chown", c, g, uid, gid] => (method("Chown", &[c, g]).with(id(uid)?).with(id(gid)?), "chown"),
        ["chmod", c, g, mode] => (method("Chmod", &[c, g, ""]).with(octal(mode)?), "chmod"),
        ["chmodfile", c, g, file, mode] => (method("Chmod", &[c, g, file]).with(octal(mode)?), "chmod"),
        ["remove", c, g] => (method("Remove", &[c, g]).with(1), "remove"),
        ["remove", c, g, recursive] => (method("Remove", &[c, g]).with(number(recursive)?), "remove"),
        ["getpidcgroup", c, pid] => (method("GetPidCgroup", &[c]).with(number(pid)?), "get_pid_cgroup"),
        ["getpidcgroupabs", c, pid] => {
            (method("GetPidCgroupAbs", &[c]).with(number(pid)?), "get_pid_cgroup_abs")
        }
        ["movepid", c, g, pid] => (method("MovePid", &[c, g]).with(number(pid)?), "move_pid_main"),
        ["movepidabs", c, g, pid] => (method("MovePidAbs", &[c, g]).with(number(pid)?), "move_pid_main"),
        ["getvalue", c, g, key] => (method("GetValue", &[c, g, key]), "get_value"),
        ["setvalue", c, g, key, value] => (method("SetValue", &[c, g, key, value]), "set_value"),
        ["removeonempty", c, g] => (method("RemoveOnEmpty", &[c, g]), "remove_on_empty"),
        ["listcontrollers"] => (Request::new("ListControllers"), "list_controllers"),
        ["apiversion"] => (Request::version(), "get_api_version"),
        [verb, c] => at(verb, c, "")?,
        [verb, c, g] => at(verb, c, g)?,
        _ => return Err(Wrong::Usage),
    };
    Ok(Wish::Call(request, function))
}

/// The verbs whose cgroup may be left out: it is one's own then.
fn at(verb: &str, controllers: &str, cgroup: &str) -> Result<(Request, &'static str), Wrong> {
    let (method, function) = match verb {
        "gettasks" => ("GetTasks", "get_tasks"),
        "gettasksrecursive" => ("GetTasksRecursive", "get_tasks_recursive"),
        "listchildren" => ("ListChildren", "list_children"),
        "prune" => ("Prune", "prune"),
        "listkeys" => ("ListKeys", "list_keys"),
        _ => return Err(Wrong::Usage),
    };
    Ok((Request::new(method).with(controllers).with(cgroup), function))
}

fn number(word: &str) -> Result<i32, Wrong> {
    word.parse().map_err(|_| Wrong::Usage)
}

fn octal(word: &str) -> Result<i32, Wrong> {
    i32::from_str_radix(word, 8).map_err(|_| Wrong::Usage)
}

fn id(word: &str) -> Result<i32, Wrong> {
    word.parse().ok().filter(|id| *id >= 0).ok_or(Wrong::Ids)
}

/// What is printed, or what is told of the failure.
fn call(request: &Request, function: &str) -> Result<String, String> {
    let manager = Manager::connect()
        .map_err(|error| format!("Failed opening dbus connection: {}", unreachable_text(&error)))?;
    let printed = manager.call(request).and_then(|reply| print(request.method, &reply));
    printed.map_err(|error| format!("call to cgmanager_{function}_sync failed: {error}"))
}

/// Why there is no connection, in the words of libdbus.
fn unreachable_text(error: &LegacyError) -> String {
    const PREFIX: &str = "org.freedesktop.DBus.Error.";
    let LegacyError::Unreachable { path, source } = error else {
        return format!("{PREFIX}Failed: {error}");
    };
    let name = match source.kind() {
        ErrorKind::NotFound => "FileNotFound",
        ErrorKind::PermissionDenied => "AccessDenied",
        _ => "NoServer",
    };
    let said = source.raw_os_error().map(|number| nix::errno::Errno::from_raw(number).desc());
    let said = said.map_or_else(|| source.to_string(), str::to_owned);
    format!("{PREFIX}{name}: Failed to connect to socket {path}: {said}")
}

fn print(method: &str, reply: &Message) -> Result<String, LegacyError> {
    printed(method, reply).map_err(LegacyError::Unanswered)
}

fn printed(method: &str, reply: &Message) -> zbus::Result<String> {
    let body = reply.body();
    Ok(match method {
        "Create" if body.deserialize::<i32>()? == 1 => "Path existed\n".to_owned(),
        "Remove" if body.deserialize::<i32>()? == -1 => "Path did not exist\n".to_owned(),
        "GetPidCgroup" | "GetPidCgroupAbs" | "GetValue" => format!("{}\n", body.deserialize::<&str>()?),
        "GetTasks" | "GetTasksRecursive" => lines(&body.deserialize::<Vec<i32>>()?),
        "ListChildren" | "ListControllers" => lines(&body.deserialize::<Vec<String>>()?),
        "ListKeys" => {
            let keys: Vec<(String, u32, u32, u32)> = body.deserialize()?;
            keys.iter().map(|(name, uid, gid, mode)| format!("{name} {uid} {gid} {mode:o}\n")).collect()
        }
        "Get" => format!("{}\n", i32::try_from(body.deserialize::<OwnedVariant>()?)?),
        _ => String::new(),
    })
}

fn lines(all: &[impl std::fmt::Display]) -> String {
    all.iter().map(|one| format!("{one}\n")).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use zbus::Variant;

    use super::*;
    use crate::legacy::Argument;

    fn asked(words: &[&str]) -> (Vec<Argument>, &'static str) {
        match parse(words).unwrap() {
            Wish::Call(request, function) => (request.arguments, function),
            other => panic!("{other:?}"),
        }
    }

    fn reply<B: serde::Serialize + zbus::DynamicType>(body: &B) -> Message {
        let call = Message::method_call("/", "Call").build(&()).unwrap();
        Message::method_return(&call.header()).build(body).unwrap()
    }

    #[test]
    fn it_is_called_by_its_name() {
        let calls = [("cgm", true), ("/usr/bin/cgm", true), ("cgrant", false), ("/cgm/cgrant", false)];
        for (program, is) in calls {
            assert_eq!(is_called(Some(&program.into())), is, "{program}");
        }
        assert!(!is_called(None));
    }

    #[test]
    fn every_verb_of_the_usage_is_a_call() {
        let verbs = USAGE.lines().filter_map(|line| line.strip_prefix("  cgm "));
        let verbs: Vec<&str> = verbs.filter(|line| !line.starts_with('-')).collect();
        assert_eq!(verbs.len(), 20);
        for line in verbs {
            let word = |word: &'static str| match word.trim_matches(['[', ']']) {
                "UID" | "GID" | "MODE" | "PID" | "0|1" => "1",
                word => word,
            };
            let full: Vec<&str> = line.split(' ').map(word).collect();
            let optional = line.split(' ').filter(|word| word.starts_with('[')).count();
            for words in [&full[..], &full[..full.len() - optional]] {
                assert!(matches!(parse(words), Ok(Wish::Call(..))), "{words:?}");
            }
            let long = [&full[..], &["more"]].concat();
            assert_eq!(parse(&long), Err(Wrong::Usage), "{long:?}");
        }
        for words in [&[][..], &["nothing"], &["create", "memory"], &["--version", "x"], &["gettasks"]] {
            assert_eq!(parse(words), Err(Wrong::Usage), "{words:?}");
        }
    }

    #[test]
    fn words_become_arguments() {
        let text = |words: &[&str]| words.iter().map(|word| Argument::from(*word)).collect::<Vec<_>>();
        let with = |words: &[&str], number: i32| [text(words), vec![number.into()]].concat();
        assert_eq!(asked(&["remove", "memory", "a"]).0, with(&["memory", "a"], 1));
        assert_eq!(asked(&["remove", "memory", "a", "0"]).0, with(&["memory", "a"], 0));
        assert_eq!(asked(&["gettasks", "memory"]).0, text(&["memory", ""]));
        assert_eq!(asked(&["chmod", "memory", "a", "755"]).0, with(&["memory", "a", ""], 0o755));
        assert_eq!(asked(&["movepidabs", "memory", "/", "7"]), (with(&["memory", "/"], 7), "move_pid_main"));
        for ids in [["-1", "0"], ["0", "-1"], ["2147483648", "0"], ["x", "0"]] {
            assert_eq!(parse(&["chown", "memory", "a", ids[0], ids[1]]), Err(Wrong::Ids), "{ids:?}");
        }
        assert_eq!(parse(&["chmod", "memory", "a", "9"]), Err(Wrong::Usage));
    }

    #[test]
    fn answers_are_printed_as_cgmanagers_command_did() {
        let printed = |method, reply: &Message| print(method, reply).unwrap();
        assert_eq!(printed("Create", &reply(&1)), "Path existed\n");
        assert_eq!(printed("Create", &reply(&-1)), "");
        assert_eq!(printed("Remove", &reply(&-1)), "Path did not exist\n");
        assert_eq!(printed("Remove", &reply(&1)), "");
        assert_eq!(printed("GetValue", &reply(&"a\nb")), "a\nb\n");
        assert_eq!(printed("GetTasks", &reply(&vec![1, 20])), "1\n20\n");
        let names = reply(&vec!["cpu,cpuacct", "memory"]);
        assert_eq!(printed("ListControllers", &names), "cpu,cpuacct\nmemory\n");
        let keys = vec![("tasks", 0_u32, u32::MAX, 0o100_644_u32)];
        assert_eq!(printed("ListKeys", &reply(&keys)), "tasks 0 4294967295 100644\n");
        assert_eq!(printed("Get", &reply(&Variant::from(10))), "10\n");
        assert_eq!(printed("Ping", &reply(&())), "");
    }

    #[test]
    fn who_is_not_there_is_told_as_libdbus_does() {
        let error = |number| LegacyError::Unreachable {
            path: "/s".to_owned(),
            source: io::Error::from_raw_os_error(number),
        };
        let told = "org.freedesktop.DBus.Error.FileNotFound: Failed to connect to socket /s: No such file or directory";
        assert_eq!(unreachable_text(&error(2)), told);
        assert!(unreachable_text(&error(111)).contains("Error.NoServer: "));
    }
}
