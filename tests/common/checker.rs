//! The independent checker: reads the kernel (cgroup trees, /proc, mountinfo, interfaces) and the broker's files
//! as plain JSON, and compares them. It shares no code with the broker.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::ErrorKind,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use serde_json::Value;

use super::{Host, Lab};

/// A grant's directories, by hierarchy.
pub type Places = BTreeMap<String, PathBuf>;

/// Mounts of this mount namespace.
pub fn mounts() -> Vec<String> {
    fs::read_to_string("/proc/self/mountinfo").unwrap().lines().map(str::to_owned).collect()
}

/// Network interfaces.
pub fn links() -> Vec<String> {
    let entries = fs::read_dir("/sys/class/net").unwrap().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The tops of an instance's trees: one a hierarchy, however deep systemd put it.
pub fn bases(host: &Host, instance: &str) -> Places {
    let names = if instance == "default" {
        ["cgrant-default".to_owned(), "cgrant.scope".to_owned()]
    } else {
        [format!("cgrant-{instance}"), format!("cgrant-{instance}.scope")]
    };
    let mut found = Places::new();
    for tree in &host.trees {
        let mut level = vec![tree.root.clone()];
        for _ in 0..4 {
            let below: Vec<PathBuf> = level.iter().flat_map(|dir| subdirectories(dir)).collect();
            let base = below
                .iter()
                .find(|dir| dir.file_name().is_some_and(|n| names.iter().any(|name| n == name.as_str())));
            if let Some(base) = base {
                found.insert(tree.name.clone(), base.clone());
                break;
            }
            level = below;
        }
    }
    found
}

/// Every cgroup of an instance, in every hierarchy; deepest last.
pub fn cgroups_of_instance(host: &Host, instance: &str) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = bases(host, instance).into_values().collect();
    let mut next = 0;
    while next < all.len() {
        let below = subdirectories(&all[next].clone());
        all.extend(below);
        next += 1;
    }
    all
}

/// Removes an instance's cgroups. What runs in them is killed first: it belongs to the test.
pub fn remove_cgroups(host: &Host, instance: &str) {
    for _ in 0..100 {
        let all = cgroups_of_instance(host, instance);
        if all.is_empty() {
            return;
        }
        for cgroup in all.iter().rev() {
            let _ = fs::write(cgroup.join("cgroup.kill"), "1");
            let _ = fs::write(cgroup.join("cgroup.freeze"), "0");
            let _ = fs::remove_dir(cgroup);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}

fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut found: Vec<PathBuf> =
        entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect();
    found.sort();
    found
}

/// The grants that the kernel has: by account and name, those of the grants around it before with slashes; their directories
/// by hierarchy.
pub fn grants_in_kernel(lab: &Lab) -> BTreeMap<(u32, String), Places> {
    let mut grants: BTreeMap<(u32, String), Places> = BTreeMap::new();
    for (tree, base) in bases(&lab.host, &lab.instance) {
        for account in subdirectories(&base) {
            let name = account.file_name().unwrap().to_str().unwrap().to_owned();
            let Some(uid) = name.strip_prefix('u').and_then(|uid| uid.parse::<u32>().ok()) else { continue };
            let mut above = vec![(account, String::new())];
            while let Some((directory, prefix)) = above.pop() {
                for grant in subdirectories(&directory) {
                    let name = grant.file_name().unwrap().to_str().unwrap().to_owned();
                    // Where processes are put whose grant was never finished; no grant can have this name.
                    if name == "_evicted" {
                        continue;
                    }
                    above.push((grant.join("children"), format!("{prefix}{name}/")));
                    grants.entry((uid, format!("{prefix}{name}"))).or_default().insert(tree.clone(), grant);
                }
            }
        }
    }
    grants
}

/// The directories of one grant.
///
/// # Panics
/// If the kernel has none.
pub fn places(lab: &Lab, account: u32, name: &str) -> Places {
    let all = grants_in_kernel(lab);
    all.get(&(account, name.to_owned()))
        .unwrap_or_else(|| panic!("the kernel has no grant {account}/{name}: {:?}", all.keys()))
        .clone()
}

/// The grant's directory in the hierarchy that has the controller.
pub fn place(lab: &Lab, account: u32, name: &str, controller: &str) -> PathBuf {
    let tree =
        lab.host.with(controller).unwrap_or_else(|| panic!("this host has no controller {controller}"));
    places(lab, account, name).remove(&tree.name).unwrap_or_else(|| panic!("no cgroup in {}", tree.name))
}

/// JSON files of a directory, which may be missing.
pub fn json_files(directory: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|e| e == "json"))
}

/// The records of grants, as JSON. One that goes between the listing and the reading is gone.
pub fn records(lab: &Lab) -> Vec<Value> {
    let directories = [lab.runtime_dir().join("state/grants"), lab.state_dir().join("grants")];
    let files = directories.iter().flat_map(|directory| json_files(directory));
    let texts = files.filter_map(|file| match fs::read_to_string(&file) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        text => Some(text.unwrap_or_else(|error| panic!("{}: {error}", file.display()))),
    });
    texts.map(|text| serde_json::from_str(&text).unwrap()).collect()
}

/// Ranges that are marked as in use by this instance, as `GRANT FIRST COUNT ACCOUNT`: the names of the marks.
pub fn live_ranges(lab: &Lab) -> Vec<String> {
    let entries = fs::read_dir(lab.ids.join("ids-live")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut marks: Vec<String> = names
        .filter_map(|name| {
            let parts: Vec<&str> = name.splitn(5, '.').collect();
            let [grant, first, count, account, instance] = parts[..] else { return None };
            (instance == lab.instance).then(|| format!("{grant} {first} {count} {account}"))
        })
        .collect();
    marks.sort();
    marks
}

/// Compares kernel and record in both directions; every difference is a complaint.
pub fn audit(lab: &Lab) -> Vec<String> {
    let mut complaints = Vec::new();
    let kernel = grants_in_kernel(lab);
    let records = records(lab);
    let mut recorded = BTreeSet::new();
    let mut with_range = Vec::new();
    for record in &records {
        let account = u32::try_from(record["account"].as_u64().unwrap()).unwrap();
        let name = name_of(record);
        let id = record["id"].as_str().unwrap();
        if record["phase"] != "active" {
            complaints.push(format!("grant {id} {name} is {} on record", record["phase"]));
        }
        // What is inside another grant's range is marked with that.
        if record["range"].is_object() && !record["nested"].is_object() {
            let range = &record["range"];
            with_range.push(format!("{id} {} {} {account}", range["uid"], range["count"]));
        }
        match kernel.get(&(account, name.clone())) {
            None => {
                complaints.push(format!("grant {id} {account}/{name} is on record and not in the kernel"))
            }
            Some(places) => complaints.extend(compare(lab, record, places)),
        }
        recorded.insert((account, name));
    }
    for (account, name) in kernel.keys().filter(|key| !recorded.contains(key)) {
        complaints.push(format!("cgroup {account}/{name} is in the kernel and not on record"));
    }
    with_range.sort();
    let live = live_ranges(lab);
    if live != with_range {
        complaints.push(format!("ranges in use by {live:?}, grants on record with ranges {with_range:?}"));
    }
    complaints.extend(overlaps(&records));
    complaints
}

// Its name behind those of the grants around it, each as its directory is called.
fn name_of(record: &Value) -> String {
    let around = record["nested"]["around"].as_array().into_iter().flatten();
    let own = record["name"].as_str().unwrap();
    let own = match record["nested"]["user"].as_u64() {
        None | Some(0) => own.to_owned(),
        Some(user) => format!("@{user}.{own}"),
    };
    let names = around.map(|name| name.as_str().unwrap().to_owned()).chain([own]);
    names.collect::<Vec<_>>().join("/")
}

fn compare(lab: &Lab, record: &Value, places: &Places) -> Vec<String> {
    let mut complaints = Vec::new();
    let id = record["id"].as_str().unwrap();
    for tree in &lab.host.trees {
        // cpuset, devices and the like alike: a grant has a cgroup in every hierarchy there is.
        match places.get(&tree.name) {
            None => complaints.push(format!("grant {id} has no cgroup in {}", tree.name)),
            Some(place) => {
                let owner = fs::metadata(place).unwrap().uid();
                if owner != 0 {
                    complaints.push(format!("{} belongs to {owner}", place.display()));
                }
            }
        }
    }
    if let Some(place) = places.get("cgroup2") {
        let payload = fs::metadata(place.join("payload"));
        match payload {
            Ok(payload) if Some(payload.ino()) == record["cgroup_id"].as_u64() => {}
            other => complaints.push(format!(
                "payload of {id}: record says {}, kernel {:?}",
                record["cgroup_id"],
                other.map(|m| m.ino())
            )),
        }
    }
    for pair in record["limits"].as_array().unwrap() {
        let (key, value) = (pair[0].as_str().unwrap(), pair[1].as_str().unwrap());
        let (controller, v1_file) = match key {
            "memory.max" => ("memory", "memory.limit_in_bytes"),
            "pids.max" => ("pids", "pids.max"),
            _ => continue,
        };
        let file = if lab.host.is_v1(controller) { v1_file } else { key };
        let Some(tree) = lab.host.with(controller) else { continue };
        let Some(place) = places.get(&tree.name) else { continue };
        let now = fs::read_to_string(place.join(file)).unwrap();
        if now.trim() != value {
            complaints.push(format!("{key} of {id}: record says {value}, kernel {}", now.trim()));
        }
    }
    complaints
}

// No id in two grants, but for those of a grant inside another: they are in that one's, behind its own.
fn overlaps(records: &[Value]) -> Vec<String> {
    let of = |r: &Value| {
        let (uid, count) = (r["range"]["uid"].as_u64()?, r["range"]["count"].as_u64()?);
        let own = count - r["nesting"].as_u64().unwrap_or(0) * 65_536;
        Some((r["id"].to_string(), format!("{}:{}", r["account"], name_of(r)), uid, count, own))
    };
    let ranges: Vec<(String, String, u64, u64, u64)> = records.iter().filter_map(of).collect();
    let mut complaints = Vec::new();
    for (at, one) in ranges.iter().enumerate() {
        for other in &ranges[at + 1..] {
            let is_in =
                |outer: &str, name: &str| name.strip_prefix(outer).is_some_and(|r| r.starts_with('/'));
            let (outer, inner) = if is_in(&other.1, &one.1) { (other, one) } else { (one, other) };
            let fits = match is_in(&outer.1, &inner.1) {
                true => outer.2 + outer.4 <= inner.2 && inner.2 + inner.3 <= outer.2 + outer.3,
                false => outer.2 >= inner.2 + inner.3 || inner.2 >= outer.2 + outer.3,
            };
            if !fits {
                complaints.push(format!("ranges of {} and {} overlap", outer.0, inner.0));
            }
        }
    }
    complaints
}

/// The audit must find nothing.
///
/// # Panics
/// With the complaints.
#[track_caller]
pub fn assert_in_order(lab: &Lab) {
    let complaints = audit(lab);
    assert!(complaints.is_empty(), "kernel and record differ:\n  {}", complaints.join("\n  "));
}

/// No grant is left in kernel or record.
///
/// # Panics
/// If one is.
#[track_caller]
pub fn assert_empty(lab: &Lab) {
    assert_in_order(lab);
    let grants = grants_in_kernel(lab);
    assert!(grants.is_empty() && records(lab).is_empty(), "grants are left: {:?}", grants.keys());
}

/// The pids in a cgroup and all below it.
pub fn members(cgroup: &Path) -> BTreeSet<u32> {
    let mut pids = BTreeSet::new();
    let mut directories = vec![cgroup.to_owned()];
    while let Some(directory) = directories.pop() {
        directories.extend(subdirectories(&directory));
        let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
    }
    pids
}
