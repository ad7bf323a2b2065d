//! The contract as the front serves it: read once from the XML in `dbus/` that is compiled in, so that what is
//! introspected and what is checked on every call can't differ from it.

use zbus_xml::{ArgDirection, Node};

use crate::object::Object;

/// Introspection, properties, and what else is in no file of ours.
const STANDARD: &str = include_str!("standard.xml");
/// The broker's own interfaces.
pub const OWN: [&str; 7] = [
    include_str!("../../../dbus/org.cgrant.Broker1.Manager.xml"),
    include_str!("../../../dbus/org.cgrant.Broker1.Grant.xml"),
    include_str!("../../../dbus/org.cgrant.Broker1.Cgroup.xml"),
    include_str!("../../../dbus/org.cgrant.Broker1.Links.xml"),
    include_str!("../../../dbus/org.cgrant.Broker1.Ids.xml"),
    include_str!("../../../dbus/org.cgrant.Broker1.Mounts.xml"),
    include_str!("../../../dbus/org.cgrant.Broker1.Account.xml"),
];
/// CGManager's interface.
const LEGACY_XML: &str = include_str!("../../../dbus/org.linuxcontainers.cgmanager0_0.xml");

/// Name of CGManager's interface.
pub const LEGACY: &str = "org.linuxcontainers.cgmanager0_0";
/// Introspection of an object.
pub const INTROSPECTABLE: &str = "org.freedesktop.DBus.Introspectable";
/// Is somebody there?
pub const PEER: &str = "org.freedesktop.DBus.Peer";
/// Properties of an object.
pub const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
/// The objects below an object.
pub const OBJECT_MANAGER: &str = "org.freedesktop.DBus.ObjectManager";
/// The bus itself.
pub const DRIVER: &str = "org.freedesktop.DBus";

const DOCTYPE: &str = "<!DOCTYPE node PUBLIC \"-//freedesktop//DTD D-BUS Object Introspection 1.0//EN\" \
\"http://www.freedesktop.org/standards/dbus/1.0/introspect.dtd\">\n";

/// The embedded XML is not a contract; a test keeps that from happening.
#[derive(Debug, thiserror::Error)]
pub enum ContractError {
    /// It can't be read.
    #[error("the embedded D-Bus contract is malformed")]
    Malformed(#[from] zbus_xml::Error),
    /// An interface is not written as this module looks for it.
    #[error("interface {name} is not found in the text of the contract")]
    Interface {
        /// Its name.
        name: String,
    },
}

/// A method.
#[derive(Debug)]
struct Method {
    name: String,
    /// Signature of its arguments.
    input: String,
}

/// An interface.
#[derive(Debug)]
struct Interface {
    name: String,
    methods: Vec<Method>,
    properties: Vec<String>,
    /// Its element, as introspection gives it.
    xml: String,
}

/// All interfaces.
#[derive(Debug)]
pub struct Contract(Vec<Interface>);

impl Contract {
    /// Reads the embedded XML.
    ///
    /// # Errors
    /// [`ContractError`].
    pub fn load() -> Result<Self, ContractError> {
        let mut interfaces = Vec::new();
        for xml in OWN.iter().chain([&STANDARD, &LEGACY_XML]) {
            for interface in Node::from_reader(xml.as_bytes())?.interfaces() {
                let name = interface.name().to_string();
                let xml =
                    element(xml, &name).ok_or_else(|| ContractError::Interface { name: name.clone() })?;
                interfaces.push(Interface {
                    name,
                    methods: interface.methods().map(method).collect(),
                    properties: interface.properties().map(|property| property.name().to_string()).collect(),
                    xml,
                });
            }
        }
        Ok(Self(interfaces))
    }

    /// Names of the interfaces of an object; `ids` if it is a grant that has some.
    pub fn interfaces_of(object: Object, ids: bool) -> &'static [&'static str] {
        use cgrant_proto::names::{ACCOUNT, CGROUP, GRANT, IDS, LINKS, MANAGER, MOUNTS};
        match object {
            Object::Above(_) | Object::Grants | Object::Accounts => &[INTROSPECTABLE, PEER],
            Object::Account(_) => &[ACCOUNT, PROPERTIES, INTROSPECTABLE, PEER],
            Object::Driver => &[DRIVER, INTROSPECTABLE, PEER],
            Object::Manager => &[MANAGER, OBJECT_MANAGER, PROPERTIES, INTROSPECTABLE, PEER],
            Object::Grant(_) if ids => &[GRANT, CGROUP, LINKS, IDS, MOUNTS, PROPERTIES, INTROSPECTABLE, PEER],
            Object::Grant(_) => &[GRANT, CGROUP, LINKS, PROPERTIES, INTROSPECTABLE, PEER],
        }
    }

    /// Signature of the arguments of a method of this interface.
    pub fn method(&self, interface: &str, member: &str) -> Option<&str> {
        let interface = self.interface(interface)?;
        interface.methods.iter().find(|method| method.name == member).map(|method| method.input.as_str())
    }

    /// Has this interface this property?
    pub fn has_property(&self, interface: &str, property: &str) -> bool {
        self.interface(interface)
            .is_some_and(|interface| interface.properties.iter().any(|name| name == property))
    }

    /// The introspection document of an object with these interfaces and these children.
    pub fn introspect(&self, interfaces: &[&str], children: impl Iterator<Item = String>) -> String {
        let mut xml = String::from(DOCTYPE);
        xml.push_str("<node>\n");
        for name in interfaces {
            if let Some(interface) = self.interface(name) {
                xml.push_str(&interface.xml);
                xml.push('\n');
            }
        }
        for child in children {
            xml.push_str("<node name=\"");
            xml.push_str(&child);
            xml.push_str("\"/>\n");
        }
        xml.push_str("</node>\n");
        xml
    }

    fn interface(&self, name: &str) -> Option<&Interface> {
        self.0.iter().find(|interface| interface.name == name)
    }
}

fn method(method: &zbus_xml::Method<'_>) -> Method {
    let input = method
        .args()
        .iter()
        .filter(|arg| arg.direction() != Some(ArgDirection::Out))
        .map(|arg| arg.ty().to_string())
        .collect();
    Method { name: method.name().to_string(), input }
}

/// The element of the interface `name`, out of the text that has it, without comments and blank lines.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<interface name=\"{name}\">"))?;
    let (inside, _) = rest.split_once("</interface>")?;
    let mut element = format!("<interface name=\"{name}\">\n");
    for piece in inside.split("<!--") {
        let piece = piece.split_once("-->").map_or(piece, |(_, behind)| behind);
        for line in piece.lines().filter(|line| !line.trim().is_empty()) {
            element.push_str(line);
            element.push('\n');
        }
    }
    element.push_str("</interface>");
    Some(element)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use cgrant_wire::GrantId;

    #[test]
    fn signatures_are_those_of_the_files() {
        let contract = Contract::load().unwrap();
        for (interface, member, input) in [
            ("org.cgrant.Broker1.Manager", "CreateGrant", "sa{sv}"),
            ("org.cgrant.Broker1.Manager", "ListRanges", ""),
            ("org.cgrant.Broker1.Cgroup", "Attach", "ha{sv}"),
            ("org.cgrant.Broker1.Cgroup", "SetLimits", "a{ss}"),
            ("org.cgrant.Broker1.Links", "PublishPorts", "sas"),
            ("org.cgrant.Broker1.Mounts", "MapDirectory", "hha{sv}"),
            ("org.cgrant.Broker1.Mounts", "MakeDevice", "s"),
            ("org.cgrant.Broker1.Mounts", "AllowDevice", "s"),
            (PROPERTIES, "Set", "ssv"),
            (DRIVER, "Hello", ""),
        ] {
            assert_eq!(contract.method(interface, member), Some(input), "{interface}.{member}");
        }
        assert_eq!(contract.method("org.cgrant.Broker1.Grant", "Ended"), None, "a signal is no method");
        assert!(contract.has_property("org.cgrant.Broker1.Ids", "Count"));
        assert!(!contract.has_property("org.cgrant.Broker1.Ids", "Name"));
    }

    #[test]
    fn introspection_is_what_the_files_say() {
        let contract = Contract::load().unwrap();
        for (object, ids) in
            [(Object::Manager, false), (Object::Account(1), false), (Object::Grant(GrantId(1)), true)]
        {
            let names = Contract::interfaces_of(object, ids);
            let xml = contract.introspect(names, ["child".to_owned()].into_iter());
            let node = Node::from_reader(xml.as_bytes()).unwrap();
            assert_eq!(node.nodes().len(), 1);
            let served: BTreeMap<_, _> = node
                .interfaces()
                .iter()
                .map(|interface| (interface.name().to_string(), interface.clone()))
                .collect();
            assert_eq!(served.len(), names.len());
            for file in OWN.iter().chain([&STANDARD]) {
                for interface in Node::from_reader(file.as_bytes()).unwrap().interfaces() {
                    let name = interface.name().to_string();
                    if names.contains(&name.as_str()) {
                        assert_eq!(served.get(&name), Some(interface));
                    }
                }
            }
        }
    }

    #[test]
    fn a_member_without_an_interface_means_one_method() {
        // Calls may leave the interface out, so no two interfaces of an object may have methods of one name.
        let contract = Contract::load().unwrap();
        for object in [Object::Manager, Object::Grant(GrantId(1)), Object::Driver] {
            let mut seen = BTreeMap::new();
            for name in Contract::interfaces_of(object, true) {
                for method in &contract.interface(name).unwrap().methods {
                    assert_eq!(seen.insert(method.name.clone(), name), None, "{}", method.name);
                }
            }
        }
    }
}
