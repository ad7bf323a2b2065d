//! A refusal: what the engine says instead of doing something, and why (design invariant 10).

use serde::{Deserialize, Serialize};

/// The kind of a refusal. Each is one D-Bus error name, `org.cgrant.Error.` and the variant's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RefusalCode {
    /// The caller may not do this to this object, or policy says no.
    NotAuthorized,
    /// A quota of the account is used up.
    QuotaExceeded,
    /// An argument is malformed, out of range, or does not fit another.
    InvalidArgument,
    /// A name or a cgroup path has a form that is not allowed.
    InvalidName,
    /// A descriptor is missing, of the wrong kind, or names something that is not the caller's.
    InvalidDescriptor,
    /// No such grant, or it is not the caller's to see.
    NoSuchGrant,
    /// The account has a live grant of this name.
    GrantExists,
    /// The process has ended.
    NoSuchProcess,
    /// No such cgroup below the payload.
    NoSuchCgroup,
    /// There is a cgroup of this name.
    CgroupExists,
    /// Something is in use: processes are left, or another request on the object is under way.
    Busy,
    /// This host's kernel, or this hierarchy, cannot do it.
    Unsupported,
    /// The grant has no such link.
    NoSuchLink,
    /// The grant has a link of this name, or the namespace a device of it.
    LinkExists,
    /// No such bridge, or policy does not let the caller see it.
    NoSuchBridge,
    /// The port, or the address, is in use: the message says by what, as far as the caller may know.
    AddressInUse,
    /// No range of that size is free.
    NoFreeRange,
    /// The kernel refused a value or an operation; the message has its words.
    KernelRefused,
    /// The broker's record cannot be written (disk full, read-only).
    RecordUnwritable,
    /// It took longer than the broker lets anything take.
    TimedOut,
    /// A fault of the broker's own; its log has the details.
    Internal,
}

/// What was met.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Met {
    /// What the quota counts, or the limit whose ceiling it is: `grants`, `memory.max`.
    pub resource: Option<String>,
    /// The ceiling, as a value of that limit.
    pub limit: Option<String>,
    /// The polkit action that a person could agree to, if the caller let one be asked.
    pub action: Option<String>,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Its kind.
    pub code: RefusalCode,
    /// One sentence: what was refused and why.
    pub message: String,
    /// The rule that decided: `file:line name`, or `built-in` and its name.
    pub rule: Option<String>,
    /// The quota that was met.
    pub quota: Option<u64>,
    /// What the account uses of it.
    pub usage: Option<u64>,
    /// Of what the quota or the ceiling is that was met, and who could open it. Boxed, because it is rare.
    pub met: Option<Box<Met>>,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Refusal {
    /// A refusal without rule, figures or hint.
    pub fn new(code: RefusalCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), rule: None, quota: None, usage: None, met: None, hint: None }
    }

    /// The same with advice.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with the rule that decided.
    #[must_use]
    pub fn rule(mut self, rule: impl Into<String>) -> Self {
        self.rule = Some(rule.into());
        self
    }

    /// The same with what is counted.
    #[must_use]
    pub fn resource(mut self, resource: impl Into<String>) -> Self {
        self.met.get_or_insert_default().resource = Some(resource.into());
        self
    }

    /// The same with the polkit action that a person could agree to.
    #[must_use]
    pub fn action(mut self, action: impl Into<String>) -> Self {
        self.met.get_or_insert_default().action = Some(action.into());
        self
    }

    /// The same with the figures of a quota.
    #[must_use]
    pub fn figures(mut self, quota: u64, usage: u64) -> Self {
        self.quota = Some(quota);
        self.usage = Some(usage);
        self
    }
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refusal {}
