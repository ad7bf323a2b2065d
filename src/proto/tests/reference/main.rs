//! The reference of the D-Bus interface, made of `dbus/*.xml` and its comments, the error codes of this crate, and the polkit
//! actions: `docs/reference.md` and the manual page `cgrant-dbus(7)`. A test says when they are behind; `make reference` makes
//! them anew.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod contract;
mod manual;
mod markdown;
mod prose;

use std::{fs, path::Path};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// Set by `make reference`: write instead of compare.
const WRITE: &str = "CGRANT_WRITE_REFERENCE";

#[test]
fn the_reference_is_what_the_contract_says() {
    let contract = contract::Contract::read(Path::new(ROOT));
    for (file, text) in [
        ("docs/reference.md", markdown::page(&contract)),
        ("docs/man/cgrant-dbus.7", manual::page(&contract)),
    ] {
        let path = Path::new(ROOT).join(file);
        if std::env::var_os(WRITE).is_some() {
            fs::write(&path, &text).unwrap();
        }
        assert!(
            fs::read_to_string(&path).unwrap_or_default() == text,
            "{file} is not what dbus/*.xml says now: `make reference` writes it"
        );
    }
}

#[test]
fn everything_is_explained() {
    let contract = contract::Contract::read(Path::new(ROOT));
    for interface in &contract.interfaces {
        assert!(!interface.about.is_empty(), "{}", interface.name);
        for member in &interface.members {
            assert!(!member.about.is_empty(), "{}.{} has no comment", interface.name, member.name);
        }
    }
    let page = markdown::page(&contract);
    for code in cgrant_proto::Code::ALL {
        assert!(page.contains(&format!("`{}`", code.error_name())), "{}", code.name());
    }
}

#[test]
fn the_contract_names_each_error_that_there_is_and_no_other() {
    let text = fs::read_to_string(Path::new(ROOT).join("dbus/org.cgrant.Broker1.Manager.xml")).unwrap();
    let (_, rest) = text.split_once("The codes: ").expect("the contract names no codes");
    let (list, _) = rest.split_once('.').unwrap();
    let named: Vec<&str> = list.split(',').map(str::trim).collect();
    let mut known: Vec<&str> = cgrant_proto::Code::ALL.iter().map(|code| code.name()).collect();
    let mut sorted = named.clone();
    sorted.sort_unstable();
    known.sort_unstable();
    assert_eq!(sorted, known);
}
