//! D-Bus values as JSON values, and as text for a table's cell.

use std::collections::HashMap;

use cgrant_proto::Description;
use serde_json::{Map, Number, Value};
use zbus::{OwnedVariant, Variant};

/// The same as JSON. A descriptor, which has no meaning outside its message, is null.
pub(crate) fn json(value: &Variant<'_>) -> Value {
    match value {
        Variant::Bool(value) => Value::Bool(*value),
        Variant::U8(number) => (*number).into(),
        Variant::I16(number) => (*number).into(),
        Variant::U16(number) => (*number).into(),
        Variant::I32(number) => (*number).into(),
        Variant::U32(number) => (*number).into(),
        Variant::I64(number) => (*number).into(),
        Variant::U64(number) => (*number).into(),
        Variant::F64(number) => Number::from_f64(*number).map_or(Value::Null, Value::Number),
        Variant::Str(text) => text.as_str().into(),
        Variant::ObjectPath(path) => path.as_str().into(),
        Variant::Variant(inner) => json(inner),
        Variant::Array(array) => array.iter().map(json).collect(),
        Variant::Structure(structure) => structure.fields().iter().map(json).collect(),
        Variant::Dict(dict) => {
            Value::Object(dict.iter().map(|(key, value)| (text(&json(key)), json(value))).collect())
        }
        Variant::Signature(signature) => signature.to_string().into(),
        Variant::Fd(_) => Value::Null,
    }
}

/// Properties of an object, under the names that JSON results have: `CgroupId` is `cgroup-id`.
pub(crate) fn properties(values: &HashMap<String, OwnedVariant>) -> Map<String, Value> {
    values.iter().map(|(name, value)| (kebab(name), json(value))).collect()
}

/// What the broker says about a link or a bridge.
pub(crate) fn description(description: &Description) -> Value {
    Value::Object(description.entries().iter().map(|(key, value)| (key.clone(), json(value))).collect())
}

/// One cell: `yes` and `no`, lists with blanks, dictionaries as `key=value`, nothing for null.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => text.clone(),
        Value::Array(values) if values.iter().any(|value| value.is_array() || value.is_object()) => {
            joined(values.iter().map(list), "; ")
        }
        Value::Array(values) => joined(values.iter().map(text), " "),
        Value::Object(map) => joined(map.iter().map(|(key, value)| format!("{key}={}", text(value))), " "),
    }
}

fn list(value: &Value) -> String {
    text(value)
}

fn joined(parts: impl Iterator<Item = String>, separator: &str) -> String {
    parts.collect::<Vec<_>>().join(separator)
}

fn kebab(name: &str) -> String {
    let mut text = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !text.is_empty() {
            text.push('-');
        }
        text.push(c.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn names_of_properties_become_names_of_fields() {
        assert_eq!(kebab("CgroupId"), "cgroup-id");
        assert_eq!(kebab("Name"), "name");
        assert_eq!(kebab("memory-current"), "memory-current");
    }

    #[test]
    fn values_become_json() {
        let limits = HashMap::from([("memory.max", "1")]);
        assert_eq!(json(&Variant::new(limits)), serde_json::json!({"memory.max": "1"}));
        assert_eq!(json(&Variant::new(vec![("cgroup2", "/x")])), serde_json::json!([["cgroup2", "/x"]]));
        assert_eq!(json(&Variant::new(u64::MAX)), serde_json::json!(u64::MAX));
        assert_eq!(json(&Variant::new(f64::NAN)), Value::Null);
        assert_eq!(json(&Variant::new(true)), serde_json::json!(true));
    }

    #[test]
    fn values_become_cells() {
        assert_eq!(text(&serde_json::json!([["cgroup2", "/x"], ["memory", "/y"]])), "cgroup2 /x; memory /y");
        assert_eq!(text(&serde_json::json!({"a": 1, "b": [1, 2]})), "a=1 b=1 2");
        let links = serde_json::json!([{"mtu": 1500, "name": "eth0"}, {"name": "eth1"}]);
        assert_eq!(text(&links), "mtu=1500 name=eth0; name=eth1");
        assert_eq!(text(&serde_json::json!(false)), "no");
        assert_eq!(text(&Value::Null), "");
    }
}
