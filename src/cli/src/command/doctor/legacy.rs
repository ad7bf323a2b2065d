//! Whether CGManager's interface is served, for programs that were written for it.

use std::{io::ErrorKind, path::Path};

use super::Finding;
use crate::legacy::{self, LegacyError, Manager};

const CHECK: &str = "cgmanager";

/// That it is not there is somebody's choice; that it is there and does not work is not.
pub(super) fn finding() -> Finding {
    told(&legacy::socket(), Manager::connect().and_then(|manager| manager.version()))
}

fn told(socket: &Path, answer: Result<i32, LegacyError>) -> Finding {
    let place = socket.display();
    match answer {
        Ok(version) => Finding::ok(CHECK, format!("version {version} of its interface is served at {place}")),
        Err(LegacyError::Unreachable { source, .. }) if source.kind() == ErrorKind::NotFound => {
            Finding::ok(CHECK, format!("its interface is not served: there is no {place}"))
        }
        Err(error) => Finding::warn(
            CHECK,
            format!("its interface is not to be had at {place}: {error}"),
            "cgrantd serves it with --cgmanager-socket; policy says to whom (legacy, in [rule.access])",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::command::doctor::Verdict;

    #[test]
    fn it_is_there_or_not_or_does_not_work() {
        let of = |answer| told(Path::new("/s"), answer);
        assert_eq!(of(Ok(10)).finding, "version 10 of its interface is served at /s");
        let unreachable = |kind: ErrorKind| {
            of(Err(LegacyError::Unreachable { path: "/s".to_owned(), source: io::Error::from(kind) }))
        };
        assert_eq!(unreachable(ErrorKind::NotFound).finding, "its interface is not served: there is no /s");
        assert_eq!(unreachable(ErrorKind::ConnectionRefused).verdict, Verdict::Warn);
    }
}
