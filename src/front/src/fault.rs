//! What a caller gets instead of an answer: errors of the D-Bus specification for what is no call of ours, the
//! broker's own for the rest.

use std::collections::BTreeMap;

use cgrant_proto::Code;
use cgrant_wire::{Refusal, RefusalCode};
use zbus::{Message, Variant};

/// Why a call has no answer.
#[derive(Debug)]
pub enum Fault {
    /// No such object.
    UnknownObject(String),
    /// The object has no such interface.
    UnknownInterface(String),
    /// The interface, or the object, has no such method.
    UnknownMethod(String),
    /// The interface has no such property.
    UnknownProperty(String),
    /// No property can be set.
    PropertyReadOnly(String),
    /// The body has not the signature of the method.
    InvalidArgs(String),
    /// The caller has too many calls under way.
    LimitsExceeded(String),
    /// The caller may not talk to the broker at all.
    AccessDenied(String),
    /// Something that the host does not have.
    NotSupported(String),
    /// An argument, by name, and what is wrong with it.
    Argument(String, String),
    /// A refusal, mostly the engine's.
    Refused(Refusal),
}

impl Fault {
    /// An argument or option that is wrong.
    pub fn argument(name: &str, problem: &str) -> Self {
        Self::Argument(name.to_owned(), format!("{name}: {problem}"))
    }

    /// A fault of the broker's own.
    pub fn internal() -> Self {
        Self::Refused(Refusal::new(RefusalCode::Internal, "fault in the broker; its log has the details"))
    }

    /// The reply to a call.
    ///
    /// # Errors
    /// Only if zbus can't build it, which no content of ours makes happen.
    pub fn reply(&self, call: &Message) -> zbus::Result<Message> {
        let header = call.header();
        match self {
            Self::Refused(refusal) => Message::error(&header, code(refusal.code).error_name())
                .build(&(refusal.message.as_str(), details(refusal))),
            Self::Argument(name, message) => Message::error(&header, Code::InvalidArgument.error_name())
                .build(&(message.as_str(), BTreeMap::from([("argument", Variant::from(name.as_str()))]))),
            _ => {
                let (name, message) = self.standard();
                Message::error(&header, format!("org.freedesktop.DBus.Error.{name}")).build(&message)
            }
        }
    }

    /// Last part of the error's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Refused(refusal) => code(refusal.code).name(),
            Self::Argument(..) => Code::InvalidArgument.name(),
            _ => self.standard().0,
        }
    }

    /// What the caller is told.
    pub fn message(&self) -> &str {
        self.standard().1
    }

    /// Last part of the error's name, and the message, of those that the specification has.
    fn standard(&self) -> (&'static str, &str) {
        match self {
            Self::UnknownObject(message) => ("UnknownObject", message),
            Self::UnknownInterface(message) => ("UnknownInterface", message),
            Self::UnknownMethod(message) => ("UnknownMethod", message),
            Self::UnknownProperty(message) => ("UnknownProperty", message),
            Self::PropertyReadOnly(message) => ("PropertyReadOnly", message),
            Self::InvalidArgs(message) => ("InvalidArgs", message),
            Self::LimitsExceeded(message) => ("LimitsExceeded", message),
            Self::AccessDenied(message) => ("AccessDenied", message),
            Self::NotSupported(message) | Self::Argument(_, message) => ("NotSupported", message),
            Self::Refused(refusal) => ("Failed", &refusal.message),
        }
    }
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

pub(crate) fn details(refusal: &Refusal) -> BTreeMap<&'static str, Variant<'_>> {
    let mut details = BTreeMap::new();
    let met = refusal.met.as_deref();
    let texts = [
        ("rule", refusal.rule.as_deref()),
        ("resource", met.and_then(|met| met.resource.as_deref())),
        ("limit", met.and_then(|met| met.limit.as_deref())),
        ("action", met.and_then(|met| met.action.as_deref())),
        ("hint", refusal.hint.as_deref()),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            details.insert(key, Variant::from(text));
        }
    }
    for (key, number) in [("quota", refusal.quota), ("usage", refusal.usage)] {
        if let Some(number) = number {
            details.insert(key, Variant::from(number));
        }
    }
    details
}

/// The engine's kind as the contract names it. Every kind is in the contract: a test holds them together.
pub(crate) const fn code(code: RefusalCode) -> Code {
    match code {
        RefusalCode::NotAuthorized => Code::NotAuthorized,
        RefusalCode::QuotaExceeded => Code::QuotaExceeded,
        RefusalCode::InvalidArgument => Code::InvalidArgument,
        RefusalCode::InvalidName => Code::InvalidName,
        RefusalCode::InvalidDescriptor => Code::InvalidDescriptor,
        RefusalCode::NoSuchGrant => Code::NoSuchGrant,
        RefusalCode::GrantExists => Code::GrantExists,
        RefusalCode::NoSuchProcess => Code::NoSuchProcess,
        RefusalCode::NoSuchCgroup => Code::NoSuchCgroup,
        RefusalCode::CgroupExists => Code::CgroupExists,
        RefusalCode::Busy => Code::Busy,
        RefusalCode::Unsupported => Code::Unsupported,
        RefusalCode::NoSuchLink => Code::NoSuchLink,
        RefusalCode::LinkExists => Code::LinkExists,
        RefusalCode::NoSuchBridge => Code::NoSuchBridge,
        RefusalCode::AddressInUse => Code::AddressInUse,
        RefusalCode::NoFreeRange => Code::NoFreeRange,
        RefusalCode::KernelRefused => Code::KernelRefused,
        RefusalCode::RecordUnwritable => Code::RecordUnwritable,
        RefusalCode::TimedOut => Code::TimedOut,
        RefusalCode::Internal => Code::Internal,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    fn as_client(fault: &Fault) -> cgrant_proto::Error {
        let call = Message::method_call("/", "Call").build(&()).unwrap();
        zbus::Error::from(fault.reply(&call).unwrap()).into()
    }

    #[test]
    fn a_client_reads_what_the_engine_said() {
        let refusal = Refusal::new(RefusalCode::QuotaExceeded, "4 grants are the most")
            .rule("10-site.toml:3 students")
            .figures(4, 4)
            .hint("release one");
        let cgrant_proto::Error::Refused(got) = as_client(&refusal.into()) else { panic!("not a refusal") };
        assert_eq!(got.code, Code::QuotaExceeded);
        assert_eq!(
            got.to_string(),
            "4 grants are the most (4 of 4 in use) [10-site.toml:3 students]; release one"
        );
    }

    #[test]
    fn an_argument_is_named() {
        let cgrant_proto::Error::Refused(got) = as_client(&Fault::argument("lifetime", "no such lifetime"))
        else {
            panic!("not a refusal")
        };
        assert_eq!((got.code, got.argument.as_deref()), (Code::InvalidArgument, Some("lifetime")));
        assert_eq!(got.message, "lifetime: no such lifetime");
    }

    #[test]
    fn every_kind_has_the_variant_s_name() {
        for (wire, name) in
            [(RefusalCode::NotAuthorized, "NotAuthorized"), (RefusalCode::Internal, "Internal")]
        {
            assert_eq!(code(wire).name(), name);
            assert_eq!(format!("{wire:?}"), name);
        }
        let call = Message::method_call("/", "Call").build(&()).unwrap();
        let reply = Fault::UnknownObject("no".to_owned()).reply(&call).unwrap();
        assert_eq!(reply.header().error_name().unwrap().as_str(), "org.freedesktop.DBus.Error.UnknownObject");
    }
}
