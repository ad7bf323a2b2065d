//! The service manager's watchdog: it hears of a broker that works, not of one with a process that hangs, which is replaced; what runs
//! in grants goes on.

use std::os::unix::net::UnixDatagram;

use rustix::process::{Pid, Signal, kill_process};

use crate::common::{Lab, Options, PATIENCE, checker, wait_until};

/// What the service manager hears.
struct Manager(UnixDatagram);

impl Manager {
    fn hear(&self) -> String {
        let mut buffer = [0; 4096];
        let length = self.0.recv(&mut buffer).expect("nothing is said any more");
        String::from_utf8_lossy(&buffer[..length]).trim_end().to_owned()
    }

    /// Forgets what was said up to now.
    fn forget(&self) {
        self.0.set_nonblocking(true).unwrap();
        while self.0.recv(&mut [0; 4096]).is_ok() {}
        self.0.set_nonblocking(false).unwrap();
    }
}

fn a_process_that_hangs_is_replaced_and_grants_go_on(lab: &Lab) {
    let path = lab.scratch.join("notify");
    let manager = Manager(UnixDatagram::bind(&path).unwrap());
    manager.0.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut setup = lab.setup();
    setup.environment("NOTIFY_SOCKET", path.to_str().unwrap());
    setup.environment("WATCHDOG_USEC", "2000000");
    let broker = setup.start();
    let user = lab.user();
    let client = user.client(broker.socket());
    let grant =
        client.create("lives", Options::new().lifetime("persistent").limits(&[("pids.max", "9")])).unwrap();
    let inside = user.sleeper();
    client.attach(&grant.path, &inside.pidfd, Options::new()).unwrap();
    let before = inside.cgroups();
    for what in ["engine", "front"] {
        while manager.hear() != "WATCHDOG=1" {}
        let hanging = if what == "engine" { broker.engine() } else { broker.fronts()[0] };
        kill_process(Pid::from_raw(hanging.cast_signed()).unwrap(), Signal::STOP).unwrap();
        manager.forget();
        // One round may have been answered before it was stopped.
        let mut signs = 0;
        loop {
            match manager.hear().as_str() {
                "WATCHDOG=1" => signs += 1,
                said if said.contains("STATUS=A process of the broker failed") => break,
                _ => (),
            }
        }
        assert!(signs <= 1, "{what} hangs, and {signs} signs of life were given");
        wait_until("there is another one", || {
            broker.processes().iter().all(|(pid, _)| *pid != hanging)
                && user.client_again(broker.socket()).answers()
        });
        while manager.hear() != "WATCHDOG=1" {}
        assert!(inside.is_alive(), "{what}");
        assert_eq!(inside.cgroups(), before, "{what}");
    }
    assert!(broker.log().contains("it gave no sign of life and was killed"), "{}", broker.log());
    let client = user.client_again(broker.socket());
    assert_eq!(client.value(&client.find("lives").unwrap(), "pids.max"), "9");
    checker::assert_in_order(lab);
    client.release(&client.find("lives").unwrap(), true).unwrap();
}

crate::tests![a_process_that_hangs_is_replaced_and_grants_go_on];
