//! `cgrant image …`: images are made, listed and removed.

mod export;
mod make;

pub(super) use export::{Partial, Written, compression, unwritten};

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use cgrant_image::{
    Image, Sha256,
    store::{Listed, Store},
};
use serde_json::json;

use crate::{
    Client,
    args::{AliasCommand, Format, ImageCommand},
    error::Failure,
    exit,
    output::{self, List, bytes},
    progress::Display,
    storage::{self, JobFailure, Storage},
};

/// Digits of an id in a table: as many as tell images apart.
const SHORT: usize = 12;

pub(crate) fn run(client: &Client, command: ImageCommand) -> Result<u8, Failure> {
    match command {
        ImageCommand::Build(args) => make::build(client, *args),
        ImageCommand::Import(args) => make::import(client, *args),
        ImageCommand::Export(args) => export::export(client, args),
        ImageCommand::List => list(client),
        ImageCommand::Remove { images, telling } => remove(client, images, telling.quiet),
        ImageCommand::Alias(command) => alias(command),
    }?;
    Ok(exit::DONE)
}

/// What can't be used is listed too, with what to do: it must not keep anybody from the others.
fn list(client: &Client) -> Result<(), Failure> {
    let store = storage::store()?;
    let names = store.aliases().unwrap_or_else(|error| {
        // Closed standard error is no reason to fail.
        let _ = writeln!(io::stderr(), "cgrant: {}", JobFailure::from(error).text);
        BTreeMap::new()
    });
    let mut images = store.images().map_err(|error| Failure::work("list the images", error.into()))?;
    images.sort_by_key(|listed| match listed {
        Listed::Whole(image) => std::cmp::Reverse(image.created),
        Listed::Damaged { .. } => std::cmp::Reverse(0),
    });
    let items = images.iter().map(|listed| {
        let names: Vec<&str> =
            names.iter().filter(|(_, id)| **id == listed.id()).map(|(name, _)| name.as_str()).collect();
        match (client.format, listed) {
            (Format::Json, Listed::Whole(image)) => {
                let mut value = serde_json::to_value(image).unwrap_or_default();
                if let Some(fields) = value.as_object_mut() {
                    fields.insert("aliases".to_owned(), json!(names));
                }
                value
            }
            (Format::Json, Listed::Damaged { id, why }) => {
                json!({ "id": id.to_string(), "aliases": names, "damaged": why })
            }
            (Format::Table, Listed::Whole(image)) => row(image, &names),
            (Format::Table, Listed::Damaged { id, why }) => {
                let id = short(*id);
                let remedy = format!("damaged: {why}; 'cgrant image remove {id}' removes it");
                json!({ "id": id, "aliases": names, "description": remedy })
            }
        }
    });
    let heads = &["ID", "ALIASES", "DESCRIPTION", "ARCHITECTURE", "SIZE", "CREATED"];
    output::print(client.format, &List::new(heads, items))
}

fn short(id: Sha256) -> String {
    id.to_string().chars().take(SHORT).collect()
}

fn row(image: &Image, names: &[&str]) -> serde_json::Value {
    let about = &image.about;
    let description = match about.description.as_str() {
        "" => format!("{} {}", about.os, about.release).trim().to_owned(),
        description => description.to_owned(),
    };
    json!({
        "id": short(image.id),
        "aliases": names,
        "description": description,
        "architecture": about.architecture,
        "size": bytes(image.bytes),
        "created": output::time(image.created.saturating_mul(1_000_000)),
    })
}

fn remove(client: &Client, names: Vec<String>, quiet: bool) -> Result<(), Failure> {
    let doing = format!("remove {}", names.join(", "));
    // What is not there is said before anybody is asked for anything.
    let store = storage::store()?;
    for name in &names {
        resolve(&store, name, &doing)?;
    }
    let storage = Storage::begin(doing.clone(), move |worker| {
        for name in &names {
            match worker.store.resolve(name) {
                // Two of the names meant one.
                Err(cgrant_image::store::StoreError::UnknownImage(_)) => {}
                id => worker.store.remove_image(id?)?,
            }
        }
        Ok(())
    })?;
    let session = client.connect(&doing)?;
    let mut display = Display::new(quiet);
    storage.tidy(&session, storage::IMAGES, storage::IMAGES, &mut |told| display.tell(told))
}

fn resolve(store: &Store, name: &str, doing: &str) -> Result<Sha256, Failure> {
    store.resolve(name).map_err(|error| Failure::work(doing, error.into()))
}

fn alias(command: AliasCommand) -> Result<(), Failure> {
    let store = storage::store()?;
    match command {
        AliasCommand::Add { image, aliases } => {
            let doing = format!("name {image}");
            let id = resolve(&store, &image, &doing)?;
            store.name(id, &aliases).map_err(|error| Failure::work(doing, error.into()))
        }
        AliasCommand::Remove { aliases } => aliases.iter().try_for_each(|alias| {
            let doing = format!("take the name {alias} away");
            let failed = |error: cgrant_image::store::StoreError| Failure::work(doing.clone(), error.into());
            match store.unname(alias).map_err(failed)? {
                true => Ok(()),
                false => Err(failed(cgrant_image::store::StoreError::UnknownImage(alias.to_string()))),
            }
        }),
    }
}
