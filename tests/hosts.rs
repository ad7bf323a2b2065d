//! The same tests on every kind of host: this machine and the virtual ones that `tests/vm/run` boots, which prints a
//! matrix of test and host. The modules are those of the integration tests that hold everywhere; where kinds of host
//! differ the test says what each has to do, so that none is skipped.

// The scratch directories are the tests' own.
#![allow(clippy::disallowed_methods)]

// What only the integration tests use is dead here.
#[allow(dead_code)]
mod common;

#[path = "integration/attach.rs"]
mod attach;
#[path = "integration/attacks.rs"]
mod attacks;
#[path = "hosts/autostart.rs"]
mod autostart;
#[path = "integration/busses.rs"]
mod busses;
#[path = "integration/cgmanager_attacks.rs"]
mod cgmanager_attacks;
#[path = "integration/cgmanager_commands.rs"]
mod cgmanager_commands;
#[path = "integration/cgmanager_elsewhere.rs"]
mod cgmanager_elsewhere;
#[path = "integration/cgmanager_proxy.rs"]
mod cgmanager_proxy;
#[path = "integration/cgmanager_table.rs"]
mod cgmanager_table;
#[path = "hosts/consent.rs"]
mod consent;
#[path = "hosts/containers.rs"]
mod containers;
#[path = "integration/controllers.rs"]
mod controllers;
#[path = "integration/devices.rs"]
mod devices;
#[path = "integration/differential.rs"]
mod differential;
#[path = "integration/events.rs"]
mod events;
// Its questions are asked beside requests of others; its own tests are the engine's alone.
#[allow(dead_code)]
#[path = "integration/explain.rs"]
mod explain;
#[path = "integration/grants.rs"]
mod grants;
#[path = "integration/holders.rs"]
mod holders;
#[path = "integration/limits.rs"]
mod limits;
#[path = "integration/links.rs"]
mod links;
#[path = "integration/links_attacks.rs"]
mod links_attacks;
#[path = "integration/mounts.rs"]
mod mounts;
#[path = "integration/nested.rs"]
mod nested;
#[path = "hosts/nested_debian.rs"]
mod nested_debian;
#[path = "hosts/nested_debian_users.rs"]
mod nested_debian_users;
#[path = "hosts/nested_systems.rs"]
mod nested_systems;
#[path = "integration/nested_users.rs"]
mod nested_users;
#[path = "hosts/package.rs"]
mod package;
#[path = "integration/pam.rs"]
mod pam;
#[path = "hosts/people.rs"]
mod people;
#[path = "hosts/placement.rs"]
mod placement;
#[path = "hosts/reboot.rs"]
mod reboot;
#[path = "hosts/shutdown.rs"]
mod shutdown;
#[path = "hosts/vlans.rs"]
mod vlans;

// What the engine decides alike everywhere, before it touches the kernel: with the integration tests only, because
// emulated machines are slow.
const ELSEWHERE: &[&str] = &[
    "attach::only_the_callers_own_processes",
    "attacks::descriptors_that_nobody_reads_hold_up_nobody",
    "busses::the_bus_may_go_and_come_back",
    "busses::what_runs_is_what_the_contract_says",
    "cgmanager_attacks::abused_exchanges_make_nobody_somebody_else",
    "cgmanager_attacks::cgroups_have_an_end",
    "cgmanager_attacks::descriptors_of_bad_exchanges_are_closed",
    "cgmanager_attacks::keys_lead_out_of_no_cgroup",
    "cgmanager_attacks::no_path_is_too_long",
    "cgmanager_attacks::nothing_of_others_is_listed",
    "cgmanager_attacks::ten_thousand_connections_leave_others_served",
    "cgmanager_attacks::ten_thousand_processes_are_told",
    "cgmanager_attacks::what_is_the_machines_stays_as_it_was",
    "cgmanager_attacks::who_asks_much_makes_nobody_wait",
    "cgmanager_attacks::who_has_a_number_now_is_not_who_had_it",
    "cgmanager_proxy::a_proxy_passes_on_all_of_a_long_answer",
    "grants::a_range_belongs_to_account_and_name_and_to_nobody_else",
    "grants::a_repeated_request_with_its_key_gives_the_same_grant",
    "grants::adopt_changes_what_ends_a_grant",
    "grants::another_users_grant_is_as_if_it_were_not_there",
    "grants::instances_run_side_by_side_and_share_the_record_of_ids",
    "grants::names_of_every_byte_are_taken_or_refused",
    "grants::sizes_of_ranges",
    "links::a_tap_speaks_with_containers",
    "links::four_containers_of_two_accounts",
    "links::links_come_and_go_while_a_grant_lives",
    "links::names_lead_both_ways",
    "links::the_command_line",
    "links::what_a_link_is_like",
    "links_attacks::nobody_steals_or_fills_the_bridges_memory",
    "links_attacks::the_hosts_loopback_is_the_hosts",
    "limits::wrong_values_are_refused_and_change_nothing",
    "mounts::descriptors_that_nobody_wanted_are_closed",
    "mounts::policy_has_a_word_on_mounts",
    "nested_users::a_flood_leaves_others_room",
    "nested_users::a_user_has_so_many_blocks",
    "nested_users::keys_and_names_are_each_users",
    "nested_users::policy_lets_them_out_again",
];

// What depends on the kernel alone. A virtual machine says with `CGRANT_TEST_KERNEL_OF` that another one has the same
// kernel and tries them; the matrix counts them there, once. A whole system is among them: it has a cgroup2 tree on every
// host, and what is different around it the small one shows. Memory on cgroup v1 is this machine's.
const OF_THE_KERNEL: &[&str] = &[
    "containers::a_full_memory_ends_what_is_inside_and_not_the_monitor",
    "containers::a_whole_debian_boots",
    "devices::",
    "links::",
    "links_attacks::",
    "mounts::",
    "vlans::",
];

// Three whole systems, one in another, take minutes where processors are emulated: each once there, with `nsdelegate`, besides on this
// machine. The others say where with `CGRANT_TEST_DEBIAN_OF` and `CGRANT_TEST_USERS_OF`.
const OF_DEBIAN: &[&str] = &["nested_debian::"];
const OF_USERS: &[&str] = &["nested_debian_users::"];

// CGManager's interface, and how a container is started inside another one, have to do with the layout of the hierarchies and the
// kernel, and not with who set them up. A virtual machine says with `CGRANT_TEST_LAYOUT_OF` that another host has the same.
const OF_THE_LAYOUT: &[&str] = &[
    "cgmanager_attacks::",
    "cgmanager_commands::",
    "cgmanager_elsewhere::",
    "cgmanager_proxy::",
    "cgmanager_table::",
    "nested_systems::",
];

fn main() -> std::process::ExitCode {
    let tests = [
        grants::TESTS,
        limits::TESTS,
        attach::TESTS,
        attacks::TESTS,
        holders::TESTS,
        devices::TESTS,
        events::TESTS,
        placement::TESTS,
        shutdown::TESTS,
        busses::TESTS,
        cgmanager_attacks::TESTS,
        cgmanager_commands::TESTS,
        cgmanager_elsewhere::TESTS,
        cgmanager_proxy::TESTS,
        cgmanager_table::TESTS,
        controllers::TESTS,
        differential::TESTS,
        links::TESTS,
        links_attacks::TESTS,
        mounts::TESTS,
        nested::TESTS,
        nested_users::TESTS,
        pam::TESTS,
        containers::TESTS,
        nested_systems::TESTS,
        nested_debian::TESTS,
        nested_debian_users::TESTS,
        vlans::TESTS,
        package::TESTS,
        people::TESTS,
        consent::TESTS,
        // It switches the machine off, as far as what runs on it can tell.
        autostart::TESTS,
        // Last: it does so.
        reboot::TESTS,
    ];
    let others = [
        (OF_THE_KERNEL, "CGRANT_TEST_KERNEL_OF"),
        (OF_THE_LAYOUT, "CGRANT_TEST_LAYOUT_OF"),
        (OF_DEBIAN, "CGRANT_TEST_DEBIAN_OF"),
        (OF_USERS, "CGRANT_TEST_USERS_OF"),
    ];
    let others = others.into_iter().filter_map(|(modules, host)| Some((modules, std::env::var(host).ok()?)));
    common::harness::main_without_modules(&tests, ELSEWHERE, &others.collect::<Vec<_>>())
}
