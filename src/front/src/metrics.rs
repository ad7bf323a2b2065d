//! The metrics socket: one GET, answered with OpenMetrics text, and the end of the connection.
//!
//! Who may connect is policy's to say and the engine's to see to; here are only connections that it let through. What one of them
//! can make this process hold is bounded all the same: a request of a few kilobytes, for seconds, and few answers at a time.
//! Just as much of HTTP is understood as Prometheus and curl need. Sources: RFC 1945, OpenMetrics 1.0.

use std::{
    fmt::Write as _,
    io,
    os::fd::{AsFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use cgrant_wire::{Answer, Family, MetricKind, Op};
use tokio::{task::spawn_local, time::timeout};

use crate::{
    castoff::{Bin, Castoffs},
    core::{Core, PerUid},
    session::{Peer, part, to_stream},
    stream::receive_once,
    watched::Watched,
};

/// How long a request may take.
const REQUEST: Duration = Duration::from_secs(5);
/// How long its answer may take, from the engine and to the reader.
const ANSWER: Duration = Duration::from_secs(20);
/// Longest request with all its header, in bytes.
const MAX_REQUEST: usize = 8 * 1024;
/// Answers of one uid that are under way.
const ANSWERS: usize = 4;
/// How much is read at once.
const PIECE: usize = 1024;
const TEXT: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The connections of the metrics socket.
#[derive(Debug)]
pub struct MetricsPeers {
    core: Rc<Core>,
    castoffs: Castoffs,
    answers: PerUid,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// The figures; without them for HEAD.
    Metrics { head: bool },
    /// Something else: the status line says what is wrong.
    Wrong(&'static str),
}

impl MetricsPeers {
    /// Of a front.
    pub fn new(core: Rc<Core>) -> Self {
        Self { core, castoffs: Castoffs::default(), answers: PerUid::new(ANSWERS) }
    }

    /// Serves a connection in a task of its own, to its end.
    pub fn serve(self: &Rc<Self>, peer: Peer, socket: OwnedFd) {
        let peers = Rc::clone(self);
        spawn_local(async move {
            let served = spawn_local({
                let peers = Rc::clone(&peers);
                async move { peers.session(peer, socket).await }
            });
            // However it ended, by a fault of ours too, the engine must hear of it.
            let _ = served.await;
            peers.core.engine.closed(peer.connection).await;
        });
    }

    async fn session(&self, peer: Peer, socket: OwnedFd) {
        let bin = self.castoffs.of(peer.uid);
        let Ok(stream) = to_stream(socket) else { return };
        if bin.has_room()
            && let Ok(Ok(asked)) = timeout(REQUEST, request(&stream, &bin)).await
        {
            let _ = timeout(ANSWER, self.answer(peer, &stream, asked)).await;
        }
        part(&stream, &bin).await;
    }

    async fn answer(&self, peer: Peer, stream: &Watched, asked: Asked) -> io::Result<()> {
        let head = match asked {
            Asked::Wrong(status) => return stream.send_all(&response(status, TEXT, status, false)).await,
            Asked::Metrics { head } => head,
        };
        let Ok(_place) = self.answers.of(peer.uid).acquire_owned().await else { return Ok(()) };
        let answer = match self.core.engine.ask(peer.connection, false, Op::Metrics, Vec::new()).await {
            Ok(pending) => pending.await.ok().map(|reply| reply.result),
            Err(refusal) => Some(Err(refusal)),
        };
        let response = match answer {
            Some(Ok(Answer::Metrics(families))) => response("200 OK", OPEN_METRICS, &text(&families), head),
            Some(Err(refusal)) => response("503 Service Unavailable", TEXT, &refusal.message, head),
            _ => response("500 Internal Server Error", TEXT, "a fault of the broker's own", head),
        };
        stream.send_all(&response).await
    }
}

/// Reads a request to the end of its header.
async fn request(stream: &Watched, bin: &Bin) -> io::Result<Asked> {
    let mut request = Vec::new();
    loop {
        let mut piece = [0; PIECE];
        let (count, kept) = stream.read(|| receive_once(stream.as_fd(), &mut piece, bin)).await?;
        if !kept.is_empty() {
            bin.throw(kept.into_iter().map(|kept| kept.fd).collect());
            return Err(io::ErrorKind::InvalidData.into());
        }
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // An empty line may have begun with what was there before: four bytes at most, not all of them again for each that comes.
        let new = request.len().saturating_sub(3);
        request.extend_from_slice(piece.get(..count).unwrap_or_default());
        if is_whole(request.get(new..).unwrap_or_default()) {
            return Ok(understand(&request));
        }
        if request.len() > MAX_REQUEST {
            return Ok(Asked::Wrong("431 Request Header Fields Too Large"));
        }
    }
}

/// Is there an empty line?
fn is_whole(request: &[u8]) -> bool {
    let ends = |end: &[u8]| request.windows(end.len()).any(|window| window == end);
    ends(b"\r\n\r\n") || ends(b"\n\n")
}

/// The first line says it all; what the header has makes no difference.
fn understand(request: &[u8]) -> Asked {
    let line = request.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let Ok(line) = std::str::from_utf8(line) else { return Asked::Wrong("400 Bad Request") };
    let mut words = line.trim_end_matches('\r').split(' ');
    let (Some(method), Some(target), Some(version), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Asked::Wrong("400 Bad Request");
    };
    if !version.starts_with("HTTP/1.") {
        return Asked::Wrong("400 Bad Request");
    }
    let path = target.split('?').next().unwrap_or_default();
    match (method, path) {
        ("GET" | "HEAD", "/" | "/metrics") => Asked::Metrics { head: method == "HEAD" },
        ("GET" | "HEAD", _) => Asked::Wrong("404 Not Found"),
        _ => Asked::Wrong("405 Method Not Allowed"),
    }
}

fn response(status: &str, kind: &str, body: &str, head: bool) -> Vec<u8> {
    let allow = if status.starts_with("405") { "Allow: GET, HEAD\r\n" } else { "" };
    let header = format!(
        "HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n{allow}Connection: close\r\n\r\n",
        body.len()
    );
    [header.as_bytes(), if head { b"" } else { body.as_bytes() }].concat()
}

/// The figures as OpenMetrics text.
fn text(families: &[Family]) -> String {
    let mut text = String::new();
    for Family { name, kind, help, samples } in families {
        let (kind, suffix) = match kind {
            MetricKind::Gauge => ("gauge", ""),
            MetricKind::Counter => ("counter", "_total"),
            MetricKind::Info => ("info", "_info"),
        };
        let help = escaped(help);
        // Writing into a String does not fail.
        let _ = write!(text, "# TYPE {name} {kind}\n# HELP {name} {help}\n");
        for sample in samples {
            let labels = sample.labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
            let labels = labels.collect::<Vec<_>>().join(",");
            let _ = writeln!(text, "{name}{suffix}{{{labels}}} {}", sample.value);
        }
    }
    text.push_str("# EOF\n");
    text
}

/// A text as it may stand between quotation marks: rules have names that the administrator chose.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use cgrant_wire::Sample;

    use super::*;

    #[test]
    fn requests_are_understood_or_refused() {
        let metrics = |head| Asked::Metrics { head };
        for (request, asked) in [
            ("GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", metrics(false)),
            ("GET /metrics?x=1 HTTP/1.0\n\n", metrics(false)),
            ("HEAD / HTTP/1.1\r\n\r\n", metrics(true)),
            ("GET /other HTTP/1.1\r\n\r\n", Asked::Wrong("404 Not Found")),
            ("POST /metrics HTTP/1.1\r\n\r\n", Asked::Wrong("405 Method Not Allowed")),
            ("GET /metrics\r\n\r\n", Asked::Wrong("400 Bad Request")),
            ("GET /metrics HTTP/2\r\n\r\n", Asked::Wrong("400 Bad Request")),
            ("GET  /metrics HTTP/1.1\r\n\r\n", Asked::Wrong("400 Bad Request")),
            ("\r\n\r\n", Asked::Wrong("400 Bad Request")),
            ("\0AUTH EXTERNAL\r\n\r\n", Asked::Wrong("400 Bad Request")),
        ] {
            assert!(is_whole(request.as_bytes()));
            assert_eq!(understand(request.as_bytes()), asked, "{request:?}");
        }
        assert_eq!(understand(b"GET /\xff HTTP/1.1\n\n"), Asked::Wrong("400 Bad Request"));
        assert!(!is_whole(b"GET / HTTP/1.1\r\n"));
    }

    #[test]
    fn text_is_as_the_specification_has_it() {
        let sample = Sample { labels: vec![("rule".to_owned(), "a\"b\\c\nd".to_owned())], value: 3 };
        let family = |kind, name: &str, samples| Family {
            name: name.to_owned(),
            kind,
            help: "Two\nlines.".to_owned(),
            samples,
        };
        let families = [
            family(MetricKind::Counter, "refusals", vec![sample]),
            family(MetricKind::Gauge, "none", Vec::new()),
        ];
        assert_eq!(
            text(&families),
            "# TYPE refusals counter\n# HELP refusals Two\\nlines.\n\
             refusals_total{rule=\"a\\\"b\\\\c\\nd\"} 3\n\
             # TYPE none gauge\n# HELP none Two\\nlines.\n# EOF\n"
        );
    }
}
