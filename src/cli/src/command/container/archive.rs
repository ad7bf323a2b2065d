//! `export` and `import`: a container becomes one stream, and a container again, here or on another host.
//!
//! The stream is a tar archive: `container.json`, then the files below `rootfs/`, with owners as they are inside. Whoever
//! imports it is given ids by his own broker, so that nothing of the old host's ids is left. It is self-contained: the image
//! that a container was made of need not be where it comes to be.
//!
//! Nobody vouches for an archive. It is unpacked by what unpacks images, in the storage namespace; and what its settings would
//! have of the host (directories, devices, credentials, addresses, ports, a start with the machine) is left out unless the
//! caller says otherwise.

use std::{
    fs::File,
    io::{self, BufWriter, IsTerminal},
    os::fd::AsFd,
    path::Path,
};

use cgrant_image::{
    Form, Limits, Sha256,
    archive::Compression,
    store::{Alias, Store},
    unpack,
};
use cgrant_sys::{Dir, EntryKind};

use super::{
    Found,
    config::{Config, free_range, must_be_free},
    create::{ROOTFS, check_name},
    layered, merged,
};
use crate::{
    Client,
    args::{ContainerExport, ContainerImport},
    command::image::{Partial, Written, compression, unwritten},
    error::Failure,
    exit,
    progress::Display,
    storage::{self, JobFailure, Storage, Told, Worker},
};

/// The member that says what the container is.
const DESCRIPTION: &str = "container.json";
/// The longest that is read, in bytes.
const MAX_DESCRIPTION: usize = 1 << 20;
/// The stream that is no file.
const STANDARD: &str = "-";

pub(super) fn export(client: &Client, args: ContainerExport) -> Result<(), Failure> {
    let ContainerExport { container, file, telling } = args;
    let found = Found::new(&container, "export")?;
    found.must_not_run("stop it first")?;
    let unwritten = |error: &io::Error| unwritten(&found.doing, &file, error);
    let (partial, compression, output) = if file.as_os_str() == STANDARD {
        if io::stdout().is_terminal() {
            return Err(Failure::Usage("standard output is a terminal: give a file, or pipe it".to_owned()));
        }
        let output = io::stdout().as_fd().try_clone_to_owned().map_err(|error| unwritten(&error))?;
        (None, Compression::Zstd, File::from(output))
    } else {
        let compression = compression(&file)?;
        let partial = Partial::new(&file).map_err(|error| unwritten(&error))?;
        let output = partial.file().try_clone().map_err(|error| unwritten(&error))?;
        (Some(partial), compression, output)
    };
    let (near, far) = layered::pair()?;
    let (name, config) = (found.name.clone(), found.config.clone());
    let storage = Storage::begin(&found.doing, move |worker: &Worker| {
        let directory = worker.store.container(&name)?;
        let text = String::from_utf8_lossy(&config.bytes()).into_owned();
        let form = Form::Described(DESCRIPTION, &text);
        merged::with_files(worker, &far, &directory, (config.root, &config.image), |files| {
            let output = BufWriter::new(&output);
            let limits = Limits::default();
            let exported =
                cgrant_image::export(files, form, compression, output, &limits, &mut worker.watch())?;
            Ok(Written::from(exported))
        })
    })?;
    let session = client.connect(&found.doing)?;
    let mut display = Display::new(telling.quiet);
    // The grant has its name: nobody starts it meanwhile.
    let running = storage.start(&session, &found.name, found.range(), 0)?;
    let grant = running.grant().clone();
    let mut refused = None;
    let written = running.wait(&mut |told| match told {
        Told::Asks => refused = layered::answer(&near, &session, &grant, &found.doing).err(),
        told => display.tell(told),
    });
    let written = match refused {
        Some(failure) => return Err(failure),
        None => written?,
    };
    let Some(partial) = partial else { return Ok(()) };
    partial.finish(&file).map_err(|error| unwritten(&error))?;
    written.show(client, &file, display)
}

pub(super) fn import(client: &Client, args: ContainerImport) -> Result<(), Failure> {
    let ContainerImport { file, new: name, host_settings, telling } = args;
    let doing = format!("import the container {name:?}");
    check_name(&name)?;
    let store = storage::store()?;
    let failed = |error: cgrant_image::store::StoreError| Failure::work(&doing, error.into());
    if store.containers().map_err(failed)?.contains(&name) {
        return Err(failed(cgrant_image::store::StoreError::NameTaken(name.clone())));
    }
    let (input, size) = opened(&file)
        .map_err(|error| Failure::work(&doing, JobFailure::of(&Unreadable(error), exit::SOURCE)))?;
    let range = free_range(&store, &name).map_err(failed)?;
    let (own, taken) = (name.clone(), range.clone());
    let storage = Storage::begin(&doing, move |worker: &Worker| {
        must_be_free(&worker.store, &taken)?;
        let new = worker.store.begin_container(&own)?;
        unpack(input, size, new.dir(), &Limits::default(), &mut worker.watch())?;
        let exported = description(new.dir())?;
        let (config, left_out) =
            exported.imported(host_settings, taken, has_twin(&worker.store, &exported))?;
        config.check(&own).map_err(|failure| source(failure.line().trim_start_matches("cgrant: ")))?;
        worker.store.finish_container(new, &own, &config.bytes())?;
        Ok(left_out)
    })?;
    let session = client.connect(&doing)?;
    let mut display = Display::new(telling.quiet);
    let left_out: Vec<String> = storage.run(&session, &name, &range, &mut |told| display.tell(told))?;
    if !left_out.is_empty() {
        let list = left_out.join(", ");
        display
            .say(&format!("left out, because they are of the host ('--host-settings' takes them): {list}"));
    }
    Ok(())
}

/// What is wrong with an archive.
fn source(text: impl Into<String>) -> JobFailure {
    JobFailure { text: text.into(), code: exit::SOURCE }
}

#[derive(Debug, thiserror::Error)]
#[error("the archive can't be read: {0}")]
struct Unreadable(io::Error);

/// The archive, and how large it is if that is known.
fn opened(file: &Path) -> io::Result<(File, Option<u64>)> {
    let file = match file.as_os_str() == STANDARD {
        true => File::from(io::stdin().as_fd().try_clone_to_owned()?),
        false => File::open(file)?,
    };
    let metadata = file.metadata()?;
    if metadata.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok((file, metadata.is_file().then_some(metadata.len())))
}

/// What the archive says that the container is, which is taken out of the directory. There is nothing in it but this and the files:
/// whatever else lay there would be taken for the store's own.
fn description(new: &Dir) -> Result<Config, JobFailure> {
    let unusable = |error: io::Error| JobFailure::kernel("what was unpacked can't be used", &error);
    let mut seen: Vec<_> = new.entries().map_err(unusable)?;
    seen.sort_by(|a, b| a.name.cmp(&b.name));
    let expected = [(DESCRIPTION, EntryKind::File), (ROOTFS, EntryKind::Directory)];
    let as_expected = seen.iter().map(|entry| (entry.name.to_str(), entry.kind));
    if !as_expected.eq(expected.map(|(name, kind)| (Some(name), kind))) {
        return Err(source(format!(
            "this is no container that was exported: the archive of one holds {DESCRIPTION} and {ROOTFS}/ and nothing else; \
             'cgrant image import' makes an image of an archive of files"
        )));
    }
    let text = new.read(DESCRIPTION, MAX_DESCRIPTION);
    let text =
        text.map_err(|_| source(format!("{DESCRIPTION} in the archive is no text of at most 1 MiB")))?;
    new.remove_file(DESCRIPTION).map_err(unusable)?;
    Config::parse(&text).ok_or_else(|| {
        source(format!("{DESCRIPTION} in the archive is damaged, or of a later version of cgrant"))
    })
}

/// Is there a container here with the machine id that it has?
fn has_twin(store: &Store, exported: &Config) -> bool {
    // Whoever can't be read is taken for one: a new identity does no harm.
    store.configs().map_or(true, |configs| {
        configs
            .iter()
            .any(|(_, text)| Config::parse(text).is_some_and(|other| other.machine == exported.machine))
    })
}

impl Config {
    /// The same as a container of this host with files of this range, and what of it is left out. A twin of one that is here gets an
    /// identity of its own.
    fn imported(
        &self,
        host_settings: bool,
        range: String,
        has_twin: bool,
    ) -> Result<(Self, Vec<String>), JobFailure> {
        // These two are shown, and looked up in the store.
        if self.image.parse::<Sha256>().is_err() || self.alias.parse::<Alias>().is_err() {
            return Err(source(format!("{DESCRIPTION} in the archive names no image")));
        }
        let mut config = self.clone().copied();
        config.range = range;
        config = config.without_blocks();
        if has_twin {
            config = config
                .copy(self.hostname.clone(), config.range.clone())
                .map_err(|failure| JobFailure::machine(failure.line()))?;
        }
        let left_out = if host_settings { Vec::new() } else { config.leave_out_host() };
        Ok((config, left_out))
    }
}
