//! Figures about the broker, for whoever watches the host. The engine counts; a front writes them as OpenMetrics.

use serde::{Deserialize, Serialize};

/// What a figure means (OpenMetrics 1.0, "Metric Types").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MetricKind {
    /// It goes up and down.
    Gauge,
    /// It only goes up, until the process that counts starts anew.
    Counter,
    /// It says something in its labels, and is always 1.
    Info,
}

/// One figure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Names, `[a-z_]+`, and values, which are any text.
    pub labels: Vec<(String, String)>,
    /// The figure.
    pub value: u64,
}

/// Figures of one meaning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Family {
    /// Its name, `[a-z_]+`, without what the kind puts behind it (`_total`, `_info`).
    pub name: String,
    /// What they mean.
    pub kind: MetricKind,
    /// The same in words.
    pub help: String,
    /// The figures; no two have the same labels.
    pub samples: Vec<Sample>,
}
