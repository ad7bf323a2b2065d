//! Where images and containers lie: one directory of the account's, mode 0700, and everything below it by descriptor.
//!
//! ```text
//! images/aliases.json          names of images
//! images/ID/image.json         what it is
//! images/ID/rootfs/            its files, owned by the account's range for images
//! images/.new-…/               one that is being made; its maker holds a lock on it
//! containers/NAME/config.json  what it is
//! containers/NAME/upper, work  what it changed of its image; or rootfs/, if that was copied
//! ```
//! What begins with a dot is removed by whoever comes next, unless its maker lives. Directories are locked themselves
//! (`flock(2)`), since a lock file would belong to one of the two that use it: the account outside, and root of the
//! storage namespace. Both can read everything but the files of images and containers, which are the latter's.

mod alias;
mod containers;
mod images;
mod unfinished;

use std::ffi::OsString;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use cgrant_sys::Dir;
use rustix::fs::{FlockOperation, Mode, flock, fstat};
use rustix::io::retry_on_intr;

use crate::digest::Sha256;

pub use alias::{Alias, BadAlias};
pub use containers::make_layers;
pub use images::Listed;
pub use unfinished::Unfinished;

const IMAGES: &str = "images";
const CONTAINERS: &str = "containers";

/// The directory with all images and containers of an account.
#[derive(Debug)]
pub struct Store {
    images: Dir,
    containers: Dir,
    /// Who gets what the account reads itself, in the ids of the namespace that this runs in.
    owner: Option<(u32, u32)>,
}

/// Why the store can't do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Neither variable says where.
    #[error(
        "neither XDG_DATA_HOME nor HOME says where your images and containers are: set one to an absolute path"
    )]
    NoHome,
    /// The directory can't be used.
    #[error("the data directory `{path}` can't be used")]
    Open {
        /// Which.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The directory is somebody else's.
    #[error(
        "the data directory `{path}` belongs to the uid {owner}: XDG_DATA_HOME or HOME is another account's"
    )]
    Foreign {
        /// Which.
        path: String,
        /// Whose.
        owner: u32,
    },
    /// A file or directory in it can't be read or changed.
    #[error("`{what}` in the data directory could not be used")]
    Use {
        /// Which.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file in it is not what was written there.
    #[error(
        "`{0}` in the data directory is damaged: remove the image or container that it belongs to, or mend it"
    )]
    Damaged(String),
    /// The list of images' names is not what was written there.
    #[error(
        "`images/aliases.json` in the data directory is damaged: delete it, and name images anew with `cgrant image alias add`"
    )]
    DamagedNames,
    /// No image of this name.
    #[error(
        "there is no image `{0}`: `cgrant image list` shows those that are there, `cgrant image build` and `cgrant image import` make one"
    )]
    UnknownImage(String),
    /// Several images of this beginning.
    #[error("several images' ids begin with `{0}`: give more of it")]
    Ambiguous(String),
    /// An image that containers are made of.
    #[error("the image {id} is in use by: {}", containers.join(", "))]
    InUse {
        /// The image.
        id: Sha256,
        /// The containers.
        containers: Vec<String>,
    },
    /// No container of this name.
    #[error("there is no container `{0}`: `cgrant list` shows those that are there")]
    UnknownContainer(String),
    /// The name is another container's.
    #[error("there is a container `{0}` already: take another name, or delete it first")]
    NameTaken(String),
    /// Not a name of a container.
    #[error("`{0}` is no name of a container")]
    BadName(String),
}

impl Store {
    /// Where the store is for an account with these variables: `$XDG_DATA_HOME/cgrant`, or `~/.local/share/cgrant`.
    ///
    /// # Errors
    /// [`StoreError::NoHome`].
    pub fn path(variable: impl Fn(&str) -> Option<OsString>) -> Result<PathBuf, StoreError> {
        let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let data = absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")));
        Ok(data.ok_or(StoreError::NoHome)?.join("cgrant"))
    }

    /// Opens the store at an absolute path as the account itself; makes it (mode 0700) if it is not there.
    ///
    /// # Errors
    /// [`StoreError::Open`], [`StoreError::Foreign`].
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let shown = || crate::path::shown(path.as_os_str().as_encoded_bytes());
        let open = |source| StoreError::Open { path: shown(), source };
        let base = match Dir::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
                made.and_then(|()| Dir::open(path))
            }
            base => base,
        };
        let base = base.map_err(open)?;
        let stat = fstat(&base).map_err(|errno| open(errno.into()))?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(StoreError::Foreign { path: shown(), owner: stat.st_uid });
        }
        if Mode::from_raw_mode(stat.st_mode) != Mode::RWXU {
            base.chmod("", 0o700).map_err(open)?;
        }
        Self::with(&base, None)
    }

    /// Opens the store by a descriptor of its directory, as root of the storage namespace, where the account has the ids `owner`.
    ///
    /// # Errors
    /// [`StoreError::Use`].
    pub fn open_inside(base: &Dir, owner: (u32, u32)) -> Result<Self, StoreError> {
        Self::with(base, Some(owner))
    }

    fn with(base: &Dir, owner: Option<(u32, u32)>) -> Result<Self, StoreError> {
        let sub = |name: &str| -> Result<Dir, StoreError> {
            let dir = open_or_make(base, name, owner).map_err(|source| used(name, source))?;
            Ok(dir)
        };
        Ok(Self { images: sub(IMAGES)?, containers: sub(CONTAINERS)?, owner })
    }

    /// Removes what makers who died left of images and containers. Needs the ids of their files, so: in the storage namespace.
    ///
    /// # Errors
    /// [`StoreError::Use`] for the first that could not be removed; the others were.
    pub fn sweep(&self) -> Result<(), StoreError> {
        let images = unfinished::sweep(&self.images).map_err(|source| used(IMAGES, source));
        let containers = unfinished::sweep(&self.containers).map_err(|source| used(CONTAINERS, source));
        images.and(containers)
    }
}

fn open_or_make(base: &Dir, name: &str, owner: Option<(u32, u32)>) -> io::Result<Dir> {
    match base.open_dir(name) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        result => return result,
    }
    match base.make_dir(name, 0o700) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => (),
    }
    let dir = base.open_dir(name)?;
    if let Some((uid, gid)) = owner {
        dir.chown("", uid, gid)?;
    }
    dir.chmod("", 0o700)?;
    Ok(dir)
}

/// A lock on a directory, until this is dropped.
struct Locked {
    _dir: Dir,
}

/// Waits for whoever has the directory. Nobody holds it for longer than a few system calls.
fn lock(dir: &Dir) -> io::Result<Locked> {
    // A description of its own: a lock belongs to that.
    let own = crate::walk::reopen(dir)?;
    retry_on_intr(|| flock(&own, FlockOperation::LockExclusive))?;
    Ok(Locked { _dir: own })
}

fn used(what: &str, source: io::Error) -> StoreError {
    StoreError::Use { what: what.to_owned(), source }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use crate::image::About;
    use crate::import::Imported;
    use crate::place::Omissions;

    struct Scene {
        directory: tempfile::TempDir,
        store: Store,
    }

    impl Scene {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let store = Store::open(&directory.path().join("a/b/cgrant")).unwrap();
            Self { directory, store }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.directory.path().join("a/b/cgrant").join(name)
        }

        fn names(&self, name: &str) -> Vec<String> {
            let entries = std::fs::read_dir(self.path(name)).unwrap();
            let mut names: Vec<String> =
                entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }

        fn image(&self, content: &str, aliases: &[&str]) -> Result<crate::Image, StoreError> {
            let new = self.store.begin_image().unwrap();
            new.dir().create_dir("rootfs", 0o755).unwrap().make_dir(content, 0o755).unwrap();
            let aliases: Vec<Alias> = aliases.iter().map(|alias| alias.parse().unwrap()).collect();
            self.store.finish_image(new, imported(content), "a\ntest", &aliases)
        }

        fn container(&self, name: &str, config: &str) -> Result<Dir, StoreError> {
            let new = self.store.begin_container(name)?;
            self.store.finish_container(new, name, config.as_bytes())
        }
    }

    fn sum(content: &str) -> Sha256 {
        Sha256::of_reader(content.as_bytes(), None, &mut |_| ()).unwrap()
    }

    fn imported(content: &str) -> Imported {
        let about = About { os: "debian".into(), ..About::default() };
        Imported { id: sum(content), about, entries: 2, bytes: 3, omissions: Omissions::default() }
    }

    #[test]
    fn the_place_is_the_accounts() {
        let of = |data: Option<&str>, home: Option<&str>| {
            let path = Store::path(|name| if name == "HOME" { home } else { data }.map(OsString::from));
            path.ok().map(|path| path.to_str().unwrap().to_owned())
        };
        assert_eq!(of(Some("/data"), Some("/home/u")).unwrap(), "/data/cgrant");
        assert_eq!(of(None, Some("/home/u")).unwrap(), "/home/u/.local/share/cgrant");
        assert_eq!(of(Some("relative"), Some("/home/u")).unwrap(), "/home/u/.local/share/cgrant");
        assert_eq!((of(None, None), of(Some(""), Some("x"))), (None, None));
        let scene = Scene::new();
        for name in ["", "images", "containers", ".."] {
            assert_eq!(std::fs::metadata(scene.path(name)).unwrap().mode() & 0o7777, 0o700, "{name}");
        }
        std::os::unix::fs::chown(scene.path(""), Some(77), None).unwrap();
        let error = Store::open(&scene.path("")).unwrap_err();
        assert!(matches!(error, StoreError::Foreign { owner: 77, .. }));
    }

    #[test]
    fn images_are_found_by_all_their_names() {
        let scene = Scene::new();
        let one = scene.image("one", &["debian:trixie", "debian"]).unwrap();
        let two = scene.image("two", &["debian"]).unwrap();
        assert_eq!((one.id, one.source.as_str()), (sum("one"), "atest"));
        assert_eq!(scene.store.image("debian:trixie").unwrap(), one);
        assert_eq!(scene.store.image("debian").unwrap(), two, "the name moved");
        assert_eq!(scene.store.image(&one.id.to_string()).unwrap(), one);
        assert_eq!(scene.store.image(&two.id.to_string()[..8].to_uppercase()).unwrap(), two);
        for name in ["nothing", &one.id.to_string()[..7], "00000000", "", "../images"] {
            assert!(matches!(scene.store.image(name), Err(StoreError::UnknownImage(_))), "{name}");
        }
        let mut all = vec![one.clone(), two];
        all.sort_by_key(|image| image.id);
        let all: Vec<Listed> = all.into_iter().map(Listed::Whole).collect();
        assert_eq!(scene.store.images().unwrap(), all);
        assert!(scene.store.rootfs(one.id).unwrap().exists("one").unwrap());
        assert!(scene.store.unname(&"debian".parse().unwrap()).unwrap());
        assert!(!scene.store.unname(&"debian".parse().unwrap()).unwrap());
        assert!(scene.store.image("debian").is_err());
        let similar = format!("{}{}", &one.id.to_string()[..10], "0".repeat(54));
        std::fs::create_dir(scene.path("images").join(&similar)).unwrap();
        assert!(matches!(scene.store.image(&similar[..9]), Err(StoreError::Ambiguous(_))));
    }

    #[test]
    fn an_image_that_is_there_stays() {
        let scene = Scene::new();
        let first = scene.image("one", &[]).unwrap();
        assert_eq!(scene.image("one", &["name"]).unwrap(), first);
        assert_eq!(scene.store.image("name").unwrap(), first);
        assert_eq!(scene.names("images"), [first.id.to_string().as_str(), "aliases.json"]);
        let mode =
            |name: &str| std::fs::metadata(scene.path("images").join(name)).unwrap().permissions().mode();
        assert_eq!(mode(&format!("{}/image.json", first.id)) & 0o777, 0o644);
        assert_eq!(mode(&first.id.to_string()) & 0o777, 0o755);
    }

    #[test]
    fn what_is_half_made_goes_with_its_maker() {
        let scene = Scene::new();
        let new = scene.store.begin_image().unwrap();
        new.dir().create_dir("rootfs", 0o700).unwrap();
        assert_eq!(scene.names("images").len(), 1);
        // Whoever comes next leaves it alone while its maker lives,
        let other = scene.store.begin_image().unwrap();
        assert_eq!(scene.names("images").len(), 2);
        drop(new);
        assert_eq!(scene.names("images").len(), 1);
        drop(other);
        // and removes what dead ones left.
        for name in [".new-0123", ".old-0123", "kept", ".kept"] {
            std::fs::create_dir_all(scene.path("images").join(name).join("rootfs/etc")).unwrap();
        }
        drop(scene.store.begin_image().unwrap());
        assert_eq!(scene.names("images"), [".kept", "kept"]);
        std::fs::create_dir_all(scene.path("containers/.new-1/upper")).unwrap();
        scene.store.sweep().unwrap();
        assert_eq!(scene.names("containers"), [] as [&str; 0]);
    }

    #[test]
    fn an_image_in_use_stays() {
        let scene = Scene::new();
        let image = scene.image("one", &["name"]).unwrap();
        scene.container("web", &format!("{{\"image\":\"{}\"}}", image.id)).unwrap();
        scene.container("other", "{}").unwrap();
        match scene.store.remove_image(image.id) {
            Err(StoreError::InUse { containers, .. }) => assert_eq!(containers, ["web"]),
            other => panic!("{other:?}"),
        }
        scene.store.set_config("web", b"not json").unwrap();
        assert!(matches!(scene.store.remove_image(image.id), Err(StoreError::InUse { .. })), "it may be");
        scene.store.remove_container("web").unwrap();
        scene.store.remove_image(image.id).unwrap();
        assert_eq!(scene.names("images"), ["aliases.json"]);
        assert!(scene.store.aliases().unwrap().is_empty());
        assert!(matches!(scene.store.remove_image(image.id), Err(StoreError::UnknownImage(_))));
        // What is copied is needed no more.
        let copied = scene.image("two", &[]).unwrap();
        let config = format!("{{\"image\":\"{}\",\"root\":\"copy\"}}", copied.id);
        scene.container("whole", &config).unwrap();
        scene.store.remove_image(copied.id).unwrap();
        let late = scene.container("late", &format!("{{\"image\":\"{}\"}}", image.id));
        assert!(matches!(late, Err(StoreError::UnknownImage(_))));
        assert_eq!(scene.names("containers"), ["other", "whole"]);
    }

    #[test]
    fn names_of_containers_are_taken_once() {
        let scene = Scene::new();
        let new = scene.store.begin_container("web").unwrap();
        let rootfs = tempfile::tempdir().unwrap();
        rustix::fs::chmod(rootfs.path(), Mode::from_raw_mode(0o751)).unwrap();
        make_layers(new.dir(), &Dir::open(rootfs.path()).unwrap()).unwrap();
        scene.container("web", "{}").unwrap();
        let late = scene.store.finish_container(new, "web", b"{}");
        assert!(matches!(late, Err(StoreError::NameTaken(_))));
        assert_eq!(scene.names("containers"), ["web"], "the late one is gone");
        assert!(matches!(scene.store.begin_container("web"), Err(StoreError::NameTaken(_))));
        scene.store.rename_container("web", "new").unwrap();
        scene.container("web", "{\"a\":1}").unwrap();
        assert!(matches!(scene.store.rename_container("web", "new"), Err(StoreError::NameTaken(_))));
        assert!(matches!(scene.store.rename_container("x", "y"), Err(StoreError::UnknownContainer(_))));
        assert_eq!(scene.store.config("web").unwrap(), "{\"a\":1}");
        assert_eq!(scene.store.containers().unwrap(), ["new", "web"]);
        for bad in ["", ".", "..", "../images", "a/b", ".new-1", "a\0b"] {
            assert!(matches!(scene.store.container(bad), Err(StoreError::BadName(_))), "{bad}");
            assert!(matches!(scene.store.remove_container(bad), Err(StoreError::BadName(_))), "{bad}");
            assert!(matches!(scene.store.begin_container(bad), Err(StoreError::BadName(_))), "{bad}");
        }
    }

    #[test]
    fn what_is_damaged_is_named() {
        let scene = Scene::new();
        let image = scene.image("one", &["name"]).unwrap();
        std::fs::write(scene.path("images").join(image.id.to_string()).join("image.json"), "{").unwrap();
        assert!(
            matches!(scene.store.image("name"), Err(StoreError::Damaged(what)) if what.ends_with("image.json"))
        );
        assert_eq!(scene.store.resolve("name").unwrap(), image.id, "it can be removed all the same");
        // Each way in which one can be is listed as such, beside those that are not.
        let whole = scene.image("two", &[]).unwrap();
        for name in ["three", "four"] {
            let other = scene.image(name, &[]).unwrap().id.to_string();
            let gone = scene.path("images").join(&other);
            if name == "three" {
                std::fs::remove_file(gone.join("image.json")).unwrap();
            } else {
                std::fs::rename(gone.join("rootfs"), gone.join("other")).unwrap();
            }
        }
        let listed = scene.store.images().unwrap();
        let damaged: Vec<&Listed> =
            listed.iter().filter(|listed| matches!(listed, Listed::Damaged { .. })).collect();
        assert!(listed.contains(&Listed::Whole(whole)) && damaged.len() == 3, "{listed:?}");
        assert!(damaged.iter().any(|listed| listed.id() == image.id));
        std::fs::write(scene.path("images/aliases.json"), "[]").unwrap();
        assert!(matches!(scene.store.image("name"), Err(StoreError::DamagedNames)));
        assert!(matches!(scene.store.remove_image(image.id), Err(StoreError::DamagedNames)));
        assert!(scene.path("images").join(image.id.to_string()).exists(), "nothing is done by halves");
        assert!(matches!(scene.image("five", &["name"]), Err(StoreError::DamagedNames)));
        assert!(!scene.path("images").join(sum("five").to_string()).exists());
        // A link in its place is not followed.
        std::fs::remove_file(scene.path("images/aliases.json")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", scene.path("images/aliases.json")).unwrap();
        assert!(matches!(scene.store.aliases(), Err(StoreError::Use { .. })));
    }
}
