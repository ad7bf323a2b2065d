//! Exit codes of what goes wrong with images and files of containers.

use cgrant_image::{
    CopyError, ExportError, HandoverError, ImportError, PlaceError, SpoolError, UnpackError, WalkError,
    build::{BadRecipe, BuildError},
    fetch::FetchError,
    simplestreams::StreamsError,
    store::{BadAlias, StoreError},
};

use super::JobFailure;
use crate::exit;

/// An error that ends a job, or keeps it from beginning.
pub(crate) trait Fails: std::error::Error + Sized {
    /// The exit code.
    fn exit_code(&self) -> u8;
}

impl<E: Fails> From<E> for JobFailure {
    fn from(error: E) -> Self {
        Self::of(&error, error.exit_code())
    }
}

impl Fails for StoreError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::UnknownImage(_)
            | Self::Ambiguous(_)
            | Self::InUse { .. }
            | Self::UnknownContainer(_)
            | Self::NameTaken(_) => exit::REFUSED,
            Self::BadName(_) => exit::USAGE,
            Self::NoHome
            | Self::Open { .. }
            | Self::Foreign { .. }
            | Self::Use { .. }
            | Self::Damaged(_)
            | Self::DamagedNames => exit::MACHINE,
        }
    }
}

impl Fails for PlaceError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::NearlyFull { .. } | Self::Full | Self::Quota | Self::Make { .. } => exit::MACHINE,
            _ => exit::SOURCE,
        }
    }
}

impl Fails for WalkError {
    fn exit_code(&self) -> u8 {
        exit::MACHINE
    }
}

impl Fails for UnpackError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Place(error) => error.exit_code(),
            Self::Directory(_) => exit::MACHINE,
            _ => exit::SOURCE,
        }
    }
}

impl Fails for CopyError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Place(error) => error.exit_code(),
            Self::Walk(error) => error.exit_code(),
            Self::Directory(_) => exit::MACHINE,
        }
    }
}

impl Fails for HandoverError {
    fn exit_code(&self) -> u8 {
        exit::MACHINE
    }
}

impl Fails for ExportError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Compression => exit::USAGE,
            Self::Walk(_) | Self::Write(_) => exit::MACHINE,
        }
    }
}

impl Fails for ImportError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Unpack(error) => error.exit_code(),
            Self::Copy(error) => error.exit_code(),
            Self::Identity(error) => error.exit_code(),
            Self::Read(_) | Self::Directory(_) => exit::MACHINE,
            _ => exit::SOURCE,
        }
    }
}

impl Fails for BuildError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Failed { .. } => exit::SOURCE,
            _ => exit::MACHINE,
        }
    }
}

impl Fails for SpoolError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::NoRoom(error) => error.exit_code(),
            Self::Write(_) => exit::MACHINE,
            Self::Read(_) | Self::TooLarge(_) => exit::SOURCE,
        }
    }
}

impl Fails for FetchError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Spool(error) => error.exit_code(),
            Self::Write(_) => exit::MACHINE,
            _ => exit::SOURCE,
        }
    }
}

impl Fails for StreamsError {
    fn exit_code(&self) -> u8 {
        match self {
            Self::Fetch(error) => error.exit_code(),
            _ => exit::SOURCE,
        }
    }
}

impl Fails for BadRecipe {
    fn exit_code(&self) -> u8 {
        exit::USAGE
    }
}

impl Fails for BadAlias {
    fn exit_code(&self) -> u8 {
        exit::USAGE
    }
}
