//! Whole Debian systems, as mmdebstrap makes them, with nothing masked and no file edited but those that [`Personal`] says.

use std::{
    io::Write,
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::Command,
};

use cgrant_container::system::{Ended, ExecSpec, Personal, Request, SystemSpec, Terminal};

use crate::scene::{Case, Root, Scene, case, read_until, wait_until};

pub const CASES: &[Case] = &[
    Case { root: Root::Debian("bookworm"), ..case("debian_12_boots", boots) },
    Case { root: Root::Debian("trixie"), ..case("debian_13_boots", boots) },
];

const PACKAGES: &str = "systemd,systemd-sysv,dbus,libpam-systemd,login,passwd,util-linux,procps";

/// A copy of the system, which is made if it is not there.
pub fn copy(suite: &str, to: &Path) {
    let made = Path::new(env!("CARGO_TARGET_TMPDIR")).join(suite);
    if !made.exists() {
        let unfinished = PathBuf::from(format!("{}.new", made.display()));
        run(Command::new("rm").arg("-rf").arg(&unfinished));
        let include = format!("--include={PACKAGES}");
        run(Command::new("mmdebstrap")
            .args(["--quiet", "--format=directory", "--variant=minbase", &include, suite])
            .arg(&unfinished));
        std::fs::rename(unfinished, &made).unwrap();
    }
    // Lists of access rights name ids, which would have to be shifted too.
    run(Command::new("cp")
        .args(["-d", "-R", "--preserve=mode,ownership,timestamps,links", "--reflink=auto"])
        .arg(&made)
        .arg(to));
}

fn run(command: &mut Command) {
    let status = command.status().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}

fn boots(scene: &Scene) {
    let personal = Some(Personal { new: true, timezone: None });
    scene.start(&SystemSpec { personal, init: Vec::new(), ..scene.script("") });
    scene.running();
    is_whole(scene);
    calls_are_refused(scene);
    units_are_confined(scene);
    somebody_logs_in(scene);
    scene.shell("systemctl reboot");
    wait_until("it has rebooted", || scene.control().state().is_ok_and(|state| state.reboots == 1));
    scene.running();
    is_whole(scene);
    scene.shell("systemctl poweroff");
    wait_until("it has ended", || scene.last_state().ended == Some(Ended::PowerOff));
    wait_until("its monitor has ended", || scene.try_start(&scene.words(&[])).is_ok());
    scene.running();
    // For SIGTERM systemd executes itself again, and may miss what it is told meanwhile.
    scene.control().tell(&Request::Kill { signal: 15 }).unwrap();
    scene.control().tell(&Request::Stop { seconds: 100 }).unwrap();
    wait_until("it was halted", || scene.last_state().ended == Some(Ended::PowerOff));
}

impl Scene {
    /// What a shell in the container prints.
    fn shell(&self, script: &str) -> String {
        let argv = ["sh", "-c", script].map(Into::into).into();
        let spec =
            ExecSpec { argv, terminal: Some(Terminal { columns: 200, rows: 50 }), ..ExecSpec::default() };
        let null = std::fs::File::open("/dev/null").unwrap();
        let process = self.control().exec(&spec, [null.as_fd(); 3]).unwrap();
        let mut terminal = std::fs::File::from(process.terminal.as_ref().unwrap().try_clone().unwrap());
        let mut text = Vec::new();
        // A terminal whose last user is gone reads as EIO.
        let _ = std::io::Read::read_to_end(&mut terminal, &mut text);
        String::from_utf8_lossy(&text).replace('\r', "")
    }
}

fn is_whole(scene: &Scene) {
    let said =
        scene.shell("systemctl is-system-running --wait; systemctl --failed --no-legend --no-pager; echo .");
    assert_eq!(said, "running\n.\n", "{}", scene.log());
    let said = scene.shell("hostname; cat /etc/machine-id; systemd-detect-virt; systemctl is-active console-getty systemd-logind dbus");
    assert_eq!(said, "web\n07070707070747078707070707070707\ncontainer-other\nactive\nactive\nactive\n");
}

fn calls_are_refused(scene: &Scene) {
    if cfg!(not(target_arch = "x86_64")) {
        return;
    }
    // keyctl, userfaultfd, io_uring_setup: ENOSYS; perf_event_open, bpf: EPERM. The kernel would say EFAULT or EINVAL, or do it.
    let numbers =
        "for my $n (250, 323, 425, 298, 321) { $! = 0; syscall($n, 0, 0, 0, 0, 0); print $! + 0, \" \"; }";
    assert_eq!(scene.shell(&format!("perl -e '{numbers}'")), "38 38 38 1 1 ");
}

fn units_are_confined(scene: &Scene) {
    let options = "-p PrivateTmp=yes -p DynamicUser=yes -p PrivateNetwork=yes -p ProtectSystem=strict -p PrivateDevices=yes \
        -p ProtectKernelTunables=yes -p ProtectControlGroups=yes";
    let said = scene.shell(&format!(
        "systemd-run -q --wait -P {options} sh -c 'ls /tmp | wc -l; id -u; cat /proc/net/dev | wc -l'"
    ));
    let lines: Vec<&str> = said.lines().collect();
    assert!(matches!(lines.as_slice(), ["0", uid, "3"] if uid.parse::<u32>().unwrap() >= 61184), "{said}");
}

fn somebody_logs_in(scene: &Scene) {
    assert_eq!(scene.shell("echo root:hello | chpasswd"), "");
    let control = scene.control();
    let mut console = scene.console(&control, true);
    read_until(&mut console, "login: ");
    console.write_all(b"root\n").unwrap();
    read_until(&mut console, "Password: ");
    console.write_all(b"hello\n").unwrap();
    read_until(&mut console, "web:~#");
    console
        .write_all(
            b"loginctl --no-pager show-session self -p TTY; tty; su -s /bin/sh -c 'id -u' daemon; exit\n",
        )
        .unwrap();
    read_until(&mut console, "\r\n1\r\n");
    read_until(&mut console, "login: ");
}
