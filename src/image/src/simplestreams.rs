//! Lists of images as servers publish them: simplestreams, version 1.0, with the products of LXC's and Incus' servers.
//!
//! A list is as hostile as its server: its size and the number of its entries have bounds, the paths in it lead to that
//! server alone, and what is fetched by it must have the sums that it says.

use std::collections::{BTreeMap, btree_map};
use std::fs::File;

use cgrant_sys::Dir;
use serde::Deserialize;

use crate::digest::Sha256;
use crate::fetch::{BadUrl, FetchError, FetchOptions, Url, fetch, fetch_file};
use crate::image::{About, debian_name, kernel_name};
use crate::import::Source;
use crate::progress::Watch;

/// Where a server's lists begin.
const INDEX: &str = "streams/v1/index.json";
/// Largest index, and largest list of products, in bytes.
const MAX_INDEX: u64 = 8 << 20;
const MAX_PRODUCTS: u64 = 64 << 20;
/// Kinds of files: the description and the files of a container's image in one archive each.
const META: [&str; 3] = ["incus.tar.xz", "lxd.tar.xz", "lxc_meta.tar.xz"];
const ROOTFS: [&str; 3] = ["root.tar.xz", "root.tar.zst", "root.tar.gz"];
/// What there is of files that are not read here.
const SQUASHFS: &str = "squashfs";
/// A whole image in one archive.
const UNIFIED: [&str; 2] = ["incus_combined.tar.gz", "lxd_combined.tar.gz"];

/// A file that a list names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Where it is.
    pub url: Url,
    /// What it must be.
    pub sha256: Sha256,
    /// Its size in bytes, as the list says.
    pub size: u64,
}

/// An image that a list names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// What it is called there.
    pub product: String,
    /// Which of its versions: the newest.
    pub version: String,
    /// What the list says of it.
    pub about: About,
    /// What describes it; `None` where that and the files are one archive.
    pub meta: Option<Item>,
    /// Its files.
    pub rootfs: Item,
}

/// Why there is no image.
#[derive(Debug, thiserror::Error)]
pub enum StreamsError {
    /// A list could not be fetched.
    #[error(transparent)]
    Fetch(#[from] FetchError),
    /// It is none.
    #[error("{url} is no list of images")]
    Malformed {
        /// What was asked for.
        url: Url,
        /// Why.
        source: serde_json::Error,
    },
    /// A path in it leads elsewhere.
    #[error("the list of images names a file elsewhere")]
    Path(#[from] BadUrl),
    /// No image of this name.
    #[error("{server} has no image `{name}` for {architecture}{}", alike(others))]
    Unknown {
        /// The server.
        server: Url,
        /// The name.
        name: String,
        /// The architecture.
        architecture: String,
        /// Names that begin alike.
        others: Vec<String>,
    },
    /// Only in a form that is not read.
    #[error(
        "{server} has `{name}` only as squashfs or as a virtual machine's disk, which are not read here: take another variant or server"
    )]
    Unsupported {
        /// The server.
        server: Url,
        /// The name.
        name: String,
    },
}

#[derive(Deserialize)]
struct Index {
    index: BTreeMap<String, Stream>,
}

#[derive(Deserialize)]
struct Stream {
    path: String,
    #[serde(default)]
    datatype: String,
}

#[derive(Deserialize)]
struct Products {
    products: BTreeMap<String, Product>,
}

#[derive(Deserialize)]
struct Product {
    #[serde(default)]
    aliases: String,
    #[serde(default)]
    arch: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    release: String,
    #[serde(default)]
    release_title: String,
    #[serde(default)]
    variant: String,
    #[serde(default)]
    versions: BTreeMap<String, Version>,
}

#[derive(Deserialize)]
struct Version {
    #[serde(default)]
    items: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    ftype: String,
    path: String,
    // Of other kinds of files there may be none.
    sha256: Option<Sha256>,
    #[serde(default)]
    size: u64,
}

/// Finds the newest image of this name (an alias of the server's, or a product's name) for this architecture, by Debian's
/// name of it or the kernel's.
///
/// # Errors
/// [`StreamsError`].
pub fn choose(
    server: &Url,
    name: &str,
    architecture: &str,
    options: &FetchOptions,
    watch: &mut Watch<'_>,
) -> Result<Choice, StreamsError> {
    let index: Index = list(&server.join(INDEX)?, MAX_INDEX, options, watch)?;
    let mut found = Search::new(server, name, architecture);
    let streams = index.index.into_values();
    for stream in streams.filter(|stream| stream.datatype.is_empty() || stream.datatype == "image-downloads")
    {
        let products: Products = list(&server.join(&stream.path)?, MAX_PRODUCTS, options, watch)?;
        found.look(products)?;
    }
    found.result()
}

/// Fetches what was chosen into files without names on the file system of `dir`, of which `keep_free` bytes stay free: what
/// an import is made from. Each has the sum that the list says.
///
/// # Errors
/// [`StreamsError::Fetch`].
pub fn download(
    dir: &Dir,
    keep_free: u64,
    choice: &Choice,
    options: &FetchOptions,
    watch: &mut Watch<'_>,
) -> Result<Source, StreamsError> {
    let mut item = |item: &Item| -> Result<File, StreamsError> {
        // Lists need not say a size.
        let said = if item.size > 0 { item.size } else { u64::MAX };
        let max_bytes = said.min(options.max_bytes);
        let options = FetchOptions { max_bytes, sha256: Some(item.sha256), ..options.clone() };
        Ok(fetch_file(dir, keep_free, &item.url, &options, watch)?.0)
    };
    let rootfs = item(&choice.rootfs)?;
    Ok(match &choice.meta {
        Some(meta) => Source::Split { meta: item(meta)?, rootfs },
        None => Source::Archive(rootfs),
    })
}

fn list<T: serde::de::DeserializeOwned>(
    url: &Url,
    max_bytes: u64,
    options: &FetchOptions,
    watch: &mut Watch<'_>,
) -> Result<T, StreamsError> {
    let mut bytes = Vec::new();
    // The sum that the caller knows, if any, is not the lists'.
    let options = FetchOptions { max_bytes, sha256: None, ..options.clone() };
    fetch(url, &mut bytes, &options, watch)?;
    serde_json::from_slice(&bytes).map_err(|source| StreamsError::Malformed { url: url.clone(), source })
}

/// What is looked for, and what was found until now.
struct Search<'a> {
    server: &'a Url,
    name: &'a str,
    architecture: &'a str,
    best: Option<Choice>,
    /// There is one in a form that is not read.
    unsupported: bool,
    others: Vec<String>,
}

impl<'a> Search<'a> {
    fn new(server: &'a Url, name: &'a str, architecture: &'a str) -> Self {
        Self { server, name, architecture, best: None, unsupported: false, others: Vec::new() }
    }

    fn look(&mut self, products: Products) -> Result<(), StreamsError> {
        let wanted = debian_name(kernel_name(self.architecture));
        for (key, product) in products.products {
            if debian_name(kernel_name(&product.arch)) != wanted {
                continue;
            }
            let aliases: Vec<&str> = product.aliases.split(',').map(str::trim).collect();
            if key == self.name || aliases.contains(&self.name) {
                self.take(key, product)?;
            } else if let Some(similar) = aliases.iter().find(|alias| self.is_similar(alias)) {
                self.others.push((*similar).to_owned());
            }
        }
        Ok(())
    }

    fn is_similar(&self, alias: &str) -> bool {
        let os = |name: &str| name.split('/').next().map(str::to_owned);
        !alias.is_empty() && os(alias) == os(self.name)
    }

    /// The newest version of a product that can be read.
    fn take(&mut self, key: String, product: Product) -> Result<(), StreamsError> {
        for (version, Version { items }) in product.versions.into_iter().rev() {
            if self.best.as_ref().is_some_and(|best| best.version >= version) {
                return Ok(());
            }
            let of = |kinds: &[&str]| kinds.iter().find_map(|kind| self.item(&items, kind));
            let (meta, rootfs) = match (of(&UNIFIED), of(&META), of(&ROOTFS)) {
                (_, Some(meta), Some(rootfs)) => (Some(meta?), rootfs?),
                (Some(unified), ..) => (None, unified?),
                _ => {
                    self.unsupported |=
                        items.values().any(|item| item.ftype == SQUASHFS || item.ftype.contains("disk"));
                    continue;
                }
            };
            let about = About {
                os: product.os.to_lowercase(),
                release: product.release,
                architecture: kernel_name(&product.arch).to_owned(),
                variant: product.variant,
                description: format!("{} {}", product.os, product.release_title),
            };
            self.best = Some(Choice { product: key, version, about, meta, rootfs });
            return Ok(());
        }
        Ok(())
    }

    /// The item of this kind, which items are named by or say of themselves.
    fn item(&self, items: &BTreeMap<String, Entry>, kind: &str) -> Option<Result<Item, StreamsError>> {
        let named: btree_map::Values<'_, _, _> = items.values();
        let entry = items.get(kind).or_else(|| { named }.find(|item| item.ftype == kind))?;
        let sha256 = entry.sha256?;
        Some(self.server.join(&entry.path).map_err(StreamsError::from).map(|url| Item {
            url,
            sha256,
            size: entry.size,
        }))
    }

    fn result(mut self) -> Result<Choice, StreamsError> {
        if let Some(best) = self.best {
            return Ok(best);
        }
        let (server, name) = (self.server.clone(), self.name.to_owned());
        if self.unsupported {
            return Err(StreamsError::Unsupported { server, name });
        }
        self.others.truncate(10);
        let architecture = self.architecture.to_owned();
        Err(StreamsError::Unknown { server, name, architecture, others: self.others })
    }
}

fn alike(names: &[String]) -> String {
    let names: Vec<String> = names.iter().map(|name| crate::path::shown(name.as_bytes())).collect();
    if names.is_empty() { String::new() } else { format!("; it has {}", names.join(", ")) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    use crate::fetch::tests::{Server, file};

    const SUM: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn products() -> String {
        let item = |name: &str, kind: &str, version: &str| {
            format!(
                r#""{name}":{{"ftype":"{kind}","path":"images/{version}/{name}","sha256":"{SUM}","size":5}}"#
            )
        };
        let version = |version: &str, files: &[(&str, &str)]| {
            let items: Vec<String> = files.iter().map(|(name, kind)| item(name, kind, version)).collect();
            format!(r#""{version}":{{"items":{{{}}}}}"#, items.join(","))
        };
        let product = |name: &str, alias: &str, versions: &[String]| {
            let arch = name.split(':').nth(2).unwrap();
            format!(
                r#""{name}":{{"aliases":"{alias},x/y","arch":"{arch}","os":"Debian","release":"trixie","release_title":"13","variant":"default","versions":{{{}}}}}"#,
                versions.join(",")
            )
        };
        let split = [
            ("incus.tar.xz", "incus.tar.xz"),
            ("root.tar.xz", "root.tar.xz"),
            ("rootfs.squashfs", "squashfs"),
        ];
        let list = [
            product(
                "debian:trixie:amd64:default",
                "debian/trixie",
                &[
                    version("20250101_05:24", &split),
                    version("20250301_05:24", &split[..2]),
                    // Newer, but not for containers.
                    version("20250401_05:24", &[("disk.qcow2", "disk-kvm.img")]),
                ],
            ),
            product("debian:trixie:arm64:default", "debian/trixie", &[version("20250601_05:24", &split)]),
            product("debian:bookworm:amd64:default", "debian/bookworm", &[version("1", &split[2..])]),
            product("debian:sid:amd64:default", "debian/sid", &[version("1", &[("u", "lxd_combined.tar.gz")])]),
            r#""away:x:amd64:d":{"aliases":"away","arch":"amd64","versions":{"1":{"items":{"incus.tar.xz":{"path":"../../x","sha256":"SUM"},"root.tar.xz":{"path":"//evil/x","sha256":"SUM"}}}}}"#.replace("SUM", SUM),
        ];
        format!(r#"{{"content_id":"images","products":{{{}}}}}"#, list.join(","))
    }

    fn chosen(name: &str, architecture: &str) -> Result<(Server, Choice), StreamsError> {
        let index = r#"{"index":{"images":{"datatype":"image-downloads","path":"streams/v1/images.json","products":[]},"other":{"datatype":"image-ids","path":"streams/v1/none.json"}},"format":"index:1.0"}"#;
        let server = Server::new(&[
            ("/s/streams/v1/index.json", file(index.as_bytes())),
            ("/s/streams/v1/images.json", file(products().as_bytes())),
        ]);
        let choice = choose(&server.url("/s/"), name, architecture, &server.options(), &mut |_| ())?;
        Ok((server, choice))
    }

    #[test]
    fn the_newest_that_can_be_read_is_chosen() {
        for (name, architecture) in [
            ("debian/trixie", "x86_64"),
            ("debian/trixie", "amd64"),
            ("debian:trixie:amd64:default", "amd64"),
        ] {
            let (server, choice) = chosen(name, architecture).unwrap();
            assert_eq!(choice.version, "20250301_05:24");
            assert_eq!(choice.rootfs.url, server.url("/s/images/20250301_05:24/root.tar.xz"));
            assert_eq!(choice.meta.unwrap().url, server.url("/s/images/20250301_05:24/incus.tar.xz"));
            assert_eq!((choice.rootfs.sha256.to_string().as_str(), choice.rootfs.size), (SUM, 5));
            assert_eq!((choice.about.os.as_str(), choice.about.architecture.as_str()), ("debian", "x86_64"));
        }
        assert_eq!(chosen("debian/trixie", "aarch64").unwrap().1.version, "20250601_05:24");
        let (_, unified) = chosen("debian/sid", "amd64").unwrap();
        assert_eq!(unified.meta, None);
    }

    #[test]
    fn what_is_not_there_is_said() {
        let error = |name: &str, architecture: &str| chosen(name, architecture).err().unwrap();
        assert!(matches!(error("debian/bookworm", "amd64"), StreamsError::Unsupported { .. }));
        match error("debian/buster", "amd64") {
            StreamsError::Unknown { others, .. } => assert!(others.contains(&"debian/trixie".to_owned())),
            other => panic!("{other:?}"),
        }
        assert!(matches!(error("debian/trixie", "s390x"), StreamsError::Unknown { .. }));
        assert!(matches!(error("away", "amd64"), StreamsError::Path(_)));
        let server = Server::new(&[("/streams/v1/index.json", file(b"<html>"))]);
        let result = choose(&server.url("/"), "x", "amd64", &server.options(), &mut |_| ());
        assert!(matches!(result, Err(StreamsError::Malformed { .. })));
    }

    #[test]
    fn an_image_comes_from_a_server_into_a_directory() {
        let archive = |names: &[&str]| {
            let members: Vec<_> = names.iter().map(|name| crate::unpack::tests::file(name)).collect();
            crate::unpack::tests::archive(&members)
        };
        let sum = |bytes: &[u8]| Sha256::of_reader(bytes, None, &mut |_| ()).unwrap();
        let (meta, rootfs) = (archive(&["metadata.yaml"]), archive(&["etc/hostname"]));
        let server = Server::new(&[("/meta", file(&meta)), ("/rootfs", file(&rootfs))]);
        let item = |path: &str, bytes: &[u8], size| Item { url: server.url(path), sha256: sum(bytes), size };
        let choice = |meta: Option<Item>, rootfs| Choice {
            product: String::new(),
            version: String::new(),
            about: About::default(),
            meta,
            rootfs,
        };
        let directory = tempfile::tempdir().unwrap();
        let dir = Dir::open(directory.path()).unwrap();
        let fetched = |choice: &Choice| download(&dir, 0, choice, &server.options(), &mut |_| ());
        let good = choice(Some(item("/meta", &meta, 0)), item("/rootfs", &rootfs, rootfs.len() as u64));
        let limits = crate::Limits { keep_free: 0, ..crate::Limits::default() };
        let imported = crate::import(&dir, fetched(&good).unwrap(), None, &limits, &mut |_| ()).unwrap();
        assert_eq!(imported.id, sum(&[meta.clone(), rootfs.clone()].concat()));
        assert_eq!(dir.names().unwrap(), ["rootfs"]);
        let larger = choice(None, item("/rootfs", &rootfs, 100));
        assert!(matches!(fetched(&larger), Err(StreamsError::Fetch(FetchError::TooLarge { .. }))));
        let other = choice(None, item("/rootfs", &meta, 0));
        assert!(matches!(fetched(&other), Err(StreamsError::Fetch(FetchError::Checksum { .. }))));
    }
}
