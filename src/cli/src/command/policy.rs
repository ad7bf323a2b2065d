//! `cgrant policy …`: the rules, and what they would say.
//!
//! What is in force only the broker knows, which shows to each what is for it. Files that are not in force are read and judged
//! here, by the code that the broker decides with: nobody needs a right for that but to read the files, and no
//! process with rights has to parse what somebody is still writing.

mod files;
mod subject;
mod trial;

use cgrant_proto::ListGrants;
use serde_json::{Map, Value, json};

use self::trial::Place;
use super::explain;
use crate::{
    Client,
    args::{Format, PolicyCommand, PolicyTestArgs},
    error::{Doing, Failure},
    exit,
    output::{self, printable},
};

const READ_POLICY: &str = "read the policy";

/// A rule as it is shown.
struct Shown {
    label: String,
    /// Empty for who asks.
    whom: String,
    settings: Vec<(String, String)>,
}

pub(crate) fn run(client: &Client, command: PolicyCommand) -> Result<u8, Failure> {
    match command {
        PolicyCommand::Show { config_dir: Some(directory), .. } => {
            let policy = files::read(&directory)?;
            let shown = policy.rules().map(|(ruling, whom)| Shown {
                label: ruling.label.clone(),
                whom,
                settings: policy.differences(ruling),
            });
            show(client, shown)?;
        }
        PolicyCommand::Show { all, config_dir: None } => {
            let session = client.connect(READ_POLICY)?;
            let options = if all { ListGrants::new().all() } else { ListGrants::new() };
            let ask = || session.call(session.manager()?.list_rules(&options));
            let rules = ask().doing(|| READ_POLICY.to_owned())?;
            show(client, rules.into_iter().map(|(label, whom, settings)| Shown { label, whom, settings }))?;
        }
        PolicyCommand::Test(args) => return test(client, *args),
    }
    Ok(exit::DONE)
}

fn show(client: &Client, rules: impl Iterator<Item = Shown>) -> Result<(), Failure> {
    let text = match client.format {
        Format::Json => {
            let rules = rules.map(|Shown { label, whom, settings }| {
                let settings: Map<String, Value> =
                    settings.into_iter().map(|(key, value)| (key, value.into())).collect();
                let whom = if whom.is_empty() { Value::Null } else { whom.into() };
                json!({ "rule": label, "for": whom, "settings": settings })
            });
            output::json(&rules.collect::<Vec<_>>())?
        }
        Format::Table => rules.map(|rule| as_text(&rule)).collect::<Vec<_>>().join("\n"),
    };
    output::write(text.as_bytes())
}

/// Where it stands and whom it is for in one line, then a line for each setting.
fn as_text(rule: &Shown) -> String {
    let whom = if rule.whom.is_empty() { "you" } else { &rule.whom };
    let mut text = format!("{}: for {}\n", printable(&rule.label), printable(whom));
    for (key, value) in &rule.settings {
        text.push_str(&format!("    {} = {}\n", printable(key), printable(value)));
    }
    text
}

fn test(client: &Client, mut args: PolicyTestArgs) -> Result<u8, Failure> {
    if args.request.groups.is_empty()
        && let Some(account) = args.request.account
    {
        args.request.groups = subject::groups_of(account)?;
    }
    let Some(directory) = &args.config_dir else { return explain::run(client, &args.request) };
    let policy = files::read(directory)?;
    let subject = subject::of(&args.request)?;
    let place = args.inside.map(|who| Place { who, depth: args.depth.unwrap_or(1).into() });
    let mut fields = trial::judge(&policy, &subject, place, &args.request)?;
    let allowed = fields.get("allowed") == Some(&Value::Bool(true));
    explain::print(client, &mut fields)?;
    Ok(if allowed { exit::DONE } else { exit::REFUSED })
}
