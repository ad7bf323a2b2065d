//! The exit codes, in one place: what scripts rely on and what `--help` shows.

/// Done.
pub(crate) const DONE: u8 = 0;
/// The broker refused, or `doctor` found something that fails.
pub(crate) const REFUSED: u8 = 1;
/// The command line is wrong.
pub(crate) const USAGE: u8 = 2;
/// No broker answers.
pub(crate) const NO_BROKER: u8 = 3;
/// This machine refused something that the command itself did: a step of a launch, reading a file, writing a result.
pub(crate) const MACHINE: u8 = 4;

/// The same for people.
pub(crate) const TABLE: &str = "\
Exit codes:
  0        done
  1        the broker refused (of doctor: something fails)
  2        the command line is wrong
  3        no broker answers
  4        this machine refused a step of the launch, or the result could not be written
  126      run: the command cannot be executed
  127      run: the command was not found
  128 + N  run: signal N ended the command
  others   run: the command's own, which may be any number, those above too";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_names_every_code() {
        for code in [DONE, REFUSED, USAGE, NO_BROKER, MACHINE] {
            assert!(TABLE.contains(&format!("\n  {code}        ")), "{code}");
        }
    }
}
