//! Where the log of a process goes.

use cgrant_wire::boot::LogTarget;
use tracing_subscriber::{Layer, filter::LevelFilter, layer::SubscriberExt, util::SubscriberInitExt};

/// Starts logging as `program`. Without a journal that answers, the log goes to standard error.
pub fn start(target: LogTarget, program: &str) {
    let journal = match target {
        // CGRANT_ACCOUNT, CGRANT_RULE and so on, to be asked for by name.
        LogTarget::Journal => {
            tracing_journald::layer().ok().map(|layer| layer.with_field_prefix(Some("CGRANT".to_owned())))
        }
        LogTarget::Terminal => None,
    };
    let layer = match journal {
        Some(journal) => journal.with_syslog_identifier(program.to_owned()).boxed(),
        None => tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).boxed(),
    };
    // A subscriber that is there already (in a test) is as good.
    let _ = tracing_subscriber::registry().with(layer.with_filter(LevelFilter::INFO)).try_init();
}
