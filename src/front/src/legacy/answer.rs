//! From the engine's answer to the reply of a method, and to what its twin sends over the exchange's socket. No I/O.

use cgrant_wire::{LegacyAnswer, LegacyCall, LegacyKey, Refusal};
use zbus::Message;

use super::call::INVALID;
use crate::fault::Fault;

/// What the datagram of a byte says when something failed.
const FAILED: &[u8] = b"0";

/// What is to be made of the answer to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View {
    shape: Shape,
    /// What is told where the numbers in a plain call mean something else than here.
    elsewhere: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Done,
    Existed,
    Text,
    Tasks,
    Names,
    Keys,
}

/// What goes over the socket of an exchange when it is done.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// These datagrams, in their order; an empty one is sent too.
    pub datagrams: Vec<Vec<u8>>,
    /// Then one for each of these processes.
    pub tasks: Vec<u32>,
}

impl View {
    /// Of a call.
    pub const fn of(call: &LegacyCall) -> Self {
        let shape = match call {
            LegacyCall::PidCgroup { .. } | LegacyCall::GetValue { .. } => Shape::Text,
            LegacyCall::Create(_) | LegacyCall::Remove { .. } => Shape::Existed,
            LegacyCall::Tasks { .. } => Shape::Tasks,
            LegacyCall::Children(_) | LegacyCall::Controllers => Shape::Names,
            LegacyCall::Keys(_) => Shape::Keys,
            LegacyCall::Chown { .. }
            | LegacyCall::Chmod { .. }
            | LegacyCall::MovePid { .. }
            | LegacyCall::SetValue { .. }
            | LegacyCall::RemoveOnEmpty(_)
            | LegacyCall::Prune(_)
            | LegacyCall::Socket(_) => Shape::Done,
        };
        let elsewhere = match call {
            LegacyCall::PidCgroup { absolute: false, .. } => "GetPidCgroup called from non-init namespace",
            LegacyCall::PidCgroup { absolute: true, .. } => "GetPidCgroupAbs called from non-init namespace",
            LegacyCall::MovePid { .. } => "Escape request from different namespace requires a proxy",
            LegacyCall::Chown { .. } => "chown called from different user namespace",
            _ => "A proxy is required",
        };
        Self { shape, elsewhere }
    }

    /// The reply to a plain call.
    ///
    /// # Errors
    /// [`Fault`]: what the caller gets instead.
    pub fn reply(self, call: &Message, answer: Result<LegacyAnswer, Refusal>) -> Result<Message, Fault> {
        let header = call.header();
        let reply = Message::method_return(&header);
        let built = match (self.shape, answer.map_err(|refusal| refused(&refusal))?) {
            (_, LegacyAnswer::OtherNamespace) => {
                return Err(Fault::InvalidArgs(self.elsewhere.to_owned()));
            }
            (Shape::Done, LegacyAnswer::Done) => reply.build(&()),
            (Shape::Existed, LegacyAnswer::Existed(existed)) => reply.build(&if existed { 1 } else { -1 }),
            (Shape::Text, LegacyAnswer::Text(text)) => reply.build(&text),
            (Shape::Tasks, LegacyAnswer::Tasks(tasks)) => reply.build(&numbers(&tasks)),
            (Shape::Names, LegacyAnswer::Names(names)) => reply.build(&names),
            (Shape::Keys, LegacyAnswer::Keys(keys)) => reply.build(&rows(&keys)),
            (shape, answer) => {
                tracing::error!(?shape, ?answer, "the engine answers another question");
                return Err(Fault::InvalidArgs(INVALID.to_owned()));
            }
        };
        built.map_err(|_| Fault::InvalidArgs(INVALID.to_owned()))
    }

    /// What the twin of a method sends. A refusal looks like every other failure.
    pub fn outcome(self, answer: Option<LegacyAnswer>) -> Outcome {
        let mut tasks = Vec::new();
        let datagrams = match (self.shape, answer) {
            (Shape::Done, Some(LegacyAnswer::Done))
            | (Shape::Existed, Some(LegacyAnswer::Existed(false))) => {
                vec![b"1".to_vec()]
            }
            (Shape::Existed, Some(LegacyAnswer::Existed(true))) => vec![b"2".to_vec()],
            (Shape::Text, Some(LegacyAnswer::Text(text))) => vec![terminated(&text)],
            (Shape::Tasks, Some(LegacyAnswer::Tasks(all))) => {
                tasks = all;
                vec![count(tasks.len())]
            }
            (Shape::Names, Some(LegacyAnswer::Names(names))) => {
                listed(names.len(), names.iter().flat_map(|name| terminated(name)).collect())
            }
            (Shape::Keys, Some(LegacyAnswer::Keys(keys))) => {
                listed(keys.len(), keys.iter().map(lines).collect::<String>().into_bytes())
            }
            (Shape::Done | Shape::Existed, _) => vec![FAILED.to_vec()],
            (Shape::Text, _) => vec![Vec::new()],
            (Shape::Tasks | Shape::Names | Shape::Keys, _) => vec![(-1_i32).to_ne_bytes().to_vec()],
        };
        Outcome { datagrams, tasks }
    }
}

/// A refusal as callers are told it. Situations that CGManager has not, such as a quota, have their reason in them.
fn refused(refusal: &Refusal) -> Fault {
    Fault::InvalidArgs(match refusal.rule {
        Some(_) => format!("{INVALID}: {}", refusal.message),
        None => INVALID.to_owned(),
    })
}

/// Pids of Linux are positive and far below 2^31.
fn numbers(tasks: &[u32]) -> Vec<i32> {
    tasks.iter().filter_map(|pid| i32::try_from(*pid).ok()).collect()
}

fn rows(keys: &[LegacyKey]) -> Vec<(&str, u32, u32, u32)> {
    keys.iter().map(|key| (key.name.as_str(), key.uid, key.gid, key.mode)).collect()
}

/// A file as ListKeysScm writes it: numbers as signed ones, so that an id that has no number there is -1.
fn lines(key: &LegacyKey) -> String {
    let [uid, gid, mode] = [key.uid, key.gid, key.mode].map(u32::cast_signed);
    format!("{}\n{uid}\n{gid}\n{mode}\n", key.name)
}

/// A count, and if it is not 0 the length of the whole list, and the list.
fn listed(number: usize, list: Vec<u8>) -> Vec<Vec<u8>> {
    if number == 0 {
        return vec![count(0)];
    }
    // A message of the engine's is shorter than 2 GiB.
    let length = u32::try_from(list.len()).unwrap_or(u32::MAX);
    vec![count(number), length.to_ne_bytes().to_vec(), list]
}

fn count(number: usize) -> Vec<u8> {
    i32::try_from(number).unwrap_or(i32::MAX).to_ne_bytes().to_vec()
}

fn terminated(text: &str) -> Vec<u8> {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    bytes
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use cgrant_wire::{Place, RefusalCode};

    use super::*;

    fn place() -> Place {
        Place { controllers: "memory".to_owned(), path: "a".to_owned() }
    }

    fn key(name: &str, uid: u32) -> LegacyKey {
        LegacyKey { name: name.to_owned(), uid, gid: 5, mode: 0o100_644 }
    }

    /// What the twin of a call sends for an answer and for a failure.
    fn sent(call: &LegacyCall, answer: LegacyAnswer) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let view = View::of(call);
        (view.outcome(Some(answer)).datagrams, view.outcome(None).datagrams)
    }

    #[test]
    fn datagrams_are_what_clients_expect() {
        let bytes = |all: &[&[u8]]| all.iter().map(|one| one.to_vec()).collect::<Vec<_>>();
        let int = |number: i32| number.to_ne_bytes();
        let create = LegacyCall::Create(place());
        assert_eq!(sent(&create, LegacyAnswer::Existed(true)), (bytes(&[b"2"]), bytes(&[b"0"])));
        assert_eq!(sent(&create, LegacyAnswer::Existed(false)).0, bytes(&[b"1"]));
        let prune = LegacyCall::Prune(place());
        assert_eq!(sent(&prune, LegacyAnswer::Done), (bytes(&[b"1"]), bytes(&[b"0"])));
        let value = LegacyCall::GetValue { place: place(), key: "k".to_owned() };
        let (text, failed) = sent(&value, LegacyAnswer::Text("12\n34".to_owned()));
        assert_eq!((text, failed), (bytes(&[b"12\n34\0"]), bytes(&[b""])));
        assert_eq!(sent(&value, LegacyAnswer::Text(String::new())).0, bytes(&[b"\0"]), "empty is no failure");
        let children = LegacyCall::Children(place());
        let (names, failed) = sent(&children, LegacyAnswer::Names(vec!["a".to_owned(), "bc".to_owned()]));
        assert_eq!(names, bytes(&[&int(2), &5_u32.to_ne_bytes(), b"a\0bc\0"]));
        assert_eq!(failed, bytes(&[&int(-1)]));
        assert_eq!(sent(&children, LegacyAnswer::Names(Vec::new())).0, bytes(&[&int(0)]));
        let (keys, failed) =
            sent(&LegacyCall::Keys(place()), LegacyAnswer::Keys(vec![key("tasks", 7), key("x", u32::MAX)]));
        assert_eq!(keys, bytes(&[&int(2), &29_u32.to_ne_bytes(), b"tasks\n7\n5\n33188\nx\n-1\n5\n33188\n"]));
        assert_eq!(failed, bytes(&[&int(-1)]));
        let tasks = LegacyCall::Tasks { place: place(), recursive: true };
        let outcome = View::of(&tasks).outcome(Some(LegacyAnswer::Tasks(vec![3, 4])));
        assert_eq!(outcome, Outcome { datagrams: bytes(&[&int(2)]), tasks: vec![3, 4] });
        assert_eq!(View::of(&tasks).outcome(None).datagrams, bytes(&[&int(-1)]));
    }

    #[test]
    fn an_answer_to_another_question_is_a_failure() {
        let view = View::of(&LegacyCall::Create(place()));
        assert_eq!(view.outcome(Some(LegacyAnswer::Done)).datagrams, [b"0".to_vec()]);
        assert_eq!(view.outcome(Some(LegacyAnswer::OtherNamespace)).datagrams, [b"0".to_vec()]);
        let call = Message::method_call("/", "Create").build(&()).unwrap();
        assert!(view.reply(&call, Ok(LegacyAnswer::Done)).is_err());
    }

    #[test]
    fn failures_are_told_in_cgmanagers_words() {
        let call = Message::method_call("/", "Call").build(&()).unwrap();
        let told = |of: &LegacyCall, answer| match View::of(of).reply(&call, answer).unwrap_err() {
            Fault::InvalidArgs(text) => text,
            other => panic!("{other:?}"),
        };
        let own = |absolute| LegacyCall::PidCgroup { controllers: "memory".to_owned(), absolute, pid: None };
        let elsewhere = || Ok(LegacyAnswer::OtherNamespace);
        assert_eq!(told(&own(false), elsewhere()), "GetPidCgroup called from non-init namespace");
        assert_eq!(told(&own(true), elsewhere()), "GetPidCgroupAbs called from non-init namespace");
        let chown = LegacyCall::Chown { place: place(), ids: None };
        assert_eq!(told(&chown, elsewhere()), "chown called from different user namespace");
        let moves = LegacyCall::MovePid { place: place(), absolute: true, pid: None };
        assert_eq!(told(&moves, elsewhere()), "Escape request from different namespace requires a proxy");
        let refusal = Refusal::new(RefusalCode::QuotaExceeded, "500 cgroups are the most");
        assert_eq!(told(&chown, Err(refusal.clone())), "invalid request");
        let ruled = refusal.rule("built-in any-user");
        assert_eq!(told(&chown, Err(ruled)), "invalid request: 500 cgroups are the most");
    }
}
