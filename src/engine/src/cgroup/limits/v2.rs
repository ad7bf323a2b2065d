//! Limits on cgroup2, where the portable keys are the files' own names.
//!
//! Source: Documentation/admin-guide/cgroup-v2.rst.

use std::{io, rc::Rc};

use cgrant_policy::{IoLimit, LimitKey, LimitValue};

use super::{Target, parse, transaction::Transaction};
use crate::cgroup::node::Node;

const IO: &str = "io.max";

/// Sets one limit on the grant and on its payload.
///
/// # Errors
/// What the kernel refuses.
pub(super) fn set(
    transaction: &mut Transaction,
    target: &Target<'_>,
    key: LimitKey,
    value: &LimitValue,
) -> io::Result<()> {
    let file = key.to_string();
    target.each(|node| match value {
        LimitValue::Io(limits) => set_io(transaction, node, limits),
        // An empty list is what a new cgroup has: all CPUs of the one above.
        LimitValue::Cpus(None) => transaction.replace(node, &file, ""),
        value => transaction.replace(node, &file, &value.to_string()),
    })
}

/// Makes the list of limited devices the one given: those that are not in it have no limit any more.
fn set_io(transaction: &mut Transaction, node: &Rc<Node>, wanted: &[IoLimit]) -> io::Result<()> {
    let now = io_limits(node)?;
    for change in changes(&now, wanted) {
        transaction.write(node, IO, &change.new.to_string(), change.old.to_string())?;
    }
    Ok(())
}

/// What `io.max` has.
pub(super) fn io_limits(node: &Node) -> io::Result<Vec<IoLimit>> {
    let text = node.read(IO)?;
    if text.is_empty() {
        return Ok(Vec::new());
    }
    match parse(LimitKey::IoMax, &text)? {
        LimitValue::Io(limits) => Ok(limits),
        _ => Ok(Vec::new()),
    }
}

/// One device's limits, before and after.
pub(super) struct Change {
    /// As they are.
    pub old: IoLimit,
    /// As they shall be.
    pub new: IoLimit,
}

/// The devices whose limits differ.
pub(super) fn changes(now: &[IoLimit], wanted: &[IoLimit]) -> Vec<Change> {
    let find = |limits: &[IoLimit], device| {
        let none = IoLimit { device, rbps: None, wbps: None, riops: None, wiops: None };
        limits.iter().find(|limit| limit.device == device).copied().unwrap_or(none)
    };
    let mut devices: Vec<(u32, u32)> = now.iter().chain(wanted).map(|limit| limit.device).collect();
    devices.sort_unstable();
    devices.dedup();
    let change = |device| Change { old: find(now, device), new: find(wanted, device) };
    devices.into_iter().map(change).filter(|change| change.old != change.new).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn limits(text: &str) -> Vec<IoLimit> {
        match LimitValue::parse(&LimitKey::IoMax, text).unwrap() {
            LimitValue::Io(limits) => limits,
            _ => panic!("not io"),
        }
    }

    #[test]
    fn a_device_that_is_not_named_is_limited_no_more() {
        let now = limits("8:0 rbps=1, 8:16 wbps=2");
        let wanted = limits("8:16 wbps=2, 8:32 riops=3");
        let lines: Vec<(String, String)> = changes(&now, &wanted)
            .iter()
            .map(|change| (change.old.to_string(), change.new.to_string()))
            .collect();
        assert_eq!(
            lines,
            [
                (
                    "8:0 rbps=1 wbps=max riops=max wiops=max".into(),
                    "8:0 rbps=max wbps=max riops=max wiops=max".into()
                ),
                (
                    "8:32 rbps=max wbps=max riops=max wiops=max".into(),
                    "8:32 rbps=max wbps=max riops=3 wiops=max".into()
                ),
            ]
        );
    }
}
