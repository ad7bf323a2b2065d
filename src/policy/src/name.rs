//! Names that reach the file system: of grants, and of cgroups below a payload.
//!
//! Each is a newtype with one constructor, so that text which has not been checked can't be used as one.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::ids::{HostUid, NsUid};

/// Longest name of a grant, bytes.
pub const MAX_GRANT_NAME: usize = 63;
/// Longest name of one cgroup, bytes (`NAME_MAX`).
pub const MAX_CGROUP_NAME: usize = 255;
/// Most components of a path below a payload. Of use before policy is asked, which may allow fewer.
pub const MAX_CGROUP_DEPTH: usize = 32;
/// Longest path below a payload, bytes.
pub const MAX_CGROUP_PATH: usize = 2048;

/// Files of every v1 cgroup without a controller's name in front.
const BARE_FILES: [&str; 3] = ["tasks", "notify_on_release", "release_agent"];

/// What files of a cgroup begin with, before the dot. A cgroup of such a name could stand where a later kernel
/// puts a file.
const FILE_PREFIXES: [&str; 19] = [
    "cgroup",
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "debug",
    "devices",
    "dmem",
    "freezer",
    "hugetlb",
    "io",
    "irq",
    "memory",
    "misc",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing.
    #[error("a name can't be empty")]
    Empty,
    /// Longer than allowed.
    #[error("it has {length} bytes, at most {limit} are allowed")]
    TooLong {
        /// Its length.
        length: usize,
        /// The limit.
        limit: usize,
    },
    /// A grant's name has another form.
    #[error("a grant's name is a letter a-z or a digit, then letters, digits, `_` and `-`")]
    GrantForm,
    /// A byte that no cgroup name may have.
    #[error("a cgroup's name has only letters, digits and the characters _ . @ : + - \\")]
    CgroupForm,
    /// `.` or `..`.
    #[error("`.` and `..` are not names")]
    Dots,
    /// The name of a file that the kernel makes in cgroups, or could make.
    #[error("the name `{0}` is kept for files of the kernel's")]
    Reserved(String),
    /// More components than allowed.
    #[error("it is {depth} levels deep, at most {limit} are allowed")]
    TooDeep {
        /// Its depth.
        depth: usize,
        /// The limit.
        limit: usize,
    },
}

/// The name of a grant: `[a-z0-9][A-Za-z0-9_-]{0,62}`, and not the name of a v1 cgroup file.
///
/// It is a directory's name in every hierarchy, so it has no dot: no file of the kernel's can collide with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GrantName(String);

impl GrantName {
    /// Checks a name.
    ///
    /// # Errors
    /// Empty, too long, of another form, or the name of a kernel's file.
    pub fn new(text: &str) -> Result<Self, NameError> {
        bounded(text, MAX_GRANT_NAME)?;
        let form = |(at, b): (usize, u8)| match b {
            b'a'..=b'z' | b'0'..=b'9' => true,
            b'A'..=b'Z' | b'_' | b'-' => at > 0,
            _ => false,
        };
        if !text.bytes().enumerate().all(form) {
            return Err(NameError::GrantForm);
        }
        if BARE_FILES.contains(&text) {
            return Err(NameError::Reserved(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of one cgroup below a payload.
///
/// Letters, digits and `_ . @ : + - \`, the bytes that names of systemd's units have after escaping
/// (systemd.unit(5)); at most 255; not `.` or `..`; not a name that a file of a cgroup has or could have.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupName(String);

impl CgroupName {
    /// Checks a name.
    ///
    /// # Errors
    /// Empty, too long, a byte that is not allowed, `.` or `..`, or the name of a kernel's file.
    pub fn new(text: &str) -> Result<Self, NameError> {
        bounded(text, MAX_CGROUP_NAME)?;
        if !text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.@:+-\\".contains(&b)) {
            return Err(NameError::CgroupForm);
        }
        if text == "." || text == ".." {
            return Err(NameError::Dots);
        }
        let prefix = text.split_once('.').map_or("", |(prefix, _)| prefix);
        if BARE_FILES.contains(&text) || FILE_PREFIXES.contains(&prefix) {
            return Err(NameError::Reserved(text.to_owned()));
        }
        Ok(Self(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A path below a payload: one [`CgroupName`] or several with `/` between. Never the payload itself.
///
/// No leading, trailing or doubled `/`; at most 32 names and 2048 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CgroupPath(Vec<CgroupName>);

impl CgroupPath {
    /// Checks a path.
    ///
    /// # Errors
    /// Empty, too long, too deep, or a component that is no [`CgroupName`].
    pub fn new(text: &str) -> Result<Self, NameError> {
        bounded(text, MAX_CGROUP_PATH)?;
        let depth = text.split('/').count();
        if depth > MAX_CGROUP_DEPTH {
            return Err(NameError::TooDeep { depth, limit: MAX_CGROUP_DEPTH });
        }
        text.split('/').map(CgroupName::new).collect::<Result<_, _>>().map(Self)
    }

    /// Its components, at least one.
    pub fn names(&self) -> &[CgroupName] {
        &self.0
    }

    /// How many levels below the payload it is. At least 1.
    pub fn depth(&self) -> usize {
        self.0.len()
    }

    /// The last component, and what is before it.
    pub fn split_last(&self) -> Option<(&CgroupName, &[CgroupName])> {
        self.0.split_last()
    }
}

/// One step on the way to a grant: its name, and which user of what it was made in has it.
///
/// As text, which is its directory's name in every hierarchy: the name alone if that user is root or the account itself,
/// or else `@UID.NAME`. No grant's name has such a form, so users have their names each for themselves.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Step {
    /// The user, as the grant around counts; root in an account's node.
    pub user: NsUid,
    /// The name.
    pub name: GrantName,
}

impl Step {
    /// Reads one.
    ///
    /// # Errors
    /// [`NameError`] for what [`Display`](fmt::Display) would not write.
    pub fn new(text: &str) -> Result<Self, NameError> {
        let Some(of_user) = text.strip_prefix('@') else { return GrantName::new(text).map(Self::from) };
        let (user, name) = of_user.split_once('.').ok_or(NameError::GrantForm)?;
        let step = Self {
            user: NsUid(user.parse().map_err(|_| NameError::GrantForm)?),
            name: GrantName::new(name)?,
        };
        // One form only, so that a grant has one directory.
        if step.to_string() == text { Ok(step) } else { Err(NameError::GrantForm) }
    }
}

impl From<GrantName> for Step {
    fn from(name: GrantName) -> Self {
        Self { user: NsUid::ROOT, name }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.user {
            NsUid::ROOT => write!(f, "{}", self.name),
            user => write!(f, "@{user}.{}", self.name),
        }
    }
}

impl From<Step> for String {
    fn from(step: Step) -> Self {
        step.to_string()
    }
}

/// Where a grant is in the tree: its account, and its step below those of the grants it was made in.
///
/// Without steps it stands for the account's own node.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantPath {
    /// The uid that is charged.
    pub account: HostUid,
    /// The grant's own step last, those of the grants around it before.
    pub steps: Vec<Step>,
}

impl GrantPath {
    /// The account's own node.
    pub fn of_account(account: HostUid) -> Self {
        Self { account, steps: Vec::new() }
    }

    /// The path of a grant that was made from the host.
    pub fn new(account: HostUid, name: GrantName) -> Self {
        Self { account, steps: vec![name.into()] }
    }

    /// The path of a grant that is made inside this one; of one made from the host in an account's node.
    #[must_use]
    pub fn inner(&self, step: impl Into<Step>) -> Self {
        let steps = self.steps.iter().cloned().chain([step.into()]).collect();
        Self { account: self.account, steps }
    }

    /// The grant around this one; the account's node around one that was made from the host and around itself.
    #[must_use]
    pub fn around(&self) -> Self {
        let above = self.steps.split_last().map_or(&[][..], |(_, above)| above);
        Self { account: self.account, steps: above.to_vec() }
    }

    /// The first step from `other` to this one, if it was made inside of that or inside a grant that was. Nothing is inside itself.
    pub fn step_in(&self, other: &Self) -> Option<&Step> {
        let is_below = self.account == other.account && self.steps.starts_with(&other.steps);
        self.steps.get(other.steps.len()).filter(|_| is_below)
    }

    /// Was it made inside `other`, or inside a grant that was? Nothing is inside itself.
    pub fn is_inside(&self, other: &Self) -> bool {
        self.step_in(other).is_some()
    }

    /// The ordinary users on the way, the outermost first: what each is in, and which of the users there it is.
    pub fn ordinary(&self) -> impl Iterator<Item = (Self, NsUid)> {
        let users = self.steps.iter().enumerate().filter(|(_, step)| !step.user.is_root());
        users.map(|(depth, step)| {
            let above = self.steps.iter().take(depth).cloned().collect();
            (Self { account: self.account, steps: above }, step.user)
        })
    }

    /// Was it made from inside another grant?
    pub fn is_nested(&self) -> bool {
        self.steps.len() > 1
    }

    /// In how many other grants it is, one in the other.
    pub fn depth(&self) -> usize {
        self.steps.len().saturating_sub(1)
    }

    /// The grant's own name; `None` for the account's node.
    pub fn name(&self) -> Option<&GrantName> {
        self.steps.last().map(|step| &step.name)
    }
}

impl fmt::Display for GrantPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "u{}", self.account)?;
        self.steps.iter().try_for_each(|step| write!(f, "/{step}"))
    }
}

impl fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, name) in self.0.iter().enumerate() {
            write!(f, "{}{name}", if at == 0 { "" } else { "/" })?;
        }
        Ok(())
    }
}

impl From<CgroupPath> for String {
    fn from(path: CgroupPath) -> Self {
        path.to_string()
    }
}

macro_rules! from_text {
    ($name:ident) => {
        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(&text)
            }
        }
    };
}

macro_rules! into_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

from_text!(GrantName);
from_text!(Step);
from_text!(CgroupName);
from_text!(CgroupPath);
into_text!(GrantName);
into_text!(CgroupName);

fn bounded(text: &str, limit: usize) -> Result<(), NameError> {
    match text.len() {
        0 => Err(NameError::Empty),
        length if length > limit => Err(NameError::TooLong { length, limit }),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn grant_names() {
        for good in ["a", "0", "web-1", "aB_c", "payload", "u1000", &"x".repeat(63)] {
            assert_eq!(GrantName::new(good).unwrap().as_str(), good);
        }
        for bad in [
            "",
            "A",
            "-a",
            "_a",
            "a.b",
            "a/b",
            "..",
            "a b",
            "é",
            "a\0",
            "tasks",
            "release_agent",
            "notify_on_release",
        ] {
            assert!(GrantName::new(bad).is_err(), "{bad:?}");
        }
        assert_eq!(GrantName::new(&"x".repeat(64)), Err(NameError::TooLong { length: 64, limit: 63 }));
    }

    #[test]
    fn cgroup_names() {
        let units = [
            "system.slice",
            "user@1000.service",
            "dev-disk-by\\x2duuid.swap",
            "init.scope",
            "a:b+c",
            ".cgrant",
            "_cpu.service",
            "cpu",
            "cpus.slice",
            "memory",
            "cgroupfs.service",
        ];
        for good in units {
            assert_eq!(CgroupName::new(good).unwrap().as_str(), good);
        }
        for bad in ["", ".", "..", "a/b", "a\n", "a b", "a\0b", "ü", "a*"] {
            assert!(CgroupName::new(bad).is_err(), "{bad:?}");
        }
        for file in
            ["cgroup.procs", "memory.max", "cpu.", "hugetlb.2MB.max", "tasks", "io.pressure", "cpuset.x"]
        {
            assert_eq!(CgroupName::new(file), Err(NameError::Reserved(file.to_owned())));
        }
    }

    #[test]
    fn cgroup_paths() {
        let path = CgroupPath::new("system.slice/cron.service").unwrap();
        assert_eq!((path.depth(), path.to_string().as_str()), (2, "system.slice/cron.service"));
        for bad in ["", "/", "/a", "a/", "a//b", "a/../b", "./a", "a/cgroup.procs"] {
            assert!(CgroupPath::new(bad).is_err(), "{bad:?}");
        }
        assert!(CgroupPath::new(&["a"; 32].join("/")).is_ok());
        assert_eq!(CgroupPath::new(&["a"; 33].join("/")), Err(NameError::TooDeep { depth: 33, limit: 32 }));
        let long = [&*"x".repeat(255); 9].join("/");
        assert_eq!(CgroupPath::new(&long), Err(NameError::TooLong { length: 2303, limit: 2048 }));
    }

    #[test]
    fn grant_paths() {
        let mut path = GrantPath::new(HostUid(1000), GrantName::new("web").unwrap());
        path.steps.push(GrantName::new("inner").unwrap().into());
        assert_eq!(path.to_string(), "u1000/web/inner");
        assert_eq!(path.name().unwrap().as_str(), "inner");
        let web = path.around();
        assert_eq!(web.inner(path.name().unwrap().clone()), path);
        assert!(path.is_inside(&web) && path.is_inside(&web.around()) && !path.is_inside(&path));
        assert!(!web.is_inside(&path) && path.is_nested() && !web.is_nested());
        let other = GrantPath::new(HostUid(1001), web.name().unwrap().clone());
        assert!(!path.is_inside(&other), "another account's");
        let longer = GrantPath::new(HostUid(1000), GrantName::new("web2").unwrap());
        assert!(!longer.inner(path.name().unwrap().clone()).is_inside(&web), "a name that begins alike");
    }

    #[test]
    fn users_inside_have_their_names_each_for_themselves() {
        let web = GrantPath::new(HostUid(1000), GrantName::new("web").unwrap());
        let at = |text: &str| web.inner(Step::new(text).unwrap());
        let (roots, one, other) = (at("db"), at("@7.db"), at("@70.db"));
        assert_eq!(one.to_string(), "u1000/web/@7.db");
        assert!(one.is_inside(&web) && one.around() == web && one.depth() == 1);
        for (path, users) in
            [(&roots, 0), (&one, 7), (&other, 70), (&one.inner(GrantName::new("db").unwrap()), 7)]
        {
            assert_eq!(path.step_in(&web).unwrap().user, NsUid(users), "{path}");
        }
        assert!(roots != one && one != other && !one.is_inside(&roots) && !other.is_inside(&one));
        assert!(CgroupName::new(&one.steps[1].to_string()).is_ok());
        let deep = one.inner(GrantName::new("x").unwrap()).inner(Step::new("@9.y").unwrap());
        assert_eq!(deep.ordinary().collect::<Vec<_>>(), [(web.clone(), NsUid(7)), (deep.around(), NsUid(9))]);
        assert_eq!(roots.ordinary().count(), 0);
        for bad in [
            "@0.db",
            "@07.db",
            "@.db",
            "@7.",
            "@7",
            "@7.@8.db",
            "@-1.db",
            "@+7.db",
            "@4294967296.db",
            "7.db",
            "@7/db",
        ] {
            assert!(Step::new(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_one_plain_component(text in "\\PC{0,80}") {
            if let Ok(name) = GrantName::new(&text) {
                prop_assert!(CgroupName::new(name.as_str()).is_ok());
                prop_assert!(!text.contains('.'));
            }
            if let Ok(name) = CgroupName::new(&text) {
                let components: Vec<_> = std::path::Path::new(name.as_str()).components().collect();
                prop_assert_eq!(components, [std::path::Component::Normal(text.as_ref())]);
            }
        }

        #[test]
        fn paths_survive_their_text(names in prop::collection::vec("[A-Za-z0-9_@:+\\\\-]{1,20}", 1..33)) {
            let text = names.join("/");
            prop_assume!(CgroupPath::new(&text).is_ok());
            prop_assert_eq!(CgroupPath::new(&text).unwrap().to_string(), text);
        }
    }
}
