//! `cgrant grant …`: each verb is a look-up of the grant, one call, and one result.

use std::{collections::HashMap, os::fd::AsFd};

use cgrant_container::Pidfd;
use cgrant_container::Session;
use cgrant_proto::{
    Account, AdoptGrant, Asked, AttachTo, CgroupProxy, CreateGrant, Error, GrantProxy, Lifetime, ListGrants,
    ReleaseGrant, Target, names,
};
use serde_json::{Map, Value, json};
use zbus::{Fd, OwnedObjectPath};

use super::link;
use crate::{
    Client,
    args::{CgroupCommand, CreateArgs, GrantCommand, GrantName},
    error::{Doing, Failure},
    exit,
    output::{self, Fields, List, Report},
    value,
};

pub(crate) fn run(client: &Client, command: GrantCommand) -> Result<u8, Failure> {
    match command {
        GrantCommand::Create(args) => create(client, &args),
        GrantCommand::List { all } => list(client, all),
        GrantCommand::Show(name) => Found::new(client, &name, "show")?.show(),
        GrantCommand::Set { grant, limits } => Found::new(client, &grant, "set limits of")?.set(limits),
        GrantCommand::Get { grant, keys } => Found::new(client, &grant, "read values of")?.get(&keys),
        GrantCommand::Stat(name) => Found::new(client, &name, "read the figures of")?.stat(),
        GrantCommand::Ps(name) => Found::new(client, &name, "list the processes of")?.processes(),
        GrantCommand::Attach { grant, pid, tree, stage } => {
            let target = if stage { Target::Stage } else { Target::Payload };
            Found::new(client, &grant, "attach to")?.attach(&pidfd(pid)?, target, tree)
        }
        GrantCommand::Adopt { grant, lifetime } => {
            let holder = lifetime.holder.map(pidfd).transpose()?;
            let found = Found::new(client, &grant, "change the lifetime of")?;
            let options = AdoptGrant::new().lifetime(lifetime_of(holder.as_ref()));
            found.with(found.grant()?.adopt(&options))
        }
        GrantCommand::Freeze(name) => {
            let found = Found::new(client, &name, "freeze")?;
            found.with(found.cgroup()?.freeze())
        }
        GrantCommand::Thaw(name) => {
            let found = Found::new(client, &name, "thaw")?;
            found.with(found.cgroup()?.thaw())
        }
        GrantCommand::Kill(name) => {
            let found = Found::new(client, &name, "kill what is in")?;
            found.with(found.cgroup()?.kill())
        }
        GrantCommand::Release { grant, kill, force } => {
            let found = Found::new(client, &grant, "release")?;
            let mut options = ReleaseGrant::new();
            if kill {
                options = options.kill();
            }
            if force {
                options = options.force();
            }
            found.with(found.grant()?.release(&options))
        }
        GrantCommand::Cgroup(command) => cgroup(client, command),
    }?;
    Ok(exit::DONE)
}

fn cgroup(client: &Client, command: CgroupCommand) -> Result<(), Failure> {
    match command {
        CgroupCommand::Create(args) => {
            let found = Found::new(client, &args.grant, "make a cgroup in")?;
            found.with(found.cgroup()?.create_cgroup(&args.path))
        }
        CgroupCommand::Remove(args) => {
            let found = Found::new(client, &args.grant, "remove a cgroup from")?;
            found.with(found.cgroup()?.remove_cgroup(&args.path))
        }
        CgroupCommand::List(name) => {
            let found = Found::new(client, &name, "list the cgroups of")?;
            let paths = found.with(found.cgroup()?.list_cgroups())?;
            found.print(&List::new(&["PATH"], paths.into_iter().map(|path| json!({ "path": path }))))
        }
    }
}

fn create(client: &Client, args: &CreateArgs) -> Result<(), Failure> {
    const DOING: &str = "make a grant";
    let limits = each_once(args.limits.all())?;
    let holder = args.holder.map(pidfd).transpose()?;
    let pressure: Vec<&str> = args.pressure.iter().map(String::as_str).collect();
    let mut options =
        CreateGrant::new().lifetime(lifetime_of(holder.as_ref())).limits(&limits).pressure(&pressure);
    if let Some(key) = &args.key {
        options = options.key(key);
    }
    if let Some(count) = args.ids.ids {
        options = options.range_count(count);
    }
    options = match args.no_ids {
        true => options.no_range(),
        false => options.range_named(!args.name.is_empty()),
    };
    let session = client.connect(DOING)?;
    let doing = || DOING.to_owned();
    let manager = session.manager().doing(doing)?;
    let (path, result, _payload) = session.call(manager.create_grant(&args.name, &options)).doing(doing)?;
    let name = session.grant(&path).and_then(|grant| session.call(grant.name())).doing(doing)?;
    let fields = [
        ("name", Some(Value::from(name))),
        ("id", result.id.map(Value::from)),
        ("new", result.new.map(Value::from)),
        ("uid", result.uid.map(Value::from)),
        ("gid", result.gid.map(Value::from)),
        ("count", result.count.map(Value::from)),
    ];
    let fields = fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?)));
    output::print(client.format, &Fields(fields.collect()))
}

fn list(client: &Client, all: bool) -> Result<(), Failure> {
    const DOING: &str = "list the grants";
    let session = client.connect(DOING)?;
    let options = if all { ListGrants::new().all() } else { ListGrants::new() };
    let manager = session.manager().doing(|| DOING.to_owned())?;
    let mut grants = session.call(manager.list_grants(&options)).doing(|| DOING.to_owned())?;
    grants.sort_by(|a, b| (a.2, &a.1).cmp(&(b.2, &b.1)));
    let links = session.all_links().doing(|| DOING.to_owned())?;
    let items = grants.into_iter().map(|(path, name, account)| {
        let links = links.get(&path).map_or_else(|| json!([]), |links| value::json(links));
        let address: Vec<&str> = links.as_array().into_iter().flatten().flat_map(link::addresses).collect();
        json!({
            "name": name, "account": account, "id": names::grant_id(&path), "path": path.as_str(),
            "address": address, "links": links,
        })
    });
    output::print(client.format, &List::new(&["NAME", "ACCOUNT", "ID", "ADDRESS"], items))
}

/// The lifetime that options without "connection" can say: a command's connection ends with the command.
fn lifetime_of(holder: Option<&Pidfd>) -> Lifetime<'_> {
    holder.map_or(Lifetime::Persistent, |holder| Lifetime::Process(holder.as_fd()))
}

fn pidfd(pid: u32) -> Result<Pidfd, Failure> {
    Pidfd::open(pid).map_err(|source| Failure::Process { pid, source })
}

/// A message holds each limit once; which of two counts must not be left to chance.
pub(crate) fn each_once(limits: Vec<(String, String)>) -> Result<Vec<(String, String)>, Failure> {
    let mut seen = HashMap::new();
    for (key, value) in &limits {
        if let Some(first) = seen.insert(key, value) {
            return Err(Failure::Usage(format!("the limit {key} is given twice: {first:?} and {value:?}")));
        }
    }
    Ok(limits)
}

/// A grant that was looked up by name, for one verb.
pub(super) struct Found<'a> {
    client: &'a Client,
    pub(super) session: Session,
    pub(super) path: OwnedObjectPath,
    pub(super) doing: String,
}

impl<'a> Found<'a> {
    /// `verb` completes "cannot … the grant NAME".
    pub(super) fn new(client: &'a Client, grant: &GrantName, verb: &str) -> Result<Self, Failure> {
        let doing = format!("{verb} the grant {:?}", grant.name);
        let session = client.connect(&doing)?;
        let options = grant.account.map_or_else(Account::new, |uid| Account::new().account(uid));
        let find = || session.call(session.manager()?.get_grant(&grant.name, &options));
        let path = find().doing(|| doing.clone())?;
        Ok(Self { client, session, path, doing })
    }

    fn grant(&self) -> Result<Asked<GrantProxy<'static>>, Failure> {
        self.session.grant(&self.path).doing(|| self.doing.clone())
    }

    pub(super) fn cgroup(&self) -> Result<Asked<CgroupProxy<'static>>, Failure> {
        self.session.cgroup(&self.path).doing(|| self.doing.clone())
    }

    pub(super) fn with<T>(&self, call: impl Future<Output = Result<T, Error>>) -> Result<T, Failure> {
        self.session.call(call).doing(|| self.doing.clone())
    }

    pub(super) fn print(&self, report: &impl Report) -> Result<(), Failure> {
        output::print(self.client.format, report)
    }

    /// Everything that the grant's interfaces tell; a grant without ids has not the last.
    fn show(&self) -> Result<(), Failure> {
        let mut fields = Map::new();
        for interface in [names::GRANT, names::CGROUP, names::LINKS] {
            let properties = self.session.properties(&self.path, interface).doing(|| self.doing.clone())?;
            fields.append(&mut value::properties(&properties));
        }
        if let Ok(ids) = self.session.properties(&self.path, names::IDS) {
            fields.append(&mut value::properties(&ids));
        }
        self.print(&Shown(fields))
    }

    fn set(&self, limits: Vec<(String, String)>) -> Result<(), Failure> {
        let limits = each_once(limits)?.into_iter().collect();
        self.with(self.cgroup()?.set_limits(&limits))
    }

    fn get(&self, keys: &[String]) -> Result<(), Failure> {
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let values = self.with(self.cgroup()?.get_values(&keys))?;
        self.print(&Fields(values.into_iter().map(|(key, value)| (key, value.into())).collect()))
    }

    fn stat(&self) -> Result<(), Failure> {
        let figures = self.with(self.cgroup()?.stat())?;
        self.print(&Figures(value::properties(&figures)))
    }

    fn processes(&self) -> Result<(), Failure> {
        let mut pids = self.with(self.cgroup()?.list_processes())?;
        pids.sort_unstable();
        let items = pids.into_iter().map(|pid| json!({ "pid": pid, "command": command_of(pid) }));
        self.print(&List::new(&["PID", "COMMAND"], items))
    }

    fn attach(&self, process: &Pidfd, target: Target, tree: bool) -> Result<(), Failure> {
        let options = AttachTo::new().target(target);
        let options = if tree { options.tree() } else { options };
        let attached = self.with(self.cgroup()?.attach(Fd::from(process.as_fd()), &options))?;
        self.print(&Fields(Map::from_iter([("attached".to_owned(), attached.into())])))
    }
}

/// The name of a process, which may have ended, or be of a pid namespace that is not ours.
fn command_of(pid: u32) -> Option<String> {
    let name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&name).trim_end().to_owned())
}

/// A grant: JSON has its time as it came, in microseconds since 1970, people see a date.
#[derive(Debug, serde::Serialize)]
#[serde(transparent)]
struct Shown(Map<String, Value>);

impl Report for Shown {
    fn rows(&self) -> Vec<Vec<String>> {
        let text = |name: &str, value: &Value| match value.as_u64() {
            Some(time) if name == "created" => output::time(time),
            _ => value::text(value),
        };
        self.0.iter().map(|(name, value)| vec![name.clone(), text(name, value)]).collect()
    }
}

/// Figures of a grant: JSON has the numbers as they came, people see units.
#[derive(Debug, serde::Serialize)]
#[serde(transparent)]
struct Figures(Map<String, Value>);

impl Report for Figures {
    fn rows(&self) -> Vec<Vec<String>> {
        let mut rows = Vec::new();
        for (name, figure) in &self.0 {
            match (name.as_str(), figure) {
                ("io", Value::Array(devices)) => rows.extend(devices.iter().filter_map(device_row)),
                ("pressure", Value::Array(kinds)) => rows.extend(kinds.iter().filter_map(pressure_row)),
                _ => rows.push(vec![name.clone(), figure_text(name, figure)]),
            }
        }
        rows
    }
}

fn figure_text(name: &str, figure: &Value) -> String {
    let Some(number) = figure.as_u64() else { return value::text(figure) };
    if name.ends_with("-usec") {
        return format!("{}.{:06}s", number / 1_000_000, number % 1_000_000);
    }
    if name.starts_with("memory-") || name.starts_with("swap-") {
        return output::bytes(number);
    }
    number.to_string()
}

/// (major, minor, bytes read, bytes written, reads, writes)
fn device_row(device: &Value) -> Option<Vec<String>> {
    let numbers: Vec<u64> = device.as_array()?.iter().filter_map(Value::as_u64).collect();
    let [major, minor, read, written, reads, writes] = numbers[..] else { return None };
    let (read, written) = (output::bytes(read), output::bytes(written));
    Some(vec![
        format!("io {major}:{minor}"),
        format!("read {read} in {reads}, written {written} in {writes}"),
    ])
}

/// (resource, kind, averages over 10, 60 and 300 s in hundredths of a percent, microseconds)
fn pressure_row(pressure: &Value) -> Option<Vec<String>> {
    let [Value::String(resource), Value::String(kind), ten, sixty, three_hundred, total] =
        pressure.as_array()?.as_slice()
    else {
        return None;
    };
    let percent = |value: &Value| {
        value.as_u64().map(|hundredths| format!("{}.{:02}%", hundredths / 100, hundredths % 100))
    };
    let (ten, sixty, three_hundred) = (percent(ten)?, percent(sixty)?, percent(three_hundred)?);
    let total = figure_text("-usec", total);
    Some(vec![
        format!("pressure {resource} {kind}"),
        format!("{ten} {sixty} {three_hundred} of 10, 60, 300 s; {total}"),
    ])
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_given_twice_is_refused() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let error = each_once(vec![pair("memory.max", "1"), pair("memory.max", "2")]).unwrap_err();
        assert_eq!(error.code(), exit::USAGE);
        assert!(error.line().contains("memory.max"), "{}", error.line());
        assert_eq!(each_once(vec![pair("a", "1"), pair("b", "1")]).unwrap().len(), 2);
    }

    #[test]
    fn people_see_when_a_grant_was_made() {
        let Value::Object(fields) = json!({"created": 1_798_761_599_000_001_u64, "account": 1000}) else {
            panic!("no object")
        };
        let shown = Shown(fields);
        assert_eq!(shown.rows(), [["account", "1000"], ["created", "2026-12-31 23:59:59 UTC"]]);
        assert!(output::json(&shown).unwrap().contains("1798761599000001"));
    }

    #[test]
    fn figures_have_units_for_people() {
        let figures = json!({
            "memory-current": 1_572_864, "cpu-usage-usec": 1_500_000, "pids-current": 3,
            "io": [[8, 0, 1024, 2048, 1, 2]], "pressure": [["cpu", "some", 150, 20, 0, 7]],
        });
        let Value::Object(figures) = figures else { panic!("no object") };
        let rows = Figures(figures).rows();
        let row = |name: &str| rows.iter().find(|row| row[0] == name).map(|row| row[1].clone()).unwrap();
        assert_eq!(row("memory-current"), "1.5M");
        assert_eq!(row("cpu-usage-usec"), "1.500000s");
        assert_eq!(row("pids-current"), "3");
        assert_eq!(row("io 8:0"), "read 1.0K in 1, written 2.0K in 2");
        assert_eq!(row("pressure cpu some"), "1.50% 0.20% 0.00% of 10, 60, 300 s; 0.000007s");
    }

    #[test]
    fn figures_of_another_shape_do_no_harm() {
        let Value::Object(figures) = json!({"io": [1, [1, 2]], "pressure": ["x"], "new": [1]}) else {
            panic!("no object")
        };
        assert_eq!(Figures(figures).rows(), [["new", "1"]]);
    }

    #[test]
    fn a_process_that_is_not_there_is_named() {
        let error = pidfd(0x7fff_fff0).unwrap_err();
        assert!(error.line().contains("2147483632"), "{}", error.line());
    }
}
