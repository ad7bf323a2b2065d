//! What is otherwise on cgroup2 than on v1, so that clients of v1's find what they expect.
//!
//! | module | idea |
//! |---|---|
//! | [`files`] | files of v1's, and what stands behind them |
//! | [`leaf`] | a cgroup with processes and cgroups in it |
//! | [`enable`] | controllers for what is below a cgroup |
//! | [`bounds`] | what nobody is moved out of |

mod bounds;
mod enable;
mod files;
mod leaf;

pub use enable::Asked;
pub use leaf::{behind, entrance};
