//! `cgrant usage` and `cgrant range …`: what belongs to the account.

use cgrant_proto::Account;
use serde_json::{Value, json};

use crate::{
    Client,
    args::{AccountArgs, Format, RangeCommand},
    error::{Doing, Failure},
    exit,
    output::{self, List},
};

pub(crate) fn usage(client: &Client, args: &AccountArgs) -> Result<u8, Failure> {
    const DOING: &str = "read the usage";
    let session = client.connect(DOING)?;
    let options = args.account.map_or_else(Account::new, |uid| Account::new().account(uid));
    let ask = || session.call(session.manager()?.get_usage(&options));
    let (account, rule, rows) = ask().doing(|| DOING.to_owned())?;
    let rows = rows
        .into_iter()
        .map(|(resource, used, quota)| json!({ "resource": resource, "used": used, "quota": quota }));
    match client.format {
        Format::Json => {
            let rows: Vec<Value> = rows.collect();
            let usage = json!({ "account": account, "rule": rule, "rows": rows });
            output::write(output::json(&usage)?.as_bytes())?;
        }
        Format::Table => {
            output::write(format!("account {account}, quotas of {}\n", output::printable(&rule)).as_bytes())?;
            output::print(client.format, &List::new(&["RESOURCE", "USED", "QUOTA"], rows))?;
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
