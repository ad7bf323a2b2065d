//! `create`: a container's directory, with two empty layers that belong to the container's ids, or a copy of the image's files.

use cgrant_container::Session;
use cgrant_image::{Limits, Sha256, accept, offer, store::make_layers};
use cgrant_sys::seqpacket;

use super::{
    config::{Config, free_range, must_be_free},
    layered::{self, Layered},
    nesting,
    settings::check_limits,
};
use crate::{
    Client,
    args::NewArgs,
    command::grant::each_once,
    error::Failure,
    progress::Display,
    storage::{self, JobFailure, Storage, Worker},
};

/// Grants with this prefix are this program's own.
pub(super) const RESERVED: &str = "cgrant-";
/// Name of the files of an image in its directory, and of their copy in a container's.
pub(super) const ROOTFS: &str = "rootfs";

/// What is to be made.
struct Plan<'a> {
    doing: String,
    name: &'a str,
    image: Sha256,
    /// Bytes of data in the image, where its description can be read.
    bytes: Option<u64>,
    config: Config,
}

pub(super) fn create(client: &Client, args: &NewArgs) -> Result<(), Failure> {
    let limits = each_once(args.limits.all())?.into_iter().collect();
    check_limits(client, &limits, &format!("create the container {:?}", args.name))?;
    make(client, args)
}

/// Without a look at the limits, which a start has the broker look at anyhow.
pub(super) fn make(client: &Client, args: &NewArgs) -> Result<(), Failure> {
    let doing = format!("create the container {:?}", args.name);
    let failed = |error: cgrant_image::store::StoreError| Failure::work(&doing, error.into());
    check_name(&args.name)?;
    // What can be known beforehand is said before anybody is asked for anything.
    let store = storage::store()?;
    let image = store.resolve(&args.image).map_err(failed)?;
    if store.containers().map_err(failed)?.contains(&args.name) {
        return Err(failed(cgrant_image::store::StoreError::NameTaken(args.name.clone())));
    }
    let bytes = store.image(&image.to_string()).ok().map(|image| image.bytes);
    let range = free_range(&store, &args.name).map_err(failed)?;
    let blocks = nesting::blocks(client, args.nesting, &doing)?;
    let config = Config::new(args, blocks, image.to_string(), range)?;
    config.check_place(client)?;
    let plan = Plan { doing, name: &args.name, image, bytes, config };
    let why = match args.copy {
        true => None,
        false => match lay(client, &plan)? {
            Layered::Done => return Ok(()),
            Layered::Not(why) => Some(why),
        },
    };
    copy(client, plan, why)
}

/// Refuses names that are not for containers; the others are the broker's business.
pub(super) fn check_name(name: &str) -> Result<(), Failure> {
    match name.starts_with(RESERVED) {
        true => Err(Failure::Usage(format!("names that begin with {RESERVED:?} are cgrant's own"))),
        false => Ok(()),
    }
}

/// Makes the two layers, where such a root can be mounted.
fn lay(client: &Client, plan: &Plan<'_>) -> Result<Layered, Failure> {
    let Plan { doing, name, image, config, .. } = plan;
    let (near, far) = layered::pair()?;
    let (own, written, range) = ((*name).to_owned(), config.bytes(), config.range.clone());
    let image = *image;
    let storage = Storage::begin(doing.clone(), move |worker: &Worker| {
        must_be_free(&worker.store, &range)?;
        let rootfs = worker.store.rootfs(image)?;
        let new = worker.store.begin_container(&own)?;
        if let Some(why) = layered::hindrance(worker, &far, new.dir(), image)? {
            return Ok(Layered::Not(why));
        }
        make_layers(new.dir(), &rootfs)
            .map_err(|error| JobFailure::kernel("its directories could not be made", &error))?;
        worker.store.finish_container(new, &own, &written)?;
        Ok(Layered::Done)
    })?;
    let session = client.connect(doing)?;
    let running = storage.start(&session, name, &config.range, config.ids())?;
    let grant = running.grant().clone();
    let mut refused = None;
    let laid = running.wait(&mut |_| refused = layered::answer(&near, &session, &grant, doing).err());
    match refused {
        // What the job makes of that matters less.
        Some(failure) => Err(failure),
        None => laid,
    }
}

/// Copies the image's files: one process of the images' range reads them, one of the container's makes them.
fn copy(client: &Client, plan: Plan<'_>, why: Option<String>) -> Result<(), Failure> {
    let Plan { doing, name, image, bytes, config } = plan;
    let (give, take) = seqpacket::pair()
        .map_err(|source| Failure::Machine { doing: "make the processes that copy files", source })?;
    let giver = Storage::begin(doing.clone(), move |worker: &Worker| {
        Ok(offer(&worker.store.rootfs(image)?, &give, &Limits::default())?)
    })?;
    let (range, ids) = (config.range.clone(), config.ids());
    let config = config.copied().bytes();
    let (own, taken) = (name.to_owned(), range.clone());
    let taker = Storage::begin(doing.clone(), move |worker: &Worker| {
        must_be_free(&worker.store, &taken)?;
        let new = worker.store.begin_container(&own)?;
        let made = new.dir().create_dir(ROOTFS, 0o755);
        let rootfs =
            made.map_err(|error| JobFailure::kernel("the directory of its files could not be made", &error))?;
        let copied = accept(&take, &rootfs, false, &Limits::default(), bytes, &mut worker.watch())?;
        if copied.is_some() {
            worker.store.finish_container(new, &own, &config)?;
        }
        Ok(copied.is_some())
    })?;
    let session = client.connect(&doing)?;
    let mut display = Display::new(false);
    if let Some(why) = why {
        display.say(&format!("the image's files are copied: {why}"));
    }
    let images = (storage::IMAGES, storage::IMAGES, storage::IDS);
    hand_over(&session, &doing, (giver, images), (taker, (name, &range, ids)), &mut display)
}

/// Runs two jobs of which one reads what the other makes, each under the name of a grant and with so many ids of a range. The second
/// one says whether it got all.
pub(super) fn hand_over(
    session: &Session,
    doing: &str,
    (giver, gives): (Storage<()>, (&str, &str, u32)),
    (taker, takes): (Storage<bool>, (&str, &str, u32)),
    display: &mut Display,
) -> Result<(), Failure> {
    let giver = giver.start(session, gives.0, gives.1, gives.2)?;
    let taker = taker.start(session, takes.0, takes.1, takes.2);
    let taken = taker.and_then(|taker| taker.wait(&mut |told| display.tell(told)));
    match taken {
        Ok(true) => giver.wait(&mut |_| ()),
        // It ended before all was read, and says why.
        Ok(false) => giver.wait(&mut |_| ()).and(Err(storage::died(doing))),
        Err(failure) => {
            giver.cancel();
            Err(failure)
        }
    }
}
