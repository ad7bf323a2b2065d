//! Images as root of a storage namespace: a user namespace with a range of ids and the caller's own account beside it.
//!
//! Without libtest, which starts threads. Every case has a scratch directory of mode 0700 that belongs to the caller, and
//! runs in a child in namespaces of its own. Needs root, and says so by failing; the case that builds Debian needs
//! mmdebstrap and a mirror.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod cases;
mod scene;

use std::process::ExitCode;

type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("owners_are_those_of_the_range", cases::owners_are_those_of_the_range),
    ("the_callers_id_is_no_owner", cases::the_callers_id_is_no_owner),
    ("both_sides_use_one_store", cases::both_sides_use_one_store),
    ("what_is_exported_has_the_owners_of_the_inside", cases::what_is_exported_has_the_owners_of_the_inside),
    ("another_ranges_tree_is_copied_through_a_mapped_mount", cases::another_ranges_tree_is_copied),
    ("another_ranges_tree_is_copied_through_a_pipe", cases::another_ranges_tree_is_piped),
    ("the_callers_directory_becomes_an_image", cases::the_callers_directory_becomes_an_image),
    ("a_full_disk_is_named", cases::a_full_disk_is_named),
    ("a_mount_is_not_removed", cases::a_mount_is_not_removed),
    ("a_mount_over_a_file_is_no_leftover", cases::a_mount_over_a_file_is_no_leftover),
    ("another_device_number_is_no_mount", cases::another_device_number_is_no_mount),
    ("a_builder_that_fails_says_why", cases::a_builder_that_fails_says_why),
    ("a_builder_has_not_the_callers_account", cases::a_builder_has_not_the_callers_account),
    ("a_builder_leaves_nothing_beside_the_image", cases::a_builder_leaves_nothing_beside_the_image),
    ("debian_is_built_without_root", cases::debian_is_built_without_root),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.iter().any(|argument| argument == "--list") {
        // What a test runner reads; there is no ignored test to list.
        if !arguments.iter().any(|argument| argument == "--ignored") {
            TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        }
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    let (mut passed, mut failed) = (0, 0);
    for (name, test) in TESTS.iter().filter(|(name, _)| is_wanted(name)) {
        let is_good = std::panic::catch_unwind(test).is_ok();
        println!("test {name} ... {}", if is_good { "ok" } else { "FAILED" });
        if is_good { passed += 1 } else { failed += 1 }
    }
    println!("\ntest result: {passed} passed; {failed} failed");
    ExitCode::from(u8::from(failed != 0))
}
