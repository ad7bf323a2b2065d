//! Accounts as packet marks: bits of our own in the mark of each packet that passed a link's wall.
//!
//! Bits 20 to 31. The byte below is left alone because Tailscale takes decisions by it (values 0x04 and 0x08 of bits 16 to
//! 23, which no mark of ours makes), the two lowest bytes because Kubernetes and container networks do. A frame arrives with no
//! mark: the kernel clears it when a packet changes its network namespace.

use std::collections::BTreeMap;

use super::FirewallError;

/// The bits that are ours.
pub const MASK: u32 = 0xfff0_0000;

/// On packets of a published connection: any container may get them.
pub const PUBLISHED: Mark = Mark(0xfff0_0000);

/// On packets of name servers.
pub const SERVER: Mark = Mark(0xffe0_0000);

/// On packets that are bridged and may be: what is routed never has it.
pub const BRIDGED: Mark = Mark(0xffd0_0000);

const SHIFT: u32 = 20;

/// The last number of an account.
const LAST: u32 = 0xffc;

/// A mark, in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(pub u32);

/// Marks of the accounts that have links.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    /// Mark and count of links, by account.
    accounts: BTreeMap<u32, (Mark, usize)>,
}

impl Marks {
    /// The mark that the account has, or would get.
    ///
    /// # Errors
    /// [`FirewallError::Accounts`] if all are taken.
    pub fn of(&self, account: u32) -> Result<Mark, FirewallError> {
        if let Some((mark, _)) = self.accounts.get(&account) {
            return Ok(*mark);
        }
        let mut taken: Vec<u32> = self.accounts.values().map(|(mark, _)| mark.0 >> SHIFT).collect();
        taken.sort_unstable();
        let mut number = 1;
        for taken in taken {
            if taken != number {
                break;
            }
            number += 1;
        }
        if number > LAST {
            return Err(FirewallError::Accounts(LAST));
        }
        Ok(Mark(number << SHIFT))
    }

    /// One link more of the account's.
    pub fn hold(&mut self, account: u32, mark: Mark) {
        self.accounts.entry(account).or_insert((mark, 0)).1 += 1;
    }

    /// One link of the account's is gone.
    pub fn give_back(&mut self, account: u32) {
        if let Some((_, links)) = self.accounts.get_mut(&account) {
            *links -= 1;
            if *links == 0 {
                self.accounts.remove(&account);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(marks: &mut Marks, account: u32) -> Result<Mark, FirewallError> {
        let mark = marks.of(account)?;
        marks.hold(account, mark);
        Ok(mark)
    }

    #[test]
    fn marks_are_shared_by_an_account_and_used_again() {
        let mut marks = Marks::default();
        assert_eq!(take(&mut marks, 1000).unwrap(), Mark(0x0010_0000));
        assert_eq!(take(&mut marks, 1001).unwrap(), Mark(0x0020_0000));
        assert_eq!(take(&mut marks, 1000).unwrap(), Mark(0x0010_0000));
        marks.give_back(1000);
        assert_eq!(take(&mut marks, 1002).unwrap(), Mark(0x0030_0000));
        marks.give_back(1000);
        assert_eq!(take(&mut marks, 1003).unwrap(), Mark(0x0010_0000));
    }

    #[test]
    fn marks_end_before_the_special_ones() {
        let mut marks = Marks::default();
        for account in 0..LAST {
            let mark = take(&mut marks, account).unwrap();
            assert!(![SERVER, PUBLISHED, BRIDGED].contains(&mark) && mark.0 & !MASK == 0 && mark.0 != 0);
        }
        assert!(matches!(take(&mut marks, LAST), Err(FirewallError::Accounts(LAST))));
    }
}
