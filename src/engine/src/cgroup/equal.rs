//! What is one thing in v1 and v2, in two forms.

/// What v1 takes for no limit.
pub const UNLIMITED: &str = "-1";
/// From here on a figure that v1 shows means no limit: it shows the largest number of whole pages that fits.
pub const ENDLESS: u64 = 1 << 62;

/// `cpu.shares` of a weight: 100 is 1024, as the scheduler itself translates (`sched_weight_from_cgroup` of
/// kernel/sched/sched.h).
pub fn shares(weight: u32) -> u64 {
    (u64::from(weight) * 1024 + 50) / 100
}

/// The weight of `cpu.shares` (`sched_weight_to_cgroup`).
pub fn weight(shares: u64) -> u32 {
    let weight = (shares.saturating_mul(100).saturating_add(512) / 1024).clamp(1, 10_000);
    u32::try_from(weight).unwrap_or(10_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_weight_reads_back_as_itself() {
        for value in 1..=10_000 {
            assert_eq!(weight(shares(value)), value);
        }
        assert_eq!((shares(100), weight(2), weight(262_144)), (1024, 1, 10_000));
    }
}
