//! `cgrant departed …`: what users who were deleted left of images and containers. Root only.
//!
//! Which ids were theirs, and are nobody's now, the broker says. Where their files may be it does not know, and it
//! looks at nobody's files: the administrator says where, and this process looks, with the rights of whoever runs it. Files of the
//! retired ids are removed and no others ([`cgrant_image::leftovers`]), so it does not matter who changes the directories meanwhile.

mod clean;

use std::{
    io::{self, Write},
    path::Path,
    sync::atomic::AtomicU64,
    thread::sleep,
    time::{Duration, Instant},
};

use cgrant_container::Session;
use cgrant_image::{Act, DiskUsage, Leftovers, leftovers};
use cgrant_proto::{Account, Departed};
use cgrant_sys::Dir;
use serde_json::json;

use crate::{
    Client,
    args::{DepartedArgs, DepartedCommand, Format},
    error::{Doing, Failure},
    exit,
    output::{self, List, bytes},
    storage::JobFailure,
};

const LIST: &str = "list the ids of users who are gone";
const USAGE: &str = "count files of a user who is gone";
const REMOVE: &str = "remove files of a user who is gone";
const RETIRED: &str = "retired";
const TAKEN: &str = "taken";
/// How often it is asked whether nothing runs any more.
const OFTEN: Duration = Duration::from_secs(1);

pub(crate) fn run(client: &Client, command: DepartedCommand) -> Result<u8, Failure> {
    match command {
        DepartedCommand::List { account } => list(client, account),
        DepartedCommand::Usage(which) => {
            let session = client.connect(USAGE)?;
            let departed = departed(&session, USAGE, Some(which.account))?;
            let ids = retired(USAGE, which.account, &departed)?;
            look(client, USAGE, &which, &ids, Act::Count)
        }
        DepartedCommand::Remove { which, timeout } => {
            let session = client.connect(REMOVE)?;
            let ids = wait(&session, which.account, Duration::from_secs(timeout))?;
            look(client, REMOVE, &which, &ids, Act::Remove)
        }
        DepartedCommand::Clean { config_dir, timeout } => {
            clean::run(client, &config_dir, Duration::from_secs(timeout))
        }
    }
}

fn departed(session: &Session, doing: &str, account: Option<u32>) -> Result<Vec<Departed>, Failure> {
    let options = account.map_or_else(Account::new, |uid| Account::new().account(uid));
    let ask = || session.call(session.manager()?.list_departed(&options));
    ask().doing(|| doing.to_owned())
}

fn list(client: &Client, account: Option<u32>) -> Result<u8, Failure> {
    let rows = departed(&client.connect(LIST)?, LIST, account)?.into_iter();
    let rows = rows.map(|(account, user, first, count, state, grants)| {
        json!({
            "account": account, "user": user, "first": first, "count": count, "state": state, "grants": grants
        })
    });
    let heads = &["ACCOUNT", "USER", "FIRST", "COUNT", "STATE", "GRANTS"];
    output::print(client.format, &List::new(heads, rows))?;
    Ok(exit::DONE)
}

/// The ids of the account that are nobody's, first and last.
fn retired(doing: &str, account: u32, departed: &[Departed]) -> Result<Vec<(u32, u32)>, Failure> {
    let refused = |why: &str| Err(Failure::Refused(format!("cannot {doing}: {why}")));
    if departed.is_empty() {
        return refused(&format!(
            "no ids of the account {account} are retired: its user is there, or had no containers; 'cgrant departed list' \
             shows whose are"
        ));
    }
    if departed.iter().any(|(.., state, _)| state == TAKEN) {
        return refused(&format!(
            "ids that were the account {account}'s are in /etc/passwd, group, subuid or subgid: files may be theirs who have \
             them now. Take them out there first"
        ));
    }
    let retired = departed.iter().filter(|(.., state, _)| state == RETIRED);
    let ids = retired
        .filter_map(|(_, _, first, count, ..)| Some((*first, first.checked_add(count.checked_sub(1)?)?)));
    Ok(ids.collect())
}

/// Waits until all ids of the account are retired and no grant has any of them. From then on none ever will. A process that took one
/// of them outside every grant may be there still: in directories where it may remove names it can keep files, or have others of these ids
/// removed, and no more.
fn wait(session: &Session, account: u32, timeout: Duration) -> Result<Vec<(u32, u32)>, Failure> {
    let begin = Instant::now();
    let mut told = false;
    loop {
        let departed = departed(session, REMOVE, Some(account))?;
        let ids = retired(REMOVE, account, &departed)?;
        let grants: u32 = departed.iter().map(|(.., grants)| grants).sum();
        let why = match ids.len() == departed.len() {
            true if grants == 0 => return Ok(ids),
            true => format!("{grants} of its grants still run; 'cgrant grant list --all' shows them"),
            false => "its user was deleted, or renamed, just now".to_owned(),
        };
        if begin.elapsed() >= timeout {
            return Err(Failure::Refused(format!("cannot {REMOVE}: {why}")));
        }
        if !std::mem::replace(&mut told, true) {
            // Closed standard error is no reason to fail.
            let _ = writeln!(io::stderr(), "cgrant: waits: {why}");
        }
        sleep(OFTEN.min(timeout));
    }
}

/// Counts or removes, and says what was found where.
fn look(
    client: &Client,
    doing: &'static str,
    which: &DepartedArgs,
    ids: &[(u32, u32)],
    act: Act,
) -> Result<u8, Failure> {
    let open = |path: &Path| {
        let failed = |source| Failure::File { doing: "open the directory", path: path.into(), source };
        let directory = std::path::absolute(path).and_then(|path| Dir::open(&path)).map_err(failed)?;
        Ok((path.to_owned(), directory))
    };
    // All of them before anything is removed.
    let directories = which.directories.iter().map(|path| open(path)).collect::<Result<Vec<_>, Failure>>()?;
    let mut result = Outcome::default();
    for (path, directory) in directories {
        result.add(&path, &leftovers(&directory, ids, act, &AtomicU64::default()));
    }
    result.say(client, doing)
}

/// What was found in the directories together, and in each: its path, what was the ids', how many files of others.
#[derive(Default)]
struct Outcome {
    total: DiskUsage,
    rows: Vec<(String, DiskUsage, u64)>,
    failed: u64,
}

impl Outcome {
    fn add(&mut self, path: &Path, found: &Leftovers) {
        self.total += found.usage;
        self.failed = self.failed.saturating_add(found.failed);
        for failure in &found.failures {
            tell(path, &JobFailure::of(failure, exit::MACHINE).text);
        }
        self.rows.push((path.to_string_lossy().into_owned(), found.usage, found.foreign));
    }

    fn say(&self, client: &Client, doing: &'static str) -> Result<u8, Failure> {
        let Self { total, rows, failed } = self;
        print(client, *total, rows, *failed)?;
        match failed {
            0 => Ok(exit::DONE),
            _ => Err(Failure::Machine {
                doing,
                source: io::Error::other(format!("{failed} files or directories could not be used")),
            }),
        }
    }
}

/// Says what was wrong in a directory. Closed standard error is no reason to fail.
fn tell(path: &Path, what: &str) {
    let _ = writeln!(io::stderr(), "cgrant: in {}: {what}", output::printable(&path.to_string_lossy()));
}

fn print(
    client: &Client,
    total: DiskUsage,
    rows: &[(String, DiskUsage, u64)],
    failed: u64,
) -> Result<(), Failure> {
    match client.format {
        Format::Json => {
            let row = |(path, usage, foreign): &(String, DiskUsage, u64)| json!({ "directory": path, "files": usage.files, "bytes": usage.bytes, "others": foreign });
            let rows: Vec<_> = rows.iter().map(row).collect();
            let all = json!({ "rows": rows, "files": total.files, "bytes": total.bytes, "failed": failed });
            output::write(output::json(&all)?.as_bytes())?;
        }
        Format::Table => {
            let row = |(path, usage, foreign): &(String, DiskUsage, u64)| json!({ "directory": path, "files": usage.files, "size": bytes(usage.bytes), "others": foreign });
            output::print(
                client.format,
                &List::new(&["DIRECTORY", "FILES", "SIZE", "OTHERS"], rows.iter().map(row)),
            )?;
        }
    }
    Ok(())
}
