//! Users who log out and users who are deleted: what becomes of their grants, and that nobody else's are touched. The broker runs where
//! `/etc` and `/run/systemd/users` are the test's own.

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::{MetadataExt, lchown, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use zbus::OwnedObjectPath;

use crate::common::{
    Broker, Client, Grant, Lab, Options, Process, User, checker,
    containers::{Shell, busybox},
    wait_until,
};

/// What the broker sees in place of the host's.
const STAGE: &str = "set -e; mount --bind $0/host-etc /etc; mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/users; mount --bind $0/host-users /run/systemd/users
echo ready; exec sleep infinity";

const POLICY: &str = r#"
[[rule]]
name = "stays"
gids = [STAYS]
lifetime = { departed = "keep" }

[[rule]]
name = "lingers"
gids = [LINGERS]
lifetime.logout = "linger"

[[rule]]
name = "ends"
gids = [ENDS]
lifetime.logout = "end"
"#;

/// A host's `/etc` and logind, as far as the broker looks at them.
pub struct Place<'a> {
    lab: &'a Lab,
    stage: Child,
}

impl<'a> Place<'a> {
    pub fn new(lab: &'a Lab, users: &[(&str, &User)]) -> Self {
        for name in ["host-etc", "host-users"] {
            fs::create_dir(lab.scratch.join(name)).unwrap();
        }
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", STAGE]).arg(&lab.scratch);
        let mut stage = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(stage.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        let place = Self { lab, stage };
        place.sources("files systemd");
        place.passwd(users);
        place
    }

    fn etc(&self, file: &str) -> PathBuf {
        self.lab.scratch.join("host-etc").join(file)
    }

    /// Where users are looked for.
    fn sources(&self, sources: &str) {
        fs::write(self.etc("nsswitch.conf"), format!("passwd: {sources}\n")).unwrap();
    }

    fn passwd(&self, users: &[(&str, &User)]) {
        let mut text = "root:x:0:0::/root:/bin/sh\n".to_owned();
        for (name, User { uid, gid, .. }) in users {
            text += &format!("{name}:x:{uid}:{gid}::/:/bin/sh\n");
        }
        self.write("passwd", &text);
    }

    pub fn group(&self, groups: &[(&str, u32)]) {
        let lines = groups.iter().map(|(name, gid)| format!("{name}:x:{gid}:\n"));
        self.write("group", &lines.collect::<String>());
    }

    /// As userdel(8) and groupmod(8) write them: a new file in the place of the old.
    fn write(&self, file: &str, text: &str) {
        fs::write(self.etc("new+"), text).unwrap();
        fs::rename(self.etc("new+"), self.etc(file)).unwrap();
    }

    /// As logind writes who is logged in.
    fn state(&self, user: &User, state: &str) {
        let (directory, name) = (self.lab.scratch.join("host-users"), user.uid.to_string());
        if state.is_empty() {
            return fs::remove_file(directory.join(name)).unwrap();
        }
        fs::write(directory.join(".new"), format!("# private\nNAME=x\nSTATE={state}\nSTOPPING=no\n"))
            .unwrap();
        fs::rename(directory.join(".new"), directory.join(name)).unwrap();
    }

    pub fn broker(&self) -> Broker {
        self.lab.setup().within(self.stage.id()).start()
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let _ = self.stage.kill();
        let _ = self.stage.wait();
    }
}

/// Somebody with a process in a grant.
struct Holder {
    client: Client,
    grant: Grant,
    process: Process,
}

impl Holder {
    fn new(user: &User, broker: &Broker, options: Options) -> Self {
        Self::named("held", user, broker, options)
    }

    fn named(name: &str, user: &User, broker: &Broker, options: Options) -> Self {
        let client = user.client(broker.socket());
        let grant = client.create(name, options).unwrap();
        let process = user.sleeper();
        client.attach(&grant.path, &process.pidfd, Options::new()).unwrap();
        Self { client, grant, process }
    }

    fn stays(&self) -> bool {
        self.process.is_alive() && self.client.names() == ["held"]
    }

    /// It is told first, as at a shutdown.
    #[track_caller]
    fn has_ended(&mut self) {
        assert_eq!(self.process.wait_signal(), Some(15));
        wait_until("the grant is gone", || self.client.names().is_empty());
    }
}

fn policy(lab: &Lab, groups: [&User; 3]) {
    let names = ["STAYS", "LINGERS", "ENDS"].into_iter().zip(groups);
    let text = names.fold(POLICY.to_owned(), |text, (name, user)| text.replace(name, &user.gid.to_string()));
    lab.write_policy(&text);
}

fn what_a_deleted_user_had_ends_as_policy_says(lab: &Lab) {
    let (alice, bob, ldap, dora) = (lab.user(), lab.user(), lab.user(), lab.user());
    policy(lab, [&bob, &lab.user(), &lab.user()]);
    let all = [("alice", &alice), ("bob", &bob), ("dora", &dora)];
    let place = Place::new(lab, &all);
    let broker = place.broker();
    let hold = |user| Holder::new(user, &broker, Options::new());
    let (mut alices, mut bobs, theirs, mut doras) = (hold(&alice), hold(&bob), hold(&ldap), hold(&dora));
    let lasting = alices.client.create("lasting", Options::new().lifetime("persistent")).unwrap();
    let mut watch = alices.client.watch();

    // An editor that shows half a file for a moment deletes nobody.
    place.passwd(&[]);
    std::thread::sleep(Duration::from_secs(3));
    place.passwd(&all);
    assert!(alices.process.is_alive() && bobs.stays() && theirs.stays() && doras.stays());

    // Deleted: noticed by itself, and told for each grant.
    place.passwd(&[("dora", &dora)]);
    assert_eq!(alices.process.wait_signal(), Some(15));
    for _ in 0..2 {
        type Gone = (OwnedObjectPath, String, u32, String);
        let ended = alices.client.signal::<Gone>(&mut watch, "GrantRemoved", Duration::from_secs(20));
        let (_, (path, _, account, reason)) = ended.expect("no GrantRemoved");
        assert!([&alices.grant.path, &lasting.path].iter().any(|known| *known == path.as_str()), "{path}");
        assert_eq!((account, reason.as_str()), (alice.uid, "user-gone"));
    }
    assert!(alices.client.names().is_empty());
    // Policy lets this one stay, and whom /etc/passwd never knew nobody can say to be gone.
    assert!(bobs.stays() && theirs.stays() && doras.stays());

    // Until the uid is another's, who would have its processes and files.
    place.passwd(&[("dora", &dora), ("eve", &bob)]);
    bobs.has_ended();
    let eves = bobs.client.create("held", Options::new()).unwrap();
    assert_ne!(eves.uid, bobs.grant.uid, "ids of somebody who was deleted are given to another");

    // Where users may be known elsewhere, one who is missing is not believed to be deleted, and ends by root's word.
    place.sources("files sss");
    place.passwd(&[("eve", &bob)]);
    wait_until("it is said", || broker.log().contains("may be known elsewhere"));
    assert!(doras.stays() && theirs.stays());
    // Nor by the name of another source, until that is none any more.
    place.sources("files");
    place.passwd(&[("eve", &bob), ("zoe", &alice)]);
    doras.has_ended();
    assert!(theirs.stays());
    assert_ne!(alices.client.create("held", Options::new()).unwrap().uid, alices.grant.uid);
    checker::assert_in_order(lab);
}

/// The engine is not there when the user is deleted, and the machine is not restarted.
fn a_user_who_was_deleted_meanwhile_is_noticed_at_the_start(lab: &Lab) {
    let (alice, bob) = (lab.user(), lab.user());
    policy(lab, [&lab.user(), &lab.user(), &lab.user()]);
    let place = Place::new(lab, &[("alice", &alice), ("bob", &bob)]);
    let mut broker = place.broker();
    let persistent = || Options::new().lifetime("persistent");
    let (mut alices, bobs) =
        (Holder::new(&alice, &broker, persistent()), Holder::new(&bob, &broker, persistent()));
    broker.stop();
    place.passwd(&[("bob", &bob)]);
    broker.start_again();
    assert_eq!(alices.process.wait_signal(), Some(15));
    let client = alice.client(broker.socket());
    wait_until("the grant is gone", || client.names().is_empty());
    assert!(bobs.process.is_alive());
    let bob = bob.client(broker.socket());
    assert_eq!(bob.names(), ["held"]);
    checker::assert_in_order(lab);
    bob.release(&bobs.grant.path, true).unwrap();
}

/// What stays over a reboot stays for users who are there; ids that were retired are not had again by any grant, and no others in
/// their place.
fn a_reboot_brings_back_what_deleted_users_may_still_have(lab: &Lab) {
    comes_back(lab, || assert_eq!(lab.pretend_reboot(), 6));
}

/// Nor if somebody removes the cgroups, without a reboot.
fn lost_cgroups_bring_back_what_deleted_users_may_still_have(lab: &Lab) {
    comes_back(lab, || {
        checker::remove_cgroups(&lab.host, &lab.instance);
        assert!(checker::grants_in_kernel(lab).is_empty());
    });
}

/// Whatever took the cgroups away.
fn comes_back(lab: &Lab, lose: impl FnOnce()) {
    let (alice, bob, carol) = (lab.user(), lab.user(), lab.user());
    policy(lab, [&bob, &lab.user(), &lab.user()]);
    let place = Place::new(lab, &[("alice", &alice), ("bob", &bob), ("carol", &carol)]);
    let mut broker = place.broker();
    for user in [&alice, &bob, &carol] {
        let client = user.client(broker.socket());
        let persistent = || Options::new().lifetime("persistent");
        client.create("with-ids", persistent()).unwrap();
        client.create("bare", persistent().no_range()).unwrap();
    }
    let blocks = || {
        let names = fs::read_dir(lab.ids.join("ids")).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().ends_with(".json")).count()
    };
    assert_eq!(blocks(), 3);
    broker.kill_everything();
    place.passwd(&[("carol", &carol)]);
    lose();
    // Until it is certain.
    std::thread::sleep(Duration::from_secs(12));
    for _ in 0..2 {
        broker.start_again();
        let names = |user: &User| {
            let mut names = user.client(broker.socket()).names();
            names.sort();
            names
        };
        assert_eq!(names(&alice), [] as [&str; 0]);
        assert_eq!(names(&bob), ["bare"], "policy lets it stay, and its ids can't be had any more");
        assert_eq!(names(&carol), ["bare", "with-ids"]);
        assert_eq!(blocks(), 3, "a user who is gone was given ids");
        checker::assert_in_order(lab);
        broker.kill_everything();
    }
    broker.start_again();
    let root = lab.root().client(broker.socket());
    let all: Vec<(OwnedObjectPath, String, u32)> =
        root.manager("ListGrants", &Options::new().with("all", true).0).unwrap();
    for (grant, ..) in all {
        root.release(grant.as_str(), true).unwrap();
    }
}

fn what_a_user_had_who_logs_out_ends_as_policy_says(lab: &Lab) {
    let (keeps, lingers, ends, nobody) = (lab.user(), lab.user(), lab.user(), lab.user());
    policy(lab, [&keeps, &lingers, &ends]);
    let place = Place::new(lab, &[]);
    let mut broker = place.broker();
    let state = |state: &str| [&keeps, &lingers, &ends].into_iter().for_each(|user| place.state(user, state));
    // Before anybody was logged in: cron, say.
    let early = ends.client(broker.socket());
    let before = early.create("early", Options::new().lifetime("persistent")).unwrap();
    state("opening");
    state("active");
    let hold = |user| Holder::new(user, &broker, Options::new());
    let (kept, mut lingering, mut ending, others) =
        (hold(&keeps), hold(&lingers), hold(&ends), hold(&nobody));
    assert!(kept.stays() && others.stays());

    // No session is left, and all of them linger.
    state("online");
    state("lingering");
    assert_eq!(ending.process.wait_signal(), Some(15));
    wait_until("what stays until it is released stays", || early.names() == ["early"]);
    assert!(kept.stays() && lingering.stays() && others.stays());
    // Again, frozen: what stands still is told all the same.
    state("active");
    let mut frozen = Holder::named("frozen", &ends, &broker, Options::new());
    frozen.client.cgroup::<_, ()>(&frozen.grant.path, "Freeze", &()).unwrap();
    state("closing");
    assert_eq!(frozen.process.wait_signal(), Some(15));

    // They linger no more.
    state("");
    lingering.has_ended();
    assert!(kept.stays() && others.stays());
    early.release(&before.path, false).unwrap();

    // Somebody logs out while no broker runs.
    state("active");
    let mut held = lingers.sleeper();
    let options = || Options::new().lifetime("process").fd("holder", &held.pidfd);
    let client = lingers.client(broker.socket());
    let grant = client.create("held", options()).unwrap();
    client.attach(&grant.path, &held.pidfd, Options::new()).unwrap();
    broker.stop();
    state("");
    assert!(held.is_alive());
    broker.start_again();
    assert_eq!(held.wait_signal(), Some(15));
    let client = lingers.client(broker.socket());
    wait_until("the grant is gone", || client.names().is_empty());
    assert!(kept.process.is_alive() && others.process.is_alive());
    checker::assert_in_order(lab);
}

/// What is half written, or no state at all, is nobody's logout.
fn what_is_no_logout_ends_nothing(lab: &Lab) {
    let ends = lab.user();
    policy(lab, [&lab.user(), &lab.user(), &ends]);
    let place = Place::new(lab, &[]);
    let broker = place.broker();
    place.state(&ends, "active");
    let held = Holder::new(&ends, &broker, Options::new());
    let file = lab.scratch.join("host-users").join(ends.uid.to_string());
    for bad in ["", "STATE=", "STATE=gone\n", "NAME=STATE=closing\n", "STATE=active\nSTATE=closing\n"] {
        fs::write(&file, bad).unwrap();
        std::thread::sleep(Duration::from_millis(600));
        assert!(held.stays(), "{bad}");
    }
}

/// Files below a directory whose owner is neither root nor one of these; links are not followed.
fn foreign_files(place: &Path, but: &[u32], found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(place).unwrap().map(|entry| entry.unwrap()) {
        let metadata = entry.metadata().unwrap();
        if metadata.uid() != 0 && !but.contains(&metadata.uid()) {
            found.push(entry.path());
        }
        if metadata.is_dir() {
            foreign_files(&entry.path(), but, found);
        }
    }
}

/// Root removes the files of a deleted user's containers, once nothing of them runs; nobody else does, and nothing of anybody else's
/// goes with them, wherever it lies and whatever leads there.
fn what_a_deleted_user_left_is_removed_by_root_alone(lab: &Lab) {
    let (alice, bob, root) = (lab.user(), lab.user(), lab.root());
    let all = [("alice", &alice), ("bob", &bob)];
    let place = Place::new(lab, &all);
    let broker = place.broker();
    let [alices, bobs, roots] = [&alice, &bob, &root].map(|user| Shell::new(lab, user, &broker));
    let image = busybox(lab);
    for shell in [&alices, &bobs] {
        shell.import(lab, &image, "box");
        shell.done(&["create", "--copy", "box", "web"]);
    }
    alices.done(&["start", "web"]);
    let (account, home) = (alice.uid.to_string(), alice.home.clone());
    let directory = home.to_str().unwrap();
    let departed = |verb: &'static str, of: &'static [&'static str]| {
        [&["departed", verb, "--account", &account], of, &[directory]].concat().join(" ")
    };
    let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
    let fails = |shell: &Shell, line: String, saying: &str| {
        let words = words(&line);
        shell.fails(&words.iter().map(String::as_str).collect::<Vec<_>>(), 1, saying);
    };
    // It is root's, and about users who are gone.
    assert_eq!(roots.json(&["departed", "list"]), serde_json::json!([]));
    fails(&roots, departed("remove", &[]), "its user is there");
    alices.fails(&["departed", "list"], 1, "list other accounts");
    fails(&bobs, departed("remove", &[]), "list other accounts");

    // Files of others, and a way out, in what she left.
    let bobs_files = bob.home.join(".local/share/cgrant/containers/web/rootfs");
    let mut ids = Vec::new();
    foreign_files(&bob.home, &[bob.uid], &mut ids);
    let range = fs::symlink_metadata(&ids[0]).unwrap().uid();
    let hers = home.join(".local/share/cgrant/containers/web/rootfs");
    let range_of_hers = fs::metadata(&hers).unwrap().uid();
    fs::write(hers.join("bobs"), "").unwrap();
    lchown(hers.join("bobs"), Some(range), Some(range)).unwrap();
    symlink(&bobs_files, hers.join("way")).unwrap();
    lchown(hers.join("way"), Some(range_of_hers), None).unwrap();
    symlink("/", home.join("way")).unwrap();

    // Gone, but not for certain; and something runs, whose files must not be taken from it.
    place.passwd(&[("bob", &bob)]);
    let list = roots.json(&["departed", "list"]);
    assert!(list.as_array().unwrap().iter().all(|row| row["user"] == "alice"), "{list}");
    fails(&roots, departed("remove", &["--timeout", "0"]), "cannot remove files of a user who is gone");
    assert!(hers.join("bin/busybox").exists());

    // The same command, given time, waits for both.
    let counted = departed("remove", &[]);
    let said = roots.json(&words(&counted).iter().map(String::as_str).collect::<Vec<_>>());
    assert!(said["files"].as_u64().unwrap() > 20 && said["failed"] == 0, "{said}");
    assert_eq!(said["rows"][0]["others"], 1, "{said}");
    let here = roots.json(&["departed", "usage", "--account", &account, "."]);
    assert_eq!((&here["rows"][0]["directory"], &here["failed"]), (&".".into(), &0.into()), "{here}");
    let mut left = Vec::new();
    foreign_files(&home, &[alice.uid], &mut left);
    // What holds somebody's file stays with it.
    assert!(left.iter().all(|path| path.ends_with("rootfs") || path.ends_with("rootfs/bobs")), "{left:?}");
    assert!(hers.join("bobs").exists() && !hers.join("way").exists() && home.join("way").exists());
    assert!(bobs_files.join("bin/busybox").exists());
    bobs.done(&["start", "web"]);
    bobs.done(&["delete", "--force", "web"]);
    let list = roots.json(&["departed", "list"]);
    let rows = list.as_array().unwrap();
    assert!(
        !rows.is_empty() && rows.iter().all(|row| row["state"] == "retired" && row["grants"] == 0),
        "{list}"
    );

    // Ids that somebody was given by hand since are nobody's leftovers.
    fs::write(place.etc("subuid"), format!("bob:{range_of_hers}:65536\n")).unwrap();
    lchown(hers.join("bobs"), Some(range_of_hers), None).unwrap();
    fails(&roots, departed("remove", &[]), "subuid");
    assert!(hers.join("bobs").exists());
    checker::assert_in_order(lab);
}

/// Where policy says so, root's service removes what a deleted user left, without being told whose, in directories that the
/// administrator named and nowhere else; the record of it survives the broker, and nobody else can have it forgotten.
fn what_a_deleted_user_left_is_removed_as_policy_says(lab: &Lab) {
    let (alice, bob, carol, root) = (lab.user(), lab.user(), lab.user(), lab.root());
    let rule = |name: &str, uid: u32, word: &str| {
        format!("[[rule]]\nname = \"{name}\"\nuids = [{uid}]\nlifetime.departed = \"{word}\"\n")
    };
    lab.write_policy(
        &[rule("a", alice.uid, "remove"), rule("b", bob.uid, "end"), rule("c", carol.uid, "remove")].concat(),
    );
    let all = [("alice", &alice), ("bob", &bob), ("carol", &carol)];
    let place = Place::new(lab, &all);
    let mut broker = place.broker();
    let socket = broker.socket().to_owned();
    let people = [&alice, &bob, &carol];
    {
        let shells = people.map(|user| Shell::new(lab, user, &broker));
        let image = busybox(lab);
        for shell in &shells {
            shell.import(lab, &image, "box");
            shell.done(&["create", "--copy", "box", "web"]);
        }
        shells[0].done(&["start", "web"]);
    }
    let rootfs = |user: &User| user.home.join(".local/share/cgrant/containers/web/rootfs");
    let notice = lab.state_dir().join("departed");
    let config = lab.config_dir();
    let clean = || {
        let mut command = root.command(lab.programs.join("cgrant"));
        command.args(["--format", "json", "departed", "clean", "--config-dir"]).arg(&config);
        let output = command.env("CGRANT_SOCKET", &socket).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (
            output.status.code().unwrap(),
            serde_json::from_slice(&output.stdout).unwrap_or(serde_json::Value::Null),
            said,
        )
    };
    // There is nothing to do, and so nothing is wrong with a configuration that names nothing.
    let (code, said, _) = clean();
    assert_eq!((code, &said["files"]), (0, &0.into()), "{said}");

    place.passwd(&[("carol", &carol)]);
    wait_until("notice is given", || notice.exists());
    // It stays over a restart, and is given again where it was lost.
    broker.kill_everything();
    fs::remove_file(&notice).unwrap();
    broker.start_again();
    wait_until("notice is given", || notice.exists());
    // Whoever else says that it is done, or asks.
    for user in [&carol, &bob] {
        let client = user.client(broker.socket());
        let firsts = (vec![1_u32], Options::new().0);
        client.manager::<_, ()>("ForgetDeparted", &firsts).unwrap_err().is("NotAuthorized", "only root");
    }
    let (code, _, said) = clean();
    assert!(code == 1 && said.contains("no directories are named"), "{code}: {said}");
    assert!(rootfs(&alice).join("bin/busybox").exists());

    // Ids that somebody was given by hand meanwhile are nobody's leftovers.
    let homes = [&alice, &bob].map(|user| format!("\"{}\"", user.home.display()));
    lab.write_config(&format!("[departed]\ndirectories = [{}]\n", homes.join(", ")));
    let hers = fs::metadata(rootfs(&alice)).unwrap().uid();
    fs::write(place.etc("subuid"), format!("carol:{hers}:65536\n")).unwrap();
    let (code, said, why) = clean();
    assert_eq!((code, &said["files"]), (0, &0.into()), "{said} {why}");
    assert!(why.contains("subuid") && notice.exists() && rootfs(&alice).join("bin/busybox").exists());
    fs::write(place.etc("subuid"), "").unwrap();

    // Her uid is somebody's again, who has other ids; what has these is another one's all the same.
    place.passwd(&[("carol", &carol), ("anna", &alice)]);
    let annas = alice.client(broker.socket());
    let grant = annas.create("anna", Options::new()).unwrap();
    let kept = alice.home.join("annas");
    fs::write(&kept, "").unwrap();
    lchown(&kept, Some(grant.uid), Some(grant.uid)).unwrap();
    let (code, said, why) = clean();
    assert!(code == 0 && said["files"].as_u64().unwrap() > 20, "{said} {why}");
    assert!(!rootfs(&alice).exists() && kept.exists());
    assert!(rootfs(&bob).join("bin/busybox").exists(), "policy has his files stay");
    assert!(rootfs(&carol).join("bin/busybox").exists(), "she is there");
    wait_until("notice is taken back", || !notice.exists());
    let (code, said, _) = clean();
    assert_eq!((code, &said["files"]), (0, &0.into()), "what was done is looked for again: {said}");
    annas.release(&grant.path, true).unwrap();
    checker::assert_in_order(lab);
}

crate::tests![
    what_a_deleted_user_had_ends_as_policy_says,
    what_a_deleted_user_left_is_removed_as_policy_says,
    what_a_deleted_user_left_is_removed_by_root_alone,
    a_user_who_was_deleted_meanwhile_is_noticed_at_the_start,
    a_reboot_brings_back_what_deleted_users_may_still_have,
    lost_cgroups_bring_back_what_deleted_users_may_still_have,
    what_a_user_had_who_logs_out_ends_as_policy_says,
    what_is_no_logout_ends_nothing,
];
