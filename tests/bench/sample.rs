//! Taking samples in turns, and the table of what came out.

use std::{
    fmt::Write,
    time::{Duration, Instant},
};

/// The pause before an idle sample: long enough for the kernel to have come to rest.
pub const PAUSE: Duration = Duration::from_millis(60);

/// What one sample is made of: names and times.
pub type Parts = Vec<(&'static str, Duration)>;

/// Something to be measured.
pub struct Case<'a> {
    pub name: String,
    act: Box<dyn FnMut() -> Parts + 'a>,
}

impl<'a> Case<'a> {
    /// A case whose samples have several parts, each a row of the table.
    pub fn new(name: impl Into<String>, act: impl FnMut() -> Parts + 'a) -> Self {
        Self { name: name.into(), act: Box::new(act) }
    }
}

/// A row of a table: the samples of one part of one case.
#[derive(Default)]
pub struct Row {
    pub name: String,
    pub idle: Vec<Duration>,
    pub hot: Vec<Duration>,
}

/// Takes `runs` samples of every case, in turns, idle and then hot. `prepare` is called before either.
pub fn take(cases: &mut [Case<'_>], runs: usize, mut prepare: impl FnMut()) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for idle in [true, false] {
        prepare();
        for case in cases.iter_mut() {
            // Once unmeasured, for the caches.
            (case.act)();
        }
        for run in 0..runs {
            // To and fro: what one leaves to be cleaned up by the kernel is not always the same one's burden.
            let order: Vec<usize> =
                if run % 2 == 0 { (0..cases.len()).collect() } else { (0..cases.len()).rev().collect() };
            for at in order {
                let case = &mut cases[at];
                if idle {
                    std::thread::sleep(PAUSE);
                }
                for (part, time) in (case.act)() {
                    let name =
                        if part.is_empty() { case.name.clone() } else { format!("{}: {part}", case.name) };
                    let row = row(&mut rows, name);
                    if idle { row.idle.push(time) } else { row.hot.push(time) }
                }
            }
        }
    }
    rows
}

fn row(rows: &mut Vec<Row>, name: String) -> &mut Row {
    let at = rows.iter().position(|row| row.name == name).unwrap_or_else(|| {
        rows.push(Row { name, ..Row::default() });
        rows.len() - 1
    });
    &mut rows[at]
}

/// How long `act` takes.
pub fn time<T>(act: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let result = act();
    (start.elapsed(), result)
}

/// Prints rows with median, minimum and 90th percentile.
pub fn print(title: &str, rows: &[Row]) {
    println!("\n{title}");
    println!("{:52}|{:^27}|{:^27}", "", "idle", "hot");
    println!(
        "{:52}|{:>8} {:>8} {:>8}  |{:>8} {:>8} {:>8}",
        "", "median", "min", "p90", "median", "min", "p90"
    );
    for row in rows {
        println!("{:52}|{}  |{}", row.name, figures(&row.idle), figures(&row.hot));
    }
}

fn figures(samples: &[Duration]) -> String {
    let mut line = String::new();
    for part in [0.5, 0.0, 0.9] {
        match quantile(samples, part) {
            Some(time) => write!(line, "{:>8.3} ", milliseconds(time)).unwrap(),
            None => write!(line, "{:>8} ", "-").unwrap(),
        }
    }
    line.pop();
    line
}

/// The sample below which a part of all lies.
pub fn quantile(samples: &[Duration], part: f64) -> Option<Duration> {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable();
    let last = sorted.len().checked_sub(1)?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let at = (last as f64 * part).round() as usize;
    sorted.get(at).copied()
}

/// As a number for the table.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
