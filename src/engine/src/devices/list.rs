//! What a grant's programs may open beside the standard devices, as the record has it.

use cgrant_policy::NodePattern;
use cgrant_sys::bpf::{Device, DeviceAccess};
use cgrant_wire::{Refusal, RefusalCode};
use serde::{Deserialize, Serialize};

use super::node;

/// Most devices of a grant: half a hundred instructions of the kernel's for each ten, and more than anybody has given by hand.
const MAX_NUMBERS: usize = 256;

/// A character device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Number {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Bits of [`DeviceAccess`].
    pub access: u8,
}

impl Number {
    /// As a program has it.
    pub fn device(self) -> Device {
        let Self { major, minor, access } = self;
        Device { major, minor: Some(minor), access: DeviceAccess::from_bits(access) }
    }
}

/// The devices of a grant that is limited to some.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceList {
    /// Those that policy named when the grant was made, in the words of policy: what they are is another thing after a reboot.
    named: Vec<String>,
    /// What these were, and what was given since. In order, each once.
    numbers: Vec<Number>,
}

impl DeviceList {
    /// Of what policy names, as far as the host has it now.
    pub fn new(named: &[NodePattern]) -> Self {
        let mut list = Self { named: named.iter().map(ToString::to_string).collect(), numbers: Vec::new() };
        list.look(named);
        list
    }

    /// The same after a reboot: what was given has gone with the nodes.
    pub fn again(&self) -> Self {
        let known: Vec<NodePattern> = self.named.iter().filter_map(|text| text.parse().ok()).collect();
        Self::new(&known)
    }

    fn look(&mut self, named: &[NodePattern]) {
        for number in named.iter().flat_map(node::named) {
            if self.add(number).is_err() {
                tracing::warn!(
                    most = MAX_NUMBERS,
                    "policy names more devices than a grant can have; the others are left out"
                );
                return;
            }
        }
    }

    /// Adds one, or more that may be done with it; says whether that is anything new.
    ///
    /// # Errors
    /// [`RefusalCode::QuotaExceeded`] if there are as many as there may be.
    pub fn add(&mut self, number: Number) -> Result<bool, Refusal> {
        let same = |known: &Number| (known.major, known.minor).cmp(&(number.major, number.minor));
        match self.numbers.binary_search_by(same) {
            Ok(at) => {
                let Some(known) = self.numbers.get_mut(at) else { return Ok(false) };
                let before = known.access;
                known.access |= number.access;
                Ok(before != known.access)
            }
            Err(_) if self.numbers.len() >= MAX_NUMBERS => Err(Refusal::new(
                RefusalCode::QuotaExceeded,
                format!("the grant has {MAX_NUMBERS} devices already"),
            )
            .rule("built-in devices-of-a-grant")
            .resource("devices")
            .figures(MAX_NUMBERS as u64, MAX_NUMBERS as u64)),
            Err(at) => {
                self.numbers.insert(at, number);
                Ok(true)
            }
        }
    }

    /// May that be done with this one, of those beside the standard ones?
    pub fn has(&self, number: Number) -> bool {
        let is_it = |known: &&Number| (known.major, known.minor) == (number.major, number.minor);
        self.numbers.iter().find(is_it).is_some_and(|known| known.access & number.access == number.access)
    }

    /// Those beside the standard ones.
    pub fn numbers(&self) -> &[Number] {
        &self.numbers
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn number(minor: u32, access: u8) -> Number {
        Number { major: 10, minor, access }
    }

    #[test]
    fn each_device_is_there_once_with_all_that_it_was_given_for() {
        let mut list = DeviceList::default();
        assert!(list.add(number(200, 2)).unwrap());
        assert!(list.add(number(9, 7)).unwrap());
        assert!(list.add(number(200, 4)).unwrap());
        assert!(!list.add(number(200, 2)).unwrap());
        assert_eq!(list.numbers(), [number(9, 7), number(200, 6)]);
        assert!(list.has(number(200, 6)) && list.has(number(9, 1)));
        assert!(!list.has(number(200, 7)) && !list.has(number(10, 0)));
    }

    #[test]
    fn a_grant_has_so_many_and_no_more() {
        let mut list = DeviceList::default();
        for minor in 0..u32::try_from(MAX_NUMBERS).unwrap() {
            assert!(list.add(number(minor, 2)).unwrap());
        }
        assert_eq!(list.add(number(9999, 2)).unwrap_err().code, RefusalCode::QuotaExceeded);
        // What is there can still be given for more.
        assert!(list.add(number(3, 4)).unwrap());
        assert_eq!(list.numbers().len(), MAX_NUMBERS);
    }

    #[test]
    fn policy_is_looked_up_on_the_host() {
        let named = |texts: &[&str]| {
            DeviceList::new(&texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>())
        };
        let null = Number { major: 1, minor: 3, access: 7 };
        assert_eq!(named(&["/dev/null", "/dev/nul*", "/dev/nothing", "/dev/no/such/*"]).numbers(), [null]);
        // Directories, links and the like are no devices.
        assert!(named(&["/dev/fd", "/dev/stdin", "/dev/pts"]).numbers().is_empty());
        let mut list = named(&["/dev/null"]);
        list.add(number(200, 7)).unwrap();
        assert_eq!(list.again().numbers(), [null]);
    }
}
