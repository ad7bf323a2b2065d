//! What scripts may rely on: options, READY, exit statuses, signals, where sockets and directories are.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::PathBuf,
    process::{Command, Output},
};

use crate::common::{Kind, Lab, Options, checker, wait_until};

fn cgrantd(lab: &Lab, arguments: &[&str]) -> Output {
    Command::new(lab.programs.join("cgrantd")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn ready_means_that_calls_are_answered(lab: &Lab) {
    for _ in 0..5 {
        let mut broker = lab.broker();
        // At once, without waiting for anything else.
        let client = lab.user().client(broker.socket());
        client.names();
        drop(client);
        assert_eq!(broker.stop(), 0);
        broker.start_again();
        lab.user().client(broker.socket()).names();
    }
}

fn ready_is_said_to_the_service_manager_too(lab: &Lab) {
    let path = lab.scratch.join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
    let mut setup = lab.setup();
    setup.environment("NOTIFY_SOCKET", path.to_str().unwrap());
    let broker = setup.start();
    let mut buffer = [0; 1024];
    socket.set_read_timeout(Some(crate::common::PATIENCE)).unwrap();
    let mut heard = String::new();
    while !heard.contains("READY=1") {
        let length = socket.recv(&mut buffer).expect("READY=1 was not sent");
        heard.push_str(&text(&buffer[..length]));
        heard.push('\n');
    }
    lab.user().client(broker.socket()).names();
}

fn sigterm_ends_it_in_order_and_leaves_what_runs(lab: &Lab) {
    let mut broker = lab.broker();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant = client.create("runs", Options::new().lifetime("persistent")).unwrap();
    let sleeper = user.sleeper();
    client.attach(&grant.path, &sleeper.pidfd, Options::new()).unwrap();
    assert_eq!(broker.stop(), 0);
    assert!(sleeper.is_alive());
    assert!(!client.answers());
    checker::assert_in_order(lab);
    broker.start_again();
    let client = user.client(broker.socket());
    assert_eq!(client.processes(&grant.path), [sleeper.pid]);
    client.release(&grant.path, true).unwrap();
    checker::assert_empty(lab);
}

fn directories_and_socket_have_their_modes(lab: &Lab) {
    let broker = lab.broker();
    let mode = |path: PathBuf| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!(mode(lab.runtime_dir()), 0o755);
    assert_eq!(mode(lab.runtime_dir().join("state")), 0o700);
    assert_eq!(mode(lab.runtime_dir().join("public")), 0o755);
    assert_eq!(mode(lab.state_dir()) & 0o077, 0);
    assert_eq!(mode(broker.socket().to_owned()), 0o666);
    // The public directory holds nothing but sockets: it appears in containers.
    for entry in fs::read_dir(lab.runtime_dir().join("public")).unwrap().flatten() {
        assert!(entry.file_type().unwrap().is_socket(), "{}", entry.path().display());
    }
}

fn a_socket_elsewhere(lab: &Lab) {
    let directory = lab.scratch.join("elsewhere");
    fs::create_dir(&directory).unwrap();
    let socket = directory.join("here");
    let mut setup = lab.setup().arguments(&["--socket", socket.to_str().unwrap()]);
    setup.socket.clone_from(&socket);
    let broker = setup.start();
    lab.user().client(&socket).names();
    drop(broker);
}

fn a_second_broker_of_the_same_instance_is_refused(lab: &Lab) {
    let broker = lab.broker();
    let said = lab.setup().try_start().err().expect("two brokers run in the same directories");
    assert!(!said.is_empty());
    lab.user().client(broker.socket()).names();
}

fn check_config_and_print_config(lab: &Lab) {
    let config = lab.config_dir();
    let config = config.to_str().unwrap();
    let output = cgrantd(lab, &["--check-config", "--config-dir", config]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let output = cgrantd(lab, &["--print-config", "--config-dir", config, "--instance", "x9"]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let printed = text(&output.stdout);
    assert!(printed.contains("x9") && printed.contains("1879048192"), "{printed}");
    let output = cgrantd(lab, &["--check-config", "--config-dir", "/nonexistent/config"]);
    assert!(matches!(output.status.code(), Some(0 | 1)), "{:?}", output.status);
}

fn wrong_command_lines_end_with_2(lab: &Lab) {
    for arguments in
        [&["--instance", "Bad Name"] as &[&str], &["--bus", "session"], &["--nonsense"], &["argument"]]
    {
        let output = cgrantd(lab, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {}", text(&output.stderr));
    }
    let output = cgrantd(lab, &["--help"]);
    assert_eq!(output.status.code(), Some(0));
    for option in [
        "--instance",
        "--config-dir",
        "--state-dir",
        "--runtime-dir",
        "--socket",
        "--bus",
        "--cgmanager-socket",
        "--foreground",
        "--check-config",
        "--print-config",
    ] {
        assert!(text(&output.stdout).contains(option), "{option} is not in --help");
    }
    assert!(text(&cgrantd(lab, &["--version"]).stdout).starts_with("cgrantd "));
}

fn no_process_has_more_rights_than_it_needs(lab: &Lab) {
    let broker = lab.broker();
    let status = |pid: u32, key: &str| -> String {
        let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        text.lines()
            .find_map(|line| line.strip_prefix(&format!("{key}:")))
            .unwrap_or_default()
            .trim()
            .to_owned()
    };
    let capabilities = |pid: u32, set: &str| u64::from_str_radix(&status(pid, set), 16).unwrap();
    for front in broker.fronts() {
        let uids = status(front, "Uid");
        assert!(!uids.split_whitespace().any(|uid| uid == "0"), "a front runs as {uids}");
        assert!(!status(front, "Gid").split_whitespace().any(|gid| gid == "0"));
        assert_eq!(status(front, "Groups"), "");
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(capabilities(front, set), 0, "{set} of a front");
        }
        // With no_new_privs the bounding set gives nothing; what it became its account with may stay in it.
        let account = 1 << 6 | 1 << 7;
        assert_eq!(capabilities(front, "CapBnd") & !account, 0, "CapBnd of a front");
        assert_eq!(status(front, "NoNewPrivs"), "1");
        assert_eq!(status(front, "Seccomp"), "2");
        // Nothing of the host's is open in it: sockets, its epoll, its event descriptors.
        for entry in fs::read_dir(format!("/proc/{front}/fd")).unwrap().flatten() {
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let target = target.to_str().unwrap();
            let is_log = target == lab.scratch.join("log").to_str().unwrap() || target == "/dev/null";
            let allowed = target.starts_with("socket:")
                || target.starts_with("anon_inode:")
                || target.starts_with("pipe:");
            assert!(allowed || is_log, "a front has {target} open");
        }
    }
    let engine = broker.engine();
    let all = (1_u64 << 41) - 1;
    let effective = capabilities(engine, "CapEff");
    assert_ne!(effective & all, all, "the engine keeps every capability");
    for (name, bit) in [
        ("net_admin", 12),
        ("sys_module", 16),
        ("sys_boot", 22),
        ("sys_time", 25),
        ("mknod", 27),
        ("bpf", 39),
    ] {
        assert_eq!(effective >> bit & 1, 0, "the engine keeps CAP_{name}");
    }
    assert_eq!(
        capabilities(engine, "CapBnd") & !capabilities(engine, "CapPrm"),
        0,
        "it can't get more again"
    );
    assert_eq!(status(engine, "NoNewPrivs"), "1");
    assert_eq!(status(engine, "Seccomp"), "2");
}

fn the_host_is_described_as_it_is(lab: &Lab) {
    use crate::common::bus::{MANAGER, MANAGER_PATH};
    let broker = lab.broker();
    let client = lab.user().client(broker.socket());
    let kind = match lab.host.kind {
        Kind::V1 => "v1",
        Kind::Hybrid => "hybrid",
        Kind::V2 => "v2",
    };
    assert_eq!(client.property::<String>(MANAGER_PATH, MANAGER, "Hierarchy"), kind);
    assert_eq!(client.property::<bool>(MANAGER_PATH, MANAGER, "Systemd"), lab.host.systemd);
    assert_eq!(client.property::<String>(MANAGER_PATH, MANAGER, "Instance"), lab.instance);
    let controllers: Vec<String> = client.property(MANAGER_PATH, MANAGER, "Controllers");
    for controller in ["cpu", "cpuset", "memory", "pids"] {
        assert!(controllers.iter().any(|c| c == controller), "{controller} is missing in {controllers:?}");
    }
    // Where the tree is: in the scope that systemd gave, else at the root.
    for (tree, base) in checker::bases(&lab.host, &lab.instance) {
        let name = base.file_name().unwrap().to_str().unwrap();
        let is_scope = name == format!("cgrant-{}.scope", lab.instance);
        assert!(is_scope || name == format!("cgrant-{}", lab.instance), "{}", base.display());
        if tree == "cgroup2" && lab.host.kind == Kind::V2 {
            assert_eq!(is_scope, lab.host.systemd, "{}", base.display());
        }
    }
    // No process of the broker's lives in it: a restart of the service must not find its cgroup in use.
    for (tree, base) in checker::bases(&lab.host, &lab.instance) {
        let members = checker::members(&base);
        for (pid, name) in broker.processes() {
            assert!(!members.contains(&pid), "{name} lives in the tree in {tree}");
        }
    }
}

fn nothing_stays_in_the_kernel_after_the_last_grant(lab: &Lab) {
    let mut broker = lab.broker();
    let client = lab.user().client(broker.socket());
    let grant = client.create("one", Options::new()).unwrap();
    client.release(&grant.path, false).unwrap();
    drop(client);
    assert_eq!(broker.stop(), 0);
    wait_until("the instance's cgroups are gone", || {
        checker::cgroups_of_instance(&lab.host, &lab.instance).is_empty()
    });
}

crate::tests![
    ready_means_that_calls_are_answered,
    ready_is_said_to_the_service_manager_too,
    sigterm_ends_it_in_order_and_leaves_what_runs,
    directories_and_socket_have_their_modes,
    a_socket_elsewhere,
    a_second_broker_of_the_same_instance_is_refused,
    check_config_and_print_config,
    wrong_command_lines_end_with_2,
    no_process_has_more_rights_than_it_needs,
    the_host_is_described_as_it_is,
    nothing_stays_in_the_kernel_after_the_last_grant,
];
