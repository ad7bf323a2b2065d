//! What is to be started as a system container.

use std::{
    ffi::{CString, OsString},
    fmt,
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
    str::FromStr,
};

use crate::spec::{SpecError, c_string, candidates, check_hostname, variable};

/// The files that may be a system's init, in the order in which the kernel (`init/main.c`) and initramfs look for it.
const INITS: [&str; 4] = ["/sbin/init", "/usr/lib/systemd/systemd", "/lib/systemd/systemd", "/bin/init"];
/// Most credentials, and the longest one in bytes (as systemd bounds them: `CREDENTIALS_TOTAL_SIZE_MAX`).
const MAX_CREDENTIALS: usize = 256;
const CREDENTIAL_MAX: usize = 1024 * 1024;
/// Most directories of the account's own and devices whose nodes the broker makes: with the payload and the image they are the descriptors beside one message.
const MAX_BINDS: usize = 14;

/// The identity of an installation: machine-id(5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineId(u128);

impl MachineId {
    /// From sixteen random bytes: the id is that of a version 4 UUID, as machine-id(5) asks for.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        let bits = u128::from_be_bytes(bytes);
        let cleared = bits & !(0xf << 76) & !(0b11 << 62);
        Self(cleared | 0x4 << 76 | 0b10 << 62)
    }

    /// As a UUID with hyphens.
    pub(crate) fn hyphenated(self) -> String {
        let text = self.to_string();
        let part = |from, to| text.get(from..to).unwrap_or_default();
        format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
    }
}

impl fmt::Display for MachineId {
    /// 32 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl FromStr for MachineId {
    type Err = SystemError;

    fn from_str(text: &str) -> Result<Self, SystemError> {
        let good = text.len() == 32 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        let id = u128::from_str_radix(text, 16).ok().filter(|id| good && *id != 0);
        id.map(Self).ok_or_else(|| SystemError::MachineId { text: text.to_owned() })
    }
}

/// What is written into the container's root at its first start, or when it was given another name, and is the container's to change
/// from then on: hostname and machine id in any case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Personal {
    /// Is the root a new one? Then the SSH server in it gets host keys of its own.
    pub new: bool,
    /// Its time zone; without one what the root says stays.
    pub timezone: Option<Timezone>,
}

/// A time zone, as a name below `/usr/share/zoneinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Timezone {
    /// The host's: where the root does not have it, what the image says stays.
    Host(String),
    /// One that was asked for: a start fails where the root does not have it.
    Asked(String),
}

impl Timezone {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Host(name) | Self::Asked(name) => name,
        }
    }
}

/// What a container's root is made of. Paths are looked up as the account, from the current directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SystemRoot {
    /// A directory whose files belong to the container's ids.
    Directory {
        /// Where it is.
        place: PathBuf,
        /// Directories of the account's own that are seen in it, each shown by the broker.
        binds: Vec<Bind>,
    },
    /// A directory with `upper` and `work`, which belong to the container's ids, laid over the files of an image, which the broker has to
    /// show with these ids.
    Layers {
        /// The image's files, of other ids of the account's.
        image: PathBuf,
        /// The directory with the two.
        container: PathBuf,
        /// Directories of the account's own that are seen in it, each shown by the broker too.
        binds: Vec<Bind>,
    },
}

/// A directory of the account's own that a container sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// Where it is.
    pub source: PathBuf,
    /// Where it is seen, an absolute path inside. Made by the container's root if it is not there.
    pub target: PathBuf,
}

impl SystemRoot {
    /// Where its files are once they can be seen.
    fn place(&self) -> &PathBuf {
        match self {
            Self::Directory { place, .. } | Self::Layers { container: place, .. } => place,
        }
    }

    /// What the broker has to show with the container's ids: the image's files first.
    fn shown(&self) -> Vec<PathBuf> {
        self.image().into_iter().chain(self.binds().iter().map(|bind| &bind.source)).cloned().collect()
    }

    fn image(&self) -> Option<&PathBuf> {
        match self {
            Self::Directory { .. } => None,
            Self::Layers { image, .. } => Some(image),
        }
    }

    fn binds(&self) -> &[Bind] {
        match self {
            Self::Directory { binds, .. } | Self::Layers { binds, .. } => binds,
        }
    }
}

impl<P: Into<PathBuf>> From<P> for SystemRoot {
    fn from(directory: P) -> Self {
        Self::Directory { place: directory.into(), binds: Vec::new() }
    }
}

/// A system container to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SystemSpec {
    /// Its root.
    pub root: SystemRoot,
    /// The directory of the account's (0700) where its monitor keeps socket, state and log.
    pub run: PathBuf,
    /// Its hostname.
    pub hostname: String,
    /// Its machine id, the same at every start.
    pub machine: MachineId,
    /// Its init and the arguments; empty: the init that the root has.
    pub init: Vec<OsString>,
    /// More variables of init's environment.
    pub environment: Vec<(OsString, OsString)>,
    /// Credentials for its systemd: names and contents (systemd.exec(5), `ImportCredential=`).
    pub credentials: Vec<(String, Vec<u8>)>,
    /// Device nodes of the host's that it sees beside the usual ones, as names below `/dev` (`fuse`, `net/tun`). They keep owner and mode, so
    /// that only those work in it that everybody may open.
    pub devices: Vec<String>,
    /// Those of them of which the broker is asked for a node that belongs to the container's root.
    pub granted_devices: Vec<String>,
    /// May it make containers itself? Then nothing is masked, and complete proc and sysfs mounts lie where its root alone
    /// can reach them, without which the kernel refuses new ones to inner namespaces.
    pub nesting: bool,
    /// The directory of the broker's sockets, if it shall see that at `/run/cgrant`. A broker that starts again makes them anew there.
    pub broker: Option<PathBuf>,
    /// Is this the first start? What is then written into the root.
    pub personal: Option<Personal>,
}

/// Why a [`SystemSpec`] cannot be started.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum SystemError {
    /// What it shares with other containers.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The text is no machine id.
    #[error("{text:?} is no machine id: 32 lower-case hexadecimal digits, not all 0, are")]
    MachineId {
        /// The text.
        text: String,
    },
    /// A credential that systemd would not take.
    #[error(
        "{name:?} is no credential: its name has 1 to 255 letters, digits and '.', '_', '-', and it is at most 1 MiB long"
    )]
    Credential {
        /// Its name.
        name: String,
    },
    /// A directory of the account's own can't be seen there.
    #[error(
        "{path:?} is no place to show a directory: an absolute path inside is, not the root, and not below /dev, /proc, /run or /sys"
    )]
    Target {
        /// The place.
        path: PathBuf,
    },
    /// Too many of these.
    #[error("a container can be shown {MAX_BINDS} directories, and devices that not everybody may open")]
    Binds,
    /// Too many credentials.
    #[error("a container can have {MAX_CREDENTIALS} credentials")]
    Credentials,
    /// The text is no name of a device.
    #[error("{name:?} is no device: a name below /dev is, such as \"fuse\" or \"net/tun\"")]
    Device {
        /// The text.
        name: String,
    },
    /// The text is no name of a time zone.
    #[error("{name:?} is no time zone: a name such as \"Europe/Paris\" is")]
    Timezone {
        /// The text.
        name: String,
    },
}

/// The same in the form that the kernel takes.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) root: PathBuf,
    /// What the broker has to show: of a root in layers the image's files, and directories of the account's own.
    pub(crate) shown: Vec<PathBuf>,
    /// Does that begin with an image's files?
    pub(crate) layers: bool,
    /// Where directories of the account's own are seen.
    pub(crate) targets: Vec<PathBuf>,
    pub(crate) hostname: String,
    pub(crate) machine: MachineId,
    pub(crate) programs: Vec<CString>,
    pub(crate) argv: Vec<CString>,
    pub(crate) environment: Vec<CString>,
    pub(crate) credentials: Vec<(String, Vec<u8>)>,
    pub(crate) devices: Vec<String>,
    /// Those whose node comes from the broker.
    pub(crate) granted_devices: Vec<PathBuf>,
    pub(crate) nesting: bool,
    pub(crate) broker: Option<PathBuf>,
    pub(crate) personal: Option<Personal>,
}

impl Prepared {
    /// Does the container need a mount namespace of its own before its first process makes one? Mounts of the broker's are
    /// attached there.
    pub(crate) fn has_mounts(&self) -> bool {
        !self.shown.is_empty() || !self.granted_devices.is_empty()
    }
}

impl SystemSpec {
    /// Refuses what a start would refuse before it does anything.
    ///
    /// # Errors
    /// [`SystemError`].
    pub fn check(&self) -> Result<(), SystemError> {
        self.prepare().map(drop)
    }

    /// Checks everything that can be known beforehand.
    pub(crate) fn prepare(&self) -> Result<Prepared, SystemError> {
        check_hostname(&self.hostname)?;
        c_string("the root", self.root.place().as_os_str())?;
        for path in self.root.shown() {
            c_string("a directory", path.as_os_str())?;
        }
        self.check_binds()?;
        c_string("the run directory", self.run.as_os_str())?;
        if let Some(path) = &self.broker {
            c_string("the directory of the broker's sockets", path.as_os_str())?;
        }
        self.check_credentials()?;
        self.devices.iter().chain(&self.granted_devices).try_for_each(|name| check_device(name))?;
        if let Some(Personal { timezone: Some(zone), .. }) = &self.personal {
            check_timezone(zone.name())?;
        }
        let programs = match self.init.first() {
            Some(program) => candidates(program, &self.environment)?,
            None => INITS.iter().map(|path| c_string("init", path.as_ref())).collect::<Result<_, _>>()?,
        };
        let argv = match self.init.is_empty() {
            true => vec![c_string("init", "/sbin/init".as_ref())?],
            false => self.init.iter().map(|a| c_string("an argument", a)).collect::<Result<_, _>>()?,
        };
        Ok(Prepared {
            root: self.root.place().clone(),
            shown: self.root.shown(),
            layers: self.root.image().is_some(),
            targets: self.root.binds().iter().map(|bind| bind.target.clone()).collect(),
            hostname: self.hostname.clone(),
            machine: self.machine,
            programs,
            argv,
            environment: self.environment.iter().map(variable).collect::<Result<_, _>>()?,
            credentials: self.credentials.clone(),
            devices: self.devices.clone(),
            granted_devices: self.granted_devices.iter().map(|name| Path::new("/dev").join(name)).collect(),
            nesting: self.nesting,
            broker: self.broker.clone(),
            personal: self.personal.clone(),
        })
    }

    fn check_binds(&self) -> Result<(), SystemError> {
        if self.root.binds().len() + self.granted_devices.len() > MAX_BINDS {
            return Err(SystemError::Binds);
        }
        match self.root.binds().iter().find(|bind| !is_target(&bind.target)) {
            Some(bind) => Err(SystemError::Target { path: bind.target.clone() }),
            None => Ok(()),
        }
    }

    fn check_credentials(&self) -> Result<(), SystemError> {
        if self.credentials.len() > MAX_CREDENTIALS {
            return Err(SystemError::Credentials);
        }
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        let named = |name: &str| {
            (1..=255).contains(&name.len()) && name.bytes().all(good) && name != "." && name != ".."
        };
        match self.credentials.iter().find(|(name, value)| !named(name) || value.len() > CREDENTIAL_MAX) {
            Some((name, _)) => Err(SystemError::Credential { name: name.clone() }),
            None => Ok(()),
        }
    }
}

/// An absolute path of names, and none that is covered by what every container has.
fn is_target(path: &Path) -> bool {
    const COVERED: [&str; 4] = ["dev", "proc", "run", "sys"];
    let mut components = path.components();
    let names: Vec<_> = components.by_ref().skip(1).collect();
    let plain = names.iter().all(|name| matches!(name, Component::Normal(_)));
    let covered = names.first().is_some_and(|name| COVERED.iter().any(|place| name.as_os_str() == *place));
    path.is_absolute() && plain && !names.is_empty() && !covered && !path.as_os_str().as_bytes().contains(&0)
}

/// One that leads nowhere but below `/dev`, and to none of what is there already.
fn check_device(name: &str) -> Result<(), SystemError> {
    const OWN: [&str; 5] = ["console", "mqueue", "ptmx", "pts", "shm"];
    let part = |part: &str| {
        let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        !part.is_empty() && part.bytes().all(good) && !part.starts_with('.')
    };
    let first = name.split('/').next().unwrap_or_default();
    match name.len() <= 64 && name.split('/').all(part) && !OWN.contains(&first) {
        true => Ok(()),
        false => Err(SystemError::Device { name: name.to_owned() }),
    }
}

/// A name such as `Europe/Paris`, which can't lead out of the directory of zones.
fn check_timezone(name: &str) -> Result<(), SystemError> {
    let part = |part: &str| {
        let mut bytes = part.bytes();
        bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
            && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'+'))
    };
    match name.len() <= 64 && name.split('/').all(part) {
        true => Ok(()),
        false => Err(SystemError::Timezone { name: name.to_owned() }),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn spec() -> SystemSpec {
        SystemSpec {
            root: "/r".into(),
            run: "/run".into(),
            hostname: "web".into(),
            machine: MachineId::from_random([0xff; 16]),
            init: Vec::new(),
            environment: vec![("A".into(), "b".into())],
            credentials: vec![("passwd.hashed-password.root".into(), b"x".to_vec())],
            devices: vec!["net/tun".into()],
            granted_devices: Vec::new(),
            nesting: false,
            broker: None,
            personal: Some(Personal {
                new: true,
                timezone: Some(Timezone::Host("America/Port-au-Prince".into())),
            }),
        }
    }

    #[test]
    fn machine_ids_are_version_4_uuids() {
        let id = MachineId::from_random([0xff; 16]);
        assert_eq!(id.to_string(), "ffffffffffff4fffbfffffffffffffff");
        assert_eq!(id.hyphenated(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        assert_eq!(id.to_string().parse::<MachineId>().unwrap(), id);
        assert_eq!(MachineId::from_random([0; 16]).to_string(), "00000000000040008000000000000000");
        let upper = "F".repeat(32);
        for text in ["", "0", "00000000000000000000000000000000", "ffffffffffff4fffbfffffffffffffffa", &upper]
        {
            assert!(text.parse::<MachineId>().is_err(), "{text}");
        }
    }

    #[test]
    fn directories_are_shown_where_they_are_seen() {
        for good in ["/srv", "/home/ann/x y", "/tmp/a"] {
            assert!(is_target(Path::new(good)), "{good}");
        }
        for bad in ["", "/", "srv", "/srv/../etc", "/run/x", "/dev", "/proc/1", "/sys/fs", "/a\0b"] {
            assert!(!is_target(Path::new(bad)), "{bad}");
        }
        let bind = Bind { source: "/s".into(), target: "/run".into() };
        let layers = |binds| SystemRoot::Layers { image: "/i".into(), container: "/c".into(), binds };
        let refused = |binds| SystemSpec { root: layers(binds), ..spec() }.prepare().unwrap_err();
        assert!(matches!(refused(vec![bind.clone()]), SystemError::Target { .. }));
        assert_eq!(refused(vec![bind; MAX_BINDS + 1]), SystemError::Binds);
        let granted_devices = vec!["kvm".into(); MAX_BINDS + 1];
        assert_eq!(SystemSpec { granted_devices, ..spec() }.prepare().unwrap_err(), SystemError::Binds);
    }

    #[test]
    fn without_an_init_the_roots_own_is_tried() {
        let prepared = spec().prepare().unwrap();
        assert_eq!(prepared.programs.len(), INITS.len());
        assert_eq!(prepared.argv, [c"/sbin/init".to_owned()]);
        let own =
            SystemSpec { init: vec!["/bin/busybox".into(), "init".into()], ..spec() }.prepare().unwrap();
        assert_eq!(own.programs, [c"/bin/busybox".to_owned()]);
        assert_eq!(own.argv.len(), 2);
    }

    #[test]
    fn what_can_not_be_is_refused() {
        let refused = |change: fn(&mut SystemSpec)| {
            let mut spec = spec();
            change(&mut spec);
            spec.prepare().unwrap_err()
        };
        assert!(matches!(refused(|s| s.hostname = "a b".into()), SystemError::Spec(_)));
        assert!(matches!(refused(|s| s.root = "a\0".into()), SystemError::Spec(_)));
        for name in ["", "..", "a/b", "a b"] {
            let mut spec = spec();
            spec.credentials[0].0 = name.into();
            assert!(matches!(spec.prepare(), Err(SystemError::Credential { .. })), "{name}");
        }
        assert!(matches!(
            refused(|s| s.credentials[0].1 = vec![0; CREDENTIAL_MAX + 1]),
            SystemError::Credential { .. }
        ));
        assert_eq!(
            refused(|s| s.credentials = vec![("a".into(), Vec::new()); 257]),
            SystemError::Credentials
        );
        for name in ["", "../sda", "/dev/sda", "a//b", ".x", "net/", "pts/0", "console"] {
            let spec = SystemSpec { devices: vec![name.into()], ..spec() };
            assert!(matches!(spec.prepare(), Err(SystemError::Device { .. })), "{name}");
        }
        for zone in ["", "../x", "/etc/passwd", "Europe/", "a//b", ".x"] {
            let mut spec = spec();
            spec.personal = Some(Personal { new: true, timezone: Some(Timezone::Asked(zone.into())) });
            assert!(matches!(spec.prepare(), Err(SystemError::Timezone { .. })), "{zone}");
        }
    }
}
