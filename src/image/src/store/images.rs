//! The images of a store.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::time::{SystemTime, UNIX_EPOCH};

use cgrant_sys::Dir;

use super::alias::is_id_prefix;
use super::{Alias, Locked, Store, StoreError, Unfinished, lock, unfinished, used};
use crate::digest::Sha256;
use crate::image::{FORMAT, Image};
use crate::import::{ASIDE, Imported, ROOTFS};
use crate::remove::remove_tree;

const ALIASES: &str = "aliases.json";
const DESCRIPTION: &str = "image.json";
/// Largest description and largest list of names, in bytes.
const MAX_JSON: usize = 1 << 20;

/// An image of a list, which one that can't be used does not keep from the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    /// It can be used.
    Whole(Image),
    /// It can't.
    Damaged {
        /// Its id.
        id: Sha256,
        /// What is wrong with it, in one sentence.
        why: String,
    },
}

impl Listed {
    /// The image's id.
    pub fn id(&self) -> Sha256 {
        match self {
            Self::Whole(image) => image.id,
            Self::Damaged { id, .. } => *id,
        }
    }
}

impl Store {
    /// A directory in which an image is made, as root of the storage namespace.
    ///
    /// # Errors
    /// [`StoreError::Use`].
    pub fn begin_image(&self) -> Result<Unfinished, StoreError> {
        Unfinished::new(&self.images).map_err(|source| used("images", source))
    }

    /// Puts an image that was made into the store, under these names too. `source`: where it came from, for people.
    /// An image that was there already stays as it is, and gets the names.
    ///
    /// # Errors
    /// [`StoreError`]; the image is removed then.
    pub fn finish_image(
        &self,
        new: Unfinished,
        imported: Imported,
        source: &str,
        aliases: &[Alias],
    ) -> Result<Image, StoreError> {
        let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let image = Image {
            format: FORMAT,
            id: imported.id,
            about: imported.about,
            source: source.chars().filter(|letter| !letter.is_control()).take(500).collect(),
            created,
            entries: imported.entries,
            bytes: imported.bytes,
            left_out: imported.omissions.count,
        };
        let id = image.id.to_string();
        if !aliases.is_empty() {
            // What can't be named is not kept.
            self.aliases()?;
        }
        self.describe(&new, &image).and_then(|()| new.sync()).map_err(|source| used(&id, source))?;
        match new.finish(OsStr::new(&id)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
            result => result.and_then(|()| self.images.sync()).map_err(|source| used(&id, source))?,
        }
        self.name(image.id, aliases)?;
        self.read(&id)
    }

    fn describe(&self, new: &Unfinished, image: &Image) -> io::Result<()> {
        let dir = new.dir();
        dir.write_readable(DESCRIPTION, &serde_json::to_vec_pretty(image)?)?;
        if let Some((uid, gid)) = self.owner {
            dir.chown(DESCRIPTION, uid, gid)?;
            dir.chown("", uid, gid)?;
        }
        dir.chmod("", 0o755)
    }

    /// All images, by their ids.
    ///
    /// # Errors
    /// [`StoreError::Use`] if they can't even be counted.
    pub fn images(&self) -> Result<Vec<Listed>, StoreError> {
        let mut ids: Vec<Sha256> = self.ids()?.iter().filter_map(|id| id.parse().ok()).collect();
        ids.sort();
        Ok(ids.into_iter().map(|id| self.look_at(id)).collect())
    }

    fn look_at(&self, id: Sha256) -> Listed {
        let name = id.to_string();
        let damaged = |why: &str| Listed::Damaged { id, why: why.to_owned() };
        match (self.read(&name), self.rootfs(id)) {
            (Ok(_), Err(_)) => damaged("its files can't be opened"),
            (Ok(image), Ok(_)) => Listed::Whole(image),
            (Err(StoreError::UnknownImage(_)), _) => damaged("it has no description"),
            (Err(StoreError::Damaged(_)), _) => damaged("its description is not what was written there"),
            (Err(_), _) => damaged("its description can't be read"),
        }
    }

    /// The image of this alias, of this id, or of the one id that begins so (8 digits at least).
    ///
    /// # Errors
    /// [`StoreError::UnknownImage`], [`StoreError::Ambiguous`], and those of reading it.
    pub fn image(&self, name: &str) -> Result<Image, StoreError> {
        self.read(&self.resolve(name)?.to_string())
    }

    /// The id of that image, whether its description can be read or not.
    ///
    /// # Errors
    /// [`StoreError::UnknownImage`], [`StoreError::Ambiguous`], and those of reading the names.
    pub fn resolve(&self, name: &str) -> Result<Sha256, StoreError> {
        let prefix = name.to_ascii_lowercase();
        if !is_id_prefix(&prefix) {
            let unknown = || StoreError::UnknownImage(crate::path::shown(name.as_bytes()));
            return self.aliases()?.get(name).copied().ok_or_else(unknown);
        }
        let ids = self.ids()?;
        let mut found = ids.iter().filter(|id| id.starts_with(&prefix));
        match (found.next(), found.next()) {
            (Some(id), None) => id.parse().map_err(|_| StoreError::UnknownImage(prefix)),
            (Some(_), Some(_)) => Err(StoreError::Ambiguous(prefix)),
            (None, _) => Err(StoreError::UnknownImage(prefix)),
        }
    }

    /// The files of an image.
    ///
    /// # Errors
    /// [`StoreError::Use`].
    pub fn rootfs(&self, id: Sha256) -> Result<Dir, StoreError> {
        let id = id.to_string();
        self.images.open_below(&[&id, ROOTFS]).map_err(|source| used(&format!("{id}/{ROOTFS}"), source))
    }

    /// All names with the images that they mean.
    ///
    /// # Errors
    /// [`StoreError::DamagedNames`], [`StoreError::Use`].
    pub fn aliases(&self) -> Result<BTreeMap<String, Sha256>, StoreError> {
        match self.images.read(ALIASES, MAX_JSON) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(used(ALIASES, error)),
            Ok(text) => serde_json::from_str(&text).map_err(|_| StoreError::DamagedNames),
        }
    }

    /// Gives an image names; those that were another image's are its now.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn name(&self, id: Sha256, aliases: &[Alias]) -> Result<(), StoreError> {
        if aliases.is_empty() {
            return Ok(());
        }
        self.change_aliases(|names| {
            names.extend(aliases.iter().map(|alias| (alias.as_str().to_owned(), id)));
        })
    }

    /// Takes a name away; the image stays. Says whether there was one.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn unname(&self, alias: &Alias) -> Result<bool, StoreError> {
        let mut was = false;
        self.change_aliases(|names| was = names.remove(alias.as_str()).is_some())?;
        Ok(was)
    }

    fn change_aliases(&self, change: impl FnOnce(&mut BTreeMap<String, Sha256>)) -> Result<(), StoreError> {
        let locked = lock(&self.images).map_err(|source| used(ALIASES, source))?;
        self.change_locked(&locked, change)
    }

    fn change_locked(
        &self,
        _: &Locked,
        change: impl FnOnce(&mut BTreeMap<String, Sha256>),
    ) -> Result<(), StoreError> {
        let mut names = self.aliases()?;
        change(&mut names);
        let write = || -> io::Result<()> {
            let bytes = serde_json::to_vec_pretty(&names)?;
            self.images.write_readable(ALIASES, &bytes)?;
            match self.owner {
                Some((uid, gid)) => self.images.chown(ALIASES, uid, gid),
                None => Ok(()),
            }
        };
        write().map_err(|source| used(ALIASES, source))
    }

    /// Removes an image and its names, as root of the storage namespace.
    ///
    /// # Errors
    /// [`StoreError::InUse`] while a container is made of it; [`StoreError::Use`].
    pub fn remove_image(&self, id: Sha256) -> Result<(), StoreError> {
        let name = id.to_string();
        let aside = self.put_image_aside(id, &name)?;
        remove_tree(&self.images, &aside, ASIDE).map_err(|source| used(&name, source))
    }

    /// Under the lock: no container is made of it from here on.
    fn put_image_aside(&self, id: Sha256, name: &str) -> Result<OsString, StoreError> {
        let locked = lock(&self.images).map_err(|source| used(name, source))?;
        let containers = self.users(id)?;
        if !containers.is_empty() {
            return Err(StoreError::InUse { id, containers });
        }
        // Before anything is done.
        self.aliases()?;
        let aside = match unfinished::put_aside(&self.images, OsStr::new(name)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::UnknownImage(name.to_owned()));
            }
            result => result.map_err(|source| used(name, source))?,
        };
        self.change_locked(&locked, |names| names.retain(|_, named| *named != id))?;
        Ok(aside)
    }

    fn ids(&self) -> Result<Vec<String>, StoreError> {
        let reading = crate::walk::reopen(&self.images).and_then(|images| images.entries());
        let entries = reading.map_err(|source| used("images", source))?;
        let names = entries.into_iter().filter_map(|entry| entry.name.into_string().ok());
        Ok(names.filter(|name| name.len() == 64 && is_id_prefix(name)).collect())
    }

    fn read(&self, id: &str) -> Result<Image, StoreError> {
        let what = || format!("{id}/{DESCRIPTION}");
        match self.images.read_below(&[id, DESCRIPTION], MAX_JSON) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(StoreError::UnknownImage(id.to_owned()))
            }
            Err(error) => Err(used(&what(), error)),
            Ok(text) => serde_json::from_str(&text).map_err(|_| StoreError::Damaged(what())),
        }
    }
}
