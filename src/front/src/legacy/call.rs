//! From a method call to what is asked of the engine. One pass over one bounded message, without waiting and without
//! state.

use cgrant_wire::{LegacyCall, Place, legacy::MAX_TEXT, legacy::MAX_VALUE};
use zbus::{Fd, Message, Variant};

use crate::{
    contract::{Contract, DRIVER, INTROSPECTABLE, LEGACY, PEER, PROPERTIES},
    fault::Fault,
    object::DRIVER_PATH,
    options::printable,
};

/// The object that everything is called on.
const PATH: &str = "/org/linuxcontainers/cgmanager";
/// The version of the interface; a property.
const API_VERSION: i32 = 10;
/// What most failures are told as.
pub const INVALID: &str = "invalid request";

/// What a call leads to.
#[derive(Debug)]
pub enum Action {
    /// This reply, at once.
    Reply(Box<Message>),
    /// A question to the engine, whose answer is the reply.
    Ask(LegacyCall),
    /// The twin of a method: an exchange over the socket that came with it.
    Exchange(LegacyCall),
}

/// What is to be found at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Object {
    Manager,
    /// A path above it, with its one child.
    Above(&'static str),
    /// What a bus has at this place, for clients that take us for one (busctl) and say so by its name as destination. CGManager
    /// has no such thing, and what is called without a destination finds none here either.
    Driver,
    /// Anything else: whoever answers there at all answers to `Peer`.
    None,
}

impl Object {
    fn at(path: &str, destination: Option<&str>) -> Self {
        match path {
            PATH => Self::Manager,
            DRIVER_PATH if destination == Some(DRIVER) => Self::Driver,
            "/" => Self::Above("org"),
            "/org" => Self::Above("linuxcontainers"),
            "/org/linuxcontainers" => Self::Above("cgmanager"),
            _ => Self::None,
        }
    }

    const fn interfaces(self) -> &'static [&'static str] {
        match self {
            Self::Manager => &[LEGACY, PROPERTIES, INTROSPECTABLE, PEER],
            Self::Above(_) => &[INTROSPECTABLE, PEER],
            Self::Driver => &[DRIVER, PEER],
            Self::None => &[PEER],
        }
    }
}

/// Decodes a call.
///
/// # Errors
/// [`Fault`]: what the caller gets instead.
pub fn decode(contract: &Contract, machine_id: Option<&str>, message: &Message) -> Result<Action, Fault> {
    let header = message.header();
    let path = header.path().map_or("", |path| path.as_str());
    let object = Object::at(path, header.destination().map(|name| name.as_str()));
    let member = header.member().map_or("", |member| member.as_str());
    let wanted = header.interface().map(|interface| interface.as_str());
    let mut interfaces =
        object.interfaces().iter().filter(|name| wanted.is_none_or(|wanted| wanted == **name));
    let found = interfaces.find_map(|name| Some((*name, contract.method(name, member)?)));
    let Some((interface, input)) = found else {
        return Err(Fault::UnknownMethod(format!("no method {}", printable(member))));
    };
    if header.signature().to_string_no_parens() != input {
        return Err(Fault::InvalidArgs(format!("Invalid arguments to {member} method")));
    }
    let call = Request { contract, object, machine_id, message };
    match interface {
        LEGACY => call.manager(member),
        PROPERTIES => call.properties(member),
        INTROSPECTABLE => call.introspect(),
        // No name that anybody could be called by: the specification has a bus say one.
        DRIVER if member == "Hello" => call.reply(&":1.1"),
        DRIVER => call.reply(&()),
        _ => call.peer(member),
    }
}

/// A method call, taken apart.
struct Request<'a> {
    contract: &'a Contract,
    object: Object,
    machine_id: Option<&'a str>,
    message: &'a Message,
}

impl Request<'_> {
    fn reply<B: serde::Serialize + zbus::DynamicType>(&self, body: &B) -> Result<Action, Fault> {
        let reply =
            Message::method_return(&self.message.header()).build(body).map_err(|_| Fault::internal())?;
        Ok(Action::Reply(Box::new(reply)))
    }

    fn body<T: serde::de::DeserializeOwned + zbus::Type>(&self) -> Result<T, Fault> {
        self.message.body().deserialize().map_err(|_| invalid())
    }

    fn peer(&self, member: &str) -> Result<Action, Fault> {
        match (member, self.machine_id) {
            ("Ping", _) => self.reply(&()),
            (_, Some(id)) => self.reply(&id),
            (_, None) => Err(Fault::NotSupported("this host has no machine id".to_owned())),
        }
    }

    fn introspect(&self) -> Result<Action, Fault> {
        let child = match self.object {
            Object::Above(child) => Some(child.to_owned()),
            Object::Manager | Object::Driver | Object::None => None,
        };
        self.reply(&self.contract.introspect(self.object.interfaces(), child.into_iter()))
    }

    fn properties(&self, member: &str) -> Result<Action, Fault> {
        if member == "GetAll" {
            let interface: String = self.body()?;
            own_interface(&interface)?;
            let has_some = interface.is_empty() || interface == LEGACY;
            let version = has_some.then_some(("api_version", Variant::from(API_VERSION)));
            return self.reply(&version.into_iter().collect::<std::collections::BTreeMap<_, _>>());
        }
        let body = self.message.body();
        // The value of a Set is not looked at, whatever it is.
        let (interface, property): (&str, &str) =
            body.deserialize_ignore_signature().map_err(|_| invalid())?;
        own_interface(interface)?;
        if property != "api_version" || !(interface.is_empty() || interface == LEGACY) {
            return Err(Fault::UnknownProperty(format!("no property {}", printable(property))));
        }
        match member {
            "Get" => self.reply(&Variant::from(API_VERSION)),
            _ => Err(Fault::PropertyReadOnly(format!("{property} can't be set"))),
        }
    }

    fn manager(&self, member: &str) -> Result<Action, Fault> {
        let call = match member.strip_suffix("Scm") {
            Some(method) => Action::Exchange(self.exchange(method)?),
            None if member == "Ping" => return self.reply(&()),
            None => Action::Ask(self.plain(member)?),
        };
        Ok(call)
    }

    fn plain(&self, method: &str) -> Result<LegacyCall, Fault> {
        if method == "ListControllers" {
            return Ok(LegacyCall::Controllers);
        }
        match method {
            "GetPidCgroup" | "GetPidCgroupAbs" => {
                let (controllers, pid): (String, i32) = self.body()?;
                pid_cgroup(method, controllers, Some(pid))
            }
            "Chown" => {
                let (controllers, path, uid, gid): (String, String, i32, i32) = self.body()?;
                Ok(LegacyCall::Chown { place: place(controllers, path)?, ids: Some((uid, gid)) })
            }
            "MovePid" | "MovePidAbs" => {
                let (controllers, path, pid): (String, String, i32) = self.body()?;
                move_pid(method, place(controllers, path)?, Some(pid))
            }
            "Chmod" => {
                let (controllers, path, file, mode): (String, String, String, i32) = self.body()?;
                chmod(place(controllers, path)?, file, mode)
            }
            "GetValue" => {
                let (controllers, path, key): (String, String, String) = self.body()?;
                get_value(place(controllers, path)?, key)
            }
            "SetValue" => {
                let (controllers, path, key, value): (String, String, String, String) = self.body()?;
                set_value(place(controllers, path)?, key, value)
            }
            "Remove" => {
                let (controllers, path, recursive): (String, String, i32) = self.body()?;
                Ok(LegacyCall::Remove { place: place(controllers, path)?, recursive: recursive != 0 })
            }
            _ => {
                let (controllers, path): (String, String) = self.body()?;
                at_place(method, place(controllers, path)?)
            }
        }
    }

    /// The same of a method's twin: without what a credential names, and with a socket behind the rest. That the socket came is
    /// seen here; which it is, by [`super::exchange`].
    fn exchange(&self, method: &str) -> Result<LegacyCall, Fault> {
        let body = self.message.body();
        match method {
            "GetPidCgroup" | "GetPidCgroupAbs" => {
                let (controllers, _): (String, Fd<'_>) = body.deserialize().map_err(|_| invalid())?;
                pid_cgroup(method, controllers, None)
            }
            "Chmod" => {
                let (controllers, path, file, mode, _): (String, String, String, i32, Fd<'_>) =
                    body.deserialize().map_err(|_| invalid())?;
                chmod(place(controllers, path)?, file, mode)
            }
            "GetValue" => {
                let (controllers, path, key, _): (String, String, String, Fd<'_>) =
                    body.deserialize().map_err(|_| invalid())?;
                get_value(place(controllers, path)?, key)
            }
            "SetValue" => {
                let (controllers, path, key, value, _): (String, String, String, String, Fd<'_>) =
                    body.deserialize().map_err(|_| invalid())?;
                set_value(place(controllers, path)?, key, value)
            }
            "Remove" => {
                let (controllers, path, recursive, _): (String, String, i32, Fd<'_>) =
                    body.deserialize().map_err(|_| invalid())?;
                Ok(LegacyCall::Remove { place: place(controllers, path)?, recursive: recursive != 0 })
            }
            _ => {
                let (controllers, path, _): (String, String, Fd<'_>) =
                    body.deserialize().map_err(|_| invalid())?;
                let place = place(controllers, path)?;
                match method {
                    "Chown" => Ok(LegacyCall::Chown { place, ids: None }),
                    "MovePid" | "MovePidAbs" => move_pid(method, place, None),
                    _ => at_place(method, place),
                }
            }
        }
    }
}

fn own_interface(interface: &str) -> Result<(), Fault> {
    if interface.is_empty() || Object::Manager.interfaces().contains(&interface) {
        return Ok(());
    }
    Err(Fault::UnknownInterface(format!("no interface {}", printable(interface))))
}

/// The methods that take nothing but a place.
fn at_place(method: &str, place: Place) -> Result<LegacyCall, Fault> {
    match method {
        "Create" => Ok(LegacyCall::Create(place)),
        "GetTasks" => Ok(LegacyCall::Tasks { place, recursive: false }),
        "GetTasksRecursive" => Ok(LegacyCall::Tasks { place, recursive: true }),
        "ListChildren" => Ok(LegacyCall::Children(place)),
        "RemoveOnEmpty" => Ok(LegacyCall::RemoveOnEmpty(place)),
        "Prune" => Ok(LegacyCall::Prune(place)),
        "ListKeys" => Ok(LegacyCall::Keys(place)),
        // A method that the contract has and the code has not; a test calls every one.
        _ => Err(Fault::UnknownMethod(format!("no method {}", printable(method)))),
    }
}

fn pid_cgroup(method: &str, controllers: String, pid: Option<i32>) -> Result<LegacyCall, Fault> {
    let absolute = method == "GetPidCgroupAbs";
    Ok(LegacyCall::PidCgroup { controllers: at_most(controllers, MAX_TEXT)?, absolute, pid })
}

fn move_pid(method: &str, place: Place, pid: Option<i32>) -> Result<LegacyCall, Fault> {
    Ok(LegacyCall::MovePid { place, absolute: method == "MovePidAbs", pid })
}

fn chmod(place: Place, file: String, mode: i32) -> Result<LegacyCall, Fault> {
    Ok(LegacyCall::Chmod { place, file: at_most(file, MAX_TEXT)?, mode })
}

fn get_value(place: Place, key: String) -> Result<LegacyCall, Fault> {
    Ok(LegacyCall::GetValue { place, key: at_most(key, MAX_TEXT)? })
}

fn set_value(place: Place, key: String, value: String) -> Result<LegacyCall, Fault> {
    Ok(LegacyCall::SetValue { place, key: at_most(key, MAX_TEXT)?, value: at_most(value, MAX_VALUE)? })
}

fn place(controllers: String, path: String) -> Result<Place, Fault> {
    Ok(Place { controllers: at_most(controllers, MAX_TEXT)?, path: at_most(path, MAX_TEXT)? })
}

fn at_most(text: String, most: usize) -> Result<String, Fault> {
    if text.len() <= most { Ok(text) } else { Err(invalid()) }
}

/// What most failures are told as.
fn invalid() -> Fault {
    Fault::InvalidArgs(INVALID.to_owned())
}
