//! Reading, writing and listing the files of a cgroup2 cgroup by the names of v1, and by its own.
//!
//! Whatever is read or written instead of a file of v1's, its own bits decide.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use cgrant_sys::Dir;
use rustix::{fs::OFlags, io::Errno};

use super::{
    super::{
        actor::Access,
        call::{Call, stat},
        controllers::v1_name,
        fault::Fault,
        key::is_written,
        translate::{Step, Translation, Unwritten, translations, why_lost},
        values::{read_all, write_all},
    },
    leaf,
};
use crate::cgroup::{Hierarchy, is_missing};

const PROCS: &str = "cgroup.procs";
const THREADS: &str = "cgroup.threads";
const TASKS: &str = "tasks";
/// Longest list of controllers, in bytes.
const MAX_LIST: usize = 4096;
/// Why a file that is translated is not there though its controller is.
const ABSENT: &str = "this kernel has no such file there, or the root of the hierarchy has none";

impl Call<'_> {
    /// The content of a file by a name of v1's or of cgroup2's, without newlines at its end.
    ///
    /// # Errors
    /// As [`Call::value`].
    pub fn value_v2(&self, hierarchy: &Hierarchy, dir: &Dir, key: &str) -> Result<String, Fault> {
        match key {
            TASKS | THREADS => return self.with_leaf(dir, THREADS),
            PROCS => return self.with_leaf(dir, PROCS),
            _ => (),
        }
        for translation in translations(key) {
            if let Some(texts) = self.texts(dir, &translation)? {
                let unknown =
                    || Fault::kernel("to read a file of a cgroup")(io::ErrorKind::InvalidData.into());
                return translation.read(&texts).ok_or_else(unknown);
            }
        }
        if let Some(why) = why_lost(key) {
            return Err(Fault::NoEqual { key: key.to_owned(), why });
        }
        match self.own_text(dir, key)? {
            Some(text) => Ok(text),
            None => Err(missing(hierarchy, dir, key)),
        }
    }

    /// The processes or threads of a cgroup and of its leaf.
    fn with_leaf(&self, dir: &Dir, file: &str) -> Result<String, Fault> {
        let own = self.own_text(dir, file)?.ok_or(Fault::NoCgroup)?;
        let leaf = leaf::behind(dir).map_err(Fault::kernel("to open a cgroup"))?;
        let leafs = match leaf {
            // The bits of the cgroup's own file have decided.
            Some(leaf) => text(&leaf.open_file(file, OFlags::RDONLY | OFlags::NONBLOCK))?.unwrap_or_default(),
            None => String::new(),
        };
        Ok([own, leafs].into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>().join("\n"))
    }

    /// What stands behind a file of v1's; `None` if not all of it is there.
    fn texts(&self, dir: &Dir, translation: &Translation<'_>) -> Result<Option<Vec<String>>, Fault> {
        let mut texts = Vec::new();
        for file in translation.files() {
            match self.own_text(dir, &file)? {
                Some(text) => texts.push(text),
                None => return Ok(None),
            }
        }
        Ok(Some(texts))
    }

    /// The content of a file of cgroup2's that the requestor may read; `None` if it is not there.
    fn own_text(&self, dir: &Dir, file: &str) -> Result<Option<String>, Fault> {
        let open = dir.open_file(file, OFlags::RDONLY | OFlags::NONBLOCK);
        if let Ok(open) = &open {
            self.need_file(&stat(open.as_fd())?, Access::Read, file)?;
        }
        text(&open)
    }

    /// Writes a value into a file by a name of v1's or of cgroup2's.
    ///
    /// # Errors
    /// As [`Call::set_value`].
    pub fn set_value_v2(
        &self,
        hierarchy: &Hierarchy,
        dir: &Dir,
        key: &str,
        value: &str,
    ) -> Result<(), Fault> {
        if key == TASKS {
            return Err(Fault::Key(key.to_owned()));
        }
        for translation in translations(key) {
            let files = translation.files();
            let texts =
                files.iter().map(|file| text(&dir.open_file(file, OFlags::RDONLY | OFlags::NONBLOCK)));
            let Some(texts) = texts.collect::<Result<Option<Vec<String>>, Fault>>()? else { continue };
            let steps = translation.write(value, &texts).map_err(|unwritten| match unwritten {
                Unwritten::Value => Fault::Value(key.to_owned()),
                Unwritten::Never(why) => Fault::NoEqual { key: key.to_owned(), why },
            })?;
            return self.perform(dir, &files, &steps);
        }
        if let Some(why) = why_lost(key) {
            return Err(Fault::NoEqual { key: key.to_owned(), why });
        }
        if !is_written(key) {
            return Err(Fault::Key(key.to_owned()));
        }
        match dir.open_file(key, OFlags::WRONLY | OFlags::NONBLOCK) {
            Err(error) if is_missing(&error) => Err(missing(hierarchy, dir, key)),
            open => {
                let open = open.map_err(Fault::kernel("to write a file of a cgroup"))?;
                self.need_file(&stat(open.as_fd())?, Access::Write, key)?;
                write_all(open.as_fd(), value)
            }
        }
    }

    /// Writes one file after the other. If the kernel refuses one, those before it get back what they had.
    ///
    /// What is not to be written at all is asked for as if the first file were.
    fn perform(&self, dir: &Dir, files: &[String], steps: &[Step]) -> Result<(), Fault> {
        let refused = Fault::kernel("to write a file of a cgroup");
        let named = |at: usize| files.get(at).map(String::as_str).unwrap_or_default();
        let first = dir.open_file(named(0), OFlags::PATH).map_err(&refused)?;
        self.need_file(&stat(&first)?, Access::Write, named(0))?;
        let mut open: Vec<(OwnedFd, &Step)> = Vec::new();
        for step in steps {
            let file =
                dir.open_file(named(step.file), OFlags::WRONLY | OFlags::NONBLOCK).map_err(&refused)?;
            self.need_file(&stat(&file)?, Access::Write, named(step.file))?;
            open.push((file, step));
        }
        for (at, (file, step)) in open.iter().enumerate() {
            if let Err(fault) = write_all(file.as_fd(), &step.text) {
                for (file, step) in open.iter().take(at).rev() {
                    if let Err(error) = write_all(file.as_fd(), &step.undo) {
                        tracing::warn!(%error, "a limit could not be put back");
                    }
                }
                return Err(fault);
            }
        }
        Ok(())
    }

    /// The files whose mode is set for that of a file of v1's, or of cgroup2's own.
    ///
    /// # Errors
    /// [`Fault::NoEqual`], [`Fault::NotEnabled`].
    pub fn files_v2(&self, hierarchy: &Hierarchy, dir: &Dir, key: &str) -> Result<Vec<String>, Fault> {
        let refused = Fault::kernel("to look at a file of a cgroup");
        let is_there = |file: &String| dir.exists(file);
        for translation in translations(key) {
            let files = translation.files();
            let there = files.iter().map(is_there).collect::<Result<Vec<bool>, _>>().map_err(&refused)?;
            if there.contains(&false) {
                continue;
            }
            let own: Vec<String> = files.into_iter().take(translation.own_files()).collect();
            let why = "there is no file of its own behind it";
            return match own.is_empty() {
                true => Err(Fault::NoEqual { key: key.to_owned(), why }),
                false => Ok(own),
            };
        }
        if let Some(why) = why_lost(key) {
            return Err(Fault::NoEqual { key: key.to_owned(), why });
        }
        match dir.exists(key).map_err(refused)? {
            true => Ok(vec![key.to_owned()]),
            false => Err(missing(hierarchy, dir, key)),
        }
    }
}

/// What a file has, without newlines at its end; `None` if it is not there.
fn text(open: &io::Result<OwnedFd>) -> Result<Option<String>, Fault> {
    let refused = Fault::kernel("to read a file of a cgroup");
    let bytes = match open {
        Ok(file) => read_all(file.as_fd()),
        Err(error) if is_missing(error) => return Ok(None),
        Err(error) => Err(Errno::from_io_error(error).unwrap_or(Errno::IO).into()),
    };
    let text = match bytes {
        // One of a threaded subtree has no processes; nor what was enabled and is no more, a file.
        Err(error) if Errno::from_io_error(&error) == Some(Errno::OPNOTSUPP) => String::new(),
        other => String::from_utf8_lossy(&other.map_err(refused)?).into_owned(),
    };
    Ok(Some(text.trim_end_matches('\n').to_owned()))
}

/// Why there is no file of this name.
fn missing(hierarchy: &Hierarchy, dir: &Dir, key: &str) -> Fault {
    let file = translations(key).next().and_then(|translation| translation.files().into_iter().next());
    let controller = file.as_deref().unwrap_or(key).split('.').next().unwrap_or_default();
    let enabled = dir.read("cgroup.controllers", MAX_LIST).unwrap_or_default();
    if hierarchy.offered.iter().any(|offered| offered == controller)
        && !enabled.split_ascii_whitespace().any(|name| name == controller)
    {
        return Fault::NotEnabled(v1_name(controller).to_owned());
    }
    match file {
        Some(_) => Fault::NoEqual { key: key.to_owned(), why: ABSENT },
        None => Fault::NoCgroup,
    }
}
