//! `top`: what running containers use, once or over and over.

use std::{
    collections::HashMap,
    io::{self, IsTerminal},
    os::fd::AsFd,
    time::{Duration, Instant},
};

use cgrant_container::{Session, SessionError, system::Phase};
use cgrant_image::store::StoreError;
use cgrant_proto::{Account, Code};
use nix::{
    errno::Errno,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use serde_json::{Map, Value, json};

use super::{Found, info::seconds, phase, state, terminal::Raw};
use crate::{
    Client,
    args::{Format, TopArgs},
    error::{Doing, Failure},
    output::{self, List, bytes},
    storage, value,
};

const DOING: &str = "show what containers use";
/// Where a terminal writes next: the upper left corner of an empty screen (ECMA-48).
const CLEAR: &str = "\x1b[H\x1b[2J";
/// Keys that end it: q, and what ^C is where the terminal makes no signal of it.
const ENDS: [u8; 2] = [b'q', 3];

/// What a container used until some time.
type Figures = Map<String, Value>;

pub(super) fn top(client: &Client, args: &TopArgs) -> Result<(), Failure> {
    // One that is not there is said before anything is shown.
    args.names.iter().try_for_each(|name| Found::new(name, "show").map(drop))?;
    if args.once || client.format == Format::Json || !io::stdout().is_terminal() {
        let rows: Vec<Value> =
            look(client, args)?.iter().map(|(name, figures)| once(client.format, name, figures)).collect();
        return output::print(client.format, &List::new(&["NAME", "CPU", "MEMORY", "TASKS"], rows));
    }
    let delay = Duration::from_secs(args.delay.into());
    let mut before = HashMap::new();
    let mut last = Instant::now();
    let _raw = Raw::begin();
    loop {
        let now = look(client, args)?;
        let elapsed = last.elapsed();
        last = Instant::now();
        let rows: Vec<Value> =
            now.iter().map(|(name, figures)| row(name, figures, before.get(name), elapsed)).collect();
        let text = output::columns(&List::new(&["NAME", "CPU", "MEMORY", "LIMIT", "TASKS"], rows));
        output::write(format!("{CLEAR}{}", text.replace('\n', "\r\n")).as_bytes())?;
        before = now.into_iter().collect();
        if is_over(delay)? {
            return Ok(());
        }
    }
}

/// What each uses now. One that ends meanwhile is left out.
fn look(client: &Client, args: &TopArgs) -> Result<Vec<(String, Figures)>, Failure> {
    let store = storage::store()?;
    let failed = |error: StoreError| Failure::work(DOING, error.into());
    let mut running = store.containers().map_err(failed)?;
    running.retain(|name| args.names.is_empty() || args.names.contains(name));
    running.retain(|name| phase(state(&store, name).as_ref()) != Phase::Stopped);
    if running.is_empty() {
        return Ok(Vec::new());
    }
    let session = client.connect(DOING)?;
    let mut all = Vec::new();
    for name in running {
        match figures(&session, &name) {
            Ok(figures) => all.push((name, figures)),
            Err(SessionError::Broker(error)) if error.code() == Some(Code::NoSuchGrant) => {}
            Err(error) => return Err(error).doing(|| DOING.to_owned()),
        }
    }
    Ok(all)
}

fn figures(session: &Session, name: &str) -> Result<Figures, SessionError> {
    let path = session.call(session.manager()?.get_grant(name, &Account::new()))?;
    let cgroup = session.cgroup(&path)?;
    let mut figures = value::properties(&session.call(cgroup.stat())?);
    let limit = session.call(cgroup.get_values(&["memory.max"]))?;
    let limit = limit.get("memory.max").and_then(|limit| limit.parse::<u64>().ok());
    figures.insert("memory-max".to_owned(), limit.into());
    Ok(figures)
}

fn figure(figures: &Figures, key: &str) -> Option<u64> {
    figures.get(key).and_then(Value::as_u64)
}

/// With all the CPU time that it ever used.
fn once(format: Format, name: &str, figures: &Figures) -> Value {
    let figure = |key: &str| figure(figures, key);
    let (cpu, memory) = (figure("cpu-usage-usec"), figure("memory-current"));
    match format {
        Format::Json => json!({
            "name": name, "cpu": cpu, "memory": memory, "memory-max": figure("memory-max"),
            "tasks": figure("pids-current"),
        }),
        Format::Table => json!({
            "name": name,
            "cpu": cpu.map(|cpu| format!("{}s", seconds(cpu))),
            "memory": memory.map(bytes),
            "tasks": figure("pids-current"),
        }),
    }
}

/// With what it used of the CPU since the look before, which may have been none.
fn row(name: &str, figures: &Figures, before: Option<&Figures>, elapsed: Duration) -> Value {
    let used = |figures| figure(figures, "cpu-usage-usec");
    let since = before.and_then(used).zip(used(figures)).map(|(before, now)| now.saturating_sub(before));
    json!({
        "name": name,
        "cpu": since.map(|used| per_cent(used, elapsed)),
        "memory": figure(figures, "memory-current").map(bytes),
        "limit": figure(figures, "memory-max").map(bytes),
        "tasks": figure(figures, "pids-current"),
    })
}

/// Microseconds in a time, in per cent with one decimal.
fn per_cent(used: u64, elapsed: Duration) -> String {
    let elapsed = elapsed.as_micros().max(1);
    let tenths = u128::from(used).saturating_mul(1000) / elapsed;
    format!("{}.{}%", tenths / 10, tenths % 10)
}

/// Waits for the time of the next look; `true` if a key says that there shall be none.
fn is_over(delay: Duration) -> Result<bool, Failure> {
    let failed = |source: io::Error| Failure::Machine { doing: "use the terminal", source };
    let input = io::stdin();
    let until = Instant::now().checked_add(delay);
    loop {
        let left = until.map_or(delay, |until| until.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        // Keys are those of a terminal.
        let events = if input.is_terminal() { PollFlags::POLLIN } else { PollFlags::empty() };
        let mut fds = [PollFd::new(input.as_fd(), events)];
        match poll(&mut fds, timeout) {
            Ok(0) => return Ok(false),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
        if fds.iter().any(|fd| fd.any().unwrap_or(false)) {
            let mut typed = [0; 64];
            let length = rustix::io::read(&input, &mut typed).map_err(|errno| failed(errno.into()))?;
            let typed = typed.get(..length).unwrap_or_default();
            if typed.is_empty() || typed.iter().any(|key| ENDS.contains(key)) {
                return Ok(true);
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_what_was_used_since_the_last_look() {
        assert_eq!(per_cent(1_500_000, Duration::from_secs(2)), "75.0%");
        assert_eq!(per_cent(3_000_000, Duration::from_secs(2)), "150.0%");
        assert_eq!(per_cent(1, Duration::ZERO), "100.0%");
        let Value::Object(now) = json!({"cpu-usage-usec": 30, "memory-current": 1024, "memory-max": null})
        else {
            panic!()
        };
        let Value::Object(before) = json!({"cpu-usage-usec": 10}) else { panic!() };
        let row = |before| row("web", &now, before, Duration::from_micros(100));
        assert_eq!(row(Some(&before))["cpu"], "20.0%");
        assert_eq!((&row(None)["cpu"], &row(None)["limit"]), (&Value::Null, &Value::Null));
        assert_eq!(row(None)["memory"], "1.0K");
    }
}
