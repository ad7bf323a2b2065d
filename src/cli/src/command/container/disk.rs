//! `cgrant usage --disk` and `cgrant info --disk`: what images and containers take on their disk.
//!
//! Their files belong to ids of ranges, and many directories in them are closed to everybody else. So a job in the storage namespace
//! of images looks, at low priority. Containers, those that run too, are shown to it by read-only mounts of the broker's, in which
//! their ids are the job's.

use std::{
    cell::Cell,
    collections::HashMap,
    error::Error as _,
    io::{self, Read, Write},
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use cgrant_container::{Session, SessionError};
use cgrant_image::{
    DiskUsage, Limits, WalkError, disk_usage,
    store::{Store, StoreError},
};
use cgrant_proto::MapDirectory;
use cgrant_sys::{Channel, Clone3, Dir};
use nix::sched::CloneFlags;
use rustix::process::{fchdir, getpid, nice};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zbus::{Fd, OwnedObjectPath};

use super::{Found, config::Config, layered};
use crate::{
    Client,
    args::Format,
    error::Failure,
    exit,
    output::{self, List, bytes},
    storage::{self, Storage, Told, Worker, end_with},
};

const DOING: &str = "measure the disk use";
/// How far it stands back for others.
const NICE: i32 = 15;

/// A container that is to be looked at.
#[derive(Debug)]
struct Kept {
    name: String,
    /// Where the files are that belong to it alone.
    directory: &'static str,
    range: String,
}

/// An image or a container, and what it takes, or why nobody knows.
#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    kind: String,
    name: String,
    usage: Result<DiskUsage, String>,
}

/// What the account's images and containers take.
pub(crate) fn disk(client: &Client) -> Result<u8, Failure> {
    let store = storage::store()?;
    let failed = |error: StoreError| Failure::work(DOING, error.into());
    let kept = kept(&store).map_err(failed)?;
    let all = match kept.is_empty() && store.images().map_err(failed)?.is_empty() {
        true => Vec::new(),
        false => measured(client, DOING, kept, images)?,
    };
    show(client, &all)?;
    Ok(exit::DONE)
}

/// What the files of one container take, or why nobody knows.
pub(super) fn of(client: &Client, found: &Found) -> Result<Result<DiskUsage, String>, Failure> {
    let kept = vec![Kept {
        name: found.name.clone(),
        directory: found.config.root.directory(),
        range: found.config.range.clone(),
    }];
    let all = measured(client, &found.doing, kept, |_| Ok(Vec::new()))?;
    let nothing = || Err("nothing was measured".to_owned());
    Ok(all.into_iter().next().map_or_else(nothing, |measured| measured.usage))
}

/// Looks at the files of containers, and before at what else the job is told to.
fn measured(
    client: &Client,
    doing: &str,
    kept: Vec<Kept>,
    others: impl FnOnce(&Store) -> Result<Vec<Measured>, StoreError>,
) -> Result<Vec<Measured>, Failure> {
    let ranges: HashMap<String, String> =
        kept.iter().map(|kept| (kept.name.clone(), kept.range.clone())).collect();
    let (near, far) = layered::pair()?;
    let storage = Storage::begin(doing, move |worker: &Worker| {
        // Less haste is no reason to fail.
        let _ = nice(NICE);
        let mut all = others(&worker.store)?;
        all.extend(kept.iter().map(|kept| {
            let usage = container(worker, &far, kept);
            Measured { kind: "container".to_owned(), name: kept.name.clone(), usage }
        }));
        Ok(all)
    })?;
    let session = client.connect(doing)?;
    let running = storage.start_tidying(&session, storage::IMAGES, storage::IMAGES, storage::IDS)?;
    let grant = running.grant().clone();
    running.wait(&mut |told| {
        if matches!(told, Told::Asks) {
            answer(&near, &session, &grant, &ranges);
        }
    })
}

fn kept(store: &Store) -> Result<Vec<Kept>, StoreError> {
    let names = store.containers()?.into_iter();
    let kept = names.filter_map(|name| {
        let config = Config::read(store, &name).ok()?;
        Some(Kept { name, directory: config.root.directory(), range: config.range })
    });
    Ok(kept.collect())
}

fn show(client: &Client, all: &[Measured]) -> Result<(), Failure> {
    let mut total = DiskUsage::default();
    all.iter().filter_map(|measured| measured.usage.as_ref().ok()).for_each(|usage| total += *usage);
    match client.format {
        Format::Json => {
            let rows: Vec<Value> = all
                .iter()
                .map(|Measured { kind, name, usage }| match usage {
                    Ok(usage) => {
                        json!({ "kind": kind, "name": name, "bytes": usage.bytes, "files": usage.files })
                    }
                    Err(why) => json!({ "kind": kind, "name": name, "unknown": why }),
                })
                .collect();
            let all = json!({ "rows": rows, "bytes": total.bytes, "files": total.files });
            output::write(output::json(&all)?.as_bytes())
        }
        Format::Table => {
            let row = |kind: &str, name: &str, usage: &Result<DiskUsage, String>| match usage {
                Ok(usage) => {
                    json!({ "kind": kind, "name": name, "size": bytes(usage.bytes), "files": usage.files })
                }
                Err(why) => json!({ "kind": kind, "name": name, "size": format!("unknown: {why}") }),
            };
            let rows = all.iter().map(|measured| row(&measured.kind, &measured.name, &measured.usage));
            let rows = rows.chain([row("total", "", &Ok(total))]);
            output::print(client.format, &List::new(&["KIND", "NAME", "SIZE", "FILES"], rows))
        }
    }
}

fn images(store: &Store) -> Result<Vec<Measured>, StoreError> {
    let aliases = store.aliases()?;
    let images = store.images()?.into_iter().map(|listed| {
        let id = listed.id();
        let alias = aliases.iter().find(|(_, named)| **named == id).map(|(alias, _)| alias.clone());
        let name = alias.unwrap_or_else(|| id.to_string());
        let usage = match store.rootfs(id) {
            Ok(files) => disk_usage(&files, &Limits::default()).map_err(|error| unknown(&error)),
            Err(error) => Err(error.to_string()),
        };
        Measured { kind: "image".to_owned(), name, usage }
    });
    Ok(images.collect())
}

fn unknown(error: &WalkError) -> String {
    error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// In the job: a child, in a mount namespace of its own, has the container's files shown, and counts.
fn container(worker: &Worker, channel: &Channel, kept: &Kept) -> Result<DiskUsage, String> {
    let why = |error: io::Error| error.to_string();
    let directory = worker.store.container(&kept.name).map_err(|error| error.to_string())?;
    // A directory of this mount namespace is of no use in the child's, but the working directory goes along.
    fchdir(&directory).map_err(|errno| why(errno.into()))?;
    let (mut told, tell) = io::pipe().map_err(why)?;
    let tell = Cell::new(Some(tell));
    let parent = getpid();
    let main = || {
        let ended = end_with(parent).map_err(|error| error.to_string());
        let found = ended.and_then(|()| counted(worker, channel, kept));
        let text = serde_json::to_vec(&found).unwrap_or_default();
        i32::from(tell.take().is_none_or(|mut tell| tell.write_all(&text).is_err()))
    };
    let child = Clone3::new().flags(CloneFlags::CLONE_NEWNS).spawn(main).map_err(why)?;
    drop(tell.take());
    let mut text = Vec::new();
    told.read_to_end(&mut text).map_err(why)?;
    child.pidfd.wait().map_err(why)?;
    let died = || "a process that looked at its files was killed".to_owned();
    serde_json::from_slice::<Result<DiskUsage, String>>(&text).unwrap_or_else(|_| Err(died()))
}

fn counted(worker: &Worker, channel: &Channel, kept: &Kept) -> Result<DiskUsage, String> {
    let mount: OwnedFd = layered::shown(worker, channel, Path::new(kept.directory), kept.name.as_bytes())?;
    let files = Dir::from_fd(mount).map_err(|error| error.to_string())?;
    disk_usage(&files, &Limits::default()).map_err(|error| unknown(&error))
}

/// Outside: has the broker map what the job's child shows, whose files belong to the container's range; or says why not.
fn answer(channel: &Channel, session: &Session, grant: &OwnedObjectPath, ranges: &HashMap<String, String>) {
    // Without an answer the child is told by the end of the channel.
    let Ok(Some(received)) = channel.receive() else { return };
    let name = String::from_utf8_lossy(&received.bytes).into_owned();
    let (Ok([mounts, directory]), Some(range)) = (<[OwnedFd; 2]>::try_from(received.fds), ranges.get(&name))
    else {
        let _ = channel.send(b"it was not asked for as it should be", &[]);
        return;
    };
    let options = MapDirectory::new().from_range(range).read_only();
    let map = || -> Result<_, SessionError> {
        session.call(session.mounts(grant)?.map_directory(Fd::from(directory), Fd::from(mounts), &options))
    };
    let _ = match map() {
        Ok(mount) => channel.send(layered::MAPPED, &[mount.as_fd()]),
        Err(error) => channel.send(error.to_string().as_bytes(), &[]),
    };
}
