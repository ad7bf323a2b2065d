//! Debian with systemd in Debian with systemd, three levels of it: each launched from inside the one above by an ordinary user of that
//! one, where policy lets them in. In a virtual machine all are of the machine's own suite.

use std::fs;

use serde_json::Value;

use crate::common::{
    Lab, checker,
    containers::{Shell, by, debian_with_command, import_by, states},
    wait_until,
};

// Launched by an ordinary user of the one above, whom neither root's nor the other user's commands are mistaken for.
fn three_levels_by_ordinary_users(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"users\"\nquota = { nesting-user-blocks = 8 }\n");
    let mut broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    let archive = debian_with_command(lab);
    shell.import_inside(&[], &archive, "debian");
    shell.done(&["launch", "debian", "one", "--nesting", "--memory", "400M", "--wait"]);
    // What is not needed any more goes at once: a virtual machine's disk is small.
    let forget = |users: &[&str], levels: &[&str]| {
        shell.done(&by(users, levels, &["cgrant", "image", "remove", "debian", "--quiet"]));
    };
    let with_users = |users: &[&str], levels: &[&str]| {
        for name in ["ann", "bob"] {
            shell.done(&by(users, levels, &["useradd", "--create-home", name]));
        }
    };
    with_users(&["root"], &["one"]);
    import_by(&shell, &archive, &["ann"], &["one"]);
    let launch = ["cgrant", "launch", "debian", "two", "--nesting=3", "--wait"];
    shell.done(&by(&["ann"], &["one"], &launch));
    forget(&["ann"], &["one"]);
    with_users(&["ann", "root"], &["one", "two"]);
    import_by(&shell, &archive, &["ann", "bob"], &["one", "two"]);
    fs::remove_file(&archive).unwrap();
    let launch = ["cgrant", "launch", "debian", "three", "--wait"];
    shell.done(&by(&["ann", "bob"], &["one", "two"], &launch));
    forget(&["ann", "bob"], &["one", "two"]);
    checker::assert_in_order(lab);
    // Each sees its own, and neither root nor the other has any part in it.
    let list = |users: &[&str], levels: &[&str]| {
        states(&shell.done(&by(users, levels, &["cgrant", "--format", "json", "list"])))
    };
    let is_right = || {
        assert_eq!(list(&["ann"], &["one"]), ["two running"]);
        assert_eq!(list(&["ann", "bob"], &["one", "two"]), ["three running"]);
        for (users, levels) in [
            (&["root"][..], &["one"][..]),
            (&["bob"], &["one"]),
            (&["ann", "root"], &["one", "two"]),
            (&["ann", "ann"], &["one", "two"]),
        ] {
            assert!(list(users, levels).is_empty(), "{users:?}");
        }
    };
    is_right();
    let grants = |user: &str, all: &[&str]| {
        let words = [&["cgrant", "--format", "json", "grant", "list"], all].concat();
        let rows: Value = serde_json::from_str(&shell.done(&by(&[user], &["one"], &words))).unwrap();
        let row = |row: &Value| format!("{} {}", row["name"].as_str().unwrap(), row["account"]);
        rows.as_array().unwrap().iter().map(row).collect::<Vec<_>>()
    };
    assert_eq!(
        (grants("ann", &[]), grants("root", &["--all"])),
        (vec!["two 1000".to_owned()], vec!["two 1000".to_owned()])
    );
    assert!(grants("bob", &[]).is_empty() && grants("root", &[]).is_empty());
    let refused = shell.output(&by(&["bob"], &["one"], &["cgrant", "grant", "list", "--all"]));
    assert!(!refused.status.success());
    let levels = ["one", "two", "three"];
    let within = |script: &str| shell.done(&by(&["ann", "bob", "root"], &levels, &["sh", "-c", script]));
    assert_eq!(within("hostname; id -u; ps -o comm= 1"), "three\n0\nsystemd\n");
    assert_eq!(within("systemctl is-system-running").trim(), "running");
    assert_eq!(within("awk '{print $1, $3}' /proc/self/uid_map"), "0 65536\n");
    // The first one's limit is what kills here, and nobody else.
    let words = by(&["ann", "bob", "root"], &levels, &["sh", "-c", "tail /dev/zero"]);
    assert_eq!(shell.output(&words).status.code(), Some(137));
    is_right();
    broker.kill_everything();
    assert_eq!(within("echo there"), "there\n");
    broker.start_again();
    wait_until("the broker is back", || shell.output(&["list"]).status.success());
    checker::assert_in_order(lab);
    is_right();
    shell.done(&by(&["ann", "bob"], &levels[..2], &["cgrant", "stop", "three", "--timeout", "60"]));
    shell.done(&by(&["ann"], &levels[..1], &["cgrant", "stop", "two", "--timeout", "60"]));
    assert!(grants("root", &["--all"]).is_empty());
    shell.done(&["delete", "--force", "one"]);
    checker::assert_empty(lab);
}

crate::tests![three_levels_by_ordinary_users];
