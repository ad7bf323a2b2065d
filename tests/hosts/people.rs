//! People whom /etc/passwd of a virtual machine knows, and who log in.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use crate::common::{Lab, User, systemd::done};

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
        let mut user = User::new(uid, &[], &lab.scratch, &lab.programs);
        user.home = PathBuf::from("/home").join(name);
        fs::set_permissions(&user.home, fs::Permissions::from_mode(0o700)).unwrap();
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
