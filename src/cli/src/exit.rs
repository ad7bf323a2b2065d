//! The exit codes, in one place: what scripts rely on and what `--help` shows.

/// Done.
pub(crate) const DONE: u8 = 0;
/// The broker refused, what was named is not there, in use, or does not run, or `doctor` found something that fails.
pub(crate) const REFUSED: u8 = 1;
/// The command line is wrong.
pub(crate) const USAGE: u8 = 2;
/// No broker answers.
pub(crate) const NO_BROKER: u8 = 3;
/// This machine refused something that the command itself did: a step of a launch, naming a process or a namespace to the
/// broker, writing a result.
pub(crate) const MACHINE: u8 = 4;
/// What an image was to be made of is not fit for it: an archive, a checksum, a download, a build.
pub(crate) const SOURCE: u8 = 5;
/// The command that was to be run cannot be executed.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// The command that was to be run is not there.
pub(crate) const NOT_FOUND: u8 = 127;

/// The same for people.
pub(crate) const TABLE: &str = "\
Exit codes:
  0        done
  1        the broker refused, or there is no such image or container, or it is in use, or does (not)
           run, or ended before it had booted (of doctor: something fails)
  2        the command line is wrong
  3        no broker answers
  4        this machine refused what cgrant did itself: a step of a launch, naming a process that is
           not there, writing the result
  5        what an image was to be made of is not fit for it: a bad archive, a wrong checksum, a
           download or a build that failed
  126      run, exec, link tap: the command cannot be executed
  127      run, exec, link tap: the command was not found
  128 + N  run, exec: signal N ended the command; image: signal N ended the work, of which nothing
           was kept
  others   run, exec, shell, link tap: the command's own, which may be any number, those above too";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_every_code() {
        for code in [DONE, REFUSED, USAGE, NO_BROKER, MACHINE, SOURCE, NOT_EXECUTABLE, NOT_FOUND] {
            assert!(TABLE.contains(&format!("\n  {code:<9}")), "{code}");
        }
    }
}
