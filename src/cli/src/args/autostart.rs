//! The words of `cgrant autostart …`.

use clap::Subcommand;

use super::container::TimeoutArgs;

#[derive(Debug, Subcommand)]
pub(crate) enum AutostartCommand {
    /// Starts your containers that are set to start with the machine and do not run
    #[command(after_help = "\
One after the other, in the order of their names. If one can't be started, the others are; the exit
code is that of the first failure.

Examples:
  cgrant set web autostart=true
  cgrant autostart start
  @reboot cgrant autostart start --wait-for-broker 60     in a crontab, where systemd does not run")]
    Start {
        /// Where no broker answers yet, wait for it so long
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        wait_for_broker: u16,
    },
    /// Stops those of them that run, in order: as if they were switched off
    #[command(after_help = "\
All at the same time. If one can't be stopped, the others are; the exit code is that of the first
failure.

Example:
  cgrant autostart stop --timeout 30")]
    Stop {
        #[command(flatten)]
        timeout: TimeoutArgs,
    },
}
