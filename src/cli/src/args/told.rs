//! What a container's init and services are told: variables, proxies, credentials, the time zone.

use std::env;

use clap::Args;
use serde::{Deserialize, Serialize};

/// Variables by which programs find a proxy (curl(1), apt, wget), in small and in capital letters.
const PROXIES: [&str; 10] = [
    "http_proxy",
    "https_proxy",
    "ftp_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "FTP_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
];

#[derive(Debug, Args)]
pub(crate) struct ToldArgs {
    /// A variable for its init, its systemd's services and the commands of 'cgrant exec': with a value, or with yours; may be
    /// given several times
    #[arg(short, long, value_name = "NAME[=VALUE]", value_parser = variable)]
    env: Vec<(String, String)>,
    /// Let it use the proxies that your environment names: http_proxy, https_proxy, ftp_proxy, all_proxy, no_proxy
    #[arg(long)]
    proxy: bool,
    /// Its time zone; otherwise this machine's
    #[arg(long, value_name = "ZONE")]
    pub(crate) timezone: Option<String>,
    /// A credential for its systemd (systemd.system-credentials(7)): a text, or what a file of yours holds at each start; may
    /// be given several times
    #[arg(long, value_name = "NAME=TEXT|NAME=@FILE", value_parser = credential)]
    pub(crate) credential: Vec<Credential>,
}

impl ToldArgs {
    /// Its variables. What was asked for by name wins over what is taken over as a proxy.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let asked = |name: &str| self.env.iter().any(|(asked, _)| asked == name);
        let proxies = PROXIES.iter().filter(|name| self.proxy && !asked(name));
        let proxies = proxies.filter_map(|name| Some(((*name).to_owned(), env::var(name).ok()?)));
        proxies.chain(self.env.iter().cloned()).collect()
    }
}

/// A credential of a container's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Credential {
    pub(crate) name: String,
    #[serde(flatten)]
    pub(crate) content: Content,
}

/// What it says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Content {
    Text(String),
    /// What is in the file, at each start.
    File(String),
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, value.to_owned()),
        None => (text, env::var(text).map_err(|_| format!("{text:?} is not set here: give it a value"))?),
    };
    if name.is_empty() {
        return Err("a variable is written NAME=VALUE".to_owned());
    }
    Ok((name.to_owned(), value))
}

fn credential(text: &str) -> Result<Credential, String> {
    let form = || "a credential is written NAME=TEXT, or NAME=@FILE".to_owned();
    let (name, content) = text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(form)?;
    let content = match content.strip_prefix('@') {
        Some("") => return Err(form()),
        Some(file) => Content::File(file.to_owned()),
        None => Content::Text(content.to_owned()),
    };
    Ok(Credential { name: name.to_owned(), content })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_texts_or_files() {
        let content = |text| credential(text).map(|credential| credential.content);
        assert_eq!(content("a=b=c"), Ok(Content::Text("b=c".into())));
        assert_eq!(content("a=@/b c"), Ok(Content::File("/b c".into())));
        assert_eq!(content("a="), Ok(Content::Text(String::new())));
        for bad in ["", "a", "=b", "a=@"] {
            assert!(credential(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn variables_are_given_or_taken_over() {
        let own = env::var("PATH").unwrap();
        assert_eq!(variable("PATH"), Ok(("PATH".to_owned(), own)));
        assert_eq!(variable("A=b=c"), Ok(("A".to_owned(), "b=c".to_owned())));
        assert!(variable("=b").is_err() && variable("THIS_IS_NOT_SET_ANYWHERE").is_err());
    }
}
