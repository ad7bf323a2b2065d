//! What a grant uses: the figures of its own cgroup, which counts monitor and children too, as its limits do.

use cgrant_policy::GrantPath;
use cgrant_wire::Stat;

use super::{
    error::CgroupError,
    hierarchy::Hierarchy,
    mounts::Kind,
    node::{Node, value_of},
    tree::{PAYLOAD, Tree},
};

/// Bytes read, bytes written, reads, writes of a device.
type Device = (u32, u32, u64, u64, u64, u64);

impl Tree {
    /// What a grant uses. A figure that this host's kernel does not give is missing.
    ///
    /// # Errors
    /// [`CgroupError::NoSuchGrant`], what the kernel refuses.
    pub fn stat(&self, grant: &GrantPath) -> Result<Stat, CgroupError> {
        let mut stat = Stat::default();
        let base = self.need(self.v2(), grant)?;
        // cgroup2 counts CPU time without the controller too (kernel/cgroup/rstat.c), so on every host.
        let cpu = base.read_if_there("cpu.stat")?.unwrap_or_default();
        stat.cpu_usage_usec = value_of(&cpu, "usage_usec");
        stat.cpu_user_usec = value_of(&cpu, "user_usec");
        stat.cpu_system_usec = value_of(&cpu, "system_usec");
        for resource in ["cpu", "memory", "io"] {
            let text = base.read_if_there(&format!("{resource}.pressure"))?.unwrap_or_default();
            stat.pressure.extend(text.lines().filter_map(|line| pressure(resource, line)));
        }
        if let Some(hierarchy) = self.hierarchies.controller("cpu") {
            stat.cpu_throttled_usec = self.throttled(hierarchy, grant)?;
        }
        if let Some(hierarchy) = self.hierarchies.controller("pids") {
            stat.pids_current = figure(&self.need(hierarchy, grant)?, "pids.current")?;
        }
        if let Some(hierarchy) = self.hierarchies.controller("memory") {
            memory(&mut stat, &self.need(hierarchy, grant)?, hierarchy.kind)?;
            stat.oom_kills = Some(self.oom_kills(grant)?);
        }
        if let Some(hierarchy) = self.hierarchies.controller("io") {
            stat.io = io(&self.need(hierarchy, grant)?, hierarchy.kind)?;
        }
        Ok(stat)
    }

    /// Grant and payload have the same `cpu.max`, and each counts what it held back itself: whichever was first.
    fn throttled(&self, hierarchy: &Hierarchy, grant: &GrantPath) -> Result<Option<u64>, CgroupError> {
        let mut most = None;
        for node in [self.need(hierarchy, grant)?, self.need_part(hierarchy, grant, PAYLOAD)?] {
            let text = node.read_if_there("cpu.stat")?.unwrap_or_default();
            let found = match hierarchy.kind {
                Kind::V2 => value_of(&text, "throttled_usec"),
                Kind::V1 => value_of(&text, "throttled_time").map(|nanoseconds| nanoseconds / 1000),
            };
            most = most.max(found);
        }
        Ok(most)
    }
}

fn memory(stat: &mut Stat, node: &Node, kind: Kind) -> Result<(), CgroupError> {
    match kind {
        Kind::V2 => {
            stat.memory_current = figure(node, "memory.current")?;
            stat.memory_peak = figure(node, "memory.peak")?;
            stat.swap_current = figure(node, "memory.swap.current")?;
        }
        Kind::V1 => {
            stat.memory_current = figure(node, "memory.usage_in_bytes")?;
            stat.memory_peak = figure(node, "memory.max_usage_in_bytes")?;
            let both = figure(node, "memory.memsw.usage_in_bytes")?;
            stat.swap_current =
                both.zip(stat.memory_current).map(|(both, memory)| both.saturating_sub(memory));
        }
    }
    Ok(())
}

fn figure(node: &Node, file: &str) -> Result<Option<u64>, CgroupError> {
    Ok(node.read_if_there(file)?.and_then(|text| text.parse().ok()))
}

fn io(node: &Node, kind: Kind) -> Result<Vec<Device>, CgroupError> {
    match kind {
        Kind::V2 => {
            let text = node.read_if_there("io.stat")?.unwrap_or_default();
            Ok(text.lines().filter_map(io_v2).collect())
        }
        Kind::V1 => {
            let mut devices = Vec::new();
            for (file, operations) in [
                ("blkio.throttle.io_service_bytes_recursive", false),
                ("blkio.throttle.io_serviced_recursive", true),
            ] {
                let text = node.read_if_there(file)?.unwrap_or_default();
                text.lines().for_each(|line| io_v1(line, operations, &mut devices));
            }
            Ok(devices)
        }
    }
}

fn device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// `8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`
fn io_v2(line: &str) -> Option<Device> {
    let (name, rest) = line.split_once(' ')?;
    let (major, minor) = device(name)?;
    let figure = |key: &str| {
        let found = rest.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        found.and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    Some((major, minor, figure("rbytes"), figure("wbytes"), figure("rios"), figure("wios")))
}

/// `8:16 Read 1`, one line an operation.
fn io_v1(line: &str, operations: bool, devices: &mut Vec<Device>) {
    let mut words = line.split_ascii_whitespace();
    let (Some(name), Some(kind), Some(value)) = (words.next().and_then(device), words.next(), words.next())
    else {
        return;
    };
    let Ok(value) = value.parse() else { return };
    let at = devices.iter().position(|found| (found.0, found.1) == name).unwrap_or_else(|| {
        devices.push((name.0, name.1, 0, 0, 0, 0));
        devices.len() - 1
    });
    let Some(found) = devices.get_mut(at) else { return };
    match (kind, operations) {
        ("Read", false) => found.2 = value,
        ("Write", false) => found.3 = value,
        ("Read", true) => found.4 = value,
        ("Write", true) => found.5 = value,
        _ => (),
    }
}

/// `some avg10=0.12 avg60=0.00 avg300=0.00 total=1234`
fn pressure(resource: &str, line: &str) -> Option<(String, String, [u32; 3], u64)> {
    let mut words = line.split_ascii_whitespace();
    let kind = words.next()?;
    let mut value = |key: &str| words.next()?.strip_prefix(key)?.strip_prefix('=');
    let averages =
        [hundredths(value("avg10")?)?, hundredths(value("avg60")?)?, hundredths(value("avg300")?)?];
    let total = value("total")?.parse().ok()?;
    Some((resource.to_owned(), kind.to_owned(), averages, total))
}

fn hundredths(text: &str) -> Option<u32> {
    let (whole, part) = text.split_once('.')?;
    let part = if part.len() == 2 { part.parse::<u32>().ok()? } else { return None };
    whole.parse::<u32>().ok()?.checked_mul(100)?.checked_add(part)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn pressure_lines() {
        let found = pressure("io", "full avg10=1.05 avg60=0.10 avg300=100.00 total=42").unwrap();
        assert_eq!(found, ("io".into(), "full".into(), [105, 10, 10_000], 42));
        assert_eq!(pressure("io", "full avg60=1.05 avg10=0.10 avg300=0.00 total=42"), None);
    }

    #[test]
    fn io_lines_of_both_versions() {
        assert_eq!(io_v2("8:16 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6"), Some((8, 16, 1, 2, 3, 4)));
        assert_eq!(io_v2("8:16 rbytes=1"), Some((8, 16, 1, 0, 0, 0)));
        let mut devices = Vec::new();
        for (line, operations) in
            [("8:0 Read 7", false), ("8:0 Total 9", false), ("8:0 Write 2", true), ("Total 3", true)]
        {
            io_v1(line, operations, &mut devices);
        }
        assert_eq!(devices, [(8, 0, 7, 0, 0, 2)]);
    }
}
