//! The verbs, one module a noun.

pub(crate) mod account;
pub(crate) mod autostart;
pub(crate) mod cgroup;
pub(crate) mod container;
pub(crate) mod departed;
pub(crate) mod disk;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod explain;
pub(crate) mod grant;
mod hostconfig;
pub(crate) mod image;
mod inner;
pub(crate) mod link;
pub(crate) mod policy;
pub(crate) mod run;
mod supervise;
mod tap;
mod watched;
