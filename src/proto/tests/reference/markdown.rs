//! The reference as `docs/reference.md`.

use std::fmt::Write;

use cgrant_proto::Code;

use crate::{
    contract::{Contract, Interface, Kind, Member},
    prose::Piece,
};

const HEAD: &str = "\
<!-- Made by `make reference` of dbus/*.xml; edit those. -->

# The D-Bus interface: reference

Every method, signal, property, error and polkit action. [dbus.md](dbus.md) is the guide, with examples; `dbus/*.xml` is the
contract.

Types are D-Bus signatures: `b` boolean, `q` `u` `t` unsigned numbers of 16, 32 and 64 bits, `s` text, `o` path of an object, `h` a
descriptor, `v` any value, `aX` a list of `X`, `(XY)` a structure, `a{XY}` a dictionary. Options are a dictionary `a{sv}`: behind
each name stands the type that its value has to have.

";

const DETAILS: &str = "\
Errors have the body `(s message, a{sv} details)`. Details, where they apply: `rule` `s` (the rule of the policy that decided),
`resource` `s` (what is counted, or the limit whose ceiling was met), `quota` `t` and `usage` `t` (the quota that was met), `limit` `s`
(the ceiling), `hint` `s` (what to do about it), `argument` `s` (the argument or option that is wrong), `action` `s` (the polkit action
that a person could agree to, if the same call had the flag `ALLOW_INTERACTIVE_AUTHORIZATION`).

| error | meaning |
|---|---|
";

const POLKIT: &str = "\
What polkit is asked where the broker's policy says so, and what it answers as it is shipped: for any session, for an inactive one, for
the active one.

| action | for | any | inactive | active |
|---|---|---|---|---|
";

/// The whole page.
pub fn page(contract: &Contract) -> String {
    let mut page = HEAD.to_owned();
    for interface in &contract.interfaces {
        let of = |kind| names(interface, kind);
        let (methods, signals, properties) = (of(Kind::Method), of(Kind::Signal), of(Kind::Property));
        writeln!(
            page,
            "* [`{}`](#{}){methods}{signals}{properties}",
            interface.name,
            anchor(&interface.name)
        )
        .unwrap();
    }
    page.push_str("* [Errors](#errors)\n");
    if !contract.actions.is_empty() {
        page.push_str("* [Polkit actions](#polkit-actions)\n");
    }
    contract.interfaces.iter().for_each(|interface| write_interface(&mut page, interface));
    write!(page, "\n## Errors\n\n{DETAILS}").unwrap();
    for code in Code::ALL {
        writeln!(page, "| `{}` | {} |", code.error_name(), code.meaning()).unwrap();
    }
    if !contract.actions.is_empty() {
        write!(page, "\n## Polkit actions\n\n{POLKIT}").unwrap();
    }
    for action in &contract.actions {
        let [any, inactive, active] = &action.defaults;
        writeln!(page, "| `{}` | {} | {any} | {inactive} | {active} |", action.id, action.description)
            .unwrap();
    }
    tidy(&page)
}

/// One blank line where there are several, and none of a line's spaces at its end.
fn tidy(page: &str) -> String {
    let mut lines: Vec<&str> = page.lines().map(str::trim_end).collect();
    lines.dedup_by(|line, before| line.is_empty() && before.is_empty());
    lines.join("\n") + "\n"
}

fn names(interface: &Interface, kind: Kind) -> String {
    let title = match kind {
        Kind::Method => "methods",
        Kind::Signal => "signals",
        Kind::Property => "properties",
    };
    let of = interface.members.iter().filter(|member| member.kind == kind);
    let names: Vec<&str> = of.map(|member| member.name.as_str()).collect();
    if names.is_empty() { String::new() } else { format!("; {title} {}", names.join(", ")) }
}

fn anchor(heading: &str) -> String {
    heading.to_lowercase().replace('.', "")
}

fn write_interface(page: &mut String, interface: &Interface) {
    write!(page, "\n## {}\n\n", interface.name).unwrap();
    write_pieces(page, &interface.about, "");
    for (kind, title) in
        [(Kind::Method, "Methods"), (Kind::Signal, "Signals"), (Kind::Property, "Properties")]
    {
        let mut members = interface.members.iter().filter(|member| member.kind == kind).peekable();
        if members.peek().is_some() {
            write!(page, "\n### {title}\n").unwrap();
        }
        members.for_each(|member| write_member(page, member));
    }
}

fn write_member(page: &mut String, member: &Member) {
    write!(page, "\n#### `{}`\n\n", member.declaration()).unwrap();
    write_pieces(page, &member.about, "");
    for argument in member.arguments.iter().filter(|argument| !argument.about.is_empty()) {
        write!(page, "* `{}` ", argument.name).unwrap();
        match argument.about.split_first() {
            Some((Piece::Paragraph(text), rest)) => {
                writeln!(page, "{}", escaped(text)).unwrap();
                write_pieces(page, rest, "  ");
            }
            _ => {
                page.push('\n');
                write_pieces(page, &argument.about, "  ");
            }
        }
    }
    if member.kind == Kind::Property {
        writeln!(page, "\n{}", member.change()).unwrap();
    }
}

fn write_pieces(page: &mut String, pieces: &[Piece], indent: &str) {
    for (index, piece) in pieces.iter().enumerate() {
        match piece {
            Piece::Paragraph(text) => {
                let gap = if index == 0 || !indent.is_empty() { "" } else { "\n" };
                writeln!(page, "{gap}{indent}{}", escaped(text)).unwrap();
            }
            Piece::Entry(name, text) if name.is_empty() => {
                writeln!(page, "{indent}* {}", escaped(text)).unwrap()
            }
            Piece::Entry(name, text) => {
                writeln!(page, "{indent}* `{name}` {}", escaped(text)).unwrap();
            }
        }
        let ends =
            matches!(pieces.get(index + 1), Some(Piece::Entry(..)) if matches!(piece, Piece::Paragraph(_)));
        if ends && indent.is_empty() {
            page.push('\n');
        }
    }
    if indent.is_empty() && !pieces.is_empty() {
        page.push('\n');
    }
}

/// Text in which nothing is markup.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        if "*_[]<>`|\\".contains(character) {
            out.push('\\');
        }
        out.push(character);
    }
    out.trim_end().to_owned()
}
