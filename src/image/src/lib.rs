//! Images of system containers: what turns an archive, a directory or a distribution's packages into a root file
//! system with a description of it, keeps it, and makes archives of it again.

pub mod acl;
pub mod archive;
mod attributes;
pub mod build;
mod census;
mod copy;
mod digest;
mod export;
pub mod fetch;
mod handover;
mod image;
mod import;
mod leftover;
mod limits;
mod path;
mod place;
mod progress;
mod remove;
pub mod simplestreams;
mod spool;
mod step;
pub mod store;
mod unpack;
mod usage;
mod walk;

pub use attributes::LeftOut;
pub use census::{Census, Unseen};
pub use copy::{Copied, CopyError, CopyOptions, copy};
pub use digest::{NotASum, Sha256};
pub use export::{ExportError, Exported, Form, export, identity};
pub use handover::{HandoverError, accept, offer};
pub use image::{About, FORMAT, Image};
pub use import::{ImportError, Imported, Source, describe_built, import};
pub use leftover::{Act, Leftovers, leftovers};
pub use limits::Limits;
pub use path::{BadPath, TreePath};
pub use place::{Omissions, PlaceError};
pub use progress::{Progress, Step, Watch};
pub use remove::remove_tree;
pub use spool::{SpoolError, spool};
pub use unpack::{UnpackError, Unpacked, unpack};
pub use usage::{DiskUsage, disk_usage};
pub use walk::WalkError;
