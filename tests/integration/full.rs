//! Quotas that keep the broker itself usable, when they are full: what the account is told, and that others are served.

use std::path::Path;

use super::{
    explain::{explain, same},
    polkit::sees_polkit,
};
use crate::common::{
    Client, Lab, Options, User,
    bus::{MANAGER, MANAGER_PATH, Refused},
    polkit::Desk,
    raw::Raw,
    wait_until,
};

/// Refused for this quota, by the rule, with all that a program and a person need.
#[track_caller]
fn assert_full(refused: &Refused, resource: &str, quota: u64) {
    refused.is("QuotaExceeded", resource);
    assert_eq!((refused.number("quota"), refused.number("usage")), (Some(quota), Some(quota)), "{refused:?}");
    assert_eq!(refused.text("resource").as_deref(), Some(resource), "{refused:?}");
    assert!(refused.text("rule").is_some_and(|rule| rule.ends_with("few")), "{refused:?}");
    assert!(refused.text("hint").is_some(), "{refused:?}");
    // Nobody can agree to it: it is what the broker and all accounts share.
    assert_eq!(refused.text("action"), None, "{refused:?}");
}

fn uses(root: &Client, user: &User, resource: &str) -> u64 {
    let rows = root.usage_of(user.uid);
    rows.into_iter().find(|(name, ..)| name == resource).unwrap().1
}

fn connections_beyond_the_quota_are_ended_and_others_served(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"few\"\nquota.connections = 2\n");
    let (user, other) = (lab.user(), lab.user());
    let desk = Desk::start(lab, &[&user, &other]);
    let broker = lab.setup().bus(&desk.address).start();
    sees_polkit(&broker, &lab.root(), true);
    let name = format!("org.cgrant.Broker1.{}", lab.instance);
    let bus = Path::new(desk.address.strip_prefix("unix:path=").unwrap());
    let (client, second) = (user.client(broker.socket()), user.client(broker.socket()));
    // Before it has said a word.
    let (_process, stream) = user.connect(broker.socket());
    assert!(Raw::new(stream).is_closed(), "a third connection is served");
    let words = format!("uid {} may not connect", user.uid);
    wait_until("the log says why", || {
        broker.log().lines().any(|line| line.contains(&words) && line.contains("2 of at most 2 connections"))
    });
    // One of the bus's can be told.
    let (process, stream) = user.connect(bus);
    let third = Client::of_bus(stream, user.uid, process, &name);
    let refused = third.names_or_refused().unwrap_err();
    assert_full(&refused, "connections", 2);
    same("another connection", &explain(&client, "Connect", Options::new()).unwrap(), &Err::<(), _>(refused));
    // Those that are there are served, and so is everybody else.
    assert!(client.names().is_empty() && second.names().is_empty());
    let bystander = other.client(broker.socket());
    bystander.create("theirs", Options::new().no_range()).unwrap();
    // One that has ended counts no more; the bus's is let in without another connection to the bus.
    drop(second);
    wait_until("there is room", || third.names_or_refused().is_ok());
    let root = lab.root().client(broker.socket());
    assert_eq!(uses(&root, &user, "connections"), 2);
    drop((client, third, bystander, root, broker));
}

fn requests_beyond_the_quota_are_refused_and_others_served(lab: &Lab) {
    lab.write_policy("[[rule]]\nname = \"few\"\nquota = { grants = 0, requests = 2 }\n");
    let (user, other) = (lab.user(), lab.user());
    let desk = Desk::start(lab, &[&user, &other]);
    let broker = lab.setup().bus(&desk.address).start();
    sees_polkit(&broker, &lab.root(), true);
    let (client, second) = (user.client(broker.socket()), user.client(broker.socket()));
    let bystander = other.client(broker.socket());
    let root = lab.root().client(broker.socket());
    // Two that wait for somebody who says nothing.
    let mut silent = desk.agent(lab, client.process.as_ref().unwrap(), "nothing");
    let create =
        |name: &str| client.begin(MANAGER_PATH, MANAGER, "CreateGrant", &(name, Options::new().no_range().0));
    let pending = [create("one"), create("two")];
    assert!(silent.hear().starts_with("asked"));
    wait_until("both are under way", || uses(&root, &user, "requests") == 2);
    // The account has no more, over whichever connection.
    for client in [&client, &second] {
        assert_full(&client.names_or_refused().unwrap_err(), "requests", 2);
    }
    // What needs no decision is answered all the same, and nobody else notices.
    assert!(client.answers());
    assert!(bystander.names().is_empty());
    assert!(root.names().is_empty());
    // With the connection its requests end.
    drop((pending, client));
    wait_until("there is room", || second.names_or_refused().is_ok());
    drop((second, bystander, root, silent, broker));
}

crate::tests![
    connections_beyond_the_quota_are_ended_and_others_served,
    requests_beyond_the_quota_are_refused_and_others_served,
];
