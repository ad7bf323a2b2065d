//! What is in `dbus/*.xml` and in the file of the polkit actions, with the comments.

use std::{fs, path::Path};

use roxmltree::{Document, Node, ParsingOptions};

use crate::prose::{Piece, Prose};

/// Everything that the reference is made of.
pub struct Contract {
    pub interfaces: Vec<Interface>,
    pub actions: Vec<Action>,
}

/// An interface.
pub struct Interface {
    pub name: String,
    pub about: Vec<Piece>,
    pub members: Vec<Member>,
}

/// What kind of member it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Method,
    Signal,
    Property,
}

/// A method, a signal or a property.
pub struct Member {
    pub kind: Kind,
    pub name: String,
    pub about: Vec<Piece>,
    pub arguments: Vec<Argument>,
    /// Of a property: does a signal tell when it changes? `None` if it never does.
    pub signalled: Option<bool>,
}

/// An argument, or the value of a property.
pub struct Argument {
    pub name: String,
    pub signature: String,
    pub is_result: bool,
    pub about: Vec<Piece>,
}

/// A polkit action.
pub struct Action {
    pub id: String,
    pub description: String,
    /// What polkit answers for sessions: any, inactive, active.
    pub defaults: [String; 3],
}

impl Contract {
    /// Reads it below the repository's root.
    pub fn read(root: &Path) -> Self {
        let mut files: Vec<_> = fs::read_dir(root.join("dbus"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                let name = path.file_name().unwrap().to_str().unwrap();
                name.starts_with("org.cgrant.") && name.ends_with(".xml")
            })
            .collect();
        // The broker first, then what is about a grant as a whole.
        files.sort_by_key(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (!name.contains(".Manager."), !name.contains(".Grant."), name)
        });
        let interfaces =
            files.iter().flat_map(|path| interfaces(&fs::read_to_string(path).unwrap())).collect();
        Self { interfaces, actions: actions(root) }
    }
}

fn parse(xml: &str) -> Document<'_> {
    let options = ParsingOptions { allow_dtd: true, ..ParsingOptions::default() };
    Document::parse_with_options(xml, options).unwrap()
}

/// The comment right before an element.
fn comment<'a>(element: Node<'a, '_>) -> &'a str {
    let mut before = element.prev_siblings().skip(1);
    before
        .find(|node| !node.is_text())
        .filter(Node::is_comment)
        .and_then(|node| node.text())
        .unwrap_or_default()
}

fn interfaces(xml: &str) -> Vec<Interface> {
    let document = parse(xml);
    let of_file =
        document.root().children().find(Node::is_comment).and_then(|node| node.text()).unwrap_or_default();
    let elements = document.root_element().children().filter(|node| node.has_tag_name("interface"));
    elements
        .map(|element| Interface {
            name: element.attribute("name").unwrap().to_owned(),
            about: Prose::of(of_file, &[]).about,
            members: element.children().filter_map(member).collect(),
        })
        .collect()
}

fn member(element: Node<'_, '_>) -> Option<Member> {
    let kind = match element.tag_name().name() {
        "method" => Kind::Method,
        "signal" => Kind::Signal,
        "property" => Kind::Property,
        _ => return None,
    };
    let found: Vec<_> = element.children().filter(|node| node.has_tag_name("arg")).collect();
    let names: Vec<&str> = found.iter().filter_map(|arg| arg.attribute("name")).collect();
    let prose = Prose::of(comment(element), &names);
    let mut arguments: Vec<Argument> = found
        .iter()
        .map(|arg| {
            let name = arg.attribute("name").unwrap_or_default();
            let about = prose.arguments.iter().find(|(of, _)| of == name).map(|(_, about)| about.clone());
            Argument {
                name: name.to_owned(),
                signature: arg.attribute("type").unwrap().to_owned(),
                is_result: kind == Kind::Method && arg.attribute("direction") == Some("out"),
                about: about.unwrap_or_default(),
            }
        })
        .collect();
    let mut signalled = None;
    if kind == Kind::Property {
        let signature = element.attribute("type").unwrap().to_owned();
        arguments.push(Argument { name: String::new(), signature, is_result: true, about: Vec::new() });
        let emits = element
            .children()
            .find(|node| node.attribute("name") == Some("org.freedesktop.DBus.Property.EmitsChangedSignal"))
            .and_then(|node| node.attribute("value"));
        signalled = if emits == Some("const") { None } else { Some(emits != Some("false")) };
    }
    let about = prose.about;
    Some(Member { kind, name: element.attribute("name").unwrap().to_owned(), about, arguments, signalled })
}

fn actions(root: &Path) -> Vec<Action> {
    let xml = fs::read_to_string(root.join("policy/org.cgrant.broker1.policy")).unwrap_or_default();
    if xml.is_empty() {
        return Vec::new();
    }
    let document = parse(&xml);
    let text = |node: Node<'_, '_>, name: &str| {
        let found = node.descendants().find(|child| child.has_tag_name(name));
        found.and_then(|child| child.text()).unwrap_or_default().to_owned()
    };
    let found = document.descendants().filter(|node| node.has_tag_name("action"));
    found
        .map(|action| Action {
            id: action.attribute("id").unwrap().to_owned(),
            description: text(action, "description"),
            defaults: ["allow_any", "allow_inactive", "allow_active"].map(|name| text(action, name)),
        })
        .collect()
}

impl Member {
    /// As it is declared: what goes in, and what comes out.
    pub fn declaration(&self) -> String {
        let list = |is_result| {
            let of = self.arguments.iter().filter(|argument| argument.is_result == is_result);
            of.map(|argument| format!("{} {}", argument.signature, argument.name).trim_end().to_owned())
                .collect::<Vec<_>>()
                .join(", ")
        };
        match (self.kind, list(true)) {
            (Kind::Property, signature) => format!("{} {signature}", self.name),
            (_, results) if results.is_empty() => format!("{}({})", self.name, list(false)),
            (_, results) => format!("{}({}) \u{2192} ({results})", self.name, list(false)),
        }
    }

    /// Of a property: when it changes.
    pub const fn change(&self) -> &'static str {
        match self.signalled {
            None => "Never changes.",
            Some(true) => "PropertiesChanged tells when it changes.",
            Some(false) => "Nothing tells when it changes.",
        }
    }
}
