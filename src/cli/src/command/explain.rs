//! `cgrant explain …`: what the broker would say to a request, without it.

use std::collections::HashMap;

use cgrant_proto::{Account, AddLink, ExplainRequest};
use serde_json::{Map, Value};

use super::{account, grant::each_once};
use crate::{
    Client,
    args::{ExplainArgs, Format},
    error::{Doing, Failure},
    exit,
    output::{self, Fields, List},
    value,
};

pub(crate) fn run(client: &Client, args: &ExplainArgs) -> Result<u8, Failure> {
    let doing = format!("explain {}", args.request);
    let session = client.connect(&doing)?;
    let limits = each_once(args.limits.clone())?;
    let limits: HashMap<&str, &str> = limits.iter().map(|(key, value)| (&**key, &**value)).collect();
    let texts = |texts: &[String]| texts.to_vec();
    let mut options = ExplainRequest::new();
    if let Some(name) = &args.grant {
        let owner = args.account.map_or_else(Account::new, |uid| Account::new().account(uid));
        let find = || session.call(session.manager()?.get_grant(name, &owner));
        let path = find().doing(|| doing.clone())?;
        options = options.option("grant", path.as_str().to_owned());
    }
    if !limits.is_empty() {
        options = options.option("limits", limits);
    }
    let numbers = [("range-count", args.ids), ("nesting", args.nesting), ("account", args.account)];
    for (key, number) in numbers.into_iter().filter_map(|(key, number)| Some((key, number?))) {
        options = options.option(key, number);
    }
    let lists = [("pressure", &args.pressure), ("keys", &args.keys)];
    for (key, list) in lists.into_iter().filter(|(_, list)| !list.is_empty()) {
        options = options.option(key, texts(list));
    }
    let words = [
        ("path", &args.path),
        ("name", &args.name),
        ("from", &args.from),
        ("application", &args.application),
    ];
    for (key, word) in words.into_iter().filter_map(|(key, word)| Some((key, word.as_deref()?))) {
        options = options.option(key, word);
    }
    if !args.groups.is_empty() {
        options = options.option("groups", args.groups.iter().map(u32::to_string).collect::<Vec<_>>());
    }
    for (key, _) in [("no-range", args.no_ids), ("all", args.all)].into_iter().filter(|(_, flag)| *flag) {
        options = options.option(key, true);
    }
    if args.persistent {
        options = options.option("lifetime", "persistent");
    }
    let is_link = args.request == "add-link" || args.link || args.bridge.is_some();
    if is_link {
        let mut link =
            args.bridge.as_deref().map_or_else(AddLink::new, |bridge| AddLink::new().bridge(bridge));
        link = link.ports(&args.publish);
        options = options.links(vec![link]);
    } else if !args.publish.is_empty() {
        options = options.option("ports", args.publish.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
    let method = method_of(&args.request);
    let ask = || session.call(session.manager()?.explain(&method, &options));
    let answer = ask().doing(|| doing.clone())?;
    let mut fields = value::properties(answer.entries());
    let allowed = answer.flag("allowed");
    print(client, &mut fields)?;
    Ok(if allowed { exit::DONE } else { exit::REFUSED })
}

/// The D-Bus method of `create-grant`: `CreateGrant`.
pub(super) fn method_of(request: &str) -> String {
    if request == "cgmanager" {
        return "CGManager".to_owned();
    }
    let word = |word: &str| {
        let mut letters = word.chars();
        letters
            .next()
            .map(|first| first.to_uppercase().chain(letters).collect::<String>())
            .unwrap_or_default()
    };
    request.split('-').map(word).collect()
}

/// As text the figures and the kernel's lacks are tables of their own.
pub(super) fn print(client: &Client, fields: &mut Map<String, Value>) -> Result<(), Failure> {
    let taken = |fields: &mut Map<String, Value>, key: &str| match fields.remove(key) {
        Some(Value::Array(rows)) => rows,
        _ => Vec::new(),
    };
    let named = |rows: Vec<Value>, names: &[&str]| -> Vec<Value> {
        let row = |row: Value| match row {
            Value::Array(values) => names
                .iter()
                .zip(values)
                .map(|(name, value)| ((*name).to_owned(), value))
                .collect::<Map<_, _>>()
                .into(),
            other => other,
        };
        rows.into_iter().map(row).collect()
    };
    let figures = |row: Value| serde_json::from_value::<(String, u64, u64)>(row).ok();
    let rows: Vec<_> = taken(fields, "rows").into_iter().filter_map(figures).collect();
    let lacks = named(taken(fields, "lacks"), &["feature", "without"]);
    if client.format == Format::Json {
        let rows: Vec<Value> = rows.into_iter().map(account::row).collect();
        fields.insert("rows".to_owned(), rows.into());
        fields.insert("lacks".to_owned(), lacks.into());
        return output::write(output::json(fields)?.as_bytes());
    }
    output::print(client.format, &Fields(fields.clone()))?;
    // Nobody uses anything where no broker was asked.
    if !rows.is_empty() {
        let rows = rows.into_iter().map(account::shown);
        output::print(client.format, &List::new(&["RESOURCE", "USED", "QUOTA"], rows))?;
    }
    if lacks.is_empty() {
        Ok(())
    } else {
        output::print(client.format, &List::new(&["FEATURE", "WITHOUT"], lacks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_named_after_methods() {
        for (request, method) in
            [("create-grant", "CreateGrant"), ("kill", "Kill"), ("cgmanager", "CGManager")]
        {
            assert_eq!(method_of(request), method);
        }
    }
}
