//! A holder that wants more: it tries by hand, in cgroupfs, what the broker would refuse. As the account itself, as
//! the root of its range, from inside a user namespace of its own, and through the descriptor it was given.

use std::{fs, os::unix::fs::MetadataExt, path::PathBuf};

use crate::common::{Client, Grant, Lab, Options, Process, User, checker, user::cgroups_of};

struct Held {
    user: User,
    client: Client,
    grant: Grant,
    // What the account runs outside, what the range's root runs inside the payload.
    outside: Process,
    inside: Process,
    // Dropped last, when what it holds is gone.
    broker: crate::common::Broker,
}

fn held(lab: &Lab) -> Held {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant =
        client.create("held", Options::new().limits(&[("memory.max", "64M"), ("pids.max", "30")])).unwrap();
    let (outside, _, _) = user.agent(&["files"]);
    // The container's root as the host's kernel sees it: the first uid of the range, without a capability on the host.
    let root = User::new(grant.uid, &[], &lab.scratch, &lab.programs);
    let (inside, _, _) = root.agent(&["files"]);
    // Its container put it there; here root does, because the account may not touch a process of the range.
    for (tree, place) in checker::places(lab, user.uid, "held") {
        let leaf = place.join("payload");
        fs::write(leaf.join("cgroup.procs"), inside.pid.to_string())
            .unwrap_or_else(|e| panic!("{tree}: {e}"));
    }
    Held { user, client, grant, outside, inside, broker }
}

// Directories that agents can reach by path. Where no cgroup2 is mounted an agent has no path to it at all.
fn reachable(lab: &Lab, held: &Held) -> Vec<(String, PathBuf)> {
    let places = checker::places(lab, held.user.uid, "held");
    places.into_iter().filter(|(_, place)| !place.starts_with("/proc")).collect()
}

#[track_caller]
fn refused(process: &Process, verb: &str, path: &std::path::Path, argument: &str) {
    let answer = process.try_file(verb, path, argument);
    let kinds = ["EACCES", "EPERM", "ENOENT", "EROFS"];
    assert!(kinds.contains(&answer.as_str()), "{verb} {} {argument:?} gave {answer:?}", path.display());
}

fn limits_cannot_be_raised(lab: &Lab) {
    let held = held(lab);
    for (tree, place) in reachable(lab, &held) {
        for process in [&held.outside, &held.inside] {
            for directory in [place.parent().unwrap(), &place, &place.join("payload")] {
                for file in
                    fs::read_dir(directory).unwrap().flatten().filter(|f| f.file_type().unwrap().is_file())
                {
                    let name = file.file_name().into_string().unwrap();
                    let delegated = directory.ends_with("payload")
                        && tree == "cgroup2"
                        && delegated_files().contains(&name);
                    let entry = name == "cgroup.procs" && tree == "cgroup2";
                    // Everybody may write to this one; what is said there is believed of descriptors only.
                    let notices = name == "cgroup.event_control";
                    if delegated || entry || notices {
                        continue;
                    }
                    refused(process, "write", &file.path(), "max");
                    refused(process, "chmod", &file.path(), "666");
                }
            }
        }
    }
    assert_eq!(held.client.value(&held.grant.path, "memory.max"), "67108864");
    assert_eq!(held.client.value(&held.grant.path, "pids.max"), "30");
    checker::assert_in_order(lab);
}

fn delegated_files() -> Vec<String> {
    fs::read_to_string("/sys/kernel/cgroup/delegate").unwrap().lines().map(str::to_owned).collect()
}

fn the_grant_cannot_be_left(lab: &Lab) {
    let held = held(lab);
    let before = held.inside.cgroups();
    for (tree, place) in reachable(lab, &held) {
        let mut above = vec![place.clone(), place.join("monitor"), place.join("children")];
        above.extend(
            place.ancestors().skip(1).take_while(|p| p.starts_with("/sys/fs/cgroup")).map(PathBuf::from),
        );
        for directory in above {
            for file in ["cgroup.procs", "tasks", "cgroup.threads"] {
                refused(&held.inside, "write", &directory.join(file), &held.inside.pid.to_string());
                refused(&held.inside, "write", &directory.join(file), "0");
            }
        }
        let _ = tree;
    }
    assert_eq!(held.inside.cgroups(), before);
}

fn the_upper_cgroups_cannot_be_frozen_removed_renamed_or_added_to(lab: &Lab) {
    let held = held(lab);
    for (_, place) in reachable(lab, &held) {
        for process in [&held.outside, &held.inside] {
            let account = place.parent().unwrap();
            for directory in [
                account.to_owned(),
                place.clone(),
                place.join("payload"),
                place.join("monitor"),
                place.join("children"),
            ] {
                refused(process, "rmdir", &directory, "");
                refused(process, "rename", &directory, directory.with_file_name("renamed").to_str().unwrap());
                // The payload itself is its owner's.
                let own = directory.ends_with("payload") && fs::metadata(&directory).unwrap().uid() != 0;
                if !own {
                    refused(process, "chmod", &directory, "777");
                }
            }
            for directory in
                [account.to_owned(), place.clone(), place.join("monitor"), place.join("children")]
            {
                refused(process, "mkdir", &directory.join("mine"), "");
            }
            for file in [
                "cgroup.freeze",
                "cgroup.kill",
                "cgroup.subtree_control",
                "cgroup.type",
                "cgroup.max.descendants",
            ] {
                refused(process, "write", &place.join(file), "1");
                refused(process, "write", &account.join(file), "1");
            }
        }
    }
    checker::assert_in_order(lab);
    assert!(held.inside.is_alive() && held.outside.is_alive());
}

fn the_payload_is_the_holders_to_divide(lab: &Lab) {
    let held = held(lab);
    let places = checker::places(lab, held.user.uid, "held");
    let payload = places["cgroup2"].join("payload");
    if payload.starts_with("/proc") {
        // No path leads there on this host; the broker divides it on request.
        held.client.cgroup::<_, ()>(&held.grant.path, "CreateCgroup", &"mine").unwrap();
        return;
    }
    let inner = payload.join("mine");
    assert_eq!(held.inside.try_file("mkdir", &inner, ""), "ok ");
    assert_eq!(held.inside.try_file("write", &inner.join("cgroup.procs"), "0"), "ok ");
    assert!(held.inside.cgroups().iter().any(|(_, path)| path.ends_with("/held/payload/mine")));
    // However it divides it, what is above stays above.
    refused(&held.inside, "write", &payload.join("pids.max"), "max");
    refused(&held.inside, "rename", &inner, payload.parent().unwrap().join("mine").to_str().unwrap());
    held.client.release(&held.grant.path, true).unwrap();
    checker::assert_empty(lab);
}

fn user_namespaces_do_not_help(lab: &Lab) {
    let held = held(lab);
    let before = held.inside.cgroups();
    // All capabilities in a user namespace of its own, its own mount and cgroup namespace.
    assert_eq!(held.inside.try_file("unshare", &PathBuf::from("user,mount,cgroup"), ""), "ok ");
    let home = lab.scratch.join(format!("home-{}", held.grant.uid));
    let mount = held.inside.try_file("mount", &home, "cgroup2");
    if mount == "ok " {
        // The root of what it sees is its payload; the files in it are root's on the host.
        for file in ["memory.max", "pids.max", "cpu.max", "cgroup.freeze", "cgroup.max.descendants", "io.max"]
        {
            refused(&held.inside, "write", &home.join(file), "max");
        }
        refused(&held.inside, "write", &home.join("../cgroup.procs"), "0");
    } else {
        assert!(["EPERM", "EACCES", "EBUSY"].contains(&mount.as_str()), "{mount}");
    }
    // v1 hierarchies can't be mounted there at all.
    let answer = held.inside.try_file("mount", &home, "cgroup");
    assert_ne!(answer, "ok ", "a v1 hierarchy was mounted in a user namespace");
    for (_, place) in reachable(lab, &held) {
        refused(&held.inside, "write", &place.join("cgroup.procs"), "0");
        refused(&held.inside, "write", &place.join("pids.max"), "max");
        refused(&held.inside, "write", &place.join("payload/pids.max"), "max");
        refused(&held.inside, "rmdir", &place.join("payload"), "");
    }
    assert_eq!(cgroups_of(held.inside.pid).len(), before.len());
    assert_eq!(held.client.value(&held.grant.path, "pids.max"), "30");
    checker::assert_in_order(lab);
}

fn the_descriptor_that_comes_with_a_grant_gives_no_right(lab: &Lab) {
    let held = held(lab);
    let (thief, _, _) = held.user.agent(&["through-fd"]);
    let said = thief.give(
        &held.grant.payload,
        &[
            "memory.max",
            "pids.max",
            "../memory.max",
            "../pids.max",
            "../cgroup.procs",
            "../../pids.max",
            "../children/cgroup.procs",
        ],
    );
    for (file, answer) in said {
        // GRANT/cgroup.procs is the account's, so that its monitor may clone into the payload; it holds no process.
        if file == "../cgroup.procs" {
            continue;
        }
        assert!(
            ["EACCES", "EPERM", "ENOENT"].contains(&answer.as_str()),
            "opening {file} for writing: {answer}"
        );
    }
    checker::assert_in_order(lab);
}

fn a_caller_inside_a_bare_grant_cannot_lift_its_limits(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client
        .create("bare", Options::new().no_range().lifetime("persistent").limits(&[("pids.max", "40")]))
        .unwrap();
    // This connection's process is moved inside; its next requests come from there.
    let insider = user.client(broker.socket());
    client.attach(&grant.path, &insider.process.as_ref().unwrap().pidfd, Options::new()).unwrap();
    insider.set_limits(&grant.path, &[("pids.max", "max")]).unwrap_err().is("NotAuthorized", "inside");
    insider.release(&grant.path, true).unwrap_err().is("NotAuthorized", "inside");
    insider.cgroup::<_, ()>(&grant.path, "Thaw", &()).unwrap_err().is("NotAuthorized", "inside");
    insider.create("other", Options::new().no_range()).unwrap_err().is("NotAuthorized", "inside");
    assert_eq!(client.value(&grant.path, "pids.max"), "40");
    assert_eq!(client.names(), ["bare"]);
    client.release(&grant.path, true).unwrap();
    checker::assert_empty(lab);
}

fn a_process_of_the_range_is_not_served_as_somebody_else(lab: &Lab) {
    let held = held(lab);
    let root = User::new(held.grant.uid, &[], &lab.scratch, &lab.programs);
    let client = root.client(held.broker.socket());
    client.create("nested", Options::new()).unwrap_err().is("NotAuthorized", "acts for nobody");
    assert!(client.find("held").is_err());
    client.release(&held.grant.path, true).unwrap_err();
    client.set_limits(&held.grant.path, &[("pids.max", "max")]).unwrap_err();
    assert_eq!(held.client.names(), ["held"]);
    checker::assert_in_order(lab);
}

crate::tests![
    limits_cannot_be_raised,
    the_grant_cannot_be_left,
    the_upper_cgroups_cannot_be_frozen_removed_renamed_or_added_to,
    the_payload_is_the_holders_to_divide,
    user_namespaces_do_not_help,
    the_descriptor_that_comes_with_a_grant_gives_no_right,
    a_caller_inside_a_bare_grant_cannot_lift_its_limits,
    a_process_of_the_range_is_not_served_as_somebody_else,
];
