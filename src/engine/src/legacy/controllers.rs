//! The controllers argument: which hierarchies it stands for. Pure.

use super::fault::Fault;

/// Every hierarchy.
const ALL: &str = "all";

/// Is it this controller of this hierarchy? Named ones go by their bare name too.
fn has(hierarchy: &str, controller: &str) -> bool {
    hierarchy
        .split(',')
        .any(|name| name == controller || name.strip_prefix("name=").is_some_and(|bare| bare == controller))
}

/// The hierarchy (by its place in `hierarchies`) that all members of the list belong to.
///
/// # Errors
/// [`Fault::Controllers`].
pub fn one(wanted: &str, hierarchies: &[&str]) -> Result<usize, Fault> {
    match list(wanted, hierarchies)?.as_slice() {
        [only] => Ok(*only),
        _ => Err(unknown(wanted)),
    }
}

/// The hierarchies that a list, or `all`, stands for, each once.
///
/// # Errors
/// [`Fault::Controllers`].
pub fn many(wanted: &str, hierarchies: &[&str]) -> Result<Vec<usize>, Fault> {
    if wanted == ALL { Ok((0..hierarchies.len()).collect()) } else { list(wanted, hierarchies) }
}

fn list(wanted: &str, hierarchies: &[&str]) -> Result<Vec<usize>, Fault> {
    if wanted.len() > cgrant_wire::legacy::MAX_TEXT {
        return Err(unknown(wanted));
    }
    let mut found = Vec::new();
    for name in wanted.split(',') {
        let place = hierarchies.iter().position(|hierarchy| has(hierarchy, name));
        let place = place.ok_or_else(|| unknown(name))?;
        if !found.contains(&place) {
            found.push(place);
        }
    }
    Ok(found)
}

fn unknown(wanted: &str) -> Fault {
    Fault::Controllers(wanted.escape_default().take(64).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    const HOST: [&str; 3] = ["cpu,cpuacct", "memory", "name=systemd"];

    #[test]
    fn one_hierarchy_by_any_of_its_names() {
        for (wanted, place) in [
            ("cpu", 0),
            ("cpuacct", 0),
            ("cpu,cpuacct", 0),
            ("memory", 1),
            ("name=systemd", 2),
            ("systemd", 2),
        ] {
            assert_eq!(one(wanted, &HOST).unwrap(), place, "{wanted}");
        }
        for wanted in ["", "all", "cpu,memory", "cpus", "mem", "name=memory", "memory,", "../memory"] {
            assert!(matches!(one(wanted, &HOST), Err(Fault::Controllers(_))), "{wanted}");
        }
    }

    #[test]
    fn lists_name_each_hierarchy_once() {
        assert_eq!(many("all", &HOST).unwrap(), [0, 1, 2]);
        assert_eq!(many("systemd,cpuacct,cpu", &HOST).unwrap(), [2, 0]);
        assert!(many("cpu,all", &HOST).is_err());
        assert!(many("cpu,,memory", &HOST).is_err());
    }
}
