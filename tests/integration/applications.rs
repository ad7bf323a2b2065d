//! Rules for applications: told by the cgroup that a caller is in, where nobody else could have made that; and everything that a
//! caller can do to look like another one.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::common::{Lab, User};

/// Cgroups of the test's own, gone with it.
struct Cgroups {
    root: PathBuf,
    made: Vec<PathBuf>,
}

impl Cgroups {
    fn new(lab: &Lab) -> Self {
        Self { root: lab.host.cgroup2().root.clone(), made: Vec::new() }
    }

    /// A cgroup by its path from the root; what is above is made too.
    fn make(&mut self, path: &str) -> PathBuf {
        let mut place = self.root.clone();
        for name in path.split('/') {
            place.push(name);
            if !place.is_dir() {
                fs::create_dir(&place).unwrap();
                self.made.push(place.clone());
            }
        }
        place
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // One that another test program uses too, such as user.slice, may stay its.
        self.made.iter().rev().for_each(|place| drop(fs::remove_dir(place)));
    }
}

/// The rule of the user's quotas, in this cgroup.
fn rule_in(user: &User, socket: &Path, place: &Path) -> String {
    quotas_in(user, socket, place).0
}

/// The rule of the user's quotas in this cgroup, and the quotas of grants and links.
fn quotas_in(user: &User, socket: &Path, place: &Path) -> (String, u64, u64) {
    let output = user.cgrant_in(place, socket, &["usage", "--format", "json"]);
    let said: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    let rows = said["rows"].as_array().unwrap();
    let quota =
        |name: &str| rows.iter().find(|row| row["resource"] == name).unwrap()["quota"].as_u64().unwrap();
    (said["rule"].as_str().unwrap().to_owned(), quota("grants"), quota("links"))
}

const POLICY: &str = r#"
[[rule]]
name = "by unit"
applications = ["unit:nightly.service"]
quota.grants = 500

[[rule]]
name = "by flatpak"
applications = ["flatpak:org.example.Ci"]
quota = { grants = 400, links = 1 }

[[rule]]
name = "people"
quota.grants = 3
"#;

fn a_unit_that_only_root_can_make_has_its_rule(lab: &Lab) {
    lab.write_policy(POLICY);
    let (broker, user) = (lab.broker(), lab.user());
    let mut cgroups = Cgroups::new(lab);
    let slice = format!("t{}.slice", std::process::id());
    let unit = cgroups.make(&format!("{slice}/nightly.service"));
    let below = cgroups.make(&format!("{slice}/nightly.service/workers"));
    let other = cgroups.make(&format!("{slice}/daily.service"));
    let rule = |place: &Path| rule_in(&user, broker.socket(), place);
    assert!(rule(&unit).contains("by unit"), "{}", rule(&unit));
    assert!(rule(&below).contains("by unit"));
    assert!(rule(&other).contains("people"));
    // A unit that is delegated: the name is root's still, what is below is not.
    chown(&unit, Some(user.uid), None).unwrap();
    assert!(rule(&unit).contains("by unit"));
}

/// What an account can make under names that are others'.
fn a_unit_that_somebody_else_could_have_made_has_none(lab: &Lab) {
    lab.write_policy(POLICY);
    let (broker, user) = (lab.broker(), lab.user());
    let mut cgroups = Cgroups::new(lab);
    let pid = std::process::id();
    let rule = |place: &Path| rule_in(&user, broker.socket(), place);
    // Delegated: a slice of the user's own, one that anybody can write to, one of a group.
    for (name, owner, mode) in [("own", user.uid, 0o755), ("open", 0, 0o757), ("group", 0, 0o775)] {
        let slice = cgroups.make(&format!("{name}{pid}.slice"));
        let unit = cgroups.make(&format!("{name}{pid}.slice/nightly.service"));
        chown(&slice, Some(owner), Some(user.gid)).unwrap();
        fs::set_permissions(&slice, fs::Permissions::from_mode(mode)).unwrap();
        assert!(rule(&unit).contains("people"), "{name}: {}", rule(&unit));
        // The same further up, and with a slice of root's in between.
        let deep = cgroups.make(&format!("{name}{pid}.slice/x.slice/nightly.service"));
        assert!(rule(&deep).contains("people"), "{name} above");
    }
    // Below a unit, below a grant's payload, below what no manager made.
    for above in [
        format!("t{pid}.slice/other.service/system.slice"),
        format!("t{pid}.slice/session-1.scope/system.slice"),
        format!("box{pid}/u{}/x/payload/system.slice", user.uid),
        format!("t{pid}/system.slice"),
    ] {
        let place = cgroups.make(&format!("{above}/nightly.service"));
        assert!(rule(&place).contains("people"), "{above}");
    }
}

/// The account's own manager names its units as it likes. A rule for one can take away, and gives no more than the account has.
fn a_unit_of_the_users_own_manager_gives_nothing_more(lab: &Lab) {
    lab.write_policy(POLICY);
    let (broker, user, other) = (lab.broker(), lab.user(), lab.user());
    let mut cgroups = Cgroups::new(lab);
    let manager = |uid: u32| format!("user.slice/user-{uid}.slice/user@{uid}.service");
    let own = manager(user.uid);
    let app = cgroups.make(&format!("{own}/app.slice/app-flatpak-org.example.Ci-1.scope"));
    let forged = cgroups.make(&format!("{own}/system.slice/nightly.service"));
    let theirs =
        cgroups.make(&format!("{}/app.slice/app-flatpak-org.example.Ci-1.scope", manager(other.uid)));
    let rows = |place: &Path| quotas_in(&user, broker.socket(), place);
    let (rule, grants, links) = rows(&app);
    assert!(rule.contains("by flatpak"), "{rule}");
    assert_eq!((grants, links), (3, 1), "no more than people have, and less where it says so");
    for place in [&forged, &theirs] {
        let (rule, grants, _) = rows(place);
        assert!(rule.contains("people") && grants == 3, "{place:?}: {rule}");
    }
}

/// Who connects is who connected: neither moving afterwards nor handing the connection on makes another application of it, and a
/// process that has ended is none.
fn what_a_caller_becomes_later_does_not_count(lab: &Lab) {
    lab.write_policy(POLICY);
    let (broker, user) = (lab.broker(), lab.user());
    let mut cgroups = Cgroups::new(lab);
    let unit = cgroups.make(&format!("t{}.slice/nightly.service", std::process::id()));
    let client = user.client(broker.socket());
    let rule = || {
        let answer: (u32, String, Vec<(String, u64, u64)>) =
            client.manager("GetUsage", &crate::common::Options::new().0).unwrap();
        answer.1
    };
    assert!(rule().contains("people"));
    fs::write(unit.join("cgroup.procs"), client.process.as_ref().unwrap().pid.to_string()).unwrap();
    assert!(rule().contains("people"), "it connected from elsewhere");
    fs::write(cgroups.root.join("cgroup.procs"), client.process.as_ref().unwrap().pid.to_string()).unwrap();
}

crate::tests![
    a_unit_that_only_root_can_make_has_its_rule,
    a_unit_that_somebody_else_could_have_made_has_none,
    a_unit_of_the_users_own_manager_gives_nothing_more,
    what_a_caller_becomes_later_does_not_count,
];
