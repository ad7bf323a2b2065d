//! Containers that are set to start with the machine: starting those that do not run, stopping those that do.

use super::{Codes, Found, ask, start};
use crate::{
    Client,
    error::Failure,
    storage::{self, JobFailure},
};

/// Does any container of the account's want to start with the machine?
pub(crate) fn is_wanted() -> Result<bool, Failure> {
    Ok(!wanting("start", &mut Codes::default())?.is_empty())
}

/// Starts them, in the order of their names. The exit code.
pub(crate) fn start(client: &Client) -> Result<u8, Failure> {
    let mut codes = Codes::default();
    let names = wanting("start", &mut codes)?.into_iter().filter(|found| !is_running(found));
    let names: Vec<String> = names.map(|found| found.name).collect();
    Ok(codes.then(start::start(client, &names, false)))
}

/// Stops them, all at the same time. The exit code.
pub(crate) fn stop(client: &Client, seconds: u32) -> Result<u8, Failure> {
    let mut codes = Codes::default();
    let names = wanting("stop", &mut codes)?.into_iter().filter(is_running);
    let names: Vec<String> = names.map(|found| found.name).collect();
    Ok(codes.then(ask::stop(client, &names, seconds)))
}

fn is_running(found: &Found) -> bool {
    found.control().is_ok()
}

/// The containers that are set so. One that can't be read keeps none of the others back.
fn wanting(verb: &str, codes: &mut Codes) -> Result<Vec<Found>, Failure> {
    let found = names()?.into_iter().filter_map(|name| codes.note(Found::new(&name, verb)));
    Ok(found.filter(|found| found.config.autostart).collect())
}

/// All containers. Looking makes nothing: a home that is mounted later is empty now, and stays so.
fn names() -> Result<Vec<String>, Failure> {
    if !storage::path()?.is_dir() {
        return Ok(Vec::new());
    }
    let failed = |error| Failure::work("list the containers", JobFailure::from(error));
    storage::store()?.containers().map_err(failed)
}
