//! What an image is: its description, as `image.json` holds it, and where the description comes from.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

use cgrant_sys::Dir;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use crate::digest::Sha256;

/// Version of `image.json`.
pub const FORMAT: u32 = 1;
/// Largest `os-release` and `metadata.yaml` that are read, in bytes.
pub(crate) const MAX_TEXT: usize = 1 << 18;
/// Longest value that is taken from a description, in characters.
const MAX_VALUE: usize = 200;

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Version of this description: [`FORMAT`].
    pub format: u32,
    /// What the image is known by.
    pub id: Sha256,
    /// What its source or the system in it says of it.
    #[serde(flatten)]
    pub about: About,
    /// Where it came from, for people to read.
    pub source: String,
    /// When it came into the store, in seconds since 1970.
    pub created: u64,
    /// Files, directories and all else in it.
    pub entries: u64,
    /// Bytes of data in it.
    pub bytes: u64,
    /// How many things of the source were left out (device nodes, attributes that images may not have).
    pub left_out: u64,
}

/// What is known of the system in an image. Empty: not known.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct About {
    /// `debian`, `alpine` …
    #[serde(default)]
    pub os: String,
    /// `trixie`, `3.22` …
    #[serde(default)]
    pub release: String,
    /// As the kernel calls it: `x86_64`, `aarch64` …
    #[serde(default)]
    pub architecture: String,
    /// `default`, `cloud` …
    #[serde(default)]
    pub variant: String,
    /// One line for people.
    #[serde(default)]
    pub description: String,
}

impl About {
    /// Fills what is not known from another source.
    pub(crate) fn or(self, other: Self) -> Self {
        let either = |one: String, other: String| if one.is_empty() { other } else { one };
        Self {
            os: either(self.os, other.os),
            release: either(self.release, other.release),
            architecture: either(self.architecture, other.architecture),
            variant: either(self.variant, other.variant),
            description: either(self.description, other.description),
        }
    }

    /// What the system in `rootfs` says of itself.
    pub(crate) fn of_system(rootfs: &Dir) -> Self {
        let text = [["usr", "lib", "os-release"].as_slice(), &["etc", "os-release"]]
            .into_iter()
            .find_map(|names| rootfs.read_below(names, MAX_TEXT).ok())
            .unwrap_or_default();
        let values: BTreeMap<&str, String> = text.lines().filter_map(assignment).collect();
        let value = |keys: &[&str]| {
            let found = keys.iter().find_map(|key| values.get(key).filter(|value| !value.is_empty()));
            found.map_or_else(String::new, |value| bounded(value))
        };
        Self {
            os: value(&["ID"]),
            release: value(&["VERSION_CODENAME", "VERSION_ID"]),
            architecture: machine(rootfs).unwrap_or_default().to_owned(),
            variant: value(&["VARIANT_ID"]),
            description: value(&["PRETTY_NAME", "NAME"]),
        }
    }

    /// What a `metadata.yaml` of Incus says. It is a mapping of texts with one other mapping, `properties`, that matters;
    /// no more of YAML is understood, and what is not understood is passed over.
    pub(crate) fn of_metadata(text: &str) -> Self {
        let mut values: BTreeMap<String, String> = BTreeMap::new();
        let mut section = "";
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let indented = key.starts_with([' ', '\t']);
            let (key, value) = (key.trim(), value.trim());
            if !indented {
                section = if value.is_empty() { key } else { "" };
            }
            if !indented || section == "properties" {
                // The architecture's kernel name stands outside of the properties, Debian's perhaps in them.
                values.entry(key.to_owned()).or_insert_with(|| bounded(&unquoted(value)));
            }
        }
        let mut value = |key: &str| values.remove(key).unwrap_or_default();
        Self {
            os: value("os").to_lowercase(),
            release: value("release"),
            architecture: kernel_name(&value("architecture")).to_owned(),
            variant: value("variant"),
            description: value("description"),
        }
    }

    /// A `metadata.yaml` for Incus.
    pub fn metadata(&self, created: u64) -> String {
        // JSON's strings are YAML's.
        let quoted = |text: &str| serde_json::Value::from(text).to_string();
        let mut text =
            format!("architecture: {}\ncreation_date: {created}\nproperties:\n", quoted(&self.architecture));
        for (key, value) in [
            ("architecture", &self.architecture),
            ("description", &self.description),
            ("os", &self.os),
            ("release", &self.release),
            ("variant", &self.variant),
        ] {
            if !value.is_empty() {
                text.push_str(&format!("  {key}: {}\n", quoted(value)));
            }
        }
        text
    }
}

/// A value without what a terminal might obey, and of bounded length.
fn bounded(text: &str) -> String {
    text.chars().filter(|letter| !letter.is_control()).take(MAX_VALUE).collect()
}

/// `KEY=VALUE` of a shell, as far as `os-release(5)` uses it.
fn assignment(line: &str) -> Option<(&str, String)> {
    let (key, value) = line.trim().split_once('=')?;
    Some((key, unquoted(value)))
}

fn unquoted(value: &str) -> String {
    for quote in ['"', '\''] {
        if let Some(inner) = value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)) {
            return inner.replace("\\\"", "\"").replace("''", "'").replace("\\\\", "\\");
        }
    }
    value.to_owned()
}

/// The kernel's name of an architecture that Debian calls otherwise.
pub(crate) fn kernel_name(name: &str) -> &str {
    match name {
        "amd64" => "x86_64",
        "arm64" => "aarch64",
        "i386" => "i686",
        "armhf" | "armv7" => "armv7l",
        "ppc64el" => "ppc64le",
        other => other,
    }
}

/// Debian's name of an architecture that the kernel calls otherwise.
pub(crate) fn debian_name(name: &str) -> &str {
    match name {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "i686" | "x86" => "i386",
        "armv7l" | "arm" => "armhf",
        "ppc64le" | "powerpc64" => "ppc64el",
        other => other,
    }
}

/// What the programs in it run on, from the header of one of them (`elf(5)`).
fn machine(rootfs: &Dir) -> Option<&'static str> {
    const PROGRAMS: [&[&str]; 8] = [
        &["usr", "lib", "systemd", "systemd"],
        &["usr", "bin", "dash"],
        &["usr", "bin", "bash"],
        &["bin", "bash"],
        &["bin", "busybox"],
        &["usr", "bin", "busybox"],
        &["bin", "sh"],
        &["sbin", "init"],
    ];
    PROGRAMS.iter().find_map(|names| {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = std::fs::File::from(rootfs.open_file_below(names, flags).ok()?);
        let mut header = [0; 20];
        file.read_exact_at(&mut header, 0).ok()?;
        let [0x7f, b'E', b'L', b'F', class, order, .., low, high] = header else { return None };
        let machine =
            if order == 2 { u16::from_be_bytes([low, high]) } else { u16::from_le_bytes([low, high]) };
        match (machine, class) {
            (3, _) => Some("i686"),
            (21, _) => Some("ppc64le"),
            (22, _) => Some("s390x"),
            (40, _) => Some("armv7l"),
            (62, 2) => Some("x86_64"),
            (183, _) => Some("aarch64"),
            (243, 2) => Some("riscv64"),
            (258, _) => Some("loongarch64"),
            _ => None,
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn a_system_tells_what_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        std::fs::create_dir_all(path.join("usr/lib")).unwrap();
        std::fs::create_dir_all(path.join("usr/bin")).unwrap();
        std::fs::create_dir_all(path.join("etc")).unwrap();
        std::os::unix::fs::symlink("../usr/lib/os-release", path.join("etc/os-release")).unwrap();
        let text =
            "PRETTY_NAME=\"Debian \\\"13\\\"\x1b[0m\"\nID=debian\nVERSION_CODENAME='trixie'\n#X=1\nBAD\n";
        std::fs::write(path.join("usr/lib/os-release"), text).unwrap();
        std::fs::copy("/proc/self/exe", path.join("usr/bin/dash")).unwrap();
        let about = About::of_system(&Dir::open(path).unwrap());
        assert_eq!((about.os.as_str(), about.release.as_str()), ("debian", "trixie"));
        assert_eq!(about.description, "Debian \"13\"[0m");
        assert_eq!(about.architecture, rustix::system::uname().machine().to_str().unwrap());
        assert_eq!(debian_name(kernel_name("arm64")), "arm64");
    }

    #[test]
    fn an_empty_tree_tells_nothing() {
        let directory = tempfile::tempdir().unwrap();
        // A link out is not followed.
        std::fs::create_dir(directory.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/os-release", directory.path().join("etc/os-release")).unwrap();
        assert_eq!(About::of_system(&Dir::open(directory.path()).unwrap()), About::default());
    }

    #[test]
    fn descriptions_of_others_are_read() {
        let text = "architecture: x86_64\ncreation_date: 1700000000\nproperties:\n  os: Debian\n  release: \"trixie\"\n  \
                    architecture: amd64\n  variant: 'de''fault'\n  description: Debian: trixie\ntemplates:\n  /etc/hostname:\n    \
                    os: wrong\n    when:\n    - create\n";
        let about = About::of_metadata(text);
        let expected = About {
            os: "debian".into(),
            release: "trixie".into(),
            architecture: "x86_64".into(),
            variant: "de'fault".into(),
            description: "Debian: trixie".into(),
        };
        assert_eq!(about, expected);
        assert_eq!(About::of_metadata(&about.metadata(5)), expected);
        assert_eq!(About::of_metadata("\u{0}::::\n\n:"), About::default());
    }
}
