//! Integration tests: the real broker, real unprivileged users, the real kernel. Needs root.
//!
//! One module one idea. Those that `tests/hosts.rs` lists run on every kind of host too.

// The scratch directories are the tests' own.
#![allow(clippy::disallowed_methods)]

// What only the tests of every kind of host use is dead here.
#[allow(dead_code)]
#[path = "../common/mod.rs"]
mod common;

mod applications;
mod asking;
mod attach;
mod attacks;
mod badinput;
mod busses;
mod cgmanager;
mod cgmanager_attacks;
mod cgmanager_commands;
mod cgmanager_elsewhere;
mod cgmanager_proxy;
mod cgmanager_sockets;
mod cgmanager_table;
mod cli;
mod contract;
mod controllers;
mod crashes;
mod devices;
mod differential;
mod disk;
mod errors;
mod events;
mod examples;
mod explain;
mod explain_table;
mod failures;
mod forged;
mod full;
mod grants;
mod holders;
mod idle;
mod images;
mod installed;
mod installed_rpm;
mod leaving;
mod limits;
mod links;
mod links_attacks;
mod links_bridges;
mod links_callers;
mod links_failures;
mod metrics;
mod mounts;
mod nested;
mod nested_attacks;
mod nested_bridges;
mod nested_policy;
mod nested_ports;
mod nested_users;
mod nested_verbs;
mod one_liners;
mod pam;
mod policy;
mod policy_files;
mod polkit;
mod polkit_rights;
mod processes;
mod system;
mod system_attacks;
mod system_autostart;
mod system_copies;
mod system_devices;
mod system_inside;
mod system_moves;
mod system_nested;
mod system_nested_links;
mod system_podman;
mod system_settings;
mod system_shutdown;
mod system_verbs;
mod watchdog;

fn main() -> std::process::ExitCode {
    if let Some(end) = examples::requested() {
        return end;
    }
    common::harness::main(&[
        grants::TESTS,
        limits::TESTS,
        attach::TESTS,
        attacks::TESTS,
        holders::TESTS,
        leaving::TESTS,
        devices::TESTS,
        events::TESTS,
        examples::TESTS,
        metrics::TESTS,
        policy::TESTS,
        policy_files::TESTS,
        controllers::TESTS,
        applications::TESTS,
        explain::TESTS,
        explain_table::TESTS,
        watchdog::TESTS,
        errors::TESTS,
        badinput::TESTS,
        forged::TESTS,
        failures::TESTS,
        crashes::TESTS,
        contract::TESTS,
        busses::TESTS,
        cgmanager::TESTS,
        cgmanager_attacks::TESTS,
        cgmanager_commands::TESTS,
        cgmanager_elsewhere::TESTS,
        cgmanager_proxy::TESTS,
        cgmanager_sockets::TESTS,
        cgmanager_table::TESTS,
        cli::TESTS,
        differential::TESTS,
        disk::TESTS,
        idle::TESTS,
        images::TESTS,
        installed::TESTS,
        installed_rpm::TESTS,
        links::TESTS,
        links_attacks::TESTS,
        links_bridges::TESTS,
        links_callers::TESTS,
        links_failures::TESTS,
        mounts::TESTS,
        nested::TESTS,
        nested_attacks::TESTS,
        nested_bridges::TESTS,
        nested_ports::TESTS,
        nested_policy::TESTS,
        nested_users::TESTS,
        nested_verbs::TESTS,
        one_liners::TESTS,
        pam::TESTS,
        polkit::TESTS,
        polkit_rights::TESTS,
        processes::TESTS,
        full::TESTS,
        asking::TESTS,
        system::TESTS,
        system_attacks::TESTS,
        system_autostart::TESTS,
        system_copies::TESTS,
        system_devices::TESTS,
        system_inside::TESTS,
        system_moves::TESTS,
        system_nested::TESTS,
        system_nested_links::TESTS,
        system_podman::TESTS,
        system_settings::TESTS,
        system_shutdown::TESTS,
        system_verbs::TESTS,
    ])
}
