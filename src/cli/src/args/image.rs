//! The words of `cgrant image …`.

use std::{ffi::OsString, path::PathBuf};

use cgrant_image::{Sha256, build::Mirror, fetch::Url, store::Alias};
use clap::{Args, Subcommand};

#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Builds an image of Debian or Ubuntu from its packages, with mmdebstrap
    #[command(after_help = "\
Without --mirror the packages come from where this machine's own apt gets its, else from the
distribution's own servers. Prints the image's id.

Examples:
  cgrant image build debian:trixie
  cgrant image build debian:bookworm --include openssh-server,vim --alias web
  cgrant image build debian:sid --mirror http://deb.debian.org/debian --components main,contrib
  cgrant image build ubuntu:noble")]
    Build(Box<BuildArgs>),
    /// Makes an image of a directory or an archive, here or on a server
    #[command(after_help = "\
An archive is a tar, tar.gz, tar.xz or tar.zst of the files alone, or an image for Incus in one piece.
Images in two pieces, as LXC (meta.tar.xz, rootfs.tar.xz) and Incus (incus.tar.xz, root.tar.xz) have
them, are given as both, the description first. From servers only https is taken.
'-' is an archive on standard input. Prints the image's id.

Examples:
  cgrant image import rootfs.tar.zst --alias mine
  ssh host tar -c -C / --one-file-system . | cgrant image import - --alias host
  cgrant image import meta.tar.xz rootfs.tar.xz --alias alpine
  cgrant image import https://example.org/x.tar.xz --sha256 SUM
  cgrant image import debian/13 --server https://images.linuxcontainers.org --alias debian:trixie")]
    Import(Box<ImportArgs>),
    /// Writes an image to a file that this command, Incus and LXD can import
    #[command(after_help = "\
The file's name says how it is compressed: .tar, .tar.gz, .tar.xz, .tar.zst. It is there when it is whole.
Prints the file's SHA-256 sum.

Examples:
  cgrant image export debian:trixie trixie.tar.zst
  cgrant image export web files.tar.gz --plain     the files alone, for other tools")]
    Export(ExportArgs),
    /// Lists images
    #[command(after_help = "\
Examples:
  cgrant image list
  cgrant image list --format json | jq -r '.[].id'")]
    List,
    /// Removes images, with all their names
    #[command(after_help = "Example:\n  cgrant image remove debian:trixie 4f6c1d2a")]
    Remove {
        /// Names, ids or beginnings of ids
        #[arg(required = true, value_name = "IMAGE")]
        images: Vec<String>,
        #[command(flatten)]
        telling: TellingArgs,
    },
    /// Gives images names, and takes them away
    #[command(subcommand)]
    Alias(AliasCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum AliasCommand {
    /// Gives an image names; one that was another image's is this one's now
    #[command(after_help = "Example:\n  cgrant image alias add 4f6c1d2a debian:trixie web")]
    Add {
        /// A name, an id or the beginning of one
        image: String,
        /// Its new names
        #[arg(required = true, value_name = "ALIAS")]
        aliases: Vec<Alias>,
    },
    /// Takes names away; the images stay
    #[command(after_help = "Example:\n  cgrant image alias remove web")]
    Remove {
        /// The names
        #[arg(required = true, value_name = "ALIAS")]
        aliases: Vec<Alias>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct BuildArgs {
    /// What: debian:SUITE or ubuntu:SUITE
    #[arg(value_name = "DISTRIBUTION")]
    pub(crate) name: String,
    /// Where its packages come from
    #[arg(long, value_name = "URL", value_parser = Mirror::parse)]
    pub(crate) mirror: Option<Mirror>,
    /// Parts of its archive, with commas; otherwise main, of Ubuntu universe too
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(crate) components: Vec<String>,
    /// More packages, with commas or given several times
    #[arg(long = "include", visible_alias = "package", value_name = "NAME", value_delimiter = ',')]
    pub(crate) packages: Vec<String>,
    /// Nothing beyond the smallest system and what --include says: without an init, for commands alone
    #[arg(long)]
    pub(crate) minimal: bool,
    /// For another architecture than this machine's
    #[arg(long, value_name = "NAME")]
    pub(crate) architecture: Option<String>,
    /// A name of the image instead of DISTRIBUTION; may be given several times
    #[arg(long = "alias", value_name = "ALIAS")]
    pub(crate) aliases: Vec<Alias>,
    #[command(flatten)]
    pub(crate) telling: TellingArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// A directory, an archive, or its URL, or '-'; of a split image what describes it; with --server a name there
    #[arg(value_name = "SOURCE")]
    pub(crate) source: OsString,
    /// The files of a split image
    #[arg(value_name = "ROOTFS", conflicts_with = "server")]
    pub(crate) rootfs: Option<OsString>,
    /// What the archive's sum must be; of a split image that of both, one after the other
    #[arg(long, value_name = "SUM", conflicts_with = "server")]
    pub(crate) sha256: Option<Sha256>,
    /// A server with a list of images (simplestreams)
    #[arg(long, value_name = "URL")]
    pub(crate) server: Option<Url>,
    /// With --server: for another architecture than this machine's
    #[arg(long, value_name = "NAME", requires = "server")]
    pub(crate) architecture: Option<String>,
    /// A name of the image; may be given several times
    #[arg(long = "alias", value_name = "ALIAS")]
    pub(crate) aliases: Vec<Alias>,
    #[command(flatten)]
    pub(crate) telling: TellingArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// A name, an id or the beginning of one
    pub(crate) image: String,
    /// Where to
    pub(crate) file: PathBuf,
    /// The files alone, without what describes the image
    #[arg(long)]
    pub(crate) plain: bool,
    #[command(flatten)]
    pub(crate) telling: TellingArgs,
}

/// How much is told while it goes on.
#[derive(Debug, Args)]
pub(crate) struct TellingArgs {
    /// Tell nothing but results and errors
    #[arg(long, short)]
    pub(crate) quiet: bool,
}
