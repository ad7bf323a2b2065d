//! Policy files that change while the broker runs: noticed by themselves, in force whole or not at all, and nobody's but root's.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown, symlink},
    path::PathBuf,
};

use crate::{
    common::{Client, Lab, Options, wait_until},
    leaving::Place,
};

fn rule(name: &str, grants: u32) -> String {
    format!("[[rule]]\nname = \"{name}\"\nquota.grants = {grants}\n")
}

fn directory(lab: &Lab) -> PathBuf {
    lab.config_dir().join("policy.d")
}

/// The rule of a user's quotas, and how many grants it gives.
fn in_force(client: &Client) -> (String, u64) {
    let (_, rule, rows): (u32, String, Vec<(String, u64, u64)>) =
        client.manager("GetUsage", &Options::new().0).unwrap();
    (rule, rows.iter().find(|row| row.0 == "grants").unwrap().2)
}

fn files_are_noticed_when_they_change(lab: &Lab) {
    let broker = lab.broker();
    let client = lab.user().client(broker.socket());
    assert!(in_force(&client).0.contains("built-in"));
    let is = |what: &str, rule: &str, grants: u64| {
        wait_until(what, || in_force(&client) == (rule.to_owned(), grants));
    };
    lab.write_policy(&rule("one", 7));
    is("a new file", "50-test.toml:1 one", 7);
    // As editors and configuration management write: a new file in the place of the old.
    fs::write(directory(lab).join(".new"), rule("two", 8)).unwrap();
    fs::rename(directory(lab).join(".new"), directory(lab).join("50-test.toml")).unwrap();
    is("a replaced file", "50-test.toml:1 two", 8);
    fs::write(directory(lab).join("10-first.toml"), rule("first", 9)).unwrap();
    is("another file", "10-first.toml:1 first", 9);
    fs::remove_file(directory(lab).join("10-first.toml")).unwrap();
    is("a removed file", "50-test.toml:1 two", 8);
    // The whole directory goes, and comes back as another one.
    fs::rename(directory(lab), lab.config_dir().join("aside")).unwrap();
    wait_until("no directory", || in_force(&client).0.contains("built-in"));
    fs::rename(lab.config_dir().join("aside"), directory(lab)).unwrap();
    is("the directory is back", "50-test.toml:1 two", 8);
    lab.write_policy(&rule("three", 6));
    is("a file in it", "50-test.toml:1 three", 6);
}

fn a_mistake_that_is_noticed_leaves_the_policy_before(lab: &Lab) {
    lab.write_policy(&rule("good", 4));
    let broker = lab.broker();
    let client = lab.user().client(broker.socket());
    // Two files, of which one is better and one is bad: neither counts.
    fs::write(directory(lab).join("10-better.toml"), rule("better", 50)).unwrap();
    fs::write(directory(lab).join("60-bad.toml"), "[[rule]]\nname = \"bad\"\nquota.grantz = 1\n").unwrap();
    wait_until("the mistake is told", || broker.log().contains("60-bad.toml:3:7"));
    assert_eq!(in_force(&client), ("50-test.toml:1 good".to_owned(), 4));
    fs::remove_file(directory(lab).join("60-bad.toml")).unwrap();
    wait_until("it is mended", || in_force(&client) == ("10-better.toml:1 better".to_owned(), 50));
}

/// Whoever gets a name into the directory, or a byte into a file, would write the policy.
fn a_file_that_is_not_roots_alone_is_refused(lab: &Lab) {
    lab.write_policy(&rule("good", 4));
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let theirs = lab.scratch.join("theirs.toml");
    fs::write(&theirs, rule("mine", 60_000)).unwrap();
    chown(&theirs, Some(user.uid), Some(user.gid)).unwrap();
    let bad = directory(lab).join("10-bad.toml");
    type Attack<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let attacks: [Attack<'_>; 6] = [
        ("not a regular file", Box::new(|| symlink(&theirs, &bad).unwrap())),
        ("belongs to uid", Box::new(|| fs::hard_link(&theirs, &bad).unwrap())),
        ("not a regular file", Box::new(|| drop(std::os::unix::net::UnixListener::bind(&bad).unwrap()))),
        (
            "not a regular file",
            Box::new(|| {
                nix::unistd::mkfifo(&bad, nix::sys::stat::Mode::S_IRWXU).unwrap();
            }),
        ),
        (
            "mode 0666",
            Box::new(|| {
                fs::write(&bad, rule("mine", 60_000)).unwrap();
                fs::set_permissions(&bad, fs::Permissions::from_mode(0o666)).unwrap();
            }),
        ),
        ("longer than", Box::new(|| fs::write(&bad, "#".repeat(1 << 20)).unwrap())),
    ];
    for (words, attack) in attacks {
        let told = broker.log().matches("the previous one stays").count();
        attack();
        wait_until(words, || broker.log().matches("the previous one stays").count() > told);
        let log = broker.log();
        let last = log.lines().rfind(|line| line.contains("the previous one stays")).unwrap();
        assert!(last.contains("policy.d/10-bad.toml") && last.contains(words), "{words}: {last}");
        assert_eq!(in_force(&client), ("50-test.toml:1 good".to_owned(), 4), "{words}");
        fs::remove_file(&bad).unwrap();
        broker.reload();
    }
}

/// An attacker was in the group once, or has the gid that its name had; or its number is somebody else's now.
fn a_group_by_name_is_whoever_has_its_gid_now(lab: &Lab) {
    let (first, second) = (31_008, 31_009);
    lab.write_policy(
        "[[rule]]\nname = \"builders\"\ngroups = [\"builders\"]\n\
         [[rule]]\nname = \"others\"\naccess.grant = \"deny\"\n",
    );
    let place = Place::new(lab, &[]);
    place.group(&[("staff", second), ("builders", first)]);
    let broker = place.broker();
    let clients = [first, second].map(|gid| lab.user_in(&[gid]).client(broker.socket()));
    let [firsts, seconds] = &clients;
    let is_builder = |client: &Client| in_force(client).0 == "50-test.toml:1 builders";
    let may = |client: &Client| {
        let grant = client.create("one", Options::new().no_range()).unwrap();
        client.release(&grant.path, false).unwrap();
    };
    let may_not = |client: &Client| {
        let refused = client.create("one", Options::new().no_range()).unwrap_err();
        refused.is("NotAuthorized", "");
        assert_eq!(refused.text("rule").as_deref(), Some("50-test.toml:4 others"));
    };
    may(firsts);
    may_not(seconds);
    // Connections that are there already are judged by it too.
    place.group(&[("staff", first), ("builders", second)]);
    wait_until("the name is of another gid", || is_builder(seconds));
    may(seconds);
    may_not(firsts);
    // A group that is not there has no members, not even those of an empty name.
    place.group(&[("staff", first), ("", second)]);
    wait_until("the group is gone", || !is_builder(seconds));
    clients.iter().for_each(may_not);
    place.group(&[("builders", first)]);
    wait_until("the group is back", || is_builder(firsts));
    may(firsts);
    may_not(seconds);
}

crate::tests![
    files_are_noticed_when_they_change,
    a_mistake_that_is_noticed_leaves_the_policy_before,
    a_file_that_is_not_roots_alone_is_refused,
    a_group_by_name_is_whoever_has_its_gid_now,
];
