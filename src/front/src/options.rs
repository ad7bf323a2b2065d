//! Arguments of callers: dictionaries and lists, bounded while they are decoded, options taken strictly.
//!
//! A value is decoded by its own type and never as "any value": a variant that holds a quarter of a megabyte of
//! bytes would become a hundred times that in memory. What is not one of the few types that options have is
//! refused by its signature, before anything of it is read.

use std::{collections::HashMap, fmt, os::fd::OwnedFd};

use cgrant_wire::FdIndex;
use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};
use zbus::{Signature, Type, Variant};

use crate::fault::Fault;

/// Most options of a call.
const MAX_OPTIONS: usize = 16;
/// Most elements of a list or dictionary of texts.
pub const MAX_ENTRIES: usize = 64;
/// Most links of one request. With them a request has at most 15 descriptors, and its answer 13: fewer than a message between
/// the broker's processes may have ([`cgrant_wire::MAX_FDS`]).
const MAX_LINKS: usize = 12;
/// Longest text at all, in bytes.
pub const MAX_TEXT: usize = 4096;

/// A list of texts (`as`).
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Texts(pub Vec<String>);

/// A dictionary of texts (`a{ss}`), in the order it came in, no key twice.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pairs(pub Vec<(String, String)>);

/// A list of options (`aa{sv}`), one for each link. They have no such list in turn.
#[derive(Debug, Default)]
pub struct Links(pub Vec<Options<true>>);

/// The value of an option; `INNER` of one that is in a list itself.
#[derive(Debug)]
enum Value<const INNER: bool> {
    Flag(bool),
    Number(u32),
    Long(u64),
    Short(u16),
    Text(String),
    Texts(Texts),
    Pairs(Pairs),
    Links(Links),
    Fd(OwnedFd),
}

impl<const INNER: bool> Value<INNER> {
    const fn signature(&self) -> &'static str {
        match self {
            Self::Flag(_) => "b",
            Self::Number(_) => "u",
            Self::Long(_) => "t",
            Self::Short(_) => "q",
            Self::Text(_) => "s",
            Self::Texts(_) => "as",
            Self::Pairs(_) => "a{ss}",
            Self::Links(_) => "aa{sv}",
            Self::Fd(_) => "h",
        }
    }
}

/// Options (`a{sv}`), no key twice; `INNER` of those that are in a list of another's.
#[derive(Debug, Default)]
pub struct Options<const INNER: bool = false>(Vec<(String, Value<INNER>)>);

/// The descriptors that go with an operation, by their position.
#[derive(Debug, Default)]
pub struct Descriptors(Vec<OwnedFd>);

impl Descriptors {
    /// Adds one. An operation has a handful at most, far from the 256 that an index can name.
    pub fn add(&mut self, fd: OwnedFd) -> FdIndex {
        let index = FdIndex(u8::try_from(self.0.len()).unwrap_or(u8::MAX));
        self.0.push(fd);
        index
    }

    /// All of them, in order.
    pub fn into_fds(self) -> Vec<OwnedFd> {
        self.0
    }
}

macro_rules! take {
    ($($(#[$doc:meta])* $name:ident: $variant:ident => $type:ty,)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// [`Fault::Argument`] if it has another type.
        pub fn $name(&mut self, key: &str) -> Result<Option<$type>, Fault> {
            match self.take(key) {
                None => Ok(None),
                Some(Value::$variant(value)) => Ok(Some(value)),
                Some(other) => Err(Fault::argument(key, &format!("not of type {}", other.signature()))),
            }
        }
    )*};
}

impl<const INNER: bool> Options<INNER> {
    take! {
        /// Takes the option `key` of type `b`.
        flag: Flag => bool,
        /// Takes the option `key` of type `u`.
        number: Number => u32,
        /// Takes the option `key` of type `t`.
        long: Long => u64,
        /// Takes the option `key` of type `q`.
        short: Short => u16,
        /// Takes the option `key` of type `aa{sv}`.
        links: Links => Links,
        /// Takes the option `key` of type `as`.
        texts: Texts => Texts,
        /// Takes the option `key` of type `a{ss}`.
        pairs: Pairs => Pairs,
        /// Takes the option `key` of type `h`.
        fd: Fd => OwnedFd,
        /// Takes the option `key` of type `s`.
        any_text: Text => String,
    }

    /// Takes the option `key` of type `s`, at most `longest` bytes.
    ///
    /// # Errors
    /// [`Fault::Argument`] if it has another type or is longer.
    pub fn text(&mut self, key: &str, longest: usize) -> Result<Option<String>, Fault> {
        match self.any_text(key)? {
            Some(text) if text.len() > longest => {
                Err(Fault::argument(key, &format!("longer than {longest} bytes")))
            }
            text => Ok(text),
        }
    }

    /// Ends the taking.
    ///
    /// # Errors
    /// [`Fault::Argument`] if there is an option left, that is, one that nobody knows.
    pub fn finish(self) -> Result<(), Fault> {
        match self.0.first() {
            None => Ok(()),
            Some((key, _)) => Err(Fault::argument(&printable(key), "no such option")),
        }
    }

    fn take(&mut self, key: &str) -> Option<Value<INNER>> {
        let position = self.0.iter().position(|(name, _)| name == key)?;
        Some(self.0.swap_remove(position).1)
    }
}

/// A caller's text as it may appear in a message: short, no control characters.
pub fn printable(text: &str) -> String {
    text.chars().take(64).flat_map(char::escape_default).collect()
}

/// Takes a text, refusing a long one.
fn bounded<E: Error>(text: String) -> Result<String, E> {
    if text.len() > MAX_TEXT {
        Err(E::custom(format_args!("a text is longer than {MAX_TEXT} bytes")))
    } else {
        Ok(text)
    }
}

impl Type for Texts {
    const SIGNATURE: &'static Signature = <Vec<String>>::SIGNATURE;
}

impl Type for Pairs {
    const SIGNATURE: &'static Signature = <HashMap<String, String>>::SIGNATURE;
}

impl Type for Links {
    const SIGNATURE: &'static Signature = <Vec<HashMap<String, Variant<'static>>>>::SIGNATURE;
}

impl<const INNER: bool> Type for Options<INNER> {
    const SIGNATURE: &'static Signature = <HashMap<String, Variant<'static>>>::SIGNATURE;
}

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct TextsVisitor;

        impl<'de> Visitor<'de> for TextsVisitor {
            type Value = Texts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of texts")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Texts, A::Error> {
                let mut texts = Vec::new();
                while let Some(text) = seq.next_element::<String>()? {
                    if texts.len() == MAX_ENTRIES {
                        return Err(A::Error::custom(format_args!(
                            "a list has more than {MAX_ENTRIES} entries"
                        )));
                    }
                    texts.push(bounded(text)?);
                }
                Ok(Texts(texts))
            }
        }

        deserializer.deserialize_seq(TextsVisitor)
    }
}

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PairsVisitor;

        impl<'de> Visitor<'de> for PairsVisitor {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a dictionary of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs: Vec<(String, String)> = Vec::new();
                while let Some((key, value)) = map.next_entry::<String, String>()? {
                    if pairs.len() == MAX_ENTRIES {
                        return Err(A::Error::custom(format_args!(
                            "a dictionary has more than {MAX_ENTRIES} entries"
                        )));
                    }
                    if pairs.iter().any(|(other, _)| *other == key) {
                        return Err(A::Error::custom(format_args!("{} is there twice", printable(&key))));
                    }
                    pairs.push((bounded(key)?, bounded(value)?));
                }
                Ok(Pairs(pairs))
            }
        }

        deserializer.deserialize_map(PairsVisitor)
    }
}

impl<'de> Deserialize<'de> for Links {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LinksVisitor;

        impl<'de> Visitor<'de> for LinksVisitor {
            type Value = Links;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of links")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Links, A::Error> {
                let mut links = Vec::new();
                while let Some(link) = seq.next_element()? {
                    if links.len() == MAX_LINKS {
                        return Err(A::Error::custom(format_args!("more than {MAX_LINKS} links")));
                    }
                    links.push(link);
                }
                Ok(Links(links))
            }
        }

        deserializer.deserialize_seq(LinksVisitor)
    }
}

impl<'de, const INNER: bool> Deserialize<'de> for Options<INNER> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OptionsVisitor<const INNER: bool>;

        impl<'de, const INNER: bool> Visitor<'de> for OptionsVisitor<INNER> {
            type Value = Options<INNER>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("options")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Options<INNER>, A::Error> {
                let mut options: Vec<(String, Value<INNER>)> = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    if options.len() == MAX_OPTIONS {
                        return Err(A::Error::custom(format_args!("more than {MAX_OPTIONS} options")));
                    }
                    let name = printable(&key);
                    if options.iter().any(|(other, _)| *other == key) {
                        return Err(A::Error::custom(format_args!("{name}: the option is there twice")));
                    }
                    let value = map
                        .next_value::<Value<INNER>>()
                        .map_err(|error| A::Error::custom(format_args!("{name}: {error}")))?;
                    options.push((key, value));
                }
                Ok(Options(options))
            }
        }

        deserializer.deserialize_map(OptionsVisitor::<INNER>)
    }
}

impl<const INNER: bool> Type for Value<INNER> {
    const SIGNATURE: &'static Signature = <Variant<'static>>::SIGNATURE;
}

impl<'de, const INNER: bool> Deserialize<'de> for Value<INNER> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ValueVisitor<const INNER: bool>;

        impl<'de, const INNER: bool> Visitor<'de> for ValueVisitor<INNER> {
            type Value = Value<INNER>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the value of an option")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value<INNER>, A::Error> {
                let missing = || A::Error::custom("no value");
                let signature: Signature = seq.next_element()?.ok_or_else(missing)?;
                match signature.to_string().as_str() {
                    "b" => seq.next_element()?.ok_or_else(missing).map(Value::Flag),
                    "u" => seq.next_element()?.ok_or_else(missing).map(Value::Number),
                    "t" => seq.next_element()?.ok_or_else(missing).map(Value::Long),
                    "q" => seq.next_element()?.ok_or_else(missing).map(Value::Short),
                    "s" => bounded(seq.next_element()?.ok_or_else(missing)?).map(Value::Text),
                    "as" => seq.next_element()?.ok_or_else(missing).map(Value::Texts),
                    "a{ss}" => seq.next_element()?.ok_or_else(missing).map(Value::Pairs),
                    "aa{sv}" if !INNER => seq.next_element()?.ok_or_else(missing).map(Value::Links),
                    "h" => {
                        let fd: zbus::OwnedFd = seq.next_element()?.ok_or_else(missing)?;
                        Ok(Value::Fd(fd.into()))
                    }
                    other => Err(A::Error::custom(format_args!("no option is of type {}", printable(other)))),
                }
            }
        }

        // The name and fields by which zbus knows that a variant is read.
        deserializer.deserialize_struct("Variant", &["signature", "value"], ValueVisitor::<INNER>)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use zbus::{Fd, Message, Variant};

    use super::*;

    fn message(options: &BTreeMap<&str, Variant<'_>>) -> Message {
        Message::method_call("/", "Call").build(options).unwrap()
    }

    fn decode(options: &BTreeMap<&str, Variant<'_>>) -> zbus::Result<Options> {
        message(options).body().deserialize()
    }

    fn problem(result: Result<(), Fault>) -> (String, String) {
        match result {
            Err(Fault::Argument(name, message)) => (name, message),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_type_is_taken_as_what_it_is() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let mut options = decode(&BTreeMap::from([
            ("flag", Variant::new(true)),
            ("number", Variant::new(7u32)),
            ("long", Variant::new(8u64)),
            ("short", Variant::new(9u16)),
            ("links", Variant::new(vec![BTreeMap::from([("name", Variant::new("eth0"))])])),
            ("text", Variant::new("word")),
            ("texts", Variant::new(vec!["a", "b"])),
            ("pairs", Variant::new(HashMap::from([("k", "v")]))),
            ("fd", Variant::Fd(Fd::from(&file))),
        ]))
        .unwrap();
        assert_eq!(options.flag("flag").unwrap(), Some(true));
        assert_eq!(options.number("number").unwrap(), Some(7));
        assert_eq!(options.long("long").unwrap(), Some(8));
        assert_eq!(options.short("short").unwrap(), Some(9));
        let Links(mut links) = options.links("links").unwrap().unwrap();
        let mut link = links.pop().unwrap();
        assert_eq!(link.text("name", 4).unwrap().as_deref(), Some("eth0"));
        link.finish().unwrap();
        assert_eq!(options.text("text", 4).unwrap().as_deref(), Some("word"));
        assert_eq!(options.texts("texts").unwrap().unwrap().0, ["a", "b"]);
        assert_eq!(options.pairs("pairs").unwrap().unwrap().0, [("k".to_owned(), "v".to_owned())]);
        assert!(options.fd("fd").unwrap().is_some());
        assert_eq!(options.flag("absent").unwrap(), None);
        options.finish().unwrap();
    }

    #[test]
    fn what_is_wrong_is_named() {
        let one = |value| BTreeMap::from([("range-count", value)]);
        let mut wrong_type = decode(&one(Variant::new("many"))).unwrap();
        let fault = wrong_type.number("range-count").map(drop);
        assert_eq!(problem(fault), ("range-count".to_owned(), "range-count: not of type s".to_owned()));
        let unknown = decode(&one(Variant::new(1u32))).unwrap();
        assert_eq!(problem(unknown.finish()).0, "range-count");
        let mut long = decode(&one(Variant::new("12345"))).unwrap();
        assert_eq!(problem(long.text("range-count", 4).map(drop)).1, "range-count: longer than 4 bytes");
        for value in [Variant::new(1i64), Variant::new(vec![1u8; 1000]), Variant::new(Variant::new(1u32))] {
            let error = decode(&one(value)).unwrap_err().to_string();
            assert!(error.contains("range-count: no option is of type"), "{error}");
        }
    }

    #[test]
    fn sizes_are_bounded() {
        let names: Vec<String> = (0..=MAX_OPTIONS).map(|number| number.to_string()).collect();
        let many = names.iter().map(|name| (name.as_str(), Variant::new(true))).collect();
        assert!(decode(&many).unwrap_err().to_string().contains("more than 16 options"));
        let texts = vec!["x"; MAX_ENTRIES + 1];
        let error = decode(&BTreeMap::from([("t", Variant::new(texts))])).unwrap_err().to_string();
        assert!(error.contains("t: a list has more than 64 entries"), "{error}");
        let link = || BTreeMap::from([("name", Variant::new("eth0"))]);
        let links = |count| (0..count).map(|_| link()).collect::<Vec<_>>();
        let error = decode(&BTreeMap::from([("l", Variant::new(links(13)))])).unwrap_err().to_string();
        assert!(error.contains("l: more than 12 links"), "{error}");
        let inner = vec![BTreeMap::from([("links", Variant::new(links(1)))])];
        let error = decode(&BTreeMap::from([("l", Variant::new(inner))])).unwrap_err().to_string();
        assert!(error.contains("links: no option is of type aa{sv}"), "{error}");
        let long = "x".repeat(MAX_TEXT + 1);
        for value in [Variant::new(long.as_str()), Variant::new(HashMap::from([("k", long.as_str())]))] {
            let error = decode(&BTreeMap::from([("t", value)])).unwrap_err().to_string();
            assert!(error.contains("longer than 4096 bytes"), "{error}");
        }
    }

    #[test]
    fn names_of_callers_do_not_get_into_messages_raw() {
        assert_eq!(printable("a\nb\u{1b}"), "a\\nb\\u{1b}");
        assert!(printable(&"x".repeat(1000)).len() <= 64);
    }

    proptest! {
        #[test]
        fn any_options_are_taken_or_refused(
            entries in proptest::collection::btree_map(".{0,12}", prop_oneof![
                any::<bool>().prop_map(Variant::new),
                any::<u32>().prop_map(Variant::new),
                any::<i64>().prop_map(Variant::new),
                proptest::collection::vec(any::<u8>(), 0..40).prop_map(Variant::new),
                "[^\0]{0,40}".prop_map(Variant::new),
            ], 0..20),
        ) {
            let entries: BTreeMap<String, Variant<'_>> =
                entries.into_iter().filter(|(key, _)| !key.contains('\0')).collect();
            let odd = entries.values().any(|value| matches!(value, Variant::I64(_) | Variant::Array(_)));
            let decoded = Message::method_call("/", "Call").build(&entries).unwrap().body().deserialize::<Options>();
            prop_assert_eq!(decoded.is_ok(), !odd && entries.len() <= MAX_OPTIONS);
        }

        #[test]
        fn any_body_bytes_are_judged_without_a_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            use zbus::wire::{LE, serialized::{Context, Data}};
            bytes.truncate(200);
            let data = Data::new(bytes, Context::new(LE, 0));
            let _ = data.deserialize::<Options>();
            let _ = data.deserialize::<Links>();
            let _ = data.deserialize::<Pairs>();
            let _ = data.deserialize::<Texts>();
        }
    }
}
