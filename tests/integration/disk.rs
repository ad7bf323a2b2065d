//! What files of ids take on disks: counted by root's service, charged to whom the broker knows to have the ids, kept, shown, and refused by.

use std::{
    collections::HashMap,
    fs,
    io::{Read, Write},
    os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink},
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{
    explain::{explain, same},
    polkit::sees_polkit,
};
use crate::common::{
    Broker, Client, Lab, Options, PATIENCE,
    bus::{Changed, GRANT, MANAGER, MANAGER_PATH},
    checker,
    containers::{Shell, busybox, text},
    level::{Level, nesting, scene},
    network::LINKS,
    polkit::Desk,
    wait_until,
};

const ACCOUNT: &str = "org.cgrant.Broker1.Account";
const BLOCK: u32 = 65536;
const MIB: u64 = 1 << 20;
const LITTLE: &str = "[[rule]]\nname = \"little\"\nquota = { disk = \"1M\", disk-files = 20 }\n";

fn account_path(uid: u32) -> String {
    format!("/org/cgrant/Broker1/account/{uid}")
}

/// Has root's service look below these directories; how that ended, and what it said.
fn measure(lab: &Lab, broker: &Broker, directories: &[&Path]) -> (i32, Value, String) {
    let list: Vec<_> = directories.iter().map(|path| format!("\"{}\"", path.display())).collect();
    lab.write_config(&format!("[disk]\ndirectories = [{}]\n", list.join(", ")));
    // With the one right that the unit has.
    let mut command = lab.root().command("setpriv");
    command.args(["--bounding-set", "-all,+dac_read_search", "--"]).arg(lab.programs.join("cgrant"));
    command.args(["--format", "json", "disk", "measure", "--config-dir"]).arg(lab.config_dir());
    let output = command.env("CGRANT_SOCKET", broker.socket()).output().unwrap();
    let printed = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    (output.status.code().unwrap(), printed, text(&output.stderr))
}

#[track_caller]
fn measured(lab: &Lab, broker: &Broker, directories: &[&Path]) {
    let (code, printed, said) = measure(lab, broker, directories);
    assert_eq!(code, 0, "{printed} {said}");
}

fn file(path: PathBuf, size: u64, uid: u32) -> PathBuf {
    fs::write(&path, vec![1; usize::try_from(size).unwrap()]).unwrap();
    lchown(&path, Some(uid), Some(uid)).unwrap();
    path
}

/// Bytes and files.
fn charged(client: &Client, uid: u32) -> (u64, u64) {
    let rows = client.usage_of(uid);
    let row = |name: &str| rows.iter().find(|row| row.0 == name).unwrap().1;
    (row("disk"), row("disk-files"))
}

fn bytes(path: &Path) -> u64 {
    path.symlink_metadata().unwrap().blocks() * 512
}

fn files_are_charged_to_whom_their_ids_belong(lab: &Lab) {
    let (alice, bob) = (lab.user(), lab.user());
    lab.write_policy(LITTLE);
    let mut broker = lab.broker();
    let (hers, his) = (alice.client(broker.socket()), bob.client(broker.socket()));
    let root = lab.root().client(broker.socket());
    let web = hers.create("web", Options::new()).unwrap();
    let mail = his.create("mail", Options::new()).unwrap();
    assert_eq!(hers.property::<u64>(&account_path(alice.uid), ACCOUNT, "DiskMeasured"), 0);

    // Nothing that she does with his files makes them hers, and nothing with her own makes those his.
    let big = file(alice.home.join("big"), 2 * MIB, web.uid + 7);
    // In a directory that is closed to everybody.
    fs::create_dir(bob.home.join("closed")).unwrap();
    let in_his_home = file(bob.home.join("closed/hers"), 8192, web.uid);
    lchown(bob.home.join("closed"), Some(bob.uid), Some(bob.gid)).unwrap();
    fs::set_permissions(bob.home.join("closed"), fs::Permissions::from_mode(0o0)).unwrap();
    let small = file(bob.home.join("small"), 4096, mail.uid + BLOCK - 1);
    fs::hard_link(&big, alice.home.join("again")).unwrap();
    fs::hard_link(&small, alice.home.join("his")).unwrap();
    file(alice.home.join("own"), MIB, alice.uid);
    lchown(alice.home.join("own"), Some(alice.uid), Some(mail.gid)).unwrap();
    symlink(&bob.home, alice.home.join("link")).unwrap();
    let homes: &[&Path] = &[&alice.home, &bob.home];
    let mut watch = hers.watch();
    measured(lab, &broker, homes);
    let expected = (bytes(&big) + bytes(&in_his_home), 2);
    assert_eq!(charged(&root, alice.uid), expected);
    assert_eq!(charged(&his, bob.uid), (bytes(&small), 1));
    loop {
        let (path, (_, mut changed, _)) =
            hers.signal::<Changed>(&mut watch, "PropertiesChanged", PATIENCE).unwrap();
        let Some(usage) = changed.remove("Usage").filter(|_| path == account_path(alice.uid)) else {
            continue;
        };
        if HashMap::<String, u64>::try_from(usage).unwrap().get("disk") == Some(&expected.0) {
            break;
        }
    }

    // What is new is refused, and said before; what is there goes on, and what has no ids is of no disk.
    let over = |client: &Client| {
        let answer = explain(client, "CreateGrant", Options::new().with("name", "more")).unwrap();
        let real = client.create("more", Options::new());
        same("over quota", &answer, &real);
        let refused = real.unwrap_err();
        refused.is("QuotaExceeded", "more than the 1.0 MiB that policy allows");
        assert_eq!(refused.text("resource").as_deref(), Some("disk"));
        assert!(refused.text("rule").unwrap().contains("little"), "{refused:?}");
        assert_eq!((refused.number("quota"), refused.number("usage")), (Some(MIB), Some(expected.0)));
    };
    over(&hers);
    assert!(hers.set_limits(&web.path, &[("pids.max", "30")]).is_ok());
    let bare = hers.create("bare", Options::new().no_range()).unwrap();
    his.create("more", Options::new()).unwrap();
    let printed = text(&alice.cgrant(broker.socket(), &["usage"]).stdout);
    assert!(
        printed.contains("2.0M") && printed.contains("1.0M") && printed.contains("disk measured: 2"),
        "{printed}"
    );
    let (_process, mut stream) = lab.root().connect(&lab.runtime_dir().join("metrics"));
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut metrics = String::new();
    stream.read_to_string(&mut metrics).unwrap();
    let sample =
        format!("cgrant_account_usage{{account=\"{}\",resource=\"disk\"}} {}\n", alice.uid, expected.0);
    assert!(metrics.contains(&sample) && metrics.contains("\ncgrant_disk_measured_seconds"), "{metrics}");

    // The broker keeps it.
    let when = hers.property::<u64>(&account_path(alice.uid), ACCOUNT, "DiskMeasured");
    assert!(when > 1_700_000_000_000_000);
    drop((hers, his, root));
    broker.kill_everything();
    broker.start_again();
    let (hers, his) = (alice.client(broker.socket()), bob.client(broker.socket()));
    let root = lab.root().client(broker.socket());
    assert_eq!(charged(&root, alice.uid), expected);
    assert_eq!(hers.property::<u64>(&account_path(alice.uid), ACCOUNT, "DiskMeasured"), when);
    over(&hers);

    // It ends with the files and a measurement, not with either; one that missed something takes nothing away.
    fs::remove_file(&big).unwrap();
    fs::remove_file(alice.home.join("again")).unwrap();
    over(&hers);
    let (code, _, said) = measure(lab, &broker, &[&alice.home, &bob.home, &lab.scratch.join("gone")]);
    assert!(code != 0 && said.contains("gone"), "{code} {said}");
    over(&hers);
    measured(lab, &broker, homes);
    let more = hers.create("more", Options::new()).unwrap();
    for number in 0..25 {
        file(alice.home.join(format!("f{number}")), 0, more.uid);
    }
    hers.release(&more.path, true).unwrap();
    measured(lab, &broker, homes);
    let refused = hers.create("more", Options::new()).unwrap_err();
    refused.is("QuotaExceeded", "26 of disk-files, more than the 20");
    for grant in [&web.path, &bare.path] {
        // Held by connections that are gone: it may have ended.
        let _ = hers.release(grant, true);
    }
    checker::assert_in_order(lab);
    drop((hers, his, root));
}

/// Whoever has too many files can remove some, and can't do much else by saying so.
fn files_can_be_removed_by_who_has_too_many(lab: &Lab) {
    let user = lab.user();
    lab.write_policy("[[rule]]\nname = \"none\"\nquota.disk = 0\n");
    let broker = lab.broker();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["create", "--copy", "box", "web"]);
    shell.done(&["start", "web"]);
    measured(lab, &broker, &[&user.home]);
    let client = user.client(broker.socket());
    let before = charged(&client, user.uid);
    assert!(before.0 > MIB && before.1 > 20, "{before:?}");
    // What is shown is the same as it counts itself, but for its own small change.
    let own = shell.json(&["usage", "--disk"]);
    assert!(own["bytes"].as_u64().unwrap().abs_diff(before.0) < MIB / 2, "{own} {before:?}");
    shell.done(&["exec", "web", "--", "/bin/busybox", "true"]);
    shell.fails(&["create", "--copy", "box", "more"], 1, "policy allows");
    shell.done(&["stop", "web"]);
    shell.fails(&["start", "web"], 1, "policy allows");

    let tidies = || Options::new().with("tidies", true);
    for (what, options) in [
        ("persistent", tidies().lifetime("persistent")),
        ("no-range", tidies().no_range()),
        ("nesting", tidies().with("nesting", 1_u32)),
    ] {
        let refused = client.create("tidy", options).unwrap_err();
        assert_eq!(refused.name, "InvalidArgument", "{what}: {refused:?}");
    }
    let tidy = client.create("tidy", tidies()).unwrap();
    let also = client.create("also", tidies()).unwrap_err();
    also.is("QuotaExceeded", "has a grant to remove some with already");
    let lasting = Options::new().lifetime("persistent");
    client.call::<_, ()>(&tidy.path, GRANT, "Adopt", &lasting.0).unwrap_err().is("Unsupported", "tidies");
    let link = Options::new().with("kind", "tap");
    client.call::<_, ()>(&tidy.path, LINKS, "AddLink", &link.0).unwrap_err().is("Unsupported", "tidies");
    // With its end the next one is had.
    client.release(&tidy.path, true).unwrap();
    let also = client.create("also", tidies()).unwrap();
    client.release(&also.path, true).unwrap();

    // The monitor of the start that was refused may be there a moment longer than the command.
    wait_until("nothing of it runs", || shell.state("web") == "stopped");
    shell.done(&["delete", "web"]);
    shell.done(&["image", "remove", "box", "--quiet"]);
    measured(lab, &broker, &[&user.home]);
    assert_eq!(charged(&client, user.uid), (0, 0));
    client.create("fresh", Options::new()).unwrap();
    checker::assert_in_order(lab);
    drop(client);
}

/// Nobody but root of the host says what files take, and root says nothing that can't be.
fn only_root_says_what_files_take(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"open\"\nquota.nesting-user-blocks = 2\n");
    let (broker, user, client) = scene(lab);
    let one = Level::new(&user, &client, "one", nesting(3));
    let victim = lab.user().client(broker.socket());
    let theirs = victim.create("theirs", Options::new()).unwrap();
    let (inner, ordinary) =
        (one.client(lab, &user, broker.socket()), one.client_of(lab, &user, 1000, broker.socket()));
    let root = lab.root().client(broker.socket());
    let first = theirs.uid;
    let say = |client: &Client, first: u32, count: u32, blocks: Vec<(u32, u64, u64)>| {
        client.manager::<_, ()>("ReportDisk", &(first, count, blocks, Options::new().0))
    };
    for (client, words) in
        [(&client, "only root"), (&victim, "only root"), (&inner, "inside"), (&ordinary, "inside")]
    {
        let refused = say(client, first, BLOCK, vec![(first, MIB, 1)]).unwrap_err();
        assert!(matches!(refused.name.as_str(), "NotAuthorized" | "Unsupported"), "{refused:?}");
        assert!(refused.message.contains(words), "{refused:?}");
    }
    let uid = victim.property::<u32>(&theirs.path, GRANT, "Account");
    assert_eq!(charged(&victim, uid), (0, 0));

    let block = first - first % BLOCK;
    let all = (BLOCK, u32::MAX - 2 * BLOCK + 1);
    for (what, first, count, blocks) in [
        ("no block", block + 1, BLOCK, vec![]),
        ("none at all", block, 0, vec![]),
        ("another than it is about", block, BLOCK, vec![(block + BLOCK, 1, 1)]),
        ("not of the pool", all.0, all.1, vec![(BLOCK, 1, 1)]),
        ("half a block", all.0, all.1, vec![(block + 1, 1, 1)]),
        ("twice", all.0, all.1, vec![(block, 1, 1), (block, 1, 1)]),
        ("no order", all.0, all.1, vec![(block + BLOCK, 1, 1), (block, 1, 1)]),
        ("too much", all.0, all.1, vec![(block, u64::MAX, 1), (block + BLOCK, 1, 1)]),
        ("too many", all.0, all.1, vec![(block, 1, u64::MAX), (block + BLOCK, 1, 1)]),
    ] {
        let refused = say(&root, first, count, blocks).unwrap_err();
        assert_eq!(refused.name, "InvalidArgument", "{what}: {refused:?}");
    }
    let many = vec![(block, 1, 1); 8193];
    say(&root, all.0, all.1, many).unwrap_err().is("InvalidArgument", "8192");
    assert_eq!(charged(&victim, uid), (0, 0), "a part of what was refused was taken");

    // What is nobody's is charged to nobody, and what is somebody's to nobody else.
    say(&root, all.0, all.1, vec![(block, 5 * MIB, 7)]).unwrap();
    assert_eq!(charged(&victim, uid), (5 * MIB, 7));
    assert_eq!(charged(&client, user.uid), (0, 0));
    // To whom is inside, the account is one.
    assert!(inner.property::<u64>(&account_path(0), ACCOUNT, "DiskMeasured") > 0);
    assert_eq!(ordinary.property::<u64>(&account_path(1000), ACCOUNT, "DiskMeasured"), 0);
    checker::assert_in_order(lab);
    drop((inner, ordinary, victim, client, root));
}

/// More than the quota is somebody's to allow, as more of other things is.
fn more_is_had_by_consent(lab: &Lab) {
    lab.write_policy(LITTLE);
    let user = lab.user();
    let desk = Desk::start(lab, &[&user]);
    let broker = lab.setup().bus(&desk.address).start();
    sees_polkit(&broker, &lab.root(), true);
    let client = user.client(broker.socket());
    let web = client.create("web", Options::new()).unwrap();
    file(user.home.join("big"), 2 * MIB, web.uid);
    measured(lab, &broker, &[&user.home]);
    let ask = |name: &str| client.ask(MANAGER_PATH, MANAGER, "CreateGrant", &(name, Options::new().0));
    let process = client.process.as_ref().unwrap();
    {
        let mut agent = desk.agent(lab, process, "no");
        ask("more").unwrap_err().is("QuotaExceeded", "disk");
        assert!(agent.hear().starts_with("asked org.cgrant.broker1.exceed-quota "));
    }
    let mut agent = desk.agent(lab, process, "yes");
    ask("more").unwrap();
    let asked = agent.hear();
    assert!(asked.contains("more than the 1.0 MiB that policy allows"), "{asked}");
    wait_until("both are there", || client.names() == ["more", "web"]);
    checker::assert_in_order(lab);
    drop((agent, client, broker, desk));
}

crate::tests![
    files_are_charged_to_whom_their_ids_belong,
    files_can_be_removed_by_who_has_too_many,
    only_root_says_what_files_take,
    more_is_had_by_consent,
];
