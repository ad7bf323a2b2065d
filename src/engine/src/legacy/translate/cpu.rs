//! CPU: shares and weight, quota and period, time used.
//!
//! `cpu.shares` and `cpu.weight` are one figure of the scheduler's in two units, of which 1024 is 100
//! (`sched_weight_from_cgroup` of kernel/sched/sched.h, and systemd's). runc since 1.3.2 and crun since 1.23 make a weight of shares by a
//! curve that fits both ends of both ranges (opencontainers/cgroups#20); by that, shares of 512 and 1024 would not be half as
//! much and as much any more, which is all that shares say.

use super::{Equal, Step, Texts, Unwritten, figure, never, no_reset, one};
use crate::cgroup::equal::{shares, weight};

/// What v1 takes shares for, whatever is written (`MIN_SHARES`, `MAX_SHARES` of kernel/sched/sched.h).
const SHARES: std::ops::RangeInclusive<u64> = 2..=1 << 18;

pub(super) const EQUALS: &[Equal] = &[
    Equal { key: "cpu.shares", files: &["cpu.weight"], own: 1, read: read_shares, write: write_shares },
    Equal { key: "cpu.cfs_quota_us", files: &["cpu.max"], own: 1, read: quota, write: write_quota },
    Equal { key: "cpu.cfs_period_us", files: &["cpu.max"], own: 1, read: period, write: write_period },
    Equal { key: "cpu.cfs_burst_us", files: &["cpu.max.burst"], own: 1, read: same, write: write_number },
    Equal { key: "cpu.stat", files: &["cpu.stat"], own: 1, read: stat, write: never },
    Equal { key: "cpuacct.usage", files: &["cpu.stat"], own: 1, read: usage, write: no_reset },
    Equal { key: "cpuacct.usage_user", files: &["cpu.stat"], own: 1, read: user, write: never },
    Equal { key: "cpuacct.usage_sys", files: &["cpu.stat"], own: 1, read: system, write: never },
    Equal { key: "cpuacct.stat", files: &["cpu.stat"], own: 1, read: in_ticks, write: never },
];

fn read_shares(texts: &Texts<'_>) -> Option<String> {
    // 0 is a cgroup that runs only when nothing else does (`cpu.idle`).
    let weight: u32 = texts.at(0).parse().ok()?;
    Some(shares(weight).clamp(*SHARES.start(), *SHARES.end()).to_string())
}

fn write_shares(value: &str, texts: &Texts<'_>) -> Result<Vec<Step>, Unwritten> {
    let wanted: u64 = number(value)?;
    one(weight(wanted.clamp(*SHARES.start(), *SHARES.end())).to_string(), texts)
}

/// `max 100000`
fn max<'t>(texts: &'t Texts<'_>) -> Option<(&'t str, u64)> {
    let (quota, period) = texts.at(0).split_once(' ')?;
    Some((quota, period.parse().ok()?))
}

fn quota(texts: &Texts<'_>) -> Option<String> {
    match max(texts)?.0 {
        "max" => Some("-1".to_owned()),
        quota => quota.parse::<u64>().ok().map(|quota| quota.to_string()),
    }
}

/// The period stays.
fn write_quota(value: &str, texts: &Texts<'_>) -> Result<Vec<Step>, Unwritten> {
    if value.strip_prefix('-').is_some_and(|value| number(value).is_ok()) {
        return one("max".to_owned(), texts);
    }
    one(number(value)?.to_string(), texts)
}

fn period(texts: &Texts<'_>) -> Option<String> {
    Some(max(texts)?.1.to_string())
}

/// The quota stays.
fn write_period(value: &str, texts: &Texts<'_>) -> Result<Vec<Step>, Unwritten> {
    let (quota, _) = max(texts).ok_or(Unwritten::Value)?;
    one(format!("{quota} {}", number(value)?), texts)
}

fn same(texts: &Texts<'_>) -> Option<String> {
    Some(texts.at(0).to_owned())
}

fn write_number(value: &str, texts: &Texts<'_>) -> Result<Vec<Step>, Unwritten> {
    one(number(value)?.to_string(), texts)
}

fn number(value: &str) -> Result<u64, Unwritten> {
    let form = value.bytes().all(|byte| byte.is_ascii_digit());
    form.then(|| value.parse().ok()).flatten().ok_or(Unwritten::Value)
}

/// All of cgroup2's lines, and v1's in nanoseconds.
fn stat(texts: &Texts<'_>) -> Option<String> {
    let text = texts.at(0);
    let names = [("throttled_time", "throttled_usec"), ("burst_time", "burst_usec")];
    let v1 = names.into_iter().filter_map(|(v1, v2)| Some(format!("{v1} {}", nanoseconds(text, v2)?)));
    Some(v1.fold(text.to_owned(), |text, line| format!("{text}\n{line}")))
}

fn nanoseconds(text: &str, key: &str) -> Option<u64> {
    Some(figure(text, key)?.saturating_mul(1000))
}

fn usage(texts: &Texts<'_>) -> Option<String> {
    nanoseconds(texts.at(0), "usage_usec").map(|time| time.to_string())
}

fn user(texts: &Texts<'_>) -> Option<String> {
    nanoseconds(texts.at(0), "user_usec").map(|time| time.to_string())
}

fn system(texts: &Texts<'_>) -> Option<String> {
    nanoseconds(texts.at(0), "system_usec").map(|time| time.to_string())
}

fn in_ticks(texts: &Texts<'_>) -> Option<String> {
    let ticks = |key| {
        let time = u128::from(figure(texts.at(0), key)?) * u128::from(texts.ticks) / 1_000_000;
        Some(time)
    };
    Some(format!("user {}\nsystem {}", ticks("user_usec")?, ticks("system_usec")?))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use proptest::prelude::*;

    use super::{
        super::tests::{read, write},
        *,
    };

    fn written(key: &str, value: &str, file: &str, now: &str) -> Result<String, Unwritten> {
        let steps = write(key, value, &[(file, now)])?;
        assert_eq!((steps.len(), steps[0].0.as_str()), (1, file));
        Ok(steps[0].1.clone())
    }

    fn shares_of(weight: &str) -> String {
        read("cpu.shares", &[("cpu.weight", weight)]).unwrap()
    }

    #[test]
    fn the_default_is_the_default_and_half_of_it_half() {
        for (shares, weight) in
            [("1024", "100"), ("512", "50"), ("2048", "200"), ("2", "1"), ("262144", "10000")]
        {
            assert_eq!(written("cpu.shares", shares, "cpu.weight", "100").unwrap(), weight);
        }
        // v1 takes any number for the nearest that it has.
        assert_eq!(written("cpu.shares", "0", "cpu.weight", "100").unwrap(), "1");
        assert_eq!(written("cpu.shares", "99999999", "cpu.weight", "100").unwrap(), "10000");
        for bad in ["", "-1", "1.5", "many", "99999999999999999999999"] {
            assert_eq!(written("cpu.shares", bad, "cpu.weight", "100"), Err(Unwritten::Value), "{bad}");
        }
        assert_eq!(
            (shares_of("100"), shares_of("0"), shares_of("10000")),
            ("1024".into(), "2".into(), "102400".into())
        );
    }

    #[test]
    fn quota_and_period_are_two_halves_of_one_file() {
        let both = |text| {
            let get = |key| read(key, &[("cpu.max", text)]).unwrap();
            (get("cpu.cfs_quota_us"), get("cpu.cfs_period_us"))
        };
        assert_eq!(both("max 100000"), ("-1".into(), "100000".into()));
        assert_eq!(both("50000 200000"), ("50000".into(), "200000".into()));
        let quota = |value| written("cpu.cfs_quota_us", value, "cpu.max", "50000 200000");
        assert_eq!(
            (quota("-1").unwrap(), quota("-5").unwrap(), quota("7000").unwrap()),
            ("max".into(), "max".into(), "7000".into())
        );
        let period = |value, now| written("cpu.cfs_period_us", value, "cpu.max", now);
        assert_eq!(period("5000", "max 100000").unwrap(), "max 5000");
        assert_eq!(period("5000", "7000 100000").unwrap(), "7000 5000");
        for bad in ["", "-", "--1", "x", "1 2"] {
            assert_eq!(
                (quota(bad), period(bad, "max 1")),
                (Err(Unwritten::Value), Err(Unwritten::Value)),
                "{bad}"
            );
        }
    }

    #[test]
    fn time_is_in_nanoseconds_and_ticks() {
        let text = "usage_usec 5000000\nuser_usec 3000000\nsystem_usec 2000000\nnr_periods 4\nnr_throttled 1\nthrottled_usec 6";
        let get = |key| read(key, &[("cpu.stat", text)]).unwrap();
        assert_eq!(get("cpuacct.usage"), "5000000000");
        assert_eq!(
            (get("cpuacct.usage_user"), get("cpuacct.usage_sys")),
            ("3000000000".into(), "2000000000".into())
        );
        let ticks = cgrant_sys::process::ticks_per_second();
        assert_eq!(get("cpuacct.stat"), format!("user {}\nsystem {}", 3 * ticks, 2 * ticks));
        let stat = get("cpu.stat");
        assert!(stat.starts_with(text) && stat.ends_with("\nthrottled_time 6000"), "{stat}");
        assert_eq!(read("cpu.stat", &[("cpu.stat", "usage_usec 1")]).unwrap(), "usage_usec 1");
    }

    proptest! {
        #[test]
        fn every_weight_reads_back_as_itself(weight in 1..=10_000_u32) {
            let text = weight.to_string();
            prop_assert_eq!(written("cpu.shares", &shares_of(&text), "cpu.weight", "100").unwrap(), text);
        }

        #[test]
        fn more_shares_are_no_less_weight(a in 0..300_000_u64, b in 0..300_000_u64) {
            let weight = |shares: u64| -> u64 {
                written("cpu.shares", &shares.to_string(), "cpu.weight", "100").unwrap().parse().unwrap()
            };
            prop_assert!(a > b || weight(a) <= weight(b));
            prop_assert!((1..=10_000).contains(&weight(a)));
        }

        #[test]
        fn no_text_panics(value in ".{0,30}", text in ".{0,60}") {
            for equal in EQUALS {
                let _ = (read(equal.key, &[(equal.files[0], &text)]), write(equal.key, &value, &[(equal.files[0], &text)]));
            }
        }
    }
}
