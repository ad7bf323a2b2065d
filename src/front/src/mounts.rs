//! What a caller says about the ids of a directory that is to be mapped.

use cgrant_wire::MapSource;

use crate::{call::MAX_NAME, fault::Fault, options::Options};

/// What stands for the caller's own uid and gid.
const OWN: &str = "own";

/// Takes the options that say which ids are shown.
///
/// # Errors
/// [`Fault::Argument`].
pub fn source(options: &mut Options) -> Result<MapSource, Fault> {
    let from = options.text("from", MAX_NAME)?.unwrap_or_else(|| OWN.to_owned());
    let (uid, gid) = (options.number("as-uid")?, options.number("as-gid")?);
    if from == OWN {
        return Ok(MapSource::Own { uid: uid.unwrap_or(0), gid: gid.unwrap_or(0) });
    }
    match [("as-uid", uid), ("as-gid", gid)].iter().find(|(_, id)| id.is_some()) {
        Some((name, _)) => Err(Fault::argument(name, "only with from \"own\"")),
        None => Ok(MapSource::Range(from)),
    }
}
