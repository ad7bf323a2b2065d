//! `config.json`: what a container is, whether it runs or not. Written as a whole by the account alone.

use std::{collections::BTreeMap, fs, path::Path};

use cgrant_container::system::{Bind, MachineId, Personal, SystemRoot, SystemSpec, Timezone};
use cgrant_image::store::{Store, StoreError};
use serde::{Deserialize, Serialize};

use super::{create::ROOTFS, credentials, device};
use crate::{
    Client,
    args::{Credential, Dns, LinkArgs, Mount, NewArgs},
    command::{grant::each_once, inner, link},
    error::Failure,
    storage::{self, JobFailure},
};

/// Layout of this file.
const FORMAT: u32 = 1;
/// Longest name of a range, in bytes, as the contract of the broker says (`CreateGrant`).
const RANGE_MAX: usize = 63;
/// Longest hostname, in bytes.
const HOSTNAME_MAX: usize = 64;

/// What a container's root is made of. The store knows these words too: a copy does not need its image any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Root {
    /// What it changed, over the image's files.
    #[default]
    Layers,
    /// Files of its own, copied from the image's.
    Copy,
}

/// What a container's root is to be told at the next start, though it was started before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum News {
    /// Another hostname.
    Hostname,
    /// All that makes it another machine than the one that it is a copy of.
    Copy,
}

/// What a container is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Config {
    pub(super) format: u32,
    /// Id of the image that it was made of.
    pub(super) image: String,
    #[serde(default)]
    pub(super) root: Root,
    /// What the image was called.
    pub(super) alias: String,
    /// When it was made, microseconds since 1970.
    pub(super) created: u64,
    pub(super) machine: String,
    pub(super) hostname: String,
    #[serde(default)]
    pub(super) limits: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) link: Option<Link>,
    #[serde(default)]
    pub(super) mounts: Vec<Mount>,
    #[serde(default)]
    pub(super) dns: Dns,
    #[serde(default)]
    pub(super) devices: Vec<String>,
    #[serde(default)]
    pub(super) environment: Vec<(String, String)>,
    #[serde(default)]
    pub(super) credentials: Vec<Credential>,
    /// Its time zone, if it was asked for one.
    #[serde(default)]
    pub(super) timezone: Option<String>,
    #[serde(default)]
    pub(super) init: Vec<String>,
    /// May it make containers itself?
    #[serde(default)]
    pub(super) nesting: bool,
    /// Blocks of ids that its range has for them, beside its own. The files that they own are its own: it keeps them.
    #[serde(default)]
    pub(super) blocks: u32,
    /// Does it start with the machine?
    #[serde(default)]
    pub(super) autostart: bool,
    /// Name of the range that its files belong to, which it keeps under another name of its own.
    pub(super) range: String,
    /// What its root has not been told since it was started.
    #[serde(default)]
    pub(super) news: Option<News>,
    /// Has it been started? Before that, its root does not have what is its own.
    #[serde(default)]
    pub(super) started: bool,
}

/// The link that it gets at each start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Link {
    #[serde(default)]
    pub(super) bridge: Option<String>,
    #[serde(default)]
    pub(super) publish: Vec<String>,
    #[serde(flatten)]
    pub(super) properties: LinkArgs,
}

impl Config {
    /// What the command line asks for, of the image with this id, for files of this range, with so many blocks of ids for containers
    /// inside.
    pub(super) fn new(args: &NewArgs, blocks: u32, image: String, range: String) -> Result<Self, Failure> {
        let limits = each_once(args.limits.all())?.into_iter().collect();
        let link = wants_link(args).then(|| Link {
            bridge: args.link.clone().filter(|bridge| !bridge.is_empty()),
            publish: args.ports.publish.iter().map(ToString::to_string).collect(),
            properties: args.properties.clone(),
        });
        let config = Self {
            format: FORMAT,
            image,
            root: Root::default(),
            alias: args.image.clone(),
            created: super::now(),
            machine: new_machine_id()?,
            hostname: args.hostname.clone().unwrap_or_else(|| hostname_of(&args.name)),
            limits,
            link,
            mounts: args.mount.iter().map(absolute).collect::<Result<_, _>>()?,
            dns: args.dns.clone(),
            devices: args.device.clone(),
            environment: args.told.environment(),
            credentials: args.told.credential.iter().map(credentials::absolute).collect::<Result<_, _>>()?,
            timezone: args.told.timezone.clone(),
            init: args.init.clone(),
            nesting: args.nesting.is_some(),
            blocks,
            autostart: false,
            range,
            news: None,
            started: false,
        };
        config.check(&args.name)?;
        Ok(config)
    }

    /// The same for another container, with files of this range. What can be had only once, a fixed address and ports of the
    /// host's, is not the copy's; nor does it start with the machine.
    pub(super) fn copy(&self, hostname: String, range: String) -> Result<Self, Failure> {
        let link = self.link.clone().map(|link| Link {
            publish: Vec::new(),
            properties: LinkArgs { address: Vec::new(), ..link.properties },
            ..link
        });
        Ok(Self {
            created: super::now(),
            machine: new_machine_id()?,
            hostname,
            link,
            autostart: false,
            range,
            news: Some(News::Copy),
            ..self.clone()
        })
    }

    /// The same with files of its own.
    pub(super) fn copied(self) -> Self {
        Self { root: Root::Copy, ..self }
    }

    /// How many ids its range has.
    pub(super) fn ids(&self) -> u32 {
        self.blocks.saturating_add(1).saturating_mul(storage::IDS)
    }

    /// Refuses now what a start would refuse.
    pub(super) fn check(&self, name: &str) -> Result<(), Failure> {
        let usage = |error: String| Failure::Usage(error);
        self.spec(name)?.check().map_err(|error| usage(error.to_string()))?;
        if let Some(wanted) = &self.link {
            let ports = wanted.ports()?;
            link::options(wanted.bridge.as_deref(), &ports, &wanted.properties)?;
        }
        Ok(())
    }

    /// Refuses what can't be had where the broker is asked: in a container there is less than on a host.
    pub(super) fn check_place(&self, client: &Client) -> Result<(), Failure> {
        if let Some(mount) = self.mounts.first()
            && inner::is_here(&client.endpoint)
        {
            return Err(Failure::Usage(format!(
                "a container in a container can't be shown {:?}: the kernel gives the files of a directory other owners only for who \
                 has the rights over the whole file system, and on no overlay, which a container's root is (mount_setattr(2)); leave \
                 --mount out and copy what is needed with \"cgrant push\"",
                mount.source
            )));
        }
        match &self.link {
            Some(link) if inner::is_own(&client.endpoint, link.bridge.as_deref()) => {
                inner::check(&link.ports()?, &link.properties)
            }
            _ => Ok(()),
        }
    }

    /// Reads what [`bytes`](Self::bytes) wrote.
    pub(super) fn parse(text: &str) -> Option<Self> {
        serde_json::from_str::<Self>(text).ok().filter(|config| config.format == FORMAT)
    }

    /// As it comes to another host: there it is given a range like any other.
    pub(super) fn without_blocks(self) -> Self {
        Self { blocks: 0, ..self }
    }

    /// Takes away what it has of the host: what that was, as the options are called that ask for it.
    pub(super) fn leave_out_host(&mut self) -> Vec<String> {
        let mut left_out = Vec::new();
        let mut note = |option: &str, what: String| left_out.push(format!("--{option} {what}"));
        self.mounts.drain(..).for_each(|mount| note("mount", format!("{}:{}", mount.source, mount.target)));
        self.devices.drain(..).for_each(|device| note("device", device));
        self.credentials.drain(..).for_each(|credential| note("credential", credential.name));
        if let Some(link) = &mut self.link {
            link.publish.drain(..).for_each(|port| note("publish", port));
            link.properties.address.drain(..).for_each(|address| note("address", address.to_string()));
        }
        if std::mem::take(&mut self.autostart) {
            left_out.push("autostart=true".to_owned());
        }
        left_out
    }

    /// Reads that of a container.
    pub(super) fn read(store: &Store, name: &str) -> Result<Self, StoreError> {
        let damaged = || StoreError::Damaged(format!("containers/{name}/config.json"));
        Self::parse(&store.config(name)?).ok_or_else(damaged)
    }

    /// Replaces it.
    pub(super) fn write(&self, store: &Store, name: &str) -> Result<(), StoreError> {
        store.set_config(name, &self.bytes())
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        // Maps with texts as keys, lists and texts: there is nothing that JSON could not hold.
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    /// What is to be started.
    pub(super) fn spec(&self, name: &str) -> Result<SystemSpec, Failure> {
        let data = storage::path()?;
        let container = data.join("containers").join(name);
        let machine: MachineId = self.machine.parse().map_err(|_| {
            let error = StoreError::Damaged(format!("containers/{name}/config.json"));
            Failure::work(format!("start the container {name:?}"), JobFailure::from(error))
        })?;
        let binds = self.mounts.iter().map(bind).collect();
        Ok(SystemSpec {
            root: match self.root {
                Root::Layers => SystemRoot::Layers {
                    image: data.join("images").join(&self.image).join(ROOTFS),
                    container: container.clone(),
                    binds,
                },
                Root::Copy => SystemRoot::Directory { place: container.join(ROOTFS), binds },
            },
            run: container.join(super::RUN),
            hostname: self.hostname.clone(),
            machine,
            init: self.init.iter().map(Into::into).collect(),
            environment: self.environment.iter().map(|(name, value)| (name.into(), value.into())).collect(),
            credentials: self.credentials.iter().map(credentials::read).collect::<Result<_, _>>()?,
            granted_devices: self.devices.iter().filter(|name| device::is_granted(name)).cloned().collect(),
            devices: self.devices.clone(),
            nesting: self.nesting,
            broker: None,
            personal: self.personal(),
        })
    }
}

impl Config {
    /// What is to be written into its root. After the first start the time zone is its own business.
    fn personal(&self) -> Option<Personal> {
        match (self.started, self.news) {
            (false, _) => Some(Personal { new: true, timezone: self.timezone() }),
            (true, Some(News::Copy)) => Some(Personal { new: true, timezone: None }),
            (true, Some(News::Hostname)) => Some(Personal { new: false, timezone: None }),
            (true, None) => None,
        }
    }

    /// The one that was asked for, or else the host's.
    fn timezone(&self) -> Option<Timezone> {
        self.timezone.clone().map(Timezone::Asked).or_else(|| timezone().map(Timezone::Host))
    }

    /// Gives it another hostname, which its root is told at the next start.
    pub(super) fn set_hostname(&mut self, hostname: String) {
        if self.hostname != hostname {
            self.news = self.news.or(Some(News::Hostname));
        }
        self.hostname = hostname;
    }
}

/// A name for the range of a new container's files: its own, if no other container has that since it was renamed.
pub(super) fn free_range(store: &Store, name: &str) -> Result<String, StoreError> {
    let taken = ranges(store)?;
    let with = |number: usize| {
        let suffix = format!("-{number}");
        let kept = name.get(..RANGE_MAX.saturating_sub(suffix.len())).unwrap_or(name);
        format!("{kept}{suffix}")
    };
    let candidates = std::iter::once(name.to_owned()).chain((2..).map(with));
    let mut free = candidates.filter(|candidate| !taken.contains(candidate));
    Ok(free.next().unwrap_or_default())
}

/// Refuses a range that is another container's by now. The storage namespace of a new container, in which this is asked, has the range:
/// nobody else makes one in it meanwhile.
pub(super) fn must_be_free(store: &Store, range: &str) -> Result<(), JobFailure> {
    match ranges(store)?.iter().any(|taken| taken == range) {
        true => Err(JobFailure::refused(
            "another container that was made at the same time has the range of ids; try again",
        )),
        false => Ok(()),
    }
}

/// The ranges of all containers whose configuration can be read.
fn ranges(store: &Store) -> Result<Vec<String>, StoreError> {
    let range = |text: &str| serde_json::from_str::<Config>(text).ok().map(|config| config.range);
    Ok(store.configs()?.iter().filter_map(|(_, text)| range(text)).collect())
}

impl Link {
    /// The ports, which were checked when they were written down.
    pub(super) fn ports(&self) -> Result<Vec<cgrant_proto::Port>, Failure> {
        let port = |text: &String| {
            text.parse().map_err(|_| Failure::Usage(format!("{text:?} is no port to publish")))
        };
        self.publish.iter().map(port).collect()
    }
}

/// From here, and not from wherever it is started later.
fn absolute(mount: &Mount) -> Result<Mount, Failure> {
    let path = std::path::absolute(&mount.source)
        .map_err(|source| Failure::Machine { doing: "find the directory to mount", source })?;
    let text = path.to_str().ok_or_else(|| Failure::Usage(format!("{path:?} is no UTF-8")))?;
    if !path.is_dir() {
        return Err(Failure::Usage(format!("{text:?} is no directory that you can mount")));
    }
    Ok(Mount { source: text.to_owned(), ..mount.clone() })
}

fn bind(mount: &Mount) -> Bind {
    Bind { source: (&mount.source).into(), target: (&mount.target).into() }
}

/// Whoever says something about a link wants one.
fn wants_link(args: &NewArgs) -> bool {
    args.link.is_some() || !args.ports.publish.is_empty() || args.properties != LinkArgs::default()
}

/// A hostname has no underscore, and a container's name may; both end within bounds.
pub(super) fn hostname_of(name: &str) -> String {
    let name: String = name.replace('_', "-").chars().take(HOSTNAME_MAX).collect();
    name.trim_end_matches('-').to_owned()
}

/// That of a new installation.
pub(super) fn new_machine_id() -> Result<String, Failure> {
    let random = || cgrant_sys::process::random_u64();
    let bytes = || -> std::io::Result<[u8; 16]> {
        Ok(((u128::from(random()?) << 64) | u128::from(random()?)).to_be_bytes())
    };
    let bytes = bytes().map_err(|source| Failure::Machine { doing: "make a machine id", source })?;
    Ok(MachineId::from_random(bytes).to_string())
}

/// The host's, as localtime(5) names it; $TZ is the caller's own business.
fn timezone() -> Option<String> {
    let link = fs::read_link("/etc/localtime").ok()?;
    let absolute = Path::new("/etc").join(link);
    let text = absolute.to_str()?;
    let (_, zone) = text.split_once("/zoneinfo/")?;
    let known = !zone.is_empty() && zone.split('/').all(|part| !matches!(part, "" | "." | ".."));
    known.then(|| zone.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command, ContainerCommand};

    fn config(words: &[&str]) -> Result<Config, Failure> {
        let words = ["cgrant", "create", "debian:trixie"].into_iter().chain(words.iter().copied());
        match Cli::try_parse_from(words).unwrap().command {
            Command::Container(ContainerCommand::Create(args)) => {
                Config::new(&args, 3, "0".repeat(64), "web".into())
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_asked_for_is_written_and_read() {
        let made = config(&[
            "web",
            "--memory",
            "1M",
            "-p",
            "80:8080",
            "--vlan",
            "9",
            "--env",
            "A=b=c",
            "--device",
            "fuse",
            "--timezone",
            "Asia/Tokyo",
            "--credential",
            "a=b",
        ]);
        let made = made.unwrap();
        assert_eq!(made.limits["memory.max"], "1M");
        let link = made.link.as_ref().unwrap();
        assert_eq!(
            (link.ports().unwrap().len(), link.properties.vlan, link.bridge.as_deref()),
            (1, Some(9), None)
        );
        assert_eq!(serde_json::from_slice::<Config>(&made.bytes()).unwrap(), made);
        let spec = made.spec("web").unwrap();
        assert_eq!(spec.credentials, [("a".to_owned(), b"b".to_vec())]);
        assert_eq!(spec.environment, [("A".into(), "b=c".into())]);
        let zone = spec.personal.unwrap().timezone;
        assert_eq!(zone, Some(Timezone::Asked("Asia/Tokyo".into())));
        assert!(config(&["web"]).unwrap().link.is_none());
        assert_ne!(config(&["web"]).unwrap().machine, config(&["web"]).unwrap().machine);
    }

    #[test]
    fn what_a_start_would_refuse_is_refused_at_once() {
        for words in [
            &["web", "--hostname", "a b"][..],
            &["web", "--device", "../sda"],
            &["web", "--timezone", "../x"],
            &["web", "--credential", "a b=c"],
            &["web", "--credential", "a=@/nothing/at/all"],
            &["web", "--memory", "1M", "--limit", "memory.max=2M"],
            &["web", "--address", "10.0.0.9", "--address", "10.0.0.10"],
            &["web", "--mount", "/nothing/at/all:/srv"],
            &["web", "--mount", "/etc:/proc"],
        ] {
            assert_eq!(config(words).unwrap_err().code(), crate::exit::USAGE, "{words:?}");
        }
    }

    #[test]
    fn what_is_personal_is_written_once() {
        let mut made = config(&["web"]).unwrap();
        assert!(made.spec("web").unwrap().personal.is_some());
        made.started = true;
        made.set_hostname("web".into());
        assert!(made.spec("web").unwrap().personal.is_none());
        made.set_hostname("www".into());
        assert_eq!(made.spec("web").unwrap().personal, Some(Personal { new: false, timezone: None }));
    }

    #[test]
    fn a_name_becomes_a_hostname() {
        assert_eq!(hostname_of("my_web-1"), "my-web-1");
        assert_eq!(hostname_of("web_"), "web");
        assert!(hostname_of(&"a".repeat(200)).len() <= HOSTNAME_MAX);
    }
}
