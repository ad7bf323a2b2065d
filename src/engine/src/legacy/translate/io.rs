//! Block devices: v1's limits in four files of `DEVICE FIGURE` lines are the four figures of a line of `io.max`, and its
//! counts are in `io.stat`.
//!
//! v1's limits and counts are for a cgroup alone, cgroup2's for everything below it too. `blkio.weight` is in units of which 500 is
//! the default, `io.weight` of which 100 is.

use cgrant_policy::{IoLimit, LimitKey, LimitValue};

use super::{Equal, Step, Texts, Unwritten, never, one};

/// `blkio.weight` of each one of `io.weight`: both defaults are the same.
const PER_WEIGHT: u64 = 5;
/// What v1 takes as a weight.
const WEIGHT: std::ops::RangeInclusive<u64> = 10..=1000;

pub(super) const EQUALS: &[Equal] = &[
    Equal {
        key: "blkio.throttle.read_bps_device",
        files: &["io.max"],
        own: 1,
        read: |texts| limits(texts, "rbps"),
        write: |value, texts| write_limit(value, texts, "rbps"),
    },
    Equal {
        key: "blkio.throttle.write_bps_device",
        files: &["io.max"],
        own: 1,
        read: |texts| limits(texts, "wbps"),
        write: |value, texts| write_limit(value, texts, "wbps"),
    },
    Equal {
        key: "blkio.throttle.read_iops_device",
        files: &["io.max"],
        own: 1,
        read: |texts| limits(texts, "riops"),
        write: |value, texts| write_limit(value, texts, "riops"),
    },
    Equal {
        key: "blkio.throttle.write_iops_device",
        files: &["io.max"],
        own: 1,
        read: |texts| limits(texts, "wiops"),
        write: |value, texts| write_limit(value, texts, "wiops"),
    },
    Equal {
        key: "blkio.throttle.io_service_bytes",
        files: &["io.stat"],
        own: 1,
        read: amounts,
        write: never,
    },
    Equal {
        key: "blkio.throttle.io_service_bytes_recursive",
        files: &["io.stat"],
        own: 1,
        read: amounts,
        write: never,
    },
    Equal { key: "blkio.throttle.io_serviced", files: &["io.stat"], own: 1, read: counts, write: never },
    Equal {
        key: "blkio.throttle.io_serviced_recursive",
        files: &["io.stat"],
        own: 1,
        read: counts,
        write: never,
    },
    Equal { key: "blkio.io_service_bytes", files: &["io.stat"], own: 1, read: amounts, write: never },
    Equal {
        key: "blkio.io_service_bytes_recursive",
        files: &["io.stat"],
        own: 1,
        read: amounts,
        write: never,
    },
    Equal { key: "blkio.io_serviced", files: &["io.stat"], own: 1, read: counts, write: never },
    Equal { key: "blkio.io_serviced_recursive", files: &["io.stat"], own: 1, read: counts, write: never },
    Equal { key: "blkio.weight", files: &["io.weight"], own: 1, read: weight, write: write_weight },
    Equal {
        key: "blkio.bfq.weight",
        files: &["io.bfq.weight"],
        own: 1,
        read: bfq_weight,
        write: write_bfq_weight,
    },
];

/// The lines of one of v1's four files.
fn limits(texts: &Texts<'_>, name: &str) -> Option<String> {
    let text = texts.at(0);
    let limits = match text.is_empty() {
        true => Vec::new(),
        false => match LimitValue::parse(&LimitKey::IoMax, text) {
            Ok(LimitValue::Io(limits)) => limits,
            _ => return None,
        },
    };
    let line = |limit: &IoLimit| {
        let (_, figure) = limit.figures().into_iter().find(|(found, _)| *found == name)?;
        Some(format!("{}:{} {}", limit.device.0, limit.device.1, figure?))
    };
    Some(limits.iter().filter_map(line).collect::<Vec<_>>().join("\n"))
}

/// One line a write, as on v1; 0 takes the limit away. The device's other limits stay.
fn write_limit(value: &str, texts: &Texts<'_>, name: &str) -> Result<Vec<Step>, Unwritten> {
    let mut words = value.split_ascii_whitespace();
    let (Some(device), Some(figure), None) = (words.next(), words.next(), words.next()) else {
        return Err(Unwritten::Value);
    };
    device_of(device).ok_or(Unwritten::Value)?;
    let figure = match number(figure)? {
        0 => "max".to_owned(),
        figure => figure.to_string(),
    };
    let now = limits(texts, name).ok_or(Unwritten::Value)?;
    let before = now.lines().find_map(|line| line.strip_prefix(device)?.strip_prefix(' ')).unwrap_or("max");
    let undo = format!("{device} {name}={before}");
    Ok(vec![Step { file: 0, text: format!("{device} {name}={figure}"), undo }])
}

fn device_of(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    let part =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    Some((part(major)?, part(minor)?))
}

fn number(text: &str) -> Result<u64, Unwritten> {
    let form = text.bytes().all(|byte| byte.is_ascii_digit());
    form.then(|| text.parse().ok()).flatten().ok_or(Unwritten::Value)
}

fn amounts(texts: &Texts<'_>) -> Option<String> {
    Some(table(texts.at(0), ["rbytes", "wbytes", "dbytes"]))
}

fn counts(texts: &Texts<'_>) -> Option<String> {
    Some(table(texts.at(0), ["rios", "wios", "dios"]))
}

/// v1's table of what was read, written and discarded, with sums. What was synchronous, cgroup2 does not tell.
fn table(text: &str, names: [&str; 3]) -> String {
    let (mut lines, mut total) = (Vec::new(), 0_u64);
    for line in text.lines() {
        let Some((device, figures)) = line.split_once(' ') else { continue };
        if device_of(device).is_none() {
            continue;
        }
        let figure = |name: &str| -> u64 {
            let word =
                figures.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
            word.and_then(|word| word.parse().ok()).unwrap_or(0)
        };
        let found = names.map(figure);
        let sum = found.into_iter().fold(0, u64::saturating_add);
        for (what, figure) in
            ["Read", "Write", "Discard", "Total"].into_iter().zip(found.into_iter().chain([sum]))
        {
            lines.push(format!("{device} {what} {figure}"));
        }
        total = total.saturating_add(sum);
    }
    lines.push(format!("Total {total}"));
    lines.join("\n")
}

/// `default 100`, and lines of devices.
fn default_weight(texts: &Texts<'_>) -> Option<u64> {
    let text = texts.at(0);
    super::figure(text, "default").or_else(|| text.parse().ok())
}

fn weight(texts: &Texts<'_>) -> Option<String> {
    let weight = default_weight(texts)?.saturating_mul(PER_WEIGHT);
    Some(weight.clamp(*WEIGHT.start(), *WEIGHT.end()).to_string())
}

fn write_weight(value: &str, texts: &Texts<'_>) -> Result<Vec<Step>, Unwritten> {
    let wanted = number(value).ok().filter(|wanted| WEIGHT.contains(wanted)).ok_or(Unwritten::Value)?;
    write_default((wanted + PER_WEIGHT / 2) / PER_WEIGHT, texts)
}

fn bfq_weight(texts: &Texts<'_>) -> Option<String> {
    default_weight(texts).map(|weight| weight.to_string())
}

fn write_bfq_weight(value: &str, texts: &Texts<'_>) -> Result<Vec<Step>, Unwritten> {
    write_default(number(value)?, texts)
}

fn write_default(weight: u64, texts: &Texts<'_>) -> Result<Vec<Step>, Unwritten> {
    one(format!("default {weight}"), texts)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::tests::{read, write},
        *,
    };

    const MAX: &str = "8:0 rbps=max wbps=1048576 riops=max wiops=7\n8:16 rbps=5 wbps=max riops=max wiops=max";

    fn written(key: &str, value: &str, file: &str, now: &str) -> Result<String, Unwritten> {
        write(key, value, &[(file, now)]).map(|steps| steps[0].1.clone())
    }

    #[test]
    fn each_figure_has_its_file() {
        let get = |kind: &str| read(&format!("blkio.throttle.{kind}_device"), &[("io.max", MAX)]).unwrap();
        assert_eq!((get("write_bps"), get("write_iops")), ("8:0 1048576".into(), "8:0 7".into()));
        assert_eq!((get("read_bps"), get("read_iops")), ("8:16 5".into(), String::new()));
        let set = |value| written("blkio.throttle.read_iops_device", value, "io.max", MAX);
        assert_eq!(
            (set("8:0 100").unwrap(), set("8:0\t0").unwrap()),
            ("8:0 riops=100".into(), "8:0 riops=max".into())
        );
        for bad in ["", "8:0", "8:0 x", "8 1", "8:0 1 2", "8:0 -1", "8:0 1 wbps=5", ":0 1x", "8:0 1=2"] {
            assert_eq!(set(bad), Err(Unwritten::Value), "{bad}");
        }
    }

    #[test]
    fn counts_are_v1s_table() {
        let stat = "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=5 dios=3\n8:16 rbytes=1";
        let get = |key| read(key, &[("io.stat", stat)]).unwrap();
        assert_eq!(
            get("blkio.throttle.io_service_bytes"),
            "8:0 Read 10\n8:0 Write 20\n8:0 Discard 5\n8:0 Total 35\n8:16 Read 1\n8:16 Write 0\n8:16 Discard 0\n8:16 Total 1\nTotal 36"
        );
        assert!(get("blkio.throttle.io_serviced").ends_with("\nTotal 6"));
        assert_eq!(read("blkio.io_serviced", &[("io.stat", "")]).unwrap(), "Total 0");
    }

    #[test]
    fn weights_have_one_default() {
        let get = |key, file, text| read(key, &[(file, text)]).unwrap();
        assert_eq!(get("blkio.weight", "io.weight", "default 100\n8:0 50"), "500");
        assert_eq!(written("blkio.weight", "500", "io.weight", "default 1").unwrap(), "default 100");
        assert_eq!(written("blkio.weight", "10", "io.weight", "default 1").unwrap(), "default 2");
        assert_eq!(written("blkio.weight", "9", "io.weight", "default 1"), Err(Unwritten::Value));
        assert_eq!(get("blkio.bfq.weight", "io.bfq.weight", "default 333"), "333");
        assert_eq!(written("blkio.bfq.weight", "333", "io.bfq.weight", "100").unwrap(), "default 333");
    }

    proptest! {
        #[test]
        fn a_limit_reads_back_as_it_was_written(major in 0..4096_u32, minor in 0..1_048_576_u32, figure in 1..u64::from(u32::MAX)) {
            let line = format!("{major}:{minor} {figure}");
            let text = written("blkio.throttle.write_bps_device", &line, "io.max", "").unwrap();
            let shown = text.replace("wbps", "rbps=max riops=max wiops=max wbps");
            prop_assert_eq!(read("blkio.throttle.write_bps_device", &[("io.max", &shown)]).unwrap(), line);
        }

        #[test]
        fn no_text_panics(value in ".{0,30}", text in ".{0,60}") {
            for equal in EQUALS {
                let _ = (read(equal.key, &[(equal.files[0], &text)]), write(equal.key, &value, &[(equal.files[0], &text)]));
            }
        }
    }
}
