//! Figures about the broker: what is counted as it happens, and all of them together when somebody asks.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use cgrant_policy::{Request, judge::usage_rows};
use cgrant_wire::{Answer, Family, MetricKind, Refusal, RefusalCode, Sample, Surface, boot::FrontKind};

use crate::{
    connection::Caller,
    engine::{Engine, Outcome},
};

/// Most rules that refusals are counted by, over all policies since the start. What others refuse is counted as [`OTHERS`].
const MAX_RULES: usize = 256;
/// The label of what is not counted by itself.
const OTHERS: &str = "others";
/// Most accounts that are told of, by their numbers.
const MAX_ACCOUNTS: usize = 4096;

/// A process of the broker's that is started again when it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The engine.
    Engine,
    /// The socket front.
    SocketFront,
    /// The bus front.
    BusFront,
    /// The network helper.
    Net,
}

impl Part {
    const fn name(self) -> &'static str {
        match self {
            Self::Engine => "engine",
            Self::SocketFront => "socket-front",
            Self::BusFront => "bus-front",
            Self::Net => "net",
        }
    }
}

impl From<FrontKind> for Part {
    fn from(front: FrontKind) -> Self {
        match front {
            FrontKind::Socket => Self::SocketFront,
            FrontKind::Bus => Self::BusFront,
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    /// By the answer's kind.
    answers: BTreeMap<String, u64>,
    /// By rule.
    refusals: BTreeMap<String, u64>,
    /// How often each was started.
    starts: BTreeMap<Part, u64>,
}

/// What is counted as it happens.
#[derive(Debug, Default)]
pub struct Counters(Mutex<Counts>);

impl Counters {
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request has been answered.
    ///
    /// An attacker wants the broker's memory. What is counted by are kinds of refusals, and rules, whose names are the
    /// administrator's and which are bounded.
    pub fn answered(&self, outcome: &Outcome) {
        let mut counts = self.lock();
        let Err(refusal) = outcome else { return add(&mut counts.answers, "ok") };
        add(&mut counts.answers, &word(refusal.code));
        let rule = refusal.rule.as_deref().unwrap_or("built-in");
        let is_full = counts.refusals.len() >= MAX_RULES && !counts.refusals.contains_key(rule);
        add(&mut counts.refusals, if is_full { OTHERS } else { rule });
    }

    /// How often the others were started under engines before: socket front, bus front, network helper.
    pub fn were_started(&self, [socket, bus, net]: [u64; 3]) {
        let before = [(Part::SocketFront, socket), (Part::BusFront, bus), (Part::Net, net)];
        self.lock().starts.extend(before.into_iter().filter(|(_, starts)| *starts > 0));
    }

    /// A process was started, `before` times before.
    pub fn started(&self, part: Part, before: u64) {
        let mut counts = self.lock();
        let starts = counts.starts.entry(part).or_default();
        *starts += before + 1;
    }
}

fn add(counts: &mut BTreeMap<String, u64>, key: &str) {
    match counts.get_mut(key) {
        Some(count) => *count += 1,
        None => drop(counts.insert(key.to_owned(), 1)),
    }
}

/// `QuotaExceeded` as `quota_exceeded`.
fn word(code: RefusalCode) -> String {
    let mut word = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_ascii_uppercase() && !word.is_empty() {
            word.push('_');
        }
        word.push(letter.to_ascii_lowercase());
    }
    word
}

/// Refuses callers that policy does not let, and all those inside of containers and user namespaces.
///
/// An attacker has a collector's account in its hands there, or what runs in a container of that account's: whoever may read what others do
/// reads it on the host.
///
/// # Errors
/// [`RefusalCode::NotAuthorized`].
pub fn may_read(engine: &Engine, caller: &Caller) -> Result<(), Refusal> {
    let outside = match caller.inside {
        None => Ok(()),
        Some(_) => Err(Refusal::new(
            RefusalCode::NotAuthorized,
            "nobody inside a container or a user namespace may read the metrics of all accounts",
        )
        .rule("built-in nesting")
        .hint("read them from outside")),
    };
    outside
        .inspect_err(|refusal| engine.log_refusal(caller, "read metrics", "", refusal))
        .and_then(|()| engine.authorize_silently(caller, &Request::Metrics))
}

/// All figures.
///
/// An attacker wants to know what others do here. Who connects to this socket is judged when he does, and again here.
///
/// # Errors
/// If policy does not let the caller.
pub fn read(engine: &Engine, caller: &Caller) -> Outcome {
    may_read(engine, caller)?;
    if caller.surface != Surface::Metrics {
        return Err(Refusal::new(RefusalCode::Unsupported, "metrics are read from their own socket"));
    }
    let mut families = vec![family(
        "cgrant_build",
        MetricKind::Info,
        "The broker that runs.",
        [sample(&[("version", env!("CARGO_PKG_VERSION")), ("instance", &engine.instance)], 1)],
    )];
    families.extend(of_accounts(engine));
    let measured = Some(engine.disk.measured() / 1_000_000).filter(|measured| *measured > 0);
    families.push(family(
        "cgrant_disk_measured_seconds",
        MetricKind::Gauge,
        "When files of accounts' ids were measured last, since 1970.",
        measured.map(|measured| sample(&[], measured)),
    ));
    let counts = engine.counters.lock();
    let by = |label: &'static str, counts: &BTreeMap<String, u64>| -> Vec<Sample> {
        counts.iter().map(|(key, count)| sample(&[(label, key)], *count)).collect()
    };
    let restarts = counts.starts.iter();
    let restarts =
        restarts.map(|(part, starts)| sample(&[("process", part.name())], starts.saturating_sub(1)));
    families.extend([
        family("cgrant_requests", MetricKind::Counter, "Requests that were answered, by outcome.", by("outcome", &counts.answers)),
        family("cgrant_refusals", MetricKind::Counter, "Requests that were refused, by the rule that decided.", by("rule", &counts.refusals)),
        family("cgrant_restarts", MetricKind::Counter, "How often a process of the broker was started again.", restarts),
        family("cgrant_queue_length", MetricKind::Gauge, "Requests that wait: for the operations of their account before them, or because their account asks too often.", [
            sample(&[("queue", "operations")], number(engine.pool.waiting())),
            sample(&[("queue", "pace")], number(engine.paces.waiting())),
        ]),
    ]);
    Ok((Answer::Metrics(families), Vec::new()))
}

fn of_accounts(engine: &Engine) -> [Family; 2] {
    let policy = engine.policy();
    let (mut used, mut quotas) = (Vec::new(), Vec::new());
    for account in engine.accounts().into_iter().take(MAX_ACCOUNTS) {
        // Its groups and applications are known only from its connections, so these are its quotas by uid.
        let subject = cgrant_policy::Caller::by_uid(account);
        let uid = account.0.to_string();
        for (resource, now, quota) in usage_rows(&policy.quotas(&subject), &engine.usage(account)) {
            let labels = [("account", uid.as_str()), ("resource", resource)];
            used.push(sample(&labels, now));
            // Where there is no limit there is no figure.
            if quota != u64::MAX {
                quotas.push(sample(&labels, quota));
            }
        }
    }
    [
        family("cgrant_account_usage", MetricKind::Gauge, "What an account has.", used),
        family(
            "cgrant_account_quota",
            MetricKind::Gauge,
            "What an account may have, as policy says to its uid.",
            quotas,
        ),
    ]
}

fn family(name: &str, kind: MetricKind, help: &str, samples: impl IntoIterator<Item = Sample>) -> Family {
    Family { name: name.to_owned(), kind, help: help.to_owned(), samples: samples.into_iter().collect() }
}

fn sample(labels: &[(&str, &str)], value: u64) -> Sample {
    let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Sample { labels: labels.collect(), value }
}

fn number(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_beyond_the_bound_are_counted_together() {
        let counters = Counters::default();
        for number in 0..1000 {
            let refusal = Refusal::new(RefusalCode::QuotaExceeded, "no").rule(format!("a.toml:{number} x"));
            counters.answered(&Err(refusal));
        }
        let counts = counters.lock();
        assert_eq!(counts.refusals.len(), MAX_RULES + 1);
        assert_eq!(counts.refusals.get(OTHERS), Some(&(1000 - MAX_RULES as u64)));
        assert_eq!(counts.answers.get("quota_exceeded"), Some(&1000));
    }

    #[test]
    fn the_first_start_is_no_restart() {
        let counters = Counters::default();
        counters.started(Part::Engine, 2);
        counters.started(Part::Net, 0);
        counters.started(Part::Net, 0);
        let starts: Vec<_> =
            counters.lock().starts.iter().map(|(part, starts)| (part.name(), *starts)).collect();
        assert_eq!(starts, [("engine", 3), ("net", 2)]);
    }
}
