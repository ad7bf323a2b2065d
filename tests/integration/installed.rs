//! What a package brings beside the programs: manual pages, completions, units; and the packages themselves.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    common::{
        Lab,
        containers::{Shell, busybox, text},
    },
    installed_rpm,
};

/// Where everything was installed to.
fn installed(lab: &Lab) -> PathBuf {
    let prefix = lab.scratch.join("usr");
    let mut make = Command::new("make");
    make.args(["--no-print-directory", "--silent", "install-files", "DESTDIR="])
        .arg(format!("PREFIX={}", prefix.display()))
        .arg(format!("SYSCONFDIR={}", lab.scratch.join("etc").display()))
        .arg(format!("BIN_DIR={}", lab.programs.display()))
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    silent(&mut make);
    prefix
}

/// Must succeed and have nothing to say.
#[track_caller]
pub fn silent(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = text(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{command:?}: {} {said}", output.status);
}

/// What the targets would run, a line each.
fn recipe(targets: &[&str]) -> Vec<String> {
    let mut make = Command::new("make");
    make.args(["--no-print-directory", "--dry-run", "CARGO=cargo", "BIN_DIR=BUILT"]).args(targets);
    let output = make.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    assert!(output.status.success(), "{make:?}: {}", text(&output.stderr));
    text(&output.stdout).replace("\\\n", " ").lines().map(str::to_owned).collect()
}

/// The files that `cargo build` and `cargo build -p` of these lines make.
fn built(lines: &[String]) -> BTreeSet<String> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["metadata", "--no-deps", "--offline", "--format-version=1"]);
    let output = cargo.current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap();
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let mut made = BTreeSet::new();
    for line in lines.iter().filter(|line| line.starts_with("cargo build")) {
        let package = line.split_once(" -p ").map_or("cgrant", |(_, name)| name);
        let found = metadata["packages"].as_array().unwrap().iter().find(|found| found["name"] == package);
        for target in
            found.unwrap_or_else(|| panic!("no package {package}: {line}"))["targets"].as_array().unwrap()
        {
            let name = target["name"].as_str().unwrap();
            for kind in target["crate_types"].as_array().unwrap() {
                made.extend(match kind.as_str().unwrap() {
                    "bin" => Some(name.to_owned()),
                    "cdylib" => Some(format!("lib{name}.so")),
                    _ => None,
                });
            }
        }
    }
    made
}

fn what_is_installed_is_built(_: &Lab) {
    let lines = recipe(&["install-files"]);
    let words = lines.iter().flat_map(|line| line.split_whitespace());
    let installed: BTreeSet<String> =
        words.filter_map(|word| Some(word.strip_prefix("BUILT/")?.to_owned())).collect();
    assert!(installed.len() > 6, "{installed:?}");
    // Those who install what they have built, and the demo, which does so without saying it here.
    for target in ["all", "demo"] {
        let built = built(&recipe(&[target]));
        let lacking: Vec<_> = installed.difference(&built).collect();
        assert!(lacking.is_empty(), "`make {target}` does not build {lacking:?}, which are installed");
    }
}

/// Has the packages built as a distribution would, and says where they are.
fn packages(lab: &Lab, target: &str, vendor: &str) -> PathBuf {
    let origins = lab.scratch.join("origins");
    fs::create_dir(&origins).unwrap();
    fs::write(origins.join("debian"), "Vendor: Debian\n").unwrap();
    fs::write(origins.join("ubuntu"), "Vendor: Ubuntu\nParent: Debian\n").unwrap();
    let mut make = Command::new("make");
    make.args(["--no-print-directory", target])
        .arg(format!("TARGET_DIR={}", lab.scratch.display()))
        .arg(format!("BIN_DIR={}", lab.programs.display()))
        .env("DPKG_ORIGINS_DIR", origins)
        .env("DEB_VENDOR", vendor)
        // Quicker than what packages are made with otherwise.
        .env("DPKG_DEB_COMPRESSOR_TYPE", "gzip")
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = make.output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    lab.scratch.join("deb")
}

/// The package `name` of this version.
fn package(directory: &Path, name: &str) -> PathBuf {
    let version = env!("CARGO_PKG_VERSION");
    let (named, files) = (format!("{name}_{version}_"), pages(directory));
    let is_it = |path: &&PathBuf| {
        let file = path.file_name().unwrap().to_str().unwrap();
        file.starts_with(&named) && file.ends_with(".deb")
    };
    let found = files.iter().find(is_it);
    found.unwrap_or_else(|| panic!("debian/changelog is not of version {version}: {files:?}")).clone()
}

/// What a package brings, with its maintainer scripts in `DEBIAN`.
fn unpacked(lab: &Lab, package: &Path) -> PathBuf {
    let tree = lab.scratch.join("unpacked");
    silent(Command::new("dpkg-deb").arg("--raw-extract").arg(package).arg(&tree));
    tree
}

fn the_packages_are_good(lab: &Lab) {
    let built = packages(lab, "deb", "Debian");
    for name in ["cgrant-cgmanager", "libpam-cgrant"] {
        package(&built, name);
    }
    installed_rpm::packages_hold_what_these_do(lab, |name| package(&built, name));
    let tree = unpacked(lab, &package(&built, "cgrant"));
    assert!(!tree.join("etc/apparmor.d").exists(), "Debian 12's parser can't read the profile");
    assert!(!fs::read_to_string(tree.join("DEBIAN/postinst")).unwrap().contains("apparmor"));
}

/// Where AppArmor keeps programs from making user namespaces, the package alone has to be enough. Debian 12's parser does not know the
/// rule, so nothing reads the profile here.
fn ubuntus_package_brings_its_profile(lab: &Lab) {
    let tree = unpacked(lab, &package(&packages(lab, "deb-unchecked", "Ubuntu"), "cgrant"));
    let read = |file: &str| fs::read_to_string(tree.join(file)).unwrap();
    assert_eq!(read("etc/apparmor.d/cgrant"), include_str!("../../policy/apparmor/cgrant"));
    assert!(read("DEBIAN/conffiles").lines().any(|line| line == "/etc/apparmor.d/cgrant"));
    // Put into force when it is installed or upgraded, and what dh_apparmor makes for additions goes when it is purged.
    let postinst = read("DEBIAN/postinst");
    assert!(postinst.contains("APP_PROFILE=\"/etc/apparmor.d/cgrant\""), "{postinst}");
    assert!(postinst.contains("apparmor_parser -r"), "{postinst}");
    let postrm = read("DEBIAN/postrm");
    assert!(postrm.contains("/etc/apparmor.d/local/cgrant"), "{postrm}");
}

fn what_packages_are_built_with_is_installed_for_it(_: &Lab) {
    let control = include_str!("../../debian/control");
    let (_, list) = control.split_once("Build-Depends:").unwrap();
    let (list, _) = list.split_once("\nStandards-Version").unwrap();
    let needed: Vec<&str> =
        list.split(',').filter_map(|one| one.split([' ', '\n', ':']).find(|word| !word.is_empty())).collect();
    assert!(needed.contains(&"dh-apparmor"), "debian/rules calls it: {needed:?}");
    let lines = recipe(&["deps-deb"]);
    let installed: Vec<&str> = lines.iter().flat_map(|line| line.split_whitespace()).collect();
    for package in needed {
        let package = match package {
            "debhelper-compat" => "debhelper",
            // `tests/demo/rust` gets one that is new enough.
            "cargo" => continue,
            other => other,
        };
        assert!(installed.contains(&package), "`make deb` does not install {package}: {lines:?}");
    }
}

fn pages(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect()
}

fn manual_pages_are_good_roff(lab: &Lab) {
    let man = installed(lab).join("share/man");
    let of = |section: &str| pages(&man.join(section));
    let verbs = of("man1");
    assert!(verbs.len() > 60, "{verbs:?}");
    assert_eq!((of("man5").len(), of("man7").len(), of("man8").len()), (2, 1, 2));
    for page in [verbs, of("man5"), of("man7"), of("man8")].concat() {
        silent(Command::new("groff").args(["-K", "utf8", "-man", "-ww", "-T", "utf8", "-z"]).arg(&page));
        let name = page.file_stem().unwrap().to_str().unwrap();
        let whole = fs::read_to_string(&page).unwrap().replace("\\-", "-");
        assert!(whole.contains(&format!(".SH NAME\n{name} - ")), "{}", page.display());
    }
}

fn units_are_good(lab: &Lab) {
    let prefix = installed(lab);
    let unit = prefix.join("lib/systemd/user/cgrant-autostart.service");
    let mut verify = Command::new("systemd-analyze");
    // It is about the unit, and not about a service manager of the caller's.
    verify
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", &lab.scratch)
        .env("XDG_RUNTIME_DIR", &lab.scratch);
    silent(verify.args(["--user", "--man=no", "verify"]).arg(unit));
    let mut verify = Command::new("systemd-analyze");
    verify.env_clear().env("PATH", "/usr/bin:/bin").args(["--man=no", "verify"]);
    // A scope is made at run time and never has a file. Some systemds say so, and fail for it; nothing else may be said.
    let output = verify.arg(prefix.join("lib/systemd/system/cgrant-shutdown.service")).output().unwrap();
    let said = text(&output.stderr);
    let expected = |line: &str| {
        line.contains("cgrant-shutdown.service") && line.ends_with("Unit cgrant.scope not found.")
    };
    assert!(said.lines().count() <= 1 && said.lines().all(expected), "{verify:?}: {said}");
    assert_eq!(output.status.success(), said.is_empty(), "{verify:?}: {} {said}", output.status);
    for name in ["autostart", "departed", "disk"] {
        let page = prefix.join(format!("share/man/man1/cgrant-{name}.1"));
        assert!(page.exists(), "the unit names a manual page that is not there");
    }
    for unit in ["departed.service", "departed.path", "departed.timer", "disk.service", "disk.timer"] {
        let mut verify = Command::new("systemd-analyze");
        verify.env_clear().env("PATH", "/usr/bin:/bin").args(["--man=no", "verify"]);
        silent(verify.arg(prefix.join(format!("lib/systemd/system/cgrant-{unit}"))));
    }
}

/// Tries lines as somebody who presses the tabulator behind them.
const TRY: &str = r#"
source "$1"; shift
for line; do
    COMP_LINE=$line COMP_POINT=${#line}
    read -r -a COMP_WORDS <<<"${line//:/ : }"
    [[ $line != *' ' ]] || COMP_WORDS+=("")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    COMPREPLY=()
    function=$(complete -p cgrant | sed 's/.*-F \([^ ]*\) .*/\1/')
    "$function" cgrant "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
    echo "$line|${COMPREPLY[*]}"
done
"#;

fn a_shell_completes_verbs_options_and_names(lab: &Lab) {
    let share = installed(lab).join("share");
    let script = share.join("bash-completion/completions/cgrant");
    silent(Command::new("bash").arg("-n").arg(&script));
    for other in ["zsh/site-functions/_cgrant", "fish/vendor_completions.d/cgrant.fish"] {
        assert!(fs::read_to_string(share.join(other)).unwrap().contains("cgrant_names"), "{other}");
    }
    let broker = lab.broker();
    let user = lab.user();
    let shell = Shell::new(lab, &user, &broker);
    shell.import(lab, &busybox(lab), "box");
    shell.done(&["image", "alias", "add", "box", "box:small", "box:tiny"]);
    for name in ["web", "wiki"] {
        shell.done(&["create", "box", name]);
    }
    // What a shell would run, if it took it for more than a name.
    let hostile = user.home.join(".local/share/cgrant/containers/w$(touch ran)");
    fs::create_dir(&hostile).unwrap();
    shell.done(&["grant", "create", "job"]);
    let path = format!("{}:/usr/bin:/bin", lab.programs.display());
    let mut bash = user.command("bash");
    bash.args(["--norc", "-c", TRY, "bash"]).arg(&script).args([
        "cgrant comp",
        "cgrant stop --tim",
        "cgrant --format j",
        "cgrant start w",
        "cgrant start web ",
        "cgrant exec -t we",
        "cgrant launch box:s",
        "cgrant grant show ",
        "cgrant exec web -- ",
        "cgrant delete nothing",
    ]);
    bash.env("PATH", path).env("CGRANT_SOCKET", broker.socket()).current_dir(&user.home);
    let output = bash.output().unwrap();
    assert_eq!(text(&output.stderr), "");
    let said = text(&output.stdout);
    let completed: Vec<(&str, &str)> = said.lines().map(|line| line.split_once('|').unwrap()).collect();
    let of = |line: &str| completed.iter().find(|(tried, _)| *tried == line).unwrap().1;
    for (line, words) in [
        ("cgrant comp", "completions"),
        ("cgrant stop --tim", "--timeout"),
        ("cgrant --format j", "json"),
        ("cgrant start w", "web wiki"),
        ("cgrant start web ", "web wiki"),
        ("cgrant exec -t we", "web"),
        // What stands before the colon is a word of its own, and stays.
        ("cgrant launch box:s", "small"),
        ("cgrant grant show ", "job"),
        ("cgrant delete nothing", ""),
    ] {
        assert_eq!(of(line), words, "{line}");
    }
    assert!(!of("cgrant exec web -- ").contains("wiki"), "{said}");
    assert!(!user.home.join("ran").exists(), "a name was run");
    fs::remove_dir(hostile).unwrap();
    shell.done(&["grant", "release", "job"]);
    shell.done(&["delete", "web", "wiki"]);
}

crate::tests![
    manual_pages_are_good_roff,
    units_are_good,
    what_is_installed_is_built,
    the_packages_are_good,
    ubuntus_package_brings_its_profile,
    what_packages_are_built_with_is_installed_for_it,
    a_shell_completes_verbs_options_and_names,
];
