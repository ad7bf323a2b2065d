//! Downloads, by HTTPS alone.
//!
//! Whoever answers may be anybody between the server and here until the handshake is done, and the server itself is not
//! trusted further than the checksum that is known from elsewhere: size, time and redirects have bounds, and plain HTTP is
//! refused at every step.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use cgrant_sys::Dir;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::digest::{Hasher, Sha256};
use crate::path::shown;
use crate::progress::{Progress, Step, Watch};
use crate::spool::{Spool, SpoolError};

/// Most redirects that are followed.
const MAX_REDIRECTS: u32 = 5;
/// Longest URL, in bytes.
const MAX_URL: usize = 2000;
/// Longest wait for a connection.
const CONNECT: Duration = Duration::from_secs(30);
/// Longest silence of a server.
const SILENCE: Duration = Duration::from_secs(60);

/// A URL of HTTPS, without user and password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url(String);

/// Not a URL that is fetched.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// Plain HTTP, or another scheme.
    #[error(
        "`{0}` is not fetched: only https:// is, since anybody on the way could change what comes by others"
    )]
    NotHttps(String),
    /// Malformed, or with a password that would stand in logs.
    #[error("`{0}` is no URL of a host and a path, without user and password")]
    Malformed(String),
}

/// Which authorities vouch for servers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Authorities {
    /// Those that the machine trusts.
    #[default]
    Machine,
    /// These alone (certificates in DER): of a firm's own server.
    Only(Vec<Vec<u8>>),
}

/// Bounds of a download.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchOptions {
    /// Most bytes.
    pub max_bytes: u64,
    /// Longest time for all of it.
    pub time: Duration,
    /// What it must be, if that is known.
    pub sha256: Option<Sha256>,
    /// Who vouches for the server.
    pub authorities: Authorities,
}

impl Default for FetchOptions {
    fn default() -> Self {
        Self {
            max_bytes: 16 << 30,
            time: Duration::from_secs(4 * 60 * 60),
            sha256: None,
            authorities: Authorities::Machine,
        }
    }
}

/// What came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetched {
    /// Its sum.
    pub sha256: Sha256,
    /// Its size in bytes.
    pub size: u64,
}

/// Why it did not come, or not as it should.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// Nobody could vouch for any server.
    #[error(
        "this machine trusts no certificate authorities: ask the administrator for them (`apt install ca-certificates`)"
    )]
    NoAuthorities,
    /// No connection, or one that broke.
    #[error("{url} could not be fetched")]
    Connection {
        /// What was asked for.
        url: Url,
        /// Why.
        source: Box<ureq::Error>,
    },
    /// The server has it not, or gives it not.
    #[error("{url} could not be fetched: the server answers {status}{}", meaning(*status))]
    Status {
        /// What was asked for.
        url: Url,
        /// HTTP's number.
        status: u16,
    },
    /// A redirect to plain HTTP, or one too many.
    #[error("{0} could not be fetched: its server sends elsewhere, by plain HTTP or too often")]
    Redirect(Url),
    /// It is larger than it may be.
    #[error("{url} is larger than {limit} bytes, which is more than is fetched")]
    TooLarge {
        /// What was asked for.
        url: Url,
        /// The bound.
        limit: u64,
    },
    /// The server was silent, or it took too long.
    #[error(
        "{0} could not be fetched in time: the server is slow or silent; try again, or fetch the file by other means and import it"
    )]
    Slow(Url),
    /// It ended early.
    #[error("{0} did not arrive whole: try again")]
    CutOff(Url),
    /// It is something else.
    #[error(
        "{url} has the checksum {found}, but should have {expected}: it was changed, or you were told wrong"
    )]
    Checksum {
        /// What was asked for.
        url: Url,
        /// What it should have.
        expected: Sha256,
        /// What it has.
        found: Sha256,
    },
    /// It can't be put anywhere.
    #[error(transparent)]
    Spool(#[from] SpoolError),
    /// Where it goes takes it not.
    #[error("what was fetched could not be written")]
    Write(#[source] io::Error),
}

impl FromStr for Url {
    type Err = BadUrl;

    fn from_str(text: &str) -> Result<Self, BadUrl> {
        let told = || shown(text.as_bytes());
        let rest = text.strip_prefix("https://").ok_or_else(|| BadUrl::NotHttps(told()))?;
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let good = !host.is_empty()
            && !host.contains('@')
            && text.len() <= MAX_URL
            && text.chars().all(|letter| letter.is_ascii_graphic());
        if good { Ok(Self(text.to_owned())) } else { Err(BadUrl::Malformed(told())) }
    }
}

impl Url {
    /// The URL of a file that a list names by its path from here.
    ///
    /// # Errors
    /// [`BadUrl`] for what leads up or to another server.
    pub fn join(&self, path: &str) -> Result<Self, BadUrl> {
        let plain = |letter: char| letter.is_ascii_graphic() && !"?#%\\:".contains(letter);
        // Version names have colons, which mean nothing there.
        let letters = path.chars().all(|letter| plain(letter) || letter == ':');
        let leads_away = path.is_empty()
            || path.starts_with('/')
            || path.contains("//")
            || path.split('/').any(|part| matches!(part, "." | ".."));
        if leads_away || !letters {
            return Err(BadUrl::Malformed(shown(path.as_bytes())));
        }
        format!("{}/{path}", self.0.trim_end_matches('/')).parse()
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Url {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Fetches `url` into `output`. Proxies are those of the environment (`HTTPS_PROXY`, `ALL_PROXY`, `NO_PROXY`).
///
/// Looking up the server's name takes a thread for a moment: not for a process that is going to fork meanwhile.
///
/// # Errors
/// [`FetchError`]; `output` has got a part, or all of what is something else.
pub fn fetch(
    url: &Url,
    output: &mut dyn Write,
    options: &FetchOptions,
    watch: &mut Watch<'_>,
) -> Result<Fetched, FetchError> {
    let agent = agent(options)?;
    let response = agent.get(url.as_str()).call().map_err(|error| refused(url, error))?;
    let status = response.status().as_u16();
    if status != 200 {
        return Err(FetchError::Status { url: url.clone(), status });
    }
    let total = response.body().content_length();
    let too_large = || FetchError::TooLarge { url: url.clone(), limit: options.max_bytes };
    if total.is_some_and(|total| total > options.max_bytes) {
        return Err(too_large());
    }
    let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
    let mut hasher = Hasher::new(output);
    let mut buffer = vec![0; 1 << 16];
    loop {
        let count = match body.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            result => result.map_err(|error| refused(url, ureq::Error::from(error)))?,
        };
        let Some(part) = buffer.get(..count).filter(|part| !part.is_empty()) else { break };
        if hasher.count().saturating_add(count as u64) > options.max_bytes {
            return Err(too_large());
        }
        hasher.write_all(part).map_err(FetchError::Write)?;
        watch(Progress { step: Step::Download, done: hasher.count(), total });
    }
    hasher.flush().map_err(FetchError::Write)?;
    let size = hasher.count();
    if total.is_some_and(|total| total != size) {
        return Err(FetchError::CutOff(url.clone()));
    }
    let found = hasher.finish().0;
    match options.sha256 {
        Some(expected) if expected != found => {
            Err(FetchError::Checksum { url: url.clone(), expected, found })
        }
        _ => Ok(Fetched { sha256: found, size }),
    }
}

/// Fetches `url` into a file without a name on the file system of `dir`, of which `keep_free` bytes stay free. Gives the
/// file at its beginning.
///
/// # Errors
/// As [`fetch`]: [`FetchError::NoRoom`].
pub fn fetch_file(
    dir: &Dir,
    keep_free: u64,
    url: &Url,
    options: &FetchOptions,
    watch: &mut Watch<'_>,
) -> Result<(File, Fetched), FetchError> {
    let mut spool = Spool::new(dir, keep_free)?;
    let result = fetch(url, &mut spool, options, watch);
    // That there was no room is why the rest failed.
    let file = spool.finish()?;
    Ok((file, result?))
}

fn agent(options: &FetchOptions) -> Result<ureq::Agent, FetchError> {
    let roots: Vec<Certificate<'static>> = match &options.authorities {
        // Those that can't be read are passed over: the others may be enough.
        Authorities::Machine => {
            let machine = rustls_native_certs::load_native_certs().certs;
            machine.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect()
        }
        Authorities::Only(ders) => ders.iter().map(|der| Certificate::from_der(der).to_owned()).collect(),
    };
    if roots.is_empty() {
        return Err(FetchError::NoAuthorities);
    }
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::from(roots))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build();
    let config = ureq::Agent::config_builder()
        .tls_config(tls)
        .https_only(true)
        .http_status_as_error(false)
        .max_redirects(MAX_REDIRECTS)
        .max_redirects_will_error(true)
        // What is compressed on the way has another sum, and may be a bomb.
        .accept_encoding("identity")
        .user_agent(concat!("cgrant/", env!("CARGO_PKG_VERSION")))
        .timeout_global(Some(options.time))
        .timeout_connect(Some(CONNECT.min(options.time)))
        .timeout_per_read(Some(SILENCE.min(options.time)))
        .timeout_recv_response(Some(SILENCE.min(options.time)))
        .build();
    Ok(config.new_agent())
}

fn refused(url: &Url, error: ureq::Error) -> FetchError {
    let url = url.clone();
    match error {
        ureq::Error::Timeout(_) => FetchError::Slow(url),
        ureq::Error::TooManyRedirects | ureq::Error::RequireHttpsOnly(_) | ureq::Error::RedirectFailed => {
            FetchError::Redirect(url)
        }
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::TimedOut => FetchError::Slow(url),
        ureq::Error::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => FetchError::CutOff(url),
        source => FetchError::Connection { url, source: Box::new(source) },
    }
}

/// What a number means, where it says what to do.
fn meaning(status: u16) -> &'static str {
    match status {
        401 | 403 => ", which means that it is not for everybody",
        404 | 410 => ", which means that it is not there: compare the URL",
        429 => ", which means that you ask too often: try later",
        500..=599 => ", which means that the server has troubles of its own: try later",
        _ => "",
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
pub(crate) mod tests {
    use super::*;

    use crate::place::PlaceError;

    use std::collections::HashMap;
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::thread::JoinHandle;

    /// What the server does about a path.
    #[derive(Clone)]
    pub enum Answer {
        /// Status and headers as they are written, and a body.
        Say(String, Vec<u8>),
        /// Nothing, until the client goes.
        Silence,
    }

    pub fn file(body: &[u8]) -> Answer {
        Answer::Say(format!("200 OK\r\nContent-Length: {}", body.len()), body.to_vec())
    }

    /// A server with a certificate of its own, for as long as this lives.
    pub struct Server {
        address: SocketAddr,
        certificate: Vec<u8>,
        thread: Option<JoinHandle<()>>,
    }

    impl Server {
        pub fn new(answers: &[(&str, Answer)]) -> Self {
            let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
            let certificate = made.cert.der().to_vec();
            let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ServerConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![made.cert.der().clone()], key)
                .unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let answers: HashMap<String, Answer> =
                answers.iter().map(|(path, answer)| ((*path).to_owned(), answer.clone())).collect();
            let config = Arc::new(config);
            let thread = std::thread::spawn(move || {
                let mut serving = Vec::new();
                for stream in listener.incoming() {
                    let stream = stream.unwrap();
                    let (config, answers) = (config.clone(), answers.clone());
                    let mut first = [0; 4];
                    if stream.peek(&mut first).unwrap_or(0) == 4 && &first == b"stop" {
                        break;
                    }
                    serving.push(std::thread::spawn(move || drop(serve(stream, config, &answers))));
                }
                for thread in serving {
                    thread.join().unwrap();
                }
            });
            Self { address, certificate, thread: Some(thread) }
        }

        pub fn url(&self, path: &str) -> Url {
            format!("https://localhost:{}{path}", self.address.port()).parse().unwrap()
        }

        pub fn options(&self) -> FetchOptions {
            FetchOptions {
                authorities: Authorities::Only(vec![self.certificate.clone()]),
                ..FetchOptions::default()
            }
        }

        fn fetch(&self, path: &str, options: &FetchOptions) -> (Vec<u8>, Result<Fetched, FetchError>) {
            let mut bytes = Vec::new();
            let result = fetch(&self.url(path), &mut bytes, options, &mut |_| ());
            (bytes, result)
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            TcpStream::connect(self.address).unwrap().write_all(b"stop").unwrap();
            self.thread.take().unwrap().join().unwrap();
        }
    }

    fn serve(
        mut stream: TcpStream,
        config: Arc<rustls::ServerConfig>,
        answers: &HashMap<String, Answer>,
    ) -> io::Result<()> {
        let mut tls = rustls::ServerConnection::new(config).unwrap();
        let mut stream = rustls::Stream::new(&mut tls, &mut stream);
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte)?;
            request.push(byte[0]);
        }
        let request = String::from_utf8(request).unwrap();
        let path = request.split(' ').nth(1).unwrap();
        match answers.get(path) {
            Some(Answer::Say(head, body)) => {
                stream.write_all(format!("HTTP/1.1 {head}\r\nConnection: close\r\n\r\n").as_bytes())?;
                stream.write_all(body)?;
                stream.flush()?;
                stream.conn.send_close_notify();
                stream.flush()
            }
            Some(Answer::Silence) => {
                let _ = stream.read(&mut [0]);
                Ok(())
            }
            None => stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
        }
    }

    fn redirect(to: &str) -> Answer {
        Answer::Say(format!("302 Found\r\nContent-Length: 0\r\nLocation: {to}"), Vec::new())
    }

    #[test]
    fn urls_are_of_https() {
        assert!(matches!("http://x/".parse::<Url>(), Err(BadUrl::NotHttps(_))));
        for bad in ["https://", "https:///x", "https://u:p@x/", "https://x/ y", "https://x/\n", "https://ä/"]
        {
            assert!(matches!(bad.parse::<Url>(), Err(BadUrl::Malformed(_))), "{bad}");
        }
        let base: Url = "https://x/images/".parse().unwrap();
        assert_eq!(
            base.join("a/20250101_05:24/b.tar.xz").unwrap().as_str(),
            "https://x/images/a/20250101_05:24/b.tar.xz"
        );
        for bad in ["", "/x", "../x", "a/../b", "a//b", "a?b", "a#b", "a%2fb", "a\\b", "./a"] {
            assert!(base.join(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_comes_is_counted_and_summed() {
        let body = vec![7; 300_000];
        let server = Server::new(&[("/f", file(&body)), ("/r", redirect("/f"))]);
        let mut last = None;
        let mut bytes = Vec::new();
        let fetched =
            fetch(&server.url("/f"), &mut bytes, &server.options(), &mut |progress| last = Some(progress))
                .unwrap();
        assert_eq!((bytes.len(), fetched.size), (300_000, 300_000));
        assert_eq!(last, Some(Progress { step: Step::Download, done: 300_000, total: Some(300_000) }));
        let options = FetchOptions { sha256: Some(fetched.sha256), ..server.options() };
        assert_eq!(server.fetch("/r", &options).1.unwrap(), fetched);
        let other = Sha256::of_reader(&b""[..], None, &mut |_| ()).unwrap();
        let options = FetchOptions { sha256: Some(other), ..server.options() };
        assert!(matches!(server.fetch("/f", &options).1, Err(FetchError::Checksum { .. })));
    }

    #[test]
    fn a_file_has_no_name_and_leaves_room() {
        let body = vec![7; 1 << 20];
        let server = Server::new(&[("/f", file(&body))]);
        let directory = tempfile::tempdir().unwrap();
        let dir = Dir::open(directory.path()).unwrap();
        let fetched = fetch_file(&dir, 0, &server.url("/f"), &server.options(), &mut |_| ());
        let mut bytes = Vec::new();
        fetched.unwrap().0.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, body);
        let result = fetch_file(&dir, u64::MAX, &server.url("/f"), &server.options(), &mut |_| ());
        assert!(matches!(result, Err(FetchError::Spool(SpoolError::NoRoom(PlaceError::NearlyFull { .. })))));
        assert!(dir.names().unwrap().is_empty());
    }

    #[test]
    fn servers_that_misbehave_are_left() {
        let endless = Answer::Say("200 OK".into(), vec![0; 200_000]);
        let cut = Answer::Say("200 OK\r\nContent-Length: 100".into(), vec![0; 50]);
        let huge = Answer::Say("200 OK\r\nContent-Length: 99999999999".into(), Vec::new());
        let server = Server::new(&[
            ("/endless", endless),
            ("/cut", cut),
            ("/huge", huge),
            ("/silent", Answer::Silence),
            ("/plain", redirect("http://localhost/f")),
            ("/loop", redirect("/loop")),
            ("/forbidden", Answer::Say("403 No\r\nContent-Length: 0".into(), Vec::new())),
        ]);
        let options = FetchOptions { max_bytes: 100_000, ..server.options() };
        let (bytes, result) = server.fetch("/endless", &options);
        assert!(matches!(result, Err(FetchError::TooLarge { .. })), "{result:?}");
        assert!(bytes.len() <= 100_000);
        let result = server.fetch("/huge", &options).1;
        assert!(matches!(result, Err(FetchError::TooLarge { .. })), "{result:?}");
        let result = server.fetch("/cut", &options).1;
        assert!(matches!(result, Err(FetchError::CutOff(_))), "{result:?}");
        for path in ["/plain", "/loop"] {
            let result = server.fetch(path, &options).1;
            assert!(matches!(result, Err(FetchError::Redirect(_))), "{path}: {result:?}");
        }
        let result = server.fetch("/forbidden", &options).1;
        assert!(matches!(result, Err(FetchError::Status { status: 403, .. })), "{result:?}");
        assert!(server.fetch("/none", &options).1.unwrap_err().to_string().contains("compare the URL"));
        let options = FetchOptions { time: Duration::from_millis(300), ..options };
        let result = server.fetch("/silent", &options).1;
        assert!(matches!(result, Err(FetchError::Slow(_))), "{result:?}");
    }

    #[test]
    fn nobody_vouches_for_a_stranger() {
        let server = Server::new(&[("/f", file(b"x"))]);
        let (bytes, result) = server.fetch("/f", &FetchOptions::default());
        assert!(
            matches!(result, Err(FetchError::Connection { .. } | FetchError::NoAuthorities)),
            "{result:?}"
        );
        assert!(bytes.is_empty());
        let options = FetchOptions { authorities: Authorities::Only(Vec::new()), ..FetchOptions::default() };
        assert!(matches!(server.fetch("/f", &options).1, Err(FetchError::NoAuthorities)));
    }

    #[test]
    fn a_full_disk_is_no_bad_server() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let server = Server::new(&[("/f", file(b"x"))]);
        let result = fetch(&server.url("/f"), &mut Full, &server.options(), &mut |_| ());
        assert!(matches!(result, Err(FetchError::Write(_))));
    }
}
