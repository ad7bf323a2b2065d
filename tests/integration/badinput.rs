//! Bytes that no client library sends: broken handshakes, giant and malformed messages, too many descriptors.
//! The sender is cut off or refused; everybody else is served as before, and the front's memory stays small.

use std::{
    io::IoSlice,
    os::fd::AsFd,
    time::{Duration, Instant},
};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::common::{
    Broker, Lab, Options, User, checker,
    raw::{Raw, method_call, string},
};

const MANAGER: &str = "org.cgrant.Broker1.Manager";
const PATH: &str = "/org/cgrant/Broker1";

// One after the other on connections of their own; a bystander is served all the while.
fn cut_off(lab: &Lab, broker: &Broker, user: &User, what: &str, authenticated: bool, bytes: &[u8]) {
    let bystander = lab.user().client(broker.socket());
    let (_process, stream) = user.connect(broker.socket());
    let mut raw = Raw::new(stream);
    if authenticated {
        raw.authenticate(user.uid);
    }
    raw.send(bytes);
    assert!(raw.is_closed(), "{what}: the connection stays open");
    bystander.names();
}

fn broken_handshakes_end_the_connection(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let fronts = broker.fronts();
    let long = [b"\0AUTH EXTERNAL ".to_vec(), vec![b'3'; 100_000], b"\r\n".to_vec()].concat();
    let cases: [(&str, &[u8]); 6] = [
        ("a line feed first", b"\n"),
        ("no null byte", b"AUTH EXTERNAL 30\r\n"),
        ("a line without end", &vec![b'A'; 100_000]),
        ("a long line", &long),
        ("begin before authentication", b"\0BEGIN\r\n"),
        ("bytes above ASCII", b"\0\xff\xff\xff\r\n\xff\r\n\xff\r\n\xff\r\n\xff\r\n\xff\r\n\xff\r\n\xff\r\n\xff\r\n\xff\r\n\xff\r\n\xff\r\n\xff\r\n\xff\r\n\xff\r\n\xff\r\n\xff\r\n"),
    ];
    for (what, bytes) in cases {
        cut_off(lab, &broker, &user, what, false, bytes);
    }
    assert_eq!(broker.fronts(), fronts, "no front was restarted");
}

fn nobody_authenticates_as_somebody_else(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    for claimed in [0, user.uid + 1] {
        let (_process, stream) = user.connect(broker.socket());
        let mut raw = Raw::new(stream);
        let hex: String = claimed.to_string().bytes().map(|b| format!("{b:02x}")).collect();
        raw.send(format!("\0AUTH EXTERNAL {hex}\r\n").as_bytes());
        assert!(raw.line().starts_with("REJECTED"), "uid {claimed}");
    }
    let (_process, stream) = user.connect(broker.socket());
    let mut raw = Raw::new(stream);
    raw.send(b"\0AUTH ANONYMOUS\r\n");
    assert!(raw.line().starts_with("REJECTED"));
}

fn a_handshake_that_takes_its_time_is_ended(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let (_process, stream) = user.connect(broker.socket());
    let mut raw = Raw::new(stream);
    let start = Instant::now();
    raw.send(b"\0AUTH ");
    assert!(raw.is_closed(), "it may take for ever");
    assert!(start.elapsed() < Duration::from_secs(20));
}

fn malformed_messages_end_the_connection(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let fronts = broker.fronts();
    let good = method_call(1, PATH, Some(MANAGER), "ListRanges", "", &[]);
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    let header = |body: u32, fields: u32| {
        let mut bytes = good[..16].to_vec();
        bytes[4..8].copy_from_slice(&body.to_le_bytes());
        bytes[12..16].copy_from_slice(&fields.to_le_bytes());
        bytes
    };
    let cases = [
        ("another byte order", changed(0, b'x')),
        ("another protocol version", changed(3, 9)),
        ("serial number zero", [&good[..8], &[0; 4], &good[12..]].concat()),
        ("a body of 128 MiB", header(128 << 20, 16)),
        ("a body of 4 GiB", header(u32::MAX, 16)),
        ("a header of 64 MiB", header(0, 64 << 20)),
        ("a path that is none", method_call(1, "no/path", Some(MANAGER), "ListRanges", "", &[])),
        ("a member that is none", method_call(1, PATH, Some(MANAGER), "List Ranges", "", &[])),
        ("a signature that is none", method_call(1, PATH, Some(MANAGER), "GetGrant", "a{", &[0; 8])),
        (
            "a body shorter than its string",
            method_call(1, PATH, Some(MANAGER), "ForgetRange", "s", &[255, 0, 0, 0, b'a', 0]),
        ),
        (
            "a string that is no UTF-8",
            method_call(1, PATH, Some(MANAGER), "ForgetRange", "s", &string(b"a\xff")),
        ),
        ("arrays nested deep", method_call(1, PATH, Some(MANAGER), "GetGrant", &"a".repeat(200), &[0; 8])),
        ("zeroes", vec![0; 4096]),
        ("noise", (0..4096_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()),
    ];
    for (what, bytes) in &cases {
        // Either cut off or answered with an error; never served, and nobody else notices.
        let bystander = lab.user().client(broker.socket());
        let (_process, stream) = user.connect(broker.socket());
        let mut raw = Raw::new(stream);
        raw.authenticate(user.uid);
        raw.send(bytes);
        raw.0.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        if let Some(answer) = raw.message() {
            assert_eq!(answer[1], 3, "{what} was answered with something else than an error");
        }
        bystander.names();
    }
    assert_eq!(broker.fronts(), fronts, "no front was restarted");
    checker::assert_empty(lab);
}

fn giant_messages_do_not_grow_the_front(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let front = broker.fronts()[0];
    let memory = || -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{front}/status")).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let before = memory();
    let mut open = Vec::new();
    for _ in 0..20 {
        let (process, stream) = user.connect(broker.socket());
        let mut raw = Raw::new(stream);
        raw.authenticate(user.uid);
        let mut header = method_call(1, PATH, Some(MANAGER), "ForgetRange", "s", &[])[..16].to_vec();
        header[4..8].copy_from_slice(&(120_u32 << 20).to_le_bytes());
        raw.send(&header);
        open.push((process, raw));
    }
    for (_, raw) in &mut open {
        assert!(raw.is_closed(), "a message of 120 MiB is awaited");
    }
    let grown = memory().saturating_sub(before);
    assert!(grown < 8 * 1024, "the front grew by {grown} KiB");
    // A message that is long but allowed to be is refused for what it says, not for its size.
    let client = user.client(broker.socket());
    client.find(&"x".repeat(200_000)).unwrap_err().is("InvalidArgument", "bytes");
    let many: Vec<(String, String)> = (0..10_000).map(|n| (format!("k{n}"), "v".to_owned())).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    client.create("many", Options::new().limits(&many)).unwrap_err();
    checker::assert_empty(lab);
}

fn too_many_descriptors_end_the_connection(lab: &Lab) {
    let broker = lab.broker();
    let user = lab.user();
    let (_process, stream) = user.connect(broker.socket());
    let mut raw = Raw::new(stream);
    raw.authenticate(user.uid);
    let null = std::fs::File::open("/dev/null").unwrap();
    let fds = vec![null.as_fd(); 200];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(200))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    let call = method_call(1, PATH, Some(MANAGER), "ListRanges", "", &[]);
    sendmsg(&raw.0, &[IoSlice::new(&call)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
    assert!(raw.is_closed(), "200 descriptors were taken");
    // Descriptors that no argument names: they must not pile up in the front.
    let front = broker.fronts()[0];
    let open = || std::fs::read_dir(format!("/proc/{front}/fd")).unwrap().count();
    let client = user.client(broker.socket());
    client.names();
    let before = open();
    let (_process, stream) = user.connect(broker.socket());
    let mut raw = Raw::new(stream);
    raw.authenticate(user.uid);
    for _ in 0..50 {
        let fds = [null.as_fd(); 4];
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        if sendmsg(&raw.0, &[IoSlice::new(&call)], &mut ancillary, SendFlags::NOSIGNAL).is_err() {
            break;
        }
        raw.0.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        raw.message();
    }
    client.names();
    assert!(open() <= before + 20, "descriptors pile up: {before} before, {} after", open());
}

fn unknown_things_are_answered_with_the_usual_errors(lab: &Lab) {
    let broker = lab.broker();
    let client = lab.user().client(broker.socket());
    let name = |result: Result<(), crate::common::bus::Refused>| result.unwrap_err().name;
    assert_eq!(name(client.manager("NoSuchMethod", &())), "org.freedesktop.DBus.Error.UnknownMethod");
    let interface = name(client.call(PATH, "org.example.None", "ListRanges", &()));
    assert!(interface.starts_with("org.freedesktop.DBus.Error.Unknown"), "{interface}");
    let object = name(client.call("/org/cgrant/Nowhere", MANAGER, "ListRanges", &()));
    assert!(object.starts_with("org.freedesktop.DBus.Error.Unknown"), "{object}");
    let grant = name(client.call(
        "/org/cgrant/Broker1/grant/0123456789abcdef",
        "org.cgrant.Broker1.Cgroup",
        "Freeze",
        &(),
    ));
    assert_eq!(grant, "NoSuchGrant");
    for odd in ["0", "0123456789ABCDEF", "0123456789abcdef0", "zzzzzzzzzzzzzzzz"] {
        let path = format!("/org/cgrant/Broker1/grant/{odd}");
        let said = name(client.call(&path, "org.cgrant.Broker1.Cgroup", "Freeze", &()));
        assert!(
            said == "NoSuchGrant" || said.starts_with("org.freedesktop.DBus.Error.Unknown"),
            "{odd}: {said}"
        );
    }
    let arguments = name(client.manager("ForgetRange", &(1_u32, 2_u32)));
    assert!(
        arguments == "org.freedesktop.DBus.Error.InvalidArgs" || arguments == "InvalidArgument",
        "{arguments}"
    );
    client
        .create("x", Options::new().with("lifetyme", "persistent"))
        .unwrap_err()
        .is("InvalidArgument", "lifetyme");
    client.create("x", Options::new().with("lifetime", 5_u32)).unwrap_err().is("InvalidArgument", "lifetime");
    client.create("x", Options::new().lifetime("eternal")).unwrap_err().is("InvalidArgument", "lifetime");
    client.create("x", Options::new().key(&"k".repeat(129))).unwrap_err().is("InvalidArgument", "key");
    assert!(client.answers());
    checker::assert_empty(lab);
}

fn one_account_cannot_block_another(lab: &Lab) {
    let broker = lab.broker();
    let (hog, other) = (lab.user(), lab.user());
    // Connections without end, half of them silent, half that never read their answers.
    let call = method_call(1, PATH, Some(MANAGER), "ListRanges", "", &[]);
    let mut open = Vec::new();
    for number in 0..150 {
        let (process, stream) = hog.connect(broker.socket());
        let mut raw = Raw::new(stream);
        if number % 2 == 1 && number < 60 {
            raw.authenticate(hog.uid);
            raw.0.set_nonblocking(true).unwrap();
            for _ in 0..2000 {
                if !raw.send(&call) {
                    break;
                }
            }
        }
        open.push((process, raw));
    }
    let start = Instant::now();
    let client = other.client(broker.socket());
    let grant = client.create("mine", Options::new()).unwrap();
    client.release(&grant.path, false).unwrap();
    assert!(start.elapsed() < Duration::from_secs(10), "another account waited {:?}", start.elapsed());
    // Beyond its quota the hog is not served at all.
    let (_process, stream) = hog.connect(broker.socket());
    let mut last = Raw::new(stream);
    last.0.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    assert!(last.is_closed(), "more connections than the quota");
    drop(open);
    checker::assert_empty(lab);
}

crate::tests![
    broken_handshakes_end_the_connection,
    nobody_authenticates_as_somebody_else,
    a_handshake_that_takes_its_time_is_ended,
    malformed_messages_end_the_connection,
    giant_messages_do_not_grow_the_front,
    too_many_descriptors_end_the_connection,
    unknown_things_are_answered_with_the_usual_errors,
    one_account_cannot_block_another,
];
