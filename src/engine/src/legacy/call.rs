//! One call: its actors, the hierarchies it is about, and opening the cgroups that it names.
//!
//! Every cgroup is reached one component after the other from one that the kernel says an actor is in, and every check looks
//! at the directory or file that is acted upon, never at a path.

use cgrant_sys::Dir;
use rustix::fs::{Stat, fstat};

use super::{
    actor::{Access, Actor},
    controllers,
    fault::Fault,
    path::{self, Wanted},
};
use crate::cgroup::{Hierarchies, Hierarchy, Kind};

/// The hierarchy that is never handed over.
const DEVICES: &str = "devices";

/// A call's actors and the host's hierarchies.
pub struct Call<'a> {
    /// All hierarchies.
    pub hierarchies: &'a Hierarchies,
    /// Who asks.
    pub requestor: &'a Actor<'a>,
    /// Who passes it on; the requestor itself in a plain call.
    pub proxy: &'a Actor<'a>,
    /// Is it a plain call?
    pub plain: bool,
    /// May something of this controller be made, set or given away? [`Fault::Barred`] if policy does not let it.
    pub may_have: &'a dyn Fn(&str) -> Result<(), Fault>,
}

/// A cgroup that a call names.
pub struct Target {
    /// Its directory.
    pub dir: Dir,
    /// Owner and mode of the directory.
    pub stat: Stat,
    /// The names on the way to it from the root of our cgroup namespace.
    pub names: Vec<String>,
}

impl Target {
    /// The directory and whose it is.
    ///
    /// # Errors
    /// Those of `fstat(2)`.
    pub fn new(dir: Dir, names: Vec<String>) -> Result<Self, Fault> {
        let stat = stat(&dir)?;
        Ok(Self { dir, stat, names })
    }

    /// A cgroup in it.
    ///
    /// # Errors
    /// As [`Target::new`].
    pub fn inner(&self, dir: Dir, name: &str) -> Result<Self, Fault> {
        let names = self.names.iter().map(String::as_str).chain([name]).map(str::to_owned).collect();
        Self::new(dir, names)
    }
}

/// Owner and mode of what is open.
///
/// # Errors
/// Those of `fstat(2)`.
pub fn stat(open: impl std::os::fd::AsFd) -> Result<Stat, Fault> {
    fstat(open).map_err(|errno| Fault::kernel("to look at a cgroup")(errno.into()))
}

impl<'a> Call<'a> {
    /// The one hierarchy that an argument stands for.
    ///
    /// # Errors
    /// [`Fault::Controllers`].
    pub fn one(&self, wanted: &str) -> Result<&'a Hierarchy, Fault> {
        if let Some(hierarchy) = controllers::v1_of(wanted, self.hierarchies) {
            return Ok(hierarchy);
        }
        let known = controllers::known(self.hierarchies);
        let place = controllers::one(wanted, &known)?;
        known.get(place).map(|(_, hierarchy)| *hierarchy).ok_or(Fault::NoCgroup)
    }

    /// The hierarchies that an argument stands for.
    ///
    /// # Errors
    /// [`Fault::Controllers`].
    pub fn many(&self, wanted: &str) -> Result<Vec<&'a Hierarchy>, Fault> {
        if let Some(hierarchy) = controllers::v1_of(wanted, self.hierarchies) {
            return Ok(vec![hierarchy]);
        }
        let known = controllers::known(self.hierarchies);
        let places = controllers::many(wanted, &known)?;
        Ok(places.into_iter().filter_map(|place| known.get(place).map(|(_, hierarchy)| *hierarchy)).collect())
    }

    /// A list without the names that nobody knows, for the calls that CGManager carries out where it can.
    pub fn without_unknown(&self, wanted: &str) -> String {
        controllers::without_unknown(wanted, &controllers::known(self.hierarchies))
    }

    /// Does something in each hierarchy of a list, until one fails. A cgroup that the requestor may not touch is passed over,
    /// as in CGManager; but if all were, that is the answer.
    ///
    /// # Errors
    /// The first fault that is not passed over, or the last one if all were.
    pub fn each<T>(
        &self,
        wanted: &str,
        mut act: impl FnMut(&'a Hierarchy) -> Result<T, Fault>,
    ) -> Result<Vec<T>, Fault> {
        let (mut done, mut passed_over) = (Vec::new(), None);
        for hierarchy in self.many(wanted)? {
            match act(hierarchy) {
                Ok(outcome) => done.push(outcome),
                Err(fault) if fault.is_passed_over() => passed_over = Some(fault),
                Err(fault) => return Err(fault),
            }
        }
        match passed_over {
            Some(fault) if done.is_empty() => Err(fault),
            _ => Ok(done),
        }
    }

    /// Refuses to give anything of the devices hierarchy to anybody but root, and anything of v1's whose controllers policy does not
    /// let the caller have.
    ///
    /// # Errors
    /// [`Fault::Devices`], [`Fault::Barred`].
    pub fn may_hand_over(&self, hierarchy: &Hierarchy) -> Result<(), Fault> {
        let devices = hierarchy.kind == Kind::V1 && hierarchy.name.split(',').any(|name| name == DEVICES);
        if devices && self.requestor.uid != 0 {
            return Err(Fault::Devices);
        }
        self.may_have_v1(hierarchy)
    }

    /// Refuses what is of controllers of v1's that policy does not let the caller have. On cgroup2 it is not the hierarchy that
    /// says which they are.
    ///
    /// # Errors
    /// [`Fault::Barred`].
    pub fn may_have_v1(&self, hierarchy: &Hierarchy) -> Result<(), Fault> {
        match hierarchy.kind {
            Kind::V1 => hierarchy.controllers.iter().try_for_each(|name| (self.may_have)(name)),
            Kind::V2 => Ok(()),
        }
    }

    /// The requestor's own cgroup.
    ///
    /// # Errors
    /// Those of [`Actor::cgroup`] and of opening it.
    pub fn own_cgroup(&self, hierarchy: &Hierarchy) -> Result<Target, Fault> {
        target(hierarchy, self.requestor.cgroup(hierarchy)?)
    }

    /// A cgroup below the requestor's own, for what changes something.
    ///
    /// # Errors
    /// [`Fault::NoCgroup`]; [`Fault::Denied`] if the requestor may not pass through one on the way.
    pub fn below_own(&self, hierarchy: &Hierarchy, names: &[String]) -> Result<Target, Fault> {
        self.descend(self.own_cgroup(hierarchy)?, names)
    }

    /// A cgroup that the requestor reads, and may read: below its own, or by a path from the root that leads below the proxy's.
    ///
    /// An attacker wants to read other people's cgroups: neither names nor links lead out of the proxy's cgroup, component by
    /// component, and the bits of the cgroup decide.
    ///
    /// # Errors
    /// [`Fault::Path`], [`Fault::NoCgroup`], [`Fault::Denied`].
    pub fn readable(&self, hierarchy: &Hierarchy, path: &str) -> Result<Target, Fault> {
        let wanted = Wanted::parse(path)?;
        let proxy = self.proxy.cgroup(hierarchy)?;
        let target = if wanted.absolute {
            let names = path::below(&wanted.names, &proxy).ok_or(Fault::Denied)?;
            let names = names.to_vec();
            self.descend(target(hierarchy, proxy)?, &names)?
        } else {
            let own = self.requestor.cgroup(hierarchy)?;
            path::below(&own, &proxy).ok_or(Fault::Denied)?;
            self.descend(target(hierarchy, own)?, &wanted.names)?
        };
        self.need(&target.stat, Access::Read)?;
        Ok(target)
    }

    /// From one cgroup to another below it.
    ///
    /// # Errors
    /// As [`below_own`](Self::below_own).
    pub fn descend(&self, from: Target, names: &[String]) -> Result<Target, Fault> {
        let mut target = from;
        for name in names {
            self.need(&target.stat, Access::Search)?;
            let dir = target.dir.open_dir(name).map_err(Fault::kernel("to open a cgroup"))?;
            target = target.inner(dir, name)?;
        }
        Ok(target)
    }

    /// Refuses what the bits do not let the requestor.
    ///
    /// # Errors
    /// [`Fault::Denied`].
    pub fn need(&self, stat: &Stat, access: Access) -> Result<(), Fault> {
        if self.requestor.may(stat, access) { Ok(()) } else { Err(Fault::Denied) }
    }
}

/// A cgroup by the names on the way from the root of our cgroup namespace.
///
/// # Errors
/// As [`open`].
pub fn target(hierarchy: &Hierarchy, names: Vec<String>) -> Result<Target, Fault> {
    Target::new(open(hierarchy, &names)?, names)
}

/// Opens a cgroup by the names on the way from the root of our cgroup namespace.
///
/// # Errors
/// [`Fault::NoCgroup`]; what the kernel refuses.
pub fn open(hierarchy: &Hierarchy, names: &[String]) -> Result<Dir, Fault> {
    hierarchy.open(&format!("/{}", names.join("/"))).map_err(Fault::kernel("to open a cgroup"))
}
