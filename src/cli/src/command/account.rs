//! `cgrant usage` and `cgrant range …`: what belongs to the account.

use cgrant_container::Session;
use cgrant_proto::{Account, ListGrants};
use serde_json::{Value, json};

use crate::{
    Client,
    args::{Format, RangeCommand, UsageArgs},
    error::{Doing, Failure},
    exit,
    output::{self, List},
};

const READ_USAGE: &str = "read the usage";

pub(crate) fn usage(client: &Client, args: &UsageArgs) -> Result<u8, Failure> {
    if args.disk {
        return super::container::disk(client);
    }
    let session = client.connect(READ_USAGE)?;
    if args.all {
        return usage_of_all(client, &session);
    }
    let (account, rule, rows) = usage_of(&session, args.account)?;
    let measured = measured(&session, account)?;
    match client.format {
        Format::Json => {
            let rows: Vec<Value> = rows.into_iter().map(row).collect();
            let usage = json!({ "account": account, "rule": rule, "rows": rows, "disk_measured": measured });
            output::write(output::json(&usage)?.as_bytes())?;
        }
        Format::Table => {
            output::write(format!("account {account}, quotas of {}\n", output::printable(&rule)).as_bytes())?;
            let rows = rows.into_iter().map(shown);
            output::print(client.format, &List::new(&["RESOURCE", "USED", "QUOTA"], rows))?;
            let when = measured.map_or_else(|| "never".to_owned(), output::time);
            output::write(format!("disk measured: {when}\n").as_bytes())?;
        }
    }
    Ok(exit::DONE)
}

type Rows = Vec<(String, u64, u64)>;

fn usage_of(session: &Session, account: Option<u32>) -> Result<(u32, String, Rows), Failure> {
    let options = account.map_or_else(Account::new, |uid| Account::new().account(uid));
    let ask = || session.call(session.manager()?.get_usage(&options));
    ask().doing(|| READ_USAGE.to_owned())
}

/// When its files were measured, in microseconds since 1970; `None` for never.
fn measured(session: &Session, account: u32) -> Result<Option<u64>, Failure> {
    let ask = || session.call(session.account(account)?.disk_measured());
    ask().doing(|| READ_USAGE.to_owned()).map(|measured| Some(measured).filter(|measured| *measured > 0))
}

/// A quota, if there is one.
fn most(quota: u64) -> Option<u64> {
    Some(quota).filter(|quota| *quota != u64::MAX)
}

/// For programs.
pub(super) fn row((resource, used, quota): (String, u64, u64)) -> Value {
    json!({ "resource": resource, "used": used, "quota": most(quota) })
}

/// For people.
pub(super) fn shown(row: (String, u64, u64)) -> Value {
    let (resource, used, quota) = cells(row);
    json!({ "resource": resource, "used": used, "quota": quota })
}

fn cells((resource, used, quota): (String, u64, u64)) -> (String, Value, Value) {
    let amount = |amount: u64| if resource == "disk" { output::bytes(amount).into() } else { amount.into() };
    let (used, quota) = (amount(used), most(quota).map_or_else(|| "max".into(), amount));
    (resource, used, quota)
}

/// Everybody's: all of it for programs, what is used for people.
fn usage_of_all(client: &Client, session: &Session) -> Result<u8, Failure> {
    let ask = || session.call(session.manager()?.list_accounts(&ListGrants::new().all()));
    let accounts = ask().doing(|| READ_USAGE.to_owned())?;
    let all = accounts.into_iter().map(|account| usage_of(session, Some(account)));
    let all = all.collect::<Result<Vec<_>, _>>()?;
    match client.format {
        Format::Json => {
            let accounts = all.into_iter().map(|(account, rule, rows)| {
                let rows: Vec<Value> = rows.into_iter().map(row).collect();
                json!({ "account": account, "rule": rule, "rows": rows })
            });
            output::write(output::json(&accounts.collect::<Vec<_>>())?.as_bytes())?;
        }
        Format::Table => {
            let used = all.into_iter().flat_map(|(account, _, rows)| {
                rows.into_iter().filter(|(_, used, _)| *used > 0).map(cells).map(move |(resource, used, quota)| {
                    json!({ "account": account, "resource": resource, "used": used, "quota": quota })
                })
            });
            output::print(client.format, &List::new(&["ACCOUNT", "RESOURCE", "USED", "QUOTA"], used))?;
        }
    }
    Ok(exit::DONE)
}

pub(crate) fn range(client: &Client, command: RangeCommand) -> Result<u8, Failure> {
    match command {
        RangeCommand::List => list(client)?,
        RangeCommand::Forget { name } => forget(client, &name)?,
    }
    Ok(exit::DONE)
}

fn list(client: &Client) -> Result<(), Failure> {
    const DOING: &str = "list the ranges";
    let session = client.connect(DOING)?;
    let ask = || session.call(session.manager()?.list_ranges());
    let ranges = ask().doing(|| DOING.to_owned())?;
    let items = ranges.into_iter().map(|(uid, gid, count, name, grant)| {
        let named = |text: String| if text.is_empty() { Value::Null } else { Value::from(text) };
        json!({ "uid": uid, "gid": gid, "count": count, "name": named(name), "grant": named(grant) })
    });
    output::print(client.format, &List::new(&["UID", "GID", "COUNT", "NAME", "GRANT"], items))
}

fn forget(client: &Client, name: &str) -> Result<(), Failure> {
    let doing = format!("forget the range of {name:?}");
    let session = client.connect(&doing)?;
    let ask = || session.call(session.manager()?.forget_range(name));
    ask().doing(|| doing.clone())
}
