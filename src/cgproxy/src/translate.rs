//! Calls as the words of an Scm call, and its result's bytes as an answer. No I/O.

use cgrant_wire::{LegacyAnswer, LegacyCall, LegacyKey};
use zbus::{Fd, Variant, wire::StructureBuilder};

/// A method whose twin is called, with its arguments but for the socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// The twin.
    pub method: &'static str,
    /// Its arguments.
    pub arguments: Vec<Argument>,
    /// What its result is made of.
    pub shape: Shape,
}

/// An argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Argument {
    /// `s`
    Text(String),
    /// `i`
    Number(i32),
}

/// What comes back over the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A byte: done or not.
    Done,
    /// A byte: there before, not there before, or failed.
    Existed,
    /// A text with its NUL; nothing if it failed.
    Text,
    /// A number, and as many messages that name a process each.
    Tasks,
    /// A number, a length, and names with a NUL each.
    Names,
    /// A number, a length, and lines: name, uid, gid, mode.
    Keys,
}

impl Words {
    /// Of a call; `None` of those that have no twin.
    pub fn of(call: &LegacyCall) -> Option<Self> {
        let text = |text: &String| Argument::Text(text.clone());
        let at = |place: &cgrant_wire::Place| vec![text(&place.controllers), text(&place.path)];
        let with = |place, more: Vec<Argument>| [at(place), more].concat();
        let (method, arguments, shape) = match call {
            LegacyCall::PidCgroup { controllers, absolute, .. } => {
                let method = if *absolute { "GetPidCgroupAbsScm" } else { "GetPidCgroupScm" };
                (method, vec![text(controllers)], Shape::Text)
            }
            LegacyCall::Create(place) => ("CreateScm", at(place), Shape::Existed),
            LegacyCall::Chown { place, .. } => ("ChownScm", at(place), Shape::Done),
            LegacyCall::Chmod { place, file, mode } => {
                ("ChmodScm", with(place, vec![text(file), Argument::Number(*mode)]), Shape::Done)
            }
            LegacyCall::MovePid { place, absolute, .. } => {
                (if *absolute { "MovePidAbsScm" } else { "MovePidScm" }, at(place), Shape::Done)
            }
            LegacyCall::GetValue { place, key } => ("GetValueScm", with(place, vec![text(key)]), Shape::Text),
            LegacyCall::SetValue { place, key, value } => {
                ("SetValueScm", with(place, vec![text(key), text(value)]), Shape::Done)
            }
            LegacyCall::Remove { place, recursive } => {
                let recursive = Argument::Number(i32::from(*recursive));
                ("RemoveScm", with(place, vec![recursive]), Shape::Existed)
            }
            LegacyCall::Tasks { place, recursive } => {
                let method = if *recursive { "GetTasksRecursiveScm" } else { "GetTasksScm" };
                (method, at(place), Shape::Tasks)
            }
            LegacyCall::Children(place) => ("ListChildrenScm", at(place), Shape::Names),
            LegacyCall::RemoveOnEmpty(place) => ("RemoveOnEmptyScm", at(place), Shape::Done),
            LegacyCall::Prune(place) => ("PruneScm", at(place), Shape::Done),
            LegacyCall::Keys(place) => ("ListKeysScm", at(place), Shape::Keys),
            LegacyCall::Controllers | LegacyCall::Socket(_) => return None,
        };
        Some(Self { method, arguments, shape })
    }

    /// The arguments as they are sent, with the socket as the last one.
    pub fn body<'a>(&'a self, socket: Fd<'a>) -> StructureBuilder<'a> {
        let body = self.arguments.iter().fold(StructureBuilder::new(), |body, argument| match argument {
            Argument::Text(text) => body.append_field(Variant::from(text.as_str())),
            Argument::Number(number) => body.append_field(Variant::from(*number)),
        });
        body.append_field(Variant::from(socket))
    }
}

/// The answer in a datagram that is the whole result; `None` if it says that the call failed, or nothing that can be understood.
pub fn whole(shape: Shape, datagram: &[u8]) -> Option<LegacyAnswer> {
    match (shape, datagram) {
        (Shape::Done, b"1") => Some(LegacyAnswer::Done),
        (Shape::Existed, b"1") => Some(LegacyAnswer::Existed(false)),
        (Shape::Existed, b"2") => Some(LegacyAnswer::Existed(true)),
        (Shape::Text, datagram) => text(datagram.strip_suffix(b"\0")?).map(LegacyAnswer::Text),
        _ => None,
    }
}

/// A number of four bytes; `None` if it is negative, which says that the call failed.
pub fn number(datagram: &[u8]) -> Option<usize> {
    usize::try_from(i32::from_ne_bytes(datagram.try_into().ok()?)).ok()
}

/// The list behind a number that is not 0.
pub fn listed(shape: Shape, count: usize, datagram: &[u8]) -> Option<LegacyAnswer> {
    match shape {
        Shape::Names => {
            let names = datagram.strip_suffix(b"\0")?.split(|byte| *byte == 0).map(text);
            let names: Vec<String> = names.collect::<Option<_>>()?;
            (names.len() == count).then_some(LegacyAnswer::Names(names))
        }
        Shape::Keys => {
            let lines = text(datagram.strip_suffix(b"\n")?)?;
            let lines: Vec<&str> = lines.split('\n').collect();
            let (rows, rest) = lines.as_chunks::<4>();
            let keys: Vec<LegacyKey> = rows.iter().map(key).collect::<Option<_>>()?;
            (keys.len() == count && rest.is_empty()).then_some(LegacyAnswer::Keys(keys))
        }
        _ => None,
    }
}

/// Numbers are written as signed ones: an id that has no number here is -1.
fn key([name, uid, gid, mode]: &[&str; 4]) -> Option<LegacyKey> {
    let number = |text: &str| {
        text.parse::<i64>().ok().and_then(|number| match number {
            -1 => Some(u32::MAX),
            number => u32::try_from(number).ok(),
        })
    };
    Some(LegacyKey { name: (*name).to_owned(), uid: number(uid)?, gid: number(gid)?, mode: number(mode)? })
}

fn text(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use cgrant_wire::Place;

    use super::*;

    fn place() -> Place {
        Place { controllers: "memory".to_owned(), path: "a".to_owned() }
    }

    #[test]
    fn every_call_but_one_has_a_twin() {
        let words = |call| Words::of(&call).unwrap();
        let text = |text: &str| Argument::Text(text.to_owned());
        let called = words(LegacyCall::SetValue { place: place(), key: "k".into(), value: "v".into() });
        assert_eq!(called.method, "SetValueScm");
        assert_eq!(called.arguments, [text("memory"), text("a"), text("k"), text("v")]);
        let called = words(LegacyCall::Remove { place: place(), recursive: true });
        assert_eq!(called.arguments, [text("memory"), text("a"), Argument::Number(1)]);
        let moved = LegacyCall::MovePid { place: place(), absolute: true, pid: Some(1) };
        assert_eq!(words(moved).arguments.len(), 2, "who is moved is said by a credential");
        assert_eq!(Words::of(&LegacyCall::Controllers), None);
    }

    #[test]
    fn results_are_read_as_they_are_written() {
        let text = |text: &str| Some(LegacyAnswer::Text(text.to_owned()));
        assert_eq!(whole(Shape::Done, b"1"), Some(LegacyAnswer::Done));
        assert_eq!(whole(Shape::Existed, b"2"), Some(LegacyAnswer::Existed(true)));
        assert_eq!(whole(Shape::Text, b"a\nb\0"), text("a\nb"));
        assert_eq!(whole(Shape::Text, b"\0"), text(""));
        for (shape, failed) in [(Shape::Done, &b"0"[..]), (Shape::Existed, b"0"), (Shape::Text, b"")] {
            assert_eq!(whole(shape, failed), None);
        }
        assert_eq!(number(&7_i32.to_ne_bytes()), Some(7));
        assert_eq!((number(&(-1_i32).to_ne_bytes()), number(b"1")), (None, None));
        let names = LegacyAnswer::Names(vec!["x".to_owned(), "yy".to_owned()]);
        assert_eq!(listed(Shape::Names, 2, b"x\0yy\0"), Some(names));
        assert_eq!(listed(Shape::Names, 3, b"x\0yy\0"), None);
        let Some(LegacyAnswer::Keys(keys)) = listed(Shape::Keys, 2, b"tasks\n7\n5\n33188\nx\n-1\n5\n33188\n")
        else {
            panic!("no keys")
        };
        assert_eq!((keys[0].name.as_str(), keys[0].mode, keys[1].uid), ("tasks", 0o100_644, u32::MAX));
        assert_eq!(listed(Shape::Keys, 1, b"tasks\n7\n5\n"), None);
    }
}
