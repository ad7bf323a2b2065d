//! Where policy says "ask", on a host as people have it: the distribution's polkit, a session of logind's, an agent in it, and the
//! password of somebody who may agree.

use std::{fs, process::Command};

use crate::common::{
    Client, Lab, Options,
    bus::{MANAGER, MANAGER_PATH, Refused},
    checker,
    containers::PACKAGED,
    polkit::{Agent, SYSTEM_BUS},
    systemd::{done, systemctl},
    wait_until,
};
use crate::{package::is_installed, people::Person};

const EXCEED: &str = "org.cgrant.broker1.exceed-quota";
const POLICY: &str = "/etc/cgrant/policy.d/60-test.toml";
const PASSWORD: &str = "opensesame";

fn create(client: &Client, name: &str) -> Result<(), Refused> {
    let bare = Options::new().no_range().lifetime("persistent");
    client.ask(MANAGER_PATH, MANAGER, "CreateGrant", &(name, bare.0))
}

fn what_is_agreed_to_is_kept_until_it_is_taken_back(lab: &Lab) {
    if !is_installed(lab) || !lab.host.systemd {
        return;
    }
    // Root's and administrators' word counts, and there is one of those.
    let chief = Person::new(lab, "carla", 23_916);
    done(Command::new("usermod").args(["--append", "--groups", "sudo", &chief.name]));
    chief.set_password(PASSWORD);
    let person = Person::new(lab, "ole", 23_917);
    fs::write(POLICY, "[[rule]]\nname = \"one\"\nuids = [23917]\nquota.grants = 1\n").unwrap();
    systemctl(&["start", "cgrantd.socket", "cgrantd.service"]);
    systemctl(&["reload", "cgrantd.service"]);
    // Who lets nobody be asked gets what policy says.
    let said = person.logged_in("cgrant grant create first; cgrant grant create second || true");
    assert!(said.contains("1 of at most 1 grants"), "{said}");

    let mut agent = Agent::new(person.agent(lab, &["polkit-agent", SYSTEM_BUS, "session", PASSWORD]));
    let client = Client::new(agent.connect(PACKAGED), person.user.uid, None);
    assert_eq!(client.names(), ["first"]);
    create(&client, "second").unwrap();
    let asked = agent.hear();
    assert!(asked.starts_with(&format!("asked {EXCEED} ")), "{asked}");
    // What was agreed to once is not asked about again.
    create(&client, "third").unwrap();
    assert!(agent.is_left_alone(), "the word was not kept");
    agent.revoke();
    create(&client, "fourth").unwrap();
    assert!(agent.hear().starts_with(&format!("asked {EXCEED} ")), "a word that was taken back counts");
    assert_eq!(client.names(), ["first", "fourth", "second", "third"]);
    // A session that ends takes it along, and another one has to know the password.
    drop((client, agent));
    wait_until("the session is gone", || !person.has_session());
    let mut agent = Agent::new(person.agent(lab, &["polkit-agent", SYSTEM_BUS, "session", "wrong"]));
    let client = Client::new(agent.connect(PACKAGED), person.user.uid, None);
    create(&client, "fifth").unwrap_err().is("QuotaExceeded", "4 of at most 1 grants");
    assert!(agent.hear().starts_with(&format!("asked {EXCEED} ")));
    let answer = agent.hear();
    assert!(answer.starts_with("not believed"), "{answer}");

    for name in client.names() {
        client.release(&client.find(&name).unwrap(), true).unwrap();
    }
    fs::remove_file(POLICY).unwrap();
    drop((client, agent));
    systemctl(&["stop", "cgrantd.socket", "cgrantd.service"]);
    wait_until("the broker's tree is gone", || checker::cgroups_of_instance(&lab.host, "default").is_empty());
}

crate::tests![what_is_agreed_to_is_kept_until_it_is_taken_back];
