//! The packages for rpm: they hold what Debian's do, and are installed, upgraded and removed in a root of their own, with systemd's own
//! programs in it. Where rpm has systemd's macros it takes those instead of `rpm/macros.debian`, which is all that is tried here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    common::{
        Lab,
        containers::{busybox, text},
    },
    installed::silent,
};

const PACKAGES: [&str; 3] = ["cgrant", "cgrant-cgmanager", "pam_cgrant"];
/// Of whom the package makes accounts.
const ACCOUNTS: [&str; 3] = ["cgrant-socket", "cgrant-bus", "cgrant-net"];

/// Must succeed; what it said.
#[track_caller]
fn told(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// Has the packages made of the programs at hand, not compressed, and says where they are. `dist` is behind the release's number.
fn packages(lab: &Lab, target: &str, dist: &str) -> PathBuf {
    let place = lab.scratch.join(format!("{target}{dist}"));
    let dist = if dist.is_empty() { String::new() } else { format!("--define 'dist {dist}'") };
    let mut make = Command::new("make");
    make.args(["--no-print-directory", target])
        .arg(format!("RPMBUILD=rpmbuild --define '_binary_payload w0.ufdio' {dist}"))
        .arg(format!("TARGET_DIR={}", place.display()))
        .arg(format!("BIN_DIR={}", lab.programs.display()));
    told(make.current_dir(env!("CARGO_MANIFEST_DIR")));
    place.join("rpm")
}

/// The package `name` of this version.
fn package(directory: &Path, name: &str) -> PathBuf {
    let named = format!("{name}-{}-1", env!("CARGO_PKG_VERSION"));
    let files: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    let found = files.iter().find(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&named));
    found.unwrap_or_else(|| panic!("rpm/cgrant.spec is not of this version: {files:?}")).clone()
}

/// Debian's rpm makes a database at home for whatever it is asked; it is to be elsewhere.
fn rpm(lab: &Lab) -> Command {
    let mut rpm = Command::new("rpm");
    rpm.arg("--dbpath").arg(lab.scratch.join("rpmdb"));
    rpm
}

/// Mode, owner and target of each file, by its path.
type Files = BTreeMap<String, [String; 3]>;

/// Without what only Debian or only rpm has beside the programs, each at the place where rpm's packages have it.
fn files(lines: &[(&str, &str, &str, &str)]) -> Files {
    let names = [
        ("/lib/systemd/system/", "/usr/lib/systemd/system/"),
        ("/usr/share/zsh/vendor-completions/", "/usr/share/zsh/site-functions/"),
        ("/usr/share/doc/libpam-cgrant/", "/usr/share/doc/pam_cgrant/"),
    ];
    let only = ["/usr/share/licenses/", "/usr/share/lintian/", "/usr/share/pam-configs/"];
    let papers = ["/copyright", "/changelog.gz"];
    let mut files = Files::new();
    for (path, mode, owner, target) in lines {
        let path = path.trim_end_matches('/');
        // Directories are a package's where no other has any need of them; those of papers are Debian's own.
        let is_own = path.contains("cgrant") && !path.starts_with("/usr/share/doc/");
        let is_shared = mode.starts_with('d') && !is_own;
        let is_only = only.iter().any(|place| format!("{path}/").starts_with(place))
            || papers.iter().any(|name| path.ends_with(name));
        if is_shared || is_only {
            continue;
        }
        let mut named = path.trim_end_matches(".gz").to_owned();
        for (debians, rpms) in names {
            if let Some(rest) = named.strip_prefix(debians) {
                named = format!("{rpms}{rest}");
            }
        }
        // Each has its own directory for modules of PAM.
        if let Some((_, module)) = named.split_once("/security/") {
            named = format!("/security/{module}");
        }
        files.insert(named, [*mode, *owner, *target].map(str::to_owned));
    }
    files
}

fn files_of_debians(package: &Path) -> Files {
    let listed = told(Command::new("dpkg-deb").arg("--contents").arg(package));
    let lines: Vec<_> = listed
        .lines()
        .map(|line| {
            let (path, target) = line.split_once(" -> ").unwrap_or((line, ""));
            let fields: Vec<&str> = path.split_whitespace().collect();
            let [mode, owner, _, _, _, path] = fields[..] else { panic!("{line}") };
            (path.trim_start_matches('.'), mode, owner, target)
        })
        .collect();
    files(&lines)
}

fn files_of_rpms(lab: &Lab, package: &Path) -> Files {
    let format = "[%{FILEMODES:perms}\\t%{FILEUSERNAME}/%{FILEGROUPNAME}\\t%{FILENAMES}\\t%{FILELINKTOS}\\n]";
    let listed = told(rpm(lab).args(["--query", "--queryformat", format, "--package"]).arg(package));
    let lines: Vec<_> = listed
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            let [mode, owner, path, target] = fields[..] else { panic!("{line}") };
            (path, mode, owner, target)
        })
        .collect();
    files(&lines)
}

/// `make rpm`, with rpmlint; and the same files in each of them, with the same rights, as in Debian's.
pub fn packages_hold_what_these_do(lab: &Lab, debians: impl Fn(&str) -> PathBuf) {
    let built = packages(lab, "rpm", "");
    for (name, debian) in PACKAGES.into_iter().zip(["cgrant", "cgrant-cgmanager", "libpam-cgrant"]) {
        let package = package(&built, name);
        silent(rpm(lab).args(["--checksig", "--nosignature"]).arg(&package));
        let (ours, debians) = (files_of_rpms(lab, &package), files_of_debians(&debians(debian)));
        assert!(!ours.is_empty());
        let paths: BTreeSet<&String> = ours.keys().chain(debians.keys()).collect();
        let both = paths.into_iter().map(|path| (path, ours.get(path), debians.get(path)));
        let other: Vec<_> = both.filter(|(_, ours, debians)| ours != debians).collect();
        assert!(other.is_empty(), "{name}: path, in rpm's, in Debian's: {other:?}");
    }
}

/// A root that rpm installs into, with a shell and systemd's programs.
struct Root(PathBuf);

impl Root {
    fn new(lab: &Lab) -> Self {
        let root = Self(busybox(lab));
        for program in ["/usr/bin/systemctl", "/usr/bin/systemd-sysusers", "/usr/bin/systemd-tmpfiles"] {
            root.place(program);
        }
        // What the broker's programs are linked with, systemd's are not all.
        for program in ["cgrantd", "cgrant"] {
            root.place_libraries(&lab.programs.join(program));
        }
        for directory in ["run/systemd/system", "usr/lib/systemd/system-preset"] {
            fs::create_dir_all(root.path(directory)).unwrap();
        }
        let presets = root.path("usr/lib/systemd/system-preset/50-test.preset");
        fs::write(presets, "enable cgrantd.*\ndisable *\n").unwrap();
        root
    }

    fn path(&self, path: &str) -> PathBuf {
        self.0.join(path.trim_start_matches('/'))
    }

    fn place(&self, program: &str) {
        let at = self.path(program);
        fs::create_dir_all(at.parent().unwrap()).unwrap();
        fs::copy(program, at).unwrap();
        self.place_libraries(Path::new(program));
    }

    fn place_libraries(&self, program: &Path) {
        let libraries = told(Command::new("ldd").arg(program));
        for path in libraries.split_ascii_whitespace().filter(|word| word.starts_with('/')) {
            let at = self.path(path);
            fs::create_dir_all(at.parent().unwrap()).unwrap();
            fs::copy(path, at).unwrap();
        }
    }

    /// What rpm and the packages' scripts say, in namespaces of their own: they find /proc, and nobody in it.
    #[track_caller]
    fn rpm(&self, words: &[&str], packages: &[PathBuf]) -> String {
        let mut unshare = Command::new("unshare");
        unshare.arg(format!("--mount-proc={}", self.path("proc").display()));
        unshare.args(["--mount", "--pid", "--fork", "--kill-child", "rpm", "--force-debian", "--root"]);
        unshare.arg(&self.0).args(words).args(packages).env("SYSTEMD_OFFLINE", "1");
        let output = unshare.output().unwrap();
        let said = text(&output.stdout) + &text(&output.stderr);
        assert!(output.status.success(), "rpm {words:?}: {said}");
        // What rpm says of scripts that fail.
        assert!(!said.contains("scriptlet failed"), "rpm {words:?}: {said}");
        said
    }

    /// Units that are started by others.
    fn enabled(&self) -> Vec<String> {
        let listed =
            told(Command::new("find").arg(self.path("etc/systemd")).args(["-type", "l", "-printf", "%f\\n"]));
        let mut names: Vec<String> = listed.lines().map(str::to_owned).collect();
        names.sort();
        names
    }
}

fn they_are_installed_upgraded_and_removed(lab: &Lab) {
    let (first, second) = (packages(lab, "rpm-unchecked", ""), packages(lab, "rpm-unchecked", ".later"));
    let all = |directory: &Path| PACKAGES.map(|name| package(directory, name));
    let root = Root::new(lab);
    root.rpm(&["--install", "--nodeps"], &all(&first));
    // Each file as it was packed.
    assert_eq!(root.rpm(&["--verify", "--nodeps"], &PACKAGES.map(PathBuf::from)), "");
    // What the host's presets say, and nothing else.
    assert_eq!(root.enabled(), ["cgrantd.service", "cgrantd.socket"]);
    let passwd = fs::read_to_string(root.path("etc/passwd")).unwrap();
    for name in ACCOUNTS {
        assert!(passwd.contains(&format!("{name}:")), "{passwd}");
    }
    let state = fs::metadata(root.path("var/lib/cgrant")).unwrap();
    assert_eq!((state.uid(), state.mode() & 0o7777), (0, 0o700));

    let record = root.path("var/lib/cgrant/ids/u1000");
    fs::create_dir_all(record.parent().unwrap()).unwrap();
    fs::write(&record, "").unwrap();
    let policy = root.path("etc/cgrant/policy.d/50-own.toml");
    fs::write(&policy, "").unwrap();
    // Whoever is to end what runs in grants fails and says so, because there is no /dev.
    let ends_grants = |said: &str| said.contains("cannot start cgrant-scope");
    assert!(root.path("run/cgrant/state").exists());
    let said = root.rpm(&["--upgrade", "--nodeps"], &all(&second));
    assert!(!ends_grants(&said), "an upgrade ends what runs in grants: {said}");
    assert_eq!(root.rpm(&["--query", "--queryformat", "%{RELEASE}"], &["cgrant".into()]), "1.later");
    assert_eq!(root.enabled(), ["cgrantd.service", "cgrantd.socket"]);

    let said = root.rpm(&["--erase", "--nodeps"], &PACKAGES.map(PathBuf::from));
    assert!(ends_grants(&said), "it goes on when nobody looks after it: {said}");
    assert_eq!(root.enabled(), [""; 0]);
    assert!(record.exists() && policy.exists(), "whose ids are whose is forgotten");
    let find = ["-name", "*cgrant*", "-not", "-path", "*/var/lib/rpm/*", "-printf", "%P\n"];
    let mut left: Vec<String> =
        told(Command::new("find").arg(&root.0).args(find)).lines().map(str::to_owned).collect();
    left.sort();
    assert_eq!(left, ["etc/cgrant", "run/cgrant", "var/lib/cgrant"]);
}

crate::tests![they_are_installed_upgraded_and_removed];
