//! People whom /etc/passwd of a virtual machine knows, and who log in.

use std::{
    collections::BTreeSet,
    fs,
    io::Write,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::common::{
    Lab, Process, User, checker,
    containers::{PACKAGED, Shell, busybox},
    systemd::{done, is_active, systemctl},
    wait_until,
};

/// Somebody with an account and a home, until the test ends.
pub struct Person {
    pub name: String,
    pub user: User,
}

impl Person {
    pub fn new(lab: &Lab, name: &str, uid: u32) -> Self {
        done(Command::new("useradd").args([
            "--create-home",
            "--shell",
            "/bin/sh",
            "--uid",
            &uid.to_string(),
            name,
        ]));
        let person = Self::known(lab, name, uid);
        fs::set_permissions(&person.user.home, fs::Permissions::from_mode(0o700)).unwrap();
        person
    }

    /// Somebody who has an account already.
    pub fn known(lab: &Lab, name: &str, uid: u32) -> Self {
        let mut user = User::new(uid, &[], &lab.scratch, &lab.programs);
        user.home = PathBuf::from("/home").join(name);
        Self { name: name.to_owned(), user }
    }

    /// A login by PAM, which runs `script` and ends.
    #[track_caller]
    pub fn logged_in(&self, script: &str) -> String {
        done(&mut self.login(script))
    }

    /// The same, that goes on.
    pub fn session(&self, script: &str) -> Child {
        self.login(script).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    }

    /// The same, that plays a role of the test program's; its first line.
    pub fn agent(&self, lab: &Lab, role: &[&str]) -> (Process, String, Vec<OwnedFd>) {
        let program = lab.programs.join("tests");
        Process::agent(self.login(&format!("exec {} --role {}", program.display(), role.join(" "))))
    }

    /// Gives it a password.
    pub fn set_password(&self, password: &str) {
        let mut chpasswd = Command::new("chpasswd").stdin(Stdio::piped()).spawn().unwrap();
        let line = format!("{}:{password}\n", self.name);
        chpasswd.stdin.take().unwrap().write_all(line.as_bytes()).unwrap();
        assert!(chpasswd.wait().unwrap().success());
    }

    /// Does logind know of a session?
    pub fn has_session(&self) -> bool {
        let output = Command::new("loginctl").args(["--no-legend", "list-sessions"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.lines().any(|line| line.split_whitespace().any(|word| word == self.name))
    }

    fn login(&self, script: &str) -> Command {
        let mut command = Command::new("su");
        command.args(["--login", &self.name, "--command", script]).stdin(Stdio::null());
        command
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        let _ = Command::new("loginctl").args(["terminate-user", &self.name]).output();
        let _ = Command::new("pkill").args(["-KILL", "-U", &self.name]).status();
        let _ = Command::new("userdel").args(["--remove", "--force", &self.name]).output();
    }
}

/// What policy says of the people of these tests.
const POLICY: &str = "/etc/cgrant/policy.d/50-people.toml";

/// The packaged broker with a policy, until the test ends.
struct Governed;

impl Governed {
    fn by(policy: &str) -> Self {
        fs::create_dir_all("/etc/cgrant/policy.d").unwrap();
        fs::write(POLICY, policy).unwrap();
        systemctl(&["start", "cgrantd.socket", "cgrantd.service"]);
        systemctl(&["reload", "cgrantd.service"]);
        wait_until("the broker listens", || Path::new(PACKAGED).exists());
        Self
    }
}

impl Drop for Governed {
    fn drop(&mut self) {
        let _ = fs::remove_file(POLICY);
        let _ = Command::new("systemctl").args(["stop", "cgrantd.socket", "cgrantd.service"]).output();
    }
}

/// A container of the person's, from a session of its own; started if it is there.
pub fn launch<'a>(lab: &'a Lab, person: &'a Person) -> Shell<'a> {
    let shell = Shell::packaged(lab, &person.user);
    if shell.state("web") == "none" {
        let image = lab.scratch.join(&person.name);
        fs::create_dir_all(&image).unwrap();
        fs::rename(busybox(lab), image.join("root")).unwrap();
        shell.import(lab, &image.join("root"), "box");
        person.logged_in("cgrant launch box web");
    } else {
        person.logged_in("cgrant start web");
    }
    wait_until("it is up", || shell.done(&["logs", "--console", "web"]).contains("ready"));
    shell
}

/// Real sessions by PAM, real lingering, `terminate-user`, and each word of the policy.
fn containers_go_with_their_sessions_as_policy_says(lab: &Lab) {
    if std::env::var_os("CGRANT_TEST_INSTALLED").is_none() || !lab.host.systemd {
        return;
    }
    let names = [("kate", 23_931), ("lina", 23_932), ("emma", 23_933)];
    let governed = Governed::by(
        "[[rule]]\nname = \"lingers\"\nuids = [23932]\nlifetime.logout = \"linger\"\n\
         [[rule]]\nname = \"ends\"\nuids = [23933]\nlifetime.logout = \"end\"\n",
    );
    let people = names.map(|(name, uid)| Person::new(lab, name, uid));
    let mut sessions = people.each_ref().map(|person| {
        let session = person.session("sleep 1000");
        wait_until("there is a session", || person.has_session());
        session
    });
    let [kate, lina, emma] = people.each_ref().map(|person| launch(lab, person));
    let states = || [&kate, &lina, &emma].map(|shell| shell.state("web"));
    // They were started from a second session, whose end was not the last one's.
    assert_eq!(states(), ["running", "running", "running"]);
    for person in &people {
        done(Command::new("loginctl").args(["enable-linger", &person.name]));
        done(Command::new("loginctl").args(["terminate-user", &person.name]));
    }
    for session in &mut sessions {
        wait_until("the session's process is gone", || session.try_wait().unwrap().is_some());
    }
    wait_until("what ends with the session ends", || emma.state("web") == "stopped");
    // In order, and not killed.
    assert_eq!(emma.json(&["info", "web"])["ended"], "power off");
    // Who lingers is there again at once, with what it had.
    assert_eq!(kate.state("web"), "running");
    for person in &people {
        done(Command::new("loginctl").args(["disable-linger", &person.name]));
    }
    wait_until("who lingers no more has logged out", || lina.state("web") == "stopped");
    assert_eq!(kate.state("web"), "running");
    // Deleted, by force because something of hers still runs.
    done(Command::new("userdel").args(["--force", &people[0].name]));
    wait_until("what she had is gone", || {
        let left = checker::cgroups_of_instance(&lab.host, "default");
        !left.iter().any(|path| path.iter().any(|part| part == "u23931"))
    });
    // Her home stays, and what was hers to run does not.
    let root = lab.root();
    let root = Shell::packaged(lab, &root);
    let home = people[0].user.home.to_str().unwrap();
    let removed = root.json(&["departed", "remove", "--account", "23931", home]);
    assert!(removed["files"].as_u64().unwrap() > 20 && removed["failed"] == 0, "{removed}");
    let mut find = Command::new("find");
    let left = done(find.args([home, "-uid", "+65535", "-o", "-gid", "+65535"]));
    assert_eq!(left, "", "ids of a range are left");
    assert!(Path::new(home).join(".local/share/cgrant/containers/web/config.json").exists());
    done(Command::new("userdel").args(["--remove", "--force", &people[1].name]));
    fs::remove_dir_all(&people[0].user.home).unwrap();
    drop((kate, lina, emma));
    drop(people);
    drop(governed);
}

/// `userdel`, and what was left goes by itself: told by the broker, done by a unit with hardly a right.
fn containers_of_deleted_users_are_removed_as_policy_says(lab: &Lab) {
    const CONFIG: &str = "/etc/cgrant/cgrantd.toml";
    if std::env::var_os("CGRANT_TEST_INSTALLED").is_none() || !lab.host.systemd {
        return;
    }
    fs::write(CONFIG, "[departed]\ndirectories = [\"/home\"]\n[disk]\ndirectories = [\"/home\"]\n").unwrap();
    let governed =
        Governed::by("[[rule]]\nname = \"removes\"\nuids = [23934]\nlifetime.departed = \"remove\"\n");
    for unit in ["cgrant-departed.path", "cgrant-departed.timer", "cgrant-disk.timer"] {
        assert!(is_active(unit), "the package has not started {unit}");
    }
    let [mara, nils] = [("mara", 23_934), ("nils", 23_935)].map(|(name, uid)| Person::new(lab, name, uid));
    let shells = [launch(lab, &mara), launch(lab, &nils)];
    let ids_of = |person: &Person| {
        let mut find = Command::new("find");
        let left = done(find.arg(&person.user.home).args(["-uid", "+65535", "-o", "-gid", "+65535"]));
        left.lines().count()
    };
    assert!(ids_of(&mara) > 20 && ids_of(&nils) > 20);
    // Counted by a unit with one right, in homes that are closed to others.
    systemctl(&["start", "cgrant-disk.service"]);
    for (person, shell) in [&mara, &nils].into_iter().zip(&shells) {
        let usage = shell.json(&["usage"]);
        let files =
            usage["rows"].as_array().unwrap().iter().find(|row| row["resource"] == "disk-files").unwrap();
        let mut find = Command::new("find");
        let inodes = done(find.arg(&person.user.home).args(["-uid", "+65535", "-printf", "%i\\n"]));
        let found = inodes.lines().collect::<BTreeSet<_>>().len() as u64;
        // Something runs, and makes files.
        assert!(files["used"].as_u64().unwrap().abs_diff(found) < 20, "{usage} {found}");
    }
    for person in [&mara, &nils] {
        done(Command::new("userdel").args(["--force", &person.name]));
    }
    wait_until("her files are removed", || ids_of(&mara) == 0);
    wait_until("it is done", || !Path::new("/var/lib/cgrant/departed").exists());
    wait_until("the unit has ended", || !is_active("cgrant-departed.service"));
    let result = systemctl(&["show", "--property", "Result", "--value", "cgrant-departed.service"]);
    assert_eq!(result.trim(), "success");
    assert!(mara.user.home.join(".local/share/cgrant/containers/web/config.json").exists());
    assert!(ids_of(&nils) > 20, "policy has his files stay");
    for person in [&mara, &nils] {
        fs::remove_dir_all(&person.user.home).unwrap();
    }
    fs::remove_file(CONFIG).unwrap();
    drop(shells);
    drop(governed);
}

crate::tests![
    containers_go_with_their_sessions_as_policy_says,
    containers_of_deleted_users_are_removed_as_policy_says,
];
