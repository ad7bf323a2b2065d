//! Names of containers as labels of the domain name system.
//!
//! A grant's name may have capitals and `_`, which a label has not: capitals become small letters, as names are
//! compared without regard to them, and `_` becomes `-`; a `-` at either end goes. So `My_App` is `my-app`, and so is
//! `my-app`: both are then found under one name, if they are one account's. A name that another account's older
//! container has leads to that one alone ([`super::zone`]). Source: RFC 1123, section 2.1; RFC 1035, section 2.3.1.

/// Longest label, in bytes.
const LONGEST: usize = 63;
/// Longest name that is made of labels, in bytes: leaves room for the domain in a name's 253.
const LONGEST_NAME: usize = 180;

/// A label of a host: small letters, digits and `-`, which does not stand at an end.
pub fn label(name: &str) -> Option<String> {
    let label: String =
        name.chars().map(|sign| if sign == '_' { '-' } else { sign.to_ascii_lowercase() }).collect();
    let label = label.trim_matches('-');
    let is_fine = |sign: char| sign.is_ascii_lowercase() || sign.is_ascii_digit() || sign == '-';
    (!label.is_empty() && label.len() <= LONGEST && label.chars().all(is_fine)).then(|| label.to_owned())
}

/// One or more labels with dots between them, each made of what stands there.
pub fn name(name: &str) -> Option<String> {
    let labels: Vec<String> = name.split('.').map(label).collect::<Option<_>>()?;
    let name = labels.join(".");
    (name.len() <= LONGEST_NAME).then_some(name)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn grant_names_become_labels() {
        for (text, is) in [("web", "web"), ("My_App-2", "my-app-2"), ("a__", "a"), ("0", "0"), ("-x-", "x")] {
            assert_eq!(label(text).as_deref(), Some(is));
        }
        assert_eq!(label(&"a".repeat(63)).unwrap().len(), 63);
        assert_eq!(name("Web.U1000").as_deref(), Some("web.u1000"));
    }

    #[test]
    fn what_could_be_anything_else_is_no_label() {
        let long = "a".repeat(64);
        for text in
            ["", "-", "__", "a b", "a\nb", "a,b", "a#", "a/b", "ä", "a.b", "[a]", "a:b", "*", "\0", &long]
        {
            assert_eq!(label(text), None, "{text:?}");
        }
        for text in ["", ".", "a.", ".a", "a..b", "a.b\n", "a b.c"] {
            assert_eq!(name(text), None, "{text:?}");
        }
        assert_eq!(name(&["a"; 100].join(".")), None);
    }
}
