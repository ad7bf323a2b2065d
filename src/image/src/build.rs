//! Images of Debian and Ubuntu, put together from their packages by mmdebstrap, without root.
//!
//! mmdebstrap runs as root of a user namespace below the storage namespace, which has the account's range and no more: what
//! a package runs as root there could leave its chroot, and must not meet the caller's own account, which the storage
//! namespace has as an id. So a package that is hostile gets ids of the range, the network, and what everybody may read.
//! In its mount namespace the image's directory is bound to `/mnt`: the path of that may be long, and users that packages make
//! can't pass through a home of mode 0700. What it puts down beside that goes with the namespace, however it ends.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cgrant_sys::mount::{
    MountAttrFlags, MountChange, MountPropagationFlags, fs_mount, mount_setattr, move_mount, open_place,
    open_tree_clone,
};
use cgrant_sys::privilege::set_dumpable;
use cgrant_sys::{Clone3, Dir, Exit};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::Mode;
use rustix::process::{
    DumpableBehavior, Pid, Signal, chdir, dumpable_behavior, fchdir, getpid, getppid,
    set_parent_process_death_signal, umask,
};

use crate::import::ROOTFS;
use crate::limits::Limits;
use crate::path::shown;
use crate::progress::{Progress, Step, Watch};

/// What a system container needs of packages beyond the smallest Debian: an init, a message bus, logins, a network.
pub const PACKAGES: [&str; 10] = [
    "systemd",
    "systemd-sysv",
    "dbus",
    "libpam-systemd",
    "iproute2",
    "iputils-ping",
    "netbase",
    "procps",
    "ca-certificates",
    "less",
];

const PROGRAM: &str = "mmdebstrap";
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The keys of Ubuntu's archive, on Ubuntu and where Debian's package of that name is installed.
const UBUNTU_KEYS: &str = "/usr/share/keyrings/ubuntu-archive-keyring.gpg";
/// Where the image's directory is while it is filled.
const PLACE: &str = "/mnt";
/// Where it puts down what is of use to it alone: a tmpfs of its own. No mirror that is a directory lies there.
const SCRATCH: &str = "/dev/shm";
/// How many lines of output are told when it fails.
const TOLD: usize = 25;
/// Longest line of output that is looked at, in bytes.
const MAX_LINE: u64 = 4096;
/// Variables that say how servers are reached.
const PROXIES: [&str; 6] = ["http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"];

/// What mmdebstrap says before each of its steps.
const STEPS: [&str; 7] = [
    "running apt-get update",
    "downloading packages with apt",
    "extracting archives",
    "installing essential packages",
    "installing remaining packages",
    "cleaning package lists",
    "success in",
];

/// A word of a recipe, of bounded length and few letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word(String);

/// A server with a distribution's packages: `http://deb.debian.org/debian`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mirror(String);

/// What can't stand in a recipe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRecipe {
    /// Not a distribution that can be built.
    #[error(
        "`{0}` can't be built: `debian:bookworm`, `debian:trixie`, `ubuntu:noble` and other releases of these can"
    )]
    Distribution(String),
    /// Not a word of a recipe.
    #[error(
        "`{0}` is no name of a release, package, component or architecture: lower-case letters, digits and `.+-`"
    )]
    Word(String),
    /// Not a mirror.
    #[error("`{0}` is no mirror: give a URL that begins with http:// or https://")]
    Mirror(String),
}

/// Whose packages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Distribution {
    Debian,
    Ubuntu,
}

impl Distribution {
    /// Its archive's name, with which the URLs of its mirrors end.
    fn name(self) -> &'static str {
        match self {
            Self::Debian => "debian",
            Self::Ubuntu => "ubuntu",
        }
    }

    /// What of its archive an image is made from, if nothing else is said: of Ubuntu what a server's tools are in, too.
    fn components(self) -> &'static [&'static str] {
        match self {
            Self::Debian => &["main"],
            Self::Ubuntu => &["main", "universe"],
        }
    }
}

/// What is to be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    distribution: Distribution,
    suite: Word,
    components: Vec<Word>,
    mirror: Option<Mirror>,
    /// Beside [`PACKAGES`].
    packages: Vec<Word>,
    /// Without these.
    minimal: bool,
    architecture: Option<Word>,
}

/// Why nothing was built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The program is not there.
    #[error(
        "mmdebstrap is not installed: ask the administrator for it (`apt install mmdebstrap`), or import an image instead"
    )]
    NotInstalled,
    /// Nobody could vouch for the packages.
    #[error(
        "the keys of Ubuntu's archive are not on this machine: ask the administrator for them (`apt install ubuntu-keyring`)"
    )]
    NoKeys,
    /// The user namespace that it runs in could not be made.
    #[error("the user namespace that mmdebstrap runs in could not be made")]
    Namespace(#[source] io::Error),
    /// It could not be run.
    #[error("mmdebstrap could not be run")]
    Run(#[source] io::Error),
    /// It failed.
    #[error("mmdebstrap failed ({status}); it said last:\n{}", last.join("\n"))]
    Failed {
        /// How it ended.
        status: String,
        /// The last lines of its output.
        last: Vec<String>,
    },
    /// The image's directory can't be changed.
    #[error("the image's directory could not be changed")]
    Directory(#[source] io::Error),
}

impl Word {
    /// Takes a word: a lower-case letter or digit, then those and `.+-`, 64 at most.
    ///
    /// # Errors
    /// [`BadRecipe::Word`].
    pub fn parse(text: &str) -> Result<Self, BadRecipe> {
        let plain = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit();
        let good = text.starts_with(plain)
            && text.len() <= 64
            && text.chars().all(|letter| plain(letter) || ".+-".contains(letter));
        if good { Ok(Self(text.to_owned())) } else { Err(BadRecipe::Word(shown(text.as_bytes()))) }
    }
}

impl Mirror {
    /// Takes a URL.
    ///
    /// # Errors
    /// [`BadRecipe::Mirror`].
    pub fn parse(text: &str) -> Result<Self, BadRecipe> {
        let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        let good = rest.is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'))
            && text.len() <= 500
            && text.chars().all(|letter| letter.is_ascii_graphic() && !"[]\"'\\#".contains(letter));
        if good {
            Ok(Self(text.trim_end_matches('/').to_owned()))
        } else {
            Err(BadRecipe::Mirror(shown(text.as_bytes())))
        }
    }
}

/// The first main archive of the distribution that a list of sources names, in either of its formats.
fn archive(text: &str, distribution: Distribution) -> Option<Mirror> {
    let ending = format!("/{}", distribution.name());
    let lines =
        text.lines().map(str::trim).filter(|line| line.starts_with("deb ") || line.starts_with("URIs:"));
    let mut words = lines.flat_map(str::split_whitespace).map(|word| word.trim_end_matches('/'));
    words.find(|word| word.ends_with(&ending)).and_then(|word| Mirror::parse(word).ok())
}

impl Recipe {
    /// A recipe for `debian:SUITE` or `ubuntu:SUITE`, with [`PACKAGES`] and these, from the distribution's own servers.
    ///
    /// # Errors
    /// [`BadRecipe`].
    pub fn new(name: &str, packages: &[String]) -> Result<Self, BadRecipe> {
        let (distribution, suite) = match name.split_once(':') {
            Some(("debian", suite)) => (Distribution::Debian, Word::parse(suite)?),
            Some(("ubuntu", suite)) => (Distribution::Ubuntu, Word::parse(suite)?),
            _ => return Err(BadRecipe::Distribution(shown(name.as_bytes()))),
        };
        let packages = packages.iter().map(|name| Word::parse(name)).collect::<Result<_, _>>()?;
        let components = distribution.components().iter().map(|word| Word((*word).to_owned())).collect();
        Ok(Self {
            distribution,
            suite,
            components,
            mirror: None,
            packages,
            minimal: false,
            architecture: None,
        })
    }

    /// From this server, if one is given.
    #[must_use]
    pub fn mirror(self, mirror: Option<Mirror>) -> Self {
        Self { mirror, ..self }
    }

    /// From these parts of the archive, if any are given.
    ///
    /// # Errors
    /// [`BadRecipe::Word`].
    pub fn components(self, names: &[String]) -> Result<Self, BadRecipe> {
        let components: Vec<Word> = names.iter().map(|name| Word::parse(name)).collect::<Result<_, _>>()?;
        Ok(if components.is_empty() { self } else { Self { components, ..self } })
    }

    /// The server that this machine gets packages of the distribution from, if its apt says so: `/etc/apt` and what is in it.
    pub fn mirror_of_machine(&self, apt: &Path) -> Option<Mirror> {
        let mut files = vec![apt.join("sources.list")];
        let parts = std::fs::read_dir(apt.join("sources.list.d"));
        let mut parts: Vec<PathBuf> =
            parts.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        parts.sort();
        files.extend(parts);
        files.iter().find_map(|file| {
            let mut text = String::new();
            std::fs::File::open(file).ok()?.take(1 << 20).read_to_string(&mut text).ok()?;
            archive(&text, self.distribution)
        })
    }

    /// Without [`PACKAGES`]: what was asked for beside them stays, and without an init no container boots it.
    #[must_use]
    pub fn minimal(mut self) -> Self {
        self.minimal = true;
        self
    }

    /// For another architecture than the machine's, by Debian's name or the kernel's.
    ///
    /// # Errors
    /// [`BadRecipe::Word`].
    pub fn architecture(self, name: &str) -> Result<Self, BadRecipe> {
        let name = name.replace('_', "-");
        let name = if name == "x86-64" { "amd64" } else { crate::image::debian_name(&name) };
        Ok(Self { architecture: Some(Word::parse(name)?), ..self })
    }

    /// Where the packages come from, for people.
    pub fn source(&self) -> String {
        let mirror = self.mirror.as_ref().map_or("", |mirror| mirror.0.as_str());
        format!("mmdebstrap {} {mirror}", self.suite.0).trim_end().to_owned()
    }

    fn arguments(&self) -> Vec<String> {
        let joined = |words: &[Word], by: &str| {
            words.iter().map(|Word(word)| word.as_str()).collect::<Vec<_>>().join(by)
        };
        let mut arguments: Vec<String> =
            ["--mode=root", "--variant=minbase", "--format=directory"].map(str::to_owned).into();
        let usual = if self.minimal { &[][..] } else { &PACKAGES[..] };
        let asked = self.packages.iter().map(|Word(word)| word.as_str());
        let packages: Vec<&str> = usual.iter().copied().chain(asked).collect();
        if !packages.is_empty() {
            arguments.push(format!("--include={}", packages.join(",")));
        }
        if let Some(Word(architecture)) = &self.architecture {
            arguments.push(format!("--architectures={architecture}"));
        }
        arguments.push(format!("--components={}", joined(&self.components, ",")));
        if self.distribution == Distribution::Ubuntu {
            arguments.push(format!("--keyring={UBUNTU_KEYS}"));
        }
        arguments.extend([self.suite.0.clone(), PLACE.to_owned()]);
        arguments.extend(self.sources(&joined(&self.components, " ")));
        arguments
    }

    /// The lines of a list of sources.
    fn sources(&self, components: &str) -> Vec<String> {
        let (Some(Mirror(mirror)), Word(suite)) = (&self.mirror, &self.suite) else { return Vec::new() };
        let mut lines = vec![format!("deb {mirror} {suite} {components}")];
        // Whoever follows the unreleased one gets everything by it.
        if !["sid", "unstable", "experimental"].contains(&suite.as_str()) {
            lines.push(format!("deb {mirror} {suite}-updates {components}"));
            // Debian's comes from an archive of its own.
            let security = if self.distribution == Distribution::Debian { "-security" } else { "" };
            lines.push(format!("deb {mirror}{security} {suite}-security {components}"));
        }
        lines
    }
}

/// Builds `rootfs/` in the directory `image`, as root of the storage namespace, in a process of one thread. Tells `log` each
/// line that mmdebstrap says.
///
/// # Errors
/// [`BuildError`]; `image` is to be removed then.
pub fn build(
    image: &Dir,
    recipe: &Recipe,
    log: &mut dyn FnMut(&str),
    watch: &mut Watch<'_>,
) -> Result<(), BuildError> {
    let program =
        PATH.split(':').map(|directory| Path::new(directory).join(PROGRAM)).find(|path| path.exists());
    let program = program.ok_or(BuildError::NotInstalled)?;
    if recipe.distribution == Distribution::Ubuntu && !Path::new(UBUNTU_KEYS).exists() {
        return Err(BuildError::NoKeys);
    }
    run(image, &program, recipe, log, watch)
}

fn run(
    image: &Dir,
    program: &Path,
    recipe: &Recipe,
    log: &mut dyn FnMut(&str),
    watch: &mut Watch<'_>,
) -> Result<(), BuildError> {
    let rootfs = image.create_dir(ROOTFS, 0o755).map_err(BuildError::Directory)?;
    rootfs.chmod("", 0o755).map_err(BuildError::Directory)?;
    debootstrap(&rootfs, program, recipe, log, watch)?;
    settle(&rootfs).map_err(BuildError::Directory)
}

fn debootstrap(
    rootfs: &Dir,
    program: &Path,
    recipe: &Recipe,
    log: &mut dyn FnMut(&str),
    watch: &mut Watch<'_>,
) -> Result<(), BuildError> {
    let (output, mut input) = io::pipe().map_err(BuildError::Run)?;
    let (mut mapped, map) = io::pipe().map_err(BuildError::Run)?;
    let command = command(program, recipe, &input).map_err(BuildError::Run)?;
    let parent = getpid();
    let spawned = dumpable_while(|| {
        let child = Clone3::new().flags(CloneFlags::CLONE_NEWUSER).spawn(|| {
            let error = inside(rootfs, parent, &mut mapped, command);
            // Where it is read with what mmdebstrap says; nobody is left to tell if that fails.
            let _ = writeln!(input, "E: cannot {error}");
            127
        })?;
        if let Err(error) = map_ids(child.pid, map) {
            // It waits for its ids; if it has ended already, that is as good.
            let _ = child.pidfd.send_signal(Signal::KILL);
            child.pidfd.wait()?;
            return Err(error);
        }
        Ok(child)
    });
    let child = spawned.map_err(BuildError::Namespace)?;
    // It holds this for as long as it lives.
    drop(input);
    let last = follow(output, log, watch);
    let exit = child.pidfd.wait().map_err(BuildError::Run)?;
    match exit {
        Exit::Code(0) => Ok(()),
        exit => Err(BuildError::Failed { status: describe(exit), last: last.into() }),
    }
}

fn describe(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("status {code}"),
        Exit::Signal(number) => format!("killed by signal {number}"),
    }
}

fn command(program: &Path, recipe: &Recipe, output: &io::PipeWriter) -> io::Result<Command> {
    let proxies = PROXIES.iter().filter_map(|name| Some((name, std::env::var_os(name)?)));
    let mut command = Command::new(program);
    command
        .args(recipe.arguments())
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C.UTF-8")
        .env("HOME", "/")
        .env("TMPDIR", SCRATCH)
        .envs(proxies)
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output.try_clone()?);
    Ok(command)
}

/// Runs `step` while this process is dumpable: the id maps of a child that is not are the host's root's alone, and whoever
/// changed its ids is not. Nobody else has this namespace's root as an id: no container runs in the range for images.
fn dumpable_while<T>(step: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let was = dumpable_behavior()? == DumpableBehavior::Dumpable;
    set_dumpable(true)?;
    let result = step();
    set_dumpable(was)?;
    result
}

/// Gives the child the ids of the range, and tells it.
fn map_ids(child: u32, mut told: io::PipeWriter) -> io::Result<()> {
    for map in ["gid_map", "uid_map"] {
        std::fs::write(format!("/proc/{child}/{map}"), format!("0 0 {}", Limits::default().ids))?;
    }
    told.write_all(b"x")
}

/// In the child: becomes root of the new namespace, shows `rootfs` at [`PLACE`] in a mount namespace of its own, and
/// becomes mmdebstrap. What it gives is which step failed, and why.
fn inside(rootfs: &Dir, parent: Pid, mapped: &mut io::PipeReader, mut command: Command) -> String {
    let steps = || -> Result<(), (&str, io::Error)> {
        end_with(parent).map_err(|error| ("watch its parent", error))?;
        mapped.read_exact(&mut [0]).map_err(|error| ("get its ids", error))?;
        become_root().map_err(|error| ("become root of its namespace", error))?;
        show(rootfs).map_err(|error| ("show the image's directory", error))
    };
    if let Err((step, error)) = { steps }() {
        return format!("{step}: {error}");
    }
    // Files that packages' scripts make have the modes that their authors saw.
    umask(Mode::WGRP | Mode::WOTH);
    format!("run mmdebstrap: {}", command.exec())
}

/// From here on this process, and the program that it becomes, ends when its parent does.
fn end_with(parent: Pid) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before that.
    if getppid() == Some(parent) { Ok(()) } else { Err(io::ErrorKind::NotFound.into()) }
}

fn become_root() -> io::Result<()> {
    use nix::unistd::{setgroups, setresgid, setresuid};
    setgroups(&[])?;
    setresgid(0.into(), 0.into(), 0.into())?;
    Ok(setresuid(0.into(), 0.into(), 0.into())?)
}

fn show(rootfs: &Dir) -> io::Result<()> {
    // A directory of the old namespace can't be cloned in the new one; the working directory goes along.
    fchdir(rootfs)?;
    unshare(CloneFlags::CLONE_NEWNS)?;
    let private = MountChange {
        propagation: Some(MountPropagationFlags::PRIVATE),
        recursive: true,
        ..MountChange::default()
    };
    mount_setattr(open_place(Path::new("/"))?, &private)?;
    let clone = open_tree_clone(open_place(Path::new("."))?, Path::new(""), false)?;
    move_mount(clone, open_place(Path::new(PLACE))?, Path::new(""))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let scratch = fs_mount("tmpfs", &[("mode", Some("1777"))], attributes)?;
    move_mount(scratch, open_place(Path::new(SCRATCH))?, Path::new(""))?;
    Ok(chdir("/")?)
}

/// Reads what it says until its end, and keeps the last of it.
fn follow(output: impl Read, log: &mut dyn FnMut(&str), watch: &mut Watch<'_>) -> VecDeque<String> {
    let mut output = BufReader::new(output);
    let mut last = VecDeque::new();
    let mut done = 0;
    loop {
        let mut line = Vec::new();
        // A longer line comes in parts.
        match output.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) => return last,
            Ok(_) => (),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // The other end is what tells how it went.
            Err(_) => return last,
        }
        let line: String =
            String::from_utf8_lossy(&line).chars().filter(|letter| !letter.is_control()).collect();
        if let Some(step) = STEPS.iter().position(|step| line.starts_with("I: ") && line.contains(step)) {
            done = done.max((step as u64).saturating_add(1));
            watch(Progress { step: Step::Build, done, total: Some(STEPS.len() as u64) });
        }
        log(&line);
        if last.len() == TOLD {
            last.pop_front();
        }
        last.push_back(line);
    }
}

/// Takes out of the files what is this machine's: its name and its servers for names, which mmdebstrap copies. The empty
/// machine id makes each container get its own.
fn settle(rootfs: &Dir) -> io::Result<()> {
    let etc = rootfs.open_dir("etc")?;
    for name in ["hostname", "resolv.conf"] {
        match etc.remove_file(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => (),
        }
    }
    etc.write_readable("machine-id", b"")
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn recipes_are_of_few_letters() {
        let recipe = |name: &str| Recipe::new(name, &[]);
        for bad in ["trixie", "debian", "fedora:40", "debian trixie"] {
            assert!(matches!(recipe(bad), Err(BadRecipe::Distribution(_))), "{bad}");
        }
        for bad in ["debian:", "debian:--mode=x", "debian:a b", "debian:../x", "debian:A", "debian:a,b"] {
            assert!(matches!(recipe(bad), Err(BadRecipe::Word(_))), "{bad}");
        }
        assert!(Recipe::new("debian:sid", &["--x".into()]).is_err());
        assert!(recipe("debian:sid").unwrap().components(&["a b".into()]).is_err());
        for bad in [
            "deb.debian.org",
            "file:///x",
            "http://",
            "http:///x",
            "http://a b",
            "http://a\nb",
            "https://[x]",
        ] {
            assert!(Mirror::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn arguments_are_what_the_recipe_says() {
        let recipe = Recipe::new("debian:trixie", &["vim".into()]).unwrap();
        let arguments = recipe.arguments();
        assert!(arguments.contains(&format!("--include={},vim", PACKAGES.join(","))));
        assert_eq!(arguments[arguments.len() - 3..], ["--components=main", "trixie", "/mnt"]);
        let mirror = Mirror::parse("https://mirror.example/debian/").unwrap();
        let recipe = Recipe::new("debian:trixie", &[]).unwrap().mirror(Some(mirror.clone())).minimal();
        let expected = [
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            "--architectures=arm64",
            "--components=main,contrib",
            "trixie",
            "/mnt",
            "deb https://mirror.example/debian trixie main contrib",
            "deb https://mirror.example/debian trixie-updates main contrib",
            "deb https://mirror.example/debian-security trixie-security main contrib",
        ];
        let both = recipe.clone().components(&["main".into(), "contrib".into()]).unwrap();
        assert_eq!(both.architecture("aarch64").unwrap().arguments(), expected);
        let amd64 = recipe.architecture("x86_64").unwrap().arguments();
        assert!(amd64.contains(&"--architectures=amd64".to_owned()));
        let small = Recipe::new("debian:sid", &["openrc".into()]).unwrap().minimal().arguments();
        assert!(small.contains(&"--include=openrc".to_owned()), "what was asked for stays: {small:?}");
        let sid = Recipe::new("debian:sid", &[]).unwrap().mirror(Some(mirror)).arguments();
        assert_eq!(sid.last().unwrap(), "deb https://mirror.example/debian sid main");
    }

    #[test]
    fn ubuntu_has_an_archive_of_its_own_kind() {
        let recipe = Recipe::new("ubuntu:noble", &[]).unwrap().minimal();
        let expected = [
            "--mode=root",
            "--variant=minbase",
            "--format=directory",
            "--components=main,universe",
            "--keyring=/usr/share/keyrings/ubuntu-archive-keyring.gpg",
            "noble",
            "/mnt",
        ];
        assert_eq!(recipe.arguments(), expected);
        let mirror = Mirror::parse("http://mirror.example/ubuntu").unwrap();
        let arguments = recipe.mirror(Some(mirror)).arguments();
        assert_eq!(
            arguments.last().unwrap(),
            "deb http://mirror.example/ubuntu noble-security main universe"
        );
    }

    #[test]
    fn the_machines_sources_name_a_mirror() {
        let apt = tempfile::tempdir().unwrap();
        let mirror = |name: &str| Recipe::new(name, &[]).unwrap().mirror_of_machine(apt.path());
        let is = |url: &str| Some(Mirror(url.into()));
        assert_eq!(mirror("debian:trixie"), None);
        std::fs::create_dir(apt.path().join("sources.list.d")).unwrap();
        let list =
            "# deb http://wrong.example/debian x main\ndeb http://security.example/debian-security x main\n";
        std::fs::write(apt.path().join("sources.list"), list).unwrap();
        let sources = "Types: deb\nURIs: https://mirror.example/debian/\nSuites: trixie\n";
        std::fs::write(apt.path().join("sources.list.d/debian.sources"), sources).unwrap();
        assert_eq!(mirror("debian:trixie"), is("https://mirror.example/debian"));
        assert_eq!(mirror("ubuntu:noble"), None);
        std::fs::write(
            apt.path().join("sources.list"),
            "deb [arch=amd64] http://first.example/debian x main\n",
        )
        .unwrap();
        assert_eq!(mirror("debian:trixie"), is("http://first.example/debian"));
    }

    #[test]
    fn output_is_followed_within_bounds() {
        let mut said = String::new();
        for place in 0..1000 {
            said.push_str(&format!("line {place}\x1b\n"));
        }
        said.push_str("I: extracting archives...\ndone\nI: success in 3 seconds\n");
        said.push_str(&"x".repeat(100_000));
        let (mut lines, mut steps) = (0, Vec::new());
        let last = follow(
            said.as_bytes(),
            &mut |line| {
                lines += 1;
                assert!(line.len() <= 4096)
            },
            &mut |progress| {
                steps.push(progress.done);
            },
        );
        assert_eq!((last.len(), lines, steps), (TOLD, 1003 + 25, vec![3, 7]));
    }
}
