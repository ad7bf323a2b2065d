//! Numbered steps at which a test build of the engine can be made to die or to fail.
//!
//! Without the feature `fault-injection` every step is nothing. With it, the file `fault` in the run
//! directory says what to do: `die:N` (abort at the N-th step from now), `fail:N` (the N-th step is
//! refused by the kernel, as it were), `wait:N` (the N-th step takes until the file is gone, and the file says `waiting`
//! so long) or `count` (only note the steps). The names of the steps passed are appended to `fault.log` beside it. After it
//! acted the file says `done`.

use cgrant_sys::dir::Dir;
use cgrant_wire::Refusal;

/// The steps' state.
pub struct Fault {
    #[cfg(feature = "fault-injection")]
    directory: std::sync::Mutex<Dir>,
}

#[cfg(not(feature = "fault-injection"))]
impl Fault {
    /// Nothing is injected in this build.
    pub fn new(_run_directory: &Dir) -> std::io::Result<Self> {
        Ok(Self {})
    }

    /// Passes the step called `name`.
    ///
    /// # Errors
    /// None in this build.
    #[inline]
    pub fn step(&self, _name: &str) -> Result<(), Refusal> {
        Ok(())
    }
}

#[cfg(feature = "fault-injection")]
impl Fault {
    /// Reads its orders from `run_directory`.
    pub fn new(run_directory: &Dir) -> std::io::Result<Self> {
        Ok(Self { directory: std::sync::Mutex::new(run_directory.try_clone()?) })
    }

    /// Passes the step called `name`.
    ///
    /// # Errors
    /// [`cgrant_wire::RefusalCode::KernelRefused`] when the order is to fail here, or the one that the order names.
    pub fn step(&self, name: &str) -> Result<(), Refusal> {
        use std::io::Write;
        let directory = self.directory.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let Ok(order) = directory.read("fault", 64) else { return Ok(()) };
        let order = order.trim();
        if order == "done" || order == "waiting" {
            return Ok(());
        }
        let flags = rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CREATE | rustix::fs::OFlags::APPEND;
        if let Ok(log) = directory.open_file("fault.log", flags) {
            let _ = writeln!(std::fs::File::from(log), "{name}");
        }
        let Some((what, left)) = order.split_once(':') else { return Ok(()) };
        let left: u32 = left.parse().unwrap_or(1);
        if left > 1 {
            let _ = directory.write_atomic("fault", format!("{what}:{}", left - 1).as_bytes(), false);
            return Ok(());
        }
        if what == "wait" {
            let _ = directory.write_atomic("fault", b"waiting", false);
            while directory.exists("fault").unwrap_or(false) {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            return Ok(());
        }
        let _ = directory.write_atomic("fault", b"done", false);
        if what == "die" {
            std::process::abort();
        }
        let code = serde_json::from_value(what.into()).unwrap_or(cgrant_wire::RefusalCode::KernelRefused);
        Err(Refusal::new(code, format!("injected failure at step {name}")))
    }
}
