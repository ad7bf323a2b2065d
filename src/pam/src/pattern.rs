//! The path of a session's cgroup. Pure.

/// Who a path is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// `%u`.
    pub user: String,
    /// `%U`.
    pub uid: u32,
    /// `%g`: the name of the primary group; its number if it has none.
    pub group: String,
    /// `%G`.
    pub gid: u32,
    /// `%p`: the process that opens the session.
    pub pid: u32,
    /// `%P`: its parent.
    pub parent: u32,
}

/// A path in which some letters stand for something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern(String);

/// Why a pattern is no path.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PatternError {
    /// `%` with something else behind it.
    #[error("%{0} stands for nothing: there are %u, %U, %g, %G, %p, %P, and \\% for the sign itself")]
    Unknown(String),
    /// A name would lead elsewhere.
    #[error("the name {0:?} can't be a part of a path")]
    Name(String),
    /// No path is left.
    #[error("the pattern {0:?} is no path below the root")]
    Empty(String),
}

/// A path: the cgroups on the way, and the beginning of the last one's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The cgroups on the way.
    pub above: Vec<String>,
    /// The session's own, without its number. Empty if the pattern ends with `/`.
    pub last: String,
}

impl Pattern {
    /// Of the letters.
    pub fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// The path for somebody, whose last part may be empty if it gets a number.
    ///
    /// # Errors
    /// [`PatternError`].
    pub fn way(&self, person: &Person, numbered: bool) -> Result<Way, PatternError> {
        let mut parts: Vec<String> = Vec::new();
        // What is behind the last `/` is the last one, also if it is nothing.
        for part in self.0.trim_start_matches('/').split('/') {
            parts.push(expand(part, person)?);
        }
        let mut last = parts.pop().unwrap_or_default();
        parts.retain(|part| !part.is_empty());
        if !numbered && last.is_empty() {
            last = parts.pop().ok_or_else(|| PatternError::Empty(self.0.clone()))?;
        }
        let bad = parts.iter().chain([&last]).find(|part| *part == "." || part.contains("..")).cloned();
        match bad {
            Some(part) => Err(PatternError::Name(part)),
            None => Ok(Way { above: parts, last }),
        }
    }
}

/// One part of a path.
fn expand(part: &str, person: &Person) -> Result<String, PatternError> {
    let mut text = String::new();
    let mut letters = part.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' if letters.next_if_eq(&'%').is_some() => text.push('%'),
            '%' => text.push_str(&stands_for(letters.next(), person)?),
            other => text.push(other),
        }
    }
    Ok(text)
}

fn stands_for(letter: Option<char>, person: &Person) -> Result<String, PatternError> {
    match letter {
        Some('u') => name(&person.user),
        Some('U') => Ok(person.uid.to_string()),
        Some('g') => name(&person.group),
        Some('G') => Ok(person.gid.to_string()),
        Some('p') => Ok(person.pid.to_string()),
        Some('P') => Ok(person.parent.to_string()),
        other => Err(PatternError::Unknown(other.into_iter().collect())),
    }
}

/// A name as a part of a path.
///
/// Whoever can choose one (in a directory of another department's, say) could want a cgroup elsewhere by it.
fn name(name: &str) -> Result<String, PatternError> {
    if name.is_empty() || name.contains(['/', '\n', '\0']) {
        return Err(PatternError::Name(name.to_owned()));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn joe() -> Person {
        let (user, group) = ("joe".to_owned(), "users".to_owned());
        Person { user, uid: 1000, group, gid: 100, pid: 7, parent: 3 }
    }

    fn way(pattern: &str, numbered: bool) -> Result<(String, String), PatternError> {
        let way = Pattern::new(pattern).way(&joe(), numbered)?;
        Ok((way.above.join("/"), way.last))
    }

    #[test]
    fn letters_stand_for_who_it_is() {
        for (pattern, above, last) in [
            ("user/%u/", "user/joe", ""),
            ("user/%u/c", "user/joe", "c"),
            ("/%g-%G/%u.%U", "users-100", "joe.1000"),
            ("%p//%P", "7", "3"),
            ("\\%u/a\\b%u", "%u", "a\\bjoe"),
            ("", "", ""),
        ] {
            assert_eq!(way(pattern, true).unwrap(), (above.to_owned(), last.to_owned()), "{pattern}");
        }
        assert_eq!(way("user/%u/", false).unwrap(), ("user".to_owned(), "joe".to_owned()));
    }

    #[test]
    fn what_is_no_path_is_said() {
        for pattern in ["%x", "%", "a/../b", "../x", "a/./b", "x..y"] {
            assert!(way(pattern, true).is_err(), "{pattern}");
        }
        assert!(matches!(way("/", false), Err(PatternError::Empty(_))));
        for user in ["", "..", "a/b", "/", "a\nb"] {
            let person = Person { user: user.to_owned(), ..joe() };
            let way = Pattern::new("user/%u/").way(&person, true);
            assert!(matches!(way, Err(PatternError::Name(_))), "{user:?}: {way:?}");
        }
    }
}
