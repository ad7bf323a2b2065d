//! `create`: a container's directory, with two empty layers that belong to the container's ids.

use cgrant_image::store::make_layers;

use super::config::Config;
use crate::{
    Client,
    args::NewArgs,
    error::Failure,
    storage::{self, JobFailure, Storage},
};

/// Grants with this prefix are this program's own.
const RESERVED: &str = "cgrant-";

pub(super) fn create(client: &Client, args: &NewArgs) -> Result<(), Failure> {
    let doing = format!("create the container {:?}", args.name);
    let failed = |error: cgrant_image::store::StoreError| Failure::work(&doing, error.into());
    if args.name.starts_with(RESERVED) {
        return Err(Failure::Usage(format!("names that begin with {RESERVED:?} are cgrant's own")));
    }
    // What can be known beforehand is said before anybody is asked for anything.
    let store = storage::store()?;
    let id = store.resolve(&args.image).map_err(failed)?;
    if store.containers().map_err(failed)?.contains(&args.name) {
        return Err(failed(cgrant_image::store::StoreError::NameTaken(args.name.clone())));
    }
    let config = Config::new(args, id.to_string())?.bytes();
    let name = args.name.clone();
    let storage = Storage::begin(doing.clone(), move |worker| {
        let rootfs = worker.store.rootfs(id)?;
        let new = worker.store.begin_container(&name)?;
        make_layers(new.dir(), &rootfs)
            .map_err(|error| JobFailure::machine(format!("its directories could not be made: {error}")))?;
        worker.store.finish_container(new, &name, &config)?;
        Ok(())
    })?;
    let session = client.connect(&doing)?;
    storage.run(&session, &args.name, &mut |_| ())
}
