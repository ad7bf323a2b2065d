//! `cgrant image build` and `import`: something becomes an image.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, IsTerminal, Seek},
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    },
    path::Path,
};

use cgrant_image::{
    Image, Imported, Limits, Omissions, Sha256, Source,
    build::{self, BadRecipe, Recipe},
    describe_built,
    fetch::{FetchOptions, Url, fetch_file},
    simplestreams, spool,
    store::Alias,
};
use cgrant_sys::Dir;
use rustix::{
    fs::{Mode, OFlags},
    system::uname,
};
use serde::{Deserialize, Serialize};

use super::short;
use crate::{
    Client,
    args::{BuildArgs, Format, ImportArgs},
    error::Failure,
    exit,
    output::{self, bytes},
    progress::Display,
    storage::{self, JobFailure, Storage, Worker},
};

/// The source that is no name.
const STANDARD_INPUT: &str = "-";

/// What was made, as it crosses from the process that made it.
#[derive(Debug, Serialize, Deserialize)]
struct Made {
    image: Image,
    /// Names that were other images' before, with these.
    taken: Vec<(String, Sha256)>,
    /// The first things that were left out, for people.
    left_out: Vec<String>,
    left_out_count: u64,
}

pub(super) fn build(client: &Client, args: BuildArgs) -> Result<(), Failure> {
    let BuildArgs { name, mirror, components, packages, minimal, architecture, aliases, telling } = args;
    let doing = format!("build {name}");
    let bad = |error: BadRecipe| Failure::work(&doing, error.into());
    let mut recipe = Recipe::new(&name, &packages).map_err(bad)?;
    let mirror = mirror.or_else(|| recipe.mirror_of_machine(Path::new("/etc/apt")));
    recipe = recipe.mirror(mirror).components(&components).map_err(bad)?;
    if minimal {
        recipe = recipe.minimal();
    }
    if let Some(architecture) = &architecture {
        recipe = recipe.architecture(architecture).map_err(bad)?;
    }
    let aliases = match aliases.is_empty() {
        true => vec![
            name.parse()
                .map_err(|error: cgrant_image::store::BadAlias| Failure::work(&doing, error.into()))?,
        ],
        false => aliases,
    };
    let storage = Storage::begin(&doing, move |worker: &Worker| {
        let new = worker.store.begin_image()?;
        let mut watch = worker.watch();
        build::build(new.dir(), &recipe, &mut |line| worker.line(line), &mut watch)?;
        let imported = describe_built(new.dir(), &Limits::default(), &mut watch)?;
        finish(worker, new, imported, &recipe.source(), &aliases)
    })?;
    made(client, &doing, storage, telling.quiet)
}

/// Where the files of an image come from.
#[derive(Debug)]
enum Given {
    Directory(Dir),
    Archive(Piece),
    Split(Piece, Piece),
    Server { server: Url, name: String, architecture: String },
}

/// One archive.
#[derive(Debug)]
enum Piece {
    Here(File),
    /// From a program, as it comes.
    Stream(File),
    There(Url),
}

pub(super) fn import(client: &Client, args: ImportArgs) -> Result<(), Failure> {
    let ImportArgs { source, rootfs, sha256, server, architecture, aliases, telling } = args;
    let shown = source.to_string_lossy().into_owned();
    let doing = format!("import {shown}");
    let origin = match &server {
        Some(server) => format!("{shown} of {server}"),
        None => shown.clone(),
    };
    let given = match (server, rootfs) {
        (Some(server), _) => {
            let machine = || uname().machine().to_string_lossy().into_owned();
            Given::Server { server, name: shown, architecture: architecture.unwrap_or_else(machine) }
        }
        (None, Some(rootfs)) => Given::Split(piece(&source, &doing)?, piece(&rootfs, &doing)?),
        (None, None) => one(&source, &doing)?,
    };
    let storage = Storage::begin(&doing, move |worker: &Worker| {
        let new = worker.store.begin_image()?;
        let mut watch = worker.watch();
        let limits = Limits::default();
        let source = source_of(given, worker.account, new.dir(), &limits, &mut watch)?;
        let imported = cgrant_image::import(new.dir(), source, sha256, &limits, &mut watch)?;
        finish(worker, new, imported, &origin, &aliases)
    })?;
    made(client, &doing, storage, telling.quiet)
}

fn source_of(
    given: Given,
    account: (u32, u32),
    dir: &Dir,
    limits: &Limits,
    watch: &mut dyn FnMut(cgrant_image::Progress),
) -> Result<Source, JobFailure> {
    let options = FetchOptions::default();
    let mut file = |piece: Piece| match piece {
        Piece::Here(file) => Ok::<_, JobFailure>(file),
        Piece::Stream(stream) => Ok(spool(dir, stream, limits, watch)?),
        Piece::There(url) => Ok(fetch_file(dir, limits.keep_free, &url, &options, watch)?.0),
    };
    Ok(match given {
        // What belongs to the account itself is root's in the image.
        Given::Directory(directory) => Source::Directory(directory, Some(account)),
        Given::Archive(archive) => Source::Archive(file(archive)?),
        Given::Split(meta, rootfs) => Source::Split { meta: file(meta)?, rootfs: file(rootfs)? },
        Given::Server { server, name, architecture } => {
            let choice = simplestreams::choose(&server, &name, &architecture, &options, watch)?;
            simplestreams::download(dir, limits.keep_free, &choice, &options, watch)?
        }
    })
}

/// What is named by one word.
fn one(source: &OsStr, doing: &str) -> Result<Given, Failure> {
    if source == STANDARD_INPUT {
        return standard_input(doing).map(Given::Archive);
    }
    if !is_url(source) && Path::new(source).is_dir() {
        // By links too: the path is the user's own.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(source, flags, Mode::empty());
        let directory = opened.map_err(io::Error::from).and_then(Dir::from_fd);
        return directory.map(Given::Directory).map_err(|error| unreadable(doing, &error));
    }
    piece(source, doing).map(Given::Archive)
}

/// What a program pipes into this one, or a file that it was given as standard input.
fn standard_input(doing: &str) -> Result<Piece, Failure> {
    let input = io::stdin();
    if input.is_terminal() {
        return Err(Failure::Usage("standard input is a terminal: pipe an archive into it".to_owned()));
    }
    let open = || -> io::Result<Piece> {
        let mut file = File::from(input.as_fd().try_clone_to_owned()?);
        // What was read of it before is no part of the archive; a file that was not is read where it lies.
        let is_whole = file.metadata()?.is_file() && file.stream_position()? == 0;
        Ok(if is_whole { Piece::Here(file) } else { Piece::Stream(file) })
    };
    open().map_err(|error| unreadable(doing, &error))
}

fn piece(source: &OsStr, doing: &str) -> Result<Piece, Failure> {
    if source == STANDARD_INPUT {
        return Err(Failure::Usage(
            "standard input holds one archive: name both of a split image".to_owned(),
        ));
    }
    if is_url(source) {
        let url = source.to_string_lossy().parse::<Url>();
        return url
            .map(Piece::There)
            .map_err(|error| Failure::work(doing, JobFailure::of(&error, exit::USAGE)));
    }
    // A named pipe would wait for its other end.
    let flags = (OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY).bits().cast_signed();
    let file = File::options().read(true).custom_flags(flags).open(Path::new(source));
    let file = file.and_then(|file| Ok((file.metadata()?.is_file(), file)));
    match file {
        Ok((true, file)) => Ok(Piece::Here(file)),
        Ok((false, _)) => Err(unfit(doing, "it is neither a directory nor a file")),
        Err(error) => Err(unreadable(doing, &error)),
    }
}

/// `scheme://…`. A file of such a name is `./scheme://…`.
fn is_url(source: &OsStr) -> bool {
    let bytes = source.as_bytes();
    let scheme = bytes.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
    scheme > 0 && bytes.get(scheme..).is_some_and(|rest| rest.starts_with(b"://"))
}

fn unreadable(doing: &str, error: &io::Error) -> Failure {
    unfit(doing, &error.to_string())
}

fn unfit(doing: &str, text: &str) -> Failure {
    Failure::work(doing, JobFailure { text: text.to_owned(), code: exit::SOURCE })
}

fn finish(
    worker: &Worker,
    new: cgrant_image::store::Unfinished,
    imported: Imported,
    origin: &str,
    aliases: &[Alias],
) -> Result<Made, JobFailure> {
    let Omissions { count, first } = &imported.omissions;
    let (left_out_count, left_out) =
        (*count, first.iter().take(TOLD).map(|(path, what)| format!("{path} ({what})")).collect());
    let names = worker.store.aliases()?;
    let owner = |alias: &Alias| Some((alias.to_string(), *names.get(alias.as_str())?));
    let taken = aliases.iter().filter_map(owner).filter(|(_, id)| *id != imported.id).collect();
    let image = worker.store.finish_image(new, imported, origin, aliases)?;
    Ok(Made { image, taken, left_out, left_out_count })
}

/// How many of the things that were left out are named.
const TOLD: usize = 5;

fn made(client: &Client, doing: &str, storage: Storage<Made>, quiet: bool) -> Result<(), Failure> {
    let session = client.connect(doing)?;
    let mut display = Display::new(quiet);
    let Made { image, taken, left_out, left_out_count } =
        storage.run(&session, storage::IMAGES, storage::IMAGES, &mut |told| display.tell(told))?;
    if left_out_count > 0 {
        let more = if left_out_count > left_out.len() as u64 { " …" } else { "" };
        display.say(&format!("left out: {left_out_count}: {}{more}", left_out.join(", ")));
    }
    for (name, id) in taken {
        display.say(&format!("`{name}` was a name of the image {} until now", short(id)));
    }
    display.say(&format!("{} files, {}", image.entries, bytes(image.bytes)));
    drop(display);
    print(client, &image)
}

/// The whole of it for programs; for people and shells its id.
fn print(client: &Client, image: &Image) -> Result<(), Failure> {
    let id: Sha256 = image.id;
    match client.format {
        Format::Json => output::write(output::json(image)?.as_bytes()),
        Format::Table => output::write(format!("{id}\n").as_bytes()),
    }
}
