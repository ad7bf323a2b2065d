//! Files of v1's on cgroup2: which of cgroup2's stands behind each, and the values in both forms. Pure.
//!
//! Only what means the same is translated. Sources: Documentation/admin-guide/cgroup-v1/ and cgroup-v2.rst, and the kernel's code
//! where they don't say enough (mm/memcontrol.c, kernel/sched/core.c, kernel/cgroup/). What the conversions are, and where
//! they lose something, says `docs/cgmanager.md`.
//!
//! | module | idea |
//! |---|---|
//! | [`amount`] | bytes: limits and usage of memory and of huge pages, memory with swap |
//! | [`cpu`] | shares and weight, quota and period, CPU time |
//! | [`io`] | limits and figures of block devices |
//! | [`kept`] | names that have the same content, and those that always say the same |
//! | [`lost`] | names of v1's that nothing stands behind |

mod amount;
mod cpu;
mod io;
mod kept;
mod lost;

pub use lost::why_lost;

use cgrant_policy::HugePageSize;
use cgrant_sys::process::{page_size, ticks_per_second};

/// What stands for the size of a page in the names of huge pages' files.
const SIZE: char = '*';
/// Why figures that v1 takes a 0 for are not written.
const NO_RESET: &str = "the figure can't be set back to 0 there";

/// What of cgroup2's stands behind a file of v1's.
struct Equal {
    /// The file of v1's.
    key: &'static str,
    /// Those of cgroup2's: all have to be there. The first one's owner and mode are the v1 file's too.
    files: &'static [&'static str],
    /// How many of them, from the first on, are the v1 file's own: whose mode is set for its.
    own: usize,
    /// From what they have to what the v1 file has; `None` if the kernel has written something else than is known of it.
    read: fn(&Texts<'_>) -> Option<String>,
    /// From what the v1 file is given to what is written instead.
    write: fn(&str, &Texts<'_>) -> Result<Vec<Step>, Unwritten>,
}

/// What the files have, in their order.
struct Texts<'t> {
    texts: &'t [String],
    /// What the kernel counts bytes in: a page, or a huge page.
    unit: u64,
    /// How many clock ticks a second has.
    ticks: u64,
}

impl Texts<'_> {
    fn at(&self, place: usize) -> &str {
        self.texts.get(place).map(String::as_str).unwrap_or_default()
    }
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which file, by its place.
    pub file: usize,
    /// What is written.
    pub text: String,
    /// What it had before, for when a later step fails.
    pub undo: String,
}

/// Why nothing is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unwritten {
    /// v1 would not take the value.
    Value,
    /// The file has no equal in this direction, and why.
    Never(&'static str),
}

/// A file of v1's that something may stand behind.
pub struct Translation<'k> {
    equal: &'static Equal,
    size: &'k str,
}

impl Translation<'_> {
    /// The files of cgroup2's that stand behind it. It is there if all are.
    pub fn files(&self) -> Vec<String> {
        self.equal.files.iter().map(|file| file.replace(SIZE, self.size)).collect()
    }

    /// How many of them, from the first on, are its own, and not of others too that mean more.
    pub fn own_files(&self) -> usize {
        self.equal.own
    }

    /// What it has, from what they have.
    pub fn read(&self, texts: &[String]) -> Option<String> {
        (self.equal.read)(&self.texts(texts))
    }

    /// What is written instead of a value, one after the other.
    ///
    /// # Errors
    /// [`Unwritten`].
    pub fn write(&self, value: &str, texts: &[String]) -> Result<Vec<Step>, Unwritten> {
        (self.equal.write)(value.trim(), &self.texts(texts))
    }

    fn texts<'t>(&self, texts: &'t [String]) -> Texts<'t> {
        let huge = self.size.parse::<HugePageSize>().ok().map(HugePageSize::bytes);
        Texts { texts, unit: huge.unwrap_or_else(page_size), ticks: ticks_per_second() }
    }
}

/// All, in the order in which they are looked for.
fn equals() -> impl Iterator<Item = &'static Equal> {
    amount::EQUALS.iter().chain(cpu::EQUALS).chain(io::EQUALS).chain(kept::EQUALS)
}

/// What may stand behind a file of v1's. The first one whose files are there does.
pub fn translations(key: &str) -> impl Iterator<Item = Translation<'_>> {
    equals().filter_map(move |equal| Some(Translation { equal, size: size_in(equal.key, key)? }))
}

/// The files of v1's that a cgroup with these files of cgroup2's has, and the first that stands behind each.
pub fn listed(there: &[String]) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for equal in equals() {
        let Some(first) = equal.files.first() else { continue };
        for size in there.iter().filter_map(|name| size_in(first, name)) {
            let translation = Translation { equal, size };
            let key = equal.key.replace(SIZE, size);
            let files = translation.files();
            if files.iter().all(|file| there.contains(file)) && !found.iter().any(|(other, _)| *other == key)
            {
                found.extend(files.into_iter().next().map(|file| (key, file)));
            }
        }
    }
    found
}

/// What a name has where the pattern has [`SIZE`], if it fits otherwise.
fn size_in<'k>(pattern: &str, name: &'k str) -> Option<&'k str> {
    match pattern.split_once(SIZE) {
        None => (pattern == name).then_some(""),
        Some((before, after)) => {
            let size = name.strip_prefix(before)?.strip_suffix(after)?;
            size.parse::<HugePageSize>().is_ok().then_some(size)
        }
    }
}

/// One file is given one text.
fn one(text: String, texts: &Texts<'_>) -> Result<Vec<Step>, Unwritten> {
    Ok(vec![Step { file: 0, text, undo: texts.at(0).to_owned() }])
}

/// For figures: v1 takes a 0, which sets them back.
fn no_reset(_: &str, _: &Texts<'_>) -> Result<Vec<Step>, Unwritten> {
    Err(Unwritten::Never(NO_RESET))
}

/// For what v1 does not let anybody write either.
fn never(_: &str, _: &Texts<'_>) -> Result<Vec<Step>, Unwritten> {
    Err(Unwritten::Value)
}

/// The number after a key in a text of `KEY NUMBER` lines.
fn figure(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    /// What a v1 file has, where cgroup2's files have these texts.
    pub fn read(key: &str, files: &[(&str, &str)]) -> Option<String> {
        let (translation, texts) = found(key, files)?;
        translation.read(&texts)
    }

    /// What is written, as file and text.
    pub fn write(key: &str, value: &str, files: &[(&str, &str)]) -> Result<Vec<(String, String)>, Unwritten> {
        let (translation, texts) = found(key, files).unwrap();
        let files = translation.files();
        let steps = translation.write(value, &texts)?;
        Ok(steps.into_iter().map(|step| (files[step.file].clone(), step.text)).collect())
    }

    fn found<'k>(key: &'k str, files: &[(&str, &str)]) -> Option<(Translation<'k>, Vec<String>)> {
        let text = |file: &String| Some(files.iter().find(|(name, _)| name == file)?.1.to_owned());
        translations(key).find_map(|translation| {
            let texts: Option<Vec<String>> = translation.files().iter().map(text).collect();
            Some((translation, texts?))
        })
    }

    #[test]
    fn what_stands_behind_decides_what_is_there() {
        let there: Vec<String> = [
            "memory.max",
            "memory.current",
            "cpu.stat",
            "hugetlb.2MB.max",
            "hugetlb.1GB.max",
            "cgroup.procs",
        ]
        .map(str::to_owned)
        .to_vec();
        let listed = listed(&there);
        let behind = |key: &str| listed.iter().find(|(name, _)| name == key).map(|(_, file)| file.as_str());
        assert_eq!(behind("memory.limit_in_bytes"), Some("memory.max"));
        assert_eq!(behind("cpuacct.usage"), Some("cpu.stat"));
        assert_eq!(behind("hugetlb.2MB.limit_in_bytes"), Some("hugetlb.2MB.max"));
        assert_eq!(behind("hugetlb.1GB.limit_in_bytes"), Some("hugetlb.1GB.max"));
        assert_eq!(behind("tasks"), Some("cgroup.procs"));
        for missing in ["memory.memsw.limit_in_bytes", "cpu.shares", "blkio.weight", "memory.swappiness"] {
            assert_eq!(behind(missing), None, "{missing}");
        }
        let mut names: Vec<&String> = listed.iter().map(|(name, _)| name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "each once: {listed:?}");
    }

    #[test]
    fn sizes_are_those_of_huge_pages() {
        assert_eq!(size_in("hugetlb.*.max", "hugetlb.2MB.max"), Some("2MB"));
        assert_eq!(size_in("hugetlb.*.max", "hugetlb.2MB.rsvd.max"), None);
        assert_eq!(size_in("hugetlb.*.max", "hugetlb.../x.max"), None);
        assert_eq!((size_in("cpu.stat", "cpu.stat"), size_in("cpu.stat", "cpu.stats")), (Some(""), None));
    }

    #[test]
    fn no_file_is_lost_and_translated() {
        for equal in equals() {
            let key = equal.key.replace(SIZE, "2MB");
            assert_eq!(why_lost(&key), None, "{key}");
        }
    }
}
