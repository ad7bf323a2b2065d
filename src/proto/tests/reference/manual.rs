//! The reference as the manual page `cgrant-dbus(7)`.

use cgrant_proto::Code;
use roff::{Roff, bold, roman};

use crate::{
    contract::{Contract, Kind, Member},
    prose::Piece,
};

const DESCRIPTION: &str = "The interface is on the system bus, name org.cgrant.Broker1, and peer to peer on the socket \
    /run/cgrant/public/bus. Types are D-Bus signatures; h is a descriptor, and behind the name of an option stands the type of its \
    value.";
const DETAILS: &str = "Errors have the body (s message, a{sv} details). Details, where they apply: rule s, resource s, quota t, usage t, limit s, hint s, action s, \
    argument s.";

/// The whole page.
pub fn page(contract: &Contract) -> String {
    let mut page = Roff::new();
    page.control("TH", ["cgrant-dbus", "7", " ", "cgrant", "cgrant"]);
    page.control("SH", ["NAME"]).text([roman("cgrant-dbus - the D-Bus interface of cgrantd")]);
    page.control("SH", ["DESCRIPTION"]).text([roman(DESCRIPTION)]);
    for interface in &contract.interfaces {
        page.control("SH", [interface.name.as_str()]);
        pieces(&mut page, &interface.about);
        interface.members.iter().for_each(|shown| member(&mut page, shown));
    }
    page.control("SH", ["ERRORS"]).text([roman(DETAILS)]);
    for code in Code::ALL {
        entry(&mut page, &code.error_name(), code.meaning());
    }
    if !contract.actions.is_empty() {
        page.control("SH", ["POLKIT ACTIONS"]);
    }
    for action in &contract.actions {
        let [any, inactive, active] = &action.defaults;
        let text = format!(
            "{}: {any} for any session, {inactive} for an inactive one, {active} for the active one.",
            action.description
        );
        entry(&mut page, &action.id, &text);
    }
    page.control("SH", ["SEE ALSO"]).text([bold("cgrant"), roman("(1), "), bold("cgrantd"), roman("(8)")]);
    page.to_roff()
}

fn member(page: &mut Roff, member: &Member) {
    let kind = match member.kind {
        Kind::Method => "method",
        Kind::Signal => "signal",
        Kind::Property => "property",
    };
    // An arrow is no character of every terminal's.
    let declaration = format!("{kind} {}", member.declaration().replace('\u{2192}', "->"));
    page.control("SS", [declaration.as_str()]);
    pieces(page, &member.about);
    for argument in member.arguments.iter().filter(|argument| !argument.about.is_empty()) {
        match argument.about.split_first() {
            Some((Piece::Paragraph(text), rest)) => {
                entry(page, &argument.name, text);
                nested(page, rest);
            }
            _ => {
                entry(page, &argument.name, "");
                nested(page, &argument.about);
            }
        }
    }
    if member.kind == Kind::Property {
        page.control("PP", []).text([roman(member.change())]);
    }
}

fn nested(page: &mut Roff, inner: &[Piece]) {
    if !inner.is_empty() {
        page.control("RS", []);
        pieces(page, inner);
        page.control("RE", []);
    }
}

fn pieces(page: &mut Roff, pieces: &[Piece]) {
    for piece in pieces {
        match piece {
            Piece::Paragraph(text) => {
                page.control("PP", []).text([roman(text.as_str())]);
            }
            Piece::Entry(name, text) => entry(page, if name.is_empty() { "*" } else { name }, text),
        }
    }
}

fn entry(page: &mut Roff, name: &str, text: &str) {
    page.control("TP", []).text([bold(name)]).text([roman(text.trim_end())]);
}
