//! `cgrant cgroup …`: cgroups by CGManager's interface, for people. Controllers and keys have their names of cgroup v1, on every
//! kind of host.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use zbus::Type;

use crate::{
    Client,
    args::{Controllers, Key, LegacyCommand, Place, PlaceOrOwn},
    error::Failure,
    exit,
    legacy::{LegacyError, Manager, Request},
    output::{self, List, Report},
};

/// All controllers.
const ALL: &str = "all";

pub(crate) fn run(client: &Client, command: LegacyCommand) -> Result<u8, Failure> {
    match command {
        LegacyCommand::Create(place) => {
            Told::new(client, format!("make the cgroup {:?}", place.cgroup))?.do_at("Create", &place)
        }
        LegacyCommand::Remove { place, recursive, when_empty } => {
            remove(client, &place, recursive, when_empty)
        }
        LegacyCommand::Prune(place) => {
            let told = Told::new(client, format!("prune {}", named(&place.cgroup)))?;
            told.does(&request("Prune", &place.of.controllers, &place.cgroup))
        }
        LegacyCommand::List(place) => list(client, &place),
        LegacyCommand::Ps { place, recursive } => processes(client, &place, recursive),
        LegacyCommand::Files(place) => files(client, &place),
        LegacyCommand::Get { cgroup, keys } => get(client, &cgroup, &keys),
        LegacyCommand::Set { cgroup, values } => set(client, &cgroup, &values),
        LegacyCommand::Attach { place, pid, absolute } => {
            let told = Told::new(client, format!("move the process {pid} into {}", named(&place.cgroup)))?;
            let method = if absolute { "MovePidAbs" } else { "MovePid" };
            told.does(&request(method, &place.of.controllers, &place.cgroup).with(pid))
        }
        LegacyCommand::Show { pid, of } => show(client, pid, &of),
        LegacyCommand::Chown { place, owner: (uid, gid) } => {
            let told = Told::new(client, format!("give {} away", named(&place.cgroup)))?;
            told.does(&request("Chown", &place.of.controllers, &place.cgroup).with(uid).with(gid))
        }
        LegacyCommand::Chmod { place, mode, file } => {
            let told = Told::new(client, format!("set the mode of {}", named(&place.cgroup)))?;
            let call = request("Chmod", &place.of.controllers, &place.cgroup);
            told.does(&call.with(file.as_str()).with(mode))
        }
        LegacyCommand::Controllers => {
            let told = Told::new(client, "list the controllers".to_owned())?;
            let names = told.controllers(ALL)?;
            told.print(&List::new(&["CONTROLLERS"], names.iter().map(|name| json!({ "controllers": name }))))
        }
    }?;
    Ok(exit::DONE)
}

/// A cgroup in a sentence.
fn named(cgroup: &str) -> String {
    if cgroup.is_empty() { "your cgroup".to_owned() } else { format!("the cgroup {cgroup:?}") }
}

fn request(method: &'static str, controllers: &str, cgroup: &str) -> Request {
    Request::new(method).with(controllers).with(cgroup)
}

/// A connection, and what it is for.
struct Told<'a> {
    client: &'a Client,
    manager: Manager,
    doing: String,
}

impl<'a> Told<'a> {
    fn new(client: &'a Client, doing: String) -> Result<Self, Failure> {
        match Manager::connect() {
            Ok(manager) => Ok(Self { client, manager, doing }),
            Err(source) => Err(Failure::Legacy { doing, source }),
        }
    }

    fn failed(&self, source: LegacyError) -> Failure {
        Failure::Legacy { doing: self.doing.clone(), source }
    }

    fn does(&self, request: &Request) -> Result<(), Failure> {
        self.manager.call(request).map(|_| ()).map_err(|error| self.failed(error))
    }

    fn do_at(&self, method: &'static str, place: &Place) -> Result<(), Failure> {
        self.does(&request(method, &place.of.controllers, &place.cgroup))
    }

    fn get<R: serde::de::DeserializeOwned + Type>(&self, request: &Request) -> Result<R, Failure> {
        self.manager.get(request).map_err(|error| self.failed(error))
    }

    /// The hierarchies that a list stands for, one controller of each.
    fn controllers(&self, list: &str) -> Result<Vec<String>, Failure> {
        if list == ALL {
            return self.get(&Request::new("ListControllers"));
        }
        Ok(list.split(',').map(str::to_owned).collect())
    }

    /// Asks in each hierarchy. One in which there is nothing to be had is passed over; if that is so in all, it is the answer.
    fn each<R: serde::de::DeserializeOwned + Type>(
        &self,
        list: &str,
        ask: impl Fn(&str) -> Request,
    ) -> Result<Vec<(String, R)>, Failure> {
        let (mut found, mut refused) = (Vec::new(), None);
        for controllers in self.controllers(list)? {
            // Those that share a hierarchy have one answer.
            let first = controllers.split(',').next().unwrap_or_default();
            match self.manager.get(&ask(first)) {
                Ok(answer) => found.push((controllers, answer)),
                Err(error @ LegacyError::Refused(_)) => refused = Some(error),
                Err(error) => return Err(self.failed(error)),
            }
        }
        match refused {
            Some(error) if found.is_empty() => Err(self.failed(error)),
            _ => Ok(found),
        }
    }

    fn print(&self, report: &impl Report) -> Result<(), Failure> {
        output::print(self.client.format, report)
    }
}

fn remove(client: &Client, place: &Place, recursive: bool, when_empty: bool) -> Result<(), Failure> {
    let told = Told::new(client, format!("remove {}", named(&place.cgroup)))?;
    if when_empty {
        return told.do_at("RemoveOnEmpty", place);
    }
    let call = request("Remove", &place.of.controllers, &place.cgroup).with(i32::from(recursive));
    match told.get::<i32>(&call)? {
        1 => Ok(()),
        _ => Err(told.failed(LegacyError::Refused("there is no such cgroup".to_owned()))),
    }
}

/// Names with the hierarchies that have them.
fn list(client: &Client, place: &PlaceOrOwn) -> Result<(), Failure> {
    let told = Told::new(client, format!("list what is below {}", named(&place.cgroup)))?;
    let found =
        told.each::<Vec<String>>(&place.of.controllers, |one| request("ListChildren", one, &place.cgroup))?;
    let mut children: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (controllers, names) in found {
        for name in names {
            children.entry(name).or_default().push(controllers.clone());
        }
    }
    let items = children.into_iter().map(|(name, of)| json!({ "cgroup": name, "controllers": of }));
    told.print(&List::new(&["CGROUP", "CONTROLLERS"], items))
}

fn processes(client: &Client, place: &PlaceOrOwn, recursive: bool) -> Result<(), Failure> {
    let told = Told::new(client, format!("list the processes in {}", named(&place.cgroup)))?;
    let method = if recursive { "GetTasksRecursive" } else { "GetTasks" };
    let found = told.each::<Vec<i32>>(&place.of.controllers, |one| request(method, one, &place.cgroup))?;
    let pids: BTreeSet<i32> = found.into_iter().flat_map(|(_, pids)| pids).collect();
    told.print(&List::new(&["PID"], pids.into_iter().map(|pid| json!({ "pid": pid }))))
}

fn files(client: &Client, place: &PlaceOrOwn) -> Result<(), Failure> {
    type Rows = Vec<(String, u32, u32, u32)>;
    let told = Told::new(client, format!("list the files of {}", named(&place.cgroup)))?;
    let found = told.each::<Rows>(&place.of.controllers, |one| request("ListKeys", one, &place.cgroup))?;
    let items = found.into_iter().flat_map(|(controllers, mut keys)| {
        keys.sort();
        keys.into_iter().map(move |(name, uid, gid, mode)| {
            json!({
                "file": name, "controllers": controllers, "uid": mapped(uid), "gid": mapped(gid),
                "mode": format!("{:o}", mode & 0o7777),
            })
        })
    });
    told.print(&List::new(&["FILE", "CONTROLLERS", "UID", "GID", "MODE"], items))
}

/// An id that has no number where we are is none.
fn mapped(id: u32) -> Value {
    if id == u32::MAX { Value::Null } else { id.into() }
}

fn get(client: &Client, cgroup: &str, keys: &[Key]) -> Result<(), Failure> {
    let told = Told::new(client, format!("read values of {}", named(cgroup)))?;
    let items = keys.iter().map(|key| {
        let value: String =
            told.get(&request("GetValue", &key.controller, cgroup).with(key.name.as_str()))?;
        Ok(json!({ "key": key.name, "value": value }))
    });
    let items: Vec<Value> = items.collect::<Result<_, Failure>>()?;
    told.print(&List::new(&["KEY", "VALUE"], items))
}

fn set(client: &Client, cgroup: &str, values: &[(Key, String)]) -> Result<(), Failure> {
    values.iter().try_for_each(|(key, value)| {
        let told = Told::new(client, format!("set {} of {}", key.name, named(cgroup)))?;
        let call = request("SetValue", &key.controller, cgroup).with(key.name.as_str());
        told.does(&call.with(value.as_str()))
    })
}

fn show(client: &Client, pid: i32, of: &Controllers) -> Result<(), Failure> {
    let told = Told::new(client, format!("show the cgroups of the process {pid}"))?;
    let found =
        told.each::<String>(&of.controllers, |one| Request::new("GetPidCgroupAbs").with(one).with(pid))?;
    let items =
        found.into_iter().map(|(controllers, path)| json!({ "controllers": controllers, "cgroup": path }));
    told.print(&List::new(&["CONTROLLERS", "CGROUP"], items))
}
