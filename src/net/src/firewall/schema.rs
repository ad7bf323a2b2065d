//! The part of nft's JSON that is used, typed (`libnftables-json(5)`).
//!
//! Own types and not the crate `nftables`: that one brings schemars and strum into a process of root's, has hundreds of
//! optional fields, and does not say which forms Debian 12's nft 1.0.6 takes. These are the forms that 1.0.6 and 1.1.3 both
//! take [tried]. What 1.0.6 lacks and is got round: maps to `address . port` (two maps), `icmpv6 taddr` (raw payload, which
//! it compares with constants only, not with sets), comments of tables (it passes them over), the device of a chain in listings.

use std::net::{IpAddr, Ipv6Addr};

use cgrant_wire::link::Mac;
use serde::Serialize;

/// A family of tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Frames as they come in at a device.
    Netdev,
    /// Frames on bridges.
    Bridge,
    /// IPv4 and IPv6.
    Inet,
}

impl Family {
    /// All that are used.
    pub const ALL: [Self; 3] = [Self::Netdev, Self::Bridge, Self::Inet];
}

/// A whole input: one transaction.
#[derive(Debug, Serialize)]
pub struct Document<'a> {
    /// In order.
    pub nftables: &'a [Command],
}

/// One command.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Command {
    /// Adds it; nothing happens if it is there.
    Add(Object),
    /// Removes it; fails if it is not there.
    Delete(Object),
    /// Lists it.
    List(Object),
}

impl Command {
    /// Adds `object`.
    pub fn add(object: impl Into<Object>) -> Self {
        Self::Add(object.into())
    }

    /// Removes `object`.
    pub fn delete(object: impl Into<Object>) -> Self {
        Self::Delete(object.into())
    }
}

/// What a command is about.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Object {
    /// A table.
    Table(Table),
    /// A chain.
    Chain(Chain),
    /// A set.
    Set(Set),
    /// A map.
    Map(Set),
    /// A rule, at the end of its chain.
    Rule(Rule),
    /// Elements of a set or map.
    Element(Elements),
    /// All chains of the host.
    Chains(()),
}

macro_rules! object {
    ($($name:ident),*) => {$(
        impl From<$name> for Object {
            fn from(object: $name) -> Self {
                Self::$name(object)
            }
        }
    )*};
}
object!(Table, Chain, Rule);

impl From<Set> for Object {
    fn from(set: Set) -> Self {
        if set.map.is_some() { Self::Map(set) } else { Self::Set(set) }
    }
}

impl From<Elements> for Object {
    fn from(elements: Elements) -> Self {
        Self::Element(elements)
    }
}

/// A table.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Whose it is.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub comment: String,
}

/// A chain.
#[derive(Debug, Clone, Serialize)]
pub struct Chain {
    /// Its table's family.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Where the kernel calls it; nowhere but from rules if `None`.
    #[serde(flatten)]
    pub hook: Option<Hook>,
}

/// Where the kernel calls a chain.
#[derive(Debug, Clone, Serialize)]
pub struct Hook {
    /// `filter` or `nat`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// The place.
    pub hook: &'static str,
    /// The order there, lowest first.
    pub prio: i32,
    /// `accept` or `drop`: what becomes of what no rule judged.
    pub policy: &'static str,
    /// Its device, of an ingress chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dev: Option<String>,
}

/// A set, or a map if it has values.
#[derive(Debug, Clone, Serialize)]
pub struct Set {
    /// Its table's family.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// Type of its keys.
    #[serde(rename = "type")]
    pub key: Key,
    /// Type of its values.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<&'static str>,
    /// What is in it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub elem: Vec<Expression>,
}

/// Type of a set's keys. A list of one is not the same to nft as that one.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Key {
    /// Simple.
    One(&'static str),
    /// Of several parts.
    Several(&'static [&'static str]),
}

/// Elements of a set or map.
#[derive(Debug, Clone, Serialize)]
pub struct Elements {
    /// Its table's family.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its name.
    pub name: String,
    /// The elements.
    pub elem: Vec<Expression>,
}

/// A rule.
#[derive(Debug, Clone, Serialize)]
pub struct Rule {
    /// Its table's family.
    pub family: Family,
    /// Its table.
    pub table: String,
    /// Its chain.
    pub chain: String,
    /// What it is for; the rules of a chain are told apart by it.
    pub comment: &'static str,
    /// What it looks at and does.
    pub expr: Vec<Statement>,
}

/// A part of a rule.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Statement {
    /// The rest counts only if this is so.
    Match(Match),
    /// The rest counts only for what exceeds a rate (or keeps to it).
    Limit(Limit),
    /// Sets something.
    Mangle(Mangle),
    /// Rewrites the destination.
    Dnat(Nat),
    /// Rewrites the source to the address of the device where it leaves.
    Masquerade(Option<Ports>),
    /// Goes on there and comes back.
    Jump(Target),
    /// Goes on there.
    Goto(Target),
    /// Lets it pass.
    Accept(()),
    /// Drops it.
    Drop(()),
}

/// A comparison.
#[derive(Debug, Clone, Serialize)]
pub struct Match {
    /// `==`, `!=` or `in`.
    pub op: &'static str,
    /// What is looked at.
    pub left: Expression,
    /// What it is compared with.
    pub right: Expression,
}

/// A rate.
#[derive(Debug, Clone, Serialize)]
pub struct Limit {
    /// So many bytes a second.
    pub rate: u64,
    /// And so many bytes at once.
    pub burst: u64,
    /// `second`.
    pub per: &'static str,
    /// What exceeds it, not what keeps to it.
    pub inv: bool,
    /// `bytes`.
    pub rate_unit: &'static str,
    /// `bytes`.
    pub burst_unit: &'static str,
}

/// Sets `key` to `value`.
#[derive(Debug, Clone, Serialize)]
pub struct Mangle {
    /// What is set.
    pub key: Expression,
    /// To what.
    pub value: Expression,
}

/// A new destination.
#[derive(Debug, Clone, Serialize)]
pub struct Nat {
    /// `ip` or `ip6`.
    pub family: &'static str,
    /// The address.
    pub addr: Expression,
    /// The port.
    pub port: Expression,
}

/// Ports to choose from.
#[derive(Debug, Clone, Serialize)]
pub struct Ports {
    /// A range.
    pub port: Expression,
    /// `fully-random`: whatever the source chose.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flags: Option<&'static str>,
}

/// A chain to go to.
#[derive(Debug, Clone, Serialize)]
pub struct Target {
    /// Its name.
    pub target: String,
}

/// A value, or where it comes from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Expression {
    /// Of the packet's handling.
    Meta {
        /// Which.
        key: &'static str,
    },
    /// Of a header: by name, or by place.
    Payload(Payload),
    /// Of an IPv6 extension header.
    Exthdr {
        /// The header.
        name: &'static str,
        /// Its field.
        field: &'static str,
    },
    /// Of its connection.
    Ct {
        /// Which.
        key: &'static str,
        /// `original`.
        #[serde(skip_serializing_if = "Option::is_none")]
        dir: Option<&'static str>,
    },
    /// Of the routing tables.
    Fib {
        /// What.
        result: &'static str,
        /// About which address.
        flags: [&'static str; 1],
    },
    /// Several, one after the other.
    Concat(Vec<Self>),
    /// Bits of both.
    #[serde(rename = "&")]
    And(Box<[Self; 2]>),
    /// Bits of either.
    #[serde(rename = "|")]
    Or(Box<[Self; 2]>),
    /// One of these.
    Set(Vec<Self>),
    /// What a map says for a key.
    Map {
        /// The key.
        key: Box<Self>,
        /// The map, `@NAME`.
        data: String,
    },
    /// A network.
    Prefix {
        /// Its address.
        addr: String,
        /// Length of its prefix.
        len: u8,
    },
    /// From, to.
    Range([u16; 2]),
    /// A key and its value, in a map.
    #[serde(untagged)]
    Pair(Box<[Self; 2]>),
    /// A word, an address, a set `@NAME`, a large number `0x…`.
    #[serde(untagged)]
    Text(String),
    /// A number.
    #[serde(untagged)]
    Number(u64),
}

/// A part of a header.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(untagged)]
pub enum Payload {
    /// By name.
    Named {
        /// The header's protocol.
        protocol: &'static str,
        /// The field.
        field: &'static str,
    },
    /// By place.
    Raw {
        /// `nh` (network) or `th` (transport): where counting begins.
        base: &'static str,
        /// Bits from there.
        offset: u32,
        /// Bits.
        len: u32,
    },
}

impl From<u64> for Expression {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<&str> for Expression {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<Mac> for Expression {
    fn from(mac: Mac) -> Self {
        Self::Text(mac.to_string())
    }
}

impl From<IpAddr> for Expression {
    fn from(address: IpAddr) -> Self {
        Self::Text(address.to_string())
    }
}

impl<E: Into<Self> + Copy, const N: usize> From<[E; N]> for Expression {
    fn from(members: [E; N]) -> Self {
        Self::Set(members.into_iter().map(Into::into).collect())
    }
}

/// `meta KEY`.
pub fn meta(key: &'static str) -> Expression {
    Expression::Meta { key }
}

/// `ct KEY`.
pub fn ct(key: &'static str) -> Expression {
    Expression::Ct { key, dir: None }
}

/// `PROTOCOL FIELD`.
pub fn field(protocol: &'static str, field: &'static str) -> Expression {
    Expression::Payload(Payload::Named { protocol, field })
}

/// `@BASE,OFFSET,LEN`, in bits.
pub fn raw(base: &'static str, offset: u32, len: u32) -> Expression {
    Expression::Payload(Payload::Raw { base, offset, len })
}

/// An IPv6 address as a number, for raw payload.
pub fn number(address: Ipv6Addr) -> Expression {
    Expression::Text(format!("0x{:032x}", address.to_bits()))
}

/// `left == right`.
pub fn is(left: Expression, right: impl Into<Expression>) -> Statement {
    Statement::Match(Match { op: "==", left, right: right.into() })
}

/// `left != right`.
pub fn isnt(left: Expression, right: impl Into<Expression>) -> Statement {
    Statement::Match(Match { op: "!=", left, right: right.into() })
}

/// Goes on in `chain` and comes back.
pub fn jump(chain: &str) -> Statement {
    Statement::Jump(Target { target: chain.to_owned() })
}

/// Goes on in `chain`.
pub fn goto(chain: &str) -> Statement {
    Statement::Goto(Target { target: chain.to_owned() })
}

/// Lets it pass.
pub const ACCEPT: Statement = Statement::Accept(());
/// Drops it.
pub const DROP: Statement = Statement::Drop(());

/// Writes chains of one table.
pub struct Writer<'a> {
    family: Family,
    table: &'a str,
    commands: Vec<Command>,
    chain: String,
}

impl<'a> Writer<'a> {
    /// For `table` of `family`.
    pub fn new(family: Family, table: &'a str) -> Self {
        Self { family, table, commands: Vec::new(), chain: String::new() }
    }

    /// Adds a chain; rules that follow go into it.
    pub fn chain(&mut self, name: &str, hook: Option<Hook>) -> &mut Self {
        name.clone_into(&mut self.chain);
        let chain = Chain { family: self.family, table: self.table.to_owned(), name: name.to_owned(), hook };
        self.commands.push(Command::add(chain));
        self
    }

    /// Adds a rule to the chain.
    pub fn rule(&mut self, comment: &'static str, expr: impl Into<Vec<Statement>>) -> &mut Self {
        let rule = Rule {
            family: self.family,
            table: self.table.to_owned(),
            chain: self.chain.clone(),
            comment,
            expr: expr.into(),
        };
        self.commands.push(Command::add(rule));
        self
    }

    /// What was written: chains before rules, because rules name chains.
    pub fn finish(self) -> Vec<Command> {
        let (mut chains, rules): (Vec<_>, Vec<_>) =
            self.commands.into_iter().partition(|command| matches!(command, Command::Add(Object::Chain(_))));
        chains.extend(rules);
        chains
    }
}
