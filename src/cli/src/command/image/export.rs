//! `cgrant image export`: an image becomes a file.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io,
    path::{Path, PathBuf},
};

use cgrant_image::{Exported, Form, Limits, archive::Compression};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::resolve;
use crate::{
    Client,
    args::{ExportArgs, Format},
    error::Failure,
    output::{self, bytes},
    progress::Display,
    storage::{self, Storage, Worker},
};

/// What was written, as it crosses from the process that wrote it.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::command) struct Written {
    sha256: String,
    size: u64,
}

impl From<Exported> for Written {
    fn from(exported: Exported) -> Self {
        Self { sha256: exported.sha256.to_string(), size: exported.size }
    }
}

impl Written {
    /// Says where it is and what it is: first to who watches, then as the result.
    pub(in crate::command) fn show(
        self,
        client: &Client,
        file: &Path,
        mut display: Display,
    ) -> Result<(), Failure> {
        let Self { sha256, size } = self;
        display.say(&format!("{}: {}", file.display(), bytes(size)));
        drop(display);
        match client.format {
            Format::Json => {
                output::write(output::json(&json!({ "sha256": sha256, "size": size }))?.as_bytes())
            }
            Format::Table => output::write(format!("{sha256}\n").as_bytes()),
        }
    }
}

/// The file could not be written.
pub(in crate::command) fn unwritten(doing: &str, file: &Path, error: &io::Error) -> Failure {
    let text = format!("{} could not be written: {error}", file.display());
    Failure::work(doing, storage::JobFailure::machine(text))
}

pub(super) fn export(client: &Client, args: ExportArgs) -> Result<(), Failure> {
    let ExportArgs { image, file, plain, telling } = args;
    let doing = format!("export {image}");
    let compression = compression(&file)?;
    let store = storage::store()?;
    let id = resolve(&store, &image, &doing)?;
    let unwritten = |error: &io::Error| unwritten(&doing, &file, error);
    let partial = Partial::new(&file).map_err(|error| unwritten(&error))?;
    let output = partial.file.try_clone().map_err(|error| unwritten(&error))?;
    let storage = Storage::begin(&doing, move |worker: &Worker| {
        let image = worker.store.image(&id.to_string())?;
        let rootfs = worker.store.rootfs(id)?;
        let metadata = image.about.metadata(image.created);
        let form = if plain { Form::Plain } else { Form::Unified(&metadata) };
        let limits = Limits::default();
        let mut watch = worker.watch();
        let exported = cgrant_image::export(
            &rootfs,
            form,
            compression,
            io::BufWriter::new(&output),
            &limits,
            &mut watch,
        )?;
        Ok(Written::from(exported))
    })?;
    let session = client.connect(&doing)?;
    let mut display = Display::new(telling.quiet);
    let written = storage.run(&session, storage::IMAGES, storage::IMAGES, &mut |told| display.tell(told))?;
    partial.finish(&file).map_err(|error| unwritten(&error))?;
    written.show(client, &file, display)
}

/// How a file of this name is compressed.
pub(in crate::command) fn compression(file: &Path) -> Result<Compression, Failure> {
    let name = file.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    const ENDINGS: [(&str, Compression); 7] = [
        (".tar", Compression::None),
        (".tar.gz", Compression::Gzip),
        (".tgz", Compression::Gzip),
        (".tar.xz", Compression::Xz),
        (".txz", Compression::Xz),
        (".tar.zst", Compression::Zstd),
        (".tzst", Compression::Zstd),
    ];
    let known = ENDINGS.iter().find(|(ending, _)| name.ends_with(ending));
    known.map(|(_, compression)| *compression).ok_or_else(|| {
        Failure::Usage(format!(
            "{}: the file's name says how it is compressed: .tar, .tar.gz, .tar.xz or .tar.zst",
            file.display()
        ))
    })
}

/// A file that is not whole yet, beside the one that it becomes. Dropped, it is removed.
#[derive(Debug)]
pub(in crate::command) struct Partial {
    file: File,
    path: PathBuf,
}

impl Partial {
    pub(in crate::command) fn new(whole: &Path) -> io::Result<Self> {
        let name = whole.file_name().unwrap_or_default();
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{:016x}", cgrant_sys::process::random_u64()?));
        let path = whole.with_file_name::<&OsStr>(&hidden);
        let file = File::options().write(true).create_new(true).open(&path)?;
        Ok(Self { file, path })
    }

    /// What is written to.
    pub(in crate::command) fn file(&self) -> &File {
        &self.file
    }

    pub(in crate::command) fn finish(&self, whole: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        std::fs::rename(&self.path, whole)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After `finish` it is not there.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_files_name_says_how_it_is_compressed() {
        assert_eq!(compression(Path::new("a/x.TAR.ZST")).unwrap(), Compression::Zstd);
        assert_eq!(compression(Path::new("x.tgz")).unwrap(), Compression::Gzip);
        assert_eq!(compression(Path::new("x.tar")).unwrap(), Compression::None);
        for bad in ["x", "x.zip", "x.tar.bz2", "/", "x.zst"] {
            assert!(compression(Path::new(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_not_whole_is_not_left() {
        let directory = tempfile::tempdir().unwrap();
        let whole = directory.path().join("x.tar");
        std::fs::write(&whole, "old").unwrap();
        drop(Partial::new(&whole).unwrap());
        assert_eq!(std::fs::read_to_string(&whole).unwrap(), "old");
        let partial = Partial::new(&whole).unwrap();
        partial.finish(&whole).unwrap();
        drop(partial);
        assert_eq!(std::fs::read_to_string(&whole).unwrap(), "");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
