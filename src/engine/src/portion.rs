//! How many cgroups ordinary users of containers may have of those that their account may have, of which its roots must have some left. No I/O.
//!
//! Each grant that such a user makes has a portion, which the kernel keeps (`cgroup.max.descendants` on the grant's own cgroup, root's): so
//! whoever is inside of it makes no more, by the broker or by hand. A portion is a quarter of what is left when the grant is made: all of one
//! user's come to a quarter of the account's quota at most, and those of all users together to half.
//!
//! In a container that such a user made, others may be ordinary users in their turn: they share out what that one has, likewise; there the
//! cgroups that a grant consists of come out of it too, for which an account has room besides its quota.

use cgrant_policy::{GrantPath, NsUid};

/// What part of a quota all ordinary users have together, one of them, and of what is left a new grant, as divisors.
const ALL: u64 = 2;
const ONE: u64 = 4;
const NEW: u64 = 4;

/// Cgroups that a grant consists of: its own, payload, monitor, children.
pub const PARTS: u64 = 4;

/// Nothing is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UsedUp {
    /// How many it may be.
    pub quota: u64,
    /// How many it is.
    pub usage: u64,
}

/// What grants of an account's ordinary users have: where each lies, and its portion.
#[derive(Debug, Default)]
pub struct Portions(Vec<(GrantPath, u64)>);

impl Portions {
    /// The portions of these grants, with what each was given when it was made; a grant of before there were any has none. Where the
    /// quota is a smaller one by now the older grants come first.
    ///
    /// Each has to come after those around it.
    pub fn new(quota: u64, grants: impl IntoIterator<Item = (GrantPath, Option<u64>)>) -> Self {
        let mut portions = Self::default();
        for (path, given) in grants {
            let user = path.steps.last().map_or(NsUid::ROOT, |step| step.user);
            let left = portions.left(quota, &path.around(), user);
            let new = left.map_or(0, |left| left / NEW);
            let portion = given.map_or(new, |given| given.min(left.unwrap_or(0)));
            portions.0.push((path, portion));
        }
        portions
    }

    /// Each grant with its portion.
    pub fn iter(&self) -> impl Iterator<Item = &(GrantPath, u64)> {
        self.0.iter()
    }

    /// The innermost of them that lies around this place, or there: what is made there counts to that.
    pub fn around(&self, place: &GrantPath) -> Option<&(GrantPath, u64)> {
        let around = self.0.iter().filter(|(path, _)| path == place || place.is_inside(path));
        around.max_by_key(|(path, _)| path.steps.len())
    }

    /// The portion of one more grant of this user's at that place; of the smallest quota one is given.
    ///
    /// # Errors
    /// [`UsedUp`].
    pub fn of_new(&self, quota: u64, place: &GrantPath, user: NsUid) -> Result<u64, UsedUp> {
        self.left(quota, place, user).map(|left| (left / NEW).max(1))
    }

    fn left(&self, quota: u64, place: &GrantPath, user: NsUid) -> Result<u64, UsedUp> {
        let shared = self.around(place);
        let quota = shared.map_or(quota, |(_, portion)| *portion);
        let shared = shared.map(|(path, _)| path);
        let own = if shared.is_some() { PARTS } else { 0 };
        let of = |is: &dyn Fn(&GrantPath) -> bool| -> u64 {
            let beside =
                self.0.iter().filter(|(path, _)| self.around(&path.around()).map(|(path, _)| path) == shared);
            beside.filter(|(path, _)| is(path)).map(|(_, portion)| portion.saturating_add(own)).sum()
        };
        let left = |part: u64, usage: u64| {
            let quota = (quota / part).max(1);
            let left = quota.checked_sub(usage.saturating_add(own)).filter(|left| *left > 0);
            left.ok_or(UsedUp { quota, usage })
        };
        let is_its = |path: &GrantPath| {
            path.step_in(place).is_some_and(|step| step.user == user) && path.around() == *place
        };
        Ok(left(ONE, of(&is_its))?.min(left(ALL, of(&|_| true))?))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use cgrant_policy::{GrantName, HostUid, Step};

    use super::*;

    fn inner(place: &GrantPath, user: u32, name: &str) -> GrantPath {
        place.inner(Step { user: NsUid(user), name: GrantName::new(name).unwrap() })
    }

    fn container(name: &str) -> GrantPath {
        inner(&GrantPath::of_account(HostUid(1000)), 0, name)
    }

    // So many grants of the user's as there are portions for, and what they come to.
    fn fill(known: &mut Vec<(GrantPath, Option<u64>)>, quota: u64, place: &GrantPath, user: u32) -> u64 {
        let mut all = 0;
        for number in 0..10_000 {
            let portions = Portions::new(quota, known.clone());
            let Ok(portion) = portions.of_new(quota, place, NsUid(user)) else { return all };
            all += portion;
            known.push((inner(place, user, &format!("g{number}")), Some(portion)));
        }
        panic!("there is no end");
    }

    #[test]
    fn one_user_has_a_quarter_and_all_together_half() {
        let (one, two) = (container("one"), container("two"));
        let mut known = Vec::new();
        assert_eq!(Portions::default().of_new(4096, &one, NsUid(7)), Ok(256));
        assert_eq!(fill(&mut known, 4096, &one, 7), 1024);
        let portions = Portions::new(4096, known.clone());
        assert_eq!(portions.of_new(4096, &one, NsUid(7)), Err(UsedUp { quota: 1024, usage: 1024 }));
        // The same number is another user in another container; the account is the same.
        assert_eq!(fill(&mut known, 4096, &two, 7), 1024);
        let portions = Portions::new(4096, known.clone());
        assert_eq!(portions.of_new(4096, &one, NsUid(8)), Err(UsedUp { quota: 2048, usage: 2048 }));
        // The smallest quota has one for somebody.
        assert_eq!(Portions::default().of_new(1, &one, NsUid(7)), Ok(1));
        known.clear();
        assert_eq!(fill(&mut known, 1, &one, 7), 1);
    }

    #[test]
    fn users_inside_share_out_what_the_one_around_has() {
        let one = container("one");
        let anns = inner(&one, 7, "web");
        let known = [(anns.clone(), Some(100))];
        let portions = Portions::new(4096, known.clone());
        assert_eq!(
            portions.of_new(4096, &anns, NsUid(5)),
            Ok(5),
            "a quarter of what a quarter of 100 leaves"
        );
        let deeper = inner(&anns, 0, "roots");
        assert_eq!(portions.around(&deeper), Some(&(anns.clone(), 100)));
        assert_eq!(portions.around(&one), None);
        // What they have is the user's already, and counts once.
        let bobs = inner(&deeper, 5, "in");
        let both = Portions::new(4096, known.into_iter().chain([(bobs, Some(20))]));
        assert_eq!(both.of_new(4096, &one, NsUid(7)), Ok((1024 - 100) / 4));
        assert_eq!(both.of_new(4096, &deeper, NsUid(5)), Err(UsedUp { quota: 25, usage: 24 }));
    }

    /// However many grants they have: the root of that container has half of its cgroups, and every user a quarter at most.
    #[test]
    fn grants_inside_do_not_add_to_what_they_share() {
        for portion in [64, 256, 1024] {
            let anns = inner(&container("one"), 7, "web");
            let mut known = vec![(anns.clone(), Some(portion))];
            let mut all = 0;
            for user in [5, 6, 8] {
                let before = known.len();
                let portions = fill(&mut known, 4096, &anns, user);
                let taken = portions + PARTS * u64::try_from(known.len() - before).unwrap();
                assert!(taken <= portion / 4, "{taken} of {portion}");
                all += taken;
            }
            assert!(all <= portion / 2 && all > portion / 4, "{all} of {portion}");
        }
    }

    #[test]
    fn a_smaller_quota_is_for_the_older() {
        let one = container("one");
        let known = ["a", "b", "c"].map(|name| (inner(&one, 7, name), Some(200)));
        let given = |quota| {
            Portions::new(quota, known.clone()).iter().map(|(_, portion)| *portion).collect::<Vec<_>>()
        };
        assert_eq!(given(4096), [200, 200, 200]);
        assert_eq!(given(1200), [200, 100, 0]);
        // One of before there were portions has what a new one would have.
        let old = Portions::new(4096, [(inner(&one, 7, "a"), None)]);
        assert_eq!(old.around(&inner(&one, 7, "a")).map(|(_, portion)| *portion), Some(256));
    }
}
