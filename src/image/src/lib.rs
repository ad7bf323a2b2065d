//! Images of system containers: what turns an archive, a directory or a distribution's packages into a root file
//! system with a description of it, keeps it, and makes archives of it again.

pub mod acl;
pub mod archive;
mod limits;
mod path;
mod progress;

pub use limits::Limits;
pub use path::{BadPath, TreePath};
pub use progress::{Progress, Step, Watch};
