//! Bytes. Where v1 has no limit it shows the largest number of whole pages that fits, and takes `-1`; cgroup2 says `max`.
//!
//! `memory.memsw.*` counts memory and swap together, cgroup2 each alone: the limit of both is the sum, and setting one of v1's
//! limits keeps the other one. As on v1, both together may not be less than memory alone.

use super::{Equal, Step, Texts, Unwritten, figure, never, no_reset, one};
use crate::cgroup::equal::{ENDLESS, UNLIMITED};

/// How cgroup2 says that there is no limit.
const MAX: &str = "max";

pub(super) const EQUALS: &[Equal] = &[
    Equal {
        key: "memory.limit_in_bytes",
        files: &["memory.max", "memory.swap.max"],
        own: 2,
        read: limit,
        write: write_memory,
    },
    // A kernel that does not account swap.
    Equal { key: "memory.limit_in_bytes", files: &["memory.max"], own: 1, read: limit, write: write_limit },
    // The root has no limit on either, and on v1 a file that says so.
    Equal { key: "memory.limit_in_bytes", files: &["memory.stat"], own: 1, read: no_limit, write: never },
    Equal {
        key: "memory.memsw.limit_in_bytes",
        files: &["memory.swap.max", "memory.max"],
        own: 1,
        read: limit_of_both,
        write: write_both,
    },
    Equal { key: "memory.usage_in_bytes", files: &["memory.current"], own: 1, read: number, write: never },
    // What v1 counts in the root (`mem_cgroup_usage` of mm/memcontrol.c).
    Equal {
        key: "memory.usage_in_bytes",
        files: &["memory.stat"],
        own: 1,
        read: usage_of_root,
        write: never,
    },
    Equal {
        key: "memory.memsw.usage_in_bytes",
        files: &["memory.swap.current", "memory.current"],
        own: 1,
        read: usage_of_both,
        write: never,
    },
    Equal {
        key: "memory.max_usage_in_bytes",
        files: &["memory.peak"],
        own: 1,
        read: number,
        write: no_reset,
    },
    // `.local`: how often this cgroup's own limit was met, as on v1.
    Equal { key: "memory.failcnt", files: &["memory.events.local"], own: 1, read: met, write: no_reset },
    Equal {
        key: "memory.stat",
        files: &["memory.stat", "memory.swap.current"],
        own: 1,
        read: figures,
        write: never,
    },
    Equal { key: "memory.stat", files: &["memory.stat"], own: 1, read: figures, write: never },
    Equal {
        key: "memory.oom_control",
        files: &["memory.max", "memory.events"],
        own: 0,
        read: oom_control,
        write: write_oom_control,
    },
    Equal {
        key: "hugetlb.*.limit_in_bytes",
        files: &["hugetlb.*.max"],
        own: 1,
        read: limit,
        write: write_limit,
    },
    Equal {
        key: "hugetlb.*.usage_in_bytes",
        files: &["hugetlb.*.current"],
        own: 1,
        read: number,
        write: never,
    },
    Equal {
        key: "hugetlb.*.failcnt",
        files: &["hugetlb.*.events.local"],
        own: 1,
        read: met,
        write: no_reset,
    },
    Equal {
        key: "hugetlb.*.rsvd.limit_in_bytes",
        files: &["hugetlb.*.rsvd.max"],
        own: 1,
        read: limit,
        write: write_limit,
    },
    Equal {
        key: "hugetlb.*.rsvd.usage_in_bytes",
        files: &["hugetlb.*.rsvd.current"],
        own: 1,
        read: number,
        write: never,
    },
];

/// A limit of cgroup2's; the outer `None` if the text is none.
fn bytes(text: &str) -> Option<Option<u64>> {
    if text == MAX {
        return Some(None);
    }
    let value: u64 = text.parse().ok()?;
    Some((value < ENDLESS).then_some(value))
}

/// As v1 shows it.
fn shown(limit: Option<u64>, unit: u64) -> String {
    limit.unwrap_or_else(|| (i64::MAX.unsigned_abs() / unit.max(1)).saturating_mul(unit)).to_string()
}

fn text(limit: Option<u64>) -> String {
    limit.map_or_else(|| MAX.to_owned(), |bytes| bytes.to_string())
}

/// What v1 takes as bytes (`page_counter_memparse`, lib/cmdline.c `memparse`): decimal, octal after `0`, hexadecimal after
/// `0x`; K, M, G, T, P or E after it; `-1` for no limit. Rounded down to whole pages, as the kernel does.
fn taken(value: &str, unit: u64) -> Option<Option<u64>> {
    if value == UNLIMITED {
        return Some(None);
    }
    let (digits, shift) = match value.chars().last()?.to_ascii_uppercase() {
        'K' => (value.get(..value.len() - 1)?, 10),
        'M' => (value.get(..value.len() - 1)?, 20),
        'G' => (value.get(..value.len() - 1)?, 30),
        'T' => (value.get(..value.len() - 1)?, 40),
        'P' => (value.get(..value.len() - 1)?, 50),
        // The last digit of a hexadecimal number.
        'E' if !value.starts_with("0x") => (value.get(..value.len() - 1)?, 60),
        _ => (value, 0),
    };
    let parse = |digits: &str, radix| {
        let form = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        form.then(|| u64::from_str_radix(digits, radix).ok()).flatten()
    };
    let number = match (digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")), digits) {
        (Some(digits), _) => parse(digits, 16)?,
        (None, digits) if digits.len() > 1 && digits.starts_with('0') => parse(digits, 8)?,
        (None, digits) => parse(digits, 10)?,
    };
    let bytes = u128::from(number) << shift;
    let bytes = u64::try_from(bytes).ok().filter(|bytes| *bytes < ENDLESS);
    Some(bytes.map(|bytes| bytes / unit.max(1) * unit))
}

fn limit(texts: &Texts<'_>) -> Option<String> {
    Some(shown(bytes(texts.at(0))?, texts.unit))
}

fn no_limit(texts: &Texts<'_>) -> Option<String> {
    Some(shown(None, texts.unit))
}

fn write_limit(value: &str, texts: &Texts<'_>) -> Result<Vec<Step>, Unwritten> {
    one(text(taken(value, texts.unit).ok_or(Unwritten::Value)?), texts)
}

/// Memory and swap of a cgroup; the limit of both, if both have one.
struct Both {
    memory: Option<u64>,
    swap: Option<u64>,
}

impl Both {
    fn new(memory: &str, swap: &str) -> Option<Self> {
        Some(Self { memory: bytes(memory)?, swap: bytes(swap)? })
    }

    fn sum(&self) -> Option<u64> {
        Some(self.memory?.saturating_add(self.swap?))
    }
}

/// Memory alone; both together stay what they are.
fn write_memory(value: &str, texts: &Texts<'_>) -> Result<Vec<Step>, Unwritten> {
    let wanted = taken(value, texts.unit).ok_or(Unwritten::Value)?;
    let now = Both::new(texts.at(0), texts.at(1)).ok_or(Unwritten::Value)?;
    let step = |file: usize, limit| Step { file, text: text(limit), undo: texts.at(file).to_owned() };
    let Some(sum) = now.sum() else { return Ok(vec![step(0, wanted)]) };
    let wanted = wanted.filter(|wanted| *wanted <= sum).ok_or(Unwritten::Value)?;
    let mut steps = vec![step(0, Some(wanted)), step(1, Some(sum - wanted))];
    // The one that becomes less is first, so that there is never more of both.
    if now.memory.is_some_and(|memory| wanted > memory) {
        steps.reverse();
    }
    Ok(steps)
}

fn limit_of_both(texts: &Texts<'_>) -> Option<String> {
    Some(shown(Both::new(texts.at(1), texts.at(0))?.sum(), texts.unit))
}

/// Both together; memory alone stays what it is.
fn write_both(value: &str, texts: &Texts<'_>) -> Result<Vec<Step>, Unwritten> {
    let wanted = taken(value, texts.unit).ok_or(Unwritten::Value)?;
    let now = Both::new(texts.at(1), texts.at(0)).ok_or(Unwritten::Value)?;
    let swap = match (wanted, now.memory) {
        (None, _) => None,
        (Some(wanted), Some(memory)) => Some(wanted.checked_sub(memory).ok_or(Unwritten::Value)?),
        // Memory alone would have more.
        (Some(_), None) => return Err(Unwritten::Value),
    };
    one(text(swap), texts)
}

fn number(texts: &Texts<'_>) -> Option<String> {
    texts.at(0).parse::<u64>().ok().map(|number| number.to_string())
}

fn usage_of_root(texts: &Texts<'_>) -> Option<String> {
    let stat = texts.at(0);
    Some(figure(stat, "anon")?.saturating_add(figure(stat, "file")?).to_string())
}

fn usage_of_both(texts: &Texts<'_>) -> Option<String> {
    let (swap, memory): (u64, u64) = (texts.at(0).parse().ok()?, texts.at(1).parse().ok()?);
    Some(memory.saturating_add(swap).to_string())
}

fn met(texts: &Texts<'_>) -> Option<String> {
    figure(texts.at(0), "max").map(|count| count.to_string())
}

fn oom_control(texts: &Texts<'_>) -> Option<String> {
    let kills = figure(texts.at(1), "oom_kill")?;
    Some(format!("oom_kill_disable 0\nunder_oom 0\noom_kill {kills}"))
}

fn write_oom_control(value: &str, _: &Texts<'_>) -> Result<Vec<Step>, Unwritten> {
    match value {
        "0" => Ok(Vec::new()),
        "1" => Err(Unwritten::Never("the OOM killer can't be kept out there")),
        _ => Err(Unwritten::Value),
    }
}

/// v1's names of figures, and cgroup2's. Those that have one name in both are with the rest.
const FIGURES: [(&str, &str); 7] = [
    ("cache", "file"),
    ("rss", "anon"),
    ("rss_huge", "anon_thp"),
    ("shmem", "shmem"),
    ("mapped_file", "file_mapped"),
    ("dirty", "file_dirty"),
    ("writeback", "file_writeback"),
];
/// Figures that have one name in both and on v1 a second one for everything below.
const SAME: [&str; 7] =
    ["pgfault", "pgmajfault", "inactive_anon", "active_anon", "inactive_file", "active_file", "unevictable"];

/// All of cgroup2's figures, which are for everything below, and before them v1's with both names.
fn figures(texts: &Texts<'_>) -> Option<String> {
    let stat = texts.at(0);
    let swap = texts.at(1).parse::<u64>().ok().map(|swap| ("swap", swap));
    let renamed = FIGURES.into_iter().filter_map(|(v1, v2)| Some((v1, figure(stat, v2)?)));
    let same = SAME.into_iter().filter_map(|name| Some((name, figure(stat, name)?)));
    let v1: Vec<(&str, u64)> = renamed.chain(swap).chain(same).collect();
    let mut lines: Vec<String> = v1.iter().map(|(name, value)| format!("{name} {value}")).collect();
    lines.extend(v1.iter().map(|(name, value)| format!("total_{name} {value}")));
    let is_new = |line: &&str| !v1.iter().any(|(name, _)| line.split(' ').next() == Some(name));
    lines.extend(stat.lines().filter(is_new).map(str::to_owned));
    Some(lines.join("\n"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::tests::{read, write},
        *,
    };

    const LIMIT: &str = "memory.limit_in_bytes";
    const BOTH: &str = "memory.memsw.limit_in_bytes";

    fn pair<'t>(memory: &'t str, swap: &'t str) -> [(&'static str, &'t str); 2] {
        [("memory.max", memory), ("memory.swap.max", swap)]
    }

    fn step(file: &str, text: &str) -> (String, String) {
        (file.to_owned(), text.to_owned())
    }

    #[test]
    fn no_limit_is_v1s_large_number() {
        let page = cgrant_sys::process::page_size();
        let endless = (i64::MAX as u64 / page * page).to_string();
        if page == 4096 {
            assert_eq!(endless, "9223372036854771712");
        }
        assert_eq!(read(LIMIT, &pair("max", "max")).unwrap(), endless);
        assert_eq!(read(LIMIT, &[("memory.max", "max")]).unwrap(), endless);
        assert_eq!(read(LIMIT, &[("memory.stat", "anon 1")]).unwrap(), endless, "of the root");
        assert_eq!(read(BOTH, &pair("4096", "max")).unwrap(), endless);
        assert_eq!(read(BOTH, &pair("max", "4096")).unwrap(), endless);
        // Written back it is no limit again.
        assert_eq!(write(LIMIT, &endless, &pair("4096", "max")).unwrap(), [step("memory.max", "max")]);
        assert_eq!(write(LIMIT, "-1", &pair("4096", "max")).unwrap(), [step("memory.max", "max")]);
        let huge = [("hugetlb.2MB.max", "max")];
        assert_eq!(read("hugetlb.2MB.limit_in_bytes", &huge).unwrap(), "9223372036852678656");
    }

    #[test]
    fn bytes_are_read_as_the_kernel_reads_them() {
        for (value, bytes) in [
            ("1048576", 1 << 20),
            ("1M", 1 << 20),
            ("1m", 1 << 20),
            ("0x100000", 1 << 20),
            ("04000000", 1 << 20),
            ("2G", 2 << 30),
            ("0", 0),
            ("0x1e000", 0x1e000),
        ] {
            assert_eq!(taken(value, 4096), Some(Some(bytes)), "{value}");
        }
        assert_eq!(taken("4097", 4096), Some(Some(4096)));
        assert_eq!(
            (taken("-1", 4096), taken("16E", 4096), taken("8E", 4096)),
            (Some(None), Some(None), Some(None))
        );
        for bad in ["", "max", "-2", "1.5M", "1MB", "x", "M", "+1", "08", "1 2", "\u{fc}"] {
            assert_eq!(taken(bad, 4096), None, "{bad}");
        }
    }

    #[test]
    fn both_together_are_the_sum() {
        assert_eq!(read(BOTH, &pair("8192", "4096")).unwrap(), "12288");
        assert_eq!(write(BOTH, "20480", &pair("8192", "max")).unwrap(), [step("memory.swap.max", "12288")]);
        assert_eq!(write(BOTH, "8192", &pair("8192", "max")).unwrap(), [step("memory.swap.max", "0")]);
        assert_eq!(write(BOTH, "-1", &pair("8192", "0")).unwrap(), [step("memory.swap.max", "max")]);
        // As v1: never less than memory alone.
        assert_eq!(write(BOTH, "4096", &pair("8192", "max")), Err(Unwritten::Value));
        assert_eq!(write(BOTH, "4096", &pair("max", "max")), Err(Unwritten::Value));
        assert_eq!(write(LIMIT, "16384", &pair("8192", "4096")), Err(Unwritten::Value));
        assert_eq!(write(LIMIT, "-1", &pair("8192", "4096")), Err(Unwritten::Value));
        // What becomes less is first.
        assert_eq!(
            write(LIMIT, "12288", &pair("8192", "4096")).unwrap(),
            [step("memory.swap.max", "0"), step("memory.max", "12288")]
        );
        assert_eq!(
            write(LIMIT, "4096", &pair("8192", "4096")).unwrap(),
            [step("memory.max", "4096"), step("memory.swap.max", "8192")]
        );
        let usage = [("memory.current", "5"), ("memory.swap.current", "7")];
        assert_eq!(read("memory.memsw.usage_in_bytes", &usage).unwrap(), "12");
    }

    #[test]
    fn usage_and_events() {
        assert_eq!(read("memory.usage_in_bytes", &[("memory.current", "4096")]).unwrap(), "4096");
        assert_eq!(
            read("memory.usage_in_bytes", &[("memory.stat", "anon 5\nfile 6\nkernel 9")]).unwrap(),
            "11"
        );
        let events = [("memory.events.local", "low 1\nhigh 2\nmax 3\noom 4\noom_kill 5\noom_group_kill 0")];
        assert_eq!(read("memory.failcnt", &events).unwrap(), "3");
        assert_eq!(write("memory.failcnt", "0", &events), Err(Unwritten::Never(super::super::NO_RESET)));
        let control = [("memory.max", "max"), ("memory.events", "max 3\noom 4\noom_kill 5")];
        assert_eq!(
            read("memory.oom_control", &control).unwrap(),
            "oom_kill_disable 0\nunder_oom 0\noom_kill 5"
        );
        assert_eq!(write("memory.oom_control", "0", &control).unwrap(), []);
        assert!(matches!(write("memory.oom_control", "1", &control), Err(Unwritten::Never(_))));
    }

    #[test]
    fn figures_have_the_names_of_both() {
        let stat = "anon 10\nfile 20\nkernel 30\nfile_mapped 40\npgfault 50\nshmem 60";
        let text = read("memory.stat", &[("memory.stat", stat), ("memory.swap.current", "70")]).unwrap();
        for (name, value) in [
            ("rss", 10),
            ("cache", 20),
            ("mapped_file", 40),
            ("swap", 70),
            ("total_rss", 10),
            ("total_swap", 70),
            ("total_pgfault", 50),
            ("pgfault", 50),
            ("anon", 10),
            ("kernel", 30),
            ("file_mapped", 40),
        ] {
            let lines = text.lines().filter(|line| line.split(' ').next() == Some(name));
            assert_eq!(lines.collect::<Vec<_>>(), [format!("{name} {value}")], "{text}");
        }
        assert!(!text.contains("rss_huge"), "what the kernel does not give is not made up: {text}");
    }

    proptest! {
        #[test]
        fn every_limit_reads_back_as_it_was_written(pages in 0..(1_u64 << 40)) {
            let page = cgrant_sys::process::page_size();
            let value = (pages * page).to_string();
            let written = write(LIMIT, &value, &pair("max", "max")).unwrap();
            prop_assert_eq!(written.len(), 1);
            prop_assert_eq!(read(LIMIT, &pair(&written[0].1, "max")).unwrap(), value);
        }

        #[test]
        fn both_stay_what_they_are_when_memory_changes(
            memory in 0..1000_u64, swap in 0..1000_u64, wanted in 0..3000_u64
        ) {
            let page = cgrant_sys::process::page_size();
            let texts = [memory, swap, wanted].map(|pages| (pages * page).to_string());
            let before = read(BOTH, &pair(&texts[0], &texts[1])).unwrap();
            let Ok(steps) = write(LIMIT, &texts[2], &pair(&texts[0], &texts[1])) else {
                prop_assert!(wanted > memory + swap);
                return Ok(());
            };
            // At every step there is no more of both.
            let mut now = [memory * page, swap * page];
            for (file, text) in steps {
                now[usize::from(file == "memory.swap.max")] = text.parse().unwrap();
                prop_assert!(now[0] + now[1] <= (memory + swap) * page);
            }
            let now = now.map(|bytes| bytes.to_string());
            prop_assert_eq!(read(BOTH, &pair(&now[0], &now[1])).unwrap(), before);
            prop_assert_eq!(read(LIMIT, &pair(&now[0], &now[1])).unwrap(), texts[2].clone());
        }

        #[test]
        fn no_value_panics(value in ".{0,40}", memory in ".{0,20}", swap in ".{0,20}") {
            for key in [LIMIT, BOTH, "memory.oom_control", "memory.stat"] {
                let files = [
                    ("memory.max", memory.as_str()), ("memory.swap.max", swap.as_str()),
                    ("memory.stat", value.as_str()), ("memory.events", value.as_str()),
                ];
                let _ = (read(key, &files), write(key, &value, &files));
            }
        }
    }
}
