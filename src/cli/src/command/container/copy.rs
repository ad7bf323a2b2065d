//! `copy`: a container that is as another one, with ids and an identity of its own.
//!
//! What the other one changed of its image's files is read in its storage namespace and made anew in the copy's: the grant with
//! its name keeps it from being started meanwhile. What no two of them may share is made at the copy's first start.

use std::io;

use cgrant_image::{Limits, Sha256, accept, offer, store::make_layers};
use cgrant_sys::seqpacket;

use super::{
    Found,
    config::{Root, free_range, hostname_of, must_be_free},
    create::{ROOTFS, check_name, hand_over},
};
use crate::{
    Client,
    error::Failure,
    progress::Display,
    storage::{JobFailure, Storage, Worker},
};

pub(super) fn copy(client: &Client, name: &str, new: &str, hostname: Option<String>) -> Result<(), Failure> {
    let found = Found::new(name, "copy")?;
    check_name(new)?;
    if found.store.containers().map_err(|error| found.failed(error))?.iter().any(|name| name == new) {
        return Err(found.failed(cgrant_image::store::StoreError::NameTaken(new.to_owned())));
    }
    found.must_not_run("stop it first")?;
    let range = free_range(&found.store, new).map_err(|error| found.failed(error))?;
    let config = found.config.copy(hostname.unwrap_or_else(|| hostname_of(new)), range.clone())?;
    config.check(new)?;
    let (root, image) = (config.root, found.config.image.clone());
    let (give, take) = seqpacket::pair()
        .map_err(|source| Failure::Machine { doing: "make the processes that copy files", source })?;
    let source = found.name.clone();
    let giver = Storage::begin(found.doing.clone(), move |worker: &Worker| {
        let container = worker.store.container(&source)?;
        let files = container.open_dir(root.directory()).map_err(|error| unusable(&error))?;
        Ok(offer(&files, &give, &Limits::default())?)
    })?;
    let ids = config.ids();
    let (own, config, taken) = (new.to_owned(), config.bytes(), range.clone());
    let taker = Storage::begin(found.doing.clone(), move |worker: &Worker| {
        must_be_free(&worker.store, &taken)?;
        let new = worker.store.begin_container(&own)?;
        match root {
            Root::Layers => {
                let image: Sha256 = image.parse().map_err(|_| JobFailure::machine("its image has no id"))?;
                make_layers(new.dir(), &worker.store.rootfs(image)?).map_err(|error| unusable(&error))?;
            }
            Root::Copy => new.dir().make_dir(ROOTFS, 0o755).map_err(|error| unusable(&error))?,
        }
        let files = new.dir().open_dir(root.directory()).map_err(|error| unusable(&error))?;
        let layer = root == Root::Layers;
        let copied = accept(&take, &files, layer, &Limits::default(), None, &mut worker.watch())?;
        if copied.is_some() {
            worker.store.finish_container(new, &own, &config)?;
        }
        Ok(copied.is_some())
    })?;
    let session = client.connect(&found.doing)?;
    let mut display = Display::new(false);
    let (gives, takes) = ((name, found.range(), 0), (new, range.as_str(), ids));
    hand_over(&session, &found.doing, (giver, gives), (taker, takes), &mut display)
}

impl Root {
    /// Name of the directory with the files that belong to the container alone.
    pub(super) fn directory(self) -> &'static str {
        match self {
            Self::Layers => "upper",
            Self::Copy => ROOTFS,
        }
    }
}

fn unusable(error: &io::Error) -> JobFailure {
    JobFailure::kernel("the directories of the copy can't be used", error)
}
