//! A user's process in user and mount namespaces of its own: what works on a container's files, as their owner and as the
//! namespace's root. And what the test says to it.

use std::{
    ffi::CString,
    fs,
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::{
            fs::{MetadataExt, PermissionsExt, chown},
            net::UnixStream,
        },
    },
    path::Path,
    process::ExitCode,
};

use cgrant_sys::mount::{move_mount, open_place};
use nix::{
    mount::MsFlags,
    sched::{CloneFlags, unshare},
};
use rustix::fs::{CWD, Mode, OFlags, openat};
use zbus::{Fd, OwnedFd as BusFd};

use super::{
    Client, Grant, Options, Process, User,
    agent::{hear, tell},
    bus::Refused,
};

/// The interface.
pub const MOUNTS: &str = "org.cgrant.Broker1.Mounts";

/// Such a process, with its namespaces. Names are relative to the directory that it was started in.
pub struct Place {
    pub process: Process,
    pub userns: OwnedFd,
    pub mntns: OwnedFd,
}

impl Place {
    /// Of a user's, in a directory of theirs.
    pub fn new(user: &User, directory: &Path) -> Self {
        let (process, line, mut fds) = user.agent(&["place", directory.to_str().unwrap()]);
        assert_eq!(line, "ok");
        let (mntns, userns) = (fds.remove(1), fds.remove(0));
        Self { process, userns, mntns }
    }

    /// Lets it do something; its answer is `ok TEXT` or the error's name.
    pub fn tries(&self, words: &[&str]) -> String {
        self.says(words, None).0
    }

    /// Lets it do something, which must go well.
    #[track_caller]
    pub fn does(&self, words: &[&str]) -> String {
        let answer = self.tries(words);
        answer.strip_prefix("ok").unwrap_or_else(|| panic!("{words:?}: {answer}")).trim().to_owned()
    }

    /// A directory that it opens.
    #[track_caller]
    pub fn opens(&self, how: &str, name: &str) -> OwnedFd {
        let (answer, mut fds) = self.says(&[how, name], None);
        assert_eq!(answer, "ok");
        fds.remove(0)
    }

    /// Lets it attach a mount.
    pub fn attaches(&self, mount: &OwnedFd, name: &str) -> String {
        self.says(&["attach", name], Some(mount)).0
    }

    fn says(&self, words: &[&str], fd: Option<&OwnedFd>) -> (String, Vec<OwnedFd>) {
        let fds: Vec<_> = fd.into_iter().map(AsFd::as_fd).collect();
        self.process.say(&words.join("\t"), &fds);
        self.process.hear().expect("the agent ended")
    }
}

impl Client {
    /// Asks for a directory as a mount.
    pub fn map(
        &self,
        grant: &Grant,
        directory: &OwnedFd,
        mntns: &OwnedFd,
        options: Options,
    ) -> Result<OwnedFd, Refused> {
        let fd = |fd: &OwnedFd| Fd::from(fd.try_clone().unwrap());
        let mount: BusFd =
            self.call(&grant.path, MOUNTS, "MapDirectory", &(fd(directory), fd(mntns), options.0))?;
        Ok(mount.into())
    }
}

/// The process's part.
pub fn play(directory: &str, socket: &UnixStream) -> ExitCode {
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).unwrap();
    std::env::set_current_dir(directory).unwrap();
    let namespaces = ["user", "mnt"].map(|kind| fs::File::open(format!("/proc/self/ns/{kind}")).unwrap());
    tell(socket, "ok", &[namespaces[0].as_fd(), namespaces[1].as_fd()]);
    while let Some((line, fds)) = hear(socket) {
        let words: Vec<&str> = line.split('\t').collect();
        match carry_out(&words, &fds) {
            Ok((text, fd)) => {
                let fds: Vec<_> = fd.iter().map(AsFd::as_fd).collect();
                tell(socket, format!("ok {text}").trim_end(), &fds);
            }
            Err(error) => {
                let number = error.raw_os_error().map(nix::errno::Errno::from_raw);
                tell(socket, &number.map_or_else(|| error.to_string(), |errno| format!("{errno:?}")), &[]);
            }
        }
    }
    ExitCode::SUCCESS
}

fn carry_out(words: &[&str], fds: &[OwnedFd]) -> std::io::Result<(String, Option<OwnedFd>)> {
    let done = Ok((String::new(), None));
    let text = |text: String| Ok((text, None));
    match words {
        ["open", name] => Ok((String::new(), Some(open(name, OFlags::DIRECTORY)?))),
        ["open-undeclared", name] => Ok((String::new(), Some(open(name, OFlags::empty())?))),
        ["open-path", name] => Ok((String::new(), Some(open(name, OFlags::DIRECTORY | OFlags::PATH)?))),
        // Becomes the namespace's root.
        ["root"] => {
            nix::unistd::setresgid(0.into(), 0.into(), 0.into())?;
            nix::unistd::setresuid(0.into(), 0.into(), 0.into())?;
            done
        }
        // Gives up its groups.
        ["groups"] => nix::unistd::setgroups(&[]).map(|()| (String::new(), None)).map_err(Into::into),
        ["mkdir", name, mode, owner] => {
            fs::create_dir(name)?;
            belongs(name, mode, owner)?;
            done
        }
        ["file", name, mode, owner] => {
            fs::write(name, name)?;
            belongs(name, mode, owner)?;
            done
        }
        ["write", name, content] => fs::write(name, content).map(|()| (String::new(), None)),
        ["chown", name, owner] => {
            let mode = fs::symlink_metadata(name)?.mode();
            belongs(name, &format!("{:o}", mode & 0o7777), owner)?;
            done
        }
        ["stat", name] => {
            let meta = fs::symlink_metadata(name)?;
            text(format!("{} {} {:o}", meta.uid(), meta.gid(), meta.mode() & 0o7777))
        }
        ["read", name] => {
            let mut content = String::new();
            fs::File::open(name)?.read_to_string(&mut content)?;
            text(content)
        }
        ["attach", name] => {
            move_mount(&fds[0], open_place(Path::new(name))?, Path::new("")).map(|()| (String::new(), None))
        }
        // Layers in `lower`, `upper`, `work`, at `merged`.
        ["overlay"] => {
            let options = CString::new("userxattr,lowerdir=lower,upperdir=upper,workdir=work").unwrap();
            nix::mount::mount(
                Some("overlay"),
                "merged",
                Some("overlay"),
                MsFlags::empty(),
                Some(options.as_c_str()),
            )?;
            done
        }
        ["remove", name] => fs::remove_dir_all(name).map(|()| (String::new(), None)),
        _ => Err(std::io::ErrorKind::InvalidInput.into()),
    }
}

fn open(name: &str, flags: OFlags) -> std::io::Result<OwnedFd> {
    Ok(openat(CWD, name, flags | OFlags::CLOEXEC, Mode::empty())?)
}

// Owner first: it takes set-user-ID bits away.
fn belongs(name: &str, mode: &str, owner: &str) -> std::io::Result<()> {
    let (uid, gid) = owner.split_once(':').unwrap();
    chown(name, Some(uid.parse().unwrap()), Some(gid.parse().unwrap()))?;
    fs::set_permissions(name, fs::Permissions::from_mode(u32::from_str_radix(mode, 8).unwrap()))
}
