//! The metrics socket: what is read there, by whom, and what those who may not or mean ill can do with it.

use std::{
    collections::{HashMap, HashSet},
    fs,
    io::{Read, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
};

use super::attacks::{connect_in, mapped};
use crate::common::{
    Broker, Lab, Options, PATIENCE, User,
    level::{Level, connected, nesting},
    wait_until,
};

const GET: &[u8] =
    b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nAccept: application/openmetrics-text\r\n\r\n";

fn socket(lab: &Lab) -> PathBuf {
    lab.runtime_dir().join("metrics")
}

/// Sends a request as `user`; what comes back until the end.
fn ask(lab: &Lab, user: &User, request: &[u8]) -> Vec<u8> {
    let (_process, mut stream) = user.connect(&socket(lab));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn scrape(lab: &Lab, user: &User) -> Metrics {
    let answer = String::from_utf8(ask(lab, user, GET)).unwrap();
    let (header, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no header: {answer:?}"));
    assert!(header.starts_with("HTTP/1.0 200 OK\r\n"), "{header}");
    let kind = "Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert!(header.lines().any(|line| line == kind), "{header}");
    assert!(header.lines().any(|line| line == format!("Content-Length: {}", body.len())), "{header}");
    Metrics::parse(body)
}

/// Samples by name and sorted labels, as a strict reader of OpenMetrics 1.0 has them.
#[derive(Debug)]
struct Metrics(HashMap<(String, Vec<(String, String)>), u64>);

impl Metrics {
    fn parse(text: &str) -> Self {
        let body = text.strip_suffix("# EOF\n").expect("no # EOF at the end");
        let (mut samples, mut families) = (HashMap::new(), HashSet::new());
        let mut family: Option<(String, String)> = None;
        for line in body.split_terminator('\n') {
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').unwrap();
                assert!(is_name(name) && ["gauge", "counter", "info"].contains(&kind), "{line}");
                assert!(families.insert(name.to_owned()), "{name} comes twice");
                family = Some((name.to_owned(), kind.to_owned()));
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').unwrap();
                assert_eq!(Some(name), family.as_ref().map(|(name, _)| name.as_str()), "{line}");
                assert!(!help.is_empty());
            } else {
                let (name, kind) = family.as_ref().expect("a sample before the first family");
                let suffix = match kind.as_str() {
                    "counter" => "_total",
                    "info" => "_info",
                    _ => "",
                };
                let rest =
                    line.strip_prefix(&format!("{name}{suffix}{{")).unwrap_or_else(|| panic!("{line}"));
                let (mut labels, rest) = labels(rest);
                labels.sort();
                let value: u64 = rest.strip_prefix(' ').unwrap().parse().unwrap();
                assert!(kind != "info" || value == 1, "{line}");
                assert!(samples.insert((name.clone(), labels), value).is_none(), "{line} comes twice");
            }
        }
        Self(samples)
    }

    fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<u64> {
        let mut labels: Vec<_> = labels.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
        labels.sort();
        self.0.get(&(name.to_owned(), labels)).copied()
    }

    fn of_account(&self, name: &str, user: &User, resource: &str) -> Option<u64> {
        self.value(name, &[("account", &user.uid.to_string()), ("resource", resource)])
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// `name="value",…}`, and what is behind it.
fn labels(mut text: &str) -> (Vec<(String, String)>, &str) {
    let mut labels = Vec::new();
    loop {
        let (name, rest) = text.split_once("=\"").unwrap();
        assert!(is_name(name), "{name}");
        let (mut value, mut letters) = (String::new(), rest.char_indices());
        let end = loop {
            match letters.next().expect("a label without end") {
                (at, '"') => break at + 1,
                (_, '\\') => value.push(match letters.next() {
                    Some((_, 'n')) => '\n',
                    Some((_, letter @ ('\\' | '"'))) => letter,
                    other => panic!("{other:?} behind a backslash"),
                }),
                (_, letter) => value.push(letter),
            }
        };
        labels.push((name.to_owned(), value));
        match rest[end..].split_at(1) {
            (",", rest) => text = rest,
            ("}", rest) => return (labels, rest),
            other => panic!("{other:?} behind a label"),
        }
    }
}

fn figures_are_those_of_the_broker(lab: &Lab) {
    let user = lab.user();
    // A file whose name has to be escaped.
    lab.write_policy("");
    let rule = "[[rule]]\nname = \"few\"\n[rule.quota]\ngrants = 2\n";
    fs::write(lab.config_dir().join("policy.d/4\"\\n.toml"), rule).unwrap();
    let broker = lab.broker();
    let client = user.client(broker.socket());
    client.create("one", Options::new()).unwrap();
    client.create("two", Options::new()).unwrap();
    client.create("three", Options::new()).unwrap_err().is("QuotaExceeded", "");
    let metrics = scrape(lab, &lab.root());
    assert_eq!(metrics.of_account("cgrant_account_usage", &user, "grants"), Some(2), "{metrics:?}");
    assert_eq!(metrics.of_account("cgrant_account_quota", &user, "grants"), Some(2));
    for resource in ["cgroups", "ids", "links", "published-ports", "connections", "requests-per-second"] {
        assert!(metrics.of_account("cgrant_account_usage", &user, resource).is_some(), "{resource}");
        assert!(metrics.of_account("cgrant_account_quota", &user, resource).is_some(), "{resource}");
    }
    assert_eq!(metrics.of_account("cgrant_account_usage", &user, "ids"), Some(131_072));
    assert_eq!(metrics.value("cgrant_requests", &[("outcome", "ok")]), Some(2));
    assert_eq!(metrics.value("cgrant_requests", &[("outcome", "quota_exceeded")]), Some(1));
    assert_eq!(metrics.value("cgrant_refusals", &[("rule", "4\"\\n.toml:1 few")]), Some(1));
    assert_eq!(metrics.value("cgrant_queue_length", &[("queue", "operations")]), Some(0));
    let restarts = |metrics: &Metrics, process| metrics.value("cgrant_restarts", &[("process", process)]);
    assert_eq!((restarts(&metrics, "engine"), restarts(&metrics, "socket-front")), (Some(0), Some(0)));
    let version = [("version", env!("CARGO_PKG_VERSION")), ("instance", &lab.instance)];
    assert_eq!(metrics.value("cgrant_build", &version), Some(1));
    // The socket is everybody's to knock at, and appears in no container.
    let metadata = socket(lab).metadata().unwrap();
    assert_eq!((metadata.permissions().mode() & 0o777, metadata.uid()), (0o666, 0));
    assert!(!lab.runtime_dir().join("public/metrics").exists());
    kill_the_front(lab, &broker);
    let after = scrape(lab, &lab.root());
    assert_eq!((restarts(&after, "engine"), restarts(&after, "socket-front")), (Some(0), Some(1)));
    broker.kill(broker.engine());
    wait_until("another engine serves", || ask(lab, &lab.root(), GET).starts_with(b"HTTP/1.0 200"));
    let after = scrape(lab, &lab.root());
    assert_eq!((restarts(&after, "engine"), restarts(&after, "socket-front")), (Some(1), Some(2)));
    // A connection that broke ends no grant.
    let client = user.client(broker.socket());
    for name in ["one", "two"] {
        let _ = client.release(&client.find(name).unwrap(), true);
    }
}

fn kill_the_front(lab: &Lab, broker: &Broker) {
    broker.kill(broker.fronts()[0]);
    wait_until("another front serves", || ask(lab, &lab.root(), GET).starts_with(b"HTTP/1.0 200"));
}

fn only_those_whom_policy_lets_read_it(lab: &Lab) {
    let (collector, person) = (lab.user(), lab.user());
    lab.write_policy(&format!(
        "[[rule]]\nname = \"collector\"\nuids = [{}]\naccess.metrics = \"allow\"\n\
         [[rule]]\nname = \"own\"\nuids = [0]\nquota.grants = 3\n",
        collector.uid
    ));
    let broker = lab.broker();
    assert_eq!(ask(lab, &person, GET), b"", "a stranger is told something");
    wait_until("it is told in the log", || broker.log().contains("read the metrics of all accounts"));
    scrape(lab, &collector);
    scrape(lab, &lab.root());
    // Another way leads there neither: the socket of the broker's own interface has no HTTP, this one no D-Bus.
    let (_process, mut stream) = lab.root().connect(broker.socket());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let _ = stream.write_all(GET);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    let answer = ask(lab, &collector, b"\0AUTH EXTERNAL\r\n\r\n");
    assert!(answer.starts_with(b"HTTP/1.0 400 "), "{answer:?}");
    lab.write_policy("");
    broker.reload();
    wait_until("the right is taken back", || ask(lab, &collector, GET).is_empty());
}

// Whoever may read them elsewhere is nobody in somebody's user namespace, whose root rules what runs there; and its root is no root.
fn nobody_reads_them_from_a_namespace_of_somebodys(lab: &Lab) {
    let (collector, person) = (lab.user(), lab.user());
    lab.write_policy(&format!(
        "[[rule]]\nname = \"collector\"\nuids = [{}]\naccess.metrics = \"allow\"\n",
        collector.uid
    ));
    let broker = lab.broker();
    scrape(lab, &collector);
    // Nor from one of the collector's own.
    let container = {
        let client = collector.client(broker.socket());
        let one = Level::new(&collector, &client, "one", nesting(1));
        let caller = one.caller(lab, &collector, 0, &socket(lab));
        let stream = connected(&caller);
        (one, client, caller, stream)
    };
    let others = [
        (&person, collector.uid, 0),
        (&person, collector.uid, 1),
        (&person, 0, 1),
        (&collector, 1_900_000_000, 1),
    ];
    let connections = others.map(|(maker, whose, id)| {
        let namespace = mapped(maker, whose, 1);
        let (process, stream) = connect_in(maker, &namespace, id, &socket(lab));
        ((namespace, process), stream, format!("{whose} as {id}"))
    });
    let (level, client, caller, stream) = container;
    let inside = ((level.namespace, caller), stream, "in a container".to_owned());
    for (_processes, mut stream, who) in connections.into_iter().chain([inside]) {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(GET);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(!answer.contains("cgrant_") && !answer.contains(" 200 "), "{who}: {answer}");
    }
    drop(client);
    // The D-Bus interfaces have no other door to them for the collector either.
    let client = collector.client(broker.socket());
    let usage = client.manager::<_, ()>("GetUsage", &Options::new().with("account", person.uid).0);
    usage.unwrap_err().is("NotAuthorized", "usage of other accounts");
    scrape(lab, &collector);
}

fn requests_that_are_none_are_answered_or_ended(lab: &Lab) {
    let _broker = lab.broker();
    let root = lab.root();
    for (request, status) in [
        (&b"POST /metrics HTTP/1.1\r\n\r\n"[..], "405"),
        (b"GET /etc/passwd HTTP/1.1\r\n\r\n", "404"),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", "404"),
        (b"hello\r\n\r\n", "400"),
        (b"\xff\xfe\r\n\r\n", "400"),
    ] {
        let answer = ask(lab, &root, request);
        assert!(answer.starts_with(format!("HTTP/1.0 {status} ").as_bytes()), "{answer:?}");
    }
    let head = ask(lab, &root, b"HEAD /metrics HTTP/1.0\r\n\r\n");
    assert!(head.starts_with(b"HTTP/1.0 200 ") && head.ends_with(b"\r\n\r\n"));
    // A request without end is not read on, and one of 64 MB costs nobody anything.
    let huge = [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'x'; 64 << 20]].concat();
    let answer = ask(lab, &root, &huge);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.0 431 "), "{:?}", answer.len());
    scrape(lab, &root);
}

fn who_is_slow_or_many_holds_up_nobody(lab: &Lab) {
    let (collector, person, bystander) = (lab.user(), lab.user(), lab.user());
    lab.write_policy(&format!(
        "[[rule]]\nname = \"collector\"\nuids = [{}]\naccess.metrics = \"allow\"\nquota.connections = 64\n",
        collector.uid
    ));
    let broker = lab.broker();
    let root = lab.root();
    let connect = |user: &User| {
        let (process, stream) = user.connect(&socket(lab));
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        (process, stream)
    };
    // Some send half a request, others don't read their answers.
    let slow: Vec<_> = (0..20)
        .map(|number| {
            let (process, mut stream) = connect(&collector);
            stream.write_all(if number % 2 == 0 { b"GET /met" } else { GET }).unwrap();
            (process, stream)
        })
        .collect();
    scrape(lab, &root);
    broker_answers(&broker, &bystander);
    // All of them are ended, whatever they do.
    for (_process, mut stream) in slow {
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("a slow connection is not ended");
    }
    scrape(lab, &collector);
    // Ten thousand connections, of somebody who may not have one and of somebody who may have 64.
    for user in [&person, &collector] {
        let (flood, mut said, _) = user.agent(&["flood", socket(lab).to_str().unwrap(), "10000"]);
        // More of what it says may have come with it.
        assert!(said.starts_with("ok"), "{said}");
        scrape(lab, &root);
        broker_answers(&broker, &bystander);
        while !said.ends_with("flooded") {
            said = flood.hear().expect("the flood ended").0;
        }
        scrape(lab, &root);
        broker_answers(&broker, &bystander);
    }
}

fn broker_answers(broker: &Broker, user: &User) {
    user.client(broker.socket()).names();
}

crate::tests![
    figures_are_those_of_the_broker,
    only_those_whom_policy_lets_read_it,
    nobody_reads_them_from_a_namespace_of_somebodys,
    requests_that_are_none_are_answered_or_ended,
    who_is_slow_or_many_holds_up_nobody,
];
