//! Which application a caller is: the unit that its process's cgroup lies in, and whether that is anybody's word but the caller's.
//!
//! May touch: cgroup directories that others made, to see whose they are. Nothing of them is read.

use cgrant_policy::{Application, HostUid};

use crate::cgroup::Tree;

/// The application of a process of `uid`, by its list of cgroups; `None` if that does not say, or says it by a way that somebody
/// other than root could have made.
///
/// An attacker wants the rights of another application. A cgroup's name is worth as much as the rights to make one there: every
/// cgroup above the unit, the hierarchy's root too, has to be root's, with nobody else allowed to make others in it. A delegated
/// tree, a container's, or one on a host whose root gave it away, has no such way. What the list says is of a process that was
/// seen alive afterwards, and in the engine's own cgroup namespace, whatever the caller's shows.
///
/// On cgroup v1 whoever may write a delegated unit's files can move processes of his own into it from anywhere; there a unit
/// that is not root's own tells nothing.
pub fn of(tree: &Tree, cgroups: &[(String, String)], uid: HostUid) -> Option<Application> {
    // systemd's own hierarchy is the one of v1 only where it does not have cgroup2 for itself.
    let lines = tree.unit_hierarchies().into_iter();
    let mut found = lines.filter_map(|name| cgroups.iter().find(|(hierarchy, _)| hierarchy == name));
    found.find_map(|(hierarchy, path)| {
        let place = Application::at(path, uid)?;
        tree.only_root_could_make(hierarchy, &place.above, &place.unit).then_some(place.application)
    })
}
