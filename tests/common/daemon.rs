//! A bus daemon of the test's own.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use super::Lab;

/// A running dbus-daemon. Killed when dropped.
pub struct Daemon {
    child: Child,
    pub address: String,
}

impl Daemon {
    pub fn start(lab: &Lab) -> Self {
        Self::start_by(lab, Command::new("dbus-daemon"))
    }

    /// By a command that runs dbus-daemon with the arguments that are added.
    pub fn start_by(lab: &Lab, mut command: Command) -> Self {
        let config = lab.scratch.join("bus.conf");
        let socket = lab.scratch.join("bus.socket");
        let text = format!(
            "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN\" \
             \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\n\
             <busconfig><type>system</type><listen>unix:path={}</listen>\
             <policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/><allow send_type=\"method_call\"/>\
             <allow send_type=\"signal\"/><allow send_requested_reply=\"true\" send_type=\"method_return\"/>\
             <allow send_requested_reply=\"true\" send_type=\"error\"/>\
             <allow receive_type=\"method_call\"/><allow receive_type=\"method_return\"/>\
             <allow receive_type=\"error\"/><allow receive_type=\"signal\"/></policy></busconfig>\n",
            socket.display()
        );
        fs::write(&config, text).unwrap();
        command.arg(format!("--config-file={}", config.display())).args([
            "--nofork",
            "--nopidfile",
            "--print-address=1",
        ]);
        let log = fs::OpenOptions::new().create(true).append(true).open(lab.scratch.join("log")).unwrap();
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
        Self { child, address: format!("unix:path={}", socket.display()) }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
