//! The files of addresses: one a kept number, and one with the networks of the broker's own bridges.
//!
//! In the state directory, `network/`: `secret`; `networks.json`; `users.json`; `kept/BRIDGE/NUMBER.json`. A file of a number is not
//! flushed to disk: what a loss of power takes is an address that will be another one.

use std::{collections::BTreeMap, io, net::Ipv6Addr};

use cgrant_sys::Dir;
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::pool::{Entry, Owner};

const DIRECTORY: &str = "network";
const KEPT: &str = "kept";
const USERS: &str = "users.json";
const NETWORKS: &str = "networks.json";
/// Longest file of a number, in bytes.
const MAX_KEPT: usize = 1024;
/// Longest file of networks, in bytes: an account's bridge takes about 100.
const MAX_NETWORKS: usize = 16 << 20;

/// The networks of a bridge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Networks {
    /// IPv4.
    pub subnet4: Option<Ipv4Net>,
    /// IPv6.
    pub subnet6: Option<Ipv6Net>,
}

/// What the file of a number says.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    owner: Owner,
    serial: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    address6: Option<Ipv6Addr>,
}

/// The files.
pub struct Store {
    directory: Dir,
    kept: Dir,
}

/// A number of a bridge, as its file has it.
pub struct Loaded {
    /// The bridge.
    pub bridge: String,
    /// The number.
    pub number: u32,
    /// What is said about it.
    pub entry: Entry,
}

fn make(parent: &Dir, name: &str) -> io::Result<Dir> {
    match parent.create_dir(name, 0o700) {
        Ok(_) => (),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
        Err(error) => return Err(error),
    }
    parent.open_dir(name)
}

fn file_of(number: u32) -> String {
    format!("{number}.json")
}

impl Store {
    /// Opens them in the instance's state directory.
    ///
    /// # Errors
    /// If a directory can't be made.
    pub fn open(state: &Dir) -> io::Result<Self> {
        let directory = make(state, DIRECTORY)?;
        let kept = make(&directory, KEPT)?;
        Ok(Self { directory, kept })
    }

    /// The directory of all of them.
    pub fn directory(&self) -> &Dir {
        &self.directory
    }

    /// Every number that is kept. A damaged file keeps none, and is removed.
    ///
    /// # Errors
    /// If a directory can't be read.
    pub fn load(&self) -> io::Result<Vec<Loaded>> {
        let mut loaded = Vec::new();
        for bridge in self.kept.dirs()? {
            let directory = self.kept.open_dir(&bridge)?;
            for file in directory.names()? {
                let number = file.strip_suffix(".json").and_then(|number| number.parse().ok());
                let kept = directory
                    .read(&file, MAX_KEPT)
                    .ok()
                    .and_then(|text| serde_json::from_str::<Kept>(&text).ok());
                match number.zip(kept) {
                    Some((number, Kept { owner, serial, address6 })) => {
                        let entry = Entry { owner, address6, serial, user: None, kept: true, freed: 0 };
                        loaded.push(Loaded { bridge: bridge.clone(), number, entry });
                    }
                    None => {
                        tracing::warn!(
                            bridge,
                            file,
                            "the file of an address is damaged; the address is free"
                        );
                        let _ = directory.remove_file(&file);
                    }
                }
            }
        }
        Ok(loaded)
    }

    /// Keeps a number.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn keep(&self, bridge: &str, number: u32, entry: &Entry) -> io::Result<()> {
        let kept = Kept { owner: entry.owner.clone(), serial: entry.serial, address6: entry.address6 };
        let bytes = serde_json::to_vec(&kept).map_err(io::Error::other)?;
        make(&self.kept, bridge)?.write_atomic(file_of(number), &bytes, false)
    }

    /// Keeps a number no more.
    pub fn drop(&self, bridge: &str, number: u32) {
        let removed = self.kept.open_dir(bridge).and_then(|directory| directory.remove_file(file_of(number)));
        if let Err(error) = removed
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, bridge, number, "the file of an address can't be removed");
        }
    }

    /// The networks of the broker's own bridges.
    ///
    /// # Errors
    /// If the file can't be read or is damaged.
    pub fn networks(&self) -> io::Result<BTreeMap<String, Networks>> {
        match self.directory.read(NETWORKS, MAX_NETWORKS) {
            Ok(text) => serde_json::from_str(&text).map_err(io::Error::other),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        }
    }

    /// The names of the accounts' users.
    ///
    /// # Errors
    /// If the file can't be read. A damaged one says nothing.
    pub fn users(&self) -> io::Result<BTreeMap<u32, String>> {
        match self.directory.read(USERS, MAX_NETWORKS) {
            Ok(text) => Ok(serde_json::from_str(&text).unwrap_or_else(|error| {
                tracing::warn!(%error, "whose addresses are kept is not known any more");
                BTreeMap::new()
            })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeMap::new()),
            Err(error) => Err(error),
        }
    }

    /// Notes the names of the accounts' users.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn set_users(&self, users: &BTreeMap<u32, String>) -> io::Result<()> {
        let bytes = serde_json::to_vec(users).map_err(io::Error::other)?;
        self.directory.write_atomic(USERS, &bytes, false)
    }

    /// Notes the networks of the broker's own bridges.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn set_networks(&self, networks: &BTreeMap<String, Networks>) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(networks).map_err(io::Error::other)?;
        self.directory.write_atomic(NETWORKS, &bytes, true)
    }
}
