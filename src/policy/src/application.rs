//! Applications: which program a caller is, by the cgroup that a service manager put its process into.
//!
//! Names are those of systemd's convention for cgroups: slices, then one unit. A unit of the host's own manager can be made by
//! root alone, so its name is evidence. Units of a user's manager are made by the account, under any name that it likes: a
//! rule for one tells programs of one account apart as long as they don't pretend, and can only take away.

use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{diagnostic::text, ids::HostUid};

/// Longest name of a unit (`UNIT_NAME_MAX` of systemd).
const MAX_UNIT: usize = 255;
/// Most slices around a unit.
const MAX_SLICES: usize = 16;

/// Who could have given a process the name of an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Maker {
    /// Root alone.
    Root,
    /// The caller's own account too.
    Account,
}

/// What kind of name it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Kind {
    Unit,
    UserUnit,
    Desktop,
    Flatpak,
    Snap,
}

impl Kind {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Unit, "unit"),
        (Self::UserUnit, "user-unit"),
        (Self::Desktop, "desktop"),
        (Self::Flatpak, "flatpak"),
        (Self::Snap, "snap"),
    ];

    fn word(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, word)| word)
    }
}

/// An application, by all of its names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Application {
    maker: Maker,
    names: Vec<(Kind, String)>,
}

/// An application, and what it rests on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The application.
    pub application: Application,
    /// The names of the cgroups from the hierarchy's root down to the one that the manager's unit lies in. All of them, and the
    /// root, have to be cgroups in which nobody but root can make others.
    pub above: Vec<String>,
    /// The name of the cgroup of the host's own unit, which lies in the last of those.
    pub unit: String,
}

impl Application {
    /// What a process of `uid` is, by its cgroup's path from the root of the hierarchy; `None` if that does not say.
    ///
    /// An attacker wants to be taken for another application. The path ends with names that it made itself; so only the first
    /// unit counts, whatever is below it, and it counts only where [`Place::above`] holds.
    pub fn at(path: &str, uid: HostUid) -> Option<Place> {
        let (above, cgroup, below) = first_unit(path)?;
        let unit = shown(cgroup);
        let own_manager = unit == format!("user@{uid}.service")
            && above == ["user.slice".to_owned(), format!("user-{uid}.slice")];
        let application = if own_manager {
            let (_, inner, _) = first_unit(below)?;
            let inner = shown(inner);
            let mut names = vec![(Kind::UserUnit, inner.to_owned())];
            names.extend(desktop_names(inner));
            Self { maker: Maker::Account, names }
        } else {
            let mut names = vec![(Kind::Unit, unit.to_owned())];
            names.extend(snap_of(unit).map(|snap| (Kind::Snap, snap)));
            Self { maker: Maker::Root, names }
        };
        Some(Place { application, above, unit: cgroup.to_owned() })
    }

    /// An application by one of its names, as in a rule but without a pattern: for asking what policy would say.
    ///
    /// # Errors
    /// What is expected.
    pub fn named(text: &str) -> Result<Self, &'static str> {
        let pattern: ApplicationPattern = text.parse()?;
        if !pattern.is_whole {
            return Err("expected the name of one application");
        }
        let maker = if pattern.kind == Kind::Unit { Maker::Root } else { Maker::Account };
        Ok(Self { maker, names: vec![(pattern.kind, pattern.text)] })
    }

    /// The same, where it is not certain that the process is the one that it was taken for: another of the account's could be.
    #[must_use]
    pub fn doubted(self) -> Self {
        Self { maker: Maker::Account, ..self }
    }

    /// Who could have made it.
    pub fn maker(&self) -> Maker {
        self.maker
    }
}

/// As the first of its names: `unit:nightly.service`, `user-unit:app-…`.
impl std::fmt::Display for Application {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The last is the one that people know: of a desktop's unit the application in it.
        self.names.last().map_or(Ok(()), |(kind, name)| write!(f, "{}:{name}", kind.word()))
    }
}

/// The slices of a path, the first unit in them, and what is below that.
fn first_unit(path: &str) -> Option<(Vec<String>, &str, &str)> {
    let mut rest = path.strip_prefix('/').unwrap_or(path);
    let mut slices = Vec::new();
    loop {
        let (name, below) = rest.split_once('/').unwrap_or((rest, ""));
        let shown = shown(name);
        if !is_unit_name(shown) || slices.len() > MAX_SLICES {
            return None;
        }
        if shown.ends_with(".service") || shown.ends_with(".scope") {
            return Some((slices, name, below));
        }
        if !shown.ends_with(".slice") {
            return None;
        }
        slices.push(name.to_owned());
        rest = below;
    }
}

/// systemd puts an underscore before names that are the kernel's own too.
fn shown(name: &str) -> &str {
    name.strip_prefix('_').unwrap_or(name)
}

/// Of the form that systemd gives units (unit-name.c, `VALID_CHARS_WITH_AT`).
fn is_unit_name(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    !name.is_empty() && name.len() <= MAX_UNIT && !name.starts_with('.') && name.bytes().all(good)
}

/// What a unit of a user's manager says of the application in it (systemd's DESKTOP_ENVIRONMENTS.md, flatpak, snapd).
fn desktop_names(unit: &str) -> Vec<(Kind, String)> {
    if let Some(snap) = snap_of(unit) {
        return vec![(Kind::Snap, snap)];
    }
    let Some((stem, kind)) = unit.rsplit_once('.') else { return Vec::new() };
    let service = kind == "service";
    // What tells one of them from the next: behind an @ in services, behind the last dash in scopes.
    let stem = if service { stem.split_once('@').map_or(stem, |(stem, _)| stem) } else { stem };
    let mut parts: Vec<&str> = stem.split('-').collect();
    if !service && parts.len() > 2 {
        parts.pop();
    }
    let (launcher, id) = match parts.as_slice() {
        ["app", id] => (None, *id),
        ["app", launcher, id] => (Some(*launcher), *id),
        // A service that the bus started: `dbus-:1.2-org.example.Name@0.service`.
        ["dbus", _, id] if service => (None, *id),
        _ => return Vec::new(),
    };
    let Some(id) = unescaped(id) else { return Vec::new() };
    if launcher == Some("flatpak") {
        // Shown by desktops under the same id.
        return vec![(Kind::Desktop, id.clone()), (Kind::Flatpak, id)];
    }
    vec![(Kind::Desktop, id)]
}

/// The snap of `snap.NAME.APP…`.
fn snap_of(unit: &str) -> Option<String> {
    let mut parts = unit.strip_prefix("snap.")?.split('.');
    let name = parts.next().filter(|name| !name.is_empty())?;
    // An application behind it, and what kind of unit it is.
    parts.nth(1)?;
    // Of several that are installed side by side, NAME_KEY.
    Some(name.to_owned())
}

/// Undoes systemd's `\xNN`; `None` for what is no text of printable characters then.
fn unescaped(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\\x") {
        bytes.extend_from_slice(before.as_bytes());
        bytes.push(u8::from_str_radix(after.get(..2)?, 16).ok()?);
        rest = after.get(2..)?;
    }
    bytes.extend_from_slice(rest.as_bytes());
    let good = |b: &u8| b.is_ascii_alphanumeric() || b"-_.".contains(b);
    (!bytes.is_empty() && bytes.iter().all(good)).then(|| String::from_utf8(bytes).ok()).flatten()
}

/// Which applications a rule is for: `unit:nightly@*.service`, `flatpak:org.gnome.Builder`. A `*` stands once, for any text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApplicationPattern {
    kind: Kind,
    text: String,
    is_whole: bool,
}

impl ApplicationPattern {
    /// Does it mean this one?
    pub(crate) fn names(&self, application: &Application) -> bool {
        application.names.iter().any(|(kind, name)| *kind == self.kind && self.fits(name))
    }

    fn fits(&self, name: &str) -> bool {
        match self.text.split_once('*') {
            Some((before, after)) => {
                name.len() >= before.len() + after.len() && name.starts_with(before) && name.ends_with(after)
            }
            None => name == self.text,
        }
    }
}

impl FromStr for ApplicationPattern {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const EXPECTED: &str = "expected unit:NAME.service, user-unit:NAME.scope, desktop:ID, flatpak:ID or snap:NAME, with one * at most";
        let (word, name) = text.split_once(':').ok_or(EXPECTED)?;
        let (kind, _) = Kind::ALL.into_iter().find(|(_, known)| *known == word).ok_or(EXPECTED)?;
        let (stars, plain) = (name.matches('*').count(), name.replace('*', "x"));
        let is_unit = matches!(kind, Kind::Unit | Kind::UserUnit);
        let ends = !is_unit || name.ends_with(".service") || name.ends_with(".scope");
        // A pattern that means everything is a mistake: a rule without applications is for everything.
        if stars > 1 || name == "*" || !is_unit_name(&plain) || !ends {
            return Err(EXPECTED);
        }
        Ok(Self { kind, text: name.to_owned(), is_whole: stars == 0 })
    }
}

impl std::fmt::Display for ApplicationPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.kind.word(), self.text)
    }
}

impl<'de> Deserialize<'de> for ApplicationPattern {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        text(from, "an application", str::parse)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const UID: HostUid = HostUid(1000);
    const MANAGER: &str = "/user.slice/user-1000.slice/user@1000.service";

    fn is(path: &str, pattern: &str) -> bool {
        let pattern: ApplicationPattern = pattern.parse().unwrap();
        Application::at(path, UID).is_some_and(|place| pattern.names(&place.application))
    }

    fn maker(path: &str) -> Option<Maker> {
        Application::at(path, UID).map(|place| place.application.maker())
    }

    #[test]
    fn a_unit_of_the_hosts_manager_is_roots_word() {
        for (path, pattern) in [
            ("/system.slice/nightly.service", "unit:nightly.service"),
            ("/system.slice/nightly.service/sub/x.service", "unit:nightly.service"),
            ("/system.slice/system-ci.slice/ci@7.service", "unit:ci@*.service"),
            ("/system.slice/snap.lxd.daemon.service", "snap:lxd"),
            ("/user.slice/user-1000.slice/session-3.scope", "unit:session-*.scope"),
            ("/init.scope", "unit:init.scope"),
        ] {
            assert!(is(path, pattern), "{path} {pattern}");
            assert_eq!(maker(path), Some(Maker::Root), "{path}");
        }
        let place = Application::at("/system.slice/system-ci.slice/ci@7.service/a", UID).unwrap();
        assert_eq!(place.above, ["system.slice", "system-ci.slice"]);
        assert_eq!(
            (place.unit.as_str(), place.application.to_string()),
            ("ci@7.service", "unit:ci@7.service".into())
        );
    }

    #[test]
    fn units_of_a_users_manager_are_the_accounts_word() {
        for (unit, pattern) in [
            ("app.slice/app-org.gnome.Terminal-1234.scope", "desktop:org.gnome.Terminal"),
            ("app.slice/app-gnome-org.gnome.Terminal-1234.scope", "desktop:org.gnome.Terminal"),
            ("app.slice/app-org.kde.kate@ab12.service", "desktop:org.kde.kate"),
            ("app.slice/app-gnome-org.kde.kate.service", "desktop:org.kde.kate"),
            ("app.slice/app-gnome-my\\x2dapp-77.scope", "desktop:my-app"),
            ("app.slice/dbus-:1.2-org.gnome.Calculator@0.service", "desktop:org.gnome.Calculator"),
            ("app.slice/app-flatpak-org.gnome.Builder-99.scope", "flatpak:org.gnome.Builder"),
            ("app.slice/app-flatpak-org.gnome.Builder-99.scope", "desktop:org.gnome.Builder"),
            ("app.slice/snap.firefox.firefox-1c2d.scope", "snap:firefox"),
            ("build.service", "user-unit:build.service"),
            ("app.slice/app-x.slice/y.scope/deeper", "user-unit:y.scope"),
        ] {
            let path = format!("{MANAGER}/{unit}");
            assert!(is(&path, pattern), "{path} {pattern}");
            assert_eq!(maker(&path), Some(Maker::Account), "{path}");
            assert!(!is(&path, "unit:*.service") && !is(&path, "unit:*.scope"), "{path}");
        }
    }

    #[test]
    fn names_below_a_unit_forge_nothing() {
        for path in [
            format!("{MANAGER}/system.slice/nightly.service"),
            format!("{MANAGER}/app.slice/x.scope/system.slice/nightly.service"),
            "/user.slice/user-1000.slice/session-3.scope/system.slice/nightly.service".to_owned(),
            "/system.slice/cgrant.scope/u1000/box/payload/system.slice/nightly.service".to_owned(),
            "/cgrant-default/u1000/box/payload/system.slice/nightly.service".to_owned(),
            "/docker/0123/system.slice/nightly.service".to_owned(),
            "/../system.slice/nightly.service".to_owned(),
            "/system.slice/nightly.service (deleted)".to_owned(),
            "/system.slice//nightly.service".to_owned(),
            "/system.slice/nightly.servic\u{fffd}e/x.service".to_owned(),
            "/system.slice/xnightly.service".to_owned(),
            "/".to_owned(),
            String::new(),
        ] {
            assert!(!is(&path, "unit:nightly.service"), "{path}");
        }
        // Another user's manager, which this uid's process came into by changing its uid, does not speak for it.
        let other =
            "/user.slice/user-1001.slice/user@1001.service/app.slice/app-flatpak-org.gnome.Builder-9.scope";
        assert!(!is(other, "flatpak:org.gnome.Builder"));
        let elsewhere = "/x.slice/user@1000.service/app.slice/app-flatpak-org.gnome.Builder-9.scope";
        assert!(!is(elsewhere, "flatpak:org.gnome.Builder"));
    }

    #[test]
    fn patterns_mean_what_they_say() {
        for bad in [
            "nightly.service",
            "unit:nightly",
            "unit:*",
            "flatpak:*",
            "unit:a*b*.service",
            "unit:a/b.service",
            "unit:.service/",
            "unit:",
            "exe:/bin/sh",
            "desktop:a b",
            "unit:x.slice",
        ] {
            assert!(bad.parse::<ApplicationPattern>().is_err(), "{bad}");
        }
        assert!(is("/system.slice/ci@a.service", "unit:ci@*.service"));
        assert!(!is("/system.slice/ci.service", "unit:ci@*.service"));
        assert!(!is("/system.slice/c.service", "unit:c.s*.service"));
        assert!(Application::named("unit:ci@*.service").is_err());
        assert_eq!(Application::named("snap:x").unwrap().maker(), Maker::Account);
    }

    proptest! {
        #[test]
        fn no_path_below_a_users_manager_is_roots_word(below in "(/|[a-z@.:-]|\\.slice/|\\.service/|\\.scope|system\\.slice/){0,40}") {
            let place = Application::at(&format!("{MANAGER}/{below}"), UID);
            prop_assert!(place.is_none_or(|place| place.application.maker() == Maker::Account));
        }
    }
}
