//! When a person is asked about a call, and when not, against a peer that says what a broker would.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex},
    task::Poll,
};

use cgrant_proto::{
    Account, Agent, Asked, Asking, Code, Error, ListGrants, ManagerProxy,
    names::{MANAGER, MANAGER_PATH},
};
use futures_util::StreamExt;
use zbus::{
    Connection, Guid, Message, MessageStream, Variant,
    connection::Builder,
    fdo::PropertiesProxy,
    message::{Flags, Type},
};

/// What happened, in its order.
type Story = Arc<Mutex<Vec<String>>>;

#[derive(Debug)]
struct Storyteller(Story);

impl Agent for Storyteller {
    fn begin(&self) {
        self.0.lock().unwrap().push("begin".to_owned());
    }

    fn end(&self) {
        self.0.lock().unwrap().push("end".to_owned());
    }
}

/// Refuses everything, and says that a person could agree if `open` is so.
async fn refuse(connection: Connection, story: Story, open: bool) {
    let mut stream = MessageStream::from(&connection);
    while let Some(Ok(message)) = stream.next().await {
        if message.message_type() != Type::MethodCall {
            continue;
        }
        let header = message.header();
        let may_ask = message.primary_header().flags().contains(Flags::ALLOW_INTERACTIVE_AUTH);
        let mark = if may_ask { "!" } else { "" };
        story.lock().unwrap().push(format!("{}{mark}", header.member().unwrap()));
        let details = HashMap::from([("action", Variant::new("org.cgrant.broker1.manage-others"))]);
        let details = if open && !may_ask { details } else { HashMap::new() };
        let reply =
            Message::error(&header, "org.cgrant.Error.NotAuthorized").build(&("no", details)).unwrap();
        connection.send(&reply).await.unwrap();
    }
}

async fn manager(open: bool, with_agent: bool) -> (Asked<ManagerProxy<'static>>, Arc<Asking>, Story) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = Builder::unix_stream(theirs).server(Guid::generate()).p2p().build();
    let client = Builder::unix_stream(ours).p2p().build();
    let (server, client) = tokio::join!(server, client);
    let story = Story::default();
    tokio::spawn(refuse(server.unwrap(), Arc::clone(&story), open));
    let agent = with_agent.then(|| Box::new(Storyteller(Arc::clone(&story))) as Box<dyn Agent>);
    let asking = Asking::new(agent);
    let manager = ManagerProxy::builder(&client.unwrap())
        .cache_properties(zbus::proxy::CacheProperties::No)
        .build()
        .await
        .unwrap();
    (Asked::new(manager, &asking), asking, story)
}

fn told(story: &Story) -> Vec<String> {
    std::mem::take(&mut story.lock().unwrap())
}

fn refused<T>(answer: Result<T, Error>) -> bool {
    answer.is_err_and(|error| error.code() == Some(Code::NotAuthorized))
}

#[tokio::test]
async fn a_person_is_asked_when_that_could_help_and_from_then_on() {
    let (manager, asking, story) = manager(true, true).await;
    assert!(refused(manager.list_grants(&ListGrants::new().all()).await));
    assert_eq!(told(&story), ["ListGrants", "begin", "ListGrants!", "end"]);
    assert!(!asking.is_open());
    assert!(refused(manager.get_grant("x", &Account::new()).await));
    assert_eq!(told(&story), ["begin", "GetGrant!", "end"]);
    // Properties, too, and all objects of the connection.
    let properties = PropertiesProxy::builder(manager.inner().connection())
        .destination("org.cgrant.Broker1")
        .path(MANAGER_PATH)
        .build()
        .await
        .unwrap();
    assert!(refused(Asked::new(properties, &asking).get_all(MANAGER).await));
    assert_eq!(told(&story), ["begin", "GetAll!", "end"]);
    // Nobody is ever asked about this one.
    assert!(refused(manager.list_ranges().await));
    assert_eq!(told(&story), ["ListRanges"]);
}

#[tokio::test]
async fn nobody_is_asked_in_vain_or_against_the_callers_will() {
    let (manager, _, story) = manager(false, true).await;
    assert!(refused(manager.list_grants(&ListGrants::new()).await));
    assert_eq!(told(&story), ["ListGrants"]);
    let (manager, _, story) = self::manager(true, false).await;
    for _ in 0..2 {
        assert!(refused(manager.list_grants(&ListGrants::new()).await));
        assert_eq!(told(&story), ["ListGrants"]);
    }
}

#[tokio::test]
async fn the_agent_goes_with_a_call_that_nobody_waits_for() {
    let (manager, asking, story) = manager(true, true).await;
    assert!(refused(manager.list_accounts(&ListGrants::new()).await));
    told(&story);
    let options = ListGrants::new();
    let mut call = Box::pin(manager.list_accounts(&options));
    let is_pending = poll_fn(|context| Poll::Ready(call.as_mut().poll(context).is_pending())).await;
    assert!(is_pending);
    assert!(asking.is_open());
    drop(call);
    assert!(!asking.is_open());
    assert_eq!(told(&story).last().unwrap(), "end");
}
