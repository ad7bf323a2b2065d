//! Numbered steps at which a test build of the helper can be made to fail or to die.
//!
//! Without the feature `fault-injection` every step is nothing. With it, the file `fault` in the helper's directory
//! says what to do: `die:N` (abort at the N-th step from now), `fail:N` (the N-th step fails) or `count` (only note
//! the steps). The names of the steps passed are appended to `fault.log` beside it. After it acted the file says `done`.
//! Steps of an undo are none: what is tested is that it leaves nothing.

use cgrant_sys::dir::Dir;

/// A step was made to fail.
#[derive(Debug, thiserror::Error)]
#[error("injected failure at step {0}")]
pub struct Injected(pub &'static str);

/// The steps' state.
pub struct Fault {
    #[cfg(feature = "fault-injection")]
    directory: Dir,
}

#[cfg(not(feature = "fault-injection"))]
impl Fault {
    /// Nothing is injected in this build.
    pub fn new(_directory: &Dir) -> std::io::Result<Self> {
        Ok(Self {})
    }

    /// Passes the step called `name`.
    ///
    /// # Errors
    /// None in this build.
    #[inline]
    pub fn step(&self, _name: &'static str) -> Result<(), Injected> {
        Ok(())
    }
}

#[cfg(feature = "fault-injection")]
impl Fault {
    /// Reads its orders from `directory`.
    pub fn new(directory: &Dir) -> std::io::Result<Self> {
        Ok(Self { directory: directory.try_clone()? })
    }

    /// Passes the step called `name`.
    ///
    /// # Errors
    /// [`Injected`] when the order is to fail here.
    pub fn step(&self, name: &'static str) -> Result<(), Injected> {
        use std::io::Write;
        let Ok(order) = self.directory.read("fault", 64) else { return Ok(()) };
        let order = order.trim();
        if order == "done" {
            return Ok(());
        }
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CREATE | rustix::fs::OFlags::APPEND;
        if let Ok(log) = self.directory.open_file("fault.log", flags) {
            let _ = writeln!(std::fs::File::from(log), "{name}");
        }
        let Some((what, left)) = order.split_once(':') else { return Ok(()) };
        let left: u32 = left.parse().unwrap_or(1);
        if left > 1 {
            let _ = self.directory.write_atomic("fault", format!("{what}:{}", left - 1).as_bytes(), false);
            return Ok(());
        }
        let _ = self.directory.write_atomic("fault", b"done", false);
        if what == "die" {
            std::process::abort();
        }
        Err(Injected(name))
    }
}
