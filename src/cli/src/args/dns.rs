//! Who answers for names in a container.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Deserialize, Serialize};

/// What is shown as `/etc/resolv.conf` in a container with a link.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) enum Dns {
    /// The servers of its link.
    #[default]
    Link,
    /// Nothing: the file of its root is its own.
    None,
    /// These servers.
    Servers(Vec<IpAddr>),
}

impl FromStr for Dns {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "link" => Ok(Self::Link),
            "none" => Ok(Self::None),
            servers => {
                let servers = servers.split(',').map(str::parse).collect::<Result<_, _>>();
                servers.map(Self::Servers).map_err(|_| {
                    format!("dns is link, none, or addresses of servers with commas between them, and not {text:?}")
                })
            }
        }
    }
}

impl TryFrom<String> for Dns {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Dns> for String {
    fn from(dns: Dns) -> Self {
        dns.to_string()
    }
}

impl fmt::Display for Dns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link => f.write_str("link"),
            Self::None => f.write_str("none"),
            Self::Servers(servers) => {
                let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
                f.write_str(&servers.join(","))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn it_is_written_as_it_is_read() {
        for text in ["link", "none", "10.0.0.53", "10.0.0.53,fd00::53"] {
            assert_eq!(text.parse::<Dns>().unwrap().to_string(), text);
        }
        for bad in ["", "Link", "10.0.0.53,", "10.0.0", "dns.example", "10.0.0.53 fd00::53", "none,10.0.0.1"]
        {
            assert!(bad.parse::<Dns>().is_err(), "{bad}");
        }
    }
}
