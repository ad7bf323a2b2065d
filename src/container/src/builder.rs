//! Builds the container's tree, as the root of its user namespace: what is mounted belongs to who mounts it.
//!
//! A child of the launch stage, in the stage's namespaces, which has ended before the container's first process is made.
//! It is not in the grant's cgroup: nothing of the command runs in it, and what it makes is bounded by what it is.

use cgrant_sys::{Channel, Clone3};
use rustix::{fs::Mode, process::Signal};

use crate::{
    container::Ending,
    failure::{At, Step, StepFailure},
    init,
    launch::Placement,
    root::NewRoot,
    spec::Prepared,
};

/// Runs the builder to its end. If that is not 0, the launcher has been told why, unless the builder was killed.
pub(crate) fn run(
    channel: &Channel,
    spec: &Prepared,
    root: &NewRoot,
    placement: &Placement,
) -> Result<Ending, StepFailure> {
    let builder = Clone3::new()
        .spawn(|| match build(spec, root, placement) {
            Ok(()) => 0,
            Err(failure) => init::report(channel, failure),
        })
        .at(Step::Builder, "")?;
    builder.pidfd.wait().map(Ending).at(Step::Builder, "")
}

fn build(spec: &Prepared, root: &NewRoot, placement: &Placement) -> Result<(), StepFailure> {
    init::become_root(spec.setgroups)?;
    // A stage that is given up takes this process with it. Set after the change of uid, which takes it back.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).at(Step::Builder, "")?;
    rustix::process::umask(Mode::from_raw_mode(init::UMASK));
    let hostname = spec.hostname.as_ref().unwrap_or(&placement.hostname);
    rustix::system::sethostname(hostname.as_bytes()).at(Step::Hostname, hostname)?;
    root.build(hostname, placement)
}
