//! The containers of a store: their directories. What `config.json` holds is for whoever runs them; here only the image
//! that it names matters, which must not go while it does.

use std::ffi::OsStr;
use std::io;

use cgrant_sys::{Dir, EntryKind};

use super::{Store, StoreError, Unfinished, lock, unfinished, used};
use crate::digest::Sha256;
use crate::import::ASIDE;
use crate::remove::remove_tree;

const CONFIG: &str = "config.json";
/// Key of `config.json` whose value is the image's id.
const IMAGE: &str = "image";
/// Key of `config.json` that says what the root is made of, and the value of those that have the image's files copied.
const ROOT: &str = "root";
const COPY: &str = "copy";
/// Largest configuration, in bytes.
const MAX_CONFIG: usize = 1 << 20;

impl Store {
    /// The names of all containers, in order.
    ///
    /// # Errors
    /// [`StoreError::Use`].
    pub fn containers(&self) -> Result<Vec<String>, StoreError> {
        let reading = crate::walk::reopen(&self.containers).and_then(|containers| containers.entries());
        let entries = reading.map_err(|source| used("containers", source))?;
        let directories = entries.into_iter().filter(|entry| entry.kind == EntryKind::Directory);
        let mut names: Vec<String> = directories.filter_map(|entry| entry.name.into_string().ok()).collect();
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        Ok(names)
    }

    /// The directory of a container.
    ///
    /// # Errors
    /// [`StoreError::BadName`], [`StoreError::UnknownContainer`], [`StoreError::Use`].
    pub fn container(&self, name: &str) -> Result<Dir, StoreError> {
        checked(name)?;
        match self.containers.open_dir(name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(StoreError::UnknownContainer(crate::path::shown(name.as_bytes())))
            }
            result => result.map_err(|source| used(name, source)),
        }
    }

    /// The configuration of a container, as it was written.
    ///
    /// # Errors
    /// As [`Store::container`].
    pub fn config(&self, name: &str) -> Result<String, StoreError> {
        let dir = self.container(name)?;
        dir.read(CONFIG, MAX_CONFIG).map_err(|source| used(&format!("{name}/{CONFIG}"), source))
    }

    /// Replaces the configuration of a container.
    ///
    /// # Errors
    /// As [`Store::container`].
    pub fn set_config(&self, name: &str, config: &[u8]) -> Result<(), StoreError> {
        let dir = self.container(name)?;
        self.write_config(&dir, config).map_err(|source| used(&format!("{name}/{CONFIG}"), source))
    }

    /// A directory in which a container is made, as root of its storage namespace: for `upper` and `work` of an overlay, or `rootfs`.
    ///
    /// # Errors
    /// [`StoreError::BadName`], [`StoreError::NameTaken`], [`StoreError::Use`].
    pub fn begin_container(&self, name: &str) -> Result<Unfinished, StoreError> {
        checked(name)?;
        if self.containers.exists(name).map_err(|source| used(name, source))? {
            return Err(StoreError::NameTaken(crate::path::shown(name.as_bytes())));
        }
        Unfinished::new(&self.containers).map_err(|source| used("containers", source))
    }

    /// The configurations of all containers, as they were written, by their names. One that can't be read is left out. None is missed because
    /// it is renamed meanwhile.
    ///
    /// # Errors
    /// [`StoreError::Use`].
    pub fn configs(&self) -> Result<Vec<(String, String)>, StoreError> {
        let _locked = lock(&self.containers).map_err(|source| used("containers", source))?;
        let read = |name: String| self.config(&name).ok().map(|config| (name, config));
        Ok(self.containers()?.into_iter().filter_map(read).collect())
    }

    /// Puts a container that was made into the store. The name is taken by whoever comes first.
    ///
    /// # Errors
    /// [`StoreError`]; the container is removed then.
    pub fn finish_container(&self, new: Unfinished, name: &str, config: &[u8]) -> Result<Dir, StoreError> {
        checked(name)?;
        let prepare = || -> io::Result<()> {
            self.write_config(new.dir(), config)?;
            if let Some((uid, gid)) = self.owner {
                new.dir().chown("", uid, gid)?;
            }
            // Root of the container looks for its files in here; who else may is up to the directories above.
            new.dir().chmod("", 0o711)
        };
        prepare().map_err(|source| used(name, source))?;
        // Nobody removes the image between the look at its users and this.
        let _locked = lock(&self.images).map_err(|source| used(name, source))?;
        if let Some(image) = needed_by(config)
            && !self.images.exists(&image).is_ok_and(|there| there)
        {
            return Err(StoreError::UnknownImage(crate::path::shown(image.as_bytes())));
        }
        match new.finish(OsStr::new(name)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(StoreError::NameTaken(crate::path::shown(name.as_bytes())));
            }
            result => result.map_err(|source| used(name, source))?,
        }
        self.container(name)
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// As [`Store::container`], and [`StoreError::NameTaken`].
    pub fn rename_container(&self, from: &str, to: &str) -> Result<(), StoreError> {
        checked(from)?;
        checked(to)?;
        let _locked = lock(&self.containers).map_err(|source| used(from, source))?;
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(&self.containers, from, &self.containers, to, flags) {
            Err(rustix::io::Errno::NOENT) => {
                Err(StoreError::UnknownContainer(crate::path::shown(from.as_bytes())))
            }
            Err(rustix::io::Errno::EXIST) => Err(StoreError::NameTaken(crate::path::shown(to.as_bytes()))),
            result => result.map_err(|errno| used(from, errno.into())),
        }
    }

    /// Removes a container that does not run, as root of its storage namespace.
    ///
    /// # Errors
    /// As [`Store::container`].
    pub fn remove_container(&self, name: &str) -> Result<(), StoreError> {
        checked(name)?;
        let aside = match unfinished::put_aside(&self.containers, OsStr::new(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::UnknownContainer(crate::path::shown(name.as_bytes())));
            }
            result => result.map_err(|source| used(name, source))?,
        };
        remove_tree(&self.containers, &aside, ASIDE).map_err(|source| used(name, source))
    }

    /// The containers that are made of an image. One whose configuration can't be read counts: it may be.
    pub(super) fn users(&self, id: Sha256) -> Result<Vec<String>, StoreError> {
        let mut users = self.containers()?;
        users.retain(|name| {
            let config = self.config(name).ok().filter(|text| is_json(text.as_bytes()));
            config.is_none_or(|text| needed_by(text.as_bytes()).is_some_and(|image| image == id.to_string()))
        });
        Ok(users)
    }

    fn write_config(&self, dir: &Dir, config: &[u8]) -> io::Result<()> {
        dir.write_readable(CONFIG, config)?;
        match self.owner {
            Some((uid, gid)) => dir.chown(CONFIG, uid, gid),
            None => Ok(()),
        }
    }
}

/// Names are checked by whoever grants them; here only what could lead elsewhere is refused.
fn checked(name: &str) -> Result<(), StoreError> {
    let good = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\0']) && name.len() < 256;
    if good { Ok(()) } else { Err(StoreError::BadName(crate::path::shown(name.as_bytes()))) }
}

fn is_json(config: &[u8]) -> bool {
    serde_json::from_slice::<serde::de::IgnoredAny>(config).is_ok()
}

/// The image that a configuration names.
/// The image without which the container can't be.
fn needed_by(config: &[u8]) -> Option<String> {
    let config: serde_json::Value = serde_json::from_slice(config).ok()?;
    let is_copy = config.get(ROOT).is_some_and(|root| root == COPY);
    Some(config.get(IMAGE)?.as_str()?.to_owned()).filter(|_| !is_copy)
}

/// Makes `upper` and `work` for an overlay over the image's files `rootfs`, as root of the container's storage namespace.
///
/// # Errors
/// Those of `mkdirat(2)`, `fchmod(2)` and `fstat(2)`.
pub fn make_layers(container: &Dir, rootfs: &Dir) -> io::Result<()> {
    container.make_dir("upper", 0o700)?;
    // The root of the merged tree has the attributes of the upper layer's.
    container.chmod("upper", rustix::fs::fstat(rootfs)?.st_mode & 0o7777)?;
    container.make_dir("work", 0o700)
}
