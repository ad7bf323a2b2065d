//! What a package brings beside the programs: manual pages, completions, units; and the packages themselves.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::common::{
    Lab,
    containers::{Shell, busybox, text},
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
fn silent(command: &mut Command) {
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

fn the_packages_are_good(lab: &Lab) {
    let mut make = Command::new("make");
    make.args(["--no-print-directory", "deb"])
        .arg(format!("TARGET_DIR={}", lab.scratch.display()))
        .arg(format!("BIN_DIR={}", lab.programs.display()))
        // Quicker than what packages are made with otherwise.
        .env("DPKG_DEB_COMPRESSOR_TYPE", "gzip")
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    let output = make.output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    for package in ["cgrant", "cgrant-cgmanager", "libpam-cgrant"] {
        let version = env!("CARGO_PKG_VERSION");
        let named = format!("{package}_{version}_");
        let files = pages(&lab.scratch.join("deb"));
        let is_there = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(&named);
        assert!(files.iter().any(is_there), "debian/changelog is not of version {version}: {files:?}");
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
    let page = prefix.join("share/man/man1/cgrant-autostart.1");
    assert!(page.exists(), "the unit names a manual page that is not there");
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
    a_shell_completes_verbs_options_and_names,
];
