//! What can go wrong between a client and the broker: a refusal of the broker's, or no conversation at all.

use std::{collections::HashMap, fmt, io};

use zbus::{OwnedVariant, Variant};

use crate::names::ERROR_PREFIX;

macro_rules! codes {
    ($(#[doc = $meaning:literal] $name:ident,)*) => {
        /// The kind of a refusal; each is one D-Bus error name, `org.cgrant.Error.` and the variant's name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $(#[doc = $meaning] $name,)*
            /// A kind that a later broker has and this library does not know.
            Unknown,
        }

        impl Code {
            /// Every kind that this library knows.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The last part of the error name.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                    Self::Unknown => "Unknown",
                }
            }

            /// What it stands for: one sentence.
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => $meaning.trim_start(),)*
                    Self::Unknown => "A kind that a later broker has and this library does not know.",
                }
            }
        }
    };
}

codes! {
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
    /// The grant has no such link.
    NoSuchLink,
    /// The grant has a link of this name, or the namespace a device of it.
    LinkExists,
    /// No such bridge, or policy does not let the caller see it.
    NoSuchBridge,
    /// The port, or the address, is in use.
    AddressInUse,
    /// Something is in use: processes are left, or another request on the object is under way.
    Busy,
    /// This host's kernel, or this hierarchy, cannot do it.
    Unsupported,
    /// No range of that size is free.
    NoFreeRange,
    /// The kernel refused a value or an operation.
    KernelRefused,
    /// The broker's record cannot be written.
    RecordUnwritable,
    /// It took longer than the broker lets anything take.
    TimedOut,
    /// A fault of the broker's own.
    Internal,
}

impl Code {
    /// The kind that a D-Bus error name stands for; `None` for a name that is not the broker's.
    pub fn from_error_name(name: &str) -> Option<Self> {
        let last = name.strip_prefix(ERROR_PREFIX)?;
        Some(Self::ALL.iter().copied().find(|code| code.name() == last).unwrap_or(Self::Unknown))
    }

    /// The whole D-Bus error name.
    pub fn error_name(self) -> String {
        format!("{ERROR_PREFIX}{}", self.name())
    }
}

/// The broker's answer when it does not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Its kind.
    pub code: Code,
    /// One sentence: what was refused and why.
    pub message: String,
    /// The rule of the policy that decided.
    pub rule: Option<String>,
    /// The quota that was met.
    pub quota: Option<u64>,
    /// What the account uses of it.
    pub usage: Option<u64>,
    /// What is counted by that quota, or the limit whose ceiling was met.
    pub resource: Option<String>,
    /// The ceiling, as a value of that limit.
    pub limit: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// The argument or option that is wrong.
    pub argument: Option<String>,
    /// The polkit action that a person could agree to, if the same call let one be asked.
    pub action: Option<String>,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let (Some(usage), Some(quota)) = (self.usage, self.quota) {
            write!(f, " ({usage} of {quota} in use)")?;
        }
        if let Some(rule) = &self.rule {
            write!(f, " [{rule}]")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; {hint}")?;
        }
        Ok(())
    }
}

/// Why a client has no answer, or not the one it wanted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The broker refused.
    #[error("{0}")]
    Refused(Box<Refusal>),
    /// Nothing answers at the broker's socket.
    #[error("cannot connect to the broker's socket {path}")]
    Unreachable {
        /// Path of the socket.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The text names no way to a broker.
    #[error("{text:?} is neither a socket's path, a D-Bus address nor \"system\"")]
    BadEndpoint {
        /// The text.
        text: String,
    },
    /// The bus or the peer failed, or answered with an error that is not the broker's own.
    #[error("{0}")]
    Dbus(zbus::Error),
}

impl Error {
    /// The kind, if it is a refusal.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Refused(refusal) => Some(refusal.code),
            _ => None,
        }
    }
}

impl From<zbus::Error> for Error {
    fn from(error: zbus::Error) -> Self {
        let zbus::Error::MethodError(name, text, message) = &error else { return Self::Dbus(error) };
        let Some(code) = Code::from_error_name(name.as_str()) else { return Self::Dbus(error) };
        let (message, details) = message
            .body()
            .deserialize::<(String, HashMap<String, OwnedVariant>)>()
            .unwrap_or_else(|_| (text.clone().unwrap_or_default(), HashMap::new()));
        Self::Refused(Box::new(Refusal {
            code,
            message,
            rule: text_of(&details, "rule"),
            quota: number_of(&details, "quota"),
            usage: number_of(&details, "usage"),
            resource: text_of(&details, "resource"),
            limit: text_of(&details, "limit"),
            hint: text_of(&details, "hint"),
            argument: text_of(&details, "argument"),
            action: text_of(&details, "action"),
        }))
    }
}

impl From<zbus::fdo::Error> for Error {
    fn from(error: zbus::fdo::Error) -> Self {
        match error {
            zbus::fdo::Error::ZBus(error) => error.into(),
            error => Self::Dbus(error.into()),
        }
    }
}

fn text_of(details: &HashMap<String, OwnedVariant>, key: &str) -> Option<String> {
    match &**details.get(key)? {
        Variant::Str(text) => Some(text.to_string()),
        _ => None,
    }
}

fn number_of(details: &HashMap<String, OwnedVariant>, key: &str) -> Option<u64> {
    match &**details.get(key)? {
        Variant::U64(number) => Some(*number),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use zbus::Message;

    fn error_reply(name: &'static str, details: HashMap<&str, Variant<'_>>) -> zbus::Error {
        let call = Message::method_call("/", "Call").build(&()).unwrap();
        Message::error(&call.header(), name).unwrap_body(&("no", details)).into()
    }

    trait Build {
        fn unwrap_body(self, body: &(&str, HashMap<&str, Variant<'_>>)) -> Message;
    }

    impl Build for zbus::message::Builder<'_> {
        fn unwrap_body(self, body: &(&str, HashMap<&str, Variant<'_>>)) -> Message {
            self.build(body).unwrap()
        }
    }

    #[test]
    fn a_refusal_keeps_its_details() {
        let details = HashMap::from([
            ("rule", Variant::new("built-in any-user")),
            ("quota", Variant::new(4u64)),
            ("usage", Variant::new(4u64)),
            ("resource", Variant::new("grants")),
            ("hint", Variant::new("release one")),
        ]);
        let Error::Refused(refusal) = Error::from(error_reply("org.cgrant.Error.QuotaExceeded", details))
        else {
            panic!("not a refusal");
        };
        assert_eq!(refusal.code, Code::QuotaExceeded);
        assert_eq!((refusal.resource.as_deref(), refusal.limit.as_deref()), (Some("grants"), None));
        assert_eq!(refusal.to_string(), "no (4 of 4 in use) [built-in any-user]; release one");
    }

    #[test]
    fn an_unknown_code_and_a_foreign_error_are_told_apart() {
        let later = Error::from(error_reply("org.cgrant.Error.SomethingNew", HashMap::new()));
        assert_eq!(later.code(), Some(Code::Unknown));
        let foreign = Error::from(error_reply("org.example.Broken", HashMap::new()));
        assert_eq!(foreign.code(), None);
    }

    #[test]
    fn every_code_has_its_own_name() {
        for code in Code::ALL {
            assert_eq!(Code::from_error_name(&code.error_name()), Some(*code));
        }
    }
}
