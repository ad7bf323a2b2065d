//! Reading limits back, in portable form, and raw files.

use std::io;

use cgrant_policy::{GrantPath, HostUid, HugePageSize, Key, LimitKey, LimitValue};

use super::{file_of, parse, unsupported, v1, v2};
use crate::cgroup::{
    equal::weight,
    error::CgroupError,
    mounts::Kind,
    node::{Node, is_missing},
    tree::Tree,
};

/// `cpu.weight` of a new cgroup (`CGROUP_WEIGHT_DFL` of the kernel).
pub const USUAL_WEIGHT: u32 = 100;

impl Tree {
    /// Limits and raw files of a grant as the kernel has them now, in the order asked for; with no keys, all portable limits
    /// that this host has.
    ///
    /// A limit's text is the canonical one, `max` for none. `cpuset.cpus` of a v1 cgroup is the list that it has, since v1
    /// knows no "as the one above".
    ///
    /// # Errors
    /// [`CgroupError::Unsupported`] for a key that this host has not; [`CgroupError::NoSuchGrant`]; what the kernel refuses.
    pub fn get_values(&self, grant: &GrantPath, keys: &[Key]) -> Result<Vec<(String, String)>, CgroupError> {
        if keys.is_empty() {
            return self.all_limits(grant);
        }
        keys.iter().map(|key| Ok((key.to_string(), self.get_value(grant, key)?))).collect()
    }

    /// What lifts the limits of an account's node that are in force and not among those `kept`.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub fn other_limits_lifted(
        &self,
        account: HostUid,
        kept: &[LimitKey],
    ) -> Result<Vec<(LimitKey, LimitValue)>, CgroupError> {
        let node = GrantPath::of_account(account);
        let mut lifted = Vec::new();
        let all = LimitKey::PLAIN.into_iter().chain(self.huge_pages(&node).unwrap_or_default());
        for key in all.filter(|key| !kept.contains(key)) {
            let none = LimitValue::unlimited(key).unwrap_or(LimitValue::Weight(USUAL_WEIGHT));
            match self.get_value(&node, &Key::Limit(key)) {
                Ok(value) if value == none.to_string() || self.list_above(key)? == Some(value.clone()) => (),
                Ok(_) => lifted.push((key, none)),
                // It has no cgroup where it never had a limit.
                Err(CgroupError::Unsupported { .. } | CgroupError::NoSuchGrant(_)) => (),
                Err(error) => return Err(error),
            }
        }
        Ok(lifted)
    }

    /// The list that a v1 cpuset of an account has that was not given another one.
    fn list_above(&self, key: LimitKey) -> Result<Option<String>, CgroupError> {
        let hierarchy = self.hierarchy_of(key)?;
        if key != LimitKey::CpusetCpus || hierarchy.kind == Kind::V2 {
            return Ok(None);
        }
        let list = of_v1(&hierarchy.base, key);
        let list = list.map_err(CgroupError::kernel("to read", hierarchy.base.path_of("cpuset.cpus")))?;
        Ok(Some(list.to_string()))
    }

    fn all_limits(&self, grant: &GrantPath) -> Result<Vec<(String, String)>, CgroupError> {
        let mut found = Vec::new();
        for key in LimitKey::PLAIN.into_iter().chain(self.huge_pages(grant)?) {
            match self.get_value(grant, &Key::Limit(key)) {
                Ok(value) => found.push((key.to_string(), value)),
                Err(CgroupError::Unsupported { .. }) => (),
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }

    fn get_value(&self, grant: &GrantPath, key: &Key) -> Result<String, CgroupError> {
        match key {
            Key::Raw(raw) => {
                let node = self.need(self.hierarchy_of_raw(raw)?, grant)?;
                node.read(raw.as_str()).map_err(|error| match is_missing(&error) {
                    true => unsupported(raw, "this kernel has no such file in a grant's cgroup"),
                    false => CgroupError::kernel("to read", node.path_of(raw.as_str()))(error),
                })
            }
            Key::Limit(key) => {
                let hierarchy = self.hierarchy_of(*key)?;
                super::to_be_had(*key, hierarchy.kind)?;
                let node = self.need(hierarchy, grant)?;
                let file = file_of(*key, hierarchy.kind);
                if !node.has(&file) {
                    return Err(unsupported(key, super::missing_file(*key)));
                }
                let value = match hierarchy.kind {
                    Kind::V1 => of_v1(&node, *key),
                    Kind::V2 => of_v2(&node, *key),
                };
                Ok(value.map_err(CgroupError::kernel("to read", node.path_of(&file)))?.to_string())
            }
        }
    }

    /// The limits of huge pages that this machine has.
    fn huge_pages(&self, grant: &GrantPath) -> Result<Vec<LimitKey>, CgroupError> {
        let Some(hierarchy) = self.hierarchies.controller("hugetlb") else { return Ok(Vec::new()) };
        let node = self.need(hierarchy, grant)?;
        let ending = if hierarchy.kind == Kind::V1 { ".limit_in_bytes" } else { ".max" };
        let names = node.dir().entries().map_err(CgroupError::kernel("to list", node.path()))?;
        let mut sizes: Vec<HugePageSize> = names
            .iter()
            .filter_map(|entry| {
                entry.name.to_str()?.strip_prefix("hugetlb.")?.strip_suffix(ending)?.parse().ok()
            })
            .collect();
        sizes.sort_unstable();
        Ok(sizes.into_iter().map(LimitKey::Hugetlb).collect())
    }
}

fn of_v2(node: &Node, key: LimitKey) -> io::Result<LimitValue> {
    match key {
        LimitKey::IoMax => v2::io_limits(node).map(LimitValue::Io),
        key => match node.read(&key.to_string())?.as_str() {
            "" => Ok(LimitValue::Cpus(None)),
            // Of huge pages the kernel writes "no limit" as the largest number of whole pages, not as `max`.
            text if matches!(key, LimitKey::Hugetlb(_)) && text != "max" => {
                v1::bytes(text).map(LimitValue::Bytes)
            }
            text => parse(key, text),
        },
    }
}

fn of_v1(node: &Node, key: LimitKey) -> io::Result<LimitValue> {
    Ok(match key {
        LimitKey::MemoryMax => LimitValue::Bytes(v1::Memory::of(node)?.memory),
        LimitKey::MemorySwapMax => LimitValue::Bytes(v1::Memory::of(node)?.swap()),
        LimitKey::CpuMax => LimitValue::Cpu(v1::cpu(node)?),
        LimitKey::CpuWeight => {
            let shares = node.read(v1::CPU_SHARES)?.parse().map_err(|_| io::ErrorKind::InvalidData)?;
            LimitValue::Weight(weight(shares))
        }
        LimitKey::Hugetlb(_) => LimitValue::Bytes(v1::bytes(&node.read(&file_of(key, Kind::V1))?)?),
        key => parse(key, &node.read(&key.to_string())?)?,
    })
}
