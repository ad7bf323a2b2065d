//! Programs in C of the tests', for what takes a system call that no library has.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::Lab;

/// Builds one, whose source is at this place in the project; or takes it from beside the broker's programs, where `tests/vm/run`
/// puts those that virtual machines need, which have no compiler.
pub fn build(lab: &Lab, source: &str) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let elsewhere = std::env::var("CGRANT_TEST_BIN").ok().map(PathBuf::from);
    if let Some(built) =
        elsewhere.map(|place| place.join(source.file_stem().unwrap())).filter(|it| it.exists())
    {
        return built;
    }
    let program = lab.scratch.join(source.file_stem().unwrap());
    let mut compiler = Command::new("cc");
    compiler.args(["-O1", "-Wall", "-Wextra", "-Werror", "-o"]).args([&program, &source]);
    let built = compiler.output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    program
}

/// One that has said that it is ready; it is killed in the end.
pub struct Ready(Child);

impl Ready {
    /// Starts it and waits until it says so.
    pub fn of(command: &mut Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        assert_eq!(said, "ready\n");
        Self(child)
    }

    /// The process that was started.
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
