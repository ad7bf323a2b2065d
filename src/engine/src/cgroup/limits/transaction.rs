//! Changes that can be taken back.
//!
//! Undoing goes through the same states in the opposite order. Each of them was accepted by the kernel once, so
//! constraints between cgroups (v1's cpu.cfs and cpuset) hold on the way back too.

use std::{io, rc::Rc};

use super::super::{
    cpuset::{self, Masks},
    error::CgroupError,
    node::Node,
};

enum Done {
    Written { node: Rc<Node>, file: String, old: String },
    Masks { node: Rc<Node>, old: Masks },
}

/// What was changed so far.
#[derive(Default)]
pub(super) struct Transaction(Vec<Done>);

impl Transaction {
    /// Replaces the value of a file that has one.
    ///
    /// # Errors
    /// What the kernel refuses; the file is as it was then.
    pub fn replace(&mut self, node: &Rc<Node>, file: &str, value: &str) -> io::Result<()> {
        let old = node.read(file)?;
        if old == value {
            return Ok(());
        }
        self.write(node, file, value, old)
    }

    /// Writes to a file; writing `old` takes it back.
    ///
    /// # Errors
    /// What the kernel refuses; the file is as it was then.
    pub fn write(&mut self, node: &Rc<Node>, file: &str, value: &str, old: String) -> io::Result<()> {
        node.write(file, value)?;
        self.0.push(Done::Written { node: Rc::clone(node), file: file.to_owned(), old });
        Ok(())
    }

    /// Sets the CPUs of a v1 cpuset and of all below it.
    ///
    /// # Errors
    /// What the kernel refuses; part of it is done then, and undone with the rest.
    pub fn set_masks(&mut self, node: &Rc<Node>, old: Masks, wanted: &Masks) -> io::Result<()> {
        self.0.push(Done::Masks { node: Rc::clone(node), old });
        cpuset::set(node, wanted)
    }

    /// Takes everything back, the last change first. Goes on after an error and gives the first.
    ///
    /// # Errors
    /// [`CgroupError::NotPutBack`].
    pub fn undo(self) -> Result<(), CgroupError> {
        let mut first = Ok(());
        for done in self.0.into_iter().rev() {
            let failed = match done {
                Done::Written { node, file, old } => node.write(&file, &old).map_err(|source| {
                    CgroupError::NotPutBack { file: node.path_of(&file), value: old, source }
                }),
                Done::Masks { node, old } => {
                    cpuset::set(&node, &old).map_err(|source| CgroupError::NotPutBack {
                        file: node.path_of("cpuset.cpus"),
                        value: "the CPUs before".to_owned(),
                        source,
                    })
                }
            };
            first = first.and(failed);
        }
        first
    }
}
