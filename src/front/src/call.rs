//! From a method call to an operation: which object, which method, are the arguments what the contract says.
//!
//! All of it is one pass over one bounded message, without waiting and without state, so that it may be wrapped
//! against panics as a whole. Nothing here decides whether the caller may do it.

use std::os::fd::OwnedFd;

use cgrant_proto::names::{CGROUP, GRANT, LINKS, MANAGER, MOUNTS};
use cgrant_wire::{
    Attach, AttachTarget, BlockUse, ConnectionId, CreateGrant, DiskReport, GrantId, Holder, LinkKind,
    MapDirectory, Op, RangeRequest, Refusal, RefusalCode,
};
use zbus::{Message, OwnedFd as BodyFd, message::Flags};

use crate::{
    contract::{Contract, DRIVER, INTROSPECTABLE, OBJECT_MANAGER, PEER, PROPERTIES},
    fault::Fault,
    mounts::source,
    network::{ports, request},
    object::{self, Object},
    options::{Descriptors, MAX_TEXT, Options, Pairs, Texts, printable},
    view::View,
};

/// Most pieces of ids that are settled at once.
const MAX_FIRSTS: usize = 1024;
/// Most blocks of ids in one report of what their files take.
const MAX_BLOCKS: usize = 8192;
/// Longest name of a grant or a link that is passed on; what names may be is the engine's to say.
pub const MAX_NAME: usize = 255;
/// Longest idempotency key, in bytes.
const MAX_KEY: usize = 128;
/// Longest word of an option that has a few fixed ones.
pub const MAX_WORD: usize = 32;
/// What is wrong with another `lifetime`.
pub const NO_LIFETIME: &str = "not \"process\", \"connection\" or \"persistent\"";
/// What is wrong with `nesting` beside `no-range`.
pub const NO_RANGE_TO_NEST: &str = "there is no range for it to be in with no-range";

/// Who calls, as the engine introduced the connection.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// The connection's number.
    pub connection: ConnectionId,
    /// The uid behind it. Decides what is listed and signalled here, and nothing else.
    pub uid: u32,
    /// Does it see what others have, too: as root of the host, or of a container what users in there have?
    pub is_root: bool,
    /// Is it our own socket?
    pub peer_to_peer: bool,
    /// Can it be sent descriptors?
    pub unix_fds: bool,
}

/// What is needed of a call to answer it, without its body and descriptors.
#[derive(Debug)]
pub struct Call {
    stub: Message,
    reply_expected: bool,
}

impl Call {
    /// Of a received method call.
    ///
    /// # Errors
    /// Only if zbus can't build a message, which no content of ours makes happen.
    pub fn of(message: &Message) -> zbus::Result<Self> {
        let header = message.header();
        let primary = header.primary();
        let mut stub = Message::method_call("/", "Call")
            .serial(primary.serial_num())
            .endian(primary.endian_sig().into());
        if let Some(sender) = header.sender() {
            stub = stub.sender(sender.to_owned());
        }
        let reply_expected = !primary.flags().contains(Flags::NO_REPLY_EXPECTED);
        Ok(Self { stub: stub.build(&())?, reply_expected })
    }

    /// A message to reply to.
    pub const fn message(&self) -> &Message {
        &self.stub
    }

    /// Does the caller want a reply?
    pub const fn reply_expected(&self) -> bool {
        self.reply_expected
    }
}

/// What is to be asked of the engine, and what to make of its answer.
#[derive(Debug)]
pub struct Question {
    /// The operation.
    pub op: Op,
    /// Its descriptors.
    pub fds: Vec<OwnedFd>,
    /// How the answer becomes a reply.
    pub view: View,
}

/// What a call leads to.
#[derive(Debug)]
pub enum Action {
    /// This reply, at once.
    Reply(Box<Message>),
    /// A question to the engine.
    Ask(Box<Question>),
}

/// A method call, taken apart.
struct Request<'a> {
    contract: &'a Contract,
    caller: Caller,
    message: &'a Message,
    object: Object,
    machine_id: Option<&'a str>,
}

/// Decodes a call.
///
/// # Errors
/// [`Fault`]: what the caller gets instead.
pub fn decode(
    contract: &Contract,
    caller: Caller,
    machine_id: Option<&str>,
    message: &Message,
) -> Result<Action, Fault> {
    let header = message.header();
    let path = header.path().map_or("", |path| path.as_str());
    let object = object::find(path, caller.peer_to_peer)
        .ok_or_else(|| Fault::UnknownObject(format!("no object {}", printable(path))))?;
    let member = header.member().map_or("", |member| member.as_str());
    let (interface, input) =
        find_method(contract, object, header.interface().map(|interface| interface.as_str()), member)?;
    let signature = header.signature().to_string_no_parens();
    if signature != input {
        return Err(Fault::InvalidArgs(format!(
            "{interface}.{member} takes {input:?}, not {:?}",
            printable(&signature)
        )));
    }
    Request { contract, caller, message, object, machine_id }.dispatch(interface, member)
}

/// The interface that the method is of, and the signature of its arguments. The interface may be left out of a call.
fn find_method<'a>(
    contract: &'a Contract,
    object: Object,
    interface: Option<&str>,
    member: &str,
) -> Result<(&'static str, &'a str), Fault> {
    let mut known = false;
    for name in Contract::interfaces_of(object, true) {
        if interface.is_some_and(|interface| interface != *name) {
            continue;
        }
        known = true;
        if let Some(input) = contract.method(name, member) {
            return Ok((name, input));
        }
    }
    match interface {
        Some(interface) if !known => {
            Err(Fault::UnknownInterface(format!("no interface {}", printable(interface))))
        }
        _ => Err(Fault::UnknownMethod(format!("no method {}", printable(member)))),
    }
}

fn ask(op: Op, view: View) -> Action {
    ask_with(op, Descriptors::default(), view)
}

fn ask_with(op: Op, fds: Descriptors, view: View) -> Action {
    Action::Ask(Box::new(Question { op, fds: fds.into_fds(), view }))
}

impl Request<'_> {
    fn dispatch(&self, interface: &'static str, member: &str) -> Result<Action, Fault> {
        match (self.object, interface) {
            (_, PEER) => self.peer(member),
            (_, INTROSPECTABLE) => self.introspect(),
            (_, PROPERTIES) => self.properties(member),
            (_, DRIVER) => self.driver(member),
            (_, OBJECT_MANAGER) => Ok(ask(self.all_visible(), View::Managed)),
            (_, MANAGER) => self.manager(member),
            (Object::Grant(grant), GRANT) => self.grant(grant, member),
            (Object::Grant(grant), CGROUP) => self.cgroup(grant, member),
            (Object::Grant(grant), LINKS) => self.links(grant, member),
            (Object::Grant(grant), MOUNTS) => self.mounts(grant, member),
            _ => Err(Self::no_method(member)),
        }
    }

    /// For a method that the contract has and the code has not; a test calls every method to see that there is none.
    fn no_method(member: &str) -> Fault {
        Fault::UnknownMethod(format!("no method {}", printable(member)))
    }

    fn reply<B: serde::Serialize + zbus::DynamicType>(&self, body: &B) -> Result<Action, Fault> {
        let reply =
            Message::method_return(&self.message.header()).build(body).map_err(|_| Fault::internal())?;
        Ok(Action::Reply(Box::new(reply)))
    }

    fn body<T: serde::de::DeserializeOwned + zbus::Type>(&self) -> Result<T, Fault> {
        let body = self.message.body();
        body.deserialize().map_err(|error| match error {
            // Where the body was thrown away for its length (see `stream::TooLong::Blank`).
            _ if body.is_empty() => malformed("the message is longer than 256 KiB"),
            zbus::Error::UnknownFd => {
                Refusal::new(RefusalCode::InvalidDescriptor, "a descriptor that the body names did not come")
                    .into()
            }
            zbus::Error::Failure(problem) => malformed(problem),
            _ => malformed("the body is malformed"),
        })
    }

    /// Everything that the caller may see, grants inside of its own too: root sees all accounts' grants, and a container's root those of its users.
    const fn all_visible(&self) -> Op {
        Op::ListGrants { all: self.caller.is_root, nested: true }
    }

    fn needs_fds(&self) -> Result<(), Fault> {
        if self.caller.unix_fds {
            return Ok(());
        }
        Err(Fault::NotSupported(
            "the answer has a descriptor, and none were agreed on for this connection".to_owned(),
        ))
    }

    fn peer(&self, member: &str) -> Result<Action, Fault> {
        match (member, self.machine_id) {
            ("Ping", _) => self.reply(&()),
            ("GetMachineId", Some(id)) => self.reply(&id),
            ("GetMachineId", None) => Err(Fault::NotSupported("this host has no machine id".to_owned())),
            _ => Err(Self::no_method(member)),
        }
    }

    fn introspect(&self) -> Result<Action, Fault> {
        let children = match self.object {
            Object::Grants => return Ok(ask(self.all_visible(), View::GrantsXml)),
            Object::Grant(grant) => return Ok(ask(Op::Describe { grant }, View::GrantXml)),
            Object::Accounts => {
                return Ok(ask(Op::ListAccounts { all: self.caller.uid == 0 }, View::AccountsXml));
            }
            Object::Account(uid) => return Ok(ask(Op::Usage { account: Some(uid) }, View::AccountXml)),
            Object::Above(children) => children,
            Object::Manager => &["account", "grant"],
            Object::Driver => &[],
        };
        let interfaces = Contract::interfaces_of(self.object, false);
        let children = children.iter().map(|child| (*child).to_owned());
        self.reply(&self.contract.introspect(interfaces, children))
    }

    fn properties(&self, member: &str) -> Result<Action, Fault> {
        if member == "GetAll" {
            let interface: String = self.body()?;
            // An empty name asks for the properties of every interface.
            if !interface.is_empty() {
                self.own_interface(&interface)?;
            }
            return self.ask_about(View::Properties { interface });
        }
        let (interface, property) = if member == "Get" {
            self.body::<(String, String)>()?
        } else {
            // The value is not looked at, whatever it is.
            let body = self.message.body();
            let (interface, property): (&str, &str) = body
                .deserialize_ignore_signature()
                .map_err(|_| Fault::InvalidArgs("malformed".to_owned()))?;
            (interface.to_owned(), property.to_owned())
        };
        let interfaces = if interface.is_empty() { Contract::interfaces_of(self.object, true) } else { &[] };
        if interfaces.is_empty() {
            self.own_interface(&interface)?;
        }
        let found = interfaces
            .iter()
            .copied()
            .chain([interface.as_str()])
            .find(|name| self.contract.has_property(name, &property))
            .ok_or_else(|| Fault::UnknownProperty(format!("no property {}", printable(&property))))?
            .to_owned();
        if member == "Set" {
            return Err(Fault::PropertyReadOnly(format!("{property} can't be set")));
        }
        self.ask_about(View::Property { interface: found, property })
    }

    fn own_interface(&self, interface: &str) -> Result<(), Fault> {
        if Contract::interfaces_of(self.object, true).contains(&interface) {
            return Ok(());
        }
        Err(Fault::UnknownInterface(format!("no interface {}", printable(interface))))
    }

    fn ask_about(&self, view: View) -> Result<Action, Fault> {
        match self.object {
            Object::Grant(grant) => Ok(ask(Op::Describe { grant }, view)),
            Object::Account(uid) => Ok(ask(Op::Usage { account: Some(uid) }, view)),
            _ => Ok(ask(Op::BrokerInfo, view)),
        }
    }

    fn driver(&self, member: &str) -> Result<Action, Fault> {
        match member {
            "Hello" => self.reply(&format!(":1.{}", self.caller.connection.0)),
            // Every signal that a peer may see comes to it anyway.
            _ => self.reply(&()),
        }
    }

    fn manager(&self, member: &str) -> Result<Action, Fault> {
        match member {
            "CreateGrant" => self.create_grant(),
            "ListGrants" => {
                let mut options: Options = self.body()?;
                let all = options.flag("all")?.unwrap_or(false);
                let nested = options.flag("nested")?.unwrap_or(false);
                options.finish()?;
                Ok(ask(Op::ListGrants { all, nested }, View::Grants))
            }
            "GetGrant" => {
                let (name, mut options): (String, Options) = self.body()?;
                let account = options.number("account")?;
                options.finish()?;
                Ok(ask(Op::FindGrant { name: at_most("name", name, MAX_NAME)?, account }, View::GrantPath))
            }
            "GetUsage" => {
                let mut options: Options = self.body()?;
                let account = options.number("account")?;
                options.finish()?;
                Ok(ask(Op::Usage { account }, View::Usage))
            }
            "ListAccounts" => {
                let mut options: Options = self.body()?;
                let all = options.flag("all")?.unwrap_or(false);
                options.finish()?;
                Ok(ask(Op::ListAccounts { all }, View::Accounts))
            }
            "ListRules" => {
                let mut options: Options = self.body()?;
                let all = options.flag("all")?.unwrap_or(false);
                options.finish()?;
                Ok(ask(Op::ListRules { all }, View::Rules))
            }
            "Explain" => {
                let (request, options): (String, Options) = self.body()?;
                let ask_about = crate::explain::question(&at_most("request", request, MAX_WORD)?, options)?;
                Ok(ask(Op::Explain(Box::new(ask_about)), View::Explained))
            }
            "ListBridges" => Ok(ask(Op::ListBridges, View::Bridges)),
            "ExamineNetwork" => Ok(ask(Op::ExamineNetwork, View::Findings)),
            "ListRanges" => Ok(ask(Op::ListRanges, View::Ranges)),
            "ListDeparted" => {
                let mut options: Options = self.body()?;
                let account = options.number("account")?;
                let to_remove = options.flag("to-remove")?.unwrap_or(false);
                options.finish()?;
                Ok(ask(Op::ListDeparted { account, to_remove }, View::Departed))
            }
            "ForgetDeparted" => {
                let (firsts, mut options): (Vec<u32>, Options) = self.body()?;
                let incomplete = options.flag("incomplete")?.unwrap_or(false);
                options.finish()?;
                if firsts.len() > MAX_FIRSTS {
                    return Err(Fault::argument("firsts", &format!("there are more than {MAX_FIRSTS}")));
                }
                Ok(ask(Op::ForgetDeparted { firsts, incomplete }, View::Done))
            }
            "ReportDisk" => {
                let (first, count, blocks, mut options): (u32, u32, Vec<(u32, u64, u64)>, Options) =
                    self.body()?;
                let incomplete = options.flag("incomplete")?.unwrap_or(false);
                options.finish()?;
                if blocks.len() > MAX_BLOCKS {
                    return Err(Fault::argument("blocks", &format!("there are more than {MAX_BLOCKS}")));
                }
                let block = |(first, bytes, files)| BlockUse { first, bytes, files };
                let blocks = blocks.into_iter().map(block).collect();
                Ok(ask(Op::ReportDisk(DiskReport { first, count, blocks, incomplete }), View::Done))
            }
            "ForgetRange" => {
                let name = at_most("name", self.body()?, MAX_NAME)?;
                Ok(ask(Op::ForgetRange { name }, View::Done))
            }
            _ => Err(Self::no_method(member)),
        }
    }

    fn create_grant(&self) -> Result<Action, Fault> {
        self.needs_fds()?;
        let (name, mut options): (String, Options) = self.body()?;
        let mut fds = Descriptors::default();
        let op = Op::CreateGrant(CreateGrant {
            name: at_most("name", name, MAX_NAME)?,
            key: options.text("key", MAX_KEY)?.unwrap_or_default(),
            holder: holder(&mut options, &mut fds, Some("connection"))?,
            range: range(&mut options)?,
            range_name: options.text("range-name", MAX_NAME)?.unwrap_or_default(),
            userns: options.fd("userns")?.map(|fd| fds.add(fd)),
            stage: options.fd("stage")?.map(|fd| fds.add(fd)),
            limits: options.pairs("limits")?.unwrap_or_default().0,
            pressure: options.texts("pressure")?.unwrap_or_default().0,
            links: options
                .links("links")?
                .unwrap_or_default()
                .0
                .into_iter()
                .map(|link| request(link, &mut fds))
                .collect::<Result<_, Fault>>()?,
            nesting: options.number("nesting")?.unwrap_or(0),
            tidies: options.flag("tidies")?.unwrap_or(false),
        });
        options.finish()?;
        if let Op::CreateGrant(CreateGrant { range: None, userns: Some(_), .. }) = op {
            return Err(Fault::argument("userns", "there is no range to write into it with no-range"));
        }
        if let Op::CreateGrant(CreateGrant { range, range_name, .. }) = &op
            && !range_name.is_empty()
            && !range.is_some_and(|range| range.named)
        {
            return Err(Fault::argument("range-name", "there is no range that belongs to a name"));
        }
        if let Op::CreateGrant(CreateGrant { range: None, nesting: 1.., .. }) = op {
            return Err(Fault::argument("nesting", NO_RANGE_TO_NEST));
        }
        if let Op::CreateGrant(CreateGrant { range: Some(range), userns: None, .. }) = &op
            && range.own_ids
        {
            return Err(Fault::argument("own-ids", "there is no userns to write them into"));
        }
        Ok(ask_with(op, fds, View::Created))
    }

    fn grant(&self, grant: GrantId, member: &str) -> Result<Action, Fault> {
        let mut options: Options = self.body()?;
        match member {
            "Release" => {
                let kill = options.flag("kill")?.unwrap_or(false);
                let force = options.flag("force")?.unwrap_or(false);
                options.finish()?;
                Ok(ask(Op::Release { grant, kill, force }, View::Done))
            }
            "Adopt" => {
                let mut fds = Descriptors::default();
                let holder = holder(&mut options, &mut fds, None)?;
                options.finish()?;
                Ok(ask_with(Op::Adopt { grant, holder }, fds, View::Done))
            }
            _ => Err(Self::no_method(member)),
        }
    }

    fn cgroup(&self, grant: GrantId, member: &str) -> Result<Action, Fault> {
        let (op, view) = match member {
            "Attach" => return self.attach(grant),
            "SetLimits" => {
                let Pairs(limits) = self.body()?;
                (Op::SetLimits { grant, limits }, View::Done)
            }
            "GetValues" => {
                let Texts(keys) = self.body()?;
                (Op::GetValues { grant, keys }, View::Values)
            }
            "Stat" => (Op::Stat { grant }, View::Stat),
            "ListProcesses" => (Op::ListProcesses { grant }, View::Processes),
            "Freeze" => (Op::Freeze { grant }, View::Done),
            "Thaw" => (Op::Thaw { grant }, View::Done),
            "Kill" => (Op::Kill { grant }, View::Done),
            "CreateCgroup" => (Op::CreateCgroup { grant, path: self.path()? }, View::Done),
            "RemoveCgroup" => (Op::RemoveCgroup { grant, path: self.path()? }, View::Done),
            "ListCgroups" => (Op::ListCgroups { grant }, View::Cgroups),
            "OpenCgroup" => {
                self.needs_fds()?;
                (Op::OpenCgroup { grant, path: self.path()? }, View::Directory)
            }
            _ => return Err(Self::no_method(member)),
        };
        Ok(ask(op, view))
    }

    fn links(&self, grant: GrantId, member: &str) -> Result<Action, Fault> {
        match member {
            "AddLink" => {
                let options: Options<true> = self.body()?;
                let mut fds = Descriptors::default();
                let link = request(options, &mut fds)?;
                if link.kind == LinkKind::Tap {
                    self.needs_fds()?;
                }
                Ok(ask_with(Op::AddLink { grant, link }, fds, View::Linked))
            }
            "RemoveLink" => {
                let name = at_most("name", self.body()?, MAX_NAME)?;
                Ok(ask(Op::RemoveLink { grant, name }, View::Done))
            }
            "PublishPorts" => {
                let (name, Texts(texts)): (String, Texts) = self.body()?;
                let (name, ports) = (at_most("name", name, MAX_NAME)?, ports(&texts)?);
                Ok(ask(Op::PublishPorts { grant, name, ports }, View::Done))
            }
            "UnpublishPorts" => {
                let (name, Texts(texts)): (String, Texts) = self.body()?;
                let (name, ports) = (at_most("name", name, MAX_NAME)?, ports(&texts)?);
                Ok(ask(Op::UnpublishPorts { grant, name, ports }, View::Done))
            }
            _ => Err(Self::no_method(member)),
        }
    }

    fn mounts(&self, grant: GrantId, member: &str) -> Result<Action, Fault> {
        match member {
            "MapDirectory" => self.map_directory(grant),
            "MakeDevice" => {
                self.needs_fds()?;
                let name = at_most("name", self.body()?, MAX_NAME)?;
                Ok(ask(Op::MakeDevice { grant, name }, View::Mount))
            }
            "AllowDevice" => {
                let name = at_most("name", self.body()?, MAX_NAME)?;
                Ok(ask(Op::AllowDevice { grant, name }, View::Done))
            }
            _ => Err(Self::no_method(member)),
        }
    }

    fn map_directory(&self, grant: GrantId) -> Result<Action, Fault> {
        self.needs_fds()?;
        let (directory, namespace, mut options): (BodyFd, BodyFd, Options) = self.body()?;
        let from = source(&mut options)?;
        let read_only = options.flag("read-only")?.unwrap_or(false);
        options.finish()?;
        let mut fds = Descriptors::default();
        let (directory, mount_namespace) = (fds.add(directory.into()), fds.add(namespace.into()));
        let request = MapDirectory { grant, directory, mount_namespace, from, read_only };
        Ok(ask_with(Op::MapDirectory(request), fds, View::Mount))
    }

    fn path(&self) -> Result<String, Fault> {
        at_most("path", self.body()?, MAX_TEXT)
    }

    fn attach(&self, grant: GrantId) -> Result<Action, Fault> {
        let (pidfd, mut options): (BodyFd, Options) = self.body()?;
        let target = match options.text("target", MAX_WORD)?.as_deref() {
            None | Some("payload") => AttachTarget::Payload,
            Some("stage") => AttachTarget::Stage,
            Some("monitor") => AttachTarget::Monitor,
            Some(_) => return Err(Fault::argument("target", "not \"payload\", \"stage\" or \"monitor\"")),
        };
        let tree = options.flag("tree")?.unwrap_or(false);
        options.finish()?;
        let mut fds = Descriptors::default();
        let pidfd = fds.add(pidfd.into());
        Ok(ask_with(Op::Attach(Attach { grant, pidfd, target, tree }), fds, View::Attached))
    }
}

/// Who holds a grant; without a `lifetime` it is `default`, or what goes with the presence of a `holder`.
fn holder(options: &mut Options, fds: &mut Descriptors, default: Option<&str>) -> Result<Holder, Fault> {
    let lifetime = options.text("lifetime", MAX_WORD)?;
    let process = options.fd("holder")?;
    let implied = default.unwrap_or(if process.is_some() { "process" } else { "connection" });
    match (lifetime.as_deref().unwrap_or(implied), process) {
        ("process", Some(process)) => Ok(Holder::Process(fds.add(process))),
        ("process", None) => Err(Fault::argument("holder", "lifetime \"process\" needs the pidfd of one")),
        ("connection", None) => Ok(Holder::Connection),
        ("persistent", None) => Ok(Holder::Persistent),
        ("connection" | "persistent", Some(_)) => {
            Err(Fault::argument("holder", "only with lifetime \"process\""))
        }
        _ => Err(Fault::argument("lifetime", NO_LIFETIME)),
    }
}

fn range(options: &mut Options) -> Result<Option<RangeRequest>, Fault> {
    let count = options.number("range-count")?;
    let named = options.flag("range-named")?;
    let setgroups = options.flag("setgroups")?;
    let own_ids = options.flag("own-ids")?;
    if !options.flag("no-range")?.unwrap_or(false) {
        return Ok(Some(RangeRequest {
            count: count.unwrap_or(0),
            named: named.unwrap_or(true),
            setgroups: setgroups.unwrap_or(true),
            own_ids: own_ids.unwrap_or(false),
        }));
    }
    let about_a_range = [
        ("range-count", count.is_some()),
        ("range-named", named.is_some()),
        ("setgroups", setgroups.is_some()),
        ("own-ids", own_ids.is_some()),
    ];
    match about_a_range.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(Fault::argument(name, "means nothing with no-range")),
        None => Ok(None),
    }
}

fn malformed(problem: impl Into<String>) -> Fault {
    Refusal::new(RefusalCode::InvalidArgument, problem).into()
}

fn at_most(name: &str, text: String, longest: usize) -> Result<String, Fault> {
    if text.len() > longest {
        return Err(Fault::argument(name, &format!("longer than {longest} bytes")));
    }
    Ok(text)
}
